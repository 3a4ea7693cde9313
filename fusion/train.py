"""The one training loop. Read it top to bottom: seed, model, optimizer, epochs, best weights.

Where a batch comes from is the data's affair (`batches`): stored vectors are whole tensors and a batch is an index into
them (`fusion.data`); raw segments are prepared on the way and pass through their encoder (`fusion.raw_data`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from fusion.config import EncoderTrainingConfig, FusionConfig, TrainingConfig
from fusion.data import SegmentData
from fusion.missing import drop_slots
from fusion.model import FusionModel
from fusion.modules import build_fusion
from fusion.targets import Target
from stores.errors import TriadError


class TrainingData(Protocol):
    """present: bool (N, M). evaluation_batch: rows that fit in memory at once where nothing is learned."""

    @property
    def present(self) -> Tensor: ...

    @property
    def evaluation_batch(self) -> int: ...

    def batches(self, rows: Sequence[Tensor], augmentation_seed: int | None = None) -> Iterator[tuple[Tensor, Any]]:
        """For each batch of row numbers, in order: these, and what the model takes as its first argument.

        augmentation_seed: of this epoch's changes to the inputs; `None` changes nothing.
        """


class Objective(Protocol):
    """What one output of a model is trained for: a `Target`, or something of the input itself."""

    @property
    def known(self) -> Tensor:
        """bool (N,): the rows that it can be trained on."""

    @property
    def loss_weight(self) -> float: ...

    def fitted_to(self, rows: np.ndarray) -> Self:
        """With what is learned from the training rows beforehand, such as class weights."""

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(B, K) to scalar."""

    def predict(self, logits: Tensor) -> np.ndarray:
        """(n, K), in terms that a user knows."""


@dataclass
class Trained:
    """A model with its best weights, and what happened on the way, one dict an epoch."""

    model: nn.Module
    targets: list[Any]  # with the training split's class weights, mean and scale
    best_epoch: int
    history: list[dict[str, Any]] = field(default_factory=list)

    def predict(
        self, data: TrainingData, rows: np.ndarray, present: Tensor | None = None
    ) -> tuple[list[np.ndarray], Tensor | None]:
        """`infer`, with each target's logits in the target's own terms, float64 (n, K)."""
        logits, weights = infer(self.model, data, rows, present)
        return [target.predict(out) for target, out in zip(self.targets, logits, strict=True)], weights


def train(
    data: SegmentData,
    targets: Sequence[Target],
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    fusion: FusionConfig,
    training: TrainingConfig,
    seed: int,
) -> Trained:
    """Fit one fusion on stored vectors. Raises `TriadError` as `train_model` does."""
    torch.manual_seed(seed)
    train_rows = _with_a_label(train_rows, targets)
    model = FusionModel(
        build_fusion(fusion.strategy, data.widths, fusion.hidden_dim, fusion.dropout),
        data.widths,
        targets,
        fusion.dropout,
    )
    for index, (slot, standardize) in enumerate(zip(data.slots, model.standardizers(), strict=True)):
        standardize.fit(data.vectors[slot][train_rows[data.present[train_rows, index].numpy()]])
    return train_model(model, data, targets, train_rows, val_rows, training, seed)


def train_model(
    model: nn.Module,
    data: TrainingData,
    targets: Sequence[Objective],
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    training: TrainingConfig | EncoderTrainingConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Fit a model with early stopping on the validation loss. It is called as `model(inputs, present)`.

    progress: called with epochs done and epochs at most. Raises `TriadError` where the loss becomes NaN, or where no
    validation row has a label.
    """
    generator = torch.Generator().manual_seed(seed)  # order and dropped slots, apart from weights and dropout
    train_rows, val_rows = _with_a_label(train_rows, targets), _with_a_label(val_rows, targets)
    targets = [target.fitted_to(train_rows) for target in targets]
    if len(val_rows) == 0:
        raise TriadError("No validation segment has a label, so there is nothing to stop by. Make another split.")

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.lr, eps=training.adam_epsilon, weight_decay=training.weight_decay
    )
    steps_per_epoch = math.ceil(len(train_rows) / training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs * steps_per_epoch)

    best_loss, best_epoch, best_weights = math.inf, 0, copy.deepcopy(model.state_dict())
    history: list[dict[str, Any]] = []
    for epoch in range(1, training.epochs + 1):
        started = time.perf_counter()
        model.train()
        train_loss = 0.0
        shuffled = torch.from_numpy(train_rows)[torch.randperm(len(train_rows), generator=generator)]
        for rows, inputs in data.batches(shuffled.split(training.batch_size), augmentation_seed=seed * 10_000 + epoch):
            present = drop_slots(data.present[rows], training.modality_dropout, generator)
            logits, _ = model(inputs, present)
            loss = total_loss(targets, logits, rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            train_loss += float(loss.detach()) * len(rows) / len(train_rows)

        logits, _ = infer(model, data, val_rows)
        val_loss = float(total_loss(targets, logits, torch.from_numpy(val_rows)))
        seconds = time.perf_counter() - started
        history.append({"epoch": epoch, "train_loss": train_loss, "val_loss": val_loss, "seconds": seconds})
        section = "training" if isinstance(training, TrainingConfig) else "encoder_training"
        if not math.isfinite(train_loss) or not math.isfinite(val_loss):
            raise TriadError(
                f"The loss became {train_loss if not math.isfinite(train_loss) else val_loss} in epoch {epoch} "
                f"(seed {seed}). Lower the learning rate: --set {section}.lr={training.lr / 10:g}"
            )
        if val_loss < best_loss:
            best_loss, best_epoch, best_weights = val_loss, epoch, copy.deepcopy(model.state_dict())
        if progress is not None:
            progress(epoch, training.epochs)
        if epoch - best_epoch >= training.patience:
            break

    model.load_state_dict(best_weights)
    return Trained(model.eval(), targets, best_epoch, history)


def total_loss(targets: Sequence[Objective], logits: Sequence[Tensor], rows: Tensor) -> Tensor:
    """The weighted sum of the targets' losses over some rows."""
    return torch.stack([t.loss_weight * t.loss(out, rows) for t, out in zip(targets, logits, strict=True)]).sum()


@torch.inference_mode()
def infer(
    model: nn.Module, data: TrainingData, rows: np.ndarray, present: Tensor | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """Logits (n, K) for each target, and slot weights (n, M) or `None`, for some rows.

    present: bool (n, M) in place of what is there, to hide slots from the model.
    """
    model.eval()
    outputs, weights = [], []
    indices = torch.from_numpy(rows)
    shown = data.present[indices] if present is None else present
    size = data.evaluation_batch
    for (_, inputs), visible in zip(data.batches(indices.split(size)), shown.split(size), strict=True):
        logits, importance = model(inputs, visible)
        outputs.append(logits)
        weights.append(importance)
    joined = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return joined, None if weights[0] is None else torch.cat(weights)


def _with_a_label(rows: np.ndarray, targets: Sequence[Objective]) -> np.ndarray:
    known = torch.stack([target.known for target in targets]).any(dim=0).numpy()
    kept: np.ndarray = rows[known[rows]]
    return kept
