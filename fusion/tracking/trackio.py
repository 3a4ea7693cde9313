"""Trackio: one run, a metric `series/name` for each curve, in SQLite on this machine or in a Space of your own.

TRACKIO_DIR, TRACKIO_PROJECT (ours), TRACKIO_SPACE_ID and HF_TOKEN say where. It has no status of a run to set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from fusion.tracking.base import PROJECT, Point, Status, TrackedRun, Tracker


class TrackioTracker(Tracker):
    """Hardware is not measured, nothing is printed, and no dashboard is started."""

    package = "trackio"

    def __init__(self) -> None:
        self._run: Any = None
        self._files = ""

    def begin(self, run: TrackedRun) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        with _unheard():
            self._run = trackio.init(
                project=project,
                name=run.name,
                config=run.settings(),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self._files = re.sub(r"[^\w\-.]", "-", f"{run.command}-{run.name}")
        self.where = f"trackio show --project {project}"

    def log(self, series: str, points: Sequence[Point]) -> None:
        for step, values in points:
            self._run.log({f"{series}/{name}": value for name, value in values.items()}, step=step)

    def results(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        import trackio

        self._run.log(dict(values))
        artifact = trackio.Artifact(self._files, type="run")
        for path in files:
            artifact.add_file(str(path))
        with _unheard():
            self._run.log_artifact(artifact)

    def end(self, status: Status) -> None:
        import trackio

        if self._run is not None:
            with _unheard():
                trackio.finish()
            self._run = None


@contextmanager
def _unheard() -> Iterator[None]:
    """It prints to standard output, where results belong."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield
