"""How long from a store on disk to tensors that a training can take, and how long does `numpy.load` take for as much?

    python -m benchmarks.loading

11,605 segments x (768 + 512 + 512) in float16, a store as `cli featurize` leaves it; beside it the same three matrices
as `.npy` files. `fit` opens the store, checks every chunk's checksum, and finds who is present. Both warm from the page
cache: neither a disk's speed nor its luck is measured.
"""

from __future__ import annotations

import tempfile
import time
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
    return time.perf_counter() - started


@click.command()
@click.option("--segments", default=N_SEGMENTS, show_default=True)
@click.option("--repetitions", default=5, show_default=True)
def main(segments: int, repetitions: int) -> None:
    print(f"{machine('torch', 'zarr', 'numpy')}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder, segments)
        print(
            f"{segments:,} segments: "
            f"{paired('store', lambda: from_store(folder), 'numpy.load', lambda: from_npy(folder), repetitions)}"
        )


if __name__ == "__main__":
    main()
