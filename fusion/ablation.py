"""`ablate`: fusions × slot subsets × folds × seeds from one load of the store, and what each is worth.

A cell is one model on one slot subset, fold and seed. A finished cell is one file, called by the fingerprint of all
that decides it, and renamed to that when it is whole. What has its file is not run again, and every table is made from
the files alone: an ablation that was killed and started again ends with the tables of one that was not.

Models are fusions and the baselines: `logistic regression` on every subset, `mask only`, `majority`. A subset is a
tuple in slot order. What the tables hold: `fusion/shapley.py`.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from threadpoolctl import threadpool_limits

from featurize.errors import ConfigError, UnknownName
from featurize.segments import MODALITIES
from featurize.user_code import check_importable, code_facts, is_ours
from fusion import baselines
from fusion.cell_pool import run_cells
from fusion.config import Config, FusionConfig, TrainingConfig
from fusion.data import SegmentData, choose_features, load_segments
from fusion.device import device_facts, training_device
from fusion.digest import code_digest, digest
from fusion.evaluate import patterns
from fusion.fitting import PARTS, open_splits
from fusion.leaks import check_encoders
from fusion.memory import read_into_memory
from fusion.modules import FUSIONS, fusion_class, sound_fusion
from fusion.report import write_ablation_report
from fusion.result import Ablation
from fusion.runs import check_name, environment, write_config, write_json, write_model
from fusion.shapley import LINEAR, MAJORITY, MASK_ONLY, TABLES, Cell, Finished, Model, TargetTables, write_rows
from fusion.targets import Target, load_targets
from fusion.tracking.base import Point, TrackedRun, Tracker
from fusion.tracking.log import RunLog, numbers, on_slots, tracked
from fusion.train import train
from stores.store import Split, Store

ABLATION_FORMAT = 1
CELL_FORMAT = 1
PACKAGES = {name: version(name) for name in ("torch", "numpy", "scikit-learn")}
MOST_SLOTS = 6  # 63 subsets
HELD_OUT = ("val", "test")
TABLES_IN_JSON = ("summary", "comparisons", "shapley")  # the results have a row for every cell
Outputs = Mapping[str, list[np.ndarray]]  # part -> by target, (n, K)
Grid = Mapping[Model, Sequence[int | None]]  # model -> its seeds
Progress = Callable[[Cell, float, int, int], None]  # a cell, its validation score, cells run, cells to run


@dataclass(frozen=True)
class Opened:
    """What there is to run: cells by their files, the grid of them, and what it was made from."""

    cells: Cells
    grid: dict[Model, Sequence[int | None]]
    fusions: list[str]
    subsets: list[tuple[str, ...]]
    features: dict[str, str]  # by slot
    notes: list[str]

    def cells_of(self, model: Model, seeds: Sequence[int | None]) -> list[Cell]:
        """A model's cells: seed by seed, in each every fold."""
        return _cells_of(model, seeds, len(self.cells.splits))

    def missing(self) -> list[Cell]:
        """Cells that have no file yet, model by model."""
        wanted = [cell for model, seeds in self.grid.items() for cell in self.cells_of(model, seeds)]
        return [cell for cell in wanted if not self.cells.path(cell).is_file()]


def ablate(
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
    trackers: Sequence[Tracker] = (),
) -> Ablation:
    """Run the cells that are not finished, evaluate all, and write `ablations/name`.

    fusions: all where `None`. subsets: all of the slots that have a feature where `None`. `split_name` may name a split
    or a set of folds. The first target chooses what is best. Raises `TriadError`s where something does not fit.
    """
    folder = ablations / check_name(ablations, name, overwrite=True)
    opened = open_ablation(store, config, folder, fusions, subsets, split_name, allow_pending, allow_leak)
    for fusion in opened.fusions if workers else ():
        check_importable(fusion_class(fusion))
    cells, groups = opened.cells, opened.cells.data.groups
    tables = [TargetTables(i, target, groups, config.training.bootstrap) for i, target in enumerate(cells.targets)]
    slots = {slot: feature.partition("/")[2] for slot, feature in opened.features.items()}
    run = TrackedRun("ablate", name, config.model_dump(mode="json"), {"fusions": opened.fusions, "slots": slots})
    with tracked(trackers if trackers and opened.missing() else (), run, folder) as log:
        n_run = _run_missing(cells, opened.grid, tables, workers, progress, log)
        metrics = _write_tables(store, config, opened, tables, split_name or config.split.name, folder)
    return Ablation(folder, metrics, sum(map(len, opened.grid.values())) * len(cells.splits), n_run)


def _write_tables(
    store: Store, config: Config, opened: Opened, tables: list[TargetTables], split_name: str, folder: Path
) -> dict[str, Any]:
    """Evaluate all cells, write everything but them to `folder`; returns what `metrics.json` holds."""
    cells, features, chosen, fusions = opened.cells, opened.features, opened.subsets, opened.fusions
    data, splits = cells.data, cells.splits
    for model, seeds in opened.grid.items():
        finished = {cell: cells.read(cell) for cell in opened.cells_of(model, seeds)}
        for of_target in tables:
            of_target.add(model, finished, cells.rows)
    found = [of_target.tables(fusions, max(chosen, key=len), data.slots) for of_target in tables]
    metrics = {
        "format": ABLATION_FORMAT,
        "ablation": folder.name,
        "fusions": fusions,
        "slots": {slot: feature.partition("/")[2] for slot, feature in features.items()},
        "subsets": ["+".join(subset) for subset in chosen],
        "split": {
            "name": split_name,
            "method": splits[0].facts["method"],
            "folds": len(splits),
            "leaks": bool(splits[0].facts.get("leaks")),
        },
        "seeds": config.training.seeds,
        "n_segments": len(data.ids),
        "n_groups": len(np.unique(data.groups)),
        "presence": {slot: float(data.present[:, i].float().mean()) for i, slot in enumerate(data.slots)},
        "notes": opened.notes,
        "targets": {
            of_target.target.name: {**of_target.facts(fusions), **{name: rows[name] for name in TABLES_IN_JSON}}
            for of_target, rows in zip(tables, found, strict=True)
        },
    }
    write_config(folder, config)
    fingerprints = {feature: store.feature(feature).fingerprint for feature in features.values()}
    device = device_facts(training_device(config.training.device))
    facts = environment(store=store.tree.location, features=fingerprints, device=device)
    write_json(folder / "environment.json", facts)
    for table in TABLES:
        write_rows(folder, table, [row for rows in found for row in rows[table]])
    write_json(folder / "metrics.json", metrics)
    write_ablation_report(folder)
    return metrics


def open_ablation(
    store: Store,
    config: Config,
    folder: Path,
    fusions: Sequence[str] | None = None,
    subsets: Sequence[Sequence[str]] | None = None,
    split_name: str | None = None,
    allow_pending: bool = False,
    allow_leak: bool = False,
) -> Opened:
    """As `ablate`, up to where the first cell would be run; writes nothing."""
    training = config.training.model_copy(update={"device": training_device(config.training.device).type})
    config = config.model_copy(update={"training": training})  # what `auto` is here decides the cells
    fusions = list(dict.fromkeys(FUSIONS if fusions is None else fusions))
    if not fusions:
        raise ConfigError(f"No fusion to try. Name some: --fusion {','.join(FUSIONS)}")
    classes = [sound_fusion(fusion, options_for(fusion, config.model.fusion)) for fusion in fusions]
    known = {option for fusion in fusions for option in _parameters(fusion)}
    for option in config.model.fusion.options:
        if option not in known:
            raise UnknownName(f"option of {', '.join(fusions)}", option, sorted(known))
    splits = open_splits(store, split_name or config.split.name)
    features, chosen = _choose_slots(store, config, subsets)
    with_frames = any(cls.reads_frames for cls in classes)
    notes = read_into_memory("cli ablate", store, features, with_frames, config.training.stream)
    data = load_segments(store, features, with_frames=with_frames, allow_pending=allow_pending)
    targets = load_targets(store, list(config.model.targets))
    notes += check_encoders(store, features, splits, allow_leak)

    cells = Cells(data, targets, splits, config, folder / "cells")
    grid: dict[Model, Sequence[int | None]] = {}
    for subset in chosen:
        grid |= {Model(fusion, subset): config.training.seeds for fusion in fusions}
        grid[Model(LINEAR, subset)] = [None]
    grid |= {Model(MASK_ONLY, data.slots): [None], Model(MAJORITY, ()): [None]}
    return Opened(cells, grid, fusions, chosen, features, notes)


