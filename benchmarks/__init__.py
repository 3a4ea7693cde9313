"""Measurements behind the documents; each prints the machine, the versions and both sides. `pip install '.[bench]'`."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "numpy", "zarr", "scikit-learn")


def machine(*packages: str) -> str:
    """One line: processor, cores, memory, threads, and the versions of what is measured."""
    import psutil
    import torch

    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text("utf-8").splitlines() if cpus.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    memory_gib = psutil.virtual_memory().total / 2**30
    cores = f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {torch.get_num_threads()} threads"
    versions = (f"{name} {version(name)}" for name in packages or PACKAGES)
    return ", ".join([model, cores, f"Python {platform.python_version()}", *versions])
