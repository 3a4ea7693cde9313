"""Standardize, fuse, predict: the whole of what is trained on stored vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fusion.modules.base import Frames, MultimodalFusion, Standardized, module_name
from fusion.modules.dropout import ByteDropout
from fusion.targets import Target

Inputs = Tensor | Frames | Standardized  # what a slot may hold: (B, D_slot), with frames, or standardized before


class FusionModel(nn.Module):
    """A fusion with a linear head for each target. Standardization travels with the weights.

    frame_slots: those that have frames. A fusion that reads none is given their vectors.
    """

    def __init__(
        self,
        fusion: MultimodalFusion,
        widths: Mapping[str, int],
        targets: Sequence[Target],
        dropout: float,
        frame_slots: Sequence[str] = (),
    ):
        super().__init__()
        self.fusion = fusion
        self.slots = tuple(widths)
        self.frame_slots = tuple(slot for slot in widths if slot in frame_slots and fusion.reads_frames)
        self.standardize = nn.ModuleDict({f"slot_{i}": Standardize(width) for i, width in enumerate(widths.values())})
        self.standardize_frames = nn.ModuleDict(  # their own: frames vary more than the vectors that are their means
            {f"slot_{i}": Standardize(widths[slot]) for i, slot in enumerate(widths) if slot in self.frame_slots}
        )
        self.dropout = ByteDropout(dropout)
        self.heads = nn.ModuleList([nn.Linear(fusion.hidden_dim, target.n_outputs) for target in targets])

    def fit_standardization(self, slot: str, vectors: Tensor, frames: Tensor | None = None) -> None:
        """Of present training rows: vectors (n, D), and for one of `frame_slots` all their real frames (n, D)."""
        key = f"slot_{self.slots.index(slot)}"
        for modules, values in ((self.standardize, vectors), (self.standardize_frames, frames)):
            if values is not None:
                standardize = modules[key]
                assert isinstance(standardize, Standardize)
                standardize.fit(values)

    def slot_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Slot to the weights that only it uses: those of modules that bear its name."""
        found: dict[str, list[nn.Parameter]] = {slot: [] for slot in self.slots}
        slot_of = {module_name(slot): slot for slot in self.slots}
        for name, parameter in self.fusion.named_parameters():
            for part in name.split("."):
                if part in slot_of:
                    found[slot_of[part]].append(parameter)
        return found

    def forward(self, features: Mapping[str, Inputs], present: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Logits (B, K) for each target, in target order; and the slot weights (B, M) where the fusion has them.

        Raises `ValueError` where a slot had frames in training and has none now.
        """
        logits, weights, _ = self.with_embeddings(features, present)
        return logits, weights

    def with_embeddings(
        self, features: Mapping[str, Inputs], present: Tensor
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """As `forward`, and each slot's own embedding (B, M, H)."""
        values = [feature.values for feature in features.values() if isinstance(feature, Standardized)]
        half = any(value.dtype == torch.bfloat16 for value in values)
        with torch.autocast(present.device.type, torch.bfloat16) if half else nullcontext():
            fused = self.fusion.fuse(self.standardized(features), present)
            hidden = self.dropout(fused.vector)
            return [head(hidden) for head in self.heads], fused.weights, fused.embeddings

    def standardized(self, features: Mapping[str, Inputs]) -> dict[str, Any]:
        """What the fusion takes: for each slot its vectors, or `Frames` for one of `frame_slots`."""
        found: dict[str, Any] = {}
        for index, slot in enumerate(self.slots):
            feature, key = features[slot], f"slot_{index}"
            if isinstance(feature, Standardized):
                found[slot] = feature.values
                continue
            found[slot] = self.standardize[key](feature.pooled if isinstance(feature, Frames) else feature)
            if slot in self.frame_slots:
                if not isinstance(feature, Frames):
                    raise ValueError(f"slot {slot} had frames in training; these data were loaded without them")
                frames = self.standardize_frames[key](feature.values)
                found[slot] = Frames(found[slot], frames, feature.mask)
        return found


class Standardize(nn.Module):
    """(x − mean) / scale with the training split's statistics; columns that never vary there stay zero."""

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, vectors: Tensor) -> None:
        """vectors: (n, D), present training rows only."""
        if len(vectors) == 0:
            return
        vectors = vectors.float()
        self.mean.copy_(vectors.mean(dim=0))
        deviation = (vectors - self.mean).square_().mean(dim=0).sqrt_()  # several times as fast as `std`
        # a column that is constant up to float16 rounding would otherwise be blown up to unit variance
        floor = 1e-3 * self.mean.abs() + 1e-6
        self.scale.copy_(torch.where(deviation > floor, deviation, torch.inf))

    def forward(self, vectors: Tensor) -> Tensor:
        # eight standard deviations: beyond that a value says "strange", not "how strange"
        return ((vectors.float() - self.mean) / self.scale).clamp(-8.0, 8.0)
