"""Read the events of MIDI tracks: notes, tempos and time signatures in ticks, by two parsers that agree.

`symusic` parses whole songs in under a millisecond. `mido`, some two hundred times slower, takes what symusic refuses,
such as data bytes above 127 (clipped). Where both can read, both give the same; a test compares them.

Conventions
-----------
* Times are ticks from the start of the file. Arrays have one entry per note, in no particular order.
* A note-off ends the oldest sounding note of its channel and pitch in its track (first in, first out); note-on with
  velocity 0 is a note-off. Notes of zero length are kept. A note-off for what does not sound is ignored.
* A note without an end is kept. It ends where its key is struck again, or with its track; `is_unended` marks it. Which
  of a key's strikes lacks one is found as for brackets: each note-off closes the last strike that is open, and what
  stays open has none. The rest is paired as above. So a missing note-off costs one note its end; paired without this,
  every later note of the key would last until the end of the next.
* A note's program is the last program change before it on its channel *in its track*; 0 where there is none.
* A track ends at its end-of-track event; without one, at its last event.

symusic drops notes without an end, and says nothing of a track's. So each track is parsed with a tail of its own behind
its last event: a marker, whose time is the track's end and whose absence shows that symusic stopped elsewhere; and
`FAR_TICKS` later a note-off for every key, so that what lasted until then had no end.
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import mido
import numpy as np
import symusic

from featurize.segments import UnreadableInput

MAX_BYTES_MIDO = 2**20  # mido takes about 2 µs per byte
MAX_HIGH_RUN_MIDO = 4096  # bytes above 127: it takes them for one delta time, in quadratic time; no text has as many
MAX_NOTES = 1_000_000  # the longest songs have some 20,000; beyond this, one row would stall a worker
MAX_TICK = 2**30 - 1  # symusic counts in int32, and the tail needs as much again

DRUM_CHANNEL = 9  # counted from 0

NOTE_FIELDS = ("onset", "length", "pitch", "velocity", "instrument")
DRUMS = 128  # is added to the program for an instrument: 0 to 127 are programs, from here on drum kits

FAR_TICKS = MAX_TICK + 1
MAX_UNENDED = (1, 255, 4095)  # of one key and track: the first is usual, the last is drums that nothing ever ends

_END_OF_TRACK = b"\xff\x2f\x00"
_TRACK_END_TEXT = "\x01end of track"  # a marker text that no file has; if one has, mido reads it
_TRACK_END_MARKER = b"\xff\x06" + bytes([len(_TRACK_END_TEXT)]) + _TRACK_END_TEXT.encode()
_FAR = b"\xff\xff\xff\x7f\xff\x01\x00" * 4 + b"\x04\xff\x01\x00"  # 4 · (2^28 - 1) + 4 ticks, in empty texts
_ALL_OFF = [
    bytes([0, 0x80 | channel, 0, 0]) + b"".join(bytes([0, pitch, 0]) for pitch in range(1, 128))
    for channel in range(16)
]
_CHANNEL_CONTROL = 119  # carries the channel's number: symusic's tracks do not tell theirs

Notes = dict[str, np.ndarray]  # by NOTE_FIELDS: (n,), integers as wide as they need be; is_unended: bool, or not there


@dataclass(frozen=True, eq=False)
class Events:
    """What either parser gives, tracks together. Events in file order, track by track."""

    notes: Notes
    tempos: np.ndarray  # int64 (k, 2): tick, microseconds per quarter note; 0 states none
    time_signatures: np.ndarray  # int64 (j, 3): tick, numerator, denominator; with a 0, it states none
    end: int  # of the longest track


def read_with_symusic(tracks: Sequence[bytes]) -> Events:
    """Raises whatever symusic raises on what it does not read, and `ValueError` where it would not read all."""
    if _count_long_deltas(b"".join(tracks)) >= 16:  # only so many can exceed 2^32 ticks, and come round again
        raise ValueError("not tried, its delta times might exceed 32 bits")
    score, ends = _parse([(track, b"".join([_FAR, *map(_ALL_OFF.__getitem__, _channels(track))])) for track in tracks])
    notes, tempos, signatures = _notes_of(score), score.tempos.numpy(), score.time_signatures.numpy()
    if notes["length"].max(initial=0) >= FAR_TICKS:
        programs = {track.program for track in score.tracks}
        del score, notes  # pages that the second reading can use
        notes = concatenate_notes(_notes_with_unended(track, programs) for track in tracks)
    return Events(
        notes=notes,
        tempos=_rows(tempos["time"], tempos["mspq"]),
        time_signatures=_rows(signatures["time"], signatures["numerator"], signatures["denominator"]),
        end=max(ends),
    )


def read_with_mido(tracks: Sequence[bytes]) -> Events:
    """Raises whatever mido raises on what it does not read."""
    size = sum(map(len, tracks))
    if size > MAX_BYTES_MIDO:
        raise ValueError(f"not tried, the tracks have {size:,} bytes and it reads at most {MAX_BYTES_MIDO:,}")
    if _longest_high_run(b"".join(tracks)) > MAX_HIGH_RUN_MIDO:
        raise ValueError(f"not tried, more than {MAX_HIGH_RUN_MIDO:,} bytes in a row are above 127")
    file = mido.MidiFile(file=BytesIO(_file_of(tracks)), clip=True)
    notes: list[Notes] = []
    tempos: list[tuple[int, int]] = []
    signatures: list[tuple[int, int, int]] = []
    ends: list[int] = []
    for track in file.tracks:
        tick = 0
        program = [0] * 16
        sounding: dict[tuple[int, int], deque[tuple[int, ...]]] = defaultdict(deque)
        ended: list[tuple[int, ...]] = []  # onset, pitch, velocity, program, channel, offset
        for message in track:
            tick += message.time
            if tick > MAX_TICK:
                raise OverflowError(f"event times exceed {MAX_TICK:,} ticks")
            kind = message.type
            if kind == "unknown_meta":
                raise ValueError(
                    f"a meta event of unknown type {message.type_byte:#04x}, whose delta time mido forgets"
                )
            if kind in ("note_on", "note_off"):
                channel, pitch, velocity = message.channel, message.note, message.velocity
                if kind == "note_on" and velocity > 0:
                    sounding[channel, pitch].append((tick, pitch, velocity, program[channel], channel))
                elif sounding[channel, pitch]:
                    ended.append((*sounding[channel, pitch].popleft(), tick))
            elif kind == "program_change":
                program[message.channel] = message.program
            elif kind == "set_tempo":
                tempos.append((tick, message.tempo))
            elif kind == "time_signature":
                signatures.append((tick, message.numerator, _in_a_byte(message.denominator)))
            elif kind == "end_of_track":
                break
        ends.append(tick)
        unended = [(*note, note[0] + FAR_TICKS) for queue in sounding.values() for note in queue]
        table = np.array(ended + unended, np.int64).reshape(-1, 6)
        onset, pitch, velocity, programs, channel, offset = table.T
        instrument = programs + np.where(channel == DRUM_CHANNEL, DRUMS, 0)
        columns = (onset, offset - onset, pitch, velocity, instrument)
        notes.append(_end_unended(dict(zip(NOTE_FIELDS, columns, strict=True)), channel, tick))
    return Events(
        notes=concatenate_notes(notes),
        tempos=np.array(tempos, np.int64).reshape(-1, 2),
        time_signatures=np.array(signatures, np.int64).reshape(-1, 3),
        end=max(ends, default=0),
    )


def _in_a_byte(denominator: int) -> int:
    """As symusic has it, so that damage reads alike: 0, which states no meter, for most powers of two beyond 128."""
    exponent = denominator.bit_length() - 1
    return (1 << exponent % 32) & 0xFF


def _parse(tracks: Sequence[tuple[bytes, bytes]]) -> tuple[Any, list[int]]:
    """symusic's score of tracks, each with the tail behind it, and the time at which each track ends, in any order."""
    score: Any = symusic.Score.from_midi(_file_of([_with_tail(*track) for track in tracks]))
    if score.note_num() > MAX_NOTES:
        raise UnreadableInput(f"the MIDI file has {score.note_num():,} notes; at most {MAX_NOTES:,} are read")
    ends = [marker.time for marker in score.markers if marker.text == _TRACK_END_TEXT]
    if len(ends) != len(tracks):
        raise ValueError("a track's events do not end where the track does")
    if min(ends) < 0 or max(ends) > MAX_TICK:
        raise OverflowError(f"event times exceed {MAX_TICK:,} ticks")
    return score, ends


