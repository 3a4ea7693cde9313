"""Low-rank tensor fusion: every product of one number from each slot, at the price of a few matrices."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor, nn

from fusion.modules.base import Fused, MultimodalFusion, SlotProjections, at_least_one
from fusion.modules.dropout import ByteDropout

FACTOR_SCALE = 1.0  # standard deviation of a factor about one at the start
TERM_SCALE = 0.25  # of a term: all of them start about as strong as the linear path


class LowRankFusion(MultimodalFusion):
    """A weight tensor on the outer product of all slots, in `rank` terms, beside the plain sum of the projections.

    `features[slot]`: float (B, D_slot); `present`: bool (B, M). Returns (B, H). A missing slot is its learned null
    embedding, which starts as zero: then only the 1 beside it counts, and the products of the other slots remain.

    Sources: the outer product of slots with a 1 appended, so that it holds the products of fewer slots, too, Zadeh et
    al. 2017, "Tensor fusion network for multimodal sentiment analysis", section 4.2; its weights as a sum of rank-one
    tensors, so that the product is never built, Liu et al. 2018, "Efficient low-rank multimodal fusion with
    modality-specific factors", section 3.
    """

    name = "low_rank"

    def __init__(self, widths: Mapping[str, int], hidden_dim: int = 128, dropout: float = 0.3, rank: int = 4):
        super().__init__(widths, hidden_dim, dropout)
        at_least_one(rank=rank)
        self.project = SlotProjections(widths, hidden_dim, dropout)
        self.interact = LowRankProduct(len(widths), hidden_dim, rank, dropout)

    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Fused:
        tokens: Tensor = self.project(features, present)
        return Fused(tokens.sum(dim=1) + self.interact(tokens), tokens)


class LowRankProduct(nn.Module):
    """M tokens of H numbers, each with a 1 appended, to Σ_r λ_r Π_m (token_m · factor_mr): (B, M, H) to (B, H).

    It equals the tensor Σ_r λ_r ⊗_m factor_mr applied to the outer product of all tokens.
    """

    def __init__(self, n_slots: int, hidden_dim: int, rank: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.factors = nn.Parameter(
            FACTOR_SCALE / hidden_dim**0.5 * torch.randn(n_slots, rank, hidden_dim + 1, hidden_dim)
        )
        with torch.no_grad():
            self.factors[:, :, -1] = 1.0  # near one, not near zero: a product of several small numbers learns nothing
        self.terms = nn.Parameter(torch.full((rank,), TERM_SCALE))
        self.dropout = ByteDropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, M, H) to (B, H)."""
        extended = torch.nn.functional.pad(self.norm(tokens), (0, 1), value=1.0)
        factors = torch.einsum("bmi,mrio->mbro", extended, self.factors)
        product = self.dropout(reduce(torch.mul, factors))
        return torch.einsum("bro,r->bo", product, self.terms)
