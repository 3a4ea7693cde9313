"""Local copies of remote objects, so that what does not change is transferred once.

Conventions
-----------
* A copy's name is the hash of URL and etag: an object that changed has another name, and an old copy is never taken for
  it. Copies appear by renaming, so that processes may share a folder.
* TRIAD_CACHE names a folder that stays. Without it raw media, and the chunks of a streamed fit, go to a temporary
  folder that ends with the process.
* Where copies take more than TRIAD_CACHE_GIB (20; in a temporary folder 4), those not used for longest are deleted.
  What is needed again is fetched again.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from contextlib import suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from stores.errors import RemoteError, disk_told

if TYPE_CHECKING:
    from stores.remote import RemotePath

FOLDER, GIB = "TRIAD_CACHE", "TRIAD_CACHE_GIB"
KEPT_GIB, TEMPORARY_GIB = 20.0, 4.0
KEPT_SHARE = 0.8  # of the limit remains when copies are deleted, so that not every new one looks through the folder


class Copies:
    """Threads may share it."""

    def __init__(self, folder: Path, limit_bytes: float):
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._lock = Lock()
        self._total: int | None = None  # of what was here, and what this process has added

    def path(self, url: str, etag: str) -> Path:
        """Where a copy of this version is, or would be."""
        name = blake2b(f"{url}\n{etag}".encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}{Path(url).suffix}"  # decoders go by the suffix

    def fetch(self, remote: RemotePath, etag: str) -> Path | None:
        """The copy of this version, made where there is none; of what is there now, where it was replaced meanwhile."""
        path = self.path(str(remote), etag)
        if self.read(path, touch_only=True) is not None:
            return path
        found = remote.objects.get(remote.key)
        if found is None:
            return None
        path = self.path(str(remote), found.facts.etag)
        self.keep(path, found.content)
        return path

    def read(self, path: Path, *, touch_only: bool = False) -> bytes | None:
        """The bytes of a copy, which count as used now; `None` where there is none."""
        try:
            os.utime(path)
            return b"" if touch_only else path.read_bytes()
        except OSError:
            return None

    def keep(self, path: Path, content: bytes | memoryview) -> None:
        """A copy at `path`, whole or not at all; the oldest go where there is no room."""
        with disk_told(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as partial:
                try:
                    partial.write(content)
                    partial.close()
                    Path(partial.name).replace(path)
                except BaseException:
                    Path(partial.name).unlink(missing_ok=True)
                    raise
        with self._lock:
            self._total = self._size() if self._total is None else self._total + len(content)
            if self._total > self.limit_bytes:
                self._total = self._make_room(spared=path)

    def forget(self, path: Path) -> None:
        """Remove a copy; nothing happens where there is none."""
        path.unlink(missing_ok=True)

    def _size(self) -> int:
        return sum(size for _, size, _ in self._files())

    def _make_room(self, spared: Path) -> int:
        """Delete the oldest; returns what is left."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= KEPT_SHARE * self.limit_bytes:
                break
            if path != spared:
                path.unlink(missing_ok=True)
                total -= size
        return total

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # another process has just deleted it
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found


def copies_in(folder: Path | None = None) -> Copies:
    """Those in `folder`, which another process has told us; else those of this process."""
    return (kept_copies() or _temporary()) if folder is None else _copies(folder)


def kept_copies() -> Copies | None:
    """Those in the folder that TRIAD_CACHE names; `None` where it names none."""
    folder = os.environ.get(FOLDER)
    return _copies(Path(folder)) if folder else None


@lru_cache(maxsize=8)
def _copies(folder: Path) -> Copies:
    said = os.environ.get(GIB) or (KEPT_GIB if os.environ.get(FOLDER) else TEMPORARY_GIB)
    try:
        return Copies(folder, float(said) * 2**30)
    except ValueError:
        raise RemoteError(f"{GIB} is {said!r}; it should be a number of gibibytes, e.g. 20.") from None


@lru_cache(maxsize=1)
def _temporary() -> Copies:
    folder = tempfile.TemporaryDirectory(prefix="triad-fusion-")
    copies = _copies(Path(folder.name))
    weakref.finalize(copies, folder.cleanup)  # at the latest when the process ends
    return copies
