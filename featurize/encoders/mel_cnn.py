"""A convolutional network over the log-mel spectrogram, trained here on the task at hand.

Goal: what a small set of labelled segments can teach, on two CPU cores, in minutes.

Conventions
-----------
* Images are float (B, C, T, F): channels, time, mel bands. `n_steps` int (B,) says how many of the T steps are real.
* Steps that are not real hold zeros after every layer, as the zeros a convolution finds beyond the edge of an item that
  is alone. Nothing else of the batch reaches an item, except through the batch statistics in training.
* The stem and every pooling halve time and frequency, rounded up. A step is real where the first of the two steps that
  it stands for is real; so n real steps become ceil(n / 2).

The level of a clip is information (loud is a mood), so no clip is normalized by itself: each mel band is standardized
by the mean and deviation over the training data.

Sources: convolution, batch normalization and ReLU in blocks, one normalization per mel band at the input, and mean with
maximum over time are of PANNs (Kong et al. 2020, and its published code); max pooling between blocks is of audio VGG
(Hershey et al. 2017); batch normalization, Ioffe and Szegedy 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from featurize.audio import RESAMPLER, Waveform
from featurize.encoders.base import AudioEncoder, Batch, Encoded
from featurize.encoders.log_mel import LogMel

# Of one mel band, averaged over the bands of 120 clips of pop and rock: the statistics of a network not yet trained.
USUAL_MEAN_DB = -16.0
USUAL_DEVIATION_DB = 12.0

MOMENTUM = 0.1  # least share of a training batch in the running statistics; torch's default
EPSILON = 1e-5  # added to variances; torch's default

Count = TypeVar("Count", int, Tensor)


class MelCNNEncoder(AudioEncoder):
    """hidden_dim: D. channels: of the stem and of each block after it. dropout: of the pooled vector, in training."""

    name = "mel_cnn"
    libraries = ("librosa", "numpy", "soundfile", "soxr", "torch")
    must_train = True
    has_frames = True
    precisions = ("fp32", "bf16")
    batch_budget = 8_000_000  # samples: 12 clips of 30 s, which take 0.3 GB

    def __init__(
        self,
        *,
        hidden_dim: int = 128,
        sample_rate_hz: int = 22050,
        n_fft: int = 1024,
        hop_length: int = 512,
        n_mels: int = 64,
        duration_seconds: float | None = None,
        channels: Sequence[int] = (16, 32, 64, 128),
        dropout: float = 0.2,
    ):
        super().__init__()
        sizes = {"hidden_dim": hidden_dim, "sample_rate_hz": sample_rate_hz, "n_fft": n_fft, "n_mels": n_mels}
        for option, value in sizes.items():
            if value < 1:
                raise ValueError(f"{option} is {value}; expected at least 1")
        if not 1 <= hop_length <= n_fft:
            raise ValueError(f"hop_length is {hop_length}; expected 1 to n_fft, {n_fft}")
        if duration_seconds is not None and not duration_seconds > 0:
            raise ValueError(f"duration_seconds is {duration_seconds}; expected more than 0, or none for all")
        if len(channels) == 0 or min(channels) < 1:
            raise ValueError(f"channels is {list(channels)}; expected at least one number, each at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}; expected 0 to below 1")
        self.width = hidden_dim
        self.sample_rate_hz, self.duration_seconds, self.n_fft = sample_rate_hz, duration_seconds, n_fft
        self.settings = {
            "hidden_dim": hidden_dim,
            "sample_rate_hz": sample_rate_hz,
            "n_fft": n_fft,
            "hop_length": hop_length,
            "n_mels": n_mels,
            "duration_seconds": duration_seconds,
            "channels": list(channels),
            "dropout": dropout,
            "resampler": RESAMPLER,
            "version": 1,  # raise it when the same weights would give other numbers
        }
        self.log_mel = LogMel(sample_rate_hz, n_fft=n_fft, hop_length=hop_length, n_mels=n_mels)
        self.band_norm = MaskedBatchNorm(n_mels, mean=USUAL_MEAN_DB, deviation=USUAL_DEVIATION_DB)
        self.stem = Block(1, channels[0], stride=2)
        self.blocks = nn.ModuleList(Block(before, after, pool=2) for before, after in pairwise(channels))
        n_bands = n_mels
        for _ in channels:
            n_bands = halved(n_bands)
        self.to_frame = nn.Linear(channels[-1] * n_bands, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.to_vector = nn.Linear(2 * hidden_dim, hidden_dim)

    def prepare_waveform(self, samples: Waveform) -> Waveform:
        """float32 (n,), n ≥ n_fft: audio shorter than one frame lies in its middle, where the window is open."""
        n_missing = max(0, self.n_fft - len(samples))
        return np.pad(samples, (n_missing // 2, n_missing - n_missing // 2))

    def collate(self, items: Sequence[Waveform]) -> Batch:
        """samples: float32 (B, longest), zeros behind the shorter; n_samples: int (B,), which are real."""
        samples = np.zeros((len(items), max(len(item) for item in items)), dtype=np.float32)
        for row, item in zip(samples, items, strict=True):
            row[: len(item)] = item
        return {"samples": torch.from_numpy(samples), "n_samples": torch.tensor([len(item) for item in items])}

    def cost(self, item: Waveform) -> int:
        return len(item)

    def forward(self, batch: Batch) -> Encoded:
        n_steps = self.log_mel.n_frames(batch["n_samples"])
        log_mel = self.log_mel(batch["samples"])  # (B, T, F)
        bands = self.band_norm(log_mel.mT[:, :, :, None], n_steps)  # a band as a channel: (B, F, T, 1)
        image = bands.permute(0, 3, 2, 1)  # (B, 1, T, F)
        for layer in (self.stem, *self.blocks):
            image, n_steps = layer(image, n_steps)
        mask = real_steps(n_steps, image.shape[2])  # (B, T')
        frames = self.to_frame(image.transpose(1, 2).flatten(2)).float().relu() * mask[:, :, None]  # (B, T', D)
        mean = frames.sum(dim=1) / n_steps[:, None]
        pooled = self.to_vector(self.dropout(torch.cat([mean, frames.amax(dim=1)], dim=1))).float()
        return Encoded(pooled, frames, mask) if self.with_frames else Encoded(pooled)

    def ordered_blocks(self) -> Sequence[nn.Module]:
        *others, last = nn.ModuleList([self.band_norm, self.stem]), *self.blocks
        return [*others, nn.ModuleList([last, self.to_frame, self.to_vector])]


class Block(nn.Module):
    """3 × 3 convolution, batch normalization, ReLU, and where `pool` is 2, max pooling."""

    def __init__(self, channels_before: int, channels: int, *, stride: int = 1, pool: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(channels_before, channels, 3, stride=stride, padding=1, bias=False)
        self.norm = MaskedBatchNorm(channels)
        self.pool = pool

    def forward(self, image: Tensor, n_steps: Tensor) -> tuple[Tensor, Tensor]:
        """image: (B, C, T, F). n_steps: int (B,), real steps of each.

        Returns both as they are after convolution and pooling.
        """
        image = self.convolution(image)
        if self.convolution.stride[0] == 2:
            n_steps = halved(n_steps)
        image = self.norm(image, n_steps).relu()
        if self.pool == 2:  # nothing is below 0, so that the zeros behind an item's end never win
            image, n_steps = functional.max_pool2d(image, 2, ceil_mode=True), halved(n_steps)
        return image, n_steps


class MaskedBatchNorm(nn.Module):
    """Batch normalization whose statistics know real steps only; plain `BatchNorm2d` would count the padding.

    In evaluation it is a fixed scale and shift per channel.
    """

    running_mean: Tensor
    running_variance: Tensor
    n_batches: Tensor  # that the running statistics have seen

    def __init__(self, n_channels: int, *, mean: float = 0.0, deviation: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))
        self.register_buffer("running_mean", torch.full((n_channels,), mean))
        self.register_buffer("running_variance", torch.full((n_channels,), deviation**2))
        self.register_buffer("n_batches", torch.tensor(0.0))

    def forward(self, image: Tensor, n_steps: Tensor) -> Tensor:
        """float (B, C, T, F) to the same shape in float32, zeros where a step is not real."""
        mask = real_steps(n_steps, image.shape[2])[:, None, :, None]
        image = image.float() * mask
        if self.training:
            n_real = n_steps.sum() * image.shape[3]
            mean = image.sum(dim=(0, 2, 3)) / n_real
            variance = (image.square().sum(dim=(0, 2, 3)) / n_real - mean.square()).clamp(min=0)
            self._remember(mean.detach(), variance.detach())
        else:
            mean, variance = self.running_mean, self.running_variance
        scale = self.weight * torch.rsqrt(variance + EPSILON)
        shift = self.bias - mean * scale
        return (image * scale[:, None, None] + shift[:, None, None]) * mask

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """The first ten batches count equally: otherwise the start values would still weigh a third after them."""
        self.n_batches += 1
        share = (1 / self.n_batches).clamp(min=MOMENTUM)
        self.running_mean.lerp_(mean, share)
        self.running_variance.lerp_(variance, share)


def halved(n: Count) -> Count:
    """How many steps are left where each stands for two."""
    return (n + 1) // 2


def real_steps(n_steps: Tensor, n_all: int) -> Tensor:
    """bool (B, n_all): the first `n_steps` of each row."""
    return torch.arange(n_all, device=n_steps.device) < n_steps[:, None]
