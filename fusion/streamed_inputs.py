"""What linear models learn and predict from, where it is larger than memory: the concatenation, block by block.

A linear model needs all that it is fitted to in memory. So it is fitted to a sample of whole groups, and chosen and
judged on all rows that it would be otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from fusion.model import Moments, Standardize
from fusion.modules.base import pooled
from fusion.streaming import StreamedSegments

SAMPLE_BYTES = 256 * 2**20  # of float32: 37,000 rows of 1,792 columns


@dataclass(frozen=True)
class StreamedInputs:
    """`fusion.baselines.concatenation` of streamed segments. train_rows: those that it is standardized by."""

    data: StreamedSegments
    train_rows: np.ndarray

    @property
    def width(self) -> int:
        """ΣD + M: all slots' numbers, and the mask."""
        return sum(self.data.widths.values()) + len(self.data.slots)

    @cached_property
    def sample(self) -> np.ndarray:
        """The training rows that models are fitted to, (n,), ascending."""
        return whole_groups(self.data.groups, self.train_rows, SAMPLE_BYTES // (4 * self.width))

    def take(self, rows: np.ndarray) -> np.ndarray:
        """float32 (n, ΣD + M)."""
        taken, start = np.empty((len(rows), self.width), np.float32), 0
        for block in self.blocks(rows):
            taken[start : start + len(block)] = block
            start += len(block)
        return taken

    def blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The same, in pieces (B, ΣD + M); at least one."""
        batches = torch.from_numpy(rows).split(self.data.evaluation_batch)
        standardize = self._standardize
        for batch, inputs in self.data.batches(batches):
            present = self.data.present[batch]
            parts = [
                torch.where(present[:, [index]], standardize[slot](pooled(inputs[slot])), 0.0)
                for index, slot in enumerate(self.data.slots)
            ]
            yield torch.cat([*parts, present.float()], dim=1).numpy()

    @cached_property
    def _standardize(self) -> dict[str, Standardize]:
        found = {}
        for index, slot in enumerate(self.data.slots):
            rows = torch.from_numpy(self.train_rows[self.data.present[self.train_rows, index].numpy()])
            moments = Moments()
            for _, inputs in self.data.only([slot]).batches(rows.split(self.data.evaluation_batch)):
                moments.add(pooled(inputs[slot]))
            found[slot] = Standardize(self.data.widths[slot])
            found[slot].take(moments)
        return found


def whole_groups(groups: np.ndarray, rows: np.ndarray, at_most: int) -> np.ndarray:
    """The rows of groups drawn at random, with a fixed seed: so many rows at most, but one group at least; ascending.

    groups: text (N,). rows: ascending.
    """
    if len(rows) <= at_most:
        return rows
    names, group_of = np.unique(groups[rows], return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    rows_so_far = np.bincount(group_of)[order].cumsum()
    drawn = np.zeros(len(names), bool)
    drawn[order[: max(1, int(np.searchsorted(rows_so_far, at_most, side="right")))]] = True
    kept: np.ndarray = rows[drawn[group_of]]
    return kept
