"""Errors of the way from raw data to features; all are `TriadError`s (see `stores/errors.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from stores.errors import TriadError


class UnknownName(TriadError):
    """A name that nothing answers to; the message lists what would have been understood."""

    def __init__(self, kind: str, name: str, known: Iterable[str]):
        known = list(known)
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        super().__init__(f"There is no {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")


class ConfigError(TriadError):
    """A configuration value that cannot be used."""


class SourceError(TriadError):
    """The dataset cannot be read as described."""


class SplitError(TriadError):
    """A split that cannot be made, or does not fit the store."""


class CodeNotAllowed(ConfigError):
    """A file names code that its user has not named: it is not imported."""
