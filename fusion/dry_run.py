"""`--dry-run` of `fit` and `ablate`: how much there is to train, and how long it takes at most. Nothing is written.

A few epochs of each different training are run and timed, as they would be. Early stopping usually ends a training long
before `training.epochs`, so that what is told is an upper bound. Baselines and the report are not counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from fusion.ablation import is_fusion, open_ablation, options_for
from fusion.config import Config
from fusion.evaluate import FUSION
from fusion.fitting import PARTS, load_inputs, training_of
from fusion.modules import fusion_class
from fusion.runs import check_name, free_name
from fusion.train import Trained
from fusion.train import train as run_training
from stores.store import Store

MEASURED_EPOCHS = 4  # the first is not counted
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FitPlan:
    """trainings: by model, how many. seconds_per_epoch: of each, measured. n_bytes: of the weights that are kept."""

    run: str
    trainings: dict[str, int]
    epochs: int
    seconds_per_epoch: dict[str, float]
    n_bytes: int

    @property
    def seconds(self) -> float:
        """At most, of all trainings."""
        per_model = (n * self.seconds_per_epoch[model] for model, n in self.trainings.items())
        return self.epochs * sum(per_model)


@dataclass(frozen=True)
class AblationPlan:
    """cells: in all; finished: those that have their file. seconds: of what is left, at most, by one process after
    another where there are several; `measured_by` says from what: epochs, or cells that are finished."""

    cells: int
    finished: int
    to_run: dict[str, int]  # by model
    seconds: float
    measured_by: str
    not_measured: list[str]  # baselines of which no cell is finished


def plan_fit(
    store: Store,
    config: Config,
    *,
    runs: Path = Path("runs"),
    name: str | None = None,
    split_name: str | None = None,
    with_baselines: bool = True,
    allow_pending: bool = False,
    allow_leak: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FitPlan:
    """What `fusion.fitting.fit` would train with the same arguments; raises what it would raise beforehand."""
    name = check_name(runs, name or free_name(runs, fusion_class(config.model.fusion.strategy).name), overwrite)
    loaded = load_inputs(store, config, split_name, allow_pending=allow_pending, allow_leak=allow_leak)
    data = loaded.data
    alone = data.slots if with_baselines and len(data.slots) > 1 else ()
    models = {FUSION: data, **{f"{slot} alone": data.only([slot]) for slot in alone}}
    rows = {part: loaded.splits[0].rows(code) for part, code in PARTS.items()}
    seconds: dict[str, float] = {}
    n_bytes = 0
    for done, (model, its_data) in enumerate(models.items(), start=1):
        training = training_of(config.training, its_data.slots, data.slots)
        few = training.model_copy(update={"epochs": MEASURED_EPOCHS, "patience": MEASURED_EPOCHS})
        fusion, seed = config.model.fusion, config.training.seeds[0]
        trained = run_training(its_data, loaded.targets, rows["train"], rows["val"], fusion, few, seed)
        seconds[model] = _seconds_per_epoch(trained)
        if model == FUSION:
            n_bytes = sum(weight.numel() * weight.element_size() for weight in trained.model.state_dict().values())
        if progress is not None:
            progress(done, len(models))
    each = len(config.training.seeds) * len(loaded.splits)
    return FitPlan(name, dict.fromkeys(models, each), config.training.epochs, seconds, n_bytes)


def plan_ablation(
    store: Store,
    config: Config,
    *,
    fusions: Sequence[str] | None = None,
    subsets: Sequence[Sequence[str]] | None = None,
    ablations: Path = Path("ablations"),
    name: str = "default",
    split_name: str | None = None,
    workers: int = 0,
    allow_pending: bool = False,
    allow_leak: bool = False,
    progress: Progress | None = None,
) -> AblationPlan:
    """What `fusion.ablation.ablate` would run with the same arguments; raises what it would raise beforehand.

    Of a model that has finished cells, these tell how long one takes; of any other fusion, epochs on all slots.
    """
    folder = ablations / check_name(ablations, name, overwrite=True)
    opened = open_ablation(store, config, folder, fusions, subsets, split_name, allow_pending, allow_leak)
    cells = opened.cells
    missing = opened.missing()
    to_run = Counter(cell.model.name for cell in missing)
    known: dict[str, list[float]] = defaultdict(list)
    for model, seeds in opened.grid.items():
        for cell in opened.cells_of(model, seeds):
            if cells.path(cell).is_file():
                known[model.name].append(float(cells.read(cell).facts["seconds"]))
    unknown = [fusion for fusion in to_run if is_fusion(fusion) and fusion not in known]
    seconds = {model: float(np.mean(found)) for model, found in known.items()}
    rows = cells.rows[0]
    for done, fusion in enumerate(unknown, start=1):
        settings = config.model.fusion.model_copy(
            update={"strategy": fusion, "options": options_for(fusion, config.model.fusion)}
        )
        few = config.training.model_copy(update={"epochs": MEASURED_EPOCHS, "patience": MEASURED_EPOCHS})
        data = cells.data if fusion_class(fusion).reads_frames else cells.data.without_frames()
        trained = run_training(data, cells.targets, rows["train"], rows["val"], settings, few, config.training.seeds[0])
        seconds[fusion] = _seconds_per_epoch(trained) * config.training.epochs
        if progress is not None:
            progress(done, len(unknown))
    total = sum(n * seconds.get(model, 0.0) for model, n in to_run.items()) / max(1, workers)
    by = [*(["epochs"] if unknown else []), *(["finished cells"] if set(to_run) & set(known) else [])]
    n_cells = sum(map(len, opened.grid.values())) * len(cells.splits)
    not_measured = [model for model in to_run if model not in seconds]
    return AblationPlan(n_cells, n_cells - len(missing), dict(to_run), total, " and ".join(by), not_measured)


def _seconds_per_epoch(trained: Trained) -> float:
    seconds = [epoch["seconds"] for epoch in trained.history]
    return float(median(seconds[1:] or seconds))
