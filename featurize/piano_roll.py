"""Draw a score as an image: pitch by time, a repeated note apart from a long one, drums apart from tones.

Conventions
-----------
* Planes (`PLANES`): `sustain`, the velocity of the tones that sound within a step, for whatever part of it; `onset`,
  that of the tones struck in it; `drum_onset`, the same for drums, whose lengths say nothing and are not drawn.
* Step k holds the time from k to k + 1 times `step_seconds`; what lies within `EDGE_SECONDS` of an edge lies on it. A
  note ends before its offset, but has at least the step of its onset: no note is too short to be seen.
* Where tones overlap, or strokes of one pitch fall into one step, the greatest velocity is drawn. The notes that have
  no onset of their own because of that are counted (`n_merged`), and so are those that begin after the last step
  (`n_beyond`): `n_shown + n_merged + n_beyond` is the number of notes.
* A note held over a segment's start counts as struck there, as in every cut score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featurize.midi import EDGE_SECONDS, Score

PLANES = ("sustain", "onset", "drum_onset")
SUSTAIN, ONSET, DRUM_ONSET = range(3)

N_PITCHES = 128
STEP_SECONDS = 0.1  # a 16th at 150 quarter notes per minute
N_STEPS = 256  # 25.6 s


@dataclass(frozen=True, eq=False)
class PianoRoll:
    """planes: (3, 128, n_steps), lowest pitch first; uint8 velocities 0 to 127, or float32 in [0, 1].

    n_shown: notes with an onset of their own. n_merged: notes whose onset coincides with a stronger one's, or an equal
    one's. n_beyond: notes that begin after the last step, drawn nowhere. n_clipped: tones drawn that sound on after it.
    """

    planes: np.ndarray
    n_shown: int
    n_merged: int
    n_beyond: int
    n_clipped: int


def piano_roll(
    score: Score, *, step_seconds: float = STEP_SECONDS, n_steps: int = N_STEPS, dtype: Any = np.uint8
) -> PianoRoll:
    """The first `n_steps` steps of `score`; silence where it is shorter. dtype: uint8, or float32."""
    if not (step_seconds > 2 * EDGE_SECONDS and np.isfinite(step_seconds)):
        raise ValueError(f"step_seconds is {step_seconds}; expected a finite time of more than {2 * EDGE_SECONDS} s")
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; expected at least 1")
    if np.dtype(dtype) not in (np.uint8, np.float32):
        raise ValueError(f"dtype is {dtype}; expected uint8 or float32")
    first = np.floor((score.onset_seconds + EDGE_SECONDS) / step_seconds)
    end = np.ceil((score.offset_seconds - EDGE_SECONDS) / step_seconds)
    inside = np.flatnonzero(first < n_steps)
    inside = inside[np.argsort(score.velocity[inside], kind="stable")]  # assigned in this order, the greatest remains
    first = first[inside].astype(np.int64)
    end = np.maximum(end[inside], first + 1)
    pitch, is_drum = score.pitch[inside].astype(np.int64), score.is_drum[inside]
    velocity = np.maximum(score.velocity[inside], 1).astype(np.uint8)  # an onset of no strength would be none

    planes = np.zeros((len(PLANES), N_PITCHES, n_steps), np.uint8)
    planes[np.where(is_drum, DRUM_ONSET, ONSET), pitch, first] = velocity
    tones = np.flatnonzero(~is_drum)
    lengths = np.minimum(end[tones], n_steps).astype(np.int64) - first[tones]
    rows = pitch[tones] * n_steps + first[tones]
    sustain = planes[SUSTAIN].reshape(-1)
    _raise_to(sustain, rows, lengths, velocity[tones])

    n_shown = int(np.count_nonzero(planes[ONSET:]))
    return PianoRoll(
        planes=planes if np.dtype(dtype) == np.uint8 else planes.astype(np.float32) / 127,
        n_shown=n_shown,
        n_merged=len(inside) - n_shown,
        n_beyond=len(score) - len(inside),
        n_clipped=int(np.count_nonzero(end[tones] > n_steps)),
    )


def _raise_to(cells: np.ndarray, starts: np.ndarray, lengths: np.ndarray, values: np.ndarray) -> None:
    """Raise the `lengths[i]` ≥ 1 cells from `starts[i]` on to at least `values[i]`, for every i; cells: of zeros.

    Two runs of a power of two cover any length. They are halved level by level, down to single cells: a million notes
    that last for hours cost little more than as many short ones.
    """
    level = np.frexp(lengths)[1] - 1  # of the longest power of two within
    top = int(level.max(initial=0))
    for k in range(top, -1, -1):
        run = 1 << k
        if k < top:
            cells[run:] = np.maximum(cells[run:], cells[:-run])
        of_level = np.flatnonzero(level == k)
        for first in (starts[of_level], starts[of_level] + lengths[of_level] - run):
            np.maximum.at(cells, first, values[of_level])
