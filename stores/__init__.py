"""The feature store: vectors, presence, labels and splits of music segments, in one folder, one HDF5 file, or object
storage.

    store = open_store("features.zarr")
    store["audio/mel_stats"].vectors[:]      # float16 (N, D)

Importing this package imports neither torch, zarr nor h5py; opening a store imports its backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stores.errors import DamagedStore, RecordMismatch, StoreError, TriadError
from stores.remote import Location, location

if TYPE_CHECKING:
    from stores.store import Store

__all__ = ["DamagedStore", "RecordMismatch", "StoreError", "TriadError", "open_store"]


def open_store(path: str | Location) -> Store:
    """Open the store at `path`: a folder, a file, or a URL such as `s3://bucket/key`. Raises `StoreError`."""
    from stores.backends import open_tree
    from stores.store import Store

    return Store(open_tree(location(path)))
