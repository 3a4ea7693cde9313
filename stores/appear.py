"""A store appears at its path when it is whole, and not before.

A folder cannot take another's place in one step: the old one is renamed, then the new one. Whoever was killed between
the two left no store at the path and a whole one beside it, which the next that looks puts there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stores.errors import StoreError


@contextmanager
def appearing(path: Path, is_store: Callable[[Path], bool], *, replace: bool) -> Iterator[Path]:
    """A free path beside `path`, to be filled; what stands there when the block ends without error moves to `path`.

    Raises `StoreError` where `path` exists already and `replace` is false, or is no store.
    """
    finish_replacement(path)
    if path.exists() and not replace:
        raise StoreError(f"{path} exists already. Pass --replace to make it anew, or give another path.")
    if path.exists() and not is_store(path):
        raise StoreError(f"{path} exists and is not a store; it will not be replaced. Give another path.")
    partial, old = _beside(path)
    _remove(partial)  # what an interrupted run left
    try:
        yield partial
    except BaseException:
        _remove(partial)  # the disk may be full of it
        raise
    _remove(old)
    if path.is_file() and partial.is_file():
        partial.replace(path)
        return
    if path.exists():
        path.rename(old)
    partial.rename(path)
    _remove(old)


def finish_replacement(path: Path) -> None:
    """Where a process was killed while it put a new store in an old one's place: put it there."""
    partial, old = _beside(path)
    if old.exists():  # the new one was whole before the old one got this name
        if not path.exists():
            (partial if partial.exists() else old).rename(path)
        _remove(old)


def _beside(path: Path) -> tuple[Path, Path]:
    """Where the new store grows, and where the old one waits for its end."""
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
