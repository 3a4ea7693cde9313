"""The map of each feature: every segment as a point, with what is known of it, as data for `map.js`.

Positions are 16-bit whole numbers and categories are codes, so that 11,605 segments of three features take less than a
megabyte beside their texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.report.answers import Answers
from fusion.report.embed import array_base64
from fusion.report.material import Material, rows_of
from fusion.report.positions import place
from stores.feature import Status
from stores.store import Part, Store

if TYPE_CHECKING:
    from fusion.targets import Target  # imports torch

NOWHERE = 0xFFFF  # a position or code: the segment is not on this map, or its value is not known
MAX_TEXT = 600  # characters of one segment
TEXT_BUDGET = 4_000_000  # characters of all
PARTS = {Part.TRAIN: "train", Part.VAL: "val", Part.TEST: "test", Part.LEFT_OUT: "left out"}
STATUSES = {Status.PENDING: "pending", Status.ABSENT: "absent", Status.FAILED: "failed"}


@dataclass(frozen=True)
class SegmentMap:
    """data: what `map.js` reads. n_points: of `n_segments`, those that are in the file."""

    data: dict[str, Any]
    n_points: int
    n_segments: int
    features: list[str]


def build_map(
    material: Material, targets: Sequence[Target], answers: Mapping[str, Answers], split_name: str
) -> SegmentMap | None:
    """`None` where no map is wanted, or there is nothing to place."""
    parts, store = material.parts, material.store
    if parts.projection == "none" or store is None or not material.features:
        return None
    rows = _sample(store.n_segments, parts.max_points)
    features, statuses = [], {}
    for slot, name in material.features.items():
        feature = store.feature(name)
        status = feature.status
        present = rows[status[rows] == Status.PRESENT]
        placed = place(feature.vectors[present], parts.projection)
        xy = np.full((store.n_segments, 2), NOWHERE, np.uint16)
        xy[present] = quantized(placed.xy)
        features.append({"name": name, "slot": slot, "said": placed.said, "xy": array_base64(xy[rows])})
        statuses[slot] = status[rows]
    data = {
        "n": len(rows),
        "ids": store.ids[rows].tolist(),
        "groups": store.groups[rows].tolist(),
        "texts": _texts(material, rows),
        "noText": material.why_not.get("texts", ""),
        "noAudio": material.why_not.get("audio", ""),
        "features": features,
        "colours": [
            *(colour for target in targets for colour in _of_target(target, answers.get(target.name), store, rows)),
            _of_split(store, split_name, rows),
            _of_presence(statuses),
        ],
        "facts": _times(store, rows),
    }
    return SegmentMap(data, len(rows), store.n_segments, list(material.features.values()))


def quantized(xy: np.ndarray) -> np.ndarray:
    """uint16 (n, 2) below `NOWHERE`, both axes to one scale, y upwards. xy: float (n, 2), finite."""
    if not len(xy):
        return np.zeros((0, 2), np.uint16)
    low, high = xy.min(axis=0), xy.max(axis=0)
    span = float((high - low).max()) or 1.0
    centred = (xy - (low + high) / 2) / span + 0.5
    centred[:, 1] = 1 - centred[:, 1]
    return np.asarray((centred * (NOWHERE - 1)).round().clip(0, NOWHERE - 1), dtype=np.uint16)


def classes_colour(name: str, texts: Sequence[str]) -> dict[str, Any]:
    """Codes by falling frequency; `""` is not known."""
    values, inverse, counts = np.unique(np.array(texts, dtype=object), return_inverse=True, return_counts=True)
    order = [code for code in np.argsort(-counts, kind="stable").tolist() if values[code] != ""]
    order = order[: NOWHERE - 1]
    codes = np.full(len(values), NOWHERE, np.uint16)
    codes[order] = np.arange(len(order))
    return {
        "name": name,
        "kind": "classes",
        "classes": [values[code] for code in order],
        "codes": array_base64(codes[inverse]),
    }


def number_colour(name: str, values: np.ndarray) -> dict[str, Any]:
    """A number for each segment, (N,); NaN is not known."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    return {
        "name": name,
        "kind": "number",
        "low": low,
        "high": high,
        "values": array_base64(values.astype(np.float32)),
    }


