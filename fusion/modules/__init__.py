"""The fusion strategies, by name. Adding one is adding a file and a line here.

Others come from the user's own file, `my_fusion.py:MyFusion`, and from installed packages (`featurize.user_code`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from featurize.errors import ConfigError, UnknownName
from featurize.user_code import is_ours
from fusion.known_fusions import USER_FUSIONS
from fusion.modules.base import Frames, Fused, MultimodalFusion
from fusion.modules.bottleneck import BottleneckFusion
from fusion.modules.check import check_fusion
from fusion.modules.cross_attention import CrossModalAttention
from fusion.modules.early import EarlyFusion
from fusion.modules.gated import GatedFusion
from fusion.modules.late import ConcatFusion, LateFusion
from fusion.modules.low_rank import LowRankFusion

__all__ = [
    "BottleneckFusion",
    "ConcatFusion",
    "CrossModalAttention",
    "EarlyFusion",
    "Frames",
    "Fused",
    "GatedFusion",
    "LateFusion",
    "LowRankFusion",
    "MultimodalFusion",
    "build_fusion",
    "check_fusion",
    "fusion_class",
    "sound_fusion",
]

FUSIONS: dict[str, type[MultimodalFusion]] = {
    "late": LateFusion,
    "early": EarlyFusion,
    "cross_attention": CrossModalAttention,
    "gated": GatedFusion,
    "bottleneck": BottleneckFusion,
    "low_rank": LowRankFusion,
}
COMMON = ("widths", "hidden_dim", "dropout", "attention_heads")  # all else that a constructor takes is an option


def fusion_class(name: str) -> type[MultimodalFusion]:
    """The class behind `name`. Raises `UnknownName`, which lists the known ones, `CodeNotAllowed` on others' code."""
    if name in FUSIONS:
        return FUSIONS[name]
    found: type[MultimodalFusion] | None = USER_FUSIONS.find(name)
    if found is None:
        raise UnknownName("fusion", name, [*FUSIONS, *USER_FUSIONS.installed()])
    return found


def sound_fusion(name: str, options: Mapping[str, Any]) -> type[MultimodalFusion]:
    """The class, after a look at whether one of others keeps the contract. Raises `ConfigError` where it does not."""
    cls = fusion_class(name)
    if not is_ours(cls):
        check_fusion(cls, options)
    return cls


def build_fusion(
    name: str,
    widths: Mapping[str, int],
    hidden_dim: int,
    dropout: float,
    attention_heads: int = 4,
    options: Mapping[str, Any] | None = None,
) -> MultimodalFusion:
    """A new fusion over slots of these widths; `attention_heads` where it has any.

    Raises `UnknownName` on an unknown fusion or option, `ConfigError` on a value that the fusion cannot take.
    """
    cls = fusion_class(name)
    parameters = inspect.signature(cls).parameters
    known = [option for option in parameters if option not in COMMON]
    for option in options or {}:
        if option not in known:
            raise UnknownName(f"option of fusion {name}", option, known)
    heads = {"attention_heads": attention_heads} if "attention_heads" in parameters else {}
    values: dict[str, Any] = {"hidden_dim": hidden_dim, "dropout": dropout, **heads, **(options or {})}
    try:
        return cls(widths, **values)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise ConfigError(f"Fusion {name} cannot take {given}: {error}.") from error
