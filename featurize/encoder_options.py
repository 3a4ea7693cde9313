"""From the configuration to the options of an encoder: `model.<modality>_encoder` and `preprocessing`."""

from __future__ import annotations

import inspect
from typing import Any

from featurize.config import FeaturizeConfig
from featurize.encoders import encoder_class
from featurize.errors import ConfigError


def configured_options(config: FeaturizeConfig, encoder_name: str) -> dict[str, Any]:
    """What the file says for this encoder. Raises `ConfigError` where it asks for what the encoder does not have.

    `model.<modality>_encoder` counts where its `type` is this encoder; `preprocessing` counts for all of a modality.
    """
    cls = encoder_class(encoder_name)
    known = set(inspect.signature(cls).parameters) | ({"pretrained_model"} if cls.must_train else set())
    options: dict[str, Any] = {}
    section = config.model.encoder_for(cls.modality)
    if section is not None and section.type == encoder_name:
        options |= section.options
        for key, value in section.model_dump(exclude={"type", "options"}, exclude_none=True).items():
            if key not in known:
                raise ConfigError(
                    f"model.{cls.modality}_encoder.{key} is {value}, but encoder {encoder_name} has no {key}. "
                    "Leave it null."
                )
            options[key] = value
    if cls.modality == "midi":
        midi = config.preprocessing.midi
        options |= {key: getattr(midi, key) for key in ("tokenization", "max_events") if key in known}
    if cls.modality == "audio":
        audio = config.preprocessing.audio
        if audio.duration is not None:
            options["duration_seconds"] = audio.duration
        if audio.sample_rate is not None and "sample_rate_hz" in known:
            options["sample_rate_hz"] = audio.sample_rate
    return options


def check_sample_rate(config: FeaturizeConfig, encoder: Any) -> None:
    """Raise `ConfigError` where `preprocessing.audio.sample_rate` is not what a pretrained encoder needs."""
    wanted = config.preprocessing.audio.sample_rate
    if encoder.modality == "audio" and wanted not in (None, encoder.sample_rate_hz):
        raise ConfigError(
            f"preprocessing.audio.sample_rate is {wanted}, but {encoder.name} hears {encoder.sample_rate_hz} Hz only. "
            "Leave it null: every encoder then resamples to its own rate."
        )
