"""Metrics as sums over segments, so that resampling whole groups costs one matrix product.

Each metric maps every segment to a few statistics, and the sum of the statistics over any set of segments to its value.
A bootstrap draws groups with replacement, adds up their statistics, and takes the value. Source: Efron and Tibshirani
1993, "An introduction to the bootstrap", chapters 8 (clustered data) and 13 (percentile interval).

Conventions: truth and prediction are as `fusion.targets.Target` has them: class numbers (n,) and probabilities (n, K)
for categorical; (n, K) both otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurize.config import TargetKind
from featurize.errors import UnknownName

Statistics = np.ndarray  # float64 (n, S)
LEVEL = 0.95
EPSILON = 1e-12
RESAMPLES_AT_ONCE = 4_000_000  # weights held in memory at a time


@dataclass(frozen=True)
class Metric:
    """statistics(truth, prediction) -> (n, S); value(sums (…, S)) -> (…)."""

    name: str
    higher_is_better: bool
    statistics: Callable[[np.ndarray, np.ndarray], Statistics]
    value: Callable[[np.ndarray], np.ndarray]

    @property
    def sign(self) -> int:
        """Times a value, it is the higher the better."""
        return 1 if self.higher_is_better else -1

    def is_better(self, difference: list[float] | None) -> bool | None:
        """Whether the first of two is, by the interval of their difference; `None` where it holds zero, or is none."""
        if difference is None or difference[0] <= 0 <= difference[1]:
            return None
        return (difference[0] > 0) == self.higher_is_better


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Statistics (numerator, count)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _mean_of(per_segment: np.ndarray) -> Statistics:
    return np.stack([per_segment, np.ones(len(per_segment))], axis=1).astype(np.float64)


def _correct(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    return _mean_of(prediction.argmax(axis=1) == truth)


def _negative_log_likelihood(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    return _mean_of(-np.log(np.maximum(prediction[np.arange(len(truth)), truth], EPSILON)))


def _confusion(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """One-hot of (true, predicted), flattened: S = K²."""
    n_classes = prediction.shape[1]
    statistics = np.zeros((len(truth), n_classes * n_classes))
    statistics[np.arange(len(truth)), truth * n_classes + prediction.argmax(axis=1)] = 1
    return statistics


def _square(sums: np.ndarray) -> np.ndarray:
    n_classes = round(float(sums.shape[-1] ** 0.5))
    return sums.reshape(*sums.shape[:-1], n_classes, n_classes)


def _macro_f1_of_confusion(sums: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur, in truth or prediction."""
    matrix = _square(sums)
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    return _mean_f1(hit, matrix.sum(axis=-1) + matrix.sum(axis=-2))


