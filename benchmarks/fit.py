"""What does an epoch of `fit` cost beside a bare PyTorch loop, and beside Lightning?

    python -m benchmarks.fit                    # 11,605 segments, five pairs each, and validation losses of five seeds
    python -m benchmarks.fit --segments 1000 --epochs 2 --repetitions 1 --seeds 1
    python -m benchmarks.fit --device cuda      # both sides on a GPU, without Lightning; and `fit` there beside the CPU

The same tensors (`benchmarks.bayes`: 768 + 512 + 512 in float16, much of it missing), the same 70% of the songs to
learn from and 15% to validate on after each epoch, batches of 256, hidden width 256, the same optimizer and schedule.
Measured is a whole training, from the loaded tensors to the trained model, standardization included, by its epochs.

- `fit` is `fusion.train.train` as `cli fit` calls it, with the defaults: modality dropout, running mean of the weights,
  gradient norms by slot. *Without extras* it does only what the others do, too; losses are compared with that.
- the *bare loop* is what one writes by hand for speed: standardized bfloat16 tensors, zeros for what is missing, an
  index a batch, autocast, fused AdamW; the same head of PyTorch's own layers, `torch.nn.Dropout` among them.
- the *bare loop without dropout* is the same, and nothing is dropped; beside it `fit` drops nothing either.
- *Lightning*: the same head and optimizer in a `LightningModule`, a `Dataset` of rows in a `DataLoader`, its default
  precision (float32) or bf16-mixed, without logging, checkpoints and progress bar.

On a GPU everything lies there, and the bare loop waits for nothing before its end. What the GPU gains is told by the
epoch, as `fit` itself clocks it, validation included, the first one left out: of `late`, and of `early` and
`cross_attention` on 16 frames a slot, of fewer segments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks import machine
from benchmarks.bayes import KINDS, N_SEGMENTS, Task, make_task
from benchmarks.lightning_loop import cosine, fit_in_lightning, make_adamw
from benchmarks.pairs import paired
from fusion.config import FusionConfig, TrainingConfig
from fusion.data import SegmentData
from fusion.device import device_facts, training_device
from fusion.train import train

HIDDEN_DIM = 256
DROPOUT = 0.3
N_FRAMES = 16
WITHOUT_EXTRAS = {"modality_dropout": 0.0, "weight_averaging": 0.0, "slot_weight_decay": None}


class PlainHead(nn.Module):
    """`LateFusion` and its linear head in PyTorch's own layers; what is missing is zeros. List of (B, D) to (B, C)."""

    def __init__(self, widths: Sequence[int], n_classes: int, dropout: float):
        super().__init__()
        self.project = nn.ModuleList([nn.Linear(width, HIDDEN_DIM) for width in widths])
        wide = HIDDEN_DIM * len(widths)
        self.interact = nn.Sequential(
            nn.LayerNorm(wide),
            nn.Linear(wide, HIDDEN_DIM),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM),
        )
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(HIDDEN_DIM, n_classes)
        for projection in self.project:
            nn.init.normal_(projection.weight, std=0.1 / projection.in_features**0.5)
        nn.init.normal_(self.interact[-1].weight, std=0.05)

    def forward(self, vectors: Sequence[Tensor]) -> Tensor:
        projected = [project(self.dropout(slot)) for project, slot in zip(self.project, vectors, strict=True)]
        fused = torch.stack(projected).sum(0) + self.interact(torch.cat(projected, dim=1))
        return self.classify(self.dropout(fused))


