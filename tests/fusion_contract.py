"""The contract of a fusion: subclass `FusionContract`, provide `name`, and get every test.

A fusion that reads frames passes it twice: with vectors alone, and with frames in all slots but one (`FrameContract`).
Parameters are shaken before they are tested: a fusion may start with zeros, and behind a zero every leak hides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from featurize.config import TargetConfig
from fusion.data import SegmentData
from fusion.missing import drop_slots
from fusion.modules import FUSIONS, Frames, MultimodalFusion, build_fusion
from fusion.modules.base import MOST_LENGTHS, Fused
from fusion.targets import Target, load_targets
from stores.base import STRING
from stores.memory_store import MemoryTree
from stores.store import Store

HIDDEN = 16
WIDTHS = {"text": 5, "audio": 4, "midi": 3}
SLOT_SETS = [
    {"audio": 4},
    {"text": 5, "my.concept": 2},
    {"text": 1, "midi": 3, "音声 é": 7},
    {"text": 5, "audio": 4, "midi": 3, "a b/c": 2},
    {"text": 5, "audio": 4, "midi": 3, "concept": 3, "v1.0": 1},
]
N_FRAMES = 5
POISON = {"nan": torch.nan, "inf": torch.inf, "minus inf": -torch.inf, "huge": 1e30, "one": 1.0}


def make_data(
    vectors: Mapping[str, np.ndarray], present: np.ndarray, groups: Sequence[str] | None = None
) -> SegmentData:
    """vectors[slot]: (N, D_slot); present: bool (N, M)."""
    n = len(present)
    return SegmentData(
        features={slot: f"{slot}/toy" for slot in vectors},
        vectors={slot: torch.from_numpy(values.astype(np.float32)) for slot, values in vectors.items()},
        present=torch.from_numpy(present),
        ids=np.array([f"s{i}" for i in range(n)], dtype=STRING),
        groups=np.array(list(groups) if groups is not None else [f"g{i}" for i in range(n)], dtype=STRING),
    )


def make_targets(labels: Mapping[str, np.ndarray | list], *configs: TargetConfig) -> list[Target]:
    """Targets as a store with these label columns gives them; a list of texts becomes a text column."""
    columns = {
        name: np.array(values, dtype=STRING if len(values) and isinstance(values[0], str) else None)
        for name, values in labels.items()
    }
    n = len(next(iter(columns.values())))
    ids = np.array([f"s{i}" for i in range(n)], dtype=STRING)
    store = Store.create(MemoryTree(), {"id": ids, "group": ids}, columns, {"layout": "test"})
    return load_targets(store, list(configs))


def shake(module: torch.nn.Module, seed: int = 0) -> None:
    """Move every parameter a little, so that none is zero and no two are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def make_batch(widths: Mapping[str, int], n: int, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Random vectors, and a mask in which rows have everything, something, and (the last of several) nothing."""
    generator = torch.Generator().manual_seed(seed)
    features = {slot: torch.randn(n, width, generator=generator) for slot, width in widths.items()}
    present = torch.rand(n, len(widths), generator=generator) < 0.6
    if n:
        present[0] = True
    if n > 1:
        present[-1] = False
    return features, present


Feature = Tensor | Frames


def with_frames(features: Mapping[str, Tensor], seed: int = 0) -> dict[str, Feature]:
    """The same vectors with up to `N_FRAMES` frames beside them, in all slots but the last of several."""
    generator = torch.Generator().manual_seed(seed)
    framed: dict[str, Feature] = dict(features)
    for slot in list(features)[: max(1, len(features) - 1)]:
        n, width = features[slot].shape
        n_frames = torch.randint(0, N_FRAMES + 1, (n, 1), generator=generator)
        n_frames[:1] = N_FRAMES
        values = torch.randn(n, N_FRAMES, width, generator=generator)
        framed[slot] = Frames(features[slot], values, torch.arange(N_FRAMES) < n_frames)
    return framed


def mapped(feature: Feature, change: Callable[[Tensor], Tensor]) -> Feature:
    """Vectors and frames changed alike; the mask stays."""
    if isinstance(feature, Frames):
        return Frames(change(feature.pooled), change(feature.values), feature.mask)
    return change(feature)


def picked(features: Mapping[str, Feature], rows: Tensor | slice) -> dict[str, Feature]:
    """Some rows, or the same in another order."""
    return {
        slot: Frames(f.pooled[rows], f.values[rows], f.mask[rows]) if isinstance(f, Frames) else f[rows]
        for slot, f in features.items()
    }


def with_masked(features: Mapping[str, Feature], present: Tensor, value: float | None) -> dict[str, Feature]:
    """The same, with other numbers where nothing is present or no frame is real; `None` draws them at random."""

    def replaced(numbers: Tensor, kept: Tensor) -> Tensor:
        noise = 100 * torch.randn(numbers.shape, generator=torch.Generator().manual_seed(9))
        return torch.where(kept, numbers, noise if value is None else torch.full_like(numbers, value))

    changed: dict[str, Feature] = {}
    for index, (slot, feature) in enumerate(features.items()):
        here = present[:, index : index + 1]
        if isinstance(feature, Frames):
            real = (feature.mask & here)[:, :, None]
            changed[slot] = Frames(replaced(feature.pooled, here), replaced(feature.values, real), feature.mask)
        else:
            changed[slot] = replaced(feature, here)
    return changed


class FusionContract:
    """`name` is the strategy's name in `FUSIONS`. `null_words` mark the parameters that stand in for a missing slot."""

    null_words = ("null", "missing")
    unused: tuple[str, ...] = ("place",)  # what only frames have

    def batch(self, widths: Mapping[str, int], n: int, seed: int = 0) -> tuple[dict[str, Feature], Tensor]:
        """Features as this contract gives them, and a mask, as `make_batch`."""
        return make_batch(widths, n, seed)

    @pytest.fixture(autouse=True)
    def one_thread(self):
        """On tensors this small a second thread only waits, and for long where other tests run beside."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)

    @pytest.fixture
    def name(self) -> str:
        raise NotImplementedError

    def build(self, name: str, widths: Mapping[str, int] = WIDTHS, seed: int = 0) -> MultimodalFusion:
        torch.manual_seed(seed)
        fusion = build_fusion(name, widths, HIDDEN, 0.3)
        shake(fusion, seed)
        return fusion.eval()

    # Shapes

    @pytest.mark.parametrize("widths", SLOT_SETS, ids=lambda widths: str(len(widths)))
    @pytest.mark.parametrize("n", [0, 1, 9])
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_any_slots_and_any_batch_give_a_finite_vector(self, name, widths, n, training):
        fusion = self.build(name, widths).train(training)
        features, present = self.batch(widths, n)
        torch.manual_seed(0)
        fused = fusion.fuse(features, present)
        assert fused.vector.shape == (n, HIDDEN) and fused.vector.isfinite().all()
        assert fused.weights is None or fused.weights.shape == (n, len(widths))
        torch.manual_seed(0)
        assert torch.equal(fusion(features, present), fused.vector) and fusion.hidden_dim == HIDDEN

    @pytest.mark.parametrize("widths", SLOT_SETS, ids=lambda widths: str(len(widths)))
    def test_every_present_slot_is_heard(self, name, widths):
        fusion = self.build(name, widths)
        features, _ = self.batch(widths, 4)
        present = torch.ones(4, len(widths), dtype=torch.bool)
        before = fusion(features, present)
        for slot in widths:
            changed = {**features, slot: mapped(features[slot], lambda numbers: numbers + 1)}
            assert not torch.allclose(fusion(changed, present), before), slot

    def test_slots_of_equal_width_are_told_apart(self, name):
        widths = {"text": 3, "concept": 3}
        fusion = self.build(name, widths)
        features, _ = self.batch(widths, 4)
        present = torch.ones(4, 2, dtype=torch.bool)
        swapped = {"text": features["concept"], "concept": features["text"]}
        assert not torch.allclose(fusion(swapped, present), fusion(features, present))

    def test_no_two_slot_names_collide(self, name):
        """Whatever a module name cannot hold is escaped; the escaped form is a slot name too."""
        widths = {"a.b": 3, "a%2Eb": 2, "a_b": 4, "A.b": 1}
        features, present = self.batch(widths, 4)
        assert self.build(name, widths)(features, present).isfinite().all()

    # Identity 3: what is not present is never read

    @pytest.mark.parametrize("value", [*POISON.values(), None], ids=[*POISON, "random"])
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_numbers_of_a_missing_slot_change_no_bit(self, name, value, training):
        fusion = self.build(name).train(training)
        features, present = self.batch(WIDTHS, 12)
        clean = self._step(fusion, with_masked(features, present, 0.0), present)
        dirty = self._step(fusion, with_masked(features, present, value), present)
        assert torch.equal(clean[0].vector, dirty[0].vector) and clean[0].vector.isfinite().all()
        if clean[0].weights is not None:
            assert torch.equal(clean[0].weights, dirty[0].weights)
        assert clean[1].keys() == dirty[1].keys() and clean[1]
        for parameter, gradient in clean[1].items():
            assert gradient.isfinite().all() and torch.equal(gradient, dirty[1][parameter]), parameter

    @pytest.mark.parametrize("value", [0.5, torch.nan], ids=["number", "nan"])
    def test_no_gradient_reaches_a_missing_slot(self, name, value):
        fusion = self.build(name)
        features, present = self.batch(WIDTHS, 12)
        dirty = with_masked(features, present, value)
        inputs = {slot: mapped(feature, lambda numbers: numbers.requires_grad_()) for slot, feature in dirty.items()}
        self._loss(fusion.fuse(inputs, present)).backward()
        for index, (slot, feature) in enumerate(inputs.items()):
            here = present[:, index]
            leaves = {"vector": (feature, here)}
            if isinstance(feature, Frames):
                leaves = {
                    "vector": (feature.pooled, here),
                    "frame": (feature.values, feature.mask & here[:, None]),
                }
            for what, (leaf, real) in leaves.items():
                assert not leaf.grad[~real].any(), f"{slot}: a masked {what} has a gradient"
                assert leaf.grad[real].abs().sum(dim=1).gt(0).all(), f"{slot}: a real {what} has none"

    def test_gradients_reach_every_parameter(self, name):
        fusion = self.build(name)
        features, present = self.batch(WIDTHS, 12)
        _, gradients = self._step(fusion, features, present)
        for parameter, _ in fusion.named_parameters():
            if not any(word in parameter for word in self.unused):
                gradient = gradients[parameter]
                by_slot = gradient if len(gradient) == len(WIDTHS) else gradient[None]
                assert by_slot.reshape(len(by_slot), -1).any(dim=1).all(), parameter

    # Identity 4: dropped is missing

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_a_dropped_slot_is_a_missing_slot(self, name, training):
        fusion = self.build(name).train(training)
        features, _ = self.batch(WIDTHS, 40)
        everything = torch.ones(40, 3, dtype=torch.bool)
        shown = drop_slots(everything, 0.5, torch.Generator().manual_seed(2))
        assert 0 < (~shown).sum() < shown.numel()
        absent = with_masked(features, shown, 0.0)
        for index, (slot, feature) in enumerate(absent.items()):
            if isinstance(feature, Frames):  # as the store gives it: a row that is not present has no frame
                absent[slot] = Frames(feature.pooled, feature.values, feature.mask & shown[:, index : index + 1])
        dropped, missing = self._step(fusion, features, shown), self._step(fusion, absent, shown.clone())
        assert torch.equal(dropped[0].vector, missing[0].vector)
        assert all(torch.equal(gradient, missing[1][parameter]) for parameter, gradient in dropped[1].items())
        assert not torch.allclose(fusion.eval()(features, everything), fusion(features, shown))

    # Segments that lack slots

    def test_nothing_present_is_one_defined_output(self, name):
        fusion = self.build(name)
        features, _ = self.batch(WIDTHS, 6)
        nothing = torch.zeros(6, 3, dtype=torch.bool)
        fused, gradients = self._step(fusion, with_masked(features, nothing, None), nothing)
        vector = fused.vector
        assert vector.isfinite().all() and all(gradient.isfinite().all() for gradient in gradients.values())
        assert fused.weights is None or not fused.weights.any()
        torch.testing.assert_close(vector, vector[:1].expand(6, -1), rtol=0, atol=1e-6)

    def test_each_missing_slot_shows(self, name):
        """Which slot is missing is information, and must not look like a slot full of zeros."""
        fusion = self.build(name)
        zeros = {slot: torch.zeros(1, width) for slot, width in WIDTHS.items()}
        masks = [[True, True, True], [False, True, True], [True, False, True], [True, True, False], [False] * 3]
        vectors = torch.cat([fusion(zeros, torch.tensor([mask])) for mask in masks])
        distances = torch.cdist(vectors, vectors) + torch.eye(len(masks))
        assert distances.min() > 1e-4

    @pytest.mark.parametrize("missing", range(3))
    def test_nulls_learn_where_a_slot_is_missing(self, name, missing):
        fusion = self.build(name)
        features, _ = self.batch(WIDTHS, 6)
        present = torch.ones(6, 3, dtype=torch.bool)
        present[:, missing] = False
        _, gradients = self._step(fusion, features, present)
        nulls = [gradients[p] for p in gradients if any(word in p for word in self.null_words)]
        assert nulls and any(gradient[missing].abs().sum() > 0 for gradient in nulls)
        for other in {0, 1, 2} - {missing}:
            assert not any(gradient[other].any() for gradient in nulls), "the null of a slot that is there"

    def test_a_row_does_not_depend_on_its_batch(self, name):
        fusion = self.build(name)
        features, present = self.batch(WIDTHS, 10)
        whole = fusion.fuse(features, present)
        shuffled = torch.randperm(10, generator=torch.Generator().manual_seed(4))
        for rows in (shuffled, *(slice(row, row + 1) for row in range(10))):
            part = fusion.fuse(picked(features, rows), present[rows])
            torch.testing.assert_close(part.vector, whole.vector[rows], rtol=1e-5, atol=1e-6)
            if whole.weights is not None:
                torch.testing.assert_close(part.weights, whole.weights[rows], rtol=1e-5, atol=1e-6)

    def test_drawn_masks_give_products_of_few_shapes(self, name):
        """Each shape of a product may cost a compiled kernel, which is kept: 150 MiB for a training, before."""
        fusion = self.build(name)
        features, _ = self.batch(WIDTHS, 200)
        lengths = set()

        def see(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(module, torch.nn.Linear):
                lengths.add((module, inputs[0].shape[:-1].numel()))

        for module in fusion.modules():
            module.register_forward_pre_hook(see)
        for draw in range(24):
            fusion.fuse(features, torch.rand(200, 3, generator=torch.Generator().manual_seed(draw)) < draw / 24)
        assert max(Counter(module for module, _ in lengths).values()) <= MOST_LENGTHS + 1  # and none at all

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_weights_lie_between_zero_and_one_and_are_zero_where_missing(self, name, training):
        fusion = self.build(name).train(training)
        features, present = self.batch(WIDTHS, 30)
        large = {slot: mapped(feature, lambda numbers: 20 * numbers) for slot, feature in features.items()}
        weights = fusion.fuse(large, present).weights
        if weights is None:
            pytest.skip(f"{name} has no weights")
        assert weights.shape == (30, 3) and weights.min() >= 0 and weights.max() <= 1
        assert not weights[~present].any() and weights[present].gt(0).any()

    # Mistakes, and the way to disk

    @pytest.mark.parametrize("change", ["missing", "unknown", "renamed"])
    def test_wrong_slots_are_named(self, name, change):
        fusion = self.build(name)
        features, present = self.batch(WIDTHS, 2)
        if change != "unknown":
            features.pop("midi")
        if change != "missing":
            features["melody"] = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="text.*audio" + (".*melody" if change != "missing" else "")) as caught:
            fusion(features, present)
        assert "midi" in str(caught.value)

    def test_no_slot_at_all_is_refused(self, name):
        with pytest.raises(ValueError, match="at least one slot"):
            FUSIONS[name]({}, HIDDEN, 0.3)

    @pytest.mark.parametrize("widths", [SLOT_SETS[1], SLOT_SETS[2]], ids=["dot", "unicode"])
    def test_weights_survive_a_round_trip(self, name, widths):
        fusion, other = self.build(name, widths), self.build(name, widths, seed=1)
        features, present = self.batch(widths, 5)
        assert not torch.equal(other(features, present), fusion(features, present))
        other.load_state_dict({key: value.clone() for key, value in fusion.state_dict().items()})
        assert torch.equal(other(features, present), fusion(features, present))

    def _step(
        self, fusion: MultimodalFusion, features: Mapping[str, Feature], present: Tensor
    ) -> tuple[Fused, dict[str, Tensor]]:
        """Output and the gradient of every parameter, under a fixed seed."""
        fusion.zero_grad(set_to_none=True)
        torch.manual_seed(5)
        fused = fusion.fuse(features, present)
        self._loss(fused).backward()
        gradients = {key: p.grad.clone() for key, p in fusion.named_parameters() if p.grad is not None}
        return fused, gradients

    def _loss(self, fused: Fused) -> Tensor:
        """A random direction: a plain sum is constant behind a layer norm."""
        return (fused.vector * torch.randn(fused.vector.shape, generator=torch.Generator().manual_seed(3))).sum()


class FrameContract(FusionContract):
    """The same with frames, and what only frames have: places, a mask of their own, and perhaps none at all."""

    unused = ()

    def batch(self, widths: Mapping[str, int], n: int, seed: int = 0) -> tuple[dict[str, Feature], Tensor]:
        features, present = make_batch(widths, n, seed)
        return with_frames(features, seed), present

    def framed(self, n: int = 6) -> tuple[dict[str, Feature], Tensor]:
        """Everything present, and every frame real."""
        features, _ = make_batch(WIDTHS, n)
        framed = with_frames(features)
        for slot, feature in framed.items():
            if isinstance(feature, Frames):
                framed[slot] = Frames(feature.pooled, feature.values, torch.ones_like(feature.mask))
        return framed, torch.ones(n, 3, dtype=torch.bool)

    @pytest.mark.parametrize("step", range(N_FRAMES))
    def test_every_frame_is_heard(self, name, step):
        fusion = self.build(name)
        features, present = self.framed()
        before = fusion(features, present)
        for slot, feature in features.items():
            if isinstance(feature, Frames):
                values = feature.values.clone()
                values[:, step] += 1
                changed = {**features, slot: Frames(feature.pooled, values, feature.mask)}
                assert (fusion(changed, present) - before).abs().amax(dim=1).gt(1e-4).all(), slot

    def test_the_order_of_frames_counts(self, name):
        fusion = self.build(name)
        features, present = self.framed()
        before = fusion(features, present)
        for slot, feature in features.items():
            if isinstance(feature, Frames):
                reversed_ = Frames(feature.pooled, feature.values.flip(1), feature.mask)
                assert (fusion({**features, slot: reversed_}, present) - before).abs().max() > 1e-4, slot

    @pytest.mark.parametrize("more", [1, 40])
    def test_more_padding_changes_nothing(self, name, more):
        fusion = self.build(name)
        features, present = self.batch(WIDTHS, 12)
        padded = {
            slot: Frames(
                f.pooled,
                torch.cat([f.values, torch.full((12, more, f.values.shape[2]), torch.nan)], dim=1),
                torch.cat([f.mask, torch.zeros(12, more, dtype=torch.bool)], dim=1),
            )
            if isinstance(f, Frames)
            else f
            for slot, f in features.items()
        }
        short, long = fusion.fuse(features, present), fusion.fuse(padded, present)
        torch.testing.assert_close(long.vector, short.vector, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(long.weights, short.weights, rtol=1e-5, atol=1e-6)

    def test_a_present_slot_without_frames_is_its_vector(self, name):
        fusion = self.build(name)
        features, present = self.framed()
        none = {
            slot: Frames(f.pooled, f.values, torch.zeros_like(f.mask)) if isinstance(f, Frames) else f
            for slot, f in features.items()
        }
        vectors = {slot: f.pooled if isinstance(f, Frames) else f for slot, f in features.items()}
        empty = {
            slot: Frames(f.pooled, f.values[:, :0], f.mask[:, :0]) if isinstance(f, Frames) else f
            for slot, f in features.items()
        }
        for other in (none, empty):
            torch.testing.assert_close(fusion(other, present), fusion(vectors, present), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(fusion(features, present), fusion(vectors, present))