def _balanced_accuracy(sums: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that occur in truth."""
    matrix = _square(sums)
    occurs = matrix.sum(axis=-1)
    recall = np.diagonal(matrix, axis1=-2, axis2=-1) / np.maximum(occurs, 1)
    return np.asarray(recall.sum(axis=-1) / np.maximum((occurs > 0).sum(axis=-1), 1))


def _mean_f1(hit: np.ndarray, true_plus_predicted: np.ndarray) -> np.ndarray:
    occurs = true_plus_predicted > 0
    f1 = np.where(occurs, 2 * hit / np.maximum(true_plus_predicted, 1), 0)
    return np.asarray(f1.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1))


def _label_hits(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """For each label: true positives, then true plus predicted. S = 2K."""
    predicted = prediction >= 0.5
    return np.concatenate([predicted * truth, truth + predicted], axis=1).astype(np.float64)


def _macro_f1_of_labels(sums: np.ndarray) -> np.ndarray:
    hit, total = np.split(sums, 2, axis=-1)
    return _mean_f1(hit, total)


def _micro_f1_of_labels(sums: np.ndarray) -> np.ndarray:
    hit, total = np.split(sums, 2, axis=-1)
    return np.asarray(2 * hit.sum(axis=-1) / np.maximum(total.sum(axis=-1), 1))


def _squares(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """Count, sum, sum of squares, sum of squared errors."""
    y, error = truth[:, 0].astype(np.float64), (prediction - truth)[:, 0].astype(np.float64)
    y = y - y[:1]  # the variance is the same, and a large offset no longer swallows it
    return np.stack([np.ones(len(y)), y, y**2, error**2], axis=1)


def _r2(sums: np.ndarray) -> np.ndarray:
    n, y, y2, error = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = y2 - y**2 / n
        return np.asarray(np.where(variance > EPSILON * y2, 1 - error / variance, np.nan))


def _rmse(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(sums[..., 3] / sums[..., 0]))


def _absolute_error(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    return _mean_of(np.abs(prediction - truth)[:, 0])


def _overlap(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """Histogram intersection: 1 minus the total variation distance."""
    return _mean_of(np.minimum(truth, prediction).sum(axis=1))


def _divergence(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """Kullback-Leibler divergence from truth to prediction, in nats."""
    safe = np.maximum(truth, EPSILON)
    return _mean_of((truth * (np.log(safe) - np.log(np.maximum(prediction, EPSILON)))).sum(axis=1))


def _same_mode(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    return _mean_of(truth.argmax(axis=1) == prediction.argmax(axis=1))


_CATEGORICAL = [
    Metric("accuracy", True, _correct, _ratio),
    Metric("macro_f1", True, _confusion, _macro_f1_of_confusion),
    Metric("balanced_accuracy", True, _confusion, _balanced_accuracy),
    Metric("log_loss", False, _negative_log_likelihood, _ratio),
]
_MULTI_LABEL = [
    Metric("macro_f1", True, _label_hits, _macro_f1_of_labels),
    Metric("micro_f1", True, _label_hits, _micro_f1_of_labels),
]
_REGRESSION = [
    Metric("r2", True, _squares, _r2),
    Metric("rmse", False, _squares, _rmse),
    Metric("mae", False, _absolute_error, _ratio),
]
_SOFT_DISTRIBUTION = [
    Metric("overlap", True, _overlap, _ratio),
    Metric("kl", False, _divergence, _ratio),
    Metric("same_mode", True, _same_mode, _ratio),
]
METRICS: dict[TargetKind, list[Metric]] = {  # the first of each kind is its headline
    "categorical": _CATEGORICAL,
    "multi_label": _MULTI_LABEL,
    "regression": _REGRESSION,
    "soft_distribution": _SOFT_DISTRIBUTION,
}


def headline_metric(kind: TargetKind, name: str | None) -> Metric:
    """The metric called `name`, or the kind's own. Raises `UnknownName`."""
    known = {metric.name: metric for metric in METRICS[kind]}
    if name is not None and name not in known:
        raise UnknownName(f"metric for a {kind} target", name, known)
    return known[name] if name else METRICS[kind][0]


class GroupBootstrap:
    """The same resamples of groups for every model that is compared, so that differences are paired."""

    def __init__(self, groups: np.ndarray, resamples: int, seed: int = 0):
        """groups: text (n,), the group of every segment that is scored."""
        names, self._group_of = np.unique(groups, return_inverse=True)
        self.n_groups = len(names)
        self._resamples = resamples
        self._seed = seed

    def sums(self, statistics: Statistics) -> np.ndarray:
        """Statistics (n, S) summed within each resample: (R, S)."""
        by_group = np.zeros((self.n_groups, statistics.shape[1]))
        np.add.at(by_group, self._group_of, statistics)
        generator = np.random.default_rng(self._seed)
        chance = np.full(self.n_groups, 1 / max(self.n_groups, 1))
        parts = []
        step = max(1, RESAMPLES_AT_ONCE // max(self.n_groups, 1))
        for start in range(0, self._resamples, step):
            draws = generator.multinomial(self.n_groups, chance, size=min(step, self._resamples - start))
            parts.append(draws @ by_group)
        return np.concatenate(parts)

    def values(self, metric: Metric, truth: np.ndarray, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """The metric in every resample, averaged over seeds: (R,); NaN where one group is all there is."""
        if self.n_groups < 2:
            return np.full(self._resamples, np.nan)
        by_seed = [metric.value(self.sums(metric.statistics(truth, p))) for p in predictions]
        return np.asarray(np.mean(by_seed, axis=0))


def score(metric: Metric, truth: np.ndarray, prediction: np.ndarray) -> float:
    """The metric on all segments. truth: (N,) or (N, K). prediction: (N, K)."""
    assert prediction.ndim == 2 and len(prediction) == len(truth), (prediction.shape, truth.shape)
    return float(metric.value(metric.statistics(truth, prediction).sum(axis=0)))


def interval(values: np.ndarray) -> list[float] | None:
    """The percentile interval at `LEVEL` of values (R,); `None` where it says nothing (one group, undefined)."""
    finite = values[np.isfinite(values)]
    if len(finite) < 0.9 * len(values) or len(finite) < 2:
        return None
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def json_number(value: Any) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
