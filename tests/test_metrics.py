"""Metrics against scikit-learn and by hand; the bootstrap against data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn import metrics as reference

from featurize.errors import UnknownName
from fusion import metrics
from fusion.evaluate import FUSION, Predictions, evaluate
from fusion.metrics import METRICS, GroupBootstrap, Metric, headline_metric, interval, score
from stores.base import STRING
from tests.fusion_contract import make_data, make_targets

ALL = [(kind, metric) for kind, listed in METRICS.items() for metric in listed]
EACH_METRIC = pytest.mark.parametrize(("kind", "metric"), ALL, ids=[f"{kind}-{metric.name}" for kind, metric in ALL])


def case(kind: str, n: int, seed: int, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of a model that is right more often than not."""
    rng = np.random.default_rng(seed)
    if kind == "categorical":
        truth = rng.integers(k, size=n)
        return truth, softmax(rng.normal(size=(n, k)) + np.eye(k)[truth])
    if kind == "multi_label":
        truth = (rng.random((n, k)) < 0.4).astype(np.float32)
        return truth, 0.3 * truth + 0.6 * rng.random((n, k))
    if kind == "regression":
        truth = rng.normal(3, 2, (n, 1)).astype(np.float32)
        return truth, truth + rng.normal(0, 1, (n, 1))
    return rng.dirichlet(np.ones(k), n).astype(np.float32), rng.dirichlet(np.ones(k), n)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def one_hot(classes: list[int], k: int) -> np.ndarray:
    return np.eye(k)[classes]


def of(kind: str, name: str, truth, prediction) -> float:
    return score(headline_metric(kind, name), np.asarray(truth), np.asarray(prediction, dtype=float))


# Against scikit-learn

REFERENCES = {
    ("categorical", "accuracy"): lambda t, p: reference.accuracy_score(t, p.argmax(1)),
    ("categorical", "macro_f1"): lambda t, p: reference.f1_score(t, p.argmax(1), average="macro"),
    ("categorical", "balanced_accuracy"): lambda t, p: reference.balanced_accuracy_score(t, p.argmax(1)),
    ("categorical", "log_loss"): lambda t, p: reference.log_loss(t, p, labels=range(p.shape[1])),
    ("multi_label", "macro_f1"): lambda t, p: reference.f1_score(t, p >= 0.5, average="macro"),
    ("multi_label", "micro_f1"): lambda t, p: reference.f1_score(t, p >= 0.5, average="micro"),
    ("regression", "r2"): lambda t, p: reference.r2_score(t, p),
    ("regression", "rmse"): lambda t, p: reference.root_mean_squared_error(t, p),
    ("regression", "mae"): lambda t, p: reference.mean_absolute_error(t, p),
    ("soft_distribution", "overlap"): lambda t, p: np.mean(1 - np.abs(t - p).sum(axis=1) / 2),
    ("soft_distribution", "kl"): lambda t, p: entropy(t, p, axis=1).mean(),
    ("soft_distribution", "same_mode"): lambda t, p: reference.accuracy_score(t.argmax(1), p.argmax(1)),
}


def test_no_metric_goes_without_a_reference():
    assert len(ALL) >= 12 and {(kind, metric.name) for kind, metric in ALL} == set(REFERENCES)


@EACH_METRIC
@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_their_reference(kind, metric, seed):
    truth, prediction = case(kind, 80, seed)
    expected = float(REFERENCES[kind, metric.name](truth, prediction))
    assert score(metric, truth, prediction) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_macro_f1_and_recall_count_the_classes_that_occur(pairs):
    truth, predicted = map(list, zip(*pairs, strict=True))
    f1 = reference.f1_score(truth, predicted, average="macro", zero_division=0)
    assert of("categorical", "macro_f1", truth, one_hot(predicted, 5)) == pytest.approx(f1)
    recall = reference.recall_score(truth, predicted, average="macro", labels=np.unique(truth), zero_division=0)
    assert of("categorical", "balanced_accuracy", truth, one_hot(predicted, 5)) == pytest.approx(recall)


# By hand


