"""What the cells of an ablation say, as tables: results, scores, paired comparisons, the Shapley value of each slot.

Conventions: test rows of all folds are pooled, and a value is the mean over seeds. A score is float64 (1 + R,): the
observed value, then its value in each of R resamples. Resamples are the same for all models, so that whatever is
computed of scores is computed of every resample too, and is paired. They draw groups with replacement, as in
`fusion.evaluate`; and seeds, since a fusion with other seeds would not be the same.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fusion.csv_cell import csv_cell
from fusion.evaluate import Predictions
from fusion.metrics import LEVEL, METRICS, GroupBootstrap, headline_metric, interval, json_number, score
from fusion.targets import Target

LINEAR, MASK_ONLY, MAJORITY = "logistic regression", "mask only", "majority"
TEXT, REAL, WHOLE = pa.string(), pa.float64(), pa.int64()
MODEL = {"target": TEXT, "metric": TEXT, "model": TEXT, "slots": TEXT}
CI95 = {"ci95_low": REAL, "ci95_high": REAL}
JOINT = {"joint_ci95_low": REAL, "joint_ci95_high": REAL, "verdict": TEXT}
TABLES = {
    "results": {**MODEL, "split": TEXT, "seed": WHOLE, "val": REAL, "test": REAL, "best_epoch": WHOLE, "seconds": REAL},
    "summary": {**MODEL, "val": REAL, "test": REAL, **CI95, "seed_deviation": REAL, "seconds": REAL},
    "comparisons": {**MODEL, "other_model": TEXT, "other_slots": TEXT, "difference": REAL, **CI95, **JOINT},
    "shapley": {"target": TEXT, "metric": TEXT, "model": TEXT, "slot": TEXT, "value": REAL, **CI95},
}

Score = np.ndarray
Rows = list[dict[str, Any]]


class Model(NamedTuple):
    """A fusion or a baseline on some slots, in slot order."""

    name: str
    slots: tuple[str, ...]

    @property
    def subset(self) -> str:
        """`text+audio` of its slots."""
        return "+".join(self.slots)


class Cell(NamedTuple):
    """One model on one fold with one seed; `None` where nothing is left to chance."""

    model: Model
    fold: int
    seed: int | None


@dataclass(frozen=True)
class Finished:
    """`outputs[part][target]`: float64 (n, K), of `val` and `test` rows of the fold. facts: `split`, `seconds`, …"""

    outputs: Mapping[str, Sequence[np.ndarray]]
    facts: Mapping[str, Any]


FoldRows = Sequence[Mapping[str, np.ndarray]]  # of each fold, the row numbers of its parts


class TargetTables:
    """The tables of one target, from the cells that `add` is given, model by model."""

    def __init__(self, index: int, target: Target, groups: np.ndarray, resamples: int):
        """index: of the target among the outputs of a cell. groups: text (N,)."""
        self.target = target
        self.metric = headline_metric(target.kind, target.metric)
        self.results: Rows = []
        self.val: dict[Model, float] = {}
        self.test: dict[Model, Score] = {}
        self.n_segments = self.n_groups = 0
        self._index = index
        self._groups = groups
        self._resamples = resamples
        self._known = target.known.numpy()
        self._truth = target.truth.numpy()
        self._seed_deviation: dict[Model, float] = {}
        self._seconds: dict[Model, float] = {}

    def add(self, model: Model, cells: Mapping[Cell, Finished], rows: FoldRows) -> None:
        """Take in every cell of one model, fold by fold for each seed."""
        predictions: dict[str, Predictions] = defaultdict(Predictions)
        for cell, finished in cells.items():
            self.results += self._result_rows(cell, finished, rows[cell.fold])
            for part, outputs in finished.outputs.items():
                predictions[part].add(cell.seed or 0, cell.fold, rows[cell.fold][part], list(outputs))
        self._seconds[model] = sum(finished.facts["seconds"] for finished in cells.values())
        self.val[model] = float(np.mean(self._by_seed(predictions["val"])))
        by_seed = self._by_seed(predictions["test"])
        self.test[model] = np.concatenate([[np.mean(by_seed)], self._resampled(predictions["test"], by_seed)])
        self._seed_deviation[model] = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else np.nan

    def best(self, names: Sequence[str], slots: tuple[str, ...] | None = None) -> Model:
        """The one of these models, on these slots or on any, that is best on validation; of equals the first added."""
        found = [model for model in self.val if model.name in names and slots in (None, model.slots)]
        return max(found, key=lambda model: np.nan_to_num(self.metric.sign * self.val[model], nan=-np.inf))

    def facts(self, fusions: Sequence[str]) -> dict[str, Any]:
        """What holds for the whole target. best, best_linear: on validation, of all subsets."""
        best, linear = self.best(fusions), self.best([LINEAR])
        return {
            "kind": self.target.kind,
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "n": self.n_segments,
            "n_groups": self.n_groups,
            "best": {"fusion": best.name, "slots": list(best.slots), "val": json_number(self.val[best])},
            "best_linear": {"slots": list(linear.slots), "val": json_number(self.val[linear])},
        }

    def tables(self, fusions: Sequence[str], full: tuple[str, ...], slots: Sequence[str]) -> dict[str, Rows]:
        """By name, as in `TABLES`. full: the subset on which fusions are compared."""
        return {
            "results": self.results,
            "summary": self.summary(),
            "comparisons": self.comparisons(fusions, full),
            "shapley": self.shapley(slots),
        }

    def summary(self) -> Rows:
        """A row a model: validation, test with its interval, spread over seeds, seconds."""
        return [
            {
                **self._facts(model),
                "val": json_number(self.val[model]),
                "test": json_number(test[0]),
                **_ends("ci95", interval(test[1:])),
                "seed_deviation": json_number(self._seed_deviation[model]),
                "seconds": self._seconds[model],
            }
            for model, test in self.test.items()
        ]

    def comparisons(self, fusions: Sequence[str], full: tuple[str, ...]) -> Rows:
        """Test differences, a model minus another. A verdict goes by the interval that holds for all rows at once.

        On the full subset: each fusion and the linear model against each other, and the best fusion against those that
        read no slot. Within the best fusion: every other subset against the full one.
        """
        readers = [Model(name, full) for name in (*fusions, LINEAR)]
        best = self.best(fusions, full)
        blind = [model for model in self.test if model.name in (MASK_ONLY, MAJORITY)]
        subsets = [model for model in self.test if model.name == best.name and model.slots != full]
        pairs = [*combinations(readers, 2), *((best, model) for model in blind), *((model, best) for model in subsets)]
        differences = [self.test[model] - self.test[other] for model, other in pairs]
        return [
            {
                **self._facts(model),
                "other_model": other.name,
                "other_slots": other.subset,
                "difference": json_number(difference[0]),
                **_ends("ci95", interval(difference[1:])),
                **_ends("joint_ci95", joint),
                "verdict": self._verdict(joint),
            }
            for (model, other), difference, joint in zip(pairs, differences, joint_intervals(differences), strict=True)
        ]

    def shapley(self, slots: Sequence[str]) -> Rows:
        """What each slot adds, for every model that was run on every subset; without any slot it is the majority."""
        subsets = {frozenset(chosen) for size in range(1, len(slots) + 1) for chosen in combinations(slots, size)}
        table: Rows = []
        for name in dict.fromkeys(model.name for model in self.test):
            scores = {frozenset(model.slots): test for model, test in self.test.items() if model.name == name}
            if not subsets <= set(scores) or name == MASK_ONLY:
                continue
            scores[frozenset()] = self.test[Model(MAJORITY, ())]
            for slot, value in shapley_values(slots, scores).items():
                facts = {"target": self.target.name, "metric": self.metric.name, "model": name, "slot": slot}
                table.append({**facts, "value": json_number(value[0]), **_ends("ci95", interval(value[1:]))})
        return table

    def score(self, finished: Finished, rows: Mapping[str, np.ndarray], part: str) -> float:
        """One cell by the headline metric, on the rows (n,) of a part; NaN where none of its rows has a label."""
        return self._scores(finished, rows, part)[self.metric.name]

    def _scores(self, finished: Finished, rows: Mapping[str, np.ndarray], part: str) -> dict[str, float]:
        known = self._known[rows[part]]
        truth, output = self._truth[rows[part][known]], finished.outputs[part][self._index][known]
        metrics = METRICS[self.target.kind]
        return {metric.name: score(metric, truth, output) if len(truth) else np.nan for metric in metrics}

    def _result_rows(self, cell: Cell, finished: Finished, rows: Mapping[str, np.ndarray]) -> Rows:
        val, test = (self._scores(finished, rows, part) for part in ("val", "test"))
        facts = {"split": finished.facts["split"], "seed": cell.seed}
        facts |= {key: finished.facts.get(key) for key in ("best_epoch", "seconds")}
        return [
            {
                **self._facts(cell.model),
                "metric": name,
                **facts,
                "val": json_number(val[name]),
                "test": json_number(test[name]),
            }
            for name in val
        ]

    def _pooled(self, predictions: Predictions) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Row numbers, truth, and each seed's output, of the rows with a label."""
        rows = predictions.pooled_rows()
        known = self._known[rows]
        return rows[known], self._truth[rows[known]], [output[known] for output in predictions.pooled(self._index)]

    def _by_seed(self, predictions: Predictions) -> list[float]:
        _, truth, outputs = self._pooled(predictions)
        return [score(self.metric, truth, output) if len(truth) else np.nan for output in outputs]

    def _resampled(self, predictions: Predictions, observed: Sequence[float]) -> np.ndarray:
        """(R,): the mean over seeds in each resample. observed: each seed's value on all segments."""
        rows, truth, outputs = self._pooled(predictions)
        groups = self._groups[rows]
        self.n_segments, self.n_groups = len(rows), len(np.unique(groups))
        if self.n_groups < 2:
            return np.full(self._resamples, np.nan)
        statistics = np.concatenate([self.metric.statistics(truth, output) for output in outputs], axis=1)
        sums = np.split(GroupBootstrap(groups, self._resamples).sums(statistics), len(outputs), axis=1)
        by_seed = np.stack([self.metric.value(of_seed) for of_seed in sums], axis=1)
        return np.asarray(by_seed.mean(axis=1) + chance_of_seeds(np.array(observed), by_seed))

    def _facts(self, model: Model) -> dict[str, Any]:
        return {"target": self.target.name, "metric": self.metric.name, "model": model.name, "slots": model.subset}

    def _verdict(self, joint: list[float] | None) -> str:
        if joint is None:
            return "not compared"
        if joint[0] <= 0 <= joint[1]:
            return "no clear difference"
        return "better" if (joint[0] > 0) == self.metric.higher_is_better else "worse"


