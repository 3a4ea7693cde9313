"""How long from a store on disk to tensors that a training can take, and how long does `numpy.load` take for as much?

    python -m benchmarks.loading

11,605 segments x (768 + 512 + 512) in float16, a store as `cli featurize` leaves it; beside it the same three matrices,
presence, ids and groups as `.npy` files. `fit` opens the store, checks every chunk's checksum, and finds who is
present. Each reading has a process of its own, as in a `cli fit`, since the first use of so much memory takes longer
than all else; what it imports beforehand is not counted. Both are warm from the page cache: neither a disk's speed nor
its luck is measured. `--same-process` reads again and again into memory that the process has already.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks import machine
from benchmarks.bayes import KINDS, N_SEGMENTS, WIDTHS, make_task
from benchmarks.pairs import paired
from fusion.data import load_segments
from stores import open_store
from stores.feature import Status
from stores.store import Store
from stores.zarr_store import new_zarr_tree

RECORD: dict[str, Any] = {"weights": {}, "parameters": {}, "precision": "fp32", "libraries": {}, "trained_on": None}


def make_files(folder: Path, segments: int) -> None:
    """`features.zarr`, and a `.npy` for each slot."""
    data = make_task(KINDS["additive"], segments, 1, 0).data.take(np.arange(segments))
    with new_zarr_tree(folder / "features.zarr") as tree:
        Store.create(tree, {"id": data.ids, "group": data.groups}, {}, {})
    store = open_store(folder / "features.zarr")
    for index, (slot, vectors) in enumerate(data.vectors.items()):
        present = data.present[:, index].numpy()
        status = np.where(present, Status.PRESENT, Status.ABSENT).astype(np.uint8)
        record = {**RECORD, "modality": slot, "encoder": "drawn", "class_name": "drawn", "width": WIDTHS[slot]}
        feature = store.create_feature(f"{slot}/drawn", record)
        for chunk in feature.chunks():
            rows = np.array(chunk)
            hashes = np.zeros((len(rows), 16), np.uint8)
            feature.write_chunk(chunk, rows, vectors.numpy()[rows], status[rows], hashes, [""] * len(rows))
        np.save(folder / f"{slot}.npy", vectors.numpy())
    columns = {
        "present": data.present.numpy(),
        "ids": np.array(data.ids.tolist()),
        "groups": np.array(data.groups.tolist()),
    }
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", values)


def from_store(folder: Path) -> float:
    started = time.perf_counter()
    store = open_store(folder / "features.zarr")
    data = load_segments(store, {slot: f"{slot}/drawn" for slot in WIDTHS})
    assert sum(vectors.numel() for vectors in data.vectors.values()) == len(data.ids) * sum(WIDTHS.values())
    return time.perf_counter() - started


def from_npy(folder: Path) -> float:
    started = time.perf_counter()
    for slot in WIDTHS:
        torch.from_numpy(np.load(folder / f"{slot}.npy"))
    torch.from_numpy(np.load(folder / "present.npy"))
    np.load(folder / "ids.npy"), np.load(folder / "groups.npy")
    return time.perf_counter() - started


def in_new_process(read: Callable[[Path], float], folder: Path) -> float:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(read, [folder])


@click.command()
@click.option("--segments", default=N_SEGMENTS, show_default=True)
@click.option("--repetitions", default=5, show_default=True)
@click.option("--same-process", is_flag=True, help="Read into memory that the process has already.")
def main(segments: int, repetitions: int, same_process: bool) -> None:
    print(f"{machine('torch', 'zarr', 'numpy')}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, segments)
        sides = [
            partial(read if same_process else partial(in_new_process, read), folder) for read in (from_store, from_npy)
        ]
        print(f"{segments:,} segments: {paired('store', sides[0], 'numpy.load', sides[1], repetitions)}")


if __name__ == "__main__":
    main()
