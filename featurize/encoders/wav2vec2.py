"""Encode audio by any model of the wav2vec2 family: hidden states, averaged over layers and time.

Conventions
-----------
* Hidden state 0 is what the first transformer layer reads, k what layer k gives, and N, the last, what the model
  gives: models with `do_stable_layer_norm` normalize that one, and no other.
* Each window is normalized by itself, as the checkpoint's feature extractor does for a single unpadded input. Audio no
  longer than a window is one, of its own length.
* Layers above the highest wanted one, SpecAugment, LayerDrop, and an adapter behind the encoder are left out.

Most of these models are sensitive to padding, though all take an attention mask. The group norm of wav2vec2-base
averages over it; HuBERT's batch norm makes something of its zeros; data2vec's stacked positional convolutions spread
into it, and read it back. (WavLM is exact under a mask, but masks in a way that torch calls deprecated.) Their windows
run without padding, each length by itself; the others are padded and masked.

Sources: Baevski et al. 2020, "wav2vec 2.0: A framework for self-supervised learning of speech representations"; Hsu et
al. 2021, "HuBERT"; Chen et al. 2022, "WavLM"; Baevski et al. 2022, "data2vec"; on what each layer knows, Pasad et al.
2021, "Layer-wise analysis of a self-supervised speech representation model".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad
from torch.nn.utils.parametrize import is_parametrized

from featurize.audio import RESAMPLER, Waveform
from featurize.encoders.base import AudioEncoder, Batch, Encoded
from featurize.encoders.pretrained import load_companion, load_model, origin, recompute_activations
from featurize.encoders.windows import item_frames, item_mean, window_starts
from featurize.errors import ConfigError

Windows = Waveform  # float32 too, but (n_windows, n_samples)

FAMILY = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat")
MASKABLE = frozenset({"wav2vec2", "hubert", "unispeech", "unispeech-sat"})  # where nothing normalizes over time

VARIANCE_FLOOR = 1e-7  # of `Wav2Vec2FeatureExtractor`


class Wav2Vec2Encoder(AudioEncoder):
    """pretrained_model: name or folder of a checkpoint; revision: its branch, tag or commit.

    layers: which hidden states are averaged, 0 to N or from the end; `None` or "last" is N. window_seconds: longer
    audio is cut into several windows.
    """

    name = "wav2vec2"
    libraries = ("transformers", "torch", "soundfile", "soxr", "numpy")
    precisions = ("fp32", "bf16")
    has_frames = True
    read_as_numbers = frozenset({"n_samples"})  # fetched from a GPU they would have to be waited for
    batch_budget = 1_280_000  # samples: 8 windows of 10 s take wav2vec2-base 1.3 GB in float32; more are no faster
    gpu_batch_budget = 5_120_000

    def __init__(
        self,
        *,
        pretrained_model: str = "facebook/wav2vec2-base",
        revision: str | None = None,
        layers: int | list[int] | str | None = "last",
        window_seconds: float = 10.0,
        duration_seconds: float | None = None,
    ):
        super().__init__()
        from transformers import AutoConfig

        config = load_companion(AutoConfig, pretrained_model, revision)
        if config.model_type not in FAMILY:
            raise ValueError(
                f"pretrained_model is {pretrained_model}, of type {config.model_type}; expected one of the wav2vec2"
                f" family: {', '.join(FAMILY)}"
            )
        self.layers = _resolve(layers, config.num_hidden_layers)
        extractor, shipped = _feature_extractor(pretrained_model, revision)
        self.sample_rate_hz, self.duration_seconds = int(extractor.sampling_rate), duration_seconds
        self._normalizes, self._padding_value = bool(extractor.do_normalize), float(extractor.padding_value)
        self._convolutions = list(zip(config.conv_kernel, config.conv_stride, strict=True))
        self._frame_samples = _frame_samples(self._convolutions)
        frame_seconds = self._frame_samples / self.sample_rate_hz
        if not frame_seconds <= window_seconds < float("inf"):
            raise ValueError(f"window_seconds is {window_seconds}; expected at least {frame_seconds:g}, for one frame")
        if duration_seconds is not None and not 0 < duration_seconds < float("inf"):
            raise ValueError(f"duration_seconds is {duration_seconds}; expected more than 0, or null for all")
        self._window_samples = round(window_seconds * self.sample_rate_hz)
        self._masks_padding = (
            config.model_type in MASKABLE
            and config.feat_extract_norm == "layer"
            and not getattr(config, "conv_pos_batch_norm", False)
        )
        self.settings = {
            "model_type": config.model_type,
            "layers": self.layers,
            "sample_rate_hz": self.sample_rate_hz,
            "duration_seconds": None if duration_seconds is None else float(duration_seconds),
            "window_seconds": float(window_seconds),
            "resampler": RESAMPLER,
            "do_normalize": self._normalizes,
            "padding_value": self._padding_value,
            "preprocessor": "the checkpoint's" if shipped else "defaults of Wav2Vec2FeatureExtractor",
            "pooling": "mean over frames, then over windows",
        }
        self.width = config.hidden_size
        self.model = _load_layers(pretrained_model, revision, config, max(self.layers))
        self.loaded_from = origin(pretrained_model, revision, self.model)

    def prepare_waveform(self, samples: Waveform) -> Windows:
        """The windows of one segment: float32 (n_windows, n_samples), long enough for one frame at least."""
        starts = window_starts(len(samples), self._window_samples)
        windows = np.stack([self._normalized(samples[start : start + self._window_samples]) for start in starts])
        # zeros behind: with fewer samples there is no frame at all. The extractor, too, normalizes before it pads
        n_missing = max(0, self._frame_samples - windows.shape[1])
        return np.pad(windows, ((0, 0), (0, n_missing)), constant_values=self._padding_value)

    def cost(self, item: Windows) -> int:
        return item.size

    def collate(self, items: Sequence[Windows]) -> Batch:
        """samples: float32 (W, L); n_samples: int (W,), how many of them are real; n_windows: int (B,)."""
        samples = np.zeros((sum(map(len, items)), max(item.shape[1] for item in items)), np.float32)
        first = 0
        for item in items:
            samples[first : first + len(item), : item.shape[1]] = item
            first += len(item)
        return {
            "samples": torch.from_numpy(samples),
            "n_samples": torch.tensor([item.shape[1] for item in items for _ in item]),
            "n_windows": torch.tensor([len(item) for item in items]),
        }

    def forward(self, batch: Batch) -> Encoded:
        samples, n_windows = batch["samples"], batch["n_windows"]
        n_samples: list[int] = batch["n_samples"].tolist()
        longest = self._n_frames(samples.shape[1])
        whole, order = list(range(len(samples))), list[int]()
        vectors, frames, masks = [], [], []
        for run in self._runs(n_samples):
            lengths = [n_samples[row] for row in run]
            rows = slice(None) if run == whole else run  # of equal lengths, the usual case, nothing is copied
            states, mask = self._states(samples[rows, : lengths[0]], lengths)
            vectors.append((states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True))
            if self.with_frames:
                n_missing = longest - states.shape[1]
                frames.append(pad(states, (0, 0, 0, n_missing)))
                masks.append(pad(mask, (0, n_missing)))
            order += run
        back = slice(None) if order == whole else _sent(order, samples.device).argsort()
        with torch.autocast(samples.device.type, enabled=False):
            pooled = item_mean(torch.cat(vectors)[back], n_windows)
        if not self.with_frames:
            return Encoded(pooled)
        return Encoded(pooled, *item_frames(torch.cat(frames)[back], torch.cat(masks)[back], n_windows))

    def ordered_blocks(self) -> Sequence[nn.Module]:
        return list(self.model.encoder.layers)

    def recompute_activations(self) -> bool:
        return recompute_activations(self.model)

    def _normalized(self, window: Waveform) -> Waveform:
        if not self._normalizes:
            return window
        normalized: Waveform = (window - window.mean()) / np.sqrt(window.var() + VARIANCE_FLOOR)
        return normalized

    def _n_frames(self, n_samples: int) -> int:
        for kernel, stride in self._convolutions:
            n_samples = (n_samples - kernel) // stride + 1
        return n_samples

    def _runs(self, n_samples: list[int]) -> Iterator[list[int]]:
        """Rows that go through the model together, the longest first: equally long where the model feels padding.

        They keep to the budget, which a single long recording alone would exceed.
        """
        run: list[int] = []
        for row in sorted(range(len(n_samples)), key=lambda row: -n_samples[row]):
            if run:
                longest = n_samples[run[0]]
                full = (len(run) + 1) * longest > self.batch_budget
                if full or (n_samples[row] != longest and not self._masks_padding):
                    yield run
                    run = []
            run.append(row)
        yield run

    def _states(self, samples: Tensor, n_samples: list[int]) -> tuple[Tensor, Tensor]:
        """The mean of the wanted hidden states, float32 (w, T, D), and which frames are real, bool (w, T).

        By hooks of our own: `output_hidden_states` leaves some on the model that cannot be pickled, and whether its
        last state is normalized depends on the version of transformers.
        """
        attention_mask = None
        if min(n_samples) < samples.shape[1]:
            attention_mask = _prefixes(n_samples, samples.shape[1], samples.device).long()
        states: list[Tensor] = []
        layers = self.model.encoder.layers
        hooks = [
            layers[layer].register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
            for layer in self.layers[:-1]
        ]
        try:
            states.append(self.model(samples, attention_mask=attention_mask).last_hidden_state)
        finally:
            for hook in hooks:
                hook.remove()
        mean = torch.stack([state.float() for state in states]).mean(dim=0)
        return mean, _prefixes([self._n_frames(n) for n in n_samples], mean.shape[1], mean.device)


class WeightNormConv(nn.Module):
    """A `Conv1d` with weight normalization, in a module that can be pickled: torch refuses to pickle its own."""

    def __init__(self, conv: Any):
        super().__init__()
        normalized = conv.parametrizations.weight
        self.magnitude, self.direction, self.bias = normalized.original0, normalized.original1, conv.bias
        self.normalize = normalized[0]
        self.padding: int = conv.padding[0]
        self.groups: int = conv.groups

    def forward(self, states: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T')."""
        weight: Tensor = self.normalize(self.magnitude, self.direction)
        return conv1d(states, weight, self.bias, padding=self.padding, groups=self.groups)


