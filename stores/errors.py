"""Errors that a user can cause, and mend.

Every message names the value, what was expected, and what to do next. `cli.py` prints the message and exits 2;
anything that is not a `TriadError` is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


class TriadError(Exception):
    """Root of all errors that the user, rather than the code, can put right."""


class StoreError(TriadError):
    """The store is missing, is no store, or does not hold what was asked for."""


class RemoteError(TriadError):
    """An object storage cannot be reached, or refuses; no store's fault, and no sign of damage."""


class RecordMismatch(StoreError):
    """A feature was written by another encoder, or by the same one configured otherwise."""


class DiskError(StoreError):
    """The system refused to write or read: no space, no permission, the folder gone."""


class DamagedStore(StoreError):
    """Bytes on disk are missing or fail their checksum."""


def disk_message(error: OSError, path: object = None) -> str | None:
    """One line for what the system refused; `None` where the error is none of these, but a bug of ours.

    path: what was written, where the error does not say.
    """
    number = error.errno or next((n for n in DISK if os.strerror(n) in str(error)), None)  # pyarrow tells it in words
    if number not in DISK:
        return None
    where = error.filename or path or "a file"
    return f"{where} cannot be written: {os.strerror(number)}. Put that right, and give the same command again."


@contextmanager
def disk_told(path: object) -> Iterator[None]:
    """Raises `DiskError`, which names `path`, where the system refuses to write there."""
    try:
        yield
    except OSError as error:
        message = disk_message(error, path)
        if message is None:
            raise
        raise DiskError(f"{message} What was finished is kept.") from error
