"""Read a Standard MIDI File into one table of notes in seconds, and cut a segment out of it.

`symusic` parses first (a whole song in under a millisecond); `mido`, about a hundred times slower, takes what symusic
refuses: SMPTE time division, data bytes above 127 (clipped). Both give the same notes where both can read. Ticks become
seconds here, once, in float64: symusic's own seconds are float32, which moves a note at minute five by up to 15 µs.

Conventions
-----------
* Times are seconds from the start of the file, or of the segment once cut. Arrays have one entry per note, ordered by
  onset, then pitch, offset, drum, program, velocity.
* A note-off ends the oldest sounding note of its channel and pitch in its track (first in, first out); note-on with
  velocity 0 is a note-off. Notes without an end are dropped, as symusic does: one hung note, held to the end of the
  song, would outweigh all others wherever durations are weights. Notes of zero length are kept.
* A note's program is the last program change before it on its channel *in its track*; 0 where there is none. Channel 10
  is drums; `program` is then the drum kit.
* All tempo events hold for all tracks, whichever track they stand in. 120 quarter notes per minute and 4/4 hold from
  tick 0 until the file says otherwise. Type-2 files are read as if their sequences started together.

Source: MIDI Manufacturers Association, "Standard MIDI Files 1.0", RP-001, 1996.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import mido
import numpy as np
import symusic

from featurize.segments import RawMidi, UnreadableInput

MAX_FILE_BYTES = 16 * 2**20  # a million notes with generous controller data
MAX_FILE_BYTES_MIDO = 2**20  # mido takes about 2 µs per byte, and quadratic time on hostile delta times
MAX_NOTES = 1_000_000  # the longest songs have some 20,000; beyond this, one row would stall a worker
MAX_DURATION_SECONDS = 24 * 3600.0  # no song is longer; a damaged delta time easily is
MAX_TICK = 2**31 - 1  # symusic counts in int32

EDGE_SECONDS = 1e-6  # times closer than this are equal: seconds from a table carry rounding, a MIDI tick is ≥ 20 µs

DEFAULT_MICROSECONDS_PER_QUARTER = 500_000
DRUM_CHANNEL = 9  # counted from 0
SMPTE_FRAMES_PER_SECOND = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}  # 29 stands for drop-frame 29.97

NOTE_FIELDS = ("onset", "offset", "pitch", "velocity", "program", "is_drum")


@dataclass(frozen=True, eq=False)
class Score:
    """The notes of a file or segment, with its tempo map and time signatures.

    onset_seconds, offset_seconds: float64 (n,), in [0, duration_seconds], offset ≥ onset.
    pitch, velocity, program: int16 (n,), 0 to 127. is_drum: bool (n,).
    tempo_seconds, tempo_bpm: float64 (k,), k ≥ 1, ascending; quarter notes per minute from that time on.
    time_signature_seconds: float64 (j,), j ≥ 1; time_signatures: int16 (j, 2), numerator and denominator.
    duration_seconds: length of the segment; of a whole file, the end of its last note.

    In a cut segment, tempo and time-signature events from before its start keep their (negative) times, so that
    `quarters_at` still counts from the start of the file and bar lines can be placed.
    """

    onset_seconds: np.ndarray
    offset_seconds: np.ndarray
    pitch: np.ndarray
    velocity: np.ndarray
    program: np.ndarray
    is_drum: np.ndarray
    tempo_seconds: np.ndarray
    tempo_bpm: np.ndarray
    time_signature_seconds: np.ndarray
    time_signatures: np.ndarray
    duration_seconds: float

    def __len__(self) -> int:
        return len(self.pitch)

    def select(self, keep: np.ndarray) -> Score:
        """The score with only those notes where `keep`, bool (n,), is true (or in the order of an index array)."""
        return replace(
            self,
            onset_seconds=self.onset_seconds[keep],
            offset_seconds=self.offset_seconds[keep],
            pitch=self.pitch[keep],
            velocity=self.velocity[keep],
            program=self.program[keep],
            is_drum=self.is_drum[keep],
        )

    def quarters_at(self, seconds: np.ndarray) -> np.ndarray:
        """Quarter notes from the start of the file to each of `seconds`; the shape is kept."""
        per_second = self.tempo_bpm / 60
        at_change = np.concatenate([[0.0], np.cumsum(np.diff(self.tempo_seconds) * per_second[:-1])])
        span = np.maximum(np.searchsorted(self.tempo_seconds, seconds, side="right") - 1, 0)
        quarters: np.ndarray = at_change[span] + (seconds - self.tempo_seconds[span]) * per_second[span]
        return quarters


@dataclass(frozen=True, eq=False)
class _Ticks:
    """What either parser gives: notes and events in ticks, in file order."""

    division: int  # ticks per quarter note; negative for SMPTE time
    notes: dict[str, np.ndarray]  # by NOTE_FIELDS
    tempos: np.ndarray  # int64 (k, 2): tick, microseconds per quarter note
    time_signatures: np.ndarray  # int64 (j, 3): tick, numerator, denominator


def read_midi(raw: RawMidi) -> Score:
    """The notes of `raw` between its start and end. Raises `UnreadableInput`, in one line, where they cannot be had."""
    return cut(parse_midi(raw.read_bytes()), raw.start_seconds, raw.end_seconds)


def parse_midi(data: bytes) -> Score:
    """A whole file's notes. Raises `UnreadableInput` on anything that is not a usable MIDI file."""
    if not data:
        raise UnreadableInput("the MIDI data is empty (0 bytes)")
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableInput(f"the MIDI data has {len(data):,} bytes; at most {MAX_FILE_BYTES:,} are read")
    if data.startswith(b"MThd") and b"MTrk" not in data:  # symusic would read it as a file without notes
        raise UnreadableInput("the MIDI file ends before its first track")
    try:
        ticks = _parse_with_symusic(data)
    except Exception as symusic_error:
        try:
            ticks = _parse_with_mido(data)
        except Exception as mido_error:  # damaged bytes bring a dozen kinds, IndexError and EOFError among them
            reasons = f"symusic: {_one_line(symusic_error)}; mido: {_one_line(mido_error)}"
            raise UnreadableInput(f"not a readable MIDI file ({reasons})") from mido_error
    return _to_score(ticks)


