"""Where should audio wait for training: as blobs in parquet, as files, or encoded already? Size and time of each.

    python -m benchmarks.storage                          # makes demo songs in a temporary folder
    python -m benchmarks.storage my-songs/ --segments 120

The same segments in every form. Waveforms are read through the project's own readers, all the way to mono at 16 kHz,
and features to a tensor. "In order" reads every segment, as `featurize` does; "at random" single ones in shuffled
order. Both in ms per segment, the median of several rounds and their range, of processor time on one thread: it hardly
feels what else the machine does. Everything was written just before, so the page cache is warm, and an idle machine's
clock shows the same; a disk's own time (bytes / bandwidth) comes on top.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch

from benchmarks import machine
from featurize.audio import load_mono
from featurize.config import DataConfig
from featurize.demo import make_demo
from featurize.encoders.mel_stats import MelStatsEncoder
from featurize.segments import RawAudio
from featurize.sources import Source, open_source
from stores import open_store
from stores.base import STRING
from stores.feature import Feature, Status
from stores.store import Store
from stores.zarr_store import new_zarr_tree

RATE_HZ = 16_000
SMALL_GROUP_ROWS = 8
LARGE_GROUP_ROWS = 1024
MADE_WIDTH = 512
MADE_ROWS = 11_605
RECORD: dict[str, Any] = {
    "modality": "audio",
    "weights": {},
    "parameters": {},
    "precision": "fp32",
    "libraries": {},
    "trained_on": None,
}

ReadOne = Callable[[int], object]


@dataclass(frozen=True)
class Form:
    """One way to keep the segments. `open_reader` gives a fresh reader of single segments."""

    name: str
    n_segments: int
    n_bytes: int
    open_reader: Callable[[], ReadOne]
    read_all: Callable[[], object]


def one_by_one(name: str, n_segments: int, n_bytes: int, open_reader: Callable[[], ReadOne]) -> Form:
    def read_all() -> None:
        read = open_reader()
        for row in range(n_segments):
            read(row)

    return Form(name, n_segments, n_bytes, open_reader, read_all)


def measure(forms: Sequence[Form], rounds: int, n_random: int) -> dict[str, tuple[list[float], list[float]]]:
    """Processor ms per segment of each round, in order and at random. Forms take turns: a slow minute hits them all."""
    found: dict[str, tuple[list[float], list[float]]] = {form.name: ([], []) for form in forms}
    for number in range(rounds):
        for form in forms:
            rows = np.random.default_rng(number).permutation(form.n_segments)[:n_random].tolist()
            in_order, at_random = found[form.name]
            started = time.process_time()
            form.read_all()
            in_order.append(1000 * (time.process_time() - started) / form.n_segments)
            read = form.open_reader()
            started = time.process_time()
            for row in rows:
                read(row)
            at_random.append(1000 * (time.process_time() - started) / len(rows))
    return found


# The forms


def files_as_they_are(source: Source, rows: list[int]) -> Form:
    paths = {source.file(row, "audio") for row in rows}
    n_bytes = sum(path.stat().st_size for path in paths if path is not None)
    kinds = "/".join(sorted({path.suffix[1:].upper() for path in paths if path is not None}))
    name = f"files as they are ({kinds}, {len(paths):,} of them)"
    return one_by_one(name, len(rows), n_bytes, lambda: lambda row: load_mono(_raw(source, rows[row]), RATE_HZ))


def segment_files(folder: Path, clips: list[RawAudio], rate_hz: int | None, kind: str) -> Form:
    """One file a segment, 16 bit, mono."""
    folder.mkdir()
    paths = [folder / f"{number}.{kind}" for number in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        samples, own_rate_hz = _waveform(clip, rate_hz)
        soundfile.write(path, samples, own_rate_hz, subtype="PCM_16")
    n_bytes = sum(path.stat().st_size for path in paths)
    name = f"{kind.upper()} segments, {_rate_name(rate_hz)}"
    return one_by_one(name, len(paths), n_bytes, lambda: lambda row: load_mono(RawAudio(path=paths[row]), RATE_HZ))


def parquet(folder: Path, clips: list[RawAudio], rate_hz: int | None, compression: str, group_rows: int) -> Form:
    """float32 blobs in the split-parquet layout, read as `cli featurize` reads them."""
    folder.mkdir()
    media = folder / "clips_media.parquet"
    ids = [str(number) for number in range(len(clips))]
    schema = pa.schema(
        {"segment_id": pa.string(), "audio_waveform": pa.large_binary(), "audio_sample_rate": pa.int32()}
    )
    with pq.ParquetWriter(media, schema, compression=compression, use_dictionary=False) as writer:
        for start in range(0, len(clips), group_rows):
            group = [_waveform(clip, rate_hz) for clip in clips[start : start + group_rows]]
            blobs, rates = [samples.tobytes() for samples, _ in group], [rate for _, rate in group]
            writer.write_table(pa.table([ids[start : start + group_rows], blobs, rates], schema))
    pq.write_table(pa.table({"segment_id": ids, "song_id": ids}), folder / "clips_metadata.parquet")

    def open_reader() -> ReadOne:
        source = open_source(folder, DataConfig())
        return lambda row: load_mono(_raw(source, row), RATE_HZ)

    packed = {"none": "no compression"}.get(compression, compression)
    size = f"{min(group_rows, len(clips))} rows a group"
    name = f"parquet, float32, {_rate_name(rate_hz)}, {packed}, {size}"
    return one_by_one(name, len(clips), media.stat().st_size, open_reader)


def features(path: Path, name: str, vectors: np.ndarray) -> Form:
    """Vectors in the store, float16. Reading one reads its chunk."""
    n = len(vectors)
    ids = np.arange(n).astype(str).astype(STRING)
    with new_zarr_tree(path) as tree:
        record = {**RECORD, "encoder": name, "class_name": name, "width": vectors.shape[1]}
        feature = Store.create(tree, {"id": ids, "group": ids}, {}, {}).create_feature("audio/made", record)
        for chunk in feature.chunks():
            status, hashes = np.full(len(chunk), Status.PRESENT), np.ones((len(chunk), 16), np.uint8)
            rows = slice(chunk.start, chunk.stop)
            feature.write_chunk(chunk, np.array(chunk), vectors[rows], status, hashes, [""] * len(chunk))
    n_bytes = sum(file.stat().st_size for file in (path / "features").rglob("*") if file.is_file())

    def opened() -> Feature:
        return open_store(path)["audio/made"]

    def open_reader() -> ReadOne:
        feature = opened()
        return lambda row: torch.from_numpy(feature.read_vectors(range(row, row + 1)))

    title = f"features: {name}, {vectors.shape[1]} x float16, {n:,} rows"
    return Form(title, n, n_bytes, open_reader, lambda: torch.from_numpy(opened().vectors[:]))


def _raw(source: Source, row: int) -> RawAudio:
    raw = source.raw(row, "audio")
    assert isinstance(raw, RawAudio)
    return raw


def _waveform(clip: RawAudio, rate_hz: int | None) -> tuple[np.ndarray, int]:
    """Mono float32 samples and their rate; its own where none is named."""
    own_rate_hz = soundfile.info(clip.path).samplerate if clip.path is not None else clip.sample_rate_hz
    rate_hz = rate_hz or own_rate_hz or RATE_HZ
    return load_mono(clip, rate_hz), rate_hz


def _rate_name(rate_hz: int | None) -> str:
    return "own rate" if rate_hz is None else f"{rate_hz // 1000} kHz"


# The table


def _figures(values: list[float]) -> str:
    return f"{np.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True), required=False)
@click.option("--segments", type=click.IntRange(1), default=240, show_default=True, help="How many, the first ones.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--random-reads", type=click.IntRange(1), default=60, show_default=True, help="Per round.")
def main(data: Path | None, segments: int, rounds: int, random_reads: int) -> None:
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        source = open_source(data or make_demo(work / "demo", n_songs=60).parent, DataConfig())
        rows = [row for row in range(len(source)) if source.raw(row, "audio") is not None][:segments]
        clips = [_raw(source, row) for row in rows]
        seconds = sum(len(load_mono(clip, RATE_HZ)) for clip in clips) / RATE_HZ
        rates = sorted({_waveform(clip, None)[1] for clip in clips})

        encoder = MelStatsEncoder()
        started = time.process_time()
        encoded = np.stack([np.asarray(encoder.prepare(clip)) for clip in clips])
        encoding_ms = 1000 * (time.process_time() - started) / len(clips)

        forms = [] if source.has_blobs("audio") else [files_as_they_are(source, rows)]
        for kind in ("wav", "flac"):
            for rate_hz in (None, RATE_HZ):
                forms.append(segment_files(work / f"{kind}-{rate_hz}", clips, rate_hz, kind))
        for rate_hz in (None, RATE_HZ):
            for compression in ("none", "zstd"):
                for group_rows in (SMALL_GROUP_ROWS, LARGE_GROUP_ROWS):
                    folder = work / f"parquet-{rate_hz}-{compression}-{group_rows}"
                    forms.append(parquet(folder, clips, rate_hz, compression, group_rows))
        made = np.random.default_rng(0).normal(size=(MADE_ROWS, MADE_WIDTH)).astype(np.float32)
        forms += [
            features(work / "mel_stats.zarr", "mel_stats", encoded),
            features(work / "made.zarr", "random", made),
        ]
        found = measure(forms, rounds, random_reads)

    load = os.getloadavg()[1]  # of 5 minutes
    print(f"{machine('numpy', 'pyarrow', 'soundfile', 'soxr', 'zarr', 'torch')}, load {load:.1f}")
    print(
        f"{data.name if data else 'demo songs'}: {len(clips):,} segments, {seconds / len(clips):.1f} s each,"
        f" {'/'.join(map(str, rates))} Hz; {rounds} rounds, {random_reads} random reads each; page cache warm;"
        f" mel_stats encodes one in {encoding_ms:.3g} ms\n"
    )
    print("| form | bytes per segment | in order, ms per segment | at random, ms each |\n| --- | ---: | --- | --- |")
    for form in forms:
        in_order, at_random = found[form.name]
        size = f"{form.n_bytes / form.n_segments:,.0f}"
        print(f"| {form.name} | {size} | {_figures(in_order)} | {_figures(at_random)} |")


if __name__ == "__main__":
    main()
