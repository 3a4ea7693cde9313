"""Encoders that were trained here: one folder each, with everything needed to build them again.

model.safetensors     weights; in its metadata the encoder's name, options and what it was trained on
config.yaml, environment.json, metrics.json, history.parquet     how that went
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from featurize.encoders import build_encoder
from featurize.encoders.base import Encoder
from featurize.errors import ConfigError

WEIGHTS = "model.safetensors"


def save_trained(folder: Path, encoder: Encoder, options: Mapping[str, Any]) -> None:
    """Write weights and facts. options: what `build_encoder` needs to build the same network."""
    facts = {"encoder": encoder.name, "options": dict(options), "trained_on": dict(encoder.trained_on or {})}
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
    """The encoder `name` that stands in `folder`. Raises `ConfigError` where it does not, or has other `options`."""
    path = folder / WEIGHTS if folder.is_dir() else folder
    if not path.is_file():
        raise ConfigError(
            f"{name} has no weights in {folder} yet. Train them: cli train-encoder --encoder {name}\n"
            "or say where they are: --option pretrained_model=FOLDER"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {})["triad_fusion"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping, though it looks like one)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not an encoder that cli train-encoder wrote: {error}") from error
    if facts["encoder"] != name:
        raise ConfigError(f"{path} holds a trained {facts['encoder']}, not {name}.")
    for option, value in options.items():
        if option not in facts["options"] or facts["options"][option] != value:
            has = facts["options"].get(option, "its default")
            raise ConfigError(
                f"{name} in {folder} was trained with {option}={has}, this run asks for {value}.\n"
                f"Leave {option} away, or train it so: cli train-encoder --encoder {name}"
            )
    encoder = build_encoder(name, facts["options"])
    try:
        encoder.load_state_arrays(arrays)
    except RuntimeError as error:
        raise ConfigError(f"{path} does not fit {name} as it is now: {str(error).splitlines()[0]}") from error
    encoder.trained_on = facts["trained_on"]
    encoder.loaded_from = {"source": "cli train-encoder"}
    return encoder.eval()
