"""Take splits and features along when a dataset grows: hours of encoding are not done twice for ten new songs."""

from __future__ import annotations

import numpy as np

from stores.store import Part, Split, Store


def carry_over(old: Store, new: Store) -> None:
    """Copy into `new`, by segment id, all that `old` knows. Segments new to it are pending, and left out of its splits.

    Splits stay frozen: what an encoder or a run was trained on is what it was. Raises `DamagedStore`.
    """
    row_in_old = {segment_id: row for row, segment_id in enumerate(old.ids.tolist())}
    origin = np.array([row_in_old.get(segment_id, -1) for segment_id in new.ids.tolist()], np.int64)
    known = origin >= 0
    for name in old.splits():
        split = old.split(name)
        parts = np.full(len(origin), Part.LEFT_OUT, np.uint8)
        parts[known] = split.parts[origin[known]]
        new.write_split(Split(name, parts, split.facts))
    for name in old.features():
        feature = old.feature(name)
        copy = new.create_feature(name, feature.record, dtype=feature.dtype, state=feature.state())
        vectors, status, hashes, failures = (
            feature.vectors(),
            feature.status(),
            feature.input_hashes(),
            feature.failures(),
        )
        for chunk in copy.chunks():
            rows = np.array([row for row in chunk if known[row]], np.int64)
            if len(rows):
                at = origin[rows]
                copy.write_chunk(chunk, rows, vectors[at], status[at], hashes[at], failures[at].tolist())
