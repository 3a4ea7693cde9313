"""Identity 5 with real signals: killed at any moment and run again, a store equals one that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

from featurize.extract import extract
from stores import open_store
from stores.feature import Status
from stores.verify import verify
from stores.zarr_store import new_zarr_tree
from tests.toys import ToyEncoder, ToySource, toy_contents, toy_feature

N_ROWS = 60
CHUNK_ROWS = 15
KILLS = 6


def featurize_in_place(path: Path, ready=None) -> None:
    feature = open_store(path)["audio/toy"]
    if ready is not None:
        ready.set()
    source = ToySource(toy_contents(N_ROWS))
    extract(feature, ToyEncoder(delay_seconds=0.01), source, batch_size=4, save_every_seconds=0)


def every_file(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def new_store(path: Path) -> Path:
    with new_zarr_tree(path) as tree:
        toy_feature(tree, N_ROWS, CHUNK_ROWS)
    return path


def test_killed_at_random_moments_the_store_ends_with_the_same_bytes(tmp_path):
    """Until so many runs were killed; whenever one gets to its end, its store is compared and a new one begun."""
    reference = new_store(tmp_path / "never.zarr")
    featurize_in_place(reference)
    whole = open_store(reference)["audio/toy"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_kill"])
    moments = random.Random(0)
    died = finished = 0
    killed = new_store(tmp_path / "killed.0.zarr")
    for _ in range(10 * KILLS):
        ready = context.Event()
        process = context.Process(target=featurize_in_place, args=(killed, ready))
        process.start()
        assert ready.wait(60)
        process.join(moments.uniform(0, 0.15))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen = open_store(killed)["audio/toy"]
        present = seen.status == Status.PRESENT  # whatever is marked present is right, at any moment
        assert (seen.vectors[present] == whole.vectors[present]).all()
        if process.exitcode == -signal.SIGKILL:
            died += 1
            if died == KILLS:
                break
        else:
            assert_same_store(killed, reference)
            finished += 1
            killed = new_store(tmp_path / f"killed.{finished}.zarr")
    assert died == KILLS
    featurize_in_place(killed)
    assert_same_store(killed, reference)


def assert_same_store(killed: Path, reference: Path) -> None:
    open_store(killed).tree.remove_leftovers(older_than_seconds=0)
    assert every_file(killed) == every_file(reference)
    assert list(verify(open_store(killed))) == []
