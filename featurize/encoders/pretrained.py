"""Load Hugging Face checkpoints by name, folder and revision, and neither run nor unpickle anything of theirs.

Weights come from safetensors, or from `.bin` files read with `weights_only=True`; code that a repository ships is never
run. What was loaded is told by name, revision and the SHA-256 of the weights themselves.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from featurize.errors import ConfigError

CODE = "code that the checkpoint ships (auto_map), which is never run. Use a model that transformers itself has."


def load_model(auto_class: Any, name_or_path: str, revision: str | None = None, **settings: Any) -> Any:
    """`auto_class.from_pretrained(…)` in float32, in evaluation mode. Raises `ConfigError`, one line that helps.

    auto_class: `AutoModel`, `ClapModel`, … of transformers; settings go to it.
    """
    # of `.bin` weights transformers would otherwise ask the hub, in a thread, for a conversion
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    with _explained(name_or_path, revision), _quiet():
        # use_safetensors stays open: many well-known repositories (microsoft/deberta-v3-base) have only .bin weights
        model, report = auto_class.from_pretrained(
            name_or_path,
            revision=revision or "main",
            dtype=torch.float32,
            weights_only=True,
            trust_remote_code=False,
            local_files_only=_offline(),
            output_loading_info=True,
            **settings,
        )
    _refuse_code(name_or_path, getattr(model.config, "auto_map", None))
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key and "masked_spec_embed" not in key)
    if missing:  # transformers fills them with random numbers: vectors that mean nothing, and differ each time
        raise ConfigError(
            f"{name_or_path} lacks {len(missing)} of the weights that {type(model).__name__} needs, e.g. {missing[0]}. "
            "Is it a checkpoint of this kind of model?"
        )
    return model.eval()


def load_companion(auto_class: Any, name_or_path: str, revision: str | None = None, **settings: Any) -> Any:
    """A tokenizer, feature extractor or configuration of a checkpoint. Raises `ConfigError`."""
    with _explained(name_or_path, revision), _quiet():
        return auto_class.from_pretrained(
            name_or_path,
            revision=revision or "main",
            trust_remote_code=False,
            local_files_only=_offline(),
            **settings,
        )


def _refuse_code(name_or_path: str, auto_map: Any) -> None:
    """transformers has a class of this model's type, yet the weights are of the one that the repository ships."""
    if auto_map:
        raise ConfigError(f"Cannot load {name_or_path}: its config.json asks for {CODE}")


def recompute_activations(model: Any) -> bool:
    """Gradient checkpointing, where a model of transformers has it."""
    if not model.supports_gradient_checkpointing:
        return False
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # the first name is of later versions, which warn of the second
    return True


def origin(name_or_path: str, revision: str | None, model: Any) -> dict[str, str]:
    """`source` and `revision` for the encoder record. A local folder is told by its name: the path is not the weights.

    revision: the commit that the hub gave, where it gave one.
    """
    if Path(name_or_path).exists():
        return {"source": Path(name_or_path).resolve().name}
    from huggingface_hub import try_to_load_from_cache

    # models of transformers 5 no longer know their commit: the cache keeps files under it
    cached = try_to_load_from_cache(name_or_path, "config.json", revision=revision or "main")
    found = Path(cached).parent.name if isinstance(cached, str) else None
    commit = getattr(model.config, "_commit_hash", None) or found or revision
    return {"source": name_or_path, **({"revision": commit} if commit else {})}


@contextmanager
def _explained(name_or_path: str, revision: str | None) -> Iterator[None]:
    """Whatever transformers raises about a checkpoint, in one line: its name, where we looked, and a way."""
    try:
        yield
    except ConfigError:
        raise
    except (pickle.UnpicklingError, struct.error) as error:  # torch's own message tells how to run it all the same
        raise ConfigError(
            f"Cannot load {name_or_path}: its .bin file of weights holds something else than tensors, and was not read."
        ) from error
    except Exception as error:  # a dozen kinds, from a missing file to a configuration of another model
        if "trust_remote_code" in str(error):
            raise ConfigError(f"Cannot load {name_or_path}: its configuration asks for {CODE}") from error
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at = f"@{revision}" if revision else ""
        path = Path(name_or_path)
        if path.exists():
            raise ConfigError(f"Cannot load a checkpoint from {path}: {first}") from error
        from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE

        reason = "which cannot be reached" if _offline() else first.rstrip(".")
        raise ConfigError(
            f"Cannot load {name_or_path}{at}: no such folder, not in {HF_HUB_CACHE}, nor from {ENDPOINT} ({reason}).\n"
            "Give a local checkpoint: --option pretrained_model=FOLDER"
        ) from error


@lru_cache(maxsize=1)
def _offline() -> bool:
    """Whether the hub is out of reach. Asked once: huggingface_hub retries for half a minute before it says so."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE or getproxies():  # behind a proxy, names need not resolve here
        return bool(HF_HUB_OFFLINE)
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports: what matters in them is raised."""
    from transformers.utils import logging as transformers_logging

    logger = transformers_logging.get_logger("transformers")
    level, bar = logger.level, transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bar:
            transformers_logging.enable_progress_bar()
