"""`cli finetune --dry-run`: how long tuning would take, by a few steps on a sample. Nothing is written.

The sample is read, prepared, augmented, and passed forward and back as in training; no step is taken. Whether encoders
and store agree is not checked.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featurize.encode import device_of
from featurize.sources import Source
from fusion.config import Config
from fusion.data import SegmentData
from fusion.end_to_end import EndToEnd, EndToEndData, without_vectors
from fusion.finetuning import raw_inputs, split_of
from fusion.fitting import PARTS
from fusion.leaks import check_encoders
from fusion.live_slots import live_slots
from fusion.load_run import LoadedRun, load_features, load_labels
from fusion.objective import total_loss
from fusion.runs import check_name, free_name
from fusion.targets import Target
from stores.store import Store

PIECES = 3  # batches that are measured; the first is not counted
FORWARD_ONLY = 1 / 3  # of a training step, where nothing is learned


@dataclass(frozen=True)
class TuningPlan:
    """Seconds of one training segment, of reading one, and of all; bytes of what is saved with the run."""

    run: str
    segments: int
    epochs: int
    sample: int
    learning: dict[str, int]  # slot -> weights that learn
    read_seconds: float
    seconds_per_epoch: float
    n_bytes: int

    @property
    def seconds(self) -> float:
        """At most: all epochs, and once more over everything for the evaluation."""
        return self.read_seconds + (self.epochs + FORWARD_ONLY) * self.seconds_per_epoch


def plan_finetuning(
    store: Store,
    source: Source,
    run: LoadedRun,
    config: Config,
    *,
    runs: Path = Path("runs"),
    name: str | None = None,
    places: Mapping[str, Path] | None = None,
    trained: Path = Path("encoders"),
    workers: int = 0,
    device: str = "auto",
    allow_pending: bool = False,
    allow_leak: bool = False,
    overwrite: bool = False,
) -> TuningPlan:
    """What `fusion.finetuning.finetune` would cost with the same arguments; raises what it would raise beforehand."""
    name = check_name(runs, name or free_name(runs, f"{run.name}-tuned"), overwrite)
    config = run.config.model_copy(update={"finetuning": config.finetuning, "preprocessing": config.preprocessing})
    settings = config.finetuning
    split = split_of(run, store)
    rows = {part: split.rows(code) for part, code in PARTS.items()}
    segments = load_features(run, store, allow_pending=allow_pending)
    targets, _ = load_labels(run, store)
    check_encoders(store, run.features, [split], allow_leak)
    live = live_slots(run, store, settings, places or {}, [trained], [runs, run.folder.parent], device)
    piece = min(settings.micro_batch_size or settings.batch_size, len(rows["train"]))
    drawn = np.random.default_rng(settings.seed).permutation(rows["train"])[: PIECES * piece]
    started = time.perf_counter()
    with raw_inputs(live, store, source, config, segments, {"train": drawn}, workers, None) as inputs:
        read = time.perf_counter() - started
        encoders = {slot: one.encoder for slot, one in live.items()}
        frames = {slot: store.feature(run.features[slot]).max_frames for slot in live if slot in run.frame_slots}
        model = EndToEnd(copy.deepcopy(run.model), encoders, frames, settings.precision)
        model.to(device_of(next(iter(encoders.values()))))
        data = EndToEndData(without_vectors(segments, list(live)), inputs, piece)
        per_segment = _seconds_per_segment(
            model, data, segments, targets, rows["train"], drawn, piece, settings.precision
        )
    n_all = sum(map(len, rows.values()))
    per_epoch = per_segment * (len(rows["train"]) + FORWARD_ONLY * len(rows["val"]))
    return TuningPlan(
        run=name,
        segments=len(rows["train"]),
        epochs=settings.epochs,
        sample=len(drawn),
        learning={slot: int(one.facts()["n_learned"]) for slot, one in live.items()},
        read_seconds=read * n_all / len(drawn),
        seconds_per_epoch=per_epoch,
        n_bytes=sum(w.numel() * w.element_size() for w in model.parameters()),
    )


def _seconds_per_segment(
    model: EndToEnd,
    data: EndToEndData,
    segments: SegmentData,
    targets: list[Target],
    train_rows: np.ndarray,
    drawn: np.ndarray,
    piece: int,
    precision: str,
) -> float:
    """Forward and back, in pieces as in training (`fusion.train`)."""
    fitted = [target.fitted_to(train_rows) for target in targets]
    device = next(model.parameters()).device
    pieces = torch.from_numpy(drawn).split(piece)
    took: list[float] = []
    model.train()
    started = time.perf_counter()
    for rows, inputs in data.batches(pieces, augmentation_seed=0):
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits, _ = model(inputs, segments.present[rows])
        loss = total_loss(fitted, [out.float() for out in logits], rows, rows)
        if loss.requires_grad:
            loss.backward()
        model.zero_grad(set_to_none=True)
        took.append((time.perf_counter() - started) / len(rows))
        started = time.perf_counter()
    return float(np.mean(took[1:] or took))
