"""Other people's tracking tools, told what a run folder holds anyway; none unless it is asked for.

Where runs go, and by whose leave, each tool reads from its own environment variables; nothing of that is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec

from featurize.errors import ConfigError, UnknownName
from fusion.tracking.base import Tracker
from fusion.tracking.mlflow import MlflowTracker
from fusion.tracking.tensorboard import TensorBoardTracker
from fusion.tracking.trackio import TrackioTracker
from fusion.tracking.wandb import WandbTracker

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def open_trackers(names: Iterable[str | Tracker]) -> list[Tracker]:
    """Trackers by name, each once; what is a tracker already stays as it is.

    Raises `UnknownName`, and `ConfigError` where a package is not installed.
    """
    found: list[Tracker] = []
    for name in dict.fromkeys(names):
        if isinstance(name, Tracker):
            found.append(name)
            continue
        if name not in TRACKERS:
            raise UnknownName("tracker", name, TRACKERS)
        package = TRACKERS[name].package
        if find_spec(package) is None:
            raise ConfigError(
                f"--track {name} needs {package}: pip install 'triad-fusion[{package}]', or leave it away."
            )
        found.append(TRACKERS[name]())
    return found
