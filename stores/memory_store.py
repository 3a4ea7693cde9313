"""A store in memory: for tests, and for trying things without a folder."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from stores.base import ArrayTree, Attributes
from stores.errors import StoreError


class MemoryTree(ArrayTree):
    """A store that ends with its process: for tests, and for data that is there already."""

    location = "memory"

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        self._chunk_rows: dict[str, int] = {}
        self._written: dict[str, set[int]] = {}
        self._attributes: dict[str, Attributes] = {}

    def create(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> None:
        self.delete(path)
        self._arrays[path] = np.zeros(shape, dtype)
        self._chunk_rows[path] = chunk_rows
        self._written[path] = set()

    def read(self, path: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._array(path)[start:stop].copy()

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        self._array(path)[start : start + len(values)] = values
        rows = self._chunk_rows[path]
        self._written[path].update(range(start // rows, -(-(start + len(values)) // rows)))

    def stored_chunks(self, path: str) -> set[int]:
        self._array(path)
        return set(self._written[path])

    def layout(self, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        array = self._array(path)
        return array.shape, array.dtype, self._chunk_rows[path]

    def children(self, path: str) -> list[str]:
        prefix = f"{path}/" if path else ""
        below = {*self._arrays, *self._attributes} - {""}
        return sorted({name[len(prefix) :].split("/")[0] for name in below if name.startswith(prefix)})

    def attributes(self, path: str) -> Attributes:
        return copy.deepcopy(self._attributes.get(path, {}))

    def set_attributes(self, path: str, attributes: Attributes) -> None:
        self._attributes[path] = copy.deepcopy(attributes)

    def delete(self, path: str) -> None:
        for table in (self._arrays, self._chunk_rows, self._written, self._attributes):
            for name in [name for name in table if name == path or name.startswith(f"{path}/")]:
                del table[name]  # type: ignore[attr-defined]

    def _array(self, path: str) -> np.ndarray:
        if path not in self._arrays:
            raise StoreError(f"{self.location} has no array {path!r}.")
        return self._arrays[path]
