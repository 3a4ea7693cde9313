"""Object storage: obstore against s3fs, and streaming an epoch from S3 against streaming it from a disk.

    python -m benchmarks.object_storage                       # both, 20 ms of latency before each answer
    python -m benchmarks.object_storage --latency-ms 0 --no-stream

The server is `benchmarks.s3_folder`, a process of its own on loopback: the same folder is the disk and the bucket. All
run on one machine, so that the server takes cores from the training that it feeds; storage elsewhere does not.

*Clients* read and write objects of 1.5 MB (1,024 rows of 768 float16): one at a time, and many at a time. *Epochs* are
those of `benchmarks.streaming`, in turns: from the disk, from S3, from the disk, … Of S3 first with the local copies
that a streamed fit makes in its first epoch, which is not counted; then without, everything transferred every time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

from benchmarks import machine
from benchmarks.pairs import paired
from benchmarks.streaming import BATCH, HIDDEN, PRESENCE, make_store

OBJECT_BYTES = 1024 * 768 * 2 + 4
BUCKET = "s3://bench"


@contextmanager
def serving(folder: Path, latency_ms: float) -> Iterator[str]:
    """While the block runs the folder is `s3://bench`, by the environment; gives the URL of the server."""
    command = [sys.executable, "-m", "benchmarks.s3_folder", str(folder), "--latency-ms", str(latency_ms)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        yield url
    finally:
        process.terminate()
        process.wait()


# Clients


def compare_clients(folder: Path, url: str, n_objects: int, repetitions: int) -> None:
    import s3fs

    from stores.remote import RemotePath

    keys = [f"objects/{number}" for number in range(n_objects)]
    content = np.random.default_rng(0).bytes(OBJECT_BYTES)
    (folder / "objects").mkdir()
    for key in keys:
        (folder / key).write_bytes(content)
    objects = RemotePath(BUCKET, "").objects
    theirs = s3fs.S3FileSystem(endpoint_url=url, use_listings_cache=False, default_block_size=2 * OBJECT_BYTES)
    named = [f"bench/{key}" for key in keys]

    def one_by_one() -> None:
        for name in named:
            theirs.cat_file(name)

    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "read, one at a time": (lambda: [objects.get(key) for key in keys], one_by_one),
        "read, many at a time": (lambda: objects.many(objects.get, keys), lambda: theirs.cat(named, batch_size=32)),
        "write, many at a time": (
            lambda: objects.many(lambda key: objects.put(key, content), keys),
            lambda: theirs.pipe(dict.fromkeys(named, content), batch_size=32),
        ),
    }
    for what, (ours, fsspec) in works.items():
        ratio = paired(
            "obstore", lambda f=ours: _ms(f, n_objects), "s3fs", lambda f=fsspec: _ms(f, n_objects), repetitions, "ms"
        )
        print(f"{what}: {ratio}", flush=True)


def _ms(work: Callable[[], object], n: int) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started) / n


# Epochs


def compare_epochs(folder: Path, rows: int, repetitions: int) -> None:
    from fusion.config import FusionConfig, TrainingConfig
    from fusion.fitting import PARTS
    from fusion.streaming import StreamedSegments, stream_segments
    from fusion.targets import load_targets
    from fusion.train import train
    from stores import open_store
    from stores.object_store import ObjectTree
    from stores.store import Store

    make_store(folder / "features.zarr", rows, {"text": 768, "audio": 512, "midi": 512})
    local, remote = open_store(folder / "features.zarr"), open_store(f"{BUCKET}/features.zarr")
    features = {slot: f"{slot}/drawn" for slot in PRESENCE}
    targets = load_targets(local, [])
    parts = {part: local.split("default").rows(code) for part, code in PARTS.items()}
    fusion, training = FusionConfig(strategy="late", hidden_dim=HIDDEN), TrainingConfig(epochs=1, batch_size=BATCH)

    def opened(store: Store) -> StreamedSegments:
        data = stream_segments(store, features)
        data.keep_at_hand(np.concatenate([parts["val"], parts["test"]]))
        return data

    def epoch(data: StreamedSegments) -> float:
        return float(train(data, targets, parts["train"], parts["val"], fusion, training, 0).history[0]["seconds"])

    disk, s3 = opened(local), opened(remote)
    print(f"{rows:,} segments, epochs of {len(parts['train']):,}, from the disk against from S3,")
    print(
        f"  with local copies: {paired('disk', lambda: epoch(disk), 'S3', lambda: epoch(s3), repetitions)}", flush=True
    )
    assert isinstance(remote.tree, ObjectTree)
    remote.tree.keep_no_copies()
    print(f"  without: {paired('disk', lambda: epoch(disk), 'S3', lambda: epoch(s3), repetitions)}", flush=True)


@click.command()
@click.option("--latency-ms", type=click.FloatRange(0), default=20.0, show_default=True)
@click.option("--objects", "n_objects", type=click.IntRange(1), default=64, show_default=True)
@click.option("--rows", type=click.IntRange(500), default=100_000, show_default=True, help="Of the epochs.")
@click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Pairs.")
@click.option("--clients/--no-clients", default=True, show_default=True)
@click.option("--stream/--no-stream", default=True, show_default=True)
def main(latency_ms: float, n_objects: int, rows: int, repetitions: int, clients: bool, stream: bool) -> None:
    print(machine("obstore", "s3fs", "torch", "zarr") + f"; {latency_ms:g} ms before each answer", flush=True)
    with tempfile.TemporaryDirectory() as work, serving(Path(work), latency_ms) as url:
        if clients:
            compare_clients(Path(work), url, n_objects, repetitions)
        if stream:
            compare_epochs(Path(work), rows, repetitions)


if __name__ == "__main__":
    main()
