"""The table of segments: a CSV or parquet file as columns with roles.

Conventions: an empty text is a missing value; ids and paths are text, so `010` keeps its zero; CSV cells are text until
someone asks for numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from featurize.errors import SourceError
from featurize.timecode import lrc_to_seconds, smpte_to_seconds
from stores.remote import Location, RemotePath


class SegmentTable:
    """Role- and name-wise access to a table that is already in memory (blobs never are)."""

    def __init__(self, table: pa.Table, path: Location, roles: Mapping[str, str]):
        """Raises `SourceError` where the id or group column is missing."""
        self._table = table
        self.path = path
        self.roles = {role: column for role, column in roles.items() if column in table.column_names}
        for role in ("segment_id", "group"):
            if role not in self.roles:
                raise SourceError(
                    f"{path} has no column {roles[role]!r} for the {role}; it has {listed(table.column_names)}.\n"
                    f"Say which column it is: --set data.columns.{role}=NAME"
                )

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def other_columns(self) -> list[str]:
        """Columns that play no role, in file order: label candidates."""
        return [name for name in self._table.column_names if name not in self.roles.values()]

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as it was read."""
        return self._table.column(name)

    def texts(self, role: str) -> list[str | None]:
        """A role's column as text; `None` for null and empty, and for a role the table does not have."""
        if role not in self.roles:
            return [None] * len(self)
        return [value or None for value in self._as_text(role)]

    def numbers(self, role: str) -> tuple[np.ndarray, list[int]]:
        """float64 (N,), NaN where missing; and the rows whose cell is no finite number."""
        if role not in self.roles:
            return np.full(len(self), np.nan), []
        return parse_numbers(self._table.column(self.roles[role]))

    def seconds(self, role: str, timecode_rate: str | None) -> tuple[np.ndarray, list[int]]:
        """As `numbers`, float64 (N,), in seconds; a text may also be an LRC stamp, or an SMPTE timecode at
        `timecode_rate`.
        """
        values, unreadable = self.numbers(role)
        still_unreadable = []
        for row in unreadable:
            text = str(self._table.column(self.roles[role])[row].as_py()).strip()
            try:
                is_lrc = text.startswith("[")
                values[row] = lrc_to_seconds(text) if is_lrc else smpte_to_seconds(text, timecode_rate or "")
            except ValueError:
                still_unreadable.append(row)
        return values, still_unreadable

    def flags(self, role: str) -> list[bool | None]:
        """A has_… column as true, false, or `None` where missing or unknown."""
        if role not in self.roles:
            return [None] * len(self)
        return parse_flags(pa.array(self._as_text(role), pa.string()))

    def _as_text(self, role: str) -> list[str | None]:
        column = self._table.column(self.roles[role])
        try:
            texts: list[str | None] = pc.cast(column, pa.string()).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:  # a list or structure; bytes that are not UTF-8
            raise SourceError(
                f"{self.path}: column {self.roles[role]!r} is to be the {role}, but holds {column.type} that is no "
                f"text.\nSay which column it is: --set data.columns.{role}=NAME"
            ) from error
        return texts


def for_pyarrow(path: Location) -> Any:
    """What pyarrow reads a file from."""
    return path.open("rb") if isinstance(path, RemotePath) else path


def read_table(path: Location, drop: tuple[str, ...] = ()) -> pa.Table:
    """A CSV (all cells text) or parquet file without the columns in `drop`. Raises `SourceError`."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open("rb") as file:
                header = pyarrow.csv.open_csv(file).schema.names
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                raise SourceError(f"{path} names {listed(repeated)} twice in its header; column names must differ.")
            as_text = pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in header}, strings_can_be_null=False
            )
            newlines = pyarrow.csv.ParseOptions(newlines_in_values=True)  # lyrics in a quoted cell
            return pyarrow.csv.read_csv(for_pyarrow(path), parse_options=newlines, convert_options=as_text)
        names = [name for name in pq.read_schema(for_pyarrow(path)).names if name not in drop]
        return pq.read_table(for_pyarrow(path), columns=names)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"Cannot read {path}: {str(error).splitlines()[0]}") from error


def parse_numbers(column: pa.ChunkedArray) -> tuple[np.ndarray, list[int]]:
    """float64 (N,), NaN where missing or unreadable; and the rows that hold something that is no finite number."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = pc.cast(column, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
        return np.where(np.isfinite(values), values, np.nan), np.flatnonzero(np.isinf(values)).tolist()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    parse = cache(_parse_number) if is_text else _parse_number  # classes repeat, and failing takes long
    numbers = [parse(value) for value in column.to_pylist()]
    unreadable = [row for row, number in enumerate(numbers) if number is None]
    return np.array([np.nan if number is None else number for number in numbers], np.float64), unreadable


def _parse_number(value: Any) -> float | None:
    """NaN where it is missing, `None` where it is no finite number."""
    if value is None or value == "":
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    return math.nan if str(value).strip().lower() in ("nan", "null", "none", "na", "n/a") else None


def parse_flags(column: pa.Array | pa.ChunkedArray) -> list[bool | None]:
    """true, false, or `None` where a cell is missing or unknown, of bools, numbers and words."""
    words = {
        "true": True,
        "1": True,
        "1.0": True,
        "yes": True,
        "false": False,
        "0": False,
        "0.0": False,
        "no": False,
    }
    return [words.get(text.lower()) if text else None for text in pc.cast(column, pa.string()).to_pylist()]


def listed(names: list[str], most: int = 12) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
