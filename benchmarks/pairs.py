"""Two things measured in turn, A B A B …, so that a machine whose speed drifts is unfair to neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """a, b: what each run took, in `unit`, pair by pair."""

    name_a: str
    a: list[float]
    name_b: str
    b: list[float]
    unit: str = "s"

    @property
    def ratios(self) -> np.ndarray:
        return np.array(self.a) / np.array(self.b)

    @property
    def median(self) -> float:
        return float(np.median(self.ratios))

    @property
    def low(self) -> float:
        return float(self.ratios.min())

    @property
    def high(self) -> float:
        return float(self.ratios.max())

    def __str__(self) -> str:
        of_a, of_b = (f"{float(np.median(values)):.3g} {self.unit}" for values in (self.a, self.b))
        spread = f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}] over {len(self.a)} pairs"
        return f"{self.name_a} {of_a}, {self.name_b} {of_b}, ratio {spread}"


def paired(
    name_a: str,
    run_a: Callable[[], float],
    name_b: str,
    run_b: Callable[[], float],
    repetitions: int = 5,
    unit: str = "s",
) -> Ratio:
    """Each runs once unmeasured, then both in turn. They return what they took."""
    run_a(), run_b()
    pairs = [(run_a(), run_b()) for _ in range(repetitions)]
    return Ratio(name_a, [a for a, _ in pairs], name_b, [b for _, b in pairs], unit)
