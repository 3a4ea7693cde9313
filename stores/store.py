"""The feature store: segments, labels, splits and features over any `ArrayTree`.

Layout
------
    (root)                            attributes: format, n_segments, chunk_rows, source
    segments/<column>   (N,)          id, group, start_seconds, end_seconds, …
    labels/<name>       (N,) | (N, K) text, number or bool; list labels as (N, K)
    splits/<name>       (N,) uint8    0 train, 1 val, 2 test, 255 left out; attributes: how it was made
    alignment/<column>  (N,)          how audio and MIDI of each segment fit in time; attributes: how it was measured
    features/<slot>/<encoder>/        attributes: record, fingerprint, vectors and frames (which array), state (names)
        vectors         (N, D)        float16, or float32
        frames          (N, T, D)     the same type; only where they were asked for, with
        n_frames        (N,) uint16   how many of the T are real, the first ones
        status          (N,) uint8    `Status`
        input_hash      (N, 16) uint8 digest of the raw input that was encoded
        failure         (N,) text     why a row failed, else empty
        state/<name>                  weights of an encoder that was fitted here

How a chunk of a feature is written so that it survives being killed: `stores/feature.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from stores.base import STRING, ArrayTree
from stores.claim import claimed
from stores.errors import DamagedStore, StoreError
from stores.feature import HASH_BYTES, Feature, quoted, read_whole
from stores.record import Record, check_complete, check_same, fingerprint
from stores.shard import Shard

FORMAT = 1
DEFAULT_CHUNK_ROWS = 1024
CHUNKS_AT_ONCE = 64  # of a column that is written as a whole: each write takes milliseconds, however little it is


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
        """Row numbers of a part, int64 (n,), ascending."""
        return np.flatnonzero(self.parts == part)


class Store:
    """Segments and everything that is known of them. Open one with `stores.open_store`."""

    def __init__(self, tree: ArrayTree):
        self.tree = tree
        self._facts = facts = tree.attributes("")
        if facts.get("format") != FORMAT:
            raise StoreError(
                f"{tree.location} is no triad-fusion store of format {FORMAT} (it says {facts.get('format')!r})."
            )
        try:
            self.n_segments: int = facts["n_segments"]
            self.chunk_rows: int = facts["chunk_rows"]
            self.source: Mapping[str, Any] = facts["source"]
        except KeyError as error:
            raise DamagedStore(
                f"{tree.location} is damaged: what describes it lacks {error}. Make it anew: cli ingest DATA --replace"
            ) from error

    def __repr__(self) -> str:
        from stores.cards import store_card

        return store_card(self).text()

    def _repr_html_(self) -> str:
        from stores.cards import store_card

        return store_card(self).html()

    def __iter__(self) -> Iterator[str]:
        """The names of its features, as of a mapping."""
        return iter(self.features())

    def __contains__(self, feature: object) -> bool:
        return feature in self.features()

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
        """A new store in an empty tree. `segments` has at least `id` and `group`; every column is (N,)."""
        assert "group" in segments and chunk_rows >= 1
        _put_columns(tree, segments, labels, chunk_rows)
        _put_facts(tree, len(segments["id"]), chunk_rows, source)
        return cls(tree)

    def update(
        self, segments: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], source: Mapping[str, Any]
    ) -> None:
        """Renew columns (N,), labels and source of the same segments; splits and features stay.

        What stands as it should is not touched: killed in between, a store has lost no ids and no groups, and the same
        call does the rest.
        """
        assert np.array_equal(segments["id"], self.ids)
        _put_columns(self.tree, segments, labels, self.chunk_rows)
        for group, columns in (("segments", segments), ("labels", labels)):
            for name in set(self.tree.children(group)) - {quoted(column) for column in columns}:
                self.tree.delete(f"{group}/{name}")
        _put_facts(self.tree, self.n_segments, self.chunk_rows, source)
        self._facts = self.tree.attributes("")
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
        """Names of what is known of segments: `id`, `group`, and what the source had."""
        return list(self.tree.attributes("segments")["columns"])

    def segment_column(self, name: str, rows: range | None = None) -> np.ndarray:
        """(N,); or of consecutive rows."""
        self._known("segment column", name, self.segment_columns())
        return read_whole(self.tree, f"segments/{quoted(name)}", rows)

    def label_names(self) -> list[str]:
        """Names of the label columns."""
        return list(self.tree.attributes("labels")["columns"])

    def label(self, name: str) -> np.ndarray:
        """(N,) or (N, K); a missing label is an empty text or NaN."""
        self._known("label", name, self.label_names())
        return read_whole(self.tree, f"labels/{quoted(name)}")

    def to_arrow(self) -> Any:
        """`pyarrow.Table`: segment_id, group, times, labels, and a column for each feature, null where not present."""
        from stores.tables import store_table

        return store_table(self)

    def to_pandas(self) -> Any:
        """`pandas.DataFrame` with the columns of `to_arrow`, and segment_id as its index."""
        from stores.tables import to_pandas

        return to_pandas(self.to_arrow())

    # Splits

    def splits(self) -> list[str]:
        """Names of the splits that are whole."""
        return [unquote(name) for name in self.tree.children("splits") if self.tree.attributes(f"splits/{name}")]

    def split(self, name: str) -> Split:
        """The split of this name. Raises `StoreError` where there is none, `DamagedStore` on bad bytes."""
        path = f"splits/{quoted(name)}"
        if not self.tree.attributes(path):
            self._known("split", name, self.splits(), remedy="`cli split` makes one.")
        return Split(name, read_whole(self.tree, path), self.tree.attributes(path))

    def write_split(self, split: Split) -> None:
        """Freeze a split. The facts are written last: a split without them does not exist."""
        assert split.parts.shape == (self.n_segments,) and split.facts
        path = f"splits/{quoted(split.name)}"
        _put(self.tree, path, split.parts.astype(np.uint8), self.chunk_rows)
        self.tree.set_attributes(path, dict(split.facts))

    def delete_split(self, name: str) -> None:
        """Remove a split for good; the name is free again."""
        self.tree.delete(f"splits/{quoted(name)}")

    # Alignment of audio and MIDI

    def alignment(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Columns (N,) by name, and the facts of their measurement (`featurize.alignment`); `None` before one."""
        facts = self.tree.attributes("alignment")
        if not facts:
            return None
        names = self.tree.children("alignment")
        return {unquote(name): read_whole(self.tree, f"alignment/{name}") for name in names}, facts

    def write_alignment(self, columns: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Replace the measurement, columns of (N,); the facts are written last."""
        assert facts and all(len(values) == self.n_segments for values in columns.values())
        self.tree.delete("alignment")
        for name, values in columns.items():
            _put(self.tree, f"alignment/{quoted(name)}", values, self.chunk_rows)
        self.tree.set_attributes("alignment", dict(facts))

    # Features

    def features(self) -> list[str]:
        """Names `slot/encoder` of every feature whose record has been written."""
        names = []
        for slot in self.tree.children("features"):
            for encoder in self.tree.children(f"features/{slot}"):
                if "record" in self.tree.attributes(f"features/{slot}/{encoder}"):
                    names.append(f"{unquote(slot)}/{unquote(encoder)}")
        return names

    def has_feature(self, name: str) -> bool:
        """Whether there is such a feature; asked by its name, as a listing of object storage may be old."""
        slot, _, encoder = name.partition("/")
        return bool(slot and encoder) and "record" in self.tree.attributes(f"features/{quoted(slot)}/{quoted(encoder)}")

    def feature(self, name: str) -> Feature:
        """The feature of this name, `slot/encoder`. Raises `StoreError` where there is none."""
        if not self.has_feature(name):
            self._known("feature", name, self.features(), remedy="`cli featurize --encoder NAME` makes one.")
        return Feature(self.tree, name)

    def create_feature(
        self,
        name: str,
        record: Record,
        *,
        dtype: np.dtype[Any] | type = np.float16,
        state: Mapping[str, np.ndarray] | None = None,
        frames: int = 0,
    ) -> Feature:
        """A new feature (N, D), all rows pending; with up to `frames` frames a row.

        Raises `StoreError` where it exists.
        """
        if self.has_feature(name):
            raise StoreError(f"{self.tree.location} holds {name} already. Keep both with --as NAME, or pass --replace.")
        self.tree.delete(feature_path(name))  # what an interrupted creation left
        make_feature(self.tree, name, record, self.n_segments, self.chunk_rows, np.dtype(dtype), state or {}, frames)
        return Feature(self.tree, name)

    def open_feature(self, name: str, record: Record, **creation: Any) -> Feature:
        """The feature of that name, made where there is none. Raises `RecordMismatch` where another wrote it.

        To be called while `writing` it: what a killed writer left there is removed.
        """
        if not self.has_feature(name):
            return self.create_feature(name, record, **creation)
        feature = self.feature(name)
        check_same(name, feature.record, record)
        feature.remove_leftovers()
        return feature

    def join_feature(
        self,
        name: str,
        record: Record,
        shard: Shard,
        *,
        alone: bool,
        dtype: np.dtype[Any] | type = np.float16,
        state: Mapping[str, np.ndarray] | None = None,
        frames: int = 0,
    ) -> Feature:
        """As `open_feature` of (N, D), for one of several shards: nothing is removed that may be another's.

        alone: no other shard is doing the same (`stores.claim.one_by_one`).
        """

        def make(tree: ArrayTree) -> None:
            make_feature(tree, name, record, self.n_segments, self.chunk_rows, np.dtype(dtype), state or {}, frames)

        if not self.has_feature(name):
            self.tree.appear(feature_path(name), make, alone=alone)
        feature = self.feature(name)
        check_same(name, feature.record, record)
        feature.is_shared = True
        mine = set(shard.of_all(range(len(feature.chunks()))))
        for array in feature.array_names():
            self.tree.remove_chunk_leftovers(feature.array_path(array), mine)
        return feature

    @contextmanager
    def writing(self, name: str, shard: Shard | None = None) -> Iterator[None]:
        """While the block runs nobody else writes this feature, or this shard of it. Raises `StoreError`."""
        with claimed(self.tree.claims, name, shard):
            if self.tree.attributes("") != self._facts:  # rows may be others than they were
                raise StoreError(f"{self.tree.location} was written anew just now. Give the same command again.")
            claims = self.tree.claims
            if shard is None and isinstance(claims, Path) and len(list(claims.rglob("*.claim"))) == 1:
                for node in ("", "features", f"features/{quoted(name.partition('/')[0])}"):  # no other feature's writer
                    self.tree.remove_leftovers(older_than_seconds=0, path=node, deep=False)
            yield

    def delete_feature(self, name: str) -> None:
        """Remove a feature for good, with its record and all rows."""
        self.tree.delete(feature_path(name))

    def _known(self, kind: str, name: str, known: list[str], remedy: str = "") -> None:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise StoreError(f"{self.tree.location} has no {kind} {name!r}; it has {listed}. {remedy}".rstrip())


def feature_path(name: str) -> str:
    """Where `slot/encoder` stands in the tree. Raises `StoreError` for another name."""
    slot, _, encoder = name.partition("/")
    if not slot or not encoder or "/" in encoder:
        raise StoreError(f"A feature is named slot/encoder, e.g. audio/mel_stats, not {name!r}.")
    return f"features/{quoted(slot)}/{quoted(encoder)}"


def make_feature(
    tree: ArrayTree,
    name: str,
    record: Record,
    n_segments: int,
    chunk_rows: int,
    dtype: np.dtype[Any],
    state: Mapping[str, np.ndarray],
    frames: int,
) -> None:
    """The arrays of a new feature (N, D), and then what describes it: without that it does not exist."""
    check_complete(record)
    path, width = feature_path(name), int(record["width"])
    tree.create(f"{path}/vectors", (n_segments, width), dtype, chunk_rows)
    if frames:
        tree.create(f"{path}/frames", (n_segments, frames, width), dtype, chunk_rows)
        tree.create(f"{path}/n_frames", (n_segments,), np.dtype(np.uint16), chunk_rows)
    tree.create(f"{path}/input_hash", (n_segments, HASH_BYTES), np.dtype(np.uint8), chunk_rows)
    tree.create(f"{path}/failure", (n_segments,), STRING, chunk_rows)
    tree.create(f"{path}/status", (n_segments,), np.dtype(np.uint8), chunk_rows)
    for key, array in state.items():
        _put(tree, f"{path}/state/{quoted(key)}", array, max(len(array), 1))
    facts = {"record": dict(record), "fingerprint": fingerprint(record)}
    arrays = {"vectors": "vectors", "frames": "frames" if frames else None}
    tree.set_attributes(path, {**facts, **arrays, "state": list(state)})


def _put_columns(
    tree: ArrayTree, segments: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], chunk_rows: int
) -> None:
    for group, columns in (("segments", segments), ("labels", labels)):
        for name, values in columns.items():
            assert len(values) == len(segments["id"]), f"{group}/{name} has {len(values)} rows"
            if not _stands(tree, f"{group}/{quoted(name)}", values):
                _put(tree, f"{group}/{quoted(name)}", values, chunk_rows)
        tree.set_attributes(group, {"columns": list(columns)})


def _put_facts(tree: ArrayTree, n_segments: int, chunk_rows: int, source: Mapping[str, Any]) -> None:
    facts = {"format": FORMAT, "n_segments": n_segments, "chunk_rows": chunk_rows, "source": dict(source)}
    tree.set_attributes("", facts)


def _stands(tree: ArrayTree, path: str, values: np.ndarray) -> bool:
    """Whether an array is there already, and whole."""
    try:
        stored = read_whole(tree, path)
    except StoreError:
        return False
    if stored.dtype != values.dtype or stored.shape != values.shape:
        return False
    return bool((stored == values).all()) if values.dtype.kind == "T" else stored.tobytes() == values.tobytes()


def _put(tree: ArrayTree, path: str, values: np.ndarray, chunk_rows: int) -> None:
    tree.create(path, values.shape, values.dtype, chunk_rows)
    step = CHUNKS_AT_ONCE * chunk_rows
    for start in range(0, len(values), step):
        tree.write(path, start, values[start : start + step])
