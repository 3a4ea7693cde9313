"""A tracking tool's double, which remembers what it was told."""

from __future__ import annotations

from fusion.tracking.base import Status, TrackedRun, Tracker


class Notebook(Tracker):
    """Keeps what it is told. `told[series]`: values by step; what is told twice is an error."""

    package = "a notebook"

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.told: dict[str, dict[int, dict[str, float]]] = {}
        self.values: dict[str, float] = {}
        self.files: dict[str, bytes] = {}
        self.ended: list[Status] = []

    def begin(self, run):
        self.runs.append(run)
        self.told, self.values, self.files = {}, {}, {}

    def log(self, series, points):
        curve = self.told.setdefault(series, {})
        for step, values in points:
            assert step not in curve
            curve[step] = dict(values)

    def results(self, values, files):
        self.values = dict(values)
        self.files = {path.name: path.read_bytes() for path in files}

    def end(self, status):
        self.ended.append(status)
