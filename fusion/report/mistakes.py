"""The worst mistakes on test segments: what was true, what was said, and the segment itself to read and hear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion.report.answers import Answers
from fusion.report.folder import RunFolder
from fusion.report.material import Material, rows_of

MOST = 8  # of one target
MAX_TEXT = 400  # characters
MEASURES = {
    "categorical": "how much more it gave to its answer than to the true class",
    "multi_label": "the mean squared error over the labels",
    "soft_distribution": "the share that it put on the wrong classes",
    "regression": "how far off it was",
}


@dataclass(frozen=True)
class Mistake:
    """present: the slots that the segment has. text: empty where it has none, or none is shown."""

    segment_id: str
    group: str
    truth: str
    said: str
    wrongness: float
    present: list[str]
    text: str


def worst_mistakes(run: RunFolder, answers: Answers, material: Material) -> list[Mistake]:
    """The answers that were most surely wrong, with what the segment says and sounds like."""
    worst = answers.worst(MOST)
    ids = [answers.ids[number] for number in worst]
    texts = _texts(material, ids)
    present = _present(run, ids)
    return [
        Mistake(
            answers.ids[number],
            answers.groups[number],
            answers.truth[number],
            answers.said[number],
            float(answers.wrongness[number]),
            present[answers.ids[number]],
            texts.get(answers.ids[number], ""),
        )
        for number in worst
    ]


def _texts(material: Material, ids: Sequence[str]) -> Mapping[str, str]:
    if not material.shows_texts or material.store is None:
        return {}
    rows = rows_of(material.store, ids)
    known = np.flatnonzero(rows >= 0).tolist()
    texts = material.texts(rows[known].tolist())
    return {
        ids[at]: text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT].rstrip()} …"
        for at, text in zip(known, texts, strict=True)
    }


def _present(run: RunFolder, ids: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {segment_id: [] for segment_id in ids}
    first = {segment_id: row for row, segment_id in reversed(list(enumerate(run.texts("segment_id").tolist())))}
    for slot in run.slots:
        there = run.predictions[f"present.{slot}"].to_numpy()
        for segment_id in ids:
            if there[first[segment_id]]:
                found[segment_id].append(slot)
    return found
