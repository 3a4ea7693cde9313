"""The encoders, by name. Adding one is adding a file and a line here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurize.errors import ConfigError, UnknownName

if TYPE_CHECKING:
    from featurize.encoders.base import Encoder

# Name: where the class lives. Imported when asked for, so that one encoder never waits for another's libraries.
ENCODERS = {
    "deberta": "featurize.encoders.deberta:DebertaEncoder",
    "lsa": "featurize.encoders.lsa:LSAEncoder",
    "token_embeddings": "featurize.encoders.token_embeddings:TokenEmbeddingEncoder",
    "wav2vec2": "featurize.encoders.wav2vec2:Wav2Vec2Encoder",
    "clap": "featurize.encoders.clap:CLAPEncoder",
    "mel_cnn": "featurize.encoders.mel_cnn:MelCNNEncoder",
    "mel_patches": "featurize.encoders.mel_patches:MelPatchEncoder",
    "mel_stats": "featurize.encoders.mel_stats:MelStatsEncoder",
    "piano_roll": "featurize.encoders.piano_roll:PianoRollEncoder",
    "piano_roll_columns": "featurize.encoders.piano_roll_columns:PianoRollColumnsEncoder",
    "event": "featurize.encoders.event:EventBasedEncoder",
    "music_transformer": "featurize.encoders.music_transformer:MusicTransformer",
    "midi_stats": "featurize.encoders.midi_stats:MIDIStatsEncoder",
}


def encoder_class(name: str) -> type[Encoder]:
    """The class behind `name`. Raises `UnknownName`, which lists the known ones."""
    if name not in ENCODERS:
        raise UnknownName("encoder", name, ENCODERS)
    module, _, qualname = ENCODERS[name].partition(":")
    found: type[Encoder] = getattr(import_module(module), qualname)
    return found


def build_encoder(name: str, options: Mapping[str, Any] | None = None) -> Encoder:
    """A new encoder with `options` for its constructor.

    Raises `UnknownName` on an unknown encoder or option, `ConfigError` on a value that the encoder cannot take.
    """
    cls = encoder_class(name)
    known = [p for p in inspect.signature(cls).parameters if p != "self"]
    for option in options or {}:
        if option not in known:
            raise UnknownName(f"option of encoder {name}", option, known)
    try:
        return cls(**(options or {}))
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in (options or {}).items())
        raise ConfigError(f"Encoder {name} cannot take {given}: {error}.") from error
