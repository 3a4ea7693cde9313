"""What is waited for before any work begins, and what a large table takes: commands, imports, opening, ingest.

    python -m benchmarks.startup
    python -m benchmarks.startup --only ingest --rows 100000

* `help`, `import`: `cli --help` and `import stores` in new processes, beside `python -c pass` in one.
* `open`: a store opened, and the ids and one feature of 11,605 x 512 read from it, beside pandas reading the same
  columns from parquet.
* `ingest`: a table of a million segments checked and made a store, beside pandas reading that table. In new processes,
  so that each has its own peak of memory; what importing takes is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.pairs import Ratio, paired

PARTS = ("help", "import", "open", "ingest")
OPENED_ROWS, WIDTH = 11_605, 512
SEGMENTS_A_SONG = 140
RECORD = {
    "encoder": "made",
    "class_name": "Made",
    "modality": "audio",
    "width": WIDTH,
    "weights": {},
    "parameters": {},
    "precision": "fp32",
    "libraries": {},
    "trained_on": None,
}

INGEST = """
from featurize.config import DataConfig
from featurize.ingestion import check, write_store
def work():
    write_store(check(data, DataConfig()), store)
"""
PANDAS = """
import pandas
def work():
    pandas.read_parquet(data)
"""
TIMED = """
import json, sys, time
from pathlib import Path
data, store = map(Path, sys.argv[1:3])
def peak():  # in KiB, of this process alone: what `resource` says of a new one counts its parent in
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
before = peak()
started = time.perf_counter()
work()
seconds = time.perf_counter() - started
print(json.dumps([seconds, before, peak()]))
"""


def new_process(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def write_table(path: Path, n: int) -> Path:
    """Segments with lyrics, times, flags and two labels, as the metadata of a split parquet has them."""
    rows = np.arange(n)
    songs = rows // SEGMENTS_A_SONG
    lyrics = np.array([f"Line {number} of a song that nobody has heard so far" for number in range(5000)])
    pq.write_table(
        pa.table(
            {
                "segment_id": [f"segment_{row:08d}" for row in rows],
                "song_id": [f"song_{song:06d}" for song in songs],
                "lyric_text": lyrics[rows % len(lyrics)],
                "start_seconds": rows % SEGMENTS_A_SONG * 5.0,
                "end_seconds": rows % SEGMENTS_A_SONG * 5.0 + 5.0,
                "has_audio": np.zeros(n, bool),
                "has_midi": np.zeros(n, bool),
                "mood": np.array(["happy", "sad", "calm", "angry"])[songs % 4],
                "energy": np.random.default_rng(0).random(n),
            }
        ),
        path / "made_metadata.parquet",
    )
    return path / "made_metadata.parquet"


def measure_ingest(rows: int, repetitions: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder), rows)
        peaks: dict[str, list[float]] = {"ingest": [], "pandas": []}

        def measured(name: str, script: str) -> float:
            store = Path(folder) / f"{len(peaks[name])}.zarr"
            found = subprocess.run(
                [sys.executable, "-c", script + TIMED, str(table), str(store)], check=True, capture_output=True
            )
            seconds, before, after = json.loads(found.stdout)
            peaks[name].append((after - before) / 1024)
            return rows / seconds

        ratio = paired(
            "ingest",
            partial(measured, "ingest", INGEST),
            "pandas",
            partial(measured, "pandas", PANDAS),
            repetitions,
            "rows/s",
        )
        mebibytes = table.stat().st_size / 2**20
    memory = ", ".join(f"{name} {max(found):,.0f} MiB" for name, found in peaks.items())
    return [
        f"ingest: {rows:,} rows, {mebibytes:.0f} MiB of parquet: {ratio}",
        f"  memory at most, above the imports: {memory}",
    ]


def measure_opening(repetitions: int) -> list[str]:
    import pandas

    from stores import open_store
    from stores.base import STRING
    from stores.feature import Status
    from stores.store import Store
    from stores.zarr_store import new_zarr_tree

    vectors = np.random.default_rng(0).normal(size=(OPENED_ROWS, WIDTH)).astype(np.float16)
    ids = np.arange(OPENED_ROWS).astype(str)
    with tempfile.TemporaryDirectory() as folder:
        path, table = Path(folder) / "features.zarr", Path(folder) / "features.parquet"
        texts = ids.astype(STRING)
        with new_zarr_tree(path) as tree:
            feature = Store.create(tree, {"id": texts, "group": texts}, {}, {}).create_feature("audio/made", RECORD)
            for chunk in feature.chunks():
                n, rows = len(chunk), np.arange(chunk.start, chunk.stop)
                status, hashes = np.full(n, Status.PRESENT), np.ones((n, 16), np.uint8)
                feature.write_chunk(chunk, rows, vectors[chunk.start : chunk.stop], status, hashes, [""] * n)
        lists = pa.array(list(vectors.astype(np.float32)))
        pq.write_table(pa.table({"segment_id": ids, "embedding": lists}), table)

        def ours() -> float:
            started = time.perf_counter()
            store = open_store(path)
            assert len(store.ids) == len(store["audio/made"].vectors[:])
            return time.perf_counter() - started

        def theirs() -> float:
            started = time.perf_counter()
            frame = pandas.read_parquet(table)
            assert len(frame["segment_id"]) == len(np.stack(frame["embedding"].to_list()))
            return time.perf_counter() - started

        return [f"open: {OPENED_ROWS:,} x {WIDTH}: {paired('store', ours, 'pandas', theirs, repetitions)}"]


def measure_process(name: str, *arguments: str) -> Callable[[int], list[str]]:
    def measure(repetitions: int) -> list[str]:
        bare = partial(new_process, "-c", "pass")
        ratio: Ratio = paired(name, partial(new_process, *arguments), "python -c pass", bare, repetitions)
        return [str(ratio)]

    return measure


@click.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Some of the parts.")
@click.option("--rows", type=int, default=1_000_000, show_default=True, help="Of the table that is ingested.")
@click.option("--repetitions", type=int, default=5, show_default=True, help="Pairs.")
def main(only: tuple[str, ...], rows: int, repetitions: int) -> None:
    print(f"{machine()}, pandas {version('pandas')}, pyarrow {version('pyarrow')}")
    parts: dict[str, Callable[[int], list[str]]] = {
        "help": measure_process("cli --help", "-m", "cli", "--help"),
        "import": measure_process("import stores", "-c", "import stores"),
        "open": measure_opening,
        "ingest": partial(measure_ingest, rows),
    }
    for name in only or PARTS:
        print("\n".join(parts[name](repetitions)))


if __name__ == "__main__":
    main()
