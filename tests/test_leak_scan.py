"""What leaks is found where it is planted, to the row, and nothing where nothing is: made vectors, demo songs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from featurize.config import SplitConfig, TargetConfig
from featurize.errors import SplitError
from featurize.splits import make_splits
from fusion import leak_scan
from fusion.leak_scan import (
    CHANCE_FINDS,
    NEAR_RATIO,
    TWINS,
    Finding,
    near_limit,
    nearest,
    opened_splits,
    recognized,
    scan,
    scannable_labels,
    variance_between,
)
from stores import open_store
from stores.base import STRING
from stores.errors import StoreError
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Part, Split, Store
from tests.stores_contract import RECORD
from tests.test_health import KINDS, healthy

N, D = 300, 24  # of 60 groups; g0 … g39 are train, g40 … g49 val, the rest test
GROUPS = np.arange(N) // 5
PARTS = np.repeat([Part.TRAIN, Part.VAL, Part.TEST], [200, 50, 50]).astype(np.uint8)
VAL, TEST = 200, 250  # the first rows of either
BY_GROUPS = Split("default", PARTS, {"method": "grouped", "seed": 0})


def texts(values) -> np.ndarray:
    return np.array([str(value) for value in values], STRING)


def make_store(
    vectors: np.ndarray,
    *,
    inputs: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    status: np.ndarray | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    dtype: type = np.float32,
) -> Store:
    """`audio/toy` with these vectors. inputs: int (n,), equal for equal inputs, 0 for unknown. groups: int (n,)."""
    n = len(vectors)
    hashes = np.zeros((n, 16), np.uint8)
    hashes[:, 8:] = np.asarray(np.arange(1, n + 1) if inputs is None else inputs, np.int64)[:, None].view(np.uint8)
    status = np.full(n, Status.PRESENT, np.uint8) if status is None else status
    groups = np.arange(n) // 5 if groups is None else groups
    segments = {"id": texts(f"s{row}" for row in range(n)), "group": texts(f"g{group}" for group in groups)}
    store = Store.create(MemoryTree(), segments, labels or {}, {}, 64)
    feature = store.create_feature("audio/toy", {**RECORD, "width": vectors.shape[1]}, dtype=dtype)
    for chunk in feature.chunks():
        rows = slice(chunk.start, chunk.stop)
        feature.write_chunk(chunk, np.array(chunk), vectors[rows], status[rows], hashes[rows], [""] * len(chunk))
    return store


def look(vectors: np.ndarray, split: Split = BY_GROUPS, **facts) -> dict[str, Finding]:
    """By kind. There is one finding of each kind at most, with one feature and one label."""
    found = scan(make_store(vectors, **facts), ["audio/toy"], [split])
    by_kind = {finding.kind: finding for finding in found}
    assert len(by_kind) == len(found)
    return by_kind


def gaussian(n: int = N, width: int = D, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def split_by_groups(groups: np.ndarray, seed: int) -> Split:
    (split,) = make_splits(texts(groups), None, SplitConfig(seed=seed))
    return split


# Nothing there


@pytest.mark.parametrize("n", [60, 300, 1500])
@pytest.mark.parametrize("kind", KINDS)
def test_healthy_vectors_raise_no_alarm(kind, n):
    for seed in range(5 if n < 1000 else 2):
        groups = np.arange(n) // 10  # as those of the kind "in groups"
        vectors = healthy(kind, n, seed)
        assert set(look(vectors, split_by_groups(groups, seed), groups=groups)) == {"group recognition"}


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_in_few_dimensions_neighbours_are_near_by_nature(width):
    for seed in range(3):
        assert not {*TWINS} & set(look(gaussian(800, width, seed), split_by_groups(np.arange(800) // 5, seed)))


@pytest.mark.parametrize("n_values", [2, 5])
def test_vectors_of_few_values_are_equal_or_different_but_not_near(n_values):
    for seed in range(3):
        vectors = np.random.default_rng(seed).integers(n_values, size=(800, 40)).astype(np.float32)
        assert not {*TWINS} & set(look(vectors, split_by_groups(np.arange(800) // 5, seed)))


# Twins across parts


def test_equal_inputs_are_counted_by_part_with_their_labels():
    """Three lyrics of train come back: one twice in val, one in test, one in both; two of five have another mood."""
    inputs = np.arange(1, N + 1)
    inputs[[VAL, VAL + 7]] = inputs[3]
    inputs[TEST + 1] = inputs[60]
    inputs[[VAL + 20, TEST + 30]] = inputs[199]
    mood = np.arange(N) % 2
    mood[[3, VAL, VAL + 7, 60, 199, TEST + 30]], mood[[TEST + 1, VAL + 20]] = 0, 1
    found = look(gaussian(), inputs=inputs, labels={"mood": texts(f"m{number}" for number in mood)})
    assert set(found) == {"equal inputs", "group recognition"}
    twins = found["equal inputs"]
    assert (twins.about, twins.severity, twins.count, twins.of) == ("audio/toy", "warning", 5, 100)
    assert twins.examples == [("s200", "s3"), ("s207", "s3"), ("s220", "s199")]
    assert twins.facts == {"val": 3, "test": 2, "same_label": {"mood": [3, 5]}}
    assert twins.message == (
        "5 of 100 val and test rows (3 val, 2 test) have an equal input in train, e.g. 's200' and 's3'; mood is the"
        " same in 3 of 5. Are they one song under two names? Give them one group."
    )


def test_equal_vectors_are_counted_apart_from_equal_inputs():
    vectors, inputs = gaussian(), np.arange(1, N + 1)
    vectors[[VAL, TEST, TEST + 9]] = vectors[[7, 7, 80]]
    inputs[TEST] = inputs[7]
    found = look(vectors, inputs=inputs)
    assert found["equal inputs"].examples == [("s250", "s7")]
    assert found["equal vectors"].examples == [("s200", "s7"), ("s259", "s80")]
    assert "near-equal vectors" not in found


def test_the_first_of_several_equal_rows_in_train_is_the_twin():
    vectors = gaussian()
    vectors[[150, 30, 90, TEST + 5]] = vectors[30]
    assert look(vectors)["equal vectors"].examples == [("s255", "s30")]


def test_an_unknown_input_equals_no_other():
    assert "equal inputs" not in look(gaussian(), inputs=np.zeros(N))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_negative_zero_is_zero(dtype):
    vectors = gaussian()
    vectors[[4, TEST]] = vectors[4]
    vectors[4, 3], vectors[TEST, 3] = 0.0, -0.0
    assert look(vectors, dtype=dtype)["equal vectors"].count == 1


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("n_twins", [1, 30])
def test_near_equal_vectors(n_twins, scale):
    vectors = gaussian() + 3
    rows = np.arange(VAL, VAL + n_twins)
    vectors[rows] = vectors[rows - 150] + 0.05 * gaussian(n_twins, seed=1)
    found = look(scale * vectors)
    assert set(found) == {"near-equal vectors", "group recognition"}
    assert found["near-equal vectors"].count == n_twins and found["near-equal vectors"].of == 100
    assert found["near-equal vectors"].examples == [(f"s{row}", f"s{row - 150}") for row in rows[:3]]


def test_what_is_between_near_and_usual_is_not_near_equal():
    """Pairs at a known share of the usual distance, on either side of the limit."""
    vectors = gaussian(width=512)
    limit = NEAR_RATIO  # in 512 dimensions the usual chord is that of a right angle, √2, all but for chance
    for share, expected in ((0.8, True), (1.3, False)):
        near = vectors.copy()
        angle = 2 * np.arcsin(share * limit * 2**0.5 / 2)
        near[TEST] = np.cos(angle) * vectors[0] + np.sin(angle) * gaussian(1, 512, seed=1)[0]
        assert ("near-equal vectors" in look(near)) == expected


def test_many_twins_within_train_do_not_hide_those_across():
    vectors = gaussian()
    vectors[:45] = vectors[100:145] + 0.02 * gaussian(45, seed=1)  # so 45% of train have a twin there
    vectors[TEST : TEST + 4] = vectors[10:14] + 0.02 * gaussian(4, seed=2)
    assert look(vectors)["near-equal vectors"].count == 4


def test_train_that_repeats_itself_hides_no_twins():
    """Two of three training rows equal one of another group: to the last bit, so they do not tell what is usual."""
    vectors = gaussian()
    vectors[60:195] = np.tile(vectors[:45], (3, 1))
    vectors[TEST : TEST + 4] = vectors[10:14] + 0.02 * gaussian(4, seed=2)
    assert look(vectors)["near-equal vectors"].count == 4


def test_few_twins_among_many_rows_are_a_note():
    vectors = gaussian(n=2000)
    parts = np.repeat([Part.TRAIN, Part.VAL, Part.TEST], [1000, 500, 500]).astype(np.uint8)
    vectors[1500] = vectors[0]
    split = Split("default", parts, {"method": "grouped"})
    assert look(vectors, split)["equal vectors"].severity == "note"
    vectors[1000:1010] = vectors[0]
    assert look(vectors, split)["equal vectors"].severity == "warning"


@pytest.mark.parametrize("status", [Status.ABSENT, Status.FAILED, Status.PENDING])
def test_rows_that_are_not_present_are_nobodys_twin(status):
    """They read as zeros, and may keep the hash of what failed."""
    statuses = np.full(N, Status.PRESENT, np.uint8)
    statuses[[5, 6, 100, VAL, VAL + 1, TEST, TEST + 2]] = status
    inputs = np.arange(1, N + 1)
    inputs[[VAL, TEST + 9, TEST + 10]] = inputs[5]  # to a row that is not there, or from one
    found = look(gaussian(), inputs=inputs, status=statuses)
    assert set(found) == {"group recognition"}
    assert found["group recognition"].of == 197


def test_zero_vectors_of_present_rows_are_nobodys_twin():
    vectors = gaussian() + 1
    vectors[[5, 6, VAL, TEST]] = 0
    assert set(look(vectors)) == {"group recognition"}


def test_rows_that_the_split_leaves_out_are_not_looked_at():
    vectors, inputs, parts = gaussian(), np.arange(1, N + 1), PARTS.copy()
    parts[[0, VAL]] = Part.LEFT_OUT
    vectors[[VAL + 1, TEST]] = vectors[[0, 0]]
    inputs[[VAL, TEST + 1]] = inputs[[1, 0]]
    groups = GROUPS.copy()
    groups[[0, VAL]] = groups[TEST]
    assert set(look(vectors, Split("s", parts, {}), inputs=inputs, groups=groups)) == {"group recognition"}


def test_twins_within_a_part_or_between_val_and_test_do_no_harm():
    vectors = gaussian()
    vectors[[30, 31, 100]] = vectors[30]
    vectors[[VAL, VAL + 1, TEST]] = vectors[VAL]
    assert not {*TWINS} & set(look(vectors))


def test_labels_of_twins_are_those_of_the_twins():
    """Every held-out row has a twin; with labels dealt anew the agreement falls from all to chance."""
    inputs = np.arange(1, N + 1)
    inputs[VAL:] = inputs[:100]
    label = np.random.default_rng(0).integers(4, size=N)
    label[VAL:] = label[:100]
    missing = np.where(np.arange(N) % 10 == 0, "", texts(f"m{number}" for number in label)).astype(STRING)
    vectors = gaussian()
    assert look(vectors, inputs=inputs, labels={"mood": missing})["equal inputs"].facts["same_label"]["mood"] == [
        90,
        90,
    ]
    dealt = np.random.default_rng(1).permutation(missing)
    hits, of = look(vectors, inputs=inputs, labels={"mood": dealt})["equal inputs"].facts["same_label"]["mood"]
    same = [a == b for a, b in zip(dealt[:100], dealt[VAL:], strict=True) if a and b]
    assert (hits, of) == (sum(same), len(same)) and hits < 0.5 * of


def test_folds_are_added_up():
    """One song stands in the data twice, under two names: its rows leak in whichever fold tests one of the two."""
    inputs = np.arange(1, N + 1)
    inputs[250:255] = inputs[:5]
    store = make_store(gaussian(), inputs=inputs)
    folds = make_splits(store.groups, None, SplitConfig(name="cv", folds=5))
    fold_of = np.concatenate([np.flatnonzero([split.parts[row] == Part.TEST for split in folds]) for row in (0, 250)])
    assert abs(fold_of[0] - fold_of[1]) in (2, 3)  # else it would be val where the other is test
    twins = next(finding for finding in scan(store, ["audio/toy"], folds) if finding.kind == "equal inputs")
    assert (twins.count, twins.of) == (20, 2 * N) and (twins.facts["val"], twins.facts["test"]) == (10, 10)
    for split in folds:
        store.write_split(split)
    assert [split.name for split in opened_splits(store, "cv")] == [f"cv.{k}" for k in range(5)]
    with pytest.raises(SplitError, match="no split 'cw'; it has cv.0, cv.1"):
        opened_splits(store, "cw")


# Their parts


@settings(max_examples=60)
@given(
    data=st.data(),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    width=st.integers(1, 4),
    query_rows=st.integers(1, 5),
    candidate_rows=st.integers(1, 5),
    grouped=st.booleans(),
)
def test_block_by_block_is_brute_force(data, n, m, width, query_rows, candidate_rows, grouped):
    whole = st.integers(-3, 3)  # their products are exact
    queries, candidates = (
        data.draw(st_numpy.arrays(np.float32, (rows, width), elements=whole.map(float))) for rows in (n, m)
    )
    apart = tuple(np.array(data.draw(st.lists(st.integers(0, 2), min_size=k, max_size=k))) for k in (n, m))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leak_scan, "QUERY_ROWS", query_rows)
        patch.setattr(leak_scan, "CANDIDATE_ROWS", candidate_rows)
        at, distance = nearest(queries, candidates, apart if grouped else None)
    for row in range(n):
        allowed = [k for k in range(m) if not grouped or apart[0][row] != apart[1][k]]
        if not allowed:
            assert at[row] == -1 and distance[row] == np.inf
            continue
        products = [float(queries[row] @ candidates[k]) for k in allowed]
        expected = allowed[int(np.argmax(products))]  # the first of equals
        assert at[row] == expected
        assert distance[row] == pytest.approx(np.linalg.norm(queries[row] - candidates[expected]))


def test_small_distances_keep_their_digits():
    """A float32 cosine of 1 − 5·10⁻¹¹ is 1."""
    queries = np.array([[1, 1e-5]], np.float32)
    _, distance = nearest(queries, np.array([[0, 1], [1, 0]], np.float32))
    assert distance[0] == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("shape", [1, 2, 5])
def test_in_few_dimensions_the_limit_is_where_chance_ends(shape):
    """Of Weibull distances below the limit there are `CHANCE_FINDS` in n, on average."""
    usual = 0.7 * np.random.default_rng(0).weibull(shape, 200_000)
    for n_compared in (10, 1000):
        limit = near_limit(usual, n_compared)
        by_chance = n_compared * -np.expm1(-((limit / 0.7) ** shape))
        assert limit < NEAR_RATIO * np.median(usual) and by_chance == pytest.approx(CHANCE_FINDS, rel=0.1)


def test_in_many_dimensions_the_limit_is_a_share_of_the_usual_distance():
    usual = 1.4 * np.random.default_rng(0).weibull(40, 5000)
    assert near_limit(usual, 1000) == pytest.approx(NEAR_RATIO * np.median(usual))
    assert near_limit(np.full(30, 1.2), 1000) == pytest.approx(NEAR_RATIO * 1.2)
    assert near_limit(np.zeros(30), 1000) == 0


# Features that know their group


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 4), min_size=2, max_size=6), seed=st.integers(0, 999), block=st.integers(1, 7))
def test_recognition_is_by_the_centroid_without_the_row_itself(sizes, seed, block):
    units = gaussian(sum(sizes), 3, seed)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    group = np.repeat(np.arange(len(sizes)), sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leak_scan, "QUERY_ROWS", block)
        found = recognized(units, np.array(sizes))
    for row in range(len(units)):
        others = [np.flatnonzero((group == k) & (np.arange(len(units)) != row)) for k in range(len(sizes))]
        if not len(others[group[row]]):
            assert not found[row]
            continue
        means = [units[rows].mean(axis=0) if len(rows) else units[row] * -np.inf for rows in others]
        cosines = [float(units[row] @ mean) / np.linalg.norm(mean) if np.isfinite(mean).all() else -2 for mean in means]
        assert found[row] == (int(np.argmax(cosines)) == group[row])


def test_a_feature_that_knows_its_group_says_so_beside_chance():
    vectors = gaussian(60)[GROUPS] + 0.3 * gaussian(seed=1)
    known = look(vectors)["group recognition"]
    assert (known.severity, known.count, known.of) == ("note", 200, 200)
    assert known.facts["by_chance"] == 1 / 40 and known.facts["variance_between_groups"] > 0.8
    assert "200 of 200 training rows (100%; by chance 2.5%)" in known.message
    dealt = np.random.default_rng(0).permutation(vectors)
    unknown = look(dealt)["group recognition"]
    assert unknown.count < 20 and unknown.facts["variance_between_groups"] < 0.1


def test_the_same_input_again_is_not_recognized_by_itself():
    """A chorus stands in each song twice; nothing else of a song resembles it."""
    vectors, inputs = gaussian(), np.arange(1, N + 1)
    vectors[1::5], inputs[1::5] = vectors[::5], inputs[::5]
    found = look(vectors, inputs=inputs)["group recognition"]
    assert found.of == 160 and found.count < 16
    assert look(vectors)["group recognition"].of == 200  # another input that sounds the same is knowledge


@pytest.mark.parametrize("truth", [0.0, 0.2, 0.7])
def test_the_share_between_groups_is_that_of_the_groups_effects(truth):
    """Also where most groups have few rows: the plain share, η², would be far above it."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, size=400)
    effects = np.repeat(rng.normal(size=(400, 100)), sizes, axis=0)
    vectors = truth**0.5 * effects + (1 - truth) ** 0.5 * rng.normal(size=effects.shape)
    shares = variance_between(5 + 100 * vectors, sizes)
    assert shares.shape == (100,) and np.median(shares) == pytest.approx(truth, abs=0.02)