def cut(score: Score, start_seconds: float | None = None, end_seconds: float | None = None) -> Score:
    """The segment of `score` from start to end, times counted from its start; `None` means the score's own edge.

    Notes that sound across an edge are kept and clipped. A note belongs to the segment if it starts in it, or sounds in
    it for longer than `EDGE_SECONDS`. Raises `UnreadableInput` on a span that is none, or begins after the last note.
    """
    if start_seconds is None and end_seconds is None:
        return score
    start = 0.0 if start_seconds is None else start_seconds
    end = np.inf if end_seconds is None else end_seconds
    if not (0 <= start < end and start < np.inf):
        raise UnreadableInput(f"a segment from {start:g} s to {end:g} s is no span of time; expected 0 <= start < end")
    if len(score) and start > score.duration_seconds:
        raise UnreadableInput(
            f"the segment starts at {start:g} s, but the MIDI file's last note ends at {score.duration_seconds:g} s; "
            "if the times refer to the song and the file holds only the segment, set data.midi_is: segment"
        )
    onset, offset = score.onset_seconds - start, score.offset_seconds - start
    starts_before_end = onset < end - start - EDGE_SECONDS
    starts_within_or_sounds_on = (onset >= -EDGE_SECONDS) | (offset > EDGE_SECONDS)
    length = end - start if end_seconds is not None else max(score.duration_seconds - start, 0.0)
    tempo_kept = score.tempo_seconds - start < length
    signature_kept = score.time_signature_seconds - start < length
    tempo_kept[0] = signature_kept[0] = True
    shifted = replace(
        score,
        onset_seconds=np.clip(onset, 0, length),
        offset_seconds=np.clip(offset, 0, length),
        tempo_seconds=score.tempo_seconds[tempo_kept] - start,
        tempo_bpm=score.tempo_bpm[tempo_kept],
        time_signature_seconds=score.time_signature_seconds[signature_kept] - start,
        time_signatures=score.time_signatures[signature_kept],
        duration_seconds=length,
    ).select(starts_before_end & starts_within_or_sounds_on)
    return shifted.select(_note_order(shifted))  # clipping makes equal onsets of what was held over the edge


