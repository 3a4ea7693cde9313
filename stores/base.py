"""What a backend must provide: a tree of named arrays with attributes. Everything else is `stores.store.Store`.

Conventions
-----------
* A path is slash-separated without a leading slash, e.g. `features/audio/mel_stats/vectors`; `""` is the root.
* The first axis of every array is rows, cut in chunks of `chunk_rows`; a chunk is read and written whole, and a
  write to one chunk is atomic: a reader, or a process that is killed, sees all of it or nothing.
* New arrays read as zeros, or as empty strings.
* Text arrays have numpy's `StringDType`; every other dtype is a fixed-size number or bool.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from stores.remote import Location

STRING = np.dtypes.StringDType()

Attributes = dict[str, Any]  # JSON values


class ArrayTree(ABC):
    """A backend. Subclass it, and `tests/stores_contract.py` tests it."""

    location: str  # for messages: a path, or "memory"
    claims: Location | None = None  # the folder where writers of features say who they are (`stores.claim`)
    parallel_reads: int = 1  # how many reads at a time pay; more than one where each waits for a network

    @abstractmethod
    def create(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> None:
        """Make an array of zeros, replacing whatever was at `path`; parent groups are made as needed."""

    @abstractmethod
    def read(self, path: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of an array (N, …).

        Raises `StoreError` where there is no such array, `DamagedStore` where bytes are bad.
        """

    @abstractmethod
    def write(self, path: str, start: int, values: np.ndarray) -> None:
        """Write rows (n, …) from `start`, which is the first row of a chunk, to the end of a chunk or of the array."""

    @abstractmethod
    def stored_chunks(self, path: str) -> set[int]:
        """Numbers of the chunks that were ever written (and are still there)."""

    def has_chunk(self, path: str, number: int) -> bool:
        """Whether this chunk was ever written (and is still there). To be overridden where listing all costs more."""
        return number in self.stored_chunks(path)

    def written_at(self, path: str, start: int = 0, stop: int | None = None) -> object:
        """Is unequal to what it was once a chunk with any of these rows was written; `None` where nobody can tell."""
        return None

    @abstractmethod
    def layout(self, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape, dtype and rows per chunk of an array."""

    @abstractmethod
    def children(self, path: str) -> list[str]:
        """Names directly below a group, sorted; empty where there is no such group."""

    @abstractmethod
    def attributes(self, path: str) -> Attributes:
        """The attributes of a group or an array; empty where there is none."""

    @abstractmethod
    def set_attributes(self, path: str, attributes: Attributes) -> None:
        """Replace the attributes in one atomic step; a group is made where nothing stands at `path`."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an array or a group with all below it; nothing happens where there is none."""

    def read_often(self) -> None:  # noqa: B027 (a disk is near enough)
        """From now on the same chunks are read again and again: keep copies where that is faster."""

    def appear(self, path: str, make: Callable[[ArrayTree], None], *, alone: bool) -> bool:
        """Let `make` put a group at `path` that nobody sees before it is whole; false where one has come before it.

        What stands there without attributes is a leftover, and is removed. alone: no other process makes it now; where
        others can, a backend has to override this, or `make` would be interrupted by theirs.
        """
        if self.attributes(path):
            return False
        self.delete(path)
        make(self)
        return True

    def remove_chunk_leftovers(self, path: str, chunks: set[int]) -> None:  # noqa: B027 (some backends leave none)
        """Delete temporary files of killed writers of these chunks of an array, which the caller owns."""

    def remove_leftovers(  # noqa: B027 (some backends leave none)
        self, older_than_seconds: float = 600.0, path: str = "", *, deep: bool = True
    ) -> None:
        """Delete temporary files of killed writers at `path`, and below it where `deep`.

        Younger ones may belong to a writer that is alive.
        """
