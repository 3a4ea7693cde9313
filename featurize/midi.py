"""Read a Standard MIDI File into one table of notes in seconds, and cut a segment out of it.

The file is split into tracks by `midi_chunks`, their events are read by `midi_events`. Ticks become seconds here, once,
in float64: symusic's own seconds are float32, which moves a note at minute five by up to 15 µs.

Conventions
-----------
* Times are seconds from the start of the file, or of the segment once cut. Arrays have one entry per note, ordered by
  onset, then pitch, offset, drum, program, velocity.
* No note is lost. One without an end (`midi_events` says which that is) lasts until its key is struck again or its
  track ends, and at most `MAX_UNENDED_SECONDS`.
* All tempo events hold for all tracks, whichever track they stand in. 120 quarter notes per minute and 4/4 hold from
  tick 0 until the file says otherwise. SMPTE ticks are fractions of a second, whatever the tempo.
* Channel 10 is drums; `program` is then the drum kit.
* The tracks of a type-2 file are pieces of their own: they are read one after another, each with its own tempo and
  from the end of the one before.

Source: MIDI Manufacturers Association, "Standard MIDI Files 1.0", RP-001, 1996.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from featurize.midi_chunks import TRACKS_IN_TURN, split_chunks
from featurize.midi_events import DRUMS, MAX_NOTES, Events, Notes, concatenate_notes, read_with_mido, read_with_symusic
from featurize.segments import RawMidi, UnreadableInput

MAX_DURATION_SECONDS = 24 * 3600.0  # no song is longer; a damaged delta time easily is
MAX_UNENDED_SECONDS = 1.0  # 19 of 20 notes of 50 pop songs are shorter; a hung note must not outweigh all others

EDGE_SECONDS = 1e-6  # times closer than this are equal: seconds from a table carry rounding, a MIDI tick is ≥ 20 µs

DEFAULT_TEMPO, DEFAULT_METER = (500_000,), (4, 4)  # microseconds per quarter note; where a file states none
SMPTE_FRAMES_PER_SECOND = {24: 24.0, 25: 25.0, 29: 30_000 / 1001, 30: 30.0}  # 29 stands for drop-frame 29.97

READING = {  # what decides a score's numbers, for the settings of every encoder that reads one
    "overlapping_strikes": "first in, first out",
    "unended_notes": "until the next strike or the track's end",
    "max_unended_seconds": MAX_UNENDED_SECONDS,
    "type_2": "tracks in turn",
    "cut_edge_seconds": EDGE_SECONDS,
}


@dataclass(frozen=True, eq=False)
class Score:
    """The notes of a file or segment, with its tempo map and time signatures.

    onset_seconds, offset_seconds: float64 (n,), in [0, duration_seconds], offset ≥ onset.
    pitch, velocity, program: int16 (n,), 0 to 127. is_drum: bool (n,).
    tempo_seconds, tempo_bpm: float64 (k,), k ≥ 1, ascending; quarter notes per minute from that time on.
    time_signature_seconds: float64 (j,), j ≥ 1; time_signatures: int16 (j, 2), numerator and denominator.
    duration_seconds: length of the segment; of a whole file, the end of its last note.
    track_end_seconds: of a whole file, the end of its longest track: of real files, one in 25 goes on in silence for
    minutes, so it says where a segment may still begin, and is no length. Of a cut segment, its length.
    n_unended: how many notes of the whole file had no end.

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
    track_end_seconds: float
    n_unended: int

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
        """Quarter notes from the start of the file to each of `seconds`; of any shape (…), which is kept."""
        per_second = self.tempo_bpm / 60
        at_change = np.concatenate([[0.0], np.cumsum(np.diff(self.tempo_seconds) * per_second[:-1])])
        span = np.maximum(np.searchsorted(self.tempo_seconds, seconds, side="right") - 1, 0)
        quarters: np.ndarray = at_change[span] + (seconds - self.tempo_seconds[span]) * per_second[span]
        return quarters


def read_midi(raw: RawMidi) -> Score:
    """The notes of `raw` between its start and end. Raises `UnreadableInput`, in one line, where they cannot be had."""
    score = parse_midi(raw.read_bytes())
    if not raw.shift_seconds:
        return cut(score, raw.start_seconds, raw.end_seconds)
    end = None if raw.end_seconds is None else raw.end_seconds - raw.shift_seconds
    return cut(score, (raw.start_seconds or 0.0) - raw.shift_seconds, end, silence_before=True)


