"""What leaking would have bought: the same fusion on songs that were held back, and on songs that were not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.config import validated
from fusion.fitting import fit
from fusion.leak_scores import compare_splits, deal_segments
from fusion.metrics import METRICS, GroupBootstrap, interval
from fusion.targets import Target
from stores.base import STRING
from stores.errors import TriadError
from stores.memory_store import MemoryTree
from stores.store import Part, Split, Store
from tests.stores_contract import RECORD

pytestmark = pytest.mark.usefixtures("unrendered")

N_SONGS, SEGMENTS_EACH, WIDTH = 40, 5, 64


def songs(*, told_by: str, folds: int = 0) -> Store:
    """Vectors tell the song and nothing else, or the label itself; a song's segments share a label drawn by chance."""
    rng = np.random.default_rng(0)
    n = N_SONGS * SEGMENTS_EACH
    song = np.repeat(np.arange(N_SONGS), SEGMENTS_EACH)
    label = rng.integers(0, 2, N_SONGS)[song]
    groups = np.array([f"song-{number}" for number in song], STRING)
    ids = np.array([f"{number}" for number in range(n)], STRING)
    columns = {"id": ids, "group": groups}
    store = Store.create(MemoryTree(), columns, {"mood": np.array([f"m{k}" for k in label], STRING)}, {})
    at = rng.normal(size=(N_SONGS, WIDTH))[song if told_by == "song" else label]
    feature = store.open_feature("audio/toy", {**RECORD, "width": WIDTH})
    vectors = (at + 0.2 * rng.normal(size=(n, WIDTH))).astype(np.float32)
    hashes = np.arange(1, 16 * n + 1, dtype=np.uint64).astype(np.uint8).reshape(n, 16)
    for chunk in feature.chunks():
        rows = np.array(chunk)
        feature.write_chunk(chunk, rows, vectors[rows], np.ones(len(rows), np.uint8), hashes[rows], [""] * len(rows))
    fold_of = rng.permutation(np.arange(N_SONGS) % (folds or 5))[song]
    for k in range(folds or 1):
        parts = np.full(n, Part.TRAIN, np.uint8)
        parts[fold_of == k] = Part.TEST
        parts[fold_of == (k + 1) % (folds or 5)] = Part.VAL
        store.write_split(Split(f"cv.{k}" if folds else "default", parts, {"method": "grouped", "leaks": False}))
    return store


def config(**training):
    fast = {"epochs": 30, "patience": 10, "seeds": [0, 1], "bootstrap": 400, "lr": 1e-2, **training}
    values = {"model": {"targets": [{"name": "mood"}], "fusion": {"hidden_dim": 16}}, "training": fast}
    return validated(values, "test")


def test_vectors_that_know_their_song_buy_much_by_leaking():
    found = compare_splits(songs(told_by="song", folds=5), config(), split_name="cv")
    mood = found["targets"]["mood"]
    assert mood["random"]["value"] > 0.9 and mood["grouped"]["value"] < 0.7
    assert mood["difference"]["better"] is True
    low, high = mood["difference"]["ci95"]
    assert 0 < low < mood["difference"]["difference"] < high
    assert mood["difference"]["difference"] == pytest.approx(mood["random"]["value"] - mood["grouped"]["value"])
    assert mood["random"]["n"] == mood["grouped"]["n"] == mood["majority"]["n"] == N_SONGS * SEGMENTS_EACH
    assert any("LEAK" in note for note in found["notes"]["random"]) and not found["notes"]["grouped"]


def test_vectors_that_know_the_label_alone_buy_nothing():
    mood = compare_splits(songs(told_by="label"), config())["targets"]["mood"]
    assert mood["grouped"]["value"] > 0.9 and mood["random"]["value"] > 0.9
    assert mood["difference"]["better"] is None


def test_the_grouped_side_is_what_fit_reports(tmp_path):
    store = songs(told_by="song")
    found, run = compare_splits(store, config())["targets"]["mood"], fit(store, config(), runs=tmp_path)
    by_fit = run.metrics["targets"]["mood"]
    for key in ("value", "ci95", "n", "n_groups"):
        assert found["grouped"][key] == by_fit["splits"]["test"][key]
        assert found["majority"][key] == by_fit["baselines"]["majority"]["test"][key]


def test_paired_folds_have_the_interval_of_paired_differences():
    """Both sides test all segments: the interval is that of resampling one list of groups for both."""
    store = songs(told_by="song", folds=4)
    found = compare_splits(store, config(seeds=[0]), split_name="cv")["targets"]["mood"]
    assert found["grouped"]["n_groups"] == found["random"]["n_groups"] == N_SONGS
    width = np.diff(found["difference"]["ci95"])[0]
    assert width < np.diff(found["grouped"]["ci95"])[0] + np.diff(found["random"]["ci95"])[0]


