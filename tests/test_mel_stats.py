"""`mel_stats`: golden sounds whose features are known by ear, and finite vectors for everything else."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featurize.encoders.mel_stats import STATISTICS, MelStatsEncoder
from featurize.encoders.pulse import pulse_features
from featurize.segments import RawAudio

RATE_HZ = 22050


@pytest.fixture(scope="module")
def encoder() -> MelStatsEncoder:
    return MelStatsEncoder()


def raw_audio(samples: np.ndarray) -> RawAudio:
    return RawAudio(samples=samples.astype("<f4").tobytes(), sample_rate_hz=RATE_HZ)


def features(encoder: MelStatsEncoder, samples: np.ndarray) -> dict[str, float]:
    vector = encoder.prepare(raw_audio(samples))
    return dict(zip(encoder.feature_names, vector.tolist(), strict=True))


def column(found: dict[str, float], name: str, statistic: str) -> np.ndarray:
    return np.array([value for key, value in found.items() if key.startswith(f"{name}[") and key.endswith(statistic)])


def tone(*frequencies_hz: float, seconds: float = 2.0, amplitude: float = 1.0) -> np.ndarray:
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return amplitude / len(frequencies_hz) * np.sum([np.sin(2 * np.pi * f * t) for f in frequencies_hz], axis=0)


def noise(seconds: float = 2.0, amplitude: float = 1.0, seed: int = 0) -> np.ndarray:
    return amplitude * np.random.default_rng(seed).uniform(-1, 1, int(seconds * RATE_HZ))


def clicks(bpm: float, seconds: float) -> np.ndarray:
    samples = np.zeros(int(seconds * RATE_HZ))
    click = tone(1000, seconds=0.02) * np.hanning(int(0.02 * RATE_HZ))
    for start in (np.arange(0.1, seconds - 0.1, 60 / bpm) * RATE_HZ).astype(int):
        samples[start : start + len(click)] += click
    return samples


def test_names_say_what_each_column_is(encoder: MelStatsEncoder) -> None:
    names = encoder.feature_names
    assert len(names) == len(set(names)) == encoder.width == len(encoder.prepare(raw_audio(noise())))
    assert 250 <= encoder.width <= 350
    assert {"log_mel_db[0].mean", "chroma[9].std", "rms_db.p90", "key_clarity.major", "tempo_log2_bpm"} <= set(names)
    assert {name.partition("[")[0].partition(".")[0] for name in names} >= set(STATISTICS)


@pytest.mark.parametrize("frequency_hz", [110.0, 440.0, 3520.0])
def test_a_sine_of_a(encoder: MelStatsEncoder, frequency_hz: float) -> None:
    found = features(encoder, tone(frequency_hz))
    assert np.argmax(column(found, "chroma", "mean")) == 9
    assert 2 ** found["centroid_log2_hz.mean"] == pytest.approx(frequency_hz, rel=0.06)  # the floor's share is 0.1%
    band_hz = librosa.mel_frequencies(64 + 2, fmax=RATE_HZ / 2)[1:-1]
    nearest = np.argmin(np.abs(band_hz - frequency_hz))
    assert abs(np.argmax(column(found, "log_mel_db", "mean")) - nearest) <= 1
    assert found["rms_db.mean"] == pytest.approx(-3.01, abs=0.05)
    assert found["zero_crossing_rate.mean"] == pytest.approx(2 * frequency_hz / RATE_HZ, rel=0.01)
    assert found["flatness_db.mean"] < -30


def test_a_full_scale_sine_reads_0_db_in_its_bin() -> None:
    encoder = MelStatsEncoder(n_mels=64)
    band_hz = librosa.mel_frequencies(64 + 2, fmax=RATE_HZ / 2)[11]  # the top of triangle 10, where its weight is 1
    bin_hz = RATE_HZ / 2048
    found = features(encoder, tone(round(band_hz / bin_hz) * bin_hz))
    # Hann's main lobe adds two bins at a quarter of the power each: 1.5 is 1.76 dB, less the slopes of the triangle
    assert found["log_mel_db[10].mean"] == pytest.approx(1.76, abs=1.0)


def test_white_noise_is_flat(encoder: MelStatsEncoder) -> None:
    found = features(encoder, noise())
    assert 2 ** found["centroid_log2_hz.mean"] == pytest.approx(RATE_HZ / 4, rel=0.03)
    assert 2 ** found["bandwidth_log2_hz.mean"] == pytest.approx(RATE_HZ / 2 / 12**0.5, rel=0.03)
    assert 2 ** found["rolloff_log2_hz.mean"] == pytest.approx(0.85 * RATE_HZ / 2, rel=0.03)
    assert found["flatness_db.mean"] > -3
    assert found["zero_crossing_rate.mean"] == pytest.approx(0.5, abs=0.02)
    tonal = features(encoder, tone(220, 440, 880, 1760, 3520, 7040))
    assert (column(found, "contrast_db", "mean") < column(tonal, "contrast_db", "mean")).all()


def test_halving_the_amplitude_lowers_the_level_alone(encoder: MelStatsEncoder) -> None:
    loud, quiet = features(encoder, noise(amplitude=0.8)), features(encoder, noise(amplitude=0.4))
    assert loud["rms_db.mean"] - quiet["rms_db.mean"] == pytest.approx(6.02, abs=0.01)
    level = column(loud, "log_mel_db", "mean") - column(quiet, "log_mel_db", "mean")
    np.testing.assert_allclose(level, 6.02, atol=0.05)
    for name in ("centroid_log2_hz.mean", "flatness_db.mean", "chroma[4].mean", "mfcc[3].mean", "onset_db.mean"):
        assert loud[name] == pytest.approx(quiet[name], abs=0.05), name


def test_floors_do_not_depend_on_the_loudest_frame(encoder: MelStatsEncoder) -> None:
    """A quiet half keeps its level beside a loud half: no floor hangs on the clip's maximum."""
    quiet = 1e-3 * tone(440)
    alone, beside = features(encoder, quiet), features(encoder, np.concatenate([quiet, noise()]))
    assert beside["rms_db.p10"] == pytest.approx(alone["rms_db.p10"], abs=0.05)


