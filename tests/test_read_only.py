"""As a user who may read and not write: reading works, writing is refused in a line, and nothing changes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import struct
import sys
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from tests.test_kill import every_file
from tests.unrendered import unrendered_pictures

IS_ROOT = os.name == "posix" and os.geteuid() == 0
pytestmark = pytest.mark.skipif(
    os.name != "posix" or (IS_ROOT and sys.platform != "linux"),
    reason="rights of files are POSIX's, and root can give up its own on Linux only",
)

CAPABILITY_VERSION = 0x20080522  # capset(2), version 3
FIT = ("--set", "training.epochs=1", "--set", "training.bootstrap=100", "--seeds", "1", "--no-baselines")


def invoke(arguments: tuple[str, ...]) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def without_privileges(folder: Path, commands: list[tuple[str, ...]], outcomes: SimpleQueue) -> None:
    """Root may write anywhere. Without its capabilities it is the owner of its files, and what is locked is locked."""
    if IS_ROOT:
        nothing = struct.pack("6I", *[0] * 6)
        assert ctypes.CDLL(None).capset(struct.pack("Ii", CAPABILITY_VERSION, 0), nothing) == 0
    os.chdir(folder)
    with unrendered_pictures():
        outcomes.put([invoke(command) for command in commands])


def test_a_store_that_may_only_be_read(tmp_path, run_cli: Callable[..., object], monkeypatch):
    original = tmp_path / "writable"
    original.mkdir()
    monkeypatch.chdir(original)
    rows = "".join(f"s{row},g{row // 2},la {'lo' * row} le,{'calm' if row % 2 else 'wild'}\n" for row in range(40))
    Path("segments.csv").write_text(f"segment_id,group,text,mood\n{rows}")
    stores = ("features.zarr", "features.h5")
    for store in stores:
        run_cli("ingest", "segments.csv", "--store", store)
        run_cli("featurize", "--encoder", "lsa", "--workers", "0", "--store", store)
    locked = Path(shutil.copytree(original, tmp_path / "read-only"))
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
    process = context.Process(target=without_privileges, args=(locked, reading + writing, outcomes))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    found = outcomes.get()
    for command, (code, output) in zip(reading, found[: len(reading)], strict=True):
        assert code == 0, (command, output)
    for command, (code, output) in zip(writing, found[len(reading) :], strict=True):
        assert code == 2 and "cannot be written: Permission denied" in output.splitlines()[-1], (command, output)
    assert every_file(locked) == before
