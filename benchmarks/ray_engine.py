"""`featurize --engine ray` against the same chunks without Ray: seconds a row, with start-up told apart.

    python -m benchmarks.ray_engine                       # about three minutes
    python -m benchmarks.ray_engine --rows 6000 --rounds 5

Different lyrics through MiniLM in bfloat16, in turns: by two Ray actors of one CPU; by two processes, each with a shard
and one thread; by one process with two threads. Seconds a row are taken from when a quarter of the rows is done, to the
end. All stores must end with the same bytes, also those of one and of four actors, which are not timed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks import machine

WORKERS = 2
CHUNK_ROWS = 64
Events = list[tuple[float, int]]  # when, and how many rows were done by then


def make_store(folder: Path, n: int) -> Path:
    import numpy as np

    from benchmarks.encoders import demo_raws
    from featurize.config import DataConfig
    from featurize.ingestion import check, write_store

    words = sorted({word for raw in demo_raws("text") for word in raw.text.split()})
    rng = np.random.default_rng(0)
    lines = ["segment_id,group,text"]
    for row in range(n):
        text = " ".join(rng.choice(words, rng.integers(5, 60))).replace('"', "")
        lines.append(f'r{row},g{row // 8},"{text} {row}"')
    (folder / "segments.csv").write_text("\n".join(lines) + "\n", "utf-8")
    write_store(check(folder, DataConfig(), []), folder / "empty.zarr", chunk_rows=CHUNK_ROWS)
    return folder / "empty.zarr"


def featurize_store(path: Path, events: Any, threads: int, shard: Any = None, engine: Any = None) -> None:
    import torch

    from benchmarks.encoders import minilm
    from featurize.config import FeaturizeConfig
    from featurize.pipeline import featurize
    from featurize.project import open_source_of
    from stores import open_store

    torch.set_num_threads(threads)
    store = open_store(path)
    featurize(
        store,
        open_source_of(store, path, FeaturizeConfig()),
        minilm(path),
        precision="bf16",
        shard=shard,
        engine=engine,
        progress=lambda done, _total: events.append((time.time(), done)),
    )


def in_one_process(path: Path) -> list[Events]:
    return in_processes(path, [(WORKERS, None)])


def as_shards(path: Path) -> list[Events]:
    from stores.shard import Shard

    return in_processes(path, [(1, Shard(number, WORKERS)) for number in range(1, WORKERS + 1)])


def in_processes(path: Path, parts: list[tuple[int, Any]]) -> list[Events]:
    context = multiprocessing.get_context("spawn")  # as if each were started by a scheduler
    with context.Manager() as manager:
        events = [manager.list() for _ in parts]
        processes = [
            context.Process(target=featurize_store, args=(path, seen, threads, shard))
            for seen, (threads, shard) in zip(events, parts, strict=True)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        return [list(seen) for seen in events]


def with_ray(path: Path, n_actors: int = WORKERS) -> list[Events]:
    from featurize.engines.ray import RayEngine

    events: Events = []
    featurize_store(path, events, 1, engine=RayEngine(None, (n_actors, n_actors), cpus=min(1.0, WORKERS / n_actors)))
    return [events]


def seconds_per_row(parts: list[Events], n: int) -> float:
    """From when a quarter of all rows was done to the end."""
    changes = sorted((when, part, done) for part, events in enumerate(parts) for when, done in events)
    done_by = [0] * len(parts)
    for when, part, done in changes:
        done_by[part] = done
        if sum(done_by) >= n / 4:
            return (changes[-1][0] - when) / (n - sum(done_by))
    raise AssertionError("nothing was done")


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@click.command()
@click.option("--rows", type=click.IntRange(256), default=1024, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--against", type=click.Choice(["shards", "process", "both"]), default="both", show_default=True)
def main(rows: int, rounds: int, against: str) -> None:
    """Ray actors, shards and threads on the same rows."""
    from featurize.engines.ray import cluster

    os.environ["OMP_NUM_THREADS"] = str(WORKERS)
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))  # for processes that are started from elsewhere
    click.echo(f"{machine('torch', 'zarr', 'ray')}; {rows:,} lyrics, {rows // CHUNK_ROWS} chunks, {rounds} rounds")
    others = {"two shards": as_shards, "one process": in_one_process}
    others = {name: way for name, way in others.items() if against == "both" or name.endswith(against)}
    ways = {"two Ray actors": with_ray, **others}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    starts: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty = make_store(folder, rows)
        expected: dict[str, bytes] = {}
        begun = time.time()
        with cluster(None):
            click.echo(f"Ray on this machine was there after {time.time() - begun:.1f} s")
            for number in range(rounds):
                for way, run in ways.items():
                    path = shutil.copytree(empty, folder / f"{way} {number}.zarr")
                    began = time.time()
                    parts = run(path)
                    seconds[way].append(seconds_per_row(parts, rows))
                    starts[way].append(min(when for events in parts for when, done in events if done) - began)
                    expected = expected or contents(path)
                    assert contents(path) == expected, f"{way}: another store"
                    row = f"{seconds[way][-1] * 1e3:.2f} ms a row, first rows after {starts[way][-1]:.1f} s"
                    click.echo(f"  {number + 1}: {way:15} {row}")
            for n_actors in (1, 4):
                path = shutil.copytree(empty, folder / f"{n_actors} actors.zarr")
                with_ray(path, n_actors)
                assert contents(path) == expected, f"{n_actors} actors: another store"
    for way in ways:
        spread = f"[{min(seconds[way]) * 1e3:.2f}, {max(seconds[way]) * 1e3:.2f}]"
        start = statistics.median(starts[way])
        click.echo(
            f"{way:15} {statistics.median(seconds[way]) * 1e3:6.2f} ms a row {spread}, first rows after {start:.1f} s"
        )
    for way in others:
        ratios = sorted(a / b for a, b in zip(seconds["two Ray actors"], seconds[way], strict=True))
        click.echo(f"Ray to {way:12} {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")
    click.echo("all stores have the same bytes, those of one and of four actors too")


if __name__ == "__main__":
    main()
