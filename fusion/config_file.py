"""A commented configuration file made from the models themselves, and their JSON Schema, so that neither can be wrong.

The file states every key with its default. Of what it finds beside itself it fills in `data.path`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from featurize.config import DataConfig
from featurize.errors import ConfigError, SourceError
from featurize.labels import could_be_target, infer_kind, read_label
from featurize.sources import Source, open_source
from featurize.sources.table import listed
from fusion.config import Config

SCHEMA_NAME = "config.schema.json"
LINE_LENGTH = 120
HEAD = f"""\
# yaml-language-server: $schema={SCHEMA_NAME}
# The configuration of this folder's project. Every key stands here with its default: change what you need, and delete
# the rest as you like. --set section.key=value and a command's own options go before this file;
# cli config show tells what is in force, and why.
"""


@dataclass(frozen=True)
class FoundData:
    """path: as `data.path` says it. targets: label to kind, of the labels that could be predicted."""

    path: Path
    n_segments: int
    targets: dict[str, str]


def write_config_file(path: Path) -> FoundData | None:
    """Write a commented file to `path`, and the schema beside it; returns the data set that stands there, if one does.

    Raises `ConfigError` where the file exists.
    """
    if path.exists():
        raise ConfigError(f"{path} exists, and is left as it is. Name another file: cli config init other.yaml")
    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent} to write {path.name} to.")
    found = find_data(path.parent)
    path.write_text(commented_yaml(found), "utf-8")
    beside = path.with_name(SCHEMA_NAME)
    if not beside.exists():
        beside.write_text(json.dumps(json_schema(), indent=2) + "\n", "utf-8")
    return found


def commented_yaml(found: FoundData | None = None) -> str:
    """Every key with its default, and what it means. `load_config` reads it back as the defaults, but for `found`."""
    values = Config().model_dump(mode="json")
    if found is not None:
        values["data"]["path"] = found.path.as_posix()
    lines = list(_lines(Config, values, 0))
    if found is not None and len(found.targets) > 1:
        at = next(number for number, line in enumerate(lines) if line.startswith("  targets:"))
        kinds = listed([f"{name} ({kind})" for name, kind in found.targets.items()])
        example = _flow([{"name": name} for name in list(found.targets)[:2]])
        lines[at:at] = [f"  # The data has {kinds}, such as", f"  #   targets: {example}"]
    return HEAD + "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema of the file, draft 2020-12."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "triad-fusion configuration"}


def find_data(folder: Path) -> FoundData | None:
    """A data set in `folder`, or in a folder of it, that `cli ingest` could read; the first by name."""
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    for candidate in (folder, *inner):
        if not any(candidate.glob(pattern) for pattern in ("*.csv", "segments.parquet", "*_metadata.parquet")):
            continue
        try:
            source = open_source(candidate, DataConfig())
        except SourceError:
            continue
        return FoundData(candidate.relative_to(folder), len(source), dict(_targets(source)))
    return None


def _targets(source: Source) -> Iterator[tuple[str, str]]:
    for name in source.table.other_columns:
        label = read_label(name, source.table.column(name))
        if label is not None and could_be_target(label.values):
            yield name, infer_kind(label.values)


def _lines(model: type[BaseModel], values: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            if depth == 0:
                yield ""
            yield from _stated(f"{indent}{name}:", (section.__doc__ or "").partition("\n")[0], indent)
            yield from _lines(section, values[name], depth + 1)
        else:
            yield from _stated(f"{indent}{name}: {_flow(values[name])}", field.description or "", indent)


def _stated(line: str, comment: str, indent: str) -> Iterator[str]:
    """The comment behind the line where it fits, else before it."""
    behind = f"{line:<40}  # {comment}"
    if len(behind) <= LINE_LENGTH:
        yield behind
    else:
        yield f"{indent}# {comment}"
        yield line


def _flow(value: Any) -> str:
    """A value as YAML in one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
