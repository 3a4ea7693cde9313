"""Encode some rows again, alone and in another order, and see how far the store is from that (identity 1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurize.encode import Row, encode
from featurize.encoders.base import Encoder, Item
from featurize.extract import RawSource
from featurize.segments import UnreadableInput
from featurize.workers import Failure, prepare_safely
from stores.feature import Feature

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}  # relative; bfloat16 has 8 bits, and errors of a dozen layers add up
ROUNDING = {np.dtype(np.float16): 2.0**-11, np.dtype(np.float32): 2.0**-24}  # half a unit in the last place
ODD_BATCH = 7  # no divisor of any usual batch size


@dataclass(frozen=True)
class Audit:
    """Largest deviations, relative to the largest number of each vector. rows: how many were encoded again."""

    rows: int
    changed: int  # rows passed over because their input is no longer what was encoded, or cannot be read
    stored: float  # stored vector against the row encoded alone
    batches: float  # the row encoded alone against the row in batches of another size and order
    rounding: float  # what storing it costs at most
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether store and batches differ by no more than tolerance and rounding allow."""
        return self.stored <= self.tolerance + self.rounding and self.batches <= self.tolerance


def audit(feature: Feature, encoder: Encoder, source: RawSource, k: int, seed: int = 0) -> Audit:
    """Check `k` random present rows; fewer where there are fewer."""
    present = np.flatnonzero(feature.present)
    chosen = np.sort(np.random.default_rng(seed).choice(present, size=min(k, len(present)), replace=False))
    items: list[Item] = []
    stored: list[np.ndarray] = []
    for row in chosen.tolist():
        at = range(row, row + 1)
        try:
            raw = source.raw(row)
            unchanged = raw is not None and raw.digest() == feature.read_input_hashes(at)[0].tobytes()
        except UnreadableInput:
            unchanged = False
        item = prepare_safely(encoder, raw) if unchanged and raw is not None else None
        if item is None or isinstance(item, Failure):
            continue
        items.append(item)
        stored.append(feature.read_vectors(at)[0].astype(np.float32))
    alone = [encode(encoder, [item])[0] for item in items]
    backwards: list[Row] = []
    for start in range(0, len(items), ODD_BATCH):
        backwards += encode(encoder, items[::-1][start : start + ODD_BATCH])
    together = backwards[::-1]
    return Audit(
        rows=len(items),
        changed=len(chosen) - len(items),
        stored=_deviation(stored, [row.vector for row in alone]),
        batches=_deviation([row.vector for row in together], [row.vector for row in alone]),
        rounding=ROUNDING[feature.dtype],
        tolerance=TOLERANCE[encoder.precision],
    )


def _deviation(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    pairs = zip(found, expected, strict=True)
    return max((float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)) for a, b in pairs), default=0.0)
