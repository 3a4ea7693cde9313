"""Raw segments to features, from Python as by `cli`: the commands call these functions.

    import featurize

    featurize.ingest("my-songs")                                # features.zarr, and a first split
    featurize.featurize("features.zarr", encoder="mel_stats")

Importing this package imports no torch; the first of its functions that is used does (`featurize.api`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurize.api import featurize, ingest
    from featurize.encoders.check import check_encoder
    from featurize.user_code import allow_code

__all__ = ["allow_code", "check_encoder", "featurize", "ingest"]

_ELSEWHERE = {"allow_code": "featurize.user_code", "check_encoder": "featurize.encoders.check"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "featurize.api")), name)


def __dir__() -> list[str]:
    return __all__
