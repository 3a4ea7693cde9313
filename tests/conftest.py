"""Shared fixtures: a small demo data set, and the `cli` as a user types it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import TYPE_CHECKING

# many processes are started here, and each would compile the package anew, which takes up to a second and a half
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: a process a core, so a thread a process
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings

from cli import cli
from featurize.demo import make_demo
from featurize.workers import process_context
from stores.remote import RemotePath
from tests.unrendered import unrendered_pictures

if TYPE_CHECKING:
    from tests.object_storage import FaultyStorage

settings.register_profile("any machine", deadline=None)  # machines are noisy; time is benchmarks' affair
settings.load_profile("any machine")

MOOD_SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "mood-sample"

needs_mood_sample = pytest.mark.skipif(
    not MOOD_SAMPLE.is_dir(), reason="the mood-sample clips are not distributed with the project"
)


@pytest.fixture(scope="session", autouse=True)
def worker_server() -> None:
    """One server that forks all worker processes; else those of each `cli ingest` import again what takes a second.

    Commands that run as processes of their own start theirs as users' do.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        of_tests = ["pytest", "tests.test_shards", "torch._dynamo"]  # which torch imports for the first optimizer
        process_context("featurize.extract").set_forkserver_preload(
            ["featurize.align", "featurize.encoders.mel_stats", "featurize.stated_times", "fusion.ablation", *of_tests]
        )
        ensure_running()


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with segments.csv of 12 songs with 4 segments; read only."""
    root = tmp_path_factory.mktemp("demo-data")
    make_demo(root, n_songs=12, segments_per_song=4, segment_seconds=2.0, seed=1)
    return root


@pytest.fixture(scope="module")
def unrendered() -> Iterator[None]:
    """Reports are written without the pictures' time: `tests.unrendered`."""
    with unrendered_pictures():
        yield


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, and we stand in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No code of a user's has been named, by whatever test before; and none is known afterwards."""
    monkeypatch.setattr("featurize.user_code._allowed", {})
    monkeypatch.setattr("featurize.user_code._classes", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "evil")):
            del sys.modules[name]


@pytest.fixture
def run_cli() -> Callable[..., Result]:
    """`run_cli("fit", "--fusion", "gated")`; fails the test on a traceback, or on another exit code than `code`."""

    def run(*arguments: str | Path, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    return run


@pytest.fixture(scope="session")
def running_storage() -> Iterator[FaultyStorage]:
    from tests.object_storage import FaultyStorage

    storage = FaultyStorage()
    yield storage
    storage.close()


@pytest.fixture
def storage(running_storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch) -> FaultyStorage:
    """An S3 server on loopback, without faults as yet, that the environment leads to."""
    from tests.object_storage import CREDENTIALS

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": running_storage.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRIAD_CACHE", raising=False)
    running_storage.forget()
    return running_storage


@pytest.fixture
def bucket(storage: FaultyStorage) -> RemotePath:
    """A new bucket there."""
    return RemotePath(f"s3://{storage.new_bucket()}", "")
