"""A job array: processes that know nothing of each other, each with its own chunks, end as one process does."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import cli
from featurize.extract import extract
from stores import open_store
from stores.backends import new_tree
from stores.claim import all_claimed, claimed, claims_of, one_by_one
from stores.errors import StoreError
from stores.remote import Location
from stores.shard import Shard
from stores.verify import verify
from tests.object_storage import every_object
from tests.stores_contract import make_store
from tests.test_kill import every_file
from tests.toys import StuckEncoder, ToyEncoder, ToySource, toy_contents

N_ROWS, CHUNK_ROWS = 60, 7  # the last chunk is shorter
CONTENTS = toy_contents(N_ROWS)  # a third of them in several chunks


def empty_store(path: Path) -> Path:
    with new_tree(path) as tree:
        make_store(tree, N_ROWS, CHUNK_ROWS)
    return path


def featurize_in_place(path: Location, shard: Shard | None = None, contents=CONTENTS, encoder=None) -> None:
    """As `featurize.pipeline.featurize` does it, with a toy encoder."""
    store, encoder = open_store(path), encoder or ToyEncoder()
    with store.writing("audio/toy", shard):
        if shard is None:
            feature = store.open_feature("audio/toy", encoder.record.to_dict())
        else:
            with one_by_one(store.tree.claims, "audio/toy") as alone:
                feature = store.join_feature("audio/toy", encoder.record.to_dict(), shard, alone=alone)
        extract(feature, encoder, ToySource(contents), batch_size=4, shard=shard, save_every_seconds=0)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, bytes]:
    path = empty_store(tmp_path_factory.mktemp("one") / "features.zarr")
    featurize_in_place(path)
    return every_file(path)


@given(st.integers(1, 2**40), st.integers(1, 60))
def test_every_chunk_has_one_owner(n_chunks, n):
    n_chunks %= 200
    owners = [chunk for i in range(1, n + 1) for chunk in Shard(i, n).of_all(range(n_chunks))]
    assert sorted(owners) == list(range(n_chunks))
    assert list(Shard.parse(f"2/{n + 1}").of_all(range(n_chunks)))[:1] == [1][: max(0, n_chunks - 1)]


@pytest.mark.parametrize("text", ["0/4", "5/4", "-1/4", "1", "1/", "a/b", "1/0", "１/２", "1/4/2", ""])
def test_what_is_no_shard_gets_one_line(text):
    with pytest.raises(StoreError, match="of 4 the last is 4/4") as error:
        Shard.parse(text)
    assert "\n" not in str(error.value)


@settings(max_examples=8)
@given(st.permutations([1, 2, 3, 4]), st.lists(st.integers(1, 4), max_size=3))
def test_shards_in_any_order_and_again_end_with_the_bytes_of_one_process(tmp_path_factory, one_process, order, again):
    path = empty_store(tmp_path_factory.mktemp("shards") / "features.zarr")
    for number in [*order, *again]:
        featurize_in_place(path, Shard(number, 4))
    assert every_file(path) == one_process
    assert list(verify(open_store(path))) == []


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_shards"])
    return context


def run_at_once(processes, path: Path, n: int) -> None:
    shards = [Shard(number, n) for number in range(1, n + 1)]
    at_once = [processes.Process(target=featurize_in_place, args=(path, shard), daemon=True) for shard in shards]
    for process in at_once:
        process.start()
    for process in at_once:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize("leftover", [False, True])
def test_shards_at_once_make_the_feature_once(processes, tmp_path, one_process, leftover):
    path = empty_store(tmp_path / "features.zarr")
    if leftover:  # what `--replace` leaves when it is killed while it deletes
        featurize_in_place(path, contents=toy_contents(N_ROWS, seed=1))
        (path / "features/audio/toy/zarr.json").unlink()
    run_at_once(processes, path, 4)
    assert every_file(path) == one_process


def test_shards_at_once_in_object_storage(bucket, one_process):
    path = bucket / "features.zarr"
    with new_tree(path) as tree:
        make_store(tree, N_ROWS, CHUNK_ROWS)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(partial(featurize_in_place, path), [Shard(number, 3) for number in (1, 2, 3)]))
    assert every_object(path) == one_process


def test_a_shard_that_is_killed_is_run_again(processes, tmp_path, one_process):
    path = empty_store(tmp_path / "features.zarr")
    stuck = (path, Shard(1, 2), CONTENTS, StuckEncoder(2 * CHUNK_ROWS))  # of the shard's 28 rows or more
    victim = processes.Process(target=featurize_in_place, args=stuck, daemon=True)
    victim.start()
    while not ("audio/toy" in open_store(path).features() and open_store(path)["audio/toy"].present.any()):
        assert victim.is_alive()
        time.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join(60)
    chunk = path / "features/audio/toy/vectors/c"
    mine, others = (chunk / f"{number}" / f"0.{'0' * 32}.partial" for number in (0, 1))
    for file in (mine, others):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    featurize_in_place(path, Shard(1, 2))
    assert not mine.exists() and others.exists()  # it may be alive
    featurize_in_place(path, Shard(2, 2))
    assert every_file(path) == one_process


def test_into_one_file_too(processes, tmp_path):
    paths = [empty_store(tmp_path / name) for name in ("one.h5", "many.h5")]
    featurize_in_place(paths[0])
    run_at_once(processes, paths[1], 3)
    one, many = (open_store(path)["audio/toy"] for path in paths)
    for name in ("read_vectors", "read_status", "read_input_hashes", "read_failures"):
        np.testing.assert_array_equal(getattr(one, name)(), getattr(many, name)())


WHOLE = None  # a run without shards


@pytest.mark.parametrize(
    ("held", "wanted", "free"),
    [
        (Shard(1, 2), Shard(2, 2), True),
        (Shard(1, 2), Shard(1, 2), False),
        (Shard(1, 2), Shard(2, 4), False),
        (Shard(4, 14), Shard(1, 4), False),
        (Shard(1, 2), WHOLE, False),
        (WHOLE, Shard(1, 2), False),
    ],
)
def test_who_may_write_beside_whom(processes, tmp_path, held, wanted, free):
    path = empty_store(tmp_path / "features.zarr")
    ready, end = processes.Event(), processes.Event()
    holder = processes.Process(target=hold, args=(path, held, ready, end), daemon=True)
    holder.start()
    assert ready.wait(60)
    store = open_store(path)
    if free:
        with store.writing("audio/toy", wanted):
            assert len(list(claims_of(path).rglob("*.claim"))) == 2
    else:
        told = f"written by process {holder.pid} on "
        with pytest.raises(StoreError, match=told), store.writing("audio/toy", wanted):
            pass
    with pytest.raises(StoreError, match="is being written"), all_claimed(claims_of(path), []):
        pass
    with store.writing("audio/another", wanted):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    with store.writing("audio/toy", wanted):
        claims = [json.loads(file.read_text()) for file in claims_of(path).rglob("*.claim")]
        assert os.getpid() in [claim["pid"] for claim in claims]
    with claimed(claims_of(path), "audio/toy"):
        pass  # and what the dead have left is gone
    assert not claims_of(path).exists()


def hold(path: Path, shard: Shard | None, ready, end) -> None:
    with open_store(path).writing("audio/toy", shard):
        ready.set()
        end.wait(60)


def test_who_may_write_beside_whom_in_object_storage(bucket):
    with new_tree(bucket / "features.zarr") as tree:
        make_store(tree, N_ROWS, CHUNK_ROWS)
    one, two = (open_store(bucket / "features.zarr") for _ in range(2))
    rivals = {WHOLE: [Shard(1, 2), WHOLE], Shard(1, 2): [WHOLE, Shard(1, 2), Shard(2, 4)]}
    for held, wanted in [(held, wanted) for held, refused in rivals.items() for wanted in refused]:
        with one.writing("audio/toy", held):
            with pytest.raises(StoreError, match=f"written by process {os.getpid()} on "):
                two.writing("audio/toy", wanted).__enter__()
            with two.writing("audio/another", wanted):
                pass
    with one.writing("audio/toy", Shard(1, 2)), two.writing("audio/toy", Shard(2, 2)):
        pass
    with two.writing("audio/toy"):
        pass
    assert not any(".claims" in key for key in every_object(bucket))


def test_without_locks_the_first_one_counts_and_nobody_clears(tmp_path, monkeypatch):
    path = empty_store(tmp_path / "features.zarr")
    record = ToyEncoder().record.to_dict()
    one, two = (open_store(path) for _ in range(2))
    monkeypatch.setattr(two, "features", lambda: [])  # it looked before the other was there
    feature = one.join_feature("audio/toy", record, Shard(1, 2), alone=False)
    extract(feature, ToyEncoder(), ToySource(CONTENTS), shard=Shard(1, 2))
    before = every_file(path)
    monkeypatch.setattr(two, "feature", one.feature)
    two.join_feature("audio/toy", record, Shard(2, 2), alone=False)
    assert every_file(path) == before
    (path / "features/audio/toy/zarr.json").unlink()
    with pytest.raises(StoreError, match="no locks .* without --shard"):
        two.join_feature("audio/toy", record, Shard(2, 2), alone=False)


def test_a_shard_does_not_turn_what_others_write_to_float32(tmp_path):
    path = empty_store(tmp_path / "features.zarr")
    large = [[1e6]] * N_ROWS
    with pytest.raises(StoreError, match="a shard cannot .* Go on without --shard"):
        featurize_in_place(path, Shard(1, 2), large)
    featurize_in_place(path, None, large)
    assert open_store(path)["audio/toy"].dtype == np.float32


@pytest.fixture(scope="module")
def ten_chunks(demo_data, tmp_path_factory) -> Path:
    """A store of 48 rows in chunks of 5; read only."""
    path = tmp_path_factory.mktemp("ten-chunks") / "features.zarr"
    result = CliRunner().invoke(cli, ["ingest", str(demo_data), "--chunk-rows", "5", "--store", str(path)])
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.parametrize("encoder", ["lsa", "midi_stats"])  # one that is fitted by whoever comes first
def test_the_command(ten_chunks, run_cli, encoder):
    one, many = (shutil.copytree(ten_chunks, ten_chunks.with_name(f"{encoder}-{n}.zarr")) for n in ("one", "many"))

    def featurized(store: Path, *arguments: str) -> str:
        return run_cli("featurize", "--encoder", encoder, "--workers", "0", "--store", store, *arguments).output

    featurized(one)
    told = [featurized(many, "--shard", f"{number}/3") for number in (3, 1, 2)]
    assert every_file(many) == every_file(one)
    assert [("Fitted" in text) for text in told] == [encoder == "lsa", False, False]
    assert "rows wait for other shards" in told[0] and "no row is pending any more" in told[2]
    assert "nothing to do: " in (empty := featurized(many, "--shard", "11/11")) and "has 10 chunks of 5 rows" in empty


def test_without_ray_a_line_says_what_to_install(ten_chunks, run_cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    told = run_cli("featurize", "--encoder", "midi_stats", "--store", ten_chunks, "--engine", "ray", code=2).output
    assert "pip install 'triad-fusion[ray]'" in told and "Traceback" not in told


def test_mistakes_get_a_line(ten_chunks, run_cli):
    for arguments, expected in {
        ("--shard", "0/4"): "no shard '0/4'",
        ("--shard", "5/4"): "no shard '5/4'",
        ("--shard", "1/2", "--replace"): "cannot replace",
        ("--shard", "1/2", "--repair"): "cannot repair",
        ("--shard", "1/2", "--engine", "ray"): "leave --shard away",
        ("--shard", "1/2", "--dry-run"): "does not look ahead at --shard",
        ("--actors", "2"): "belong to --engine ray",
        ("--engine", "ray", "--actors", "4..2"): "MIN..MAX",
    }.items():
        output = run_cli("featurize", "--encoder", "midi_stats", "--store", ten_chunks, *arguments, code=2).output
        assert expected in output and "Traceback" not in output
