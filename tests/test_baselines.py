"""The baselines: what they say for every kind of target, and that they are honest opponents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from featurize.config import TargetConfig
from fusion import baselines
from fusion.baselines import _fit_linear, concatenation, linear, majority, mask
from fusion.metrics import headline_metric, score
from fusion.targets import Target
from tests.fusion_contract import make_data, make_targets

N = 300
TRAIN, VAL, TEST = np.arange(0, 180), np.arange(180, 240), np.arange(240, N)
KINDS = ["categorical", "multi_label", "regression", "soft_distribution"]
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


def problem(kind: str, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, Target]:
    """Inputs (N, 8) that tell the label linearly, nearly. Every tenth label is missing."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(N, 8)).astype(np.float32)
    evidence = inputs[:, :3] @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + noise * rng.normal(size=(N, 3))
    without = np.arange(N) % 10 == 0
    if kind == "categorical":
        values = np.where(without, "", np.array(["a", "b", "c"])[evidence.argmax(axis=1)]).tolist()
    elif kind == "multi_label":
        rows = [";".join(name for name, e in zip("abc", row, strict=True) if e > 0) or "[]" for row in evidence]
        values = np.where(without, "", rows).tolist()
    elif kind == "regression":
        values = np.where(without, np.nan, 50 + 10 * evidence[:, 0])
    else:
        values = np.where(without[:, None], np.nan, np.exp(2 * evidence))
    (target,) = make_targets({"y": values}, TargetConfig(name="y", kind=kind))
    return inputs, target


def quality(target: Target, prediction: np.ndarray, rows: np.ndarray) -> float:
    """The headline metric over the rows with a label."""
    known = target.known.numpy()[rows]
    return score(headline_metric(target.kind, target.metric), target.truth.numpy()[rows[known]], prediction[known])


@EACH_KIND
def test_predictions_are_in_the_terms_of_the_target(kind):
    inputs, target = problem(kind)
    for prediction in (majority(target, TRAIN, TEST), linear(inputs, target, TRAIN, VAL, TEST)):
        assert prediction.shape == (len(TEST), target.n_outputs) and np.isfinite(prediction).all()
        if kind in ("categorical", "soft_distribution"):
            np.testing.assert_allclose(prediction.sum(axis=1), 1, rtol=1e-5)
        if kind != "regression":
            assert prediction.min() >= 0 and prediction.max() <= 1 + 1e-6
    assert majority(target, TRAIN, TEST[:0]).shape == (0, target.n_outputs)


@EACH_KIND
def test_a_linear_model_finds_what_is_linear(kind):
    inputs, target = problem(kind)
    found = quality(target, linear(inputs, target, TRAIN, VAL, TEST), TEST)
    assert found > 0.75 and found > quality(target, majority(target, TRAIN, TEST), TEST) + 0.15


@EACH_KIND
def test_test_labels_are_never_read(kind):
    inputs, target = problem(kind)
    other = Target(target.name, kind, target.classes, target.truth.clone(), target.known.clone())
    other.truth[TEST] = other.truth[TEST].flip(0)
    other.known[TEST] = True
    np.testing.assert_array_equal(linear(inputs, target, TRAIN, VAL, TEST), linear(inputs, other, TRAIN, VAL, TEST))
    np.testing.assert_array_equal(majority(target, TRAIN, TEST), majority(other, TRAIN, TEST))


@EACH_KIND
@pytest.mark.parametrize("noise", [0.05, 3.0], ids=["clear", "noisy"])
def test_the_validation_split_chooses_the_regularization(kind, noise, monkeypatch):
    inputs, target = problem(kind, noise=noise)
    inputs = np.concatenate([inputs, np.random.default_rng(1).normal(size=(N, 30)).astype(np.float32)], axis=1)
    strengths = baselines.STRENGTHS
    chosen = linear(inputs, target, TRAIN[:90], VAL, VAL)
    alone = {}
    for strength in strengths:
        monkeypatch.setattr(baselines, "STRENGTHS", (strength,))
        alone[strength] = quality(target, linear(inputs, target, TRAIN[:90], VAL, VAL), VAL)
    assert len(set(alone.values())) > 1, "nothing to choose from"
    assert quality(target, chosen, VAL) == pytest.approx(max(alone.values()))


def test_a_metric_that_should_be_low_chooses_the_lowest(monkeypatch):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N, 40)).astype(np.float32)
    y = inputs[:, 0] + 2 * rng.normal(size=N)
    (target,) = make_targets({"y": y}, TargetConfig(name="y", kind="regression", metric="mae"))
    chosen = quality(target, linear(inputs, target, TRAIN[:60], VAL, VAL), VAL)
    alone = []
    for strength in baselines.STRENGTHS:
        monkeypatch.setattr(baselines, "STRENGTHS", (strength,))
        alone.append(quality(target, linear(inputs, target, TRAIN[:60], VAL, VAL), VAL))
    assert chosen == pytest.approx(min(alone)) and chosen < max(alone)


# Majority, by hand


def test_majority_is_the_share_or_mean_of_the_known_training_rows():
    labels = {
        "mood": ["a", "a", "b", "", "b"],
        "tags": ["x", "x;y", "[]", "", "y"],
        "tempo": np.array([1.0, 2.0, 6.0, np.nan, 100.0]),
        "when": np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [np.nan, np.nan], [0.0, 1.0]]),
    }
    kinds = dict(zip(labels, KINDS, strict=True))
    targets = make_targets(labels, *(TargetConfig(name=name, kind=kind) for name, kind in kinds.items()))
    found = [majority(target, np.arange(4), np.array([4, 0])) for target in targets]
    expected = [[2 / 3, 1 / 3], [2 / 3, 1 / 3], [3.0], [0.5, 0.5]]
    for prediction, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(prediction, [row, row], rtol=1e-6)


