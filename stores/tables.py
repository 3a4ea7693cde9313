"""A store and its features as Arrow tables and pandas frames: a row a segment, null where there is nothing.

segment_id, group     text
start_seconds, …      where the data state them
<label>               as it is; a label that bears the name of another column is called `label.<name>`
vector, or slot/name  fixed-size lists of floats, null where the status is not present
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from stores.base import ArrayTree
from stores.errors import StoreError
from stores.feature import Feature, Status
from stores.store import Store

TIMES = ("start_seconds", "end_seconds")


def store_table(store: Store) -> pa.Table:
    """All segments with all features. Raises `DamagedStore`."""
    names = store.features()
    return _with_vectors(store, {name: store.feature(name) for name in names})


def feature_table(tree: ArrayTree, feature: Feature) -> pa.Table:
    """All segments with one feature, whose column is `vector`."""
    return _with_vectors(Store(tree), {"vector": feature})


def to_pandas(table: pa.Table) -> Any:
    """The table as a `pandas.DataFrame`, its index the segments' ids. Raises `StoreError` without pandas."""
    try:
        frame = table.to_pandas()
    except ImportError as error:
        raise StoreError("pandas is not installed, and to_pandas() needs it: pip install pandas") from error
    return frame.set_index("segment_id")


def segment_columns(store: Store, taken: Iterable[str] = ()) -> dict[str, Any]:
    """Ids, groups, times and labels, by the name of their column. taken: names that no label may have."""
    columns: dict[str, Any] = {"segment_id": _text(store.ids), "group": _text(store.groups)}
    for name in TIMES:
        if name in store.segment_columns():
            columns[name] = pa.array(store.segment_column(name), from_pandas=True)
    for name in store.label_names():
        taken = {*taken, *columns}
        columns[f"label.{name}" if name in taken else name] = label_column(store.label(name))
    return columns


def label_column(values: np.ndarray) -> pa.Array:
    """(N,) or (N, K); a missing label is null."""
    if values.dtype.kind == "T":
        return pa.array([value or None for value in values.tolist()], pa.string())
    if values.ndim == 2:
        return pa.array([None if np.isnan(row).any() else row.tolist() for row in values])
    return pa.array(values, from_pandas=True)


def vector_column(vectors: np.ndarray, present: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """float (n, D) as lists, null where `present`, bool (n,), is false."""
    kind = pa.list_(pa.from_numpy_dtype(vectors.dtype), vectors.shape[1])
    mask = None if present is None else pa.array(~present)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), type=kind, mask=mask)


def _with_vectors(store: Store, features: Mapping[str, Feature]) -> pa.Table:
    columns = segment_columns(store, taken=features)
    for name, feature in features.items():
        status = feature.status
        columns[name] = vector_column(feature.read_vectors(status=status), status == Status.PRESENT)
    return pa.table(columns)


def _text(values: np.ndarray) -> pa.Array:
    return pa.array(values.tolist(), pa.string())
