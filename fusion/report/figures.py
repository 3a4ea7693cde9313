"""Pictures that every run has: models with their intervals, presence patterns, learning curves, slot weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fusion.report.svg import BLUE, INK, ORANGE, QUIET, Picture, picture
from fusion.report.words import metric_label, percent, short

ROW = 25  # pixels
FRAME = 52  # axis and its label
R2_FLOOR = -1.1  # far below the mean's 0 it no longer matters how far, and one such model would flatten the rest
MAX_STRIP_POINTS = 150  # a slot
LOOKS = {  # role -> marker and colour
    "fusion": ("D", BLUE),
    "slot": ("o", ORANGE),
    "baseline": ("s", INK),
}


@dataclass(frozen=True)
class Dot:
    """A model's or pattern's score. role: a key of `LOOKS`."""

    label: str
    role: str
    score: Mapping[str, Any]


def model_intervals(dots: Sequence[Dot], metric: str, higher: bool, line: float | None, prefix: str) -> Picture:
    """Dots with interval bars, first on top; a dashed line where the majority baseline stands."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _dots(axes, dots, metric, line)
        axes.set_yticks(range(len(dots)), [short(dot.label, 26) for dot in dots])
        axes.set_xlabel(_axis_label(metric, higher))

    caption = (
        "Test value of each model (diamond: the fusion, circles: slots alone, squares: baselines); the bars are 95% "
        "intervals from resampling groups. Overlapping bars do not settle a comparison: the table compares in pairs."
    )
    if line is not None:
        caption += " Dashed line: majority."
    return picture(
        draw,
        prefix=prefix,
        label=f"{metric_label(metric)} of {len(dots)} models with 95% intervals; the numbers are in the table.",
        caption=caption + _cut_note(metric, dots),
        height=FRAME + ROW * len(dots),
    )


def pattern_intervals(
    scores: Mapping[str, Mapping[str, Any]], slots: Sequence[str], n_test: int, metric: str, higher: bool,
    line: float | None, prefix: str,
) -> Picture:  # fmt: skip
    """Which slots are shown (filled circles), the value, and how common the pattern is."""
    dots = [Dot(name, "fusion", score) for name, score in scores.items()]
    rows = range(len(dots))

    def draw(figure: Figure) -> None:
        matrix, values, share = figure.subplots(
            1, 3, sharey=True, width_ratios=[0.32 * len(slots), 2.6 if len(slots) < 5 else 2, 0.9]
        )
        for column, slot in enumerate(slots):
            shown = [INK if slot in name.split("+") else "none" for name in scores]
            matrix.scatter([column] * len(dots), rows, s=62, facecolors=shown, edgecolors=INK, linewidths=0.9)
        matrix.set_xticks(range(len(slots)), [short(slot, 14) for slot in slots], rotation=90)
        matrix.set_xlim(-0.6, len(slots) - 0.4)
        matrix.xaxis.tick_top()
        matrix.spines[:].set_visible(False)
        _dots(values, dots, metric, line)
        values.set_xlabel(_axis_label(metric, higher))
        shares = [score["n_exactly"] / max(n_test, 1) for score in scores.values()]
        share.barh(rows, shares, height=0.55, color=INK, alpha=0.35)
        for row, value in enumerate(shares):
            share.text(value + 0.04, row, percent(value), va="center", fontsize=11)
        share.set_xlim(0, max([*shares, 0.1]) * 1.9)
        share.set_xticks([])
        share.set_title("just these", fontsize=12)
        share.spines[["bottom", "left"]].set_visible(False)
        matrix.set_yticks([])

    caption = (
        "What the fusion does when it is shown only some slots (filled circles), on all test segments that have them; "
        "bars are 95% intervals. Rows rest on different segments (n in the table), so compare them with care. Right: "
        "the share of test segments that have just these slots."
    )
    return picture(
        draw,
        prefix=prefix,
        label=f"{metric_label(metric)} for {len(dots)} presence patterns; the numbers are in the table.",
        caption=caption + _cut_note(metric, dots),
        height=FRAME + 7 * max(len(short(slot, 14)) for slot in slots) + ROW * len(dots),
    )


