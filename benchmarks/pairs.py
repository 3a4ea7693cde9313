"""Two ways to do the same, timed in turns, so that a slow minute of the machine hits both."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

PACKAGES = ("torch", "numpy", "zarr", "scikit-learn")


@dataclass(frozen=True)
class Ratio:
    """a and b: what each took, pair by pair. Their ratios are taken within the pairs."""

    name_a: str
    name_b: str
    unit: str
    a: list[float]
    b: list[float]

    @property
    def ratios(self) -> list[float]:
        return [one / other for one, other in zip(self.a, self.b, strict=True)]

    @property
    def median(self) -> float:
        return median(self.ratios)

    @property
    def low(self) -> float:
        return min(self.ratios)

    @property
    def high(self) -> float:
        return max(self.ratios)

    def __str__(self) -> str:
        sides = f"{self.name_a} {median(self.a):.3g} {self.unit}, {self.name_b} {median(self.b):.3g} {self.unit}"
        return f"{sides}, ratio {self.median:.2f} [{self.low:.2f}, {self.high:.2f}] over {len(self.a)} pairs"


def paired(
    name_a: str,
    run_a: Callable[[], float],
    name_b: str,
    run_b: Callable[[], float],
    repetitions: int = 5,
    unit: str = "s",
) -> Ratio:
    """A B A B …, after each has run once for nothing. Both return what they took."""
    run_a(), run_b()
    pairs = [(run_a(), run_b()) for _ in range(repetitions)]
    return Ratio(name_a, name_b, unit, [a for a, _ in pairs], [b for _, b in pairs])


def machine() -> str:
    """One line: processor, cores, threads, and versions."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text("utf-8").splitlines() if cpus.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    threads = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{model}, {threads}, Python {platform.python_version()}, {versions}"
