"""The Zarr v3 backend: one folder, readable by anything that reads Zarr.

Chunks are stored uncompressed, because float16 vectors hardly compress and reading then runs at memory speed, and each
ends in a crc32c checksum. Empty chunks are written too: a missing file is damage, never "all zeros".
Source: Zarr core specification 3.0 (chunk key encoding `c/…`), zarr-python >= 3.1.3 (local writes are atomic).
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import zarr
import zarr.errors
from zarr.codecs import Crc32cCodec
from zarr.core.sync import sync

from stores.appear import appearing
from stores.base import ArrayTree, Attributes
from stores.claim import claims_of
from stores.errors import DamagedStore, DiskError, StoreError, disk_told
from stores.plain_array import PlainArray, plain_array


class ZarrTree(ArrayTree):
    """A store in a folder: a Zarr v3 group, a file a chunk, each with its checksum and written whole or not at all."""

    def __init__(self, path: Path):
        """Open an existing store. Raises `StoreError` where there is none."""
        self.path = Path(path)
        self.location = str(path)
        self.claims = claims_of(self.path)
        if not (self.path / "zarr.json").is_file():
            raise StoreError(f"There is no store at {self.path}. `cli ingest DATA` makes one.")
        self._open: dict[str, zarr.Array[Any]] = {}  # and what is known without opening them:
        self._plain: dict[str, PlainArray] = {}

    @cached_property
    def _root(self) -> zarr.Group:
        with self._told(""):
            return zarr.open_group(self.path, mode="r+", zarr_format=3)

    def create(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> None:
        self.delete(path)
        with self._writing(""):
            self._open[path] = self._root.create_array(path, **array_settings(shape, dtype, chunk_rows))

    def read(self, path: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        n_rows = self.layout(path)[0][0]
        stop = n_rows if stop is None else min(stop, n_rows)
        if (chunks := self._whole_chunks(path, start, stop)) is not None:
            return chunks
        try:
            return np.asarray(self._array(path)[start:stop])
        except Exception as error:  # codecs raise ValueError, struct.error, UnicodeDecodeError… on damaged bytes
            raise DamagedStore(
                f"{self.location}: {path}, rows {start} to {stop - 1} cannot be read ({error}). "
                "`cli verify` lists every damaged chunk."
            ) from error

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        array = self._array(path)
        with self._writing(path):
            array[start : start + len(values)] = values

    def stored_chunks(self, path: str) -> set[int]:
        folder = self.path / path / "c"
        if not folder.is_dir():
            return set()
        numbers = (file.name for file in folder.iterdir() if file.name.isdigit())  # beside them: what killed ones left
        return {int(number) for number in numbers if self.has_chunk(path, int(number))}

    def has_chunk(self, path: str, number: int) -> bool:
        return Path(self._chunk_file(path, number)).is_file()

    def written_at(self, path: str, start: int = 0, stop: int | None = None) -> object:
        (n_rows, *_), _, rows = self.layout(path)
        numbers = range(start // rows, -(-(n_rows if stop is None else min(stop, n_rows)) // rows))
        found: list[tuple[int, int] | None] = []
        for number in numbers:
            try:
                facts = os.stat(self._chunk_file(path, number))  # noqa: PTH116 (a `Path` costs as much again)
            except FileNotFoundError:
                found.append(None)
            else:
                found.append((facts.st_ino, facts.st_mtime_ns))  # a write puts another file in its place
        return found

    def layout(self, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        if (plain := self._plain_array(path)) is not None:
            return plain.shape, plain.dtype, plain.chunk_rows
        array = self._array(path)
        return array.shape, array.dtype, array.chunks[0]

    def children(self, path: str) -> list[str]:
        folder = self.path / path
        if not folder.is_dir() or _node_type(folder) == "array":
            return []
        return sorted(entry.name for entry in folder.iterdir() if (entry / "zarr.json").is_file())

    def attributes(self, path: str) -> Attributes:
        document = self.path / path / "zarr.json"
        if not document.is_file():
            return {}
        with self._told(path):
            attributes: Attributes = json.loads(document.read_text("utf-8")).get("attributes", {})
        return attributes

    def set_attributes(self, path: str, attributes: Attributes) -> None:
        if path and _node_type(self.path / path) is None:
            with self._writing(""):
                self._root.create_group(path)
        node = self._root[path] if path else self._root
        with self._writing(path):
            node.attrs.put(attributes)  # one atomic replacement of zarr.json

    def delete(self, path: str) -> None:
        for known in (self._open, self._plain):
            for name in [name for name in known if name == path or name.startswith(f"{path}/")]:
                del known[name]
        # Off with its head first: without zarr.json a half-deleted feature is not mistaken for a whole one.
        (self.path / path / "zarr.json").unlink(missing_ok=True)
        shutil.rmtree(self.path / path, ignore_errors=True)

    def appear(self, path: str, make: Callable[[ArrayTree], None], *, alone: bool) -> bool:
        """Made in a folder beside it, which is then renamed: of several processes that do so the first one counts."""
        partial = self.path / f".new.{uuid4().hex}.partial"
        try:
            with self._writing(""):
                zarr.create_group(partial, zarr_format=3)
            make(ZarrTree(partial))
            parents = [str(parent) for parent in reversed(Path(path).parents) if parent.name]
            with self._writing(""):
                for parent in parents:
                    (self.path / parent).mkdir(exist_ok=True)
                    if not (self.path / parent / "zarr.json").exists():  # else in one step, whoever is the first
                        (partial / parent / "zarr.json").replace(self.path / parent / "zarr.json")
            while True:
                with self._writing(""), suppress(FileExistsError), _something_is_there():
                    (partial / path).rename(self.path / path)
                    return True
                if self.attributes(path):
                    return False
                if not alone:
                    raise StoreError(
                        f"{self.path / path} is half deleted or half made, and this file system has no locks by which "
                        "shards could agree on who clears it. Run one without --shard first, for an instant."
                    )
                self.delete(path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def remove_leftovers(self, older_than_seconds: float = 600.0, path: str = "", *, deep: bool = True) -> None:
        for file in (self.path / path).glob("**/*.partial" if deep else "*.partial"):
            # zarr-python's `_atomic_write`, and `appear`
            if re.search(r"\.[0-9a-f]{32}\.partial$", file.name):
                with suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime >= older_than_seconds:
                        shutil.rmtree(file, ignore_errors=True) if file.is_dir() else file.unlink()

    def remove_chunk_leftovers(self, path: str, chunks: set[int]) -> None:
        folder = self.path / path / "c"
        for file in folder.glob("**/*.partial"):
            number = file.relative_to(folder).parts[0].partition(".")[0]
            if number.isdigit() and int(number) in chunks:
                file.unlink(missing_ok=True)

    def _whole_chunks(self, path: str, start: int, stop: int) -> np.ndarray | None:
        """Rows that are just some chunks, straight from their files; `None` where zarr-python has to read them."""
        plain = self._plain_array(path)
        if plain is None or start >= stop:
            return None
        rows = plain.chunk_rows
        if start % rows or (stop % rows and stop != plain.shape[0]):
            return None
        found = np.empty((stop - start, *plain.shape[1:]), plain.dtype)

        def read(first: int) -> bool:
            into = found[first - start : first - start + rows]
            return plain.read_chunk(self._chunk_file(path, first // rows), into)

        return found if all(map(read, range(start, stop, rows))) else None

    def _chunk_file(self, path: str, number: int) -> str:
        return f"{self.path}/{path}/c/{number}" + "/0" * (len(self.layout(path)[0]) - 1)  # the other axes are never cut

    def _plain_array(self, path: str) -> PlainArray | None:
        """What is known of an array without zarr-python; `None` where that has to be asked."""
        if path not in self._plain:
            with suppress(OSError, ValueError):
                if (found := plain_array(json.loads((self.path / path / "zarr.json").read_bytes()))) is not None:
                    self._plain[path] = found
        return self._plain.get(path)

    @contextmanager
    def _writing(self, path: str) -> Iterator[None]:
        """Raises `DiskError` where the system refuses, or the store was deleted: zarr would make its folders again."""
        for node in dict.fromkeys(("", path)):
            if not (self.path / node / "zarr.json").is_file():
                raise DiskError(f"{self.path / node} is gone: another process deleted it. Nothing was written there.")
        with disk_told(self.path):
            yield

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        """What zarr-python and json raise where the description of a node is damaged, in our words."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:  # ValueError, KeyError, TypeError…, by what was hit
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DamagedStore(f"{self.path / path / 'zarr.json'} cannot be read ({reason}).") from error

    def _array(self, path: str) -> zarr.Array[Any]:
        if path not in self._open:
            if _node_type(self.path / path) != "array":
                raise StoreError(f"{self.location} has no array {path!r}.")
            with self._told(path):
                array = self._root[path]
                assert isinstance(array, zarr.Array)
            # the option lives in the process, not in the file: without it an all-zero chunk would be left out
            self._open[path] = array.with_config({"write_empty_chunks": True})
        return self._open[path]


