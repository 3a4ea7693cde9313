"""What a split leaves a model without: slots and classes that a part has no segment of.

No mistake, since data may be so; but numbers that follow from it are easily taken for something else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusion.data import StoredSegments
from fusion.targets import Target
from stores.store import Part, Split

NAMED = 3
WITHOUT = {
    Part.TRAIN: "what is said of them there is a guess",
    Part.VAL: "the best epoch is chosen without them",
    Part.TEST: "nothing is measured of them",
}


def gaps(data: StoredSegments, targets: Sequence[Target], splits: Sequence[Split]) -> list[str]:
    """One line for each part, over all folds together, that has not one segment with a slot or with a class."""
    notes = []
    for part, consequence in WITHOUT.items():
        missing = []
        rows_of_folds = [split.rows(part) for split in splits]
        for index, slot in enumerate(data.slots):
            if any(not data.present[rows, index].any() for rows in rows_of_folds):
                missing.append(slot)
        for target in targets:
            if target.kind == "categorical":
                missing += [f"{target.name} {name}" for name in _absent(target, np.concatenate(rows_of_folds))]
        if missing:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            where = f"No {part.name.lower()} segment of {'this split' if len(splits) == 1 else 'a fold'}"
            notes.append(f"{where} has {', '.join(missing[:NAMED])}{more}: {consequence}.")
    return notes


def _absent(target: Target, rows: np.ndarray) -> list[str]:
    known = rows[target.known[rows].numpy()]
    there = set(target.truth[known].tolist())
    return [name for number, name in enumerate(target.classes) if number not in there]