def test_silence_has_one_value_whatever_its_length(encoder: MelStatsEncoder) -> None:
    short, long = encoder.prepare(raw_audio(np.zeros(1))), encoder.prepare(raw_audio(np.zeros(3 * RATE_HZ)))
    np.testing.assert_allclose(short, long, atol=1e-3)
    found = dict(zip(encoder.feature_names, short.tolist(), strict=True))
    assert found["rms_db.mean"] == pytest.approx(-100, abs=0.01)
    assert found["tempo_log2_bpm"] == pytest.approx(np.log2(120))
    assert found["pulse_clarity"] == found["key_clarity.major"] == found["onset_db.mean"] == 0


CADENCES = {  # I IV V I in semitones above the tonic
    "major": [(0, 4, 7), (5, 9, 12), (7, 11, 14), (0, 4, 7)],
    "minor": [(0, 3, 7), (5, 8, 12), (7, 11, 14), (0, 3, 7)],
}


@pytest.mark.parametrize("transposed", [0, 5, -4])
@pytest.mark.parametrize(("mode", "other"), [("major", "minor"), ("minor", "major")])
def test_a_cadence_has_its_mode_in_every_key(encoder: MelStatsEncoder, mode: str, other: str, transposed: int) -> None:
    chords = [tone(*(523.25 * 2 ** ((step + transposed) / 12) for step in chord)) for chord in CADENCES[mode]]
    found = features(encoder, np.concatenate(chords))
    assert found[f"key_clarity.{mode}"] > 0.8 > found[f"key_clarity.{other}"]


@pytest.mark.parametrize("seconds", [4.0, 12.0])
@pytest.mark.parametrize("bpm", [60, 90, 120, 140])
def test_a_click_track_has_its_tempo(encoder: MelStatsEncoder, bpm: int, seconds: float) -> None:
    found = features(encoder, clicks(bpm, seconds))
    assert 2 ** found["tempo_log2_bpm"] == pytest.approx(bpm, rel=0.04)  # a lag of 20 whole frames is 5% wide
    assert found["pulse_clarity"] > 0.7
    assert features(encoder, noise(seconds))["pulse_clarity"] < 0.4


def test_an_onset_curve_of_one_frame_has_no_pulse() -> None:
    tempo, *strengths = pulse_features(np.ones(1, dtype=np.float32), frames_per_second=43.0)
    assert tempo == np.log2(120)
    assert not np.any(strengths)


