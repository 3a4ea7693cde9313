"""Keeping slots in balance: a loss for each slot alone, and smaller steps for the slot that is ahead.

Both need what each slot would predict by itself: linear heads on the slots' own embeddings, thrown away after training.
*Auxiliary losses* teach a slot's weights through its own heads, too. *On-the-fly gradient modulation* compares how sure
the slots are of the right answer, and shrinks the gradients of those that are surer than the others' mean; without
auxiliary losses its heads learn, and teach the slots nothing.

Source: Peng et al. 2022, "Balanced multimodal learning via on-the-fly gradient modulation", section 3.2. There are two
slots there, and a softmax over classes. Here a slot's score is the exponential of minus its mean loss, the geometric
mean of the probabilities of the right classes, which exists for every kind of target; with more than two slots it is
compared with the mean of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featurize.errors import ConfigError
from fusion.config import LoopConfig
from fusion.device import in_float64, not_known_yet
from fusion.objective import NOBODY, Objective, total_loss
from fusion.optimization import slot_parameters


class SlotHeads(nn.ModuleList):
    """For each slot a linear head for each target."""

    def __init__(self, n_slots: int, hidden_dim: int, targets: Sequence[Objective]):
        super().__init__(
            nn.ModuleList(nn.Linear(hidden_dim, target.n_outputs) for target in targets) for _ in range(n_slots)
        )


class SlotBalance:
    """Calls the model in training, and does both where `training` asks for them; else it only calls it.

    While it is in use the heads are part of the model, so that they are optimized and saved with it. Raises
    `ConfigError` where the model has no slots.
    """

    def __init__(self, model: Any, targets: Sequence[Objective], training: LoopConfig):
        self._model, self._targets, self._training = model, targets, training
        self._by_slot = slot_parameters(model)
        self._losses: Tensor | None = None  # (M,), of the batch so far
        self._on = training.auxiliary_loss > 0 or training.gradient_modulation > 0
        if self._on and not self._by_slot:
            raise ConfigError("auxiliary_loss and gradient_modulation are for fusions; this model has no slots.")
        if self._on:
            heads = SlotHeads(len(self._by_slot), model.fusion.hidden_dim, targets)
            model.slot_heads = heads.to(targets[0].known.device)

    def forward(
        self, inputs: Any, shown: Tensor, rows: Tensor, batch: Tensor, present: Tensor
    ) -> tuple[list[Tensor], Tensor | float]:
        """The model's logits, and what the slots alone add to the loss.

        shown: bool (B, M), of `rows`, the piece of the batch that goes through; present: the same of the whole batch.
        """
        if not self._on:
            logits, _ = self._model(inputs, shown)
            return logits, 0.0
        logits, _, embeddings = self._model.with_embeddings(inputs, shown)
        teaches = self._training.auxiliary_loss
        if not teaches:
            embeddings = embeddings.detach()
        losses = []
        for index, heads in enumerate(self._model.slot_heads):
            here, in_batch = shown[:, index], present[:, index]
            alone = [head(embeddings[:, index]).float() for head in heads]  # products of one shape
            if not_known_yet(here):
                of_rows, of_batch = torch.where(here, rows, NOBODY), torch.where(in_batch, batch, NOBODY)
            else:
                alone, of_rows, of_batch = [out[here] for out in alone], rows[here], batch[in_batch]
            losses.append(total_loss(self._targets, alone, of_rows, of_batch))
        of_slots = torch.stack(losses)
        self._losses = of_slots.detach() if self._losses is None else self._losses + of_slots.detach()
        self._seen = present.any(dim=0)
        return logits, of_slots.mean() * (teaches or 1.0)

    def modulate(self) -> None:
        """Shrink the gradients of the slot that is ahead; once a batch, before they are clipped."""
        if self._training.gradient_modulation > 0 and self._losses is not None:
            factors = modulation(self._losses, self._seen, self._training.gradient_modulation)
            for factor, weights in zip(factors, self._by_slot.values(), strict=True):
                for weight in weights:
                    if weight.grad is not None:
                        weight.grad.mul_(factor.to(weight.device))
        self._losses = None

    def finish(self) -> None:
        """Throw the heads away."""
        if self._on:
            del self._model.slot_heads


def modulation(losses: Tensor, seen: Tensor, strength: float) -> Tensor:
    """What each slot's gradients are multiplied by: 1, or less for a slot surer than the others' mean.

    losses: (M,). seen: bool (M,), the slots that were shown at all. strength: alpha of the source; 0 changes nothing.
    """
    losses = in_float64(losses)
    seen = seen.to(losses.device)
    scores = torch.where(seen, losses.neg().exp(), 0.0)
    n_others = seen.sum() - 1
    others = (scores.sum() - scores) / n_others.clamp(min=1)
    is_ahead = seen & (n_others > 0) & (scores > others)
    return torch.where(is_ahead, 1 - torch.tanh(strength * scores / others), 1.0)
