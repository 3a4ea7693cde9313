"""Copy a whole store from one backend to another, chunk by chunk, and compare what arrived.

Everything is copied that the tree holds, whatever it means: a store has no part that this would have to know of. Chunks
that were never written stay so. The one change is the path to the raw data, which counts from the store's folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from stores.backends import new_tree, open_tree
from stores.base import ArrayTree, Attributes
from stores.errors import DamagedStore, StoreError
from stores.remote import Location
from stores.source_path import folder_of, found_path, stated_path
from stores.store import Store


@dataclass(frozen=True)
class Converted:
    """n_bytes: of the values, as they are in memory; texts count with their UTF-8 length."""

    n_arrays: int
    n_chunks: int
    n_bytes: int


def convert(origin: Location, target: Location, *, replace: bool = False) -> Converted:
    """Make a copy of the store at `origin` that appears at `target`, compared and whole, or not at all.

    The backend of `target` is its suffix's (`stores.backends`). Raises `StoreError` where it exists and `replace` is
    false, `DamagedStore` where `origin` cannot be read or the copy reads otherwise.
    """
    old = open_tree(origin)
    Store(old)  # a folder or file that is no store is told before anything else
    if target.exists() and target.resolve() == origin.resolve():
        raise StoreError(f"{target} cannot be converted to itself. Name another path.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with new_tree(target, replace=replace) as new:
        arrays = list(_arrays(old))
        done = [_copy_array(old, new, path) for path in arrays]
        for path in _nodes(old):  # arrays first: what has no attributes yet is not taken for whole
            if attributes := old.attributes(path):
                new.set_attributes(path, attributes)
        for where in differences(old, new):
            raise DamagedStore(f"{target} would differ from {origin}: {where}. Nothing was written; try again.")
        new.set_attributes("", _moved(old.attributes(""), origin, target))
    return Converted(len(arrays), sum(chunks for chunks, _ in done), sum(n_bytes for _, n_bytes in done))


def differences(one: ArrayTree, other: ArrayTree) -> Iterator[str]:
    """Where two trees are not the same: attributes, arrays, layouts, the chunks that are stored, values."""
    nodes, others = list(_nodes(one)), set(_nodes(other))
    yield from (f"{path} stands in one of them only" for path in sorted(others ^ set(nodes)))
    for path in nodes:
        if path in others and one.attributes(path) != other.attributes(path):
            yield f"attributes of {path or 'the root'}"
    for path in _arrays(one):
        if path in others:
            yield from _array_differences(one, other, path)


def _array_differences(one: ArrayTree, other: ArrayTree, path: str) -> Iterator[str]:
    layout = _layout(one, path)
    if layout != _layout(other, path):
        yield f"shape, type or chunks of {path}"
        return
    stored = one.stored_chunks(path)
    if stored != other.stored_chunks(path):
        yield f"which chunks of {path} were written"
    assert layout is not None
    for start, stop in _chunks(layout, stored):
        left, right = one.read(path, start, stop), other.read(path, start, stop)
        if left.dtype.kind == "T":
            same = bool((left == right).all())
        else:
            same = left.tobytes() == right.tobytes()  # NaN is equal to itself, and -0 is not 0
        if not same:
            yield f"{path}, rows {start} to {stop - 1}"


def _copy_array(old: ArrayTree, new: ArrayTree, path: str) -> tuple[int, int]:
    """Chunks and bytes."""
    shape, dtype, chunk_rows = old.layout(path)
    new.create(path, shape, dtype, chunk_rows)
    n_chunks = n_bytes = 0
    for start, stop in _chunks((shape, dtype, chunk_rows), old.stored_chunks(path)):
        values = old.read(path, start, stop)
        new.write(path, start, values)
        n_chunks += 1
        n_bytes += values.nbytes if dtype.kind != "T" else sum(len(text.encode()) for text in values.ravel().tolist())
    return n_chunks, n_bytes


def _chunks(layout: tuple[tuple[int, ...], np.dtype[Any], int], stored: set[int]) -> Iterator[tuple[int, int]]:
    shape, _, chunk_rows = layout
    for number in sorted(stored):
        yield number * chunk_rows, min((number + 1) * chunk_rows, shape[0])


def _nodes(tree: ArrayTree, path: str = "") -> Iterator[str]:
    """Every group and array, each before what is below it."""
    yield path
    for name in tree.children(path):
        yield from _nodes(tree, f"{path}/{name}" if path else name)


def _arrays(tree: ArrayTree) -> Iterator[str]:
    return (path for path in _nodes(tree) if path and _layout(tree, path) is not None)


def _layout(tree: ArrayTree, path: str) -> tuple[tuple[int, ...], np.dtype[Any], int] | None:
    """As `ArrayTree.layout`; `None` for a group."""
    try:
        return tree.layout(path)
    except DamagedStore:
        raise
    except StoreError:
        return None


def _moved(facts: Attributes, origin: Location, target: Location) -> Attributes:
    """The root's attributes with the path to the raw data as seen from the copy's folder."""
    stated = facts["source"].get("path")
    if not isinstance(stated, str) or PurePosixPath(stated).is_absolute() or folder_of(origin) == folder_of(target):
        return facts
    return {**facts, "source": {**facts["source"], "path": stated_path(found_path(stated, origin), target)}}
