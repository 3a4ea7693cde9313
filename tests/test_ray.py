"""Ray on this machine: the same bytes with any number of actors, whoever is killed; one cluster for all tests here."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ray")

from featurize.engines.ray import RayEngine, WorkersLost, cluster
from featurize.errors import ConfigError
from featurize.limits import DEFAULT_LIMITS
from stores import open_store
from stores.errors import StoreError
from stores.feature import Status
from tests.test_kill import every_file
from tests.test_shards import CONTENTS, N_ROWS, empty_store, featurize_in_place
from tests.toys import ToyEncoder, ToySource


@pytest.fixture(scope="module")
def ray():
    with cluster(None) as ray:
        yield ray


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> dict[str, bytes]:
    path = empty_store(tmp_path_factory.mktemp("one") / "features.zarr")
    featurize_in_place(path)
    return every_file(path)


def featurize_far(path: Path, n_actors: int = 2, encoder=None, contents=CONTENTS, address=None, progress=None):
    store, encoder = open_store(path), encoder or ToyEncoder()
    with store.writing("audio/toy"):
        feature = store.open_feature("audio/toy", encoder.record.to_dict())
        engine = RayEngine(address, (n_actors, n_actors), cpus=0.2)  # however few cores there are
        settings = {"workers": 0, "batch_size": 4, "retry_failed": False, "limits": DEFAULT_LIMITS}
        return engine.extract(feature, encoder, ToySource(contents), **settings, progress=progress)


@pytest.mark.parametrize("n_actors", [1, 2, 4])
def test_any_number_of_actors_ends_with_the_bytes_of_one_process(ray, tmp_path, one_process, n_actors):
    path = empty_store(tmp_path / "features.zarr")
    seen = []
    done = featurize_far(path, n_actors, progress=lambda n, total: seen.append((n, total)))
    assert every_file(path) == one_process
    status = open_store(path)["audio/toy"].status()
    assert (done.rows, done.present) == (N_ROWS, (status == Status.PRESENT).sum()) and done.encoded + done.copied
    assert seen[-1] == (N_ROWS, N_ROWS)
    again = featurize_far(path, n_actors)
    assert (again.unchanged, again.encoded, again.copied) == (N_ROWS, 0, 0) and every_file(path) == one_process


class Killing(ToyEncoder):
    """Its process dies where `row_sum` comes along: once, where there is a file to remember that, else always."""

    def __init__(self, row_sum: float, memory: Path | None = None):
        super().__init__()
        self.row_sum, self.memory = row_sum, memory

    def prepare(self, raw):
        dies = abs(float(np.frombuffer(raw.samples, "<f4").sum()) - self.row_sum) < 1e-6
        if dies and not (self.memory and self.memory.exists()):
            if self.memory:
                self.memory.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(raw)


def test_what_a_killed_actor_had_is_done_by_another(ray, tmp_path, one_process):
    path = empty_store(tmp_path / "features.zarr")
    encoder = Killing(float(np.sum(CONTENTS[30])), tmp_path / "killed")
    featurize_far(path, encoder=encoder)
    assert (tmp_path / "killed").exists()
    assert {**every_file(path), "features/audio/toy/zarr.json": b""} == {
        **one_process,
        "features/audio/toy/zarr.json": b"",  # the class has another name
    }


def test_a_row_that_always_kills_costs_its_chunk_and_no_other(ray, tmp_path):
    path = empty_store(tmp_path / "features.zarr")
    contents = [[1.0, row] for row in range(N_ROWS)]
    with pytest.raises(WorkersLost, match="7 rows are still pending, of rows 28 to 34: 3 workers died") as told:
        featurize_far(path, encoder=Killing(1.0 + 30), contents=contents)
    assert "\n" not in str(told.value)
    status = open_store(path)["audio/toy"].status()
    assert np.flatnonzero(status != Status.PRESENT).tolist() == list(range(28, 35))


class Broken(ToyEncoder):
    def collate(self, items):
        raise SystemExit("a bug")


def test_a_bug_in_an_actor_keeps_its_traceback(ray, tmp_path):
    with pytest.raises(RuntimeError, match="in collate(.|\n)*SystemExit: a bug"):
        featurize_far(empty_store(tmp_path / "features.zarr"), encoder=Broken())


class OtherThere(ToyEncoder):
    """Says in an actor that it depends on another version than where it was made."""

    libraries = ("numpy",)

    def __init__(self):
        super().__init__()
        self.made_in = os.getpid()

    @property
    def record(self):
        from dataclasses import replace

        version = np.__version__ if os.getpid() == self.made_in else "0.1"
        return replace(super().record, libraries={"numpy": version})


def test_vectors_of_other_versions_never_mix(ray, tmp_path):
    with pytest.raises(ConfigError, match="has numpy 0.1, not [1-9].*never mix"):
        featurize_far(empty_store(tmp_path / "features.zarr"), encoder=OtherThere())


class Large(ToyEncoder):
    def forward(self, batch):
        encoded = super().forward(batch)
        return type(encoded)(torch.where(batch["vectors"][:, 2:] > 29, 1e6, encoded.pooled))


def test_numbers_beyond_float16_turn_the_feature_to_float32(ray, tmp_path):
    path = empty_store(tmp_path / "features.zarr")
    featurize_far(path, encoder=Large(), contents=[[float(row)] for row in range(N_ROWS)])
    feature = open_store(path)["audio/toy"]
    assert feature.dtype == np.float32 and feature.vectors()[:, 0].tolist()[28:32] == [42.0, 43.5, 1e6, 1e6]


def test_a_killed_driver_loses_nothing_and_leaves_nobody(ray, tmp_path, one_process):
    path = empty_store(tmp_path / "features.zarr")
    address = ray.get_runtime_context().gcs_address
    context = multiprocessing.get_context("forkserver")
    slow = (path, 2, ToyEncoder(delay_seconds=0.05), CONTENTS, address)
    driver = context.Process(target=featurize_far, args=slow, daemon=True)
    driver.start()
    while not ("audio/toy" in open_store(path).features() and open_store(path)["audio/toy"].status().any()):
        assert driver.is_alive()
        time.sleep(0.05)
    with pytest.raises(StoreError, match=f"is being written by process {driver.pid}"):
        featurize_far(path)
    os.kill(driver.pid, signal.SIGKILL)
    driver.join(60)
    left = open_store(path)["audio/toy"]
    kept = (left.status() == Status.PRESENT).sum()
    assert 0 < kept < N_ROWS
    done = featurize_far(path)
    assert done.unchanged >= kept and every_file(path) == one_process
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:  # actors of the dead end, too
        time.sleep(0.1)


def test_the_command(ray, tmp_path, demo_data, run_cli):
    stores = [tmp_path / name for name in ("one.zarr", "many.zarr")]
    for store in stores:
        run_cli("ingest", demo_data, "--chunk-rows", "6", "--store", store)
    arguments = ("featurize", "--encoder", "lsa", "--frames", "0")
    run_cli(*arguments, "--store", stores[0])
    told = run_cli(*arguments, "--store", stores[1], "--engine", "ray", "--actors", "1..2", "--cpus-per-actor", "0.2")
    assert "45 encoded" in told.output or "present" in told.output
    assert every_file(stores[0]) == every_file(stores[1])


def test_what_a_machine_does_not_have_gets_a_line(ray, tmp_path, monkeypatch):
    engine = RayEngine(cpus=1e6)
    with pytest.raises(ConfigError, match="with 1e[+]06 CPU cannot be started"):
        store = open_store(empty_store(tmp_path / "features.zarr"))
        feature = store.create_feature("audio/toy", ToyEncoder().record.to_dict())
        settings = {"workers": 0, "batch_size": 4, "retry_failed": False, "limits": DEFAULT_LIMITS, "progress": None}
        engine.extract(feature, ToyEncoder(), ToySource(CONTENTS), **settings)