# What training does not show


def test_a_class_that_training_lacks_has_a_column_of_its_own():
    inputs, target = problem("categorical")
    rows = TRAIN[(target.truth.numpy()[TRAIN] != 1) & target.known.numpy()[TRAIN]]
    for prediction in (linear(inputs, target, rows, VAL, TEST), majority(target, rows, TEST)):
        assert prediction.shape == (len(TEST), 3) and not prediction[:, 1].any()
        np.testing.assert_allclose(prediction.sum(axis=1), 1)


@pytest.mark.parametrize("always", [True, False])
def test_a_label_that_never_changes_is_predicted_as_it_is(always):
    inputs, _ = problem("multi_label")
    tags = ["a;b" if always or row >= TEST[0] else "b" for row in range(N)]
    tags = [tag if inputs[row, 0] > 0 else tag.removesuffix(";b") for row, tag in enumerate(tags)]
    (target,) = make_targets({"y": tags}, TargetConfig(name="y", kind="multi_label"))
    assert target.classes == ["a", "b"]
    prediction = linear(inputs, target, TRAIN, VAL, TEST)
    assert (prediction[:, 0] == float(always)).all()


def test_soft_labels_of_one_class_only():
    inputs, _ = problem("soft_distribution")
    (target,) = make_targets({"y": np.tile([1.0, 0.0], (N, 1))}, TargetConfig(name="y", kind="soft_distribution"))
    expected = np.tile([1.0, 0.0], (len(TEST), 1))
    np.testing.assert_allclose(linear(inputs, target, TRAIN, VAL, TEST), expected, atol=1e-6)


def test_without_validation_labels_it_still_predicts():
    inputs, target = problem("categorical")
    prediction = linear(inputs, target, TRAIN, VAL[VAL % 10 == 0], TEST)
    assert prediction.shape == (len(TEST), 3) and np.isfinite(prediction).all()


# Inputs


def test_concatenation_holds_every_slot_and_the_mask():
    rng = np.random.default_rng(0)
    present = rng.random((N, 2)) < 0.6
    vectors = {"text": 7 + 3 * rng.normal(size=(N, 3)), "my.concept": rng.normal(size=(N, 2))}
    vectors["text"][~present[:, 0]] = np.nan
    data = make_data(vectors, present)
    inputs = concatenation(data, TRAIN)
    assert inputs.shape == (N, 3 + 2 + 2) and inputs.dtype == np.float32 and np.isfinite(inputs).all()
    assert not inputs[~present[:, 0], :3].any() and not inputs[~present[:, 1], 3:5].any()
    np.testing.assert_array_equal(inputs[:, 5:], present)
    np.testing.assert_array_equal(mask(data), present.astype(np.float32))
    seen = inputs[TRAIN][present[TRAIN, 0], :3]
    np.testing.assert_allclose(seen.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(axis=0), 1, rtol=1e-4)


def test_concatenation_is_standardized_by_training_rows_only():
    rng = np.random.default_rng(0)
    data = make_data({"text": rng.normal(size=(N, 3))}, rng.random((N, 1)) < 0.8)
    before = concatenation(data, TRAIN)
    data.vectors["text"][torch.from_numpy(np.concatenate([VAL, TEST]))] *= 100
    np.testing.assert_array_equal(concatenation(data, TRAIN)[TRAIN], before[TRAIN])


def test_a_slot_that_training_never_saw_stays_finite():
    present = np.ones((N, 2), bool)
    present[TRAIN, 1] = False
    data = make_data({"text": np.ones((N, 3)), "audio": np.ones((N, 2))}, present)
    assert np.isfinite(concatenation(data, TRAIN)).all()


# Mask only


def accuracy_of_mask(label: np.ndarray, present: np.ndarray) -> tuple[float, float]:
    """Accuracy over the test rows of mask only, and of the majority class."""
    data = make_data({"text": np.zeros((N, 2)), "audio": np.zeros((N, 2))}, present)
    (target,) = make_targets({"y": np.where(label, "yes", "no").tolist()}, TargetConfig(name="y", metric="accuracy"))
    truth = target.truth.numpy()[TEST]
    found = linear(mask(data), target, TRAIN, VAL, TEST), majority(target, TRAIN, TEST)
    return tuple(float((prediction.argmax(axis=1) == truth).mean()) for prediction in found)


def test_mask_only_finds_what_missingness_gives_away():
    rng = np.random.default_rng(0)
    present = rng.random((N, 2)) < 0.5
    label = np.where(rng.random(N) < 0.95, present[:, 1], ~present[:, 1])  # no midi, no dance
    ours, prior = accuracy_of_mask(label, present)
    assert ours > 0.88 and prior < 0.65


def test_mask_only_finds_nothing_where_there_is_nothing():
    rng = np.random.default_rng(1)
    ours, prior = accuracy_of_mask(rng.random(N) < 0.7, rng.random((N, 2)) < 0.5)
    assert abs(ours - prior) < 0.05


def test_soft_labels_are_fitted_as_weighted_rows_for_each_class_would_be():
    inputs, target = problem("soft_distribution")
    labelled = TRAIN[target.known.numpy()[TRAIN]]
    shares, given = target.truth.numpy()[labelled], inputs[labelled]
    rows, classes = np.nonzero(shares > 0)
    reference = LogisticRegression(C=0.1, max_iter=1000, tol=1e-8).fit(
        given[rows], classes, sample_weight=shares[rows, classes]
    )
    predict = _fit_linear(given, shares, target, 0.1)
    np.testing.assert_allclose(predict(inputs), reference.predict_proba(inputs), atol=2e-3)
