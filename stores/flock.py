"""Locks of the operating system on open files: given back when a process ends, however it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]


def lock(file: BinaryIO, *, exclusive: bool) -> bool | None:
    """Whether the lock could be had, `None` where there are no locks. Closing the file gives it back."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without them
        return None
    return True


def is_still(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still leads to this file; it may have been replaced, or removed, while we waited."""
    try:
        here, there = os.fstat(file.fileno()), path.stat()
    except FileNotFoundError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
