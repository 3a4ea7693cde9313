"""What one row may cost before it is failed: seconds, memory, bytes on disk.

Seconds and memory are a worker process's, and part of the configuration (`preprocessing.row_seconds`, `row_gib`). What
a file may hold is looked at before it is read: a sparse file of a terabyte costs its maker nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROW_SECONDS = 300.0  # two hours of audio decode in under one minute on one slow core
ROW_GIB = 4.0  # an hour at 48 kHz is 0.7 GiB of float32, and resampling needs it three times

MAX_TEXT_BYTES = 16 * 2**20  # four million words
MAX_MIDI_BYTES = 16 * 2**20  # a million notes with generous controller data
MAX_AUDIO_BYTES = 16 * 2**30  # four hours of eight channels at 96 kHz and 24 bits


@dataclass(frozen=True)
class Limits:
    """What one row may cost a worker: seconds, and memory beyond what the worker has when it starts."""

    row_seconds: float = ROW_SECONDS
    row_gib: float = ROW_GIB


DEFAULT_LIMITS = Limits()


def limit_memory(gib: float) -> bool:
    """Let this process take so much more than it has now; an allocation beyond fails. False where that cannot be."""
    status = Path("/proc/self/status")
    if not status.is_file():  # of Linux; elsewhere the system counts otherwise, or not at all
        return False
    import resource

    (has_kib,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmData:"))
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(has_kib) * 1024 + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    return True
