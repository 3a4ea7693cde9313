"""Decoding: every format a dataset may hold, exact spans, and one clear line where nothing can be decoded."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st

from featurize import audio
from featurize.audio import load_mono
from featurize.segments import RawAudio, UnreadableInput

RATE_HZ = 22050
SECONDS = 8  # shorter MP3 and Vorbis files happen to survive a seek

# file name: (libsndfile subtype, largest error against the waveform that was written; None for lossy formats)
FORMATS = {
    "u8.wav": ("PCM_U8", 2**-7),
    "s16.wav": ("PCM_16", 2**-15),
    "s24.wav": ("PCM_24", 2**-23),
    "float.wav": ("FLOAT", 0.0),
    "double.wav": ("DOUBLE", 0.0),
    "s16.flac": ("PCM_16", 2**-15),
    "s24.flac": ("PCM_24", 2**-23),
    "s16.aiff": ("PCM_16", 2**-15),
    "vorbis.ogg": ("VORBIS", None),
    "low_bitrate.mp3": ("MPEG_LAYER_III", None),
}


def stereo() -> np.ndarray:
    """A glide with bursts of noise (they fill an MP3's bit reservoir), float32 (n_samples, 2)."""
    t = np.arange(SECONDS * RATE_HZ) / RATE_HZ
    noise = np.random.default_rng(0).uniform(-1, 1, (len(t), 2))
    glide = 0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t)
    return (glide[:, None] * [1.0, 0.6] + 0.2 * noise * (np.sin(40 * t) > 0.7)[:, None]).astype(np.float32)


def blob(samples: np.ndarray, rate_hz: int = RATE_HZ, **span: float) -> RawAudio:
    return RawAudio(samples=samples.astype("<f4").tobytes(), sample_rate_hz=rate_hz, **span)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audio")
    for name, (subtype, _) in FORMATS.items():
        hard = {"bitrate_mode": "CONSTANT", "compression_level": 0.99} if name.endswith("mp3") else {}
        soundfile.write(folder / name, stereo(), RATE_HZ, subtype=subtype, **hard)
    return folder


@functools.cache
def decoded_whole(path: Path) -> np.ndarray:
    """The reference: one read of the whole file, then the mean of the channels."""
    channels, _ = soundfile.read(path, dtype="float32", always_2d=True)
    return np.asarray(channels.mean(axis=1))


@pytest.mark.parametrize("name", FORMATS)
def test_whole_file_is_the_mean_of_its_channels(folder: Path, name: str) -> None:
    samples = load_mono(RawAudio(path=folder / name), RATE_HZ)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    np.testing.assert_allclose(samples, decoded_whole(folder / name), atol=1e-7)
    largest_error = FORMATS[name][1]
    if largest_error is not None:
        np.testing.assert_allclose(samples, stereo().mean(axis=1), atol=largest_error + 1e-7)


@pytest.mark.parametrize("name", FORMATS)
@given(frames=st.lists(st.integers(0, SECONDS * RATE_HZ), min_size=2, max_size=2, unique=True).map(sorted))
@example(frames=[167_000, 168_000])  # straddles an Ogg page: after a seek Vorbis is wrong by 0.7 here
def test_a_span_is_a_slice_of_the_whole(folder: Path, name: str, frames: list[int]) -> None:
    start, end = frames
    raw = RawAudio(path=folder / name, start_seconds=start / RATE_HZ, end_seconds=end / RATE_HZ)
    np.testing.assert_allclose(load_mono(raw, RATE_HZ), decoded_whole(folder / name)[start:end], atol=1e-7)


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_join_without_a_seam(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 4000)
    raw = RawAudio(path=folder / name, start_seconds=0.3)
    start = round(0.3 * RATE_HZ)
    np.testing.assert_allclose(load_mono(raw, RATE_HZ), decoded_whole(folder / name)[start:], atol=1e-7)


