"""What a fit and an ablation come to, for Python and notebooks: the folder, its numbers, and a card of the headline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.table import interval_text, model_label, value_text
from stores.card import Card

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, repr=False)
class Result:
    """folder: where everything stands. metrics: what `metrics.json` holds."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"

    def card(self) -> Card:
        """What it shows of itself."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.card().text()

    def _repr_html_(self) -> str:
        return self.card().html()


@dataclass(frozen=True, repr=False)
class Run(Result):
    """A run folder."""

    @property
    def predictions(self) -> pa.Table:
        """What was held out: a row a segment, split and seed."""
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "predictions.parquet")

    def card(self) -> Card:
        """The headline beside the baselines, and where the report is."""
        metrics = self.metrics
        slots = ", ".join(f"{slot}/{encoder}" for slot, encoder in metrics["slots"].items())
        split = metrics["split"]
        folds = f", {split['folds']} folds pooled" if split["folds"] > 1 else ""
        leaks = "; it leaks" if split["leaks"] else ""
        facts = [
            ("features", slots),
            ("split", f"{split['name']} ({split['method']}{folds}){leaks}"),
            ("report", str(self.report)),
        ]
        rows = []
        for name, target in metrics["targets"].items():
            label = f"{name}, {target['metric']}"
            rows.append(_row(label, metrics["fusion"], target["splits"]["test"], ""))
            for baseline, parts in target["baselines"].items():
                difference = target["comparisons"][baseline]["difference"]
                text = "" if difference is None else f"{difference:+.3f}"
                rows.append(_row(label, model_label(baseline, target["kind"]), parts["test"], text))
        header = ("target", "model", "test", "95% interval", "fusion is ahead by")
        return Card(f"Run {metrics['run']}: {metrics['fusion']}", facts, header, rows)


@dataclass(frozen=True, repr=False)
class Ablation(Result):
    """n_cells: trainings and baselines in all. n_run: those that were not there before."""

    n_cells: int
    n_run: int

    def card(self) -> Card:
        """The best models, and where the report is."""
        metrics = self.metrics
        facts = [
            ("fusions", ", ".join(metrics["fusions"])),
            ("subsets", ", ".join(metrics["subsets"])),
            ("cells", f"{self.n_cells:,}, {self.n_run:,} of them run now"),
            ("report", str(self.report)),
        ]
        rows = []
        for name, target in metrics["targets"].items():
            for row in target["summary"]:
                ends = None if row["ci95_low"] is None else [row["ci95_low"], row["ci95_high"]]
                score = {"value": row["test"], "ci95": ends}
                model = model_label(row["model"], target["kind"])
                rows.append(_row(f"{name}, {target['metric']}", model, score, row["slots"] or "none"))
        header = ("target", "model", "test", "95% interval", "slots")
        return Card(f"Ablation {metrics['ablation']}", facts, header, rows)


def _row(target: str, model: str, score: Mapping[str, Any], note: str) -> tuple[str, ...]:
    return (target, model, value_text(score["value"]), interval_text(score["ci95"]), note)
