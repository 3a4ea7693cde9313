"""Targets: from label columns as the store keeps them to truth, loss and prediction."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from featurize.config import TargetConfig
from featurize.errors import ConfigError
from featurize.labels import infer_kind, resolve_targets, strata
from fusion.targets import Target
from stores.base import STRING
from tests.fusion_contract import make_targets

NAN = np.nan
SIX = np.arange(6)

# One column of six segments for each kind; segments 2 and 5 have no label.
LABELS = {
    "categorical": ["b", "a", "", "b", "c", ""],
    "multi_label": ["x;y", "y", "", "[]", "x", ""],
    "regression": np.array([1.0, 2.0, NAN, 4.0, 9.0, NAN]),
    "soft_distribution": np.array([[2.0, 2.0], [0.1, 0.3], [NAN, NAN], [1.0, 0.0], [3.0, 1.0], [0.0, 0.0]]),
}
EACH_KIND = pytest.mark.parametrize("kind", LABELS)


def make_target(kind: str, values: np.ndarray | list | None = None, **options) -> Target:
    values = LABELS[kind] if values is None else values
    (target,) = make_targets({"y": values}, TargetConfig(name="y", kind=kind, **options))
    return target


def logits_for(target: Target, n: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, target.n_outputs, generator=generator).requires_grad_()


def texts(*values: str) -> np.ndarray:
    return np.array(values, dtype=STRING)


# Encoding


@EACH_KIND
def test_a_missing_label_is_known_to_be_missing(kind):
    target = make_target(kind)
    assert target.kind == kind and target.known.tolist() == [True, True, False, True, True, False]
    assert target.truth.shape[0] == 6 and (target.truth.ndim == 1) == (kind == "categorical")
    assert target.truth.dtype == (torch.int64 if kind == "categorical" else torch.float32)
    assert target.truth.isfinite().all() and target.n_outputs == len(target.classes)


def test_classes_stand_in_natural_order():
    target = make_target("categorical", ["10", "2", "1.5", "rot", "blau", "-1"])
    assert target.classes == ["-1", "1.5", "2", "10", "blau", "rot"]
    assert target.truth.tolist() == [3, 2, 1, 5, 4, 0]


@pytest.mark.parametrize("odd", ["nan", "NaN"])
def test_a_class_called_nan_does_not_upset_the_order(odd):
    for n in range(10, 40):
        names = [str(number) for number in range(n)]
        target = make_target("categorical", [*names[n // 2 :], odd, *names[: n // 2]])
        assert target.classes == [*names, odd]


def test_numbers_are_classes_by_value():
    target = make_target("categorical", np.array([10.0, 2.0, NAN, 2.5]))
    assert target.classes == ["2", "2.5", "10"] and target.truth[target.known].tolist() == [2, 0, 1]


@pytest.mark.parametrize("close", [[20240101.0, 20240102.0], [0.1234567, 0.1234568]])
def test_different_numbers_are_different_classes(close):
    assert len(make_target("categorical", np.array(close * 2)).classes) == 2


def test_labels_of_one_cell():
    target = make_target("multi_label", ["10; 2 ;", "", '["a;b", "2"]', "[]", "2;2", "é"])
    assert target.classes == ["2", "10", "a;b", "é"]
    assert target.truth.tolist() == [[1, 1, 0, 0], [0] * 4, [1, 0, 1, 0], [0] * 4, [1, 0, 0, 0], [0, 0, 0, 1]]
    assert target.known.tolist() == [True, False, True, True, True, True]  # "[]" says: none of them


def test_another_separator():
    target = make_target("multi_label", ["a;b|c", "c"], separator="|")
    assert target.classes == ["a;b", "c"] and target.truth.tolist() == [[1, 1], [0, 1]]


def test_multi_label_from_lists():
    target = make_target("multi_label", np.array([[1, 0, 1], [0, 0, 0], [NAN, 1, 0]]))
    assert target.classes == ["0", "1", "2"] and target.known.tolist() == [True, True, False]
    assert target.truth[:2].tolist() == [[1, 0, 1], [0, 0, 0]]


def test_soft_distributions_are_normalized():
    target = make_target("soft_distribution", np.array([[20.0, 80.0], [0.0, 0.0], [NAN, 1.0], [1.0, 3.0]]))
    assert target.known.tolist() == [True, False, False, True]
    np.testing.assert_allclose(target.truth[target.known], [[0.2, 0.8], [0.25, 0.75]], rtol=1e-6)


def test_several_columns_form_one_distribution():
    columns = {"past": np.array([1.0, NAN, 3.0]), "future": np.array([1.0, 1.0, 1.0])}
    (target,) = make_targets(columns, TargetConfig(name="when", columns=["past", "future"]))
    assert target.kind == "soft_distribution" and target.classes == ["past", "future"]
    assert target.known.tolist() == [True, False, True]
    np.testing.assert_allclose(target.truth[[0, 2]], [[0.5, 0.5], [0.75, 0.25]])


def test_regression_keeps_its_units():
    target = make_target("regression")
    assert target.truth[target.known][:, 0].tolist() == [1, 2, 4, 9] and target.classes == ["y"]


# The loss


@EACH_KIND
@pytest.mark.parametrize("weights", [None, "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_missing_label_is_not_in_the_loss(kind, weights, smoothing):
    target = make_target(kind, class_weights=weights, label_smoothing=smoothing).fitted_to(SIX)
    logits = logits_for(target)
    loss = target.loss(logits, torch.arange(6))
    loss.backward()
    assert torch.equal(logits.grad[~target.known], torch.zeros(2, target.n_outputs))
    assert logits.grad[target.known].abs().sum(dim=1).gt(0).all()
    without = torch.tensor([0, 1, 3, 4])
    assert torch.equal(target.loss(logits[without], without), loss)
    torch.testing.assert_close(target.loss(logits.flip(0), torch.arange(6).flip(0)), loss)


@EACH_KIND
def test_a_batch_without_labels_costs_nothing(kind):
    target = make_target(kind, class_weights="balanced").fitted_to(SIX)
    logits = logits_for(target, 2)
    loss = target.loss(logits, torch.tensor([2, 5]))
    loss.backward()
    assert loss.ndim == 0 and loss == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


@EACH_KIND
def test_the_loss_reads_the_rows_it_is_given(kind):
    target = make_target(kind).fitted_to(SIX)
    logits = logits_for(target, 2)
    assert not torch.allclose(target.loss(logits, torch.tensor([0, 1])), target.loss(logits, torch.tensor([4, 1])))


def test_losses_by_hand():
    two = torch.arange(2)
    assert make_target("categorical", ["a", "b"]).loss(torch.zeros(2, 2), two) == pytest.approx(math.log(2))
    assert make_target("multi_label", ["a", "b;a"]).loss(torch.zeros(2, 2), two) == pytest.approx(math.log(2))
    soft = make_target("soft_distribution", np.array([[1.0, 3.0]]))
    logits = torch.log(torch.tensor([[0.5, 0.5]]))
    assert soft.loss(logits, two[:1]) == pytest.approx(math.log(2))
    numbers = make_target("regression", np.array([10.0, 14.0])).fitted_to(two.numpy())
    assert numbers.loss(torch.tensor([[0.0], [3.0]]), two) == pytest.approx((1 + 4) / 2)  # ±1 in standard deviations


def test_label_smoothing_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = F.log_softmax(logits, dim=1)
    smooth = torch.tensor([0.1, 0.7 + 0.1, 0.1])
    categorical = make_target("categorical", ["b", "a", "c"], label_smoothing=0.3)
    assert categorical.loss(logits, torch.tensor([0])) == pytest.approx(float(-(smooth * log_p).sum()), rel=1e-5)
    soft = make_target("soft_distribution", np.array([[0.0, 1.0, 0.0]]), label_smoothing=0.3)
    assert soft.loss(logits, torch.tensor([0])) == pytest.approx(float(-(smooth * log_p).sum()), rel=1e-5)
    labels = make_target("multi_label", ["a", "b"], label_smoothing=0.2)
    expected = F.binary_cross_entropy_with_logits(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(labels.loss(torch.tensor([[1.0, -2.0]]), torch.tensor([0])), expected)


# Fitted to the training split


def test_balanced_classes_weigh_the_same():
    values = ["a"] * 6 + ["b"] * 3 + ["c"] + [""] * 2
    target = make_target("categorical", values, class_weights="balanced").fitted_to(np.arange(12))
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=np.array(values[:10]))
    np.testing.assert_allclose(target.class_weights, expected, rtol=1e-6)


def test_balanced_shares_and_labels():
    soft = make_target("soft_distribution", np.array([[0.9, 0.1], [0.7, 0.3]] * 5), class_weights="balanced")
    np.testing.assert_allclose(soft.fitted_to(np.arange(10)).class_weights, [1 / 1.6, 1 / 0.4], rtol=1e-5)
    labels = make_target("multi_label", ["a", "a", "a;b", "[]"], class_weights="balanced")
    np.testing.assert_allclose(labels.fitted_to(np.arange(4)).class_weights, [1 / 3, 3], rtol=1e-6)


@pytest.mark.parametrize("kind", ["categorical", "multi_label", "soft_distribution"])
def test_class_weights_are_of_the_training_rows(kind):
    target = make_target(kind, class_weights="balanced")
    assert target.class_weights is None
    assert not torch.equal(target.fitted_to(SIX).class_weights, target.fitted_to(SIX[:4]).class_weights)
    assert make_target(kind).fitted_to(SIX).class_weights is None


@pytest.mark.parametrize("kind", ["categorical", "multi_label", "soft_distribution"])
def test_what_the_training_split_never_or_always_shows_has_a_usable_weight(kind):
    values = {
        "categorical": ["a", "b", "a", "c"],
        "multi_label": ["a", "a;b", "a", "c"],
        "soft_distribution": np.array([[1.0, 0, 0], [0.5, 0.5, 0], [1, 0, 0], [0, 0, 1]]),
    }[kind]
    weights = make_target(kind, values, class_weights="balanced").fitted_to(np.arange(3)).class_weights
    assert weights.isfinite().all() and weights.min() > 0, "a class that weighs nothing is never learned"


def test_class_weights_by_name():
    target = make_target("categorical", class_weights={"c": 3.0, "a": 0.5}).fitted_to(SIX)
    assert target.class_weights.tolist() == [0.5, 1.0, 3.0]
    with pytest.raises(ConfigError, match="class_weights names 'd', which is no class"):
        make_target("categorical", class_weights={"d": 3.0}).fitted_to(SIX)


def test_a_class_weight_scales_its_rows():
    logits = torch.tensor([[1.0, -1.0], [0.5, 0.2]])
    target = make_target("categorical", ["a", "b"], class_weights={"a": 3.0}).fitted_to(np.arange(2))
    each = F.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    assert target.loss(logits, torch.arange(2)) == pytest.approx(float((3 * each[0] + each[1]) / 4), rel=1e-6)


def test_regression_is_standardized_and_back():
    target = make_target("regression").fitted_to(SIX)
    known = target.truth[target.known]
    assert (target.mean, target.scale) == pytest.approx((4.0, float(np.std([1, 2, 4, 9]))))
    np.testing.assert_allclose(target.predict((known - target.mean) / target.scale), known, rtol=1e-6)
    assert target.loss(torch.zeros(6, 1), torch.arange(6)) == pytest.approx(1, rel=1e-6)
    assert target.predict(torch.zeros(1, 1)).item() == pytest.approx(4)


def test_standardization_is_of_the_training_rows():
    target = make_target("regression").fitted_to(np.array([0, 1, 2]))
    assert (target.mean, target.scale) == pytest.approx((1.5, 0.5))


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1])
def test_a_constant_number_stays_finite(value):
    target = make_target("regression", np.full(3, value)).fitted_to(np.arange(3))
    logits = torch.zeros(3, 1, requires_grad=True)
    target.loss(logits, torch.arange(3)).backward()
    assert logits.grad.isfinite().all() and target.predict(torch.zeros(1, 1)).item() == pytest.approx(value)


# Predictions


@pytest.mark.parametrize("kind", ["categorical", "soft_distribution"])
def test_probabilities_sum_to_one(kind):
    target = make_target(kind)
    prediction = target.predict(torch.cat([logits_for(target).detach(), 1e4 * logits_for(target).detach()]))
    assert prediction.dtype == np.float64 and prediction.shape == (12, target.n_outputs) and prediction.min() >= 0
    np.testing.assert_allclose(prediction.sum(axis=1), 1, rtol=1e-12)


def test_labels_have_probabilities_of_their_own():
    target = make_target("multi_label")
    np.testing.assert_allclose(
        target.predict(torch.tensor([[0.0, 0.0], [100.0, -100.0]])), [[0.5, 0.5], [1, 0]], atol=1e-9
    )


# Mistakes


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        ("soft_distribution", np.array([[0.5, -0.5], [1, -1], [1, 0]]), "Target y: 2 rows have negative shares"),
        ("soft_distribution", np.array([0.5, 1.0]), "Target y: a soft distribution needs a list column"),
        ("soft_distribution", ["a", "b"], "Target y: a soft distribution needs a list column"),
        ("categorical", np.ones((3, 2)), "Target y: y holds lists; a categorical target needs one value each"),
        ("multi_label", np.array([1.0, 2.0]), "Target y: y holds numbers; a multi-label target needs texts or lists"),
        ("regression", ["a", "b"], "Target y: its column holds no plain numbers"),
        ("regression", np.ones((3, 2)), "Target y: its column holds no plain numbers"),
    ],
)
def test_a_column_that_does_not_fit_its_kind(kind, values, match):
    with pytest.raises(ConfigError, match=match):
        make_target(kind, values)


def test_one_class_is_nothing_to_learn():
    target = make_target("categorical", ["a", "a", "", "b"])
    with pytest.raises(ConfigError, match=r"one class only \('a'\)"):
        target.fitted_to(np.arange(3))
    assert target.fitted_to(np.arange(4)).classes == ["a", "b"]


def test_no_label_among_any_segments_is_nothing_to_learn():
    """Every cell says "none of them": there is no output to train."""
    with pytest.raises(ConfigError, match="y"):
        make_target("multi_label", ["[]", "[]", ""]).fitted_to(np.arange(3))


@EACH_KIND
def test_a_training_split_without_the_label(kind):
    with pytest.raises(ConfigError, match="Target y: no segment of the training split has this label"):
        make_target(kind).fitted_to(np.array([2, 5]))


# Which label, and which kind

INFERRED = [
    (texts("a", "b", ""), "categorical"),
    (texts("a", '["a", "b"]'), "multi_label"),
    (texts("a;b", "a"), "categorical"),  # a separator alone is no proof
    (np.array([1.0, 2.0, NAN]), "categorical"),
    (np.arange(20.0), "categorical"),
    (np.arange(21.0), "regression"),
    (np.array([0.5, 2.0, NAN]), "regression"),
    (np.array([[0.2, 0.8], [NAN, NAN]]), "soft_distribution"),
    (np.array([[1.0, 0.0], [0.0, 1.0]]), "soft_distribution"),  # one-hot: shares
    (np.array([[1.0, 1.0], [0.0, 0.0]]), "multi_label"),
    (np.array([[1.0, 1.0], [NAN, NAN]]), "multi_label"),
    (np.array([[20.0, 80.0]]), "soft_distribution"),
]


@pytest.mark.parametrize(("values", "kind"), INFERRED)
def test_kinds_are_inferred(values, kind):
    assert infer_kind(values) == kind


def test_the_only_label_is_the_target():
    lyrics = texts(*(f"line {i}" for i in range(12)))
    labels = {"comment": lyrics, "mood": texts(*"ab" * 6), "constant": np.ones(12), "empty": np.full(12, NAN)}
    (target,) = resolve_targets([], labels)
    assert (target.name, target.column, target.kind) == ("mood", "mood", "categorical")


def test_an_unclear_choice_lists_the_candidates():
    labels = {"mood": texts(*"ab" * 6), "tempo": np.arange(12.0), "same": texts(*"a" * 12)}
    with pytest.raises(ConfigError, match=r"The store has mood, tempo\.\nName one or several: --target"):
        resolve_targets([], labels)
    with pytest.raises(ConfigError, match="The store has none"):
        resolve_targets([], {"same": labels["same"]})


def test_what_is_configured_is_kept():
    labels = {"mood": texts(*"ab" * 6), "tempo": np.arange(12.0), "soft": np.full((12, 2), 0.5)}
    wanted = [
        TargetConfig(name="tempo", kind="regression", loss_weight=2.0),
        TargetConfig(name="feeling", column="mood"),
        TargetConfig(name="pair", columns=["tempo", "tempo"]),
        TargetConfig(name="soft"),
    ]
    found = resolve_targets(wanted, labels)
    assert [(t.name, t.column, t.kind) for t in found] == [
        ("tempo", "tempo", "regression"),
        ("feeling", "mood", "categorical"),
        ("pair", None, "soft_distribution"),
        ("soft", "soft", "soft_distribution"),
    ]
    assert found[0].loss_weight == 2.0 and wanted[1].kind is None


@pytest.mark.parametrize(
    "target",
    [TargetConfig(name="modo"), TargetConfig(name="x", column="modo"), TargetConfig(name="x", columns=["modo"])],
)
def test_an_unknown_column_lists_the_known(target):
    with pytest.raises(ConfigError, match=f"Target {target.name}: there is no label 'modo'; known: mood, tempo"):
        resolve_targets([target], {"mood": texts("a", "b"), "tempo": np.arange(2.0)})


def test_two_targets_need_two_names():
    labels = {"mood": texts("a", "b"), "tempo": np.arange(2.0)}
    with pytest.raises(ConfigError, match="Two targets share a name: mood, mood"):
        resolve_targets([TargetConfig(name="mood"), TargetConfig(name="mood", column="tempo")], labels)


# Strata of a split


def test_strata_of_texts_and_few_numbers_are_the_values():
    assert strata(texts("b", "", "a")).tolist() == ["b", "", "a"]
    few = strata(np.array([1.0, NAN, 2.0, 1.0])).tolist()
    assert few[1] == "" and few[0] == few[3] and len(set(few)) == 3


def test_strata_of_many_numbers_are_equal_bins():
    values = np.random.default_rng(0).lognormal(size=101)
    values[7] = NAN
    found = strata(values)
    assert found.dtype == STRING and found[7] == ""
    names, counts = np.unique(np.delete(found, 7), return_counts=True)
    assert names.tolist() == ["0", "1", "2", "3", "4"] and counts.min() == counts.max() == 20
    largest = {name: np.nanmax(values[found == name]) for name in names.tolist()}
    assert sorted(largest, key=lambda name: largest[name]) == names.tolist()


def test_strata_of_lists_are_their_largest_entry():
    assert strata(np.array([[0.1, 0.9], [0.7, 0.3], [NAN, 1.0], [NAN, NAN]])).tolist() == ["1", "0", "", ""]
