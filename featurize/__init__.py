"""Raw segments to features, from Python as by `cli`: the commands call these functions.

    import featurize

    featurize.ingest("my-songs")                                # features.zarr, and a first split
    featurize.featurize("features.zarr", encoder="mel_stats")

Importing this package imports no torch; `featurize.featurize` does when it is first used (`featurize.api`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurize.api import featurize
    from featurize.encoders.check import check_encoder
    from featurize.ingest_api import ingest
    from featurize.user_code import allow_code

__all__ = ["allow_code", "check_encoder", "featurize", "ingest"]

_HOME = {
    "allow_code": "featurize.user_code",
    "check_encoder": "featurize.encoders.check",
    "featurize": "featurize.api",
    "ingest": "featurize.ingest_api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
