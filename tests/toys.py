"""Doubles, not downloads: an encoder of one matrix, a source in memory.

Processes that tests start import this, so it imports little.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from featurize.encoders.base import Encoded, Encoder, stack_vectors
from featurize.segments import RawAudio, UnreadableInput
from stores.base import ArrayTree
from stores.store import Store


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


class KillingEncoder(ToyEncoder):
    """Its process dies where a row with this sum comes along: once, where there is a file to remember that, or always.

    Its record is that of the toy encoder which it otherwise is.
    """

    record = property(lambda self: ToyEncoder().record)

    def __init__(self, row_sum: float, memory: Path | None = None):
        super().__init__()
        self.row_sum, self.memory = row_sum, memory

    def prepare(self, raw):
        dies = abs(float(np.frombuffer(raw.samples, "<f4").sum()) - self.row_sum) < 1e-6
        if dies and not (self.memory and self.memory.exists()):
            if self.memory:
                self.memory.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(raw)


class SigningEncoder(ToyEncoder):
    """Each process that prepares a row leaves a file, and goes on when there are `n` of them, or will not be."""

    record = property(lambda self: ToyEncoder().record)

    def __init__(self, folder: Path, n: int = 1):
        super().__init__()
        self.folder, self.n = folder, n

    def prepare(self, raw):
        (self.folder / str(os.getpid())).touch()
        for _ in range(600):
            if len(list(self.folder.iterdir())) >= self.n:
                break
            time.sleep(0.05)
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
    from tests.stores_contract import make_store  # with pytest and Hypothesis

    store: Store = make_store(tree, n, chunk_rows)
    return store.create_feature("audio/toy", (encoder or ToyEncoder()).record.to_dict())