def test_categorical_by_hand():
    truth, predicted = [0, 0, 0, 1], one_hot([0, 0, 1, 1], 3)
    assert of("categorical", "accuracy", truth, predicted) == 0.75
    # class 0: precision 1, recall 2/3; class 1: precision 1/2, recall 1; class 2 does not occur and does not count
    assert of("categorical", "macro_f1", truth, predicted) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert of("categorical", "balanced_accuracy", truth, predicted) == pytest.approx((2 / 3 + 1) / 2)
    # a class that is only ever predicted counts for F1, with 0, and has no recall
    truth, predicted = [0, 0], one_hot([0, 2], 3)
    assert of("categorical", "macro_f1", truth, predicted) == pytest.approx((2 / 3 + 0) / 2)
    assert of("categorical", "balanced_accuracy", truth, predicted) == 0.5
    assert of("categorical", "log_loss", [0, 1], [[0.5, 0.5], [0.75, 0.25]]) == pytest.approx(math.log(2) * 1.5)
    assert math.isfinite(of("categorical", "log_loss", [0], [[0.0, 1.0]]))


def test_multi_label_by_hand():
    truth = [[1, 0, 0], [1, 1, 0]]
    prediction = [[0.5, 0.6, 0.1], [0.4, 0.9, 0.2]]  # 0.5 counts as yes
    # label 0: one hit, one missed; label 1: one hit, one too many; label 2 does not occur
    assert of("multi_label", "macro_f1", truth, prediction) == pytest.approx(2 / 3)
    assert of("multi_label", "micro_f1", truth, prediction) == pytest.approx(2 * 2 / (3 + 3))
    assert of("multi_label", "micro_f1", np.zeros((2, 3)), np.zeros((2, 3))) == 0


def test_regression_by_hand():
    truth, prediction = [[1.0], [2.0], [3.0]], [[1.0], [2.0], [5.0]]
    assert of("regression", "mae", truth, prediction) == pytest.approx(2 / 3)
    assert of("regression", "rmse", truth, prediction) == pytest.approx(math.sqrt(4 / 3))
    assert of("regression", "r2", truth, prediction) == pytest.approx(1 - 4 / 2)
    assert of("regression", "r2", truth, [[2.0]] * 3) == pytest.approx(0)


def test_soft_distribution_by_hand():
    truth, prediction = [[1.0, 0.0], [0.5, 0.5]], [[0.75, 0.25], [0.75, 0.25]]
    assert of("soft_distribution", "overlap", truth, prediction) == 0.75
    expected = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert of("soft_distribution", "kl", truth, prediction) == pytest.approx(expected)
    assert of("soft_distribution", "same_mode", [[0.2, 0.8], [0.9, 0.1]], prediction) == 0.5
    assert of("soft_distribution", "kl", truth, truth) == pytest.approx(0, abs=1e-9)
    assert math.isfinite(of("soft_distribution", "kl", [[0.0, 1.0]], [[1.0, 0.0]]))


@pytest.mark.parametrize("unit", [1e-9, 1e-4, 1.0, 1e6])
@pytest.mark.parametrize("offset", [0.0, 1e6], ids=["around zero", "far from zero"])
def test_r2_has_no_unit(unit, offset):
    """Volts or microvolts, years or seconds since 1970: the same share of variance is explained."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(200, 1))
    prediction = truth + 0.5 * rng.normal(size=(200, 1))
    expected = of("regression", "r2", truth, prediction)
    assert of("regression", "r2", unit * (truth + offset), unit * (prediction + offset)) == pytest.approx(
        expected, rel=1e-3
    )


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678, 3e8])
def test_r2_of_a_constant_is_undefined(value):
    truth = np.full((7, 1), value)
    assert math.isnan(of("regression", "r2", truth, truth + 1))


@pytest.mark.parametrize("kind", METRICS)
def test_the_headline_is_the_first_unless_another_is_named(kind):
    assert headline_metric(kind, None) is METRICS[kind][0]
    assert headline_metric(kind, METRICS[kind][-1].name) is METRICS[kind][-1]
    with pytest.raises(UnknownName, match=f"metric for a {kind} target 'auc'.*Known: {METRICS[kind][0].name}"):
        headline_metric(kind, "auc")


@EACH_METRIC
def test_better_predictions_score_better(kind, metric):
    truth, prediction = case(kind, 60, 0)
    perfect = one_hot(truth, 4) if kind == "categorical" else truth
    gain = score(metric, truth, perfect) - score(metric, truth, prediction)
    assert (gain > 0) == metric.higher_is_better


# Sums over segments


@EACH_METRIC
@settings(deadline=None, max_examples=15)
@given(n=st.integers(2, 40), seed=st.integers(0, 1000), data=st.data())
def test_parts_add_up_to_the_whole_in_any_order(kind, metric, n, seed, data):
    truth, prediction = case(kind, n, seed)
    whole = score(metric, truth, prediction)
    order = np.array(data.draw(st.permutations(range(n))))
    assert score(metric, truth[order], prediction[order]) == pytest.approx(whole, nan_ok=True)
    cut = data.draw(st.integers(0, n))
    statistics = metric.statistics(truth, prediction)[order]
    assert statistics.ndim == 2 and len(statistics) == n
    parts = statistics[:cut].sum(axis=0) + statistics[cut:].sum(axis=0)
    assert float(metric.value(parts)) == pytest.approx(whole, nan_ok=True)


@EACH_METRIC
def test_many_sums_are_valued_at_once(kind, metric):
    truth, prediction = case(kind, 30, 1)
    statistics = metric.statistics(truth, prediction)
    sums = np.stack([statistics[:15].sum(axis=0), statistics[15:].sum(axis=0)])
    expected = [float(metric.value(statistics[:15].sum(axis=0))), float(metric.value(statistics[15:].sum(axis=0)))]
    np.testing.assert_allclose(metric.value(sums), expected)


# The bootstrap

ACCURACY = headline_metric("categorical", "accuracy")


def grouped_hits(rng: np.random.Generator, n_groups: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One-hot predictions (n, 2) of class 0 that are right half of the time, at a rate of each group's own."""
    groups = np.repeat(np.arange(n_groups), size)
    hit = rng.random(n_groups * size) < rng.random(n_groups)[groups]
    return np.stack([hit, ~hit], axis=1).astype(float), groups.astype(STRING)