def parse_midi(data: bytes) -> Score:
    """A whole file's notes. Raises `UnreadableInput` on anything that is not a usable MIDI file."""
    chunks = split_chunks(data)
    if chunks.format == TRACKS_IN_TURN:
        events = _in_turn([_read_events([track]) for track in chunks.tracks])
    else:
        events = _read_events(chunks.tracks)
    return _to_score(events, chunks.division)


def _read_events(tracks: list[bytes]) -> Events:
    try:
        return read_with_symusic(tracks)
    except UnreadableInput:
        raise
    except Exception as symusic_error:
        try:
            return read_with_mido(tracks)
        except Exception as mido_error:  # damaged bytes bring a dozen kinds, IndexError and EOFError among them
            reasons = f"symusic: {_one_line(symusic_error)}; mido: {_one_line(mido_error)}"
            raise UnreadableInput(f"not a readable MIDI file ({reasons})") from mido_error


def cut(
    score: Score,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    *,
    silence_before: bool = False,
) -> Score:
    """The segment of `score` from start to end, times counted from its start; `None` means the score's own edge.

    silence_before: a start below 0 is silence before the file's own, not a mistake.

    Notes that sound across an edge are kept and clipped. A note belongs to the segment if it starts in it, or sounds in
    it for longer than `EDGE_SECONDS`. In the silence after the last note, the segment has no notes. Raises
    `UnreadableInput` on a span that is none, or begins after the last track's end.
    """
    if start_seconds is None and end_seconds is None:
        return score
    start = 0.0 if start_seconds is None else start_seconds
    end = np.inf if end_seconds is None else end_seconds
    earliest = -np.inf if silence_before else 0.0
    if not (earliest <= start < end and -np.inf < start < np.inf):
        raise UnreadableInput(f"a segment from {start:g} s to {end:g} s is no span of time; expected 0 <= start < end")
    if len(score) and start > score.track_end_seconds + EDGE_SECONDS:
        raise UnreadableInput(
            f"the segment starts at {start:g} s, but the MIDI file's tracks end at {score.track_end_seconds:g} s; "
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
        track_end_seconds=length,
    ).select(starts_before_end & starts_within_or_sounds_on)
    return shifted.select(_order_in_seconds(shifted))  # clipping makes equal onsets of what was held over the edge


def _to_score(events: Events, division: int) -> Score:
    notes = events.notes
    if len(notes["onset"]) > MAX_NOTES:
        raise UnreadableInput(f"the MIDI file has {len(notes['onset']):,} notes; at most {MAX_NOTES:,} are read")
    tempos = _in_force(events.tempos[events.tempos[:, 1] > 0], DEFAULT_TEMPO)
    signatures = _in_force(events.time_signatures[events.time_signatures[:, 1:].all(1)], DEFAULT_METER)
    if division > 0:
        clock_ticks, seconds_per_tick = tempos[:, 0], tempos[:, 1] / (1e6 * division)
    else:
        clock_ticks, seconds_per_tick = np.zeros(1, np.int64), np.array([_smpte_seconds_per_tick(division)])
    knots = np.concatenate([clock_ticks, [events.end + 1]])  # nothing is later
    knot_seconds = np.concatenate([[0.0], np.cumsum((knots[1:] - knots[:-1]) * seconds_per_tick)])

    def seconds(at: np.ndarray) -> np.ndarray:
        return np.asarray(at * seconds_per_tick[0] if len(clock_ticks) == 1 else np.interp(at, knots, knot_seconds))

    n_unended = 0
    if "is_unended" in notes:
        unended = np.flatnonzero(notes["is_unended"])
        n_unended, length = len(unended), notes["length"].copy()
        latest = np.interp(seconds(notes["onset"][unended]) + MAX_UNENDED_SECONDS, knot_seconds, knots)
        longest = np.floor(latest - notes["onset"][unended] + 1e-6)  # whole ticks, so that time is one order for all
        length[unended] = np.minimum(length[unended], longest)
        notes = notes | {"length": length}
    order = _order_in_ticks(notes)
    onset, instrument = notes["onset"].take(order), notes["instrument"].take(order)
    onset_seconds, offset_seconds = seconds(onset), seconds(onset + notes["length"].take(order))
    offset_seconds = np.maximum(offset_seconds, onset_seconds)  # rounding never turns a note around
    duration_seconds = float(offset_seconds.max(initial=0.0))
    if duration_seconds > MAX_DURATION_SECONDS:
        hours = f"{duration_seconds / 3600:,.1f} h; at most {MAX_DURATION_SECONDS / 3600:g} h are read"
        raise UnreadableInput(f"the MIDI file lasts {hours} (a damaged delta time or tempo makes such a file)")
    return Score(
        onset_seconds=onset_seconds,
        offset_seconds=offset_seconds,
        pitch=notes["pitch"].take(order).astype(np.int16),
        velocity=notes["velocity"].take(order).astype(np.int16),
        program=(instrument % DRUMS).astype(np.int16),
        is_drum=instrument >= DRUMS,
        tempo_seconds=seconds(tempos[:, 0]),
        tempo_bpm=60e6 / tempos[:, 1],
        time_signature_seconds=seconds(signatures[:, 0]),
        time_signatures=signatures[:, 1:].astype(np.int16),
        duration_seconds=duration_seconds,
        track_end_seconds=max(duration_seconds, float(seconds(np.array(events.end)))),
        n_unended=n_unended,
    )


