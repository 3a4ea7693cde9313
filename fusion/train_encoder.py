"""`train-encoder`: an encoder with a linear head for each target, trained on one split's raw segments by the one loop.

A MIDI encoder can also learn without labels (`encoder_training.objective`), and one training can start from another's
weights. The test part is never read. What was seen stands in the encoder's record: the training part, and the
validation part that stopped it; `fit` compares them with the split it evaluates on (`fusion.leaks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from featurize.augment import AudioAugmentation
from featurize.augment_midi import MidiAugmentation
from featurize.encode import run, set_up
from featurize.encoders import build_encoder, encoder_class
from featurize.encoders.base import AudioEncoder, Batch, Encoded, Encoder
from featurize.encoders.transformer import TokenTransformer
from featurize.errors import ConfigError
from featurize.extract import RawSource
from featurize.splits import check_split
from featurize.trained import load_trained, save_trained
from fusion import baselines
from fusion.config import Config
from fusion.data import SegmentData, load_segments
from fusion.leaks import seen
from fusion.masked_events import MaskedEventLosses, MaskedEvents, nats_by_frequency
from fusion.metrics import GroupBootstrap, headline_metric, interval, score
from fusion.raw_data import Augmentation, RawInputs
from fusion.runs import environment, new_run, write_config, write_json, write_table
from fusion.targets import Target, load_targets
from fusion.tracking.base import TrackedRun, Tracker
from fusion.tracking.log import tracked, training_series
from fusion.train import Objective, train_model
from stores.store import Part, Store

RESAMPLES = 2000
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


class EncoderWithHeads(nn.Module):
    """An encoder, dropout, and a linear head for each target."""

    def __init__(self, encoder: Encoder, targets: Sequence[Target], dropout: float):
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList([nn.Linear(encoder.width, target.n_outputs) for target in targets])

    def forward(self, batch: Batch, present: Tensor) -> tuple[list[Tensor], None]:
        """Logits (B, K) for each target, on the CPU, where the labels are."""
        encoded: Encoded = run(self.encoder, batch)
        hidden = self.dropout(encoded.pooled.float())
        return [head(hidden).cpu() for head in self.heads], None


@dataclass(frozen=True)
class TrainedEncoder:
    """folder: where the encoder stands. metrics: what `metrics.json` holds."""

    folder: Path
    metrics: dict[str, Any]


def train_encoder(
    store: Store,
    source: RawSource,
    config: Config,
    name: str,
    options: Mapping[str, Any],
    *,
    folder: Path,
    split_name: str,
    start: Path | None = None,
    augmentation: Augmentation | None = None,
    workers: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress | None = None,
    trackers: Sequence[Tracker] = (),
) -> TrainedEncoder:
    """Train encoder `name` on the training part of a split and leave it in `folder`, replacing what was there.

    source: raw inputs of the encoder's modality, by row of the store. start: a folder with an encoder of the same kind,
    whose weights it begins with. Raises `TriadError`s where something is amiss.
    """
    if not encoder_class(name).must_train:
        raise ConfigError(f"Encoder {name} needs no training; use it as it is: cli featurize --encoder {name}")
    training = config.encoder_training
    split = store.split(split_name)
    check_split(split, store.groups)
    targets = load_targets(store, list(config.model.targets)) if training.objective == "labels" else []
    torch.manual_seed(training.seed)
    encoder = build_encoder(name, options) if start is None else load_trained(start, name, options)
    model: nn.Module
    objectives: list[Objective]
    if training.objective == "labels":
        model, objectives = EncoderWithHeads(encoder, targets, training.dropout), list(targets)
    elif isinstance(encoder, TokenTransformer):
        objectives = [MaskedEvents(torch.ones(store.n_segments, dtype=torch.bool))]
        model = MaskedEventLosses(encoder)
    else:
        raise ConfigError(f"Encoder {name} cannot learn from masked events; event and music_transformer can.")
    model.to(_device(encoder, device, precision))

    wanted = np.sort(np.concatenate([split.rows(Part.TRAIN), split.rows(Part.VAL)]))
    wanted = wanted[torch.stack([objective.known for objective in objectives]).any(dim=0).numpy()[wanted]]
    inputs = RawInputs(
        encoder,
        source,
        wanted,
        store.n_segments,
        augmentation=augmentation,
        workers=workers,
        progress=_named(progress, "segments read"),
    )
    facts = {"encoder": name, "options": dict(options)}
    tracked_run = TrackedRun("train-encoder", folder.name, config.model_dump(mode="json"), facts)
    with inputs, tracked(trackers, tracked_run, folder) as log:
        train_rows, val_rows = (inputs.usable(split.rows(part)) for part in (Part.TRAIN, Part.VAL))
        if len(train_rows) == 0:
            and_a_label = " and a label" if targets else ""
            raise ConfigError(f"Split {split.name} has no training segment with {encoder.modality}{and_a_label}.")
        trained = train_model(
            model,
            inputs,
            objectives,
            train_rows,
            val_rows,
            training,
            training.seed,
            _named(progress, "epochs"),
            watch=lambda history: log.training(training_series(name, split.name, training.seed), history),
        )
        outputs, _ = trained.predict(inputs, val_rows)
        by_frequency = None
        if isinstance(model, MaskedEventLosses):
            by_frequency = nats_by_frequency(model.encoder, _batches(inputs, train_rows), _batches(inputs, val_rows))
        encoder.to("cpu").trained_on = seen(store, split, bool(targets), encoder.trained_on)
        metrics = {
            "encoder": name,
            "modality": encoder.modality,
            "objective": training.objective,
            "started_from": None if start is None else str(start),
            "split": split.name,
            "n_train": len(train_rows),
            "n_val": len(val_rows),
            "unreadable": {str(store.ids[row]): reason for row, reason in inputs.failures.items()},
            "best_epoch": trained.best_epoch,
            "epochs": len(trained.history),
            "train_loss": [epoch["train_loss"] for epoch in trained.history],
            "val_loss": [epoch["val_loss"] for epoch in trained.history],
            "seconds_per_epoch": float(np.median([epoch["seconds"] for epoch in trained.history])),
            "val_loss_by_frequency": by_frequency,
            "targets": _validation(store, trained.targets, outputs, name, encoder.modality, train_rows, val_rows)
            if targets
            else {},
        }
        with new_run(folder.parent, folder.name) as partial:
            save_trained(partial, encoder, options)
            write_config(partial, config)
            write_json(partial / "environment.json", environment(store=store.tree.location))
            write_table(partial / "history.parquet", pa.Table.from_pylist(trained.history).to_pydict())
            write_json(partial / "metrics.json", metrics)
    return TrainedEncoder(folder, metrics)


def augmentation_of(config: Config, name: str, options: Mapping[str, Any]) -> Augmentation | None:
    """What `preprocessing` says for the encoder's modality, at the rate the encoder listens at; `None` for nothing."""
    if encoder_class(name).modality != "audio":
        return augmentation_for(config, encoder_class(name))
    return augmentation_for(config, build_encoder(name, options))


