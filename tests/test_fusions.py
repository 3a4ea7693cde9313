"""Every fusion passes the contract; modality dropout, which all of them share, is tested below."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from featurize.errors import ConfigError, UnknownName
from fusion.config import FusionConfig, TrainingConfig
from fusion.data import SegmentData
from fusion.missing import drop_slots
from fusion.modules import FUSIONS, Frames, MultimodalFusion, build_fusion
from fusion.modules.attention import Attention, AttentionStack, rollout
from fusion.modules.low_rank import LowRankProduct
from fusion.modules.sequences import SlotSequences
from fusion.train import infer, train
from tests.fusion_contract import (
    HIDDEN,
    WIDTHS,
    FrameContract,
    FusionContract,
    make_batch,
    make_data,
    make_targets,
    shake,
    with_frames,
)

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12).filter(lambda shape: shape[1] > 0))
CHANCES = st.floats(0, 0.999)
SEEDS = st.integers(0, 2**32)
ON_FRAMES = [name for name, fusion in FUSIONS.items() if fusion.reads_frames]


class TestFusions(FusionContract):
    @pytest.fixture(params=list(FUSIONS))
    def name(self, request):
        return request.param


class TestFusionsOnFrames(FrameContract):
    @pytest.fixture(params=ON_FRAMES)
    def name(self, request):
        return request.param


def test_every_fusion_is_registered_under_its_name():
    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    written = {c for c in below(MultimodalFusion) if c.__module__.startswith("fusion.") and not inspect.isabstract(c)}
    assert FUSIONS and written == set(FUSIONS.values())
    assert {name: cls.name for name, cls in FUSIONS.items()} == {name: name for name in FUSIONS}


def test_gated_gives_its_gates():
    features, present = make_batch(WIDTHS, 4)
    weights = build_fusion("gated", WIDTHS, HIDDEN, 0.0).fuse(features, present).weights
    assert weights is not None and weights[present].gt(0).all()


# Options


def test_options_reach_the_fusion():
    assert len(build_fusion("early", WIDTHS, HIDDEN, 0.0, options={"n_layers": 3}).attend.layers) == 3
    assert len(build_fusion("bottleneck", WIDTHS, HIDDEN, 0.0, options={"n_bottlenecks": 7}).bottlenecks) == 7
    assert build_fusion("low_rank", WIDTHS, HIDDEN, 0.0, options={"rank": 5}).interact.factors.shape[1] == 5
    assert build_fusion("cross_attention", WIDTHS, HIDDEN, 0.0, 8).pool.attention.n_heads == 8


@pytest.mark.parametrize(
    ("name", "option", "said"),
    [
        ("low_rank", "ranks", r"option of fusion low_rank 'ranks'. Did you mean 'rank'\? Known: rank"),
        ("late", "rank", "Known: none"),
        ("bottleneck", "hidden_dim", "Known: n_bottlenecks, n_layers"),  # it has a place of its own
    ],
)
def test_an_unknown_option_lists_the_known(name, option, said):
    with pytest.raises(UnknownName, match=said):
        build_fusion(name, WIDTHS, HIDDEN, 0.0, options={option: 2})


@pytest.mark.parametrize(
    ("name", "option"),
    [("early", "n_layers"), ("cross_attention", "n_layers"), ("bottleneck", "n_bottlenecks"), ("low_rank", "rank")],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "two", True, None])
def test_an_option_that_is_no_number_of_things_is_refused(name, option, value):
    with pytest.raises(ConfigError, match=rf"{name} cannot take .*{option}=.*expected a whole number of at least 1"):
        build_fusion(name, WIDTHS, HIDDEN, 0.0, options={option: value})


@pytest.mark.parametrize("name", ON_FRAMES)
def test_heads_must_divide_the_width(name):
    with pytest.raises(ConfigError, match="attention_heads is 3; expected a divisor of hidden_dim, 16"):
        build_fusion(name, WIDTHS, HIDDEN, 0.0, attention_heads=3)
    assert build_fusion("late", WIDTHS, HIDDEN, 0.0, attention_heads=3).hidden_dim == HIDDEN  # it has no heads


def test_an_unknown_fusion_lists_the_known():
    with pytest.raises(UnknownName, match="Did you mean 'gated'") as caught:
        build_fusion("gatd", WIDTHS, HIDDEN, 0.0)
    assert all(name in str(caught.value) for name in FUSIONS)


# Attention


def test_weights_of_attention_are_softmax_over_what_is_allowed():
    """One head, by hand: exp(q k / sqrt(H)) over the allowed positions, times the share each begins with."""
    torch.manual_seed(0)
    attention = Attention(4, 1, 0.0)
    looking, looked_at = torch.randn(1, 2, 4), torch.randn(1, 3, 4)
    allowed = torch.tensor([[[True, False, True], [False, False, False]]])
    share = torch.tensor([[[0.5, 0.25, 0.25]]])
    attended, weights = attention(looking, looked_at, allowed, share.log())
    query = attention.to_query(looking)[0, 0]
    key, value = attention.to_key_value(looked_at)[0].chunk(2, dim=1)
    raw = torch.exp(key @ query / 2) * share[0, 0] * allowed[0, 0]
    expected = raw / raw.sum()
    torch.testing.assert_close(weights[0, 0], expected)
    torch.testing.assert_close(attended[0, 0], attention.to_output(expected @ value))
    assert not weights[0, 1].any() and torch.equal(attended[0, 1], attention.to_output.bias)


def test_heads_look_at_their_own_part_of_the_state():
    """Two heads are two attentions of half the width, and the weights their mean."""
    torch.manual_seed(0)
    both = Attention(6, 2, 0.0)
    states, allowed = torch.randn(2, 4, 6), torch.ones(1, 1, 4, dtype=torch.bool)
    query, (key, value) = both.to_query(states), both.to_key_value(states).chunk(2, dim=2)
    halves = [
        torch.softmax(query[..., half] @ key[..., half].transpose(1, 2) / 3**0.5, dim=2)
        for half in (slice(0, 3), slice(3, 6))
    ]
    attended, weights = both(states, states, allowed)
    torch.testing.assert_close(weights, (halves[0] + halves[1]) / 2)
    joined = torch.cat([halves[0] @ value[..., :3], halves[1] @ value[..., 3:]], dim=2)
    torch.testing.assert_close(attended, both.to_output(joined))


def test_the_last_layer_works_out_only_what_is_read():
    torch.manual_seed(0)
    stack = AttentionStack(2, 8, 2, 0.0).eval()
    states, allowed = torch.randn(3, 5, 8), torch.rand(3, 5, 5) < 0.7
    whole, looked = stack(states, allowed)
    part, looked_for_part = stack(states, allowed, n_read=2)
    torch.testing.assert_close(part, whole[:, :2])
    torch.testing.assert_close(looked_for_part[-1], looked[-1][:, :2])


def test_rollout_by_hand():
    """Position 0 looked half at itself, half at 1; position 1 at nothing; all that is read is position 0."""
    weights = torch.tensor([[[0.5, 0.5], [0.0, 0.0]]])
    read = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(rollout(read, [weights]), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(rollout(read, [weights, weights]), torch.tensor([[0.5625, 0.4375]]))
    torch.testing.assert_close(rollout(torch.tensor([[1.0]]), [weights[:, :1]]), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize("framed", [False, True], ids=["vectors", "frames"])
@pytest.mark.parametrize("name", ON_FRAMES)
def test_weights_are_shares_of_what_is_there(name, framed):
    fusion = build_fusion(name, WIDTHS, HIDDEN, 0.0)
    shake(fusion)
    features, present = make_batch(WIDTHS, 40)
    weights = fusion.fuse(with_frames(features) if framed else features, present).weights
    torch.testing.assert_close(weights.sum(dim=1), present.any(dim=1).float())
    alone = present.sum(dim=1) == 1
    assert alone.any() and (weights[alone] == present[alone]).all()


def test_slots_start_with_equal_shares_however_many_frames_they_have():
    """Where nothing is known of the tokens, a slot of one and a slot of many count the same."""
    fusion = build_fusion("early", {"text": 3, "audio": 3}, HIDDEN, 0.0, options={"n_layers": 1}).eval()
    for attention in (fusion.pool.attention, fusion.attend.layers[0].attention):
        torch.nn.init.zeros_(attention.to_query.weight)
    vectors = torch.randn(5, 3)
    frames = Frames(vectors, torch.randn(5, 30, 3), torch.arange(30) < torch.tensor([[0], [1], [7], [29], [30]]))
    weights = fusion.fuse({"text": vectors, "audio": frames}, torch.ones(5, 2, dtype=torch.bool)).weights
    torch.testing.assert_close(weights, torch.full((5, 2), 0.5))


def test_the_place_of_a_frame_is_its_part_of_the_segment():
    """The middle of three frames lies where the middle of nine does."""
    sequences = SlotSequences(1, 8)
    three, nine = (sequences._places(torch.arange(9) < n)[0] for n in (torch.tensor([[3]]), torch.tensor([[9]])))
    torch.testing.assert_close(three[1], nine[4])
    assert torch.cdist(nine, nine).fill_diagonal_(1).min() > 1e-2


# What each fusion is for

PATIENT = TrainingConfig(epochs=30, patience=12, batch_size=50, lr=1e-2, weight_decay=0.01, modality_dropout=0.0)


def learned(name: str, data: SegmentData, label: np.ndarray, **settings) -> float:
    """Accuracy on the last quarter."""
    n = len(label)
    targets = make_targets({"label": np.where(label, "yes", "no").tolist()})
    fusion = FusionConfig(strategy=name, hidden_dim=16, dropout=0.1, **settings)
    train_rows, val_rows, test_rows = np.split(np.arange(n), [n // 2, 3 * n // 4])
    trained = train(data, targets, train_rows, val_rows, fusion, PATIENT, 0)
    logits, _ = infer(trained.model, data, test_rows)
    return float((logits[0].argmax(dim=1) == targets[0].truth[test_rows]).float().mean())


def framed_data(frames: dict[str, np.ndarray], vectors: dict[str, np.ndarray]) -> SegmentData:
    """frames[slot]: (N, T, D), whose mean is the slot's vector; vectors[slot]: (N, D) of slots without frames."""
    means = {slot: values.mean(axis=1) for slot, values in frames.items()}
    n = len(next(iter(frames.values())))
    slots = [slot for slot in ("text", "audio") if slot in means or slot in vectors]
    data = make_data({slot: means.get(slot, vectors.get(slot)) for slot in slots}, np.ones((n, len(slots)), bool))
    return replace(
        data,
        frames={slot: torch.from_numpy(values.astype(np.float16)) for slot, values in frames.items()},
        n_frames={slot: torch.full((n,), f.shape[1]) for slot, f in frames.items()},
    )


