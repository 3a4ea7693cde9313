"""Late fusion: each slot judged by itself, then together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fusion.modules.base import Fused, Interaction, MultimodalFusion, SlotProjections


class LateFusion(MultimodalFusion):
    """Concatenate slot projections, shared MLP, beside the plain sum of the projections.

    The sum is linear in every slot, so that additive evidence needs no hidden unit to get through; the MLP adds what
    only shows in combination. `features[slot]`: float (B, D_slot); `present`: bool (B, M). Returns (B, H).
    """

    name = "late"

    def __init__(self, widths: Mapping[str, int], hidden_dim: int = 128, dropout: float = 0.3):
        super().__init__(widths, hidden_dim, dropout)
        self.project = SlotProjections(widths, hidden_dim, dropout)
        self.interact = Interaction(len(widths) * hidden_dim, hidden_dim, dropout)

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Fused:
        tokens: Tensor = self.project(features, present)
        return Fused(tokens.sum(dim=1) + self.interact(torch.flatten(tokens, start_dim=1)), tokens)


ConcatFusion = LateFusion
