"""The same training as others would write it: a `LightningModule`, a `Dataset` of rows, a `DataLoader`."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fusion.config import TrainingConfig

LossOf = Callable[[nn.Module, Any], Tensor]  # of a model and a batch, a mean over the batch's rows


def cosine(step: int, n_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, step / n_steps)))


def make_adamw(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=training.lr, eps=training.adam_epsilon, weight_decay=training.weight_decay, fused=True
    )


def fit_in_lightning(
    model: nn.Module,
    train_set: Dataset,
    val_set: Dataset,
    loss_of: LossOf,
    training: TrainingConfig,
    precision: Any = "32-true",
) -> float:
    """The best validation loss. No logger, checkpoints or progress bar: what is left is the loop."""
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    loaders = [DataLoader(train_set, training.batch_size, shuffle=True), DataLoader(val_set, training.batch_size)]

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.losses, self.best = model, [], math.inf

        def training_step(self, batch: Any, _: int) -> Tensor:
            return loss_of(self.model, batch)

        def validation_step(self, batch: Any, _: int) -> None:
            n = len(batch[-1])
            self.losses.append((n * float(loss_of(self.model, batch)), n))

        def on_validation_epoch_end(self) -> None:
            sums, counts = zip(*self.losses, strict=True)
            self.best = min(self.best, sum(sums) / sum(counts))
            self.losses.clear()

        def configure_optimizers(self) -> Any:
            optimizer, n_steps = make_adamw(self.model, training), training.epochs * len(loaders[0])
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, n_steps))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=training.epochs,
        accelerator="cpu",
        precision=precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, *loaders)
    return module.best
