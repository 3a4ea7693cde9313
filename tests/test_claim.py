"""Two at once: one writes a feature, the second is told who does; others, and readers, are not disturbed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from featurize.extract import extract
from stores import claim, open_store
from stores.backends import new_tree
from stores.claim import all_claimed, claimed, claims_of
from stores.errors import StoreError
from stores.feature import Status
from stores.verify import verify
from tests.stores_contract import RECORD, make_store, write
from tests.test_kill import every_file
from tests.toys import ToyEncoder, ToySource, toy_contents

N_ROWS, CHUNK_ROWS = 48, 12
NAMES = ("features.zarr", "features.h5")


@pytest.fixture(params=NAMES)
def store_path(request, tmp_path) -> Path:
    with new_tree(tmp_path / request.param) as tree:
        store = make_store(tree, N_ROWS, CHUNK_ROWS)
        for name in ("audio/a", "audio/b"):
            store.create_feature(name, ToyEncoder().record.to_dict())
    return tmp_path / request.param


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_claim"])
    return context


def hold(path: Path, feature: str, ready, free) -> None:
    with open_store(path).writing(feature):
        ready.set()
        free.wait(60)


def featurize_in_place(path: Path, feature: str, times: int = 1) -> None:
    """`times` over, each time with other inputs."""
    store = open_store(path)
    with store.writing(feature):
        for seed in range(times):
            source = ToySource(toy_contents(N_ROWS, seed))
            extract(store[feature], ToyEncoder(), source, batch_size=4, save_every_seconds=0)


@pytest.fixture
def holder(processes, store_path):
    """A process that holds audio/a until it is told to end."""
    ready, free = processes.Event(), processes.Event()
    process = processes.Process(target=hold, args=(store_path, "audio/a", ready, free), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()  # not `free.set()`, which waits for a process that was killed
    process.join(60)


def test_the_second_is_told_who_writes_and_may_come_when_that_one_is_dead(holder, store_path):
    store = open_store(store_path)
    with pytest.raises(StoreError) as refused, store.writing("audio/a"):
        pass
    told = str(refused.value)
    assert f"audio/a is being written by process {holder.pid} on {socket.gethostname()}, since 20" in told
    assert "\n" not in told
    with store.writing("audio/b"):  # another feature is nobody's
        assert store.features() == ["audio/a", "audio/b"] and list(verify(store)) == []
    with pytest.raises(StoreError, match="audio/a is being written"), all_claimed(claims_of(store_path), []):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    with store.writing("audio/a"):
        (mine,) = (json.loads(file.read_text()) for file in claims_of(store_path).iterdir())
        assert mine["pid"] == os.getpid()
    assert not claims_of(store_path).exists()


def test_different_features_are_written_at_once_and_end_as_when_written_alone(processes, store_path, tmp_path):
    both = [
        processes.Process(target=featurize_in_place, args=(store_path, name), daemon=True)
        for name in ("audio/a", "audio/b")
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    store = open_store(store_path)
    with new_tree(tmp_path / f"alone{store_path.suffix}") as tree:
        alone = make_store(tree, N_ROWS, CHUNK_ROWS).create_feature("audio/a", ToyEncoder().record.to_dict())
        extract(alone, ToyEncoder(), ToySource(toy_contents(N_ROWS)))
        for name in ("audio/a", "audio/b"):
            np.testing.assert_array_equal(store[name].vectors[:], alone.vectors[:])
            np.testing.assert_array_equal(store[name].status, alone.status)
    assert list(verify(store)) == []


def test_a_reader_sees_whole_rows_only_while_another_process_writes(processes, store_path):
    """Each row's vector must be the one of some input that it had; never half of it, never zeros in its place."""
    times = 6
    process = processes.Process(target=featurize_in_place, args=(store_path, "audio/a", times), daemon=True)
    allowed = [expected(seed) for seed in range(times)]
    process.start()
    seen = 0
    while process.is_alive():
        whole = open_store(store_path)["audio/a"].whole_rows()
        for row in np.flatnonzero(whole.status == Status.PRESENT):
            assert any(np.array_equal(whole.vectors[row], one[row]) for one in allowed if row in one), row
            seen += 1
    assert process.exitcode == 0 and seen
    final = open_store(store_path)["audio/a"].whole_rows()
    assert {int(row) for row in np.flatnonzero(final.status == Status.PRESENT)} == set(allowed[-1])


