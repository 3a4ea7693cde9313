"""Media files in object storage are fetched while earlier rows are encoded: one at a time would cost their latency.

The copies are kept by `stores.object_cache`, and whoever decodes a file finds it there. Rows of a song share its file,
which is fetched once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from featurize.segments import UnreadableInput
from stores.remote import Location, RemotePath

ROWS_AHEAD = 32
FETCHES = 8  # at a time; a file is in memory while it is fetched
REMEMBERED = 256  # files that are not asked for again


class NamesFiles(Protocol):
    """A `Source`."""

    def __len__(self) -> int: ...

    def file(self, row: int, modality: str) -> Location | None:
        """Where a row has its file of this modality; `None` where it has none."""


class MediaAhead:
    """Fetches the files of the next rows before they are asked for."""

    def __init__(self, source: NamesFiles):
        self._source = source
        self._pool: ThreadPoolExecutor | None = None
        self._fetched: OrderedDict[RemotePath, Future[Path]] = OrderedDict()
        self._last = -1

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which fetches for itself."""
        return {"_source": self._source, "_pool": None, "_fetched": OrderedDict(), "_last": -1}

    def fetch(self, row: int, modality: str, *, alone: bool) -> None:
        """Return when this row's file is here; where rows come in order, with the next ones' on their way.

        alone: leave those out.

        Raises `RemoteError`.
        """
        in_order, self._last = 0 <= row - self._last <= ROWS_AHEAD, row
        for ahead in range(row, min(row + (ROWS_AHEAD if in_order and not alone else 1), len(self._source))):
            with suppress(UnreadableInput):  # a path that leaves the root is told in its own row
                path = self._source.file(ahead, modality)
                if isinstance(path, RemotePath) and path not in self._fetched:
                    self._fetched[path] = self._start(path.fetched)
        with suppress(UnreadableInput, FileNotFoundError):  # told by those who read it
            path = self._source.file(row, modality)
            if isinstance(path, RemotePath):
                self._fetched.move_to_end(path)
                self._fetched[path].result()
        while len(self._fetched) > REMEMBERED:
            self._fetched.popitem(last=False)

    def _start(self, fetch: Callable[[], Path]) -> Future[Path]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(FETCHES, "fetch media ahead")
        return self._pool.submit(fetch)
