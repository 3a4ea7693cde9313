"""What happens between a gradient and a step: learning rates and schedules, clipping, and which slot pulls how hard.

A *slot's weights* are those that only it uses, its projection or encoder; all others are shared. A model that has slots
says which are whose in `slot_parameters`; any other model's weights are all shared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from featurize.errors import ConfigError
from fusion.config import LoopConfig, SlotTrainingConfig
from fusion.device import not_known_yet

DOMINANT_SHARE = 0.9  # of the slots' squared gradient norms: nine times what all others have together


def slot_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Slot to the weights that only it uses; empty for a model that does not tell."""
    told = getattr(model, "slot_parameters", None)
    return {} if told is None else told()


def make_optimizer(
    model: nn.Module, training: LoopConfig, n_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with one learning rate and schedule, but for what slots' own weights have by themselves.

    n_steps: of the whole training. Raises `ConfigError` where `training.slots` names one that the model does not have.
    """
    by_slot = slot_parameters(model)
    unknown = [slot for slot in training.slots if slot not in by_slot]
    if unknown:
        known = ", ".join(by_slot) or "none with weights of its own"
        raise ConfigError(f"{training.section}.slots names {unknown[0]!r}; this model has {known}.")
    own = {id(weight) for weights in by_slot.values() for weight in weights}
    rest = [weight for weight in model.parameters() if weight.requires_grad and id(weight) not in own]
    groups: list[dict[str, Any]] = [{"params": rest}]
    factors: list[Callable[[int], float]] = [
        partial(_factor, n_steps=n_steps, warmup=training.warmup, schedule=training.schedule)
    ]
    decay = {} if training.slot_weight_decay is None else {"weight_decay": training.slot_weight_decay}
    alike: dict[SlotTrainingConfig, list[nn.Parameter]] = {}  # one group for all slots without settings of their own
    for slot, weights in by_slot.items():
        settings = training.slots.get(slot, SlotTrainingConfig())
        alike.setdefault(settings, []).extend(weight for weight in weights if weight.requires_grad)
    for settings, learned in alike.items():
        has = settings.model_dump(include={"lr", "weight_decay"}, exclude_none=True)
        groups.append({"params": learned, **decay, **has})
        warmup = training.warmup if settings.warmup is None else settings.warmup
        schedule = settings.schedule or training.schedule
        factors.append(partial(_factor, n_steps=n_steps, warmup=warmup, schedule=schedule))
    optimizer = torch.optim.AdamW(
        groups, lr=training.lr, eps=training.adam_epsilon, weight_decay=training.weight_decay, fused=True
    )
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)


def _factor(step: int, *, n_steps: int, warmup: float, schedule: str) -> float:
    """Of the learning rate: rising over the first `warmup` share of all steps, then constant, or a half cosine to 0."""
    n_rising = round(warmup * n_steps)
    if step < n_rising:
        return (step + 1) / n_rising
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - n_rising) / max(1, n_steps - n_rising))))


class SlotGradients:
    """Norms and clipping of one model's gradients, slot by slot. Norms are read once an epoch: to read is to wait.

    blown_up: the slots whose gradients were the first that are not finite; of all at once, the one that was largest
    before; none while all are finite.
    """

    def __init__(self, model: nn.Module, training: LoopConfig):
        self._by_slot = slot_parameters(model)
        self._training = training
        own = {id(parameter) for parameters in self._by_slot.values() for parameter in parameters}
        self._shared = [parameter for parameter in model.parameters() if id(parameter) not in own]
        self._alone: dict[str, float] = {}
        for slot in self._by_slot:
            limit = training.slots.get(slot, SlotTrainingConfig()).clip
            if limit is not None or training.clip_per_slot:
                self._alone[slot] = training.clip if limit is None else limit
        self._device = next(model.parameters()).device
        self._steps: list[Tensor] = []  # of each the norms (M,), since they were read
        self._before: dict[str, float] = {}
        self.blown_up: list[str] = []

    def clip(self) -> dict[str, Tensor]:
        """Scale gradients down to their limits. Returns each slot's norm (a scalar), as it was before."""
        norms = {slot: self._norm(parameters) for slot, parameters in self._by_slot.items()}
        together, squares = [*self._shared], [self._norm(self._shared).square()]
        for slot, parameters in self._by_slot.items():
            if slot in self._alone:
                _scale_down(parameters, self._alone[slot], norms[slot])
            else:
                together += parameters
                squares.append(norms[slot].square())
        _scale_down(together, self._training.clip, torch.stack(squares).sum().sqrt())
        if norms:
            self._steps.append(torch.stack([*norms.values()]))
        return norms

    def read(self) -> dict[str, float]:
        """Each slot's mean norm over the steps since the last time; nothing where there was none."""
        means = Counter[str]()
        for values in torch.stack(self._steps).tolist() if self._steps else ():
            norms = dict(zip(self._by_slot, values, strict=True))
            means.update({slot: norm / len(self._steps) for slot, norm in norms.items()})
            if not self.blown_up:
                self.blown_up = [slot for slot, norm in norms.items() if not math.isfinite(norm)]
                if self._before and len(self.blown_up) == len(norms):
                    self.blown_up = [max(self._before, key=lambda slot: self._before[slot])]
                self._before = norms
        self._steps = []
        return dict(means)

    def _norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Of their gradients; zero, and on the same device, where there are none."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        return norm.to(self._device)


def dominating_slot(history: Sequence[Mapping[str, Any]], slots: Sequence[str]) -> tuple[str, float] | None:
    """The slot whose weights have more than `DOMINANT_SHARE` of the squared gradient norms, and its share.

    history: epochs with `gradient_norm.<slot>`. `None` where no slot has, or where there is only one.
    """
    squares = {slot: sum(epoch.get(f"gradient_norm.{slot}", 0.0) ** 2 for epoch in history) for slot in slots}
    total = sum(squares.values())
    if len(squares) < 2 or total == 0:
        return None
    slot = max(squares, key=lambda name: squares[name])
    return (slot, squares[slot] / total) if squares[slot] > DOMINANT_SHARE * total else None


def _scale_down(parameters: Sequence[nn.Parameter], limit: float, norm: Tensor) -> None:
    # also where it is NaN: then all gradients become NaN, and the loop says so. What is small is multiplied by 1
    if not_known_yet(norm) or not norm <= limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
