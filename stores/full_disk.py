"""A file for a library that crashes where a write fails: every write succeeds, and what the system said is kept.

HDF5 1.14 ends in a segmentation fault when it closes a file that it could not write, and may report success before.
So it writes through `WrittenThrough`. From the first refusal on, everything goes to memory, where the library finds it
again; the caller looks at `refused` after each operation, and once more after closing.
"""

from __future__ import annotations

from typing import Any, BinaryIO

from stores.journal import Overlay


class WrittenThrough(Overlay):
    """An unbuffered file, and memory in its place from the moment that it cannot be written."""

    refused: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        if self.refused is not None:
            return super().readinto(buffer)
        view = memoryview(buffer).cast("B")
        done = 0
        self._file.seek(self._at)
        while done < len(view) and (n := self._file.readinto(view[done:])):  # type: ignore[attr-defined]
            done += n
        view[done:] = bytes(len(view) - done)
        self._at += len(view)
        return len(view)

    def write(self, buffer: Any) -> int:
        """Into the buffer and to the disk; a refusal of the disk is kept in `refused`, not raised here."""
        view = memoryview(buffer).cast("B")
        if self.refused is None:
            try:
                _write_all(self._file, self._at, view)
            except OSError as error:
                self.refused = error
            else:
                self._at += len(view)
                self.size = max(self.size, self._at)
                return len(view)
        return super().write(view)

    def truncate(self, size: int | None = None) -> int:
        """Cut both to `size` bytes; a refusal is kept, as in `write`."""
        size = super().truncate(size)
        if self.refused is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.refused = error
        return size


def _write_all(file: BinaryIO, at: int, view: memoryview) -> None:
    file.seek(at)
    done = 0
    while done < len(view):  # a disk that is nearly full takes a part
        done += file.write(view[done:])
