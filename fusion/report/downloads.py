"""A table as a CSV file behind a link, in full precision; it needs neither network nor script."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from fusion.csv_cell import csv_cell

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class Download:
    """name: of the file. href: a `data:` address that holds it."""

    name: str
    href: str


def download(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Download:
    """`None` becomes an empty cell. name: any text; what a file name had better not hold becomes a dash."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([csv_cell(column) for column in columns])
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    text = file.getvalue().encode("utf-8", "replace")
    plain = _NOT_IN_NAMES.sub("-", name).strip("-.")[:80] or "table"
    return Download(f"{plain}.csv", f"data:text/csv;charset=utf-8,{quote(text)}")
