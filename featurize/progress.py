"""A progress bar with rate and remaining time; plain lines where there is no terminal, nothing with `--quiet`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from stores.console import is_quiet

LINE_EVERY_SECONDS = 10.0


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `update(done, total)`. Everything goes to stderr, so that stdout stays for results."""
    if is_quiet():
        yield _silent
        return
    if not sys.stderr.isatty():
        yield _LinePrinter(title, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stores.terminal import own_stderr, plain

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=own_stderr()), transient=True) as bar:
        task = bar.add_task(plain(title), total=None, rate="")
        started = time.monotonic()

        def update(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:,.0f} {unit}/s")

        yield update


@contextmanager
def named_progress(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yields `update(unit, done, total)`: a bar for each thing that is counted, one after the other."""
    with ExitStack() as bars:
        current = ""
        update_bar: Callable[[int, int], None]

        def update(unit: str, done: int, total: int) -> None:
            nonlocal current, update_bar
            if unit != current:
                bars.close()
                current, update_bar = unit, bars.enter_context(progress_bar(title, unit))
            update_bar(done, total)

        yield update


@contextmanager
def steps(title: str) -> Iterator[Callable[[str], None]]:
    """Yields `say(what)`: what is being done now, where there is a terminal to say it on."""
    if is_quiet() or not sys.stderr.isatty():
        yield lambda _what: None
        return
    from rich.console import Console

    with Console(stderr=True).status(title) as status:
        yield lambda what: status.update(f"{title}: {what} …")


def _silent(_done: int, _total: int) -> None:
    pass


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`: as precisely as an estimate deserves."""
    if seconds < 120:
        return f"{max(1, seconds):,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def size(n_bytes: float) -> str:
    """`40 kB`, `12.5 MB`, `3.4 GB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:,.1f} {unit}"
    return f"{n_bytes / 1e3:,.0f} kB"


class _LinePrinter:
    def __init__(self, title: str, unit: str):
        self._title = title
        self._unit = unit
        self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first were done, and how many: start-up is no rate

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)
        if now - self._printed < LINE_EVERY_SECONDS or done == total:
            return
        self._printed = now
        line = f"{self._title}: {done:,} of {total:,} {self._unit}"
        since, before = self._first
        if done > before and now > since:
            rate = (done - before) / (now - since)
            line += f", {rate:,.1f}/s, about {duration((total - done) / rate)} left"
        print(line, file=sys.stderr, flush=True)
