"""`--engine ray`: the chunks of a feature, encoded by actors on a cluster, written by this process.

Conventions
-----------
* This process, the driver, alone opens the store: a chunk keeps one owner, the store need not be on a shared disk, and
  a claim, float32 in place of float16 and every guarantee are as without Ray. Vectors are small (1,024 x 768 in float32
  are 3 MiB), so that sending them costs little beside computing them. Raw media are read where they are encoded: their
  paths must lead there.
* An actor loads the model once and works through chunks without a pause between two (`featurize.engines.ray_worker`).
  What it has finished arrives here every 10 seconds and is written at once.
* A chunk whose actor dies is given to another, which does what is not written yet; from then on in an actor of its own,
  so that a row that kills takes no other chunk down with it. After `MOST_LOSSES` the chunk is given up for this run:
  its rows stay pending, and an error names them when everything else is done.
* Nothing is reported to anybody: no usage statistics, no dashboard; a cluster that is started here listens on the
  loopback interface only, and ends with this process.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featurize.chunk_work import Extraction, RawSource
from featurize.encoders.base import Encoder
from featurize.engines.ray_worker import Ended, Finished, Job, Message, Reached, Shape, Stored, Wanted, Worker, Written
from featurize.errors import ConfigError
from featurize.extract import Progress
from featurize.limits import Limits
from stores.errors import TriadError
from stores.feature import Feature, Status

MOST_LOSSES = 3
START_SECONDS = 600.0  # a cluster that grows starts machines first
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_DEDUP_LOGS": "0"}
# Of a cluster that is started here. The first is read when Ray is imported, and so by default on Windows and macOS: Ray
# takes 127.0.0.1 for its own address, and listens nowhere else; an address of 127.0.0.1 that is asked for is replaced.
# Actors are as urgent as this process would be, not 15 less.
HERE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}


class WorkersLost(TriadError):
    """Actors died too often, or none could be started."""


@dataclass(frozen=True)
class RayEngine:
    """address: of a cluster, `auto` for the one on this machine; `None` starts one here.

    actors: how many are asked for at first, and at most; `None` for as many as there is room for. cpus, gpus: of each.
    """

    address: str | None = None
    actors: tuple[int, int] | None = None
    cpus: float = 1.0
    gpus: float = 0.0
    device: str = "auto"

    def extract(
        self,
        feature: Feature,
        encoder: Encoder,
        source: RawSource,
        *,
        workers: int,
        batch_size: int | None,
        retry_failed: bool,
        limits: Limits,
        progress: Progress | None,
    ) -> Extraction:
        """As `featurize.extract.extract`; workers: processes that prepare, beside each actor.

        Raises `WorkersLost` where chunks had to be given up, after all others are done.
        """
        started = time.monotonic()
        shape = Shape(feature.name, feature.n_segments, feature.width, feature.chunk_rows, feature.max_frames)
        record = encoder.record.to_dict()
        job = Job(encoder, source, record, shape, self.device, workers, batch_size, retry_failed, limits)
        with cluster(self.address) as ray:
            run = _Run(ray, self, feature, job, progress)
            try:
                run.until_done()
            finally:
                run.dismiss_all()
        run.done.count(feature.status)
        run.done.seconds = time.monotonic() - started
        if run.given_up:
            raise WorkersLost(_told(run.given_up, feature))
        return run.done


@contextmanager
def _imports_as_here() -> Iterator[None]:
    """Processes that are started meanwhile find the modules that this one finds, such as a user's own encoder."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path or str(Path.cwd()) for path in sys.path))
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected: to what this process is connected to already, else to `address`, else to a new local one."""
    address = address or os.environ.get("RAY_ADDRESS")  # which a submitted job finds set
    for name, value in (QUIET if address else QUIET | HERE).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--engine ray needs Ray ({error}): pip install 'triad-fusion[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:  # not one that happens to run here: it may be somebody else's
            with _imports_as_here():
                ray.init("local", include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "here" if address is None else f"at {address}"
        raise ConfigError(f"There is no Ray cluster {where} ({_line(error)}).") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass
class _Hand:
    """An actor, as the driver sees it. working: chunks it was given and has not finished, with rows done in each."""

    actor: Any
    working: dict[range, int] = field(default_factory=dict)
    heard: bool = False


class _Run:
    def __init__(self, ray: Any, engine: RayEngine, feature: Feature, job: Job, progress: Progress | None):
        self.done = Extraction(rows=feature.n_segments)
        self.given_up: dict[range, str] = {}
        self._ray = ray
        self._engine = engine
        self._feature = feature
        self._progress = progress
        self._todo = deque(feature.chunks())
        self._losses: Counter[range] = Counter()
        self._n_stillborn = 0
        self._n_finished = 0  # rows
        self._hands: dict[Any, _Hand] = {}  # by the call of `messages` that is open
        self._job = ray.put(job)
        # a thread waits in `messages`, another takes
        options = {"num_cpus": engine.cpus, "num_gpus": engine.gpus, "max_concurrency": 2, "max_restarts": 0}
        self._actor = ray.remote(**options)(Worker)

    def until_done(self) -> None:
        waiting_since = time.monotonic()
        while self._todo or any(hand.working for hand in self._hands.values()):
            self._hire()
            ready, _ = self._ray.wait(list(self._hands), timeout=1.0)
            for call in ready:
                self._listen(call, self._hands.pop(call))
            if ready or any(hand.heard for hand in self._hands.values()):
                waiting_since = time.monotonic()
            elif time.monotonic() - waiting_since > START_SECONDS:
                raise WorkersLost(
                    f"No worker with {self._needs()} could be started in {START_SECONDS / 60:.0f} minutes."
                )

    def dismiss_all(self) -> None:
        for hand in self._hands.values():
            self._ray.kill(hand.actor)
        self._hands = {}

    def _hire(self) -> None:
        """At first as many as are wanted at least; then one more whenever all are busy and chunks wait."""
        least, most = self._engine.actors or (self._room(),) * 2
        coming = sum(not hand.heard for hand in self._hands.values())
        while coming < len(self._todo) and len(self._hands) < (most if coming == 0 else least):
            actor = self._actor.remote(self._job)
            self._hands[actor.messages.remote()] = _Hand(actor)
            coming += 1

    def _room(self) -> int:
        has = self._ray.cluster_resources()
        rooms = [int(has.get(kind, 0) / n) for kind, n in self._wants().items()]
        if not min(rooms) and self._engine.address is None:
            raise ConfigError(
                f"This machine has {has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs for Ray; a worker with "
                f"{self._needs()} cannot be started. Ask for less, or name a cluster with --address."
            )
        return max(1, min(rooms))

    def _wants(self) -> dict[str, float]:
        return {kind: n for kind, n in (("CPU", self._engine.cpus), ("GPU", self._engine.gpus)) if n}

    def _needs(self) -> str:
        return " and ".join(f"{n:g} {kind}" for kind, n in self._wants().items())

    def _listen(self, call: Any, hand: _Hand) -> None:
        try:
            messages: list[Message] = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._lost(hand, error)
            return
        self._hands[hand.actor.messages.remote()] = hand
        hand.heard = True
        for message in messages:
            self._act(hand, message)
        if self._progress is not None:
            in_work = sum(sum(hand.working.values()) for hand in self._hands.values())
            self._progress(self._n_finished + in_work, self._feature.n_segments)

    def _act(self, hand: _Hand, message: Message) -> None:
        match message:
            case Wanted():
                chunk = self._next_for(hand)
                if chunk is None:
                    hand.actor.take.remote(None)
                else:
                    hand.working[chunk] = 0
                    hand.actor.take.remote(chunk, _stored(self._feature, chunk))
            case Reached(chunk, n_done):
                hand.working[chunk] = n_done
            case Written(chunk, arguments):
                self._feature.write_chunk(chunk, *arguments)
            case Finished(chunk, part):
                del hand.working[chunk]
                self._n_finished += len(chunk)
                self.done.add(part)
            case Ended(error, trace):
                if error is not None:
                    raise error
                if trace:
                    raise RuntimeError(f"a worker failed:\n{trace}")
                self._hands = {call: other for call, other in self._hands.items() if other is not hand}
                self._ray.kill(hand.actor)

    def _next_for(self, hand: _Hand) -> range | None:
        """A chunk that has cost an actor its life goes to one that has no other."""
        if any(self._losses[chunk] for chunk in hand.working):
            return None
        for chunk in self._todo:
            if not hand.working or not self._losses[chunk]:
                self._todo.remove(chunk)
                return chunk
        return None

    def _lost(self, hand: _Hand, error: Exception) -> None:
        with suppress(Exception):  # it may be alive on a machine that cannot be reached
            self._ray.kill(hand.actor)
        reason = _line(error)
        if not hand.heard:
            self._n_stillborn += 1
            if self._n_stillborn >= MOST_LOSSES:
                raise WorkersLost(f"{self._n_stillborn} workers died before they began: {reason}")
        for chunk in reversed(hand.working):
            self._losses[chunk] += 1
            if self._losses[chunk] < MOST_LOSSES:
                self._todo.appendleft(chunk)
            else:
                self.given_up[chunk] = reason


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _stored(feature: Feature, chunk: range) -> Stored | None:
    """What an actor must know of a chunk; `None` where nothing was written there yet."""
    status, hashes = feature.read_status(chunk), feature.read_input_hashes(chunk)
    if not ((status != Status.PENDING).any() or hashes.any()):
        return None
    has: Stored = {"status": status, "input_hashes": hashes, "failures": feature.read_failures(chunk).tolist()}
    has["vectors"] = feature.read_vectors(chunk).astype(np.float32)
    if feature.has_frames:
        has |= {"frames": feature.read_frames(chunk).astype(np.float32), "n_frames": feature.read_n_frames(chunk)}
    return has


def _told(given_up: dict[range, str], feature: Feature) -> str:
    chunk, reason = next(iter(given_up.items()))
    n_pending = sum(int((feature.read_status(chunk) == Status.PENDING).sum()) for chunk in given_up)
    more = f" and {len(given_up) - 1} other chunks" if len(given_up) > 1 else ""
    return (
        f"{feature.name}: {n_pending:,} rows are still pending, of rows {chunk.start} to {chunk.stop - 1}{more}: "
        f"{MOST_LOSSES} workers died with them ({reason}). All else is stored; the same command tries them again."
    )
