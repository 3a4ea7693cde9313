"""The fusion contract: slot vectors and their presence in, one vector per segment out.

Conventions: B batch, M slots in a fixed order, D_slot feature width, T frames, H hidden. `present` is bool (B, M),
columns in the order of `widths`. What stands in a slot that is not present, or in a frame that is not real, is never
read: not a wrong number, not NaN, not its sign.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fusion.device import not_known_yet
from fusion.modules.dropout import ByteDropout

PROJECTION_SCALE = 0.1  # standard deviation of a projected unit-variance vector at the start
MOST_LENGTHS = 16  # of what is projected, whatever is present
TILE_ROWS = 32  # lengths are multiples of it: processors take products in tiles of 16 rows or 32
RESIDUAL_SCALE = 0.05  # of the last layer of an interaction MLP: it starts as almost nothing beside the linear path


@dataclass(frozen=True)
class Frames:
    """A slot's features with a sequence. pooled: float (B, D), its vector. values: float (B, T, D), in order of time.

    mask: bool (B, T), true where a frame is real: the first ones, and perhaps none at all.
    """

    pooled: Tensor
    values: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Standardized:
    """A slot's vectors as its model's own standardization would give them, bfloat16 or float32 (B, D)."""

    values: Tensor


Inputs = Tensor | Frames | Standardized  # what a batch may hold for a slot: (B, D), with frames, standardized before


@dataclass(frozen=True)
class Fused:
    """vector: (B, H). embeddings: each slot's own, (B, M, H), before it met another.

    weights: how much each slot counted, (B, M), zero where missing; `None` where none are.
    """

    vector: Tensor
    embeddings: Tensor
    weights: Tensor | None = None


class MultimodalFusion(nn.Module, ABC):
    """Base of all fusions. Implement `fuse`; `forward` gives its vector."""

    name: ClassVar[str]
    reads_frames: ClassVar[bool] = False  # where true, `features[slot]` may be `Frames` instead

    def __init__(self, widths: Mapping[str, int], hidden_dim: int, dropout: float):
        """widths: D of every slot, in slot order. Raises `ValueError` without any slot."""
        super().__init__()
        if not widths:
            raise ValueError("a fusion needs at least one slot")
        self.slots = tuple(widths)
        self.hidden_dim = hidden_dim

    @abstractmethod
    def fuse(self, features: Mapping[str, Tensor], present: Tensor) -> Fused:
        """features[slot]: float (B, D_slot). Raises `ValueError` on an unknown or missing slot."""

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """One vector a segment, (B, H); as `fuse`, without what else it tells. present: bool (B, M)."""
        return self.fuse(features, present).vector


class SlotProjections(nn.Module):
    """Each slot's vector projected to H, or its learned null embedding: (B, D_slot) for each slot to (B, M, H)."""

    def __init__(self, widths: Mapping[str, int], hidden_dim: int, dropout: float):
        super().__init__()
        self.slots = tuple(widths)
        self.projections = nn.ModuleDict()
        for slot, width in widths.items():
            projection = nn.Linear(width, hidden_dim)
            # small: early stopping then keeps what the data cannot pay for near zero
            nn.init.normal_(projection.weight, std=PROJECTION_SCALE / width**0.5)
            self.projections[module_name(slot)] = projection
        self.nulls = nn.Parameter(torch.zeros(len(widths), hidden_dim))
        self.dropout = ByteDropout(dropout)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """A token a slot, (B, M, H); a learned one where `present`, bool (B, M), is false.

        Raises `ValueError` on other slots.
        """
        if set(features) != set(self.slots):
            raise ValueError(f"expected the slots {', '.join(self.slots)}, got {', '.join(features)}")
        if not_known_yet(present):
            return self._everything(features, present)
        tokens = []
        for index, slot in enumerate(self.slots):
            project, null = self.projections[module_name(slot)], self.nulls[index]
            # what is missing is not multiplied: with holes and dropped slots, half of all products
            rows = present[:, index].nonzero()[:, 0]
            vectors = self.dropout(features[slot].index_select(0, rows))
            projected = project_padded(project, vectors, len(present)).to(null.dtype)
            tokens.append(null.expand(len(present), -1).index_copy(0, rows, projected))
        return torch.stack(tokens, dim=1)

    def _everything(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """As `forward`, in shapes that do not depend on what is present, and with few steps: each is a GPU's kernel."""
        projected, missing = [], ~present
        for index, slot in enumerate(self.slots):
            known = features[slot].masked_fill(missing[:, index : index + 1], 0.0)  # before it: 0 × NaN is NaN
            projected.append(self.projections[module_name(slot)](self.dropout(known)))
        return torch.where(present[:, :, None], torch.stack(projected, dim=1), self.nulls)

    def frames(self, slot: str, values: Tensor, real: Tensor) -> Tensor:
        """A slot's frames (B, T, D), projected as its vectors: (B, T, H), zeros where `real`, bool (B, T), is false."""
        # one draw for all frames of a row: a frame is much like its neighbours, which would tell what was dropped
        values = values * self.dropout(values.new_ones(values.shape[0], 1, values.shape[2]))
        if not_known_yet(real):
            unreal = ~real[:, :, None]
            everything: Tensor = self.projections[module_name(slot)](values.masked_fill(unreal, 0.0))
            return everything.masked_fill(unreal, 0.0)
        projected = project_padded(self.projections[module_name(slot)], values[real], real.numel())
        return projected.new_zeros(*real.shape, projected.shape[1]).masked_scatter(real[:, :, None], projected)


def project_padded(project: nn.Module, vectors: Tensor, most: int) -> Tensor:
    """`project` of (n, D), computed with zeros behind it, so that of all n up to `most` there are few lengths.

    Dropped slots are drawn anew for each batch, so that nearly every product would have a shape of its own. For each,
    oneDNN, which multiplies bfloat16 on CPUs, compiles a kernel and keeps it: some milliseconds and half a MiB.
    """
    step = TILE_ROWS * max(1, math.ceil(most / (TILE_ROWS * MOST_LENGTHS)))
    projected: Tensor = project(pad(vectors, (0, 0, 0, -len(vectors) % step)))
    return projected[: len(vectors)]


class Interaction(nn.Sequential):
    """What the linear path misses: LayerNorm, hidden layer, GELU, dropout, output. (B, width) to (B, H)."""

    def __init__(self, width: int, hidden_dim: int, dropout: float):
        last = nn.Linear(hidden_dim, hidden_dim)
        nn.init.normal_(last.weight, std=RESIDUAL_SCALE)  # not zero: from there an XOR is never found
        super().__init__(nn.LayerNorm(width), nn.Linear(width, hidden_dim), nn.GELU(), ByteDropout(dropout), last)


def pooled(feature: Inputs) -> Tensor:
    """A slot's vectors (B, D_slot)."""
    if isinstance(feature, Frames):
        return feature.pooled
    return feature.values if isinstance(feature, Standardized) else feature


def pooled_vectors(features: Mapping[str, Tensor | Frames]) -> dict[str, Tensor]:
    """Each slot's vectors (B, D_slot), with or without frames beside them."""
    return {slot: pooled(feature) for slot, feature in features.items()}


def at_least_one(**options: int) -> None:
    """Raise `ValueError` where an option is not a whole number of at least 1."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")


def module_name(slot: str) -> str:
    """Slots may be called what they like; a module name may hold no dot."""
    return "slot_" + slot.replace("%", "%25").replace(".", "%2E")