def test_the_share_between_groups_by_hand():
    """Groups (1, 3) and (7, 9): MSB 36, MSW 2, so (36 − 2) / (36 + 2). Constant columns do not count."""
    vectors = np.array([[1, 5, 4], [3, 5, 4], [7, 5, 9], [9, 5, 9]], np.float32)
    np.testing.assert_allclose(variance_between(vectors, np.array([2, 2])), [34 / 38, 1])
    assert variance_between(vectors[:, 1:2], np.array([2, 2])).shape == (0,)


def planted_columns() -> np.ndarray:
    """Columns 3 and 4 are constant in every group; together they tell 39 of train's 40 apart."""
    vectors = gaussian()
    vectors[:, 3], vectors[:, 4] = GROUPS // 2, GROUPS % 3
    vectors[GROUPS == 39, 3:5] = vectors[GROUPS == 38, 3:5]
    return vectors


def test_columns_that_name_the_group():
    columns = look(planted_columns())["constant within groups"]
    assert (columns.severity, columns.about, columns.count, columns.of) == ("note", "audio/toy", 2, D)
    assert columns.facts == {"columns": [3, 4], "groups": 40, "groups_told_apart": 39}
    cutting = PARTS.copy()
    cutting[0] = Part.TEST
    found = look(planted_columns(), Split("cutting", cutting, {}))
    assert found["constant within groups"].severity == "warning" == found["cut groups"].severity


