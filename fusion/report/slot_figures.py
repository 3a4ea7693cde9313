"""Slots within the fusion: how hard each pulls in training, and what weight it gets where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fusion.report.folder import RunFolder
from fusion.report.svg import SERIES, Picture, picture
from fusion.report.words import pattern_label, short

MAX_CLASSES = 20  # of the weights by class


def gradient_norms(history: pa.Table, slots: Sequence[str], prefix: str) -> Picture | None:
    """Norm of each slot's gradient by epoch. history: the rows of one model. `None` where there are none."""
    columns = {slot: f"gradient_norm.{slot}" for slot in slots if f"gradient_norm.{slot}" in history.column_names}
    if not history.num_rows or len(columns) < 2:
        return None
    by_run: dict[tuple[str, int], list[dict[str, float]]] = {}
    for row in history.sort_by("epoch").to_pylist():
        by_run.setdefault((row["split"], row["seed"]), []).append(row)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (slot, column), (color, marker) in zip(columns.items(), SERIES * len(columns), strict=False):
            of_slot = [np.array([row[column] for row in rows], dtype=float) for rows in by_run.values()]
            for norms in of_slot:
                axes.plot(range(1, len(norms) + 1), norms, color=color, alpha=0.25, linewidth=1)
            longest = max(map(len, of_slot))
            padded = np.full((len(of_slot), longest), np.nan)
            for line, norms in zip(padded, of_slot, strict=True):
                line[: len(norms)] = norms
            known = np.isfinite(padded).any(axis=0)
            mean = np.nanmean(padded[:, known], axis=0)
            every = max(1, longest // 8)
            epochs = np.flatnonzero(known) + 1
            axes.plot(
                epochs, mean, f"{marker}-", color=color, markevery=every, markersize=5, linewidth=2, label=short(slot)
            )
        if _all_positive(history, list(columns.values())):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # the usual one is a formula
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y")
        axes.set_xlabel("epoch")
        axes.set_ylabel("gradient norm")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines["left"].set_visible(False)
        axes.legend(ncols=min(len(columns), 3))

    return picture(
        draw,
        prefix=prefix,
        label=f"Gradient norm of {len(columns)} slots by epoch.",
        caption=(
            "Norm of the loss's gradient in each slot's own weights, before clipping: thick lines are means, thin ones "
            "single trainings. A slot far above the others does most of the learning, and the others may learn little."
        ),
        height=280,
    )


def _all_positive(history: pa.Table, columns: Sequence[str]) -> bool:
    values = [history[column].drop_null().to_numpy() for column in columns]
    return all(len(found) and (found > 0).all() for found in values)


@dataclass(frozen=True)
class WeightRow:
    """Mean weight of each slot over some test segments; `None` where none of them has it."""

    label: str
    n: int
    means: list[float | None]


def weights_by(run: RunFolder, labels: Sequence[str]) -> list[WeightRow]:
    """By label, the commonest first; a label for each row of the predictions, `""` to leave one out."""
    if not all(f"weight.{slot}" in run.predictions.column_names for slot in run.slots):
        return []
    weights = np.stack([run.numbers(f"weight.{slot}") for slot in run.slots], axis=1)
    there = np.stack([run.predictions[f"present.{slot}"].to_numpy().astype(bool) for slot in run.slots], axis=1)
    names, codes, counts = np.unique(np.array(labels, dtype=object), return_inverse=True, return_counts=True)
    rows = []
    for code in np.argsort(-counts, kind="stable").tolist():
        if names[code] == "":
            continue
        here = codes == code
        means = [
            float(weights[here & there[:, column], column].mean()) if (here & there[:, column]).any() else None
            for column in range(len(run.slots))
        ]
        n = round(float(here.sum()) / max(len(np.unique(run.seeds)), 1))
        rows.append(WeightRow(str(names[code]), n, means))
    return rows


def weights_by_pattern(run: RunFolder) -> list[WeightRow]:
    """What each slot weighs, by which slots are there."""
    there = {slot: run.predictions[f"present.{slot}"].to_pylist() for slot in run.slots}
    patterns = ["+".join(slot for slot, here in zip(there, row, strict=True) if here)
                for row in zip(*there.values(), strict=True)]  # fmt: skip
    return weights_by(run, [pattern_label(pattern) if pattern else "nothing" for pattern in patterns])


def weights_by_class(run: RunFolder, targets: Mapping[str, Mapping[str, object]]) -> tuple[str, list[WeightRow]]:
    """The first target of classes, and its rows; nothing where there is none."""
    for name, facts in targets.items():
        if facts["kind"] == "categorical":
            truth = [label if label is not None else "" for label in run.texts(f"{name}.true").tolist()]
            return name, weights_by(run, truth)[:MAX_CLASSES]
    return "", []
