"""From the folder of an ablation to what `ablation.html` shows: the grid, the comparisons, what each slot is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fusion.report.ablation_figures import shapley_values, subset_intervals
from fusion.report.downloads import Download, download
from fusion.report.svg import Picture
from fusion.report.words import VERDICTS, bounds, listed, metric_label, number, pattern_label
from fusion.run_json import read_run_json
from fusion.table import model_label
from stores.errors import TriadError

TABLES = ("results", "summary", "comparisons", "shapley")  # as in fusion.shapley, which would import torch
LINEAR = "logistic regression"
NOTHING = ""  # the subset of models that read no slot
LEAK = "LEAK: this split cuts through groups, so every value here is too high for groups that were never seen."
SYMBOLS = {word: symbol for symbol, word in VERDICTS.values()}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """share: 0 for the worst value of the grid, 1 for the best, `None` without a value."""

    row: Row | None
    share: float | None
    is_best: bool


@dataclass(frozen=True)
class Comparison:
    """What two models have in common, and in what they differ."""

    common: str
    one: str
    other: str
    row: Row
    symbol: str
    word: str


@dataclass(frozen=True)
class TargetSection:
    """grid: for each subset of slots, a cell for each of `models`. blind: models that read no slot."""

    anchor: str
    name: str
    facts: Mapping[str, Any]
    verdict: str
    result: str
    models: list[str]
    grid: list[tuple[str, list[Cell]]]
    blind: list[tuple[str, Row]]
    picture: Picture
    comparisons: list[Comparison]
    shapley_picture: Picture | None
    shapley: list[tuple[str, Row]]


@dataclass(frozen=True)
class AblationPage:
    """What `ablation.html` reads."""

    metrics: Mapping[str, Any]
    environment: Mapping[str, Any]
    config: str
    targets: list[TargetSection]
    warnings: list[str]
    downloads: Mapping[str, Download]


def build_ablation_page(folder: Path) -> AblationPage:
    """Raises `TriadError` where a file is missing or damaged."""
    metrics = read_run_json(folder / "metrics.json", ("ablation", "targets", "slots", "fusions", "split"))
    environment = read_run_json(folder / "environment.json")
    try:
        config = (folder / "config.yaml").read_text("utf-8")
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in TABLES}
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise TriadError(f"{folder} is no whole ablation ({reason}). Give its cli ablate again.") from error
    warnings = list(metrics["notes"])
    if metrics["split"]["leaks"] and not any("cuts through groups" in note for note in warnings):
        warnings.insert(0, LEAK)
    return AblationPage(
        metrics,
        environment,
        config,
        [_target(metrics, name, f"target-{at}") for at, name in enumerate(metrics["targets"], 1)],
        warnings,
        {
            name: download(
                f"{metrics['ablation']}-{name}", table.column_names, (list(row.values()) for row in table.to_pylist())
            )
            for name, table in tables.items()
        },
    )


def _target(metrics: Mapping[str, Any], name: str, anchor: str) -> TargetSection:
    facts = metrics["targets"][name]
    summary: list[Row] = facts["summary"]
    models = [*metrics["fusions"], LINEAR]
    subsets = list(dict.fromkeys(row["slots"] for row in summary if row["model"] in models))
    cell_of = {(row["slots"], row["model"]): row for row in summary}
    values = [row["test"] for row in summary if row["model"] in models and row["test"] is not None]
    verdict, result = _headline(name, facts)
    best = facts["best"]
    chosen = ("+".join(best["slots"]), best["fusion"])

    def cell(subset: str, model: str) -> Cell:
        row = cell_of.get((subset, model))
        share = None
        if row is not None and row["test"] is not None:
            span = max(values) - min(values)
            share = (row["test"] - min(values)) / span if span else 1.0
            share = share if facts["higher_is_better"] else 1 - share
        return Cell(row, share, (subset, model) == chosen)

    labels = {model: model_label(model, facts["kind"]) for model in models}
    return TargetSection(
        anchor=anchor,
        name=name,
        facts=facts,
        verdict=verdict,
        result=result,
        models=[labels[model] for model in models],
        grid=[(pattern_label(subset), [cell(subset, model) for model in models]) for subset in subsets],
        blind=[(model_label(row["model"], facts["kind"]), row) for row in summary if row["model"] not in models],
        picture=subset_intervals(facts, models, subsets, f"{anchor}-subsets"),
        comparisons=[_comparison(row, facts["kind"]) for row in facts["comparisons"]],
        shapley_picture=shapley_values(facts, f"{anchor}-shapley") if facts["shapley"] else None,
        shapley=[(model_label(row["model"], facts["kind"]), row) for row in facts["shapley"]],
    )


def _headline(name: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """What validation chose, what that reaches on test, and against what it is clearly better."""
    best, linear = facts["best"], facts["best_linear"]
    chosen = next(
        row for row in facts["summary"] if (row["model"], row["slots"]) == (best["fusion"], "+".join(best["slots"]))
    )
    metric, linear_name = metric_label(facts["metric"]), model_label(LINEAR, facts["kind"])
    verdict = f"Chosen on validation: {best['fusion']} on {listed(list(best['slots']))}."
    result = (
        f"Its test {metric} on {name} is {number(chosen['test'])} (95% interval {bounds(ends(chosen, 'ci95'))}), over "
        f"{facts['n']:,} segments of {facts['n_groups']:,} groups. On validation it came to {number(best['val'])}; the "
        f"best {linear_name} to {number(linear['val'])}, on {listed(list(linear['slots']))}."
    )
    return verdict, result


def _comparison(row: Row, kind: str) -> Comparison:
    """What two models have in common stands first, and what they differ in after it."""
    if row["model"] == row["other_model"]:
        common, one, other = row["model"], pattern_label(row["slots"]), pattern_label(row["other_slots"])
    else:
        common, one, other = pattern_label(row["slots"]), row["model"], row["other_model"]
    one, other = model_label(one, kind), model_label(other, kind)
    return Comparison(common, one, other, row, SYMBOLS.get(row["verdict"], "—"), row["verdict"])


def ends(row: Row, name: str) -> list[float] | None:
    """Both ends of an interval; `None` where the table has none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return None if low is None else [low, high]
