"""Precomputed vectors in a user's own file: parquet with list columns, HDF5, npz.

Conventions
-----------
* A file has a column of ids, one or several columns of vectors, and for each of these perhaps a column of flags. In
  HDF5 and npz a column is an array by its name (`group/name` in HDF5): ids (n,), vectors (n, D), flags (n,).
* Where nobody says otherwise, the ids are `segment_id`, `ids` or `id`; `NAME_embedding` holds vectors, and
  `has_NAME_embedding` says which are there.
* Flag false, null, an empty list and a vector of zeros mean absent, in this order. What is there must be finite, and as
  wide as the others.
* Nothing is unpickled: arrays of Python objects are refused.

Parquet is read by batches and HDF5 by rows, so memory is bounded by the parquet's row group; npz by the array.
"""

from __future__ import annotations

import hashlib
import zipfile
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurize.config import FOLDER_COLUMNS, SPLIT_PARQUET_COLUMNS, DataConfig
from featurize.errors import SourceError
from featurize.sources.base import Source
from featurize.sources.lists import Lists, is_list_of_numbers, read_lists
from featurize.sources.table import SegmentTable, listed, parse_flags, read_table

LAYOUT = "vectors"  # of a store whose segments came with their vectors, and have no raw data
ID_NAMES = ("segment_id", "ids", "id")
SUFFIX = "_embedding"
BATCH_ROWS = 1024
KEPT_ROLES = ("segment_id", "group", "track_id", "start_seconds", "end_seconds")  # the others are of raw data
EXAMPLES = 3

NULL, FALSE, ZERO = "null or empty", "flag false", "all zero"


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a column, from `start`. flags: bool or `None` each; `None` where the column has none."""

    start: int
    lists: Lists
    flags: list[bool | None] | None


@dataclass(frozen=True)
class Vectors:
    """What is there in a block: rows int64 (k,) of the file, vectors float32 (k, D). absent: the other rows, by why."""

    rows: np.ndarray
    vectors: np.ndarray
    absent: dict[str, np.ndarray]


class VectorFile(ABC):
    """A file of ids and vectors. Subclasses know one format."""

    _file: Any = None

    def __init__(self, path: Path, id_name: str | None):
        self.path = path
        try:
            with _readable(path):
                self._open()
            self.id_name = self._find_ids(id_name)
            self.ids = self._checked_ids()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the file back; nothing can be read afterwards."""
        if self._file is not None:
            self._file.close()

    def _find_ids(self, id_name: str | None) -> str:
        names = self.names()
        wanted = (id_name,) if id_name else ID_NAMES
        found = [name for name in wanted if name in names]
        if not found:
            raise SourceError(
                f"{self.path} has no column {' or '.join(wanted)} to join it by; it has {listed(names)}.\n"
                "Say which one holds the ids: --ids NAME"
            )
        return found[0]

    @cached_property
    def sha256(self) -> str:
        """Of the whole file, hex."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def vector_names(self) -> list[str]:
        """Columns that hold vectors by their name."""
        lasts = {name: name.rpartition("/")[2] for name in self.names()}
        return [name for name, last in lasts.items() if last.endswith(SUFFIX) and not last.startswith("has_")]

    def vectors(self, column: str, flag: str | None) -> Iterator[Vectors]:
        """Block by block what is there. Raises `SourceError` on a row that is too wide, too narrow, or not finite."""
        width: int | None = None
        for block in self._blocks(column, flag):
            lengths = block.lists.lengths
            refused = np.array([flag is False for flag in block.flags or [None] * len(lengths)], bool)
            empty = ~refused & (lengths <= 0)
            wanted = ~refused & ~empty
            if width is None and wanted.any():
                width = int(lengths[wanted][0])
            for row in np.flatnonzero(wanted & (lengths != width))[:1]:
                raise SourceError(
                    f"{self.path}: {column} has {lengths[row]:,} numbers in {self._show(block.start + row)}, "
                    f"{width:,} in the rows before it. All vectors of a column must be equally wide."
                )
            rows, vectors = block.lists.of_width(width or 1, wanted)
            for row in rows[~np.isfinite(vectors).all(axis=1)][:1]:
                raise SourceError(
                    f"{self.path}: {column} holds NaN or infinity in {self._show(block.start + row)}. Write null where "
                    "there is no vector, or a flag: has_" + column
                )
            is_zero = ~vectors.any(axis=1)
            absent = {FALSE: np.flatnonzero(refused), NULL: np.flatnonzero(empty), ZERO: rows[is_zero]}
            yield Vectors(
                block.start + rows[~is_zero],
                vectors[~is_zero] if is_zero.any() else vectors,
                {why: block.start + these for why, these in absent.items()},
            )

    @abstractmethod
    def _open(self) -> None:
        """Set `_file`, and whatever says what is in it."""

    @abstractmethod
    def names(self) -> list[str]:
        """Every column, in file order."""

    @abstractmethod
    def candidates(self) -> list[str]:
        """Those whose type allows vectors."""

    @abstractmethod
    def check_vectors(self, column: str) -> None:
        """Raise `SourceError` where a column's type allows none."""

    @abstractmethod
    def _texts(self, column: str) -> list[str | None]:
        """A column of ids as text. Raises `SourceError` where it is none."""

    @abstractmethod
    def _blocks(self, column: str, flag: str | None) -> Iterator[Block]: ...

    def _checked_ids(self) -> list[str]:
        ids = self._texts(self.id_name)
        if not ids:
            raise SourceError(f"{self.path} has no rows.")
        rows_of: dict[str, list[int]] = defaultdict(list)
        for row, segment_id in enumerate(ids):
            if not segment_id:
                raise SourceError(f"{self.path}: {self.id_name} is empty in row {row + 1}. Every vector needs an id.")
            rows_of[segment_id].append(row)
        repeated = {segment_id: rows for segment_id, rows in rows_of.items() if len(rows) > 1}
        if repeated:
            segment_id, rows = next(iter(repeated.items()))
            shown = ", ".join(str(row + 1) for row in rows[:EXAMPLES])
            raise SourceError(
                f"{self.path}: {len(repeated):,} ids of {self.id_name} are there more than once, e.g. {segment_id!r} "
                f"in rows {shown}. Each segment has one vector."
            )
        return list(rows_of)

    def _show(self, row: int) -> str:
        return f"row {row + 1} ({self.ids[row]!r})"


