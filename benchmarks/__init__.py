"""Measurements behind the documents; each prints the machine, the versions and both sides. `pip install '.[bench]'`."""

from __future__ import annotations

import platform
from importlib.metadata import version


def machine(*packages: str) -> str:
    """One line: processor, cores, memory, and the versions of what is measured."""
    import psutil

    memory_gib = psutil.virtual_memory().total / 2**30
    cores = f"{psutil.cpu_count(logical=False)} cores, {memory_gib:.0f} GiB, Python {platform.python_version()}"
    return ", ".join([platform.machine(), cores, *(f"{name} {version(name)}" for name in packages)])