def _choose_slots(
    store: Store, config: Config, subsets: Sequence[Sequence[str]] | None
) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """Slot to feature name of all that is needed, and the subsets in slot order, the smallest first."""
    if subsets is None:
        features = choose_features(store, config)
        if len(features) > MOST_SLOTS:
            raise ConfigError(
                f"{len(features)} slots have {2 ** len(features) - 1} subsets; all are run for {MOST_SLOTS} at most.\n"
                "Name those to run: --slots text+audio,text"
            )
        return features, patterns(list(features))
    named = {slot for subset in subsets for slot in subset}
    if not named:
        raise ConfigError("No slots to try. Name subsets of them: --slots text+audio,text")
    stored = {feature.partition("/")[0] for feature in store.features()}
    for slot in sorted(named - stored if stored else ()):
        raise UnknownName("slot", slot, sorted(stored))
    slots = [*(slot for slot in MODALITIES if slot in named), *sorted(named - {*MODALITIES})]
    fusion = config.model.fusion.model_copy(update={"slots": slots})
    model = config.model.model_copy(update={"fusion": fusion})
    features = choose_features(store, config.model_copy(update={"model": model}))
    chosen = {tuple(slot for slot in slots if slot in subset) for subset in subsets if subset}
    return features, sorted(chosen, key=lambda subset: (len(subset), [slots.index(slot) for slot in subset]))


@dataclass(frozen=True)
class Cells:
    """The folder where cells are kept, and all that they are made from."""

    data: SegmentData
    targets: list[Target]
    splits: list[Split]
    config: Config
    folder: Path

    @cached_property
    def rows(self) -> list[dict[str, np.ndarray]]:
        """Of each fold, the row numbers of its parts, int64 (n,)."""
        return [{part: split.rows(code) for part, code in PARTS.items()} for split in self.splits]

    def path(self, cell: Cell) -> Path:
        """The cell's file, called by all that decides it."""
        facts: dict[str, Any] = {
            "format": CELL_FORMAT,
            "packages": PACKAGES,
            "code": code_digest("fusion.baselines"),
            "model": [cell.model.name, cell.seed],
            "slots": [[slot, self._slot_digests[slot, _reads_frames(cell.model)]] for slot in cell.model.slots],
            "targets": self._target_digest,
            "split": self._split_digests[cell.fold],
        }
        if is_fusion(cell.model.name):
            fusion, training = self._settings(cell.model)
            cls = fusion_class(cell.model.name)
            facts["code"] = code_digest("fusion.train", *([cls.__module__] if is_ours(cls) else []))
            if not is_ours(cls):
                facts["fusion_code"] = code_facts(cls)
            facts["fusion"] = fusion.model_dump(mode="json", exclude={"features", "slots"})
            facts["training"] = training.model_dump(mode="json", exclude={"seeds", "bootstrap", "stream"})
        return self.folder / f"{digest(facts)[:32]}.safetensors"

    def read(self, cell: Cell) -> Finished:
        """Raises `FileNotFoundError` where it is not finished, `SafetensorError` where its file is damaged."""
        with safe_open(self.path(cell), "numpy") as file:
            outputs = {
                part: [file.get_tensor(f"{part}.{i}").astype(np.float64) for i in range(len(self.targets))]
                for part in HELD_OUT
            }
            return Finished(outputs, json.loads(file.metadata()["triad_fusion"]))

    def run(self, cell: Cell) -> None:
        """Train or fit it and keep what it predicts. On one thread: no number then depends on how many there are."""
        started = time.perf_counter()
        with threadpool_limits(1):
            outputs, facts = self._train(cell) if is_fusion(cell.model.name) else (self._fit_baseline(cell), {})
        facts |= {"model": cell.model.name, "slots": cell.model.slots, "seed": cell.seed}
        facts |= {"split": self.splits[cell.fold].name, "seconds": time.perf_counter() - started}
        tensors = {
            f"{part}.{i}": torch.from_numpy(output.astype(np.float32))
            for part, by_target in outputs.items()
            for i, output in enumerate(by_target)
        }
        path = self.path(cell)
        write_model(path.with_suffix(".partial"), tensors, facts)
        path.with_suffix(".partial").replace(path)

    def _train(self, cell: Cell) -> tuple[Outputs, dict[str, Any]]:
        data, rows = self._data_of(cell.model), self.rows[cell.fold]
        assert cell.seed is not None
        settings = self._settings(cell.model)
        trained = train(data, self.targets, rows["train"], rows["val"], *settings, cell.seed)
        best = trained.history[trained.best_epoch - 1]
        facts = {"best_epoch": trained.best_epoch, "epochs": len(trained.history)}
        facts |= {key: best[key] for key in ("train_loss", "val_loss")}
        return {part: trained.predict(data, rows[part])[0] for part in HELD_OUT}, facts

    def _data_of(self, model: Model) -> SegmentData:
        data = self.data.only(model.slots)
        return data if _reads_frames(model) else data.without_frames()

    def _settings(self, model: Model) -> tuple[FusionConfig, TrainingConfig]:
        """As configured; what is set for a slot that the subset lacks is for other subsets."""
        fusion, training = self.config.model.fusion, self.config.training
        absent = set(self.data.slots) - set(model.slots)
        slots = {slot: own for slot, own in training.slots.items() if slot not in absent}
        fusion = fusion.model_copy(update={"strategy": model.name, "options": options_for(model.name, fusion)})
        return fusion, training.model_copy(update={"slots": slots})

    def _fit_baseline(self, cell: Cell) -> Outputs:
        rows = self.rows[cell.fold]
        if cell.model.name == MAJORITY:
            majority = baselines.majority
            return {part: [majority(target, rows["train"], rows[part]) for target in self.targets] for part in HELD_OUT}
        data = self._data_of(cell.model)
        inputs = baselines.mask(data) if cell.model.name == MASK_ONLY else baselines.concatenation(data, rows["train"])
        held_out = np.concatenate([rows[part] for part in HELD_OUT])
        outputs = [baselines.linear(inputs, target, rows["train"], rows["val"], held_out) for target in self.targets]
        val, test = zip(*(np.split(output, [len(rows["val"])]) for output in outputs), strict=True)
        return {"val": list(val), "test": list(test)}

    @cached_property
    def _target_digest(self) -> str:
        return digest(self.targets)

    @cached_property
    def _split_digests(self) -> list[str]:
        """Of each fold."""
        return [digest(split.parts) for split in self.splits]

    @cached_property
    def _slot_digests(self) -> dict[tuple[str, bool], str]:
        """By slot, and whether its frames count."""
        read = {False: self.data.without_frames(), True: self.data}
        return {(slot, frames): digest(data.only([slot])) for frames, data in read.items() for slot in data.slots}


