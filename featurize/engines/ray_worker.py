"""What a Ray actor does: it encodes the chunks it is given, and hands back what it would have written.

Conventions
-----------
* The loop is the usual one, `featurize.extract.extract_chunks`, over a feature of which the actor holds nothing but the
  chunks it is working on (`FarChunks`). It never sees the store; raw inputs it reads itself.
* The driver keeps one call of `messages` open at each actor, and answers every `Wanted` with `take`. The loop asks for
  a chunk when it begins to read ahead of the model, so that the model does not wait for the driver.
* Each chunk is encoded as if there were no other: its bytes do not depend on which actor has it, nor when.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from queue import Queue
from threading import Thread
from traceback import format_exception
from typing import Any

import numpy as np

from featurize.chunk_work import Extraction, FeatureChunks, RawSource
from featurize.encode import set_up
from featurize.encoders.base import Encoder
from featurize.errors import ConfigError
from featurize.extract import SAVE_EVERY_SECONDS, extract_chunks
from featurize.limits import Limits
from stores.base import STRING
from stores.errors import TriadError
from stores.feature import HASH_BYTES
from stores.record import Record

TOLD_EVERY_SECONDS = 0.5
WAITING = 8  # messages: a driver with a slow disk must not fill the memory of its workers


@dataclass(frozen=True)
class Shape:
    """What an actor has to know of the feature."""

    name: str
    n_segments: int
    width: int
    chunk_rows: int
    max_frames: int


@dataclass(frozen=True)
class Job:
    """The same for all actors of a run; travels once to each machine."""

    encoder: Encoder  # on the CPU
    source: RawSource
    record: Record  # of the encoder, where the driver runs
    shape: Shape
    device: str
    workers: int
    batch_size: int | None
    retry_failed: bool
    limits: Limits
    save_every_seconds: float = SAVE_EVERY_SECONDS


Stored = dict[str, Any]  # arrays of a chunk by the name of the method that gives them


@dataclass(frozen=True)
class Wanted:
    """The next chunk, please; or word that there is none."""


@dataclass(frozen=True)
class Reached:
    """How many rows of a chunk are done."""

    chunk: range
    n_done: int


@dataclass(frozen=True)
class Written:
    """arguments: of `Feature.write_chunk`."""

    chunk: range
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Finished:
    """A chunk whose rows have all been sent, and what was done."""

    chunk: range
    part: Extraction


@dataclass(frozen=True)
class Ended:
    """error: what a user can mend; trace: of a bug."""

    error: TriadError | None = None
    trace: str = ""


Message = Wanted | Reached | Written | Finished | Ended


class FarChunks(FeatureChunks):
    """`featurize.chunk_work.FeatureChunks` of which only some are here, and whose writes are sent away."""

    def __init__(self, shape: Shape, outbox: Queue[Message]):
        self.name, self.n_segments, self.width = shape.name, shape.n_segments, shape.width
        self.chunk_rows, self.max_frames = shape.chunk_rows, shape.max_frames
        self._outbox = outbox
        self._here: dict[int, tuple[range, Stored]] = {}

    @property
    def has_frames(self) -> bool:
        return self.max_frames > 0

    def take(self, chunk: range, stored: Stored | None) -> None:
        """stored: what the store has of this chunk; `None` where all of it is pending."""
        n = len(chunk)
        new: Stored = {
            "status": np.zeros(n, np.uint8),
            "input_hashes": np.zeros((n, HASH_BYTES), np.uint8),
            "failures": np.zeros(n, STRING),
            "vectors": np.zeros((n, self.width), np.float32),
            "frames": np.zeros((n, self.max_frames, self.width), np.float32),
            "n_frames": np.zeros(n, np.uint16),
        }
        for name, values in (stored or {}).items():
            new[name][:] = values  # what came through Ray may only be read
        self._here[chunk.start // self.chunk_rows] = (chunk, new)

    def drop(self, chunk: range) -> None:
        """Forget a chunk that is finished."""
        del self._here[chunk.start // self.chunk_rows]

    def read_status(self, rows: range | None = None) -> np.ndarray:
        return self._read("status", rows)

    def read_input_hashes(self, rows: range | None = None) -> np.ndarray:
        return self._read("input_hashes", rows)

    def read_failures(self, rows: range | None = None) -> np.ndarray:
        return self._read("failures", rows)

    def read_vectors(self, rows: range | None = None) -> np.ndarray:
        return self._read("vectors", rows)

    def read_frames(self, rows: range | None = None) -> np.ndarray:
        return self._read("frames", rows)

    def read_n_frames(self, rows: range | None = None) -> np.ndarray:
        return self._read("n_frames", rows)

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
        at = rows - chunk.start
        _, here = self._here[chunk.start // self.chunk_rows]
        here["vectors"][at], here["status"][at], here["input_hashes"][at] = vectors, status, input_hash
        here["failures"][at] = np.array(list(failure), STRING)
        if frames is not None and n_frames is not None:
            here["frames"][at], here["n_frames"][at] = frames, n_frames
        self._outbox.put(Written(chunk, (rows, vectors, status, input_hash, list(failure), frames, n_frames)))

    def _read(self, name: str, rows: range | None) -> np.ndarray:
        assert rows is not None, "nobody here knows the whole feature"
        chunk, here = self._here[rows.start // self.chunk_rows]
        found: np.ndarray = here[name][rows.start - chunk.start : rows.stop - chunk.start].copy()
        return found


class Worker:
    """The actor. Its methods are called by the driver, each in a thread of its own."""

    def __init__(self, job: Job):
        self._outbox: Queue[Message] = Queue(WAITING)
        self._given: Queue[tuple[range, Stored | None] | None] = Queue()
        Thread(target=self._work, args=(job,), name="work", daemon=True).start()

    def messages(self) -> list[Message]:
        """What has happened since; waits until something has."""
        found = [self._outbox.get()]
        while not self._outbox.empty():
            found.append(self._outbox.get())
        return found

    def take(self, chunk: range | None, stored: Stored | None = None) -> None:
        """Add a chunk, with what the store holds of it, to those to be done; `None`: no more come."""
        self._given.put(None if chunk is None else (chunk, stored))

    def _work(self, job: Job) -> None:
        try:
            encoder = set_up(job.encoder, job.device, job.encoder.precision)
            _check_libraries(encoder, job.record)
            feature = FarChunks(job.shape, self._outbox)
            told = time.monotonic()

            def reached(chunk: range, n_done: int) -> None:
                nonlocal told
                if time.monotonic() - told >= TOLD_EVERY_SECONDS:
                    told = time.monotonic()
                    self._outbox.put(Reached(chunk, n_done))

            def finished(chunk: range, part: Extraction) -> None:
                feature.drop(chunk)
                self._outbox.put(Finished(chunk, part))

            extract_chunks(
                feature,
                encoder,
                job.source,
                self._chunks(feature),
                each_alone=True,
                workers=job.workers,
                batch_size=job.batch_size,
                retry_failed=job.retry_failed,
                save_every_seconds=job.save_every_seconds,
                limits=job.limits,
                progress=reached,
                finished=finished,
            )
            self._outbox.put(Ended())
        except TriadError as error:
            self._outbox.put(Ended(error=error))
        except BaseException as error:
            self._outbox.put(Ended(trace="".join(format_exception(error))))

    def _chunks(self, feature: FarChunks) -> Iterator[range]:
        while True:
            self._outbox.put(Wanted())
            given = self._given.get()
            if given is None:
                return
            feature.take(*given)
            yield given[0]


def _check_libraries(encoder: Encoder, record: Record) -> None:
    """Raise `ConfigError` where this machine has other versions of what the numbers depend on than the driver's."""
    here = encoder.record.libraries
    wanted = record["libraries"]
    other = [f"{name} {here.get(name)}, not {wanted[name]}" for name in wanted if here.get(name) != wanted[name]]
    if other:
        raise ConfigError(
            f"The worker on {socket.gethostname()} has {', '.join(other)}; vectors of different versions never mix. "
            "Install there what the driver has."
        )
