"""A device that only pretends: where there is no GPU, what is computed on one can still be looked at.

Tensors on it are PyTorch's `meta` ones, which have shapes and no numbers. Whatever takes a tensor of the CPU's beside
one of them raises. To read a number, for which a GPU would be waited for, gives a one and is counted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ATEN = torch.ops.aten
DEVICE = torch.device("meta")
COPIES = (ATEN._to_copy, ATEN.to, ATEN.copy_)


class PretendedDevice(TorchDispatchMode):
    """reads: how often a number was wanted, and a GPU would have been waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        super().__init__()
        self.reads = 0
        autocast, adamw = torch.autocast, torch.optim.AdamW  # neither knows this device
        monkeypatch.setattr(torch, "autocast", lambda _, *rest, **options: autocast("cpu", *rest, **options))
        monkeypatch.setattr(torch.optim, "AdamW", lambda *rest, fused, **options: adamw(*rest, **options))
        monkeypatch.setattr("fusion.train.training_device", lambda _: DEVICE)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(tensor.is_meta for tensor in tensors):
            return function(*args, **kwargs)
        if function.overloadpacket in COPIES:
            if kwargs.get("device", DEVICE).type == "cpu":
                self.reads += 1
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            return function(*args, **kwargs)
        if not all(tensor.is_meta for tensor in tensors):
            raise AssertionError(f"{function} takes tensors of the device and of the CPU")
        if function is ATEN._local_scalar_dense.default:
            self.reads += 1
            return 1
        if function is ATEN.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.reads += 1
            (mask,) = args[1]
            return args[0].new_empty(mask.numel(), *args[0].shape[mask.ndim :])
        return function(*args, **kwargs)
