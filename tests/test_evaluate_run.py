"""`cli evaluate` on runs that `cli fit` made: what it finds again, what it adds, and what it refuses."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from featurize.config import SplitConfig
from featurize.splits import make_splits
from fusion.evaluate import pattern_rows
from fusion.evaluate_run import evaluate_run
from fusion.load_run import load_features, load_labels, load_run, own_store
from fusion.metrics import METRICS, score
from fusion.runs import write_model
from stores import open_store
from stores.base import STRING
from stores.carry import carry_over
from stores.feature import Status
from stores.store import Part, Split, Store
from stores.zarr_store import new_zarr_tree
from tests.stores_contract import RECORD

pytestmark = pytest.mark.usefixtures("unrendered")

SLOTS = ("text", "audio", "midi")
RATES = {"text": 0.9, "audio": 0.8, "midi": 0.45}
WIDTH = 12  # the same for all: slots in a wrong order would not be noticed by their shapes
FIT = ("fit", "--no-baselines", "--seeds", "1", "--set", "training.bootstrap=200", "--plain-report")
SHORT = (*FIT, "--set", "training.epochs=2")  # where the model need not know anything
LONG = (*FIT, "--set", "training.epochs=20", "--set", "training.lr=3e-3")
CONFIG = """
model:
  targets: [{name: mood, metric: macro_f1}, {name: tags}, {name: energy}, {name: shares}]
"""


def make_toy(path: Path, n_groups: int = 60, seed: int = 0, prefix: str = "", moods: str = "calm,dark,happy") -> Store:
    """Four segments a group, one of every kind of label, and three slots that each tell a part."""
    rng = np.random.default_rng(seed)
    n = 4 * n_groups
    names = moods.split(",")
    mood, tags, energy = rng.integers(3, size=n), rng.random((n, 2)) < 0.5, rng.normal(100, 2, n)
    segments = {
        "id": np.array([f"{prefix}s{i}" for i in range(n)], dtype=STRING),
        "group": np.array([f"{prefix}g{i // 4}" for i in range(n)], dtype=STRING),
    }
    chosen = [[name for name, here in zip("ab", row, strict=True) if here] for row in tags]
    labels = {
        "mood": np.array([names[m] if i % 10 else "" for i, m in enumerate(mood)], dtype=STRING),
        "tags": np.array([json.dumps(row) for row in chosen], dtype=STRING),
        "energy": np.where(np.arange(n) % 7 == 0, np.nan, energy),
        "shares": rng.dirichlet(np.ones(3), n) * 0.5 + 0.5 * np.eye(3)[mood],
    }
    # who has no audio often has no MIDI either
    luck = rng.random(n)
    lucks = {"text": rng.random(n), "audio": luck, "midi": np.where(rng.random(n) < 0.6, luck, rng.random(n))}
    signal = {"text": np.eye(3)[mood], "audio": (energy[:, None] - 100) / 2, "midi": 2.0 * tags - 1}
    with new_zarr_tree(path) as tree:
        store = Store.create(tree, segments, labels, {"layout": "toy"}, 64)
        for slot in SLOTS:
            vectors = 0.5 * rng.normal(size=(n, WIDTH))
            vectors[:, : signal[slot].shape[1]] += signal[slot]
            add_feature(store, slot, vectors, lucks[slot] < RATES[slot])
        for split in make_splits(store.groups, labels["mood"], SplitConfig(val=0.2, test=0.3)):
            store.write_split(split)
        for split in make_splits(store.groups, labels["mood"], SplitConfig(name="cv", folds=3)):
            store.write_split(split)
    return open_store(path)


def add_feature(
    store: Store, slot: str, vectors: np.ndarray, present: np.ndarray, frames: np.ndarray | None = None, **changes
) -> None:
    record = {**RECORD, "modality": slot, "width": vectors.shape[1], **changes}
    store.delete_feature(f"{slot}/toy")
    feature = store.create_feature(f"{slot}/toy", record, frames=0 if frames is None else frames.shape[1])
    status = np.where(present, Status.PRESENT, Status.ABSENT).astype(np.uint8)
    for chunk in feature.chunks():
        rows = np.array(chunk)
        hashes = np.ones((len(rows), 16), np.uint8)
        sequences = () if frames is None else (frames[rows], np.full(len(rows), frames.shape[1]))
        feature.write_chunk(chunk, rows, vectors[rows], status[rows], hashes, [""] * len(rows), *sequences)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project folder with runs `late` and `gated` of one seed; copied, never written."""
    folder = tmp_path_factory.mktemp("finished")
    make_toy(folder / "features.zarr")
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoke(*LONG)
        invoke(*SHORT, "--fusion", "gated")
    return folder


