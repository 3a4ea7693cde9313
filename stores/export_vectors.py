"""A store's vectors as one file that other programs read: parquet with list columns, npz, or HDF5.

Each feature `slot/encoder` becomes `slot.encoder_embedding` beside a flag `has_slot.encoder_embedding`, which is what
`cli import` looks for; zeros where it is false. Parquet has groups, times and labels too, and makes a
store again. Frames and encoder records stay in the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stores.errors import StoreError, disk_told
from stores.feature import Feature, Status
from stores.store import Store

SUFFIXES = {"parquet": ".parquet", "npz": ".npz", "hdf5": ".h5"}
BLOCK_ROWS = 8192


def export_vectors(store: Store, path: Path, kind: str, names: Sequence[str] = ()) -> dict[str, str]:
    """Write these features, all where none is named. Returns column to feature. The file appears when it is whole.

    Raises `StoreError` on an unknown feature, or where rows of one are not encoded yet.
    """
    features = [store.feature(name) for name in names or store.features()]
    if not features:
        raise StoreError(f"{store.tree.location} has no feature to export. cli featurize --encoder NAME makes one.")
    for feature in features:
        pending = int((feature.status == Status.PENDING).sum())
        if pending:
            raise StoreError(
                f"{feature.name} has {pending:,} rows that are not encoded yet. Finish it, or name others: --feature"
            )
    columns = {f"{feature.slot}.{feature.encoder}_embedding": feature for feature in features}
    if len(columns) < len(features):  # a/b.c and a.b/c
        raise StoreError(f"Two of {', '.join(f.name for f in features)} would share a column. Export one: --feature")
    partial = path.with_name(f".{path.name}.partial")
    with disk_told(path):
        try:
            WRITERS[kind](store, columns, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return {column: feature.name for column, feature in columns.items()}


def _write_parquet(store: Store, columns: dict[str, Feature], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from stores.tables import TIMES, label_column, vector_column

    facts: dict[str, Any] = {"segment_id": store.ids.tolist(), "song_id": store.groups.tolist()}
    for name in TIMES:
        if name in store.segment_columns():
            facts[name] = pa.array(store.segment_column(name), from_pandas=True)
    for name in store.label_names():
        if name not in facts:
            facts[name] = label_column(store.label(name))
    table = pa.table(facts)
    writer = None
    try:
        for rows in _blocks(store):
            block = table.slice(rows.start, len(rows))
            for column, feature in columns.items():
                block = block.append_column(column, vector_column(feature.read_vectors(rows)))
                block = block.append_column(f"has_{column}", pa.array(_present(feature, rows)))
            writer = writer or pq.ParquetWriter(path, block.schema)
            writer.write_table(block)
    finally:
        if writer is not None:
            writer.close()


def _write_npz(store: Store, columns: dict[str, Feature], path: Path) -> None:
    arrays: dict[str, Any] = {"segment_id": np.array(store.ids.tolist(), dtype="U")}
    for column, feature in columns.items():
        arrays[column] = feature.vectors[:]
        arrays[f"has_{column}"] = feature.present
    with path.open("wb") as file:  # given a name, numpy would add .npz to it
        np.savez(file, **arrays)


def _write_hdf5(store: Store, columns: dict[str, Feature], path: Path) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset("segment_id", data=store.ids.tolist(), dtype=h5py.string_dtype())
        for column, feature in columns.items():
            vectors = file.create_dataset(column, (store.n_segments, feature.width), feature.dtype)
            for rows in _blocks(store):
                vectors[rows.start : rows.stop] = feature.read_vectors(rows)
            file.create_dataset(f"has_{column}", data=feature.present)


WRITERS: dict[str, Callable[[Store, dict[str, Feature], Path], None]] = {
    "parquet": _write_parquet,
    "npz": _write_npz,
    "hdf5": _write_hdf5,
}


def _blocks(store: Store) -> Iterator[range]:
    for start in range(0, store.n_segments, BLOCK_ROWS):
        yield range(start, min(start + BLOCK_ROWS, store.n_segments))


def _present(feature: Feature, rows: range) -> np.ndarray:
    there: np.ndarray = feature.read_status(rows) == Status.PRESENT
    return there
