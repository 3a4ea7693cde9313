"""Calibration by hand, against loops and scikit-learn, and on predictions whose calibration is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from fusion.calibration import (
    TEMPERATURES,
    calibration_metrics,
    describe,
    ece,
    ece_if_calibrated,
    equal_mass,
    equal_width,
    fit_temperature,
    reliability,
    statements,
)
from fusion.metrics import METRICS, score

KINDS = list(METRICS)


def of(kind: str, name: str, truth, prediction) -> float:
    truth, prediction = np.asarray(truth), np.asarray(prediction, float)
    (metric,) = (m for m in calibration_metrics(kind, prediction.shape[1]) if m.name == name)
    return score(metric, truth, prediction)


def two_classes(confidences: list[float]) -> np.ndarray:
    """(n, 2) that predicts class 0."""
    return np.stack([confidences, 1 - np.array(confidences)], axis=1)


def ece_by_hand(stated: np.ndarray, happened: np.ndarray, uppers: list[float]) -> float:
    """The definition, bin by bin; uppers: the upper edge of every bin, which belongs to it."""
    total, lower = 0.0, -math.inf
    for upper in uppers:
        here = [(s, h) for s, h in zip(stated, happened, strict=True) if lower < s <= upper]
        if here:
            total += len(here) / len(stated) * abs(np.mean([h for _, h in here]) - np.mean([s for s, _ in here]))
        lower = upper
    return total


# By hand


def test_ece_by_hand():
    """Bins of 1/10: 0.9 is right half of the time, 0.6 always; 2/5 · 0.4 + 2/5 · 0.4 + 1/5 · 0.25."""
    prediction = two_classes([0.9, 0.9, 0.6, 0.6, 0.75])
    truth = np.array([0, 1, 0, 0, 0])
    assert score(ece("categorical", equal_width(1, 10)), truth, prediction) == pytest.approx(0.37)
    # one bin for all: accuracy 0.8, confidence 0.75
    assert score(ece("categorical", equal_width(1, 1)), truth, prediction) == pytest.approx(0.05)
    # two bins of equal mass hold 0.6, 0.6, 0.75 (all right) and 0.9, 0.9
    bins = equal_mass(statements("categorical", truth, prediction)[0], 2)
    assert score(ece("categorical", bins), truth, prediction) == pytest.approx(3 / 5 * 0.35 + 2 / 5 * 0.4)


def test_a_reliability_table_by_hand():
    stated, happened = np.array([0.2, 0.5, 0.5, 0.55, 1.0]), np.array([0.0, 1, 0, 1, 1])
    found = reliability(stated, happened, equal_width(1, 2)[0])
    assert found == [  # 0.5 belongs to the lower bin: they are closed above
        {"n": 3, "confidence": pytest.approx(0.4), "accuracy": pytest.approx(1 / 3)},
        {"n": 2, "confidence": pytest.approx(0.775), "accuracy": 1.0},
    ]


def test_multi_label_is_the_mean_over_labels():
    truth = np.array([[1, 0], [1, 0], [0, 0]])
    prediction = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.1]])
    assert of("multi_label", "ece", truth, prediction) == pytest.approx(((2 * 0.1 + 0.3) / 3 + 0.1) / 2)
    assert of("multi_label", "brier", truth, prediction) == pytest.approx(((2 * 0.01 + 0.09) / 3 + 0.01) / 2)
    labels = describe("multi_label", ["a", "b"], truth, prediction)["labels"]
    assert labels["a"]["ece_equal_width"] == pytest.approx(0.5 / 3) and labels["a"]["brier"] == pytest.approx(0.11 / 3)
    assert labels["b"] == pytest.approx(
        {"stated": 0.1, "happened": 0, "brier": 0.01, "ece_equal_width": 0.1, "ece_equal_mass": 0.1}
    )


def test_a_soft_distribution_is_held_to_the_share_of_the_mode_it_predicts():
    truth = [[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]]
    assert of("soft_distribution", "ece", truth, truth) == 0
    assert of("soft_distribution", "confidence", truth, truth) == pytest.approx(0.6)
    bold = [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]]
    assert of("soft_distribution", "ece", truth, bold) == pytest.approx(0.9 - (0.5 + 0.2) / 2)


def test_shares_that_are_all_or_nothing_are_classes():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(4, size=60), rng.dirichlet(np.ones(4), 60)
    for name in ("confidence", "ece"):
        soft = of("soft_distribution", name, np.eye(4)[truth], prediction)
        assert soft == pytest.approx(of("categorical", name, truth, prediction))


def test_brier_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(3, size=50), rng.dirichlet(np.ones(3), 50)
    by_class = [brier_score_loss(truth == k, prediction[:, k]) for k in range(3)]
    assert of("categorical", "brier", truth, prediction) == pytest.approx(sum(by_class))
    labels = np.eye(3)[truth]
    assert of("multi_label", "brier", labels, prediction) == pytest.approx(np.mean(by_class))
    assert of("categorical", "brier", [0, 1], [[0, 1], [1, 0]]) == 2


# Regression


@pytest.mark.parametrize("offset", [0.0, 2024.0, 1e7])
def test_the_line_of_truth_on_prediction(offset):
    rng = np.random.default_rng(0)
    prediction = rng.normal(size=(200, 1))
    truth = 0.5 * prediction + 3 + 0.1 * rng.normal(size=(200, 1))
    slope, intercept = np.polyfit(prediction[:, 0], truth[:, 0], 1)
    truth, prediction = truth + offset, prediction + offset
    assert of("regression", "slope", truth, prediction) == pytest.approx(slope, rel=1e-6)
    expected = intercept + offset - slope * offset
    assert of("regression", "intercept", truth, prediction) == pytest.approx(expected, rel=1e-6)


def test_a_prediction_that_never_varies_has_no_line():
    assert math.isnan(of("regression", "slope", np.arange(5.0)[:, None], np.full((5, 1), 0.1)))
    with pytest.raises(ValueError, match="states no probability"):
        statements("regression", np.zeros((2, 1)), np.zeros((2, 1)))
    assert describe("regression", ["energy"], np.zeros((2, 1)), np.zeros((2, 1))) == {}


# Bins


@settings(max_examples=80)
@given(
    confidences=st.lists(st.sampled_from([0.5, 0.55, 0.6, 2 / 3, 0.8, 0.99, 1.0]), min_size=1, max_size=40),
    n_bins=st.integers(1, 12),
    seed=st.integers(0, 99),
)
def test_ece_is_what_a_loop_over_bins_finds(confidences, n_bins, seed):
    truth = np.random.default_rng(seed).integers(2, size=len(confidences))
    prediction = two_classes(confidences)
    stated, happened = (values[:, 0] for values in statements("categorical", truth, prediction))
    for bins in (equal_width(1, n_bins), equal_mass(stated[:, None], n_bins)):
        found = score(ece("categorical", bins), truth, prediction)
        assert found == pytest.approx(ece_by_hand(stated, happened, [*bins[0].tolist(), math.inf]), abs=1e-12)
        table = reliability(stated, happened, bins[0])
        assert sum(row["n"] for row in table) == len(stated) and all(row["n"] for row in table)
        again = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in table) / len(stated)
        assert found == pytest.approx(again, abs=1e-12)


@settings(max_examples=60)
@given(n=st.integers(1, 60), n_bins=st.integers(1, 20), seed=st.integers(0, 99))
def test_bins_of_equal_mass_hold_equally_many(n, n_bins, seed):
    stated = np.random.default_rng(seed).random((n, 2))
    for column, edges in zip(stated.T, equal_mass(stated, n_bins), strict=True):
        sizes = np.bincount(np.searchsorted(edges, column), minlength=n_bins)
        assert sizes.sum() == n and sizes.max() - sizes.min() <= 1


def test_equal_statements_share_a_bin_whatever_the_order_of_segments():
    stated = np.array([0.7] * 9 + [0.9])[:, None]
    assert len(reliability(stated[:, 0], np.ones(10), equal_mass(stated, 5)[0])) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_to_the_whole(kind):
    rng = np.random.default_rng(0)
    truth = {
        "categorical": rng.integers(3, size=40),
        "multi_label": rng.integers(2, size=(40, 3)),
        "regression": rng.normal(50, 1, (40, 1)),
        "soft_distribution": rng.dirichlet(np.ones(3), 40),
    }[kind]
    prediction = rng.normal(50, 1, (40, 1)) if kind == "regression" else rng.dirichlet(np.ones(3), 40)
    metrics = calibration_metrics(kind, prediction.shape[1])
    assert metrics and not {m.name for m in metrics} & {m.name for m in METRICS[kind]}
    for metric in metrics:
        statistics = metric.statistics(truth, prediction)
        parts = np.stack([statistics[:15].sum(axis=0) + statistics[15:].sum(axis=0), 2 * statistics.sum(axis=0)])
        assert metric.value(parts) == pytest.approx(score(metric, truth, prediction))  # twice all is the same share


# What is known to be calibrated


def test_what_is_calibrated_has_the_ece_that_chance_makes():
    """Outcomes drawn from what is stated: the error is as large as `ece_if_calibrated` says, and vanishes with n."""
    rng = np.random.default_rng(0)
    chances = {}
    for n in (50, 5000):
        prediction = two_classes(rng.uniform(0.5, 1, n).tolist())
        bins = equal_mass(prediction[:, :1])
        found = [
            score(ece("categorical", bins), (rng.random(n) > prediction[:, 0]).astype(int), prediction)
            for _ in range(100)
        ]
        chances[n] = ece_if_calibrated(prediction[:, :1], bins)
        assert chances[n] == pytest.approx(np.mean(found), rel=0.1)
    assert chances[50] > 0.1 and chances[5000] < 0.02
    assert score(ece("categorical", bins), (rng.random(n) > 0.5).astype(int), prediction) > 10 * chances[5000]


def test_shares_have_no_chance_to_be_right():
    truth = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    assert set(describe("soft_distribution", list("abc"), truth, truth)) == {"reliability"}
    assert describe("categorical", ["a", "b"], np.zeros(0, int), np.zeros((0, 2))) == {}


# Temperature


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    chances = softmax(logits / temperature, axis=1)
    truth = (rng.random((len(chances), 1)) > chances.cumsum(axis=1)).sum(axis=1)
    assert fit_temperature(logits, np.eye(4)[truth]) == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(logits + 1e4, chances) == pytest.approx(temperature, rel=1e-6)  # the truth itself


def log_loss(logits: np.ndarray, truth: np.ndarray, temperature: float) -> float:
    (metric,) = (m for m in METRICS["categorical"] if m.name == "log_loss")
    return score(metric, truth, softmax(logits / temperature, axis=1))


@settings(max_examples=40)
@given(n=st.integers(1, 30), k=st.integers(2, 5), seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_no_temperature_fits_better_and_none_changes_what_is_predicted(n, k, seed, scale):
    rng = np.random.default_rng(seed)
    logits, truth = scale * rng.normal(size=(n, k)), rng.integers(k, size=n)
    found = fit_temperature(logits, np.eye(k)[truth])
    assert TEMPERATURES[0] <= found <= TEMPERATURES[1]
    best = log_loss(logits, truth, found)
    for other in (found * 0.9, found * 1.1, *TEMPERATURES):
        assert best <= log_loss(logits, truth, np.clip(other, *TEMPERATURES)) + 1e-9
    np.testing.assert_array_equal(softmax(logits / found, axis=1).argmax(axis=1), logits.argmax(axis=1))


def test_where_no_temperature_is_best_it_stays_at_a_limit():
    right, wrong = np.eye(2)[[0, 1, 0]], np.eye(2)[[1, 0, 1]]
    logits = 3.0 * right
    assert fit_temperature(logits, right) == TEMPERATURES[0]  # all right: the surer the better
    assert fit_temperature(logits, wrong) == TEMPERATURES[1]  # all wrong: the less sure the better
    assert fit_temperature(np.full((3, 2), 0.1), right) == 1.0  # nothing is said, at any temperature
