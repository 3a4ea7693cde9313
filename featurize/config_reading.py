"""From a file, plain values or a model to a checked configuration, whatever layer asks for it.

Of a whole configuration this layer reads its own sections: those of the layer above are left for that to check.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from featurize.bounded_yaml import read_yaml
from featurize.config import FeaturizeConfig
from featurize.errors import ConfigError

DEFAULT_PATH = Path("config.yaml")
OF_THE_LAYER_ABOVE = ("training", "encoder_training", "finetuning")  # and `model.fusion`

Given = BaseModel | Mapping[str, Any] | str | Path | None  # what a function from Python takes for a configuration
C = TypeVar("C", bound=FeaturizeConfig)

_brief = Repr()
_brief.maxstring = _brief.maxother = _brief.maxlong = 100


def given_config(given: Given, kind: type[C]) -> C:
    """What is given as a configuration of this kind: a model, plain values, a file, or `None`.

    `None` is what `cli` would take: `config.yaml` in the current folder where there is one, else the defaults. Raises
    `ConfigError`.
    """
    if isinstance(given, kind):
        return given
    if isinstance(given, BaseModel):
        return validated(given.model_dump(), "the configuration", kind)
    if isinstance(given, Mapping):
        values, origin = dict(given), "the configuration"
    else:
        path = file_in_force(None if given is None else Path(given))
        values, origin = ({}, "the defaults") if path is None else (read_file(path), str(path))
    if kind is FeaturizeConfig:
        values = {key: value for key, value in values.items() if key not in OF_THE_LAYER_ABOVE}
        if isinstance(values.get("model"), Mapping):
            values["model"] = {key: value for key, value in values["model"].items() if key != "fusion"}
    return validated(values, origin, kind)


def file_in_force(path: Path | None) -> Path | None:
    """The file that is named, else `config.yaml` in this folder, where there is one."""
    return DEFAULT_PATH if path is None and DEFAULT_PATH.is_file() else path


def validated(values: Mapping[str, Any], origin: str, kind: type[C]) -> C:
    """A configuration from plain values. Raises `ConfigError` with one line for each mistake."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(mistake), kind) for mistake in error.errors()]
        raise ConfigError(f"{origin}: " + "\n".join(lines[:5])) from error


def read_file(path: Path) -> dict[str, Any]:
    """What a file says, unchecked. Raises `ConfigError` where it is no YAML mapping."""
    try:
        values = read_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read configuration {path}: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-45
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; a configuration is a mapping of sections.")
    return values


def _explain(mistake: dict[str, Any], kind: type[BaseModel]) -> str:
    where = ".".join(str(part)[:100] for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        known = _keys_beside(mistake["loc"], kind)
        near = get_close_matches(str(mistake["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}."
        return f"unknown key {where!r}; {hint}"
    try:
        value = _brief.repr(mistake["input"])
    except ValueError:  # Python writes no integer of more than 4,300 digits
        value = "a number of thousands of digits"
    return f"{where} is {value}: {mistake['msg']}."


def _keys_beside(location: tuple[Any, ...], kind: type[BaseModel]) -> list[str]:
    section: Any = kind
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        section = next((a for a in (annotation, *arguments) if isinstance(a, type) and issubclass(a, BaseModel)), kind)
    return list(section.model_fields)