def test_only_changing_sounds_have_deltas(encoder: MelStatsEncoder) -> None:
    glide = np.sin(2 * np.pi * np.cumsum(np.geomspace(200, 4000, 2 * RATE_HZ)) / RATE_HZ)
    still, moving = (column(features(encoder, x), "mfcc_delta", "std") for x in (tone(440), glide))
    assert still.max() < 0.2 < moving.max()


@settings(max_examples=25, deadline=None)
@given(
    n_samples=st.sampled_from([1, 2, 511, 2047, 2048, 2049, 2560, 9000, 150_000]),
    offset=st.sampled_from([0.0, 1.0, -1.0, 1e-20]),
    amplitude=st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 2.0**30]),
    seed=st.integers(0, 5),
)
def test_everything_is_finite_and_fits_float16(
    encoder: MelStatsEncoder, n_samples: int, offset: float, amplitude: float, seed: int
) -> None:
    samples = offset + noise(amplitude=amplitude, seed=seed, seconds=(n_samples + 0.5) / RATE_HZ)
    assert len(samples) == n_samples
    vector = encoder.prepare(raw_audio(samples))
    assert vector.shape == (encoder.width,)
    assert vector.dtype == np.float32
    assert np.isfinite(vector).all()
    assert np.abs(vector).max() < 60_000


def test_the_file_format_does_not_matter(encoder: MelStatsEncoder, tmp_path: Path) -> None:
    samples = noise(amplitude=0.3) + tone(440, amplitude=0.3)
    from_blob = encoder.prepare(raw_audio(samples))
    for suffix, subtype in (("wav", "FLOAT"), ("wav", "PCM_16"), ("flac", "PCM_24")):
        path = tmp_path / f"{subtype}.{suffix}"
        soundfile.write(path, np.stack([samples, samples], axis=1), RATE_HZ, subtype=subtype)
        np.testing.assert_allclose(encoder.prepare(RawAudio(path=path)), from_blob, atol=0.02)


def test_a_vector_depends_on_its_segment_alone(encoder: MelStatsEncoder) -> None:
    raws = [raw_audio(samples) for samples in (noise(0.5), tone(440), clicks(120, 3))]
    items = [encoder.prepare(raw) for raw in raws]
    pooled = encoder(encoder.collate(items)).pooled
    assert pooled.dtype == torch.float32
    assert pooled.shape == (3, encoder.width)
    other_process = pickle.loads(pickle.dumps(encoder))
    for row, raw in zip(pooled, raws, strict=True):
        alone = other_process(other_process.collate([other_process.prepare(raw)])).pooled[0]
        assert torch.equal(row, alone)


def test_blocks_join_without_a_seam(encoder: MelStatsEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoder.prepare(raw_audio(noise(2.0)))
    monkeypatch.setattr("featurize.encoders.mel_stats.BLOCK_FRAMES", 7)
    np.testing.assert_allclose(encoder.prepare(raw_audio(noise(2.0))), whole, atol=1e-3)


def test_the_record_holds_every_choice(encoder: MelStatsEncoder) -> None:
    record = json.loads(json.dumps(encoder.record.to_dict()))
    assert record["parameters"]["sample_rate_hz"] == RATE_HZ
    assert record["parameters"]["resampler"] == "soxr_hq"
    assert record["weights"] == {}
    assert "unknown" not in record["libraries"].values()
    assert "librosa" in record["libraries"]
    for choice in ({"n_mels": 40}, {"hop_length": 256}, {"n_fft": 1024}, {"sample_rate_hz": 16000}, {"n_mfcc": 13}):
        assert MelStatsEncoder(**choice).record.parameters != encoder.record.parameters


def test_other_sizes_work_too() -> None:
    small = MelStatsEncoder(sample_rate_hz=8000, n_fft=512, hop_length=128, n_mels=20, n_mfcc=8)
    found = features(small, tone(440))
    assert len(found) == small.width
    assert np.argmax(column(found, "chroma", "mean")) == 9
    with pytest.raises(ValueError, match="n_mfcc is 30; expected at most n_mels, 20"):
        MelStatsEncoder(n_mels=20, n_mfcc=30)
