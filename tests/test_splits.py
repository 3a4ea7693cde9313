"""Splits: no group spans two parts (identity 6), shares and strata as near as groups allow, one seed one split."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.config import SplitConfig
from featurize.errors import SplitError
from featurize.splits import check_split, fold_names, make_splits
from stores.base import STRING
from stores.store import Part, Split


def groups_of(sizes: list[int]) -> np.ndarray:
    return np.array([f"g{g}" for g, size in enumerate(sizes) for _ in range(size)], dtype=STRING)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=5, max_size=40),
    seed=st.integers(0, 99),
    folds=st.sampled_from([None, 3, 5]),
    n_classes=st.integers(1, 4),
)
def test_no_group_spans_two_parts_and_every_part_has_some(sizes, seed, folds, n_classes):
    groups = groups_of(sizes)
    label = np.array([f"c{(seed + i) % n_classes}" for i in range(len(groups))], dtype=STRING)
    splits = make_splits(groups, label, SplitConfig(seed=seed, folds=folds))
    for split in splits:
        check_split(split, groups)
        for group in np.unique(groups):
            assert len(np.unique(split.parts[groups == group])) == 1
        assert all(len(split.rows(part)) for part in (Part.TRAIN, Part.VAL, Part.TEST))
    again = make_splits(groups, label, SplitConfig(seed=seed, folds=folds))
    assert all((a.parts == b.parts).all() for a, b in zip(splits, again, strict=True))


def test_each_fold_is_test_once():
    groups = groups_of([3] * 20)
    splits = make_splits(groups, None, SplitConfig(name="cv", folds=5))
    assert [split.name for split in splits] == ["cv.0", "cv.1", "cv.2", "cv.3", "cv.4"]
    assert (sum((split.parts == Part.TEST).astype(int) for split in splits) == 1).all()
    assert (sum((split.parts == Part.VAL).astype(int) for split in splits) == 1).all()


def test_shares_and_classes_are_kept():
    rng = np.random.default_rng(0)
    groups = groups_of([4] * 200)
    label = np.array(rng.choice(["a", "b", "c"], size=200, p=[0.6, 0.3, 0.1]).repeat(4).tolist(), dtype=STRING)
    (split,) = make_splits(groups, label, SplitConfig())
    for part, share in ((Part.TRAIN, 0.7), (Part.VAL, 0.15), (Part.TEST, 0.15)):
        rows = split.rows(part)
        assert abs(len(rows) / len(groups) - share) < 0.02
        for name in "abc":
            assert abs((label[rows] == name).mean() - (label == name).mean()) <= 0.06


def test_another_seed_is_another_split():
    groups = groups_of([2] * 50)
    first, second = (make_splits(groups, None, SplitConfig(seed=seed))[0].parts for seed in (0, 1))
    assert (first != second).any()


def test_numbers_and_missing_labels_can_be_strata():
    groups = groups_of([1] * 60)
    numbers = np.linspace(0, 1, 60)
    numbers[::7] = np.nan
    (split,) = make_splits(groups, numbers, SplitConfig())
    assert abs(np.nanmean(numbers[split.rows(Part.TEST)]) - 0.5) < 0.2


def test_a_random_split_says_that_it_leaks():
    groups = groups_of([30, 30, 30])
    (split,) = make_splits(groups, None, SplitConfig(method="random"))
    assert split.facts["leaks"] is True
    assert len(np.unique(groups[split.rows(Part.TRAIN)])) == len(np.unique(groups[split.rows(Part.TEST)])) == 3
    check_split(split, groups)


def test_a_split_that_cuts_a_group_is_refused():
    with pytest.raises(SplitError, match="cuts through group 'g1'"):
        check_split(Split("bad", np.array([0, 0, 1], np.uint8), {"leaks": False}), groups_of([1, 2]))


def test_rows_left_out_cut_no_group():
    check_split(Split("ok", np.array([0, 0, 255], np.uint8), {"leaks": False}), groups_of([1, 2]))


@pytest.mark.parametrize(("n_groups", "config"), [(2, SplitConfig()), (3, SplitConfig(folds=5))])
def test_too_few_groups_is_a_clear_error(n_groups, config):
    with pytest.raises(SplitError, match=f"{n_groups} groups cannot be dealt"):
        make_splits(groups_of([5] * n_groups), None, config)


def test_a_set_of_folds_is_found_by_its_name():
    known = ["cv.0", "cv.1", "cv.10", "cv.2", "default", "cv2.0"]
    assert fold_names("cv", known) == ["cv.0", "cv.1", "cv.2", "cv.10"]
    assert fold_names("default", known) == ["default"] and fold_names("nope", known) == []
