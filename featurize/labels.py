"""Label columns: from the table's cells to store columns, and what kind of target each one makes.

A label is text (missing: empty), a number (missing: NaN), or a fixed-length list of numbers (missing: a row of NaN).
Lists of texts become JSON text. Anything else is no label.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurize.config import TargetConfig, TargetKind
from featurize.errors import ConfigError
from featurize.sources.lists import is_list, is_list_of_numbers, read_lists
from featurize.sources.table import parse_numbers
from stores.base import STRING

NUMERIC_SHARE = 0.9  # a text column this full of numbers is a number column; the rest of it is unreadable
MAX_CLASSES = 50  # a text with more different values is a description rather than a class
MAX_INTEGER_CLASSES = 20


@dataclass(frozen=True)
class Label:
    """values: as the store keeps them. unreadable: rows whose cell could not be understood and counts as missing."""

    name: str
    values: np.ndarray
    unreadable: list[int]


def read_label(name: str, column: pa.ChunkedArray, *, as_number: bool = False) -> Label | None:
    """A table column as a label; `None` where its type makes none. `as_number`: a target says that it is one."""
    kind = column.type
    if pa.types.is_null(kind):
        return None
    if pa.types.is_dictionary(kind):
        column = pc.cast(column, kind.value_type)
        kind = column.type
    if pa.types.is_boolean(kind):
        return Label(name, _texts([None if v is None else str(v).lower() for v in column.to_pylist()]), [])
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return Label(name, *parse_numbers(column))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _read_text_label(name, column, as_number)
    if is_list(kind):
        return _read_list_label(name, column)
    return None


def infer_kind(values: np.ndarray) -> TargetKind:
    """What a label, (N,) or (N, K), most likely is: the default where the configuration names no kind."""
    if values.dtype.kind == "T":
        return "multi_label" if any(value.startswith("[") for value in values.tolist()) else "categorical"
    if values.ndim == 2:
        known = values[~np.isnan(values).any(axis=1)]
        binary = ((known == 0) | (known == 1)).all() and not (known.sum(axis=1) == 1).all()
        return "multi_label" if binary else "soft_distribution"
    known = values[~np.isnan(values)]
    whole = bool((known == np.round(known)).all())
    return "categorical" if whole and len(np.unique(known)) <= MAX_INTEGER_CLASSES else "regression"


def resolve_targets(targets: list[TargetConfig], labels: dict[str, np.ndarray]) -> list[TargetConfig]:
    """The targets with column and kind filled in. With none configured, the one label that can be a target.

    labels: by name, (N,) or (N, K).

    Raises `ConfigError` where a column is missing, or where the choice is not clear.
    """
    if not targets:
        candidates = [name for name, values in labels.items() if could_be_target(values)]
        if len(candidates) != 1:
            found = ", ".join(candidates) or "none"
            raise ConfigError(
                f"Which label is to be predicted? The store has {found}.\n"
                "Name one or several: --target NAME, or model.targets in config.yaml."
            )
        targets = [TargetConfig(name=candidates[0])]
    resolved = []
    for target in targets:
        columns = target.columns or [target.column or target.name]
        for column in columns:
            if column not in labels:
                raise ConfigError(f"Target {target.name}: there is no label {column!r}; known: {', '.join(labels)}.")
        kind = target.kind or ("soft_distribution" if target.columns else infer_kind(labels[columns[0]]))
        resolved.append(target.model_copy(update={"kind": kind, "column": None if target.columns else columns[0]}))
    names = [target.name for target in resolved]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two targets share a name: {', '.join(names)}. Each needs its own.")
    return resolved


def strata(values: np.ndarray, bins: int = 5) -> np.ndarray:
    """Text (N,): the class a split is stratified by. Numbers fall into quantile bins, lists to their largest entry."""
    if values.dtype.kind == "T":
        return values
    if values.ndim == 2:
        missing = np.isnan(values).any(axis=1)
        largest = np.argmax(np.nan_to_num(values), axis=1)
        return np.where(missing, "", largest.astype(str)).astype(STRING)
    missing = np.isnan(values)
    known = values[~missing]
    if len(np.unique(known)) <= MAX_INTEGER_CLASSES:
        return np.where(missing, "", values.astype(str)).astype(STRING)
    edges = np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1])
    return np.where(missing, "", np.searchsorted(edges, values).astype(str)).astype(STRING)


def could_be_target(values: np.ndarray) -> bool:
    """Whether a label, (N,) or (N, K), has few enough classes, or numbers that differ."""
    if values.dtype.kind == "T":
        distinct = len(set(values.tolist()) - {""})
        return 2 <= distinct <= min(MAX_CLASSES, max(2, len(values) // 2))
    return bool((~np.isnan(values)).any()) and len(np.unique(values[~np.isnan(values)])) >= 2


def _read_text_label(name: str, column: pa.ChunkedArray, as_number: bool) -> Label:
    texts = column.to_pylist()
    filled = sum(1 for text in texts if text)
    numbers, unreadable = parse_numbers(column)
    if filled and (as_number or len(unreadable) <= (1 - NUMERIC_SHARE) * filled):
        return Label(name, numbers, unreadable)
    return Label(name, _texts(texts), [])


def _read_list_label(name: str, column: pa.ChunkedArray) -> Label | None:
    if pa.types.is_string(column.type.value_type):
        rows = column.to_pylist()
        return Label(name, _texts([None if row is None else json.dumps(row, ensure_ascii=False) for row in rows]), [])
    if not is_list_of_numbers(column.type):
        return None
    lists = read_lists(column)
    widths, counts = np.unique(lists.lengths[lists.lengths >= 0], return_counts=True)
    width = int(widths[np.argmax(counts)]) if len(widths) else 0
    if width == 0:
        return None
    values = np.full((len(column), width), np.nan, np.float32)
    rows, found = lists.of_width(width)
    finite = np.isfinite(found).all(axis=1)
    values[rows[finite]] = found[finite]
    unreadable = np.flatnonzero((lists.lengths >= 0) & np.isnan(values).any(axis=1)).tolist()
    return Label(name, values, unreadable)


def _texts(values: list[str | None]) -> np.ndarray:
    return np.array([value or "" for value in values], dtype=STRING)
