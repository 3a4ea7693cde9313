"""The encoder record: what wrote a feature, and whether something else may write to it.

A record is a JSON object that the encoder provides (`featurize.encoders.base.EncoderRecord`); the store only compares.
Two records with one fingerprint mean interchangeable vectors.

Vectors that were imported say so in one more field, `imported_from`: file, column, and what the user said of them. It
is kept and shown, but not compared, because the vectors of one encoder may come in several files. Where the user did
not say which encoder it was, the file itself stands in `weights`, and two files are two encoders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from stores.errors import RecordMismatch, StoreError

Record = Mapping[str, Any]

REQUIRED = (
    "encoder",
    "class_name",
    "modality",
    "width",
    "weights",
    "parameters",
    "precision",
    "libraries",
    "trained_on",
)

IMPORTED_FROM = "imported_from"


def check_complete(record: Record) -> None:
    """Raise `StoreError` where a record lacks a field: a feature without provenance is not worth keeping."""
    missing = [key for key in REQUIRED if key not in record]
    if missing:
        raise StoreError(f"The encoder record lacks {', '.join(missing)}; a complete one has {', '.join(REQUIRED)}.")


def fingerprint(record: Record) -> str:
    """SHA-256 (hex) of what is compared of a record, as canonical JSON: sorted keys, no spaces."""
    compared = {key: value for key, value in record.items() if key != IMPORTED_FROM}
    canonical = json.dumps(compared, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(stored: Record, wanted: Record) -> list[str]:
    """What differs, one line a field: `parameters.hop_length: 512 in the store, 256 now`."""
    left, right = _flatten(stored), _flatten(wanted)
    return [
        f"{key}: {left.get(key, 'absent')} in the store, {right.get(key, 'absent')} now"
        for key in sorted({*left, *right})
        if left.get(key) != right.get(key)
    ]


def check_same(feature: str, stored: Record, wanted: Record) -> None:
    """Raise `RecordMismatch` unless both records stand for the same vectors."""
    if fingerprint(stored) == fingerprint(wanted):
        return
    changes = differences(stored, wanted)
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    slot, _, name = feature.partition("/")
    raise RecordMismatch(
        f"The store holds {feature} from {describe(stored)}, this run would write {describe(wanted)} ({shown}).\n"
        f"Keep both with --as {name}-{fingerprint(wanted)[:6]}, or write {slot} anew with --replace."
    )


def command_for(record: Record) -> str:
    """What writes such a feature."""
    if IMPORTED_FROM in record:
        return f"cli import {record[IMPORTED_FROM]['file']} --replace"
    code = record.get("code")  # of a class that came from its user's own file
    name = f"{code['module']}:{record['class_name']}" if code else record["encoder"]
    return f"cli featurize --encoder {name}"


def repair_command(feature: str, record: Record) -> str:
    """What writes damaged rows of the feature `slot/name` again."""
    if IMPORTED_FROM in record:
        return command_for(record)
    name = feature.partition("/")[2]
    saved_as = "" if name == record["encoder"] else f" --as {name}"
    return f"{command_for(record)}{saved_as} --repair"


def describe(record: Record) -> str:
    """One phrase: encoder, weights and fingerprint."""
    weights = record.get("weights") or {}
    source = weights.get("source")
    revision = weights.get("revision")
    origin = f" of {source}" + (f"@{revision[:8]}" if revision else "") if source else ""
    return f"{record.get('encoder')}{origin} [{fingerprint(record)[:6]}]"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, child in value.items():
        flat.update(_flatten(child, f"{prefix}.{key}" if prefix else str(key)))
    return flat