@pytest.mark.parametrize("name", ["late", *ON_FRAMES])
def test_a_cue_in_one_frame_is_found_though_the_mean_hides_it(name):
    """A marked frame says yes or no, another one without the mark says the opposite: in the mean they cancel."""
    rng = np.random.default_rng(0)
    n, n_frames = 600, 6
    label = rng.integers(0, 2, n)
    frames = 0.3 * rng.normal(size=(n, n_frames, 4))
    places = rng.permuted(np.tile(np.arange(n_frames), (n, 1)), axis=1)
    frames[np.arange(n), places[:, 0], :2] += np.stack([np.full(n, 2.0), 2.0 * (2 * label - 1)], axis=1)
    frames[np.arange(n), places[:, 1], 1] -= 2.0 * (2 * label - 1)
    accuracy = learned(name, framed_data({"audio": frames}, {}), label)
    assert accuracy >= 0.9 if name in ON_FRAMES else accuracy <= 0.62


@pytest.mark.parametrize("name", ["late", "cross_attention"])
def test_the_text_finds_the_frame_of_the_audio_that_it_names(name):
    """The text names one of three voices, each audio frame is a voice that goes up or down: does the named one go up?

    Text alone knows no direction, audio alone no voice; and the order of the frames says nothing. The mean of the three
    directions has the right sign in three cases of four.
    """
    rng = np.random.default_rng(0)
    n = 1600
    named, up = rng.integers(0, 3, n), rng.choice([-1.0, 1.0], (n, 3))
    order = rng.permuted(np.tile(np.arange(3), (n, 1)), axis=1)
    voices = np.eye(3)[order]
    frames = np.concatenate([voices, np.take_along_axis(up, order, axis=1)[:, :, None]], axis=2)
    data = framed_data({"audio": frames + 0.1 * rng.normal(size=frames.shape)}, {"text": np.eye(3)[named]})
    accuracy = learned(name, data, up[np.arange(n), named] > 0)
    assert accuracy >= 0.9 if name == "cross_attention" else accuracy <= 0.82


