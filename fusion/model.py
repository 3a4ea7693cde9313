"""Standardize, fuse, predict: the whole of what is trained on stored vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fusion.modules.base import MultimodalFusion, module_name
from fusion.targets import Target


class FusionModel(nn.Module):
    """A fusion with a linear head for each target. Standardization travels with the weights."""

    def __init__(self, fusion: MultimodalFusion, widths: Mapping[str, int], targets: Sequence[Target], dropout: float):
        super().__init__()
        self.fusion = fusion
        self.standardize = nn.ModuleDict({f"slot_{i}": Standardize(width) for i, width in enumerate(widths.values())})
        self.slots = tuple(widths)
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList([nn.Linear(fusion.hidden_dim, target.n_outputs) for target in targets])

    def standardizers(self) -> list[Standardize]:
        """One for each slot, in slot order."""
        return [module for module in self.standardize.values() if isinstance(module, Standardize)]

    def slot_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Slot to the weights that only it uses: those of modules that bear its name."""
        found: dict[str, list[nn.Parameter]] = {slot: [] for slot in self.slots}
        slot_of = {module_name(slot): slot for slot in self.slots}
        for name, parameter in self.fusion.named_parameters():
            for part in name.split("."):
                if part in slot_of:
                    found[slot_of[part]].append(parameter)
        return found

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Logits (B, K) for each target, in target order; and the slot weights (B, M) where the fusion has them."""
        standardized = {slot: self.standardize[f"slot_{i}"](features[slot]) for i, slot in enumerate(self.slots)}
        fused = self.fusion.fuse(standardized, present)
        hidden = self.dropout(fused.vector)
        return [head(hidden) for head in self.heads], fused.weights


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
        deviation = vectors.std(dim=0, correction=0)
        # a column that is constant up to float16 rounding would otherwise be blown up to unit variance
        floor = 1e-3 * self.mean.abs() + 1e-6
        self.scale.copy_(torch.where(deviation > floor, deviation, torch.inf))

    def forward(self, vectors: Tensor) -> Tensor:
        # eight standard deviations: beyond that a value says "strange", not "how strange"
        return ((vectors.float() - self.mean) / self.scale).clamp(-8.0, 8.0)
