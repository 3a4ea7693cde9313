"""Whether an encoder keeps the contract of `featurize.encoders.base`: for the author of a new one.

check_encoder(MyEncoder)     # raises `ConfigError`, which says which promise is broken
"""

from __future__ import annotations

import csv
import inspect
import json
import pickle
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from featurize.encoders.base import Encoded, Encoder
from featurize.errors import ConfigError, TriadError
from featurize.segments import MODALITIES, Raw, RawAudio, RawMidi, RawText, UnreadableInput
from featurize.user_code import spec_of

TOLERANCE = 1e-3  # largest relative deviation of a vector between batches, in fp32
LARGEST = 65504.0  # of float16
LEARNED = ("weights", "trained_on", "width")  # of a record: what fitting and training add


@dataclass(frozen=True)
class Checked:
    """What was looked at. deviation: largest difference of a vector between batches, relative to its largest number."""

    encoder: str
    segments: int
    width: int
    deviation: float

    def __repr__(self) -> str:
        return (
            f"{self.encoder}: {self.segments} segments to {self.width} columns each; alone, together and backwards "
            f"within {self.deviation:.1e}"
        )


class Broken(Exception):
    """A promise, in words."""


def check_encoder(encoder: Encoder | type[Encoder], raws: Sequence[Raw] | None = None) -> Checked:
    """Encode some raw inputs in several ways, and compare.

    encoder: a class that can be built without options, or an encoder that is ready, fitted where it must be. raws: at
    least two inputs of its modality (`featurize.segments.RawText`, `RawAudio`, `RawMidi`); of the demo where `None`.
    Raises `ConfigError`, which says which promise is broken.
    """
    if isinstance(encoder, type):
        encoder = _built(encoder)
    check_facts(encoder)
    if raws is not None:
        return _check(encoder, raws)
    with _demo_raws(encoder.modality) as raws:
        return _check(encoder, raws)


def check_facts(encoder: Encoder) -> None:
    """Raise `ConfigError` where an encoder does not say what it is."""
    cls, name = type(encoder).__qualname__, getattr(encoder, "name", None)
    if not isinstance(name, str) or not name or "/" in name:
        raise ConfigError(f'{cls} has no name. Give the class one, without a slash: name = "{cls.lower()}"')
    if getattr(encoder, "modality", None) not in MODALITIES:
        raise ConfigError(f"{cls} has no modality. Derive it from TextEncoder, AudioEncoder or MIDIEncoder.")
    width = getattr(encoder, "width", None)
    if not encoder.must_fit and (not isinstance(width, int) or width < 1):
        raise ConfigError(f"{cls} has no width. Set self.width in __init__ to the columns of a vector.")
    settings = getattr(encoder, "settings", None)
    if not isinstance(settings, dict):
        raise ConfigError(f"{cls} has no settings. Set self.settings in __init__ to all that changes a number.")
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{cls}.settings must be JSON, for the store keeps them: {error}.") from error


def _built(cls: type[Encoder]) -> Encoder:
    try:
        return cls()
    except Exception as error:
        raise ConfigError(f"{spec_of(cls)} cannot be built without options: {type(error).__name__}: {error}") from error


def _check(encoder: Encoder, raws: Sequence[Raw]) -> Checked:
    if encoder.must_fit and not encoder.state_arrays():
        encoder.fit(raws)
    encoder.eval()
    deviation = 0.0
    try:
        _vectors_are_sound(encoder, raws)
        deviation = _deviation_between_batches(encoder, raws)
        _preparing_is_repeatable(encoder, raws)
        _it_travels(encoder, raws)
        _its_record_builds_it_again(encoder)
    except UnreadableInput as error:
        raise ConfigError(f"{encoder.name}: one of the inputs cannot be read: {error}.") from error
    except (TriadError, Broken) as error:
        raise ConfigError(f"{spec_of(type(encoder))} breaks the contract of an encoder: {error}.") from error
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[-1]
        why = " ".join(str(error).split())
        raise ConfigError(
            f"{spec_of(type(encoder))} fails in {at.name}(), line {at.lineno} of {at.filename}: "
            f"{type(error).__name__}: {why}"
        ) from error
    return Checked(spec_of(type(encoder)), len(raws), encoder.width, deviation)


