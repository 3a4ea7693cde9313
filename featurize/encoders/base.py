"""The encoder contract: one class from raw input to vector, for the store and for end-to-end training alike.

An encoder provides its facts (`name`, `modality`, `width`, `settings`), and three steps:

* `prepare(raw)`: numpy, CPU, picklable, no gradient. Decodes, resamples, cuts windows, tokenizes. Returns `None` where
  the input holds nothing to encode (an instrumental's lyric): the row is then *absent*. Raises `UnreadableInput` where
  it holds something that cannot be read: the row is then *failed*, with the message as its reason. It never looks at
  weights: other processes prepare with a copy that has none.
* `collate(items)`: pads to a batch of tensors, with masks.
* `forward(batch)`: `Encoded`, the pooled vectors (B, D) and, where the encoder has them, frames (B, T, D).

A vector depends on its segment alone: never on the batch it travelled in, nor on chance.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from featurize.audio import Waveform, load_mono
from featurize.midi import Score, read_midi
from featurize.segments import RawAudio, RawMidi, RawText
from featurize.user_code import code_facts

Item = Any  # what `prepare` returns: numpy arrays, or a dict of them; picklable
Batch = dict[str, Tensor]
Augment = Callable[[Any], Any]  # decoded input to decoded input, in training only (`featurize.augment`)


@dataclass(frozen=True)
class Encoded:
    """pooled: float (B, D). frames: float (B, T, D) with frame_mask: bool (B, T), true where a frame is real."""

    pooled: Tensor
    frames: Tensor | None = None
    frame_mask: Tensor | None = None


@dataclass(frozen=True)
class EncoderRecord:
    """Everything that decides the numbers an encoder writes. Two equal records mean interchangeable vectors.

    weights: where they came from (`source`, `revision`, `sha256`), or empty for an encoder without any.
    parameters: every preprocessing, windowing and pooling choice, with units in the names.
    libraries: versions of the packages that touch the numbers.
    trained_on: what a fitted or trained encoder saw (`split`, `n_segments`, `ids_sha256`, `labels`), else `None`.
    code: `module` and `sha256` of the file of a class that does not come with this package; `None`, and not written,
    for those that do.
    """

    encoder: str
    class_name: str
    modality: str
    width: int
    weights: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    libraries: Mapping[str, str] = field(default_factory=dict)
    trained_on: Mapping[str, Any] | None = None
    code: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the store keeps it: plain values; without `code` where that is ours."""
        facts = asdict(self)
        if self.code is None:
            del facts["code"]
        return facts


