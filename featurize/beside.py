"""Threads beside the model's, or several of those: what comes before it runs ahead, what comes after it behind.

Neither gets far: whoever has too much waiting waits. What goes wrong in either is raised in the model's thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import BoundedSemaphore, Event, Thread
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@contextmanager
def ahead(items: Iterable[T], most: int) -> Iterator[Iterator[T]]:
    """The same items, taken by a thread while this one works, at most `most` of them waiting.

    What `items` raises comes after the items before it. When the block is left the thread is at its end, too.
    """
    ready: Queue[T | _End] = Queue(most)
    left = Event()

    def take() -> None:
        try:
            for item in items:
                ready.put(item)
                if left.is_set():
                    return
            ready.put(_End(None))
        except BaseException as error:  # KeyboardInterrupt, too: it is the other thread's to handle
            ready.put(_End(error))
        finally:
            if isinstance(items, Generator):
                items.close()  # here, not wherever the last reference to it is dropped

    def given() -> Iterator[T]:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error

    thread = Thread(target=take, name="ahead", daemon=True)
    thread.start()
    try:
        yield given()
    finally:
        left.set()
        while thread.is_alive():  # it may wait for room
            with suppress(Empty):
                ready.get(timeout=0.01)
        thread.join()


def side_by_side(
    items: Iterable[T], call: Callable[[T], R], n_threads: int, begin: Callable[[], object]
) -> Iterator[tuple[T, R]]:
    """Every item with what `call` makes of it, in order; up to `n_threads` calls at once, each in a thread of its own.

    begin: is called in each thread before all else. With one thread it is this one, and nothing is begun. What `items`
    raises comes after the items before it.
    """
    if n_threads == 1:
        yield from ((item, call(item)) for item in items)
        return
    with ThreadPoolExecutor(n_threads, "side by side", initializer=begin) as pool:
        waiting: deque[tuple[T, Future[R]]] = deque()
        left = iter(items)
        error: BaseException | None = None
        while True:
            try:
                item = next(left)
            except StopIteration:
                break
            except BaseException as raised:
                error = raised
                break
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) >= n_threads:
                first, made = waiting.popleft()
                yield first, made.result()
        for item, made in waiting:
            yield item, made.result()
        if error is not None:
            raise error


class Behind:
    """Makes calls in order in one thread while this one goes on, at most `most` of them waiting.

    After one has failed no other is made; its error is raised by the next call, or when the block is left.
    """

    def __init__(self, most: int):
        self._thread = ThreadPoolExecutor(1, "behind")
        self._room = BoundedSemaphore(most)
        self._error: BaseException | None = None

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()  # all calls are made
        if self._error is not None and self._error is not error:
            raise self._error

    def __call__(self, call: Callable[..., object], *arguments: Any) -> None:
        self._room.acquire()
        if self._error is not None:
            self._room.release()
            raise self._error
        self._thread.submit(self._make, call, arguments)

    def _make(self, call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        try:
            if self._error is None:
                call(*arguments)
        except BaseException as error:
            self._error = error
        finally:
            self._room.release()