def test_a_whole_vector_for_each_group():
    columns = look(gaussian(60)[GROUPS])["constant within groups"]
    assert columns.count == D and columns.facts["groups_told_apart"] == 40


def test_a_column_that_varies_in_one_group_names_none():
    vectors = planted_columns()
    vectors[17, 3] += 1
    vectors[18, 4] += 1
    assert "constant within groups" not in look(vectors)


def test_a_column_that_is_the_same_in_most_groups_names_none():
    """As the count of an instrument that few songs have."""
    vectors = gaussian()
    vectors[:, 3] = np.where(GROUPS % 3 == 0, 2, 0)
    vectors[:, 4] = 1
    assert "constant within groups" not in look(vectors)


@pytest.mark.parametrize("n_rows", [9, 10])
def test_in_few_groups_of_several_rows_a_column_is_constant_by_chance(n_rows):
    groups = np.arange(N)
    groups[:n_rows] = groups[100 : 100 + n_rows]
    vectors = gaussian()
    vectors[:, 3] = groups
    assert ("constant within groups" in look(vectors, groups=groups)) == (n_rows == 10)


def test_equal_inputs_within_a_group_make_no_column_constant():
    inputs = np.repeat(np.arange(1, 61), 5)
    assert set(look(gaussian(60)[GROUPS], inputs=inputs)) == set()


