"""The piano-roll CNN: windows lose no note and strike none twice, only real steps count, and that it learns."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from featurize.augment_midi import AUGMENTATIONS, MidiAugmentation
from featurize.encoders.mel_cnn import MaskedBatchNorm
from featurize.encoders.piano_roll import PianoRollEncoder
from featurize.midi import Score, read_midi
from featurize.piano_roll import DRUM_ONSET, ONSET, SUSTAIN, piano_roll
from tests.encoders_contract import EncoderContract
from tests.test_encoders import demo_raws
from tests.test_event import EDGES, accuracy_on_fresh, any_notes, close, encode, play

SMALL = {"hidden_dim": 8, "channels": (4, 6, 8), "n_steps": 40}  # windows of 4 s, frames of 0.8 s
LEARNING = {"hidden_dim": 32, "channels": (8, 16, 32), "dropout": 0.0}


def as_if_trained(encoder: PianoRollEncoder) -> PianoRollEncoder:
    """Statistics and biases as training leaves them: with those of a new network, wrong masks could go unnoticed."""
    with torch.no_grad():
        for layer in encoder.modules():
            if isinstance(layer, MaskedBatchNorm):
                layer.bias.normal_(0.5)
        encoder.train()(encoder.collate([encoder.prepare_score(any_notes(n, n)) for n in (20, 90, 150)]))
    return encoder.eval()


@pytest.fixture(scope="module")
def small() -> PianoRollEncoder:
    torch.manual_seed(0)
    encoder = as_if_trained(PianoRollEncoder(**SMALL))
    encoder.with_frames = True
    return encoder


class TestPianoRollContract(EncoderContract):
    @pytest.fixture
    def encoder(self):
        torch.manual_seed(0)
        return as_if_trained(PianoRollEncoder())

    @pytest.fixture
    def new_encoder(self):
        return PianoRollEncoder

    @pytest.fixture
    def raws(self, demo_data):
        """Of different lengths: 0.25 to 2 s."""
        raws = demo_raws(demo_data, "midi")
        return [
            replace(raw, end_seconds=(raw.start_seconds or 0) + 0.25 * count) for count, raw in enumerate(raws, start=1)
        ]


@settings(max_examples=40)
@given(n_notes=st.integers(1, 150), others=st.lists(st.integers(1, 200), min_size=1, max_size=3))
def test_the_batch_leaves_no_trace(small: PianoRollEncoder, n_notes: int, others: list[int]) -> None:
    """Notes of one to some 15 seconds, so one to four windows."""
    score = any_notes(n_notes)
    alone = encode(small, [score])
    together = encode(small, [any_notes(others[0], 1), score, *(any_notes(n, n) for n in others[1:])])
    n_frames = alone.frames.shape[1]
    assert alone.frame_mask.all() and together.frame_mask[1].sum() == n_frames
    close(together.pooled[1:2], alone.pooled)
    close(together.frames[1:2, :n_frames], alone.frames)
    assert not together.frames[1, n_frames:].any()


def test_what_lies_behind_the_end_is_never_seen(small: PianoRollEncoder) -> None:
    batch = small.collate([small.prepare_score(any_notes(n, n)) for n in (1, 20, 50, 70)])
    noisy = {**batch, "planes": batch["planes"].clone()}
    for window, n_steps in zip(noisy["planes"], batch["n_steps"].tolist(), strict=True):
        window[:, :, n_steps:] = 100
    assert not torch.equal(noisy["planes"], batch["planes"])
    with torch.no_grad():
        expected, found = small(batch), small(noisy)
    assert torch.equal(found.pooled, expected.pooled) and torch.equal(found.frames, expected.frames)


def test_padding_changes_nothing_in_training_either() -> None:
    """A batch that was padded further has the same statistics, so the same vectors and gradients."""
    torch.manual_seed(0)
    encoder = PianoRollEncoder(**SMALL, dropout=0.0).train()
    batch = encoder.collate([encoder.prepare_score(any_notes(n, n)) for n in (15, 30, 70)])
    further = {**batch, "planes": nn.functional.pad(batch["planes"], (0, 37))}
    found = []
    for given_batch in (batch, further):
        encoder.zero_grad()
        pooled = encoder(given_batch).pooled
        pooled.square().sum().backward()
        found.append([pooled.detach(), *(weight.grad.clone() for weight in encoder.parameters())])
    for tight, loose in zip(*found, strict=True):
        torch.testing.assert_close(loose, tight, rtol=1e-4, atol=1e-4 * float(tight.abs().max()) + 1e-7)


def test_the_vector_follows_from_the_frames(small: PianoRollEncoder) -> None:
    encoded = encode(small, [any_notes(10), any_notes(150)])
    for pooled, frames, mask in zip(encoded.pooled, encoded.frames, encoded.frame_mask, strict=True):
        real = frames[mask]
        torch.testing.assert_close(small.to_vector(torch.cat([real.mean(dim=0), real.max(dim=0).values])), pooled)


@pytest.mark.parametrize(
    ("seconds", "windows", "n_frames"),
    [
        (0.05, [1], 1),
        (3 * 0.1, [3], 1),  # a little more than 0.3, in binary
        (0.8, [8], 1),
        (0.9, [9], 2),
        (4.0, [40], 5),
        (4.1, [21, 20], 6),
        (8.0, [40, 40], 10),
        (8.1, [27, 27, 27], 12),
        (10.0, [34, 34, 32], 14),
    ],
)
def test_windows_are_few_and_of_equal_length(
    small: PianoRollEncoder, seconds: float, windows: list[int], n_frames: int
) -> None:
    item = small.prepare_score(replace(play([0.0], 60, length=0.02), duration_seconds=seconds))
    batch = small.collate([item])
    assert batch["n_steps"].tolist() == windows and batch["n_windows"].tolist() == [len(windows)]
    assert small.cost(item) == item.shape[2] == sum(windows)
    with torch.no_grad():
        assert small(batch).frame_mask.sum() == n_frames


def test_there_are_no_frames_unless_asked_for() -> None:
    assert encode(PianoRollEncoder(**SMALL), [any_notes(10)]).frames is None


def test_a_note_at_the_very_end_is_drawn() -> None:
    """Also where rounding put it a little before the edge, on which `piano_roll` sees it."""
    for end in (1.0, 1.0 - 1e-9):
        item = PianoRollEncoder().prepare_score(play([0.0, end], [60, 62], length=0.0))
        assert item.shape[2] == 11 and item[ONSET, 62].nonzero()[0].tolist() == [10]


def test_windows_are_read_as_segments_of_their_own(small: PianoRollEncoder) -> None:
    """Their frames stand end to end."""
    item = small.prepare_score(any_notes(100))
    with torch.no_grad():
        whole = small(small.collate([item]))
        length = small.collate([item])["planes"].shape[3]
        parts = [item[:, :, start : start + length] for start in range(0, item.shape[2], length)]
        assert len(parts) == 3
        apart = [small(small.collate([part])).frames for part in parts]
    close(whole.frames, torch.cat(apart, dim=1))


def windows_of(encoder: PianoRollEncoder, score: Score) -> Tensor:
    return encoder.collate([encoder.prepare_score(score)])["planes"]


def test_a_note_over_an_edge_sounds_on_and_is_struck_once() -> None:
    encoder = PianoRollEncoder(n_steps=10)
    windows = windows_of(encoder, play([0.5, 1.0], [60, 72], length=[2.0, 0.1], velocity=80))
    assert windows.shape == (3, 3, 128, 9)  # 25 steps
    sustain, onset = windows[:, SUSTAIN, 60].flatten(), windows[:, ONSET, 60].flatten()
    assert sustain.nonzero().flatten().tolist() == list(range(5, 25))
    assert onset.nonzero().flatten().tolist() == [5]
    assert windows[:, ONSET, 72].flatten().nonzero().flatten().tolist() == [10]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 80), st.integers(58, 61), st.booleans()), min_size=1),
    st.integers(0, 100),
)
def test_any_segment_up_to_the_limit_is_drawn_whole(notes: list[tuple[int, int, int, bool]], tail: int) -> None:
    """Times in thirds of a step. No example reaches the limit, 210 steps."""
    onset, length, pitch, is_drum = (np.array(column) for column in zip(*notes, strict=True))
    score = play(onset / 30, pitch, length=length / 30, is_drum=is_drum)
    score = replace(score, duration_seconds=score.duration_seconds + tail / 30)
    item = PianoRollEncoder(n_steps=7, max_windows=30).prepare_score(score)
    whole = piano_roll(score, n_steps=item.shape[2])
    assert whole.n_beyond == whole.n_clipped == 0
    np.testing.assert_array_equal(item, whole.planes)
    assert item.shape[2] == max(-(-(int((onset + length).max()) + tail) // 3), int(onset.max()) // 3 + 1)


def test_time_without_a_new_note_costs_nothing_beyond_the_limit() -> None:
    """Windows of 1 s: of 100 s, those from 0, 7 and 8 and 90 s on are kept."""
    onset = np.array([0.25, 7.0, 7.35, 8.95, 90.55])
    score = play(onset, [60, 61, 62, 63, 64], length=[30.0, 0.1, 1.0, 2.0, 9.0])
    long = PianoRollEncoder(n_steps=10, max_windows=5)
    item = long.prepare_score(score)
    expected = np.zeros((3, 128, 40), np.uint8)
    for pitch, first, last in ((60, 2, 39), (61, 10, 10), (62, 13, 23), (63, 29, 39), (64, 35, 39)):
        expected[ONSET, pitch, first] = 80
        expected[SUSTAIN, pitch, first : last + 1] = 80
    expected[SUSTAIN, 60, 30:] = 0  # it ends at 30.25 s, and is not in the window from 90 s on
    expected[SUSTAIN, 63, 30:] = 0
    np.testing.assert_array_equal(item, expected)


def test_of_too_many_windows_some_are_read_evenly_spread() -> None:
    encoder = PianoRollEncoder(n_steps=10, max_windows=3)
    score = play(np.arange(9) + 0.5, 60 + np.arange(9), length=0.1)  # one note in each second
    item = encoder.prepare_score(score)
    assert item.shape == (3, 128, 30)
    assert list(zip(*item[ONSET].nonzero(), strict=True)) == [(60, 5), (64, 15), (68, 25)]


@pytest.mark.parametrize("duration_seconds", [1e6, 1e15, np.inf])
def test_a_segment_said_to_last_for_ever_is_as_long_as_its_notes(duration_seconds: float) -> None:
    encoder = PianoRollEncoder()
    score = any_notes(60)  # 6 s
    item = encoder.prepare_score(replace(score, duration_seconds=duration_seconds))
    assert item.shape[2] == encoder.n_steps
    length = encoder.prepare_score(score).shape[2]
    np.testing.assert_array_equal(item[:, :, :length], encoder.prepare_score(score))
    assert not item[:, :, length:].any()


def test_a_day_of_notes_is_bounded() -> None:
    encoder = PianoRollEncoder()
    rng = np.random.default_rng(0)
    day = play(rng.uniform(0, 86_000, 50_000), rng.integers(0, 128, 50_000), length=rng.uniform(0, 4_000, 50_000))
    item = encoder.prepare_score(day)
    assert item.shape == (3, 128, encoder.max_windows * encoder.n_steps)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EDGES)
def test_everything_is_finite(name: str, training: bool) -> None:
    torch.manual_seed(0)
    encoder = PianoRollEncoder(**SMALL).train(training)
    encoder.with_frames = True
    item = encoder.prepare_score(EDGES[name])
    assert (item[ONSET:] > 0).any() and item.shape[2] <= encoder.max_windows * encoder.n_steps
    encoded = encoder(encoder.collate([item]))
    encoded.pooled.sum().backward()
    assert encoded.pooled.isfinite().all() and encoded.frames.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in encoder.parameters())
    assert all(value.isfinite().all() for value in encoder.buffers())


PAIRS = {  # that differ in one thing only
    "a note repeated, and a long one": (play([0.0, 0.5], 60, length=0.5), play([0.0], 60, length=1.0)),
    "drums, and tones": (play([0.0, 0.3], [36, 38], is_drum=True), play([0.0, 0.3], [36, 38], length=0.1)),
    "a drum, and its neighbour": (play([0.0], 36, is_drum=True), play([0.0], 37, is_drum=True)),
    "loud, and soft": (play([0.0], 60, velocity=100), play([0.0], 60, velocity=50)),
    "high, and low": (play([0.0], 80), play([0.0], 48)),
    "now, and later": (play([0.0, 1.5], [60, 62]), play([0.5, 1.5], [60, 62])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_differs_has_different_vectors(small: PianoRollEncoder, name: str) -> None:
    one, other = encode(small, list(PAIRS[name])).pooled
    assert (one - other).norm() > 0.01 * one.norm()


def test_bfloat16_is_near_and_comes_back_as_float32(small: PianoRollEncoder) -> None:
    scores = [any_notes(10), any_notes(150)]
    plain = encode(small, scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encode(small, scores)
    assert rounded.pooled.dtype == rounded.frames.dtype == torch.float32
    assert not torch.equal(rounded.pooled, plain.pooled)
    torch.testing.assert_close(rounded.pooled, plain.pooled, rtol=0, atol=0.03 * float(plain.pooled.abs().max()))


def repeated_or_held(n: int, rng: np.random.Generator) -> tuple[list[Score], np.ndarray]:
    """Five notes of 0.4 s, each as one (0), or struck again after half of it (1): the same keys sound all the time."""
    scores = []
    twice = rng.integers(0, 2, n)
    for again in twice:
        onset = np.cumsum(rng.uniform(0.4, 0.9, 5))
        pitch, velocity = rng.integers(40, 90, 5), rng.integers(30, 120, 5)
        strikes = np.array([0.0, 0.2]) if again else np.zeros(1)
        scores.append(
            play(
                (onset[:, None] + strikes).ravel(),
                pitch.repeat(len(strikes)),
                length=0.4 / len(strikes),
                velocity=velocity.repeat(len(strikes)),
            )
        )
    return scores, twice


def triads(n: int, rng: np.random.Generator, roots: np.ndarray) -> tuple[list[Score], np.ndarray]:
    """Three triads, all major (1) or all minor (0), on any of the roots, in any inversion."""
    scores = []
    major = rng.integers(0, 2, n)
    for third in 3 + major:
        chords = rng.choice(roots, 3)[:, None] + [0, third, 7]
        chords += 12 * (np.arange(3) < rng.integers(0, 3, 3)[:, None])
        onset = np.cumsum(rng.uniform(0.4, 0.8, 3)).repeat(3)
        scores.append(play(onset, chords.ravel(), length=0.4, velocity=rng.integers(40, 110, 9)))
    return scores, major


def tone_with_kick_or_snare(n: int, rng: np.random.Generator) -> tuple[list[Score], np.ndarray]:
    """Kick and snare in turn, each as often; tones with every kick (1) or with every snare (0)."""
    scores = []
    with_kick = rng.integers(0, 2, n)
    for drums in np.where(with_kick[:, None], [36, 38], [38, 36]):
        beats = rng.uniform(0, 0.5) + np.arange(8) * rng.uniform(0.25, 0.4)
        scores.append(
            play(
                np.concatenate([beats, beats[::2]]),
                np.concatenate([np.tile(drums, 4), rng.integers(50, 70, 4)]),
                is_drum=np.arange(12) < 8,
                velocity=rng.integers(50, 110, 12),
            )
        )
    return scores, with_kick


TASKS = {  # and in how many steps
    "repeated or held": (repeated_or_held, 30),
    "major or minor": (partial(triads, roots=np.arange(40, 80)), 60),
    "tones with kick or snare": (tone_with_kick_or_snare, 30),
}


@pytest.mark.parametrize("name", TASKS)
def test_it_learns(name: str) -> None:
    torch.manual_seed(0)
    task, n_steps = TASKS[name]
    found = accuracy_on_fresh(PianoRollEncoder(**LEARNING), task, n_steps=n_steps)
    print(f"{name}: {found:.3f}")
    assert found >= 0.95


def test_it_prepares_without_weights(demo_data) -> None:
    encoder = PianoRollEncoder()
    light = pickle.dumps(encoder.without_weights())
    assert len(light) < 2_000 < len(pickle.dumps(encoder))
    raw = demo_raws(demo_data, "midi")[0]
    item = pickle.loads(light).prepare(raw)
    assert item.dtype == np.uint8 and np.array_equal(item, encoder.prepare(raw))


def test_it_is_drawn_after_augmentation(demo_data) -> None:
    raw = demo_raws(demo_data, "midi")[0]
    encoder = PianoRollEncoder()
    augmentation = MidiAugmentation(list(AUGMENTATIONS))
    items = [encoder.prepare(raw, partial(augmentation, seed=seed)) for seed in range(8)]
    assert len({item.tobytes() for item in items}) > 4
    for seed, item in enumerate(items):
        np.testing.assert_array_equal(item, encoder.prepare_score(augmentation(read_midi(raw), seed)))
        assert item[DRUM_ONSET].any() == encoder.prepare(raw)[DRUM_ONSET].any()


def test_the_current_seed_makes_the_weights() -> None:
    def sha256(seed: int) -> str:
        torch.manual_seed(seed)
        return PianoRollEncoder(**SMALL).record.weights["sha256"]

    assert sha256(0) == sha256(0) != sha256(1)


def test_the_record_holds_every_option() -> None:
    options = {
        "hidden_dim": 16,
        "step_seconds": 0.05,
        "n_steps": 100,
        "max_windows": 7,
        "channels": [8, 8],
        "dropout": 0.5,
    }
    assert set(options) == set(inspect.signature(PianoRollEncoder).parameters)
    found = PianoRollEncoder(**options).settings
    assert found.items() >= options.items()
    assert found["version"] == 1 and "max_unended_seconds" in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_dim": 0}, "hidden_dim is 0; expected a whole number, at least 1"),
        ({"n_steps": 0}, "n_steps is 0; expected a whole number, at least 1"),
        ({"n_steps": 25.6}, r"n_steps is 25\.6; expected a whole number"),
        ({"max_windows": -1}, "max_windows is -1; expected a whole number, at least 1"),
        ({"step_seconds": 0.0}, r"step_seconds is 0\.0; expected a finite time of more than"),
        ({"step_seconds": float("nan")}, "step_seconds is nan; expected a finite time"),
        ({"step_seconds": float("inf")}, "step_seconds is inf; expected a finite time"),
        ({"channels": []}, r"channels is \[\]; expected at least one number"),
        ({"channels": (8, 0)}, r"channels is \[8, 0\]; expected at least one number, each at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0; expected 0 to below 1"),
    ],
)
def test_a_wrong_option_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PianoRollEncoder(**options)
