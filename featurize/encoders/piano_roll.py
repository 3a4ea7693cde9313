"""A convolutional network over the piano roll, trained here on the task at hand.

Conventions
-----------
* The image is `featurize.piano_roll`'s, of the whole segment from its start to its end, silence included: step k holds
  the time from k to k + 1 times `step_seconds`, so that frames keep step with those of the segment's audio.
* A segment of more than `n_steps` steps is drawn in one piece and read in windows, as few as possible and of equal
  length, the last one shorter by less than their number of steps. They do not overlap. A note that sounds over an edge
  sounds on in the next window, and is not struck there again.
* A segment of more than `max_windows` windows, 27 minutes by default, is first shortened to those windows, of `n_steps`
  steps each, in which a note begins; hours of silence, or of one held note, then cost nothing. Where these are still
  too many, `max_windows` of them are read, evenly spread; only then are notes left out.
* A batch holds the windows of B items side by side, W in all: `planes` uint8 (W, 3, 128, w), velocities; `n_steps` int
  (W,), how many of the w steps are real; `n_windows` int (B,). What lies behind a window's end is never looked at.
  Inside, images are float (W, C, T, P): channels, steps, pitches; masks and halving are as in `mel_cnn`.
* Frames are those of all windows end to end; each stands for 2 steps to the power of the number of layers. The vector
  comes of their mean and maximum, in which every frame of the segment counts the same.

Pitch: the first kernel spans an octave, semitone by semitone, so that one unit can know a chord or an interval in any
key. It is not strided, and the pooling behind it is coarse (`PITCHES_POOLED`), so that what the later layers see hardly
depends on where in their grid a chord lies. The last layer tells bands of pitch apart, 32 semitones wide by default:
register is information, the key hardly. A drum's pitch is the name of an instrument, and its neighbours are others. So
the drums' kernel has a weight for each of the 128, and what it finds is added to the tones' at every pitch: from there
on, both are one image.

Source: the blocks are `mel_cnn`'s, and so are their sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from featurize.encoders.base import Batch, Encoded, MIDIEncoder
from featurize.encoders.mel_cnn import Block, MaskedBatchNorm, halved, real_steps
from featurize.encoders.windows import item_frames
from featurize.midi import EDGE_SECONDS, READING, Score
from featurize.piano_roll import DRUM_ONSET, N_PITCHES, N_STEPS, PLANES, STEP_SECONDS, piano_roll

PITCHES_AT_ONCE = 13  # an octave, both ends counted
PITCHES_POOLED = 4  # with 2, major and minor learned on even roots are mistaken for one another on odd ones
MAX_VELOCITY = 127


class PianoRollEncoder(MIDIEncoder):
    """hidden_dim: D. step_seconds: of the image. n_steps: in a window, at most. max_windows: of a segment, at most.

    channels: of the stem and of each block after it. dropout: of the pooled vector, in training.
    """

    name = "piano_roll"
    libraries = ("mido", "numpy", "symusic", "torch")
    must_train = True
    has_frames = True
    precisions = ("fp32", "bf16")
    batch_budget = 1024  # steps: 3 segments of 30 s; larger batches gain little on a CPU

    def __init__(
        self,
        *,
        hidden_dim: int = 128,
        step_seconds: float = STEP_SECONDS,
        n_steps: int = N_STEPS,
        max_windows: int = 64,
        channels: Sequence[int] = (16, 32, 64, 128),
        dropout: float = 0.2,
    ):
        super().__init__()
        for option, value in {"hidden_dim": hidden_dim, "n_steps": n_steps, "max_windows": max_windows}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{option} is {value}; expected a whole number, at least 1")
        if not 2 * EDGE_SECONDS < step_seconds < np.inf:
            raise ValueError(f"step_seconds is {step_seconds}; expected a finite time of more than {2 * EDGE_SECONDS}")
        if len(channels) == 0 or min(channels) < 1:
            raise ValueError(f"channels is {list(channels)}; expected at least one number, each at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; expected 0 to below 1")
        self.width = hidden_dim
        self.step_seconds, self.n_steps, self.max_windows = step_seconds, n_steps, max_windows
        self.settings = {
            **READING,
            "hidden_dim": hidden_dim,
            "step_seconds": step_seconds,
            "n_steps": n_steps,
            "max_windows": max_windows,
            "channels": list(channels),
            "dropout": dropout,
            "planes": list(PLANES),
            "pitches_at_once": PITCHES_AT_ONCE,
            "pitches_pooled": PITCHES_POOLED,
            "windows": "equal, side by side; of a segment with more than max_windows, those in which a note begins",
            "pooling": "mean and maximum over the frames of all windows",
            "version": 1,  # raise it when the same weights would give other numbers
        }
        self.stem = Stem(channels[0])
        self.blocks = nn.ModuleList(Block(before, after, pool=2) for before, after in pairwise(channels))
        n_bands = N_PITCHES // PITCHES_POOLED
        for _ in self.blocks:
            n_bands = halved(n_bands)
        self.to_frame = nn.Linear(channels[-1] * n_bands, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.to_vector = nn.Linear(2 * hidden_dim, hidden_dim)

    def prepare_score(self, score: Score) -> np.ndarray:
        """uint8 (3, 128, T): the planes of all windows end to end."""
        most = self.max_windows * self.n_steps
        n_steps = self._count_steps(score)
        if n_steps > most:
            score = self._only_where_notes_begin(score)
            n_steps = self._count_steps(score)
        return piano_roll(score, step_seconds=self.step_seconds, n_steps=int(n_steps)).planes

    def cost(self, item: np.ndarray) -> int:
        return int(item.shape[2])

    def collate(self, items: Sequence[np.ndarray]) -> Batch:
        of_items = [self._windows(item) for item in items]
        windows = [window for of_item in of_items for window in of_item]
        n_steps = [window.shape[2] for window in windows]
        planes = np.zeros((len(windows), len(PLANES), N_PITCHES, max(n_steps)), np.uint8)
        for row, window in zip(planes, windows, strict=True):
            row[:, :, : window.shape[2]] = window
        return {
            "planes": torch.from_numpy(planes),
            "n_steps": torch.tensor(n_steps),
            "n_windows": torch.tensor([len(of_item) for of_item in of_items]),
        }

    def forward(self, batch: Batch) -> Encoded:
        n_steps = batch["n_steps"]
        image = batch["planes"].mT.float() / MAX_VELOCITY
        image = image * real_steps(n_steps, image.shape[2])[:, None, :, None]
        for layer in (self.stem, *self.blocks):
            image, n_steps = layer(image, n_steps)
        states = self.to_frame(image.transpose(1, 2).flatten(2)).float().relu()  # (W, T', D)
        frames, mask = item_frames(states, real_steps(n_steps, states.shape[1]), batch["n_windows"])
        mean = frames.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        pooled = self.to_vector(self.dropout(torch.cat([mean, frames.amax(dim=1)], dim=1))).float()
        return Encoded(pooled, frames, mask) if self.with_frames else Encoded(pooled)

    def ordered_blocks(self) -> Sequence[nn.Module]:
        *others, last = self.stem, *self.blocks
        return [*others, nn.ModuleList([last, self.to_frame, self.to_vector])]

    def _count_steps(self, score: Score) -> float:
        """Of the whole segment, and of a note at its very end; a float, for a segment may be said to last for ever."""
        length = np.ceil((score.duration_seconds - EDGE_SECONDS) / self.step_seconds)
        return float(max(length, self._first_steps(score).max() + 1))

    def _first_steps(self, score: Score) -> np.ndarray:
        """float64 (n,): the step in which each note begins, as `piano_roll` has it."""
        first: np.ndarray = np.floor((score.onset_seconds + EDGE_SECONDS) / self.step_seconds)
        return first

    def _only_where_notes_begin(self, score: Score) -> Score:
        """The windows in which notes begin, end to end, and at most `max_windows`; the time between them is no more."""
        window_seconds = self.n_steps * self.step_seconds
        window = self._first_steps(score) // self.n_steps
        kept = np.unique(window)
        if len(kept) > self.max_windows:
            kept = kept[np.linspace(0, len(kept) - 1, self.max_windows).round().astype(int)]
        score = score.select(np.isin(window, kept))
        edges = kept[:, None] + [0, 1]
        new_edges = np.arange(len(kept))[:, None] + [0, 1]

        def moved(seconds: np.ndarray) -> np.ndarray:
            return np.asarray(np.interp(seconds, edges.ravel() * window_seconds, new_edges.ravel() * window_seconds))

        return replace(
            score,
            onset_seconds=moved(score.onset_seconds),
            offset_seconds=moved(score.offset_seconds),
            duration_seconds=len(kept) * window_seconds,
        )

    def _windows(self, item: np.ndarray) -> list[np.ndarray]:
        n_all = item.shape[2]
        count = -(-n_all // self.n_steps)
        length = -(-n_all // count)
        return [item[:, :, start : start + length] for start in range(0, n_all, length)]


class Stem(nn.Module):
    """Convolution of tones, an octave at a time, and of drums, all at once; their sum through what `Block` has."""

    def __init__(self, channels: int):
        super().__init__()
        self.tones = nn.Conv2d(DRUM_ONSET, channels, (3, PITCHES_AT_ONCE), padding="same", bias=False)
        self.drums = nn.Conv1d(N_PITCHES, channels, 3, padding="same", bias=False)
        self.norm = MaskedBatchNorm(channels)

    def forward(self, image: Tensor, n_steps: Tensor) -> tuple[Tensor, Tensor]:
        """Planes, float (W, 3, T, 128), to (W, C, ceil(T / 2), 32)."""
        tones = self.tones(image[:, :DRUM_ONSET])
        drums = self.drums(image[:, DRUM_ONSET].mT)[:, :, :, None]
        found = self.norm(tones + drums, n_steps).relu()
        return functional.max_pool2d(found, (2, PITCHES_POOLED), ceil_mode=True), halved(n_steps)
