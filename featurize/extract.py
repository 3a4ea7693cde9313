"""The one loop that turns raw segments into a feature: chunk by chunk, resumable, each different input once.

For every row of a chunk: read the raw input, hash it, and decide. Unchanged since it was encoded: leave it. Equal to an
input that was encoded already: copy its vector. Otherwise prepare and encode it. Finished rows are written at the end
of their chunk, and every `SAVE_EVERY_SECONDS` between two batches, statuses last. Batches are formed within blocks of
rows whose borders never move. So whatever is killed, the next run takes up where the last write ended, forms the same
batches from there, and ends with the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch

from featurize.encode import Row, batches, encode
from featurize.encoders.base import Encoder, Item
from featurize.limits import DEFAULT_LIMITS, Limits
from featurize.segments import DIGEST_BYTES, Raw, UnreadableInput
from featurize.workers import Failure, Preparer
from stores.feature import Feature, Status

NO_HASH = bytes(DIGEST_BYTES)
SAVE_EVERY_SECONDS = 10.0  # at most this much work is lost; a write costs milliseconds
Progress = Callable[[int, int], None]  # rows done, rows in all


class RawSource(Protocol):
    """Raw inputs by row of the store (`featurize.project.StoreRows`)."""

    def raw(self, row: int) -> Raw | None: ...


@dataclass
class Extraction:
    """What a run did, in rows."""

    rows: int = 0
    unchanged: int = 0
    encoded: int = 0  # passed through the encoder
    copied: int = 0  # equal to an encoded input
    present: int = 0
    absent: int = 0
    failed: int = 0
    seconds: float = 0.0
    new_failures: list[tuple[int, str]] = field(default_factory=list)


def extract(
    feature: Feature,
    encoder: Encoder,
    source: RawSource,
    *,
    workers: int = 0,
    batch_size: int | None = None,
    retry_failed: bool = False,
    save_every_seconds: float = SAVE_EVERY_SECONDS,
    limits: Limits = DEFAULT_LIMITS,
    progress: Progress | None = None,
) -> Extraction:
    """Bring `feature` up to date with `source`. Rows that cannot be encoded are failed with a reason, never fatal.

    A batch holds at most `batch_size` rows, and the encoder's `batch_budget` of what it counts (`Encoder.cost`).
    limits: of one row's preparation, where there are workers.
    """
    started = saved = time.monotonic()
    done = Extraction()
    encoder.eval()
    most = batch_size or feature.n_segments
    memory = _Memory(feature)
    workers = workers if encoder.heavy_preparation else 0
    with Preparer(encoder.without_weights() if workers else encoder, workers, limits) as preparer:
        for chunk in feature.chunks():
            work = _ChunkWork(feature, chunk, memory, retry_failed)
            prepared = preparer.run(work.jobs(source, lambda row: _report(progress, row, feature)))
            try:
                for _, block in groupby(prepared, key=lambda job: job[0] // encoder.sort_rows):
                    for batch in batches(work.settle_empty(block), encoder, most):
                        work.settle_batch(batch, _encode(encoder, batch, feature.max_frames))
                        if time.monotonic() - saved >= save_every_seconds:
                            work.write()
                            saved = time.monotonic()
            finally:  # also when interrupted: what is settled is worth keeping, and the rest is still pending
                work.write()
            work.count(done)
    _report(progress, feature.n_segments - 1, feature)
    status = feature.status()
    done.rows = len(status)
    done.present, done.absent, done.failed = (
        int((status == kind).sum()) for kind in (Status.PRESENT, Status.ABSENT, Status.FAILED)
    )
    done.seconds = time.monotonic() - started
    return done


class _Memory:
    """Which row holds the encoding of which input, over the whole feature; and what it is."""

    def __init__(self, feature: Feature):
        self._feature = feature
        hashes = feature.input_hashes()
        self._row_of = {hashes[row].tobytes(): int(row) for row in np.flatnonzero(feature.present)[::-1]}
        self._cached: tuple[range, list[Row]] | None = None

    def find(self, digest: bytes) -> Row | None:
        row = self._row_of.get(digest)
        if row is None:
            return None
        if self._cached is None or row not in self._cached[0]:
            start = row // self._feature.chunk_rows * self._feature.chunk_rows
            chunk = range(start, min(start + self._feature.chunk_rows, self._feature.n_segments))
            self._cached = (chunk, self._read(chunk))
        return self._cached[1][row - self._cached[0].start]

    def wrote(self, chunk: range, old: np.ndarray, new: np.ndarray, present: np.ndarray) -> None:
        """Hashes (n, 16) of a chunk before and after, and which of its rows are present now."""
        for row, before in zip(chunk, old, strict=True):
            if self._row_of.get(before.tobytes()) == row:
                del self._row_of[before.tobytes()]
        for row, after, here in zip(chunk, new, present, strict=True):
            if here:
                self._row_of.setdefault(after.tobytes(), row)
        self._cached = None

    def _read(self, chunk: range) -> list[Row]:
        vectors = self._feature.vectors(chunk)
        if not self._feature.has_frames:
            return [Row(vector) for vector in vectors]
        frames, counts = self._feature.frames(chunk), self._feature.n_frames(chunk)
        return [Row(v, f, n) for v, f, n in zip(vectors, frames, counts.tolist(), strict=True)]


class _ChunkWork:
    """The rows of one chunk on their way: what each is found to be, and what is written in the end."""

    def __init__(self, feature: Feature, chunk: range, memory: _Memory, retry_failed: bool):
        self._feature = feature
        self._chunk = chunk
        self._memory = memory
        self._retry_failed = retry_failed
        self._status = feature.status(chunk)
        self._hashes = feature.input_hashes(chunk)
        self._failures = feature.failures(chunk)
        self._results: dict[int, tuple[Status, Row | None, str]] = {}
        self._digests: dict[int, bytes] = {}
        self._twins: dict[int, int] = {}  # row -> the earlier row of this chunk with the same input
        self._written: set[int] = set()
        n_frames, width = feature.max_frames, feature.width
        self._nothing = Row(np.zeros(width, np.float32), np.zeros((n_frames, width), np.float32) if n_frames else None)
        self._copied = 0
        self._encoded = 0

    def jobs(self, source: RawSource, on_row: Callable[[int], None]) -> Iterator[tuple[int, Raw]]:
        """Rows that must be prepared, one for each different input; all others are settled on the way."""
        first_with: dict[bytes, int] = {}
        for row in self._chunk:
            on_row(row)
            try:
                raw = source.raw(row)
                digest = NO_HASH if raw is None else raw.digest()
            except UnreadableInput as error:
                self._digests[row] = NO_HASH
                self.settle(row, Failure(str(error)))
                continue
            self._digests[row] = digest
            if raw is None:
                self.settle(row, None)
            elif self._is_unchanged(row, digest):
                continue
            elif digest in first_with:
                self._twins[row] = first_with[digest]
            elif (known := self._memory.find(digest)) is not None:
                self._results[row] = (Status.PRESENT, known, "")
                self._copied += 1
            else:
                first_with[digest] = row
                yield row, raw

    def settle_empty(self, prepared: Iterable[tuple[int, Any]]) -> list[tuple[int, Item]]:
        """Settle the rows whose preparation found nothing, or failed; the others are returned, ready to be encoded."""
        ready = []
        for row, item in prepared:
            if item is None or isinstance(item, Failure):
                self.settle(row, item)
            else:
                ready.append((row, item))
        return ready

    def settle(self, row: int, outcome: Row | Failure | None) -> None:
        """What became of a row: absent, failed, or encoded."""
        if outcome is None:
            self._results[row] = (Status.ABSENT, None, "")
        elif isinstance(outcome, Failure):
            self._results[row] = (Status.FAILED, None, outcome.reason)
        elif not np.isfinite(outcome.vector).all() or not (outcome.frames is None or np.isfinite(outcome.frames).all()):
            self._results[row] = (Status.FAILED, None, "the encoder returned NaN or infinity")
        else:
            self._results[row] = (Status.PRESENT, outcome, "")

    def settle_batch(self, batch: list[tuple[int, Item]], outcomes: list[Row | Failure]) -> None:
        self._encoded += len(batch)
        for (row, _), outcome in zip(batch, outcomes, strict=True):
            self.settle(row, outcome)

    def write(self) -> None:
        """Write every settled row that is not what the store says already."""
        for row in [row for row, twin in self._twins.items() if twin in self._results]:
            self._results[row] = self._results[self._twins.pop(row)]
            self._copied += self._results[row][0] is Status.PRESENT
        rows = [row for row in sorted(self._results.keys() - self._written) if not self._stands(row)]
        if not rows:
            return
        self._written.update(rows)
        before = self._hashes.copy()
        encoded = [self._results[row][1] or self._nothing for row in rows]
        hashes = np.frombuffer(b"".join(self._digests[row] for row in rows), np.uint8).reshape(-1, DIGEST_BYTES)
        status = np.array([self._results[row][0] for row in rows], np.uint8)
        self._feature.write_chunk(
            self._chunk,
            np.array(rows),
            np.stack([row.vector for row in encoded]),
            status,
            hashes,
            [self._results[row][2] for row in rows],
            np.stack([row.frames for row in encoded if row.frames is not None]) if self._feature.has_frames else None,
            np.array([row.n_frames for row in encoded]) if self._feature.has_frames else None,
        )
        at = np.array(rows) - self._chunk.start
        self._hashes[at] = hashes
        self._status[at] = status
        self._memory.wrote(self._chunk, before, self._hashes, self._status == Status.PRESENT)

    def count(self, done: Extraction) -> None:
        done.encoded += self._encoded
        done.copied += self._copied
        done.unchanged += len(self._chunk) - len(self._written)
        failed = (row for row in sorted(self._written) if self._results[row][0] is Status.FAILED)
        done.new_failures += [(row, self._results[row][2]) for row in failed]

    def _is_unchanged(self, row: int, digest: bytes) -> bool:
        at = row - self._chunk.start
        if self._hashes[at].tobytes() != digest:
            return False
        return self._status[at] in (Status.PRESENT, Status.ABSENT) or (
            self._status[at] == Status.FAILED and not self._retry_failed
        )

    def _stands(self, row: int) -> bool:
        """Whether an absent or failed row is written like this already."""
        at = row - self._chunk.start
        status, _, reason = self._results[row]
        return (
            status is not Status.PRESENT
            and self._status[at] == status
            and self._hashes[at].tobytes() == self._digests[row]
            and self._failures[at] == reason
        )


def _encode(encoder: Encoder, batch: list[tuple[int, Item]], n_frames: int) -> list[Row | Failure]:
    """One outcome for each item; an item that the encoder cannot take, or that memory cannot hold, fails alone."""
    try:
        return list(encode(encoder, [item for _, item in batch], n_frames))
    except (torch.OutOfMemoryError, MemoryError):
        if len(batch) == 1:
            return [Failure("out of memory with this row alone")]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    except Exception as error:
        if len(batch) == 1:
            return [Failure(f"{type(error).__name__}: {error}".splitlines()[0])]
    half = len(batch) // 2
    return _encode(encoder, batch[:half], n_frames) + _encode(encoder, batch[half:], n_frames)


def _report(progress: Progress | None, row: int, feature: Feature) -> None:
    if progress is not None:
        progress(row + 1, feature.n_segments)
