"""Larger than memory: what streaming costs in time, what it saves in memory, and how both grow with the segments.

    python -m benchmarks.streaming --rows 100000                        # five pairs of epochs
    python -m benchmarks.streaming --rows 10000 --rows 100000 --rows 1000000 --repetitions 0 --plot streaming.svg

Stores are made of noise around a mean for each of five classes: text 768, audio 512 and MIDI 512 in float16, songs of
140 segments, 85% with audio and 43% with MIDI, 70% to train on and 15% to stop by. `late`, hidden 256, batches of 256.

*Pairs* are epochs, with validation, of the one training loop in this process: streamed, in memory, streamed, … *Fits*
are `cli fit --stream` and `cli fit --no-stream`, each in a process of its own: seconds of an epoch, seconds of the
whole command, and the most memory that the process ever had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

from benchmarks import machine
from benchmarks.pairs import Ratio, paired
from fusion.config import FusionConfig, TrainingConfig
from fusion.data import StoredSegments, load_segments
from fusion.fitting import PARTS
from fusion.streaming import stream_segments
from fusion.targets import load_targets
from fusion.train import train
from stores import open_store
from stores.base import STRING
from stores.feature import Status
from stores.store import Part, Split, Store
from stores.zarr_store import new_zarr_tree

PRESENCE = {"text": 1.0, "audio": 0.85, "midi": 0.43}
CLASSES = ("angry", "calm", "happy", "sad", "tense")
SONG_SEGMENTS = 140
HIDDEN, BATCH = 256, 256
RECORD: dict[str, Any] = {
    "encoder": "drawn",
    "class_name": "drawn",
    "weights": {},
    "parameters": {},
    "precision": "fp32",
    "libraries": {},
    "trained_on": None,
}


# The store


def make_store(path: Path, n: int, widths: dict[str, int]) -> None:
    """n segments, chunk by chunk, so that no size is too large for the memory."""
    rng = np.random.default_rng(0)
    song = np.arange(n) // SONG_SEGMENTS
    label = rng.integers(0, len(CLASSES), n)
    means = {slot: 0.05 * rng.standard_normal((len(CLASSES), width), np.float32) for slot, width in widths.items()}
    part_of_song = rng.choice([Part.TRAIN, Part.VAL, Part.TEST], size=song[-1] + 1, p=[0.7, 0.15, 0.15])
    part_of_song[: min(3, len(part_of_song))] = [Part.TRAIN, Part.VAL, Part.TEST][: len(part_of_song)]
    with new_zarr_tree(path) as tree:
        segments = {"id": np.arange(n).astype(STRING), "group": song.astype(STRING)}
        labels = {"mood": np.array(CLASSES, dtype=STRING)[label]}
        store = Store.create(tree, segments, labels, {"layout": "drawn"})
        store.write_split(Split("default", part_of_song[song].astype(np.uint8), {"method": "grouped", "seed": 0}))
        for slot, width in widths.items():
            feature = store.create_feature(f"{slot}/drawn", {**RECORD, "modality": slot, "width": width})
            for chunk in feature.chunks():
                rows = np.array(chunk)
                vectors = means[slot][label[rows]] + rng.standard_normal((len(rows), width), np.float32)
                there = rng.random(len(rows)) < PRESENCE[slot]
                status = np.where(there, Status.PRESENT, Status.ABSENT).astype(np.uint8)
                hashes = np.ones((len(rows), 16), np.uint8)
                feature.write_chunk(chunk, rows, vectors, status, hashes, [""] * len(rows))


# Epochs in this process


def pairs_of_epochs(store: Store, repetitions: int, epoch_rows: int | None = None) -> tuple[int, Ratio]:
    """Training rows of an epoch, the first so many; its seconds with validation, streamed and in memory."""
    features = {slot: f"{slot}/drawn" for slot in PRESENCE}
    targets = load_targets(store, [])
    rows = {part: store.split("default").rows(code) for part, code in PARTS.items()}
    share = min(1.0, (epoch_rows or len(rows["train"])) / len(rows["train"]))
    rows = {part: some[: round(share * len(some))] for part, some in rows.items()}
    streamed = stream_segments(store, features)
    streamed.keep_at_hand(np.concatenate([rows["val"], rows["test"]]))
    fusion = FusionConfig(strategy="late", hidden_dim=HIDDEN)
    training = TrainingConfig(epochs=1, batch_size=BATCH)

    def epoch(data: StoredSegments) -> float:
        trained = train(data, targets, rows["train"], rows["val"], fusion, training, 0)
        return float(trained.history[0]["seconds"])

    in_memory = load_segments(store, features)
    ratio = paired("streamed", lambda: epoch(streamed), "in memory", lambda: epoch(in_memory), repetitions)
    return len(rows["train"]), ratio


# Commands in processes of their own


@dataclass(frozen=True)
class Fit:
    """epoch_seconds: the median; without the first, which also warms up, where there are more."""

    n_train: int
    epoch_seconds: float
    seconds: float
    peak_bytes: int


def fit(store: Path, work: Path, stream: bool, epochs: int, baselines: bool) -> Fit:
    name = "streamed" if stream else "memory"
    command = [sys.executable, "-c", "from cli import cli; cli()", "fit", "--store", str(store), "--runs", str(work)]
    command += ["--name", name, "--overwrite", "--seeds", "1", "--stream" if stream else "--no-stream"]
    command += [] if baselines else ["--no-baselines"]
    command += ["--set", f"training.epochs={epochs}", "--set", f"model.fusion.hidden_dim={HIDDEN}"]
    started = time.perf_counter()
    with (work / f"{name}.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException((work / f"{name}.txt").read_text("utf-8"))
    history = pq.read_table(work / name / "history.parquet").to_pylist()
    of_epochs = [epoch["seconds"] for epoch in history if epoch["model"] == "fusion"]
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    n_train = len(open_store(store).split("default").rows(Part.TRAIN))
    return Fit(n_train, median(of_epochs[1:] or of_epochs), seconds, peak_bytes)


def read_fits(path: Path) -> dict[int, dict[str, Fit]]:
    """What an earlier call measured, by segments and way."""
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return {int(n): {way: Fit(**facts) for way, facts in ways.items()} for n, ways in kept.items()}


# The table and the plot


def _row(n: int, n_bytes: int, ways: dict[str, Fit]) -> str:
    streamed, memory = ways["streamed"], ways["memory"]
    cells = [f"{n:,}", f"{n_bytes / 2**30:.2f}"]
    cells += [f"{fit.n_train / fit.epoch_seconds:,.0f}" for fit in (streamed, memory)]
    cells += [f"{memory.epoch_seconds / streamed.epoch_seconds:.2f}"]
    cells += [f"{fit.epoch_seconds:.2f}" for fit in (streamed, memory)]
    cells += [f"{fit.seconds:.0f}" for fit in (streamed, memory)]
    cells += [f"{fit.peak_bytes / 2**30:.2f}" for fit in (streamed, memory)]
    return f"| {' | '.join(cells)} |"


def plot(path: Path, found: dict[int, dict[str, Fit]]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "streaming"
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    sizes = list(found)
    for way, name, style in (("streamed", "streamed", "o-"), ("memory", "in memory", "s--")):
        left.plot(sizes, [found[n][way].epoch_seconds for n in sizes], style, label=name)
        right.plot(sizes, [found[n][way].peak_bytes / 2**30 for n in sizes], style, label=name)
    last = found[sizes[-1]]["streamed"].epoch_seconds
    left.plot(sizes, [last * n / sizes[-1] for n in sizes], "k:", linewidth=1, label="proportional")
    left.set(xscale="log", yscale="log", xlabel="segments", ylabel="seconds an epoch")
    right.set(xscale="log", xlabel="segments", ylabel="peak memory of cli fit, GiB", ylim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--rows", "sizes", type=click.IntRange(500), multiple=True, default=[100_000], show_default=True)
@click.option("--repetitions", type=click.IntRange(0), default=5, show_default=True, help="Pairs of epochs.")
@click.option("--epoch-rows", type=click.IntRange(1), help="Learn from the first so many in the pairs. [default: all]")
@click.option(
    "--fits/--no-fits", "with_fits", default=True, show_default=True, help="Whole commands, and their memory."
)
@click.option("--epochs", type=click.IntRange(1), default=2, show_default=True, help="Of the fits.")
@click.option("--baselines", is_flag=True, help="The fits with their baselines, and each slot alone.")
@click.option("--widths", default="768,512,512", show_default=True, help="Of text, audio and MIDI.")
@click.option(
    "--stores", type=click.Path(path_type=Path), help="Keep stores and fits here, and go on from those that are here."
)
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Draw the growth of time and memory.")
def main(
    sizes: tuple[int, ...],
    repetitions: int,
    epoch_rows: int | None,
    with_fits: bool,
    epochs: int,
    baselines: bool,
    widths: str,
    stores: Path | None,
    plot_path: Path | None,
) -> None:
    by_slot = dict(zip(PRESENCE, map(int, widths.split(",")), strict=True))
    print(machine(), flush=True)
    with ExitStack() as exits:
        work = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        kept = (stores or work) / "fits.json"
        found = read_fits(kept)
        for n in sorted(sizes):
            path = (stores or work) / f"{n}.zarr"
            if not path.exists():
                make_store(path, n, by_slot)
            if repetitions:
                n_train, ratio = pairs_of_epochs(open_store(path), repetitions, epoch_rows)
                rates = " and ".join(f"{n_train / median(seconds):,.0f}" for seconds in (ratio.a, ratio.b))
                print(f"{n:,} segments, an epoch of {n_train:,}: {ratio}; {rates} training rows per second", flush=True)
            if with_fits:
                ways = {"streamed": True, "memory": False}
                found[n] = {way: fit(path, work, stream, epochs, baselines) for way, stream in ways.items()}
                kept.write_text(json.dumps({n: {w: asdict(f) for w, f in ways.items()} for n, ways in found.items()}))
    if found:
        print(
            "\n| segments | vectors, GiB | rows per second, streamed | in memory | ratio | epoch, s, streamed |"
            " in memory | cli fit, s, streamed | in memory | peak memory, GiB, streamed | in memory |"
        )
        print(f"|{' ---: |' * 11}")
        print("\n".join(_row(n, 2 * n * sum(by_slot.values()), found[n]) for n in sorted(found)))
    if plot_path is not None and found:
        plot(plot_path, dict(sorted(found.items())))


if __name__ == "__main__":
    main()
