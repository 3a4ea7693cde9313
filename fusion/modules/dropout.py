"""Dropout at a fourth of the price: one random byte for a number, where PyTorch draws 32 bits by the slow road.

In a training step on 1,792 inputs PyTorch's own takes longer than the matrix products (docs/experiments.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 256  # of a byte: the chance is the nearest 256th, and the scale is exactly its own


class ByteDropout(nn.Module):
    """In training each number becomes 0 with chance `p`, and what stays is scaled so that the expectation stays too."""

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}; expected at least 0 and less than 1")
        self.n_dropped = min(round(LEVELS * p), LEVELS - 1)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.n_dropped == 0:
            return values
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
        words.random_(-(2**63), None)  # all 64 bits; without bounds the sign bit is never set
        bytes_ = words.view(torch.uint8)[: values.numel()].view(values.shape)
        return values * (bytes_ >= self.n_dropped) * (LEVELS / (LEVELS - self.n_dropped))
