"""`featurize` on a GPU: rows per second beside the bare forward passes, and how much of the time the GPU computes.

    python -m benchmarks.gpu                     # DeBERTa-base, wav2vec2-base and HTSAT in bfloat16, 5 pairs each
    python -m benchmarks.gpu wav2vec2 --n 512 --repetitions 2

Ours is the whole of `featurize`, from a table of lyrics, or from stereo MP3 of 10 s, to a store on disk. Bare: the
model over batches that lie on the GPU already. Weights are random, of the default checkpoints' true sizes. Lyrics are
copies of 2,048 with a number behind each, clips of 16 with another tag, so that all are read, prepared and encoded.

Told beside the ratio: how many rows a second the same worker processes prepare where nobody takes anything else from
them; and, from one more run under torch's profiler, the share of its time in which a kernel or a copy ran on the GPU.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import machine
from benchmarks.audio import make_clips
from benchmarks.encoders import MAKERS
from benchmarks.pairs import paired
from benchmarks.text import make_lyrics, make_store
from featurize.config import DataConfig
from featurize.encode import Sender, batches, casts_kept, device_of, launch, set_up
from featurize.encoders.base import Batch, Encoder
from featurize.ingestion import check, write_store
from featurize.pipeline import featurize
from featurize.sources import open_source
from featurize.sources.base import Source
from featurize.workers import Preparer
from stores.store import Store

ENCODERS = ("deberta", "wav2vec2", "clap")
LYRICS, CLIPS = 32_768, 4_096
DIFFERENT_LYRICS, DIFFERENT_CLIPS = 2_048, 16
CLIP_SECONDS = 10.0
ON_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}  # in a trace of torch's profiler
TAG_BYTES = 128  # of ID3v1, at the end of a file


def tagged(folder: Path, n: int) -> Source:
    """As `make_clips`, but only the first 16 of the files were encoded: the others are these, each with another tag."""
    make_clips(folder, min(n, DIFFERENT_CLIPS), CLIP_SECONDS)
    for number in range(DIFFERENT_CLIPS, n):
        clip = shutil.copy(folder / f"{number % DIFFERENT_CLIPS}.mp3", folder / f"{number}.mp3")
        with Path(clip).open("ab") as file:
            file.write(f"TAG{number:<{TAG_BYTES - 3}}".encode())
    with (folder / "segments.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["segment_id", "group", "audio_path"])
        rows.writerows([f"s{number}", f"song{number}", f"{number}.mp3"] for number in range(n))
    return open_source(folder, DataConfig())


def make_rows(name: str, folder: Path, n: int) -> tuple[Store, Source]:
    if name == "deberta":
        different = make_lyrics(min(n, DIFFERENT_LYRICS))
        lyrics = [f"{different[row % len(different)]}\n{row}" for row in range(n)]
        return make_store(folder, lyrics), open_source(folder, DataConfig())
    source = tagged(folder, n)
    store, _ = write_store(check(folder, DataConfig()), folder / "features.zarr")
    return store, source


def encode_whole(store: Store, source: Source, encoder: Encoder, **settings: Any) -> float:
    """Rows per second. settings: of `featurize`."""
    started = time.perf_counter()
    done = featurize(store, source, encoder, replace=True, **settings)
    seconds = time.perf_counter() - started
    assert done.extraction.encoded == store.n_segments
    return store.n_segments / seconds


def encode_bare(encoder: Encoder, sent: list[Batch], n: int) -> float:
    """Rows per second. Ends when the last vectors are in the CPU's memory."""
    started = time.perf_counter()
    with casts_kept(encoder):
        for last in [launch(encoder, batch) for batch in sent]:
            last.rows()
    return n / (time.perf_counter() - started)


def busy_share(run: Any) -> float:
    """The share of its time in which something ran on the GPU."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            started = time.perf_counter()
            run()
            seconds = time.perf_counter() - started
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    return covered((event["ts"], event["ts"] + event["dur"]) for event in events if event.get("cat") in ON_GPU) / (
        1e6 * seconds
    )


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How long at least one of them lasts."""
    total, until = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return total


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(ENCODERS))
@click.option("--n", type=int, help=f"Rows.  [default: {LYRICS:,} lyrics, {CLIPS:,} clips]")
@click.option("--device", type=click.Choice(["cuda", "mps", "cpu"]), default="cuda", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="bf16", show_default=True)
@click.option("--workers", type=int, default=os.cpu_count(), help="Processes that prepare.  [default: all cores]")
@click.option("--batch-budget", type=int, help="As of `cli featurize`.  [default: the encoder's]")
@click.option("--repetitions", type=int, default=5, show_default=True, help="Pairs.")
def main(
    names: tuple[str, ...],
    n: int | None,
    device: str,
    precision: str,
    workers: int,
    batch_budget: int | None,
    repetitions: int,
) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("torch finds no GPU here; try it out with --device cpu.")
    card = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    print(f"{machine('torch', 'transformers', 'soundfile')}{card}")
    for name in names or ENCODERS:
        n_rows = n or (LYRICS if name == "deberta" else CLIPS)
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            (Path(folder) / "weights").mkdir()
            encoder = set_up(MAKERS[name](Path(folder) / "weights"), device, precision)
            encoder.batch_budget = batch_budget or encoder.batch_budget
            store, source = make_rows(name, Path(folder), n_rows)
            preparer = Preparer(encoder.without_weights(), workers if encoder.heavy_preparation else 0)
            jobs = ((row, source.raw(row, encoder.modality)) for row in range(n_rows))
            with preparer:
                items = [next(prepared := preparer.run(jobs))]  # the first one waits for the processes to start
                started = time.perf_counter()
                items += prepared
                ahead = (n_rows - 1) / (time.perf_counter() - started)
            send = Sender(device_of(encoder))
            sent = [
                send(encoder.collate([item for _, item in batch]), encoder.read_as_numbers).arrived()
                for batch in batches(items, encoder, n_rows)
            ]
            del items
            run = partial(
                encode_whole,
                store,
                source,
                encoder,
                device=device,
                precision=precision,
                workers=workers,
                batch_budget=encoder.batch_budget,
            )
            bare = partial(encode_bare, encoder, sent, n_rows)
            ratio = paired("featurize", run, "bare forward passes", bare, repetitions, "rows/s")
            print(f"{name}, {precision}: {n_rows:,} rows in {len(sent)} batches, {workers} workers: {ratio}")
            print(f"  preparation alone {ahead:.0f} rows/s", end="")
            print(f"; the GPU computes {busy_share(run):.0%} of the time" if device == "cuda" else "")


if __name__ == "__main__":
    main()
