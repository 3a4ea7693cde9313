"""Rot is named, refused, and mended: a repaired store has the bytes of one that was never damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner

from cli import cli
from featurize.extract import extract
from stores import open_store
from stores.backends import new_tree
from stores.errors import DamagedStore, StoreError
from stores.feature import Status
from stores.repair import mark_damaged_pending
from stores.store import Store
from stores.verify import remedies, verify
from tests.stores_contract import RECORD, make_store, write
from tests.test_hdf5 import everything
from tests.test_kill import every_file
from tests.toys import ToyEncoder, ToySource, toy_contents, toy_feature

N_ROWS, CHUNK_ROWS = 26, 12  # three chunks, the last one short


def new_store(path: Path) -> Path:
    with new_tree(path) as tree:
        toy_feature(tree, N_ROWS, CHUNK_ROWS)
    featurize_in_place(path)
    return path


def featurize_in_place(path: Path, repair: bool = False) -> list[range]:
    """The rows that were damaged; and encodes what is pending."""
    store, encoder = open_store(path), ToyEncoder()
    feature = store["audio/toy"]
    damaged = mark_damaged_pending(store, feature) if repair else []
    contents = toy_contents(N_ROWS)
    extract(feature, encoder, ToySource(contents))
    if repair:
        there = [row for rows in damaged for row in rows if contents[row] is not None]
        of_these = {ToySource(contents).raw(row).samples for row in there}
        assert set(encoder.prepared) <= of_these  # just these rows were read again
    return damaged


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("harm", [flip, truncate, empty, Path.unlink])
def test_each_chunk_in_turn_is_named_refused_and_repaired_to_the_same_bytes(tmp_path, harm):
    path = new_store(tmp_path / "features.zarr")
    whole = every_file(path)
    feature = path / "features/audio/toy"
    files = [file for file in sorted(feature.rglob("c/**/*")) if file.is_file()]
    assert len(files) == 3 * 4
    for file in files:
        array, number = file.relative_to(feature).parts[0], int(file.relative_to(feature).parts[2])
        harm(file)
        (damage,) = verify(open_store(path))
        assert (damage.where, damage.array, damage.chunk) == ("audio/toy", array, number)
        assert (damage.start, damage.stop) == (12 * number, min(12 * number + 12, N_ROWS))
        assert remedies(open_store(path), [damage])[0].startswith(
            "cli featurize --encoder tests.toys:ToyEncoder --repair"
        )
        assert featurize_in_place(path, repair=True) == [range(damage.start, damage.stop)]
        assert every_file(path) == whole, file
    assert featurize_in_place(path, repair=True) == []


def test_several_damaged_chunks_of_one_feature_are_repaired_at_once(tmp_path):
    path = new_store(tmp_path / "features.zarr")
    whole = every_file(path)
    feature = path / "features/audio/toy"
    flip(feature / "status/c/0")
    flip(feature / "vectors/c/0/0")
    truncate(feature / "failure/c/2")
    (feature / "input_hash/c/2/0").unlink()
    assert len(list(verify(open_store(path)))) == 4
    assert featurize_in_place(path, repair=True) == [range(0, 12), range(24, 26)]
    assert every_file(path) == whole


def test_a_repair_that_is_killed_leaves_rows_pending_or_damaged_and_is_done_again(tmp_path, monkeypatch):
    path = new_store(tmp_path / "features.zarr")
    whole = every_file(path)
    flip(path / "features/audio/toy/vectors/c/1/0")
    store = open_store(path)
    original, writes = store.tree.write, []

    def dies(path, start, values):
        if len(writes) == 2:
            raise KeyboardInterrupt
        writes.append(path)
        original(path, start, values)

    monkeypatch.setattr(store.tree, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        mark_damaged_pending(store, store["audio/toy"])
    seen = open_store(path)["audio/toy"]
    assert (seen.read_status(range(12, 24)) == Status.PENDING).all()
    assert featurize_in_place(path, repair=True) == [range(12, 24)]
    assert every_file(path) == whole


@pytest.mark.parametrize("chunk", [0, 2])
@pytest.mark.parametrize("array", ["vectors", "input_hash", "failure", "status"])
def test_a_damaged_chunk_of_an_hdf5_file_is_named_and_repaired(tmp_path, array, chunk):
    path = new_store(tmp_path / "features.h5")
    whole = everything(open_store(path).tree)
    with h5py.File(path) as file:
        place = file[f"features/audio/toy/{array}"].id.get_chunk_info(chunk)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + place.size // 2] ^= 1
    path.write_bytes(content)
    (damage,) = verify(open_store(path))
    assert (damage.where, damage.array, damage.chunk, damage.start) == ("audio/toy", array, chunk, 12 * chunk)
    assert featurize_in_place(path, repair=True) == [range(damage.start, damage.stop)]
    assert everything(open_store(path).tree) == whole and list(verify(open_store(path))) == []


@pytest.mark.parametrize(
    ("file", "where", "remedy"),
    [
        ("labels/mood/c/1", "labels/mood", "cli ingest DATA writes labels and columns anew"),
        ("segments/start_seconds/c/0", "segments/start_seconds", "cli ingest DATA writes labels and columns anew"),
        ("segments/id/c/0", "segments/id", "cli ingest DATA --replace"),
    ],
)
@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_damage_outside_features_is_refused_and_told_what_to_do(tmp_path, harm, file, where, remedy):
    path = new_store(tmp_path / "features.zarr")
    harm(path / file)
    store = open_store(path)
    (damage,) = verify(store)
    assert damage.where == where and remedies(store, [damage])[0].startswith(remedy)
    with pytest.raises(DamagedStore, match="cli verify"):
        store.label("mood") if where == "labels/mood" else store.segment_column(where.partition("/")[2])


def test_no_byte_of_a_record_or_of_an_arrays_description_turns_into_a_traceback(tmp_path):
    """`zarr.json` has no checksum. Whatever is hit: it is damage, or a store that reads as before, or one line."""
    with new_tree(tmp_path / "features.zarr") as tree:
        make_store(tree, 3).create_feature("audio/toy", RECORD)
    path = tmp_path / "features.zarr"
    named = 0
    for name in ("features/audio/toy/zarr.json", "features/audio/toy/vectors/zarr.json", "zarr.json"):
        content = (path / name).read_bytes()
        for place in range(0, len(content), 9):
            (path / name).write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
            try:
                store: Store = open_store(path)
                found = list(verify(store))
                assert all(remedies(store, found))
                named += bool(found)
            except StoreError:
                named += 1
        (path / name).write_bytes(content)
    assert named > 50


@pytest.fixture(scope="module")
def featurized(demo_data, tmp_path_factory) -> Path:
    """A store with one feature, midi/mine; read only."""
    store = tmp_path_factory.mktemp("repair") / "features.zarr"
    for arguments in (["ingest", demo_data], ["featurize", *MINE]):
        result = CliRunner().invoke(cli, [*map(str, arguments), "--store", str(store)])
        assert result.exit_code == 0, result.output
    return store


MINE = ("--encoder", "midi_stats", "--workers", "0", "--as", "mine")


@pytest.fixture
def mine(project, featurized, demo_data, run_cli) -> Path:
    shutil.copytree(featurized, project / "features.zarr")
    run_cli("ingest", demo_data)  # tells the copy where the raw data is from here
    return project / "features.zarr"


def test_fit_refuses_damage_in_one_line_and_featurize_repairs_it(mine, run_cli):
    assert "nothing was damaged" in run_cli("featurize", *MINE, "--repair").output
    whole = every_file(mine)
    flip(mine / "features/midi/mine/vectors/c/0/0")
    refused = run_cli("fit", code=2).output
    assert refused.count("\n") == 1 and "midi/mine is damaged" in refused and "`cli verify`" in refused
    assert "`cli featurize --encoder midi_stats --as mine --repair`" in refused
    named = json.loads(run_cli("verify", "--json", code=1).output)
    assert named["damaged"][0]["array"] == "vectors" and "--as mine --repair" in named["remedies"][0]
    assert "cli featurize --encoder midi_stats --as mine --repair" in run_cli("verify", code=1).output
    assert "repaired: rows 0 to 47" in run_cli("featurize", *MINE, "--repair").output
    assert every_file(mine) == whole and "every chunk" in run_cli("verify").output
    refused = run_cli("featurize", "--encoder", "mel_stats", "--repair", code=2).output
    assert "nothing to repair: features.zarr has no audio/mel_stats" in refused


def test_a_damaged_split_and_a_damaged_label_are_written_anew_and_features_stay(mine, demo_data, run_cli):
    whole = every_file(mine)
    (mine / "splits/default/c/0").unlink()
    flip(next((mine / "labels").glob("*/c/0")))
    told = run_cli("verify", code=1).output
    assert "cli split --name default --replace" in told and "cli ingest DATA writes labels" in told
    assert "are gone" in run_cli("fit", code=2).output
    run_cli("ingest", demo_data)
    run_cli("split", "--name", "default", "--replace")
    assert every_file(mine) == whole


@pytest.mark.parametrize("array", ["frames/c/0/0/0", "n_frames/c/0"])
def test_frames_that_are_gone_are_damage_not_zeros(tmp_path, array):
    with new_tree(tmp_path / "features.zarr") as tree:
        feature = make_store(tree).create_feature("audio/toy", RECORD, frames=2)
        write(feature, feature.chunks()[0], [0, 1], n_frames=2)
    (tmp_path / "features.zarr/features/audio/toy" / array).unlink()
    feature = open_store(tmp_path / "features.zarr")["audio/toy"]
    with pytest.raises(DamagedStore, match="are gone"):
        feature.frames[:] if array.startswith("frames") else feature.n_frames
    assert len(mark_damaged_pending(open_store(tmp_path / "features.zarr"), feature)) == 1
    assert not feature.frames[:].any() and not feature.present.any()
