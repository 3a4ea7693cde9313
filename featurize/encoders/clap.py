"""CLAP's audio branch: an HTSAT over 10 s of log-mel, trained to agree with captions.

Conventions
-----------
* A vector is the projection of one window into the space that CLAP's texts share, of unit length. Longer audio is cut
  into whole windows; their vectors' mean is brought to unit length again. Nothing is cropped by chance.
* Audio shorter than a window is filled up as the checkpoint's feature extractor does: repeated whole ("repeatpad"),
  repeated and cut ("repeat"), or as it is ("pad"), then silence.
* "Fused" checkpoints were trained to see three crops beside the whole of longer audio. A window is never longer than a
  window, so they see one mel spectrogram, and their fusing layers are left out. (transformers marks one input of a
  batch as longer by chance where none is; that does not happen here.) Their mel filters are HTK's, of unit height;
  those of the others are Slaney's, of unit area.
* Frames are 32 to a window, evenly spread in time: the last states' mean over frequency, each projected and brought to
  unit length as the vector is. The last stage attends to all of the window, so a frame is what its time is in that
  context. Of a filled window, only frames that its own audio reaches are real.
* LAION's own code also rounds the waveform to 16 bits. That is left out.

Sources: CLAP, Wu et al. 2023, "Large-scale contrastive language-audio pretraining with feature fusion and
keyword-to-caption augmentation"; HTSAT, Chen et al. 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from featurize.audio import RESAMPLER, Waveform
from featurize.encoders import laion
from featurize.encoders.base import AudioEncoder, Batch, Encoded
from featurize.encoders.log_mel import LogMel
from featurize.encoders.pretrained import load_companion, load_model, origin
from featurize.encoders.windows import item_frames, item_mean, window_starts
from featurize.errors import ConfigError


@dataclass(frozen=True)
class FrontEnd:
    """How a checkpoint wants its audio. filling: see above. fused: trained to fuse crops, on HTK mel filters."""

    sample_rate_hz: int
    window_samples: int
    filling: str
    n_fft: int
    hop_length: int
    n_mels: int
    lowest_hz: float
    highest_hz: float
    fused: bool

    @property
    def mel_scale(self) -> Literal["slaney", "htk"]:
        """By which formula hertz become mel, as the checkpoint learned it."""
        return "htk" if self.fused else "slaney"

    @property
    def mel_norm(self) -> Literal["slaney"] | None:
        """Whether bands are divided by their width."""
        return None if self.fused else "slaney"

    def log_mel(self) -> LogMel:
        """The spectrogram of these settings, in dB."""
        return LogMel(
            self.sample_rate_hz,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            n_mels=self.n_mels,
            lowest_hz=self.lowest_hz,
            highest_hz=self.highest_hz,
            mel_scale=self.mel_scale,
            norm=self.mel_norm,
            center=True,
        )


class CLAPEncoder(AudioEncoder):
    """pretrained_model: a CLAP model on the Hugging Face hub, its folder, or a LAION `.pt`. revision: of a hub name."""

    name = "clap"
    has_frames = True
    precisions = ("fp32", "bf16")
    batch_budget = 16 * 480_000  # samples, filled up: 0.7 GB beside `larger_clap_music`; a CPU is no faster with more
    gpu_batch_budget = 64 * 480_000
    sort_rows = 64

    def __init__(
        self,
        *,
        pretrained_model: str = "laion/larger_clap_music",
        revision: str | None = None,
        duration_seconds: float | None = None,
    ):
        super().__init__()
        if duration_seconds is not None and not duration_seconds > 0:
            raise ValueError(f"duration_seconds is {duration_seconds}; expected more than 0, or none to take all")
        path = Path(pretrained_model)
        if is_laion := path.suffix in (".pt", ".pth") or path.is_file():
            if revision is not None:
                raise ValueError(f"revision is {revision!r}, but {path.name} is a file; expected none, or a hub name")
            front = self._load_laion(path)
        else:
            front = self._load_transformers(pretrained_model, revision)
        runs_by = "laion-clap" if is_laion else "transformers"
        self.libraries = (runs_by, "librosa", "numpy", "soundfile", "soxr", "torch")
        self.log_mel = front.log_mel()
        self.sample_rate_hz, self.duration_seconds = front.sample_rate_hz, duration_seconds
        self.window_samples, self.filling = front.window_samples, front.filling
        self.settings = {
            "sample_rate_hz": front.sample_rate_hz,
            "duration_seconds": duration_seconds,
            "resampler": RESAMPLER,
            "quantized_to_int16": False,
            "window_samples": front.window_samples,
            "filling": front.filling,
            "n_fft_samples": front.n_fft,
            "hop_length_samples": front.hop_length,
            "n_mels": front.n_mels,
            "lowest_hz": front.lowest_hz,
            "highest_hz": front.highest_hz,
            "mel_scale": front.mel_scale,
            "mel_norm": front.mel_norm,
            "implementation": runs_by,
            "pooling": "unit-length mean of unit-length window vectors",
        }

    def prepare_waveform(self, samples: Waveform) -> np.ndarray:
        """float32 (n_windows, n). n: a window, or all of audio that is shorter; `collate` fills it up."""
        starts = window_starts(len(samples), self.window_samples)
        return np.stack([samples[start : start + self.window_samples] for start in starts])

    def cost(self, item: np.ndarray) -> int:
        return len(item) * self.window_samples

    def collate(self, items: Sequence[np.ndarray]) -> Batch:
        """windows: float32 (W, window_samples). n_samples: (W,), how many of them are the item's own."""
        n_windows = [len(item) for item in items]
        windows = np.zeros((sum(n_windows), self.window_samples), np.float32)
        for filled, own in zip(windows, (window for item in items for window in item), strict=True):
            n = self._n_filled(len(own))
            filled[:n] = own if n == len(own) else np.resize(own, n)  # repeats it
        n_samples = [item.shape[1] for item in items]
        return {
            "windows": torch.from_numpy(windows),
            "n_windows": torch.tensor(n_windows),
            "n_samples": torch.tensor(n_samples).repeat_interleave(torch.tensor(n_windows)),
        }

    def forward(self, batch: Batch) -> Encoded:
        windows, n_windows, n_samples = batch["windows"], batch["n_windows"], batch["n_samples"]
        parts = windows.split(max(1, self.batch_budget // self.window_samples))  # an hour of audio is one item
        states = torch.cat([self.branch(self.log_mel(part)) for part in parts])  # (W, T, C)
        with torch.autocast(windows.device.type, enabled=False):  # costs next to nothing in float32
            states = states.float()
            vectors = normalize(self.projection(states.mean(dim=1)), dim=1)
            pooled = normalize(item_mean(vectors, n_windows), dim=1)
            if not self.with_frames:
                return Encoded(pooled)
            n_frames = states.shape[1]
            begins = torch.arange(n_frames, device=windows.device) * windows.shape[1]
            mask = begins < n_samples[:, None] * n_frames
            frames, frame_mask = item_frames(normalize(self.projection(states), dim=2), mask, n_windows)
        return Encoded(pooled, frames, frame_mask)

    def ordered_blocks(self) -> Sequence[nn.Module]:
        """Of all stages of the HTSAT, two to six each; what makes the image coarser between stages is none."""
        htsat: Any = getattr(self.branch, "audio_encoder", None) or self.branch.htsat
        blocks = [block for stage in htsat.layers for block in stage.blocks]
        return [*blocks[:-1], nn.ModuleList([blocks[-1], htsat.norm, self.projection])]

    def _n_filled(self, n_samples: int) -> int:
        """How many samples of a window its own audio fills, repeated or not; silence follows."""
        copies = self.window_samples // n_samples
        return {"repeatpad": copies * n_samples, "repeat": self.window_samples}.get(self.filling, n_samples)

    def _load_transformers(self, name_or_path: str, revision: str | None) -> FrontEnd:
        from transformers import AutoConfig, ClapAudioModelWithProjection, ClapFeatureExtractor

        kind = load_companion(AutoConfig, name_or_path, revision).model_type
        if kind not in ("clap", "clap_audio_model"):
            raise ConfigError(f"{name_or_path} holds a {kind} model; expected a CLAP, e.g. laion/larger_clap_music.")
        extractor = load_companion(ClapFeatureExtractor, name_or_path, revision)
        # reads a whole CLAP model's checkpoint too, all but its text branch
        model = load_model(ClapAudioModelWithProjection, name_or_path, revision)
        self.branch: nn.Module = TransformersBranch(model.audio_model.audio_encoder)
        self.projection: nn.Module = model.audio_projection
        self.width = model.config.projection_dim
        self.loaded_from = origin(name_or_path, revision, model)
        return FrontEnd(
            sample_rate_hz=extractor.sampling_rate,
            window_samples=int(extractor.nb_max_samples),
            filling=extractor.padding,
            n_fft=extractor.fft_window_size,
            hop_length=extractor.hop_length,
            n_mels=extractor.feature_size,
            lowest_hz=float(extractor.frequency_min),
            highest_hz=float(extractor.frequency_max),
            fused=extractor.truncation == "fusion",
        )

    def _load_laion(self, path: Path) -> FrontEnd:
        found = laion.load_laion(path)
        self.branch, self.projection, self.width = found.branch, found.projection, found.width
        self.loaded_from = {"source": path.name}
        return FrontEnd(
            sample_rate_hz=laion.SAMPLE_RATE_HZ,
            window_samples=laion.WINDOW_SAMPLES,
            filling=laion.FILLING,
            n_fft=found.n_fft,
            hop_length=laion.HOP_LENGTH,
            n_mels=found.n_mels,
            lowest_hz=laion.LOWEST_HZ,
            highest_hz=laion.HIGHEST_HZ,
            fused=found.fused,
        )


class TransformersBranch(nn.Module):
    """transformers' HTSAT from log-mel to states, without the layers that fuse crops."""

    def __init__(self, audio_encoder: Any):
        super().__init__()
        if audio_encoder.enable_fusion:
            # with no input longer than a window they are passed by, and one channel says what four equal ones do
            del audio_encoder.patch_embed.fusion_model, audio_encoder.patch_embed.mel_conv2d
            audio_encoder.enable_fusion = audio_encoder.patch_embed.enable_fusion = False
        self.audio_encoder = audio_encoder

    def forward(self, mel: Tensor) -> Tensor:
        """(W, T, n_mels) to (W, 32, C): for each 32nd of the window, the mean over its frequencies."""
        last = self.audio_encoder(mel[:, None]).last_hidden_state  # (W, C, frequencies, 32)
        frames: Tensor = last.mean(dim=2).transpose(1, 2)
        return frames
