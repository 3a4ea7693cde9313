"""Which backend a path has: an existing one by what lies there, a new one by its suffix.

A folder with `zarr.json` is a Zarr store, a file that begins with HDF5's signature an HDF5 store. A new path that ends
in `.h5` or `.hdf5` becomes HDF5, any other Zarr. In object storage every store is Zarr. No library is imported before a
store of its kind is opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from stores.appear import finish_replacement
from stores.base import ArrayTree
from stores.errors import StoreError
from stores.remote import Location, RemotePath

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_SUFFIXES = (".h5", ".hdf5")

Kind = Literal["zarr", "hdf5"]


def kind_at(path: Location) -> Kind | None:
    """What lies at `path`, by its first bytes; `None` where neither does."""
    if (path / "zarr.json").is_file():
        return "zarr"
    if path.is_file():
        with path.open("rb") as file:
            return "hdf5" if file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE else None
    return None


def is_there(path: Location) -> bool:
    """Whether anything is at `path`, or was on its way there when a process was killed."""
    if isinstance(path, RemotePath):
        from stores.object_appear import finish_object_replacement

        finish_object_replacement(path)
    else:
        finish_replacement(path)
    return path.exists()


def open_tree(path: Location) -> ArrayTree:
    """The arrays of the store at `path`. Raises `StoreError` where there is none."""
    if isinstance(path, RemotePath):
        from stores.object_appear import finish_object_replacement
        from stores.object_store import ObjectTree

        finish_object_replacement(path)
        return ObjectTree(path)
    kind = kind_at(path) if is_there(path) else None
    if kind is None:
        is_other = path.exists() and not path.is_dir()
        what = f"{path} is neither a Zarr folder nor an HDF5 file." if is_other else f"There is no store at {path}."
        raise StoreError(f"{what} `cli ingest DATA` makes one.")
    if kind == "hdf5":
        from stores.hdf5_store import Hdf5Tree

        return Hdf5Tree(path)
    from stores.zarr_store import ZarrTree

    return ZarrTree(path)


@contextmanager
def new_tree(path: Location, *, replace: bool = False) -> Iterator[ArrayTree]:
    """A tree of the kind that the suffix asks for; it appears at `path` when the block ends without error.

    Raises `StoreError` where `path` exists already and `replace` is false, or is no store.
    """
    if isinstance(path, RemotePath):
        if path.suffix.lower() in HDF5_SUFFIXES:
            raise StoreError(f"{path}: an HDF5 store is a file on a disk. Leave {path.suffix} away: it becomes Zarr.")
        from stores.object_appear import new_object_tree

        with new_object_tree(path, replace=replace) as object_tree:
            yield object_tree
        return
    if path.suffix.lower() in HDF5_SUFFIXES:
        from stores.hdf5_store import new_hdf5_tree

        with new_hdf5_tree(path, replace=replace) as tree:
            yield tree
        return
    from stores.zarr_store import new_zarr_tree

    with new_zarr_tree(path, replace=replace) as zarr_tree:
        yield zarr_tree
