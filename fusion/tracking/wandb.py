"""Weights & Biases: one run, a metric `series/name` for each curve over `epoch`, results as its summary.

WANDB_PROJECT, WANDB_ENTITY, WANDB_MODE (`offline` needs no network), WANDB_DIR and WANDB_API_KEY are read by `wandb`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurize.errors import ConfigError
from fusion.tracking.base import PROJECT, Point, Status, TrackedRun, Tracker

STEP = "epoch"
EXIT_CODES = {"finished": 0, "interrupted": 255, "failed": 1}  # by 255 it knows what was killed


class WandbTracker(Tracker):
    """Asks nothing: where a run is to go online and there is no key, it says so."""

    package = "wandb"

    def __init__(self) -> None:
        self._run: Any = None
        self._files = ""

    def begin(self, run: TrackedRun) -> None:
        import wandb

        if wandb.setup().settings.mode in ("online", "run", "shared") and not wandb.login(prompt=False, verify=False):
            raise ConfigError(
                "wandb has no API key. Set WANDB_API_KEY, or WANDB_MODE=offline and send the run later: wandb sync"
            )
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            job_type=run.command,
            config=run.settings(),
            reinit="create_new",  # the run of the caller's own program goes on
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("*", step_metric=STEP)  # seeds follow each other, yet share an axis
        self._files = re.sub(r"[^\w\-.]", "-", f"{run.command}-{run.name}")
        self.where = f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else self._run.url

    def log(self, series: str, points: Sequence[Point]) -> None:
        for step, values in points:
            self._run.log({STEP: step, **{f"{series}/{name}": value for name, value in values.items()}})

    def results(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        import wandb

        self._run.summary.update(values)
        artifact = wandb.Artifact(self._files, type="run")
        for path in files:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, status: Status) -> None:
        if self._run is not None:
            self._run.finish(exit_code=EXIT_CODES[status])
            self._run = None
