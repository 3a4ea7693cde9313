"""What both transformers over tokens must do, and what `event` knows: the order of events, and nothing of bars."""

from __future__ import annotations

import inspect
import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featurize.encoders import transformer
from featurize.encoders.base import Batch, Encoded
from featurize.encoders.event import EventBasedEncoder, sinusoids
from featurize.encoders.transformer import Layer, MaskedEventModel, TokenTransformer, choose_hidden, note_windows
from featurize.midi import Score
from featurize.midi_tokens import MidiTokenizer
from tests.encoders_contract import EncoderContract
from tests.test_encoders import demo_raws

SMALL = {"hidden_dim": 16, "n_layers": 2, "n_heads": 2, "dropout": 0.0}
LEARNING = {"hidden_dim": 32, "n_layers": 2, "n_heads": 2, "dropout": 0.0}


def play(
    onset: Any,
    pitch: Any,
    *,
    length: Any = 0.2,
    velocity: Any = 80,
    program: Any = 0,
    is_drum: Any = False,
    bpm: float = 120.0,
    meters: tuple[tuple[float, int, int], ...] = ((0.0, 4, 4),),
) -> Score:
    """Notes from seconds and numbers, each an array or the same for all. meters: second, numerator, denominator."""
    onset, pitch, length, velocity, program, is_drum = np.broadcast_arrays(
        np.asarray(onset, float), pitch, length, velocity, program, is_drum
    )
    order = np.lexsort((velocity, program, is_drum, onset + length, pitch, onset))
    end = float((onset + length).max())
    return Score(
        onset_seconds=onset[order],
        offset_seconds=(onset + length)[order],
        pitch=pitch[order].astype(np.int16),
        velocity=velocity[order].astype(np.int16),
        program=program[order].astype(np.int16),
        is_drum=is_drum[order].astype(bool),
        tempo_seconds=np.array([meters[0][0]]),
        tempo_bpm=np.array([bpm]),
        time_signature_seconds=np.array([meter[0] for meter in meters]),
        time_signatures=np.array([meter[1:] for meter in meters], np.int16),
        duration_seconds=end,
        track_end_seconds=end,
        n_unended=0,
    )


def any_notes(n: int, seed: int = 0, meters: tuple[tuple[float, int, int], ...] = ((0.0, 4, 4),)) -> Score:
    """n notes, about ten a second, of a few programs and drums."""
    rng = np.random.default_rng(seed)
    return play(
        rng.uniform(0, n / 10, n),
        rng.integers(30, 100, n),
        length=rng.exponential(0.3, n),
        velocity=rng.integers(1, 128, n),
        program=rng.integers(0, 4, n),
        is_drum=rng.random(n) < 0.2,
        meters=meters,
    )


def later(score: Score, seconds: float) -> Score:
    """The same notes, moved over the same bars."""
    moved = ("onset_seconds", "offset_seconds", "duration_seconds", "track_end_seconds")
    return replace(score, **{name: getattr(score, name) + seconds for name in moved})


EDGES = {
    "one note": play([3.0], 60),
    "one note without length": play([0.0], 60, length=0.0),
    "one drum": play([3.0], 36, is_drum=True),
    "drums only": play(np.arange(40) / 4, [36, 38] * 20, is_drum=True),
    "a chord of all": play(np.zeros(128), np.arange(128)),
    "the same note 60 times": play(np.zeros(60), 60),
    "hours of silence": play([0.0, 1.0, 30_000.0], [60, 62, 64]),
    "a note of hours": play([0.0, 1.0], [60, 62], length=[10_000.0, 0.5]),
    "within a bar": any_notes(60, meters=((-0.7, 4, 4),)),
    "odd meters": any_notes(60, meters=((-0.3, 7, 8), (1.1, 5, 16), (1.3, 33, 16), (3.0, 3, 32))),
    "2,000 notes": any_notes(2_000),
}


@torch.no_grad()
def encode(encoder: TokenTransformer, scores: list[Score]) -> Encoded:
    return encoder.eval()(encoder.collate([encoder.prepare_score(score) for score in scores]))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def accuracy_on_fresh(encoder: TokenTransformer, task: Any, *, n_steps: int) -> float:
    """How often the encoder with a linear head is right, after `n_steps` batches of `task(n, rng)`: scores, labels."""
    rng = np.random.default_rng(0)
    head = nn.Linear(encoder.width, 1)
    optimizer = torch.optim.AdamW([*encoder.train().parameters(), *head.parameters()], lr=2e-3)
    for _ in range(n_steps):
        scores, labels = task(32, rng)
        logits = head(encoder(encoder.collate([encoder.prepare_score(score) for score in scores])).pooled)[:, 0]
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(logits, torch.from_numpy(labels).float()).backward()
        optimizer.step()
    scores, labels = task(400, np.random.default_rng(1))
    with torch.no_grad():
        found = head(encode(encoder, scores).pooled)[:, 0] > 0
    return float((found.numpy() == labels).mean())


def scales(n: int, rng: np.random.Generator) -> list[Score]:
    """Twice the same eight notes, up or down in one interval, in one velocity and one program: no note is free."""
    return [
        play(
            np.arange(16) * rng.choice([0.25, 0.3]),
            rng.integers(50, 70) + rng.choice([-1, 1, 2]) * (np.arange(16) % 8),
            velocity=rng.integers(40, 110),
            program=rng.integers(0, 8),
        )
        for _ in range(n)
    ]


def counted_loss(model: MaskedEventModel, seen: Batch, batch: Batch, hidden: Tensor) -> float:
    """Cross-entropy of the hidden tokens where each has the share that it has in `seen`, whatever is around it."""
    losses = []
    for column, size in enumerate(model.encoder.vocabulary_sizes):
        counts = torch.bincount(seen["ids"][seen["mask"]][:, column], minlength=size) + 1.0
        ids = batch["ids"][hidden][:, column]
        losses.append(cross_entropy(counts.log().expand(len(ids), -1), ids))
    return float(torch.stack(losses).mean())


class TransformerContract(EncoderContract):
    """`kind`: the encoder's class. `tokenization`: of its tokens. `options`: that are not its defaults."""

    kind: Any
    tokenization: str
    options: dict[str, Any] = {}

    @pytest.fixture
    def new_encoder(self):
        return lambda: self.kind(**self.options)

    @pytest.fixture
    def encoder(self, new_encoder):
        torch.manual_seed(0)
        return new_encoder().eval()

    @pytest.fixture
    def raws(self, demo_data):
        return demo_raws(demo_data, "midi")

    @pytest.fixture
    def small(self) -> TokenTransformer:
        """Reads in windows of 40; what a new network has as zeros is not zero."""
        torch.manual_seed(0)
        encoder = self.kind(**SMALL, **self.options, max_events=40).eval()
        with torch.no_grad():
            for name, weight in encoder.named_parameters():
                if name.endswith("bias"):
                    weight.normal_(0, 0.5)
        encoder.with_frames = True
        return encoder

    @pytest.mark.parametrize("n_notes", [1, 2, 9, 41, 150])
    def test_the_batch_leaves_no_trace(self, small, n_notes):
        score = any_notes(n_notes)
        alone = encode(small, [score])
        n_frames = alone.frames.shape[1]
        assert alone.frame_mask.all()
        for others in ([any_notes(1, 1)], [any_notes(70, 2), any_notes(300, 3), any_notes(3, 4)]):
            together = encode(small, [others[0], score, *others[1:]])
            close(together.pooled[1:2], alone.pooled)
            close(together.frames[1:2, :n_frames], alone.frames)
            assert together.frame_mask[1].sum() == n_frames and not together.frames[1, n_frames:].any()

    def test_what_lies_behind_the_end_is_never_read(self, small):
        batch = small.collate([small.prepare_score(any_notes(n, n)) for n in (2, 9, 60)])
        assert not batch["mask"].all()
        other = {name: tensor.clone() for name, tensor in batch.items()}
        for name in batch.keys() - {"mask", "n_windows"}:
            other[name][~batch["mask"]] = 7
        with torch.no_grad():
            expected, found = small(batch), small(other)
        assert torch.equal(found.pooled, expected.pooled) and torch.equal(found.frames, expected.frames)

    def test_the_vector_follows_from_the_frames(self, small):
        scores = [any_notes(5), any_notes(150)]
        encoded = encode(small, scores)
        tokenizer = MidiTokenizer(self.tokenization, 40)
        windows = [list(note_windows(score, tokenizer)) for score in scores]
        assert len(windows[0]) == 1 and len(windows[1]) > 3 and len(set(map(len, windows[1]))) > 1
        rows = zip(encoded.pooled, encoded.frames, encoded.frame_mask, windows, strict=True)
        for pooled, frames, mask, of_score in rows:
            assert mask.sum() == sum(map(len, of_score))
            torch.testing.assert_close(small.to_vector(frames[mask].mean(dim=0)), pooled)

    def test_windows_go_through_together_or_alone(self, small, monkeypatch):
        scores = [any_notes(n, n) for n in (150, 3, 40)]
        together = encode(small, scores)
        monkeypatch.setattr(transformer, "PAIRS_AT_ONCE", 1)
        alone = encode(small, scores)
        close(alone.pooled, together.pooled)
        close(alone.frames, together.frames)

    @pytest.mark.parametrize(
        ("n_notes", "max_events"), [(1, 3), (30, 3), (30, 10), (30, 1024), (1_000, 100), (1_000, 1024)]
    )
    def test_no_note_is_left_out(self, n_notes, max_events):
        score = any_notes(n_notes)
        tokenizer = MidiTokenizer(self.tokenization, max_events)
        windows = list(note_windows(score, tokenizer))
        assert max(map(len, windows)) <= max_events and not any(window.n_cut for window in windows)
        found: Counter[tuple[int, int]] = Counter()
        for window in windows:
            for track in tokenizer.decode(window.ids).tracks:
                found.update((-1 if track.is_drum else track.program, note.pitch) for note in track.notes)
        program = np.where(score.is_drum, -1, score.program)
        assert found == Counter(zip(program.tolist(), score.pitch.tolist(), strict=True))

    @pytest.mark.parametrize("name", EDGES)
    def test_everything_is_finite(self, name):
        torch.manual_seed(0)
        encoder = self.kind(**SMALL, **self.options)
        encoder.with_frames = True
        encoded = encoder(encoder.collate([encoder.prepare_score(EDGES[name])]))
        encoded.pooled.sum().backward()
        assert encoded.pooled.isfinite().all() and encoded.frames.isfinite().all()
        assert all(weight.grad.isfinite().all() for weight in encoder.parameters())

    def test_silence_before_the_first_note_is_not_read(self, small):
        """512 s of 4/4 at 120 bpm are whole bars, so that no other thing changes."""
        here = any_notes(60)
        close(encode(small, [later(here, 512.0)]).pooled, encode(small, [here]).pooled)

    def test_bfloat16_is_near_and_comes_back_as_float32(self, small):
        scores = [any_notes(5), any_notes(150)]
        plain = encode(small, scores)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = encode(small, scores)
        assert rounded.pooled.dtype == rounded.frames.dtype == torch.float32
        assert not torch.equal(rounded.pooled, plain.pooled)
        torch.testing.assert_close(rounded.pooled, plain.pooled, rtol=0, atol=0.05 * float(plain.pooled.abs().max()))

    def test_it_prepares_without_weights(self, encoder):
        light = pickle.dumps(encoder.without_weights())
        assert len(light) < 3_000
        item, expected = pickle.loads(light).prepare_score(any_notes(50)), encoder.prepare_score(any_notes(50))
        assert item.keys() == expected.keys()
        assert all(np.array_equal(item[name], expected[name]) for name in item)

    def test_cost_counts_pairs(self, small):
        item = small.prepare_score(any_notes(150))
        n_tokens = item["n_tokens"]
        assert len(n_tokens) > 1 and small.cost(item) == len(n_tokens) * n_tokens.max() ** 2

    def test_the_current_seed_makes_the_weights(self):
        def sha256(seed: int) -> str:
            torch.manual_seed(seed)
            return self.kind(**SMALL).record.weights["sha256"]

        assert sha256(0) == sha256(0) != sha256(1)

    def test_the_record_holds_every_option(self, encoder):
        options = {"hidden_dim": 24, "n_layers": 1, "n_heads": 3, "dropout": 0.5, "max_events": 64}
        assert self.kind(**options).settings.items() >= options.items()
        assert set(inspect.signature(self.kind).parameters) <= encoder.settings.keys()
        assert encoder.settings.keys() >= {"tokenization", "max_unended_seconds", "columns", "windows", "version"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"hidden_dim": 0}, "hidden_dim is 0; expected at least 1"),
            ({"n_layers": 0}, "n_layers is 0; expected at least 1"),
            ({"n_heads": -1}, "n_heads is -1; expected at least 1"),
            ({"hidden_dim": 10, "n_heads": 4}, "hidden_dim is 10; expected a multiple of n_heads, 4"),
            ({"dropout": 1.0}, "dropout is 1.0; expected 0 to below 1"),
            ({"max_events": 0}, "max_events is 0; .* tokens need at least"),
            ({"vocab_size": 3}, "vocab_size is 3; .* tokens have [1-9][0-9]+. Leave it null"),
        ],
    )
    def test_a_wrong_option_is_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.kind(**options)

    def test_a_hidden_token_is_not_seen(self, small):
        """Neither its embedding reaches a prediction, nor a window that is padding."""
        torch.manual_seed(0)
        model = MaskedEventModel(small)
        batch = small.collate([small.prepare_score(any_notes(n, n)) for n in (9, 60)])
        hidden = choose_hidden(batch["mask"], 0)
        other = {**batch, "ids": batch["ids"].where(~hidden[:, :, None], 7)}
        with torch.no_grad():
            expected, found = model.predict(batch, hidden), model.predict(other, hidden)
            seen = model.predict({**batch, "ids": batch["ids"].where(hidden[:, :, None], 7)}, hidden)
        assert len(found) == len(small.vocabulary_sizes) == batch["ids"].shape[2]
        for of_found, of_expected, of_seen in zip(found, expected, seen, strict=True):
            assert torch.equal(of_found, of_expected) and not torch.allclose(of_seen, of_expected, atol=1e-3)

    def test_hidden_tokens_are_predicted_from_the_others(self):
        torch.manual_seed(0)
        model = MaskedEventModel(self.kind(**LEARNING, **self.options))
        encoder = model.encoder
        new_state = self.kind(**LEARNING, **self.options).state_arrays().keys()
        rng = np.random.default_rng(0)
        items = [encoder.prepare_score(score) for score in scales(400, rng)]
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for step in range(350):
            losses = model(encoder.collate([items[row] for row in rng.choice(len(items), 16, replace=False)]), step)
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
        fresh = encoder.collate([encoder.prepare_score(score) for score in scales(60, np.random.default_rng(1))])
        model.eval()
        with torch.no_grad():
            found = float(model(fresh, 1).mean())
            assert found == float(model(fresh, 1).mean()) != float(model(fresh, 2).mean())
        counted = counted_loss(model, encoder.collate(items), fresh, choose_hidden(fresh["mask"], 1))
        print(f"{encoder.name}: {found:.2f} nats, counted {counted:.2f}")
        assert found < 0.5 * counted
        assert encoder.state_arrays().keys() == new_state


