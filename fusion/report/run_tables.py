"""The tables of a run as CSV files: every number of the page, in full precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusion.report.downloads import Download, download
from fusion.report.folder import RunFolder
from fusion.report.mistakes import Mistake
from fusion.report.reliability import Calibration
from fusion.report.slot_figures import WeightRow

SCORE = ("value", "ci95_low", "ci95_high", "n", "n_groups")


def run_tables(
    run: RunFolder,
    calibrations: Mapping[str, Calibration | None],
    weights: Sequence[WeightRow],
    mistakes: Mapping[str, Sequence[Mistake]],
) -> dict[str, Download]:
    """By name: all targets and models of the run are in each."""
    name = str(run.metrics["run"])
    tables = {
        "scores": (("target", "metric", "model", "part", *SCORE), _scores(run)),
        "comparisons": (("target", "metric", "fusion_minus", "difference", "ci95_low", "ci95_high"), _comparisons(run)),
        "patterns": (("target", "metric", "slots_shown", *SCORE, "n_exactly"), _patterns(run)),
        "history": (run.history.column_names, (list(row.values()) for row in run.history.to_pylist())),
        "calibration": (("target", "n", "stated", "happened"), _calibration(calibrations)),
        "confusion": (("target", "true", "predicted", "mean_count_over_seeds"), _confusion(run)),
        "weights": (("segments", "n", *run.slots), ([row.label, row.n, *row.means] for row in weights)),
        "mistakes": (
            ("target", "segment_id", "group", "true", "predicted", "wrongness", "present", "text"),
            _mistakes(mistakes),
        ),
    }
    return {table: download(f"{name}-{table}", columns, rows) for table, (columns, rows) in tables.items()}


def _score(score: Mapping[str, Any]) -> list[Any]:
    return [score["value"], *_ends(score["ci95"]), score["n"], score["n_groups"]]


def _ends(ci95: list[float] | None) -> list[float | None]:
    return [None, None] if ci95 is None else list(ci95)


def _scores(run: RunFolder) -> Iterator[list[Any]]:
    for name, target in run.metrics["targets"].items():
        models = {run.metrics["fusion"]: target["splits"], **target["baselines"]}
        for model, parts in models.items():
            for part, score in parts.items():
                yield [name, target["metric"], model, part, *_score(score)]
                for other, found in score.get("others", {}).items():
                    ends = _ends(found["ci95"])
                    yield [name, other, model, part, found["value"], *ends, score["n"], score["n_groups"]]


def _comparisons(run: RunFolder) -> Iterator[list[Any]]:
    for name, target in run.metrics["targets"].items():
        for model, found in target["comparisons"].items():
            yield [name, target["metric"], model, found["difference"], *_ends(found["ci95"])]


def _patterns(run: RunFolder) -> Iterator[list[Any]]:
    for name, target in run.metrics["targets"].items():
        for pattern, score in target["presence_patterns"].items():
            yield [name, target["metric"], pattern, *_score(score), score["n_exactly"]]


def _calibration(calibrations: Mapping[str, Calibration | None]) -> Iterator[list[Any]]:
    for name, found in calibrations.items():
        for row in found.bins if found else ():
            yield [name, row["n"], row["confidence"], row["accuracy"]]


def _confusion(run: RunFolder) -> Iterator[list[Any]]:
    n_seeds = max(len(np.unique(run.seeds)), 1)
    for name, target in run.metrics["targets"].items():
        if target["kind"] != "categorical":
            continue
        pairs = zip(run.texts(f"{name}.true"), run.texts(f"{name}.predicted"), strict=True)
        for (true, predicted), count in sorted(Counter(pair for pair in pairs if pair[0] is not None).items()):
            yield [name, true, predicted, count / n_seeds]


def _mistakes(by_target: Mapping[str, Sequence[Mistake]]) -> Iterator[list[Any]]:
    for name, mistakes in by_target.items():
        for m in mistakes:
            yield [name, m.segment_id, m.group, m.truth, m.said, m.wrongness, "+".join(m.present), m.text]
