"""All backends pass the contract; what only files can suffer is tested below."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from stores import open_store
from stores.backends import new_tree
from stores.errors import DamagedStore, StoreError
from stores.hdf5_store import Hdf5Tree, new_hdf5_tree
from stores.memory_store import MemoryTree
from stores.record import differences, fingerprint
from stores.store import Store
from stores.verify import verify
from stores.zarr_store import ZarrTree, new_zarr_tree
from tests.stores_contract import RECORD, TreeContract, make_store, write


class TestMemory(TreeContract):
    @pytest.fixture
    def tree(self):
        return MemoryTree()

    def reopen(self, tree):
        return tree


class TestHdf5(TreeContract):
    @pytest.fixture
    def tree(self, tmp_path):
        with new_hdf5_tree(tmp_path / "features.h5"):
            pass
        return Hdf5Tree(tmp_path / "features.h5")

    def reopen(self, tree):
        return Hdf5Tree(tree.path)


class TestZarr(TreeContract):
    @pytest.fixture
    def tree(self, tmp_path):
        with new_zarr_tree(tmp_path / "features.zarr"):
            pass
        return ZarrTree(tmp_path / "features.zarr")

    def reopen(self, tree):
        return ZarrTree(tree.path)


@pytest.fixture
def store(tmp_path) -> Store:
    with new_zarr_tree(tmp_path / "features.zarr") as tree:
        made = make_store(tree)
        feature = made.create_feature("audio/toy", RECORD)
        for chunk in feature.chunks()[:2]:
            write(feature, chunk, list(chunk))
    return open_store(tmp_path / "features.zarr")


def test_importing_stores_imports_nothing_heavy():
    code = "import sys, stores; print([m for m in ('torch', 'zarr', 'h5py', 'pyarrow', 'numpy') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    code = "import sys, stores.store, stores.zarr_store, stores.verify, stores.inspect; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


@pytest.mark.parametrize(("name", "other"), [("features.zarr", "h5py"), ("features.h5", "zarr")])
def test_opening_a_store_imports_its_own_backend_alone(tmp_path, name, other):
    with new_tree(tmp_path / name) as tree:
        make_store(tree)
    code = f"import sys, stores; stores.open_store({str(tmp_path / name)!r}).ids; print({other!r} in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_a_flipped_byte_is_found_and_named(store, tmp_path):
    assert list(verify(store)) == []
    victim = tmp_path / "features.zarr/features/audio/toy/vectors/c/1/0"
    content = bytearray(victim.read_bytes())
    content[5] ^= 1
    victim.write_bytes(content)
    (damage,) = verify(store)
    assert str(damage).startswith("audio/toy: vectors, chunk 1, rows 4 to 7: ") and "checksum" in damage.reason
    with pytest.raises(DamagedStore, match="cli verify"):
        store["audio/toy"].vectors[:]


def test_every_file_of_the_store_is_covered(store, tmp_path):
    """Flip one byte in each chunk file: not one passes unseen."""
    files = [file for file in (tmp_path / "features.zarr").rglob("c/**/*") if file.is_file()]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 0xFF]) + content[1:])
        assert len(list(verify(open_store(store.tree.location)))) == 1, file
        file.write_bytes(content)


@pytest.mark.parametrize("array", ["vectors/c/0/0", "input_hash/c/0/0", "failure/c/0"])
def test_a_missing_chunk_is_damage_not_zeros(store, tmp_path, array):
    (tmp_path / "features.zarr/features/audio/toy" / array).unlink()
    (damage,) = verify(store)
    assert damage.reason == "missing" and (damage.start, damage.stop) == (0, 4)
    if array.startswith("vectors"):
        with pytest.raises(DamagedStore, match="rows 0 to 3: the vectors are gone"):
            store["audio/toy"].vectors[:]


def test_a_chunk_never_written_is_pending_not_damage(store):
    assert store["audio/toy"].status.tolist() == [1] * 8 + [0, 0] and list(verify(store)) == []


def test_a_new_store_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "features.zarr"
    with pytest.raises(KeyboardInterrupt), new_zarr_tree(path) as tree:
        make_store(tree)
        raise KeyboardInterrupt
    assert not path.exists()
    with new_zarr_tree(path) as tree:
        make_store(tree)
    with pytest.raises(StoreError, match="--replace"), new_zarr_tree(path):
        pass
    with new_zarr_tree(path, replace=True) as tree:
        make_store(tree, n=3)
    assert open_store(path).n_segments == 3 and [p.name for p in tmp_path.iterdir()] == ["features.zarr"]


@pytest.mark.parametrize("killed", ["between the renames", "while the old one was removed"])
def test_a_replacement_that_was_killed_is_finished(tmp_path, killed):
    path = tmp_path / "features.zarr"
    for name, n in ((".features.zarr.old", 10), (".features.zarr.partial", 3)):
        with new_zarr_tree(tmp_path / name) as tree:
            make_store(tree, n=n)
    if killed != "between the renames":
        (tmp_path / ".features.zarr.partial").rename(path)
        (tmp_path / ".features.zarr.old" / "zarr.json").unlink()
    assert open_store(path).n_segments == 3 and [p.name for p in tmp_path.iterdir()] == ["features.zarr"]


def test_a_folder_that_is_no_store_is_not_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    with pytest.raises(StoreError, match="not a store"), new_zarr_tree(tmp_path / "precious", replace=True):
        pass
    with pytest.raises(StoreError, match="cli ingest"):
        open_store(tmp_path / "precious")


@pytest.mark.parametrize("backend", ["features.zarr", "features.h5"])
def test_a_renewal_that_is_killed_at_any_write_costs_no_ids_and_no_groups(tmp_path, monkeypatch, backend):
    """It once wrote all columns anew: killed, it left a store that nobody could tell the rows of."""
    with new_tree(tmp_path / backend) as tree:
        make_store(tree)
    store = open_store(tmp_path / backend)
    segments = {name: store.segment_column(name) for name in store.segment_columns()}
    labels = {"new": np.arange(10.0), "soft": store.label("soft") + 1}
    original, left = type(store.tree).create, [0]

    def killed(*arguments):
        original(*arguments)  # and nothing is written into it
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(type(store.tree), "create", killed)
    for more in range(len(labels)):
        left[0] = more
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path / backend).update(segments, labels, store.source)
        after = open_store(tmp_path / backend)
        assert (after.ids == segments["id"]).all() and (after.groups == segments["group"]).all()
    left[0] = 99
    after.update(segments, labels, store.source)
    assert open_store(tmp_path / backend).label_names() == list(labels) and list(verify(after)) == []


def test_leftovers_of_a_killed_writer_are_removed(store, tmp_path):
    path = tmp_path / "features.zarr"
    leftover = path / "features/audio/toy/vectors/c/0" / f"0.{'a' * 32}.partial"
    beside_chunks = path / "features/audio/toy/status/c" / f"0.{'b' * 32}.partial"
    for file in (leftover, beside_chunks):
        file.write_bytes(b"x")
    store.tree.remove_leftovers()
    assert leftover.exists() and beside_chunks.exists()  # they may be a living writer's
    assert store.tree.stored_chunks("features/audio/toy/status") == {0, 1} and list(verify(store)) == []
    store.tree.remove_leftovers(older_than_seconds=0)
    assert not leftover.exists() and not beside_chunks.exists() and list(verify(store)) == []


def test_records_differ_by_name_and_value():
    other = {**RECORD, "libraries": {"librosa": "0.11"}, "width": 4}
    assert fingerprint(RECORD) == fingerprint(dict(reversed(RECORD.items())))
    assert differences(RECORD, other) == [
        "libraries: {} in the store, absent now",
        "libraries.librosa: absent in the store, 0.11 now",
        "width: 3 in the store, 4 now",
    ]


def test_string_columns_read_as_numpy_strings(store):
    assert store.ids.dtype == np.dtypes.StringDType()