def expected(seed: int) -> dict[int, np.ndarray]:
    from stores.memory_store import MemoryTree

    feature = make_store(MemoryTree(), N_ROWS, CHUNK_ROWS).create_feature("audio/a", ToyEncoder().record.to_dict())
    extract(feature, ToyEncoder(), ToySource(toy_contents(N_ROWS, seed)))
    return {int(row): feature.vectors[row] for row in np.flatnonzero(feature.present)}


@pytest.mark.parametrize(
    ("times", "expected"),
    [(1, [Status.PRESENT, Status.FAILED, Status.PRESENT]), (2, [Status.PRESENT, Status.PENDING, Status.PENDING])],
)
def test_rows_that_change_while_they_are_read_are_read_again_and_then_pending(tmp_path, monkeypatch, times, expected):
    """At the worst moment: after the statuses were read, and before the vectors are."""
    with new_tree(tmp_path / "features.zarr") as tree:
        feature = make_store(tree).create_feature("audio/toy", RECORD)
        write(feature, feature.chunks()[0], [0, 1, 2], 1.0)
    reader, writer = (open_store(tmp_path / "features.zarr")["audio/toy"] for _ in range(2))
    original, changes = reader.read_vectors, iter(range(1, times + 1))

    def late(rows=None, status=None):
        if (change := next(changes, None)) is not None:
            outcome = (np.nan, Status.FAILED) if change % 2 else (7.0, Status.PRESENT)
            write(writer, writer.chunks()[0], [1], *outcome, reason="gone" if change % 2 else "")
            write(writer, writer.chunks()[0], [2], 1.0 + change, hash_byte=9 + change)
        return original(rows, status)

    monkeypatch.setattr(reader, "read_vectors", late)
    whole = reader.whole_rows()
    assert whole.status.tolist()[:3] == expected
    assert whole.vectors[whole.status == Status.PRESENT][:, 0].tolist() == [1.0, 2.0][: expected.count(Status.PRESENT)]


CLAIM = {"host": "elsewhere", "pid": 1, "command": "cli featurize --encoder clap", "since": "2025-01-01T00:00:00+00:00"}


def test_a_claim_of_another_host_counts_while_its_heart_beats(tmp_path):
    path = tmp_path / "audio%2Fa.claim"
    path.write_text(json.dumps(CLAIM))
    with pytest.raises(StoreError, match="process 1 on elsewhere, since 2025-.*: cli featurize --encoder clap"):
        take(tmp_path)
    assert json.loads(path.read_text()) == CLAIM
    old = time.time() - claim.DEAD_AFTER_SECONDS - 1
    os.utime(path, (old, old))
    take(tmp_path)
    assert not path.exists()


@pytest.mark.parametrize(("pid", "free"), [(None, False), (2**22 + 1, True)])  # ours, and one above Linux's largest
def test_without_locks_the_process_itself_is_looked_for(tmp_path, monkeypatch, pid, free):
    monkeypatch.setattr(claim, "lock", lambda file, *, exclusive: None)
    claim_here = {**CLAIM, "host": socket.gethostname(), "pid": pid or os.getpid()}
    (tmp_path / "audio%2Fa.claim").write_text(json.dumps(claim_here))
    if free:
        take(tmp_path)
    else:
        with pytest.raises(StoreError, match="is being written"):
            take(tmp_path)


def test_a_heart_beats_while_the_claim_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "HEARTBEAT_SECONDS", 0.01)
    with claimed(tmp_path, "audio/a"):
        path = tmp_path / "audio%2Fa.claim"
        os.utime(path, (0, 0))
        until = time.monotonic() + 60
        while path.stat().st_mtime == 0:
            assert time.monotonic() < until


def test_a_claim_that_says_nothing_is_nobodys(tmp_path):
    (tmp_path / "audio%2Fa.claim").write_text("{")
    take(tmp_path)


def take(folder: Path) -> None:
    folder.joinpath("keep").touch()
    with claimed(folder, "audio/a"):
        pass


def test_the_commands_refuse_and_write_nothing(project, demo_data, run_cli):
    run_cli("ingest", demo_data)
    before = every_file(project / "features.zarr")
    with open_store("features.zarr").writing("midi/midi_stats"):
        told = run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", code=2).output
        assert told.count("\n") == 1 and f"written by process {os.getpid()}" in told
        assert "written by process" in run_cli("ingest", demo_data, "--replace", code=2).output
    assert every_file(project / "features.zarr") == before
