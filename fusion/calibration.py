"""Calibration: whether what is said with 70% comes true in 70% of the cases.

A prediction makes J statements about a segment: `stated` (n, J) is what each says, `happened` (n, J) what came of it.

categorical        J = 1  probability of the predicted class; 1 where it is the true one, else 0
soft_distribution  J = 1  share of the predicted mode; the share that the truth gives it
multi_label        J = K  probability of each label; 1 where the segment has it, else 0

Expected calibration error (ECE): statements are put in bins by what they state; |mean happened − mean stated| is
averaged over bins by their size, then over the J statements. Bins are of equal width, or hold equally many; they are
closed above. Sources: Naeini, Cooper and Hauskrecht 2015, "Obtaining well calibrated probabilities using Bayesian
binning"; Guo et al. 2017, "On calibration of modern neural networks", sections 2 (ECE) and 4.2 (temperature scaling);
Nixon et al. 2019, "Measuring calibration in deep learning" (bins of equal mass).

All but temperatures are `fusion.metrics.Metric`s, sums over segments, so that groups can be resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

from featurize.config import TargetKind
from fusion.metrics import Metric, Statistics

N_BINS = 15  # Guo et al. 2017, section 5
TEMPERATURES = (0.01, 100.0)  # what is tried; a fit that ends at a limit has found none
CALIBRATED_DRAWS = 200

Bins = np.ndarray  # float64 (J, n_bins - 1): the edges between the bins of each statement, ascending


def statements(kind: TargetKind, truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """stated and happened, float64 (n, J). Raises `ValueError` for regression, which states no probability."""
    if kind == "multi_label":
        return prediction.astype(np.float64), truth.astype(np.float64)
    mode = prediction.argmax(axis=1)
    stated = prediction.max(axis=1, keepdims=True)
    if kind == "categorical":
        return stated, (mode == truth)[:, None].astype(np.float64)
    if kind == "soft_distribution":
        return stated, np.take_along_axis(truth.astype(np.float64), mode[:, None], axis=1)
    raise ValueError(f"a {kind} target states no probability")


def equal_width(n_statements: int, n_bins: int = N_BINS) -> Bins:
    """Inner bounds of bins of one width in [0, 1]: (n_statements, n_bins - 1)."""
    return np.tile(np.linspace(0, 1, n_bins + 1)[1:-1], (n_statements, 1))


def equal_mass(stated: np.ndarray, n_bins: int = N_BINS) -> Bins:
    """Bins that hold as equally many of `stated` (n, J), n > 0, as ties allow; some are empty where n < n_bins."""
    n = len(stated)
    last_of_bin = -(-n * np.arange(1, n_bins) // n_bins) - 1  # rounded up, in whole numbers
    return np.ascontiguousarray(np.sort(stated, axis=0)[last_of_bin].T)


def bin_numbers(stated: np.ndarray, bins: Bins) -> np.ndarray:
    """int (n, J)."""
    return np.stack([np.searchsorted(edges, column) for edges, column in zip(bins, stated.T, strict=True)], axis=1)


def ece(kind: TargetKind, bins: Bins, name: str = "ece") -> Metric:
    """The expected calibration error over given bins."""
    return Metric(name, False, partial(_gaps_by_bin, kind, bins), partial(_mean_absolute_gap, len(bins)))


def describe(kind: TargetKind, classes: Sequence[str], truth: np.ndarray, prediction: np.ndarray) -> dict[str, Any]:
    """`reliability` where one statement is made of a segment, else `labels`; and `ece_if_calibrated` over either bins.

    truth: (N,) or (N, K). prediction: (N, K), as `Target.predict` gives it.

    Nothing where there are no segments, nor of regression; no `ece_if_calibrated` of shares: they are no chances.
    """
    if kind == "regression" or len(truth) == 0:
        return {}
    stated, happened = statements(kind, truth, prediction)
    bins = {"equal_width": equal_width(stated.shape[1]), "equal_mass": equal_mass(stated)}
    found: dict[str, Any] = {}
    if kind == "multi_label":
        found["labels"] = {
            name: {
                "stated": float(stated[:, column].mean()),
                "happened": float(happened[:, column].mean()),
                "brier": float(((stated - happened)[:, column] ** 2).mean()),
                **{
                    f"ece_{how}": _ece_of_one(stated[:, column], happened[:, column], b[column])
                    for how, b in bins.items()
                },
            }
            for column, name in enumerate(classes)
        }
    else:
        found["reliability"] = {how: reliability(stated[:, 0], happened[:, 0], b[0]) for how, b in bins.items()}
    if kind != "soft_distribution":
        found["ece_if_calibrated"] = {how: ece_if_calibrated(stated, b) for how, b in bins.items()}
    return found


def reliability(stated: np.ndarray, happened: np.ndarray, edges: np.ndarray) -> list[dict[str, float]]:
    """The reliability table of one statement, (n,) each: `n`, mean `confidence`, mean `accuracy` of each filled bin."""
    number = np.searchsorted(edges, stated)
    return [
        {"n": int(here.sum()), "confidence": float(stated[here].mean()), "accuracy": float(happened[here].mean())}
        for here in (number == b for b in np.unique(number))
    ]


def _ece_of_one(stated: np.ndarray, happened: np.ndarray, edges: np.ndarray) -> float:
    gaps = np.bincount(np.searchsorted(edges, stated), happened - stated)
    return float(np.abs(gaps).sum() / len(stated))


def ece_if_calibrated(stated: np.ndarray, bins: Bins, seed: int = 0) -> float:
    """The mean ECE were everything stated exactly true: chance alone makes it more than zero where segments are few.

    stated: (N, S), S statements on each segment.

    Outcomes are drawn independently, which they are less within a song. Source: Bröcker and Smith 2007, "Increasing the
    reliability of reliability diagrams", section 3.
    """
    generator = np.random.default_rng(seed)
    gaps = partial(_sum_by_bin, bin_numbers(stated, bins), bins.shape[1] + 1)
    drawn = [
        np.abs(gaps((generator.random(stated.shape) < stated) - stated)).sum() / stated.size
        for _ in range(CALIBRATED_DRAWS)
    ]
    return float(np.mean(drawn))


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The T for which softmax(logits / T) has the least log loss; at a limit of `TEMPERATURES` where none is least.

    logits: (n, K). truth: (n, K) shares, one-hot for classes. The log loss is convex in 1 / T, so its slope there has
    one root.
    """
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)  # softmax is the same, and rows that are all alike are exactly zero

    def slope(log_inverse: float) -> float:
        expected = softmax(logits * np.exp(log_inverse), axis=1)
        return float(((expected - truth) * logits).sum(axis=1).mean())

    coldest, hottest = (-float(np.log(limit)) for limit in TEMPERATURES)
    if slope(coldest) <= 0 <= slope(hottest):  # every temperature is as good
        return 1.0
    if slope(coldest) <= 0:
        return TEMPERATURES[0]
    if slope(hottest) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(-float(brentq(slope, hottest, coldest))))


