"""A file that changes in steps: each step is there as a whole, or not at all, whoever is killed when.

Conventions
-----------
* What a step writes stays in memory until it is complete. It then goes to a journal beside the file, `.NAME.journal`;
  from the moment the journal has this name the step counts. It is copied into the file, and the journal is deleted.
* Whoever opens the file and finds a journal, of a process that was killed while it copied, copies it first.
* Steps exclude each other and all readers, by `flock` on the file, which the system releases when a process ends.
  HDF5 locks alike: while a notebook has the file open, a step waits, and gives up with a clear line.
* Nothing is forced to the disk: this is safe against killed processes, not against a machine that loses its power.

Source: the write-ahead log of SQLite, in its simplest form.
"""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stores.errors import DamagedStore, StoreError
from stores.flock import is_still, lock

PAGE_BYTES = 16384
MAGIC = b"TRIADJ1\n"
HEAD = struct.Struct("<8sQQQ")  # magic, file size before and after, number of pieces
PIECE = struct.Struct("<QQ")  # offset, length; the bytes follow
WAIT_SECONDS = 20.0


class JournaledFile:
    """The file at `path`, to be read by anything while `reading`, and written through what `writing` gives."""

    def __init__(self, path: Path):
        self.path = path
        self.journal = path.with_name(f".{path.name}.journal")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While this block runs the file does not change. Raises `StoreError` where it cannot be made ready."""
        while True:
            with self._locked(exclusive=False):
                if not self.journal.exists():
                    yield
                    return
            with self._locked(exclusive=True):
                self._finish()

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """One step: the file as a stream, of which the file gets everything when the block ends without error."""
        with self._locked(exclusive=True):
            self._finish()
            with self.path.open("rb") as file:
                step = Overlay(file)
                yield step  # type: ignore[misc]  # a RawIOBase is what h5py asks for
                pieces = list(step.pieces())
                sizes = os.fstat(file.fileno()).st_size, step.size
            if not pieces and sizes[0] == sizes[1]:
                return
            self._write_journal(pieces, *sizes)
            self._finish()

    def remove_leftovers(self, older_than_seconds: float) -> None:
        """Delete what a process left that was killed before its journal counted."""
        partial = self.journal.with_suffix(".partial")
        if partial.exists() and time.time() - partial.stat().st_mtime >= older_than_seconds:
            partial.unlink(missing_ok=True)

    def _write_journal(self, pieces: list[tuple[int, memoryview]], before: int, after: int) -> None:
        partial = self.journal.with_suffix(".partial")
        try:
            with partial.open("wb") as out:
                out.write(HEAD.pack(MAGIC, before, after, len(pieces)))
                for offset, content in pieces:
                    out.write(PIECE.pack(offset, len(content)))
                    out.write(content)
            partial.replace(self.journal)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise StoreError(f"{self.path} cannot be written: {error.strerror}. It is as it was.") from error

    def _finish(self) -> None:
        """Copy the journal into the file, where there is one. Doing it twice does no harm."""
        try:
            journal = self.journal.open("rb")
        except FileNotFoundError:
            return
        with journal:
            try:
                magic, before, after, n_pieces = HEAD.unpack(journal.read(HEAD.size))
                now = self.path.stat().st_size
                if magic != MAGIC or not min(before, after) <= now <= max(before, after):
                    raise ValueError(f"it is for a file of {before:,} or {after:,} bytes, not of {now:,}")
                with self.path.open("r+b") as file:
                    for _ in range(n_pieces):
                        offset, length = PIECE.unpack(journal.read(PIECE.size))
                        file.seek(offset)
                        file.write(journal.read(length))
                    file.truncate(after)
            except OSError as error:
                raise StoreError(
                    f"{self.path} cannot be written: {error.strerror}. What it lacks waits in {self.journal.name} "
                    "beside it, and is added when it is opened where that can be: cli verify"
                ) from error
            except (ValueError, struct.error) as error:
                raise DamagedStore(
                    f"{self.journal} does not belong to {self.path} as it is now ({error}). "
                    "Where the file was put there from elsewhere, delete the journal."
                ) from error
        self.journal.unlink()

    @contextmanager
    def _locked(self, *, exclusive: bool) -> Iterator[None]:
        until = time.monotonic() + WAIT_SECONDS
        while True:
            with self.path.open("rb") as file:
                if lock(file, exclusive=exclusive) is not False:  # without locks: one process at a time
                    if is_still(file, self.path):
                        yield
                        return
                elif time.monotonic() > until:
                    raise StoreError(
                        f"{self.path} is in use by another process, e.g. a notebook that has it open. Close it there."
                    )
                else:
                    time.sleep(0.01)


class Overlay(io.RawIOBase):
    """A file with changes over it that only memory has."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._stored = self.size = os.fstat(file.fileno()).st_size
        self._at = 0
        self._pages: dict[int, bytearray] = {}

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Zeros beyond the end, as HDF5's own driver has it."""
        view = memoryview(buffer).cast("B")
        for number, first, begin, end in self._spans(len(view)):
            page = self._pages.get(number) or self._stored_page(number)
            view[first : first + end - begin] = page[begin:end]
        self._at += len(view)
        return len(view)

    def write(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for number, first, begin, end in self._spans(len(view)):
            if number not in self._pages:
                self._pages[number] = self._stored_page(number)
            self._pages[number][begin:end] = view[first : first + end - begin]
        self._at += len(view)
        self.size = max(self.size, self._at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """(offset, bytes) of every page that was written to, in order."""
        for number in sorted(self._pages):
            length = min(PAGE_BYTES, self.size - number * PAGE_BYTES)
            if length > 0:
                yield number * PAGE_BYTES, memoryview(self._pages[number])[:length]

    def _spans(self, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Page number, place in the buffer, and [begin, end) in the page, for `length` bytes from here."""
        done = 0
        while done < length:
            number, begin = divmod(self._at + done, PAGE_BYTES)
            end = min(PAGE_BYTES, begin + length - done)
            yield number, done, begin, end
            done += end - begin

    def _stored_page(self, number: int) -> bytearray:
        self._file.seek(number * PAGE_BYTES)
        return bytearray(self._file.read(PAGE_BYTES).ljust(PAGE_BYTES, b"\0"))
