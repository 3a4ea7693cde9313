"""From predictions to the numbers of `metrics.json`: every target, part, baseline and presence pattern, with intervals.

Predictions of several splits (folds) are pooled; a value is the mean over seeds; an interval resamples groups. Models
are compared on the same resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion.data import StoredSegments
from fusion.metrics import METRICS, GroupBootstrap, Metric, headline_metric, interval, json_number, score
from fusion.targets import Target

FUSION = "fusion"


@dataclass
class Predictions:
    """What a model said of some rows: by seed, then split, then target, float (n, K)."""

    rows: dict[int, np.ndarray] = field(default_factory=dict)  # split index -> row numbers (n,)
    outputs: dict[int, dict[int, list[np.ndarray]]] = field(default_factory=dict)  # seed -> split index -> by target

    def add(self, seed: int, split: int, rows: np.ndarray, outputs: list[np.ndarray]) -> None:
        """Take in one training. rows: int64 (n,), of the store. outputs: of each target (n, K)."""
        self.rows[split] = rows
        self.outputs.setdefault(seed, {})[split] = outputs

    def replace(self, split: int, target: int, output: np.ndarray) -> None:
        """Another model's word on one target of one split, (n, K), for every seed."""
        for by_split in self.outputs.values():
            by_split[split][target] = output

    def pooled_rows(self) -> np.ndarray:
        """int64 (n,), split after split."""
        return np.concatenate([self.rows[split] for split in sorted(self.rows)])

    def pooled(self, target: int) -> list[np.ndarray]:
        """For each seed the predictions (n, K), in the order of `pooled_rows`."""
        return [
            np.concatenate([by_split[split][target] for split in sorted(self.rows)])
            for by_split in self.outputs.values()
        ]


Results = Mapping[str, Mapping[str, Predictions]]  # model -> part -> predictions


def patterns(slots: Sequence[str]) -> list[tuple[str, ...]]:
    """Every non-empty set of slots, smallest first."""
    return [chosen for size in range(1, len(slots) + 1) for chosen in combinations(slots, size)]


def pattern_rows(data: StoredSegments, rows: np.ndarray, pattern: Sequence[str]) -> tuple[np.ndarray, Tensor]:
    """The rows that have all slots of a pattern, and the mask bool (n, M) that shows just those."""
    columns = [data.slots.index(slot) for slot in pattern]
    has_all = data.present[torch.from_numpy(rows)][:, columns].all(dim=1).numpy()
    kept = rows[has_all]
    shown = torch.zeros(len(kept), len(data.slots), dtype=torch.bool)
    shown[:, columns] = True
    return kept, shown


def evaluate(data: StoredSegments, targets: Sequence[Target], results: Results, resamples: int) -> dict[str, Any]:
    """The `targets` part of `metrics.json`."""
    return {
        target.name: _evaluate_target(data, index, target, results, resamples) for index, target in enumerate(targets)
    }


def _evaluate_target(
    data: StoredSegments, index: int, target: Target, results: Results, resamples: int
) -> dict[str, Any]:
    metric = headline_metric(target.kind, target.metric)
    score_part = _PartScorer(data, index, target, metric, resamples)
    fused = results[FUSION]
    parts = [part for part in ("train", "val", "test") if part in fused]
    baselines = [name for name in results if name != FUSION]
    shown = {part.removeprefix("pattern/"): part for part in fused if part.startswith("pattern/")}
    return {
        "kind": target.kind,
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "classes": target.classes,
        "splits": {part: score_part(fused[part], every_metric=True) for part in parts},
        "baselines": {
            name: {part: score_part(results[name][part], every_metric=part == "test") for part in results[name]}
            for name in baselines
        },
        "presence_patterns": {
            name: {**score_part(fused[part]), "n_exactly": _n_exactly(data, fused, name)}
            for name, part in shown.items()
        },
        "comparisons": {name: score_part.compare(fused["test"], results[name]["test"]) for name in baselines},
        "above_majority": {
            name: score_part.compare(results[name]["test"], results["majority"]["test"])
            for name in baselines
            if name != "majority"
        },
    }


class _PartScorer:
    """Scores of one target. Segments without the label do not count."""

    def __init__(self, data: StoredSegments, index: int, target: Target, metric: Metric, resamples: int):
        self._data = data
        self._index = index
        self._target = target
        self._metric = metric
        self._resamples = resamples

    def __call__(self, predictions: Predictions, every_metric: bool = False) -> dict[str, Any]:
        """`metric`, `value`, `ci95`, `n`, `n_groups`, `per_seed`; and `others` where asked for."""
        truth, outputs, bootstrap = self._known(predictions)
        result = self._score(self._metric, truth, outputs, bootstrap)
        if every_metric:
            rest = [metric for metric in METRICS[self._target.kind] if metric.name != self._metric.name]
            others = {metric.name: self._score(metric, truth, outputs, bootstrap) for metric in rest}
            result["others"] = {
                name: {"value": other["value"], "ci95": other["ci95"]} for name, other in others.items()
            }
        return result

    def compare(self, ours: Predictions, theirs: Predictions) -> dict[str, Any]:
        """Ours minus theirs on the same segments and resamples; `better` is `None` where the interval holds zero."""
        truth, our_outputs, bootstrap = self._known(ours)
        _, their_outputs, _ = self._known(theirs)
        metric = self._metric
        if len(truth) == 0:
            return {"difference": None, "ci95": None, "better": None}
        value = np.mean([score(metric, truth, p) for p in our_outputs])
        value -= np.mean([score(metric, truth, p) for p in their_outputs])
        ci95 = interval(bootstrap.values(metric, truth, our_outputs) - bootstrap.values(metric, truth, their_outputs))
        return {"difference": json_number(value), "ci95": ci95, "better": metric.is_better(ci95)}

    def _known(self, predictions: Predictions) -> tuple[np.ndarray, list[np.ndarray], GroupBootstrap]:
        rows = predictions.pooled_rows()
        known = self._target.known.numpy()[rows]
        truth = self._target.truth.numpy()[rows[known]]
        outputs = [output[known] for output in predictions.pooled(self._index)]
        return truth, outputs, GroupBootstrap(self._data.groups[rows[known]], self._resamples)

    def _score(
        self, metric: Metric, truth: np.ndarray, outputs: list[np.ndarray], bootstrap: GroupBootstrap
    ) -> dict[str, Any]:
        facts = {"metric": metric.name, "n": len(truth), "n_groups": bootstrap.n_groups}
        if len(truth) == 0:
            return {**facts, "value": None, "ci95": None, "per_seed": []}
        per_seed = [score(metric, truth, output) for output in outputs]
        ci95 = interval(bootstrap.values(metric, truth, outputs))
        return {
            **facts,
            "value": json_number(np.mean(per_seed)),
            "ci95": ci95,
            "per_seed": [json_number(v) for v in per_seed],
        }


def _n_exactly(data: StoredSegments, fused: Mapping[str, Predictions], pattern: str) -> int:
    """How many test segments have just these slots by nature."""
    wanted = torch.tensor([slot in pattern.split("+") for slot in data.slots])
    rows = torch.from_numpy(fused["test"].pooled_rows())
    return int((data.present[rows] == wanted).all(dim=1).sum())
