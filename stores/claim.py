"""Who writes a feature: one process at a time, and the second is told who the first is.

Conventions
-----------
* A claim is a file `SLOT%2FNAME.claim` in the store's folder of claims: `.claims` inside a Zarr store, `.NAME.claims`
  beside an HDF5 file. It holds JSON: host, pid, command, since. It is gone when the claim is given back.
* The file is locked by `flock`, which the system releases when a process ends, however it ends. On one host that is
  all.
* Another host, or a file system without locks, cannot be asked. There the holder touches the file every 10 seconds, and
  counts as dead when it has not for 2 minutes; clocks of hosts must agree to less than that.
* Different features have different claims and never wait for each other. Readers need none.
* Shards of a feature (`stores.shard`) have claims of their own, `SLOT%2FNAME.shards/I of N.claim`. Those of one n never
  wait for each other; between them and a claim to the whole feature, or shards of another n, the first one counts.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from stores.errors import StoreError
from stores.feature import quoted
from stores.flock import is_still, lock
from stores.shard import Shard

HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 120.0
SHARDS = ".shards"
LOOK_AGAIN_SECONDS = (0.02, 0.1)  # somebody may hold a claim for an instant, to see whether anybody does


@contextmanager
def claimed(folder: Path | None, feature: str, shard: Shard | None = None) -> Iterator[None]:
    """While this block runs nobody else writes `feature`, or this shard of it. Raises `StoreError` where somebody does.

    folder: the store's (`ArrayTree.claims`); `None` where no other process can reach the store.
    """
    if folder is None:
        yield
        return
    path = _path(folder, feature, shard)
    file = _take(folder, path, feature)
    try:
        _refuse_rivals(folder, feature, shard)  # not before our own can be seen: of two at once, one sees the other
    except BaseException:
        _give_back(folder, path, file)
        raise
    given_back = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, given_back), daemon=True)
    beating.start()
    try:
        yield
    finally:
        given_back.set()
        beating.join()
        _give_back(folder, path, file)


@contextmanager
def all_claimed(folder: Path, features: Iterable[str]) -> Iterator[None]:
    """While this block runs nobody writes any of these features, or one that is new. Raises `StoreError`."""
    new = (unquote(path.stem) for kind in ("*.claim", f"*{SHARDS}") for path in folder.glob(kind))
    with ExitStack() as exits:
        for feature in sorted({*features, *new}):
            exits.enter_context(claimed(folder, feature))
        yield


def claims_of(store: Path) -> Path:
    """The folder of claims of the store at this path."""
    return store / ".claims" if store.is_dir() else store.with_name(f".{store.name}.claims")


@contextmanager
def one_by_one(folder: Path | None, feature: str) -> Iterator[bool]:
    """Shards of this feature go through this block one after another; false where the file system has no locks.

    To be entered with a shard of it `claimed`.
    """
    if folder is None:
        yield True
        return
    path = folder / f"{quoted(feature)}{SHARDS}" / "turn"
    while True:
        file = path.open("ab")
        locked = lock(file, exclusive=True)
        if locked is None or (locked and is_still(file, path)):
            break
        file.close()
        time.sleep(0 if locked else 0.1)
    try:
        yield locked is True
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def _path(folder: Path, feature: str, shard: Shard | None) -> Path:
    if shard is None:
        return folder / f"{quoted(feature)}.claim"
    return folder / f"{quoted(feature)}{SHARDS}" / f"{shard.number} of {shard.of}.claim"


def _refuse_rivals(folder: Path, feature: str, shard: Shard | None) -> None:
    """Raise `StoreError` where somebody writes what ours overlaps; clear what the dead have left of such claims."""
    rivals = [] if shard is None else [_path(folder, feature, None)]
    for path in sorted((folder / f"{quoted(feature)}{SHARDS}").glob("*.claim")):
        if shard is None or not path.stem.endswith(f" of {shard.of}"):
            rivals.append(path)
    for path in rivals:
        with suppress(FileNotFoundError), path.open("r+b") as file:
            free = lock(file, exclusive=True)
            holder = _holder(file)
            if free is False or (holder and _may_live(holder, file, sure=free is True)):
                raise StoreError(_told(feature, holder))
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()


def _give_back(folder: Path, path: Path, file: BinaryIO) -> None:
    with suppress(OSError):  # the store may be gone
        path.unlink()  # while it is locked: whoever waits for it finds that it is no longer there
    file.close()
    with suppress(OSError):  # there are other claims
        for empty in dict.fromkeys((path.parent, folder)):
            empty.rmdir()


def _take(folder: Path, path: Path, feature: str) -> BinaryIO:
    looks = iter(LOOK_AGAIN_SECONDS)
    while True:
        try:
            for parent in dict.fromkeys((folder, path.parent)):
                parent.mkdir(exist_ok=True)
            file = path.open("a+b")
        except FileNotFoundError:  # another process has just given its claim back, and the folder with it
            if not folder.parent.is_dir():
                raise StoreError(f"There is no store at {folder.parent} any more.") from None
            continue
        try:
            free = lock(file, exclusive=True)
            if free and not is_still(file, path):
                file.close()
                continue
            if free is False and (wait := next(looks, 0)):
                file.close()
                time.sleep(wait)
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


def _beat(path: Path, given_back: threading.Event) -> None:
    while not given_back.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


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
