"""Learning from MIDI without labels: tokens are hidden and predicted from those around them, by the one training loop.

The loop asks for a model's outputs and an objective that turns them into a loss. Here the outputs are losses already,
one a segment, for what is predicted is the input itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from featurize.encode import run
from featurize.encoders.base import Batch
from featurize.encoders.transformer import MaskedEventModel, TokenTransformer, choose_hidden

EVALUATION_SEED = 0  # hides the same tokens of the same batches after every epoch


@dataclass(frozen=True)
class MaskedEvents:
    """The objective: every row can be learned from. known: bool (N,)."""

    known: Tensor
    loss_weight: float = 1.0
    n_outputs: int = 1

    def fitted_to(self, rows: np.ndarray) -> Self:
        """Itself: there is nothing to learn beforehand from rows (n,)."""
        return self

    def to(self, device: torch.device) -> Self:
        """Itself: it computes nothing by rows."""
        return self

    def loss(self, losses: Tensor, rows: Tensor) -> Tensor:
        """The mean of losses (B,), in nats."""
        return losses.mean()

    def weight(self, rows: Tensor) -> float:
        """How many rows (n,) there are."""
        return float(len(rows))

    def predict(self, losses: Tensor) -> np.ndarray:
        """Losses (n,) as they are."""
        return losses.numpy()


class MaskedEventLosses(nn.Module):
    """An encoder with a head that guesses hidden tokens; the head is not kept."""

    def __init__(self, encoder: TokenTransformer):
        super().__init__()
        self.encoder = encoder
        self.guesser = MaskedEventModel(encoder)

    def forward(self, batch: Batch, present: Tensor) -> tuple[list[Tensor], None]:
        """Nats per hidden token and column of each segment, (B, 1). In training other tokens are hidden every time."""
        seed = int(torch.randint(2**31, ())) if self.training else EVALUATION_SEED
        losses = run(self.encoder, batch, partial(self.guesser, seed=seed))
        return [losses[:, None].cpu()], None


def nats_by_frequency(encoder: TokenTransformer, seen: Iterable[Batch], held_out: Iterable[Batch]) -> float:
    """What guessing each hidden token by its frequency in `seen`, plus one, comes to: the mean over segments.

    The same tokens of `held_out` are hidden as where a model is evaluated on these batches.
    """
    counts = [torch.ones(size) for size in encoder.vocabulary_sizes]
    for batch in seen:
        for column, ids in zip(counts, batch["ids"][batch["mask"]].unbind(dim=1), strict=True):
            column += torch.bincount(ids, minlength=len(column))
    losses = []
    for batch in held_out:
        hidden = choose_hidden(batch["mask"], EVALUATION_SEED)
        logits = [column.log().expand(int(hidden.sum()), -1) for column in counts]
        losses.append(MaskedEventModel.item_means(batch, hidden, logits))
    return float(torch.cat(losses).mean())
