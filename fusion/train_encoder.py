"""`train-encoder`: an encoder with a linear head for each target, trained on one split's raw segments by the one loop.

The test part is never read. What was seen stands in the encoder's record: the training part, and the validation part
that stopped it; `fit` compares them with the split it evaluates on (`fusion.leaks`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from featurize.encoders.base import AudioEncoder, Batch, Encoder
from featurize.errors import ConfigError
from featurize.extract import RawSource
from featurize.pipeline import ids_sha256
from featurize.splits import check_split
from featurize.trained import save_trained
from fusion import baselines
from fusion.config import Config
from fusion.data import SegmentData, load_segments
from fusion.metrics import GroupBootstrap, headline_metric, interval, score
from fusion.raw_data import Augmentation, RawInputs
from fusion.runs import environment, new_run, write_config, write_json, write_table
from fusion.targets import Target, load_targets
from fusion.train import Trained, train_model
from stores.store import Part, Split, Store

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
        hidden = self.dropout(run(self.encoder, batch).pooled.float())
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
    augmentation: Augmentation | None = None,
    workers: int = 0,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress | None = None,
) -> TrainedEncoder:
    """Train encoder `name` on the training part of a split and leave it in `folder`, replacing what was there.

    source: raw inputs of the encoder's modality, by row of the store. Raises `TriadError`s where something is amiss.
    """
    if not encoder_class(name).must_train:
        raise ConfigError(f"Encoder {name} needs no training; use it as it is: cli featurize --encoder {name}")
    training = config.encoder_training
    split = store.split(split_name)
    check_split(split, store.groups)
    targets = load_targets(store, list(config.model.targets))
    torch.manual_seed(training.seed)
    encoder = build_encoder(name, options)
    model = EncoderWithHeads(encoder, targets, training.dropout)
    model.to(_device(encoder, device, precision))

    wanted = np.sort(np.concatenate([split.rows(Part.TRAIN), split.rows(Part.VAL)]))
    wanted = wanted[torch.stack([target.known for target in targets]).any(dim=0).numpy()[wanted]]
    inputs = RawInputs(
        encoder,
        source,
        wanted,
        store.n_segments,
        augmentation=augmentation,
        workers=workers,
        progress=_named(progress, "segments read"),
    )
    with inputs:
        train_rows, val_rows = (inputs.usable(split.rows(part)) for part in (Part.TRAIN, Part.VAL))
        if len(train_rows) == 0:
            raise ConfigError(f"Split {split.name} has no training segment with {encoder.modality} and a label.")
        trained = train_model(
            model, inputs, targets, train_rows, val_rows, training, training.seed, _named(progress, "epochs")
        )
        outputs, _ = trained.predict(inputs, val_rows)
    encoder.to("cpu").trained_on = _seen(store, split)
    metrics = {
        "encoder": name,
        "modality": encoder.modality,
        "split": split.name,
        "n_train": len(train_rows),
        "n_val": len(val_rows),
        "unreadable": {str(store.ids[row]): reason for row, reason in inputs.failures.items()},
        "best_epoch": trained.best_epoch,
        "epochs": len(trained.history),
        "train_loss": [epoch["train_loss"] for epoch in trained.history],
        "val_loss": [epoch["val_loss"] for epoch in trained.history],
        "seconds_per_epoch": float(np.median([epoch["seconds"] for epoch in trained.history])),
        "targets": _validation(store, trained, outputs, name, encoder.modality, train_rows, val_rows),
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
    modality = encoder_class(name).modality
    if modality == "midi":
        return MidiAugmentation(config.preprocessing.midi.augmentations)
    if modality != "audio" or not config.preprocessing.audio.augmentations:
        return None
    encoder = build_encoder(name, options)
    assert isinstance(encoder, AudioEncoder)
    return AudioAugmentation(config.preprocessing.audio.augmentations, encoder.sample_rate_hz)


def _device(encoder: Encoder, device: str, precision: str) -> torch.device:
    set_up(encoder, device, precision)
    return next(encoder.parameters()).device


def _seen(store: Store, split: Split) -> dict[str, Any]:
    train, val = split.rows(Part.TRAIN), split.rows(Part.VAL)
    return {
        "split": split.name,
        "n_segments": len(train),
        "ids_sha256": ids_sha256(store.ids[train]),
        "val_ids_sha256": ids_sha256(store.ids[val]),  # they chose the epoch
        "labels": True,
    }


def _validation(
    store: Store,
    trained: Trained,
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
    for target, output in zip(trained.targets, outputs, strict=True):
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
