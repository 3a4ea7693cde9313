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
from stores.object_claim import ObjectClaim, holder_of
from stores.remote import Location, RemotePath
from stores.shard import Shard

HEARTBEAT_SECONDS = 10.0
DEAD_AFTER_SECONDS = 120.0
SHARDS = ".shards"
LOOK_AGAIN_SECONDS = (0.02, 0.1)  # somebody may hold a claim for an instant, to see whether anybody does


@contextmanager
def claimed(folder: Location | None, feature: str, shard: Shard | None = None) -> Iterator[None]:
    """While this block runs nobody else writes `feature`, or this shard of it. Raises `StoreError` where somebody does.

    folder: the store's (`ArrayTree.claims`); `None` where no other process can reach the store.
    """
    if folder is None:
        yield
        return
    path = _path(folder, feature, shard)
    if isinstance(path, RemotePath):
        with object_claimed(path, feature):
            for rival in _rivals(folder, feature, shard):
                assert isinstance(rival, RemotePath)
                holder = holder_of(rival, DEAD_AFTER_SECONDS, _is_gone_from_here)
                if holder is not None:
                    raise StoreError(_told(feature, holder))
            yield
        return
    assert isinstance(folder, Path)
    file = _take(folder, path, feature)
    try:
        for rival in _rivals(folder, feature, shard):  # not before ours can be seen: of two at once, one sees the other
            _refuse(rival, feature)
        with _beating(partial(os.utime, path)):
            yield
    finally:
        _give_back(folder, path, file)


@contextmanager
def object_claimed(path: RemotePath, what: str, *, wait: bool = False) -> Iterator[None]:
    """As `claimed`, by the object at `path`. what: is being written. wait: for whoever holds it, rather than raise."""
    claim = ObjectClaim(path, _myself())
    while (holder := claim.take(DEAD_AFTER_SECONDS, _is_gone_from_here)) is not None:
        if not wait:
            raise StoreError(_told(what, holder))
        time.sleep(0.2)
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
    names = [path.name for path in (folder.iterdir() if isinstance(folder, RemotePath) else folder.glob("*"))]
    new = {unquote(name.removesuffix(end)) for name in names for end in (".claim", SHARDS) if name.endswith(end)}
    with ExitStack() as exits:
        for feature in sorted({*features, *new}):
            exits.enter_context(claimed(folder, feature))
        yield


def claims_of(store: Location) -> Location:
    """The folder of claims of the store at this path."""
    if isinstance(store, RemotePath):
        return store / ".claims"
    return store / ".claims" if store.is_dir() else store.with_name(f".{store.name}.claims")


@contextmanager
def one_by_one(folder: Location | None, feature: str) -> Iterator[bool]:
    """Shards of this feature go through this block one after another; false where the file system has no locks.

    To be entered with a shard of it `claimed`.
    """
    if folder is None:
        yield True
        return
    path = folder / f"{quoted(feature)}{SHARDS}" / "turn"
    if isinstance(path, RemotePath):
        with object_claimed(path, feature, wait=True):
            yield True
        return
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


def _path(folder: Location, feature: str, shard: Shard | None) -> Location:
    if shard is None:
        return folder / f"{quoted(feature)}.claim"
    return folder / f"{quoted(feature)}{SHARDS}" / f"{shard.number} of {shard.of}.claim"


def _rivals(folder: Location, feature: str, shard: Shard | None) -> list[Location]:
    """Claims that overlap with ours: of the whole feature, and of shards where ours is none, or is one of another n."""
    shards: list[Location] = list((folder / f"{quoted(feature)}{SHARDS}").glob("*.claim"))
    if shard is None:
        return shards
    return [_path(folder, feature, None), *(path for path in shards if not path.stem.endswith(f" of {shard.of}"))]


def _refuse(path: Location, feature: str) -> None:
    """Raise `StoreError` where somebody holds this claim; clear what the dead have left of it."""
    assert isinstance(path, Path)
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


def _is_gone_from_here(holder: dict[str, Any]) -> bool:
    return holder.get("host") == socket.gethostname() and _is_gone(holder.get("pid"))


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