def is_fusion(model: str) -> bool:
    """Whether a model of this name is trained, and no baseline."""
    return model not in (LINEAR, MASK_ONLY, MAJORITY)


def options_for(fusion: str, config: FusionConfig) -> dict[str, Any]:
    """Those of the configured options that this fusion has; the others are for other fusions."""
    return {option: value for option, value in config.options.items() if option in _parameters(fusion)}


def _parameters(fusion: str) -> list[str]:
    return list(inspect.signature(fusion_class(fusion)).parameters)


def _reads_frames(model: Model) -> bool:
    return is_fusion(model.name) and fusion_class(model.name).reads_frames


def _cells_of(model: Model, seeds: Sequence[int | None], n_folds: int) -> list[Cell]:
    return [Cell(model, fold, seed) for seed in seeds for fold in range(n_folds)]


def _run_missing(
    cells: Cells, grid: Grid, tables: Sequence[TargetTables], workers: int, progress: Progress | None, log: RunLog
) -> int:
    """Run what is not finished; returns how many cells that were."""
    wanted = {model: _cells_of(model, seeds, len(cells.splits)) for model, seeds in grid.items()}
    # a model's first cell after another's first, so that each soon has something to show
    order = [cell for turn in zip_longest(*wanted.values()) for cell in turn if cell is not None]
    missing: list[Cell] = []

    def report(cell: Cell, done: int) -> None:
        finished, rows = cells.read(cell), cells.rows[cell.fold]
        scores = {f"val/{of.target.name}/{of.metric.name}": of.score(finished, rows, "val") for of in tables}
        if progress is not None:
            progress(cell, next(iter(scores.values())), done, len(missing))
        if done:
            point = Point(wanted[cell.model].index(cell), numbers({**finished.facts, **scores}))
            log.points(on_slots(cell.model.name, cell.model.subset), [point])

    for cell in order:
        try:
            report(cell, 0)
        except (FileNotFoundError, SafetensorError):
            missing.append(cell)
    cells.folder.mkdir(parents=True, exist_ok=True)
    for done, cell in enumerate(run_cells(cells, missing, workers), start=1):
        report(cell, done)
    return len(missing)
