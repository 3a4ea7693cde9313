"""The one training loop. Read it top to bottom: seed, model, optimizer, epochs, best weights.

A batch goes through in pieces where `micro_batch_size` says so. The pieces' losses are weighted by what each target's
mean divides by, so that their gradients add up to the batch's.

Where a batch comes from is the data's affair (`batches`), and so is the order of an epoch (`epoch_order`): stored
vectors are whole tensors and a batch is an index into them (`fusion.data`), or they are larger than memory and come in
windows (`fusion.streaming`); raw segments are prepared on the way and pass through their encoder (`fusion.raw_data`).

The order of an epoch and the slots that are hidden in it are drawn on the CPU, so that a seed means the same
everywhere, and go to the device at once. While an epoch lasts nothing is read from there, neither losses nor norms
(`fusion.device`).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fusion.averaging import WeightAverage
from fusion.balance import SlotBalance
from fusion.checkpoint import Best, Checkpoint, TrainingState
from fusion.config import FusionConfig, LoopConfig, TrainingConfig
from fusion.data import StoredSegments
from fusion.device import training_device
from fusion.early_stopping import StoppingRule
from fusion.missing import drop_slots
from fusion.model import FusionModel
from fusion.modules import build_fusion
from fusion.objective import EpochLoss, Objective, total_loss
from fusion.optimization import SlotGradients, make_optimizer
from fusion.precision import resolved
from fusion.targets import Target
from stores.errors import TriadError


class TrainingData(Protocol):
    """What the loop learns from. Only batches are on the device; a model that has another brings its logits back."""

    @property
    def present(self) -> Tensor:
        """bool (N, M): which slots each segment has."""

    @property
    def device(self) -> torch.device:
        """Of batches, and of the row numbers and labels that belong to them."""

    @property
    def evaluation_batch(self) -> int:
        """Rows that fit in memory at once where nothing is learned."""

    def epoch_order(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Row numbers (n,) in the order in which an epoch learns from them; each once."""

    def batches(self, rows: Sequence[Tensor], augmentation_seed: int | None = None) -> Iterator[tuple[Tensor, Any]]:
        """For each batch of row numbers (B,), in order: these, and what the model takes as its first argument.

        augmentation_seed: of this epoch's changes to the inputs; `None` changes nothing.
        """


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
    data: StoredSegments,
    targets: Sequence[Target],
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    fusion: FusionConfig,
    training: TrainingConfig,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> Trained:
    """Fit one fusion on stored vectors. train_rows, val_rows: int64 (n,). The model comes back on the CPU.

    Raises `ConfigError` where `training.device` is not there, `TriadError` as `train_model` does.
    """
    torch.manual_seed(seed)
    device = training_device(training.device)
    training = resolved(training, device)
    train_rows = _with_a_label(train_rows, targets)
    for target in targets:
        target.fitted_to(train_rows)  # refuses what cannot be learned, before a model is built for it
    module = build_fusion(
        fusion.strategy, data.widths, fusion.hidden_dim, fusion.dropout, fusion.attention_heads, fusion.options
    )
    model = FusionModel(module, data.widths, targets, fusion.dropout, tuple(data.max_frames)).to(device)
    data = data.to(device)
    for index, slot in enumerate(data.slots):
        rows = torch.from_numpy(train_rows[data.present[train_rows, index].numpy()]).to(device)
        batches = data.only([slot]).batches(rows.split(data.evaluation_batch))
        model.fit_standardization(slot, (inputs[slot] for _, inputs in batches))
    data = data.standardized(model, torch.bfloat16 if training.precision == "bf16" else torch.float32)
    trained = train_model(model, data, targets, train_rows, val_rows, training, seed, checkpoint=checkpoint)
    model.cpu()
    return trained


