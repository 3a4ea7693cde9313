"""Names of fusions, for those who must not wait for torch: what comes with this package, and what others install."""

from __future__ import annotations

from featurize.user_code import UserClasses
from fusion.config import FUSION_NAMES


def _base() -> type:
    from fusion.modules.base import MultimodalFusion

    return MultimodalFusion


USER_FUSIONS = UserClasses("fusion", "triad_fusion.fusions", _base)


def known_fusions() -> list[str]:
    """Names of fusions: those that come with this package, then those of installed packages and of named code."""
    return [*FUSION_NAMES, *(name for name in USER_FUSIONS.installed() if name not in FUSION_NAMES)]
