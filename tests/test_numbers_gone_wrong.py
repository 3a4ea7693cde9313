"""Numbers and data that no training can do well with: a line that says why, or a note, at the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fusion.checkpoint import Checkpoint
from fusion.data import SegmentData
from fusion.train import train
from stores import open_store
from stores.errors import RecordMismatch, TriadError
from stores.feature import Feature
from stores.store import Part
from tests.stores_contract import RECORD, make_store
from tests.test_train import FUSION, SHORT, TRAIN, VAL, additive_data

pytestmark = pytest.mark.usefixtures("unrendered")

N = 40
SMALL = ("--set", "training.epochs=3", "--set", "training.seeds=[0]", "--set", "training.bootstrap=100")


MADE_BY = ("--made-by", "lyric_embedding=one encoder", "--made-by", "audio_embedding=another")


@pytest.fixture
def make(project, run_cli):
    """`make(mood=…, group=…, text=bool (N,), audio=bool (N,))`: a store of imported vectors with a split."""

    def make(text=None, audio=None, **columns):
        rng = np.random.default_rng(0)
        table = {
            "segment_id": [str(i) for i in range(N)],
            "group": [f"g{i // 2}" for i in range(N)],
            "mood": list("ab") * (N // 2),
            "lyric_embedding": list(rng.normal(size=(N, 4)).astype(np.float32)),
            "audio_embedding": list(rng.normal(size=(N, 4)).astype(np.float32)),
            "has_lyric_embedding": np.ones(N, bool) if text is None else text,
            "has_audio_embedding": np.ones(N, bool) if audio is None else audio,
        }
        pq.write_table(pa.table({**table, **columns}), "vectors.parquet")
        shutil.rmtree("features.zarr", ignore_errors=True)
        run_cli("import", "vectors.parquet", *MADE_BY)
        return open_store(Path("features.zarr"))

    return make


def fit(run_cli, *options: str, code: int = 0) -> str:
    output: str = run_cli(
        "fit", "--name", "r", "--target", "mood", "--no-baselines", *SMALL, *options, code=code
    ).output
    return output


def test_one_class_is_nothing_to_learn(make, run_cli):
    make(mood=["a"] * N)
    assert fit(run_cli, code=2) == (
        "Error: Target mood: the training split has one class only ('a'); nothing to learn.\n"
    )


def test_no_labels_at_all(make, run_cli):
    make(mood=[""] * N)
    assert fit(run_cli, code=2) == "Error: Target mood: no segment of the training split has this label.\n"


def test_what_a_part_of_the_split_has_none_of_is_noted(make, run_cli):
    split = make().split("default")
    held_out = split.parts == Part.TEST
    store = make(audio=held_out, mood=["c" if out else "ab"[i % 2] for i, out in enumerate(held_out)])
    store.delete_split("default")  # it was stratified by these labels
    store.write_split(split)
    output = fit(run_cli)
    assert "No train segment of this split has audio, mood c: what is said of them there is a guess." in output
    assert "No val segment of this split has audio, mood c: the best epoch is chosen without them." in output
    assert "No test segment of this split has mood a, mood b: nothing is measured of them." in output
    for command in (["evaluate", "r"], ["predict", "r", "features.zarr", "--out", "p.csv"], ["leaks"]):
        run_cli(*command)


def test_held_out_segments_with_nothing_present(make, run_cli):
    there = make().split("default").parts == Part.TRAIN
    make(audio=there, text=there)
    assert "No test segment of this split has text, audio: nothing is measured of them." in fit(run_cli)
    run_cli("evaluate", "r")


def test_a_modality_that_nobody_has(project, run_cli):
    Path("data").mkdir()
    rows = [f"{i},g{i // 2},,,{'ab'[i % 2]}" for i in range(N)]
    Path("data/segments.csv").write_text("\n".join(["segment_id,group,text,audio_path,mood", *rows]), "utf-8")
    assert "40 x segment without any modality" in run_cli("ingest", "data").output
    assert "0 present, 40 absent" in run_cli("featurize", "--encoder", "mel_stats").output
    assert "No train segment of this split has audio: what is said" in fit(run_cli)
    for command in (["evaluate", "r"], ["leaks"], ["inspect"]):
        run_cli(*command)
    assert "found 0" in run_cli("featurize", "--encoder", "lsa", code=2).output


@pytest.mark.parametrize("n_groups", [1, 2])
def test_fewer_groups_than_parts(make, run_cli, n_groups):
    make(group=[f"g{i % n_groups}" for i in range(N)])
    output = fit(run_cli, code=2)
    assert output == "Error: The store has no split 'default'; it has none. `cli split` makes one.\n"
    assert f"{n_groups} groups cannot be dealt to 3 parts" in run_cli("split", code=2).output


def test_a_group_larger_than_a_part_stays_whole(make, run_cli):
    store = make(group=["big"] * 30 + [f"g{i}" for i in range(10)])
    assert len(set(store.split("default").parts[:30].tolist())) == 1
    output = run_cli("split", "--folds", "5", "--name", "cv").output
    assert (
        "note: group 'big' has 30 of the 40 segments, more than the 20% of a part: parts cannot be of the wanted size."
        in output
    )
    fit(run_cli, "--split", "cv")


def test_a_loss_that_is_no_number_leaves_the_good_checkpoint(tmp_path, monkeypatch):
    """The first slot's vectors become NaN after the second epoch; every epoch is saved."""
    monkeypatch.setattr("fusion.checkpoint.SAVE_EVERY_SECONDS", 0.0)
    data, targets = additive_data()
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
    slot, saved, ready = data.slots[0], [], []
    standardized = SegmentData.standardized

    def kept(self, *arguments):
        ready.append(standardized(self, *arguments))
        return ready[-1]

    monkeypatch.setattr(SegmentData, "standardized", kept)
    save = Checkpoint.save

    def save_and_break(self, state, *, now=False):
        save(self, state, now=now)
        saved.append(self.path.read_bytes())
        if len(saved) == 2:
            ready[0].vectors[slot][TRAIN] = torch.nan

    monkeypatch.setattr(Checkpoint, "save", save_and_break)
    with pytest.raises(TriadError) as caught:
        train(data, targets, TRAIN, VAL, FUSION, SHORT, 5, checkpoint)
    message = str(caught.value)
    assert "The loss became nan in epoch 3 (seed 5); the gradients of " in message and slot in message
    assert f"Kept: the checkpoint of epoch 2, {checkpoint.path}" in message
    assert checkpoint.path.read_bytes() == saved[-1] and len(saved) == 2
    kept = torch.load(checkpoint.path, weights_only=True)
    assert all(tensor.isfinite().all() for tensor in kept["model"].values()) and len(kept["history"]) == 2