def _sample(n: int, most: int) -> np.ndarray:
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _texts(material: Material, rows: np.ndarray) -> list[str] | None:
    if not material.shows_texts:
        return None
    texts = material.texts(rows.tolist())
    limit = min(MAX_TEXT, TEXT_BUDGET // max(len(texts), 1))
    return [text if len(text) <= limit else f"{text[:limit].rstrip()} …" for text in texts]


def _of_target(target: Target, said: Answers | None, store: Store, rows: np.ndarray) -> list[dict[str, Any]]:
    """The label; and where test segments were predicted, the prediction and how wrong it is."""
    known, truth = target.known.numpy(), target.truth.numpy()
    if target.kind == "regression":
        colours = [number_colour(target.name, np.where(known, truth[:, 0], np.nan)[rows])]
    else:
        colours = [classes_colour(target.name, [_label(target, truth[row], known[row]) for row in rows])]
    if said is None:
        return colours
    of_store = rows_of(store, said.ids)
    there = of_store >= 0

    def spread(values: Any, missing: Any) -> np.ndarray:
        all_rows = np.full(store.n_segments, missing, dtype=object if isinstance(missing, str) else np.float64)
        all_rows[of_store[there]] = np.asarray(values, dtype=all_rows.dtype)[there]
        sampled: np.ndarray = all_rows[rows]
        return sampled

    if target.kind == "regression":
        return [
            *colours,
            number_colour(f"{target.name}, predicted", spread(said.predicted_value, np.nan)),
            number_colour(f"{target.name}, absolute error", spread(said.wrongness, np.nan)),
        ]
    verdicts = ["" if np.isnan(right) else "right" if right else "wrong" for right in said.right]
    return [
        *colours,
        classes_colour(f"{target.name}, predicted", spread(said.predicted, "").tolist()),
        classes_colour(f"{target.name}, right or wrong", spread(verdicts, "").tolist()),
    ]


def _label(target: Target, truth: Any, known: bool) -> str:
    if not known:
        return ""
    if target.kind == "categorical":
        return target.classes[int(truth)]
    if target.kind == "soft_distribution":
        return target.classes[int(np.argmax(truth))]
    return ", ".join(label for label, value in zip(target.classes, truth, strict=True) if value) or "none"


def _of_split(store: Store, split_name: str, rows: np.ndarray) -> dict[str, Any]:
    if split_name not in store.splits():
        return classes_colour("split", [""] * len(rows))
    parts = store.split(split_name).parts[rows]
    return classes_colour(f"split {split_name}", [PARTS[Part(part)] for part in parts.tolist()])


def _of_presence(statuses: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Which slots are there; what has failed or is pending is said."""
    columns = [
        [slot if status == Status.PRESENT else "" for status in values.tolist()] for slot, values in statuses.items()
    ]
    texts = [" + ".join(name for name in there if name) or "nothing" for there in zip(*columns, strict=True)]
    for slot, values in statuses.items():
        for point in np.flatnonzero(np.isin(values, [Status.PENDING, Status.FAILED])).tolist():
            texts[point] += f", {slot} {STATUSES[Status(values[point])]}"
    return classes_colour("what is present", texts)


def _times(store: Store, rows: np.ndarray) -> list[dict[str, Any]]:
    """Further facts of segments: where in the song they lie."""
    names = {"start_seconds": "starts at, seconds", "end_seconds": "ends at, seconds"}
    columns = store.segment_columns()
    return [
        {"name": said, "values": array_base64(store.segment_column(name)[rows].astype(np.float32))}
        for name, said in names.items()
        if name in columns and np.isfinite(store.segment_column(name)).any()
    ]
