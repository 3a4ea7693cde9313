"""Where streamed rows are read from: the chunks of a store, or a temporary file of some rows.

A source holds rows at *places*, which are cut in chunks of `chunk_rows`. A chunk is read whole, one slot at a time, and
comes as arrays by kind: `vectors` (n, D), and where a slot has frames `frames` (n, T, D) and `n_frames` (n,).
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np

from stores.feature import Feature

Arrays = dict[str, np.ndarray]  # kind -> (n, …)
FILE_CHUNK_ROWS = 1024


class RowSource(Protocol):
    """Where streamed rows are read from, chunk by chunk."""

    chunk_rows: int
    parallel_reads: int  # how many at a time pay

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where these rows of the store are, int64 (n,)."""

    def empty(self, slot: str, n: int) -> Arrays:
        """Room for n rows."""

    def read(self, slot: str, chunk: int) -> Arrays:
        """Raises `DamagedStore` on bad bytes."""


class StoreChunks:
    """Every row of a store; its place is its number. statuses: by slot, uint8 (N,). frame_slots: read with frames."""

    def __init__(
        self,
        features: Mapping[str, Feature],
        statuses: Mapping[str, np.ndarray],
        frame_slots: Iterable[str],
        chunk_rows: int,
    ):
        self.chunk_rows = chunk_rows
        self.parallel_reads = max(feature.parallel_reads for feature in features.values())
        for feature in features.values():
            feature.read_often()
        self.features = dict(features)
        self._statuses = dict(statuses)
        self._frame_slots = set(frame_slots)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """The rows themselves, int64 (n,)."""
        return rows

    def row_bytes(self, slot: str) -> int:
        """Bytes of one row of a slot."""
        return sum(array.nbytes for array in self.empty(slot, 1).values())

    def empty(self, slot: str, n: int) -> Arrays:
        """Room for n rows: vectors (n, D), and frames (n, T, D) where they are read."""
        feature = self.features[slot]
        found = {"vectors": np.empty((n, feature.width), feature.dtype)}
        if slot in self._frame_slots:
            found["frames"] = np.empty((n, feature.max_frames, feature.width), feature.dtype)
            found["n_frames"] = np.empty(n, np.uint16)
        return found

    def read(self, slot: str, chunk: int) -> Arrays:
        """A chunk of a slot, from the store. Raises `DamagedStore` on bad bytes."""
        feature, status = self.features[slot], self._statuses[slot]
        rows = range(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, len(status)))
        known = status[rows.start : rows.stop]
        found = {"vectors": feature.read_vectors(rows, known)}
        if slot in self._frame_slots:
            found |= {"frames": feature.read_frames(rows, known), "n_frames": feature.read_n_frames(rows, known)}
        return found


class RowFile:
    """Some rows of some slots, one after the other; the files vanish with it. rows: ascending.

    like: the source that they come from. folder: where the files are; the system's for temporary files where `None`.
    """

    chunk_rows = FILE_CHUNK_ROWS
    parallel_reads = 1

    def __init__(self, rows: np.ndarray, like: RowSource, folder: Path | None):
        self._rows = rows
        self._like = like
        self._folder = folder
        self._files: dict[tuple[str, str], Any] = {}
        self._lock = Lock()
        self._exits = ExitStack()
        weakref.finalize(self, self._exits.close)

    def append(self, slot: str, arrays: Arrays) -> None:
        """The next rows of a slot."""
        for kind, values in arrays.items():
            if (slot, kind) not in self._files:
                file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
                self._files[slot, kind] = self._exits.enter_context(file)
            self._files[slot, kind].write(np.ascontiguousarray(values).data)

    def has(self, rows: np.ndarray) -> bool:
        """Whether all these rows (n,) are here."""
        places = self.places(rows).clip(max=len(self._rows) - 1)
        return len(self._rows) > 0 and bool((self._rows[places] == rows).all())

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where these rows are in the file, int64 (n,)."""
        return np.searchsorted(self._rows, rows)

    def empty(self, slot: str, n: int) -> Arrays:
        """Room for n rows, as the store's chunks have it."""
        return self._like.empty(slot, n)

    def read(self, slot: str, chunk: int) -> Arrays:
        """A chunk of a slot, from the file."""
        start = chunk * self.chunk_rows
        found = self.empty(slot, min(self.chunk_rows, len(self._rows) - start))
        for kind, values in found.items():
            file = self._files[slot, kind]
            with self._lock:
                file.seek(start * (values.nbytes // len(values)))
                file.readinto(values.data.cast("B"))
        return found
