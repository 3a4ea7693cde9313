"""The one loop that turns raw segments into a feature: chunk by chunk, resumable, each different input once.

For every row of a chunk: read the raw input, hash it, and decide. Unchanged since it was encoded: leave it. Equal to an
input that was encoded already: copy its vector. Otherwise prepare and encode it. Finished rows are written at the end
of their chunk, and every `SAVE_EVERY_SECONDS` between two batches, statuses last. Batches are formed within blocks of
rows whose borders never move. So whatever is killed, the next run takes up where the last write ended, forms the same
batches from there, and ends with the same bytes.

The model's threads, on a CPU several with a batch each, do nothing but run the model. One ahead of them reads, prepares
(in processes where that is work), batches and sends to the device, across the borders of blocks and chunks; one behind
them fetches, copies and writes. Whether they run ahead or behind by much or little changes no byte.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch

from featurize.beside import Behind, ahead, side_by_side
from featurize.chunk_work import ChunkWork, Extraction, FeatureChunks, Memory, RawSource
from featurize.encode import Lanes, Launched, Sender, Sent, batches, casts_kept, device_of, launch
from featurize.encoders.base import Encoder, Item
from featurize.limits import DEFAULT_LIMITS, Limits
from featurize.workers import Failure, Preparer
from stores.errors import TriadError
from stores.feature import Feature
from stores.shard import Shard

SAVE_EVERY_SECONDS = 10.0  # at most this much work is lost; a write costs milliseconds
BATCHES_AHEAD = 2  # on the device, waiting for the model: one would do if all took equally long
CALLS_BEHIND = 4  # results waiting to be fetched or written: a slow disk must not fill the memory
Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True)
class _Batch:
    """Rows that go through the model together. sent: `None` where they could not be collated."""

    rows: list[int]
    items: list[Item]
    sent: Sent | None


Step = tuple[ChunkWork, _Batch | None]  # `None` after a chunk's last batch


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
    shard: Shard | None = None,
) -> Extraction:
    """Bring `feature` up to date with `source`. Rows that cannot be encoded are failed with a reason, never fatal.

    A batch holds at most `batch_size` rows, and the encoder's `batch_budget` of what it counts (`Encoder.cost`).
    limits: of one row's preparation, where there are workers. shard: its chunks alone, each as if there were no other.
    """
    started = time.monotonic()
    chunks = feature.chunks() if shard is None else shard.of_all(feature.chunks())
    done = Extraction(rows=sum(map(len, chunks)))
    before = dict(zip(chunks, accumulate(map(len, chunks), initial=0), strict=False))

    def told(chunk: range, n_done: int) -> None:
        if progress is not None:
            progress(before[chunk] + n_done, done.rows)

    extract_chunks(
        feature,
        encoder,
        source,
        chunks,
        each_alone=shard is not None,
        workers=workers,
        batch_size=batch_size,
        retry_failed=retry_failed,
        save_every_seconds=save_every_seconds,
        limits=limits,
        progress=told,
        finished=lambda _, part: done.add(part),
    )
    for chunk in [range(feature.n_segments)] if shard is None else chunks:
        done.count(feature.read_status(chunk))
    done.seconds = time.monotonic() - started
    return done


def extract_chunks(
    feature: FeatureChunks,
    encoder: Encoder,
    source: RawSource,
    chunks: Iterable[range],
    *,
    each_alone: bool,
    workers: int,
    batch_size: int | None,
    retry_failed: bool,
    save_every_seconds: float,
    limits: Limits,
    progress: Callable[[range, int], object],
    finished: Callable[[range, Extraction], object],
) -> None:
    """The loop itself. chunks: may be found while others are worked on; each is prepared as soon as it is given.

    each_alone: what other chunks hold is not looked up, so that a chunk's bytes depend on nothing but its rows.
    progress: gets a chunk and how many of its rows are done. finished: gets a chunk when it is written, and what was
    done, in another thread.
    """
    saved = time.monotonic()
    encoder.eval()
    workers = workers if encoder.heavy_preparation else 0
    preparer = Preparer(encoder.without_weights() if workers else encoder, workers, limits)
    begun: deque[ChunkWork] = deque()
    memory = None if each_alone else Memory(feature, retry_failed)
    works = (ChunkWork(feature, chunk, memory, retry_failed) for chunk in chunks)
    steps = _steps(works, encoder, source, preparer, begun, batch_size or feature.n_segments)

    def encoded(step: Step) -> list[Launched | Failure]:
        return [] if step[1] is None else _encode(encoder, step[1], feature.max_frames)

    def finish(work: ChunkWork) -> None:
        finished(work.chunk, work.finish())

    with casts_kept(encoder), Lanes(encoder) as lanes, Behind(CALLS_BEHIND) as behind:
        try:
            with ahead(steps, BATCHES_AHEAD) as ready, preparer:  # left in reverse: then nobody waits for a worker
                for (work, batch), outcomes in side_by_side(ready, encoded, lanes.n, lanes.begin):
                    if batch is None:
                        behind(finish, begun.popleft())
                    else:
                        behind(work.settle_batch, batch.rows, outcomes)
                        if time.monotonic() - saved >= save_every_seconds:
                            behind(work.write)
                            saved = time.monotonic()
                    progress(work.chunk, len(work.chunk) if batch is None else work.n_done)
        finally:  # also when interrupted: what is settled is worth keeping, and the rest is still pending
            for work in begun:
                behind(work.write)


def _steps(
    works: Iterable[ChunkWork],
    encoder: Encoder,
    source: RawSource,
    preparer: Preparer,
    begun: deque[ChunkWork],
    most: int,
) -> Iterator[Step]:
    """The batches of every chunk, then `None`. A chunk whose rows are looked at is added to `begun`."""
    send = Sender(device_of(encoder))

    def jobs() -> Iterator[tuple[tuple[ChunkWork, int | None, int], Any]]:
        """Through all chunks, so that preparation never stops at a border; after each chunk one job without input."""
        for work in works:
            begun.append(work)
            for row, raw in work.jobs(source):
                yield (work, row // encoder.sort_rows, row), raw
            yield (work, None, work.chunk.stop), None

    for (work, block), prepared in groupby(preparer.run(jobs()), key=lambda job: job[0][:2]):
        if block is None:
            yield work, None
            continue
        for batch in batches(work.settle_empty((row, item) for (_, _, row), item in prepared), encoder, most):
            rows, items = [row for row, _ in batch], [item for _, item in batch]
            yield work, _Batch(rows, items, _collated(encoder, items, send))


def _collated(encoder: Encoder, items: list[Item], send: Sender) -> Sent | None:
    """`None` where that fails: `_encode` finds out for which of them."""
    try:
        return send(encoder.collate(items), encoder.read_as_numbers)
    except Exception:
        return None


def _encode(encoder: Encoder, batch: _Batch, n_frames: int) -> list[Launched | Failure]:
    """What comes of each item in turn; one that the encoder cannot take, or that memory cannot hold, fails alone."""
    try:
        arrived = encoder.collate(batch.items) if batch.sent is None else batch.sent.arrived()
        return [launch(encoder, arrived, n_frames)]
    except (torch.OutOfMemoryError, MemoryError):
        if len(batch.rows) == 1:
            return [Failure("out of memory with this row alone")]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    except TriadError:  # a mistake of the encoder's, and the same for every row
        raise
    except Exception as error:
        if len(batch.rows) == 1:
            return [Failure(f"{type(error).__name__}: {error}".splitlines()[0])]
    half = len(batch.rows) // 2
    parts = (_Batch(batch.rows[part], batch.items[part], None) for part in (slice(half), slice(half, None)))
    return [outcome for part in parts for outcome in _encode(encoder, part, n_frames)]
