"""What becomes of the rows of one chunk, and what the whole feature knows of equal inputs.

Three threads work on a chunk, each on its own part of it (`featurize.extract`):

* the one ahead finds what each row is (`jobs`, `settle_empty`), and leaves it in `_found`;
* the model's hands over what was computed;
* the one behind alone settles, copies and writes (`settle_batch`, `write`, `finish`).

`Memory` is shared, under its lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol

import numpy as np

from featurize.encode import Launched, Row
from featurize.encoders.base import Item
from featurize.segments import DIGEST_BYTES, Raw, UnreadableInput
from featurize.workers import Failure
from stores.feature import Status

NO_HASH = bytes(DIGEST_BYTES)


class RawSource(Protocol):
    """Raw inputs by row of the store (`featurize.project.StoreRows`)."""

    def raw(self, row: int) -> Raw | None:
        """The raw input of a row; `None` where it has none. Raises `UnreadableInput`."""


class FeatureChunks(Protocol):
    """The chunks of a feature, as `stores.feature.Feature` has them."""

    name: str
    n_segments: int
    width: int
    chunk_rows: int
    max_frames: int

    @property
    def has_frames(self) -> bool:
        """Whether it has frames beside vectors."""

    def read_status(self, rows: range | None = None) -> np.ndarray:
        """uint8 (n,) of `Status`."""

    def read_input_hashes(self, rows: range | None = None) -> np.ndarray:
        """uint8 (n, 16), zeros where there is none."""

    def read_failures(self, rows: range | None = None) -> np.ndarray:
        """Text (n,), empty where a row did not fail."""

    def read_vectors(self, rows: range | None = None) -> np.ndarray:
        """float (n, D)."""

    def read_frames(self, rows: range | None = None) -> np.ndarray:
        """float (n, T, D)."""

    def read_n_frames(self, rows: range | None = None) -> np.ndarray:
        """uint16 (n,)."""

    def write_chunk(
        self,
        chunk: range,
        rows: np.ndarray,
        vectors: np.ndarray,
        status: np.ndarray,
        input_hash: np.ndarray,
        failure: Sequence[str],
        frames: np.ndarray | None = None,
        n_frames: np.ndarray | None = None,
    ) -> None:
        """Some rows (n,) of a chunk: vectors (n, D), frames (n, T, D), and what became of them. Statuses come last."""


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

    def add(self, part: Extraction) -> None:
        """What was done in a chunk."""
        self.unchanged += part.unchanged
        self.encoded += part.encoded
        self.copied += part.copied
        self.new_failures += part.new_failures

    def count(self, status: np.ndarray) -> None:
        """How rows stand in the end; uint8 (n,)."""
        self.present += int((status == Status.PRESENT).sum())
        self.absent += int((status == Status.ABSENT).sum())
        self.failed += int((status == Status.FAILED).sum())


@dataclass(frozen=True)
class Outcome:
    """What a row is found to be. encoded: where it is present; reason: where it failed."""

    status: Status
    encoded: Row | None = None
    reason: str = ""


ABSENT = Outcome(Status.ABSENT)


class Memory:
    """Which row holds what became of which input, over the whole feature or one chunk; and which are under way.

    Equal inputs share one outcome, whatever it is, also one that failed: so it is the same whether the first of them
    is still under way, was just written, or was written before this process was killed.
    """

    def __init__(self, feature: FeatureChunks, retry_failed: bool, chunk: range | None = None):
        self.lock = RLock()  # while a chunk is written nobody looks anything up
        self._feature = feature
        self._under_way: dict[bytes, int] = {}
        self._cached: tuple[range, list[Outcome]] | None = None
        status, hashes = feature.read_status(chunk), feature.read_input_hashes(chunk)
        first = chunk.start if chunk else 0
        known = (status != Status.PENDING) & ~(retry_failed & (status == Status.FAILED)) & hashes.any(axis=1)
        self._row_of = {hashes[at].tobytes(): first + int(at) for at in np.flatnonzero(known)[::-1]}

    def find(self, digest: bytes, row: int) -> Outcome | int:
        """What became of this input; or the row with which it is under way. From now on that is `row`, if none was."""
        with self.lock:
            known = self._row_of.get(digest)
            return self._under_way.setdefault(digest, row) if known is None else self._read(known)

    def written(self, row: int, digest: bytes) -> Outcome | None:
        """What became of this input, as `row` of a chunk that is written; `None` where it was left pending."""
        with self.lock:
            at = range(row, row + 1)
            if (
                self._feature.read_status(at)[0] == Status.PENDING
                or self._feature.read_input_hashes(at)[0].tobytes() != digest
            ):
                return None
            return self._read(row)

    def wrote(self, chunk: range, old: np.ndarray, new: np.ndarray, settled: np.ndarray) -> None:
        """Hashes (n, 16) of a chunk before and after, and which of its rows have been settled."""
        for row, before in zip(chunk, old, strict=True):
            if self._row_of.get(before.tobytes()) == row:
                del self._row_of[before.tobytes()]
        for row, after, is_settled in zip(chunk, new, settled & new.any(axis=1), strict=True):
            if is_settled:
                self._row_of.setdefault(after.tobytes(), row)
        self._cached = None

    def arrived(self, digests: Iterable[bytes]) -> None:
        """These inputs are under way no more."""
        for digest in digests:
            del self._under_way[digest]

    def _read(self, row: int) -> Outcome:
        if self._cached is None or row not in self._cached[0]:
            start = row // self._feature.chunk_rows * self._feature.chunk_rows
            chunk = range(start, min(start + self._feature.chunk_rows, self._feature.n_segments))
            self._cached = (chunk, self._read_chunk(chunk))
        return self._cached[1][row - self._cached[0].start]

    def _read_chunk(self, chunk: range) -> list[Outcome]:
        vectors = self._feature.read_vectors(chunk)
        if self._feature.has_frames:
            frames, counts = self._feature.read_frames(chunk), self._feature.read_n_frames(chunk)
            rows = [Row(v, f, n) for v, f, n in zip(vectors, frames, counts.tolist(), strict=True)]
        else:
            rows = [Row(vector) for vector in vectors]
        facts = zip(
            self._feature.read_status(chunk).tolist(), rows, self._feature.read_failures(chunk).tolist(), strict=True
        )
        return [
            Outcome(Status(status), row if status == Status.PRESENT else None, reason) for status, row, reason in facts
        ]


class ChunkWork:
    """The rows of one chunk on their way: what each is found to be, and what is written in the end."""

    def __init__(self, feature: FeatureChunks, chunk: range, memory: Memory | None, retry_failed: bool):
        self.chunk = chunk
        self._feature = feature
        self._memory = memory = memory or Memory(feature, retry_failed, chunk)
        self._retry_failed = retry_failed
        with memory.lock:
            self._status = feature.read_status(chunk)
            self._hashes = feature.read_input_hashes(chunk)
            self._failures = feature.read_failures(chunk)
        self._digests: dict[int, bytes] = {}
        self._mine: list[bytes] = []  # inputs that are under way with a row of this chunk
        self._found: deque[tuple[int, Outcome | int]] = deque()  # an int: as that row, which has the same input
        self._n_passed = 0  # rows that need no model
        self._twins: dict[int, int] = {}
        self._results: dict[int, Outcome] = {}
        self._written: set[int] = set()
        self._copies: set[int] = set()
        self._n_encoded = 0
        n_frames, width = feature.max_frames, feature.width
        self._nothing = Row(np.zeros(width, np.float32), np.zeros((n_frames, width), np.float32) if n_frames else None)

    @property
    def n_done(self) -> int:
        """How many of its rows are settled, or need no model."""
        return self._n_passed + self._n_encoded

    # Ahead of the model

    def jobs(self, source: RawSource) -> Iterator[tuple[int, Raw]]:
        """Rows that must be prepared, one for each different input; all others are found on the way."""
        for row in self.chunk:
            try:
                raw = source.raw(row)
                digest = NO_HASH if raw is None else raw.digest()
            except UnreadableInput as error:
                self._digests[row] = NO_HASH
                self._find(row, Outcome(Status.FAILED, reason=str(error)))
                continue
            self._digests[row] = digest
            if raw is None:
                self._find(row, ABSENT)
            elif self._is_unchanged(row, digest):
                self._n_passed += 1
            elif (known := self._memory.find(digest, row)) != row:
                self._find(row, known)
            else:
                self._mine.append(digest)
                yield row, raw

    def settle_empty(self, prepared: Iterable[tuple[int, Any]]) -> list[tuple[int, Item]]:
        """Find the rows whose preparation found nothing, or failed; the others are returned, ready to be encoded."""
        ready = []
        for row, item in prepared:
            if item is None or isinstance(item, Failure):
                self._find(row, ABSENT if item is None else Outcome(Status.FAILED, reason=item.reason))
            else:
                ready.append((row, item))
        return ready

    def _find(self, row: int, outcome: Outcome | int) -> None:
        self._found.append((row, outcome))
        self._n_passed += 1

    def _is_unchanged(self, row: int, digest: bytes) -> bool:
        at = row - self.chunk.start
        if self._hashes[at].tobytes() != digest:
            return False
        return self._status[at] in (Status.PRESENT, Status.ABSENT) or (
            self._status[at] == Status.FAILED and not self._retry_failed
        )

    # Behind the model

    def settle_batch(self, rows: Sequence[int], launched: Iterable[Launched | Failure]) -> None:
        """What the encoder says of these rows, or why it could not."""
        encoded: list[Row | Failure] = []
        for part in launched:
            encoded += [part] if isinstance(part, Failure) else part.rows()
        for row, one in zip(rows, encoded, strict=True):
            if isinstance(one, Failure):
                outcome = Outcome(Status.FAILED, reason=one.reason)
            elif not np.isfinite(one.vector).all() or not (one.frames is None or np.isfinite(one.frames).all()):
                outcome = Outcome(Status.FAILED, reason="the encoder returned NaN or infinity")
            else:
                outcome = Outcome(Status.PRESENT, one)
            self._results[row] = outcome
        self._n_encoded += len(rows)

    def write(self) -> None:
        """Write every settled row that is not what the store says already."""
        self._gather()
        rows = [row for row in sorted(self._results.keys() - self._written) if not self._stands(row)]
        if not rows:
            return
        self._written.update(rows)
        before = self._hashes.copy()
        encoded = [self._results[row].encoded or self._nothing for row in rows]
        hashes = np.frombuffer(b"".join(self._digests[row] for row in rows), np.uint8).reshape(-1, DIGEST_BYTES)
        status = np.array([self._results[row].status for row in rows], np.uint8)
        with self._memory.lock:
            self._feature.write_chunk(
                self.chunk,
                np.array(rows),
                np.stack([row.vector for row in encoded]),
                status,
                hashes,
                [self._results[row].reason for row in rows],
                np.stack([one.frames for one in encoded if one.frames is not None])
                if self._feature.has_frames
                else None,
                np.array([row.n_frames for row in encoded]) if self._feature.has_frames else None,
            )
            at = np.array(rows) - self.chunk.start
            self._hashes[at] = hashes
            self._status[at] = status
            self._remember(before)

    def finish(self) -> Extraction:
        """Write what is left, and count."""
        self.write()
        with self._memory.lock:
            self._remember(self._hashes)  # also what was tried again, and stands as it did
            self._memory.arrived(self._mine)
        failed = (row for row in sorted(self._written) if self._results[row].status is Status.FAILED)
        return Extraction(
            encoded=self._n_encoded,
            copied=len(self._copies & self._written),
            unchanged=len(self.chunk) - len(self._written),
            new_failures=[(row, self._results[row].reason) for row in failed],
        )

    def _gather(self) -> None:
        """Settle what was found ahead, and copy to equal inputs what has become of theirs."""
        while self._found:
            row, found = self._found.popleft()
            if isinstance(found, int):
                self._twins[row] = found
            else:
                self._settle(row, found)
        for row, twin in list(self._twins.items()):
            known = self._results.get(twin) if twin in self.chunk else self._memory.written(twin, self._digests[row])
            if known is not None:
                del self._twins[row]
                self._settle(row, known)

    def _settle(self, row: int, outcome: Outcome) -> None:
        self._results[row] = outcome
        if outcome.status is Status.PRESENT:  # though no model ran
            self._copies.add(row)

    def _remember(self, before: np.ndarray) -> None:
        settled = (self._status == Status.PRESENT) | (self._status == Status.ABSENT)
        settled[[row - self.chunk.start for row in self._results]] = True
        self._memory.wrote(self.chunk, before, self._hashes, settled)

    def _stands(self, row: int) -> bool:
        """Whether an absent or failed row is written like this already."""
        at = row - self.chunk.start
        outcome = self._results[row]
        return (
            outcome.status is not Status.PRESENT
            and self._status[at] == outcome.status
            and self._hashes[at].tobytes() == self._digests[row]
            and self._failures[at] == outcome.reason
        )
