"""What strangers wrote is shown, never obeyed: control characters on their way to a terminal are written out.

Ids, labels, reasons and column names come from other people's data, and a terminal takes some characters for commands:
move the cursor, change the title, answer as if typed. Everything that `cli` prints goes through `plain_output`, so that
no command has to think of it. JSON has them escaped already; files keep them as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# C0 but tab and line feed, delete, C1, line separators, and what turns the direction of writing around
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    r"""The text with what a terminal would obey written out: `\x1b` for an escape. Tabs and line feeds stay."""
    return _OBEYED.sub(lambda found: repr(found[0])[1:-1], text)


class PlainStream:
    """A text stream that writes `plain` text to another; `own` is that other, for who draws on the terminal."""

    __slots__ = ("own",)  # and no weak references: click would remember each stream by one, and keep it for good

    def __init__(self, own: TextIO):
        self.own = own

    def write(self, text: str) -> int:
        """Write the `plain` text; returns the length of what was given."""
        self.own.write(plain(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of these texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


@contextmanager
def plain_output() -> Iterator[None]:
    """While the block runs, what is printed to stdout and stderr is `plain`."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (PlainStream(stream) for stream in before)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def data_stdout() -> TextIO:
    """For rows that a program may read: as they are where they go to a pipe or file, `plain` on a terminal."""
    return sys.stdout if sys.stdout.isatty() else own_stdout()


def own_stdout() -> TextIO:
    """Standard output itself, for who makes strangers' words `plain` before adding colours."""
    stdout: TextIO = getattr(sys.stdout, "own", sys.stdout)
    return stdout


def own_stderr() -> TextIO:
    """The terminal itself, for progress bars; what they show of strangers' words is theirs to make `plain`."""
    stderr: TextIO = getattr(sys.stderr, "own", sys.stderr)
    return stderr