def test_text_looks_at_audio_and_midi_and_audio_at_midi():
    """Through one layer a slot's tokens change with the slots behind it, and with no other."""
    fusion = build_fusion("cross_attention", WIDTHS, HIDDEN, 0.0).eval()
    shake(fusion)
    states: list[torch.Tensor] = []
    fusion.attend.register_forward_hook(lambda *call: states.append(call[2][0]))
    features, _ = make_batch(WIDTHS, 4)
    present = torch.ones(4, 3, dtype=torch.bool)
    fusion(features, present)
    for changed, looking in (("text", {"text"}), ("audio", {"text", "audio"}), ("midi", {"text", "audio", "midi"})):
        fusion({**features, changed: features[changed] + 1}, present)
        moved = (states[-1] - states[0]).abs().amax(dim=(0, 2)) > 1e-6  # one token a slot
        assert {slot for slot, has in zip(WIDTHS, moved.tolist(), strict=True) if has} == looking


def test_cross_attention_says_which_edges_there_are():
    fusion = build_fusion("cross_attention", WIDTHS, HIDDEN, 0.0).eval()
    looked: list[torch.Tensor] = []
    fusion.attend.register_forward_hook(lambda *call: looked.append(call[2][1][0]))
    features, _ = make_batch(WIDTHS, 4)
    fusion(features, torch.ones(4, 3, dtype=torch.bool))
    edges = (looked[0] > 0).all(dim=0)
    assert torch.equal(edges, torch.ones(3, 3).triu(1).bool())


