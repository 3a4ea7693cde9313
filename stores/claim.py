"""Who writes a feature: one process at a time, and the second is told who the first is.

Conventions
-----------
* A claim is a file `SLOT%2FNAME.claim` in the store's folder of claims: `.claims` inside a Zarr store, `.NAME.claims`
  beside an HDF5 file. It holds JSON: host, pid, command, since. It is gone when the claim is given back.
* The file is locked by `flock`, which the system releases when a process ends, however it ends. On one host that is
  all.
* Another host, or a file system without locks, cannot be asked. There the holder touches the file every 10 seconds, and
  counts as dead when it has not for 2 minutes; clocks of hosts must agree to less than that.
* In object storage there are no locks: the claim is an object of the same name, which the storage makes only where
  there is none (`stores.object_claim`). It is written anew every 10 seconds, and else the same holds.
* Different features have different claims and never wait for each other. Readers need none.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from stores.errors import RemoteError, StoreError
from stores.feature import quoted
from stores.flock import is_still, lock
from stores.object_claim import ObjectClaim
from stores.remote import Location, RemotePath

HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 120.0


@contextmanager
def claimed(folder: Location | None, feature: str) -> Iterator[None]:
    """While this block runs nobody else writes `feature`. Raises `StoreError` where somebody does.

    folder: the store's (`ArrayTree.claims`); `None` where no other process can reach the store.
    """
    if folder is None:
        yield
        return
    if isinstance(folder, RemotePath):
        with object_claimed(folder / f"{quoted(feature)}.claim", feature):
            yield
        return
    path = folder / f"{quoted(feature)}.claim"
    file = _take(path, feature)
    try:
        with _beating(partial(os.utime, path)):
            yield
    finally:
        with suppress(OSError):  # the store may be gone
            path.unlink()  # while it is locked: whoever waits for it finds that it is no longer there
        file.close()
        with suppress(OSError):  # there are other claims
            folder.rmdir()


@contextmanager
def object_claimed(path: RemotePath, what: str) -> Iterator[None]:
    """As `claimed`, by the object at `path`. what: is being written."""
    claim = ObjectClaim(path, _myself())
    holder = claim.take(DEAD_AFTER_SECONDS, lambda h: h.get("host") == socket.gethostname() and _is_gone(h.get("pid")))
    if holder is not None:
        raise StoreError(_told(what, holder))
    try:
        with _beating(claim.beat):
            yield
    finally:
        with suppress(RemoteError):  # then it ages, and counts for nothing once this process is gone
            claim.give_back()
    if claim.is_lost:
        raise StoreError(
            f"Another process has taken over {what}, as this one gave no sign of life for {DEAD_AFTER_SECONDS:.0f} s. "
            "Give the same command again."
        )


@contextmanager
def all_claimed(folder: Location, features: Iterable[str]) -> Iterator[None]:
    """While this block runs nobody writes any of these features, or one that is new. Raises `StoreError`."""
    new = (unquote(path.stem) for path in folder.glob("*.claim"))
    with ExitStack() as exits:
        for feature in sorted({*features, *new}):
            exits.enter_context(claimed(folder, feature))
        yield


def claims_of(store: Location) -> Location:
    """The folder of claims of the store at this path."""
    if isinstance(store, RemotePath):
        return store / ".claims"
    return store / ".claims" if store.is_dir() else store.with_name(f".{store.name}.claims")


def _take(path: Path, feature: str) -> BinaryIO:
    while True:
        try:
            path.parent.mkdir(exist_ok=True)
            file = path.open("a+b")
        except FileNotFoundError:  # another process has just given its claim back, and the folder with it
            if not path.parent.parent.is_dir():
                raise StoreError(f"There is no store at {path.parent.parent} any more.") from None
            continue
        try:
            free = lock(file, exclusive=True)
            if free and not is_still(file, path):
                file.close()
                continue
            holder = _holder(file)
            if free is False or (holder and _may_live(holder, file, sure=free is True)):
                raise StoreError(_told(feature, holder))
            file.truncate(0)
            file.write(json.dumps(_myself(), ensure_ascii=False).encode())
            file.flush()
        except BaseException:
            file.close()
            raise
        return file


def _may_live(holder: dict[str, Any], file: BinaryIO, *, sure: bool) -> bool:
    """Whether a claim that is not locked may be somebody's. sure: locks work on this file system."""
    if holder.get("host") == socket.gethostname() and (sure or _is_gone(holder.get("pid"))):
        return False
    return time.time() - os.fstat(file.fileno()).st_mtime < DEAD_AFTER_SECONDS


def _is_gone(pid: Any) -> bool:
    if os.name != "posix" or not isinstance(pid, int):  # on Windows `os.kill` ends a process rather than asking
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False


@contextmanager
def _beating(beat: Callable[[], object]) -> Iterator[None]:
    """While the block runs a thread beats every `HEARTBEAT_SECONDS`."""
    given_back = threading.Event()

    def run() -> None:
        while not given_back.wait(HEARTBEAT_SECONDS):
            with suppress(OSError, RemoteError):
                beat()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        given_back.set()
        thread.join()


def _holder(file: BinaryIO) -> dict[str, Any]:
    """What the claim says; empty where it is new, or its holder has not written it yet."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _myself() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "command": command, "since": since}


def _told(feature: str, holder: dict[str, Any]) -> str:
    if not holder:
        return f"{feature} is being written by another process. Wait for it."
    return (
        f"{feature} is being written by process {holder.get('pid')} on {holder.get('host')}, since "
        f"{holder.get('since')}: {holder.get('command')}. Wait for it, or end it; what it stored is kept."
    )