def learning_curves(history: pa.Table, prefix: str) -> Picture:
    """Loss by epoch: one line a seed and fold. history: the rows of one model."""
    by_run: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in history.sort_by("epoch").to_pylist():
        by_run.setdefault((row["split"], row["seed"]), []).append(row)
    alpha = max(0.3, len(by_run) ** -0.35)
    curves = {"train_loss": ("train", INK, "--"), "val_loss": ("validation", BLUE, "-")}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for rows in by_run.values():
            epochs = [row["epoch"] for row in rows]
            for column, (_, color, style) in curves.items():
                losses = np.array([row[column] for row in rows], dtype=float)
                axes.plot(epochs, losses, style, color=color, alpha=alpha, linewidth=1.5)
            if np.isfinite(losses).any():
                best = int(np.nanargmin(losses))
                axes.plot(epochs[best], losses[best], "o", color=BLUE, markersize=5.5)
        axes.grid(axis="y")
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines["left"].set_visible(False)
        for name, color, style in curves.values():
            axes.plot([], [], style, color=color, label=name)
        axes.legend()

    return picture(
        draw,
        prefix=prefix,
        label=f"Training and validation loss by epoch for {len(by_run)} trainings of the fusion.",
        caption=(
            "Loss by epoch of every training of the fusion (one dashed and one solid line for each seed and fold), "
            "summed over targets. Dots: lowest validation loss, whose weights are kept. A solid line that rises while "
            "the dashed one falls is overfitting."
        ),
        height=280,
    )


def slot_weights(weights: Mapping[str, np.ndarray], prefix: str) -> Picture:
    """Box and points by slot. weights[slot]: float (n,), where the slot is present."""
    points = np.random.default_rng(0)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for row, values in enumerate(weights.values()):
            if len(values) == 0:
                axes.text(0.5, row, "never present", va="center", ha="center", alpha=QUIET)
                continue
            strip = points.permutation(values)[:MAX_STRIP_POINTS]
            heights = row + points.uniform(-0.18, 0.18, len(strip))
            axes.scatter(strip, heights, s=9, color=BLUE, alpha=0.6, linewidths=0)
            low, quarter, half, three, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
            axes.plot([low, high], [row, row], color=INK, linewidth=1)
            axes.barh(row, three - quarter, left=quarter, height=0.5, color="none", edgecolor=INK, linewidth=1.1)
            axes.plot([half, half], [row - 0.25, row + 0.25], color=INK, linewidth=2)
            axes.plot(values.mean(), row, "D", color=ORANGE, markersize=6)
        axes.set_yticks(range(len(weights)), [short(slot, 20) for slot in weights])
        axes.set_ylim(len(weights) - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel("weight")

    return picture(
        draw,
        prefix=prefix,
        label=f"Weights of {len(weights)} slots over test segments; means and spreads are in the table.",
        caption=(
            "How much weight the fusion gives a slot where it is present, over test segments, seeds and folds. Box: "
            "middle half and median; line: 5% to 95%; diamond: mean. A weight says what the model uses, not what helps."
        ),
        height=FRAME + 48 * len(weights),
    )


def of_model(history: pa.Table, model: str) -> pa.Table:
    """The epochs of one model."""
    return history.filter(pc.equal(history["model"], model))


def _dots(axes: Axes, dots: Sequence[Dot], metric: str, line: float | None) -> None:
    floor = R2_FLOOR if metric == "r2" else -np.inf
    if line is not None and line >= floor:
        axes.axvline(line, color=INK, alpha=QUIET, linewidth=1.2, linestyle=(0, (4, 3)))
    for row, dot in enumerate(dots):
        marker, color = LOOKS[dot.role]
        value, ci95 = dot.score["value"], dot.score["ci95"]
        if value is None:
            axes.text(0.02, row, "no value", va="center", alpha=QUIET, transform=axes.get_yaxis_transform())
            continue
        if ci95 is not None:
            axes.plot(
                np.maximum(ci95, floor), [row, row], color=color, linewidth=2.4, solid_capstyle="round", alpha=0.75
            )
        if value >= floor:
            axes.plot(value, row, marker, color=color, markersize=7.5)
        if _lowest(dot) < floor:
            axes.plot(floor, row, "<", color=color, markersize=6)
    axes.set_ylim(len(dots) - 0.5, -0.5)
    axes.margins(x=0.06)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _lowest(dot: Dot) -> float:
    value, ci95 = dot.score["value"], dot.score["ci95"]
    return float(min([value, *(ci95 or [])]) if value is not None else np.inf)


def _cut_note(metric: str, dots: Sequence[Dot]) -> str:
    cut = metric == "r2" and any(_lowest(dot) < R2_FLOOR for dot in dots)
    return " An arrow at the left edge: what goes on beyond the picture." if cut else ""


def _axis_label(metric: str, higher: bool) -> str:
    return f"{metric_label(metric)} ({'higher' if higher else 'lower'} is better)"