# Groups and labels


def test_cut_groups_are_counted_and_named():
    parts = PARTS.copy()
    parts[[0, 1]], parts[[10]], parts[VAL] = Part.TEST, Part.VAL, Part.TEST
    groups = GROUPS.copy()
    cut = look(gaussian(), Split("mine", parts, {"method": "by hand"}), groups=groups)["cut groups"]
    assert (cut.severity, cut.about, cut.count, cut.of) == ("warning", "mine", 3, 60)
    assert cut.facts == {"groups": ["g0", "g2", "g40"], "held_out_rows": 3}  # g40 is cut between val and test
    assert cut.examples == [("s0", "s2"), ("s10", "s11"), ("s200", "s201")]
    assert "3 of 60 groups stand in several parts, e.g. 'g0', 'g2', 'g40'; 3 of 103 val and test" in cut.message


def test_what_is_left_out_cuts_no_group():
    parts = PARTS.copy()
    parts[::5] = Part.LEFT_OUT
    assert "cut groups" not in look(gaussian(), Split("grown", parts, {}))


@settings(max_examples=30)
@given(seed=st.integers(0, 999))
def test_cut_groups_of_any_split(seed):
    rng = np.random.default_rng(seed)
    groups, parts = rng.integers(12, size=40), rng.choice([0, 0, 0, 1, 2, 255], size=40).astype(np.uint8)
    parts_of = {group: set(parts[groups == group].tolist()) - {255} for group in groups.tolist()}
    cut = {f"g{group}" for group, of in parts_of.items() if len(of) > 1}
    exposed = [row for row in range(40) if parts[row] in (1, 2) and 0 in parts_of[int(groups[row])]]
    store = make_store(gaussian(40), groups=groups)
    found = scan(store, [], [Split("s", parts, {})])
    assert {group for finding in found for group in finding.facts["groups"]} == cut
    for finding in found:
        assert finding.count == len(cut) and finding.facts["held_out_rows"] == len(exposed)
        assert finding.of == sum(bool(of) for of in parts_of.values())
        row_of = {f"s{row}": row for row in range(40)}
        for one, other in finding.examples:
            assert groups[row_of[one]] == groups[row_of[other]] and parts[row_of[one]] > parts[row_of[other]]


