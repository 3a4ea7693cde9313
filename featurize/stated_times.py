"""What the table and the media state about time, compared, and tried on a few segments: `cli ingest` tells what does
not fit.

Conventions
-----------
* Times are seconds on the clock of `start_seconds`, the song's. A file or blob begins on it where `audio_start_seconds`
  or `midi_start_seconds` says; where nothing is said, a song at 0 and a segment at its `start_seconds`.
* Rows are looked at by sample, spread over the table; of blobs, which can only be read forward, the first.
* Of a few short segments that have audio and MIDI, `cli ingest` also measures whether the two fit, as `cli align` does
  for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurize.alignment import Measure
from featurize.limits import MAX_AUDIO_BYTES, Limits
from featurize.segments import RawAudio, RawMidi, UnreadableInput, check_size
from featurize.sources.base import Source
from featurize.workers import Failure, Preparer, Prepares
from stores.remote import local_file

FILES_LOOKED_AT, BLOBS_LOOKED_AT = 200, 10
TOLERANCE_SECONDS = 0.5  # encoders pad and cut their files by some milliseconds; musicians play on
SAME_SECONDS = 0.02  # what `cli align` can tell apart
LIMITS = Limits(row_seconds=30.0)  # for one file or pair
PAIRS_MEASURED, LONGEST_MEASURED_SECONDS = 12, 60.0  # decoding whole songs would take as long as `cli align`
NOTABLE_SECONDS = 0.05

Rows = Iterator[tuple[int, Any]]

REMEDY_SONG = "If each file is the segment already: --set data.audio_is=segment (and data.midi_is=segment for MIDI)."
REMEDY_LENGTH = "Is the sample rate right, and are start_seconds and end_seconds? Nothing is cut from a segment."
REMEDY_WHOLE = (
    "If the file is the whole song, state start_seconds and end_seconds (or --set data.midi_is=song); if it is another "
    "piece or version, cli align finds out."
)
REMEDY_SHIFT = "Their MIDI is shifted by the difference when it is read. Measure whether that is right: cli align"
REMEDY_ALIGN = "Measure every segment, then shift the MIDI or leave it out: cli align"
REMEDY_OFFSET = "The file's own offset is not applied; state what holds in column midi_start_seconds."


@dataclass(frozen=True)
class Finding:
    """What does not fit, and in which rows: row number to what is seen there."""

    what: str
    rows: dict[int, str]
    remedy: str
    is_harmless: bool = False


def compare_times(source: Source, presence: dict[str, np.ndarray], workers: int = 1) -> list[Finding]:
    """What does not fit. presence: bool (N,) for each modality. workers: processes that read media; 0 for this one."""
    with Preparer(_InItsWay(), workers=workers, limits=LIMITS, light=True) as preparer:
        lengths = dict(_audio_lengths(source, presence, preparer))
        midi_times = list(_midi_times(source, presence, preparer))
        measured = list(_measured(source, presence, lengths, preparer))
    stated = source.end_seconds - source.start_seconds
    beyond: dict[int, str] = {}
    unequal: dict[int, str] = {}
    late: dict[int, str] = {}
    other_start: dict[int, str] = {}
    other_offset: dict[int, str] = {}
    for row, seconds in lengths.items():
        start, end = source.span(row, "audio")
        if end is not None and end > seconds + TOLERANCE_SECONDS:
            beyond[row] = f"{start or 0:g} to {end:g} s of {seconds:.1f} s"
        elif end is None and abs(seconds - stated[row]) > TOLERANCE_SECONDS:
            unequal[row] = f"{seconds:.1f} s, stated {stated[row]:.1f} s"
    for row, (last_onset, offset) in midi_times:
        start, end = source.span(row, "midi")
        expected = stated[row] if not np.isnan(stated[row]) else lengths.get(row, np.nan)
        if end is None and last_onset > expected + TOLERANCE_SECONDS:
            late[row] = f"notes until {last_onset:.1f} s, segment of {expected:.1f} s"
        if offset and abs(offset - source.begins(row, "midi")) > SAME_SECONDS:
            other_offset[row] = f"{offset:.3f} s in the file, {source.begins(row, 'midi'):.3f} s by the table"
    for row in np.flatnonzero(presence["midi"] & presence["audio"]).tolist():
        shift = source.midi_shift_seconds(row)
        if abs(shift) > SAME_SECONDS:
            other_start[row] = f"{shift:+.3f} s"
    apart: dict[int, str] = {}
    shifted: dict[int, str] = {}
    for row, (verdict, offset, reason) in measured:
        if verdict == "apart":
            apart[row] = reason
        elif verdict == "together" and abs(offset) >= NOTABLE_SECONDS:
            shifted[row] = f"{offset:+.3f} s"
    sampled = "(of a sample looked at)"
    return [
        Finding(f"segment that ends after its audio file {sampled}", beyond, REMEDY_SONG),
        Finding(f"audio whose length is not its segment's {sampled}", unequal, REMEDY_LENGTH),
        Finding(f"MIDI that goes on after its segment {sampled}", late, REMEDY_WHOLE),
        Finding("MIDI that starts at another time than its segment's audio", other_start, REMEDY_SHIFT, True),
        Finding(f"MIDI that does not fit its audio (of {PAIRS_MEASURED} measured at most)", apart, REMEDY_ALIGN),
        Finding(f"MIDI that is early or late (of {PAIRS_MEASURED} measured at most)", shifted, REMEDY_ALIGN),
        Finding(f"MIDI with an SMPTE offset that is not its start {sampled}", other_offset, REMEDY_OFFSET, True),
    ]


def _sample(source: Source, modality: str, presence: dict[str, np.ndarray]) -> Rows:
    rows = np.flatnonzero(presence[modality])
    if source.has_blobs(modality):
        rows = rows[:BLOBS_LOOKED_AT]
    for row in _spread(rows, FILES_LOOKED_AT).tolist():
        try:
            raw = source.raw(row, modality)
        except UnreadableInput:  # `featurize` says so row by row
            continue
        if raw is not None:
            yield row, raw


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    return rows[:: max(1, -(-len(rows) // most))]


@dataclass(frozen=True)
class _InItsWay:
    """What is to be looked at comes with how: one set of processes does it all, as starting one takes a second."""

    def prepare(self, job: tuple[Prepares, Any]) -> Any:
        how, raw = job
        return how.prepare(raw)


def _run(preparer: Preparer, how: Prepares, rows: Rows) -> Rows:
    """What `how` finds in each row, but for what cannot be read: `featurize` says so row by row."""
    for row, found in preparer.run((row, (how, raw)) for row, raw in rows):
        if not isinstance(found, Failure):
            yield row, found


def _audio_lengths(source: Source, presence: dict[str, np.ndarray], preparer: Preparer) -> Iterator[tuple[int, float]]:
    for row, seconds in _run(preparer, _AudioSeconds(), _sample(source, "audio", presence)):
        if seconds is not None:
            yield row, seconds


@dataclass(frozen=True)
class _AudioSeconds:
    """Of the whole file or blob. In another process, for a file may be anything."""

    def prepare(self, raw: RawAudio) -> float | None:
        import soundfile

        if raw.path is None:
            return len(raw.samples or b"") / 4 / raw.sample_rate_hz if raw.sample_rate_hz else None
        check_size(raw.path, raw.path.stat(), MAX_AUDIO_BYTES)  # an MP3 without a header is read to its end
        return float(soundfile.info(local_file(raw.path)).duration)  # what is no audio raises, and `featurize` says so


def _midi_times(
    source: Source, presence: dict[str, np.ndarray], preparer: Preparer
) -> Iterator[tuple[int, tuple[float, float | None]]]:
    """Of each file that can be read: when its last note begins, and its SMPTE offset, in seconds."""
    return _run(preparer, _MidiTimes(), _sample(source, "midi", presence))


@dataclass(frozen=True)
class _MidiTimes:
    """In another process, for a file may be anything."""

    def prepare(self, raw: RawMidi) -> tuple[float, float | None]:
        from featurize.midi import parse_midi
        from featurize.timecode import midi_start_seconds

        data = raw.read_bytes()
        try:
            offset = midi_start_seconds(data)
        except ValueError:  # a time that is none
            offset = None
        return float(parse_midi(data).onset_seconds.max(initial=0.0)), offset


def _measured(
    source: Source, presence: dict[str, np.ndarray], lengths: dict[int, float], preparer: Preparer
) -> Iterator[tuple[int, tuple[str, float, str]]]:
    """For a few pairs: the verdict, the offset in seconds, and the reason (`featurize.alignment`)."""
    seconds = source.end_seconds - source.start_seconds
    for row, found in lengths.items():
        seconds[row] = found if np.isnan(seconds[row]) or source.scopes["audio"] == "segment" else seconds[row]
    rows = np.flatnonzero(presence["audio"] & presence["midi"] & (seconds <= LONGEST_MEASURED_SECONDS))
    rows = rows[:PAIRS_MEASURED] if source.blobs is not None else _spread(rows, PAIRS_MEASURED)

    def pairs() -> Iterator[tuple[int, tuple[RawAudio, RawMidi]]]:
        for row in rows.tolist():
            try:
                audio, midi = source.raw(row, "audio"), source.raw(row, "midi")
            except UnreadableInput:
                continue
            if isinstance(audio, RawAudio) and isinstance(midi, RawMidi):
                yield row, (audio, midi)

    for row, (verdict, offset, _, _, reason) in _run(preparer, Measure(2.0), pairs()):
        yield row, (verdict, offset, reason)
