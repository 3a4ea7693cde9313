"""Encoders that were trained here: one folder each, with everything needed to build them again.

model.safetensors     weights; in its metadata the encoder's name, options and what it was trained on
record.json           the encoder record of its vectors; written by `cli finetune`
config.yaml, environment.json, metrics.json, history.parquet     how that went; written by `cli train-encoder`

A pretrained encoder that was tuned keeps its weights alone here: its tokenizer and configuration are those of the
checkpoint that it began with, which its options name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

from featurize.encoders import build_encoder, encoder_class, name_of
from featurize.encoders.base import Encoder
from featurize.errors import ConfigError
from stores.record import Record

WEIGHTS = "model.safetensors"
RECORD = "record.json"
TRAINED = {"source": "cli train-encoder"}
TUNED = "encoders"  # folder of a run that holds those that `cli finetune` has tuned, each under its slot's name


def save_trained(
    folder: Path, encoder: Encoder, options: Mapping[str, Any], loaded_from: Mapping[str, str] = TRAINED
) -> None:
    """Write weights and facts. options: what `build_encoder` needs to build the same network.

    loaded_from: what the record will say of the weights, beside their SHA-256.
    """
    facts = {
        "encoder": name_of(encoder),
        "options": dict(options),
        "trained_on": dict(encoder.trained_on or {}),
        "loaded_from": dict(loaded_from),
    }
    save_file(encoder.state_arrays(), folder / WEIGHTS, metadata={"triad_fusion": json.dumps(facts, sort_keys=True)})


def is_trained(folder: Path) -> bool:
    """Whether a trained encoder stands there; a Hugging Face checkpoint calls its file of weights the same."""
    path = folder / WEIGHTS if folder.is_dir() else folder
    try:
        with safe_open(path, framework="numpy") as file:
            return "triad_fusion" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_trained(folder: Path, name: str, options: Mapping[str, Any]) -> Encoder:
    """The encoder `name` that stands in `folder`. Raises `ConfigError` where it does not, or has other `options`.

    options: `pretrained_model` says where the checkpoint is now that a tuned encoder began with.
    """
    path = folder / WEIGHTS if folder.is_dir() else folder
    if not path.is_file():
        raise ConfigError(
            f"{name} has no weights in {folder} yet. Train them: cli train-encoder --encoder {name}\n"
            "or say where they are: --option pretrained_model=FOLDER"
        )
    facts, arrays = _read(path)
    if facts["encoder"] != name:
        raise ConfigError(f"{path} holds a trained {facts['encoder']}, not {name}.")
    begun_with = {key: value for key, value in options.items() if key == "pretrained_model" and key in facts["options"]}
    for option, value in options.items():
        if option in begun_with:
            continue
        if option not in facts["options"] or facts["options"][option] != value:
            has = facts["options"].get(option, "its default")
            raise ConfigError(
                f"{name} in {folder} was trained with {option}={has}, this run asks for {value}.\n"
                f"Leave {option} away, or train it so: cli train-encoder --encoder {name}"
            )
    encoder = build_encoder(name, {**facts["options"], **begun_with})
    try:
        encoder.load_state_arrays(arrays)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit {name} as it is now: {str(error).splitlines()[0]}") from error
    if broken := broken_weight(encoder):
        raise ConfigError(f"{path}: {broken} holds NaN or infinity. Train it again: cli train-encoder")
    encoder.trained_on = facts["trained_on"]
    encoder.loaded_from = facts.get("loaded_from", TRAINED)
    return encoder.eval()


def broken_weight(module: nn.Module) -> str | None:
    """A weight that is not finite, or another number that is NaN: the scale of a constant column may be infinite."""
    for name, weight in module.named_parameters():
        if not weight.isfinite().all():
            return name
    return next((name for name, value in module.named_buffers() if value.isnan().any()), None)


def trained_options(folder: Path) -> dict[str, Any]:
    """What `build_encoder` needs for the encoder in `folder`. Raises `ConfigError`."""
    options: dict[str, Any] = _read(folder / WEIGHTS if folder.is_dir() else folder)[0]["options"]
    return options


def open_tuned(run_and_slot: str, options: Mapping[str, Any]) -> tuple[Encoder, str]:
    """From `RUN:slot` to the encoder that `cli finetune` tuned there, and what its feature is called.

    RUN: a folder, or a name in `runs/`. Raises `ConfigError` where it has none for this slot.
    """
    run, _, slot = run_and_slot.rpartition(":")
    for folder in _folders_of(run):
        path = folder / TUNED / slot
        if slot and (path / WEIGHTS).is_file():
            name = str(_read(path / WEIGHTS)[0]["encoder"])
            return load_trained(path, name, options), tuned_name(encoder_class(name).name, folder.resolve().name)
    paths = [path for folder in _folders_of(run) for path in folder.glob(f"{TUNED}/*/{WEIGHTS}")]
    tuned = [path.parent.name for path in paths]
    has = f"it has {', '.join(sorted(tuned))}" if tuned else "nor any other"
    raise ConfigError(f"Run {run} has no tuned encoder for {slot or 'no slot'}; {has}. cli finetune makes them.")


def has_tuned(run_and_slot: str) -> bool:
    """Whether `RUN:slot` names a run that is there, whatever it has."""
    run = run_and_slot.rpartition(":")[0]
    return any((folder / "metrics.json").is_file() or (folder / TUNED).is_dir() for folder in _folders_of(run))


def find_tuned(record: Record, runs: Path) -> Path | None:
    """Where `cli finetune` left the encoder of this record, if in one of these runs."""
    for path in sorted(runs.glob(f"*/{TUNED}/*/{RECORD}")):
        found = json.loads(path.read_text("utf-8"))
        # not by the weights alone: where no epoch was better they are those it began with, whose record is another
        if all(found[key] == record[key] for key in ("encoder", "weights", "trained_on")):
            return path.parent
    return None


def _folders_of(run: str) -> tuple[Path, Path]:
    return Path(run), Path("runs") / run


def tuned_name(encoder_name: str, run_name: str) -> str:
    """What the feature of an encoder is called that a run has tuned."""
    return f"{encoder_name}-{run_name}"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Facts and weights. Raises `ConfigError`."""
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["triad_fusion"])
            if not isinstance(facts, dict) or not {"encoder", "options", "trained_on"} <= facts.keys():
                raise ValueError("its metadata says nothing of an encoder")
            # `keys()`: no mapping, though it looks like one
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not an encoder that cli train-encoder wrote: {error}") from error
    return facts, arrays
