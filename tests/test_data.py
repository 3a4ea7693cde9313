"""From the store to batches, with and without frames; and a whole fit on frames."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from featurize.config import SplitConfig
from featurize.errors import ConfigError
from featurize.splits import make_splits
from fusion.config import FusionConfig, TrainingConfig, validated
from fusion.data import SegmentData, choose_features, load_segments
from fusion.fitting import fit
from fusion.modules import FUSIONS, Frames
from fusion.targets import load_targets
from fusion.train import infer, train
from stores.base import STRING
from stores.errors import StoreError
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Part, Store
from tests.stores_contract import RECORD

pytestmark = pytest.mark.usefixtures("unrendered")

N, T, WIDTH = 240, 4, 3
TRAINING = {"epochs": 40, "batch_size": 32, "lr": 1e-2, "weight_decay": 0.01, "seeds": [0], "bootstrap": 200}
CONFIG = validated({"training": TRAINING}, "test")
ON_FRAMES = [name for name, fusion in FUSIONS.items() if fusion.reads_frames]


@pytest.fixture(scope="module")
def store() -> Store:
    """Text has vectors; audio has frames, of which a marked one tells the label and another hides it in the mean."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, N)
    segments = {
        "id": np.array([f"s{i}" for i in range(N)], dtype=STRING),
        "group": np.array([f"g{i // 4}" for i in range(N)], dtype=STRING),
    }
    names = np.array(["no", "yes"], dtype=STRING)[label]
    made = Store.create(MemoryTree(), segments, {"liked": names}, {"layout": "test"}, 64)
    n_frames = rng.integers(2, T + 1, N)
    frames = 0.1 * rng.normal(size=(N, T, WIDTH))
    frames[:, 0] += np.stack([np.full(N, 2.0), 2.0 * (2 * label - 1), np.zeros(N)], axis=1)
    frames[:, 1] += np.stack([np.zeros(N), -2.0 * (2 * label - 1), np.zeros(N)], axis=1)
    frames = np.where((np.arange(T) < n_frames[:, None])[:, :, None], frames, 0)
    text = made.create_feature("text/toy", {**RECORD, "modality": "text", "width": WIDTH})
    audio = made.create_feature("audio/toy", {**RECORD, "width": WIDTH}, frames=T)
    for feature, vectors in ((text, rng.normal(size=(N, WIDTH))), (audio, frames.sum(axis=1) / n_frames[:, None])):
        for chunk in feature.chunks():
            rows = np.array(chunk)
            status = np.where(rng.random(len(rows)) < 0.15, Status.ABSENT, Status.PRESENT).astype(np.uint8)
            of_frames = {"frames": frames[rows], "n_frames": n_frames[rows]} if feature.has_frames else {}
            hashes = np.ones((len(rows), 16), np.uint8)
            feature.write_chunk(chunk, rows, vectors[rows], status, hashes, [""] * len(rows), **of_frames)
    for split in make_splits(made.groups, names, SplitConfig()):
        made.write_split(split)
    return made


@pytest.fixture
def data(store) -> SegmentData:
    return load_segments(store, choose_features(store, CONFIG), with_frames=True)


# Loading


def test_frames_are_loaded_where_they_are_asked_for_and_there(store, data):
    assert list(data.frames) == list(data.n_frames) == ["audio"]
    assert data.frames["audio"].dtype == torch.float16  # as stored; a batch is made float32 when it is taken
    np.testing.assert_array_equal(data.frames["audio"], store["audio/toy"].frames[:])
    np.testing.assert_array_equal(data.n_frames["audio"], store["audio/toy"].n_frames)
    plain = load_segments(store, choose_features(store, CONFIG))
    assert not plain.frames and not plain.n_frames
    assert torch.equal(plain.vectors["audio"], data.vectors["audio"]) and torch.equal(plain.present, data.present)


def test_pending_rows_are_named(store):
    other = Store.create(
        MemoryTree(), {"id": store.ids, "group": store.groups}, {"liked": store.label("liked")}, {"layout": "test"}
    )
    other.create_feature("audio/toy", RECORD, frames=T)
    with pytest.raises(StoreError, match="240 of 240 rows are pending"):
        load_segments(other, {"audio": "audio/toy"}, with_frames=True)
    pending = load_segments(other, {"audio": "audio/toy"}, with_frames=True, allow_pending=True)
    assert not pending.present.any() and not pending.n_frames["audio"].any()


# Batches


def test_a_batch_has_vectors_or_frames_of_its_rows(data):
    wanted = [torch.tensor([7, 3]), torch.tensor([100])]
    for expected, (rows, inputs) in zip(wanted, data.batches(wanted), strict=True):
        assert torch.equal(rows, expected) and list(inputs) == ["text", "audio"]
        assert torch.equal(inputs["text"], data.vectors["text"][rows])
        audio = inputs["audio"]
        assert isinstance(audio, Frames) and torch.equal(audio.pooled, data.vectors["audio"][rows])
        assert torch.equal(audio.mask.sum(dim=1), data.n_frames["audio"][rows])
        assert torch.equal(audio.values, data.frames["audio"][rows, : audio.mask.shape[1]])


