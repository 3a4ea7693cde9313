"""MIDI augmentation: small random changes of a segment's notes that leave its labels true. In training only.

Conventions
-----------
* A `Score` goes in and another comes out, with the same number of notes, tempo map, time signatures and duration; all
  that `featurize.midi.Score` promises still holds. The input is never written to.
* The seed alone decides: the same score with the same seed gives the same notes, in any process, after any other
  draws. Each augmentation draws from a stream of its own, so that one more in the list changes nothing of the others.
* Drums keep their pitches, which are instruments, not tones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from featurize.errors import UnknownName
from featurize.midi import Score

PROBABILITY = 0.5  # of each augmentation, for each segment: a quarter of all stay as they are where two are named

MOST_SEMITONES = 6  # up or down: with it, every key is reached, by the shorter way
LOWEST_PITCH, HIGHEST_PITCH = 21, 108  # the piano's; General MIDI 2 recommends no tone outside for any program

MOST_LOUDER = 1.25  # one mark of dynamics, as notation programs write them: 64 is mp, 80 mf
MOST_VELOCITY_JITTER = 8  # half a mark, for each note

MOST_JITTER_SECONDS = 0.01  # onsets of one chord stay within the 30 ms in which `midi_stats` hears a chord

STEPS_PER_QUARTER = (8, 12)  # 32nds, or triplets of 16ths; 4 would make triplets and swing straight
LEAST_STRENGTH = 0.5  # half the way to the grid; 1 is all of it


class MidiAugmentation:
    """The augmentations in `names`, each with `PROBABILITY`. Raises `UnknownName`, which lists the known ones."""

    def __init__(self, names: Sequence[str]):
        for name in names:
            if name not in AUGMENTATIONS:
                raise UnknownName("augmentation", name, AUGMENTATIONS)
        self.names = tuple(name for name in AUGMENTATIONS if name in names)

    def __call__(self, score: Score, seed: int) -> Score:
        for name in self.names:
            rng = np.random.default_rng(list(f"{name} {seed}".encode()))
            if rng.random() < PROBABILITY:
                score = AUGMENTATIONS[name](score, rng)
        return score


def transpose(score: Score, rng: np.random.Generator) -> Score:
    """All tones by one random interval, up or down, of those that take none out of the piano's range.

    A tone that is outside already may move towards the range, not away from it.
    """
    tones = score.pitch[~score.is_drum]
    if len(tones) == 0:
        return score
    most_down = min(MOST_SEMITONES, max(int(tones.min()) - LOWEST_PITCH, 0))
    most_up = min(MOST_SEMITONES, max(HIGHEST_PITCH - int(tones.max()), 0))
    intervals = [interval for interval in range(-most_down, most_up + 1) if interval]
    if not intervals:
        return score
    moved = np.where(score.is_drum, score.pitch, score.pitch + rng.choice(intervals))
    return _in_order(replace(score, pitch=moved.astype(np.int16)))


def velocity(score: Score, rng: np.random.Generator) -> Score:
    """All notes louder or softer by one factor, and each by a few steps of its own; 1 to 127."""
    factor = MOST_LOUDER ** rng.uniform(-1, 1)
    jitter = rng.integers(-MOST_VELOCITY_JITTER, MOST_VELOCITY_JITTER, len(score), endpoint=True)
    changed = np.clip(np.rint(score.velocity * factor) + jitter, 1, 127)
    return _in_order(replace(score, velocity=changed.astype(np.int16)))


def quantize(score: Score, rng: np.random.Generator) -> Score:
    """Onsets and lengths half the way or more towards a grid of the quarters, counted from the start of the file.

    A length goes to a step at least.
    """
    steps = rng.choice(STEPS_PER_QUARTER)
    strength = rng.uniform(LEAST_STRENGTH, 1)
    onset, offset = score.quarters_at(score.onset_seconds), score.quarters_at(score.offset_seconds)
    length = offset - onset
    onset = onset + strength * (np.rint(onset * steps) / steps - onset)
    length = length + strength * (np.maximum(np.rint(length * steps), 1) / steps - length)
    return _at(score, _seconds_at(score, onset), _seconds_at(score, onset + length))


def time_jitter(score: Score, rng: np.random.Generator) -> Score:
    """Onsets and offsets moved by a few milliseconds, each by its own. What began first still does."""
    among_equals = rng.random(len(score))
    order = np.lexsort((among_equals, score.onset_seconds))
    onset = np.empty(len(score))
    onset[order] = np.sort(score.onset_seconds + _jitter(len(score), rng))
    return _at(score, onset, score.offset_seconds + _jitter(len(score), rng))


# In the order of application, whatever the order in a configuration: a player comes after the score is corrected.
AUGMENTATIONS: dict[str, Callable[[Score, np.random.Generator], Score]] = {
    "transpose": transpose,
    "velocity": velocity,
    "quantize": quantize,
    "time_jitter": time_jitter,
}


def _jitter(n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-MOST_JITTER_SECONDS, MOST_JITTER_SECONDS, n)


def _seconds_at(score: Score, quarters: np.ndarray) -> np.ndarray:
    """The inverse of `Score.quarters_at`."""
    at_change = score.quarters_at(score.tempo_seconds)
    span = np.maximum(np.searchsorted(at_change, quarters, side="right") - 1, 0)
    seconds: np.ndarray = score.tempo_seconds[span] + (quarters - at_change[span]) * 60 / score.tempo_bpm[span]
    return seconds


def _at(score: Score, onset_seconds: np.ndarray, offset_seconds: np.ndarray) -> Score:
    """The same notes at other times, kept within the segment."""
    onset = np.clip(onset_seconds, 0, score.duration_seconds)
    offset = np.clip(offset_seconds, onset, score.duration_seconds)
    return _in_order(replace(score, onset_seconds=onset, offset_seconds=offset))


def _in_order(score: Score) -> Score:
    keys = (score.velocity, score.program, score.is_drum, score.offset_seconds, score.pitch, score.onset_seconds)
    return score.select(np.lexsort(keys))
