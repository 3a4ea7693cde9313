"""Gated fusion: how much each slot counts is decided segment by segment."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion.modules.base import Fused, Interaction, MultimodalFusion, SlotProjections

OPEN = 2.0  # sigmoid(2) = 0.88: every gate starts open, and what does not help is closed


class GatedFusion(MultimodalFusion):
    """Fuse slot embeddings by learned importance.

    A gate in (0, 1) for each slot, computed from all slots, scales its projection; the gated sum then passes a residual
    MLP. `features[slot]`: float (B, D_slot); `present`: bool (B, M); rows that are not present are never read. Returns
    (B, H), and the gates (B, M), zero where missing. Source: Arevalo et al. 2017, "Gated multimodal units for
    information fusion", section 3, with one gate for a slot instead of one for a unit, so that gates can be read.
    """

    name = "gated"

    def __init__(self, widths: Mapping[str, int], hidden_dim: int = 128, dropout: float = 0.3):
        super().__init__(widths, hidden_dim, dropout)
        self.project = SlotProjections(widths, hidden_dim, dropout)
        gates = nn.Linear(len(widths) * hidden_dim, len(widths))
        nn.init.zeros_(gates.weight)
        nn.init.constant_(gates.bias, OPEN)
        self.gate = nn.Sequential(nn.LayerNorm(len(widths) * hidden_dim), gates)
        self.missing = nn.Parameter(torch.zeros(len(widths), hidden_dim))  # what the absence of a slot says by itself
        self.interact = Interaction(hidden_dim, hidden_dim, dropout)

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Fused:
        tokens: Tensor = self.project(features, present)
        gates = torch.sigmoid(self.gate(torch.flatten(tokens, start_dim=1)))
        gates = torch.where(present, gates, 0.0)
        gated = torch.where(present[:, :, None], gates[:, :, None] * tokens, self.missing).sum(dim=1)
        return Fused(gated + self.interact(gated), tokens, gates)
