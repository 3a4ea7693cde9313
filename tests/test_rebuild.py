"""An encoder built again from the record of its feature is the one that wrote it, or is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from featurize.encode import encode
from featurize.encoders import build_encoder
from featurize.errors import ConfigError
from featurize.pipeline import ids_sha256
from featurize.rebuild import rebuild_encoder
from featurize.segments import RawText
from featurize.trained import load_trained, save_trained
from stores.record import fingerprint
from tests.test_deberta import KINDS, WORDS, new_model, new_tokenizer
from tests.test_encoders import demo_raws, fitted_lsa


def stored(encoder) -> dict:
    """The encoder's record as a store gives it back."""
    return json.loads(json.dumps(encoder.record.to_dict()))


def vectors(encoder, raws) -> np.ndarray:
    return np.stack([row.vector for row in encode(encoder.eval(), [encoder.prepare(raw) for raw in raws])])


def check_the_same(encoder, again, raws) -> None:
    assert fingerprint(again.record.to_dict()) == fingerprint(encoder.record.to_dict())
    np.testing.assert_array_equal(vectors(again, raws), vectors(encoder, raws))


@pytest.fixture(scope="module")
def lyrics(demo_data) -> list[RawText]:
    return demo_raws(demo_data, "text", most=40)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "small-deberta"
    family, config, tokenizer = KINDS["deberta-v2"]
    new_model(family, config).save_pretrained(folder)
    new_tokenizer(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def trained(tmp_path):
    """A trained encoder in a folder that is not called as it is, beside one of another kind and other weights."""
    folder = tmp_path / "encoders"
    for name, kind, options in (
        ("a", "piano_roll", {"hidden_dim": 8, "channels": [2, 2]}),
        ("b", "mel_cnn", {"hidden_dim": 8, "channels": [2, 3]}),
        ("c", "mel_cnn", {"hidden_dim": 8, "channels": [2, 3]}),
    ):
        (folder / name).mkdir(parents=True)
        encoder = build_encoder(kind, options)
        encoder.trained_on = {"split": "default", "n_segments": 3, "ids_sha256": ids_sha256(np.array(["a"]))}
        save_trained(folder / name, encoder, options)
    (folder / "broken").mkdir()
    (folder / "broken" / "model.safetensors").write_bytes(b"nothing")
    return folder


def test_options_that_are_not_the_defaults_are_taken_from_the_record(demo_data):
    encoder = build_encoder("mel_stats", {"n_mels": 32, "n_mfcc": 8, "n_fft": 1024, "duration_seconds": 0.5})
    check_the_same(encoder, rebuild_encoder("audio/small", stored(encoder)), demo_raws(demo_data, "audio", most=3))


def test_what_was_fitted_comes_from_the_state(lyrics):
    encoder = fitted_lsa(lyrics)
    encoder.trained_on = {"split": "default", "n_segments": 40, "ids_sha256": "0", "labels": False}
    again = rebuild_encoder("text/lsa", stored(encoder), encoder.state_arrays())
    check_the_same(encoder, again, lyrics[:5])
    assert again.trained_on == encoder.trained_on
    with pytest.raises(ConfigError, match="not what lsa learned"):
        rebuild_encoder("text/lsa", stored(encoder))
    other = fitted_lsa(lyrics[:20])
    with pytest.raises(ConfigError, match=r"text/lsa: .*weights\.sha256"):
        rebuild_encoder("text/lsa", stored(encoder), other.state_arrays())


def test_what_was_trained_is_found_by_its_weights(trained, demo_data):
    raws = demo_raws(demo_data, "audio", most=3)
    for name in ("b", "c"):
        encoder = load_trained(trained / name, "mel_cnn", {})
        check_the_same(encoder, rebuild_encoder("audio/mine", stored(encoder), searched=[trained]), raws)
    shutil.move(trained / "c", trained.parent / "elsewhere")
    with pytest.raises(ConfigError, match=r"(?s)which is not in .*encoders.*--encoder audio=FOLDER"):
        rebuild_encoder("audio/mine", stored(encoder), searched=[trained])
    again = rebuild_encoder("audio/mine", stored(encoder), place=trained.parent / "elsewhere", searched=[trained])
    check_the_same(encoder, again, raws)
    with pytest.raises(ConfigError, match=r"weights\.sha256"):
        rebuild_encoder("audio/mine", stored(encoder), place=trained / "b")
    with pytest.raises(ConfigError, match="holds a trained piano_roll"):
        rebuild_encoder("audio/mine", stored(encoder), place=trained / "a")


def test_a_checkpoint_in_a_folder_must_be_named_again(checkpoint, project):
    encoder = build_encoder("deberta", {"pretrained_model": str(checkpoint), "max_tokens": 24})
    raws = [RawText(" ".join(WORDS[:9])), RawText(WORDS[3])]
    with pytest.raises(
        ConfigError, match=r"(?s)made with the checkpoint 'small-deberta', which is not found.*--encoder text=FOLDER"
    ):
        rebuild_encoder("text/deberta", stored(encoder))
    check_the_same(encoder, rebuild_encoder("text/deberta", stored(encoder), place=checkpoint), raws)
    with pytest.raises(ConfigError, match="nothing at nowhere"):
        rebuild_encoder("text/deberta", stored(encoder), place=Path("nowhere"))


def test_other_versions_are_refused_until_they_are_accepted(demo_data):
    encoder = build_encoder("midi_stats")
    record = stored(encoder)
    library = next(iter(record["libraries"]))
    record["libraries"][library] = "0.0.1"
    with pytest.raises(ConfigError, match=rf"libraries\.{library}: 0\.0\.1 in the store.*\n.*--allow-other-versions"):
        rebuild_encoder("midi/midi_stats", record)
    again = rebuild_encoder("midi/midi_stats", record, allow_other_versions=True)
    np.testing.assert_array_equal(*(vectors(e, demo_raws(demo_data, "midi", most=2)) for e in (encoder, again)))
    record["parameters"]["seconds_floor"] = 1.0
    with pytest.raises(ConfigError, match=r"parameters\.seconds_floor"):
        rebuild_encoder("midi/midi_stats", record, allow_other_versions=True)


def test_what_no_encoder_made_is_told():
    record = {**stored(build_encoder("midi_stats")), "encoder": "somebody_elses"}
    with pytest.raises(ConfigError, match=r"text/theirs was made by somebody_elses.*cannot encode anything new"):
        rebuild_encoder("text/theirs", record)