def standardized(task: Task, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    """Every slot's vectors by the training rows that are present; zeros where they are not."""
    found = []
    for index, stored in enumerate(task.data.vectors.values()):
        vectors, here = stored.to(device), task.data.present[:, index].to(device)
        rows = torch.from_numpy(task.train_rows).to(device)
        known = vectors[rows[here[rows]]].float()
        ready = (vectors.float() - known.mean(0)) / known.std(0, correction=0)
        found.append(ready.mul_(here[:, None]).to(dtype))
    return found


def bare_loop(task: Task, training: TrainingConfig, dropout: float, seed: int) -> float:
    """The best validation loss."""
    torch.manual_seed(seed)
    device = training.device
    vectors, truth = standardized(task, torch.bfloat16, device), task.target.truth.to(device)
    model = PlainHead([slot.shape[1] for slot in vectors], task.target.n_outputs, dropout).to(device)
    optimizer = make_adamw(model, training)
    train_rows, val_rows = (torch.from_numpy(rows).to(device) for rows in (task.train_rows, task.val_rows))
    n_steps = training.epochs * math.ceil(len(train_rows) / training.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, n_steps))
    losses = []
    for _ in range(training.epochs):
        model.train()
        for rows in train_rows[torch.randperm(len(train_rows), device=device)].split(training.batch_size):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16):
                logits = model([slot[rows] for slot in vectors])
            F.cross_entropy(logits.float(), truth[rows]).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            logits = model([slot[val_rows] for slot in vectors])
        losses.append(F.cross_entropy(logits.float(), truth[val_rows]))
    return float(torch.stack(losses).min())


class Rows(Dataset):
    """One segment at a time, as `torch.utils.data` has it."""

    def __init__(self, vectors: Sequence[Tensor], truth: Tensor, rows: np.ndarray):
        self.vectors, self.truth, self.rows = vectors, truth, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[list[Tensor], Tensor]:
        row = self.rows[index]
        return [slot[row] for slot in self.vectors], self.truth[row]


def lightning_fit(task: Task, training: TrainingConfig, dropout: float, seed: int, precision: Any = "32-true") -> float:
    """The best validation loss."""
    torch.manual_seed(seed)
    vectors, truth = standardized(task, torch.float32), task.target.truth
    model = PlainHead([slot.shape[1] for slot in vectors], task.target.n_outputs, dropout)
    train_set, val_set = (Rows(vectors, truth, rows) for rows in (task.train_rows, task.val_rows))

    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        vectors, truth = batch
        return F.cross_entropy(model(vectors).float(), truth)

    return fit_in_lightning(model, train_set, val_set, loss_of, training, precision)


def our_fit(task: Task, training: TrainingConfig, dropout: float, seed: int) -> float:
    """The best validation loss."""
    fusion = FusionConfig(hidden_dim=HIDDEN_DIM, dropout=dropout)
    trained = train(task.data, [task.target], task.train_rows, task.val_rows, fusion, training, seed)
    return min(epoch["val_loss"] for epoch in trained.history)


def seconds_per_epoch(run: Callable[..., float], task: Task, training: TrainingConfig, dropout: float) -> float:
    started = time.perf_counter()
    run(task, training, dropout, 0)
    if training.device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / training.epochs


