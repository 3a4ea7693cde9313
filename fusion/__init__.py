"""Features to a result, from Python as by `cli`: the commands call these functions.

    import fusion

    run = fusion.fit("features.zarr", fusion="gated", target="mood", seeds=3)
    fusion.predict(run, "features.zarr")        # a pyarrow table

Importing this package imports no torch; the first of its functions that is used does (`fusion.api`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurize.user_code import allow_code
    from fusion.api import ablate, fit, open_run, predict, to_torch
    from fusion.modules.check import check_fusion
    from fusion.predictor import Predictor

__all__ = ["Predictor", "ablate", "allow_code", "check_fusion", "fit", "open_run", "predict", "to_torch"]

_ELSEWHERE = {
    "Predictor": "fusion.predictor",
    "allow_code": "featurize.user_code",
    "check_fusion": "fusion.modules.check",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "fusion.api")), name)


def __dir__() -> list[str]:
    return __all__
