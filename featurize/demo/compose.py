"""From a plan to notes: key, mode, chords, melody, bass and drums.

Meter is 4/4 throughout. A song has one tonic, one tempo and one set of instruments, drawn almost regardless of
mood, so that songs are recognizable and a split that cuts through songs would leak. The mode of a section follows
its valence, tempo and density follow its arousal, both loosely.

Scale degrees count from 0 (the tonic) and run on over octaves: degree 7 is the tonic an octave higher.
"""

from dataclasses import dataclass

import numpy as np

from featurize.demo.plan import SectionPlan
from featurize.demo.score import BEATS_PER_BAR, DRUM_CHANNEL, TICKS_PER_BEAT, Note, Part, Score

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
MAJOR_PROGRESSIONS = ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 4, 0), (0, 3, 0, 4), (0, 2, 3, 4))
MINOR_PROGRESSIONS = ((0, 3, 4, 0), (0, 6, 5, 4), (0, 3, 0, 6), (0, 5, 3, 4), (0, 4, 3, 0))
BEATS_PER_CHORD = 2

# Happy songs in minor keys and sad ones in major keys exist; mode is a hint.
MODE_FOLLOWS_VALENCE = 0.92
# Standard deviation of a section's activity (what the notes show of arousal) and intensity (what the playing shows).
ACTIVITY_NOISE = 0.20
INTENSITY_NOISE = 0.05

MELODY_PROGRAMS = (0, 11, 25, 40, 65, 71, 73, 80)
CHORD_PROGRAMS = (0, 4, 24, 48, 89)
BASS_PROGRAMS = (32, 33, 38)

KICK, SNARE, CLOSED_HAT, CRASH = 36, 38, 42, 49


@dataclass(frozen=True)
class Section:
    """Where a section lies in its song, and how hard it is played (0 to 1; heard, not written)."""

    plan: SectionPlan
    start_ticks: int
    end_ticks: int
    intensity: float


@dataclass(frozen=True)
class Song:
    """Its notes, and the sections in which they stand."""

    score: Score
    sections: list[Section]

    def bounds_seconds(self, section: Section) -> tuple[float, float]:
        """Start and end of a section, in seconds."""
        return self.score.seconds(section.start_ticks), self.score.seconds(section.end_ticks)


def compose(plans: list[SectionPlan], segment_seconds: float, rng: np.random.Generator) -> Song:
    """Write a song of whole bars: each section has the number of bars that comes nearest to `segment_seconds`."""
    mean_arousal = float(np.mean([plan.arousal for plan in plans]))
    tempo_bpm = float(np.clip(rng.normal(80 + 50 * mean_arousal, 18), 60, 170))
    n_bars = max(1, round(segment_seconds * tempo_bpm / (60 * BEATS_PER_BAR)))
    tonic = int(rng.integers(12))
    parts = [
        Part("melody", 0, int(rng.choice(MELODY_PROGRAMS))),
        Part("chords", 1, int(rng.choice(CHORD_PROGRAMS))),
        Part("bass", 2, int(rng.choice(BASS_PROGRAMS))),
        Part("drums", DRUM_CHANNEL, 0),
    ]
    sections = []
    written: dict[SectionPlan, list[list[Note]]] = {}
    section_ticks = n_bars * BEATS_PER_BAR * TICKS_PER_BEAT
    for index, plan in enumerate(plans):
        if plan not in written:  # the chorus returns note for note
            written[plan] = _write_section(plan, tonic, n_bars, rng)
        start_ticks = index * section_ticks
        for part, notes in zip(parts, written[plan], strict=True):
            part.notes.extend(note.shifted(start_ticks) for note in notes)
        intensity = float(np.clip(rng.normal(plan.arousal, INTENSITY_NOISE), 0, 1))
        sections.append(Section(plan, start_ticks, start_ticks + section_ticks, intensity))
    return Song(Score(round(60_000_000 / tempo_bpm), parts), sections)


def _write_section(plan: SectionPlan, tonic: int, n_bars: int, rng: np.random.Generator) -> list[list[Note]]:
    """Notes of melody, chords, bass and drums, counted from the start of the section."""
    major = plan.positive == bool(rng.random() < MODE_FOLLOWS_VALENCE)
    scale = MAJOR if major else MINOR
    progressions = MAJOR_PROGRESSIONS if major else MINOR_PROGRESSIONS
    progression = progressions[int(rng.integers(len(progressions)))]
    n_chords = n_bars * BEATS_PER_BAR // BEATS_PER_CHORD
    roots = [progression[index % len(progression)] for index in range(n_chords)]
    activity = float(np.clip(rng.normal(plan.arousal, ACTIVITY_NOISE), 0, 1))
    return [
        _melody(roots, scale, tonic, activity, rng),
        _chords(roots, scale, tonic, rng),
        _bass(roots, scale, tonic, activity, rng),
        _drums(n_bars, activity, rng),
    ]