@given(frames=st.lists(st.integers(0, 4000), min_size=2, max_size=2, unique=True).map(sorted))
def test_a_blob_is_cut_like_a_file(folder: Path, frames: list[int]) -> None:
    span = {"start_seconds": frames[0] / RATE_HZ, "end_seconds": frames[1] / RATE_HZ}
    mono = decoded_whole(folder / "float.wav")
    from_file = load_mono(RawAudio(path=folder / "float.wav", **span), 16000)
    np.testing.assert_allclose(load_mono(blob(mono, **span), 16000), from_file, atol=1e-6)


@pytest.mark.parametrize("end_seconds", [SECONDS + 1e-5, SECONDS + 0.05, SECONDS + 7.0])
def test_an_end_beyond_the_recording_takes_what_is_there(folder: Path, end_seconds: float) -> None:
    for raw in (
        RawAudio(path=folder / "s16.flac", start_seconds=SECONDS - 0.5, end_seconds=end_seconds),
        blob(np.ones(SECONDS * RATE_HZ), start_seconds=SECONDS - 0.5, end_seconds=end_seconds),
    ):
        assert len(load_mono(raw, RATE_HZ)) == RATE_HZ // 2


@pytest.mark.parametrize("target_hz", [16000, 44100, 48000])
def test_resampling_keeps_a_sine(tmp_path: Path, target_hz: int) -> None:
    t = np.arange(96000) / 96000
    sine = 0.5 * np.sin(2 * np.pi * 1000 * t)
    soundfile.write(tmp_path / "hires.wav", np.stack([sine, sine], axis=1), 96000, subtype="PCM_24")
    samples = load_mono(RawAudio(path=tmp_path / "hires.wav"), target_hz)
    assert len(samples) == target_hz
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(target_hz) / target_hz)
    inner = slice(target_hz // 10, -target_hz // 10)  # filters ring at the edges
    np.testing.assert_allclose(samples[inner], expected[inner], atol=1e-4)


def test_above_nyquist_is_removed() -> None:
    t = np.arange(48000) / 48000
    samples = load_mono(blob(np.sin(2 * np.pi * 12000 * t), 48000), 16000)
    assert np.abs(samples[800:-800]).max() < 1e-4


def test_opposite_channels_cancel(tmp_path: Path) -> None:
    left = stereo()[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], axis=1), RATE_HZ, subtype="FLOAT")
    assert not load_mono(RawAudio(path=tmp_path / "a.wav"), RATE_HZ).any()


@pytest.mark.parametrize("target_hz", [8000, RATE_HZ, 48000])
@pytest.mark.parametrize("n_samples", [1, 2, 100])
def test_silence_and_single_samples_are_audio(tmp_path: Path, n_samples: int, target_hz: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(n_samples), RATE_HZ)
    for raw in (RawAudio(path=tmp_path / "a.wav"), blob(np.zeros(n_samples))):
        samples = load_mono(raw, target_hz)
        assert len(samples) >= 1
        assert not samples.any()


def test_a_span_shorter_than_a_sample_holds_one() -> None:
    assert load_mono(blob(np.arange(10.0), 10, start_seconds=0.3, end_seconds=0.31), 10).tolist() == [3.0]


def broken_file(folder: Path, case: str) -> RawAudio:
    path = folder / f"{case}.wav"
    if case == "folder":
        path.mkdir()
    elif case == "text":
        path.write_text("la la la " * 100)
    elif case == "empty":
        path.touch()
    elif case == "headerless":
        path = path.with_suffix(".raw")
        path.write_bytes(bytes(400))
    elif case == "no_samples":
        soundfile.write(path, np.zeros(0), RATE_HZ)
    elif case == "fast":
        soundfile.write(path, np.zeros(100), 2_000_000)
    elif case == "infinite":
        soundfile.write(path, np.array([0, np.inf, 0]), RATE_HZ, subtype="FLOAT")
    return RawAudio(path=path)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", r"cannot read .*missing\.wav: No such file"),
        ("folder", r"folder\.wav: not a regular file; expected an audio file"),
        ("text", r"text\.wav: cannot decode \(.+\); expected WAV, FLAC, OGG, MP3"),
        ("empty", r"empty\.wav: the file is empty"),
        ("headerless", r"headerless\.raw: \*\.raw has no header .*expected WAV"),
        ("no_samples", r"no_samples\.wav: holds no samples"),
        ("fast", r"fast\.wav: sample rate 2000000 Hz; expected 1 to 768000"),
        ("infinite", r"infinite\.wav: found a sample of magnitude inf; expected finite samples"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, case: str, message: str) -> None:
    with pytest.raises(UnreadableInput, match=message) as caught:
        load_mono(broken_file(tmp_path, case), RATE_HZ)
    assert "\n" not in str(caught.value)


