"""The encoders, by name. Adding one is adding a file and a line here.

Others come from the user's own file, `my_encoder.py:MyEncoder`, and from installed packages (`featurize.user_code`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurize.errors import ConfigError, UnknownName
from featurize.user_code import UserClasses, is_ours, spec_of

if TYPE_CHECKING:
    from featurize.encoders.base import Encoder
    from featurize.encoders.check import check_encoder as check_encoder

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


def _base() -> type:
    from featurize.encoders.base import Encoder

    return Encoder


USER_ENCODERS = UserClasses("encoder", "triad_fusion.encoders", _base)


def __getattr__(name: str) -> Any:
    if name == "check_encoder":
        from featurize.encoders.check import check_encoder

        return check_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def known_encoders() -> list[str]:
    """Names of what comes with this package, and of what others have installed; none of it is imported."""
    return [*ENCODERS, *(name for name in USER_ENCODERS.installed() if name not in ENCODERS)]


def encoder_class(name: str) -> type[Encoder]:
    """The class behind `name`. Raises `UnknownName`, which lists the known ones, `CodeNotAllowed` on others' code."""
    if name in ENCODERS:
        module, _, qualname = ENCODERS[name].partition(":")
        found: type[Encoder] | None = getattr(import_module(module), qualname)
    else:
        found = USER_ENCODERS.find(name)
    if found is None:
        raise UnknownName("encoder", name, known_encoders())
    return found


def name_of(encoder: Encoder | type[Encoder]) -> str:
    """What `encoder_class` finds it by."""
    cls = encoder if isinstance(encoder, type) else type(encoder)
    return encoder.name if is_ours(cls) else spec_of(cls)


def name_in(record: Mapping[str, Any]) -> str:
    """The same of the encoder that a record tells of."""
    code = record.get("code")
    return f"{code['module']}:{record['class_name']}" if code else str(record["encoder"])


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
        encoder = cls(**(options or {}))
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in (options or {}).items())
        raise ConfigError(f"Encoder {name} cannot take {given or 'no options'}: {error}.") from error
    if not is_ours(cls):
        from featurize.encoders.check import check_facts

        check_facts(encoder)
    return encoder
