"""What one file can suffer: damage anywhere, killed writers, several processes at once, and files of other people."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from featurize.extract import extract
from stores import open_store
from stores.backends import kind_at, new_tree
from stores.base import STRING, ArrayTree
from stores.errors import DamagedStore, StoreError
from stores.feature import Status
from stores.hdf5_store import Hdf5Tree, new_hdf5_tree
from stores.journal import JournaledFile
from stores.store import Split
from stores.verify import remedies, verify
from tests.stores_contract import RECORD, make_store, write
from tests.toys import ToyEncoder, ToySource, toy_contents, toy_feature

pytestmark = pytest.mark.usefixtures("unrendered")

KILLS = 3
FLIPS = 80


def everything(tree: ArrayTree, path: str = "") -> dict[str, object]:
    """Every array and attribute of a tree, by path."""
    found: dict[str, object] = {f"{path} attributes": tree.attributes(path)}
    children = tree.children(path)
    for name in children:
        found |= everything(tree, f"{path}/{name}" if path else name)
    if path and not children and path not in ("features", "splits"):
        values = tree.read(path)
        found[path] = (values.tolist(), values.dtype, tree.layout(path), tree.stored_chunks(path))
    return found


@pytest.fixture
def store_path(tmp_path) -> Path:
    path = tmp_path / "features.h5"
    with new_hdf5_tree(path) as tree:
        store = make_store(tree, 2000, 512)
        feature = store.create_feature("audio/toy", RECORD, frames=2)
        for chunk in feature.chunks()[:3]:
            write(feature, chunk, list(chunk), n_frames=2)
    return path


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(store_path, tmp_path):
    whole, content = everything(Hdf5Tree(store_path)), store_path.read_bytes()
    places = random.Random(0)
    found = 0
    for _ in range(FLIPS):
        damaged = bytearray(content)
        damaged[places.randrange(len(content))] ^= 1 << places.randrange(8)
        (tmp_path / "damaged.h5").write_bytes(damaged)
        try:
            assert everything(Hdf5Tree(tmp_path / "damaged.h5")) == whole
        except StoreError:  # a DamagedStore; or the signature itself was hit
            found += 1
    assert found > FLIPS / 2


def test_verify_lists_all_damage_also_where_names_are_lost(store_path):
    with h5py.File(store_path) as file:
        at = [h5py.h5o.get_info(file[name].id).addr for name in ("features/audio", "labels/mood", "segments")]
    content = bytearray(store_path.read_bytes())
    for address in at:
        content[address + 12] ^= 1
    store_path.write_bytes(content)
    store = open_store(store_path)
    damages = list(verify(store))
    found = {damage.where: damage.array for damage in damages}
    assert found == {"segments": "attributes", "labels/mood": "mood", "features/audio": "names"}
    assert all("checksum" in damage.reason for damage in damages)
    assert [line.partition(" makes")[0] for line in remedies(store, damages)][-1] == "cli ingest DATA --replace"


def test_a_block_of_zeros_is_damage_not_zeros(store_path):
    """What a file system leaves of a block it lost; Fletcher-32 alone takes it for sound."""
    with h5py.File(store_path) as file:
        chunk = file["features/audio/toy/vectors"].id.get_chunk_info(1)
    content = bytearray(store_path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    store_path.write_bytes(content)
    (damage,) = verify(open_store(store_path))
    assert str(damage).startswith("audio/toy: vectors, chunk 1, rows 512 to 1023: ") and "checksum" in damage.reason
    with pytest.raises(DamagedStore, match="cli verify"):
        open_store(store_path)["audio/toy"].vectors[:]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off_says_so(store_path, share):
    content = store_path.read_bytes()
    store_path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(StoreError, match=r"features\.h5.*(truncated|neither)"):
        open_store(store_path)


def featurize_in_place(path: Path, ready=None) -> None:
    feature = open_store(path)["audio/toy"]
    if ready is not None:
        ready.set()
    source = ToySource(toy_contents(60))
    extract(feature, ToyEncoder(delay_seconds=0.005), source, batch_size=4, save_every_seconds=0)


def test_killed_at_random_moments_the_store_ends_with_the_same_contents(tmp_path):
    def new(name: str) -> Path:
        with new_hdf5_tree(tmp_path / name) as tree:
            toy_feature(tree, 60, 15)
        return tmp_path / name

    reference = new("never.h5")
    featurize_in_place(reference)
    whole = open_store(reference)["audio/toy"].vectors[:]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.test_hdf5"])
    moments = random.Random(0)
    died, killed = 0, new("killed.h5")
    for attempt in range(20 * KILLS):
        ready = context.Event()
        process = context.Process(target=featurize_in_place, args=(killed, ready))
        process.start()
        assert ready.wait(60)
        process.join(moments.uniform(0, 0.2))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen = open_store(killed)["audio/toy"]
        present = seen.status == Status.PRESENT
        assert (seen.vectors[present] == whole[present]).all()
        died += process.exitcode == -signal.SIGKILL
        if died == KILLS:
            break
        if process.exitcode == 0:
            assert everything(Hdf5Tree(killed)) == everything(Hdf5Tree(reference))
            killed = new(f"killed.{attempt}.h5")
    assert died == KILLS
    featurize_in_place(killed)
    assert everything(Hdf5Tree(killed)) == everything(Hdf5Tree(reference))


class Killed(BaseException):
    """No process needs to die for it: what is on the disk at this moment is what a killed one leaves."""


def test_killed_at_every_single_write_a_step_is_there_or_not(store_path, monkeypatch):
    """The file system seen as a row of operations: stop before each of them, in turn."""
    before = everything(Hdf5Tree(store_path))
    reference = shutil.copy(store_path, store_path.with_name("reference.h5"))
    new = np.full((512, 3), 7, np.float16)
    Hdf5Tree(reference).write("features/audio/toy/vectors", 512, new)
    after = everything(Hdf5Tree(reference))
    seen = []
    for allowed in range(1000):
        shutil.copy(reference.with_name("original.h5"), store_path) if allowed else shutil.copy(
            store_path, store_path.with_name("original.h5")
        )
        left = [allowed]

        def once(original, left=left):
            def counted(*args, **kwargs):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*args, **kwargs)

            return counted

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", once(Path.replace))
            patched.setattr(Path, "unlink", once(Path.unlink))
            patched.setattr("stores.journal.PIECE", _CountedStruct(once))
            try:
                Hdf5Tree(store_path).write("features/audio/toy/vectors", 512, new)
            except Killed:
                pass
        finished = left[0] > 0
        found = everything(Hdf5Tree(store_path))  # which finishes what was begun
        assert found in (before, after)
        seen.append(found == after)
        assert not JournaledFile(store_path).journal.exists()
        if finished:
            break
    assert seen == sorted(seen) and not seen[0] and seen[-1] and len(seen) > 6


class _CountedStruct:
    """A piece of the journal on its way, in either direction."""

    def __init__(self, once):
        from stores.journal import PIECE

        self.size, self.pack, self.unpack = PIECE.size, once(PIECE.pack), once(PIECE.unpack)


def write_own_chunks(path: Path, first: int) -> None:
    feature = open_store(path)["audio/toy"]
    for chunk in feature.chunks()[first::2]:
        for row in chunk:
            write(feature, chunk, [row], float(row))


def test_two_processes_write_their_chunks_while_a_third_reads(tmp_path):
    path = tmp_path / "features.h5"
    with new_hdf5_tree(path) as tree:
        make_store(tree, 24, 4).create_feature("audio/toy", RECORD)
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=write_own_chunks, args=(path, first)) for first in (0, 1)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen = open_store(path)["audio/toy"]
        status = seen.status
        assert (seen.vectors[status == 1, 0] == np.flatnonzero(status == 1)).all()
    assert [writer.exitcode for writer in writers] == [0, 0]
    np.testing.assert_array_equal(open_store(path)["audio/toy"].vectors[:, 0], np.arange(24))
    assert list(verify(open_store(path))) == []


def test_a_notebook_that_has_the_file_open_is_named(store_path, monkeypatch):
    monkeypatch.setattr("stores.journal.WAIT_SECONDS", 0.05)
    with h5py.File(store_path, "r"):
        assert open_store(store_path).n_segments == 2000
        with pytest.raises(StoreError, match=r"features\.h5 is in use by another process"):
            open_store(store_path).delete_split("nothing")


def test_a_journal_of_another_file_is_refused_and_one_of_a_deleted_file_forgotten(store_path):
    journal = JournaledFile(store_path).journal
    journal.write_bytes(b"TRIADJ1\n" + (1).to_bytes(8, "little") * 3)
    with pytest.raises(DamagedStore, match=r"\.features\.h5\.journal does not belong to"):
        open_store(store_path)
    store_path.unlink()
    with new_hdf5_tree(store_path) as tree:
        make_store(tree)
    assert open_store(store_path).n_segments == 10


def test_leftovers_of_a_writer_killed_before_its_step_counted(store_path):
    partial = JournaledFile(store_path).journal.with_suffix(".partial")
    partial.write_bytes(b"half")
    store = open_store(store_path)
    store.tree.remove_leftovers()
    assert partial.exists()  # it may be a living writer's
    store.tree.remove_leftovers(older_than_seconds=0)
    assert not partial.exists() and list(verify(store)) == []


def test_a_new_file_appears_whole_or_not_at_all_and_only_stores_are_replaced(tmp_path):
    path = tmp_path / "features.h5"
    with pytest.raises(KeyboardInterrupt), new_tree(path) as tree:
        make_store(tree)
        raise KeyboardInterrupt
    assert not path.exists()
    with new_tree(path) as tree:
        make_store(tree)
    with pytest.raises(StoreError, match="--replace"), new_tree(path):
        pass
    with new_tree(path, replace=True) as tree:
        make_store(tree, n=3)
    assert open_store(path).n_segments == 3 and [p.name for p in tmp_path.iterdir()] == ["features.h5"]
    vectors = tmp_path / "vectors.h5"
    with h5py.File(vectors, "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(StoreError, match="not a store"), new_tree(vectors, replace=True):
        pass
    with pytest.raises(StoreError, match="no triad-fusion store"):
        open_store(vectors)


def test_the_kind_of_a_store_is_what_lies_there_and_a_new_ones_its_suffix(tmp_path):
    for name, kind in (("a.h5", "hdf5"), ("b.HDF5", "hdf5"), ("c.zarr", "zarr"), ("d", "zarr")):
        with new_tree(tmp_path / name) as tree:
            make_store(tree)
        assert kind_at(tmp_path / name) == kind
        (tmp_path / name).rename(tmp_path / "renamed")
        assert open_store(tmp_path / "renamed").n_segments == 10
        (tmp_path / "renamed").rename(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(StoreError, match="neither a Zarr folder nor an HDF5 file"):
        open_store(tmp_path / "notes.txt")


def test_every_command_takes_such_a_store(project, demo_data, run_cli):
    data = shutil.copytree(demo_data, project / "songs")
    table = (data / "segments.csv").read_text("utf-8").splitlines()
    (data / "segments.csv").write_text("\n".join(table[:-4]), "utf-8")  # the last song comes later
    store = ("--store", "features.h5", "--set", "model.targets=[{name: mood}]")
    run_cli("ingest", "songs", *store)
    for encoder in ("lsa", "midi_stats"):
        run_cli("featurize", "--encoder", encoder, "--workers", "0", *store)
    (data / "segments.csv").write_text("\n".join(table), "utf-8")
    assert "has grown" in run_cli("ingest", "songs", *store).output
    result = run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", *store)
    assert "44 unchanged" in result.output
    assert "4 of 48 rows are pending" in run_cli("fit", *store, code=2).output
    run_cli("featurize", "--encoder", "lsa", "--workers", "0", *store)
    run_cli("split", "--replace", *store)
    assert "audio" not in run_cli("fit", "--no-baselines", "--seeds", "1", "--set", "training.epochs=2", *store).output
    assert "48 segments in 12 groups" in run_cli("inspect", "--store", "features.h5").output
    assert "every chunk is there" in run_cli("verify", "--store", "features.h5").output
    assert sorted(path.name for path in project.iterdir()) == ["features.h5", "runs", "songs"]


def test_a_folder_that_cannot_be_written_is_told_and_nothing_changes(store_path, monkeypatch):
    before = store_path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="cannot be written: No space left on device. It is as it was"):
        open_store(store_path).write_split(Split("s", np.zeros(2000, np.uint8), {"method": "grouped"}))
    assert store_path.read_bytes() == before and len(list(store_path.parent.iterdir())) == 1


def test_texts_grow_and_keep_their_chunks_and_attributes(tmp_path):
    with new_hdf5_tree(tmp_path / "features.h5"):
        pass
    tree = Hdf5Tree(tmp_path / "features.h5")
    tree.create("texts", (6,), STRING, 2)
    tree.set_attributes("texts", {"a": "ü"})
    tree.write("texts", 0, np.array(["a", ""], STRING))
    tree.write("texts", 4, np.array(["日本" * 5000, "b"], STRING))
    assert tree.read("texts").tolist() == ["a", "", "", "", "日本" * 5000, "b"]
    assert tree.stored_chunks("texts") == {0, 2} and tree.attributes("texts") == {"a": "ü"}
    assert tree.children("") == ["texts"] and (tmp_path / "features.h5").stat().st_size < 20_000
    with pytest.raises(StoreError, match="ends in a NUL"):
        tree.write("texts", 0, np.array(["a\0", ""], STRING))


def test_attributes_may_be_long(tmp_path):
    with new_hdf5_tree(tmp_path / "features.h5") as tree:
        tree.set_attributes("g", {"long": "ü" * 200_000})
    assert Hdf5Tree(tmp_path / "features.h5").attributes("g") == {"long": "ü" * 200_000}


def test_python_objects_are_not_read(store_path):
    with h5py.File(store_path, "r+") as file:
        file.create_dataset("labels/foreign", (3,), h5py.vlen_dtype(np.float32), chunks=(3,))
    with pytest.raises(StoreError, match="not written by this project"):
        Hdf5Tree(store_path).read("labels/foreign")