def _with_tail(track: bytes, tail: bytes) -> bytes:
    end = track.rfind(_END_OF_TRACK)
    body = track + b"\x00" if end < 0 else track[:end]  # the delta time of the end is then the marker's
    return b"".join([body, _TRACK_END_MARKER, tail, b"\x00", _END_OF_TRACK])


def _file_of(tracks: Sequence[bytes]) -> bytes:
    """A type-1 file; its time division is nothing to parsers that only count ticks."""
    header = b"MThd" + struct.pack(">IHHH", 6, 1, len(tracks), 480)
    return header + b"".join(part for track in tracks for part in (b"MTrk", struct.pack(">I", len(track)), track))


def _channels(track: bytes) -> list[int]:
    """Channels that may have notes; a superset, since a delta time or text can hold the same byte."""
    return [channel for channel in range(16) if 0x90 | channel in track]


def _count_long_deltas(events: bytes) -> int:
    """At least the number of delta times of 2^21 ticks and more, which begin with three bytes above 127."""
    is_high = np.frombuffer(events, np.uint8) > 127
    return int(np.count_nonzero(is_high[:-2] & is_high[1:-1] & is_high[2:]))


def _longest_high_run(events: bytes) -> int:
    low = np.flatnonzero(np.frombuffer(events, np.uint8) <= 127)
    return int(np.diff(low, prepend=-1, append=len(events)).max()) - 1


