"""Log-mel spectrograms as a module: on the model's device, in one batched FFT, differentiable.

Conventions
-----------
* Input is float32 (B, n_samples), full scale ±1; output is float32 (B, n_frames, n_mels) in dB of power, floored at
  `floor_power`. Frames are `hop_length` samples apart and windowed by a periodic Hann window of `n_fft`.
* center=False: frames lie wholly inside the audio, n_frames = 1 + (n_samples − n_fft) // hop_length, so that padding
  behind the end touches no frame before it. center=True: frames are centred on multiples of the hop, the edges
  reflected, n_frames = 1 + n_samples // hop_length, as CLAP was trained.
* It always computes in float32, whatever precision surrounds it: a bfloat16 spectrum has no quiet parts.
"""

from __future__ import annotations

from typing import Literal

import librosa
import torch
from torch import Tensor, nn


class LogMel(nn.Module):
    """norm: `slaney` gives each filter unit area, `None` unit height."""

    window: Tensor
    filters: Tensor  # (n_fft // 2 + 1, n_mels)

    def __init__(
        self,
        sample_rate_hz: int,
        *,
        n_fft: int,
        hop_length: int,
        n_mels: int,
        lowest_hz: float = 0.0,
        highest_hz: float | None = None,
        mel_scale: Literal["slaney", "htk"] = "slaney",
        norm: Literal["slaney"] | None = "slaney",
        center: bool = False,
        floor_power: float = 1e-10,
    ):
        super().__init__()
        filters = librosa.filters.mel(
            sr=sample_rate_hz,
            n_fft=n_fft,
            n_mels=n_mels,
            fmin=lowest_hz,
            fmax=highest_hz,
            htk=mel_scale == "htk",
            norm=norm,
        )
        self.n_fft, self.hop_length, self.center, self.floor_power = n_fft, hop_length, center, floor_power
        # they follow from the settings, and are no weights
        self.register_buffer("filters", torch.from_numpy(filters.T.copy()), persistent=False)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def n_frames(self, n_samples: Tensor) -> Tensor:
        """How many frames that many samples give; int, both of any shape (…)."""
        if self.center:
            return 1 + n_samples // self.hop_length
        return 1 + (n_samples - self.n_fft).clamp(min=0) // self.hop_length

    def forward(self, samples: Tensor) -> Tensor:
        """float32 (B, n_samples) to (B, n_frames, n_mels)."""
        with torch.autocast(samples.device.type, enabled=False):
            spectrum = torch.stft(
                samples.float(),
                self.n_fft,
                self.hop_length,
                window=self.window,
                center=self.center,
                pad_mode="reflect",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()  # (B, bins, frames)
            mel = power.transpose(1, 2) @ self.filters
            decibels: Tensor = 10 * torch.log10(mel.clamp(min=self.floor_power))
            return decibels