def _vectors_are_sound(encoder: Encoder, raws: Sequence[Raw]) -> None:
    items = [item for item in map(encoder.prepare, raws) if item is not None]
    if len(items) < 2:
        raise Broken(f"prepare() returned None for all but {len(items)} of {len(raws)} inputs; two are needed")
    with torch.inference_mode():
        encoded = encoder(encoder.collate(items))
    check_output(encoder, encoded)
    if len(encoded.pooled) != len(items):
        raise Broken(f"{len(items)} items gave {len(encoded.pooled)} vectors")
    vectors = encoded.pooled.float()
    if not vectors.isfinite().all():
        raise Broken("a vector holds NaN or infinity")
    if vectors.abs().max() > LARGEST:
        raise Broken(f"a vector holds {float(vectors.abs().max()):g}, beyond what float16 can store")


def _deviation_between_batches(encoder: Encoder, raws: Sequence[Raw]) -> float:
    raws = [raw for raw in raws if encoder.prepare(raw) is not None]
    together = _encode(encoder, raws)
    alone = np.concatenate([_encode(encoder, [raw]) for raw in raws])
    backwards = _encode(encoder, raws[::-1])[::-1]
    scale = np.maximum(np.abs(together).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    found = max(float(np.abs((other - together) / scale).max()) for other in (alone, backwards))
    if found > TOLERANCE:
        raise Broken(
            "a segment alone, or in another order, has another vector than among others, by "
            f"{found:.1e} of its largest number (allowed {TOLERANCE:g}): padding, or chance, reaches it"
        )
    return found


def _preparing_is_repeatable(encoder: Encoder, raws: Sequence[Raw]) -> None:
    for raw, of_many in zip(raws, encoder.prepare_many(raws), strict=True):
        item = pickle.dumps(encoder.prepare(raw))
        if item != pickle.dumps(encoder.prepare(raw)):
            raise Broken("prepare() gives another item when it is called again: chance belongs in training only")
        if item != pickle.dumps(of_many):
            raise Broken("prepare_many() gives another item than prepare()")


def _it_travels(encoder: Encoder, raws: Sequence[Raw]) -> None:
    """To the processes that prepare: without its weights."""
    light = pickle.loads(pickle.dumps(encoder.without_weights()))
    for raw in raws:
        if pickle.dumps(light.prepare(raw)) != pickle.dumps(encoder.prepare(raw)):
            raise Broken("prepare() needs weights, which the processes that prepare do not have")


def _its_record_builds_it_again(encoder: Encoder) -> None:
    stored = json.loads(json.dumps(encoder.record.to_dict()))  # as a store keeps it
    options = encoder.options_of(stored["parameters"])
    if "pretrained_model" in inspect.signature(type(encoder)).parameters and encoder.loaded_from:
        options["pretrained_model"] = encoder.loaded_from["source"]
    again = json.loads(json.dumps(type(encoder)(**options).record.to_dict()))
    learned = LEARNED if encoder.must_fit or encoder.must_train else ()
    changed = sorted(key for key in stored if key not in learned and stored[key] != again[key])
    if changed:
        raise Broken(
            f"built again with {options or 'no options'}, it has other {', '.join(changed)}: settings must hold every "
            "option of __init__ under its own name, and weights that are drawn must be seeded"
        )


def check_output(encoder: Encoder, encoded: Any) -> None:
    """Raise `ConfigError` where `forward` did not return vectors of the width that was promised."""
    if not isinstance(encoded, Encoded):
        raise ConfigError(f"{encoder.name}.forward() returned a {type(encoded).__name__}; expected Encoded(vectors).")
    shape = tuple(encoded.pooled.shape)
    if len(shape) != 2 or shape[1] != encoder.width:
        raise ConfigError(f"{encoder.name}.forward() gave vectors of shape {shape}; expected (B, {encoder.width}).")


@torch.inference_mode()
def _encode(encoder: Encoder, raws: Sequence[Raw]) -> np.ndarray:
    vectors: np.ndarray = encoder(encoder.collate([encoder.prepare(raw) for raw in raws])).pooled.float().numpy()
    return vectors


@contextmanager
def _demo_raws(modality: str) -> Iterator[list[Raw]]:
    """Some segments of the demo that have this modality."""
    from featurize.demo import make_demo

    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        table = make_demo(Path(folder), n_songs=3, segments_per_song=3, segment_seconds=2.0)
        with table.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row[f"{modality}_path"]]
        yield [_raw(modality, table.parent, row) for row in rows]


def _raw(modality: str, root: Path, row: dict[str, str]) -> Raw:
    path, times = root / row[f"{modality}_path"], (float(row["start_seconds"]), float(row["end_seconds"]))
    if modality == "text":
        return RawText(path.read_text("utf-8"))
    return (RawAudio if modality == "audio" else RawMidi)(path=path, start_seconds=times[0], end_seconds=times[1])
