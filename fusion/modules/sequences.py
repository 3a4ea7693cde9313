"""All slots as one sequence of tokens: what `early`, `cross_attention` and `bottleneck` look at.

A slot's tokens are its vector and, where the store has them, its frames. So a slot without frames is a sequence of
one, and so is a present slot with no real frame. A token is the slot's projection of a vector or a frame, normalized,
plus a learned mark of its slot. A frame also has its place in the segment, (t + 0.5) / n for frame t of n, as sines and
cosines (Vaswani et al. 2017, "Attention is all you need", section 3.5, in parts of a segment instead of steps).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from fusion.modules.base import Frames, SlotProjections

N_WAVES = 6  # wavelengths of 2, 1, 1/2, … 1/16 of a segment


@dataclass(frozen=True)
class Tokens:
    """states: (B, S, H). real: bool (B, S), false where a slot is missing or has no such frame. slot: int (S,), below
    n_slots.

    log_share: (B, S), minus the logarithm of how many real tokens the slot has. Added to attention scores, it lets all
    slots start with the same share of attention, however many frames they have.
    """

    states: Tensor
    real: Tensor
    slot: Tensor
    log_share: Tensor
    n_slots: int

    def slot_shares(self, shares: Tensor) -> Tensor:
        """Shares of tokens (B, S), zero where not real, to shares of slots (B, M) with a sum of one, or of nothing."""
        summed = shares.float() @ one_hot(self.slot, self.n_slots).float()
        return summed / summed.sum(dim=1, keepdim=True).clamp(min=torch.finfo(summed.dtype).tiny)


class SlotSequences(nn.Module):
    """Slot tokens (B, M, H), as `project` gives them, and the slots' frames to `Tokens`."""

    waves: Tensor

    def __init__(self, n_slots: int, hidden_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.marks = nn.Parameter(0.1 * torch.randn(n_slots, hidden_dim))
        self.place = nn.Linear(2 * N_WAVES, hidden_dim)
        self.register_buffer("waves", math.pi * 2.0 ** torch.arange(N_WAVES), persistent=False)

    def forward(
        self,
        slot_tokens: Tensor,
        features: Mapping[str, Tensor | Frames],
        present: Tensor,
        project: SlotProjections,
    ) -> Tokens:
        """All slots' frames as one sequence, states (B, S, H). slot_tokens: (B, M, H). present: bool (B, M)."""
        states, real, slot, log_share = [], [], [], []
        for index, feature in enumerate(features[name] for name in project.slots):
            here = present[:, index : index + 1]
            of_slot, is_real = self.norm(slot_tokens[:, index : index + 1]), here
            if isinstance(feature, Frames):
                frame_is_real = feature.mask & here
                projected = project.frames(project.slots[index], feature.values, frame_is_real)
                of_slot = torch.cat([of_slot, self.norm(projected) + self._places(feature.mask)], dim=1)
                is_real = torch.cat([here, frame_is_real], dim=1)
            states.append(of_slot + self.marks[index])
            real.append(is_real)
            slot.append(torch.full((is_real.shape[1],), index, device=here.device))
            log_share.append(-is_real.sum(dim=1, keepdim=True).clamp(min=1).log().expand_as(is_real))
        joined = (torch.cat(states, dim=1), torch.cat(real, dim=1), torch.cat(slot), torch.cat(log_share, dim=1))
        return Tokens(*joined, n_slots=len(states))

    def _places(self, mask: Tensor) -> Tensor:
        """Where each frame lies in its segment: bool (B, T) to (B, T, H)."""
        steps = torch.arange(mask.shape[1], device=mask.device)
        angles = ((steps + 0.5) / mask.sum(dim=1, keepdim=True).clamp(min=1))[:, :, None] * self.waves
        places: Tensor = self.place(torch.cat([angles.sin(), angles.cos()], dim=2))
        return places
