"""`fit`: train a fusion on every split and seed, every slot alone beside it, and the baselines; write the run."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from featurize.errors import SplitError
from featurize.splits import check_split, fold_names
from featurize.user_code import code_facts
from fusion import baselines
from fusion.checkpoint import Checkpoint
from fusion.config import Config, FusionConfig, TrainingConfig
from fusion.data import SegmentData, StoredSegments, choose_features
from fusion.device import device_facts, training_device
from fusion.evaluate import FUSION, Predictions, evaluate, pattern_rows, patterns
from fusion.gaps import gaps
from fusion.leaks import check_encoders
from fusion.memory import feature_bytes
from fusion.metrics import headline_metric, score
from fusion.modules import fusion_class, sound_fusion
from fusion.optimization import dominating_slot
from fusion.prediction_table import prediction_table
from fusion.report_parts import ReportParts
from fusion.result import Run
from fusion.runs import (
    CHECKPOINTS,
    check_name,
    environment,
    free_name,
    new_run,
    write_config,
    write_json,
    write_model,
    write_table,
)
from fusion.streamed_inputs import StreamedInputs
from fusion.streaming import StreamedSegments, open_segments
from fusion.targets import Target, load_targets
from fusion.tracking.base import TrackedRun, Tracker
from fusion.tracking.log import RunLog, tracked, training_series
from fusion.train import Trained, train
from stores.store import Part, Split, Store

METRICS_FORMAT = 1
PARTS = {"train": Part.TRAIN, "val": Part.VAL, "test": Part.TEST}
Progress = Callable[[int, int], None]  # trainings done, trainings in all


def fit(
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
    report: ReportParts = ReportParts(),  # noqa: B008 (frozen)
    trackers: Sequence[Tracker] = (),
) -> Run:
    """Train `config.model.fusion` on the store's features; returns the finished run.

    `split_name` may name a split or a set of folds. Raises `TriadError`s where something does not fit.
    """
    strategy = config.model.fusion.strategy
    name = check_name(runs, name or free_name(runs, fusion_class(strategy).name), overwrite)
    device = training_device(config.training.device)  # asked before anything is read
    loaded = load_inputs(store, config, split_name, allow_pending=allow_pending, allow_leak=allow_leak)
    data, targets, splits, notes = loaded.data, loaded.targets, loaded.splits, loaded.notes

    slots = {slot: feature.partition("/")[2] for slot, feature in data.features.items()}
    run = TrackedRun("fit", name, config.model_dump(mode="json"), {"slots": slots})
    with tracked(trackers, run, runs / name) as log, new_run(runs, name) as folder:
        key = f"{training_key(store, data, targets, splits, config)} {device.type}"
        job = _Job(
            data,
            targets,
            splits,
            config,
            with_baselines,
            progress,
            lambda training: Checkpoint(folder / CHECKPOINTS / training, key),
            folder,
            log,
        )
        job.run()
        if isinstance(data, StreamedSegments):
            data.check_unchanged()
            n_bytes = feature_bytes(store, data.features, fusion_class(strategy).reads_frames)
            size = f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"
            notes.append(f"{size} of features were streamed from the store, not read into memory.")

        metrics = {
            "format": METRICS_FORMAT,
            "run": name,
            "fusion": strategy,
            "slots": slots,
            "split": {
                "name": split_name or config.split.name,
                "method": splits[0].facts["method"],
                "folds": len(splits),
                "leaks": bool(splits[0].facts.get("leaks")),
            },
            "seeds": config.training.seeds,
            "n_segments": len(data.ids),
            "n_groups": len(np.unique(data.groups)),
            "presence": {slot: float(data.present[:, i].float().mean()) for i, slot in enumerate(data.slots)},
            "notes": notes + job.notes(),
            "targets": evaluate(data, targets, job.results, config.training.bootstrap),
            "model": {"split": job.saved.split, "seed": job.saved.seed, "epoch": job.saved.trained.best_epoch},
        }
        write_config(folder, config)
        facts = {**run_environment(store, data.features, splits), "device": device_facts(device)}
        write_json(folder / "environment.json", facts)
        write_table(folder / "history.parquet", pa.Table.from_pylist(job.history).to_pydict())
        test = job.results[FUSION]["test"]
        write_table(folder / "predictions.parquet", prediction_table(data, targets, splits, test, job.weights))
        saved = job.saved.trained
        facts = model_facts(config.model.fusion, data.features, data.widths, list(data.max_frames), saved.targets)
        write_model(folder / "model.safetensors", saved.model.state_dict(), facts)
        write_json(folder / "metrics.json", metrics)
        from fusion.report import write_report  # matplotlib is slow to import

        write_report(folder, report, store=store, config=config)
    return Run(runs / name, metrics)


@dataclass(frozen=True)
class Inputs:
    """What is trained on, checked. notes: what the reader of the result must know."""

    data: SegmentData | StreamedSegments
    targets: list[Target]
    splits: list[Split]
    notes: list[str]


def load_inputs(
    store: Store, config: Config, split_name: str | None, *, allow_pending: bool = False, allow_leak: bool = False
) -> Inputs:
    """Features, labels and splits of a `fit`. Raises `TriadError`s where something does not fit."""
    with_frames = sound_fusion(config.model.fusion.strategy, config.model.fusion.options).reads_frames
    splits = open_splits(store, split_name or config.split.name)
    features, stream = choose_features(store, config), config.training.stream
    data = open_segments(store, features, stream, with_frames=with_frames, allow_pending=allow_pending)
    targets = load_targets(store, list(config.model.targets))
    notes = check_encoders(store, data.features, splits, allow_leak) + gaps(data, targets, splits)
    return Inputs(data, targets, splits, notes)


@dataclass(frozen=True)
class _Saved:
    """The model that is kept: the best seed, by validation loss, of the first split."""

    split: str
    seed: int
    val_loss: float
    trained: Trained


class _Job:
    """All trainings of one fit, and what they predicted: `results[model][part]`."""

    saved: _Saved

    def __init__(
        self,
        data: SegmentData | StreamedSegments,
        targets: list[Target],
        splits: list[Split],
        config: Config,
        with_baselines: bool,
        progress: Progress | None,
        checkpoint: Callable[[str], Checkpoint],
        folder: Path,
        log: RunLog,
    ):
        self._data = data
        self._targets = targets
        self._splits = splits
        self._config = config
        self._with_baselines = with_baselines
        self._progress = progress
        self._checkpoint = checkpoint
        self._folder = folder
        self._log = log
        self._done = 0
        self._alone = data.slots if with_baselines and len(data.slots) > 1 else ()
        self.results: dict[str, dict[str, Predictions]] = defaultdict(lambda: defaultdict(Predictions))
        self.history: list[dict[str, Any]] = []
        self.weights: dict[tuple[int, int], np.ndarray] = {}  # (seed, split) -> slot weights (n, M) of the test part

    def run(self) -> None:
        for number, split in enumerate(self._splits):
            rows = {part: split.rows(code) for part, code in PARTS.items()}
            if isinstance(self._data, StreamedSegments):
                self._data.keep_at_hand(np.concatenate([rows["val"], rows["test"]]), self._folder)
            for seed in self._config.training.seeds:
                trained = self._train(FUSION, self._data, number, rows, seed)
                self._predict_patterns(trained, number, rows["test"], seed)
                self._keep_if_best(trained, split, number, seed)
                for slot in self._alone:
                    self._train(f"{slot} alone", self._data.only([slot]), number, rows, seed)
            if self._with_baselines:
                self._predict_baselines(number, rows)
            for slot in self._alone:
                self._prefer_linear(slot, number, rows)

    def _train(self, model: str, data: StoredSegments, number: int, rows: dict[str, np.ndarray], seed: int) -> Trained:
        trained = train(
            data,
            self._targets,
            rows["train"],
            rows["val"],
            self._config.model.fusion,
            training_of(self._config.training, data.slots, self._data.slots),
            seed,
            self._checkpoint(
                f"{'-'.join(str(self._data.slots.index(slot)) for slot in data.slots)}.{number}.{seed}.pt"
            ),
        )
        for part, part_rows in rows.items():
            outputs, weights = trained.predict(data, part_rows)
            self.results[model][part].add(seed, number, part_rows, outputs)
            if model == FUSION and part == "test" and weights is not None:
                self.weights[seed, number] = weights.numpy()
        split = self._splits[number].name
        self.history += [{"model": model, "split": split, "seed": seed, **epoch} for epoch in trained.history]
        self._log.training(training_series(model, split, seed), trained.history)
        self._done += 1
        if self._progress is not None:
            per_split = len(self._config.training.seeds) * (1 + len(self._alone))
            self._progress(self._done, per_split * len(self._splits))
        return trained

    def notes(self) -> list[str]:
        return [*self._notes_on_samples(), *self._notes_on_gradients()]

    def _notes_on_samples(self) -> list[str]:
        """Linear models that were fitted to less than the training part."""
        if not self._with_baselines or not isinstance(self._data, StreamedSegments):
            return []
        train_rows = self._splits[0].rows(Part.TRAIN)
        models = {"logistic regression": self._data} | {
            f"{slot} alone": self._data.only([slot]) for slot in self._alone
        }
        sizes = {name: len(StreamedInputs(data, train_rows).sample) for name, data in models.items()}
        sampled = [f"{name} {n:,}" for name, n in sizes.items() if n < len(train_rows)]
        if not sampled:
            return []
        return [
            f"Of the {len(train_rows):,} training segments, linear models were fitted to whole groups drawn at random: "
            f"{', '.join(sampled)}."
        ]

    def _notes_on_gradients(self) -> list[str]:
        """A slot whose gradients outweigh all others' in the fusion's trainings, and what may help."""
        epochs = [epoch for epoch in self.history if epoch["model"] == FUSION]
        found = dominating_slot(epochs, self._data.slots)
        if found is None:
            return []
        slot, share = found
        slower = f"--set training.slots.{slot}.lr={self._config.training.lr / 3:.1g}"
        return [
            f"{slot} has {share:.0%} of the slots' squared gradient norms: the others may learn little. "
            f"Try --set training.gradient_modulation=0.3, or {slower}"
        ]

    def _predict_patterns(self, trained: Trained, number: int, test_rows: np.ndarray, seed: int) -> None:
        for pattern in patterns(self._data.slots):
            kept, shown = pattern_rows(self._data, test_rows, pattern)
            outputs, _ = trained.predict(self._data, kept, shown)
            self.results[FUSION]["pattern/" + "+".join(pattern)].add(seed, number, kept, outputs)

    def _predict_baselines(self, number: int, rows: dict[str, np.ndarray]) -> None:
        for name, by_part in baselines.predictions(self._data, self._targets, rows).items():
            for part, outputs in by_part.items():
                self.results[name][part].add(0, number, rows[part], outputs)

    def _prefer_linear(self, slot: str, number: int, rows: dict[str, np.ndarray]) -> None:
        """A slot alone is worth the better, on validation, of the fusion and a linear model: no baseline of straw."""
        model = self.results[f"{slot} alone"]
        inputs = baselines.inputs_of(self._data.only([slot]), rows["train"])
        everyone = np.arange(len(self._data.ids))
        for index, target in enumerate(self._targets):
            output = baselines.linear(inputs, target, rows["train"], rows["val"], everyone)
            metric = headline_metric(target.kind, target.metric)
            known = target.known.numpy()[rows["val"]]
            truth = target.truth.numpy()[rows["val"][known]]
            linear = score(metric, truth, output[rows["val"][known]])
            trained = [score(metric, truth, by[number][index][known]) for by in model["val"].outputs.values()]
            if metric.sign * linear > metric.sign * np.mean(trained):
                for part, part_rows in rows.items():
                    model[part].replace(number, index, output[part_rows])

    def _keep_if_best(self, trained: Trained, split: Split, number: int, seed: int) -> None:
        val_loss = trained.history[trained.best_epoch - 1]["val_loss"]
        if number == 0 and (not hasattr(self, "saved") or val_loss < self.saved.val_loss):
            self.saved = _Saved(split.name, seed, val_loss, trained)


def training_of(training: TrainingConfig, slots: Sequence[str], all_slots: Sequence[str]) -> TrainingConfig:
    """For a training on some of all slots: what is set for another slot is for another training."""
    own = {slot: own for slot, own in training.slots.items() if slot in slots or slot not in all_slots}
    return training.model_copy(update={"slots": own})


def open_splits(store: Store, name: str) -> list[Split]:
    """The split of this name, or all folds of the set. Raises `SplitError` where there is none, or a part is empty."""
    names = fold_names(name, store.splits())
    if not names:
        listed = ", ".join(store.splits()) or "none"
        raise SplitError(f"The store has no split {name!r}; it has {listed}. `cli split` makes one.")
    splits = [store.split(split) for split in names]
    for split in splits:
        check_split(split, store.groups)
        for part, code in PARTS.items():
            if len(split.rows(code)) == 0:
                raise SplitError(f"Split {split.name} has no {part} segments; make another with `cli split`.")
    return splits


def training_key(store: Store, data: StoredSegments, targets: list[Target], splits: list[Split], config: Config) -> str:
    """SHA-256 of all that decides the trainings: an interrupted run goes on only where it would be the same again."""
    facts = run_environment(store, data.features, splits)
    decides = {name: facts[name] for name in ("features", "splits", "packages")}
    decides["frames"] = data.max_frames
    decides["window"] = data.window_bytes if isinstance(data, StreamedSegments) else None
    decides["code"] = code_facts(fusion_class(config.model.fusion.strategy))
    digest = hashlib.sha256(json.dumps([decides, config.model_dump(mode="json")], sort_keys=True).encode())
    digest.update(data.present.numpy().tobytes())
    for target in targets:
        digest.update(target.known.numpy().tobytes() + target.truth.numpy().tobytes())
    return digest.hexdigest()


def run_environment(store: Store, features: Mapping[str, str], splits: list[Split]) -> dict[str, Any]:
    """`environment.json`. features: slot to feature name."""
    return environment(
        store=store.tree.location,
        features={name: store.feature(name).fingerprint for name in features.values()},
        splits={split.name: hashlib.sha256(split.parts.tobytes()).hexdigest() for split in splits},
    )


def model_facts(
    fusion: FusionConfig,
    features: Mapping[str, str],
    widths: Mapping[str, int],
    frame_slots: Sequence[str],
    targets: Sequence[Target],
) -> dict[str, Any]:
    """What `fusion.load_run` needs to build the model again."""
    return {
        "fusion": fusion.model_dump(mode="json"),
        "code": code_facts(fusion_class(fusion.strategy)),
        "features": dict(features),
        "widths": dict(widths),
        "frames": list(frame_slots),
        "targets": [
            {"name": t.name, "kind": t.kind, "classes": t.classes, "mean": t.mean, "scale": t.scale} for t in targets
        ],
    }
