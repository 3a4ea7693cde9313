"""TensorBoard: event files in `tensorboard/<run>`; a series is a run of its own there, so that seeds share an axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion.runs import free_name
from fusion.tracking.base import Point, Status, TrackedRun, Tracker


class TensorBoardTracker(Tracker):
    """folder: holds a folder for each run, numbered where one of its name is there. Values are kept as float32."""

    package = "tensorboard"

    def __init__(self, folder: Path = Path("tensorboard")):
        self._folder = folder
        self._run = folder
        self._settings: dict[str, Any] = {}
        self._writers: dict[str, Any] = {}  # by series

    def begin(self, run: TrackedRun) -> None:
        import torch.utils.tensorboard  # noqa: F401 (what is amiss is told now)

        self._run = self._folder / free_name(self._folder, run.name)
        self._run.mkdir(parents=True)
        self._settings = run.flat_settings()
        self._writers = {}
        self.where = f"tensorboard --logdir {self._folder}"

    def log(self, series: str, points: Sequence[Point]) -> None:
        writer = self._writer(series)
        for step, values in points:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
        writer.flush()

    def results(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """The values with all settings beside them, which the HParams tab compares; `config.yaml` as a text."""
        writer = self._writer("")
        writer.add_hparams(self._settings, dict(values), run_name=".")
        for path in files:
            if path.suffix == ".yaml":
                writer.add_text(path.name, f"```yaml\n{path.read_text('utf-8')}```")

    def end(self, status: Status) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, series: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        if series not in self._writers:
            self._writers[series] = SummaryWriter(str(self._run / series))
        return self._writers[series]
