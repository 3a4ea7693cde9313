"""A full disk, a file too large, a store deleted midway: one line, exit 2, what is present is whole, and it goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from stores import open_store
from stores.backends import new_tree
from stores.errors import DiskError, disk_message
from stores.verify import verify
from tests.stores_contract import make_store
from tests.test_import import user_table, write_parquet
from tests.test_kill import every_file

FIT = ("--target", "mood", "--seeds", "1", "--set", "training.bootstrap=100")
ENCODE = ("featurize", "--encoder", "midi_stats", "--workers", "0")


@contextmanager
def files_no_larger_than(n_bytes: int):
    """What the system does at a limit: a write beyond it fails with EFBIG. The only refusal that root gets, too."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    writes_nothing, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # Python would not notice half a .pyc
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_nothing
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("store", ["features.zarr", "features.h5"])
def test_ingest_and_featurize_say_so_leave_nothing_half_and_go_on(project, demo_data, run_cli, store):
    with files_no_larger_than(100):
        told = run_cli("ingest", demo_data, "--store", store, code=2).output.splitlines()[-1]
    assert store in told and "cannot be written: File too large" in told and not list(Path().glob("*features*"))
    run_cli("ingest", demo_data, "--store", store)
    with files_no_larger_than(1000):
        told = run_cli(*ENCODE, "--store", store, code=2).output
    assert told.count("\n") == 1 and store in told and "File too large" in told
    assert list(verify(open_store(store))) == []
    run_cli(*ENCODE, "--store", store)
    assert open_store(store)["midi/midi_stats"].status.all()
    with files_no_larger_than(200):
        told = run_cli("fit", "--store", store, "--set", "training.epochs=1", *FIT, code=2).output.splitlines()[-1]
    assert "runs/" in told and "cannot be written: File too large" in told and not list(Path("runs").glob("[!.]*"))


@pytest.mark.parametrize("store", ["features.zarr", "features.h5"])
def test_an_import_and_a_copy_say_so_leave_nothing_half_and_go_on(project, run_cli, monkeypatch, store):
    write_parquet(Path("vectors.parquet"), user_table(400, 32))
    with files_no_larger_than(5000):
        told = run_cli("import", "vectors.parquet", "--store", store, code=2).output.splitlines()[-1]
    assert told.startswith(f"Error: {tempfile.gettempdir()} cannot be written: File too large")  # where vectors wait
    monkeypatch.setattr(tempfile, "TemporaryFile", BytesIO)
    with files_no_larger_than(5000):
        told = run_cli("import", "vectors.parquet", "--store", store, code=2).output.splitlines()[-1]
    assert store in told and "File too large" in told and not list(Path().glob("*features*"))
    run_cli("import", "vectors.parquet", "--store", store)
    whole = {feature: open_store(store)[feature].vectors[:].tobytes() for feature in open_store(store).features()}
    more = ("import", "vectors.parquet", "--column", "lyric_embedding=text/more", "--store", store)
    with files_no_larger_than(5000):
        told = run_cli(*more, code=2).output
    assert told.count("\n") == 1 and "File too large" in told and list(verify(open_store(store))) == []
    run_cli(*more)
    assert open_store(store)["text/more"].vectors[:].tobytes() == whole["text/lyric_embedding"]
    with files_no_larger_than(5000):
        told = run_cli("convert", store, f"copy-{store}", code=2).output
    assert told.count("\n") == 1 and "File too large" in told and not list(Path().glob("*copy*"))
    run_cli("convert", store, f"copy-{store}")


def test_a_new_hdf5_store_is_whole_or_told_wherever_the_disk_ends(tmp_path):
    """HDF5 itself crashes where a write fails, or reports success."""
    path = tmp_path / "features.h5"
    limits = (0, 1, 100, 700, 1500, 2047, 2500, 4000, 6000, 8000, 20_000, 50_000, 100_000, 200_000, 300_000)
    for limit in limits:
        with pytest.raises(DiskError, match="File too large"), files_no_larger_than(limit), new_tree(path) as tree:
            make_store(tree, 2000, 256)
            tree.create("x", (2000, 32), np.dtype("f4"), 256)
            for start in range(0, 2000, 256):
                tree.write("x", start, np.ones((min(256, 2000 - start), 32), "f4"))
        assert not list(tmp_path.iterdir()), limit


def test_a_refused_zarr_store_leaves_nothing_though_its_writers_work_side_by_side(tmp_path):
    path = tmp_path / "features.zarr"
    for _ in range(150):  # one that went on after another's failure made the folder again, in one of fifty
        with pytest.raises(DiskError, match="File too large"), files_no_larger_than(100), new_tree(path) as tree:
            make_store(tree, 40, 16)
        assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_at_any_write_ends_as_one_that_never_did(project, demo_data, run_cli, monkeypatch):
    run_cli("ingest", demo_data)
    shutil.copytree("features.zarr", "whole.zarr")
    run_cli(*ENCODE, "--store", "whole.zarr")
    original, left = Path.replace, [0]

    def full(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", full)
    for more in (1, 3, 9):
        left[0] = more
        told = run_cli(*ENCODE, code=2).output
        assert told.startswith("Error: features.zarr cannot be written: No space left on device.")
        assert told.count("\n") == 1 and list(verify(open_store("features.zarr"))) == []
    monkeypatch.undo()
    os.chdir(project)
    run_cli(*ENCODE)
    assert every_file(project / "features.zarr") == every_file(project / "whole.zarr")


def test_a_store_that_is_deleted_midway_is_not_half_made_again(project, demo_data, run_cli):
    run_cli("ingest", demo_data)
    store = open_store("features.zarr")
    shutil.rmtree("features.zarr")
    with pytest.raises(DiskError, match=r"features\.zarr is gone"):
        store.tree.set_attributes("splits", {"a": 1})
    assert not Path("features.zarr").exists()


def test_other_errors_of_the_system_are_bugs():
    assert disk_message(FileNotFoundError(errno.ENOENT, "x", "y")) is None
    assert "y cannot be written: Permission denied" in str(disk_message(PermissionError(errno.EACCES, "x", "y")))
