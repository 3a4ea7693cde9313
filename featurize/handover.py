"""Large arrays from worker processes to this one: through memory that both can reach, not through a pipe.

A pipe takes 64 KiB at a time, and most of what it costs is paid by the process that runs the model, with Python's lock
held (docs/experiments.md). Here a worker writes the arrays of an item into a slot of a file in memory; only what is
left of the item travels. The file belongs to this process and has no name: however this process ends, nothing stays
behind. Where there is no such file, as outside Linux, and for items larger than a slot, all of it travels.
"""

from __future__ import annotations

import os
import pickle
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SLOT_BYTES = 16 * 2**20  # a slot takes no more memory than was ever written to it
FEWEST_BYTES = 2**16  # a pipe takes less than that at once
MOST_ARRAYS = 256  # the system writes so many at once, and more


@dataclass(frozen=True)
class Packed:
    """An item without its arrays: pickled, and how many bytes each of them has in the item's slot."""

    pickled: bytes
    sizes: list[int]


class Slots:
    """The reader's side: one slot for each item that is under way, as long as there are any."""

    def __init__(self, n: int):
        self._free = deque(range(n))
        self._file: int | None = None
        if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
            self._file = os.memfd_create("items")

    @property
    def address(self) -> str | None:
        """Where workers find the file; `None` where there is none."""
        return None if self._file is None else f"/proc/{os.getpid()}/fd/{self._file}"

    def take(self) -> int | None:
        """A slot for one item; `None` where none is free."""
        return self._free.popleft() if self._file is not None and self._free else None

    def unpack(self, found: Any, slot: int | None) -> Any:
        """What a worker returned, whole. The slot, which was the item's, is free again."""
        if slot is None:
            return found
        if isinstance(found, Packed):
            assert self._file is not None
            arrays = np.empty(sum(found.sizes), np.uint8).data
            os.preadv(self._file, [arrays], slot * SLOT_BYTES)
            ends = np.cumsum(found.sizes).tolist()
            parts = [arrays[end - size : end] for end, size in zip(ends, found.sizes, strict=True)]
            found = pickle.loads(found.pickled, buffers=parts)
        self._free.append(slot)
        return found

    def close(self) -> None:
        """Give the memory back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class SlotWriter:
    """The worker's side."""

    def __init__(self, address: str | None):
        self._file: int | None = None
        if address is not None:
            try:
                self._file = os.open(address, os.O_WRONLY)
            except OSError:  # this process may not look into the other: all travels
                return

    def pack(self, item: Any, slot: int | None) -> Any:
        """What to return in place of an item: `Packed`, or the item as it is where that is not worth it."""
        if self._file is None or slot is None:
            return item
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(item, protocol=5, buffer_callback=buffers.append)
        arrays = [buffer.raw() for buffer in buffers]
        sizes = [array.nbytes for array in arrays]
        if not FEWEST_BYTES <= sum(sizes) <= SLOT_BYTES or len(arrays) > MOST_ARRAYS:
            return item
        try:
            written = os.pwritev(self._file, arrays, slot * SLOT_BYTES)
        except OSError:  # no memory for it
            return item
        return Packed(pickled, sizes) if written == sum(sizes) else item
