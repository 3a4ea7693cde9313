"""What a survey found: problems, the worst first, and tables; as text, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurize.ingestion import EXAMPLES, Problem, Severity

ROWS_SHOWN = 20


@dataclass(frozen=True)
class Table:
    """name: as JSON calls it. title: one line. rows: column to a plain value; columns are those of the first row."""

    name: str
    title: str
    rows: list[dict[str, Any]]

    def lines(self) -> list[str]:
        """As text: the title, the columns, the first rows."""
        if not self.rows:
            return [self.title, "  nothing"]
        columns = list(self.rows[0])
        cells = [columns, *([_cell(row.get(column)) for column in columns] for row in self.rows[:ROWS_SHOWN])]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        texts = [isinstance(self.rows[0][column], str) for column in columns]
        lines = [
            "  "
            + "  ".join(
                cell.ljust(width) if is_text else cell.rjust(width)
                for cell, width, is_text in zip(row, widths, texts, strict=True)
            ).rstrip()
            for row in cells
        ]
        more = len(self.rows) - ROWS_SHOWN
        return [self.title, *lines, *([f"  and {more:,} more: --json has them all"] if more > 0 else [])]


@dataclass
class Survey:
    """What a look at the data has found: problems, and tables to read."""

    problems: list[Problem]
    tables: list[Table] = field(default_factory=list)

    def warn(self, what: str, examples: Sequence[str], remedy: str, *, note: bool = False) -> None:
        """Add a problem with its rows or columns, where there are any."""
        if len(examples):
            severity = Severity.NOTE if note else Severity.WARNING
            self.problems.append(Problem(severity, what, len(examples), list(examples[:EXAMPLES]), remedy))

    def table(self, name: str, title: str, rows: list[dict[str, Any]]) -> None:
        """Add a table; each row maps column to value."""
        self.tables.append(Table(name, title, rows))

    def of_features(self, features: Mapping[str, Any]) -> None:
        """What looks wrong with stored features: rows that are pending or failed, and vectors that look degenerate."""
        for name, feature in features.items():
            again = f"cli featurize --encoder {name.partition('/')[2]}"
            if feature["pending"]:
                remedy = f"Go on with {again}; cli fit refuses until then."
                self._count(f"{name}: row that is not encoded yet", feature["pending"], [], remedy)
            reasons = [f"{reason} ({count:,})" for reason, count in feature["reasons"].items()]
            remedy = f"Mend the inputs and go on with {again}; until then they count as missing."
            self._count(f"{name}: row that could not be encoded", feature["failed"], reasons, remedy)
            for warning in feature["warnings"]:
                if warning["severity"] == "warning":
                    what, _, remedy = warning["message"].partition("; ")
                    self._count(f"{name}: {warning['kind']}", warning["count"], [what], remedy or what)

    def sort(self) -> None:
        """Errors first, then warnings, then notes."""
        self.problems.sort(key=lambda problem: list(Severity).index(problem.severity))

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "problems": [
                {
                    "severity": str(p.severity),
                    "what": p.what,
                    "count": p.count,
                    "examples": p.examples,
                    "remedy": p.remedy,
                }
                for p in self.problems
            ],
            "tables": {table.name: {"title": table.title, "rows": table.rows} for table in self.tables},
        }

    def _count(self, what: str, count: int, examples: list[str], remedy: str) -> None:
        if count:
            self.problems.append(Problem(Severity.WARNING, what, count, examples[:EXAMPLES], remedy))


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
