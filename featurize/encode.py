"""From prepared items to vectors: the device, the precision, batches by budget, and one forward pass.

The store, `--audit` and end-to-end inference all come through `launch`, so that equal items give equal numbers.

On a GPU nothing waits for anything but what it needs: a `Sender` copies the next batch, out of pinned memory and on a
stream of its own, while the last one is computed; `launch` returns when the GPU has been told what to do; and
`Launched.rows`, which waits for the result, may be called in another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from featurize.encoders.base import Batch, Encoded, Encoder, Item
from featurize.encoders.check import check_output
from featurize.encoders.windows import pool_frames
from featurize.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
MOST_LANES = 4  # each holds a batch in memory

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """What an encoder says of one segment. vector: float32 (D,). frames: float32 (T, D), zeros from `n_frames` on."""

    vector: np.ndarray
    frames: np.ndarray | None = None
    n_frames: int = 0


def set_up(encoder: Encoder, device: str = "auto", precision: str = "fp32") -> Encoder:
    """Move an encoder to its device and set its precision. Raises `ConfigError` where either cannot be had."""
    if precision not in encoder.precisions:
        can = " and ".join(encoder.precisions)
        raise ConfigError(f"Encoder {encoder.name} computes in {can}, not in {precision}.")
    device = usable_device(device)
    if device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # on by default, and good for 1e-3 only: fp32 is to mean fp32
        if encoder.batch_budget == type(encoder).batch_budget:  # nobody has chosen another
            encoder.batch_budget = encoder.gpu_batch_budget or encoder.batch_budget
    encoder.precision = precision
    return encoder.eval().to(device)


def usable_device(name: str) -> str:
    """One of `DEVICES`; for `auto` a GPU where there is one, else the CPU. Raises `ConfigError` where it is missing."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there[name]:
        raise ConfigError(f"This machine has no {name} device that torch can use. Leave --device away, or say cpu.")
    return name


def device_of(encoder: Encoder) -> torch.device:
    """Where its weights are; the CPU where it has none."""
    tensor = next(iter([*encoder.parameters(), *encoder.buffers()]), None)
    return torch.device("cpu") if tensor is None else tensor.device


def run(encoder: Encoder, batch: Batch, call: Callable[[Batch], Any] | None = None) -> Any:
    """One forward pass in the encoder's precision, on its device: of itself, or of what holds it and is to be called.

    Returns what was called returns: `Encoded`, where it is the encoder.
    """
    device, stay = device_of(encoder), encoder.read_as_numbers
    with torch.autocast(device.type, torch.bfloat16, enabled=encoder.precision == "bf16"):
        return (call or encoder)({k: tensor if k in stay else tensor.to(device) for k, tensor in batch.items()})


@contextmanager
def casts_kept(encoder: Encoder) -> Iterator[None]:
    """While the block runs, weights are cast to the encoder's precision once, not once a batch. They must not change.

    autocast keeps what it cast until the outermost of its contexts is left. Costs half the weights' memory again.
    """
    with torch.autocast(device_of(encoder).type, torch.bfloat16, enabled=encoder.precision == "bf16"):
        yield


class Lanes:
    """How many batches go through an encoder at once. While it is open, PyTorch's threads are dealt out among them.

    On a CPU a thread with a batch of its own waits for no other: two threads that share every product of a small model
    gain little on an idle machine, and lose several times that much on a busy one (docs/experiments.md). On a GPU it
    is one batch: the GPU has its own queue.
    """

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._threads = torch.get_num_threads()
        self.n = min(self._threads, MOST_LANES) if device_of(encoder).type == "cpu" else 1

    def begin(self) -> None:
        """Is called in each lane's thread: casts are kept there as in the thread that began."""
        torch.set_num_threads(self._threads // self.n)
        casts_kept(self._encoder).__enter__()  # ends with its thread

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads)


@dataclass(frozen=True)
class Sent:
    """A batch on the encoder's device, or on its way there."""

    batch: Batch
    copied: torch.cuda.Event | None = None

    def arrived(self) -> Batch:
        """The batch, for what is computed from now on."""
        if self.copied is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.copied)
            for tensor in self.batch.values():
                if tensor.is_cuda:
                    tensor.record_stream(stream)  # its memory is not given to another before it was read
        return self.batch


class Sender:
    """Sends batches to a device: to a GPU while it computes, in a stream of its own."""

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch, stay: Collection[str] = ()) -> Sent:
        """stay: names of tensors that are wanted on the CPU."""
        sent = {name: tensor for name, tensor in batch.items() if name not in stay}
        if self._stream is None:
            return Sent(batch | {name: tensor.to(self._device) for name, tensor in sent.items()})
        with torch.cuda.stream(self._stream):
            there = {name: tensor.pin_memory().to(self._device, non_blocking=True) for name, tensor in sent.items()}
            return Sent(batch | there, self._stream.record_event())


@dataclass(frozen=True)
class Launched:
    """What an encoder says of a batch, on its device, which may not have computed it yet.

    vectors: float (B, D). frames: float (B, T, D) with n_frames: int (B,).
    """

    vectors: Tensor
    frames: Tensor | None = None
    n_frames: Tensor | None = None

    def rows(self) -> list[Row]:
        """Waits for the device."""
        vectors = self.vectors.float().cpu().numpy()
        if self.frames is None or self.n_frames is None:
            return [Row(vector) for vector in vectors]
        frames = self.frames.float().cpu().numpy()
        return [Row(v, f, n) for v, f, n in zip(vectors, frames, self.n_frames.tolist(), strict=True)]


@torch.inference_mode()
def launch(encoder: Encoder, batch: Batch, n_frames: int = 0) -> Launched:
    """Encode one batch; with `n_frames` > 0 its frames too, time-pooled to at most so many."""
    encoder.with_frames = n_frames > 0
    encoded: Encoded = run(encoder, batch)
    check_output(encoder, encoded)
    if not n_frames:
        return Launched(encoded.pooled)
    assert encoded.frames is not None and encoded.frame_mask is not None
    return Launched(encoded.pooled, *pool_frames(encoded.frames, encoded.frame_mask, n_frames))


def encode(encoder: Encoder, items: Sequence[Item], n_frames: int = 0) -> list[Row]:
    """Encode items in one batch; with `n_frames` > 0 their frames too, time-pooled to at most so many."""
    return launch(encoder, encoder.collate(items), n_frames).rows()


def batches(ready: Sequence[tuple[T, Item]], encoder: Encoder, most: int) -> Iterator[list[tuple[T, Item]]]:
    """Batches of like cost, dearest first, so that little is padded and memory peaks at once.

    ready: (key, item). A batch holds at most `most` items, and its dearest item times its length is at most the budget.
    Whole batches are taken from the front of one order: what is left after some of them forms the same batches again.
    """
    costs = [encoder.cost(item) for _, item in ready]
    batch: list[tuple[T, Item]] = []
    dearest = 0
    for index in sorted(range(len(ready)), key=lambda i: -costs[i]):  # stable: equal costs stay in row order
        if batch and (len(batch) == most or (len(batch) + 1) * dearest > encoder.batch_budget):
            yield batch
            batch = []
        if not batch:
            dearest = costs[index]
        batch.append(ready[index])
    if batch:
        yield batch