def _pitch(degree: int, scale: tuple[int, ...], tonic: int, octave_pitch: int) -> int:
    return octave_pitch + tonic + scale[degree % 7] + 12 * (degree // 7)


def _note(beat: float, beats: float, pitch: int, velocity: float) -> Note:
    start_ticks = round(beat * TICKS_PER_BEAT)
    return Note(start_ticks, max(1, round(beats * TICKS_PER_BEAT)), pitch, int(np.clip(velocity, 1, 127)))


def _melody(
    roots: list[int], scale: tuple[int, ...], tonic: int, activity: float, rng: np.random.Generator
) -> list[Note]:
    """A walk along the scale that meets a chord tone whenever the chord changes and ends on the last chord's root."""
    notes = []
    degree = int(rng.integers(0, 5))
    n_beats = len(roots) * BEATS_PER_CHORD
    beat = 0.0
    while beat < n_beats:
        until_change = BEATS_PER_CHORD - beat % BEATS_PER_CHORD
        long_share = 1 - activity
        beats = float(rng.choice([0.5, 1.0, 2.0], p=[0.7 * activity + 0.1, 0.2, 0.7 * long_share]))
        beats = min(beats, until_change)
        root = roots[int(beat // BEATS_PER_CHORD)]
        degree = int(np.clip(degree + rng.integers(-2, 3), -2, 9))
        if beat % BEATS_PER_CHORD == 0:
            degree = _nearest_chord_tone(degree, root)
        if beat + beats >= n_beats:
            degree = _nearest_chord_tone(degree, root, offsets=(0,))
        notes.append(_note(beat, 0.92 * beats, _pitch(degree, scale, tonic, 60), rng.normal(84, 8)))
        beat += beats
    return notes


def _nearest_chord_tone(degree: int, root: int, offsets: tuple[int, ...] = (0, 2, 4)) -> int:
    chord_tones = [root + offset + 7 * octave for octave in (-1, 0, 1) for offset in offsets]
    return min(chord_tones, key=lambda tone: abs(tone - degree))


def _chords(roots: list[int], scale: tuple[int, ...], tonic: int, rng: np.random.Generator) -> list[Note]:
    notes = []
    for index, root in enumerate(roots):
        for offset in (0, 2, 4):
            pitch = _pitch(root + offset, scale, tonic, 48)
            if scale is MINOR and root == 4 and offset == 2:
                pitch += 1  # the dominant of a minor key is a major chord: its third leads to the tonic
            notes.append(_note(index * BEATS_PER_CHORD, 0.97 * BEATS_PER_CHORD, pitch, rng.normal(68, 6)))
    return notes


def _bass(
    roots: list[int], scale: tuple[int, ...], tonic: int, activity: float, rng: np.random.Generator
) -> list[Note]:
    beats_between = 0.5 if activity > 0.7 else 1.0 if activity > 0.4 else 2.0
    per_chord = int(BEATS_PER_CHORD / beats_between)
    return [
        _note(index * BEATS_PER_CHORD + step * beats_between, 0.9 * beats_between, pitch, rng.normal(80, 6))
        for index, root in enumerate(roots)
        for pitch in [_pitch(root, scale, tonic, 24 if tonic > 5 else 36)]
        for step in range(per_chord)
    ]


def _drums(n_bars: int, activity: float, rng: np.random.Generator) -> list[Note]:
    """From nothing at all, over a backbeat, to eighth notes with extra kicks and a crash."""
    if activity < 0.2:
        return []
    hits = [(0.0, CRASH)] if activity > 0.8 else []
    for bar in range(n_bars):
        first_beat = bar * BEATS_PER_BAR
        hits += [(first_beat + beat, KICK) for beat in (0, 2)]
        if activity > 0.35:
            hits += [(first_beat + beat, SNARE) for beat in (1, 3)]
        if activity > 0.6:
            hits += [(first_beat + beat, KICK) for beat in (0.5, 1.5, 2.5, 3.5) if rng.random() < activity - 0.4]
        step = 0.5 if activity > 0.5 else 1.0
        hits += [(first_beat + index * step, CLOSED_HAT) for index in range(int(BEATS_PER_BAR / step))]
    return [_note(beat, 0.2, pitch, rng.normal(86, 8)) for beat, pitch in hits]
