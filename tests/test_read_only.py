"""As a user who may read and not write: reading works, writing is refused in a line, and nothing changes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from tests.test_kill import every_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")

NOBODY = 65_534
FIT = ("--set", "training.epochs=1", "--set", "training.bootstrap=100", "--seeds", "1", "--no-baselines")


def invoke(arguments: tuple[str, ...]) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def as_nobody(folder: Path, commands: list[tuple[str, ...]], outcomes: SimpleQueue) -> None:
    """Root may write anywhere, and stops being root here. Each command first runs as root, in a copy: what it imports
    may lie where nobody else can read."""
    os.chdir(folder / "writable")
    for command in commands:
        invoke(command)
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0o777)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    os.chdir(folder / "read-only")
    outcomes.put([invoke(command) for command in commands])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Not pytest's own, which only its owner can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_store_that_may_only_be_read(open_folder, run_cli: Callable[..., object], monkeypatch):
    original = open_folder / "writable"
    original.mkdir()
    monkeypatch.chdir(original)
    rows = "".join(f"s{row},g{row // 2},la {'lo' * row} le,{'calm' if row % 2 else 'wild'}\n" for row in range(40))
    Path("segments.csv").write_text(f"segment_id,group,text,mood\n{rows}")
    stores = ("features.zarr", "features.h5")
    for store in stores:
        run_cli("ingest", "segments.csv", "--store", store)
        run_cli("featurize", "--encoder", "lsa", "--store", store)
    locked = Path(shutil.copytree(original, open_folder / "read-only"))
    for path in [*locked.rglob("*"), locked]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = every_file(locked)
    reading = [(name, "--store", store) for name in ("inspect", "verify") for store in stores]
    reading += [("fit", "--store", s, "--runs", "../runs", "--name", s, "--target", "mood", *FIT) for s in stores]
    writing = [("featurize", "--encoder", "lsa", "--as", "more", "--store", store) for store in stores]
    writing += [("split", "--name", "more", "--store", store) for store in stores]
    writing += [("ingest", "segments.csv", "--store", store) for store in ("other.zarr", "other.h5")]
    context = multiprocessing.get_context("forkserver")
    outcomes = context.SimpleQueue()
    process = context.Process(target=as_nobody, args=(open_folder, reading + writing, outcomes))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    found = outcomes.get()
    for command, (code, output) in zip(reading, found[: len(reading)], strict=True):
        assert code == 0, (command, output)
    for command, (code, output) in zip(writing, found[len(reading) :], strict=True):
        assert code == 2 and "cannot be written: Permission denied" in output.splitlines()[-1], (command, output)
    assert every_file(locked) == before
