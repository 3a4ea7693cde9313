"""The feature store: vectors, presence, labels and splits of music segments, in one folder.

    store = open_store("features.zarr")
    store["audio/mel_stats"].vectors()      # float16 (N, D)

Importing this package imports neither torch nor zarr; opening a store imports its backend.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stores.errors import DamagedStore, RecordMismatch, StoreError, TriadError

if TYPE_CHECKING:
    from stores.store import Store

__all__ = ["DamagedStore", "RecordMismatch", "StoreError", "TriadError", "open_store"]


def open_store(path: str | Path) -> Store:
    """Open the store at `path`. Raises `StoreError` where there is none."""
    from stores.store import Store
    from stores.zarr_store import ZarrTree

    return Store(ZarrTree(Path(path)))
