"""The cards of a store and of a feature: what `repr` and a notebook show. Damage is shown, and stops nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from stores.card import Card, listed
from stores.errors import StoreError
from stores.feature import Feature, Status
from stores.record import describe
from stores.store import Part, Store

COUNTED = (Status.PRESENT, Status.ABSENT, Status.FAILED, Status.PENDING)
HEADER = ("feature", *(status.name.lower() for status in COUNTED), "width", "type")


def store_card(store: Store) -> Card:
    """Rows, labels, splits, and a row for each feature."""
    facts = [
        ("segments", f"{store.n_segments:,}"),
        ("groups", _told(lambda: f"{len(np.unique(store.groups)):,}")),
        ("labels", _told(lambda: listed(store.label_names()))),
        *((f"split {name}", _told(partial(_split_text, store, name))) for name in store.splits()),
    ]
    names = store.features()
    rows = [_row(store, name) for name in names]
    if not names:
        facts.append(("features", "none"))
    return Card(f"Store {store.tree.location}", facts, HEADER, rows)


def feature_card(feature: Feature) -> Card:
    """Rows by status, width, and whose vectors they are."""
    facts = [
        ("vectors", f"{feature.dtype} ({feature.n_segments:,}, {feature.width:,})"),
        ("segments", _told(lambda: ", ".join(f"{count} {kind}" for kind, count in _counts(feature).items()))),
        ("encoder", describe(feature.record)),
    ]
    if feature.has_frames:
        facts.insert(1, ("frames", f"at most {feature.max_frames:,} a segment"))
    return Card(f"Feature {feature.name}", facts)


def _row(store: Store, name: str) -> list[str]:
    try:
        feature = store.feature(name)
        return [name, *_counts(feature).values(), f"{feature.width:,}", str(feature.dtype)]
    except StoreError:
        return [name, *("damaged" for _ in HEADER[1:])]


def _counts(feature: Feature) -> dict[str, str]:
    status = feature.status
    return {kind.name.lower(): f"{int((status == kind).sum()):,}" for kind in COUNTED}


def _split_text(store: Store, name: str) -> str:
    split = store.split(name)
    sizes = [f"{len(split.rows(part)):,} {part.name.lower()}" for part in (Part.TRAIN, Part.VAL, Part.TEST)]
    left_out = len(split.rows(Part.LEFT_OUT))
    leaks = "; it leaks" if split.facts.get("leaks") else ""
    return ", ".join([*sizes, *([f"{left_out:,} left out"] if left_out else [])]) + leaks


def _told(read: Callable[[], str]) -> str:
    try:
        return read()
    except StoreError as error:
        return f"damaged: {str(error).splitlines()[0]}"