def _prefixes(counts: list[int], length: int, device: torch.device) -> Tensor:
    """Bool (len(counts), length): true in each row's first places, as many as it counts."""
    return torch.arange(length, device=device) < _sent(counts, device)[:, None]


def _sent(numbers: list[int], device: torch.device) -> Tensor:
    """Int (n,), on a GPU when its turn comes: nobody waits for it here."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def _resolve(layers: int | list[int] | str | None, n_layers: int) -> list[int]:
    """The wanted hidden states, ascending, each once."""
    if layers is None or layers == "last":
        return [n_layers]
    wanted: Sequence[Any] = layers if isinstance(layers, (list, tuple)) else [layers]
    for layer in wanted or [layers]:
        if not isinstance(layer, int) or isinstance(layer, bool) or not -n_layers - 1 <= layer <= n_layers:
            raise ValueError(
                f'layers has {layer!r}; expected "last", or one or several numbers from {-n_layers - 1} to {n_layers}'
                f" (0 is what the first layer reads, {n_layers} what the last gives)"
            )
    return sorted({layer % (n_layers + 1) for layer in wanted})


def _frame_samples(convolutions: list[tuple[int, int]]) -> int:
    """How many samples one frame spans. convolutions: (kernel, stride) of each, the first one first."""
    n_samples = 1
    for kernel, stride in reversed(convolutions):
        n_samples = (n_samples - 1) * stride + kernel
    return n_samples


def _feature_extractor(name_or_path: str, revision: str | None) -> tuple[Any, bool]:
    """A checkpoint's `Wav2Vec2FeatureExtractor`, and whether it ships one; the default one where it does not."""
    from transformers import Wav2Vec2FeatureExtractor

    try:
        return load_companion(Wav2Vec2FeatureExtractor, name_or_path, revision), True
    except ConfigError:
        if not _ships_no_extractor(name_or_path, revision):
            raise
        return Wav2Vec2FeatureExtractor(), False