def hits_interval(prediction: np.ndarray, groups: np.ndarray, seed: int = 0, resamples: int = 200) -> list[float]:
    found = interval(GroupBootstrap(groups, resamples, seed).values(ACCURACY, np.zeros(len(groups), int), [prediction]))
    assert found is not None
    return found


def test_intervals_cover_the_truth_where_groups_are_resampled():
    rng = np.random.default_rng(0)
    covered = {"groups": 0, "segments": 0}
    for _ in range(200):
        prediction, groups = grouped_hits(rng, 40, 10)
        for name, resampled in {"groups": groups, "segments": np.arange(400).astype(STRING)}.items():
            low, high = hits_interval(prediction, resampled)
            covered[name] += low <= 0.5 <= high
    assert 0.88 <= covered["groups"] / 200 <= 0.99
    assert covered["segments"] / 200 < 0.8  # segments of one song are no independent witnesses


def test_few_groups_make_wide_intervals():
    def width(n_groups: int, size: int) -> float:
        rng = np.random.default_rng(1)
        return float(np.mean([np.diff(hits_interval(*grouped_hits(rng, n_groups, size))) for _ in range(10)]))

    few, some, many = width(6, 60), width(36, 10), width(360, 1)
    assert few > 1.5 * some and some > 1.5 * many


def test_the_same_seed_draws_the_same_groups(monkeypatch):
    groups = np.repeat(np.arange(12), 3).astype(STRING)
    numbers = np.random.default_rng(0).normal(size=(36, 2))
    first = GroupBootstrap(groups, 50, 4).sums(numbers)
    assert first.shape == (50, 2)
    np.testing.assert_array_equal(GroupBootstrap(groups, 50, 4).sums(numbers), first)
    assert not np.array_equal(GroupBootstrap(groups, 50, 5).sums(numbers), first)
    monkeypatch.setattr(metrics, "RESAMPLES_AT_ONCE", 100)  # in pieces, where memory is short: the same
    np.testing.assert_allclose(GroupBootstrap(groups, 50, 4).sums(numbers), first)


def test_a_resample_holds_whole_groups_and_as_many_as_there_are():
    groups = np.repeat(["a", "b", "c", "d"], [5, 5, 5, 5]).astype(STRING)
    counts = GroupBootstrap(groups, 300).sums(np.eye(4)[np.repeat(range(4), 5)])
    assert (counts % 5 == 0).all() and (counts.sum(axis=1) == 20).all()
    assert counts.max() >= 15 and counts.min() == 0
    np.testing.assert_allclose(counts.mean(axis=0), 5, atol=0.8)


