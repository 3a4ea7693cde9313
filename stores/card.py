"""What an object says of itself, as one block of text and as HTML for a notebook: facts by name, and perhaps a table.

What it shows comes from other people's data: HTML is escaped, and text is `plain`, a line a fact whatever stands in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from stores.terminal import plain

MOST_CHARACTERS = 300  # of a cell: one id may be as long as a book


@dataclass(frozen=True)
class Card:
    """title: one line. facts: name and value. header, rows: a table; numbers in it stand to the right."""

    title: str
    facts: Sequence[tuple[str, str]] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()

    def text(self) -> str:
        """For a terminal: a title, and a line a fact."""
        width = max((len(_line(name)) for name, _ in self.facts), default=0)
        lines = [_line(self.title), *(f"  {_line(name):<{width}}  {_line(value)}" for name, value in self.facts)]
        if self.rows:
            table = [[_line(cell) for cell in row] for row in (self.header, *self.rows)]
            widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
            right = [column > 0 for column in range(len(widths))]
            for row in table:
                cells = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
                lines.append(("  " + "  ".join(cells)).rstrip())
        return "\n".join(lines)

    def html(self) -> str:
        """For a notebook: a table, in which everything is escaped."""
        parts = [f"<div><strong>{_html(self.title)}</strong>"]
        left = "style='text-align:left'"
        if self.facts:
            rows = "".join(f"<tr><th {left}>{_html(n)}</th><td {left}>{_html(v)}</td></tr>" for n, v in self.facts)
            parts.append(f"<table>{rows}</table>")
        if self.rows:
            head = "".join(f"<th>{_html(cell)}</th>" for cell in self.header)
            body = "".join("<tr>" + "".join(f"<td>{_html(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
            parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        return "".join(parts) + "</div>"


def listed(names: Sequence[str], most: int = 12) -> str:
    """`a, b, c and 4 more`, or `none`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none"


def _line(text: str) -> str:
    text = plain(text).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS] + "…"


def _html(text: str) -> str:
    return escape(_line(text))
