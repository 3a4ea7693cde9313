"""The reliability diagram: does what is said with 70% come true in 70% of the cases? Source: `fusion.calibration`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fusion.calibration import ece_if_calibrated, equal_width, reliability, statements
from fusion.report.folder import RunFolder
from fusion.report.svg import BLUE, INK, Picture, picture
from fusion.report.words import number

N_BINS = 10


@dataclass(frozen=True)
class Calibration:
    """bins: `n`, mean `confidence` and mean `accuracy` of each filled one. ece: their mean gap."""

    picture: Picture
    bins: list[dict[str, float]]
    ece: float
    by_chance: float | None


def calibration(run: RunFolder, name: str, facts: Mapping[str, Any], prefix: str) -> Calibration | None:
    """Of all test predictions of all seeds together. `None` for numbers, and where no probabilities were kept."""
    found = _stated(run, name, facts)
    if found is None or not len(found[0]):
        return None
    stated, happened = found
    edges = equal_width(1, N_BINS)
    bins = reliability(stated, happened, edges[0])
    ece = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / len(stated)
    by_chance = None
    if facts["kind"] != "soft_distribution":  # shares are no chances
        one_seed = stated[: max(1, len(stated) // max(len(np.unique(run.seeds)), 1)), None]
        by_chance = ece_if_calibrated(one_seed, edges)
    chance = "" if by_chance is None else f", where chance alone would make it {number(by_chance)}"
    what = {
        "categorical": "what share of predictions with this probability was right",
        "multi_label": "how often a label was there that was given this probability, all labels together",
        "soft_distribution": "the true share of the class that was given this share, the largest",
    }[facts["kind"]]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.7)
        confidence = [row["confidence"] for row in bins]
        accuracy = [row["accuracy"] for row in bins]
        axes.vlines(confidence, confidence, accuracy, color=BLUE, linewidth=2, alpha=0.5)
        largest = max(row["n"] for row in bins)
        sizes = [14 + 90 * row["n"] / largest for row in bins]
        axes.scatter(confidence, accuracy, s=sizes, color=BLUE, linewidths=0)
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.grid()
        axes.set_xlabel("stated")
        axes.set_ylabel("happened")

    return Calibration(
        picture(
            draw,
            prefix=prefix,
            label=f"Reliability diagram of {len(bins)} bins; the numbers are in the table.",
            caption=(
                f"Calibration: {what}, in bins of equal width; larger dots hold more. On the dashed line every "
                "probability comes true; below it the model is too sure. Expected calibration error "
                f"{number(float(ece))}{chance}."
            ),
            height=320,
        ),
        bins,
        float(ece),
        by_chance,
    )


def _stated(run: RunFolder, name: str, facts: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """What was stated and what happened, (n,) each."""
    kind, classes = facts["kind"], list(facts["classes"])
    if kind == "regression" or any(f"{name}.p.{label}" not in run.predictions.column_names for label in classes):
        return None
    shares = run.matrix(f"{name}.p", classes)
    if kind == "categorical":
        number_of = {label: code for code, label in enumerate(classes)}
        truth = np.array([number_of.get(label, -1) for label in run.texts(f"{name}.true")])
        known = truth >= 0
    else:
        truth = run.matrix(f"{name}.true", classes)
        known = np.isfinite(truth).all(axis=1)
    stated, happened = statements(kind, truth[known], shares[known])
    return stated.ravel(), happened.ravel()
