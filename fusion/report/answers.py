"""What a run said of each test segment, its seeds averaged, and how wrong that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.report.folder import RunFolder
from fusion.report.words import number, percent

LABEL_THRESHOLD = 0.5  # as in fusion.metrics


@dataclass(frozen=True)
class Answers:
    """Test segments, each once. All arrays are (n,); texts are `""` where something is not known.

    wrongness: larger is worse, NaN where the label or the answer is not known. Of classes: the probability of the
    predicted class less that of the true one; of labels: mean squared error of their probabilities; of shares: half the
    sum of absolute differences; of numbers: the absolute difference.
    right: 1, 0, or NaN. Of numbers always NaN.
    """

    kind: str
    ids: list[str]
    groups: list[str]
    truth: list[str]
    predicted: list[str]
    said: list[str]  # the prediction with its probability
    wrongness: np.ndarray
    right: np.ndarray
    truth_value: np.ndarray  # of numbers
    predicted_value: np.ndarray

    def worst(self, most: int) -> list[int]:
        """Numbers of the worst mistakes, the worst first; of classes and label sets only where they are wrong."""
        candidates = np.flatnonzero(np.isfinite(self.wrongness) & (np.nan_to_num(self.right) < 1))
        order = np.argsort(-self.wrongness[candidates], kind="stable")
        worst: list[int] = candidates[order][:most].tolist()
        return worst


def answers(run: RunFolder, name: str, facts: Any) -> Answers:
    """Of target `name`, whose part of `metrics.json` is `facts`."""
    ids, first, place = _distinct(run.texts("segment_id"))
    groups = run.texts("group")[first]
    n, kind, classes = len(ids), facts["kind"], list(facts["classes"])
    nothing = np.full(n, np.nan)
    common = {"kind": kind, "ids": ids, "groups": [str(group) for group in groups]}
    if kind == "regression":
        truth = _mean(run.numbers(f"{name}.true"), place, n)
        predicted = _mean(run.numbers(f"{name}.predicted"), place, n)
        texts = [[number(value) if np.isfinite(value) else "" for value in values] for values in (truth, predicted)]
        wrong = np.abs(truth - predicted)
        return Answers(**common, truth=texts[0], predicted=texts[1], said=texts[1], wrongness=wrong, right=nothing,
                       truth_value=truth, predicted_value=predicted)  # fmt: skip
    if not all(f"{name}.p.{label}" in run.predictions.column_names for label in classes):
        blank = [""] * n
        return Answers(**common, truth=blank, predicted=blank, said=blank, wrongness=nothing, right=nothing,
                       truth_value=nothing, predicted_value=nothing)  # fmt: skip
    shares = _mean(run.matrix(f"{name}.p", classes), place, n)
    if kind == "categorical":
        number_of = {label: code for code, label in enumerate(classes)}
        codes = np.array([number_of.get(label, -1) for label in run.texts(f"{name}.true")[first]])
        truth = np.where(codes[:, None] >= 0, np.eye(len(classes))[codes], np.nan)
    else:
        truth = _mean(run.matrix(f"{name}.true", classes), place, n)
    known = np.isfinite(truth).all(axis=1) & np.isfinite(shares).all(axis=1)
    if kind == "multi_label":
        sets = [[_label_set(row, classes) for row in values] for values in (truth, shares)]
        right = (np.nan_to_num(truth) >= LABEL_THRESHOLD) == (shares >= LABEL_THRESHOLD)
        hit, wrong, said = right.all(axis=1), ((truth - shares) ** 2).mean(axis=1), sets[1]
        texts = [["" if not k else text for k, text in zip(known, values, strict=True)] for values in sets]
    else:
        mode = shares.argmax(axis=1)
        true_mode = np.where(known, np.nan_to_num(truth).argmax(axis=1), 0)
        hit = mode == true_mode
        rows = np.arange(n)
        wrong = (
            shares[rows, mode] - shares[rows, true_mode]
            if kind == "categorical"
            else np.abs(truth - shares).sum(axis=1) / 2
        )
        texts = [
            [classes[code] if k else "" for code, k in zip(true_mode, known, strict=True)],
            [classes[code] for code in mode],
        ]
        said = [f"{classes[code]} ({percent(float(shares[row, code]))})" for row, code in enumerate(mode)]
    return Answers(**common, truth=texts[0], predicted=texts[1], said=said,
                   wrongness=np.where(known, wrong, np.nan), right=np.where(known, hit, np.nan),
                   truth_value=nothing, predicted_value=nothing)  # fmt: skip


def _distinct(ids: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The ids in the order they come, the row where each comes first, and the place of every row's among them."""
    place: dict[str, int] = {}
    first: list[int] = []
    for row, segment_id in enumerate(ids.tolist()):
        if segment_id not in place:
            place[segment_id] = len(first)
            first.append(row)
    return list(place), np.array(first, dtype=np.int64), np.array([place[i] for i in ids.tolist()], dtype=np.int64)


def _mean(values: np.ndarray, place: np.ndarray, n: int) -> np.ndarray:
    """Means over the rows of one place: float64 (n,) or (n, K)."""
    sums = np.zeros((n, *values.shape[1:]))
    np.add.at(sums, place, values)
    counts = np.bincount(place, minlength=n)
    means: np.ndarray = sums / (counts[:, None] if values.ndim > 1 else counts)
    return means


def _label_set(row: np.ndarray, classes: list[str]) -> str:
    return ", ".join(label for label, value in zip(classes, row, strict=True) if value >= LABEL_THRESHOLD) or "none"
