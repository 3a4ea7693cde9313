"""Every fusion passes the contract; modality dropout, which all of them share, is tested below."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from featurize.errors import UnknownName
from fusion.missing import drop_slots
from fusion.modules import FUSIONS, MultimodalFusion, build_fusion
from tests.fusion_contract import HIDDEN, WIDTHS, FusionContract, make_batch

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=12).filter(lambda shape: shape[1] > 0))
CHANCES = st.floats(0, 0.999)
SEEDS = st.integers(0, 2**32)


class TestFusions(FusionContract):
    @pytest.fixture(params=list(FUSIONS))
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


def test_an_unknown_fusion_lists_the_known():
    with pytest.raises(UnknownName, match="Did you mean 'gated'") as caught:
        build_fusion("gatd", WIDTHS, HIDDEN, 0.0)
    assert all(name in str(caught.value) for name in FUSIONS)


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
