"""The fusion strategies, by name. Adding one is adding a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from featurize.errors import UnknownName
from fusion.modules.base import Fused, MultimodalFusion
from fusion.modules.gated import GatedFusion
from fusion.modules.late import ConcatFusion, LateFusion

__all__ = ["ConcatFusion", "Fused", "GatedFusion", "LateFusion", "MultimodalFusion", "build_fusion"]

FUSIONS: dict[str, type[MultimodalFusion]] = {"late": LateFusion, "gated": GatedFusion}


def build_fusion(name: str, widths: Mapping[str, int], hidden_dim: int, dropout: float) -> MultimodalFusion:
    """A new fusion over slots of these widths. Raises `UnknownName`, which lists the known ones."""
    if name not in FUSIONS:
        raise UnknownName("fusion", name, FUSIONS)
    return FUSIONS[name](widths, hidden_dim, dropout)
