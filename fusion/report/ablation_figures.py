"""Pictures of an ablation: what every model reaches on every subset of slots, and the Shapley value of each slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fusion.report.svg import INK, SERIES, Picture, picture
from fusion.report.words import metric_label, pattern_label, short
from fusion.table import model_label

R2_FLOOR = -1.1  # as in fusion.report.figures
LINE = 15  # pixels of one model
GAP = 1.2  # models that would fit between two places


def subset_intervals(facts: Mapping[str, Any], models: Sequence[str], subsets: Sequence[str], prefix: str) -> Picture:
    """A row for each subset, and in it a dot with its interval for each model."""
    rows = {(row["slots"], row["model"]): {**row, "value": row["test"]} for row in facts["summary"]}
    majority = next((row["test"] for row in facts["summary"] if row["model"] == "majority"), None)
    floor = R2_FLOOR if facts["metric"] == "r2" else -np.inf

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if majority is not None and majority >= floor:
            axes.axvline(majority, color=INK, alpha=0.6, linewidth=1.2, linestyle=(0, (4, 3)))
        labels = [short(pattern_label(subset), 26) for subset in subsets]
        _draw_intervals(axes, rows, dict(zip(subsets, labels, strict=True)), models, facts["kind"], floor)
        direction = "higher" if facts["higher_is_better"] else "lower"
        axes.set_xlabel(f"{metric_label(facts['metric'])} ({direction} is better)")
        figure.legend(loc="outside upper center", ncols=3)

    return picture(
        draw,
        prefix=prefix,
        label=f"{metric_label(facts['metric'])} of {len(models)} models on {len(subsets)} subsets; see the table.",
        caption=(
            "Test value of every model on every subset of slots, all on the same segments; bars are 95% intervals from "
            "resampling groups and seeds. Dashed line: majority. The tables below compare in pairs."
        ),
        height=_height(len(subsets), len(models)),
        wide=True,
    )


def shapley_values(facts: Mapping[str, Any], prefix: str) -> Picture:
    """A row for each slot, and in it a dot with its interval for each model."""
    found: Sequence[Mapping[str, Any]] = facts["shapley"]
    models = list(dict.fromkeys(row["model"] for row in found))
    slots = list(dict.fromkeys(row["slot"] for row in found))
    rows = {(row["slot"], row["model"]): row for row in found}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, alpha=0.6, linewidth=1.2)
        _draw_intervals(axes, rows, {slot: short(slot, 20) for slot in slots}, models, facts["kind"])
        axes.set_xlabel(f"added {metric_label(facts['metric'])}")
        figure.legend(loc="outside upper center", ncols=3)

    return picture(
        draw,
        prefix=prefix,
        label=f"Shapley values of {len(slots)} slots for {len(models)} models; the numbers are in the table.",
        caption=(
            "What each slot adds to the majority's score, averaged over all orders in which slots may come (Shapley "
            "1953); a model's values add up to what it gains over the majority. Bars are 95% intervals."
        ),
        height=_height(len(slots), len(models)),
    )


def _draw_intervals(
    axes: Axes,
    rows: Mapping[tuple[str, str], Mapping[str, Any]],
    labels: Mapping[str, str],
    models: Sequence[str],
    kind: str,
    floor: float = -np.inf,
) -> None:
    """Model under model in each of the labelled places a dot with its interval; nothing is drawn below `floor`.

    rows: place and model to `value`, `ci95_low` and `ci95_high`. labels: of the places, from top to bottom.
    """
    step = len(models) + GAP
    for at, model in enumerate(models):
        color, marker = SERIES[at % len(SERIES)] if at < len(models) - 1 else (INK, "s")
        for number, place in enumerate(labels):
            row = rows.get((place, model))
            if row is None or row["value"] is None or row["value"] < floor:
                continue
            y = number * step + at
            if row["ci95_low"] is not None:
                axes.plot([max(row["ci95_low"], floor), row["ci95_high"]], [y, y], color=color, linewidth=2.2,
                          alpha=0.7, solid_capstyle="round")  # fmt: skip
            axes.plot(row["value"], y, marker, color=color, markersize=6)
        axes.plot([], [], f"{marker}-", color=color, label=short(model_label(model, kind)), markersize=6)
    middle = (len(models) - 1) / 2
    axes.set_yticks([number * step + middle for number in range(len(labels))], list(labels.values()))
    axes.set_ylim(len(labels) * step - 1, -1)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _height(n_places: int, n_models: int) -> float:
    return 90 + LINE * (n_models + GAP) * n_places