def invoke(*arguments: str) -> None:
    from click.testing import CliRunner

    from cli import cli

    result = CliRunner().invoke(cli, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.fixture
def folder(project, finished) -> Path:
    shutil.copytree(finished, project, dirs_exist_ok=True)
    return project


@pytest.fixture
def evaluate(folder, run_cli):
    """`evaluate("late", "--part", "val")`: the content of evaluation.json."""

    def run(*arguments: str | Path) -> dict:
        return json.loads(run_cli("evaluate", *arguments, "--json").output)

    return run


def metrics_of(folder: Path, run: str = "late") -> dict:
    return json.loads((folder / "runs" / run / "metrics.json").read_text())


def refused(run_cli, *arguments: str | Path) -> str:
    """One or two lines, and nothing written."""
    output = run_cli("evaluate", *arguments, code=2).output
    assert output.startswith("Error: ") and output.count("\n") <= 2, output
    assert arguments[0] != "late" or not Path("runs/late/evaluation.json").exists()
    return output


def same(found: dict, expected: dict) -> None:
    """Two scores; resampled sums may be added up in another order."""
    assert found["n"] == expected["n"] and found["metric"] == expected["metric"]
    assert found["value"] == expected["value"]
    assert found["ci95"] == (None if expected["ci95"] is None else pytest.approx(expected["ci95"], abs=1e-9))


# What fit found


@pytest.mark.parametrize("run", ["late", "gated"])
def test_the_numbers_are_those_of_metrics_json(folder, evaluate, run):
    expected, found = metrics_of(folder, run), evaluate(run)
    assert found["split"] == "default" and found["part"] == "test" and found["notes"] == []
    assert set(found["targets"]) == {"mood", "tags", "energy", "shares"}
    for name, target in found["targets"].items():
        fitted = expected["targets"][name]
        assert target["kind"] == fitted["kind"] and target["metric"] == fitted["metric"]
        same(target["score"], fitted["splits"]["test"])
        for metric, other in fitted["splits"]["test"]["others"].items():
            assert target["score"]["others"][metric]["value"] == other["value"]
            assert target["score"]["others"][metric]["ci95"] == pytest.approx(other["ci95"], abs=1e-9)
        assert list(target["presence_patterns"]) == list(fitted["presence_patterns"])
        assert len(target["presence_patterns"]) == 7
        for pattern, score_then in fitted["presence_patterns"].items():
            same(target["presence_patterns"][pattern]["shown"], score_then)
    parts = {"train": "trained on", "val": "chose its epoch"}
    for part, warning in parts.items():
        again = evaluate(run, "--part", part)
        same(again["targets"]["mood"]["score"], expected["targets"]["mood"]["splits"][part])
        assert any(warning in note and "not how it does on unseen ones" in note for note in again["notes"])


def test_the_model_built_again_says_what_predictions_parquet_says(folder):
    run, store = load_run(Path("late")), open_store("features.zarr")
    table = pq.read_table("runs/late/predictions.parquet").to_pydict()
    row_of = {segment_id: row for row, segment_id in enumerate(store.ids.tolist())}
    rows = np.array([row_of[segment_id] for segment_id in table["segment_id"]])
    data = load_features(run, store)
    mood, tags, energy, _ = run.predict(data, rows)
    assert data.slots == ("text", "audio", "midi")
    for k, name in enumerate(("calm", "dark", "happy")):
        np.testing.assert_array_equal(mood[:, k], table[f"mood.p.{name}"])
    np.testing.assert_array_equal(tags[:, 1], table["tags.p.b"])
    np.testing.assert_array_equal(energy[:, 0], table["energy.predicted"])


def test_of_several_seeds_it_is_the_kept_one(folder, evaluate, run_cli):
    run_cli(*SHORT, "--seeds", "2", "--name", "two", "--slots", "text,audio")
    metrics, found = metrics_of(folder, "two"), evaluate("two")
    kept = metrics["seeds"].index(metrics["model"]["seed"])
    for name, target in found["targets"].items():
        assert target["score"]["value"] == metrics["targets"][name]["splits"]["test"]["per_seed"][kept]
    (note,) = found["notes"]
    assert f"seed {metrics['model']['seed']}" in note and "means over 2 seeds" in note


def test_a_fusion_that_reads_frames_reads_them_again(folder, evaluate, run_cli):
    store = open_store("features.zarr")
    feature = store.feature("text/toy")
    vectors, present = feature.vectors[:], feature.present
    add_feature(store, "text", vectors, present, frames=vectors[:, None] * [[[0.5], [1.0], [1.5]]])
    run_cli(*SHORT, "--fusion", "early")
    found, expected = evaluate("early")["targets"], metrics_of(folder, "early")["targets"]
    for name, target in found.items():
        same(target["score"], expected[name]["splits"]["test"])
        for pattern, score_then in expected[name]["presence_patterns"].items():
            same(target["presence_patterns"][pattern]["shown"], score_then)
    add_feature(store, "text", vectors, present)
    message = refused(run_cli, "early")
    assert "text/toy has no frames, which run early reads" in message


def test_one_slot_has_one_pattern_and_one_deployment(evaluate, run_cli):
    run_cli(*SHORT, "--name", "one", "--slots", "audio")
    energy = evaluate("one")["targets"]["energy"]
    assert list(energy["presence_patterns"]) == ["audio"]
    assert [found["presence"] for found in energy["deployments"]] == [{"audio": 1.0}]
    pattern = energy["presence_patterns"]["audio"]
    same(pattern["shown"], pattern["by_nature"])
    assert pattern["shown"]["n"] < energy["score"]["n"]  # nothing is there of the others; they count in the whole


def test_of_folds_it_is_the_first(folder, evaluate, run_cli):
    run_cli(*SHORT, "--name", "folds", "--split", "cv")
    found = evaluate("folds")
    assert found["split"] == "cv.0" and found["part"] == "test"
    assert any("split cv.0" in note and "test parts of 3 folds pooled" in note for note in found["notes"])
    table = pq.read_table("runs/folds/predictions.parquet").to_pydict()
    pairs = zip(table["mood.true"], table["mood.predicted"], table["split"], strict=True)
    right = [t == p for t, p, split in pairs if split == "cv.0" and t is not None]
    assert found["targets"]["mood"]["score"]["others"]["accuracy"]["value"] == np.mean(right)
    assert evaluate("folds", "--split", "cv") == found  # the set's name means the model's own fold
    assert "was trained on, or whose score chose its epoch" in refused(run_cli, "folds", "--split", "cv.1")


# Presence


def test_patterns_by_nature_are_the_segments_that_have_just_these(evaluate):
    found = evaluate("late")["targets"]["mood"]["presence_patterns"]
    table = pq.read_table("runs/late/predictions.parquet").to_pydict()
    for shown in product([True, False], repeat=3):
        if not any(shown):
            continue
        here = [
            at
            for at, truth in enumerate(table["mood.true"])
            if truth is not None and tuple(table[f"present.{slot}"][at] for slot in SLOTS) == shown
        ]
        by_nature = found["+".join(slot for slot, there in zip(SLOTS, shown, strict=True) if there)]["by_nature"]
        assert by_nature["n"] == len(here)
        right = [table["mood.true"][at] == table["mood.predicted"][at] for at in here]
        assert by_nature["others"]["accuracy"]["value"] == (pytest.approx(np.mean(right)) if here else None)
    assert min(pattern["by_nature"]["n"] for pattern in found.values()) < 5 < found["text+audio"]["by_nature"]["n"]


def test_what_hiding_costs_is_told_on_the_same_segments(evaluate):
    found = evaluate("late")["targets"]
    mood = found["mood"]["presence_patterns"]
    assert all(change == {"difference": 0, "ci95": [0, 0]} for change in mood["text+audio+midi"]["difference"].values())
    assert mood["audio"]["difference"]["accuracy"]["ci95"][1] < 0  # mood stands in the text
    assert mood["audio"]["difference"]["confidence"]["ci95"][1] < 0  # and without it the model is less sure
    assert found["energy"]["presence_patterns"]["text"]["difference"]["rmse"]["ci95"][0] > 0


# Deployment


def outputs_under(run, data, rows, slots, shown) -> list[np.ndarray]:
    mask = data.present[rows].clone()
    for slot, here in zip(slots, shown, strict=True):
        mask[:, data.slots.index(slot)] = here
    return run.predict(data, rows, mask)


def test_deployment_is_every_segment_under_as_many_masks_as_the_rates_say(evaluate):
    """MIDI always and audio in 3 of 10 masks; and as in training, under the mask of every training segment."""
    deployed = evaluate("late", "--presence", "midi=1.0,audio=0.3")["targets"]
    run, store = load_run(Path("late")), open_store("features.zarr")
    data, (targets, _) = load_features(run, store), load_labels(run, store)
    split = store.split("default")
    rows, _ = pattern_rows(data, split.rows(Part.TEST), ["midi", "audio"])
    masks = {
        "deployed": [(True, True)] * 3 + [(True, False)] * 7,
        "as_in_training": [tuple(mask) for mask in data.present[split.rows(Part.TRAIN)][:, [2, 1]].tolist()],
    }
    outputs = {
        shown: outputs_under(run, data, rows, ["midi", "audio"], shown) for shown in set(masks["as_in_training"])
    }
    assert len(outputs) == 4
    for index, target in enumerate(targets):
        (found,) = deployed[target.name]["deployments"]
        known = target.known.numpy()[rows]
        truth = target.truth.numpy()[rows[known]]
        for name, shown in masks.items():
            assert found[name]["n"] == known.sum()
            by_name = {**found[name]["others"], found[name]["metric"]: found[name]}
            for metric in METRICS[target.kind]:
                stacked = np.concatenate([outputs[mask][index][known] for mask in shown])
                expected = score(metric, np.concatenate([truth] * len(shown)), stacked)
                assert by_name[metric.name]["value"] == pytest.approx(expected, rel=1e-6), (name, metric.name)


def test_a_slot_that_is_always_or_never_there_is_a_pattern(evaluate):
    found = evaluate("late", "--presence", "text=1,audio=0,midi=0", "--presence", "text=1,audio=1,midi=1")["targets"]
    run, store = load_run(Path("late")), open_store("features.zarr")
    data = load_features(run, store)
    rows, _ = pattern_rows(data, store.split("default").rows(Part.TEST), SLOTS)
    truth = np.where(
        store.label("mood") == "", -1, [["calm", "dark", "happy", ""].index(m) for m in store.label("mood")]
    )
    known = rows[truth[rows] >= 0]
    for deployment, shown in zip(found["mood"]["deployments"], [(1, 0, 0), (1, 1, 1)], strict=True):
        predicted = outputs_under(run, data, known, SLOTS, shown)[0].argmax(axis=1)
        value = deployment["deployed"]["others"]["accuracy"]["value"]
        assert value == pytest.approx(np.mean(predicted == truth[known]))
    same(found["mood"]["deployments"][1]["deployed"], found["mood"]["presence_patterns"]["text+audio+midi"]["shown"])


def test_the_rates_of_training_change_nothing(evaluate):
    training = evaluate("late")["presence"]["training"]
    store = open_store("features.zarr")
    rows = store.split("default").rows(Part.TRAIN)
    assert training == pytest.approx({slot: store.feature(f"{slot}/toy").present[rows].mean() for slot in SLOTS})
    found = evaluate("late", "--presence", f"midi={training['midi']!r}")
    for target in found["targets"].values():
        (deployment,) = target["deployments"]
        for change in deployment["difference"].values():
            assert change["difference"] == pytest.approx(0, abs=1e-9)


def test_by_default_each_slot_and_everything_is_always_there(evaluate):
    found = evaluate("late")["targets"]["tags"]
    expected = [{"text": 1.0}, {"audio": 1.0}, {"midi": 1.0}, dict.fromkeys(SLOTS, 1.0)]
    assert [deployment["presence"] for deployment in found["deployments"]] == expected
    midi = found["deployments"][2]
    assert midi["difference"]["brier"]["ci95"][1] < 0  # tags stand in MIDI, of which training had little
    assert midi["difference"]["macro_f1"]["difference"] == pytest.approx(
        midi["deployed"]["value"] - midi["as_in_training"]["value"]
    )


# Calibration


def test_the_temperature_is_validations_and_is_judged_on_test(folder, evaluate):
    found = evaluate("late")["targets"]
    run, store = load_run(Path("late")), open_store("features.zarr")
    data, ((mood, *_), _) = load_features(run, store), load_labels(run, store)
    val = store.split("default").rows(Part.VAL)
    val = val[mood.known.numpy()[val]]
    logits, truth = run.logits(data, val)[0].double(), mood.truth[val]
    calibration = found["mood"]["calibration"]
    fitted = calibration["temperature"]
    assert fitted["n"] == len(val) and fitted["at_limit"] is False
    losses = [
        float(torch.nn.functional.cross_entropy(logits / (factor * fitted["value"]), truth))
        for factor in (0.97, 1, 1.03)
    ]
    assert losses[1] < min(losses[0], losses[2])
    before, after = calibration["as_predicted"]["metrics"], calibration["with_temperature"]["metrics"]
    assert before["accuracy"] == after["accuracy"] and before["log_loss"] != after["log_loss"]
    assert calibration["difference"]["accuracy"] == {"difference": 0, "ci95": [0, 0]}
    assert {"ece", "ece_equal_mass", "brier", "log_loss", "confidence"} <= set(before)
    assert calibration["difference"]["brier"]["difference"] == pytest.approx(
        after["brier"]["value"] - before["brier"]["value"]
    )
    assert "temperature" in found["shares"]["calibration"]
    assert not {"temperature"} & ({*found["tags"]["calibration"]} | {*found["energy"]["calibration"]})
    for part in ("val", "all"):  # a temperature is not judged by what it was fitted to
        assert "temperature" not in evaluate("late", "--part", part)["targets"]["mood"]["calibration"]


def test_labels_of_the_test_part_do_not_touch_the_temperature(evaluate):
    before = evaluate("late")["targets"]["mood"]
    store = open_store("features.zarr")
    moods = store.label("mood")
    rows = store.split("default").rows(Part.TEST)
    moods[rows] = np.roll(moods[rows], 1)
    labels = {name: store.label(name) for name in store.label_names()} | {"mood": moods}
    store.update({name: store.segment_column(name) for name in store.segment_columns()}, labels, store.source)
    after = evaluate("late")["targets"]["mood"]
    assert after["score"]["value"] < before["score"]["value"]
    assert after["calibration"]["temperature"] == before["calibration"]["temperature"]


def test_every_kind_is_described_in_its_own_terms(evaluate):
    found = evaluate("late")["targets"]
    described = {name: target["calibration"]["as_predicted"] for name, target in found.items()}
    assert set(described["mood"]) == {"metrics", "reliability", "ece_if_calibrated"}
    assert set(described["tags"]) == {"metrics", "labels", "ece_if_calibrated"}
    assert set(described["shares"]) == {"metrics", "reliability"}
    assert set(described["energy"]) == {"metrics"}
    assert set(described["tags"]["labels"]) == {"a", "b"}
    table = pq.read_table("runs/late/predictions.parquet", columns=["energy.true", "energy.predicted"])
    truth, predicted = table.filter(table["energy.true"].is_valid()).to_pydict().values()
    slope, intercept = np.polyfit(predicted, truth, 1)
    assert described["energy"]["metrics"]["slope"]["value"] == pytest.approx(slope)
    assert described["energy"]["metrics"]["intercept"]["value"] == pytest.approx(intercept)
    for name in ("mood", "shares"):
        for table in described[name]["reliability"].values():
            assert sum(row["n"] for row in table) == found[name]["score"]["n"]


# Other segments


def test_another_store_is_scored_whole(folder, evaluate):
    make_toy(folder / "new.zarr", 20, seed=5, prefix="new-")
    found = evaluate("late", "--store", "new.zarr")
    assert found["split"] is None and found["part"] == "all" and found["n_segments"] == 80 and found["notes"] == []
    own = evaluate("late")
    assert found["presence"]["training"] == own["presence"]["training"] != found["presence"]["scored"]
    here, there = (e["targets"]["mood"]["calibration"]["temperature"] for e in (own, found))
    assert here == there
    tested = evaluate("late", "--store", "new.zarr", "--split", "default")
    assert tested["part"] == "test" and tested["n_segments"] < 40
    assert evaluate("late", "--store", "new.zarr", "--split", "default", "--part", "all")["n_segments"] == 80


def test_classes_are_told_by_name_and_new_ones_are_not_scored(folder, evaluate):
    same_data = {"n_groups": 20, "seed": 5, "prefix": "new-"}
    make_toy(folder / "new.zarr", **same_data)
    make_toy(folder / "other.zarr", **same_data, moods="calm,dark,weird")  # the third class is another
    known, renamed = (evaluate("late", "--store", name) for name in ("new.zarr", "other.zarr"))
    store = open_store("new.zarr")
    n_happy = int((store.label("mood") == "happy").sum())
    assert renamed["notes"] == [f"mood: run late has not learned weird; {n_happy} segments with them are not scored."]
    score_then, score_now = (e["targets"]["mood"]["score"] for e in (known, renamed))
    assert score_now["n"] == score_then["n"] - n_happy
    run = load_run(Path("late"))
    rows = np.flatnonzero((store.label("mood") == "calm") | (store.label("mood") == "dark"))
    predicted = run.predict(load_features(run, store), rows)[0].argmax(axis=1)
    right = np.array(["calm", "dark", "happy"], dtype=STRING)[predicted] == store.label("mood")[rows]
    assert score_now["others"]["accuracy"]["value"] == right.mean()


def test_labels_of_a_list_may_be_fewer(folder):
    """tags a and b are learned; a store where nobody has a, and some have c."""
    make_toy(folder / "new.zarr", 20, seed=5, prefix="new-")
    store = open_store("new.zarr")
    tags = np.array(['["b"]', '["b", "c"]'] * 40, dtype=STRING)
    labels = {name: store.label(name) for name in store.label_names()} | {"tags": tags}
    store.update({name: store.segment_column(name) for name in store.segment_columns()}, labels, store.source)
    targets, notes = load_labels(load_run(Path("late")), store)
    assert targets[1].classes == ["a", "b"] and targets[1].truth.tolist() == [[0, 1]] * 80
    assert notes == ["tags: run late has not learned c; they are not scored."]


def test_songs_that_the_run_knows_are_refused_unless_it_may_leak(folder, evaluate, run_cli):
    (split,) = make_splits(open_store("features.zarr").groups, None, SplitConfig(name="second", seed=9))
    store = open_store("features.zarr")
    store.write_split(split)
    own = store.split("default")
    seen = set(store.groups[own.parts != Part.TEST].tolist())
    rows = split.rows(Part.TEST)
    n_seen = sum(group in seen for group in store.groups[rows].tolist())
    assert n_seen > 0
    message = refused(run_cli, "late", "--split", "second")
    assert f"{n_seen} of the {len(rows)} segments are of groups that run late was trained on" in message
    assert "Use --split default, or accept it with --allow-leak" in message
    found = evaluate("late", "--split", "second", "--allow-leak")
    assert found["n_segments"] == len(rows) and any(note.startswith("LEAK") for note in found["notes"])


@pytest.mark.parametrize("kept", ["ids", "groups"])
def test_the_runs_songs_are_known_elsewhere_too(folder, run_cli, kept):
    """Another store with some of the run's segments under other groups, or with other segments of its groups."""
    store = make_toy(folder / "new.zarr", 20, seed=5, prefix="new-")
    own = open_store("features.zarr")
    column, old = ("id", own.ids) if kept == "ids" else ("group", own.groups)
    segments = {name: store.segment_column(name) for name in store.segment_columns()} | {column: old[:80]}
    labels = {name: store.label(name) for name in store.label_names()}
    with new_zarr_tree(folder / "known.zarr") as tree:
        known = Store.create(tree, segments, labels, {"layout": "toy"}, 64)
        for slot in SLOTS:
            feature = store.feature(f"{slot}/toy")
            add_feature(known, slot, feature.vectors[:], feature.present)
    n_seen = int((own.split("default").parts[:80] != Part.TEST).sum())
    assert 0 < n_seen < 80
    message = refused(run_cli, "late", "--store", "known.zarr")
    assert f"{n_seen} of the 80 segments are of groups that run late was trained on" in message


def test_one_group_has_no_interval(folder, evaluate):
    store = make_toy(folder / "new.zarr", 5, seed=5, prefix="new-")
    store.write_split(Split("one", np.where(np.arange(20) < 4, Part.TEST, Part.TRAIN), {"method": "grouped"}))
    found = evaluate("late", "--store", "new.zarr", "--split", "one")["targets"]["shares"]
    assert found["score"]["n"] == 4 and found["score"]["n_groups"] == 1
    assert found["score"]["value"] is not None and found["score"]["ci95"] is None
    assert found["presence_patterns"]["text"]["difference"]["overlap"]["ci95"] is None


def test_where_the_runs_own_store_is_gone_nobody_knows_what_it_saw(folder, evaluate, run_cli):
    make_toy(folder / "new.zarr", 20, seed=5, prefix="new-")
    whole = evaluate("late", "--store", "new.zarr")
    Path("runs/late/evaluation.json").unlink()
    shutil.rmtree("features.zarr")
    message = refused(run_cli, "late", "--store", "new.zarr")
    assert "what it has seen cannot be told" in message and "--allow-leak" in message
    found = evaluate("late", "--store", "new.zarr", "--allow-leak")
    assert any(note.startswith("LEAK") for note in found["notes"])
    assert any(note.startswith("No temperature") for note in found["notes"])
    assert found["targets"]["mood"]["score"] == whole["targets"]["mood"]["score"]
    assert "temperature" not in found["targets"]["mood"]["calibration"]
    assert found["presence"]["training"] == metrics_of(folder)["presence"]


def test_a_store_that_grew_is_still_the_runs_own(folder, evaluate):
    expected = evaluate("late")
    old, more = open_store("features.zarr"), make_toy(folder / "more.zarr", 5, seed=7, prefix="new-")

    def both(read):
        return {name: np.concatenate([read(old, name), read(more, name)]) for name in names}

    names = old.segment_columns()
    segments = both(lambda store, name: store.segment_column(name))
    names = old.label_names()
    labels = both(lambda store, name: store.label(name))
    with new_zarr_tree(folder / "grown.zarr") as tree:
        grown = Store.create(tree, segments, labels, {"layout": "toy"}, 64)
        carry_over(old, grown)
    found = evaluate("late", "--store", "grown.zarr", "--allow-pending")
    assert found["targets"] == expected["targets"] and found["notes"] == []


def test_a_store_dealt_alike_is_not_the_runs_own(folder):
    """The same groups and moods under other ids: the parts are equal to the last byte."""
    twin = make_toy(folder / "twin.zarr", prefix="twin-")
    own = open_store("features.zarr")
    np.testing.assert_array_equal(twin.split("default").parts, own.split("default").parts)
    run = load_run(Path("late"))
    found = own_store(run, twin)
    assert found is not None and found.tree.location == "features.zarr"
    assert evaluate_run(run, twin)["n_segments"] == 240


# Refusals


def test_a_feature_of_another_encoder_is_refused(folder, run_cli):
    store = open_store("features.zarr")
    feature = store.feature("audio/toy")
    add_feature(store, "audio", feature.vectors[:], feature.present, parameters={"hop_length": 256})
    message = refused(run_cli, "late")
    assert "audio/toy is by another encoder, or another configuration of it" in message and "fingerprint" in message


def test_another_width_and_a_missing_feature_are_refused(folder, run_cli):
    store = open_store("features.zarr")
    add_feature(store, "midi", np.zeros((240, 5)), np.ones(240, bool))
    assert "midi/toy has 5 columns; run late was trained on 12" in refused(run_cli, "late")
    store.delete_feature("midi/toy")
    message = refused(run_cli, "late")
    assert "Run late needs midi/toy; features.zarr has" in message and "cli featurize --encoder toy" in message


def test_a_split_that_is_not_what_it_was_is_refused(folder, run_cli):
    store = open_store("features.zarr")
    split = store.split("default")
    parts = split.parts.copy()
    parts[split.rows(Part.VAL)[0]] = Part.LEFT_OUT
    store.write_split(Split("default", parts, split.facts))
    assert "what it has seen cannot be told" in refused(run_cli, "late")


def test_a_damaged_model_is_refused(folder, run_cli):
    path = Path("runs/late/model.safetensors")
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["triad_fusion"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    facts["fusion"]["hidden_dim"] = 7
    write_model(path, weights, facts)
    message = refused(run_cli, "late")
    assert "its weights do not fit the late fusion of this version" in message and "cli fit --config" in message
    path.write_bytes(path.read_bytes()[:100])
    assert "holds no model of a run" in refused(run_cli, "late")
    path.unlink()
    assert "holds no model of a run" in refused(run_cli, "late")
    write_model(path, weights, {**facts, "fusion": {**facts["fusion"], "hidden_dim": 128}})
    Path("runs/late/predictions.parquet").unlink()
    assert "predictions.parquet cannot be read" in refused(run_cli, "late")
    Path("runs/late/environment.json").write_text("{")
    assert "environment.json cannot be read" in refused(run_cli, "late")


def test_what_does_not_fit_is_said_in_a_line(folder, run_cli):
    make_toy(folder / "new.zarr", 5, seed=5, prefix="new-")
    assert "There is no run 'lat'. Did you mean 'late'?" in refused(run_cli, "lat")
    assert "There is no slot of this run 'mid'. Did you mean 'midi'?" in refused(run_cli, "late", "--presence", "mid=1")
    assert "a rate is a share of the segments, from 0 to 1" in refused(run_cli, "late", "--presence", "midi=57")
    assert "has no split 'tset'" in refused(run_cli, "late", "--split", "tset")
    assert "--part val of which split?" in refused(run_cli, "late", "--store", "new.zarr", "--part", "val")
    assert "There is no store at" in refused(run_cli, "late", "--store", "nothing.zarr")
    for wrong in ("midi", "midi=often", "midi=1,midi=0", "=1,"):
        output = run_cli("evaluate", "late", "--presence", wrong, code=2).output
        assert "--presence takes each slot once with its rate" in output
    assert "there is no folder gone" in run_cli("evaluate", "late", "--out", "gone/e.json", code=2).output


def test_labels_that_are_not_there_are_refused(folder, run_cli):
    make_toy(folder / "new.zarr", 20, seed=5, prefix="new-")
    store = open_store("new.zarr")
    columns = {name: store.segment_column(name) for name in store.segment_columns()}
    labels = {name: store.label(name) for name in store.label_names()}
    store.update(columns, {**labels, "shares": labels["shares"][:, :2]}, store.source)
    assert "the run has learned 3 shares or labels (0, 1, 2, …); this store has 2" in refused(
        run_cli, "late", "--store", "new.zarr"
    )
    store.update(columns, {name: labels[name] for name in labels if name != "energy"}, store.source)
    assert "energy" in refused(run_cli, "late", "--store", "new.zarr")
    store.update(columns, {**labels, "mood": np.array([""] * 80, dtype=STRING)}, store.source)
    run_cli("evaluate", "late", "--store", "new.zarr")  # a label that nobody has leaves blanks
    mood = json.loads(Path("runs/late/evaluation.json").read_text())["targets"]["mood"]
    assert mood["score"]["n"] == 0 and mood["score"]["value"] is None
    assert mood["calibration"]["with_temperature"]["metrics"]["brier"] == {"value": None, "ci95": None}


# What is printed and written


def test_the_run_gets_one_file_and_is_not_changed_otherwise(folder, run_cli):
    before = {path.name: path.read_bytes() for path in Path("runs/late").iterdir()}
    printed = run_cli("evaluate", "late", "--json").output
    after = {path.name: path.read_bytes() for path in Path("runs/late").iterdir()}
    assert json.loads(after.pop("evaluation.json")) == json.loads(printed)
    assert after == before
    run_cli("evaluate", "runs/late", "--out", "elsewhere.json", "--presence", "midi=0.5")
    assert json.loads(Path("elsewhere.json").read_text()) != json.loads(printed)
    assert json.loads(Path("runs/late/evaluation.json").read_text()) == json.loads(printed)
    run_cli("report", "runs/late")  # which reads the folder still


def test_the_table_says_what_there_is(evaluate, run_cli):
    output = run_cli("evaluate", "late").output
    lines = output.splitlines()
    assert lines[0].startswith("late of text/toy, audio/toy, midi/toy; model of split default, seed 0, epoch ")
    assert lines[1].startswith("features.zarr, test of split default: 72 segments of 18 groups")
    for words in ("text+audio+midi", "midi 100% (", "temperature ", "were it calibrated", "no variance is predicted"):
        assert words in output
    assert max(map(len, lines)) <= 160
    found = evaluate("late")["targets"]["mood"]["score"]
    row = next(line for line in lines if line.strip().startswith("as they are"))
    assert row.split()[3:5] == [str(found["n"]), f"{found['value']:.3f}"]


def test_a_part_where_nobody_has_a_slot_leaves_blanks(folder, evaluate, run_cli):
    store = open_store("features.zarr")
    feature, present = store.feature("midi/toy"), store.feature("midi/toy").present
    present[store.split("default").rows(Part.TEST)] = False
    add_feature(store, "midi", feature.vectors[:], present)
    found = evaluate("late")["targets"]["energy"]
    assert found["score"]["n"] > 0
    for scored in (found["presence_patterns"]["midi"]["shown"], found["deployments"][2]["deployed"]):
        assert scored["n"] == 0 and scored["value"] is None and scored["ci95"] is None
    assert found["deployments"][2]["difference"]["r2"] == {"difference": None, "ci95": None}
    assert "—" in run_cli("evaluate", "late").output
