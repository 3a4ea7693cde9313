"""What a store holds, as one JSON-ready summary."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from stores.errors import DamagedStore
from stores.feature import Feature, Status
from stores.health import Finding, findings
from stores.record import describe
from stores.store import Part, Store

MAX_VALUES_SHOWN = 20


def summarize(store: Store) -> dict[str, Any]:
    """Segments, labels, splits and features with their counts; what looks wrong with vectors. Reads all but frames."""
    ids, groups = store.ids, store.groups
    return {
        "location": store.tree.location,
        "segments": store.n_segments,
        "groups": len(np.unique(groups)),
        "source": dict(store.source),
        "labels": {name: _summarize_label(store.label(name)) for name in store.label_names()},
        "splits": {name: _summarize_split(store, name, groups) for name in store.splits()},
        "features": {name: _summarize_feature(store.feature(name), ids, groups) for name in store.features()},
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


def _summarize_feature(feature: Feature, ids: np.ndarray, groups: np.ndarray) -> dict[str, Any]:
    status = feature.status
    failed = feature.failures[status == Status.FAILED]
    reasons, counts = np.unique(failed, return_counts=True)
    order = np.argsort(-counts)[:3]
    return {
        "width": feature.width,
        "dtype": str(feature.dtype),
        **{kind.name.lower(): int((status == kind).sum()) for kind in Status},
        "reasons": {str(reasons[i]): int(counts[i]) for i in order},
        "warnings": [asdict(finding) for finding in _health(feature, ids, groups)],
        "encoder": describe(feature.record),
        "record": dict(feature.record),
    }


def _health(feature: Feature, ids: np.ndarray, groups: np.ndarray) -> list[Finding]:
    try:
        return findings(feature, ids, groups)
    except DamagedStore as error:  # the rest of the store can still be looked at
        return [Finding("damaged", "warning", 0, feature.n_segments, [], str(error))]