def _rows(*columns: np.ndarray) -> np.ndarray:
    rows = np.empty((len(columns[0]), len(columns)), np.int64)
    for index, column in enumerate(columns):
        rows[:, index] = column
    return rows


def _notes_of(score: Any) -> Notes:
    tracks = [(track, track.notes.numpy()) for track in score.tracks]
    if not tracks:
        return {field: np.empty(0, np.int32) for field in NOTE_FIELDS}
    instruments = np.array([track.program + DRUMS * track.is_drum for track, _ in tracks], np.int16)
    return {
        "onset": np.concatenate([columns["time"] for _, columns in tracks]),
        "length": np.concatenate([columns["duration"] for _, columns in tracks]),
        "pitch": np.concatenate([columns["pitch"] for _, columns in tracks]),
        "velocity": np.concatenate([columns["velocity"] for _, columns in tracks]),
        "instrument": instruments.repeat([len(columns["time"]) for _, columns in tracks]),
    }


def _notes_with_unended(track: bytes, programs: set[int]) -> Notes:
    """One track again, with what symusic otherwise keeps to itself: notes without an end, and the channels."""
    channels = _channels(track)
    tell_channel = [
        bytes([0, 0xC0 | channel, program, 0, 0xB0 | channel, _CHANNEL_CONTROL, channel])
        for channel in channels
        for program in programs
    ]
    for at_most in MAX_UNENDED:
        all_off = [_ALL_OFF[channel] for channel in channels] * (at_most + 1)
        score, (end,) = _parse([(track, b"".join([_FAR, *tell_channel, *all_off]))])
        with_notes = [track for track in score.tracks if len(track.notes)]  # another may hold lyrics, and no control
        told = np.array([track.controls.numpy()["value"][-1] for track in with_notes], np.int16)
        notes, channel = _notes_of(score), told.repeat([len(track.notes) for track in with_notes])
        lacks = notes["length"] >= FAR_TICKS
        _, n_unended = np.unique(_key(channel, notes)[lacks], return_counts=True)
        if n_unended.max(initial=0) <= at_most:
            return _end_unended(notes, channel, end)
    raise ValueError(f"more than {at_most:,} notes of one key have no end")


def _key(channel: np.ndarray, notes: Notes) -> np.ndarray:
    return np.asarray(channel * 128 + notes["pitch"])


def _end_unended(notes: Notes, channel: np.ndarray, track_end: int) -> Notes:
    """Give the notes of one track that last for `FAR_TICKS` an end, and those they displaced their own."""
    key, lacks = _key(channel, notes), notes["length"] >= FAR_TICKS
    offset, is_unended = notes["onset"] + notes["length"], np.zeros(len(key), np.bool_)
    concerned = np.flatnonzero(np.isin(key, key[lacks]))
    fields = [notes["instrument"], notes["velocity"], offset, notes["onset"], key]
    concerned = concerned[np.lexsort([field[concerned] for field in fields])]
    for of_key in np.split(concerned, np.flatnonzero(np.diff(key[concerned])) + 1):
        onsets = notes["onset"][of_key]
        ends = np.sort(offset[of_key][~lacks[of_key]])
        paired, unpaired = _pair(onsets.tolist(), ends.tolist())
        offset[of_key[paired]] = ends
        later = np.append(onsets, track_end)
        offset[of_key[unpaired]] = later[np.searchsorted(onsets, onsets[unpaired], side="right")]
        is_unended[of_key[unpaired]] = True
    return notes | {"length": offset - notes["onset"], "is_unended": is_unended}


def _pair(onsets: list[int], ends: list[int]) -> tuple[list[int], list[int]]:
    """Indices of the strikes that find an end, and of those that do not; both ascending, as are `onsets` and `ends`.

    At one tick an end comes before a strike, unless nothing else is there to end.
    """
    open_strikes: list[int] = []
    unread = deque(ends)
    for index, onset in enumerate(onsets):
        while unread and unread[0] <= onset and open_strikes:
            unread.popleft()
            open_strikes.pop()
        open_strikes.append(index)
    unpaired = open_strikes[: len(open_strikes) - len(unread)]
    return sorted(set(range(len(onsets))) - set(unpaired)), unpaired


def concatenate_notes(parts: Iterable[Notes]) -> Notes:
    """Tables of notes, one after the other; a table without `is_unended` has none."""
    tables = [{"is_unended": np.zeros(len(part["onset"]), np.bool_)} | part for part in parts]
    return {field: np.concatenate([table[field] for table in tables]) for field in tables[0]}
