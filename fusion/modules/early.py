"""Early fusion: all slots in one sequence, read by one encoder."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fusion.modules.attention import AttentionPooling, AttentionStack, rollout
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


class EarlyFusion(MultimodalFusion):
    """Frames of all slots in one sequence, and a shared transformer over it, in which everything sees everything.

    A learned query pools what comes out; a residual MLP adds it to the plain sum of the slots' projections, as in late
    fusion. Frames may be any encoder's, or hardly processed at all: mel patches, piano-roll columns, token embeddings.
    `features[slot]`: `Frames`, or float (B, D_slot), a sequence of one; `present`: bool (B, M). Returns (B, H), and
    weights (B, M): the attention that reaches each slot through pooling and layers (`rollout`), zero where missing,
    with a sum of one where anything is present.

    Sources: one encoder over patches with marks of their place, Dosovitskiy et al. 2021, "An image is worth 16x16
    words", section 3.1, and over mel patches, Gong et al. 2021, "AST: Audio spectrogram transformer", section 2.1; over
    several modalities at once, Nagrani et al. 2021, "Attention bottlenecks for multimodal fusion", section 3.2.
    """

    name = "early"
    reads_frames = True

    def __init__(
        self,
        widths: Mapping[str, int],
        hidden_dim: int = 128,
        dropout: float = 0.3,
        attention_heads: int = 4,
        n_layers: int = 2,
    ):
        super().__init__(widths, hidden_dim, dropout)
        at_least_one(n_layers=n_layers)
        self.project = SlotProjections(widths, hidden_dim, dropout)
        self.sequence = SlotSequences(len(widths), hidden_dim)
        self.attend = AttentionStack(n_layers, hidden_dim, attention_heads, dropout)
        self.pool = AttentionPooling(hidden_dim, attention_heads, dropout)
        self.interact = Interaction(hidden_dim, hidden_dim, dropout)

    def fuse(self, features: Mapping[str, Tensor | Frames], present: Tensor) -> Fused:
        slot_tokens: Tensor = self.project(pooled_vectors(features), present)
        tokens: Tokens = self.sequence(slot_tokens, features, present, self.project)
        allowed, bias = tokens.real[:, None], tokens.log_share[:, None]
        states, looked = self.attend(tokens.states, allowed, bias)
        pooled, read = self.pool(states, allowed, bias)
        shares = tokens.slot_shares(rollout(read, looked))
        return Fused(slot_tokens.sum(dim=1) + self.interact(pooled), slot_tokens, shares)
