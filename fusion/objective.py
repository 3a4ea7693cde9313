"""What a training minimizes: the weighted sum of what each output is trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor


class Objective(Protocol):
    """What one output of a model is trained for: a `Target`, or something of the input itself."""

    @property
    def known(self) -> Tensor:
        """bool (N,): the rows that it can be trained on."""

    @property
    def loss_weight(self) -> float:
        """Of its loss in the sum of all."""

    @property
    def n_outputs(self) -> int:
        """K, how many logits a row has."""

    def fitted_to(self, rows: np.ndarray) -> Self:
        """With what is learned from the training rows (n,) beforehand, such as class weights."""

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(B, K) to scalar: a mean."""

    def weight(self, rows: Tensor) -> float:
        """What the mean over these rows (n,) divides by; 0 where it is over nothing."""

    def predict(self, logits: Tensor) -> np.ndarray:
        """(n, K), in terms that a user knows."""


def total_loss(
    targets: Sequence[Objective], logits: Sequence[Tensor], rows: Tensor, batch: Tensor | None = None
) -> Tensor:
    """The weighted sum (a scalar) of the targets' losses over some rows (n,); of a batch that they are part of, their
    share of it.
    """
    losses = []
    for target, out in zip(targets, logits, strict=True):
        share = 1.0
        if batch is not None and len(batch) > len(rows):
            share = target.weight(rows) / (target.weight(batch) or 1.0)
        losses.append(target.loss_weight * share * target.loss(out, rows))
    return torch.stack(losses).sum()
