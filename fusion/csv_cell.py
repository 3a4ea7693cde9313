"""Texts in a CSV that people open in a spreadsheet: none of them is computed."""

from __future__ import annotations

from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute what follows


def csv_cell(value: Any) -> Any:
    """The value; with an apostrophe before a text that would be taken for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
