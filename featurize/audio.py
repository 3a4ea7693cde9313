"""Decode one segment's audio to a mono waveform at the sample rate an encoder wants.

Conventions
-----------
* Waveforms are float32, shape `(n_samples,)`, full scale ±1; several channels become their mean.
* A segment is the half-open span [start, end) of the recording, in frames of its own sample rate: a time falls on
  the nearest frame. The span is cut before it is resampled, so nothing outside of it can leak in.
* Resampling is soxr's; `RESAMPLER` names it for encoder records.
* Bad input raises `UnreadableInput`, one line that names the file, what is wrong and what was expected.
"""

from __future__ import annotations

import stat

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from featurize.limits import MAX_AUDIO_BYTES
from featurize.segments import RawAudio, UnreadableInput, check_size
from stores.remote import Location, local_file

Waveform = npt.NDArray[np.float32]  # (n_samples,)

RESAMPLE_QUALITY = "HQ"  # 20-bit precision, pass-band to 0.91 of Nyquist: finer than any encoder here can tell
RESAMPLER = f"soxr_{RESAMPLE_QUALITY.lower()}"

MAX_SAMPLE_RATE_HZ = 768_000  # the fastest converters sold; more is a damaged header
MAX_SEGMENT_SECONDS = 3600  # segments are lines of songs: more is a header that lies, or a wrong column
MAX_RATE_FOR_FULL_LENGTH_HZ = 48_000  # an hour at 48 kHz is 0.7 GB of float32; faster audio may last less
MAX_ABS_SAMPLE = 2.0**31  # 32-bit integers that were never scaled still pass; beyond, squares overflow float32

BLOCK_SAMPLES = 1 << 20  # 4 MB at a time, however long the header says the file is

EXPECTED_FORMATS = "WAV, FLAC, OGG, MP3 or AIFF"
BYTES_PER_SAMPLE = 4  # blobs are little-endian float32

# After a seek these decode to the samples that decoding from the start gives. MP3 and Vorbis do not: the MP3 bit
# reservoir reaches back over frames, and errors up to 0.8 of full scale were measured (libsndfile 1.2.2).
SEEKABLE_SUBTYPES = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})


class _SequentialSoundFile(soundfile.SoundFile):
    """A sound file that is read onward only.

    `SoundFile.read` seeks to where it already is after each block of a seekable file, which resets an MP3 decoder: the
    next block then starts with wrong samples. `seek` still works where it is called.
    """

    def seekable(self) -> bool:
        return False


def load_mono(raw: RawAudio, sample_rate_hz: int) -> Waveform:
    """The segment's waveform at `sample_rate_hz`: float32, shape `(n_samples,)`, at least one sample.

    Where `end_seconds` lies beyond the recording, what is there is returned: a last segment's end is often rounded up.
    """
    if raw.path is not None:
        name = str(raw.path)
        samples, own_rate_hz = _read_file(raw.path, raw)
    elif raw.samples is not None:
        name = "audio blob"
        samples, own_rate_hz = _read_blob(raw.samples, raw)
    else:
        raise UnreadableInput("audio has neither a path nor samples; expected one of them")
    peak = float(np.abs(samples).max())
    if not peak <= MAX_ABS_SAMPLE:  # NaN fails the comparison too
        raise UnreadableInput(f"{name}: found a sample of magnitude {peak:g}; expected finite samples, full scale 1")
    return _resample(samples, own_rate_hz, sample_rate_hz)


