"""LAION's own CLAP checkpoints (`.pt`): read without running anything of theirs, encoded by laion-clap's HTSAT.

Conventions
-----------
* A checkpoint is what LAION's training saves: a `state_dict` with `module.audio_branch.*` and
  `module.audio_projection.*`, beside the text branch, the optimizer and counters. The first two are used, as in
  `CLAP.get_audio_embedding` (laion_clap/clap_module/model.py); `audio_transform` belongs to the training loss.
* Tensors and plain containers are read. Numpy scalars, which the optimizer's state holds, become Python numbers
  without numpy's unpickling. Any other object in the file is refused before it is made.
* The sizes of the network are read off its weights. What weights do not tell is one and the same in LAION's four HTSAT
  configurations (laion_clap/clap_module/model_configs): 48 kHz, 10 s, a hop of 480 samples, mel bands from 50 to
  14,000 Hz.
* laion-clap's `__init__` parses the command line and imports its training code, and `CLAP_Module()` downloads a text
  model. `htsat.py` needs none of it, and is imported alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import Any
from zipfile import is_zipfile

import librosa
import numpy as np
import torch
from torch import Tensor, nn

from featurize.errors import ConfigError

SAMPLE_RATE_HZ = 48_000
WINDOW_SAMPLES = 480_000
HOP_LENGTH = 480
LOWEST_HZ, HIGHEST_HZ = 50.0, 14_000.0
FILLING = "repeatpad"  # what laion_clap/hook.py asks for

# Weights whose shapes tell what to build
SHAPES = (
    "audio_branch.bn0.weight",
    "audio_branch.patch_embed.proj.weight",
    "audio_branch.layers.0.blocks.0.attn.relative_position_bias_table",
    "audio_projection.0.weight",
)

# Parts of an HTSAT that are left out: the classifier, whose output is no embedding; torchlibrosa's spectrogram, since
# `LogMel` gives the same numbers (within 4e-5 dB) in a third of the time, has no weights that fine-tuning would move,
# and stays in float32 (under bfloat16 torchlibrosa's is off by 0.35 dB); and what fuses crops of longer audio.
UNUSED = ("tscam_conv.", "head.", "spectrogram_extractor.", "logmel_extractor.", "patch_embed.fusion_model.")
FUSION = ("patch_embed.mel_conv2d.", "mel_conv1d.", "fusion_model.")

Weights = Mapping[str, Tensor]

# htsat.py imports its neighbours relative to its package. Here that package is this module: unlike laion_clap itself it
# has no side effects, and an encoder that was pickled finds it again in another process.
_spec = find_spec("laion_clap")
__path__ = [str(Path(_spec.origin).parent / "clap_module")] if _spec is not None and _spec.origin is not None else []


@dataclass(frozen=True)
class Laion:
    """branch: log-mel (W, T, n_mels) to states (W, 32, C). projection: C to D. fused: trained to fuse crops."""

    branch: nn.Module
    projection: nn.Module
    width: int
    n_fft: int
    n_mels: int
    fused: bool


class HTSATBranch(nn.Module):
    """laion-clap's HTSAT from log-mel to states, without the parts that the embedding does not need."""

    def __init__(self, htsat: nn.Module):
        super().__init__()
        for part in ("spectrogram_extractor", "logmel_extractor", "spec_augmenter", "tscam_conv", "head"):
            delattr(htsat, part)
        self.htsat = htsat

    def forward(self, mel: Tensor) -> Tensor:
        """(W, T, n_mels) to (W, 32, C): for each 32nd of the window, the mean over its frequencies."""
        htsat: Any = self.htsat
        image = htsat.bn0(mel[:, None].transpose(1, 3)).transpose(1, 3)
        states = htsat.patch_embed(htsat.reshape_wav2img(image))
        for layer in htsat.layers:
            for block in layer.blocks:  # not `layer` itself, which gathers the attention of all its blocks
                states, _ = block(states)
            if layer.downsample is not None:
                states = layer.downsample(states)
        states = htsat.norm(states)
        # The image holds `freq_ratio` quarters of the window one below the other, each of all frequencies
        side = isqrt(states.shape[1])
        quarters = states.unflatten(1, (htsat.freq_ratio, side // htsat.freq_ratio, side))
        frames: Tensor = quarters.mean(dim=2).flatten(1, 2)
        return frames


def load_laion(path: Path) -> Laion:
    """A LAION checkpoint's audio side in float32, in evaluation mode. Raises `ConfigError`, one line that helps."""
    state = _read(path)
    if missing := [name for name in SHAPES if name not in state]:
        raise ConfigError(
            f"{path} lacks {', '.join(missing)}; expected a LAION CLAP checkpoint whose audio branch is an HTSAT."
        )
    audio, head = _below(state, "audio_branch."), _below(state, "audio_projection.")
    stft = audio.get("spectrogram_extractor.stft.conv_real.weight")  # (n_fft // 2 + 1, 1, n_fft)
    n_fft = 1024 if stft is None else stft.shape[-1]
    n_mels = audio["bn0.weight"].shape[0]
    _check_filters(path, audio.get("logmel_extractor.melW"), n_fft, n_mels)
    htsat = _new_htsat(_architecture(audio), n_fft, n_mels)
    fused = any(key.startswith(FUSION) for key in audio)
    branch = HTSATBranch(htsat)
    _fill(path, htsat, {k: v for k, v in audio.items() if not k.startswith((*UNUSED, *FUSION))}, "audio_branch.")
    width = len(head["0.weight"])
    with torch.random.fork_rng(devices=[]):
        projection = nn.Sequential(nn.Linear(htsat.num_features, width), nn.ReLU(), nn.Linear(width, width))
    _fill(path, projection, head, "audio_projection.")
    return Laion(branch.eval(), projection.eval(), width, n_fft, n_mels, fused)


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name, without the prefixes of their wrappers; memory-mapped, so that what is unused is never read."""
    if not path.is_file():
        raise ConfigError(f"There is no file {path}; expected a LAION CLAP checkpoint (.pt).")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY):  # type: ignore[arg-type]
            warnings.simplefilter("ignore")  # of pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # a damaged file raises whatever its bytes happen to say: IndexError, struct.error, …
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise ConfigError(
                f"{path} holds {found[1]}, which is no tensor, number or plain container, and whose code will not be "
                "run. Save the checkpoint's state_dict alone, or use a Hugging Face checkpoint."
            ) from error
        if isinstance(error, UnpicklingError):  # torch's own message tells how to run it all the same
            raise ConfigError(
                f"{path} holds something else than tensors, numbers and plain containers, and was not read."
            ) from error
        raise ConfigError(f"Cannot read {path} as a PyTorch checkpoint: {_first_line(error)}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    named = {str(key).removeprefix("module."): value for key, value in state.items()}
    return {key: value for key, value in named.items() if isinstance(value, Tensor)}


def _below(state: Weights, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _fill(path: Path, module: nn.Module, weights: Weights, prefix: str) -> None:
    """Load weights; every one that the module has, and no other."""
    try:
        missing, unknown = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # a misshapen one: torch lists them below its first line
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(f"{path} does not fit laion-clap's HTSAT: {prefix}: {reason}") from error
    for names, what in ((missing, "lacks"), (unknown, "holds what laion-clap's HTSAT has not:")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(f"{path} {what} {', '.join(prefix + name for name in names[:3])}{more}.")


def _architecture(audio: Weights) -> dict[str, Any]:
    """Keyword arguments of `HTSAT_Swin_Transformer`, from the shapes of its weights."""
    tables: dict[int, list[Tensor]] = {}  # by layer: the position biases of its blocks, ((2 window − 1)², heads)
    for key, value in audio.items():
        if found := re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table", key):
            tables.setdefault(int(found[1]), []).append(value)
    layers = [tables[index] for index in sorted(tables)]
    embed_dim, _, _, patch = audio["patch_embed.proj.weight"].shape
    return {
        "spec_size": 256,
        "patch_size": patch,
        "patch_stride": (patch, patch),
        "embed_dim": embed_dim,
        "depths": [len(blocks) for blocks in layers],
        "num_heads": [blocks[0].shape[1] for blocks in layers],
        "window_size": (isqrt(layers[0][0].shape[0]) + 1) // 2,
    }


def _new_htsat(architecture: Mapping[str, Any], n_fft: int, n_mels: int) -> Any:
    config = SimpleNamespace(
        mel_bins=n_mels,
        window_size=n_fft,
        hop_size=HOP_LENGTH,
        sample_rate=SAMPLE_RATE_HZ,
        fmin=LOWEST_HZ,
        fmax=HIGHEST_HZ,
    )
    with _laion_clap(), torch.random.fork_rng(devices=[]):
        htsat = import_module(f"{__name__}.htsat")
        return htsat.HTSAT_Swin_Transformer(config=config, num_classes=1, **architecture)


@contextmanager
def _laion_clap() -> Iterator[None]:
    """Its warnings (torch.meshgrid without indexing, …) are not the user's; what it lacks, they are told in a line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise ConfigError(
            f"A LAION checkpoint needs laion-clap, torchlibrosa and torchvision: {_first_line(error)}. "
            "Try pip install laion-clap torchvision, or use a Hugging Face checkpoint."
        ) from error


def _check_filters(path: Path, filters: Tensor | None, n_fft: int, n_mels: int) -> None:
    """The checkpoint's own mel filters (n_fft // 2 + 1, n_mels) are witness of the sample rate and frequencies."""
    if filters is None:
        return
    expected = librosa.filters.mel(sr=SAMPLE_RATE_HZ, n_fft=n_fft, n_mels=n_mels, fmin=LOWEST_HZ, fmax=HIGHEST_HZ).T
    if filters.shape != expected.shape or not np.allclose(filters.float().numpy(), expected, rtol=1e-3, atol=1e-6):
        raise ConfigError(
            f"{path} was trained on another spectrogram than LAION's checkpoints: its mel filters are not those of "
            f"{n_mels} bands from {LOWEST_HZ:g} to {HIGHEST_HZ:g} Hz at {SAMPLE_RATE_HZ} Hz."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class _NumberType:
    """Stands for a pickled `numpy.dtype`; only numbers of a fixed size."""

    def __init__(self, code: str, *_: Any):
        if not re.fullmatch("[biuf][1248]", code):
            raise UnpicklingError(f"numpy type {code!r}; expected a number")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = f"{'>' if state[1] == '>' else '<'}{self.code}"


def _number(number_type: _NumberType, content: bytes) -> Any:
    """Stands for a pickled numpy scalar."""
    return np.frombuffer(content, number_type.code).tolist()[0]


# What numpy 1 and numpy 2 call them in a pickle
_NUMPY = [
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
    (_NumberType, "numpy.dtype"),
]
