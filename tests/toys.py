"""Doubles, not downloads: an encoder of one matrix, a source in memory, a tracker that remembers."""

from __future__ import annotations

import time

import numpy as np
import torch

from featurize.encoders.base import Encoded, Encoder, stack_vectors
from featurize.segments import RawAudio, UnreadableInput
from fusion.tracking.base import Status, TrackedRun, Tracker
from stores.base import ArrayTree
from stores.store import Store
from tests.stores_contract import make_store


class ToyEncoder(Encoder):
    """Sum, mean and first sample of a blob. `delay_seconds` makes it worth killing."""

    name, modality = "toy", "audio"

    def __init__(self, delay_seconds: float = 0.0):
        super().__init__()
        self.width = 3
        self.settings = {"scale": 1.0}
        self.linear = torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.constant_(self.linear.weight, 0.5)
        self.delay_seconds = delay_seconds
        self.prepared: list[bytes] = []

    def prepare(self, raw):
        self.prepared.append(raw.samples)
        time.sleep(self.delay_seconds)
        samples = np.frombuffer(raw.samples, "<f4")
        if len(samples) == 0:
            return None
        if samples[0] < 0:
            raise UnreadableInput("negative audio")
        if samples[0] == 13:
            raise RuntimeError("unlucky")
        return np.array([samples.sum(), samples.mean(), samples[0]], np.float32)

    collate = staticmethod(stack_vectors)

    def forward(self, batch):
        return Encoded(self.linear(batch["vectors"]))


class StuckEncoder(ToyEncoder):
    """A toy encoder, also by its record, that never gets beyond its first `n_rows`: made to be killed."""

    record = property(lambda self: ToyEncoder().record)

    def __init__(self, n_rows: int):
        super().__init__()
        self.n_rows = n_rows

    def prepare(self, raw):
        while len(self.prepared) >= self.n_rows:
            time.sleep(0.1)
        return super().prepare(raw)


class ToySource:
    """`contents[row]`: samples, `None` for no audio, or an exception to raise."""

    def __init__(self, contents):
        self.contents = list(contents)

    def raw(self, row):
        content = self.contents[row]
        if isinstance(content, Exception):
            raise content
        if content is None:
            return None
        return RawAudio(samples=np.asarray(content, "<f4").tobytes(), sample_rate_hz=8000)


def toy_contents(n: int, seed: int = 0) -> list:
    """Random blobs with some repeats, some absent and some that fail.

    In steps of 1/256, so that `ToyEncoder`'s sums are exact: how a product rounds may depend on the size of its batch.
    """
    rng = np.random.default_rng(seed)
    pool = [(rng.integers(0, 256, 4) / 256).astype("<f4") for _ in range(max(2, n * 2 // 3))]
    contents: list = []
    for row in range(n):
        kind = row % 11
        if kind == 3:
            contents.append(None)
        elif kind == 5:
            contents.append([-1.0, row])
        elif kind == 7:
            contents.append([])
        else:
            contents.append(pool[rng.integers(len(pool))])
    return contents


def toy_feature(tree: ArrayTree, n: int, chunk_rows: int, encoder: ToyEncoder | None = None):
    """A store of n rows with an empty feature for the toy encoder."""
    store: Store = make_store(tree, n, chunk_rows)
    return store.create_feature("audio/toy", (encoder or ToyEncoder()).record.to_dict())


class Notebook(Tracker):
    """Keeps what it is told. `told[series]`: values by step; what is told twice is an error."""

    package = "a notebook"

    def __init__(self) -> None:
        self.runs: list[TrackedRun] = []
        self.told: dict[str, dict[int, dict[str, float]]] = {}
        self.values: dict[str, float] = {}
        self.files: dict[str, bytes] = {}
        self.ended: list[Status] = []

    def begin(self, run):
        self.runs.append(run)
        self.told, self.values, self.files = {}, {}, {}

    def log(self, series, points):
        curve = self.told.setdefault(series, {})
        for step, values in points:
            assert step not in curve
            curve[step] = dict(values)

    def results(self, values, files):
        self.values = dict(values)
        self.files = {path.name: path.read_bytes() for path in files}

    def end(self, status):
        self.ended.append(status)
