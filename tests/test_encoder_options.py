"""The configuration selects and tunes encoders; what an encoder does not have is refused, not ignored."""

from __future__ import annotations

import pytest

from featurize.encoder_options import check_sample_rate, configured_options
from featurize.encoders import build_encoder
from featurize.errors import ConfigError
from fusion.config import validated


def config(**sections):
    return validated(sections, "test")


def test_a_section_counts_for_its_own_encoder_and_preprocessing_for_all():
    settings = config(
        model={"audio_encoder": {"type": "mel_cnn", "hidden_dim": 64, "options": {"n_mels": 32}}},
        preprocessing={"audio": {"sample_rate": 16000, "duration": 10.0}},
    )
    assert configured_options(settings, "mel_cnn") == {
        "hidden_dim": 64,
        "n_mels": 32,
        "duration_seconds": 10.0,
        "sample_rate_hz": 16000,
    }
    assert configured_options(settings, "mel_stats") == {"duration_seconds": 10.0, "sample_rate_hz": 16000}
    assert configured_options(settings, "wav2vec2") == {"duration_seconds": 10.0}
    assert configured_options(settings, "lsa") == {}


def test_pretrained_model_is_an_option_of_pretrained_and_of_trained_encoders():
    for name, modality in (("deberta", "text"), ("clap", "audio"), ("wav2vec2", "audio"), ("mel_cnn", "audio")):
        section = {f"{modality}_encoder": {"type": name, "pretrained_model": "there/it-is"}}
        assert configured_options(config(model=section), name) == {"pretrained_model": "there/it-is"}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"audio_encoder": {"type": "mel_stats", "hidden_dim": 64}}, "hidden_dim is 64, but encoder mel_stats has no"),
        ({"audio_encoder": {"type": "mel_stats", "pretrained_model": "x"}}, "pretrained_model is x, but encoder mel_s"),
    ],
)
def test_what_an_encoder_does_not_have_is_refused(section, message):
    with pytest.raises(ConfigError, match=message):
        configured_options(config(model=section), section["audio_encoder"]["type"])


def test_a_sample_rate_that_an_encoder_does_not_hear_is_refused():
    settings = config(preprocessing={"audio": {"sample_rate": 44100}})
    encoder = build_encoder("mel_stats", configured_options(settings, "mel_stats"))
    check_sample_rate(settings, encoder)
    assert encoder.sample_rate_hz == 44100
    with pytest.raises(ConfigError, match=r"sample_rate is 44100, but mel_stats hears 22050 Hz only. Leave it null"):
        check_sample_rate(settings, build_encoder("mel_stats"))
    check_sample_rate(settings, build_encoder("lsa"))


def test_a_duration_decodes_no_more_than_that(demo_data):
    from tests.test_encoders import demo_raws

    (raw,) = demo_raws(demo_data, "audio", most=1)
    short = build_encoder("mel_stats", {"duration_seconds": 0.5})
    assert len(short.load(raw)) == round(0.5 * short.sample_rate_hz)
    whole = build_encoder("mel_stats", {"duration_seconds": 60.0})
    assert len(whole.load(raw)) == len(build_encoder("mel_stats").load(raw))
