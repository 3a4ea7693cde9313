"""The Zarr v3 backend on object storage: the same keys and the same bytes as a folder has files.

zarr-python describes, encodes and decodes, in memory; objects are read and written by `stores.objects`, many at a time.

Conventions
-----------
* What is there is asked for by key: listings may lag behind, and only enumerate. A chunk that a listing does not show
  is asked for before it counts as never written.
* `zarr.json` of a group is made only where there is none, and its attributes are written over just the version that
  was read; two that change them at once end as one after the other.
* Where TRIAD_CACHE names a folder, or chunks are read again and again, copies of vectors and frames are kept
  (`stores.object_cache`). A process asks once whether a copy is still that of the object, and reads it from the disk
  from then on: others may write meanwhile, and readers find that out by statuses and hashes
  (`StreamedSegments.check_unchanged`), of which no copy is kept.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from stores.base import ArrayTree, Attributes
from stores.errors import DamagedStore, DiskError, StoreError
from stores.object_cache import copies_in, kept_copies
from stores.objects import Objects
from stores.plain_array import is_whole, plain_array
from stores.remote import RemotePath
from stores.zarr_store import array_settings

DOCUMENT = "zarr.json"
KEPT = ("vectors", "frames")  # arrays whose chunks are worth a copy; names begin so
TRIES = 20  # of a change of attributes that others change, too


class ObjectTree(ArrayTree):
    """A store in object storage, opened. See `stores.object_appear` for how one is made."""

    parallel_reads = 16

    def __init__(self, path: RemotePath):
        """Open an existing store. Raises `StoreError` where there is none, `RemoteError` where it cannot be asked."""
        self.path = path
        self.location = str(path)
        self.claims = path / ".claims"
        self._objects: Objects = path.objects
        self._open: dict[str, zarr.Array[Any]] = {}
        self._copies = kept_copies()
        self._groups: set[str] = set()  # that are known to be there
        self._copied: dict[str, str] = {}  # key -> etag of chunks that this process has asked for
        self.written: set[str] = set()  # keys, by this tree
        if self._objects.get(self._key("", DOCUMENT)) is None:
            raise StoreError(f"There is no store at {path}. `cli ingest DATA` makes one.")

    def create(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunk_rows: int) -> None:
        self._check_there("")
        self.delete(path)
        memory = MemoryStore()
        array = zarr.create_group(memory, zarr_format=3).create_array(path, **array_settings(shape, dtype, chunk_rows))
        self._delete(self._chunk_keys(path, array))  # a listing may have missed some of an older array
        if parent := path.rpartition("/")[0]:
            self._make_group(parent)
        self._put(self._key(path, DOCUMENT), memory._store_dict[f"{path}/{DOCUMENT}"].to_bytes())
        self._open[path] = array

    def read(self, path: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        array = self._array(path)
        stop = array.shape[0] if stop is None else min(stop, array.shape[0])
        rows = array.chunks[0]
        numbers = range(start // rows, -(-stop // rows))
        contents = self._objects.many(lambda number: self._content(path, array, number), numbers)
        try:
            plain = plain_array(array.metadata.to_dict())
            if plain is None or any(content is None for content in contents):
                memory = self._memory(path, array, dict(zip(numbers, contents, strict=True)))
                return np.asarray(zarr.open_array(memory, path=path, mode="r")[start:stop])
            found = np.empty((len(numbers) * rows, *array.shape[1:]), array.dtype)
            for place, content in enumerate(contents):
                assert content is not None
                plain.decode(content, found[place * rows : (place + 1) * rows])
            return found[start - numbers.start * rows : stop - numbers.start * rows]
        except Exception as error:  # codecs raise ValueError, struct.error, UnicodeDecodeError… on damaged bytes
            raise DamagedStore(
                f"{self.location}: {path}, rows {start} to {stop - 1} cannot be read ({error}). "
                "`cli verify` lists every damaged chunk."
            ) from error

    def write(self, path: str, start: int, values: np.ndarray) -> None:
        array = self._array(path)
        memory = self._memory(path, array, {})
        opened = zarr.open_array(memory, path=path, mode="r+").with_config({"write_empty_chunks": True})
        opened[start : start + len(values)] = values
        chunks = {key: buffer.to_bytes() for key, buffer in memory._store_dict.items() if not key.endswith(DOCUMENT)}
        self._check_there("", path)
        self._objects.many(lambda key: self._put(self._key(key), chunks[key]), chunks)

    def stored_chunks(self, path: str) -> set[int]:
        array = self._array(path)
        keys = self._chunk_keys(path, array)
        listed = {facts.key for facts in self._objects.all_below(self._key(path, "c"))}
        unsure = [number for number, key in enumerate(keys) if key not in listed]
        there = self._objects.many(lambda number: self.has_chunk(path, number), unsure)
        missing = {number for number, found in zip(unsure, there, strict=True) if not found}
        return set(range(len(keys))) - missing

    def has_chunk(self, path: str, number: int) -> bool:
        return self._objects.head(self._chunk_key(path, self._array(path), number)) is not None

    def layout(self, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        array = self._array(path)
        return array.shape, array.dtype, array.chunks[0]

    def children(self, path: str) -> list[str]:
        folders, _ = self._objects.below(self._key(path))
        there = self._objects.many(lambda key: self._objects.head(f"{key}/{DOCUMENT}") is not None, folders)
        return sorted(key.rsplit("/", 1)[-1] for key, found in zip(folders, there, strict=True) if found)

    def attributes(self, path: str) -> Attributes:
        found = self._objects.get(self._key(path, DOCUMENT))
        if found is None:
            return {}
        attributes: Attributes = self._document(path, found.content).get("attributes", {})
        return attributes

    def set_attributes(self, path: str, attributes: Attributes) -> None:
        for _ in range(TRIES):
            self._check_there("")
            found = self._objects.get(self._key(path, DOCUMENT))
            if found is None:
                self._make_group(path)
                continue
            node = self._node(path, found.content)
            node.attrs.put(attributes)
            document = node.store._store_dict[f"{path}/{DOCUMENT}".lstrip("/")].to_bytes()  # type: ignore[attr-defined]
            if document == found.content or self._objects.put_over(found.facts.key, document, found.facts):
                self.written.add(found.facts.key)
                return
        raise StoreError(f"{self.location}: others change {path or 'its description'} all the time. Try again later.")

    def delete(self, path: str) -> None:
        for name in [name for name in self._open if name == path or name.startswith(f"{path}/")]:
            del self._open[name]
        self._groups -= {name for name in self._groups if name == path or name.startswith(f"{path}/")}
        found = self._objects.get(self._key(path, DOCUMENT))
        # Off with its head first: without zarr.json a half-deleted feature is not mistaken for a whole one.
        self._delete([] if found is None else [found.facts.key])
        keys = [facts.key for facts in self._objects.all_below(self._key(path))]
        try:
            node = None if found is None else self._node(path, found.content)
        except DamagedStore:
            node = None
        if isinstance(node, zarr.Array):  # also what a listing does not show
            keys += self._chunk_keys(path, node)
        self._delete(sorted(set(keys), key=lambda key: (not key.endswith(DOCUMENT), key)))

    def read_often(self) -> None:
        copies = copies_in()
        self._copies = copies if copies.limit_bytes > 0 else None

    def keep_no_copies(self) -> None:
        """Nor read any."""
        self._copies = None

    def never_written(self) -> list[str]:
        """Keys of chunks that arrays made by this tree have room for, and no bytes."""
        keys = [key for path, array in self._open.items() for key in self._chunk_keys(path, array)]
        return sorted(set(keys) - self.written)

    def _content(self, path: str, array: zarr.Array[Any], number: int) -> memoryview | None:
        """The bytes of a chunk; `None` where it was never written."""
        key = self._chunk_key(path, array, number)
        copies = self._copies if path.rsplit("/", 1)[-1].startswith(KEPT) else None
        if copies is None:
            found = self._objects.get(key)
            return None if found is None else found.content
        url = f"{self.path.bucket}/{key}"
        if key not in self._copied:
            facts = self._objects.head(key)
            if facts is None:
                return None
            self._copied[key] = facts.etag
        kept = copies.read(place := copies.path(url, self._copied[key]))
        if kept is not None:
            if is_whole(kept):
                return memoryview(kept)
            copies.forget(place)  # damaged here, or there: what comes anew will tell
        found = self._objects.get(key)
        if found is None:
            return None
        self._copied[key] = found.facts.etag
        copies.keep(copies.path(url, found.facts.etag), found.content)
        return found.content

    def _array(self, path: str) -> zarr.Array[Any]:
        if path not in self._open:
            found = self._objects.get(self._key(path, DOCUMENT))
            node = None if found is None else self._node(path, found.content)
            if not isinstance(node, zarr.Array):
                raise StoreError(f"{self.location} has no array {path!r}.")
            self._open[path] = node
        return self._open[path]

    def _memory(self, path: str, array: zarr.Array[Any], chunks: dict[int, memoryview | None]) -> MemoryStore:
        """An array of which zarr-python finds some chunks in memory."""
        document = array.metadata.to_buffer_dict(cpu.buffer_prototype)[DOCUMENT]
        start = len(self._key(""))
        stored = {
            self._chunk_key(path, array, number)[start:].lstrip("/"): cpu.Buffer.from_bytes(bytes(content))
            for number, content in chunks.items()
            if content is not None
        }
        return MemoryStore({f"{path}/{DOCUMENT}": document, **stored})

    def _node(self, path: str, content: memoryview) -> zarr.Array[Any] | zarr.Group:
        self._document(path, content)
        memory = MemoryStore({f"{path}/{DOCUMENT}".lstrip("/"): cpu.Buffer.from_bytes(bytes(content))})
        try:
            return zarr.open(memory, path=path, mode="r+", zarr_format=3)
        except Exception as error:  # ValueError, KeyError, TypeError…, by what was hit
            raise self._damaged(path, error) from error

    def _document(self, path: str, content: memoryview) -> dict[str, Any]:
        try:
            document = json.loads(bytes(content))
            document["node_type"]
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(path, error) from error
        assert isinstance(document, dict)
        return document

    def _damaged(self, path: str, error: Exception) -> DamagedStore:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DamagedStore(f"{self.path / path / DOCUMENT} cannot be read ({reason}).")

    def _make_group(self, path: str) -> None:
        """With those above it, where there is none. That another process made it meanwhile is just as well."""
        if path in self._groups:
            return
        if parent := path.rpartition("/")[0]:
            self._make_group(parent)
        self._objects.put_new(self._key(path, DOCUMENT), new_group())
        self.written.add(self._key(path, DOCUMENT))
        self._groups.add(path)

    def _check_there(self, *paths: str) -> None:
        """Raises `DiskError` where the store, or a part of it, was deleted: it would be half made again."""
        keys = [self._key(path, DOCUMENT) for path in dict.fromkeys(paths)]
        for key, facts in zip(keys, self._objects.many(self._objects.head, keys), strict=True):
            if facts is None:
                gone = f"{self.path.bucket}/{key.removesuffix(DOCUMENT).rstrip('/')}"
                raise DiskError(f"{gone} is gone: another process deleted it. Nothing was written there.")

    def _put(self, key: str, content: bytes) -> None:
        self._objects.put(key, content)
        self.written.add(key)
        self._copied.pop(key, None)

    def _delete(self, keys: list[str]) -> None:
        self._objects.delete(keys)
        self.written.difference_update(keys)
        for key in keys:
            self._copied.pop(key, None)

    def _key(self, *parts: str) -> str:
        return "/".join(part for part in (self.path.key, *parts) if part)

    def _chunk_key(self, path: str, array: zarr.Array[Any], number: int) -> str:
        return self._key(path, "c", str(number), *("0" for _ in array.shape[1:]))  # the other axes are never cut

    def _chunk_keys(self, path: str, array: zarr.Array[Any]) -> list[str]:
        """Of all chunks that its shape has room for."""
        return [self._chunk_key(path, array, number) for number in range(-(-array.shape[0] // array.chunks[0]))]


def new_group() -> bytes:
    """What describes a group without attributes."""
    memory = MemoryStore()
    zarr.create_group(memory, zarr_format=3)
    return memory._store_dict[DOCUMENT].to_bytes()
