"""Ray on this machine: the same bytes with any number of actors, whoever is killed; one cluster for all tests here."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

if find_spec("ray") is None:  # not `importorskip`: what it is to listen on is read when it is imported
    pytest.skip("Ray is not installed", allow_module_level=True)

from featurize.encoders.base import Encoded
from featurize.engines import ray as ray_engine
from featurize.engines.ray import RayEngine, WorkersLost, cluster
from featurize.engines.ray_worker import Ended, Job, Shape, Wanted, Worker, Written
from featurize.errors import ConfigError
from featurize.limits import DEFAULT_LIMITS
from stores import open_store
from stores.errors import StoreError
from stores.feature import Status
from stores.memory_store import MemoryTree
from tests.stores_contract import make_store
from tests.test_kill import every_file
from tests.test_scale import snippet
from tests.test_shards import CHUNK_ROWS, CONTENTS, N_ROWS, empty_store, featurize_in_place, ten_chunks  # noqa: F401
from tests.toys import KillingEncoder, SigningEncoder, StuckEncoder, ToyEncoder, ToySource


@pytest.fixture(scope="module")
def ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_RESOURCES", '{"GPU": 1}')  # a cluster that says it had one
        with cluster(None) as ray:
            yield ray


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, bytes]:
    path = empty_store(tmp_path_factory.mktemp("one") / "features.zarr")
    featurize_in_place(path)
    return every_file(path)


def featurize_far(
    path: Path, n_actors: int = 2, encoder=None, contents=CONTENTS, address=None, progress=None, engine=None
):
    store, encoder = open_store(path), encoder or ToyEncoder()
    with store.writing("audio/toy"):
        feature = store.open_feature("audio/toy", encoder.record.to_dict())
        engine = engine or RayEngine(address, (n_actors, n_actors), cpus=0.2)  # however few cores there are
        settings = {"workers": 0, "batch_size": 4, "retry_failed": False, "limits": DEFAULT_LIMITS}
        return engine.extract(feature, encoder, ToySource(contents), **settings, progress=progress)


def test_four_actors_of_which_one_is_killed_end_with_the_bytes_of_one_process(ray, tmp_path, one_process):
    path = empty_store(tmp_path / "features.zarr")
    encoder = KillingEncoder(float(np.sum(CONTENTS[30])), tmp_path / "killed")
    seen = []
    done = featurize_far(path, 4, encoder=encoder, progress=lambda n, total: seen.append((n, total)))
    assert (tmp_path / "killed").exists()
    assert every_file(path) == one_process
    assert (done.rows, done.present) == (N_ROWS, open_store(path)["audio/toy"].present.sum())
    assert seen[-1] == (N_ROWS, N_ROWS)


def test_a_row_that_always_kills_costs_its_chunk_and_no_other(ray, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "MOST_LOSSES", 2)
    path = empty_store(tmp_path / "features.zarr")
    contents = [[1.0, row] for row in range(N_ROWS)]
    with pytest.raises(WorkersLost, match="7 rows are still pending, of rows 28 to 34: 2 workers died") as told:
        featurize_far(path, 1, encoder=KillingEncoder(1.0 + 30), contents=contents)
    assert "\n" not in str(told.value)
    status = open_store(path)["audio/toy"].status
    assert np.flatnonzero(status != Status.PRESENT).tolist() == list(range(28, 35))


def test_a_pool_grows_while_all_are_busy_up_to_its_limit(ray, tmp_path, one_process):
    path = empty_store(tmp_path / "features.zarr")
    (tmp_path / "pids").mkdir()
    featurize_far(path, encoder=SigningEncoder(tmp_path / "pids", 2), engine=RayEngine(actors=(1, 2), cpus=0.2))
    assert len(list((tmp_path / "pids").iterdir())) == 2
    assert every_file(path) == one_process


def test_actors_that_share_a_gpu(ray, tmp_path):
    """Two halves are all there is room for, though there are CPUs for more; the cluster has no GPU but believes so."""
    path = empty_store(tmp_path / "features.zarr")
    (tmp_path / "pids").mkdir()
    left = []
    featurize_far(
        path,
        encoder=SigningEncoder(tmp_path / "pids", 2),
        engine=RayEngine(cpus=0.1, gpus=0.5, device="cpu"),
        progress=lambda *_: left.append(ray.available_resources().get("GPU", 0.0)),
    )
    assert len(list((tmp_path / "pids").iterdir())) == 2 and min(left) == 0.0


def test_a_killed_driver_loses_nothing_and_leaves_nobody(ray, tmp_path, one_process):
    path = empty_store(tmp_path / "features.zarr")
    address = ray.get_runtime_context().gcs_address
    context = multiprocessing.get_context("spawn")  # Ray hangs in children of a process that has threads
    stuck = (path, 1, StuckEncoder(2 * CHUNK_ROWS), CONTENTS, address)
    driver = context.Process(target=featurize_far, args=stuck, daemon=True)
    driver.start()
    while not ("audio/toy" in open_store(path).features() and open_store(path)["audio/toy"].present.any()):
        assert driver.is_alive()
        time.sleep(0.05)
    with pytest.raises(StoreError, match=f"is being written by process {driver.pid}"):
        featurize_far(path)
    os.kill(driver.pid, signal.SIGKILL)
    driver.join(60)
    kept = open_store(path)["audio/toy"].present.sum()
    assert 0 < kept < N_ROWS
    done = featurize_far(path, 1)
    assert done.unchanged >= kept and every_file(path) == one_process
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:  # actors of the dead end, too
        time.sleep(0.1)


def test_a_cluster_that_starts_here_listens_on_the_loopback_interface_only(ray):
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def test_what_a_machine_does_not_have_gets_a_line(ray, tmp_path):
    with pytest.raises(ConfigError, match="with 1e[+]06 CPU cannot be started"):
        featurize_far(empty_store(tmp_path / "features.zarr"), engine=RayEngine(cpus=1e6))


def work(encoder, feature, contents=CONTENTS, record=None) -> Ended:
    """What an actor does, in this process."""
    shape = Shape(feature.name, feature.n_segments, feature.width, feature.chunk_rows, feature.max_frames)
    record = record or encoder.record.to_dict()
    job = Job(encoder, ToySource(contents), record, shape, "cpu", 0, 4, False, DEFAULT_LIMITS)
    worker, chunks = Worker(job), iter(feature.chunks())
    while True:
        for message in worker.messages():
            match message:
                case Wanted():
                    worker.take(next(chunks, None))
                case Written(chunk, arguments):
                    feature.write_chunk(chunk, *arguments)
                case Ended():
                    return message


@pytest.fixture
def feature():
    return make_store(MemoryTree(), N_ROWS, CHUNK_ROWS).create_feature("audio/toy", ToyEncoder().record.to_dict())


def test_a_bug_in_an_actor_keeps_its_traceback(feature):
    class Broken(ToyEncoder):
        def cost(self, item):
            raise ZeroDivisionError("a bug")

    ended = work(Broken(), feature)
    assert ended.error is None and "in cost" in ended.trace and ended.trace.endswith("ZeroDivisionError: a bug\n")


def test_vectors_of_other_versions_never_mix(feature):
    class NewerThere(ToyEncoder):
        libraries = ("numpy",)

    made_elsewhere = {**ToyEncoder().record.to_dict(), "libraries": {"numpy": "0.1"}}
    error = work(NewerThere(), feature, record=made_elsewhere).error
    assert isinstance(error, ConfigError) and f"has numpy {np.__version__}, not 0.1; " in str(error)
    assert not feature.status.any()


def test_numbers_beyond_float16_turn_the_feature_to_float32(feature):
    class Large(ToyEncoder):
        def forward(self, batch):
            return Encoded(torch.where(batch["vectors"][:, 2:] > 29, 1e6, super().forward(batch).pooled))

    assert work(Large(), feature, [[float(row)] for row in range(N_ROWS)]) == Ended()
    assert feature.dtype == np.float32 and feature.vectors[:, 0].tolist()[28:32] == [42.0, 43.5, 1e6, 1e6]


def test_the_command_of_the_document(ray, ten_chunks, run_cli):  # noqa: F811
    line = next(line for line in snippet("ray").splitlines() if line.startswith("cli "))
    assert "--address auto --actors 1..16 --gpus-per-actor 0.5" in line
    words = line.replace("clap", "midi_stats").replace("--gpus-per-actor 0.5", "--cpus-per-actor 0.2").split()[1:]
    one, many = (shutil.copytree(ten_chunks, ten_chunks.with_name(f"ray-{n}.zarr")) for n in ("one", "many"))
    told = run_cli(*words, "--workers", "0", "--store", many).output  # `ray` is connected already
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", "--store", one)
    assert "midi/midi_stats: 21 present, 27 absent" in told and every_file(many) == every_file(one)