def _parse_with_symusic(data: bytes) -> _Ticks:
    """Raises whatever symusic raises on what it does not read."""
    score: Any = symusic.Score.from_midi(data)
    columns: dict[str, list[np.ndarray]] = {field: [np.empty(0, np.int64)] for field in NOTE_FIELDS}
    for track in score.tracks:
        notes = {field: column.astype(np.int64) for field, column in track.notes.numpy().items()}
        columns["onset"].append(notes["time"])
        columns["offset"].append(notes["time"] + notes["duration"])
        columns["pitch"].append(notes["pitch"])
        columns["velocity"].append(notes["velocity"])
        columns["program"].append(np.full(len(track.notes), track.program))
        columns["is_drum"].append(np.full(len(track.notes), int(track.is_drum)))
    tempos, signatures = score.tempos.numpy(), score.time_signatures.numpy()
    return _Ticks(
        division=score.tpq,
        notes={field: np.concatenate(parts) for field, parts in columns.items()},
        tempos=np.stack([tempos[key].astype(np.int64) for key in ("time", "mspq")], 1),
        time_signatures=np.stack([signatures[key].astype(np.int64) for key in ("time", "numerator", "denominator")], 1),
    )


def _parse_with_mido(data: bytes) -> _Ticks:
    """Raises whatever mido raises on what it does not read."""
    if len(data) > MAX_FILE_BYTES_MIDO:
        raise ValueError(f"not tried, the data has {len(data):,} bytes and it reads at most {MAX_FILE_BYTES_MIDO:,}")
    file = mido.MidiFile(file=BytesIO(data), clip=True)
    notes: list[tuple[int, ...]] = []
    tempos: list[tuple[int, int]] = []
    signatures: list[tuple[int, int, int]] = []
    for track in file.tracks:
        tick = 0
        program = [0] * 16
        sounding: dict[tuple[int, int], deque[tuple[int, int, int]]] = defaultdict(deque)
        for message in track:
            tick += message.time
            if tick > MAX_TICK:
                raise OverflowError(f"event times exceed {MAX_TICK:,} ticks")
            kind = message.type
            if kind in ("note_on", "note_off"):
                queue = sounding[message.channel, message.note]
                if kind == "note_on" and message.velocity > 0:
                    queue.append((tick, message.velocity, program[message.channel]))
                elif queue:
                    onset, velocity, at_onset = queue.popleft()
                    notes.append((onset, tick, message.note, velocity, at_onset, int(message.channel == DRUM_CHANNEL)))
            elif kind == "program_change":
                program[message.channel] = message.program
            elif kind == "set_tempo":
                tempos.append((tick, message.tempo))
            elif kind == "time_signature" and message.denominator <= 128:  # greater ones do not fit symusic's byte
                signatures.append((tick, message.numerator, message.denominator))
            elif kind == "end_of_track":
                break
    table = np.array(notes, np.int64).reshape(-1, len(NOTE_FIELDS))
    return _Ticks(
        division=file.ticks_per_beat,
        notes={field: table[:, column] for column, field in enumerate(NOTE_FIELDS)},
        tempos=np.array(tempos, np.int64).reshape(-1, 2),
        time_signatures=np.array(signatures, np.int64).reshape(-1, 3),
    )


