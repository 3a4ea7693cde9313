"""Bottleneck fusion: slots exchange what they know through a few shared tokens, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion.modules.attention import AttentionStack, rollout
from fusion.modules.base import (
    Frames,
    Fused,
    Interaction,
    MultimodalFusion,
    SlotProjections,
    at_least_one,
    pooled_vectors,
)
from fusion.modules.sequences import SlotSequences, Tokens


class BottleneckFusion(MultimodalFusion):
    """Each slot's tokens see their own slot and a few learned bottleneck tokens; these see everything.

    What one slot learns of another has passed a bottleneck, and so has all that is said of their combination: a
    residual MLP reads the bottleneck tokens alone, beside the plain sum of the slots' projections, as in late fusion.
    `features[slot]`: `Frames`, or float (B, D_slot), a sequence of one; `present`: bool (B, M). Returns (B, H), and
    weights (B, M): the bottlenecks' attention that reaches each slot through the layers (`rollout`), zero where
    missing, with a sum of one where anything is present.

    Source: Nagrani et al. 2021, "Attention bottlenecks for multimodal fusion", section 3.2, with two differences: there
    each modality writes its own copy of the bottlenecks and the copies are averaged, here one softmax over all slots
    weighs them; and the answer is read from the bottlenecks instead of a class token of each modality.
    """

    name = "bottleneck"
    reads_frames = True

    def __init__(
        self,
        widths: Mapping[str, int],
        hidden_dim: int = 128,
        dropout: float = 0.3,
        attention_heads: int = 4,
        n_bottlenecks: int = 4,
        n_layers: int = 2,
    ):
        super().__init__(widths, hidden_dim, dropout)
        at_least_one(n_bottlenecks=n_bottlenecks, n_layers=n_layers)
        self.project = SlotProjections(widths, hidden_dim, dropout)
        self.sequence = SlotSequences(len(widths), hidden_dim)
        self.bottlenecks = nn.Parameter(0.02 * torch.randn(n_bottlenecks, hidden_dim))
        self.attend = AttentionStack(n_layers, hidden_dim, attention_heads, dropout)
        self.interact = Interaction(n_bottlenecks * hidden_dim, hidden_dim, dropout)

    def fuse(self, features: Mapping[str, Tensor | Frames], present: Tensor) -> Fused:
        slot_tokens: Tensor = self.project(pooled_vectors(features), present)
        tokens: Tokens = self.sequence(slot_tokens, features, present, self.project)
        n, size = len(self.bottlenecks), present.shape[0]
        # the bottlenecks stand first, as slot -1; each starts with the attention of a whole slot
        states = torch.cat([self.bottlenecks.expand(size, -1, -1), tokens.states], dim=1)
        real = torch.cat([tokens.real.new_ones(size, n), tokens.real], dim=1)
        bias = torch.cat([tokens.log_share.new_zeros(size, n), tokens.log_share], dim=1)[:, None]
        slot = torch.cat([tokens.slot.new_full((n,), -1), tokens.slot])
        sees = (slot[:, None] == slot) | (slot[:, None] < 0) | (slot < 0)
        states, looked = self.attend(states, real[:, None] & sees, bias, n)
        shares = tokens.slot_shares(rollout(states.new_full((size, n), 1 / n), looked)[:, n:])
        return Fused(slot_tokens.sum(dim=1) + self.interact(states.flatten(start_dim=1)), slot_tokens, shares)