class TestEventContract(TransformerContract):
    kind, tokenization = EventBasedEncoder, "separate"


class TestCompoundEventContract(TransformerContract):
    kind, tokenization, options = EventBasedEncoder, "compound", {"tokenization": "compound"}


def test_a_part_of_each_window_is_hidden() -> None:
    mask = torch.arange(100) < torch.tensor([100, 1, 3, 20, 40])[:, None]
    hidden = choose_hidden(mask, 0)
    assert hidden.sum(dim=1).tolist() == [15, 1, 1, 3, 6] and not hidden[~mask].any()
    assert torch.equal(choose_hidden(mask, 0), hidden) and not torch.equal(choose_hidden(mask, 1), hidden)
    assert torch.stack([choose_hidden(mask, seed) for seed in range(100)]).any(dim=0).equal(mask)


def test_a_layer_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours = Layer(12, 3, 0.0)
    theirs = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.3)
    pairs = {
        ours.attention_norm: theirs.norm1,
        ours.to_states: theirs.self_attn.out_proj,
        ours.feed_forward[0]: theirs.norm2,
        ours.feed_forward[1]: theirs.linear1,
        ours.feed_forward[3]: theirs.linear2,
    }
    for mine, other in pairs.items():
        mine.load_state_dict(other.state_dict())
    attention = theirs.self_attn
    ours.to_queries_keys_values.load_state_dict({"weight": attention.in_proj_weight, "bias": attention.in_proj_bias})
    states, mask = torch.randn(3, 9, 12), torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    expected = theirs(states, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(states, mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_places_are_sines_and_cosines() -> None:
    found = sinusoids(50, 5, torch.device("cpu")).numpy()
    place = np.arange(50)[:, None]
    rates = 10_000 ** -(np.array([0, 2, 4]) / 5)
    expected = np.concatenate([np.sin(place * rates), np.cos(place * rates)], axis=1)[:, :5]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert len(np.unique(sinusoids(5_000, 128, torch.device("cpu")).numpy().round(4), axis=0)) == 5_000


def louder_or_softer(n: int, rng: np.random.Generator) -> tuple[list[Score], np.ndarray]:
    louder = rng.integers(0, 2, n)
    scores = []
    for up in louder:
        velocity = np.sort(rng.integers(20, 128, 10))[:: 1 if up else -1]
        scores.append(play(np.arange(10) * rng.uniform(0.2, 0.4), rng.integers(50, 70, 10), velocity=velocity))
    return scores, louder


def test_it_learns_the_order_of_events() -> None:
    """Louder or softer has the same velocities: only their order tells."""
    torch.manual_seed(0)
    assert accuracy_on_fresh(EventBasedEncoder(**LEARNING), louder_or_softer, n_steps=150) >= 0.95


def test_separate_tokens_tell_nothing_of_bars() -> None:
    bars = ((0.0, 4, 4), (-0.5, 4, 4), (0.0, 3, 4), (-1.3, 7, 8))
    items = [EventBasedEncoder().prepare_score(any_notes(50, meters=(bar,))) for bar in bars]
    assert all(np.array_equal(item["ids"], items[0]["ids"]) for item in items)


def test_an_unknown_tokenization_is_named() -> None:
    with pytest.raises(ValueError, match="tokenization is 'both'; expected 'separate' or 'compound'"):
        EventBasedEncoder(tokenization="both")
