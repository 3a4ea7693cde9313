"""Large arrays from worker processes to this one: through memory that both can reach, not through a pipe.

A pipe takes 64 KiB at a time, and most of what it costs is paid by the process that runs the model, with Python's lock
held (docs/experiments.md). Here a worker writes the large arrays of an item into a slot of a file in memory; only what
is left of the item travels. The file belongs to this process and has no name: however this process ends, nothing stays
behind. Where there is no such file, as outside Linux, and for items larger than a slot, all of it travels.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SLOT_BYTES = 16 * 2**20  # a slot takes no more memory than was ever written to it
FEWEST_BYTES = 2**16  # of an array: less is as quickly sent


@dataclass(frozen=True)
class _Hole:
    """Where an array belongs: number `at` of those in the slot."""

    at: int


@dataclass(frozen=True)
class Packed:
    """An item with holes in place of its large arrays, and their shapes and types as they lie in its slot."""

    item: Any
    arrays: list[tuple[tuple[int, ...], np.dtype[Any]]]


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
            arrays = [np.empty(shape, dtype) for shape, dtype in found.arrays]
            os.preadv(self._file, [_bytes_of(array) for array in arrays], slot * SLOT_BYTES)
            found = _mapped(found.item, lambda part: arrays[part.at] if isinstance(part, _Hole) else part)
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
            with suppress(OSError):  # this process may not look into the other: all travels
                self._file = os.open(address, os.O_WRONLY)

    def pack(self, item: Any, slot: int | None) -> Any:
        """What to return in place of an item: `Packed`, or the item as it is where that is not worth it."""
        if self._file is None or slot is None:
            return item
        arrays: list[np.ndarray] = []

        def taken_out(part: Any) -> Any:
            if not _is_large(part):
                return part
            arrays.append(part)
            return _Hole(len(arrays) - 1)

        left = _mapped(item, taken_out)
        size = sum(array.nbytes for array in arrays)
        if not 0 < size <= SLOT_BYTES or len(arrays) > os.sysconf("SC_IOV_MAX"):
            return item
        try:
            written = os.pwritev(self._file, [_bytes_of(array) for array in arrays], slot * SLOT_BYTES)
        except OSError:  # no memory for it
            return item
        return Packed(left, [(array.shape, array.dtype) for array in arrays]) if written == size else item


def _is_large(part: Any) -> bool:
    """Whether it is an array of plain numbers, in one block, that is worth a place in a slot."""
    if not isinstance(part, np.ndarray) or part.nbytes < FEWEST_BYTES:
        return False
    return part.dtype.kind in "biufc" and part.flags.c_contiguous


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _mapped(item: Any, call: Callable[[Any], Any]) -> Any:
    """An item with `call(part)` in place of each of its parts: what dicts, lists and tuples hold, or all of it."""
    if type(item) is dict:
        return {key: _mapped(value, call) for key, value in item.items()}
    if type(item) in (list, tuple):
        return type(item)(_mapped(value, call) for value in item)
    return call(item)
