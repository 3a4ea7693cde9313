"""What a store holds, as one JSON-ready summary."""

from __future__ import annotations

from typing import Any

import numpy as np

from stores.record import describe
from stores.store import Part, Status, Store

MAX_VALUES_SHOWN = 20


def summarize(store: Store) -> dict[str, Any]:
    """Segments, labels, splits and features with their counts. Reads statuses and labels, not vectors."""
    groups = store.groups
    return {
        "location": store.tree.location,
        "segments": store.n_segments,
        "groups": len(np.unique(groups)),
        "source": dict(store.source),
        "labels": {name: _summarize_label(store.label(name)) for name in store.label_names()},
        "splits": {name: _summarize_split(store, name, groups) for name in store.splits()},
        "features": {name: _summarize_feature(store, name) for name in store.features()},
    }


def _summarize_label(values: np.ndarray) -> dict[str, Any]:
    if values.dtype.kind == "T":
        names, counts = np.unique(values[values != ""], return_counts=True)
        summary: dict[str, Any] = {"type": "text", "missing": int((values == "").sum()), "distinct": len(names)}
        if len(names) <= MAX_VALUES_SHOWN:
            summary["counts"] = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
        return summary
    missing = np.isnan(values.astype(np.float64)).reshape(len(values), -1).any(axis=1)
    known = values[~missing]
    summary = {"type": f"{values.dtype}", "missing": int(missing.sum())}
    if values.ndim == 2:
        return {**summary, "width": values.shape[1]}
    if len(known):
        summary |= {"min": float(known.min()), "mean": float(known.mean()), "max": float(known.max())}
    return summary


def _summarize_split(store: Store, name: str, groups: np.ndarray) -> dict[str, Any]:
    split = store.split(name)
    parts = {}
    for part in Part:
        rows = split.rows(part)
        if len(rows):
            parts[part.name.lower()] = {"segments": len(rows), "groups": len(np.unique(groups[rows]))}
    return {**split.facts, "parts": parts}


def _summarize_feature(store: Store, name: str) -> dict[str, Any]:
    feature = store.feature(name)
    status = feature.status()
    failed = feature.failures()[status == Status.FAILED]
    reasons, counts = np.unique(failed, return_counts=True)
    order = np.argsort(-counts)[:3]
    return {
        "width": feature.width,
        "dtype": str(feature.dtype),
        **{kind.name.lower(): int((status == kind).sum()) for kind in Status},
        "reasons": {str(reasons[i]): int(counts[i]) for i in order},
        "encoder": describe(feature.record),
        "record": dict(feature.record),
    }