def _in_turn(pieces: list[Events]) -> Events:
    """One piece after another; each begins with the tempo and meter that hold where none is stated."""
    starts = np.cumsum([0, *(piece.end for piece in pieces)])
    placed = list(zip(pieces, starts, strict=False))
    notes = concatenate_notes(piece.notes for piece in pieces)
    notes["onset"] = notes["onset"] + starts[:-1].repeat([len(piece.notes["onset"]) for piece in pieces])
    return Events(
        notes=notes,
        tempos=np.concatenate([_from(start, DEFAULT_TEMPO, piece.tempos) for piece, start in placed]),
        time_signatures=np.concatenate([_from(start, DEFAULT_METER, piece.time_signatures) for piece, start in placed]),
        end=int(starts[-1]),
    )


def _from(start: int, default: tuple[int, ...], events: np.ndarray) -> np.ndarray:
    placed = np.concatenate([[(0, *default)], events])
    placed[:, 0] += start
    return placed


def _order_in_ticks(notes: Notes) -> np.ndarray:
    """By onset, pitch, offset, drum, program, velocity: every field counts, so the parser's order does not."""
    onset, pitch, length = notes["onset"].astype(np.int64), notes["pitch"], notes["length"]
    kind = notes["instrument"] << 7 | notes["velocity"]
    length_bits = int(length.max(initial=0)).bit_length()
    if int(onset.max(initial=0)).bit_length() + 7 + length_bits + 15 > 63:
        return np.lexsort((kind, length, pitch, onset))
    low = length.astype(np.int64) << 15 | kind
    return np.argsort((onset << 7 | pitch) << length_bits + 15 | low, kind="stable")  # merges the tracks, each in order


def _order_in_seconds(score: Score) -> np.ndarray:
    return np.lexsort(
        (score.velocity, score.program, score.is_drum, score.offset_seconds, score.pitch, score.onset_seconds)
    )


def _in_force(events: np.ndarray, default: tuple[int, ...]) -> np.ndarray:
    """Events (k, 1 + values) by tick, `default` at tick 0 where none stands there; of several at one tick, the last."""
    if len(events) == 1 and events[0, 0] == 0:  # as in most files
        return events
    in_force = np.empty((1 + len(events), 1 + len(default)), np.int64)
    in_force[0] = (0, *default)
    in_force[1:] = events[np.argsort(events[:, 0], kind="stable")]
    is_last_of_tick = np.ones(len(in_force), np.bool_)
    is_last_of_tick[:-1] = in_force[1:, 0] > in_force[:-1, 0]
    return np.asarray(in_force[is_last_of_tick])


def _smpte_seconds_per_tick(division: int) -> float:
    frame_code, ticks_per_frame = -(division >> 8), division & 0xFF  # two bytes: minus the frame rate, the subdivision
    if frame_code not in SMPTE_FRAMES_PER_SECOND or ticks_per_frame == 0:
        raise UnreadableInput(f"the MIDI file's time division {division & 0xFFFF:#06x} is neither metrical nor SMPTE")
    return 1 / (SMPTE_FRAMES_PER_SECOND[frame_code] * ticks_per_frame)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
