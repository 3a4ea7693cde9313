"""Log-mel patches: the spectrogram of a clip cut along time into coarse images. Nothing is learned.

Goal: audio as it is before any encoder, for a fusion that reads frames of several slots with one encoder of its own.

Conventions
-----------
* A patch is `patch_seconds` long and has `n_cells` cells of time, each the mean over its steps of the log-mel
  spectrogram (`log_mel`, in dB). Steps overlap by half of `n_fft` or more, and are the same number in every cell; they
  lie a whole number of samples apart, which changes the length of a patch by half a sample for each of its steps at
  most.
* A frame is one patch: float32 (D,), D = n_cells · n_mels, the bands of the first cell from low to high, then those of
  the next. The vector is the mean over the patches.
* Patches are spread over a clip as `windows` says: as few as cover it, none of them padded, so that neighbours may
  overlap. Audio shorter than one lies in its middle, with silence on both sides. What is left behind the last whole
  step, less than from one step to the next, is not read.

Sources: an image as a sequence of flattened patches, Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section
3.1; of a log-mel spectrogram, Gong, Chung and Glass 2021, "AST", section 2.1 (there of 16 bands each; here a patch has
all of them, so that it is a moment); such patches beside another modality's in one transformer, Nagrani et al. 2021,
"Attention Bottlenecks for Multimodal Fusion", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from featurize.audio import MAX_SEGMENT_SECONDS, RESAMPLER, Waveform
from featurize.encoders.base import AudioEncoder, Batch, Encoded
from featurize.encoders.log_mel import LogMel
from featurize.encoders.windows import item_frames, item_mean, window_starts

PATCHES_AT_ONCE = 64  # whose spectra are in memory: 13 MB by default, however long the audio


class MelPatchEncoder(AudioEncoder):
    """patch_seconds: of audio in a frame. n_cells: cells of time in a patch. n_mels: bands, from 0 Hz to Nyquist."""

    name = "mel_patches"
    libraries = ("librosa", "numpy", "soundfile", "soxr", "torch")
    has_frames = True
    batch_budget = 8_000_000  # samples: 12 clips of 30 s

    def __init__(
        self,
        *,
        patch_seconds: float = 0.5,
        n_cells: int = 4,
        n_mels: int = 64,
        n_fft: int = 1024,
        sample_rate_hz: int = 22050,
        duration_seconds: float | None = None,
    ):
        super().__init__()
        sizes = {"n_cells": n_cells, "n_mels": n_mels, "n_fft": n_fft, "sample_rate_hz": sample_rate_hz}
        for option, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{option} is {value}; expected a whole number, at least 1")
        if not n_cells / sample_rate_hz <= patch_seconds <= MAX_SEGMENT_SECONDS:
            raise ValueError(
                f"patch_seconds is {patch_seconds}; expected at least a sample for each cell, "
                f"{n_cells / sample_rate_hz:.2g}, and at most {MAX_SEGMENT_SECONDS}"
            )
        if duration_seconds is not None and not duration_seconds > 0:
            raise ValueError(f"duration_seconds is {duration_seconds}; expected more than 0, or none for all")
        cell_samples = patch_seconds * sample_rate_hz / n_cells
        steps_per_cell = math.ceil(2 * cell_samples / n_fft)
        self.width = n_cells * n_mels
        self.sample_rate_hz, self.duration_seconds = sample_rate_hz, duration_seconds
        self.n_cells, self.n_fft = n_cells, n_fft
        self.hop_length = round(cell_samples / steps_per_cell)
        self.patch_steps = n_cells * steps_per_cell
        self.settings = {
            "patch_seconds": patch_seconds,
            "n_cells": n_cells,
            "n_mels": n_mels,
            "n_fft": n_fft,
            "hop_length": self.hop_length,
            "steps_per_cell": steps_per_cell,
            "sample_rate_hz": sample_rate_hz,
            "duration_seconds": duration_seconds,
            "resampler": RESAMPLER,
            "cell": "mean over its steps, in dB",
            "windows": "fewest, evenly spread, the last one at the end",
            "pooling": "mean over patches",
            "version": 1,  # raise it when the same audio would give other numbers
        }
        self.log_mel = LogMel(sample_rate_hz, n_fft=n_fft, hop_length=self.hop_length, n_mels=n_mels)

    @property
    def patch_samples(self) -> int:
        """What the steps of a patch reach over."""
        return self.n_fft + (self.patch_steps - 1) * self.hop_length

    def prepare_waveform(self, samples: Waveform) -> Waveform:
        """float32 (n,), n ≥ patch_samples."""
        n_missing = max(0, self.patch_samples - len(samples))
        return np.pad(samples, (n_missing // 2, n_missing - n_missing // 2))

    def cost(self, item: Waveform) -> int:
        return len(item)

    def collate(self, items: Sequence[Waveform]) -> Batch:
        """patches: float32 (W, patch_samples), the audio of each; n_windows: int (B,), how many an item has."""
        of_items = [self._patches(item) for item in items]
        patches = np.stack([patch for of_item in of_items for patch in of_item])
        return {
            "patches": torch.from_numpy(patches),
            "n_windows": torch.tensor([len(of_item) for of_item in of_items]),
        }

    def forward(self, batch: Batch) -> Encoded:
        n_windows = batch["n_windows"]
        images = torch.cat([self._draw(some) for some in batch["patches"].split(PATCHES_AT_ONCE)])  # (W, D)
        pooled = item_mean(images, n_windows)
        if not self.with_frames:
            return Encoded(pooled)
        all_real = torch.ones(len(images), 1, dtype=torch.bool, device=images.device)
        return Encoded(pooled, *item_frames(images[:, None], all_real, n_windows))

    def _patches(self, item: Waveform) -> list[Waveform]:
        n_steps = 1 + (len(item) - self.n_fft) // self.hop_length
        starts = [step * self.hop_length for step in window_starts(n_steps, self.patch_steps)]
        return [item[start : start + self.patch_samples] for start in starts]

    def _draw(self, patches: Tensor) -> Tensor:
        """float32 (w, patch_samples) to (w, D)."""
        image = self.log_mel(patches)  # (w, steps, bands)
        return image.unflatten(1, (self.n_cells, -1)).mean(dim=2).flatten(1)  # type: ignore[no-any-return]