def rated(rate_hz: int | None) -> RawAudio:
    return RawAudio(samples=bytes(8), sample_rate_hz=rate_hz)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawAudio(), "neither a path nor samples"),
        (RawAudio(samples=bytes(6), sample_rate_hz=RATE_HZ), "audio blob: 6 bytes; expected a multiple of 4"),
        (blob(np.zeros(0)), "audio blob: holds no samples"),
        (blob(np.array([0.0, np.nan])), "magnitude nan; expected finite"),
        (blob(np.array([0.0, -1e30])), r"magnitude 1e\+30; expected finite samples, full scale 1"),
        (rated(None), "no sample rate"),
        (rated(0), "sample rate 0 Hz; expected 1 to 768000"),
        (rated(-44100), "sample rate -44100 Hz"),
        (rated(768_001), "sample rate 768001 Hz"),
        (blob(np.zeros(9), start_seconds=-1.0), "start_seconds is -1.0; expected a number of at least 0"),
        (blob(np.zeros(9), start_seconds=float("nan")), "start_seconds is nan"),
        (blob(np.zeros(9), start_seconds=3.0, end_seconds=3.0), "end_seconds is 3.0; expected more than start, 3.0"),
        (blob(np.zeros(9), end_seconds=float("inf")), "end_seconds is inf"),
        (blob(np.zeros(3601), 1), "longer than 3600 s"),
    ],
)
def test_what_is_wrong_with_a_blob_or_its_times(raw: RawAudio, message: str) -> None:
    with pytest.raises(UnreadableInput, match=message):
        load_mono(raw, RATE_HZ)


@pytest.mark.parametrize("name", ["s16.wav", "vorbis.ogg", "low_bitrate.mp3"])
def test_a_start_beyond_the_end_suggests_the_configuration_key(folder: Path, name: str) -> None:
    raw = RawAudio(path=folder / name, start_seconds=61.5, end_seconds=65.0)
    with pytest.raises(UnreadableInput, match=rf"{name}: start_seconds is 61.5 .*set data\.audio_is: segment"):
        load_mono(raw, RATE_HZ)


def test_length_is_limited_while_decoding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_SEGMENT_SECONDS", 1)
    assert len(load_mono(RawAudio(path=folder / "s16.flac", end_seconds=1.0), RATE_HZ)) == RATE_HZ
    with pytest.raises(UnreadableInput, match=r"s16\.flac: the segment is longer than 1 s"):
        load_mono(RawAudio(path=folder / "s16.flac"), RATE_HZ)


def test_a_frame_count_that_lies_is_not_allocated(folder: Path, tmp_path: Path) -> None:
    """FLAC's STREAMINFO counts samples in 36 bits from byte 21 on: claim 2^36 - 1, which is 37 days."""
    content = bytearray((folder / "s16.flac").read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    (tmp_path / "lie.flac").write_bytes(content)
    assert soundfile.info(tmp_path / "lie.flac").frames == 2**36 - 1
    np.testing.assert_allclose(
        load_mono(RawAudio(path=tmp_path / "lie.flac"), RATE_HZ), decoded_whole(folder / "s16.flac"), atol=1e-7
    )


def test_a_truncated_file_says_so(folder: Path, tmp_path: Path) -> None:
    content = (folder / "s16.flac").read_bytes()
    (tmp_path / "half.flac").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableInput, match=r"half\.flac: cannot decode"):
        load_mono(RawAudio(path=tmp_path / "half.flac"), RATE_HZ)
