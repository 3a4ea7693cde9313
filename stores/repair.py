"""Damaged rows of a feature become pending, so that the next `extract` encodes them again, and no others."""

from __future__ import annotations

from stores.errors import DamagedStore
from stores.feature import Feature
from stores.record import command_for
from stores.store import Store
from stores.verify import verify_feature


def mark_damaged_pending(store: Store, feature: Feature) -> list[range]:
    """Make every chunk that is damaged in any array new and pending, in all arrays. Returns their rows.

    A chunk shares its fate: with a damaged hash or status nobody can tell which of its rows to trust. Killed in
    between, it is still pending, or still damaged. Raises `DamagedStore` where more than chunks is damaged.
    """
    damages = list(verify_feature(store, feature))
    for damage in damages:
        if damage.chunk is None or damage.array not in feature.array_names():
            raise DamagedStore(
                f"{store.tree.location}: {damage}. That cannot be repaired; write the feature anew: "
                f"{command_for(feature.record)} --replace"
            )
    chunks = feature.chunks()
    damaged = [chunks[number] for number in sorted({d.chunk for d in damages if d.chunk is not None})]
    for chunk in damaged:
        feature.forget_chunk(chunk)
    return damaged
