"""A whole fit on a store in memory: what it pools, keeps and compares."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import fusion.fitting as fit_module
from featurize.config import SplitConfig
from featurize.splits import make_splits
from fusion import baselines
from fusion.config import validated
from fusion.data import SegmentData, choose_features, load_segments
from fusion.fitting import fit
from fusion.metrics import headline_metric, score
from fusion.targets import load_targets
from stores.base import STRING
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Part, Store
from tests.stores_contract import RECORD

pytestmark = pytest.mark.usefixtures("unrendered")

N = 160


@pytest.fixture(scope="module")
def store() -> Store:
    """Text tells the label linearly, audio tells nothing; a fifth of each is missing; some labels are missing."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, N)
    names = np.array(["", "no", "yes"], dtype=STRING)[np.where(np.arange(N) % 9 == 0, 0, label + 1)]
    segments = {
        "id": np.array([f"s{i}" for i in range(N)], dtype=STRING),
        "group": np.array([f"g{i // 4}" for i in range(N)], dtype=STRING),
    }
    made = Store.create(MemoryTree(), segments, {"liked": names}, {"layout": "test"}, 64)
    for slot, signal in (("text", 1.2), ("audio", 0.0)):
        vectors = rng.normal(size=(N, 12)) + signal * np.outer(2 * label - 1, np.eye(12)[0])
        feature = made.create_feature(f"{slot}/toy", {**RECORD, "modality": slot, "width": 12})
        for chunk in feature.chunks():
            rows = np.array(chunk)
            status = np.where(rng.random(len(rows)) < 0.2, Status.ABSENT, Status.PRESENT).astype(np.uint8)
            feature.write_chunk(
                chunk, rows, vectors[rows], status, np.ones((len(rows), 16), np.uint8), [""] * len(rows)
            )
    for split in (*make_splits(made.groups, names, SplitConfig()), *make_splits(made.groups, names, FOLDS)):
        made.write_split(split)
    return made


FOLDS = SplitConfig(name="cv", folds=4)
CONFIG = validated({"training": {"epochs": 20, "bootstrap": 200, "seeds": [0, 1]}}, "test")


def test_a_slot_alone_is_never_weaker_on_validation_than_a_linear_model_of_it(store, tmp_path):
    metrics = fit(store, CONFIG, runs=tmp_path).metrics
    data = load_segments(store, choose_features(store, CONFIG))
    (target,) = load_targets(store, [])
    split = store.split("default")
    train, val = split.rows(Part.TRAIN), split.rows(Part.VAL)
    known = val[target.known.numpy()[val]]
    for slot in ("text", "audio"):
        inputs = baselines.concatenation(data.only([slot]), train)
        linear = baselines.linear(inputs, target, train, val, known)
        expected = score(headline_metric("categorical", None), target.truth.numpy()[known], linear)
        assert metrics["targets"]["liked"]["baselines"][f"{slot} alone"]["val"]["value"] >= expected - 1e-9
    signal = metrics["targets"]["liked"]["above_majority"]
    assert signal["text alone"]["better"] is True and signal["audio alone"]["better"] is not True


def test_folds_pool_every_labelled_segment_once(store, tmp_path):
    run = fit(store, CONFIG, runs=tmp_path, split_name="cv", with_baselines=False)
    test = run.metrics["targets"]["liked"]["splits"]["test"]
    labelled = int((store.label("liked") != "").sum())
    assert test["n"] == labelled and test["n_groups"] == 40 and len(test["per_seed"]) == 2
    predictions = pq.read_table(run.folder / "predictions.parquet").to_pydict()
    assert len(predictions["segment_id"]) == 2 * N  # for each seed
    assert set(predictions["split"]) == {"cv.0", "cv.1", "cv.2", "cv.3"}
    history = pq.read_table(run.folder / "history.parquet").to_pydict()
    assert {*zip(history["split"], history["seed"], strict=True)} == {(f"cv.{k}", s) for k in range(4) for s in (0, 1)}


def test_the_kept_model_says_what_it_needs_to_be_built_again(store, tmp_path):
    run = fit(store, CONFIG, runs=tmp_path, with_baselines=False)
    with safe_open(run.folder / "model.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["triad_fusion"])
        assert facts["widths"] == {"text": 12, "audio": 12} and facts["targets"][0]["classes"] == ["no", "yes"]
        assert any(name.startswith("fusion.") for name in file.keys())  # noqa: SIM118 (not a dict)


def test_one_slot_needs_no_slot_alone(store, tmp_path):
    config = validated({**CONFIG.model_dump(), "model": {"fusion": {"slots": ["text"]}}}, "test")
    found = fit(store, config, runs=tmp_path).metrics["targets"]["liked"]
    assert set(found["baselines"]) == {"majority", "logistic regression", "mask only"}
    assert list(found["presence_patterns"]) == ["text"]


def test_a_run_is_complete_or_not_there(store, tmp_path, monkeypatch):
    import fusion.report

    monkeypatch.setattr(fusion.report, "write_report", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(store, CONFIG, runs=tmp_path, name="x", with_baselines=False)
    assert not (tmp_path / "x").exists()
    monkeypatch.undo()
    assert fit(store, CONFIG, runs=tmp_path, name="x", with_baselines=False).folder == tmp_path / "x"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_interrupted_fit_repeats_no_finished_training(store, tmp_path, monkeypatch):
    """The third of six trainings fails; the next fit does four, and its numbers are those of one that never stopped."""
    expected = fit(store, CONFIG, runs=tmp_path / "whole", name="a")
    n_epochs = pq.read_table(expected.folder / "history.parquet").num_rows
    trained, epochs = [], []
    train, batches = fit_module.train, SegmentData.batches

    def train_two(*arguments):
        trained.append(arguments)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    def count_epochs(data, rows, augmentation_seed=None):
        if augmentation_seed is not None:
            epochs.append(augmentation_seed)
        return batches(data, rows, augmentation_seed)

    monkeypatch.setattr(SegmentData, "batches", count_epochs)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fit_module, "train", train_two)
        fit(store, CONFIG, runs=tmp_path, name="a")
    assert not (tmp_path / "a").exists() and 0 < len(epochs) < n_epochs
    found = fit(store, CONFIG, runs=tmp_path, name="a")
    assert len(epochs) == n_epochs
    assert found.metrics == expected.metrics
    assert {path.name for path in tmp_path.iterdir()} == {"a", "whole"}
    assert not (found.folder / "checkpoints").exists()