def _to_score(ticks: _Ticks) -> Score:
    notes = ticks.notes
    if len(notes["onset"]) > MAX_NOTES:
        raise UnreadableInput(f"the MIDI file has {len(notes['onset']):,} notes; at most {MAX_NOTES:,} are read")
    ticks_in_use = np.concatenate([notes["onset"], notes["offset"], ticks.tempos[:, 0], ticks.time_signatures[:, 0]])
    if (ticks_in_use < 0).any() or (notes["offset"] < notes["onset"]).any():  # symusic's int32 wrapped around
        raise UnreadableInput(f"the MIDI file's event times exceed {MAX_TICK:,} ticks; a delta time is damaged")
    tempos = _in_force(ticks.tempos[ticks.tempos[:, 1] > 0], (DEFAULT_MICROSECONDS_PER_QUARTER,))
    stated = ticks.time_signatures[(ticks.time_signatures[:, 1:] > 0).all(1)]
    signatures = _in_force(stated, (4, 4))
    if ticks.division > 0:
        clock_ticks, seconds_per_tick = tempos[:, 0], tempos[:, 1] / (1e6 * ticks.division)
    else:  # SMPTE ticks are fractions of a second, whatever the tempo
        clock_ticks, seconds_per_tick = np.zeros(1, np.int64), np.array([_smpte_seconds_per_tick(ticks.division)])
    clock_seconds = np.concatenate([[0.0], np.cumsum(np.diff(clock_ticks) * seconds_per_tick[:-1])])

    def seconds(at: np.ndarray) -> np.ndarray:
        span = np.searchsorted(clock_ticks, at, side="right") - 1
        moment: np.ndarray = clock_seconds[span] + (at - clock_ticks[span]) * seconds_per_tick[span]
        return moment

    onset_seconds = seconds(notes["onset"])
    offset_seconds = np.maximum(seconds(notes["offset"]), onset_seconds)  # rounding never turns a note around
    duration_seconds = float(offset_seconds.max(initial=0.0))
    if duration_seconds > MAX_DURATION_SECONDS:
        hours = f"{duration_seconds / 3600:,.1f} h; at most {MAX_DURATION_SECONDS / 3600:g} h are read"
        raise UnreadableInput(f"the MIDI file lasts {hours} (a damaged delta time or tempo makes such a file)")
    score = Score(
        onset_seconds=onset_seconds,
        offset_seconds=offset_seconds,
        pitch=notes["pitch"].astype(np.int16),
        velocity=notes["velocity"].astype(np.int16),
        program=notes["program"].astype(np.int16),
        is_drum=notes["is_drum"].astype(bool),
        tempo_seconds=seconds(tempos[:, 0]),
        tempo_bpm=60e6 / tempos[:, 1],
        time_signature_seconds=seconds(signatures[:, 0]),
        time_signatures=signatures[:, 1:].astype(np.int16),
        duration_seconds=duration_seconds,
    )
    return score.select(_note_order(score))


def _note_order(score: Score) -> np.ndarray:
    keys = (score.velocity, score.program, score.is_drum, score.offset_seconds, score.pitch, score.onset_seconds)
    return np.lexsort(keys)  # every field is a key, so the order does not depend on the parser's


def _in_force(events: np.ndarray, default: tuple[int, ...]) -> np.ndarray:
    """Events (k, 1 + values) by tick, `default` at tick 0 where none stands there; of several at one tick, the last."""
    events = np.concatenate([[(0, *default)], events[np.argsort(events[:, 0], kind="stable")]]).astype(np.int64)
    is_last_of_tick = np.append(np.diff(events[:, 0]) > 0, True)
    in_force: np.ndarray = events[is_last_of_tick]
    return in_force


def _smpte_seconds_per_tick(division: int) -> float:
    frame_code, ticks_per_frame = -(division >> 8), division & 0xFF  # two bytes: minus the frame rate, the subdivision
    if frame_code not in SMPTE_FRAMES_PER_SECOND or ticks_per_frame == 0:
        raise UnreadableInput(f"the MIDI file's time division {division & 0xFFFF:#06x} is neither metrical nor SMPTE")
    return 1 / (SMPTE_FRAMES_PER_SECOND[frame_code] * ticks_per_frame)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
