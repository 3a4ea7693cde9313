"""Cross-modal attention: the text looks at audio and MIDI, the audio at MIDI."""

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


class CrossModalAttention(MultimodalFusion):
    """Each slot looks at the slots behind it: text at audio, MIDI and the rest, audio at MIDI and the rest.

    Behind is meant in slot order. No slot looks at itself; the last one, and so a single one, looks at nothing. A
    learned query pools what all slots have become, and a residual MLP adds it to the plain sum of the slots'
    projections, as in late fusion. `features[slot]`: `Frames`, or float (B, D_slot), a sequence of one; `present`: bool
    (B, M). Returns (B, H), and weights (B, M): the attention that reaches each slot through pooling and layers
    (`rollout`), zero where missing, with a sum of one where anything is present.

    Source: Tsai et al. 2019, "Multimodal transformer for unaligned multimodal language sequences", section 3, with
    three differences: two slots look one way only; all that a slot may look at competes in one softmax, so that weights
    can be compared; and all slots share a layer, since their projections are their own.
    """

    name = "cross_attention"
    reads_frames = True

    def __init__(
        self,
        widths: Mapping[str, int],
        hidden_dim: int = 128,
        dropout: float = 0.3,
        attention_heads: int = 4,
        n_layers: int = 1,
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
        bias = tokens.log_share[:, None]
        allowed = tokens.real[:, None] & (tokens.slot > tokens.slot[:, None])
        states, looked = self.attend(tokens.states, allowed, bias)
        pooled, read = self.pool(states, tokens.real[:, None], bias)
        shares = tokens.slot_shares(rollout(read, looked))
        return Fused(slot_tokens.sum(dim=1) + self.interact(pooled), slot_tokens, shares)
