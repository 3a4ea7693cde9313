"""Where each value of the configuration in force comes from: `default`, the file, or `--set`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.config import Config, file_in_force, key_of, load_config, read_file

DEFAULT, SET = "default", "--set"


@dataclass(frozen=True)
class Setting:
    """key: `training.lr`. value: as JSON has it. origin: `default`, `--set`, or the file's path."""

    key: str
    value: Any
    origin: str
    is_changed: bool  # it is not the default, wherever it is stated


def settings(path: Path | None = None, overrides: Iterable[str] = ()) -> list[Setting]:
    """Every value of `load_config(path, overrides)`, in its order. Raises `ConfigError` as that does."""
    overrides = list(overrides)
    config = load_config(path, overrides)
    path = file_in_force(path)
    in_file = read_file(path) if path is not None else {}
    keys = [key_of(override) for override in overrides]
    defaults = dict(_leaves(Config().model_dump(mode="json")))
    found = []
    for key, value in _leaves(config.model_dump(mode="json")):
        origin = DEFAULT
        if any(key == of_set or key.startswith(f"{of_set}.") for of_set in keys):
            origin = SET
        elif _states(in_file, key.split(".")):
            origin = str(path)
        found.append(Setting(key, value, origin, key not in defaults or value != defaults[key]))
    return found


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _states(values: Any, keys: list[str]) -> bool:
    """Whether a mapping has a value under these keys, one within the other."""
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