def test_what_slots_say_together_passes_the_bottleneck():
    """With the bottlenecks' states held, the slots only add up: what one says does not depend on the other."""
    fusion = build_fusion("bottleneck", {"text": 3, "audio": 3}, HIDDEN, 0.0, options={"n_bottlenecks": 1}).eval()
    shake(fusion)
    one, other = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    present = torch.ones(5, 2, dtype=torch.bool)

    def together() -> torch.Tensor:
        corners = [fusion({"text": t, "audio": a}, present) for t, a in itertools.product((one, other), repeat=2)]
        return (corners[0] - corners[1] - corners[2] + corners[3]).abs().max()

    assert together() > 1e-2
    held = torch.randn(5, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    fusion.attend.register_forward_hook(lambda module, given, gave: (held, gave[1]))
    assert together() < 1e-5


def test_slots_see_each_other_through_the_bottleneck_alone():
    """After one layer a text token knows nothing of the audio, the bottlenecks do; after two the text does, too."""
    fusion = build_fusion("bottleneck", WIDTHS, HIDDEN, 0.0, options={"n_bottlenecks": 2, "n_layers": 3}).eval()
    shake(fusion)
    states: list[torch.Tensor] = []
    for layer in fusion.attend.layers:
        layer.register_forward_hook(lambda *call: states.append(call[2][0]))
    features, _ = make_batch(WIDTHS, 4)
    present = torch.ones(4, 3, dtype=torch.bool)
    fusion(features, present)
    fusion({**features, "audio": features["audio"] + 1}, present)
    first, second, last = ((states[3 + k] - states[k]).abs().amax(dim=(0, 2)) for k in range(3))
    bottlenecks, text, audio = slice(0, 2), 2, 3
    assert (first[bottlenecks] > 1e-4).all() and first[audio] > 1e-4 and first[text] < 1e-6
    assert second[text] > 1e-6 and len(last) == 2  # in the end only the bottlenecks are read


@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_low_rank_equals_the_whole_tensor_on_the_outer_product(n_slots):
    torch.manual_seed(0)
    product = LowRankProduct(n_slots, 3, rank=2, dropout=0.0).double()
    shake(product)
    tokens = torch.randn(4, n_slots, 3, dtype=torch.float64)
    ones = torch.cat([product.norm(tokens), torch.ones(4, n_slots, 1, dtype=torch.float64)], dim=2)
    letters = "ijk"[:n_slots]
    outer = torch.einsum(",".join(f"b{x}" for x in letters) + f"->b{letters}", *ones.unbind(dim=1))
    factors = ",".join(f"r{x}o" for x in letters)
    tensor = torch.einsum(f"r,{factors}->{letters}o", product.terms, *product.factors.unbind(dim=0))
    expected = torch.einsum(f"b{letters},{letters}o->bo", outer, tensor)
    torch.testing.assert_close(product(tokens), expected)


# Modality dropout


def drop(present: np.ndarray, chance: float, seed: int) -> np.ndarray:
    return drop_slots(torch.from_numpy(present), chance, torch.Generator().manual_seed(seed)).numpy()


@settings(deadline=None)
@given(MASKS, CHANCES, SEEDS)
def test_dropping_adds_nothing_and_leaves_something(present, chance, seed):
    before = present.copy()
    kept = drop(present, chance, seed)
    assert kept.dtype == bool and kept.shape == present.shape
    assert not (kept & ~present).any()
    assert (kept.any(axis=1) == present.any(axis=1)).all()
    np.testing.assert_array_equal(present, before)  # the data's own mask stays as it is


@settings(deadline=None)
@given(MASKS, SEEDS)
def test_no_chance_drops_nothing(present, seed):
    np.testing.assert_array_equal(drop(present, 0.0, seed), present)


@settings(deadline=None)
@given(MASKS, CHANCES, SEEDS)
def test_the_same_seed_drops_the_same(present, chance, seed):
    np.testing.assert_array_equal(drop(present, chance, seed), drop(present, chance, seed))


def test_other_seeds_drop_others():
    present = np.ones((50, 3), bool)
    assert (drop(present, 0.5, 0) != drop(present, 0.5, 1)).any()


@pytest.mark.parametrize("chance", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("n_slots", [2, 3, 5])
def test_slots_are_dropped_about_as_often_as_asked(chance, n_slots):
    """Each alone with `chance`, less the rare rows in which all would go and one of them, each as likely, is kept."""
    kept = drop(np.ones((40_000, n_slots), bool), chance, 0)
    expected = chance - chance**n_slots / n_slots
    np.testing.assert_allclose((~kept).mean(axis=0), expected, atol=0.012)  # 4 standard errors and a little
    if chance == 0.1 and n_slots == 5:
        assert abs((~kept).mean() - chance) < 0.005


def test_missing_slots_do_not_shield_present_ones():
    """Two of four are there: the two are dropped as if they were the only ones."""
    present = np.tile([True, False, True, False], (40_000, 1))
    kept = drop(present, 0.5, 0)
    np.testing.assert_allclose((~kept[:, [0, 2]]).mean(axis=0), 0.5 - 0.125, atol=0.012)


def test_a_single_slot_is_never_dropped():
    present = np.eye(4, dtype=bool)[np.arange(1000) % 4]
    np.testing.assert_array_equal(drop(present, 0.9, 0), present)