def array_settings(shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> dict[str, Any]:
    """How an array of this project is made, in the words of zarr-python."""
    return {
        "shape": shape,
        # an empty array still needs a chunk shape of at least one row
        "chunks": (max(1, min(chunk_rows, max(shape[0], 1))), *(max(1, n) for n in shape[1:])),
        "dtype": dtype,
        "compressors": [Crc32cCodec()],
        "fill_value": "" if dtype.kind == "T" else 0,
        "config": {"write_empty_chunks": True},
    }


def _node_type(folder: Path) -> str | None:
    try:
        node: str = json.loads((folder / "zarr.json").read_text("utf-8"))["node_type"]
    except (OSError, ValueError, KeyError):
        return None
    return node


@contextmanager
def _something_is_there() -> Iterator[None]:
    """`FileExistsError`, however the system puts it that a folder cannot take the place of one with something in it."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(error.errno, error.strerror) from error
        raise


@contextmanager
def new_zarr_tree(path: Path, *, replace: bool = False) -> Iterator[ZarrTree]:
    """A tree that appears at `path` when the block ends without error; until then nothing is there.

    Raises `StoreError` where `path` exists already and `replace` is false, or is no store.
    """
    with appearing(Path(path), lambda old: (old / "zarr.json").is_file(), replace=replace) as partial:
        try:
            with disk_told(partial):
                zarr.create_group(partial, zarr_format=3)
            yield ZarrTree(partial)
        except BaseException:
            sync(_end_of_writes())
            raise


async def _end_of_writes() -> None:
    """zarr-python writes several files side by side; when one fails the others go on, into a folder that is to go."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)
