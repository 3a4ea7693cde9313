"""What `import fusion` gives: the work of `cli fit`, `ablate` and `predict` as functions, which the commands call.

store: a path, or a `Store`. config: a path, plain values, a model; or `None`, which is `config.yaml` in the current
folder where there is one, else the defaults, as for `cli`. The options over it are those of `fusion.settings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from featurize.config_reading import Given
from featurize.user_code import allow_code
from fusion import ablation, fitting
from fusion.ablation import Ablation
from fusion.fitting import Run
from fusion.known_fusions import USER_FUSIONS
from fusion.load_run import LoadedRun
from fusion.predictor import Predictor, Segment, open_data
from fusion.report_parts import ReportParts
from fusion.run_json import read_run_json
from fusion.runs import open_run as folder_of
from fusion.settings import Names, listed, settings
from fusion.tracking import Tracker, open_trackers
from stores import open_store
from stores.feature import Feature, Status
from stores.remote import Location, RemotePath, location
from stores.store import Store

__all__ = ["Tensors", "ablate", "allow_code", "fit", "open_run", "predict", "to_torch"]


class Tensors(NamedTuple):
    """vectors: float16 or float32 (N, D), zeros where not present. present: bool (N,)."""

    vectors: Tensor
    present: Tensor


def fit(
    store: Store | str | Location,
    *,
    config: Given = None,
    fusion: str | type | None = None,
    target: Names = None,
    slots: Names = None,
    features: Any = None,
    seeds: int | Sequence[int] | None = None,
    split: str | None = None,
    name: str | None = None,
    runs: str | Path = "runs",
    baselines: bool = True,
    stream: bool | None = None,
    allow_pending: bool = False,
    allow_leak: bool = False,
    overwrite: bool = False,
    report: ReportParts = ReportParts(),  # noqa: B008 (frozen)
    track: Sequence[str | Tracker] = (),
    progress: fitting.Progress | None = None,
) -> Run:
    """Train a fusion head on stored features, each slot alone and the baselines beside it, and write a run.

    split: one of the store's, or a set of folds. track: tools as `cli fit --track` names them, or trackers. Raises
    `TriadError`s where something does not fit.
    """
    found = settings(config, fusion=fusion, target=target, slots=slots, features=features, seeds=seeds, stream=stream)
    return fitting.fit(
        _opened(store),
        found,
        runs=Path(runs),
        name=name,
        split_name=split,
        with_baselines=baselines,
        allow_pending=allow_pending,
        allow_leak=allow_leak,
        overwrite=overwrite,
        report=report,
        trackers=open_trackers(track),
        progress=progress,
    )


def ablate(
    store: Store | str | Location,
    *,
    config: Given = None,
    fusions: str | type | Sequence[str | type] = "all",
    subsets: str | Sequence[Sequence[str]] = "all",
    target: Names = None,
    features: Any = None,
    seeds: int | Sequence[int] | None = None,
    split: str | None = None,
    name: str = "default",
    ablations: str | Path = "ablations",
    workers: int = 0,
    allow_pending: bool = False,
    allow_leak: bool = False,
    track: Sequence[str | Tracker] = (),
    progress: ablation.Progress | None = None,
) -> Ablation:
    """Train fusions on subsets of slots, folds and seeds; compare them in pairs; say what each slot adds.

    fusions: `late,gated`, names and classes, or all. subsets: `text+audio,text`, tuples of slots, or all. What
    `ablations/name` has already is not run again. Raises `TriadError`s where something does not fit.
    """
    return ablation.ablate(
        _opened(store),
        settings(config, target=target, features=features, seeds=seeds),
        fusions=named_fusions(fusions),
        subsets=named_subsets(subsets),
        ablations=Path(ablations),
        name=name,
        split_name=split,
        workers=workers,
        allow_pending=allow_pending,
        allow_leak=allow_leak,
        trackers=open_trackers(track),
        progress=progress,
    )


def named_fusions(fusions: str | type | Sequence[str | type]) -> list[str] | None:
    """`None` for all of those that come with this package."""
    if fusions == "all":
        return None
    several = [fusions] if isinstance(fusions, type) else listed(fusions)  # type: ignore[arg-type]
    return [USER_FUSIONS.use(fusion) for fusion in several]


def named_subsets(subsets: str | Sequence[Sequence[str]]) -> list[list[str]] | None:
    """`None` for all."""
    if subsets == "all":
        return None
    several = listed(subsets) if isinstance(subsets, str) else subsets
    return [
        [slot.strip() for slot in subset.split("+") if slot.strip()] if isinstance(subset, str) else list(subset)
        for subset in several
    ]


def open_run(run: str | Path) -> Run:
    """A run that is finished: its folder, or a name in `runs/`. Raises `UnknownName`."""
    folder = folder_of(Path(run))
    return Run(folder, read_run_json(folder / "metrics.json", ("run", "fusion", "slots", "split", "targets")))


def predict(
    run: Run | LoadedRun | str | Path,
    data: Store | str | Location | Sequence[Segment],
    **options: Any,
) -> pa.Table:
    """What a run's model says: a row a segment, with the columns of `fusion.predictor`.

    data: a store, a folder or table of raw segments, or a list of dicts. options: as `Predictor` takes them. For data
    larger than memory: `Predictor(run).blocks(…)`.
    """
    predictor = Predictor(run.folder if isinstance(run, Run) else run, **options)
    return predictor.predict(open_data(location(data)) if isinstance(data, str | Path | RemotePath) else data)


def to_torch(feature: Feature) -> Tensors:
    """A feature's vectors and their presence as tensors of their own.

    It stands here for `stores` knows no torch. `torch.from_dlpack(feature.vectors)` does the same for the vectors, and
    so in other libraries that take DLPack.
    """
    status = feature.status
    vectors = feature.read_vectors(status=status)
    return Tensors(torch.from_numpy(vectors.copy()), torch.from_numpy(status == Status.PRESENT))


def _opened(store: Store | str | Location) -> Store:
    return store if isinstance(store, Store) else open_store(store)
