"""Audio: durations and sample rates by every file's header, levels by decoding a sample.

Conventions: levels are RMS in dB of full scale. Silent is below −60: 16-bit noise is at −96, a quiet recording at −40.
A blob's length and rate stand in its row, and blobs can only be read forward: the sample of blobs is the first ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import soundfile

from featurize.audio import load_mono
from featurize.segments import RawAudio, UnreadableInput
from featurize.sources import Source
from featurize.survey.found import Survey
from stores.remote import Location, local_file

SEED = 0
SILENT_DB = -60.0
FULL_SCALE, CLIPPED_SHARE = 0.999, 0.001  # a thousandth of the samples at full scale is audible
LOW_RATE_HZ = 16_000  # wav2vec2 hears up to 8 kHz, CLAP up to 24 kHz
LONG_SECONDS, SHORT_SECONDS = 120.0, 0.5
RARE_SHARE = 0.05
DECODED_AT_HZ = 16_000


@dataclass
class _Seen:
    """Of what headers say, by file; and of segments that have none that can be read."""

    seconds: dict[int, float] = field(default_factory=dict)  # row -> of the segment
    formats: Counter[tuple[int, int, str]] = field(default_factory=Counter)  # rate in Hz, channels, format -> segments
    examples: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))  # rate in Hz -> ids
    unreadable: list[str] = field(default_factory=list)


def survey_audio(survey: Survey, source: Source, present: np.ndarray, sample: int) -> None:
    """present: bool (N,). sample: so many segments are decoded."""
    rows = np.flatnonzero(present)
    if not len(rows):
        return
    seen = _read_headers(source, rows)
    if source.has_blobs("audio"):
        chosen = rows[:sample]
        how = f"the first {len(chosen):,}"
    else:
        chosen = np.sort(np.random.default_rng(SEED).choice(rows, size=min(sample, len(rows)), replace=False))
        how = f"{len(chosen):,} drawn with seed {SEED}"
    _tables(survey, source, seen)
    _levels(survey, source, chosen, how)


def _read_headers(source: Source, rows: np.ndarray) -> _Seen:
    seen = _Seen()
    headers: dict[Location, Any] = {}
    stated = source.end_seconds - source.start_seconds
    for row in rows.tolist():
        name = repr(source.ids[row])
        if source.has_blobs("audio") and source.paths["audio"][row] is None:
            continue  # its rate is read with its samples
        try:
            path = source.file(row, "audio")
        except UnreadableInput:
            continue
        if path is None:
            continue
        if path not in headers:
            source.fetch(row, "audio")
            headers[path] = _header(path)
        header = headers[path]
        if header is None:
            seen.unreadable.append(f"{name}: {source.paths['audio'][row]}")
            continue
        seen.formats[header.samplerate, header.channels, header.format] += 1
        seen.examples[header.samplerate].append(name)
        start, end = source.span(row, "audio")
        whole = float(header.duration)
        seen.seconds[row] = min(whole, end if end is not None else whole) - (start or 0.0)
    for row in rows.tolist():
        if row not in seen.seconds and np.isfinite(stated[row]):
            seen.seconds[row] = float(stated[row])
    return seen


def _header(path: Location) -> Any:
    try:
        return soundfile.info(str(local_file(path)))
    except (OSError, RuntimeError):
        return None


def _tables(survey: Survey, source: Source, seen: _Seen) -> None:
    remedy = "These rows will be marked failed. Convert them to WAV or FLAC, or empty their cells."
    survey.warn("audio file that cannot be read", seen.unreadable, remedy)
    total = sum(seen.formats.values())
    if total:
        rows: list[dict[str, Any]] = [
            {"Hz": rate, "channels": channels, "format": kind, "segments": count, "share": f"{count / total:.1%}"}
            for (rate, channels, kind), count in seen.formats.most_common()
        ]
        survey.table("sample_rates", f"audio files by sample rate (headers of all {total:,})", rows)
        by_rate: Counter[int] = Counter()
        for (rate, _, _), count in seen.formats.items():
            by_rate[rate] += count
        usual = by_rate.most_common(1)[0][0]
        rare = [
            f"{name}: {rate:,} Hz"
            for rate, count in by_rate.items()
            if rate != usual and count < RARE_SHARE * total
            for name in seen.examples[rate]
        ]
        remedy = f"Nearly all have {usual:,} Hz. Encoders resample; but is what the header says true?"
        survey.warn("audio file of an unusual sample rate", rare, remedy)
        low = [f"{name}: {rate:,} Hz" for rate in by_rate if rate < LOW_RATE_HZ for name in seen.examples[rate]]
        remedy = (
            f"Encoders expect {LOW_RATE_HZ:,} Hz or more; what lies above half the rate is lost, and they see that."
        )
        survey.warn(f"audio file below {LOW_RATE_HZ:,} Hz", low, remedy)
    if not seen.seconds:
        return
    seconds = np.array(list(seen.seconds.values()))
    low_q, middle, high_q = np.quantile(seconds, [0.05, 0.5, 0.95]).tolist()
    rows = [
        {
            "segments": len(seconds),
            "shortest s": float(seconds.min()),
            "5%": low_q,
            "median": middle,
            "95%": high_q,
            "longest s": float(seconds.max()),
            "hours": float(seconds.sum() / 3600),
        }
    ]
    survey.table("durations", "durations of the audio of a segment, by headers and stated times", rows)

    def those(wanted: np.ndarray) -> list[str]:
        found = np.array(list(seen.seconds))[wanted].tolist()
        return [f"{source.ids[row]!r}: {seen.seconds[row]:.2f} s" for row in found]

    remedy = "start_seconds lies after the end of the file, and nothing is left. Are these the times of another file?"
    survey.warn("segment that begins after its audio ends", those(seconds <= 0), remedy)
    short = those((seconds > 0) & (seconds < SHORT_SECONDS))
    survey.warn(f"segment shorter than {SHORT_SECONDS:g} s", short, "Too little to hear. Are start and end right?")
    remedy = "Encoders read them in windows and average: costly, and blurred. Are these whole songs?"
    survey.warn(f"segment longer than {LONG_SECONDS:g} s", those(seconds > LONG_SECONDS), remedy, note=True)


def _levels(survey: Survey, source: Source, rows: np.ndarray, how: str) -> None:
    levels: list[float] = []
    silent: list[str] = []
    clipped: list[str] = []
    broken: list[str] = []
    for row in rows.tolist():
        name = repr(source.ids[row])
        try:
            raw = source.raw(row, "audio")
            if not isinstance(raw, RawAudio):
                continue
            samples = load_mono(raw, DECODED_AT_HZ)
        except UnreadableInput as error:
            broken.append(f"{name}: {error}")
            continue
        rms = float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
        level = 20 * np.log10(rms) if rms > 0 else -np.inf
        levels.append(max(level, -120.0))
        if level < SILENT_DB:
            silent.append(f"{name}: {'digital silence' if rms == 0 else f'{level:.0f} dB'}")
        elif float(np.mean(np.abs(samples) >= FULL_SCALE)) > CLIPPED_SHARE:
            clipped.append(name)
    if levels:
        low, middle, high = np.quantile(levels, [0.05, 0.5, 0.95]).tolist()
        row = {
            "decoded": len(levels),
            "quietest dB": min(levels),
            "5%": low,
            "median": middle,
            "95%": high,
            "loudest dB": max(levels),
            "silent": len(silent),
            "clipped": len(clipped),
        }
        survey.table("levels", f"audio levels of a sample ({how})", [row])
    of_sample = f"(of {len(rows):,} decoded)"
    remedy = "An encoder gives them a vector as any other. Empty their cells: absent is not silent."
    survey.warn(f"silent audio {of_sample}", silent, remedy)
    remedy = "Scaled twice, or 32-bit integers taken for floats? Encoders hear the distortion."
    survey.warn(f"audio that is clipped {of_sample}", clipped, remedy, note=True)
    survey.warn(f"audio that cannot be decoded {of_sample}", broken, "These rows will be marked failed.")
