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

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featurize.errors import ConfigError
from fusion.config import LoopConfig
from fusion.objective import Objective, total_loss
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
            model.slot_heads = SlotHeads(len(self._by_slot), model.fusion.hidden_dim, targets)

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
            here = shown[:, index]
            alone = [head(embeddings[:, index]).float()[here] for head in heads]  # products of one shape
            losses.append(total_loss(self._targets, alone, rows[here], batch[present[:, index]]))
        of_slots = torch.stack(losses)
        self._losses = of_slots.detach() if self._losses is None else self._losses + of_slots.detach()
        self._seen = present.any(dim=0)
        return logits, of_slots.mean() * (teaches or 1.0)

    def modulate(self) -> None:
        """Shrink the gradients of the slot that is ahead; once a batch, before they are clipped."""
        if self._training.gradient_modulation > 0 and self._losses is not None:
            seen = zip(self._by_slot, self._losses.tolist(), self._seen.tolist(), strict=True)
            losses = {slot: loss for slot, loss, is_seen in seen if is_seen}
            for slot, factor in modulation(losses, self._training.gradient_modulation).items():
                for parameter in self._by_slot[slot]:
                    if parameter.grad is not None:
                        parameter.grad.mul_(factor)
        self._losses = None

    def finish(self) -> None:
        """Throw the heads away."""
        if self._on:
            del self._model.slot_heads


def modulation(losses: Mapping[str, float], strength: float) -> dict[str, float]:
    """Slot to what its gradients are multiplied by: 1, or less for a slot surer than the others' mean.

    losses: of the slots that were shown at all. strength: alpha of the source; 0 changes nothing.
    """
    scores = torch.tensor(list(losses.values()), dtype=torch.float64).neg().exp()
    factors = {}
    for index, slot in enumerate(losses):
        others = (scores.sum() - scores[index]) / max(1, len(scores) - 1)
        is_ahead = len(scores) > 1 and bool(scores[index] > others)
        factors[slot] = float(1 - torch.tanh(strength * scores[index] / others)) if is_ahead else 1.0
    return factors
