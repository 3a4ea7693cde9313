"""A running mean of the weights over the steps: the noise of single steps averages out, what they agree on stays.

Early on it forgets faster, so that the start does not linger: with decay d, step t keeps min(d, (1 + t) / (10 + t)) of
the mean. Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the exponential
form and its warm-up as TensorFlow's `ExponentialMovingAverage` has them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """`model` is what to validate and to keep: the mean, or with a decay of 0 the model itself, at no cost."""

    model: nn.Module

    def __init__(self, model: nn.Module, decay: float):
        self._current, self._decay, self._steps = model, decay, 0
        self.model = copy.deepcopy(model).requires_grad_(False) if decay else model
        self._means: list[Tensor] = [*self.model.parameters()]
        self._weights: list[Tensor] = [*model.parameters()]
        self._mean_buffers: list[Tensor] = [*self.model.buffers()]
        self._buffers: list[Tensor] = [*model.buffers()]

    @torch.no_grad()
    def update(self) -> None:
        """After each step. Buffers, such as the statistics of a batch norm, are taken as they are."""
        if self.model is self._current:
            return
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._means, self._weights, 1 - decay)
        if self._buffers:
            torch._foreach_copy_(self._mean_buffers, self._buffers)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it; nothing where it is off."""
        return {} if self.model is self._current else {"model": self.model.state_dict(), "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        if state:
            self.model.load_state_dict(state["model"])
            self._steps = state["steps"]
