"""How long does a grid of fusions, slot subsets and seeds take in `ablate`, and how long in Lightning, fit after fit?

    python -m benchmarks.ablate                    # 4 fusions x 7 subsets x 1 seed, 3 epochs each, five pairs
    python -m benchmarks.ablate --whole            # and `ablate`'s cells alone: 5 seeds, 30 epochs at most

The segments of `benchmarks.bayes`. `ablate` runs its cells in two processes, a thread each, their start included; the
same models (`fusion.model.FusionModel`) train in Lightning with all threads, its default precision, a `Dataset` of rows
in a `DataLoader`, one after another. Every fit has the same number of epochs, so that both do the same work.

The time of the grid is also given in units of its floating-point operations, as PyTorch counts those of a step, at this
machine's rate for large bfloat16 matrices: 1 would be a machine that does nothing else.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from benchmarks.bayes import KINDS, N_SEGMENTS, Task, make_task
from benchmarks.lightning_loop import fit_in_lightning
from benchmarks.pairs import paired
from fusion.ablation import Cell, Cells, Model
from fusion.cell_pool import run_cells
from fusion.config import Config, FusionConfig, ModelConfig, TrainingConfig
from fusion.data import SegmentData
from fusion.evaluate import patterns
from fusion.missing import drop_slots
from fusion.model import FusionModel
from fusion.modules import build_fusion
from stores.store import Part, Split

FUSIONS_OF_THE_CARD = ("late", "early", "cross_attention", "gated")
MATRIX = 4096


def make_split(task: Task, n: int) -> Split:
    parts = np.full(n, Part.TEST, np.uint8)
    parts[task.train_rows], parts[task.val_rows] = Part.TRAIN, Part.VAL
    return Split("default", parts, {"method": "grouped", "seed": 0})


def grid(data: SegmentData, seeds: int) -> list[Cell]:
    return [
        Cell(Model(fusion, subset), 0, seed)
        for fusion in FUSIONS_OF_THE_CARD
        for subset in patterns(data.slots)
        for seed in range(seeds)
    ]


def seconds_in_ablate(task: Task, data: SegmentData, config: Config, cells: Sequence[Cell], workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        made = Cells(data, [task.target], [make_split(task, len(data.ids))], config, Path(folder))
        assert len(list(run_cells(made, cells, workers))) == len(cells)
        return time.perf_counter() - started


class Rows(Dataset):
    """One segment at a time: its slots' vectors, which of them are there, and its class."""

    def __init__(self, data: SegmentData, truth: Tensor, rows: np.ndarray):
        self.data, self.truth, self.rows = data, truth, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        row = self.rows[index]
        vectors = {slot: values[row] for slot, values in self.data.vectors.items()}
        return vectors, self.data.present[row], self.truth[row]


def make_model(task: Task, data: SegmentData, fusion: FusionConfig, strategy: str) -> FusionModel:
    module = build_fusion(strategy, data.widths, fusion.hidden_dim, fusion.dropout, fusion.attention_heads, {})
    model = FusionModel(module, data.widths, [task.target], fusion.dropout)
    for index, slot in enumerate(data.slots):
        rows = task.train_rows[data.present[task.train_rows, index].numpy()]
        model.fit_standardization(slot, [data.vectors[slot][rows]])
    return model


def seconds_in_lightning(task: Task, data: SegmentData, config: Config, cells: Sequence[Cell]) -> float:
    training = config.training

    def loss_of(model: nn.Module, batch: Any) -> Tensor:
        vectors, present, truth = batch
        shown = drop_slots(present, training.modality_dropout) if model.training else present
        logits, _ = model(vectors, shown)
        return F.cross_entropy(logits[0].float(), truth)

    started = time.perf_counter()
    for cell in cells:
        torch.manual_seed(cell.seed or 0)
        of_cell = data.only(cell.model.slots)
        model = make_model(task, of_cell, config.model.fusion, cell.model.name)
        sets = (Rows(of_cell, task.target.truth, rows) for rows in (task.train_rows, task.val_rows))
        fit_in_lightning(model, *sets, loss_of, training)
    return time.perf_counter() - started


def operations(task: Task, data: SegmentData, config: Config, cells: Sequence[Cell]) -> float:
    """Floating-point operations of all epochs of all cells: what is there is multiplied, nothing is dropped."""
    total = 0.0
    training = config.training
    for cell in cells:
        of_cell = data.only(cell.model.slots)
        model = make_model(task, of_cell, config.model.fusion, cell.model.name)
        rows = torch.from_numpy(task.train_rows[: training.batch_size])
        _, inputs = next(of_cell.batches([rows]))
        with FlopCounterMode(display=False) as step:
            logits, _ = model(inputs, of_cell.present[rows])
            logits[0].sum().backward()
        of_row = step.get_total_flops() / len(rows)
        total += training.epochs * of_row * (len(task.train_rows) + len(task.val_rows) / 3)  # forward: a third
    return total


def matrix_rate() -> float:
    """Floating-point operations a second in products of large bfloat16 matrices, the best of five."""
    a, b = (torch.randn(MATRIX, MATRIX).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - started)
    return 2 * MATRIX**3 / min(seconds)


@click.command()
@click.option("--segments", default=N_SEGMENTS, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--repetitions", default=5, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--whole", is_flag=True, help="Then 5 seeds and 30 epochs at most, with early stopping, in ablate alone.")
def main(segments: int, seeds: int, epochs: int, repetitions: int, workers: int, whole: bool) -> None:
    print(f"{machine('torch', 'lightning')}, {torch.get_num_threads()} threads")
    task = make_task(KINDS["additive"], segments, 1, 0)
    data = task.data.take(np.arange(segments))
    fusion = FusionConfig(hidden_dim=256)
    config = Config(model=ModelConfig(fusion=fusion), training=TrainingConfig(epochs=epochs, patience=epochs))
    cells = grid(data, seeds)
    print(f"{segments:,} segments, {len(cells)} fits of {epochs} epochs")
    ours = partial(seconds_in_ablate, task, data, config, cells, workers)
    theirs = partial(seconds_in_lightning, task, data, config, cells)
    ratio = paired("ablate", ours, "Lightning", theirs, repetitions)
    print(f"  {ratio}")
    needed, rate = operations(task, data, config, cells), matrix_rate()
    print(
        f"  {needed / 1e12:.2f} TFLOP at {rate / 1e12:.2f} TFLOP/s would take {needed / rate:.2f} s; "
        f"ablate takes {np.median(ratio.a) / (needed / rate):.0f} times that"
    )
    if whole:
        long = config.model_copy(update={"training": TrainingConfig(epochs=30)})
        every = grid(data, 5)
        seconds = seconds_in_ablate(task, data, long, every, workers)
        print(
            f"  {len(every)} fits of at most 30 epochs in ablate: {seconds:.0f} s, {seconds / len(every):.2f} s a fit"
        )


if __name__ == "__main__":
    main()