def chance_of_seeds(observed: np.ndarray, by_seed: np.ndarray) -> np.ndarray:
    """What other seeds would have changed in the mean over seeds: (R,), around zero.

    observed: (S,); by_seed: (R, S), with groups resampled. Seeds are drawn with replacement. Their values also differ
    because they err on different segments, and that the resampled groups show already: only the variance beyond it is
    drawn. Of S seeds, draws vary by 1/S too little, which is made up for.
    """
    n_resamples, n_seeds = by_seed.shape
    variance = observed.var(ddof=1) if n_seeds > 1 else 0.0
    if not variance > 0:
        return np.zeros(n_resamples)
    correction = n_seeds / (n_seeds - 1)
    of_segments = np.nanvar(by_seed - by_seed.mean(axis=1, keepdims=True), axis=0).mean() * correction
    scale = np.sqrt(max(0.0, 1 - of_segments / variance) * correction)
    drawn = np.random.default_rng(0).multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_resamples)
    return np.asarray(scale * (drawn - 1) @ observed / n_seeds)


def shapley_values(slots: Sequence[str], scores: Mapping[frozenset[str], Score]) -> dict[str, Score]:
    """What each slot adds, averaged over all orders in which slots may come; together v(all) - v(none).

    scores: of every subset of the slots, the empty one too. Source: Shapley 1953, "A value for n-person games".
    """
    values = {}
    for slot in slots:
        others = [other for other in slots if other != slot]
        value = np.zeros_like(scores[frozenset()])
        for size in range(len(slots)):
            orders = factorial(size) * factorial(len(others) - size)  # of those before the slot, and those after it
            for before in combinations(others, size):
                value += orders * (scores[frozenset({*before, slot})] - scores[frozenset(before)])
        values[slot] = value / factorial(len(slots))
    return values