def _confidence(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """How sure it is, right or wrong: the probability or share of the predicted mode."""
    return np.stack([prediction.max(axis=1), np.ones(len(prediction))], axis=1)


def _brier_of_classes(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """Squared distance to the one-hot truth, 0 to 2 (Brier 1950)."""
    squares = (prediction - np.eye(prediction.shape[1])[truth]) ** 2
    return np.stack([squares.sum(axis=1), np.ones(len(truth))], axis=1)


def _brier_of_labels(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """Squared difference, 0 to 1, mean over the labels."""
    return np.stack([((prediction - truth) ** 2).mean(axis=1), np.ones(len(truth))], axis=1)


def _mean(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _gaps_by_bin(kind: TargetKind, bins: Bins, truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """happened − stated in the column of its statement and bin, and a count: (n, J·n_bins + 1)."""
    stated, happened = statements(kind, truth, prediction)
    n_bins = bins.shape[1] + 1
    columns = bin_numbers(stated, bins) + n_bins * np.arange(len(bins))
    statistics = np.zeros((len(stated), len(bins) * n_bins + 1))
    np.put_along_axis(statistics, columns, happened - stated, axis=1)
    statistics[:, -1] = 1
    return statistics


def _mean_absolute_gap(n_statements: int, sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(sums[..., :-1]).sum(axis=-1) / sums[..., -1] / n_statements)


def _sum_by_bin(numbers: np.ndarray, n_bins: int, values: np.ndarray) -> np.ndarray:
    """values (n, J) summed within bins: (J · n_bins,)."""
    columns = numbers + n_bins * np.arange(numbers.shape[1])
    return np.bincount(columns.ravel(), values.ravel(), numbers.shape[1] * n_bins)


def _line(truth: np.ndarray, prediction: np.ndarray) -> Statistics:
    """Count, offset, and sums of x, y, x², xy, with truth y and prediction x taken from one offset."""
    offset = float(truth[0, 0]) if len(truth) else 0.0  # large values would otherwise swallow how they vary
    x, y = prediction[:, 0].astype(np.float64) - offset, truth[:, 0].astype(np.float64) - offset
    return np.stack([np.ones(len(y)), np.full(len(y), offset), x, y, x**2, x * y], axis=1)


def _slope(sums: np.ndarray) -> np.ndarray:
    n, _, x, y, x2, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = x2 - x**2 / n
        return np.asarray(np.where(variance > 1e-12 * x2, (xy - x * y / n) / variance, np.nan))


def _intercept(sums: np.ndarray) -> np.ndarray:
    n, offset, x, y, _, _ = np.moveaxis(sums, -1, 0)
    slope = _slope(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((y + offset) / n - slope * (x + offset) / n)


_CONFIDENCE = Metric("confidence", True, _confidence, _mean)
_LINE = [Metric("slope", True, _line, _slope), Metric("intercept", False, _line, _intercept)]


def calibration_metrics(kind: TargetKind, n_outputs: int) -> list[Metric]:
    """What is said of a target of this kind beside how good it is. confidence, slope and intercept are no scores.

    Of regression, the line of truth on prediction: slope 1 and intercept 0 where the prediction is neither too bold nor
    too timid. Whether intervals cover the truth cannot be said, since no variance is predicted.
    """
    if kind == "regression":
        return _LINE
    error = ece(kind, equal_width(n_outputs if kind == "multi_label" else 1))
    if kind == "soft_distribution":
        return [_CONFIDENCE, error]
    if kind == "multi_label":
        return [Metric("brier", False, _brier_of_labels, _mean), error]
    return [_CONFIDENCE, Metric("brier", False, _brier_of_classes, _mean), error]
