"""How a model is shown some segments, and what it then scores.

A view is what is predicted under one mask, or under several, each with its chance. Metrics are sums over segments
(`fusion.metrics`), so the expectation over masks is taken exactly: no mask is drawn, and no number depends on a seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.calibration import calibration_metrics
from fusion.data import StoredSegments
from fusion.evaluate import pattern_rows
from fusion.load_run import LoadedRun
from fusion.metrics import METRICS, GroupBootstrap, Metric, headline_metric, interval
from fusion.targets import Target

Rates = Mapping[str, float]  # slot -> chance that it is there
Chances = Mapping[tuple[bool, ...], float]  # which of some slots are shown -> chance; they add up to 1


@dataclass(frozen=True)
class View:
    """`outputs[i][target]`: float64 (n, K), what is predicted under mask i, which has the chance `shares[i]`."""

    rows: np.ndarray
    shares: list[float]
    outputs: list[list[np.ndarray]]


class Viewer:
    """Shows a run's model some segments, as they are or with slots hidden."""

    def __init__(self, run: LoadedRun, data: StoredSegments):
        self._run = run
        self._data = data

    def show(self, rows: np.ndarray, mask: Tensor) -> View:
        """rows: int64 (n,). mask: bool (n, M), the slots that are shown."""
        return View(rows, [1.0], [self._run.predict(self._data, rows, mask)])

    def pattern(self, rows: np.ndarray, pattern: Sequence[str]) -> tuple[View, View, View]:
        """Of rows (n,) those that have these slots, shown nothing else; the same as they are; and those that have
        nothing else.
        """
        kept, mask = pattern_rows(self._data, rows, pattern)
        present = self._data.present[kept]
        exactly = (present == mask).all(dim=1)
        return self.show(kept, mask), self.show(kept, present), self.show(kept[exactly.numpy()], present[exactly])

    def deployment(self, rows: np.ndarray, rates: Rates, in_training: Chances) -> tuple[View, View]:
        """Of rows (n,) those that have the slots of `rates`, with these there at the rates; and there as in training.

        in_training: chances of the same slots.
        """
        slots = list(rates)
        had, _ = pattern_rows(self._data, rows, slots)
        return (
            self._mixed(had, slots, independent(rates)),
            self._mixed(had, slots, in_training),
        )

    def _mixed(self, rows: np.ndarray, slots: Sequence[str], chances: Chances) -> View:
        columns = [self._data.slots.index(slot) for slot in slots]
        outputs = []
        for shown in chances:
            mask = self._data.present[rows]
            mask[:, columns] = torch.tensor(shown)
            outputs.append(self._run.predict(self._data, rows, mask))
        return View(rows, list(chances.values()), outputs)


def independent(rates: Rates) -> Chances:
    """Every combination that can happen, in the order of the slots."""
    combinations = product((True, False), repeat=len(rates))
    chances = {
        shown: float(np.prod([rate if here else 1 - rate for rate, here in zip(rates.values(), shown, strict=True)]))
        for shown in combinations
    }
    return {shown: chance for shown, chance in chances.items() if chance > 0}


class Scorer:
    """Scores of one target. Segments without the label do not count."""

    def __init__(self, index: int, target: Target, groups: np.ndarray, resamples: int):
        self.index = index
        self.target = target
        self.headline = headline_metric(target.kind, target.metric)
        self.metrics = [*METRICS[target.kind], *calibration_metrics(target.kind, target.n_outputs)]
        self._groups = groups
        self._resamples = resamples

    def scores(self, view: View, further: Sequence[Metric] = ()) -> Scores:
        """What a view comes to on the rows that have a label, with intervals."""
        truth, known = self.truth(view.rows)
        outputs = [output[self.index][known] for output in view.outputs]
        bootstrap = GroupBootstrap(self._groups[view.rows[known]], self._resamples)
        metrics = [*self.metrics, *further]
        return Scores(self.headline, metrics, truth, list(zip(view.shares, outputs, strict=True)), bootstrap)

    def truth(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows with a label; and which they are, bool (n,)."""
        known = self.target.known.numpy()[rows]
        return self.target.truth.numpy()[rows[known]], known


class Scores:
    """Every metric of one view: on the segments as they are, and in every resample of their groups, (R,)."""

    def __init__(
        self,
        headline: Metric,
        metrics: Sequence[Metric],
        truth: np.ndarray,
        outputs: Sequence[tuple[float, np.ndarray]],
        bootstrap: GroupBootstrap,
    ):
        self._headline = headline
        self._n, self._n_groups = len(truth), bootstrap.n_groups
        self._names = [metric.name for metric in metrics]
        self._values: dict[str, float] = dict.fromkeys(self._names, np.nan)
        self._resampled: dict[str, np.ndarray] = {name: np.full(1, np.nan) for name in self._names}
        if self._n == 0:
            return
        statistics = [
            reduce(np.add, (share * metric.statistics(truth, output) for share, output in outputs))
            for metric in metrics
        ]
        for metric, of_segments in zip(metrics, statistics, strict=True):
            self._values[metric.name] = float(metric.value(of_segments.sum(axis=0)))
        if self._n_groups < 2:
            return  # nothing varies between resamples of one group; that is not certainty
        ends = np.cumsum([of_segments.shape[1] for of_segments in statistics])[:-1]
        sums = np.split(bootstrap.sums(np.concatenate(statistics, axis=1)), ends, axis=1)
        for metric, of_resamples in zip(metrics, sums, strict=True):
            self._resampled[metric.name] = metric.value(of_resamples)

    def facts(self) -> dict[str, Any]:
        """As a score in `metrics.json`, without `per_seed`."""
        by_name = self.by_name()
        headline = by_name.pop(self._headline.name)
        return {
            "metric": self._headline.name,
            **headline,
            "n": self._n,
            "n_groups": self._n_groups,
            "others": by_name,
        }

    def by_name(self) -> dict[str, dict[str, Any]]:
        """Metric to value and interval."""
        return {
            name: {"value": _number(self._values[name]), "ci95": interval(self._resampled[name])}
            for name in self._names
        }

    def minus(self, other: Scores) -> dict[str, dict[str, Any]]:
        """Of every metric the `difference` to other scores of the same segments, and its paired `ci95`."""
        return {
            name: {
                "difference": _number(self._values[name] - other._values[name]),
                "ci95": interval(self._resampled[name] - other._resampled[name]),
            }
            for name in self._names
        }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