def joint_intervals(differences: Iterable[Score]) -> list[list[float] | None]:
    """Intervals that all hold at once at `LEVEL`; `None` where `fusion.metrics.interval` has none.

    Each reaches equally many of its standard errors to both sides: as many as the largest deviation of all exceeds in
    5% of the resamples. That knows how the differences are correlated, and needs no quantile so far out that hardly a
    resample lies there, as Bonferroni's would. Source: Romano and Wolf 2005, "Exact and approximate stepdown methods
    for multiple hypothesis testing", the single step of the studentized maximum.
    """
    centers, errors, largest = [], [], np.zeros(1)
    for difference in differences:
        has_interval = interval(difference[1:]) is not None
        error = float(np.nanstd(difference[1:])) if has_interval else np.nan
        if error > 0:  # models that say the same differ by zero in every resample
            largest = np.maximum(largest, np.nan_to_num(np.abs(difference[1:] - difference[0]) / error))
        centers.append(float(difference[0]))
        errors.append(error)
    reach = float(np.quantile(largest, LEVEL))
    return [
        None if np.isnan(error) else [center - reach * error, center + reach * error]
        for center, error in zip(centers, errors, strict=True)
    ]


def write_rows(folder: Path, name: str, rows: Rows) -> None:
    """`name.parquet` and `name.csv`, with the columns of `TABLES[name]`."""
    columns = TABLES[name]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), folder / f"{name}.parquet")
    with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([csv_cell(row[column]) for column in columns] for row in rows)


def _ends(name: str, ci95: Sequence[float] | None) -> dict[str, float | None]:
    low, high = (None, None) if ci95 is None else ci95
    return {f"{name}_low": low, f"{name}_high": high}
