"""The HDF5 backend: one file, readable by anything that reads HDF5 1.10 or later.

Layout
------
The groups and datasets of the file are the groups and arrays of the tree, row chunks are HDF5's chunks. Numbers and
bools have their own HDF5 type; text is fixed-length UTF-8, as long as the longest text, and grows by itself; attributes
stand as JSON in the one HDF5 attribute `json`. Python objects and variable-length values are neither written nor read.

What is promised
----------------
* Damage is found. Every chunk passes the filters `deflate`, which ends in an Adler-32 checksum, and `fletcher32`: each
  alone is blind where the other sees (Fletcher-32 takes a chunk of zeros, or 0xFFFF for 0x0000, as sound). Numbers are
  deflated at level 0, which stores them as they are. Names, shapes, attributes and the index of chunks carry HDF5's own
  checksums, which the file format of 1.10 has everywhere. Attributes above 64 kB have none.
* A write is atomic. HDF5 by itself may leave a file in two when it is killed; here each write is one step of a journal
  (`stores/journal.py`), for a reader as for a killed process. Values come before statuses, as in every backend.
* Processes may share the file: they wait for each other, write by write.
* A full disk is told. HDF5 itself crashes on one; it never learns of it here (`stores/full_disk.py`).

What is not
-----------
* Power failure, and processes on Windows or on file systems without locks, as the journal says.
* A user's own `h5py.File(path, "r+")` is outside all this.
* Space of deleted arrays is not given back; `cli convert old.h5 new.h5` does.

Source: HDF5 File Format Specification 3.0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stores.appear import appearing
from stores.base import STRING, ArrayTree, Attributes
from stores.claim import claims_of
from stores.errors import DamagedStore, StoreError, disk_message, disk_told
from stores.full_disk import WrittenThrough
from stores.journal import JournaledFile

LIBVER = ("v110", "v110")  # checksums on all metadata, and no newer a library than that to read it
FLETCHER32 = {"fletcher32": True}
NUMBERS = {"compression": "gzip", "compression_opts": 0, **FLETCHER32}
TEXTS = {"compression": "gzip", "compression_opts": 4, **FLETCHER32}  # the padding of short texts costs nothing
MAX_CHUNK_BYTES = 2**32 - 1  # HDF5's own limit
JSON = "json"


class Hdf5Tree(ArrayTree):
    """A store in one HDF5 file, written through a journal: killed at any byte, it is as before a write or after."""

    def __init__(self, path: Path):
        """Open an existing store. Raises `StoreError` where there is none, `DamagedStore` where the file is cut off."""
        self.path = Path(path)
        self.location = str(path)
        self.claims = claims_of(self.path)
        self._journaled = JournaledFile(self.path)
        if not self.path.is_file():
            raise StoreError(f"There is no store at {self.path}. `cli ingest DATA` makes one.")
        with self._reading():
            pass

    def create(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> None:
        assert dtype.kind in "Tbiuf", f"no array of {dtype} in a store"
        with self._writing() as file:
            if path in file:
                del file[path]
            _create(file, path, shape, h5py.string_dtype("utf-8", 1) if dtype.kind == "T" else dtype, chunk_rows)

    def read(self, path: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        with self._reading() as file:
            array = self._array(file, path)
            stop = array.shape[0] if stop is None else min(stop, array.shape[0])
            try:
                return _texts(array, start, stop) if _is_text(array) else np.asarray(array[start:stop])
            except (OSError, ValueError) as error:  # ValueError: no UTF-8
                is_filter = "filter" in str(error)  # all that HDF5 says of a checksum
                reason = ValueError(f"its checksum does not match ({error})") if is_filter else error
                raise DamagedStore(
                    f"{self.location}: {path}, rows {start} to {stop - 1} cannot be read: {reason}. "
                    "`cli verify` lists every damaged chunk."
                ) from reason

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        with self._writing() as file:
            array = self._array(file, path)
            if _is_text(array):
                texts = _encoded(values, self.location)
                longest = max(map(len, texts), default=0)
                if longest > array.dtype.itemsize:
                    array = self._lengthened(file, path, longest)
                values = np.array(texts, dtype=array.dtype).reshape(values.shape)
            try:
                array[start : start + len(values)] = values
            except OSError:  # the last chunk is read before it is written, and is damaged: make it anew
                if start + len(values) != len(array):
                    raise
                array.resize(start, axis=0)
                array.resize(start + len(values), axis=0)
                array[start:] = values

    def stored_chunks(self, path: str) -> set[int]:
        with self._reading() as file:
            array = self._array(file, path)
            return _stored_chunks(array)

    def layout(self, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        with self._reading() as file:
            array = self._array(file, path)
            return array.shape, STRING if _is_text(array) else array.dtype, array.chunks[0]

    def children(self, path: str) -> list[str]:
        with self._reading() as file:
            node = _node(file, path)
            return sorted(node) if isinstance(node, h5py.Group) else []

    def attributes(self, path: str) -> Attributes:
        with self._reading() as file:
            node = _node(file, path)
            attributes: Attributes = json.loads(node.attrs[JSON]) if node is not None and JSON in node.attrs else {}
            return attributes

    def set_attributes(self, path: str, attributes: Attributes) -> None:
        content = json.dumps(attributes, ensure_ascii=False, allow_nan=False).encode()
        with self._writing() as file:
            node = _node(file, path)
            if node is None:
                node = file.create_group(path)
            node.attrs.create(JSON, content, dtype=h5py.string_dtype("utf-8", len(content)))

    def delete(self, path: str) -> None:
        with self._writing() as file:
            if path in file:
                del file[path]

    def remove_leftovers(self, older_than_seconds: float = 600.0, path: str = "", *, deep: bool = True) -> None:
        if deep and not path:  # the file as a whole has them
            self._journaled.remove_leftovers(older_than_seconds)

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        """The file, open while the block runs: another process may have changed it since the last time."""
        with self._journaled.reading(), self._told(), h5py.File(self.path, "r") as file:
            yield file

    @contextmanager
    def _writing(self) -> Iterator[h5py.File]:
        with self._journaled.writing() as step, self._told(), h5py.File(step, "r+", libver=LIBVER) as file:
            yield file

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What h5py raises where the file itself is damaged, in our words."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            if isinstance(error, OSError) and disk_message(error):
                raise
            raise DamagedStore(f"{self.location} cannot be read: {str(error).splitlines()[0]}") from error

    def _array(self, file: h5py.File, path: str) -> h5py.Dataset:
        array = _node(file, path)
        if not isinstance(array, h5py.Dataset):
            raise StoreError(f"{self.location} has no array {path!r}.")
        if array.dtype.kind == "O" or array.chunks is None:
            raise StoreError(f"{self.location}: {path} was not written by this project, and is not read.")
        return array

    def _lengthened(self, file: h5py.File, path: str, longest: int) -> h5py.Dataset:
        """The text array made anew with room for `longest` bytes a text, and some to spare."""
        old = file[path]
        length = 1 << (longest - 1).bit_length()
        if length * old.chunks[0] > MAX_CHUNK_BYTES:
            raise StoreError(f"{self.location}: a text of {longest:,} bytes is too long for an HDF5 store.")
        wide = _create(file, f"{path}~", old.shape, h5py.string_dtype("utf-8", length), old.chunks[0])
        for number in sorted(_stored_chunks(old)):
            rows = slice(number * old.chunks[0], min((number + 1) * old.chunks[0], len(old)))
            wide[rows] = old[rows].astype(wide.dtype)
        if JSON in old.attrs:
            wide.attrs.create(JSON, old.attrs[JSON], dtype=old.attrs.get_id(JSON).dtype)
        del file[path]
        file.move(f"{path}~", path)
        return file[path]


class _NewHdf5Tree(Hdf5Tree):
    """A file that nobody knows of yet: it stays open, and needs no journal."""

    def __init__(self, path: Path, file: h5py.File, stream: WrittenThrough):
        self.path = path
        self.location = str(path)
        self._journaled = JournaledFile(path)
        self._file = file
        self._stream = stream

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        with self._told():
            yield self._file
        _raise_refusal(self._stream, self.path)

    _writing = _reading


@contextmanager
def new_hdf5_tree(path: Path, *, replace: bool = False) -> Iterator[Hdf5Tree]:
    """A tree that appears at `path` when the block ends without error; until then nothing is there.

    Raises `StoreError` where `path` exists already and `replace` is false, or is no store.
    """
    path = Path(path)
    with appearing(path, _is_store, replace=replace) as partial:
        if not path.exists():
            JournaledFile(path).journal.unlink(missing_ok=True)  # of a file that somebody deleted
        with disk_told(partial), partial.open("w+b", buffering=0) as raw:
            stream = WrittenThrough(raw)  # type: ignore[arg-type]
            with h5py.File(stream, "w", libver=LIBVER) as file:
                yield _NewHdf5Tree(partial, file, stream)
            _raise_refusal(stream, partial)


def _raise_refusal(stream: WrittenThrough, path: Path) -> None:
    if stream.refused is not None:
        with disk_told(path):
            raise stream.refused


def _is_store(path: Path) -> bool:
    try:
        return "format" in Hdf5Tree(path).attributes("")  # which also finishes what a killed writer left
    except StoreError:
        return False


def _create(file: h5py.File, path: str, shape: tuple[int, ...], dtype: Any, chunk_rows: int) -> h5py.Dataset:
    return file.create_dataset(
        path,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(chunk_rows, shape[0])), *(max(1, n) for n in shape[1:])),
        maxshape=tuple(n or None for n in shape),  # an empty axis still needs a chunk of at least one
        **(TEXTS if h5py.check_string_dtype(np.dtype(dtype)) else NUMBERS),
    )


def _node(file: h5py.File, path: str) -> Any:
    """A group or dataset; `None` where nothing stands at `path`."""
    if path and path not in file:
        return None
    return file[path or "/"]  # not `get`, which takes a damaged one for none


def _is_text(array: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(array.dtype) is not None


def _stored_chunks(array: h5py.Dataset) -> set[int]:
    starts: list[int] = []
    array.id.chunk_iter(lambda chunk: starts.append(chunk.chunk_offset[0]))
    return {start // array.chunks[0] for start in starts}


def _texts(array: h5py.Dataset, start: int, stop: int) -> np.ndarray:
    """Chunk by chunk: padded to one length, texts may take many times their memory."""
    texts = np.empty((max(stop - start, 0), *array.shape[1:]), STRING)
    for at in range(start, stop, array.chunks[0]):
        end = min(at + array.chunks[0], stop)
        texts[at - start : end - start] = array[at:end].astype(STRING)
    return texts


def _encoded(values: np.ndarray, location: str) -> list[bytes]:
    texts = [str(value).encode() for value in values.ravel().tolist()]
    for text in texts:
        if text.endswith(b"\0"):
            raise StoreError(f"{location}: a text that ends in a NUL, {text[-20:]!r}, cannot stand in an HDF5 store.")
    return texts
