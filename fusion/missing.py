"""Modality dropout: hiding slots that are there, so that the model learns to do without them."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_slots(present: Tensor, chance: float, generator: torch.Generator | None = None) -> Tensor:
    """Hide each present slot with `chance`, always leaving one of those a segment has. bool (B, M) to bool (B, M).

    A dropped slot is a missing slot: only the mask changes, and everything downstream sees only the mask.
    """
    if chance == 0:
        return present
    draws = torch.rand(present.shape, generator=generator, device=present.device)
    kept = present & (draws >= chance)
    # where all would go, the present slot with the luckiest draw stays; the draws of missing slots do not compete
    luckiest = torch.where(present, draws, -1.0).argmax(dim=1, keepdim=True)
    rescued = torch.zeros_like(present).scatter(1, luckiest, True) & present
    return torch.where(kept.any(dim=1, keepdim=True), kept, rescued)
