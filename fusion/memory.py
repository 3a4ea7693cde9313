"""How much memory there is, and what is too large for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from featurize.errors import ConfigError
from fusion.config import Stream
from stores.store import Store

# `fit` in memory needs about eight times the bytes of float16 vectors: they, and in float32 the inputs of the linear
# baseline, what these are put together from, and their training part
SHARE_OF_MEMORY = 8
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def too_large(store: Store, features: Mapping[str, str], with_frames: bool = False) -> bool:
    """Whether these features are more than 1/8 of the memory; no, where the system does not tell what it has."""
    memory = memory_bytes()
    return memory is not None and feature_bytes(store, features, with_frames) > memory / SHARE_OF_MEMORY


def feature_bytes(store: Store, features: Mapping[str, str], with_frames: bool = False) -> int:
    """Of their vectors, and frames where they are read. features: slot to feature name."""
    found = [store.feature(name) for name in features.values()]
    numbers = [feature.width * (1 + feature.max_frames * with_frames) for feature in found]
    return store.n_segments * sum(n * f.dtype.itemsize for n, f in zip(numbers, found, strict=True))


def read_into_memory(
    command: str, store: Store, features: Mapping[str, str], with_frames: bool, stream: Stream
) -> list[str]:
    """For a command that does not stream: a note where that may be too much. Raises `ConfigError` if it was told to."""
    size = f"{feature_bytes(store, features, with_frames) / 2**30:.1f} GiB of features"
    if stream is True:
        raise ConfigError(f"training.stream is true, but {command} reads its {size} into memory. Leave it at auto.")
    if stream == "auto" and too_large(store, features, with_frames):
        return [f"{command} has read {size} into memory, where cli fit would have streamed them."]
    return []


def memory_bytes() -> int | None:
    """Of the machine, or of the container where that has less; `None` where the system does not tell."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    try:
        limit = CONTAINER_LIMIT.read_text("ascii").strip()
    except OSError:
        return found
    return min(found, int(limit)) if limit.isdigit() else found
