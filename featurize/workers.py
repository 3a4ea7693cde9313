"""Preparation in other processes: in order, never far ahead, and surviving whatever a decoder does.

A row whose preparation raises, takes too long or too much memory, or kills its process becomes a `Failure`; the others
go on. The limits hold in worker processes only: with `workers=0` there is nothing to kill but the command itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from pebble import ProcessExpired, ProcessPool

from featurize.limits import DEFAULT_LIMITS, Limits, limit_memory
from featurize.segments import UnreadableInput

AHEAD = 8  # prepared rows per worker that may wait for the model


@dataclass(frozen=True)
class Failure:
    reason: str


class Prepares(Protocol):
    """What travels to the worker processes: an encoder without weights, or the like. Picklable."""

    def prepare(self, raw: Any) -> Any: ...


class Preparer:
    """Runs `encoder.prepare` over rows; `workers=0` does it in this process."""

    def __init__(self, encoder: Prepares, workers: int, limits: Limits = DEFAULT_LIMITS):
        self._encoder = encoder
        self._workers = workers
        self._limits = limits
        self._pool: ProcessPool | None = None

    def __enter__(self) -> Preparer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()

    def run(self, jobs: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """For each (row, raw) in order: (row, item), with `None` for absent and `Failure` for failed."""
        if not self._workers:
            for row, raw in jobs:
                yield row, prepare_safely(self._encoder, raw)
            return
        waiting: deque[tuple[int, Future[Any]]] = deque()
        for row, raw in jobs:
            waiting.append((row, self._start(raw)))
            if len(waiting) >= AHEAD * self._workers:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _start(self, raw: Any) -> Future[Any]:
        if self._pool is None:  # not before there is work: starting costs seconds
            self._pool = ProcessPool(
                self._workers,
                context=_process_context(),
                initializer=_adopt_encoder,
                initargs=(self._encoder, self._limits),
            )
        future: Future[Any] = self._pool.schedule(_prepare_in_worker, args=(raw,), timeout=self._limits.row_seconds)
        return future

    def _finish(self, row: int, future: Future[Any]) -> tuple[int, Any]:
        try:
            return row, future.result()
        except TimeoutError:
            return row, Failure(f"not prepared within {self._limits.row_seconds:g} s")
        except ProcessExpired as error:
            return row, Failure(f"the decoder died (exit code {error.exitcode})")


def prepare_safely(encoder: Prepares, raw: Any) -> Any:
    """`encoder.prepare(raw)`, with a `Failure` in place of an exception."""
    try:
        return encoder.prepare(raw)
    except UnreadableInput as error:
        return Failure(str(error))
    except MemoryError:
        at_most = f"; at most {_row_gib:g} GiB are given to a row" if _row_gib else ""
        return Failure(f"out of memory while preparing{at_most}")
    except Exception as error:  # decoders raise what they like; the reason is kept and counted
        return Failure(f"{type(error).__name__}: {error}".splitlines()[0])


_encoder: Prepares  # of this worker process
_row_gib: float | None = None  # its limit, where the system has one


def _adopt_encoder(encoder: Prepares, limits: Limits) -> None:
    global _encoder, _row_gib
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    import torch

    torch.set_num_threads(1)  # parallelism is across rows
    if limit_memory(limits.row_gib):
        _row_gib = limits.row_gib
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a file descriptor is all that is wanted)
        os.dup2(nowhere.fileno(), 2)  # libmpg123 comments on every damaged header; reasons of rows are kept elsewhere


def _prepare_in_worker(raw: Any) -> Any:
    return prepare_safely(_encoder, raw)


def _process_context() -> Any:
    """forkserver where there is one: it imports torch once, not once a worker. Never a fork of a threaded process."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "featurize.workers"])
    return context
