"""The feature store: segments, labels, splits and features over any `ArrayTree`.

Layout
------
    (root)                            attributes: format, n_segments, chunk_rows, source
    segments/<column>   (N,)          id, group, start_seconds, end_seconds, …
    labels/<name>       (N,) | (N, K) text, number or bool; list labels as (N, K)
    splits/<name>       (N,) uint8    0 train, 1 val, 2 test, 255 left out; attributes: how it was made
    features/<slot>/<encoder>/        attributes: record, fingerprint, vectors (which array), state (names)
        vectors         (N, D)        float16, or float32
        status          (N,) uint8    `Status`
        input_hash      (N, 16) uint8 digest of the raw input that was encoded
        failure         (N,) text     why a row failed, else empty
        state/<name>                  weights of an encoder that was fitted here

A chunk of rows is the unit of work and has one owner. Within a chunk the statuses are written last, and a row about to
be encoded again is marked pending first: whatever is killed in between, a row marked present is whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from stores.base import STRING, ArrayTree
from stores.errors import DamagedStore, StoreError
from stores.record import Record, check_complete, check_same, fingerprint

FORMAT = 1
DEFAULT_CHUNK_ROWS = 1024
HASH_BYTES = 16
FLOAT16_MAX = 65504.0


class Status(IntEnum):
    """Four different facts about a row of a feature."""

    PENDING = 0  # not encoded yet
    PRESENT = 1  # its vector stands in the store
    ABSENT = 2  # the segment has no such modality
    FAILED = 3  # it has one that could not be encoded; the reason is kept


class Part(IntEnum):
    """What a split says of a row."""

    TRAIN = 0
    VAL = 1
    TEST = 2
    LEFT_OUT = 255


@dataclass(frozen=True)
class Split:
    """parts: uint8 (N,) of `Part`. facts: how it was made (`method`, `seed`, `fold`, `leaks`, …)."""

    name: str
    parts: np.ndarray
    facts: Mapping[str, Any]

    def rows(self, part: Part) -> np.ndarray:
        """Row numbers, ascending, int64."""
        return np.flatnonzero(self.parts == part)


class Feature:
    """What one encoder under one configuration wrote for every segment. Get one from `Store`."""

    def __init__(self, tree: ArrayTree, name: str):
        self._tree = tree
        self.name = name  # slot/encoder
        self.slot, _, self.encoder = name.partition("/")
        self._path = f"features/{_quoted(self.slot)}/{_quoted(self.encoder)}"
        self._facts = tree.attributes(self._path)
        self.record: Record = self._facts["record"]
        self.fingerprint: str = self._facts["fingerprint"]
        (self.n_segments, self.width), self.dtype, self.chunk_rows = tree.layout(self._vectors_path)

    def __repr__(self) -> str:
        return f"<Feature {self.name} {self.n_segments} x {self.width} {self.dtype}>"

    @property
    def _vectors_path(self) -> str:
        return f"{self._path}/{self._facts['vectors']}"

    def chunks(self) -> list[range]:
        """The rows of each chunk, in order."""
        return [
            range(start, min(start + self.chunk_rows, self.n_segments))
            for start in range(0, self.n_segments, self.chunk_rows)
        ]

    def status(self, rows: range | None = None) -> np.ndarray:
        """uint8 (N,) of `Status`; or of consecutive rows."""
        return self._read("status", rows)

    def input_hashes(self, rows: range | None = None) -> np.ndarray:
        """uint8 (N, 16): digests of what was encoded; zeros where nothing was."""
        return self._read("input_hash", rows)

    def failures(self, rows: range | None = None) -> np.ndarray:
        """Text (N,): why a row failed; empty elsewhere."""
        return self._read("failure", rows)

    @property
    def present(self) -> np.ndarray:
        """bool (N,)."""
        return np.asarray(self.status() == Status.PRESENT)

    def vectors(self, rows: range | None = None) -> np.ndarray:
        """float16 or float32 (N, D), zeros where the status is not present. Raises `DamagedStore`."""
        status = self.status(rows)
        stored = self._tree.stored_chunks(self._vectors_path)
        for number, chunk in enumerate(self.chunks()):
            first = 0 if rows is None else rows.start
            part = status[max(chunk.start - first, 0) : max(chunk.stop - first, 0)]
            if number not in stored and (part == Status.PRESENT).any():
                raise DamagedStore(
                    f"{self._tree.location}: {self.name}, rows {chunk.start} to {chunk.stop - 1}: the vectors are gone "
                    "though the rows are marked present. `cli verify` lists every damaged chunk."
                )
        return self._read(self._facts["vectors"], rows)

    def write_chunk(
        self,
        chunk: range,
        rows: np.ndarray,
        vectors: np.ndarray,
        status: np.ndarray,
        input_hash: np.ndarray,
        failure: Sequence[str],
    ) -> None:
        """Write some rows of one chunk: their numbers (n,), float (n, D), uint8 (n,), uint8 (n, 16), n texts.

        The chunk's other rows keep what they have. Vectors beyond float16 turn the whole feature to float32.
        """
        assert chunk in self.chunks() and len(rows) == len(vectors) == len(status) == len(input_hash) == len(failure)
        at = np.asarray(rows) - chunk.start
        new_status = self.status(chunk)
        if (new_status[at] != Status.PENDING).any():
            new_status[at] = Status.PENDING
            self._tree.write(f"{self._path}/status", chunk.start, new_status)
        if self.dtype == np.float16 and (np.abs(vectors) > FLOAT16_MAX).any():
            self._widen_to_float32()
        for name, values in (
            (self._facts["vectors"], np.where((status == Status.PRESENT)[:, None], vectors, 0)),
            ("input_hash", input_hash),
            ("failure", np.array(list(failure), dtype=STRING)),
        ):
            column = self._read(name, chunk)
            column[at] = values
            self._tree.write(f"{self._path}/{name}", chunk.start, column)
        new_status[at] = status
        self._tree.write(f"{self._path}/status", chunk.start, new_status)

    def state(self) -> dict[str, np.ndarray]:
        """Weights of an encoder that was fitted for this store, by name; empty for others."""
        return {name: self._tree.read(f"{self._path}/state/{_quoted(name)}") for name in self._facts["state"]}

    def array_names(self) -> list[str]:
        """The row arrays of this feature, vectors first."""
        return [self._facts["vectors"], "input_hash", "failure", "status"]

    def array_path(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _read(self, name: str, rows: range | None) -> np.ndarray:
        path = f"{self._path}/{name}"
        return self._tree.read(path) if rows is None else self._tree.read(path, rows.start, rows.stop)

    def _widen_to_float32(self) -> None:
        old = self._vectors_path
        (n, width), _, chunk_rows = self._tree.layout(old)
        stored = self._tree.stored_chunks(old)
        self._tree.create(f"{self._path}/vectors_float32", (n, width), np.dtype(np.float32), chunk_rows)
        for number, chunk in enumerate(self.chunks()):
            if number in stored:
                values = self._tree.read(old, chunk.start, chunk.stop).astype(np.float32)
                self._tree.write(f"{self._path}/vectors_float32", chunk.start, values)
        self._facts["vectors"] = "vectors_float32"
        self._tree.set_attributes(self._path, self._facts)  # from here on the wide array is the feature's
        self._tree.delete(old)
        self.dtype = np.dtype(np.float32)


class Store:
    """Segments and everything that is known of them. Open one with `stores.open_store`."""

    def __init__(self, tree: ArrayTree):
        self.tree = tree
        facts = tree.attributes("")
        if facts.get("format") != FORMAT:
            raise StoreError(
                f"{tree.location} is no triad-fusion store of format {FORMAT} (it says {facts.get('format')!r})."
            )
        self.n_segments: int = facts["n_segments"]
        self.chunk_rows: int = facts["chunk_rows"]
        self.source: Mapping[str, Any] = facts["source"]

    def __repr__(self) -> str:
        return (
            f"<Store {self.tree.location}: {self.n_segments} segments, features {', '.join(self.features()) or 'none'}>"
        )

    def __getitem__(self, feature: str) -> Feature:
        return self.feature(feature)

    @classmethod
    def create(
        cls,
        tree: ArrayTree,
        segments: Mapping[str, np.ndarray],
        labels: Mapping[str, np.ndarray],
        source: Mapping[str, Any],
        chunk_rows: int = DEFAULT_CHUNK_ROWS,
    ) -> Store:
        """A new store in an empty tree. `segments` has at least `id` and `group`; every column has N rows."""
        assert "group" in segments and chunk_rows >= 1
        _put_columns(tree, segments, labels, chunk_rows)
        _put_facts(tree, len(segments["id"]), chunk_rows, source)
        return cls(tree)

    def update(
        self, segments: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], source: Mapping[str, Any]
    ) -> None:
        """Renew columns, labels and source of the same segments; splits and features stay."""
        assert np.array_equal(segments["id"], self.ids)
        gone = set(self.label_names()) - set(labels)
        _put_columns(self.tree, segments, labels, self.chunk_rows)
        for name in gone:
            self.tree.delete(f"labels/{_quoted(name)}")
        _put_facts(self.tree, self.n_segments, self.chunk_rows, source)
        self.source = source

    # Segments and labels

    @property
    def ids(self) -> np.ndarray:
        """Text (N,), unique, in the source's order."""
        return self.segment_column("id")

    @property
    def groups(self) -> np.ndarray:
        """Text (N,): the song, or whatever must not be cut by a split."""
        return self.segment_column("group")

    def segment_columns(self) -> list[str]:
        return list(self.tree.attributes("segments")["columns"])

    def segment_column(self, name: str) -> np.ndarray:
        self._known("segment column", name, self.segment_columns())
        return self.tree.read(f"segments/{_quoted(name)}")

    def label_names(self) -> list[str]:
        return list(self.tree.attributes("labels")["columns"])

    def label(self, name: str) -> np.ndarray:
        """(N,) or (N, K); a missing label is an empty text or NaN."""
        self._known("label", name, self.label_names())
        return self.tree.read(f"labels/{_quoted(name)}")

    # Splits

    def splits(self) -> list[str]:
        return [unquote(name) for name in self.tree.children("splits") if self.tree.attributes(f"splits/{name}")]

    def split(self, name: str) -> Split:
        self._known("split", name, self.splits(), remedy="`cli split` makes one.")
        path = f"splits/{_quoted(name)}"
        return Split(name, self.tree.read(path), self.tree.attributes(path))

    def write_split(self, split: Split) -> None:
        """Freeze a split. The facts are written last: a split without them does not exist."""
        assert split.parts.shape == (self.n_segments,) and split.facts
        path = f"splits/{_quoted(split.name)}"
        _put(self.tree, path, split.parts.astype(np.uint8), self.chunk_rows)
        self.tree.set_attributes(path, dict(split.facts))

    def delete_split(self, name: str) -> None:
        self.tree.delete(f"splits/{_quoted(name)}")

    # Features

    def features(self) -> list[str]:
        """Names `slot/encoder` of every feature whose record has been written."""
        names = []
        for slot in self.tree.children("features"):
            for encoder in self.tree.children(f"features/{slot}"):
                if "record" in self.tree.attributes(f"features/{slot}/{encoder}"):
                    names.append(f"{unquote(slot)}/{unquote(encoder)}")
        return names

    def feature(self, name: str) -> Feature:
        self._known("feature", name, self.features(), remedy="`cli featurize --encoder NAME` makes one.")
        return Feature(self.tree, name)

    def create_feature(
        self,
        name: str,
        record: Record,
        *,
        dtype: np.dtype[Any] | type = np.float16,
        state: Mapping[str, np.ndarray] | None = None,
    ) -> Feature:
        """A new feature, all rows pending. Raises `StoreError` where one of that name exists."""
        check_complete(record)
        if name in self.features():
            raise StoreError(f"{self.tree.location} holds {name} already. Keep both with --as NAME, or pass --replace.")
        slot, _, encoder = name.partition("/")
        if not slot or not encoder or "/" in encoder:
            raise StoreError(f"A feature is named slot/encoder, e.g. audio/mel_stats, not {name!r}.")
        path = f"features/{_quoted(slot)}/{_quoted(encoder)}"
        self.tree.delete(path)  # what an interrupted creation left
        n = self.n_segments
        self.tree.create(f"{path}/vectors", (n, int(record["width"])), np.dtype(dtype), self.chunk_rows)
        self.tree.create(f"{path}/input_hash", (n, HASH_BYTES), np.dtype(np.uint8), self.chunk_rows)
        self.tree.create(f"{path}/failure", (n,), STRING, self.chunk_rows)
        self.tree.create(f"{path}/status", (n,), np.dtype(np.uint8), self.chunk_rows)
        for key, array in (state or {}).items():
            _put(self.tree, f"{path}/state/{_quoted(key)}", array, max(len(array), 1))
        facts = {"record": dict(record), "fingerprint": fingerprint(record), "vectors": "vectors"}
        self.tree.set_attributes(path, {**facts, "state": list(state or {})})
        return Feature(self.tree, name)

    def open_feature(self, name: str, record: Record, **creation: Any) -> Feature:
        """The feature of that name, made where there is none. Raises `RecordMismatch` where another wrote it."""
        if name not in self.features():
            return self.create_feature(name, record, **creation)
        feature = self.feature(name)
        check_same(name, feature.record, record)
        return feature

    def delete_feature(self, name: str) -> None:
        slot, _, encoder = name.partition("/")
        self.tree.delete(f"features/{_quoted(slot)}/{_quoted(encoder)}")

    def _known(self, kind: str, name: str, known: list[str], remedy: str = "") -> None:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise StoreError(f"{self.tree.location} has no {kind} {name!r}; it has {listed}. {remedy}".rstrip())


def _put_columns(
    tree: ArrayTree, segments: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], chunk_rows: int
) -> None:
    for group, columns in (("segments", segments), ("labels", labels)):
        for name, values in columns.items():
            assert len(values) == len(segments["id"]), f"{group}/{name} has {len(values)} rows"
            _put(tree, f"{group}/{_quoted(name)}", values, chunk_rows)
        tree.set_attributes(group, {"columns": list(columns)})


def _put_facts(tree: ArrayTree, n_segments: int, chunk_rows: int, source: Mapping[str, Any]) -> None:
    facts = {"format": FORMAT, "n_segments": n_segments, "chunk_rows": chunk_rows, "source": dict(source)}
    tree.set_attributes("", facts)


def _put(tree: ArrayTree, path: str, values: np.ndarray, chunk_rows: int) -> None:
    tree.create(path, values.shape, values.dtype, chunk_rows)
    for start in range(0, len(values), chunk_rows):
        tree.write(path, start, values[start : start + chunk_rows])


def _quoted(name: str) -> str:
    """A name as one path component: percent-encoded, and never hidden, `.` or `..`."""
    quoted = quote(name, safe=" ()[]{}+,=@")
    return quoted.replace(".", "%2E", 1) if quoted.startswith(".") else quoted
