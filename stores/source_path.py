"""What a store says of where its raw data is, so that folders which hold both can be moved.

A path on a disk is relative to the store's folder; of a store in object storage, which stands in none, relative to the
folder that we stand in, which holds `config.yaml` and `runs/`. Data in object storage is named by its whole URL.
"""

from __future__ import annotations

import os
from pathlib import Path

from stores.remote import Location, RemotePath, is_remote, location


def stated_path(data: Location, store: Location) -> str:
    """What a store says of where its raw data are: beside it, relative to it; else absolute, or a URL."""
    if isinstance(data, RemotePath):
        return str(data)
    return Path(os.path.relpath(data.resolve(), folder_of(store))).as_posix()


def found_path(stated: str, store: Location) -> Location:
    """The way back from what `stated_path` says."""
    return location(stated) if is_remote(stated) else folder_of(store) / stated


def folder_of(store: Location) -> Path:
    """The folder that a store stands in; or we, where it is in object storage."""
    return Path().resolve() if isinstance(store, RemotePath) else store.resolve().parent
