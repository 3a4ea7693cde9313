"""Find the tracks of a Standard MIDI File, before anyone reads their events.

Conventions
-----------
* The file begins at the first `MThd`; what stands before it (a MacBinary header, the frame of a `.rmi`) is passed over,
  as players do. Of a RIFF file, only the `data` chunk is read.
* All `MTrk` chunks are read, also where the header counts fewer. Where it counts more, the file is accepted if it ends
  with a whole chunk: a wrong count is commoner than a cut exactly there. Other chunks are passed over, and so is what
  follows the last track.
* A chunk's body is taken as it is. Its events are another file's affair.

Sources: MIDI Manufacturers Association, "Standard MIDI Files 1.0", RP-001, 1996; "RMID", RP-029.
"""

from __future__ import annotations

from dataclasses import dataclass

from featurize.limits import MAX_MIDI_BYTES
from featurize.segments import UnreadableInput

MAX_TRACKS = 2048  # the largest files have some 200; each costs a parser far more than its 8 bytes

ONE_TRACK, TRACKS_TOGETHER, TRACKS_IN_TURN = 0, 1, 2  # the header's format


@dataclass(frozen=True)
class Chunks:
    """format: 0, 1 or 2. division: int16 as stated, ticks per quarter note, or negative for SMPTE time."""

    format: int
    division: int
    tracks: list[bytes]


def split_chunks(data: bytes) -> Chunks:
    """Raises `UnreadableInput` on what is no MIDI file, and on one that is cut short."""
    if not data:
        raise UnreadableInput("the MIDI data is empty (0 bytes)")
    if len(data) > MAX_MIDI_BYTES:
        raise UnreadableInput(f"the MIDI data has {len(data):,} bytes; at most {MAX_MIDI_BYTES:,} are read")
    start = data.find(b"MThd")
    if start < 0:
        raise UnreadableInput(f"not a MIDI file: there is no MThd in it (it begins with {data[:8]!r})")
    end = _end_of_riff_data(data, start)
    header_length = int.from_bytes(data[start + 4 : start + 8], "big")
    if header_length < 6 or start + 8 + header_length > end:
        raise UnreadableInput(f"the MIDI file's header states {header_length:,} bytes; expected 6, and tracks after it")
    file_format = int.from_bytes(data[start + 8 : start + 10], "big")
    if file_format not in (ONE_TRACK, TRACKS_TOGETHER, TRACKS_IN_TURN):
        raise UnreadableInput(f"the MIDI file's format is {file_format}; expected 0, 1 or 2")
    return Chunks(
        format=file_format,
        division=int.from_bytes(data[start + 12 : start + 14], "big", signed=True),
        tracks=_tracks(data, start + 8 + header_length, end, int.from_bytes(data[start + 10 : start + 12], "big")),
    )


def _tracks(data: bytes, position: int, end: int, n_stated: int) -> list[bytes]:
    tracks: list[bytes] = []
    while position + 8 <= end:
        kind, body = data[position : position + 4], position + 8
        size = int.from_bytes(data[position + 4 : body], "big")
        if body + size > end or kind == b"MThd":
            break
        position = body + size
        if kind == b"MTrk":
            tracks.append(data[body:position])
            if len(tracks) > MAX_TRACKS:
                raise UnreadableInput(f"the MIDI file has more than {MAX_TRACKS:,} tracks; no more are read")
    if not tracks or (len(tracks) < n_stated and position < end):
        there = f"the header counts {n_stated:,}, {len(tracks):,} are whole"
        raise UnreadableInput(f"the MIDI file is cut short, or a track's length is wrong: of its tracks, {there}")
    return tracks


def _end_of_riff_data(data: bytes, start: int) -> int:
    if data.startswith(b"RIFF") and data[start - 8 : start - 4] == b"data":
        return min(len(data), start + int.from_bytes(data[start - 4 : start], "little"))
    return len(data)
