"""Every encoder passes the contract; `lsa` is tested here, the others in files of their own."""

from __future__ import annotations

import csv
from importlib import import_module

import numpy as np
import pytest

from featurize.config import DataConfig
from featurize.encoders import ENCODERS, build_encoder
from featurize.encoders.lsa import LSAEncoder
from featurize.errors import ConfigError, UnknownName
from featurize.segments import RawText, UnreadableInput
from featurize.sources import open_source
from featurize.text import clean_text
from tests.encoders_contract import EncoderContract


def demo_raws(demo_data, modality: str, most: int = 8) -> list:
    """Different inputs of one modality from the demo songs."""
    source = open_source(demo_data, DataConfig())
    raws = {raw.digest(): raw for row in range(len(source)) if (raw := source.raw(row, modality)) is not None}
    return list(raws.values())[:most]


@pytest.fixture(scope="session")
def lyrics(demo_data) -> list[RawText]:
    return demo_raws(demo_data, "text", most=40)


def fitted_lsa(lyrics: list[RawText]) -> LSAEncoder:
    encoder = LSAEncoder(n_components=16)
    encoder.fit(lyrics)
    return encoder


class TestLSAContract(EncoderContract):
    @pytest.fixture
    def encoder(self, lyrics):
        return fitted_lsa(lyrics)

    @pytest.fixture
    def new_encoder(self):
        return lambda: LSAEncoder(n_components=16)

    @pytest.fixture
    def raws(self, lyrics):
        return lyrics[:8]


class WeightlessContract(EncoderContract):
    """For encoders without weights: the same whenever they are built."""

    name: str
    modality: str

    @pytest.fixture
    def encoder(self):
        return build_encoder(self.name)

    @pytest.fixture
    def new_encoder(self):
        return lambda: build_encoder(self.name)

    @pytest.fixture
    def raws(self, demo_data):
        return demo_raws(demo_data, self.modality)


class TestMelStatsContract(WeightlessContract):
    name, modality = "mel_stats", "audio"


class TestMIDIStatsContract(WeightlessContract):
    name, modality = "midi_stats", "midi"


ELSEWHERE = {
    "mel_patches": "patches",
    "piano_roll_columns": "patches",
    "token_embeddings": "patches",
    "piano_roll": "piano_roll_encoder",
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_under_contract(name):
    """Here, or in a file of its own."""
    here = {"lsa": TestLSAContract, "mel_stats": TestMelStatsContract, "midi_stats": TestMIDIStatsContract}
    if name not in here:
        found = vars(import_module(f"tests.test_{ELSEWHERE.get(name, name)}")).values()
        contracts = [kind for kind in found if isinstance(kind, type) and issubclass(kind, EncoderContract)]
        assert any(kind.__name__.startswith("Test") for kind in contracts)


def test_an_unknown_encoder_or_option_lists_the_known_ones():
    with pytest.raises(UnknownName, match=r"'mel_stat'. Did you mean 'mel_stats'\? Known: deberta, lsa"):
        build_encoder("mel_stat")
    with pytest.raises(UnknownName, match="option of encoder lsa 'components'"):
        build_encoder("lsa", {"components": 3})
    with pytest.raises(ConfigError, match="Encoder mel_stats cannot take n_mfcc=100: n_mfcc is 100; expected at most"):
        build_encoder("mel_stats", {"n_mfcc": 100})
    with pytest.raises(ConfigError, match="cannot take n_mels='many'"):
        build_encoder("mel_stats", {"n_mels": "many"})


@pytest.mark.parametrize(
    "text", ["", "  \n ", "[Instrumental]", "(instrumental)", "♪ ♫", "...", "INSTRUMENTAL", "no lyrics"]
)
def test_nothing_sung_is_absent(lyrics, text):
    assert clean_text(text) is None and fitted_lsa(lyrics).prepare(RawText(text)) is None


@pytest.mark.parametrize("text", ["Instrumental in my downfall", "la", "none of us", "日本"])
def test_short_lyrics_are_lyrics(text):
    assert clean_text(text) == text


def test_lsa_brings_texts_of_one_topic_together():
    sea = [f"{a} ship on the deep blue sea and a {b} sailor" for a in ("old", "new", "lost") for b in ("young", "sad")]
    fire = [f"{a} fire burning in the {b} night of flames" for a in ("hot", "wild", "red") for b in ("long", "cold")]
    encoder = LSAEncoder(n_components=4)
    encoder.fit([RawText(text) for text in sea + fire])
    items = [encoder.prepare(RawText(text)) for text in ["sailor of the sea", "flames and fire", "blue sea ship"]]
    vectors = encoder(encoder.collate(items)).pooled.numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert unit[0] @ unit[2] > unit[0] @ unit[1] + 0.2


def test_lsa_without_texts_says_so():
    with pytest.raises(UnreadableInput, match="at least 3 texts"):
        LSAEncoder().fit([RawText("one"), RawText("[instrumental]"), RawText("two")])


def test_a_text_of_unknown_words_is_present_and_zero(lyrics):
    encoder = fitted_lsa(lyrics)
    item = encoder.prepare(RawText("日本語"))
    assert item is not None and not encoder(encoder.collate([item, encoder.prepare(lyrics[0])])).pooled[0].any()


def test_the_demo_has_enough_to_test_with(demo_data):
    with (demo_data / "segments.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 48
    assert all(len(demo_raws(demo_data, modality)) >= 6 for modality in ("text", "audio", "midi"))