def with_frames(data: SegmentData) -> SegmentData:
    """Half to all of 16 frames a row in every slot: its vector, and noise."""
    draw = torch.Generator().manual_seed(0)
    frames, n_frames = {}, {}
    for slot, vectors in data.vectors.items():
        noise = torch.randn(len(vectors), N_FRAMES, vectors.shape[1], generator=draw)
        frames[slot] = noise.mul_(0.3).add_(vectors[:, None]).half()
        n_frames[slot] = torch.randint(N_FRAMES // 2, N_FRAMES + 1, (len(vectors),), generator=draw)
    return replace(data, frames=frames, n_frames=n_frames)


def beside_the_cpu(task: Task, framed: Task, device: str, epochs: int) -> None:
    """What an epoch of `fit` takes on each, and the best validation losses."""
    for strategy, of in (("late", task), ("early", framed), ("cross_attention", framed)):
        fusion = FusionConfig(strategy=strategy, hidden_dim=HIDDEN_DIM, dropout=DROPOUT)
        seconds, losses = {}, {}
        for where in (device, "cpu"):
            training = TrainingConfig(epochs=1 + epochs, patience=1 + epochs, device=where)
            history = train(of.data, [of.target], of.train_rows, of.val_rows, fusion, training, 0).history
            seconds[where] = median(epoch["seconds"] for epoch in history[1:])
            losses[where] = min(epoch["val_loss"] for epoch in history)
        what = f"{strategy}, {len(of.train_rows):,} segments{f', {N_FRAMES} frames' if of.data.frames else ''}"
        times = ", ".join(f"{where} {1000 * taken:,.1f} ms" for where, taken in seconds.items())
        faster = f"{seconds['cpu'] / seconds[device]:.1f} times as fast"
        print(f"  {what}: {times}, {faster}; losses {losses[device]:.4f} and {losses['cpu']:.4f}")


def compare_losses(task: Task, training: TrainingConfig, seeds: int) -> None:
    """Means over seeds with standard deviations, and the difference in pairs with its standard error."""
    runs: dict[str, Callable[..., float]] = {"fit without extras": our_fit, "bare loop": bare_loop}
    if training.device == "cpu":
        runs["Lightning in bf16-mixed"] = partial(lightning_fit, precision="bf16-mixed")
    found = {
        name: np.array([run(task, training, DROPOUT, seed) for seed in range(seeds)]) for name, run in runs.items()
    }
    ours = found["fit without extras"]
    for name, losses in found.items():
        spread = losses.std(ddof=1) if seeds > 1 else math.nan
        difference = ours - losses
        error = difference.std(ddof=1) / seeds**0.5 if seeds > 1 else math.nan
        line = f"  {name}: {losses.mean():.4f} ± {spread:.4f}"
        print(
            line if name == "fit without extras" else f"{line}; fit minus this {difference.mean():+.4f} ± {error:.4f}"
        )


@click.command()
@click.option("--segments", default=N_SEGMENTS, show_default=True)
@click.option("--epochs", default=10, show_default=True, help="Of each measured training.")
@click.option("--repetitions", default=5, show_default=True)
@click.option("--seeds", default=5, show_default=True, help="Of the validation losses; 0 leaves them out.")
@click.option("--loss-epochs", default=30, show_default=True, help="Of a training whose validation loss is compared.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--frame-segments", default=2000, show_default=True, help="Those with frames, where GPU and CPU compare.")
def main(
    segments: int, epochs: int, repetitions: int, seeds: int, loss_epochs: int, device: str, frame_segments: int
) -> None:
    if device == "cpu":
        print(f"{machine('torch', 'lightning')}, {torch.get_num_threads()} threads")
    else:
        print(f"{device_facts(training_device(device))['name']}; {machine('torch')}")
    task = make_task(KINDS["additive"], segments, 1, 0)
    print(f"{segments:,} segments, {len(task.train_rows):,} of them to learn from; seconds per epoch of {epochs}")
    full = TrainingConfig(epochs=epochs, patience=epochs, device=device)
    plain = full.model_copy(update=WITHOUT_EXTRAS)
    pairs: list[tuple[str, TrainingConfig, float, str, Callable[..., float]]] = [
        ("fit", full, DROPOUT, "bare loop", bare_loop),
        ("fit without extras", plain, DROPOUT, "bare loop", bare_loop),
        ("fit without dropout", full, 0.0, "bare loop without dropout", bare_loop),
        ("fit without extras and dropout", plain, 0.0, "bare loop without dropout", bare_loop),
    ]
    if device == "cpu":
        pairs += [
            ("fit", full, DROPOUT, "Lightning", lightning_fit),
            ("fit", full, DROPOUT, "Lightning in bf16-mixed", partial(lightning_fit, precision="bf16-mixed")),
        ]
    for name, training, dropout, other, run in pairs:

        def ours(training: TrainingConfig = training, dropout: float = dropout) -> float:
            return seconds_per_epoch(our_fit, task, training, dropout)

        def theirs(run: Callable[..., float] = run, dropout: float = dropout) -> float:
            return seconds_per_epoch(run, task, plain, dropout)

        print(f"  {paired(name, ours, other, theirs, repetitions)}")
    if seeds:
        print(f"Best validation loss in {loss_epochs} epochs, {seeds} seeds:")
        compare_losses(task, plain.model_copy(update={"epochs": loss_epochs, "patience": loss_epochs}), seeds)
    if device != "cpu":
        framed = make_task(KINDS["additive"], frame_segments, 1, 0)
        framed = replace(framed, data=with_frames(framed.data))
        print("Where an epoch is computed:")
        beside_the_cpu(task, framed, device, epochs=min(epochs, 2))


if __name__ == "__main__":
    main()