class ParquetVectors(VectorFile):
    """Columns of a parquet file: a list of numbers a row, read by row groups."""

    def _open(self) -> None:
        self._file = pq.ParquetFile(self.path)

    def names(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def candidates(self) -> list[str]:
        return [field.name for field in self._file.schema_arrow if is_list_of_numbers(field.type)]

    def check_vectors(self, column: str) -> None:
        kind = self._file.schema_arrow.field(column).type
        if not is_list_of_numbers(kind):
            raise SourceError(f"{self.path}: {column} holds {kind}; vectors are lists of numbers.")

    def _texts(self, column: str) -> list[str | None]:
        with _readable(self.path):
            cells = self._file.read([column]).column(0)
            try:
                return [text or None for text in pc.cast(cells, pa.string()).to_pylist()]
            except pa.ArrowNotImplementedError as error:
                raise SourceError(f"{self.path}: {column} holds {cells.type}, which are no ids.") from error

    def _blocks(self, column: str, flag: str | None) -> Iterator[Block]:
        start = 0
        with _readable(self.path):
            for batch in self._file.iter_batches(BATCH_ROWS, columns=[column] if flag is None else [column, flag]):
                flags = None if flag is None else parse_flags(batch.column(flag))
                yield Block(start, read_lists(batch.column(column)), flags)
                start += len(batch)


class ArrayVectors(VectorFile):
    """Named numpy-like arrays: what HDF5 and npz have in common."""

    @abstractmethod
    def _arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of every array."""

    @abstractmethod
    def _rows(self, name: str, start: int, stop: int) -> np.ndarray: ...

    def names(self) -> list[str]:
        return list(self._arrays())

    def candidates(self) -> list[str]:
        return [name for name, (shape, kind) in self._arrays().items() if len(shape) == 2 and kind.kind in "fiu"]

    def check_vectors(self, column: str) -> None:
        self._shape(column, 2)
        if column not in self.candidates():
            raise SourceError(f"{self.path}: {column} holds {self._arrays()[column][1]}; vectors are numbers.")

    def _texts(self, column: str) -> list[str | None]:
        (n,) = self._shape(column, 1)
        values = self._rows(column, 0, n)
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8")
        if values.dtype.kind not in "UTiu":
            raise SourceError(f"{self.path}: {column} holds {values.dtype}, which are no ids.")
        return [str(value) or None for value in values.tolist()]

    def _blocks(self, column: str, flag: str | None) -> Iterator[Block]:
        n, width = self._shape(column, 2)
        for name in (column, *([flag] if flag else [])):
            if self._arrays()[name][0][0] != len(self.ids):
                n_rows = self._arrays()[name][0][0]
                raise SourceError(f"{self.path}: {name} has {n_rows:,} rows, {self.id_name} has {len(self.ids):,}.")
        flags = None if flag is None else parse_flags(pa.array(self._rows(flag, 0, self._shape(flag, 1)[0]).tolist()))
        for start in range(0, n, BATCH_ROWS):
            stop = min(start + BATCH_ROWS, n)
            with np.errstate(over="ignore"):
                values = self._rows(column, start, stop).astype(np.float32)
            lists = Lists(np.full(stop - start, width), values.ravel())
            yield Block(start, lists, None if flags is None else flags[start:stop])

    def _shape(self, name: str, n_axes: int) -> tuple[int, ...]:
        shape, kind = self._arrays()[name]
        if kind.kind == "O":
            raise SourceError(
                f"{self.path}: {name} holds Python objects, which are never unpickled. "
                "Save it as numbers or fixed-length text: array.astype('U')"
            )
        if len(shape) != n_axes:
            wanted = "(n, D)" if n_axes == 2 else "(n,)"
            raise SourceError(f"{self.path}: {name} has shape {shape}; {wanted} was expected.")
        return shape


class Hdf5Vectors(ArrayVectors):
    """Datasets of an HDF5 file, called by their paths in it."""

    def _open(self) -> None:
        import h5py

        self._file = h5py.File(self.path, "r")
        self._found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                text = h5py.check_string_dtype(node.dtype)
                self._found[name] = node.shape, np.dtype("T") if text else node.dtype

        self._file.visititems(visit)

    def _arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return self._found

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        array = self._file[name]
        with _readable(self.path):
            if self._found[name][1].kind == "T":
                return np.array(array.asstr()[start:stop], np.dtypes.StringDType())
            return np.asarray(array[start:stop])


class NpzVectors(ArrayVectors):
    """Arrays of an npz archive; nothing in it is unpickled."""

    _loaded: tuple[str, np.ndarray] | None = None

    def _open(self) -> None:
        self._stream = self.path.open("rb")  # of its own, numpy leaves one open where the file is no archive
        self._file = np.load(self._stream, allow_pickle=False)
        self._headers = {name: _npz_header(self.path, name) for name in self._file.files}

    def close(self) -> None:
        super().close()
        self._stream.close()

    def _arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        return self._headers

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        if self._loaded is None or self._loaded[0] != name:
            with _readable(self.path):
                self._loaded = name, self._file[name]  # a compressed array is read whole
        return self._loaded[1][start:stop]


def open_vectors(path: Path, id_name: str | None = None) -> VectorFile:
    """The file at `path`, whichever format it has. Raises `SourceError` where it has none of them, or no ids."""
    try:
        with path.open("rb") as file:
            first = file.read(8)
    except OSError as error:
        raise SourceError(f"Cannot read {path}: {error.strerror}.") from error
    if first.startswith(b"PAR1"):
        return ParquetVectors(path, id_name)
    if first == b"\x89HDF\r\n\x1a\n":
        return Hdf5Vectors(path, id_name)
    if first.startswith(b"PK"):
        return NpzVectors(path, id_name)
    raise SourceError(f"{path} is neither parquet, HDF5 nor npz. Vectors are imported from these.")


def open_segments(file: VectorFile, left_out: set[str], config: DataConfig) -> Source:
    """The segments of a parquet of vectors: ids, groups, times and labels, without raw data and without `left_out`.

    Raises `SourceError` where it is no parquet, or has no groups.
    """
    if not isinstance(file, ParquetVectors):
        raise SourceError(
            f"{file.path} has vectors, but no groups and labels to make a store of.\n"
            "Make the store first, cli ingest DATA, or import a parquet that has them before this file."
        )
    names = file.names()
    roles = {**config.columns.mapping("split_parquet"), "segment_id": file.id_name}
    if roles["group"] not in names and FOLDER_COLUMNS["group"] in names:
        roles["group"] = FOLDER_COLUMNS["group"]
    kept = {role: roles[role] for role in KEPT_ROLES}
    raw = {*FOLDER_COLUMNS.values(), *SPLIT_PARQUET_COLUMNS.values(), *roles.values()} - set(kept.values())
    table = SegmentTable(read_table(file.path, drop=(*left_out, *raw)), file.path, kept)
    return Source(
        table, file.path.parent, LAYOUT, audio_is="segment", midi_is="song", timecode_rate=config.timecode_rate
    )


def _npz_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, kind = read[np.lib.format.read_magic(file)](file)
        return shape, kind


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What pyarrow, h5py, zipfile and numpy raise on a file that is cut off or damaged, in one line of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(f"Cannot read {path}: {reason[:200]}") from error
