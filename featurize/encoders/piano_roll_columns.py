"""The columns of the piano roll, one after another: what sounds and what is struck, step by step. Nothing is learned.

Goal: MIDI as it is before any encoder, for a fusion that reads frames of several slots with one encoder of its own.

Conventions
-----------
* The image is `featurize.piano_roll`'s, of the whole segment from its start to its end, silence included, so that
  frames keep step with those of the segment's audio. Step k holds the time from k to k + 1 times `step_seconds`.
* A frame is one column: float32 (D,), D = 3 · 128, the planes in the order of `PLANES`, each from the lowest pitch to
  the highest; velocities in [0, 1], 0 where there is none. No pitch is left out, and none is another's. The vector is
  the mean over the steps: of a tone's sustain, the share of time that it sounds times its velocity.
* A segment of more than `max_steps` steps ends, for this encoder, with its last note: a table may say that it lasts for
  a million seconds, or for ever. Where this is still too long, steps become as long as `max_steps` of them need to be.
  All notes are drawn; a file of more than a day is refused by whatever reads it (`featurize.midi`).

Source: Boulanger-Lewandowski, Bengio and Vincent 2012, "Modeling Temporal Dependencies in High-Dimensional Sequences",
which reads polyphonic music as a sequence of such columns; there of 88 pitches that sound or do not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from featurize.encoders.base import Batch, Encoded, MIDIEncoder
from featurize.midi import EDGE_SECONDS, READING, Score
from featurize.piano_roll import N_PITCHES, PLANES, STEP_SECONDS, piano_roll

MAX_VELOCITY = 127


class PianoRollColumnsEncoder(MIDIEncoder):
    """step_seconds: of time in a frame. max_steps: of a segment; 6.8 minutes by default, which few songs exceed."""

    name = "piano_roll_columns"
    libraries = ("mido", "numpy", "symusic", "torch")
    has_frames = True
    batch_budget = 32_768  # steps, 50 MB of frames: 109 segments of 30 s

    def __init__(self, *, step_seconds: float = STEP_SECONDS, max_steps: int = 4096):
        super().__init__()
        if not 2 * EDGE_SECONDS < step_seconds < np.inf:
            raise ValueError(f"step_seconds is {step_seconds}; expected a finite time of more than {2 * EDGE_SECONDS}")
        if not isinstance(max_steps, int) or max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}; expected a whole number, at least 1")
        self.width = len(PLANES) * N_PITCHES
        self.step_seconds, self.max_steps = step_seconds, max_steps
        self.settings = {
            **READING,
            "step_seconds": step_seconds,
            "max_steps": max_steps,
            "long_segments": "end with the last note; then longer steps",
            "planes": list(PLANES),
            "n_pitches": N_PITCHES,
            "values": "velocity / 127",
            "pooling": "mean over steps",
            "version": 1,  # raise it when the same notes would give other numbers
        }

    def prepare_score(self, score: Score) -> np.ndarray:
        """uint8 (T, D), velocities."""
        end_seconds, step_seconds = score.duration_seconds, self.step_seconds
        if _count_steps(score, end_seconds, step_seconds) > self.max_steps:
            end_seconds = float(score.offset_seconds.max())
            step_seconds = max(step_seconds, (end_seconds + 2 * EDGE_SECONDS) / self.max_steps)
        n_steps = int(_count_steps(score, end_seconds, step_seconds))
        planes = piano_roll(score, step_seconds=step_seconds, n_steps=n_steps).planes
        return np.ascontiguousarray(planes.reshape(self.width, n_steps).T)

    def cost(self, item: np.ndarray) -> int:
        return len(item)

    def collate(self, items: Sequence[np.ndarray]) -> Batch:
        """columns: uint8 (B, longest, D); n_steps: int (B,), how many are real."""
        n_steps = [len(item) for item in items]
        columns = np.zeros((len(items), max(n_steps), self.width), np.uint8)
        for row, item in zip(columns, items, strict=True):
            row[: len(item)] = item
        return {"columns": torch.from_numpy(columns), "n_steps": torch.tensor(n_steps)}

    def forward(self, batch: Batch) -> Encoded:
        columns, n_steps = batch["columns"], batch["n_steps"]
        mask = torch.arange(columns.shape[1], device=columns.device) < n_steps[:, None]
        frames = columns.float() / MAX_VELOCITY * mask[:, :, None]
        pooled = frames.sum(dim=1) / n_steps[:, None]
        return Encoded(pooled, frames, mask) if self.with_frames else Encoded(pooled)


def _count_steps(score: Score, end_seconds: float, step_seconds: float) -> float:
    """Up to `end_seconds`, and of a note that begins there; a float, for a segment may be said to last for ever."""
    until_end = np.ceil((end_seconds - EDGE_SECONDS) / step_seconds)
    last_onset = np.floor((score.onset_seconds.max() + EDGE_SECONDS) / step_seconds)
    return float(max(until_end, last_onset + 1))
