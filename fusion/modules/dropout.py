"""Dropout at a fraction of the price: one random byte for a number, where PyTorch draws 32 bits by the slow road.

In a training step on 1,792 inputs PyTorch's own takes longer than the matrix products (docs/experiments.md). Booleans
are slow there, too: the mask is made by integers of the values' width, whose bits are the scale's or zero. On a GPU it
is PyTorch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 256  # of a byte: the chance is the nearest 256th, and the scale is its own, as exact as the values are
INTEGERS = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}


class ByteDropout(nn.Module):
    """In training each number becomes 0 with chance `p`, and what stays is scaled so that the expectation stays too."""

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}; expected at least 0 and less than 1")
        self.n_dropped = min(round(LEVELS * p), LEVELS - 1)

    def forward(self, values: Tensor) -> Tensor:
        """Float16, bfloat16 or float32 of any shape (…)."""
        if not self.training or self.n_dropped == 0:
            return values
        if values.device.type != "cpu":  # a GPU draws and multiplies in one kernel; the mask's would be six
            return torch.nn.functional.dropout(values, self.n_dropped / LEVELS)
        return values * self._mask(values)

    def _mask(self, values: Tensor) -> Tensor:
        """0 or the scale for each number, of the same type."""
        integer = INTEGERS[values.dtype]
        words = torch.empty(-(-values.numel() // 8), dtype=torch.int64, device=values.device)
        words.random_(-(2**63), None)  # all 64 bits; without bounds the sign bit is never set
        drawn = words.view(torch.int8)[: values.numel()].view(values.shape).to(integer)
        scale = int(torch.tensor(LEVELS / (LEVELS - self.n_dropped), dtype=values.dtype).view(integer))
        # the sign bit, shifted over all others: -1, all bits, for a draw below the bound, 0 for one above
        kept = drawn.sub_(LEVELS // 2 - self.n_dropped).bitwise_right_shift_(torch.iinfo(integer).bits - 1)
        return kept.bitwise_and_(scale).view(values.dtype)