@pytest.mark.parametrize("kind", ["text", "number", "list"])
def test_a_label_that_never_varies_within_a_group(kind):
    values = {"text": texts(GROUPS % 3), "number": GROUPS % 3 / 7, "list": np.eye(3)[GROUPS % 3]}[kind]
    missing = {"text": "", "number": np.nan, "list": np.nan}[kind]
    values[[0, 1, 2, 3, 4, 7]] = missing
    found = look(gaussian(), labels={"mood": values})["constant label"]
    assert (found.severity, found.about, found.count, found.of) == ("note", "mood", 59, 294)
    assert "294 labelled rows say about as much as 59" in found.message
    values[10] = values[15]
    assert "constant label" not in look(gaussian(), labels={"mood": values})


def test_labels_that_are_not_constant_in_groups_of_several_rows_are_no_finding():
    alone = np.arange(N)
    assert "constant label" not in look(gaussian(), groups=alone, labels={"mood": texts(alone % 3)})
    assert "constant label" not in look(gaussian(), labels={"mood": np.ones(N)})
    assert "constant label" not in look(gaussian(), labels={"mood": texts([""] * N)})


def test_the_targets_labels_or_all_that_have_classes():
    labels = {
        "mood": texts(np.arange(N) % 3),
        "title": texts(range(N)),
        "year": np.arange(N, dtype=np.float64),
        "same": np.ones(N),
        "a": np.full(N, 0.25),
        "b": np.full(N, 0.75),
    }
    store = make_store(gaussian(), labels=labels)
    assert list(scannable_labels(store)) == ["mood", "year"]
    targets = [
        TargetConfig(name="title"),
        TargetConfig(name="when", column="year"),
        TargetConfig(name="c", columns=["a", "b"]),
    ]
    chosen = scannable_labels(store, targets)
    assert list(chosen) == ["title", "when", "c"] and chosen["c"].tolist() == [[0.25, 0.75]] * N
    with pytest.raises(StoreError, match="no label 'tempo'; it has mood"):
        scannable_labels(store, [TargetConfig(name="tempo")])