def test_segments_of_a_group_need_not_stand_together():
    prediction, groups = grouped_hits(np.random.default_rng(3), 8, 5)
    order = np.random.default_rng(0).permutation(40)
    assert hits_interval(prediction, groups) == pytest.approx(hits_interval(prediction[order], groups[order]))


def test_values_are_averaged_over_seeds():
    groups = np.repeat(np.arange(10), 4).astype(STRING)
    bootstrap = GroupBootstrap(groups, 30)
    truth = np.zeros(40, int)
    one, other = grouped_hits(np.random.default_rng(0), 10, 4)[0], grouped_hits(np.random.default_rng(1), 10, 4)[0]
    both = bootstrap.values(ACCURACY, truth, [one, other])
    alone = [bootstrap.values(ACCURACY, truth, [p]) for p in (one, other)]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2)


def test_compared_in_pairs_a_small_difference_shows():
    """One model is right where the other is, and in one more segment of each group."""
    rng = np.random.default_rng(0)
    worse, groups = grouped_hits(rng, 30, 10)
    better = worse.copy()
    better[::10] = [1, 0]
    truth, bootstrap = np.zeros(300, int), GroupBootstrap(groups, 500)
    ours, theirs = (bootstrap.values(ACCURACY, truth, [p]) for p in (better, worse))
    unpaired = GroupBootstrap(groups, 500, seed=1).values(ACCURACY, truth, [worse])
    assert interval(ours - theirs)[0] > 0
    assert interval(ours - unpaired)[0] < 0 < interval(ours - unpaired)[1]
    assert interval(theirs - bootstrap.values(ACCURACY, truth, [worse.copy()])) == [0, 0]


def test_one_group_has_no_interval():
    """Nothing varies between resamples of one group; that is not certainty."""
    groups = np.array(["only"] * 6, dtype=STRING)
    prediction = one_hot([0, 1, 0, 0, 1, 0], 2)
    assert interval(GroupBootstrap(groups, 200).values(ACCURACY, np.zeros(6, int), [prediction])) is None


def test_undefined_values_have_no_interval():
    assert interval(np.full(100, np.nan)) is None
    assert interval(np.array([1.0])) is None
    assert interval(np.where(np.arange(100) < 20, np.nan, 0.5)) is None
    assert interval(np.array([np.nan] + [0.5] * 99)) == [0.5, 0.5]


def test_an_interval_holds_the_middle_95_percent():
    low, high = interval(np.arange(1001.0))
    assert (low, high) == pytest.approx((25, 975))


# In the run's own words


def compare(truth: list[str], ours: list[int], theirs: list[int], groups: list[str]) -> dict:
    (target,) = make_targets({"mood": truth})
    data = make_data({"text": np.zeros((len(truth), 1))}, np.ones((len(truth), 1), bool), groups)
    results = {}
    for name, predicted in {FUSION: ours, "majority": theirs}.items():
        results[name] = {"test": Predictions()}
        results[name]["test"].add(0, 0, np.arange(len(truth)), [one_hot(predicted, 2)])
    return evaluate(data, [target], results, 200)["mood"]


def test_a_clear_difference_is_called_better():
    groups = [f"g{i // 4}" for i in range(80)]
    found = compare(["a", "b"] * 40, [0, 1] * 40, [0, 0] * 40, groups)
    comparison = found["comparisons"]["majority"]
    assert found["splits"]["test"]["n_groups"] == 20 and comparison["better"] is True and comparison["ci95"][0] > 0
    same = compare(["a", "b"] * 40, [0, 0] * 40, [0, 0] * 40, groups)["comparisons"]["majority"]
    assert same["difference"] == 0 and same["better"] is None


def test_missing_labels_do_not_count():
    found = compare(["a", "b", ""] * 10, [0, 1, 1] * 10, [0, 0, 0] * 10, [f"g{i}" for i in range(30)])
    assert found["splits"]["test"]["n"] == 20 and found["splits"]["test"]["value"] == 1


def test_one_group_proves_nothing():
    found = compare(["a", "b"] * 10, [0, 1] * 10, [0, 0] * 10, ["only"] * 20)
    assert found["splits"]["test"]["ci95"] is None
    assert found["comparisons"]["majority"]["ci95"] is None and found["comparisons"]["majority"]["better"] is None


def test_a_metric_is_a_frozen_fact():
    assert all(isinstance(metric, Metric) and metric.name for _, metric in ALL)
    assert all(len({metric.name for metric in listed}) == len(listed) for listed in METRICS.values())
