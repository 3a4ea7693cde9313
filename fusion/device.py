"""Where a training computes, and how it is written so that a GPU need not be waited for.

A GPU works through a queue. Its host runs ahead and fills it, until it wants to know a number that is not computed
yet: then it waits, and afterwards the queue is empty. So on a GPU nothing that is done next may depend on numbers, such
as how many rows are present: all rows are computed, and what does not count is replaced, by zeros before and by what
stands for it behind. On a CPU, where a number is known when it is asked for, what is missing is not computed at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featurize.encode import usable_device

CPU = torch.device("cpu")


def training_device(name: str) -> torch.device:
    """`auto`, cpu, cuda or mps. Raises `ConfigError` where torch has no such device here."""
    return torch.device(usable_device(name))


def device_facts(device: torch.device) -> dict[str, Any]:
    """For `environment.json`: which it is, and what a GPU calls itself."""
    name = {"name": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"type": device.type, **name}


def not_known_yet(values: Tensor) -> bool:
    """Whether nothing may depend on these numbers (…): a GPU would be waited for, a graph to be exported has none."""
    return values.device.type != "cpu" or torch.compiler.is_exporting()


def in_float64(values: Tensor) -> Tensor:
    """Numbers (…) on the same device; of Apple's, which has no float64, on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()