def _ships_no_extractor(name_or_path: str, revision: str | None) -> bool:
    """Whether it is known that there is none. One that is out of reach, or damaged, must not become the default."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    files = ("preprocessor_config.json", "processor_config.json")
    if Path(name_or_path).is_dir():
        return not any((Path(name_or_path) / file).exists() for file in files)
    found = [try_to_load_from_cache(name_or_path, file, revision=revision or "main") for file in files]
    return all(file is _CACHED_NO_EXIST for file in found)


def _load_layers(name_or_path: str, revision: str | None, config: Any, n_layers: int) -> Any:
    """The model up to its layer `n_layers`, without a weight that its hidden states do not depend on."""
    from transformers import AutoModel

    is_whole = n_layers == config.num_hidden_layers
    config.update(
        {
            "num_hidden_layers": n_layers,
            "layerdrop": 0.0,
            "apply_spec_augment": False,
            "add_adapter": False,
            "output_hidden_states": False,
            "output_attentions": False,
            "return_dict": True,
        }
    )
    model = load_model(AutoModel, name_or_path, revision, config=config)
    if hasattr(model, "masked_spec_embed"):  # of SpecAugment
        del model.masked_spec_embed
    if getattr(config, "do_stable_layer_norm", False) and not is_whole:
        model.encoder.layer_norm = nn.Identity()
    position = model.encoder.pos_conv_embed
    if hasattr(position, "conv") and is_parametrized(position.conv):
        position.conv = WeightNormConv(position.conv)
    return model
