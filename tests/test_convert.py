"""`cli convert`: whatever a store holds arrives in the other backend, and comes back the same."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores import open_store
from stores.backends import open_tree
from stores.base import STRING
from stores.convert import differences
from stores.errors import StoreError
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Split
from stores.verify import verify
from stores.zarr_store import new_zarr_tree
from tests.stores_contract import RECORD, SHARED, TEXTS, make_store, write


@pytest.fixture
def full_store(project):
    """One of everything: pending, absent and failed rows, frames, state, float32, a split, an alignment."""
    with new_zarr_tree(project / "features.zarr") as tree:
        store = make_store(tree, n=11, chunk_rows=4)
        store.write_split(Split("cv.0", np.arange(11).astype(np.uint8) % 3, {"method": "grouped", "seed": 1}))
        store.write_alignment({"offset_seconds": np.full(11, np.nan), "verdict": np.zeros(11, STRING)}, {"version": 1})
        plain = store.create_feature("audio/toy", RECORD, state={"idf": np.arange(5.0), "empty": np.zeros((0, 2))})
        write(plain, plain.chunks()[0], [0, 2], 1.5)
        write(plain, plain.chunks()[0], [1], status=Status.ABSENT)
        write(plain, plain.chunks()[2], [9], status=Status.FAILED, reason="kaputt – 壊れた")
        wide = store.create_feature("a concept/töy.v2", {**RECORD, "modality": "concept"}, frames=3)
        write(wide, wide.chunks()[1], [4, 5], 1e6, n_frames=2)  # beyond float16
    return project


@pytest.mark.parametrize("middle", ["features.h5", "other/copy.hdf5", "copy.zarr"])
def test_there_and_back_every_array_and_attribute_is_the_same(full_store, run_cli, middle):
    (full_store / "other").mkdir()
    assert "equal to features.zarr" in run_cli("convert", "features.zarr", middle).output
    run_cli("convert", middle, "back.zarr")
    assert list(differences(open_tree(full_store / "features.zarr"), open_tree(full_store / "back.zarr"))) == []
    store = open_store(middle)
    assert list(verify(store)) == [] and store.features() == ["a concept/töy.v2", "audio/toy"]
    assert store["audio/toy"].failures[9] == "kaputt – 壊れた" and store["audio/toy"].status[4] == Status.PENDING
    assert store["a concept/töy.v2"].frames[4, 0, 0] == 1e6


@SHARED
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=9),
    numbers=st.lists(st.floats(width=16), min_size=1, max_size=9),
    rows=st.integers(1, 4),
)
def test_any_values_arrive(tmp_path_factory, texts, numbers, rows):
    folder = tmp_path_factory.mktemp("any")
    with new_zarr_tree(folder / "a.zarr") as tree:
        make_store(tree, n=2)
        for name, values in (("t", np.array(texts, STRING)), ("n", np.array(numbers, np.float16))):
            tree.create(name, values.shape, values.dtype, rows)
            for start in range(0, len(values), rows):
                tree.write(name, start, values[start : start + rows])
    from stores.convert import convert

    convert(folder / "a.zarr", folder / "b.h5")
    assert open_tree(folder / "b.h5").read("t").tolist() == texts
    assert list(differences(open_tree(folder / "a.zarr"), open_tree(folder / "b.h5"))) == []
    shutil.rmtree(folder)


def test_differences_are_seen():
    def tree():
        made = MemoryTree()
        make_store(made)
        return made

    assert list(differences(tree(), tree())) == []
    changes = {
        "labels/soft, rows 4 to 7": lambda t: t.write("labels/soft", 4, np.zeros((4, 2), np.float32)),
        "labels/mood, rows 0 to 3": lambda t: t.write("labels/mood", 0, np.array(["b"] * 4, STRING)),
        "attributes of labels": lambda t: t.set_attributes("labels", {"columns": []}),
        "shape, type or chunks of segments/id": lambda t: t.create("segments/id", (9,), STRING, 4),
        "which chunks of labels/mood were written": lambda t: t.create("labels/mood", (10,), STRING, 4),
        "labels/soft stands in one of them only": lambda t: t.delete("labels/soft"),
    }
    for told, change in changes.items():
        changed = tree()
        change(changed)
        assert told in list(differences(changed, tree())), told


def test_the_raw_data_is_still_found_from_another_folder(project, demo_data, run_cli):
    run_cli("ingest", demo_data)
    run_cli("convert", "features.zarr", "elsewhere/deep/features.h5")
    result = run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", "--store", "elsewhere/deep/features.h5")
    assert "midi/midi_stats: 21 present" in result.output


def test_mistakes_leave_everything_as_it_was(full_store, run_cli):
    run_cli("convert", "features.zarr", "b.h5")
    before = (full_store / "b.h5").read_bytes()
    (full_store / "notes.h5").write_text("mine")
    for arguments, told in (
        (["nowhere.zarr", "c.h5"], "no store at nowhere.zarr"),
        (["features.zarr", "b.h5"], "--replace"),
        (["features.zarr", "features.zarr", "--replace"], "to itself"),
        (["features.zarr", "notes.h5", "--replace"], "not a store"),
    ):
        assert told in run_cli("convert", *arguments, code=2).output
    assert (full_store / "b.h5").read_bytes() == before and not (full_store / "c.h5").exists()
    assert json.loads(run_cli("convert", "features.zarr", "b.h5", "--replace", "--json").output)["n_arrays"] == 20


def test_a_damaged_store_is_not_copied(full_store, run_cli):
    (victim,) = (full_store / "features.zarr/features/audio/toy/vectors/c/0").iterdir()
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert "cannot be read" in run_cli("convert", "features.zarr", "b.h5", code=2).output
    assert not [path for path in full_store.iterdir() if path.name == "b.h5"]
    with pytest.raises(StoreError, match="no store"):
        open_store("b.h5")