def _read_file(path: Location, raw: RawAudio) -> tuple[Waveform, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableInput(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait forever
        raise UnreadableInput(f"cannot read {path}: not a regular file; expected an audio file")
    check_size(path, status, MAX_AUDIO_BYTES)
    if status.st_size == 0:
        raise UnreadableInput(f"{path}: the file is empty; expected audio")
    if path.suffix.lower() == ".raw":  # `SoundFile` goes by the name here, and asks its caller for the format
        raise UnreadableInput(f"{path}: *.raw has no header that tells its sample rate; expected {EXPECTED_FORMATS}")
    try:
        with _SequentialSoundFile(local_file(path)) as file:
            return _decode(file, str(path), raw), file.samplerate
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", None) or "unknown or damaged format"
        raise UnreadableInput(f"{path}: cannot decode ({reason}); expected {EXPECTED_FORMATS}") from error


def _decode(file: soundfile.SoundFile, name: str, raw: RawAudio) -> Waveform:
    """Read block by block, and believe what was decoded rather than the header's frame count."""
    start, end = _span_frames(raw, file.samplerate, name)
    position = 0
    if file.subtype in SEEKABLE_SUBTYPES:
        position = file.seek(min(start, file.frames))
    block_frames = max(1, BLOCK_SAMPLES // file.channels)
    blocks: list[Waveform] = []
    n_kept = 0
    while end is None or position < end:
        n_frames = block_frames if end is None else min(block_frames, end - position)
        block = file.read(n_frames, dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        kept = block[max(0, start - position) :]
        position += len(block)
        n_kept += len(kept)
        _check_length(n_kept, file.samplerate, name)
        if len(kept):
            blocks.append(_to_mono(kept))
    if not blocks:
        raise _nothing_there(name, position, file.samplerate, raw)
    return np.concatenate(blocks)


def _to_mono(samples: np.ndarray) -> Waveform:
    """The mean of channels, (n_frames, n_channels) to (n_frames,).

    20 times faster than `mean` over rows of two; a product would wake all of the BLAS's threads for it.
    """
    mono = samples[:, 0].copy()
    for channel in samples.T[1:]:
        mono += channel
    mono *= np.float32(1 / samples.shape[1])
    return mono


def _read_blob(blob: bytes, raw: RawAudio) -> tuple[Waveform, int]:
    name = "audio blob"
    if raw.sample_rate_hz is None:
        raise UnreadableInput(f"{name}: no sample rate; expected one beside the samples")
    if len(blob) % BYTES_PER_SAMPLE:
        raise UnreadableInput(f"{name}: {len(blob)} bytes; expected a multiple of 4 (little-endian float32)")
    start, end = _span_frames(raw, raw.sample_rate_hz, name)
    whole = np.frombuffer(blob, dtype="<f4")
    samples = whole[start:end].astype(np.float32)
    if len(samples) == 0:
        raise _nothing_there(name, len(whole), raw.sample_rate_hz, raw)
    _check_length(len(samples), raw.sample_rate_hz, name)
    return samples, raw.sample_rate_hz


def _span_frames(raw: RawAudio, rate_hz: int, name: str) -> tuple[int, int | None]:
    """First frame and the frame after the last; `None` is the recording's own end."""
    if not 0 < rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise UnreadableInput(f"{name}: sample rate {rate_hz} Hz; expected 1 to {MAX_SAMPLE_RATE_HZ}")
    start_seconds = raw.start_seconds or 0.0
    if not 0 <= start_seconds < float("inf"):
        raise UnreadableInput(f"{name}: start_seconds is {start_seconds}; expected a number of at least 0")
    start = round(start_seconds * rate_hz)
    if raw.end_seconds is None:
        return start, None
    if not start_seconds < raw.end_seconds < float("inf"):
        raise UnreadableInput(f"{name}: end_seconds is {raw.end_seconds}; expected more than start, {start_seconds}")
    return start, max(start + 1, round(raw.end_seconds * rate_hz))


def _check_length(n_samples: int, rate_hz: int, name: str) -> None:
    limit = MAX_SEGMENT_SECONDS * min(rate_hz, MAX_RATE_FOR_FULL_LENGTH_HZ)
    if n_samples > limit:
        raise UnreadableInput(
            f"{name}: the segment is longer than {limit / rate_hz:g} s; expected a part of a song (check start_seconds,"
            " end_seconds and the sample rate)"
        )


def _nothing_there(name: str, n_samples: int, rate_hz: int, raw: RawAudio) -> UnreadableInput:
    if n_samples == 0:
        return UnreadableInput(f"{name}: holds no samples; expected at least one")
    return UnreadableInput(
        f"{name}: start_seconds is {raw.start_seconds} but the audio ends at {n_samples / rate_hz:.3f}; if the times"
        " refer to the song and this is the segment already cut, set data.audio_is: segment"
    )


def _resample(samples: Waveform, own_rate_hz: int, sample_rate_hz: int) -> Waveform:
    if own_rate_hz == sample_rate_hz:
        return samples
    resampled = soxr.resample(samples, own_rate_hz, sample_rate_hz, quality=RESAMPLE_QUALITY)
    if len(resampled) == 0:  # a few samples of fast audio round to none
        return samples[:1]
    return np.asarray(resampled, dtype=np.float32)
