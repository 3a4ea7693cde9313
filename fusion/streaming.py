"""Segments that are larger than memory: batches in shuffled order from a store that is read chunk by chunk.

An epoch takes the store's chunks of rows in random order, a *window* of them at a time; a window's rows are shuffled,
and batches are cut from them. While the model learns from one window, a thread reads the next: two windows are in
memory, however many segments there are. What fits in one window comes in the order in which
`fusion.data.SegmentData` has it, number by number.

How well that mixes. Every row comes once an epoch, and the chunks that share a window are others in every epoch. But
rows of one song lie side by side in a store, so that a chunk is no random sample. With windows of K chunks, two rows of
a batch are of the same chunk with chance 1/K; the mean gradient of B rows has 1 + (B - 1) r / K times the variance of a
random batch's, where r is the correlation of gradients within a chunk (Kish 1965, "Survey sampling", section 5.4). For
B = 256, K = 73 (1,792 numbers in float16), and songs of 140 segments with a correlation of 0.5 within a song, r is 0.07
and the factor 1.24.

Validation and test rows are read again and again, and are few in each chunk. Of them a copy is made once
(`keep_at_hand`), in a temporary file that is then read from end to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featurize.encode import Sender
from fusion.config import Stream
from fusion.data import SegmentData, first_frames, is_present, load_segments, rows_at_once
from fusion.device import CPU
from fusion.memory import too_large
from fusion.model import FusionModel
from fusion.modules.base import Frames, Inputs, Standardized
from fusion.row_sources import Arrays, RowFile, RowSource, StoreChunks
from stores.errors import StoreError
from stores.store import Store

WINDOW_BYTES = 256 * 2**20
ROWS_AT_ONCE = 128  # are copied from a chunk to a window: what is held meanwhile stays in a core's cache
IN_ORDER_SHARE = 8  # of a window at a time, where rows are wanted in order, and nothing is to be mixed


def open_segments(
    store: Store,
    features: Mapping[str, str],
    stream: Stream = "auto",
    *,
    with_frames: bool = False,
    allow_pending: bool = False,
) -> SegmentData | StreamedSegments:
    """In memory; or streamed, if `stream` says so, or leaves it open and they are too large (`fusion.memory`).

    Raises `StoreError` where rows are pending, `DamagedStore` on bad bytes.
    """
    streamed = too_large(store, features, with_frames) if stream == "auto" else stream
    read = stream_segments if streamed else load_segments
    return read(store, features, with_frames=with_frames, allow_pending=allow_pending)


def stream_segments(
    store: Store, features: Mapping[str, str], *, with_frames: bool = False, allow_pending: bool = False
) -> StreamedSegments:
    """Who is there is read now, vectors and frames when they are asked for. Raises as `open_segments`."""
    opened = {slot: store.feature(name) for slot, name in features.items()}
    statuses = {slot: feature.status for slot, feature in opened.items()}
    present = [is_present(feature, statuses[slot], allow_pending) for slot, feature in opened.items()]
    max_frames = {slot: feature.max_frames for slot, feature in opened.items() if with_frames and feature.has_frames}
    return StreamedSegments(
        dict(features),
        torch.from_numpy(np.stack(present, axis=1)),
        store.ids,
        store.groups,
        max_frames,
        StoreChunks(opened, statuses, max_frames, store.chunk_rows),
        {slot: _digest(statuses[slot], feature.read_input_hashes()) for slot, feature in opened.items()},
    )


@dataclass(frozen=True)
class _Window:
    """arrays[slot]: of the rows that are `start` to `stop` in what is asked for."""

    start: int
    stop: int
    arrays: Mapping[str, Arrays]

    def piece(self, slot: str, start: int, stop: int) -> Arrays:
        """What it has of rows start to stop; the last ones as a copy, so that who has them does not hold the window."""
        part = slice(max(start - self.start, 0), max(min(stop, self.stop) - self.start, 0))
        is_last = stop >= self.stop
        return {kind: values[part].copy() if is_last else values[part] for kind, values in self.arrays[slot].items()}

    def after(self) -> _Window:
        """No rows, in place of one that is used up."""
        nothing = {slot: {kind: values[:0].copy() for kind, values in of.items()} for slot, of in self.arrays.items()}
        return _Window(self.stop, self.stop, nothing)


@dataclass(frozen=True)
class StreamedSegments:
    """`fusion.data.SegmentData` whose vectors and frames stay in the store. Reading batches may raise `DamagedStore`.

    window_bytes: of a window's rows at most, unless a single chunk has more.
    """

    features: Mapping[str, str]
    present: Tensor
    ids: np.ndarray
    groups: np.ndarray
    max_frames: dict[str, int]
    chunks: StoreChunks
    digests: Mapping[str, bytes]  # slot -> of statuses and input hashes, as they were at the beginning
    window_bytes: int = WINDOW_BYTES
    at_hand: list[RowFile] = field(default_factory=list)  # one at most, for these and all that `only` makes of them
    standardize: Callable[[str, Tensor], Tensor] | None = None  # a slot's vectors (n, D), as a model does
    device: torch.device = CPU

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots in the order of the columns of `present`."""
        return tuple(self.features)

    @property
    def widths(self) -> dict[str, int]:
        """Slot to D, numbers in a vector."""
        return {slot: self.chunks.features[slot].width for slot in self.slots}

    @property
    def evaluation_batch(self) -> int:
        """Rows that fit in memory at once where nothing is learned."""
        return rows_at_once(self.max_frames)

    @property
    def window_chunks(self) -> int:
        """How many chunks a window has at most."""
        chunk_bytes = self.chunks.chunk_rows * sum(self.chunks.row_bytes(slot) for slot in self.slots)
        return max(1, self.window_bytes // chunk_bytes)

    def epoch_order(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Chunks in random order, and within a window rows in random order. rows: (n,), ascending."""
        numbers, counts = (rows // self.chunks.chunk_rows).unique_consecutive(return_counts=True)
        per_window = _chunks_of_a_window(len(numbers), self.window_chunks)
        of_chunk = rows.split(counts.tolist())
        windows = [torch.arange(len(numbers))]
        if per_window < len(numbers):
            windows = list(torch.randperm(len(numbers), generator=generator).split(per_window))
        members = [torch.cat([of_chunk[chunk] for chunk in window.tolist()]) for window in windows if len(window)]
        return torch.cat([some[torch.randperm(len(some), generator=generator)] for some in members] or [rows])

    def batches(
        self, rows: Sequence[Tensor], augmentation_seed: int | None = None
    ) -> Iterator[tuple[Tensor, dict[str, Inputs]]]:
        """As `SegmentData` gives them, of row numbers (B,).

        Rows may come in any order; fast are an ascending one and `epoch_order`'s.
        """
        wanted = torch.cat(list(rows)).cpu().numpy() if len(rows) else np.zeros(0, np.int64)
        source: RowSource = self.chunks
        if self.at_hand and self.at_hand[0].has(wanted):
            source = self.at_hand[0]
        windows = self._windows(source, source.places(wanted))
        window = _Window(0, 0, {slot: source.empty(slot, 0) for slot in self.slots})
        start, send = 0, Sender(self.device)
        for batch in rows:
            stop = start + len(batch)
            pieces = [{slot: window.piece(slot, start, stop) for slot in self.slots}]
            while window.stop < stop:
                window = window.after()  # gone before the one after the next is read
                window = next(windows)
                pieces.append({slot: window.piece(slot, start, stop) for slot in self.slots})
            if window.stop == stop:
                window = window.after()
            start = stop
            yield batch, {slot: self._batch(slot, [piece[slot] for piece in pieces], send) for slot in self.slots}

    def only(self, slots: Sequence[str]) -> StreamedSegments:
        """The same segments with some of the slots, in this order."""
        columns = [self.slots.index(slot) for slot in slots]
        return replace(
            self,
            features={slot: self.features[slot] for slot in slots},
            present=self.present[:, columns],
            max_frames={slot: most for slot, most in self.max_frames.items() if slot in slots},
        )

    def to(self, device: torch.device) -> StreamedSegments:
        """The same segments; each batch is sent there as it stands in the store."""
        return replace(self, device=device)

    def standardized(self, model: FusionModel, dtype: torch.dtype) -> StreamedSegments:
        """As `SegmentData.standardized`; done batch by batch."""
        return self if self.max_frames else replace(self, standardize=partial(model.standardize_slot, dtype=dtype))

    def keep_at_hand(self, rows: np.ndarray, folder: Path | None = None) -> None:
        """Copy these rows (n,), in place of those of the last call. folder: where a file may stand."""
        rows = np.unique(rows)
        copy = RowFile(rows, self.chunks, folder)
        for window in replace(self, standardize=None)._windows(self.chunks, rows):
            for slot, arrays in window.arrays.items():
                copy.append(slot, arrays)
        self.at_hand[:] = [copy]

    def check_unchanged(self) -> None:
        """Raise `StoreError` where another process has written a feature since these were opened."""
        for slot, name in self.features.items():
            feature = self.chunks.features[slot]
            if _digest(feature.status, feature.read_input_hashes()) != self.digests[slot]:
                raise StoreError(f"{name} was written while it was being read. Give the same command again.")

    def _windows(self, source: RowSource, places: np.ndarray) -> Iterator[_Window]:
        """A thread reads one window ahead, which is waiting for the most part; what is arithmetic is done by the loop.

        A thread that works while the loop does costs it several times as much: of a product that is shared by all
        cores every part waits for the one that was not let run (docs/experiments.md).
        """
        in_order = bool((places[1:] >= places[:-1]).all())
        at_most = self.window_chunks // (IN_ORDER_SHARE if in_order else 1)
        spans = _spans(places // source.chunk_rows, source.chunk_rows, max(1, at_most))
        with ThreadPoolExecutor(1, "read a window ahead") as reader:
            ahead = [reader.submit(self._read, source, places, span) for span in spans[:1]]
            for number in range(1, len(spans) + 1):
                window = [ahead.pop().result()]
                ahead = [reader.submit(self._read, source, places, span) for span in spans[number : number + 1]]
                yield window.pop()  # not kept here while it is used

    def _read(self, source: RowSource, places: np.ndarray, span: tuple[int, int]) -> _Window:
        """The rows at these places from start to stop, read chunk by chunk."""
        places = places[slice(*span)]
        by_chunk = np.argsort(places // source.chunk_rows, kind="stable")
        numbers, firsts = np.unique(places[by_chunk] // source.chunk_rows, return_index=True)
        wanted = zip(numbers.tolist(), np.split(by_chunk, firsts[1:]), strict=True)
        found = {slot: source.empty(slot, len(places)) for slot in self.slots}

        def read(job: tuple[str, tuple[int, np.ndarray]]) -> None:
            slot, (number, to) = job
            at = places[to] - number * source.chunk_rows
            for kind, values in source.read(slot, number).items():
                for start in range(0, len(at), ROWS_AT_ONCE):
                    some = slice(start, start + ROWS_AT_ONCE)
                    found[slot][kind][to[some]] = values[at[some]]

        jobs = product(self.slots, wanted)
        if source.parallel_reads == 1:
            for job in jobs:
                read(job)
        else:
            with ThreadPoolExecutor(source.parallel_reads, "read chunks") as readers:
                list(readers.map(read, jobs))
        return _Window(*span, found)

    def _batch(self, slot: str, pieces: Sequence[Arrays], send: Sender) -> Inputs:
        arrays = {
            kind: torch.from_numpy(np.concatenate([piece[kind] for piece in pieces]) if len(pieces) > 1 else values)
            for kind, values in pieces[0].items()
        }
        if "frames" in arrays:
            n_frames = arrays.pop("n_frames").long()
            longest = int(n_frames.max()) if len(n_frames) else 0
            arrays |= {"frames": arrays["frames"][:, :longest], "mask": first_frames(n_frames, longest)}
        arrays = send(arrays).arrived()
        if self.standardize is not None:
            return Standardized(self.standardize(slot, arrays["vectors"]))
        if "frames" not in arrays:
            return arrays["vectors"]
        return Frames(arrays["vectors"], arrays["frames"], arrays["mask"])


def _chunks_of_a_window(n_chunks: int, at_most: int) -> int:
    """So that the windows are few, and hardly differ in size."""
    return math.ceil(n_chunks / max(1, math.ceil(n_chunks / at_most)))


def _spans(numbers: np.ndarray, chunk_rows: int, at_most: int) -> list[tuple[int, int]]:
    """Cut a sequence of rows into windows: start and stop of each. numbers: of each row's chunk, int (n,)."""
    per_window = _chunks_of_a_window(len(np.unique(numbers)), at_most)
    spans, start = [], 0
    while start < len(numbers):
        ahead = numbers[start : start + per_window * chunk_rows + 1]
        firsts = np.sort(np.unique(ahead, return_index=True)[1])  # where each chunk comes for the first time
        length = int(firsts[per_window]) if len(firsts) > per_window else len(ahead)
        spans.append((start, start + length))
        start += length
    return spans


def _digest(status: np.ndarray, input_hashes: np.ndarray) -> bytes:
    return blake2b(status.tobytes() + input_hashes.tobytes(), digest_size=16).digest()
