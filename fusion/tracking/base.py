"""What a tracking tool must provide: one run with its settings, series of numbers while it trains, results, an end.

A series is called by path-like words: `fusion/default/seed 0` is a model, a split and a seed. Values are finite, called
by name. A tracker is told of one run at a time, from one thread, and imports its tool's package in `begin`: nobody else
waits for it. What a method raises is handled in `fusion.tracking.log`: of `begin` it is told before anything is
computed; afterwards it costs the tracker, never the training.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

PROJECT = "triad-fusion"  # what runs are filed under where the environment names nothing else

Status = Literal["finished", "interrupted", "failed"]


class Point(NamedTuple):
    """Values of a series at one step, e.g. of an epoch."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class TrackedRun:
    """command: `fit`, `ablate`, …. config: as `config.yaml` has it. facts: what else was chosen, plain values."""

    command: str
    name: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """All of it as one mapping, nested, without what is not set."""
        return _without_none({"command": self.command, "run": self.name, **self.facts, **self.config})

    def flat_settings(self) -> dict[str, Any]:
        """The same by dotted keys, `training.lr`; values are numbers, truths and texts."""
        return dict(_flattened(self.settings(), ""))


class Tracker(ABC):
    """One tracking tool. `where` says after `begin` where the run is to be seen."""

    package: ClassVar[str]  # that is imported, and the extra of this project that installs it

    where: str = ""

    @abstractmethod
    def begin(self, run: TrackedRun) -> None:
        """A new run, whatever has been tracked under its name before."""

    @abstractmethod
    def log(self, series: str, points: Sequence[Point]) -> None:
        """Points of a series, each once; where several processes train, in any order."""

    @abstractmethod
    def results(self, values: Mapping[str, float], files: Sequence[Path]) -> None:
        """What came out, once, where it did; files are copied before this returns."""

    @abstractmethod
    def end(self, status: Status) -> None:
        """Called once for every run whose `begin` was called, also where that failed."""


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if value is not None
    }


def _flattened(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, bool | int | float | str) else str(value)