def augmentation_for(config: Config, encoder: Encoder | type[Encoder]) -> Augmentation | None:
    """The same for an encoder that is there; of audio the class would not do, for it has no rate."""
    if encoder.modality == "midi":
        return MidiAugmentation(config.preprocessing.midi.augmentations)
    if encoder.modality != "audio" or not config.preprocessing.audio.augmentations:
        return None
    assert isinstance(encoder, AudioEncoder)
    return AudioAugmentation(config.preprocessing.audio.augmentations, encoder.sample_rate_hz)


def _device(encoder: Encoder, device: str, precision: str) -> torch.device:
    set_up(encoder, device, precision)
    return next(encoder.parameters()).device


def _batches(inputs: RawInputs, rows: np.ndarray) -> Iterator[Batch]:
    """As `infer` takes them, so that the same tokens are hidden."""
    return (batch for _, batch in inputs.batches(torch.from_numpy(rows).split(inputs.evaluation_batch)))


def _validation(
    store: Store,
    targets: Sequence[Target],
    outputs: Sequence[np.ndarray],
    name: str,
    modality: str,
    train_rows: np.ndarray,
    val_rows: np.ndarray,
) -> dict[str, Any]:
    """For each target the validation score of the encoder, of linear models on the stored features of its modality,
    and of the prior: all on the same rows, each chosen on these rows, none tested."""
    stored = {feature: _only(store, feature) for feature in store.features() if feature.startswith(f"{modality}/")}
    result: dict[str, Any] = {}
    for target, output in zip(targets, outputs, strict=True):
        predictions = {name: output}
        for feature, data in stored.items():
            inputs = baselines.concatenation(data, train_rows)
            predictions[f"{feature}, linear"] = baselines.linear(inputs, target, train_rows, val_rows, val_rows)
        predictions["majority"] = baselines.majority(target, train_rows, val_rows)
        metric = headline_metric(target.kind, target.metric)
        known = target.known[val_rows].numpy()
        truth = target.truth.numpy()[val_rows[known]]
        bootstrap = GroupBootstrap(store.groups[val_rows[known]], resamples=RESAMPLES)
        models = {}
        for model, values in predictions.items():
            draws = bootstrap.values(metric, truth, [values[known]])
            models[model] = {"value": score(metric, truth, values[known]), "ci95": interval(draws)}
        result[target.name] = {"metric": metric.name, "models": models}
    return result


def _only(store: Store, feature: str) -> SegmentData:
    return load_segments(store, {feature.partition("/")[0]: feature}, allow_pending=True)


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)