def test_a_batch_is_as_long_as_its_longest_row(data):
    n_frames = data.n_frames["audio"]
    for longest in (0, 2, T):
        rows = torch.nonzero(n_frames <= longest)[:, 0]
        ((_, inputs),) = data.batches([rows])
        assert inputs["audio"].values.shape == (len(rows), longest, WIDTH)
        assert inputs["audio"].mask.shape == (len(rows), longest)
    ((_, inputs),) = data.batches([torch.tensor([], dtype=torch.int64)])
    assert inputs["audio"].values.shape == (0, 0, WIDTH)


def test_the_mask_leaves_the_padding_out(data):
    rows = torch.arange(50)
    expected = torch.cat([data.frames["audio"][row, : data.n_frames["audio"][row]] for row in rows])
    ((_, inputs),) = data.batches([rows])
    audio = inputs["audio"]
    assert torch.equal(audio.values[audio.mask], expected) and 0 < len(expected) < 50 * T


def test_rows_of_frames_are_fewer_at_once(data):
    assert data.without_frames().evaluation_batch == 4096 and data.evaluation_batch == 4096 // (1 + T)
    endless = replace(data, frames={"audio": torch.zeros(1, 10_000, 1)})
    assert endless.evaluation_batch == 1


def test_some_slots_keep_their_frames(data):
    assert list(data.only(["audio"]).frames) == list(data.only(["audio"]).n_frames) == ["audio"]
    assert not data.only(["text"]).frames and list(data.only(["text", "audio"]).frames) == ["audio"]
    vectors = data.without_frames()
    assert not vectors.frames and not vectors.n_frames and vectors.slots == data.slots


# Training on them


def trained_on(store, data, strategy, **settings):
    targets = load_targets(store, [])
    split = store.split("default")
    fusion = FusionConfig(strategy=strategy, hidden_dim=16, **settings)
    rows = split.rows(Part.TRAIN), split.rows(Part.VAL)
    return train(data, targets, *rows, fusion, TrainingConfig(precision="fp32", epochs=3, batch_size=64), 0)


def test_frames_are_standardized_by_real_frames_of_present_training_rows(store, data):
    """What stands elsewhere, even NaN, changes nothing at all."""
    garbage = data.frames["audio"].clone()
    real = torch.arange(T) < data.n_frames["audio"][:, None]
    here = data.present[:, data.slots.index("audio")]
    garbage[~(real & here[:, None])] = torch.nan
    model = trained_on(store, data, "early").model
    rows = torch.from_numpy(store.split("default").rows(Part.TRAIN))
    ((_, inputs),) = data.batches([rows[here[rows]]])
    seen = inputs["audio"].values[inputs["audio"].mask].float()
    (frames,) = model.standardize_frames.values()
    torch.testing.assert_close(frames.mean, seen.mean(dim=0))
    torch.testing.assert_close(frames.scale, seen.std(dim=0, correction=0))
    standardized = model.standardized(inputs)["audio"]
    torch.testing.assert_close(
        standardized.values[standardized.mask], ((seen - frames.mean) / frames.scale).clamp(-8, 8)
    )
    other = trained_on(store, replace(data, frames={"audio": garbage}), "early").model
    assert all(torch.equal(other.state_dict()[key], value) for key, value in model.state_dict().items())


def test_a_fusion_that_reads_no_frames_takes_the_vectors_of_the_same_data(store, data):
    with_frames, without = (trained_on(store, d, "late").model for d in (data, data.without_frames()))
    assert with_frames.state_dict().keys() == without.state_dict().keys() and not with_frames.frame_slots
    assert all(torch.equal(without.state_dict()[key], value) for key, value in with_frames.state_dict().items())


def test_a_model_of_frames_refuses_data_without(store, data):
    model = trained_on(store, data, "cross_attention").model
    assert model.frame_slots == ("audio",)
    with pytest.raises(ValueError, match="slot audio had frames in training"):
        infer(model, data.without_frames(), np.arange(4))


def test_options_and_heads_come_from_the_configuration(store, data):
    model = trained_on(store, data, "early", attention_heads=8, options={"n_layers": 3}).model
    assert len(model.fusion.attend.layers) == 3 and model.fusion.pool.attention.n_heads == 8
    with pytest.raises(ConfigError, match="attention_heads is 5; expected a divisor of hidden_dim, 16"):
        trained_on(store, data, "early", attention_heads=5)


@pytest.mark.parametrize("strategy", ["late", *ON_FRAMES])
def test_a_whole_fit_finds_what_only_frames_tell(store, tmp_path, strategy):
    model = {"fusion": {"strategy": strategy, "hidden_dim": 16}}
    run = fit(store, validated({**CONFIG.model_dump(), "model": model}, "test"), runs=tmp_path, with_baselines=False)
    value = run.metrics["targets"]["liked"]["splits"]["test"]["value"]
    assert value >= 0.75 if strategy in ON_FRAMES else value <= 0.68
    predictions = pq.read_table(run.folder / "predictions.parquet").to_pydict()
    assert ("weight.audio" in predictions) == (strategy in ON_FRAMES)
    if strategy in ON_FRAMES:
        present = np.stack([predictions["present.text"], predictions["present.audio"]], axis=1)
        weights = np.stack([predictions["weight.text"], predictions["weight.audio"]], axis=1)
        np.testing.assert_allclose(weights.sum(axis=1), present.any(axis=1), atol=1e-5)
        assert not weights[~present].any()
    with safe_open(run.folder / "model.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["triad_fusion"])
        assert facts["frames"] == (["audio"] if strategy in ON_FRAMES else [])