# Little there


@pytest.mark.parametrize("missing", [[Part.VAL], [Part.TEST], [Part.VAL, Part.TEST], [Part.TRAIN]])
def test_a_split_without_a_part(missing):
    parts = np.where(np.isin(PARTS, missing), Part.LEFT_OUT, PARTS).astype(np.uint8)
    vectors = gaussian()
    vectors[[VAL, TEST]] = vectors[0]
    found = look(vectors, Split("s", parts, {}))
    there = {Part.VAL, Part.TEST} - {*missing} if Part.TRAIN not in missing else set()
    assert ("equal vectors" in found) == bool(there)
    if there:
        assert {part for part in ("val", "test") if found["equal vectors"].facts[part]} == {
            p.name.lower() for p in there
        }


def test_one_group_only():
    """There is no distance between groups to compare with; what is equal is found all the same."""
    vectors = gaussian()
    vectors[TEST] = vectors[0]
    vectors[TEST + 1] = vectors[1] + 1e-4
    found = look(
        vectors, Split("s", PARTS, {"leaks": True}), groups=np.zeros(N, int), labels={"mood": texts(GROUPS % 3)}
    )
    assert set(found) == {"cut groups", "equal vectors"} and found["equal vectors"].count == 1
    assert found["cut groups"].facts == {"groups": ["g0"], "held_out_rows": 100}


