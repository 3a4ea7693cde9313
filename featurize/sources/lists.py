"""Columns of lists of numbers as flat arrays: no Python object for a number, whatever the column's length.

A cell is a list, or null. A null among a list's numbers is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Lists:
    """lengths: int64 (n,), -1 where a cell is null. values: float32 (sum of the lengths,), cell after cell."""

    lengths: np.ndarray
    values: np.ndarray

    def of_width(self, width: int, among: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Which cells have `width` numbers, int64 (k,), and these, float32 (k, width). among: bool (n,)."""
        fits = self.lengths == width
        rows = np.flatnonzero(fits if among is None else fits & among)
        filled = np.maximum(self.lengths, 0)
        if len(rows) * width == len(self.values):  # all of them: nothing to pick
            return rows, self.values.reshape(len(rows), width)
        starts = np.cumsum(filled) - filled
        return rows, self.values[starts[rows][:, None] + np.arange(width)]


def is_list_of_numbers(kind: pa.DataType) -> bool:
    """Whether a column of this type holds vectors."""
    return is_list(kind) and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists, of whatever kind."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def read_lists(cells: pa.Array | pa.ChunkedArray) -> Lists:
    """The cells of a column for which `is_list_of_numbers`. Numbers beyond float32 become infinite."""
    parts = [_read(chunk) for chunk in (cells.chunks if isinstance(cells, pa.ChunkedArray) else [cells])]
    if not parts:
        return Lists(np.zeros(0, np.int64), np.zeros(0, np.float32))
    return Lists(np.concatenate([part.lengths for part in parts]), np.concatenate([part.values for part in parts]))


def _read(cells: pa.Array) -> Lists:
    lengths: Any = pc.fill_null(pc.list_value_length(cells), -1)
    with np.errstate(over="ignore"):
        values = cells.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)  # null cells have none
    return Lists(lengths.to_numpy(zero_copy_only=False).astype(np.int64), values)
