"""Preparation in other processes: in order, never far ahead, and surviving whatever a decoder does.

A row whose preparation raises, takes too long or too much memory, or kills its process becomes a `Failure`; the others
go on. The limits hold in worker processes only: with `workers=0` there is nothing to kill but the command itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, TimeoutError
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from types import TracebackType
from typing import Any, Protocol, TypeVar

from pebble import ProcessExpired, ProcessPool
from threadpoolctl import threadpool_limits

from featurize.handover import Slots, SlotWriter
from featurize.limits import DEFAULT_LIMITS, Limits, limit_memory
from featurize.segments import UnreadableInput
from stores.errors import RemoteError

AHEAD = 8  # prepared rows per worker that may wait for the model
NICENESS = 10  # where cores are few, the model's threads come first: it waits for them all at every step

Key = TypeVar("Key")


@dataclass(frozen=True)
class Failure:
    """Why an input could not be prepared, in one sentence."""

    reason: str


class Prepares(Protocol):
    """What travels to the worker processes: an encoder without weights, or the like. Picklable."""

    def prepare(self, raw: Any) -> Any:
        """What becomes of one input, in another process. Raises `UnreadableInput`."""


@dataclass(frozen=True)
class _Started:
    """An input that a worker has. slot: for the arrays of its item, where there is one."""

    future: Future[Any]
    slots: Slots
    slot: int | None

    def result(self) -> Any:
        """Waits for it. A slot whose item never comes is not used again: its worker may not be gone yet."""
        return self.slots.unpack(self.future.result(), self.slot)


class Preparer:
    """Runs `encoder.prepare` over rows; `workers=0` does it in this process.

    light: it needs no library that takes seconds to import, such as torch.
    """

    def __init__(self, encoder: Prepares, workers: int, limits: Limits = DEFAULT_LIMITS, *, light: bool = False):
        self._encoder = encoder
        self._light = light
        self._workers = workers
        self._limits = limits
        self._pool: ProcessPool | None = None
        self._slots: Slots | None = None
        self._lock = Lock()
        self._started: set[Future[Any]] = set()
        self._left = False

    def __enter__(self) -> Preparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._left = True
        for future in list(self._started):  # another thread may wait for one
            future.cancel()
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
        if self._slots is not None:
            self._slots.close()

    def run(self, jobs: Iterable[tuple[Key, Any]]) -> Iterator[tuple[Key, Any]]:
        """For each (row, raw) in order: (row, item), with `None` for absent and `Failure` for failed.

        Where raw is `None` there is nothing to prepare, and `None` comes in its place.
        """
        if not self._workers:
            ahead = iter(jobs)
            while group := list(islice(ahead, getattr(self._encoder, "at_once", 1))):
                items = iter(prepare_all_safely(self._encoder, [raw for _, raw in group if raw is not None]))
                yield from ((row, None if raw is None else next(items)) for row, raw in group)
            return
        waiting: deque[tuple[Key, _Started | None]] = deque()
        for row, raw in jobs:
            waiting.append((row, None if raw is None else self._start(raw)))
            if len(waiting) >= AHEAD * self._workers:
                row, started = waiting.popleft()
                yield row, self._result(started)
        for row, started in waiting:
            yield row, self._result(started)

    def _start(self, raw: Any) -> _Started:
        with self._lock:
            if self._left:
                raise CancelledError
            if self._pool is None or self._slots is None:  # not before there is work: starting costs seconds
                self._slots = Slots(AHEAD * self._workers)
                self._pool = ProcessPool(
                    self._workers,
                    context=process_context(None if self._light else type(self._encoder).__module__),
                    initializer=_adopt_encoder,
                    initargs=(self._encoder, self._limits, dict(os.environ), self._slots.address),
                )
            slot = self._slots.take()
            future: Future[Any] = self._pool.schedule(
                _prepare_in_worker, args=(raw, slot), timeout=self._limits.row_seconds
            )
            self._started.add(future)
        future.add_done_callback(self._started.discard)
        return _Started(future, self._slots, slot)

    def _result(self, started: _Started | None) -> Any:
        try:
            return None if started is None else started.result()
        except TimeoutError:
            return Failure(f"not prepared within {self._limits.row_seconds:g} s")
        except ProcessExpired as error:
            return Failure(f"the decoder died (exit code {error.exitcode})")


def prepare_safely(encoder: Prepares, raw: Any) -> Any:
    """`encoder.prepare(raw)`, with a `Failure` in place of an exception."""
    try:
        return encoder.prepare(raw)
    except UnreadableInput as error:
        return Failure(str(error))
    except RemoteError:  # no fault of this row: the storage that it lies in cannot be reached
        raise
    except MemoryError:
        at_most = f"; at most {_row_gib:g} GiB are given to a row" if _row_gib else ""
        return Failure(f"out of memory while preparing{at_most}")
    except Exception as error:  # decoders raise what they like; the reason is kept and counted
        return Failure(f"{type(error).__name__}: {error}".splitlines()[0])


def prepare_all_safely(encoder: Any, raws: Sequence[Any]) -> list[Any]:
    """`prepare_safely` of each, by `prepare_many` where it is given several and can take them."""
    if len(raws) > 1:
        with suppress(Exception):  # one of them is to blame, and will be found
            found: list[Any] = encoder.prepare_many(raws)
            return found
    return [prepare_safely(encoder, raw) for raw in raws]


_encoder: Prepares  # of this worker process
_slots: SlotWriter
_row_gib: float | None = None  # its limit, where the system has one


def _adopt_encoder(encoder: Prepares, limits: Limits, environment: dict[str, str], slots: str | None) -> None:
    global _encoder, _row_gib, _slots
    _encoder, _slots = encoder, SlotWriter(slots)
    take_environment(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    threadpool_limits(1)  # parallelism is across rows
    if "torch" in sys.modules:  # it takes seconds to import, and not every preparation needs it
        sys.modules["torch"].set_num_threads(1)
    if limit_memory(limits.row_gib):
        _row_gib = limits.row_gib
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a file descriptor is all that is wanted)
        os.dup2(nowhere.fileno(), 2)  # libmpg123 comments on every damaged header; reasons of rows are kept elsewhere


def take_environment(environment: Mapping[str, str]) -> None:
    """Make it this process's. What a server forks has that of when the server was started: old credentials, or none."""
    os.environ.clear()
    os.environ.update(environment)


def _prepare_in_worker(raw: Any, slot: int | None) -> Any:
    return _slots.pack(prepare_safely(_encoder, raw), slot)


_has_server = False  # of this process: one that forks workers


def process_context(module: str | None) -> Any:
    """Never a fork of a threaded process. With a module: a server that has imported it forks, if there can be one.

    A process has but one such server, which imports what the first to need it asks for. So it is not started for less,
    but used once it runs.
    """
    global _has_server
    can_serve = "forkserver" in multiprocessing.get_all_start_methods()
    if not can_serve or (module is None and not _has_server):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    if module is not None:
        context.set_forkserver_preload(["featurize.workers", module])
        _has_server = True
    return context
