"""A score, and its MIDI file.

Conventions: times are integer ticks, 480 to a quarter note, so that the MIDI file and the audio share every onset
exactly. Tempo is whole microseconds per quarter note, as MIDI stores it. Pitches are MIDI note numbers (60 is
middle C), velocities 1 to 127. Drums use the General MIDI percussion map on channel 10 (index 9).
"""

from dataclasses import dataclass, field
from pathlib import Path

import mido

TICKS_PER_BEAT = 480
BEATS_PER_BAR = 4
DRUM_CHANNEL = 9


@dataclass(frozen=True, slots=True)
class Note:
    """pitch: 0 to 127, 60 is middle C. velocity: 1 to 127."""

    start_ticks: int
    length_ticks: int
    pitch: int
    velocity: int

    def shifted(self, ticks: int) -> "Note":
        """The same note so many ticks later."""
        return Note(self.start_ticks + ticks, self.length_ticks, self.pitch, self.velocity)


@dataclass(slots=True)
class Part:
    """One instrument: `program` is General MIDI, counted from 0, and is ignored on the drum channel."""

    name: str
    channel: int
    program: int
    notes: list[Note] = field(default_factory=list)


@dataclass(slots=True)
class Score:
    """Parts at one tempo."""

    microseconds_per_beat: int
    parts: list[Part]

    def seconds(self, ticks: int) -> float:
        """From the start to this tick, in seconds."""
        return ticks * self.microseconds_per_beat / (TICKS_PER_BEAT * 1_000_000)


def write_midi(score: Score, path: Path) -> None:
    """Write a type-1 file: tempo and meter in track 0, then one track for each part."""
    midi = mido.MidiFile(type=1, ticks_per_beat=TICKS_PER_BEAT)
    conductor = mido.MidiTrack()
    conductor.append(mido.MetaMessage("set_tempo", tempo=score.microseconds_per_beat))
    conductor.append(mido.MetaMessage("time_signature", numerator=BEATS_PER_BAR, denominator=4))
    midi.tracks.append(conductor)
    for part in score.parts:
        midi.tracks.append(_track(part))
    midi.save(str(path))


def _track(part: Part) -> mido.MidiTrack:
    track = mido.MidiTrack()
    track.append(mido.MetaMessage("track_name", name=part.name))
    if part.channel != DRUM_CHANNEL:
        track.append(mido.Message("program_change", channel=part.channel, program=part.program))
    # At equal times a note ends before the next one starts; otherwise a repeated pitch would be cut off at once.
    events = [(note.start_ticks, 1, note.pitch, note.velocity) for note in part.notes]
    events += [(note.start_ticks + note.length_ticks, 0, note.pitch, 0) for note in part.notes]
    now = 0
    for ticks, is_start, pitch, velocity in sorted(events):
        kind = "note_on" if is_start else "note_off"
        track.append(mido.Message(kind, channel=part.channel, note=pitch, velocity=velocity, time=ticks - now))
        now = ticks
    return track
