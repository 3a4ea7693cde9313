"""Multi-head attention that may have nothing to look at, and says where it looked.

Conventions: B batch, S positions, Q of them that look and K that are looked at, H hidden. `allowed` is bool (B, Q, K)
or broadcasts to it; who may look at nothing gets zeros, not NaN, and passes no gradient on. Weights are the mean over
heads, before dropout: (B, Q, K), each row summing to one, or to zero where nothing was allowed.

Sources: Vaswani et al. 2017, "Attention is all you need", section 3.2; normalization before each block, Xiong et al.
2020, "On layer normalization in the transformer architecture", section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fusion.modules.dropout import ByteDropout


class Attention(nn.Module):
    """Raises `ValueError` where `n_heads` does not divide `hidden_dim`."""

    def __init__(self, hidden_dim: int, n_heads: int, dropout: float):
        super().__init__()
        if n_heads < 1 or hidden_dim % n_heads:
            raise ValueError(f"attention_heads is {n_heads}; expected a divisor of hidden_dim, {hidden_dim}")
        self.n_heads = n_heads
        self.to_query = nn.Linear(hidden_dim, hidden_dim)
        self.to_key_value = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.to_output = nn.Linear(hidden_dim, hidden_dim)
        for linear in (self.to_query, self.to_key_value, self.to_output):
            # as large out as in: PyTorch's own start passes a third on, value and output together, and a bottleneck,
            # which has nothing but what it looks at, then finds no XOR
            nn.init.normal_(linear.weight, std=hidden_dim**-0.5)
            nn.init.zeros_(linear.bias)
        self.dropout = ByteDropout(dropout)

    def forward(
        self, looking: Tensor, looked_at: Tensor, allowed: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, Q, H) and (B, K, H) to (B, Q, H) and weights. bias: added to the scores, broadcasts to (B, Q, K)."""
        query = self._heads(self.to_query(looking))
        key, value = (self._heads(half) for half in self.to_key_value(looked_at).chunk(2, dim=2))
        scores = query @ key.transpose(2, 3) / key.shape[3] ** 0.5
        if bias is not None:
            scores = scores + bias[:, None]
        # the lowest finite number, not infinity: the softmax of a row of infinities is NaN
        scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=3).masked_fill(~allowed[:, None], 0.0)
        attended = (self.dropout(weights) @ value).transpose(1, 2).flatten(start_dim=2)
        return self.to_output(attended), weights.mean(dim=1)

    def _heads(self, states: Tensor) -> Tensor:
        """(B, S, H) to (B, heads, S, H / heads)."""
        heads: Tensor = states.unflatten(2, (self.n_heads, -1))
        return heads.transpose(1, 2)


class AttentionLayer(nn.Module):
    """Attention, then a hidden layer, each behind a normalization and beside a residual path."""

    def __init__(self, hidden_dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.attention = Attention(hidden_dim, n_heads, dropout)
        self.think = nn.Sequential(
            nn.LayerNorm(hidden_dim),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            ByteDropout(dropout),
            nn.Linear(hidden_dim, hidden_dim),
        )

    def forward(
        self, states: Tensor, allowed: Tensor, bias: Tensor | None = None, n_looking: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, S, H) to (B, Q, H), the first `n_looking` positions or all, and weights (B, Q, S)."""
        normed = self.norm(states)
        attended, weights = self.attention(normed[:, :n_looking], normed, allowed, bias)
        states = states[:, :n_looking] + attended
        return states + self.think(states), weights


class AttentionStack(nn.Module):
    """Attention layers one after the other, and what they looked at."""

    def __init__(self, n_layers: int, hidden_dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(AttentionLayer(hidden_dim, n_heads, dropout) for _ in range(n_layers))

    def forward(
        self, states: Tensor, allowed: Tensor, bias: Tensor | None = None, n_read: int | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(B, S, H) to (B, Q, H), and the weights of each layer. n_read: who is read in the end, so many or all.

        allowed has a row for each position, or one for all.
        """
        looked = []
        for number, layer in enumerate(self.layers, start=1):
            n_looking = n_read if number == len(self.layers) else None
            states, weights = layer(states, allowed[:, :n_looking], bias, n_looking)
            looked.append(weights)
        return states, looked


class AttentionPooling(nn.Module):
    """One learned query looks at all positions: (B, S, H) to (B, H), and weights (B, S).

    Source: Lee et al. 2019, "Set transformer", section 3.2.
    """

    def __init__(self, hidden_dim: int, n_heads: int, dropout: float):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, hidden_dim))
        self.norm = nn.LayerNorm(hidden_dim)
        self.attention = Attention(hidden_dim, n_heads, dropout)

    def forward(self, states: Tensor, allowed: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """states: (B, T, H). allowed: bool (B, T). Returns a vector (B, H), and what each state weighed (B, T)."""
        pooled, weights = self.attention(self.query.expand(states.shape[0], -1, -1), self.norm(states), allowed, bias)
        return pooled[:, 0], weights[:, 0]


def rollout(read: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """Back through the layers, shares of the last states as shares of the first: (B, Q) to (B, S).

    A layer is taken to keep half of a position, and to bring the other half from where it looked; all of it stays where
    it could look at nothing. layers: weights, first to last, as `AttentionStack` gives them. Source: Abnar and Zuidema
    2020, "Quantifying attention flow in transformers", section 3.
    """
    for weights in reversed(layers):
        brought = 0.5 * weights
        kept = read * (1 - brought.sum(dim=2))
        read = pad(kept, (0, weights.shape[2] - weights.shape[1])) + (read[:, None] @ brought)[:, 0]
    return read