def test_it_changes_nothing_and_is_the_same_again():
    store = songs(told_by="song")
    before = store.splits(), store.split("default").parts.tobytes()
    done = []
    first = compare_splits(store, config(), progress=lambda *at: done.append(at))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(compare_splits(store, config())))
    assert before == (store.splits(), store.split("default").parts.tobytes())
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_split_by_segments_has_nothing_to_be_held_against():
    store = songs(told_by="song")
    parts = store.split("default").parts
    store.write_split(Split("leaky", parts, {"method": "random", "leaks": True}))
    with pytest.raises(TriadError, match="Split leaky is by segments already"):
        compare_splits(store, config(), split_name="leaky")


def target_of(labels: list[int]) -> Target:
    truth = torch.tensor([max(label, 0) for label in labels])
    known = torch.tensor([label >= 0 for label in labels])
    return Target("mood", "categorical", ["a", "b", "c"], truth, known)


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=40), st.integers(2, 4), st.integers(0, 5))
def test_parts_keep_their_sizes_and_class_shares_and_folds_still_test_each_segment_once(labels, folds, seed):
    rng = np.random.default_rng(seed)
    fold_of = rng.integers(-1, folds, len(labels))  # -1: left out
    splits = []
    for k in range(folds):
        parts = np.where(fold_of == k, Part.TEST, Part.TRAIN).astype(np.uint8)
        parts[fold_of == (k + 1) % folds] = Part.VAL
        parts[fold_of < 0] = Part.LEFT_OUT
        splits.append(Split(f"cv.{k}", parts, {"method": "grouped", "leaks": False}))
    dealt = deal_segments(splits, [target_of(labels)], seed)
    classes = np.array(labels)
    for before, after in zip(splits, dealt, strict=True):
        assert after.facts["leaks"] and after.facts["method"] == "random"
        for label in range(-1, 3):
            counts = [np.bincount(split.parts[classes == label], minlength=256) for split in (before, after)]
            np.testing.assert_array_equal(*counts)
        np.testing.assert_array_equal(before.parts == Part.LEFT_OUT, after.parts == Part.LEFT_OUT)
    tested = np.sum([split.parts == Part.TEST for split in dealt], axis=0)
    np.testing.assert_array_equal(tested, fold_of >= 0)


def test_a_single_segment_of_each_class_stays_where_it_is():
    split = Split("default", np.array([0, 1, 2], np.uint8), {"method": "grouped", "leaks": False})
    (dealt,) = deal_segments([split], [target_of([0, 1, 2])], seed=3)
    assert dealt.parts.tolist() == [0, 1, 2]


def test_without_a_label_on_either_side_there_is_no_difference():
    """Half of the songs are labelled, none of them in test."""
    store = songs(told_by="song")
    labels = np.array(store.label("mood"))
    labels[store.split("default").rows(Part.TEST)] = ""
    columns = {"id": store.ids, "group": store.groups}
    without = Store.create(MemoryTree(), columns, {"mood": labels.astype(STRING)}, {})
    feature, old = without.open_feature("audio/toy", {**RECORD, "width": WIDTH}), store.feature("audio/toy")
    for chunk in feature.chunks():
        feature.write_chunk(
            chunk,
            np.array(chunk),
            old.read_vectors(chunk),
            old.read_status(chunk),
            old.read_input_hashes(chunk),
            [""] * len(chunk),
        )
    without.write_split(store.split("default"))
    mood = compare_splits(without, config())["targets"]["mood"]
    assert mood["grouped"]["value"] is None and mood["grouped"]["n"] == 0
    assert mood["difference"] == {"difference": None, "ci95": None, "better": None}


def test_the_difference_is_resampled_group_by_group_by_hand():
    """Two songs, each all right or all wrong: every resample is one of three, and so is the difference."""
    from fusion.leak_scores import _resampled, _Side

    metric = METRICS["categorical"][0]
    groups = np.array(["x", "x", "y", "y"], STRING)
    right, wrong = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    grouped = _Side(np.arange(4), np.zeros(4, int), [np.repeat(np.concatenate([right, wrong]), 2, axis=0)])
    random = _Side(np.arange(4), np.zeros(4, int), [np.repeat(right, 4, axis=0)])
    both = GroupBootstrap(np.concatenate([groups, groups]), 300)
    difference = _resampled(both, metric, random, before=4) - _resampled(both, metric, grouped, after=4)
    assert set(np.round(difference, 6)) == {0.0, 0.5, 1.0} and interval(difference) == [0.0, 1.0]


def test_the_command_says_what_leaking_would_have_bought(project, demo_data, run_cli):
    run_cli("ingest", demo_data, "--set", "model.targets=[{name: mood}]")
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0")
    fast = ("--target", "mood", "--seeds", "1", "--set", "training.epochs=2", "--set", "training.bootstrap=100")
    output = run_cli("leaks", "--scores", *fast).output
    assert "What leaking would have bought: late of midi/midi_stats; seeds 0" in output
    for line in ("by groups", "by segments", "majority", "difference"):
        assert f"\n  {line}" in output
    assert "; LEAKS" in output and "cli split --folds 5 --name cv && cli leaks --split cv --scores" in output
    found = json.loads(run_cli("leaks", "--scores", *fast, "--json").output)
    assert found["scores"]["targets"]["mood"]["grouped"]["n"] > 0 and found["findings"]
