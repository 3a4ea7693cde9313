"""An array in a store that is read when it is used: it is indexed like numpy's, and numpy takes it for one.

feature.vectors.shape                 # nothing is read
feature.vectors[10:20]                # the chunks of these rows are
feature.vectors[feature.present]      # numpy from here on
np.asarray(feature.vectors), torch.from_dlpack(feature.vectors)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


class StoredArray(NDArrayOperatorsMixin):
    """Rows of a store. Every reading reads the store anew, and gives an array of its own.

    read: consecutive rows to (n, …). chunk_rows: how many are stored together. name: for `repr`.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        chunk_rows: int,
        read: Callable[[range], np.ndarray],
    ):
        self.shape = shape
        self.dtype = dtype
        self._name = name
        self._chunk_rows = chunk_rows
        self._read = read

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that all of it takes in memory."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), self._chunk_rows):
            yield from self[start : start + self._chunk_rows]

    def __repr__(self) -> str:
        return f"<{self._name}: {self.dtype} {self.shape}, read when it is used>"

    def __getitem__(self, key: Any) -> Any:
        """As numpy's. Only the chunks of the rows that the first index names are read."""
        of_rows, rest = (key[0], key[1:]) if isinstance(key, tuple) and key else (key, ())
        if isinstance(of_rows, slice):
            rows = range(len(self))[of_rows]
            if rows.step == 1:
                return self._consecutive(rows)[(slice(None), *rest)]
            return self._scattered(np.arange(rows.start, rows.stop, rows.step))[(slice(None), *rest)]
        if isinstance(of_rows, int | np.integer) and not isinstance(of_rows, bool):
            row = range(len(self))[of_rows]  # `IndexError` where there is none
            return self._consecutive(range(row, row + 1))[(0, *rest)]
        if isinstance(of_rows, list | np.ndarray) and np.ndim(of_rows) == 1 and not _are_lists(rest):
            rows = np.arange(len(self))[np.asarray(of_rows, dtype=None if len(of_rows) else np.intp)]
            return self._scattered(rows)[(slice(None), *rest)]
        return self._consecutive(range(len(self)))[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(f"{self._name} stands in a store; numpy cannot have it without a copy")
        values = self._consecutive(range(len(self)))
        return values if dtype is None else values.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(value) if isinstance(value, StoredArray) else value for value in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def __dlpack__(self, **options: Any) -> Any:
        """For `torch.from_dlpack` and its like in other libraries, none of which this package knows."""
        return np.asarray(self).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return np.empty(0, self.dtype).__dlpack_device__()

    def _consecutive(self, rows: range) -> np.ndarray:
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        values = self._read(rows)
        return values if values.flags.writeable else values.copy()

    def _scattered(self, rows: np.ndarray) -> np.ndarray:
        """rows: int (n,), in any order. Each chunk that has some of them is read once."""
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        order = np.argsort(rows, kind="stable")
        chunks = rows[order] // self._chunk_rows
        for at in np.split(order, np.flatnonzero(np.diff(chunks)) + 1):
            if len(at):
                first, last = int(rows[at[0]]), int(rows[at[-1]])
                values[at] = self._read(range(first, last + 1))[rows[at] - first]
        return values


def _are_lists(indices: tuple[Any, ...]) -> bool:
    """Whether numpy would pair them with the rows, one by one."""
    return any(not isinstance(index, slice | int | np.integer) for index in indices)