def test_a_slot_whose_steps_are_too_large_is_named(make, run_cli):
    make()
    output = fit(run_cli, "--set", "training.slots={text: {lr: 1.0e+35}}", code=2)
    assert "in epoch 1 (seed 0); the gradients of " in output and "Kept: nothing of this training" in output
    assert not Path("runs/r").exists()


# Another encoder's numbers


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"weights": {"source": "laion/other", "revision": "c" * 40}}, "weights.revision"),
        ({"parameters": {"hop_length": 256}}, "parameters.hop_length: 512 in the store, 256 now"),
        ({"libraries": {"numpy": "0.1"}}, "libraries.numpy"),
        ({"precision": "bf16"}, "precision: "),
        ({"width": 99}, "width: "),
        ({"trained_on": {"split": "default"}}, "trained_on.split: absent in the store, default now"),
    ],
)
def test_another_record_is_refused_with_both_named(tree, change, difference):
    store = make_store(tree)
    before: Feature = store.open_feature("audio/toy", RECORD)
    with pytest.raises(RecordMismatch) as caught:
        store.open_feature("audio/toy", {**RECORD, **change})
    message = str(caught.value)
    assert difference in message and before.fingerprint[:6] in message and message.count("[") == 2
    assert "--as toy-" in message and "--replace" in message


@pytest.fixture
def tree():
    from stores.memory_store import MemoryTree

    return MemoryTree()


def test_a_run_says_what_is_other_in_a_store(make, run_cli):
    make()
    fit(run_cli)

    def refused() -> str:
        output: str = run_cli("evaluate", "r", code=2).output
        assert output.startswith("Error: ") and output.count("\n") <= 3
        return output

    rng = np.random.default_rng(1)
    make(lyric_embedding=list(rng.normal(size=(N, 7)).astype(np.float32)))
    assert "text/lyric_embedding has 7 columns; run r was trained on 4" in refused()
    make()
    run_cli("import", "vectors.parquet", "--made-by", "lyric_embedding=a third", "--replace")
    assert "text/lyric_embedding is by another encoder, or another configuration of it" in refused()
    store = make()
    store.delete_feature("audio/audio_embedding")
    assert "Run r needs audio/audio_embedding; features.zarr has text/lyric_embedding." in refused()


def test_a_run_says_what_labels_it_does_not_know(make, run_cli):
    make()
    fit(run_cli)
    parts = open_store(Path("features.zarr")).split("default").parts
    moods = ["new" if part == Part.TEST and i % 2 else "ab"[i % 2] for i, part in enumerate(parts)]
    pq.write_table(pq.read_table("vectors.parquet").set_column(2, "mood", pa.array(moods)), "vectors.parquet")
    run_cli("import", "vectors.parquet", "--store", "other.zarr", *MADE_BY)
    output = run_cli("evaluate", "r", "--store", "other.zarr", "--allow-leak").output
    n_new = moods.count("new")
    assert n_new and f"mood: run r has not learned new; {n_new} segments with them are not scored." in output
