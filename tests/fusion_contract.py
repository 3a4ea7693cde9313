"""The contract of a fusion: subclass `FusionContract`, provide `name`, and get every test.

Parameters are shaken before they are tested: a fusion may start with zeros, and behind a zero every leak hides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from featurize.config import TargetConfig
from fusion.data import SegmentData
from fusion.missing import drop_slots
from fusion.modules import MultimodalFusion, build_fusion
from fusion.modules.base import Fused
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
]
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


def with_masked(features: Mapping[str, Tensor], present: Tensor, value: float | None) -> dict[str, Tensor]:
    """The same, with other numbers where nothing is present; `None` draws them at random."""
    changed = {}
    for index, (slot, vectors) in enumerate(features.items()):
        noise = 100 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(9))
        other = noise if value is None else torch.full_like(vectors, value)
        changed[slot] = torch.where(present[:, index : index + 1], vectors, other)
    return changed


class FusionContract:
    """`name` is the strategy's name in `FUSIONS`. `null_words` mark the parameters that stand in for a missing slot."""

    null_words = ("null", "missing")

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
        features, present = make_batch(widths, n)
        fused = fusion.fuse(features, present)
        assert fused.vector.shape == (n, HIDDEN) and fused.vector.isfinite().all()
        assert fused.weights is None or fused.weights.shape == (n, len(widths))
        assert fusion(features, present).shape == (n, HIDDEN) and fusion.hidden_dim == HIDDEN

    @pytest.mark.parametrize("widths", SLOT_SETS, ids=lambda widths: str(len(widths)))
    def test_every_present_slot_is_heard(self, name, widths):
        fusion = self.build(name, widths)
        features, _ = make_batch(widths, 4)
        present = torch.ones(4, len(widths), dtype=torch.bool)
        before = fusion(features, present)
        for slot in widths:
            changed = {**features, slot: features[slot] + 1}
            assert not torch.allclose(fusion(changed, present), before), slot

    def test_slots_of_equal_width_are_told_apart(self, name):
        widths = {"text": 3, "concept": 3}
        fusion = self.build(name, widths)
        features, _ = make_batch(widths, 4)
        present = torch.ones(4, 2, dtype=torch.bool)
        swapped = {"text": features["concept"], "concept": features["text"]}
        assert not torch.allclose(fusion(swapped, present), fusion(features, present))

    def test_no_two_slot_names_collide(self, name):
        """Whatever a module name cannot hold is escaped; the escaped form is a slot name too."""
        widths = {"a.b": 3, "a%2Eb": 2, "a_b": 4, "A.b": 1}
        features, present = make_batch(widths, 4)
        assert self.build(name, widths)(features, present).isfinite().all()

    # Identity 3: what is not present is never read

    @pytest.mark.parametrize("value", [*POISON.values(), None], ids=[*POISON, "random"])
    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_numbers_of_a_missing_slot_change_no_bit(self, name, value, training):
        fusion = self.build(name).train(training)
        features, present = make_batch(WIDTHS, 12)
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
        features, present = make_batch(WIDTHS, 12)
        inputs = {slot: v.requires_grad_() for slot, v in with_masked(features, present, value).items()}
        self._loss(fusion.fuse(inputs, present)).backward()
        for index, slot in enumerate(WIDTHS):
            gradient, here = inputs[slot].grad, present[:, index]
            assert not gradient[~here].any(), f"{slot}: a masked row has a gradient"
            assert gradient[here].abs().sum(dim=1).gt(0).all(), f"{slot}: a present row has none"

    # Identity 4: dropped is missing

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_a_dropped_slot_is_a_missing_slot(self, name, training):
        fusion = self.build(name).train(training)
        features, _ = make_batch(WIDTHS, 40)
        everything = torch.ones(40, 3, dtype=torch.bool)
        shown = drop_slots(everything, 0.5, torch.Generator().manual_seed(2))
        assert 0 < (~shown).sum() < shown.numel()
        absent = {slot: vectors * shown[:, i : i + 1] for i, (slot, vectors) in enumerate(features.items())}
        dropped, missing = self._step(fusion, features, shown), self._step(fusion, absent, shown.clone())
        assert torch.equal(dropped[0].vector, missing[0].vector)
        assert all(torch.equal(gradient, missing[1][parameter]) for parameter, gradient in dropped[1].items())
        assert not torch.allclose(fusion.eval()(features, everything), fusion(features, shown))

    # Segments that lack slots

    def test_nothing_present_is_one_defined_output(self, name):
        fusion = self.build(name)
        features, _ = make_batch(WIDTHS, 6)
        nothing = torch.zeros(6, 3, dtype=torch.bool)
        vector = fusion(with_masked(features, nothing, None), nothing)
        assert vector.isfinite().all()
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
        features, _ = make_batch(WIDTHS, 6)
        present = torch.ones(6, 3, dtype=torch.bool)
        present[:, missing] = False
        _, gradients = self._step(fusion, features, present)
        nulls = [gradients[p] for p in gradients if any(word in p for word in self.null_words)]
        assert nulls and any(gradient[missing].abs().sum() > 0 for gradient in nulls)
        for other in {0, 1, 2} - {missing}:
            assert not any(gradient[other].any() for gradient in nulls), "the null of a slot that is there"

    def test_a_row_does_not_depend_on_its_batch(self, name):
        fusion = self.build(name)
        features, present = make_batch(WIDTHS, 10)
        whole = fusion.fuse(features, present)
        for row in range(10):
            alone = fusion.fuse({slot: v[row : row + 1] for slot, v in features.items()}, present[row : row + 1])
            torch.testing.assert_close(alone.vector[0], whole.vector[row], rtol=1e-5, atol=1e-6)
            if whole.weights is not None:
                torch.testing.assert_close(alone.weights[0], whole.weights[row], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_weights_lie_between_zero_and_one_and_are_zero_where_missing(self, name, training):
        fusion = self.build(name).train(training)
        features, present = make_batch(WIDTHS, 30)
        weights = fusion.fuse({slot: 20 * vectors for slot, vectors in features.items()}, present).weights
        if weights is None:
            pytest.skip(f"{name} has no weights")
        assert weights.shape == (30, 3) and weights.min() >= 0 and weights.max() <= 1
        assert not weights[~present].any() and weights[present].gt(0).any()

    # Mistakes, and the way to disk

    @pytest.mark.parametrize("change", ["missing", "unknown", "renamed"])
    def test_wrong_slots_are_named(self, name, change):
        fusion = self.build(name)
        features, present = make_batch(WIDTHS, 2)
        if change != "unknown":
            features.pop("midi")
        if change != "missing":
            features["melody"] = torch.zeros(2, 3)
        with pytest.raises(ValueError, match="text.*audio" + (".*melody" if change != "missing" else "")) as caught:
            fusion(features, present)
        assert "midi" in str(caught.value)

    def test_no_slot_at_all_is_refused(self, name):
        with pytest.raises(ValueError, match="at least one slot"):
            build_fusion(name, {}, HIDDEN, 0.3)

    @pytest.mark.parametrize("widths", [SLOT_SETS[1], SLOT_SETS[2]], ids=["dot", "unicode"])
    def test_weights_survive_a_round_trip(self, name, widths):
        fusion, other = self.build(name, widths), self.build(name, widths, seed=1)
        features, present = make_batch(widths, 5)
        assert not torch.equal(other(features, present), fusion(features, present))
        other.load_state_dict({key: value.clone() for key, value in fusion.state_dict().items()})
        assert torch.equal(other(features, present), fusion(features, present))

    def _step(
        self, fusion: MultimodalFusion, features: Mapping[str, Tensor], present: Tensor
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
