"""A run as all its trackers are told of it. What one of them cannot do costs a line of warning, never the training."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from featurize.errors import ConfigError
from fusion.evaluate import FUSION
from fusion.tracking.base import Point, Status, TrackedRun, Tracker
from stores.console import echo_tinted
from stores.errors import TriadError

FILES = ("report.html", "config.yaml", "metrics.json")
WHOSE = {"epoch", "model", "split", "seed"}  # columns of `history.parquet` that say what a row is of
LONGEST_REASON = 200  # letters


class RunLog:
    """The trackers of one run that have not failed."""

    def __init__(self) -> None:
        self.live: list[Tracker] = []
        self._n_logged: Counter[str] = Counter()

    def training(self, series: str, history: Sequence[Mapping[str, Any]]) -> None:
        """Log the epochs that are new since the last call. history: of one training so far, one mapping an epoch."""
        new = history[self._n_logged[series] :]
        self._n_logged[series] += len(new)
        self.points(series, [Point(epoch["epoch"], numbers(epoch)) for epoch in new])

    def points(self, series: str, points: Sequence[Point]) -> None:
        """Log points of a series, each of which is new."""
        if points:
            self._tell(lambda tracker: tracker.log(series, points))

    def _tell(self, say: Callable[[Tracker], None]) -> None:
        for tracker in list(self.live):
            try:
                say(tracker)
            except Exception as error:  # whatever their packages raise
                self.live.remove(tracker)
                reason = shorten(_reason(error), LONGEST_REASON, placeholder=" …")
                echo_tinted(f"warning: {tracker.package} fails ({reason}) and is told no more of this run.", err=True)
                _end(tracker, "failed")


@contextmanager
def tracked(trackers: Sequence[Tracker], run: TrackedRun, folder: Path) -> Iterator[RunLog]:
    """Trackers are told what the block logs and how it ends; where it ends well, also what `folder` then holds.

    folder: of the run, with a `metrics.json`. Raises `ConfigError` where a tracker cannot begin.
    """
    log = RunLog()
    status: Status = "failed"
    try:
        for tracker in trackers:
            log.live.append(tracker)
            _begin(tracker, run)
        yield log
        if trackers:
            values = final_values(json.loads((folder / "metrics.json").read_text("utf-8")))
            files = [path for name in FILES if (path := folder / name).is_file()]
            log._tell(lambda tracker: tracker.results(values, files))
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        for tracker in log.live:
            _end(tracker, status)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What a row of a history or a cell's facts measure; gaps in a curve are where it is not finite."""
    return _finite({key: value for key, value in row.items() if key not in WHOSE})


def final_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Every score of a `metrics.json`, called target/model/part/metric, with `_ci95_low` and `_ci95_high` beside it."""
    found: dict[str, float] = {}
    for name, target in metrics["targets"].items():
        for path, score in _scores(target):
            low, high = score.get("ci95") or (None, None)
            ends = {f"{path}_ci95_low": low, f"{path}_ci95_high": high}
            found |= {f"{name}/{key}": value for key, value in _finite({path: score["value"], **ends}).items()}
    return found


def _scores(target: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Of one target, whatever the command: `fit` and `finetune` have parts, `train-encoder` models, `ablate` tables."""
    metric = target["metric"]
    by_model = {FUSION: target.get("splits", {}), **target.get("baselines", {})}
    for model, parts in by_model.items():
        for part, score in parts.items():
            yield f"{model}/{part}/{metric}", score
            for other, value in score.get("others", {}).items():
                yield f"{model}/{part}/{other}", value
    for pattern, score in target.get("presence_patterns", {}).items():
        yield f"{FUSION} on {pattern}/test/{metric}", score
    for model, score in target.get("models", {}).items():
        yield f"{model}/val/{metric}", score
    for row in target.get("summary", ()):
        model = on_slots(row["model"], row["slots"])
        yield f"{model}/val/{metric}", {"value": row["val"]}
        yield f"{model}/test/{metric}", {"value": row["test"], "ci95": [row["ci95_low"], row["ci95_high"]]}
    for row in target.get("shapley", ()):
        yield f"{row['model']}/shapley/{row['slot']}", {**row, "ci95": [row["ci95_low"], row["ci95_high"]]}


def training_series(model: str, split: str, seed: int) -> str:
    """What one training is called."""
    return f"{model}/{split}/seed {seed}"


def on_slots(model: str, subset: str) -> str:
    """`late on text+audio`: a model of an ablation."""
    return f"{model} on {subset}" if subset else model


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value) for key, value in values.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def _begin(tracker: Tracker, run: TrackedRun) -> None:
    try:
        tracker.begin(run)
    except TriadError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{tracker.package} cannot begin a run ({_reason(error)}). Mend that, or track without it."
        ) from error


def _end(tracker: Tracker, status: Status) -> None:
    with suppress(Exception):  # what matters has been told
        tracker.end(status)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
