"""A share of a feature's chunks, for processes that know nothing of each other.

Conventions
-----------
* Shard i of n, `i/n`, has the chunks i, i + n, i + 2n, …, counted from 1. Every chunk has one owner by arithmetic
  alone, so that no lock has to reach from one machine to the next; neighbouring chunks, which tend to cost alike, have
  different owners.
* All shards of a run have the same n. `stores.claim` refuses another n, or a run without shards, while one is at work.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from stores.errors import StoreError

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """One of `of` shares, counted from 1."""

    number: int  # from 1
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `i/n`. Raises `StoreError`."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip(), re.ASCII)
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of:
            raise StoreError(f"There is no shard {text!r}. Shards of n are 1/n, 2/n, … n/n; of 4 the last is 4/4.")
        return cls(number, of)

    def of_all(self, chunks: Sequence[T]) -> Sequence[T]:
        """Its own among all chunks, in order."""
        return chunks[self.number - 1 :: self.of]
