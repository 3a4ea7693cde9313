"""A feature: what one encoder under one configuration wrote for every segment; and how a chunk of it is written.

A chunk of rows is the unit of work and has one owner. Within a chunk the statuses are written last, and a row about to
be encoded again is marked pending first: whatever is killed in between, a row marked present is whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any
from urllib.parse import quote

import numpy as np

from stores.base import STRING, ArrayTree
from stores.errors import DamagedStore, StoreError
from stores.record import Record, command_for, repair_command
from stores.stored_array import StoredArray

HASH_BYTES = 16
FLOAT16_MAX = 65504.0
WIDENED = "_float32"  # is added to the name of an array whose numbers turned out to be beyond that

MAX_NAME_BYTES = 240  # of a folder on usual file systems: 255, less what a temporary name needs


class Status(IntEnum):
    """Four different facts about a row of a feature."""

    PENDING = 0  # not encoded yet
    PRESENT = 1  # its vector stands in the store
    ABSENT = 2  # the segment has no such modality
    FAILED = 3  # it has one that could not be encoded; the reason is kept


@dataclass(frozen=True)
class WholeRows:
    """status: uint8 (n,). vectors: float (n, D). Where asked for, frames: float (n, T, D), n_frames: uint16 (n,)."""

    status: np.ndarray
    vectors: np.ndarray
    frames: np.ndarray | None = None
    n_frames: np.ndarray | None = None


class Feature:
    """What one encoder under one configuration wrote for every segment. Get one from `Store`."""

    def __init__(self, tree: ArrayTree, name: str):
        self._tree = tree
        self.name = name  # slot/encoder
        self.is_shared = False  # other processes write other chunks of it meanwhile (`Store.join_feature`)
        self.slot, _, self.encoder = name.partition("/")
        self._path = f"features/{quoted(self.slot)}/{quoted(self.encoder)}"
        self._facts = tree.attributes(self._path)
        try:
            self.record: Record = self._facts["record"]
            self.fingerprint: str = self._facts["fingerprint"]
            (self.n_segments, self.width), self.dtype, self.chunk_rows = tree.layout(self._vectors_path)
            self.max_frames: int = tree.layout(self.array_path(self._facts["frames"]))[0][1] if self.has_frames else 0
            list(self._facts["state"]), command_for(self.record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedStore(
                f"{tree.location}: what describes {name} is damaged ({type(error).__name__}: {error}). "
                f"Write it anew: cli featurize --encoder {self.encoder} --replace"
            ) from error

    def __repr__(self) -> str:
        from stores.cards import feature_card

        return feature_card(self).text()

    def _repr_html_(self) -> str:
        from stores.cards import feature_card

        return feature_card(self).html()

    # For other programs

    def to_numpy(self, missing: float = 0.0) -> np.ndarray:
        """float (N, D), with `missing`, say NaN, in every column of a row that is not present."""
        status = self.read_status()
        vectors = self.read_vectors(status=status)
        return np.where((status == Status.PRESENT)[:, None], vectors, vectors.dtype.type(missing))

    def to_arrow(self) -> Any:
        """`pyarrow.Table`: segment_id, group, times, labels, and `vector`, null where not present."""
        from stores.tables import feature_table

        return feature_table(self._tree, self)

    def to_pandas(self) -> Any:
        """`pandas.DataFrame` with the columns of `to_arrow`, and segment_id as its index."""
        from stores.tables import to_pandas

        return to_pandas(self.to_arrow())

    @property
    def has_frames(self) -> bool:
        """Whether rows have a sequence of frames beside their vector."""
        return self._facts.get("frames") is not None

    @property
    def _vectors_path(self) -> str:
        return f"{self._path}/{self._facts['vectors']}"

    @property
    def first_dtype(self) -> np.dtype[Any]:
        """What it was made with; numbers too large for it may have turned it to float32 since."""
        return np.dtype(np.float16) if self._facts["vectors"].endswith(WIDENED) else self.dtype

    @property
    def parallel_reads(self) -> int:
        """How many reads of chunks at a time pay."""
        return self._tree.parallel_reads

    def read_often(self) -> None:
        """From now on the same chunks of vectors and frames are read again and again."""
        self._tree.read_often()

    def chunks(self) -> list[range]:
        """The rows of each chunk, in order."""
        return [
            range(start, min(start + self.chunk_rows, self.n_segments))
            for start in range(0, self.n_segments, self.chunk_rows)
        ]

    # What a reader looks at: whole columns; vectors and frames are read where they are indexed

    @property
    def ids(self) -> np.ndarray:
        """Text (N,): which segment each row is."""
        return read_whole(self._tree, "segments/id")

    @property
    def status(self) -> np.ndarray:
        """uint8 (N,) of `Status`."""
        return self.read_status()

    @property
    def present(self) -> np.ndarray:
        """bool (N,)."""
        return np.asarray(self.status == Status.PRESENT)

    @property
    def failures(self) -> np.ndarray:
        """Text (N,): why a row failed; empty elsewhere."""
        return self.read_failures()

    @property
    def vectors(self) -> StoredArray:
        """float16 or float32 (N, D), zeros where the status is not present. Reading raises `DamagedStore`."""
        shape = (self.n_segments, self.width)
        return StoredArray(f"{self.name} vectors", shape, self.dtype, self.chunk_rows, self.read_vectors)

    @property
    def frames(self) -> StoredArray:
        """float16 or float32 (N, T, D), zeros from `n_frames` on. Raises `StoreError` where the feature has none."""
        self._check_frames()
        shape = (self.n_segments, self.max_frames, self.width)
        return StoredArray(f"{self.name} frames", shape, self.dtype, self.chunk_rows, self.read_frames)

    @property
    def n_frames(self) -> np.ndarray:
        """uint16 (N,): how many frames a row has; 0 where it is not present. Raises `StoreError` as `frames`."""
        return self.read_n_frames()

    # The same of consecutive rows

    def read_status(self, rows: range | None = None) -> np.ndarray:
        """uint8 (n,) of `Status`, of consecutive rows, or of all (N,)."""
        return self._read("status", rows)

    def read_input_hashes(self, rows: range | None = None) -> np.ndarray:
        """uint8 (N, 16): digests of what was encoded; zeros where nothing was."""
        return self._read("input_hash", rows)

    def read_failures(self, rows: range | None = None) -> np.ndarray:
        """Text (n,): why each of these rows failed; empty where it did not."""
        return self._read("failure", rows)

    def read_vectors(self, rows: range | None = None, status: np.ndarray | None = None) -> np.ndarray:
        """status: uint8 (n,) of these rows, for those who know it already; here and below."""
        return self._read_stored("vectors", rows, status)

    def read_frames(self, rows: range | None = None, status: np.ndarray | None = None) -> np.ndarray:
        """float16 or float32 (n, T, D). Raises `StoreError` where the feature has none."""
        self._check_frames()
        return self._read_stored("frames", rows, status)

    def read_n_frames(self, rows: range | None = None, status: np.ndarray | None = None) -> np.ndarray:
        """uint16 (n,): how many of the T are real. Raises `StoreError` where the feature has no frames."""
        self._check_frames()
        return self._read_stored("n_frames", rows, status)

    def whole_rows(self, rows: range | None = None, *, with_frames: bool = False) -> WholeRows:
        """Statuses, vectors and frames that belong together, though another process may be writing. `DamagedStore`.

        A row that was written while it was read, as its status and its hash tell, is pending.
        """
        path, span = self.array_path("status"), () if rows is None else (rows.start, rows.stop)
        written = self._tree.written_at(path, *span)
        if written is not None:
            found = self._read_rows(rows, with_frames)
            if self._tree.written_at(path, *span) == written:  # whoever writes a row writes its status last
                return found
        hashes = self.read_input_hashes(rows)
        found = self._read_rows(rows, with_frames)
        changed = (self.read_status(rows) != found.status) | (self.read_input_hashes(rows) != hashes).any(axis=1)
        return replace(found, status=np.where(changed, np.uint8(Status.PENDING), found.status))

    def _read_rows(self, rows: range | None, with_frames: bool) -> WholeRows:
        status = self.read_status(rows)
        vectors = self.read_vectors(rows, status)
        if not with_frames:
            return WholeRows(status, vectors)
        return WholeRows(status, vectors, self.read_frames(rows, status), self.read_n_frames(rows, status))

    def write_chunk(
        self,
        chunk: range,
        rows: np.ndarray,
        vectors: np.ndarray,
        status: np.ndarray,
        input_hash: np.ndarray,
        failure: Sequence[str],
        frames: np.ndarray | None = None,
        n_frames: np.ndarray | None = None,
    ) -> None:
        """Write some rows of one chunk: their numbers (n,), float (n, D), uint8 (n,), uint8 (n, 16), n texts.

        Where the feature has frames: float (n, T, D) and int (n,). The chunk's other rows keep what they have. Numbers
        beyond float16 turn the whole feature to float32.
        """
        assert chunk in self.chunks() and len(rows) == len(vectors) == len(status) == len(input_hash) == len(failure)
        assert self.has_frames == (frames is not None) == (n_frames is not None)
        at = np.asarray(rows) - chunk.start
        new_status = self.read_status(chunk)
        is_new = not self._tree.has_chunk(self.array_path("status"), chunk.start // self.chunk_rows)
        if is_new or (new_status[at] != Status.PENDING).any():  # is_new: values without statuses beside them are damage
            new_status[at] = Status.PENDING
            self._tree.write(f"{self._path}/status", chunk.start, new_status)
        too_large = (np.abs(values).max(initial=0) > FLOAT16_MAX for values in (vectors, frames) if values is not None)
        if self.dtype == np.float16 and any(too_large):
            self._widen_to_float32()
        present = np.asarray(status) == Status.PRESENT
        columns: dict[str, np.ndarray] = {self._facts["vectors"]: np.where(present[:, None], vectors, 0)}
        if frames is not None and n_frames is not None:
            columns[self._facts["frames"]] = np.where(present[:, None, None], frames, 0)
            columns["n_frames"] = np.where(present, n_frames, 0)
        columns |= {"input_hash": input_hash, "failure": np.array(list(failure), dtype=STRING)}
        for name, values in columns.items():
            column = self._read(name, chunk)
            column[at] = values
            self._tree.write(f"{self._path}/{name}", chunk.start, column)
        new_status[at] = status
        self._tree.write(f"{self._path}/status", chunk.start, new_status)

    def forget_chunk(self, chunk: range) -> None:
        """All rows of a chunk pending, its arrays as new, whatever stands there now. Statuses come first."""
        for name in reversed(self.array_names()):
            shape, dtype, _ = self._tree.layout(self.array_path(name))
            self._tree.write(self.array_path(name), chunk.start, np.zeros((len(chunk), *shape[1:]), dtype))

    def state(self) -> dict[str, np.ndarray]:
        """Weights of an encoder that was fitted for this store, by name, each of its own shape (…); empty for others.

        Raises `DamagedStore`.
        """
        try:
            return {name: read_whole(self._tree, f"{self._path}/state/{quoted(name)}") for name in self._facts["state"]}
        except DamagedStore as error:
            raise DamagedStore(
                f"{self._tree.location}: what {self.name} learned is damaged (`cli verify` says where), and cannot be "
                f"repaired. Write it anew: {command_for(self.record)} --replace"
            ) from error

    def array_names(self) -> list[str]:
        """The row arrays of this feature, vectors first."""
        frames = [self._facts["frames"], "n_frames"] if self.has_frames else []
        return [self._facts["vectors"], *frames, "input_hash", "failure", "status"]

    def array_path(self, name: str) -> str:
        """Where one of its arrays (`vectors`, `status`, …) stands in the tree."""
        return f"{self._path}/{name}"

    def _read(self, name: str, rows: range | None) -> np.ndarray:
        try:
            path = self.array_path(name)
            return self._tree.read(path) if rows is None else self._tree.read(path, rows.start, rows.stop)
        except DamagedStore as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise self._damaged(f"{name} of some rows cannot be read ({reason})") from error

    def _read_stored(self, kind: str, rows: range | None, status: np.ndarray | None) -> np.ndarray:
        """Vectors, frames or their number. A chunk that is gone reads as zeros, and must not be taken for them."""
        name = self._facts.get(kind) or kind
        status = self.read_status(rows) if status is None else status
        values = self._read(name, rows)
        rows = range(self.n_segments) if rows is None else rows
        zeros = []  # chunks of which a present row is zero; all others are there
        for number in range(rows.start // self.chunk_rows, -(-rows.stop // self.chunk_rows)):
            first = max(number * self.chunk_rows - rows.start, 0)
            here = np.flatnonzero(status[first : (number + 1) * self.chunk_rows - rows.start] == Status.PRESENT)
            if len(here) and not values[first + here[0]].any():
                zeros.append(number)
        # listing a store's chunks takes as long as reading one; after reading: what is still there now was there then
        gone = set(zeros) - self._tree.stored_chunks(self.array_path(name)) if zeros else set()
        for number in sorted(gone):
            chunk = self.chunks()[number]
            raise self._damaged(
                f"rows {chunk.start} to {chunk.stop - 1}: the {kind} are gone though the rows are marked present"
            )
        return values

    def _check_frames(self) -> None:
        if not self.has_frames:
            raise StoreError(
                f"{self._tree.location}: {self.name} has no frames. Write them: cli featurize --encoder {self.encoder} "
                "--frames 16 --replace"
            )

    def _damaged(self, what: str) -> DamagedStore:
        return DamagedStore(
            f"{self._tree.location}: {self.name} is damaged: {what}. `cli verify` lists every damaged chunk; "
            f"`{repair_command(self.name, self.record)}` writes them again."
        )

    def remove_leftovers(self) -> None:
        """Delete what a killed writer left in this feature: temporary files, arrays half widened, or no longer used."""
        self._tree.remove_leftovers(older_than_seconds=0, path=self._path)
        for kind in ("vectors", "frames"):
            for name in {kind, kind + WIDENED} - {self._facts.get(kind)}:
                self._tree.delete(self.array_path(name))

    def _widen_to_float32(self) -> None:
        if self.is_shared:
            raise StoreError(
                f"{self.name} has numbers beyond float16, and a shard cannot turn the chunks of others to float32. "
                "Go on without --shard, which does, or begin anew: --dtype float32 with another --as NAME."
            )
        narrow = {kind: self._facts[kind] for kind in ("vectors", "frames") if self._facts.get(kind)}
        for kind, name in narrow.items():
            old, new = self.array_path(name), self.array_path(kind + WIDENED)
            shape, _, chunk_rows = self._tree.layout(old)
            stored = self._tree.stored_chunks(old)
            self._tree.create(new, shape, np.dtype(np.float32), chunk_rows)
            for number, chunk in enumerate(self.chunks()):
                if number in stored:
                    self._tree.write(new, chunk.start, self._tree.read(old, chunk.start, chunk.stop).astype(np.float32))
        self._facts |= {kind: kind + WIDENED for kind in narrow}
        self._tree.set_attributes(self._path, self._facts)  # from here on the wide arrays are the feature's
        for name in narrow.values():
            self._tree.delete(self.array_path(name))
        self.dtype = np.dtype(np.float32)


def read_whole(tree: ArrayTree, path: str, rows: range | None = None) -> np.ndarray:
    """An array (N, …), or rows of it, that was written as a whole. Raises `DamagedStore` where a chunk is gone.

    A missing chunk reads as zeros, which a split would take for its training part.
    """
    values = tree.read(path) if rows is None else tree.read(path, rows.start, rows.stop)
    shape, _, chunk_rows = tree.layout(path)
    gone = set(range(-(-shape[0] // chunk_rows))) - tree.stored_chunks(path)
    if gone:
        first = min(gone) * chunk_rows
        raise DamagedStore(
            f"{tree.location}: {path}, rows {first} to {min(first + chunk_rows, shape[0]) - 1} are gone. "
            "`cli verify` lists every damaged chunk, and what to do."
        )
    return values


def quoted(name: str) -> str:
    """A name as one path component: percent-encoded, and never hidden, `.` or `..`."""
    quoted = quote(name, safe=" ()[]{}+,=@")
    if len(quoted) > MAX_NAME_BYTES:
        raise StoreError(
            f"The name {name[:40]!r}… is too long for a store: it takes {len(quoted):,} bytes of a path, where at most "
            f"{MAX_NAME_BYTES} may be. Shorten it."
        )
    return quoted.replace(".", "%2E", 1) if quoted.startswith(".") else quoted
