"""What was predicted against what was true, drawn as the target's kind asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from fusion.report.folder import RunFolder
from fusion.report.svg import BLUE, INK, ORANGE, WIDE, WIDTH, Picture, picture
from fusion.report.words import percent, short

MAX_CLASSES = 60  # in one picture
MAX_POINTS = 2000  # of a scatter: more only blackens it, and swells the file
COUNTED_CLASSES = 12  # up to here the confusion matrix has room for numbers
LABEL_THRESHOLD = 0.5  # as in fusion.metrics


class Outcome(NamedTuple):
    """A picture, and the table that says the same: its column names and rows, empty where numbers say no more."""

    picture: Picture
    columns: list[str]
    rows: list[list[str]]


def confusion(run: RunFolder, target: str, classes: list[str], prefix: str) -> Outcome | None:
    """Rows are true classes, columns predicted ones; counts are sums over folds, means over seeds."""
    truth, predicted = run.texts(f"{target}.true"), run.texts(f"{target}.predicted")
    known = np.array([label is not None for label in truth], dtype=bool)
    if not known.any():
        return None
    number = {name: index for index, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    cells = ([number[name] for name in truth[known]], [number[name] for name in predicted[known]])
    np.add.at(counts, cells, 1)
    counts /= len(np.unique(run.seeds))
    table = _class_table(classes, counts)
    names, counts = _merge_rare(classes, counts)
    k = len(names)
    wide = k > COUNTED_CLASSES
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    strongest = max(shares.max(), 0.01)
    length = 16 if wide else 14

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        colors = np.empty((k, k, 4))
        colors[..., :3] = to_rgb(BLUE)
        colors[..., 3] = 0.04 + 0.76 * shares / strongest  # opaque, it would swallow the number in it
        axes.imshow(colors, interpolation="none", aspect="auto")
        size = 12 if not wide else max(7.5, min(12, 420 / k))
        labels = [short(name, length) for name in names]
        axes.set_xticks(range(k), labels, rotation=90 if wide or max(map(len, labels)) * k > 48 else 0, fontsize=size)
        axes.set_yticks(range(k), labels, fontsize=size)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.spines[:].set_visible(False)
        if not wide:
            for row, column in np.ndindex(k, k):
                if counts[row, column] > 0:
                    text = f"{counts[row, column]:.1f}".removesuffix(".0")
                    axes.text(column, row, text, ha="center", va="center", fontsize=11 if k <= 8 else 9)

    height = min(WIDE, 130 + 16 * k) if wide else min(WIDTH, 130 + 44 * k)
    numbers = "Numbers are counts, averaged over seeds. " if not wide else "Counts are in the table. "
    drawn = picture(
        draw,
        prefix=prefix,
        label=f"Confusion matrix of {k} classes.",
        caption=(
            "Each row is a true class and shows what its test segments were taken for; the stronger the colour, the "
            f"larger the share of the row, up to {percent(strongest)}. {numbers}The diagonal is right."
        ),
        height=height,
        wide=wide,
    )
    return Outcome(drawn, ["class", "n", "predicted", "recall", "precision"], table)


def scatter(run: RunFolder, target: str, classes: list[str], prefix: str) -> Outcome | None:
    """Predicted against true, with the identity line."""
    truth, predicted = run.numbers(f"{target}.true"), run.numbers(f"{target}.predicted")
    known = np.flatnonzero(np.isfinite(truth) & np.isfinite(predicted))
    if len(known) == 0:
        return None
    shown = known
    if len(known) > MAX_POINTS:
        shown = np.sort(np.random.default_rng(0).choice(known, MAX_POINTS, replace=False))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        low = float(min(truth[known].min(), predicted[known].min()))
        high = float(max(truth[known].max(), predicted[known].max()))
        axes.plot([low, high], [low, high], color=INK, linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.7)
        dense = min(0.7, max(0.25, 12 / len(shown) ** 0.5))
        axes.plot(truth[shown], predicted[shown], "o", color=BLUE, alpha=dense, markersize=5, markeredgewidth=0)
        axes.grid()
        axes.set_xlabel(f"true {short(target, 30)}")
        axes.set_ylabel("predicted")

    sample = f" {MAX_POINTS:,} of {len(known):,} points, drawn at random." if len(shown) < len(known) else ""
    drawn = picture(
        draw,
        prefix=prefix,
        label=f"Predicted against true value for {len(shown)} predictions.",
        caption=(
            "One point for each test segment and seed; on the dashed line the prediction is right. A flat band of "
            f"points means that the model stays near the average.{sample}"
        ),
        height=380,
    )
    return Outcome(drawn, [], [])


def label_f1(run: RunFolder, target: str, classes: list[str], prefix: str) -> Outcome | None:
    """F1 of each label, mean over seeds."""
    truth, shown = run.matrix(f"{target}.true", classes), run.matrix(f"{target}.p", classes) >= LABEL_THRESHOLD
    known = np.isfinite(truth).all(axis=1)
    if not known.any():
        return None
    f1, seeds = [], np.unique(run.seeds)
    for seed in seeds:
        rows = known & (run.seeds == seed)
        hits, total = (truth[rows] * shown[rows]).sum(axis=0), truth[rows].sum(axis=0) + shown[rows].sum(axis=0)
        f1.append(np.divide(2 * hits, total, out=np.full(len(classes), np.nan), where=total > 0))
    mean, n_true = np.nan_to_num(f1).mean(axis=0), truth[known].sum(axis=0) / len(seeds)
    undefined = np.isnan(np.stack(f1)).all(axis=0)
    order = np.argsort(-n_true, kind="stable")[:MAX_CLASSES]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.barh(range(len(order)), mean[order], height=0.62, color=BLUE)
        for row, index in enumerate(order):
            count = f"{mean[index]:.2f}  (n {n_true[index]:.3g})" if not undefined[index] else "not defined"
            axes.text(mean[index] + 0.015, row, count, va="center", fontsize=10)
        _name_rows(figure, [classes[index] for index in order])
        axes.set_xlim(0, 1.32)
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.set_xlabel("F1")

    drawn = picture(
        draw,
        prefix=prefix,
        label=f"F1 score of {len(order)} labels.",
        caption=(
            "F1 score of each label, averaged over seeds, the most common label on top; n is how many test segments "
            "have it. A label with few of them has a shaky score." + _left_out(len(classes))
        ),
        height=52 + 20 * len(order),
    )
    return Outcome(drawn, [], [])


def mean_shares(run: RunFolder, target: str, classes: list[str], prefix: str) -> Outcome | None:
    """Mean true share against mean predicted share, class by class."""
    truth, predicted = run.matrix(f"{target}.true", classes), run.matrix(f"{target}.p", classes)
    known = np.isfinite(truth).all(axis=1)
    if not known.any():
        return None
    true_mean, said_mean = truth[known].mean(axis=0), predicted[known].mean(axis=0)
    spread = predicted[known].std(axis=0)
    order = np.argsort(-true_mean, kind="stable")[:MAX_CLASSES]

    def draw(figure: Figure) -> None:
        axes, rows = figure.add_subplot(), range(len(order))
        axes.hlines(rows, true_mean[order], said_mean[order], color=INK, alpha=0.4, linewidth=1.4)
        axes.plot(true_mean[order], rows, "o", color=INK, markerfacecolor="none", markersize=8, label="true")
        axes.plot(said_mean[order], rows, "D", color=ORANGE, markersize=6, label="predicted")
        _name_rows(figure, [classes[index] for index in order])
        axes.set_xlabel("mean share")
        axes.set_xlim(left=0)
        axes.legend(loc="lower right")

    drawn = picture(
        draw,
        prefix=prefix,
        label=f"Mean true and mean predicted share of {len(order)} classes; the numbers are in the table.",
        caption=(
            "Mean share of each class over test segments: open circles are true, diamonds predicted, the largest on "
            "top. Close pairs mean that the overall balance is right, not that any single segment is."
            + _left_out(len(classes))
        ),
        height=60 + 24 * len(order),
    )
    rows = [[classes[i], percent(true_mean[i]), percent(said_mean[i]), f"{spread[i]:.3f}"] for i in range(len(classes))]
    return Outcome(drawn, ["class", "true", "predicted", "spread of predictions (SD)"], rows)


OUTCOMES: dict[str, Callable[[RunFolder, str, list[str], str], Outcome | None]] = {
    "categorical": confusion,
    "regression": scatter,
    "multi_label": label_f1,
    "soft_distribution": mean_shares,
}


def _name_rows(figure: Figure, names: list[str]) -> None:
    axes = figure.axes[0]
    axes.set_yticks(range(len(names)), [short(name) for name in names], fontsize=11)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)


def _left_out(n_classes: int) -> str:
    return f" The {MAX_CLASSES} most common of {n_classes}." if n_classes > MAX_CLASSES else ""


def _class_table(classes: list[str], counts: np.ndarray) -> list[list[str]]:
    rows = []
    for index, name in enumerate(classes):
        n_true, n_said, hits = counts[index].sum(), counts[:, index].sum(), counts[index, index]
        rates = [percent(hits / n) if n > 0 else "—" for n in (n_true, n_said)]
        rows.append([name, f"{n_true:.4g}", f"{n_said:.4g}", *rates])
    return rows


def _merge_rare(classes: list[str], counts: np.ndarray) -> tuple[list[str], np.ndarray]:
    """At most `MAX_CLASSES` rows and columns: the most common classes, and the rest as one."""
    if len(classes) <= MAX_CLASSES:
        return classes, counts
    common = np.sort(np.argsort(-counts.sum(axis=1), kind="stable")[: MAX_CLASSES - 1])
    rest = np.setdiff1d(np.arange(len(classes)), common)
    groups = [np.array([index]) for index in common] + [rest]
    merged = np.array([[counts[np.ix_(row, column)].sum() for column in groups] for row in groups])
    return [*(classes[index] for index in common), f"{len(rest)} others"], merged