def train_model(
    model: nn.Module,
    data: TrainingData,
    targets: Sequence[Objective],
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    training: LoopConfig,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    checkpoint: Checkpoint | None = None,
    first_epoch: int = 1,
    watch: Callable[[Sequence[dict[str, Any]]], None] | None = None,
) -> Trained:
    """Fit a model, stopping early by what validation says. It is called as `model(inputs, present)`.

    train_rows, val_rows: int64 (n,). progress: called with epochs done and epochs at most. watch: called after each
    epoch with the history so far. checkpoint: where it goes on from, and saves what it has. first_epoch: 0 for a model
    that has learned before; in epoch 0 it takes no step, and may stay the best. Raises `TriadError` where the loss
    becomes NaN, or where no validation row has a label.
    """
    generator = torch.Generator().manual_seed(seed)  # order and dropped slots, apart from weights and dropout
    train_rows, val_rows = _with_a_label(train_rows, targets), _with_a_label(val_rows, targets)
    targets = [target.fitted_to(train_rows) for target in targets]
    learned = [target.to(data.device) for target in targets]
    if len(val_rows) == 0:
        raise TriadError("No validation segment has a label, so there is nothing to stop by. Make another split.")

    batch_size = training.batch_size
    piece_size = training.micro_batch_size or batch_size
    steps_per_epoch = math.ceil(len(train_rows) / batch_size)
    device = next(model.parameters()).device
    gradients = SlotGradients(model, training)
    balance = SlotBalance(model, learned, training)  # its heads are optimized with the model, not clipped with it
    optimizer, schedule = make_optimizer(model, training, training.epochs * steps_per_epoch)
    stopping = StoppingRule(training.early_stopping, targets)
    averaged = WeightAverage(model, training.weight_averaging)

    none_yet = Best(math.inf, 0, copy.deepcopy(model.state_dict()))
    state = TrainingState(model, optimizer, schedule, generator, none_yet, averaged)
    if checkpoint is not None:
        checkpoint.restore(state)
    while (
        done := first_epoch - 1 + len(state.history)
    ) < training.epochs and done - state.best.epoch < training.patience:
        epoch = done + 1
        started = time.perf_counter()
        model.train()
        batches: Sequence[Tensor] = ()
        presence: Sequence[Tensor] = ()
        if epoch:
            order = data.epoch_order(torch.from_numpy(train_rows), generator)
            present = drop_slots(data.present[order], training.modality_dropout, generator)
            batches, presence = (of_all.to(data.device).split(batch_size) for of_all in (order, present))
        pieces = [piece for batch in batches for piece in batch.split(piece_size)]
        inputs_of_pieces = data.batches(pieces, augmentation_seed=seed * 10_000 + epoch)
        losses = EpochLoss()
        for batch, present in zip(batches, presence, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for shown in present.split(piece_size):
                rows, inputs = next(inputs_of_pieces)
                with torch.autocast(device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                    logits, slots_alone = balance.forward(inputs, shown, rows, batch, present)
                loss = total_loss(learned, [out.float() for out in logits], rows, batch)
                (loss + slots_alone).backward()
                losses.add(loss, len(batch))
            balance.modulate()
            gradients.clip()
            optimizer.step()
            schedule.step()
            averaged.update()

        train_loss, norms = losses.read(len(train_rows)), gradients.read()
        logits, _ = infer(averaged.model, data, val_rows)
        val_loss = float(total_loss(targets, logits, torch.from_numpy(val_rows)))
        badness = stopping.badness(val_loss, logits, val_rows)
        seconds = time.perf_counter() - started
        facts = {"epoch": epoch, "train_loss": train_loss if epoch else None, "val_loss": val_loss, "seconds": seconds}
        state.history.append({**facts, **{f"gradient_norm.{slot}": norm for slot, norm in norms.items()}})
        if gradients.blown_up or not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            culprits = gradients.blown_up or ([max(norms, key=lambda slot: norms[slot])] if norms else [])
            raise _diverged(train_loss, val_loss, culprits, training, epoch, seed, checkpoint)
        if badness < state.best.badness:
            state.best = Best(badness, epoch, copy.deepcopy(averaged.model.state_dict()))
        if progress is not None:
            progress(epoch, training.epochs)
        if watch is not None:
            watch(state.history)
        if checkpoint is not None:
            checkpoint.save(state)
    if checkpoint is not None:
        checkpoint.save(state, now=True)
    model.load_state_dict(state.best.weights)
    balance.finish()
    return Trained(model.eval(), targets, state.best.epoch, state.history)


@torch.inference_mode()
def infer(
    model: nn.Module, data: TrainingData, rows: np.ndarray, present: Tensor | None = None
) -> tuple[list[Tensor], Tensor | None]:
    """Logits (n, K) for each target, and slot weights (n, M) or `None`, for some rows; on the CPU.

    present: bool (n, M) in place of what is there, to hide slots from the model.
    """
    model.eval()
    found: list[Tensor] = []  # outputs, and weights where there are; made at once, or heaps stay full of holes
    indices = torch.from_numpy(rows)
    shown = (data.present[indices] if present is None else present).to(data.device)
    indices = indices.to(data.device)
    size, start = data.evaluation_batch, 0
    for (_, inputs), visible in zip(data.batches(indices.split(size)), shown.split(size), strict=True):
        logits, weights = model(inputs, visible)
        parts = [*logits] if weights is None else [*logits, weights]
        found = found or [part.new_empty(len(rows), *part.shape[1:], dtype=torch.float32) for part in parts]
        for whole, part in zip(found, parts, strict=True):
            whole[start : start + len(part)] = part
        start += len(visible)
    found = [whole.cpu() for whole in found]
    return found[: len(logits)], None if weights is None else found[-1]


def _diverged(
    train_loss: float,
    val_loss: float,
    culprits: list[str],
    training: LoopConfig,
    epoch: int,
    seed: int,
    checkpoint: Checkpoint | None,
) -> TriadError:
    """Raised before this epoch's weights are kept or saved: what a checkpoint holds is from before."""
    broken = [loss for loss in (train_loss, val_loss) if not math.isfinite(loss)]
    what = f"The loss became {broken[0]}" if broken else "Gradients became infinite"
    where = f"; the gradients of {', '.join(culprits)} blew up" if culprits else ""
    saved = None if checkpoint is None else checkpoint.saved_epochs
    kept = f"the checkpoint of epoch {saved}, {checkpoint.path}" if checkpoint and saved else "nothing of this training"
    return TriadError(
        f"{what} in epoch {epoch} (seed {seed}){where}. Lower the learning rate: "
        f"--set {training.section}.lr={training.lr / 10:g}\nKept: {kept}; runs that were finished are as they were."
    )


def _with_a_label(rows: np.ndarray, targets: Sequence[Objective]) -> np.ndarray:
    known = torch.stack([target.known for target in targets]).any(dim=0).numpy()
    kept: np.ndarray = rows[known[rows]]
    return kept
