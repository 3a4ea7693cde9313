"""The very encoder that wrote a feature, built again from its record, for inputs that the store does not have.

A record holds every choice that decides the numbers, and tells weights by their SHA-256. The weights themselves stand
elsewhere, and where depends on the encoder:

fitted       with the feature in its store, as its state
trained      in a folder that `cli train-encoder` wrote
pretrained   in a Hugging Face checkpoint, by name and revision; a local one is told by its name alone

What was built is believed only where its own record is the same again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featurize.encode import set_up
from featurize.encoders import build_encoder, encoder_class, known_encoders, name_in
from featurize.encoders.base import Encoder
from featurize.errors import CodeNotAllowed, ConfigError, UnknownName
from featurize.trained import WEIGHTS, is_trained, load_trained
from stores.record import Record, differences, fingerprint


def rebuild_encoder(
    feature: str,
    record: Record,
    state: Mapping[str, np.ndarray] | None = None,
    *,
    place: Path | None = None,
    searched: Sequence[Path] = (),
    device: str = "auto",
    allow_other_versions: bool = False,
) -> Encoder:
    """The encoder that wrote `feature` (`slot/name`, for messages), on its device and in its precision.

    state: arrays (…) of an encoder that was fitted (`stores.feature.Feature.state`). place: where a trained encoder or
    a checkpoint stands. searched: folders of trained encoders, looked through where no place is given. Raises
    `ConfigError` where it cannot be built, or is not the same: other versions of libraries are told apart, too, unless
    `allow_other_versions`.
    """
    encoder = _build(feature, record, state or {}, place, searched)
    set_up(encoder, device, str(record["precision"]))
    _check_same(feature, record, encoder.record.to_dict(), allow_other_versions)
    return encoder


def _build(
    feature: str, record: Record, state: Mapping[str, np.ndarray], place: Path | None, searched: Sequence[Path]
) -> Encoder:
    name, weights = name_in(record), dict(record["weights"])
    try:
        cls = encoder_class(name)
    except UnknownName as error:
        raise ConfigError(
            f"{feature} was made by {name}, which is no encoder here: it cannot encode anything new. Known: "
            f"{', '.join(known_encoders())}."
        ) from error
    except CodeNotAllowed as error:
        raise CodeNotAllowed(f"{feature}: {error}") from error
    if place is not None and not place.exists():
        raise ConfigError(f"{feature}: there is nothing at {place}.")
    if place is not None and is_trained(place):
        return load_trained(place, name, {})
    if cls.must_train:
        return load_trained(place, name, {}) if place is not None else _find_trained(feature, record, searched)
    options = cls.options_of(record["parameters"])
    if not cls.must_fit and weights and "pretrained_model" in inspect.signature(cls).parameters:
        options["pretrained_model"] = str(place or weights["source"])
        if place is None and "revision" in weights:
            options["revision"] = weights["revision"]
        return _build_pretrained(feature, name, options, given=place is not None)
    encoder = build_encoder(name, options)
    if cls.must_fit:
        if not state:
            raise ConfigError(f"{feature}: the store has its vectors, but not what {name} learned. Featurize it again.")
        encoder.load_state_arrays(state)
        encoder.trained_on = record["trained_on"]
    return encoder


def _build_pretrained(feature: str, name: str, options: Mapping[str, Any], *, given: bool) -> Encoder:
    try:
        return build_encoder(name, options)
    except ConfigError as error:
        if given:
            raise
        slot, why = feature.partition("/")[0], str(error).partition("\n")[0].partition(": ")[2]
        raise ConfigError(
            f"{feature} was made with the checkpoint {options['pretrained_model']!r}, which is not found by that name: "
            f"{why}\nSay where it is: --encoder {slot}=FOLDER"
        ) from error


def _find_trained(feature: str, record: Record, searched: Sequence[Path]) -> Encoder:
    """The trained encoder with the record's weights, whatever its folder is called."""
    name, wanted = name_in(record), record["weights"].get("sha256")
    for parent in searched:
        for path in sorted(parent.glob(f"*/{WEIGHTS}")):
            try:
                encoder = load_trained(path.parent, name, {})
            except ConfigError:  # another encoder, or none
                continue
            if encoder.weights().get("sha256") == wanted:
                return encoder
    listed = ", ".join(map(str, searched)) or "nowhere"
    slot = feature.partition("/")[0]
    raise ConfigError(
        f"{feature} was made by a trained {name} with weights {str(wanted)[:8]}…, which is not in {listed}.\n"
        f"Say where it is: --encoder {slot}=FOLDER"
    )


def _check_same(feature: str, stored: Record, found: Record, allow_other_versions: bool) -> None:
    if allow_other_versions:
        found = {**found, "libraries": stored["libraries"]}
    if fingerprint(stored) == fingerprint(found):
        return
    changes = differences(stored, found)
    shown = "; ".join(changes[:3]) + (f"; and {len(changes) - 3} more" if len(changes) > 3 else "")
    if all(change.startswith("libraries.") for change in changes):
        remedy = "Install these versions, or accept the ones there are with --allow-other-versions."
    elif any(change.startswith("code.") for change in changes):
        remedy = "Put its file back as it was, or write the feature anew: cli featurize --replace"
    else:
        remedy = f"Say where the encoder is that wrote it: --encoder {feature.partition('/')[0]}=FOLDER"
    raise ConfigError(f"{feature}: the encoder built here is not the one that wrote it ({shown}).\n{remedy}")
