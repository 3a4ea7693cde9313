"""Whether a feature's encoder has seen what a split holds back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from featurize.pipeline import ids_sha256
from stores.errors import TriadError
from stores.record import IMPORTED_FROM
from stores.store import Part, Split, Store


class LeakError(TriadError):
    """An encoder trained on labels has seen groups that this split evaluates on."""


def check_encoders(store: Store, features: Mapping[str, str], splits: Sequence[Split], allow: bool) -> list[str]:
    """Notes for the report on every encoder that saw held-out groups. Raises `LeakError` where it saw their labels."""
    notes = [
        f"{name} was imported: whether its encoder has seen songs or labels held out here is not known."
        for name in features.values()
        if IMPORTED_FROM in store.feature(name).record
    ]
    for name, trained_on in _trainings(store, features):
        seen = _seen_groups(store, trained_on)
        held_out = np.concatenate([split.rows(part) for split in splits for part in (Part.VAL, Part.TEST)])
        overlap = None if seen is None else len(seen & set(store.groups[held_out].tolist()))
        if overlap == 0 and trained_on.get("val_ids_sha256"):
            overlap = _selected_on_test(store, trained_on, splits)
        if overlap == 0:
            continue
        how_many = (
            "groups that cannot be told any more" if overlap is None else f"{overlap:,} of the groups held out here"
        )
        what = f"{name} was trained on split {trained_on['split']} and saw {how_many}"
        if not trained_on["labels"]:
            notes.append(f"{what}; without labels, so its vectors may be slightly better here than on new songs.")
        elif allow:
            notes.append(f"LEAK: {what}, with labels. The result is not to be believed.")
        else:
            raise LeakError(
                f"{what}, with labels: val and test would not be unseen.\n"
                f"Use --split {trained_on['split']}, train the encoder on this split, or accept it with --allow-leak."
            )
    if any(split.facts.get("leaks") for split in splits):
        notes.append("LEAK: this split cuts through groups; segments of one song stand on both sides.")
    return notes


def seen(store: Store, split: Split, labels: bool, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an encoder's record says it was trained on: the training part of a split.

    before: what the encoder that it started from had seen.
    """
    train, val = split.rows(Part.TRAIN), split.rows(Part.VAL)
    return {
        "split": split.name,
        "n_segments": len(train),
        "ids_sha256": ids_sha256(store.ids[train]),
        "val_ids_sha256": ids_sha256(store.ids[val]),  # they chose the epoch
        "labels": labels,
        **({"before": dict(before)} if before else {}),
    }


def _trainings(store: Store, features: Mapping[str, str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each feature's name with what its encoder was trained on, and with what that one had started from."""
    for name in features.values():
        trained_on = store.feature(name).record["trained_on"]
        while trained_on:
            yield name, trained_on
            trained_on = trained_on.get("before")


def _selected_on_test(store: Store, trained_on: Mapping[str, object], splits: Sequence[Split]) -> int | None:
    """How many test groups chose the epoch at which an encoder's training stopped; `None` where it cannot be told."""
    val = store.split(str(trained_on["split"])).rows(Part.VAL)
    if ids_sha256(store.ids[val]) != trained_on["val_ids_sha256"]:
        return None
    test = np.concatenate([split.rows(Part.TEST) for split in splits])
    return len(set(store.groups[val].tolist()) & set(store.groups[test].tolist()))


def _seen_groups(store: Store, trained_on: Mapping[str, object]) -> set[str] | None:
    """Groups of the rows an encoder was trained on; `None` where the split is not what it was."""
    name = str(trained_on["split"])
    if name not in store.splits():
        return None
    train = store.split(name).rows(Part.TRAIN)
    if ids_sha256(store.ids[train]) != trained_on["ids_sha256"]:
        return None
    return set(store.groups[train].tolist())