class Encoder(nn.Module, ABC):
    """Base of all encoders; subclass `AudioEncoder`, `MIDIEncoder` or `TextEncoder`, which fix the modality."""

    name: ClassVar[str]
    modality: ClassVar[str]
    libraries: tuple[str, ...] = ()  # distributions whose version can change the numbers
    heavy_preparation: ClassVar[bool] = True  # worth other processes; False where `prepare` costs microseconds
    at_once: ClassVar[int] = 1  # so many inputs are given to `prepare_many`, where that is worth it
    must_fit: ClassVar[bool] = False  # has no weights until `fit` has seen the training split
    must_train: ClassVar[bool] = False  # has no weights until `cli train-encoder` has made some
    has_frames: ClassVar[bool] = False  # `forward` returns frames where `with_frames` is set
    precisions: tuple[str, ...] = ("fp32",)  # what --precision may ask for; bf16 runs under autocast
    read_as_numbers: ClassVar[frozenset[str]] = frozenset()  # of a batch's tensors, those that stay on the CPU
    batch_budget: int = 32  # of one batch, in the unit of `cost`, padding counted
    gpu_batch_budget: ClassVar[int | None] = None  # in its place on a GPU, where that takes more at once
    sort_rows: ClassVar[int] = 64  # consecutive rows that are prepared, sorted by cost, and batched; bounds memory

    width: int  # D
    settings: Mapping[str, Any]  # set by __init__: every choice that changes a number; the record's `parameters`
    trained_on: Mapping[str, Any] | None = None
    loaded_from: Mapping[str, str] | None = None  # `source`, `revision` of pretrained weights
    precision: str = "fp32"
    with_frames: bool = False

    @abstractmethod
    def prepare(self, raw: Any) -> Item | None:
        """One input as numpy arrays, without a gradient, picklable; `None` where it holds nothing.

        Raises `UnreadableInput`.
        """

    def prepare_many(self, raws: Sequence[Any]) -> list[Item | None]:
        """As `prepare` of each input; to be replaced, with `at_once`, where several together take less time.

        May raise anything where `prepare` of one of them raises: they are then prepared one by one.
        """
        return [self.prepare(raw) for raw in raws]

    @abstractmethod
    def collate(self, items: Sequence[Item]) -> Batch:
        """Items, at least one, as one batch of tensors, padded, with what tells padding from items."""

    @abstractmethod
    def forward(self, batch: Batch) -> Encoded:
        """Vectors (B, D), and frames (B, T, D) with their mask (B, T) where the encoder has them and is asked to."""

    @classmethod
    def options_of(cls, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """What the constructor takes to give a record these `parameters` again; weights are not among them."""
        return {option: parameters[option] for option in inspect.signature(cls).parameters if option in parameters}

    def fit(self, raws: Iterable[Any]) -> None:
        """Learn weights from the training split's raw inputs. Only where `must_fit` is true."""
        raise NotImplementedError(f"{self.name} has nothing to fit")

    def cost(self, item: Item) -> int:
        """What an item adds to a batch, in tokens or samples; batches are filled up to `batch_budget`."""
        return 1

    def ordered_blocks(self) -> Sequence[nn.Module]:
        """Its blocks, the first one first, so that the last few can learn alone; what follows the last belongs to it.

        Empty for an encoder without any.
        """
        return ()

    def recompute_activations(self) -> bool:
        """From now on, keep less in training and compute it again for the gradient; whether that can be had."""
        return False

    def without_weights(self) -> Encoder:
        """A light copy for other processes: it can `prepare`, and nothing else."""
        light = copy.copy(self)
        light._modules, light._parameters, light._buffers = {}, {}, {}
        return light

    def weights(self) -> dict[str, str]:
        """Source, revision and SHA-256 of the weights; empty for an encoder that has none."""
        state = self.state_arrays()
        source = {"source": "fitted" if self.must_fit else "built by its class"}
        return {**(self.loaded_from or source), "sha256": arrays_sha256(state)} if state else {}

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Weights as numpy arrays by name, each of its own shape (…)."""
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.state_dict().items()}

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """The reverse of `state_arrays`, arrays (…) by name.

        Raises `RuntimeError` on missing, unknown or misshapen weights.
        """
        self.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})

    @property
    def record(self) -> EncoderRecord:
        """All that decides what the encoder gives, as it is now."""
        return EncoderRecord(
            encoder=self.name,
            class_name=type(self).__qualname__,
            modality=self.modality,
            width=self.width,
            weights=self.weights(),
            parameters=dict(self.settings),
            precision=self.precision,
            libraries={name: _library_version(name) for name in self.libraries},
            trained_on=self.trained_on,
            code=code_facts(type(self)),
        )


class TextEncoder(Encoder):
    """`prepare` takes a `RawText`."""

    modality = "text"
    heavy_preparation = False

    @abstractmethod
    def prepare(self, raw: RawText) -> Item | None: ...


class AudioEncoder(Encoder):
    """`prepare` takes a `RawAudio`; a subclass says what becomes of the waveform.

    sample_rate_hz: what the waveform is resampled to. duration_seconds: no more than this of a segment is decoded;
    `None` takes all of it. Both belong in `settings`.
    """

    modality = "audio"

    sample_rate_hz: int
    duration_seconds: float | None = None

    @abstractmethod
    def prepare_waveform(self, samples: Waveform) -> Item | None:
        """samples: float32 (n,), n ≥ 1, mono at `sample_rate_hz`, full scale ±1."""

    def prepare(self, raw: RawAudio, augment: Augment | None = None) -> Item | None:
        samples = self.load(raw)
        return self.prepare_waveform(samples if augment is None else augment(samples))

    def load(self, raw: RawAudio) -> Waveform:
        """The segment's waveform, float32 (n,). Raises `UnreadableInput`."""
        if self.duration_seconds is not None:
            limit = (raw.start_seconds or 0.0) + self.duration_seconds
            raw = replace(raw, end_seconds=limit if raw.end_seconds is None else min(limit, raw.end_seconds))
        return load_mono(raw, self.sample_rate_hz)


class MIDIEncoder(Encoder):
    """`prepare` takes a `RawMidi`; a subclass says what becomes of its notes. A segment without notes is absent."""

    modality = "midi"

    @abstractmethod
    def prepare_score(self, score: Score) -> Item | None:
        """score: the segment's notes, at least one, in seconds from its start."""

    def prepare(self, raw: RawMidi, augment: Augment | None = None) -> Item | None:
        score = read_midi(raw)
        if len(score) == 0:
            return None
        return self.prepare_score(score if augment is None else augment(score))


def stack_vectors(items: Sequence[np.ndarray]) -> Batch:
    """`collate` for encoders whose `prepare` already returns the vector: B items (D,) to one tensor (B, D)."""
    return {"vectors": torch.from_numpy(np.stack(items).astype(np.float32, copy=False))}


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes, of arrays (…), in name order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype.str}:{array.shape}:".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _library_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # a source checkout on the path, or a vendored build
        return "unknown"
