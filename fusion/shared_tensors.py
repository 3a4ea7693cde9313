"""Large tensors for other processes: written to files once, mapped by each, so that all share one copy in memory.

Files, not shared memory: that is small in many containers.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGE_BYTES = 2**20


def pickled(value: Any, folder: Path) -> bytes:
    """`pickle.dumps`, but for large tensors, which go to files in `folder`; those must stay while others read them."""
    buffer = io.BytesIO()
    _Pickler(buffer, folder).dump(value)
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, folder: Path):
        super().__init__(buffer)
        self._folder, self._n_files = folder, 0

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.nbytes < LARGE_BYTES or value.dtype == torch.bfloat16:
            return NotImplemented
        path = self._folder / f"{self._n_files}.npy"
        self._n_files += 1
        np.save(path, value.numpy())
        return _mapped, (path,)


def _mapped(path: Path) -> Tensor:
    return torch.from_numpy(
        np.load(path, mmap_mode="c", allow_pickle=False)
    )  # private: what a process writes is its own
