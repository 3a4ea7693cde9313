"""MLflow: one run, a metric `series/name` for each curve; where: MLFLOW_TRACKING_URI, under MLFLOW_EXPERIMENT_NAME.

Through `MlflowClient` alone: the run that the caller's own program may have active is left as it is.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.tracking.base import PROJECT, Point, Status, TrackedRun, Tracker

STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
MOST_METRICS, MOST_PARAMETERS = 1000, 100  # a request takes so many
LONGEST_VALUE = 6000  # letters of a parameter
# Of 7 tries and 120 s, which would keep a training waiting for minutes where the server is gone
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MlflowTracker(Tracker):
    """`mlflow`, or `mlflow-skinny` with a server."""

    package = "mlflow"

    def __init__(self) -> None:
        self._client: Any = None
        self._run_id = ""

    def begin(self, run: TrackedRun) -> None:
        for variable, value in PATIENCE.items():
            os.environ.setdefault(variable, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._run_id = self._client.create_run(experiment_id, run_name=run.name).info.run_id
        parameters = [Param(_valid(key), str(value)[:LONGEST_VALUE]) for key, value in run.flat_settings().items()]
        for part in _in_parts(parameters, MOST_PARAMETERS):
            self._client.log_batch(self._run_id, params=part)
        self.where = f"mlflow at {self._client.tracking_uri}, experiment {name}, run {self._run_id}"

    def log(self, series: str, points: Sequence[Point]) -> None:
        self._log_metrics([(f"{series}/{name}", v, step) for step, values in points for name, v in values.items()])

    def results(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        self._log_metrics([(name, value, 0) for name, value in values.items()])
        for path in files:
            self._client.log_artifact(self._run_id, str(path))

    def end(self, status: Status) -> None:
        if self._run_id:
            self._client.set_terminated(self._run_id, STATUS[status])
            self._run_id = ""

    def _log_metrics(self, metrics: Sequence[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for part in _in_parts([Metric(_valid(name), value, now, step) for name, value, step in metrics], MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=part)


def _valid(name: str) -> str:
    """MLflow takes letters, digits, and these signs."""
    return re.sub(r"[^\w\-. /]", " ", name)


def _in_parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
