"""MP3 files to vectors: the whole of `featurize` beside the bare forward passes on batches that are prepared already.

    python -m benchmarks.audio                     # wav2vec2 and clap (HTSAT), 24 clips of 10 s, 5 pairs each
    python -m benchmarks.audio clap --precision fp32 --n 16

Ours decodes, resamples, batches, encodes and writes to a store on disk. Bare: the model over the same batches, collated
beforehand, in the same precision with the same threads; nothing else. Weights are random, of the default checkpoints'
true sizes. Clips are stereo MP3 at 44.1 kHz, of noise and tones. Before anything is timed both ran once, which also
starts the process that imports torch for those that decode: some 2 s, once in the life of a `cli featurize`.
"""

from __future__ import annotations

import csv
import os
import tempfile
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import soundfile
import torch

from benchmarks import machine
from benchmarks.encoders import MAKERS
from benchmarks.pairs import paired
from featurize.config import DataConfig
from featurize.encode import batches, casts_kept, launch
from featurize.encoders.base import Batch, Encoder
from featurize.ingestion import check, write_store
from featurize.pipeline import featurize
from featurize.sources import open_source
from featurize.sources.base import Source
from stores.store import Store

ENCODERS = ("wav2vec2", "clap")
RATE_HZ = 44_100


def make_clips(folder: Path, n: int, seconds: float) -> Source:
    """A folder of MP3 files, no two alike, and its table."""
    rng = np.random.default_rng(0)
    times = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    for number in range(n):
        tones = sum(np.sin(2 * np.pi * hz * times) for hz in rng.uniform(80, 4000, 5)) / 10
        stereo = tones[:, None] + 0.05 * rng.normal(size=(len(times), 2))
        soundfile.write(folder / f"{number}.mp3", stereo.astype(np.float32), RATE_HZ)
    with (folder / "segments.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["segment_id", "group", "audio_path"])
        rows.writerows([f"s{number}", f"song{number}", f"{number}.mp3"] for number in range(n))
    return open_source(folder, DataConfig())


def encode_whole(store: Store, source: Source, encoder: Encoder, precision: str, workers: int) -> float:
    started = time.perf_counter()
    done = featurize(store, source, encoder, replace=True, device="cpu", precision=precision, workers=workers)
    seconds = time.perf_counter() - started
    assert done.extraction.present == store.n_segments
    return seconds


def encode_bare(encoder: Encoder, collated: list[Batch]) -> float:
    started = time.perf_counter()
    with casts_kept(encoder):
        for batch in collated:
            launch(encoder, batch)
    return time.perf_counter() - started


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(ENCODERS))
@click.option("--n", type=int, default=24, show_default=True, help="Clips.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Length of a clip.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option("--workers", type=int, default=os.cpu_count(), help="Processes that decode. [default: all cores]")
@click.option("--repetitions", type=int, default=5, show_default=True, help="Pairs.")
def main(names: tuple[str, ...], n: int, seconds: float, precision: str, workers: int, repetitions: int) -> None:
    packages = ", ".join(f"{name} {version(name)}" for name in ("transformers", "soundfile", "soxr"))
    print(f"{machine()}, {packages}")
    for name in names or ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            (Path(folder) / "weights").mkdir()
            encoder = MAKERS[name](Path(folder) / "weights").eval()
            source = make_clips(Path(folder), n, seconds)
            store, _ = write_store(check(Path(folder), DataConfig()), Path(folder) / "features.zarr")
            started = time.process_time()
            items = [(row, encoder.prepare(source.raw(row, "audio"))) for row in range(n)]
            prepare_ms = 1000 * (time.process_time() - started) / n
            encoder.precision = precision
            collated = [encoder.collate([item for _, item in batch]) for batch in batches(items, encoder, n)]
            ratio = paired(
                "featurize",
                partial(encode_whole, store, source, encoder, precision, workers),
                "bare forward passes",
                partial(encode_bare, encoder, collated),
                repetitions,
            )
        print(f"{name}, {precision}: {n} clips of {seconds:g} s, {workers} workers: {ratio}")
        print(f"  decoding and resampling take {prepare_ms:.1f} ms of processor time a clip")


if __name__ == "__main__":
    main()
