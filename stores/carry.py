"""Take splits and features along when a dataset grows: hours of encoding are not done twice for ten new songs."""

from __future__ import annotations

from typing import Any

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
    if (aligned := old.alignment()) is not None:
        columns, facts = aligned
        new.write_alignment({name: _spread(values, origin) for name, values in columns.items()}, facts)
    for name in old.features():
        feature = old.feature(name)
        copy = new.create_feature(
            name, feature.record, dtype=feature.dtype, state=feature.state(), frames=feature.max_frames
        )
        vectors, status, hashes, failures = (
            feature.vectors[:],
            feature.status,
            feature.read_input_hashes(),
            feature.failures,
        )
        frames, n_frames = (feature.frames[:], feature.n_frames) if feature.has_frames else (None, None)
        for chunk in copy.chunks():
            rows = np.array([row for row in chunk if known[row]], np.int64)
            if len(rows):
                at = origin[rows]
                copy.write_chunk(
                    chunk,
                    rows,
                    vectors[at],
                    status[at],
                    hashes[at],
                    failures[at].tolist(),
                    None if frames is None else frames[at],
                    None if n_frames is None else n_frames[at],
                )


def _spread(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Each row's value by its row in the old store; what nothing is known of is NaN, zero or empty."""
    unknown: Any = np.nan if values.dtype.kind == "f" else "" if values.dtype.kind == "T" else 0
    spread = np.full((len(origin), *values.shape[1:]), unknown, values.dtype)
    spread[origin >= 0] = values[origin[origin >= 0]]
    return spread
