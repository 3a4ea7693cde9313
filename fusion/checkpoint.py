"""A training that was interrupted goes on where it was, and ends as if nothing had happened.

The file holds everything the loop needs: weights, optimizer, schedule, random states, the best weights so far, and the
history. It is read with `weights_only`: nothing is unpickled.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusion.averaging import WeightAverage

SAVE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Best:
    """The best epoch so far. badness: what is stopped by, the lower the better."""

    badness: float
    epoch: int
    weights: dict[str, Tensor]


@dataclass
class TrainingState:
    """All that a training has come to. generator: of row order and dropped slots. history: one dict an epoch."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    best: Best
    averaged: WeightAverage
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which `torch.load(weights_only=True)` takes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),  # dropout draws from it
            "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "best": [self.best.badness, self.best.epoch, self.best.weights],
            "averaged": self.averaged.state_dict(),
            "history": self.history,
        }

    def take_over(self, saved: dict[str, Any]) -> None:
        """Put everything where a `to_dict` had it."""
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.generator.set_state(saved["generator"])
        torch.set_rng_state(saved["global_generator"])
        self.averaged.load_state_dict(saved["averaged"])
        if len(generators := saved.get("cuda_generators", [])) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(generators)
        self.best, self.history = Best(*saved["best"]), saved["history"]


@dataclass
class Checkpoint:
    """One training's file. key: of all that decides the training; a file with another key is not its own."""

    path: Path
    key: str

    saved_epochs: int = field(default=0, init=False)  # of the training whose state the file holds

    def __post_init__(self) -> None:
        self._saved_at = time.monotonic()

    def restore(self, state: TrainingState) -> None:
        """Put everything where it was when it was saved; nothing changes where no usable file is."""
        if not self.path.is_file():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises what it likes on a damaged file; the training then starts anew
            return
        if saved.get("key") == self.key:
            state.take_over(saved)
            self.saved_epochs = len(state.history)

    def save(self, state: TrainingState, *, now: bool = False) -> None:
        """Replace the file, if `now` or if the last time is a while ago."""
        if not now and time.monotonic() - self._saved_at < SAVE_EVERY_SECONDS:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        content = io.BytesIO()  # `torch.save` to a path tells a full disk as a RuntimeError without a reason
        torch.save({**state.to_dict(), "key": self.key}, content)
        partial.write_bytes(content.getbuffer())
        partial.replace(self.path)
        self.saved_epochs = len(state.history)
        self._saved_at = time.monotonic()
