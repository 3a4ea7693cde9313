"""`finetune`: a run's head and the encoders that wrote its features, trained together on raw segments.

The run says where to begin: its head with its standardization, its targets, and the split that both have learned from.
The encoders are those that wrote its features, built again from their records. Before anything is learned, the live
encoders must give the logits that the store's vectors give, within what their storage rounds; and the model as it comes
is epoch 0, so that the result is never worse on validation than the run it came from.

What is left is a run like any other, with its tuned encoders beside it. Their slots are called as the features that
`cli featurize --encoder RUN:slot` makes of them.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurize.encode import device_of
from featurize.project import StoreRows
from featurize.sources import Source
from featurize.trained import TUNED
from fusion import baselines
from fusion.checkpoint import Checkpoint
from fusion.config import Config, FinetuningConfig, SlotTrainingConfig
from fusion.data import SegmentData
from fusion.end_to_end import EndToEnd, EndToEndData, without_vectors
from fusion.evaluate import FUSION, Predictions, evaluate, pattern_rows, patterns
from fusion.fitting import METRICS_FORMAT, PARTS, Run, model_facts, run_environment, training_key
from fusion.identity import check_identity
from fusion.leaks import check_encoders, seen
from fusion.live_slots import LiveSlot, live_slots
from fusion.load_run import LoadedRun, load_features, load_labels, own_store
from fusion.prediction_table import prediction_table
from fusion.raw_data import EVALUATION_BATCH, RawInputs
from fusion.report_parts import ReportParts
from fusion.runs import CHECKPOINTS, check_name, free_name, new_run, write_config, write_json, write_model, write_table
from fusion.targets import Target
from fusion.tracking.base import TrackedRun, Tracker
from fusion.tracking.log import tracked, training_series
from fusion.train import Trained, train_model
from fusion.train_encoder import augmentation_for
from stores.errors import TriadError
from stores.record import fingerprint
from stores.store import Split, Store

BEFORE = "before fine-tuning"  # the run it came from, among the baselines
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
Results = dict[str, dict[str, Predictions]]  # model -> part -> predictions


def finetune(
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
    say: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
    trackers: Sequence[Tracker] = (),
) -> Run:
    """Tune a run's encoders with its head, and leave a new run in `runs`.

    config: `finetuning` and `preprocessing` are read, all else is the run's own. places: by slot, where a trained
    encoder or a checkpoint stands. trained: where `cli train-encoder` leaves its encoders. Raises `TriadError`s where
    something does not fit, and where the encoders do not give what the store holds.
    """
    name = check_name(runs, name or free_name(runs, f"{run.name}-tuned"), overwrite)
    config = run.config.model_copy(update={"finetuning": config.finetuning, "preprocessing": config.preprocessing})
    settings = config.finetuning
    split = split_of(run, store)
    rows = {part: split.rows(code) for part, code in PARTS.items()}
    segments = load_features(run, store, allow_pending=allow_pending)
    targets, notes = load_labels(run, store)
    notes += check_encoders(store, run.features, [split], allow_leak)
    torch.manual_seed(settings.seed)  # LoRA's weights begin at random
    live = live_slots(run, store, settings, places or {}, [trained], [runs, run.folder.parent], device)
    notes += [note for slot in live.values() for note in slot.notes]
    results = _what_to_beat(run, segments, targets, rows, settings.seed)
    key = hashlib.sha256(training_key(store, segments, targets, [split], config).encode())
    key.update((run.folder / "model.safetensors").read_bytes())

    facts = {"from": run.name, "slots": {slot: name.partition("/")[2] for slot, name in run.features.items()}}
    tracked_run = TrackedRun("finetune", name, config.model_dump(mode="json"), facts)
    with (
        tracked(trackers, tracked_run, runs / name) as log,
        raw_inputs(live, store, source, config, segments, rows, workers, progress) as inputs,
    ):
        at_once = min(EVALUATION_BATCH, settings.micro_batch_size or EVALUATION_BATCH)
        data = EndToEndData(without_vectors(segments, list(live)), inputs, at_once)
        frames = {slot: store.feature(run.features[slot]).max_frames for slot in live if slot in run.frame_slots}
        encoders = {slot: one.encoder for slot, one in live.items()}
        model = EndToEnd(copy.deepcopy(run.model), encoders, frames, settings.precision)
        model.to(device_of(next(iter(encoders.values()))))
        identity = check_identity(run, model, data, segments, rows["val"], settings.tolerance)
        segments = without_vectors(segments, list(live))  # from here on the encoders give them
        say(
            f"Encoders and store agree: on {identity['rows']:,} validation segments no logit differs by more than "
            f"{identity['largest_difference']:.1e} (allowed {settings.tolerance + identity['rounding']:.1e})."
        )
        training = training_series(FUSION, split.name, settings.seed)
        with new_run(runs, name) as folder:
            tuned = train_model(
                model,
                data,
                targets,
                rows["train"],
                rows["val"],
                _loop_settings(settings, live),
                settings.seed,
                _named(progress, "epochs"),
                Checkpoint(folder / CHECKPOINTS / "model.pt", key.hexdigest()),
                first_epoch=0,
                watch=lambda history: log.training(training, history),
            )
            log.training(training, tuned.history)  # also where no epoch was left to train
            for one in live.values():
                one.unfrozen.merge()
            weights = _predict(results, tuned, data, segments, rows, settings.seed)
            for one in live.values():
                one.finish(seen(store, split, True, one.encoder.trained_on))
            features = {**run.features, **{slot: one.tuned_feature(name) for slot, one in live.items()}}
            result = _with_features(config, features)
            metrics = {
                **_run_facts(run, name, features, segments, split, settings.seed),
                "notes": notes + _notes(tuned),
                "targets": evaluate(segments, targets, results, config.training.bootstrap),
                "model": {"split": split.name, "seed": settings.seed, "epoch": tuned.best_epoch},
                "finetuning": _tuning_facts(run, live, tuned, identity),
            }
            write_config(folder, result)
            write_json(folder / "environment.json", _environment(store, features, live, split))
            write_table(folder / "history.parquet", _history(tuned, split, settings.seed))
            test = results[FUSION]["test"]
            write_table(folder / "predictions.parquet", prediction_table(segments, targets, [split], test, weights))
            facts = model_facts(result.model.fusion, features, segments.widths, run.frame_slots, tuned.targets)
            write_model(folder / "model.safetensors", model.head.cpu().state_dict(), facts)
            for slot, one in live.items():
                one.save(folder / TUNED / slot)
            write_json(folder / "metrics.json", metrics)
            from fusion.report import write_report  # matplotlib is slow to import

            write_report(folder, ReportParts(), store=store)
    return Run(runs / name, metrics)


# Before it learns


def split_of(run: LoadedRun, store: Store) -> Split:
    """The split that the run was trained on; raises `TriadError` where this store does not have it as it was."""
    if own_store(run, store) is not store:
        raise TriadError(
            f"{store.tree.location} does not have split {run.split_name} as run {run.name} was trained on it.\n"
            f"Give its own store, {run.environment['store']}, or train the run again with cli fit."
        )
    return store.split(run.split_name)


def _what_to_beat(
    run: LoadedRun, segments: SegmentData, targets: list[Target], rows: Mapping[str, np.ndarray], seed: int
) -> Results:
    """The run as it comes, and the baselines that know the same features."""
    results: Results = defaultdict(lambda: defaultdict(Predictions))
    for part, part_rows in rows.items():
        results[BEFORE][part].add(seed, 0, part_rows, run.predict(segments, part_rows))
    for baseline, by_part in baselines.predictions(segments, targets, rows).items():
        for part, outputs in by_part.items():
            results[baseline][part].add(0, 0, rows[part], outputs)
    return results


@contextmanager
def raw_inputs(
    live: Mapping[str, LiveSlot],
    store: Store,
    source: Source,
    config: Config,
    segments: SegmentData,
    rows: Mapping[str, np.ndarray],
    workers: int,
    progress: Progress | None,
) -> Iterator[dict[str, RawInputs]]:
    """By live slot, of part to row numbers (n,), the raw inputs of the split's segments that have one.

    Raises `TriadError` where one is gone.
    """
    of_split = np.sort(np.concatenate(list(rows.values())))
    found = {}
    with ExitStack() as exits:
        for slot, one in live.items():
            wanted = of_split[segments.present[of_split, segments.slots.index(slot)].numpy()]
            inputs = RawInputs(
                one.encoder,
                StoreRows(store, source, one.encoder.modality),
                wanted,
                store.n_segments,
                augmentation=augmentation_for(config, one.encoder),
                workers=workers,
                progress=_named(progress, f"{slot} segments read"),
            )
            found[slot] = exits.enter_context(inputs)
            gone = wanted[~inputs.present[wanted, 0].numpy()]
            if len(gone):
                why = inputs.failures.get(int(gone[0]), "there is nothing to encode")
                raise TriadError(
                    f"{one.feature} has {len(gone):,} segments whose {slot} cannot be read any more, e.g. "
                    f"{store.ids[gone[0]]!r}: {why}.\nPut it back, or say where the data is: --set data.path=FOLDER"
                )
        yield found


def _loop_settings(settings: FinetuningConfig, live: Mapping[str, LiveSlot]) -> FinetuningConfig:
    """With a learning rate of its own for each pretrained encoder that has not been given one."""
    slots = dict(settings.slots)
    for slot in (slot for slot, one in live.items() if one.is_pretrained):
        own = slots.get(slot, SlotTrainingConfig())
        slots[slot] = own.model_copy(update={"lr": own.lr or settings.pretrained_lr})
    return settings.model_copy(update={"slots": slots})


# After it has learned


def _predict(
    results: Results,
    tuned: Trained,
    data: EndToEndData,
    segments: SegmentData,
    rows: Mapping[str, np.ndarray],
    seed: int,
) -> dict[tuple[int, int], np.ndarray]:
    """Add what the tuned model says of every part and pattern. Returns the slot weights of the test part."""
    weights = {}
    for part, part_rows in rows.items():
        outputs, importance = tuned.predict(data, part_rows)
        results[FUSION][part].add(seed, 0, part_rows, outputs)
        if part == "test" and importance is not None:
            weights[seed, 0] = importance.numpy()
    for pattern in patterns(segments.slots):
        kept, shown = pattern_rows(segments, rows["test"], pattern)
        outputs, _ = tuned.predict(data, kept, shown)
        results[FUSION]["pattern/" + "+".join(pattern)].add(seed, 0, kept, outputs)
    return weights


def _run_facts(
    run: LoadedRun, name: str, features: Mapping[str, str], segments: SegmentData, split: Split, seed: int
) -> dict[str, Any]:
    return {
        "format": METRICS_FORMAT,
        "run": name,
        "fusion": run.metrics["fusion"],
        "slots": {slot: feature.partition("/")[2] for slot, feature in features.items()},
        "split": {**run.metrics["split"], "name": split.name, "folds": 1},
        "seeds": [seed],
        "n_segments": len(segments.ids),
        "n_groups": len(np.unique(segments.groups)),
        "presence": {slot: float(segments.present[:, i].float().mean()) for i, slot in enumerate(segments.slots)},
    }


def _tuning_facts(
    run: LoadedRun, live: Mapping[str, LiveSlot], tuned: Trained, identity: Mapping[str, Any]
) -> dict[str, Any]:
    before, *epochs = tuned.history
    return {
        "from": run.name,
        "slots": {slot: one.facts() for slot, one in live.items()},
        "identity": dict(identity),
        "epochs": len(epochs),
        "best_epoch": tuned.best_epoch,
        "val_loss": {"before": before["val_loss"], "after": tuned.history[tuned.best_epoch]["val_loss"]},
        "seconds_per_epoch": float(np.median([epoch["seconds"] for epoch in epochs])),
    }


def _notes(tuned: Trained) -> list[str]:
    if tuned.best_epoch > 0:
        return []
    return ["No epoch was better on validation than the run it came from; the weights are as they were."]


def _with_features(config: Config, features: Mapping[str, str]) -> Config:
    """The configuration of the result, with which `cli fit` would read its features."""
    names = {slot: feature.partition("/")[2] for slot, feature in features.items()}
    fusion = config.model.fusion.model_copy(update={"features": names, "slots": list(features)})
    return config.model_copy(update={"model": config.model.model_copy(update={"fusion": fusion})})


def _environment(
    store: Store, features: Mapping[str, str], live: Mapping[str, LiveSlot], split: Split
) -> dict[str, Any]:
    """With the fingerprints that the features of the tuned encoders are going to have."""
    found = run_environment(store, {slot: name for slot, name in features.items() if slot not in live}, [split])
    found["features"] |= {features[slot]: fingerprint(one.encoder.record.to_dict()) for slot, one in live.items()}
    return found


def _history(tuned: Trained, split: Split, seed: int) -> dict[str, list[Any]]:
    """The columns of `history.parquet`. In epoch 0 there is no gradient."""
    epochs = [{"model": FUSION, "split": split.name, "seed": seed, **epoch} for epoch in tuned.history]
    return {column: [epoch.get(column) for epoch in epochs] for column in epochs[-1]}


def _named(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(what, done, total)