def test_nothing_present_and_nothing_at_all():
    assert look(gaussian(), status=np.full(N, Status.ABSENT, np.uint8)) == {}
    assert look(gaussian(0), Split("s", np.zeros(0, np.uint8), {}), groups=np.zeros(0, int)) == {}


@settings(max_examples=60)
@given(
    rows=st_numpy.arrays(
        np.float32,
        st.tuples(st.integers(1, 60), st.integers(1, 4)),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-30, 1e4, 65504.0, 1e30, -1e30]),
    ),
    seed=st.integers(0, 99),
)
def test_any_finite_vectors_can_be_looked_at(rows, seed):
    rng = np.random.default_rng(seed)
    groups, parts = rng.integers(8, size=len(rows)), rng.choice([0, 0, 1, 2, 255], size=len(rows)).astype(np.uint8)
    for finding in look(rows, Split("s", parts, {}), groups=groups, inputs=rng.integers(9, size=len(rows))).values():
        assert 0 <= finding.count <= finding.of and len(finding.examples) <= 3 and "\n" not in finding.message


def test_an_unknown_feature_is_named():
    with pytest.raises(StoreError, match="no feature 'audio/clap'; it has audio/toy"):
        scan(make_store(gaussian()), ["audio/clap"], [BY_GROUPS])


