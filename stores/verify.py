"""Read everything back: which chunks are gone or fail their checksum, and which rows that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stores.base import ArrayTree
from stores.errors import DamagedStore
from stores.feature import Feature, Status
from stores.store import Store


@dataclass(frozen=True)
class Damage:
    """One chunk that cannot be trusted. rows: [start, stop)."""

    where: str  # a feature `slot/encoder`, or `segments/…`, `labels/…`, `splits/…`
    array: str
    chunk: int
    start: int
    stop: int
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.array}, chunk {self.chunk}, rows {self.start} to {self.stop - 1}: {self.reason}"


def verify(store: Store) -> Iterator[Damage]:
    """Every damaged chunk of the store, in reading order. Nothing is changed."""
    for group in ("segments", "labels", "splits", "alignment"):
        for name in store.tree.children(group):
            yield from _verify_array(store.tree, f"{group}/{name}", f"{group}/{name}", needed=None)
    for feature_name in store.features():
        yield from _verify_feature(store.tree, store.feature(feature_name))


def _verify_feature(tree: ArrayTree, feature: Feature) -> Iterator[Damage]:
    needed: set[int] = set()
    for number, chunk in enumerate(feature.chunks()):
        try:
            if (feature.status(chunk) != Status.PENDING).any():
                needed.add(number)
        except DamagedStore:  # told below, when the status array's own turn comes
            needed.add(number)
    for array in feature.array_names():
        yield from _verify_array(tree, feature.array_path(array), feature.name, needed)
    for array in tree.children(feature.array_path("state")):
        yield from _verify_array(tree, feature.array_path(f"state/{array}"), feature.name, needed=None)


def _verify_array(tree: ArrayTree, path: str, where: str, needed: set[int] | None) -> Iterator[Damage]:
    """`needed`: the chunks that must be there; `None` for all of them."""
    shape, _, chunk_rows = tree.layout(path)
    stored = tree.stored_chunks(path)
    for number in range(-(-shape[0] // chunk_rows)):
        start, stop = number * chunk_rows, min((number + 1) * chunk_rows, shape[0])
        reason = None
        if number not in stored:
            if needed is None or number in needed:
                reason = "missing"
        else:
            try:
                values = tree.read(path, start, stop)
                if values.dtype.kind == "f" and path.rsplit("/", 1)[-1].startswith(("vectors", "frames")):
                    reason = None if np.isfinite(values).all() else "holds NaN or infinity"
            except DamagedStore as error:
                reason = str(error.__cause__ or error).splitlines()[0]
        if reason:
            yield Damage(where, path.rsplit("/", 1)[-1], number, start, stop, reason)
