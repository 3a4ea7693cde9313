"""What a training minimizes: the weighted sum of what each output is trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor

NOBODY = -1  # in place of a row that does not count, where rows cannot be left out (`fusion.device`)


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

    def to(self, device: torch.device) -> Self:
        """The same for logits and row numbers that are there."""

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(B, K) to scalar: a mean over those of rows (B,) that have a label; zero where none has."""

    def weight(self, rows: Tensor) -> float | Tensor:
        """What the mean over these rows (n,) divides by; never zero, also where it is over nothing."""

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
        share: float | Tensor = 1.0
        if batch is not None and len(batch) > len(rows):
            share = target.weight(rows) / target.weight(batch)
        losses.append(target.loss_weight * share * target.loss(out, rows))
    return torch.stack(losses).sum()


class EpochLoss:
    """The mean loss of an epoch's steps. It is read at the end: to read a number is to wait for it."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, loss: Tensor, size: int) -> None:
        """loss: a scalar, of a batch of this many rows, or of a piece its share."""
        self._losses.append(loss.detach())
        self._sizes.append(size)

    def read(self, n_rows: int) -> float:
        """Of the whole epoch, which had so many rows."""
        mean = 0.0
        for loss, size in zip(torch.stack(self._losses).tolist() if self._losses else (), self._sizes, strict=True):
            mean += loss * size / n_rows
        return mean