# As a user types it


@pytest.fixture(scope="module")
def featurized(demo_data, tmp_path_factory):
    """A store of the demo songs with their three features, a split by groups and one by segments; read only."""
    from click.testing import CliRunner

    from cli import cli

    store = tmp_path_factory.mktemp("leaks") / "features.zarr"
    commands = [
        ["ingest", demo_data, "--set", "model.targets=[{name: mood}]"],
        ["split", "--name", "leaky", "--method", "random"],
    ]
    commands += [["featurize", "--encoder", name, "--workers", "0"] for name in ("lsa", "mel_stats", "midi_stats")]
    for arguments in commands:
        result = CliRunner().invoke(cli, [*map(str, arguments), "--store", str(store)])
        assert result.exit_code == 0, result.output
    return store


@pytest.fixture
def features(project, featurized):
    shutil.copytree(featurized, project / "features.zarr")
    return project


def findings_printed(run_cli, split: str) -> list[dict]:
    return json.loads(run_cli("leaks", "--split", split, "--json").output)["findings"]


def test_the_demo_songs_do_not_leak_on_their_split(features, run_cli):
    output = run_cli("leaks").output
    assert "split default (grouped)\n  no group stands in two parts\n" in output and "warning" not in output
    assert output.count("no val or test row has an equal input, an equal or a near-equal vector in train") == 3
    assert output.count("note: knows its group: the nearest centroid is the own group's for ") == 3


def test_a_split_by_segments_is_called_what_it_is(features, run_cli):
    (cut,) = [finding for finding in findings_printed(run_cli, "leaky") if finding["kind"] == "cut groups"]
    assert (cut["severity"], cut["about"], cut["of"]) == ("warning", "leaky", 12)
    assert f"warning: {cut['message']}" in run_cli("leaks", "--split", "leaky").output


def test_a_lyric_of_two_songs_is_found(features, demo_data, run_cli, tmp_path):
    """One of test is replaced by one of train; the scan has exit code 0 nevertheless: it informs."""
    data = shutil.copytree(demo_data, tmp_path / "songs")
    store = open_store("features.zarr")
    split, present = store.split("default"), store["text/lsa"].present
    tested, known = (next(row for row in split.rows(part) if present[row]) for part in (Part.TEST, Part.TRAIN))
    ids = store.ids
    shutil.copy(data / "lyrics" / f"{ids[known]}.txt", data / "lyrics" / f"{ids[tested]}.txt")
    run_cli("ingest", data)
    run_cli("featurize", "--encoder", "lsa", "--workers", "0")
    (twins,) = [finding for finding in findings_printed(run_cli, "default") if finding["kind"] in TWINS]
    assert (twins["kind"], twins["about"], twins["count"]) == ("equal inputs", "text/lsa", 1)
    assert twins["examples"] == [[ids[tested], ids[known]]] and twins["facts"]["test"] == 1
    assert twins["facts"]["same_label"]["mood"][1] == 1


def test_only_some_features(features, run_cli):
    output = run_cli("leaks", "--feature", "text/lsa", "--target", "mood").output
    assert "text/lsa" in output and "mel_stats" not in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "nope"], "no split 'nope'; it has default, leaky"),
        (["--feature", "audio/clap"], "no feature 'audio/clap'; it has audio/mel_stats"),
        (["--feature", "clap"], "named SLOT/NAME"),
        (["--target", "tempo"], "no label 'tempo'; it has"),
        (["--seeds", "0"], "--seeds"),
    ],
)
def test_mistakes_are_named(features, run_cli, arguments, message):
    assert message in run_cli("leaks", *arguments, code=2).output


def test_without_features_there_are_groups_and_labels_to_look_at(project, demo_data, run_cli):
    run_cli("ingest", demo_data)
    assert "no group stands in two parts\nno features yet; cli featurize" in run_cli("leaks").output
