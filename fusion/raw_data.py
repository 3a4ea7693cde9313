"""Raw segments for an encoder that learns: read once, then augmented and prepared anew for every batch.

Decoding a song costs more than all that follows, and some files cannot be decoded at all. So every segment's waveform
is read once, where a hostile file can do no harm, into a temporary file; an epoch takes what it needs from there. Blobs
of MIDI lie beside them, texts and files are read again: memory does not grow with what the segments hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from featurize.encoders.base import AudioEncoder, Batch, Encoder, Item
from featurize.extract import RawSource
from featurize.segments import Raw, RawAudio, RawMidi, UnreadableInput
from featurize.workers import Failure, Preparer
from fusion.data import shuffled
from fusion.device import CPU

EVALUATION_BATCH = 16


class Augmentation(Protocol):
    """Changes a decoded input; the same seed gives the same change."""

    def __call__(self, decoded: Any, /, seed: int) -> Any: ...


class RawInputs:
    """One modality of some rows of a store, as batches for its encoder. Use it in a `with` block.

    present: bool (N, 1), true where the row's input was found and could be read. failures: row to reason.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: RawSource,
        rows: np.ndarray,
        n_segments: int,
        *,
        augmentation: Augmentation | None = None,
        workers: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.evaluation_batch = EVALUATION_BATCH
        self.failures: dict[int, str] = {}
        self._encoder = encoder
        self._augmentation = augmentation
        self._workers = workers
        self._exits = ExitStack()
        self._raws = self._read(source, rows, progress)
        # what is left to do for a waveform that is not augmented costs less than to send it to and fro
        is_heavy = encoder.heavy_preparation and (augmentation is not None or not isinstance(encoder, AudioEncoder))
        self._preparer = self._exits.enter_context(
            Preparer(_Prepare(encoder.without_weights(), augmentation), workers if is_heavy else 0)
        )
        self.present = torch.zeros(n_segments, 1, dtype=torch.bool)
        self.present[list(self._raws)] = True

    def __enter__(self) -> RawInputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def usable(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows (n,) that can be learned from."""
        kept: np.ndarray = rows[self.present[rows, 0].numpy()]
        return kept

    device = CPU  # of the batches; the encoder has its own
    epoch_order = staticmethod(shuffled)

    def batches(self, rows: Sequence[Tensor], augmentation_seed: int | None = None) -> Iterator[tuple[Tensor, Batch]]:
        """For each batch of row numbers (B,): these, and the encoder's batch.

        Each row has its own seed in each epoch.
        """
        for batch, items in zip(rows, self.items(rows, augmentation_seed), strict=True):
            yield batch, self._encoder.collate(items) if items else {}

    def items(self, rows: Sequence[Tensor], augmentation_seed: int | None = None) -> Iterator[list[Item]]:
        """For each batch of row numbers (B,) what the encoder prepared of them."""
        jobs = (
            (row, _Job(self._raws[row](), None if augmentation_seed is None else _seed_of(augmentation_seed, row)))
            for batch in rows
            for row in batch.tolist()
        )
        ready = self._preparer.run(jobs)
        for batch in rows:
            prepared = [next(ready) for _ in range(len(batch))]
            for row, item in prepared:
                if item is None or isinstance(item, Failure):  # it could be read, so this is ours to mend
                    raise RuntimeError(f"row {row} could not be prepared: {item}")
            yield [item for _, item in prepared]

    def _read(
        self, source: RawSource, rows: np.ndarray, progress: Callable[[int, int], None] | None
    ) -> Mapping[int, Callable[[], Raw]]:
        """Rows that have an encodable input, and how to get at it. Audio is decoded to a temporary file."""
        found: dict[int, Callable[[], Raw]] = {}
        raws: dict[int, Raw] = {}

        def jobs() -> Iterator[tuple[int, Any]]:
            for row in rows.tolist():
                try:
                    raw = source.raw(row)
                except UnreadableInput as error:
                    self.failures[row] = str(error)
                    continue
                if raw is not None:
                    raws[row] = raw
                    yield row, raw

        encoder = self._encoder
        cache = self._exits.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        workers = self._workers if encoder.heavy_preparation else 0
        with Preparer(_Read(encoder.without_weights()), workers) as preparer:
            for done, (row, outcome) in enumerate(preparer.run(jobs()), start=1):
                raw = raws.pop(row)
                if isinstance(outcome, Failure):
                    self.failures[row] = outcome.reason
                elif outcome is not None and isinstance(encoder, AudioEncoder):
                    start = cache.tell()
                    cache.write(outcome.tobytes())
                    found[row] = partial(_read_audio, cache, start, len(outcome), encoder.sample_rate_hz)
                elif outcome is not None and isinstance(raw, RawMidi) and raw.data is not None:
                    start = cache.tell()
                    cache.write(raw.data)
                    found[row] = partial(_read_midi, cache, start, len(raw.data), replace(raw, data=None))
                elif outcome is not None:
                    found[row] = partial(_read_again, source, row)
                if progress is not None:
                    progress(done, len(rows))
        cache.flush()
        return found


@dataclass(frozen=True)
class _Job:
    raw: Raw
    seed: int | None


@dataclass(frozen=True)
class _Read:
    """In a worker: the waveform of an audio segment; of other modalities whether there is anything to encode."""

    encoder: Encoder

    def prepare(self, raw: Any) -> Any:
        if isinstance(self.encoder, AudioEncoder):
            return self.encoder.load(raw)
        return None if self.encoder.prepare(raw) is None else True


@dataclass(frozen=True)
class _Prepare:
    """In a worker: augment, where there is a seed, and prepare."""

    encoder: Encoder
    augmentation: Augmentation | None

    def prepare(self, job: _Job) -> Any:
        if job.seed is None or self.augmentation is None:
            return self.encoder.prepare(job.raw)
        augment = partial(self.augmentation, seed=job.seed)
        return self.encoder.prepare(job.raw, augment)  # type: ignore[call-arg]  # audio and MIDI encoders take it


def _read_audio(cache: Any, start: int, n_samples: int, sample_rate_hz: int) -> RawAudio:
    cache.seek(start)
    return RawAudio(samples=cache.read(4 * n_samples), sample_rate_hz=sample_rate_hz)


def _read_midi(cache: Any, start: int, n_bytes: int, raw: RawMidi) -> RawMidi:
    cache.seek(start)
    return replace(raw, data=cache.read(n_bytes))


def _read_again(source: RawSource, row: int) -> Raw:
    raw = source.raw(row)
    assert raw is not None  # it was there when all were read
    return raw


def _seed_of(augmentation_seed: int, row: int) -> int:
    """32 bits that depend on the epoch and the row alone, whatever the order and the process."""
    return int.from_bytes(blake2b(f"{augmentation_seed}/{row}".encode(), digest_size=4).digest())
