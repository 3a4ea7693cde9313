"""Does anything pile up? Rows through ingest, featurize, fit, predict and verify for half an hour, in one process.

    python -m benchmarks.soak --minutes 30

Songs are composed once. Each round then cuts other segments out of them, so that no input repeats, and takes them
through the commands as a user types them, in this one process: with worker processes for audio and MIDI, into a store
that is new every fourth round and grows in the others. After each round the memory of this process is looked at, its
open files, threads and child processes, and the memory of those; and what of its memory is in use by the allocators'
own counts, which are steady where memory goes up in steps. In the end, after a warm-up, a straight line is fitted to
each over the rows that had passed, and its slope given with a 95% interval; rounds follow each other, so the interval
is rather too narrow than too wide. Exits 1 where the whole interval lies above what is allowed.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import gc
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import psutil
from scipy import stats

from benchmarks import machine
from cli import cli
from featurize.demo import make_demo

WARM_UP = 1 / 4  # of all rounds: caches fill, allocators settle
ROUNDS_A_STORE = 4
SEGMENT_SECONDS = 2.0
MIB = 2**20

ALLOWED = {  # per 1,000 rows
    "memory, MiB": 2.0,  # of allocators that never settle; a leak of one clip's samples a row would be 170
    "of it in use, MiB": 1.0,  # handed out by malloc and not given back: tells a leak from an allocator's reserve
    "Python's blocks": 2000.0,  # two a row; a list that is kept for each would be more
    "memory of workers, MiB": 2.0,
    "open files": 0.2,
    "threads": 0.2,
    "child processes": 0.2,
}


@dataclass(frozen=True)
class Sample:
    rows: int  # that had passed
    values: dict[str, float]  # by the names in `ALLOWED`


def give_back() -> None:
    """Have the allocator return what it holds in reserve, where it can: what is left is in use."""
    with contextlib.suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL(None).malloc_trim(0)


MALLINFO = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library, bytes: see mallinfo(3)."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO]


def in_use() -> int:
    """Bytes that malloc handed out; 0 where it does not say."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return 0
    library.mallinfo2.restype = MallInfo
    told = library.mallinfo2()
    return int(told.uordblks + told.hblkhd)  # of arenas, and mapped one by one


def look(rows: int) -> Sample:
    gc.collect()
    give_back()
    own = psutil.Process()
    children = own.children(recursive=True)
    memory = 0
    for child in children:
        with contextlib.suppress(psutil.Error):  # it has ended
            memory += child.memory_info().rss
    of_own = (own.memory_info().rss / MIB, in_use() / MIB, sys.getallocatedblocks())
    found = (*of_own, memory / MIB, own.num_fds(), own.num_threads(), len(children))
    return Sample(rows, dict(zip(ALLOWED, map(float, found), strict=True)))


def write_round(songs: Path, table: Path, number: int, n_rows: int) -> int:
    """Append `n_rows` other segments of the songs to `table`; returns how many rows it has."""
    with (songs / "segments.csv").open(encoding="utf-8", newline="") as file:
        known = list(csv.DictReader(file))
    chance = np.random.default_rng(number)
    is_new = not table.exists()
    with table.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*known[0], "text"])
        if is_new:
            writer.writeheader()
        for row in range(n_rows):
            like = dict(known[chance.integers(len(known))])
            start = float(chance.uniform(0, 4))
            words = [f"word{word}" for word in chance.integers(0, 300, 12)]
            like |= {"segment_id": f"{number}-{row}", "group": f"song {number}-{row // 4}", "text_path": ""}
            like |= {"text": " ".join(words), "start_seconds": f"{start:.3f}"}
            like |= {"end_seconds": f"{start + SEGMENT_SECONDS + chance.uniform(0, 0.5):.3f}"}
            for path in ("audio_path", "midi_path"):
                like[path] = f"{songs.name}/{like[path]}" if like[path] else ""
            writer.writerow(like)
    with table.open(encoding="utf-8") as file:
        return sum(1 for _ in file) - 1


def run(*arguments: str) -> None:
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        cli.main(list(arguments), standalone_mode=False)


def one_round(workers: int) -> None:
    run("ingest", "data/segments.csv")
    run("featurize", "--encoder", "lsa")
    for encoder in ("mel_stats", "midi_stats"):
        run("featurize", "--encoder", encoder, "--workers", str(workers))
    quick = ("--set", "training.epochs=5", "--set", "training.bootstrap=100", "--seeds", "1")
    run("fit", "--target", "mood", "--name", "run", "--overwrite", *quick)
    run("predict", "run", "features.zarr", "--out", "predictions.parquet", "--overwrite")
    run("verify")


def slope(samples: list[Sample], name: str) -> tuple[float, float, float]:
    """Per 1,000 rows, with the ends of its 95% interval."""
    rows = np.array([sample.rows / 1000 for sample in samples])
    values = np.array([sample.values[name] for sample in samples])
    line = stats.linregress(rows, values)
    half = float(stats.t.ppf(0.975, len(rows) - 2)) * line.stderr
    return line.slope, line.slope - half, line.slope + half


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True)
@click.option("--rows", "n_rows", type=click.IntRange(24), default=96, show_default=True, help="New in each round.")
@click.option("--workers", type=click.IntRange(0), default=2, show_default=True)
def main(minutes: float, n_rows: int, workers: int) -> None:
    print(machine("torch", "zarr", "numpy", "soundfile", "pebble"), flush=True)
    samples: list[Sample] = []
    passed, number = 0, 0
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        data = Path("data")
        make_demo(data / "songs", n_songs=12, segments_per_song=4)
        started = time.monotonic()
        while time.monotonic() - started < 60 * minutes:
            if number % ROUNDS_A_STORE == 0:
                for path in (Path("features.zarr"), Path("runs")):
                    shutil.rmtree(path, ignore_errors=True)
                (data / "segments.csv").unlink(missing_ok=True)
            in_store = write_round(data / "songs", data / "segments.csv", number, n_rows)
            one_round(workers)
            number, passed = number + 1, passed + n_rows
            samples.append(look(passed))
            told = ", ".join(f"{name} {value:,.0f}" for name, value in samples[-1].values.items())
            print(f"round {number}: {passed:,} rows, {in_store} in the store; {told}", flush=True)
        seconds = time.monotonic() - started
    settled = samples[int(len(samples) * WARM_UP) :]
    if len(settled) < 5:
        raise click.ClickException(f"{len(samples)} rounds are too few for a line; give it more --minutes")
    print(f"\n{passed:,} rows in {number} rounds and {seconds / 60:.1f} min; a line through the last {len(settled)}:")
    print("| | first | last | per 1,000 rows [95% interval] | allowed | |\n| --- | ---: | ---: | --- | ---: | --- |")
    grows = False
    for name, allowed in ALLOWED.items():
        found, low, high = slope(settled, name)
        bad = low > allowed
        grows |= bad
        ends = f"{settled[0].values[name]:,.0f} | {settled[-1].values[name]:,.0f}"
        print(
            f"| {name} | {ends} | {found:+.3f} [{low:+.3f}, {high:+.3f}] | {allowed} | {'GROWS' if bad else 'flat'} |"
        )
    raise SystemExit(1 if grows else 0)


if __name__ == "__main__":
    main()
