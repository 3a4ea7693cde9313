"""Predictions as a file: parquet, CSV or JSON lines, written block by block, and there only when it is whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurize.errors import ConfigError
from fusion.csv_cell import csv_cell

FORMATS = ("parquet", "csv", "jsonl")
Write = Callable[[pa.Table], None]


def format_of(path: Path, wanted: str | None) -> str:
    """As wanted, or as the name of the file ends. Raises `ConfigError`."""
    found = wanted or path.suffix.removeprefix(".").lower()
    if found not in FORMATS:
        raise ConfigError(f"{path}: a file of predictions ends in .{', .'.join(FORMATS)}; or say which with --format.")
    return found


@contextmanager
def new_file(path: Path, file_format: str) -> Iterator[Write]:
    """`write(table)` for tables of one schema; the file has its name once the block has ended without error."""
    unfinished = path.with_name(f".{path.name}.partial")
    try:
        if file_format == "parquet":
            with _parquet(unfinished) as write:
                yield write
        else:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                yield text_writer(file, file_format)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def text_writer(file: IO[str], file_format: str) -> Write:
    """`write(table)` as CSV, with a header before the first, or as JSON lines."""
    return _CsvWriter(file) if file_format == "csv" else partial(_write_lines, file)


def _write_lines(file: IO[str], table: pa.Table) -> None:
    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    writer: list[pq.ParquetWriter] = []  # it wants the schema, which the first table has

    def write(table: pa.Table) -> None:
        if not writer:
            writer.append(pq.ParquetWriter(path, table.schema))
        writer[0].write_table(table)

    try:
        yield write
    finally:
        for opened in writer:
            opened.close()


class _CsvWriter:
    """Missing is empty, bool is `true` or `false`, and no text is a formula."""

    def __init__(self, file: IO[str]):
        self._writer = csv.writer(file, lineterminator="\n")
        self._has_header = False

    def __call__(self, table: pa.Table) -> None:
        if not self._has_header:
            self._writer.writerow(map(csv_cell, table.column_names))
            self._has_header = True
        self._writer.writerows(map(_text, row.values()) for row in table.to_pylist())


def _text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else csv_cell(value)
