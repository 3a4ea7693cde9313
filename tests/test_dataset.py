"""Segments as PyTorch datasets: from the store and from raw data the same features, masks and labels."""

from __future__ import annotations

import csv
import multiprocessing
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Subset

from featurize.config import DataConfig, TargetConfig
from featurize.encoders import build_encoder
from featurize.encoders.base import Encoded, Encoder
from featurize.errors import ConfigError
from featurize.ingestion import check, write_store
from featurize.pipeline import featurize
from featurize.sources import Source, open_source
from featurize.splits import write_splits
from fusion.config import Config
from fusion.data import load_segments
from fusion.dataset import CHUNKS_KEPT, RawSegments, SlotEncoders, StoredSegments
from fusion.model import FusionModel
from fusion.modules import build_fusion
from fusion.targets import Target, load_targets
from stores.base import STRING
from stores.errors import StoreError
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Part, Store
from tests.fusion_contract import shake
from tests.stores_contract import RECORD, make_store
from tests.stores_contract import write as write_rows
from tests.test_ingest import write_csv, write_split_parquet

DOCUMENT = Path(__file__).parents[1] / "docs" / "missing.md"
FEATURES = {"text": "text/lsa", "audio": "audio/mel_stats", "midi": "midi/midi_stats"}
UNLABELLED = [2, 8, 9]
HALF_STEP = {"rtol": 2.0**-11, "atol": 2.0**-25}  # of float16, for normal and for subnormal numbers


@dataclass(frozen=True)
class Songs:
    """A store with features, the data it was made from, and the encoders that made them, by slot."""

    store: Store
    source: Source
    encoders: Mapping[str, Encoder]
    targets: list[Target]

    def stored(self, rows: np.ndarray | None = None, **options) -> StoredSegments:
        return StoredSegments(self.store, FEATURES, self.targets, rows, **options)

    def raw(self, rows: np.ndarray | None = None) -> RawSegments:
        return RawSegments(self.store, self.source, self.encoders, self.targets, rows)

    def slot_encoders(self) -> SlotEncoders:
        return SlotEncoders(self.encoders).eval()

    def rows_without(self, slot: str) -> np.ndarray:
        return np.flatnonzero(~self.store[FEATURES[slot]].present)


@pytest.fixture(scope="module", params=["folder", "split_parquet"])
def songs(request, demo_data, tmp_path_factory) -> Songs:
    """The demo songs with a damaged MIDI file, an audio file and some labels gone, in either layout."""
    root = tmp_path_factory.mktemp(request.param)
    data = shutil.copytree(demo_data, root / "data")
    with (data / "segments.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for at in UNLABELLED:
        rows[at]["mood"] = ""
    write_csv(data, rows)
    (data / next(row["midi_path"] for row in rows if row["midi_path"])).write_bytes(b"no MIDI")
    if request.param == "split_parquet":
        data = write_split_parquet(data, root / "parquet")
    next(path for path in sorted(data.rglob("*")) if path.suffix in (".wav", ".flac")).unlink()
    config = Config()
    found = check(data, DataConfig())
    store, _ = write_store(found, root / "features.zarr")
    write_splits(store, config.split, [TargetConfig(name="mood")])
    encoders = {}
    for slot, name in FEATURES.items():
        encoders[slot] = build_encoder(name.partition("/")[2])
        featurize(store, open_source(data, DataConfig()), encoders[slot], device="cpu")
    targets = load_targets(store, [TargetConfig(name="mood"), TargetConfig(name="energy")])
    return Songs(store, open_source(data, DataConfig()), encoders, targets)


def model_for(widths: Mapping[str, int], targets: list[Target]) -> FusionModel:
    torch.manual_seed(0)
    model = FusionModel(build_fusion("gated", widths, 16, 0.3), widths, targets, 0.3)
    shake(model)
    return model.eval()


def assert_same(one, other, path="", relative=0.0) -> None:
    """Equal, by default to the bit, through dicts, lists and whatever a prepared item is made of."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_same(one[key], other[key], f"{path}/{key}", relative)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for at, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{path}/{at}", relative)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=relative, atol=relative, msg=path)
    elif isinstance(one, np.ndarray):
        if relative and one.dtype.kind == "f" and one.dtype == other.dtype:
            np.testing.assert_allclose(one, other, rtol=relative, atol=relative, err_msg=path)
        else:
            np.testing.assert_array_equal(one, other, err_msg=path, strict=True)
    else:
        assert one == other, path


# The same from the store and from raw data


def test_frozen_encoders_give_what_the_store_holds(songs):
    stored, raw = songs.stored(), songs.raw()
    encoders = songs.slot_encoders()
    assert stored.widths == raw.widths == encoders.widths and list(stored.widths) == list(FEATURES)
    model = model_for(stored.widths, songs.targets)
    loaders = [DataLoader(data, batch_size=7, collate_fn=data.collate) for data in (stored, raw)]
    n_missing, unknown = 0, []
    for ours, theirs in zip(*loaders, strict=True):
        features, present = encoders(theirs)
        assert present.dtype == torch.bool and torch.equal(present, ours["modality_mask"])
        assert torch.equal(present, theirs["modality_mask"])
        for at, slot in enumerate(FEATURES):
            assert features[slot].dtype == ours[slot].dtype == torch.float32
            assert features[slot].shape == ours[slot].shape == (len(present), stored.widths[slot])
            torch.testing.assert_close(ours[slot], features[slot], **HALF_STEP)
            for vectors in (features[slot], ours[slot]):
                assert not vectors[~present[:, at]].any() and vectors.isfinite().all()
                assert vectors[present[:, at]].any(dim=1).all()
        for name in ("row", "segment_id", "label", "label_mask"):
            assert_same(ours[name], theirs[name], name)
        for one, other in zip(model(ours, present)[0], model(features, present)[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)
        n_missing += int((~present).sum())
        unknown += ours["row"][~ours["label_mask"]["mood"]].tolist()
    assert n_missing == sum(len(songs.rows_without(slot)) for slot in FEATURES) > 30
    assert unknown == UNLABELLED


def test_masks_are_the_statuses_and_failures_have_their_reasons(songs):
    stored, raw = songs.stored(), songs.raw()
    status = np.stack([songs.store[name].status for name in FEATURES.values()], axis=1)
    assert {Status.PRESENT, Status.ABSENT, Status.FAILED} == set(status.ravel().tolist())
    reasons = np.stack([songs.store[name].failures for name in FEATURES.values()], axis=1)
    for row, (ours, theirs) in enumerate(zip(stored, raw, strict=True)):
        np.testing.assert_array_equal(ours["modality_mask"], status[row] == Status.PRESENT)
        np.testing.assert_array_equal(theirs["modality_mask"], status[row] == Status.PRESENT)
        failed = {slot: reason for slot, reason in zip(FEATURES, reasons[row], strict=True) if reason}
        assert theirs["failures"] == failed
        for at, slot in enumerate(FEATURES):
            assert (theirs[slot] is None) == (status[row, at] != Status.PRESENT)
    for at, slot in ((1, "audio"), (2, "midi")):
        failed_rows = np.flatnonzero(status[:, at] == Status.FAILED)
        batch = raw.collate([raw[row] for row in failed_rows])
        assert len(failed_rows) and batch[slot] is None and all(slot in failures for failures in batch["failures"])


def test_where_a_blob_is_null_the_file_is_read(songs):
    raw, blobs = songs.raw(), songs.source.blobs
    if songs.source.layout == "folder":
        assert blobs is None and any(segment["audio"] is not None for segment in raw)
        return
    for read, slot in ((blobs.audio, "audio"), (blobs.midi, "midi")):
        kinds = {read(row) is None for row in range(len(raw)) if raw[row][slot] is not None}
        assert kinds == {True, False}, "some come from blobs, some from files"


def test_the_batch_dict_is_what_the_model_takes(songs):
    """As a batch from `SegmentData`, which is how `cli fit` reads the same numbers."""
    stored = songs.stored()
    batch = stored.collate([stored[row] for row in range(len(stored))])
    data = load_segments(songs.store, FEATURES)
    model = model_for(stored.widths, songs.targets)
    rows = torch.arange(len(stored))
    ((_, vectors),) = data.batches([rows])
    logits, gates = model(batch, batch["modality_mask"])
    expected, expected_gates = model(vectors, data.present)
    assert_same(logits, expected)
    assert torch.equal(gates, expected_gates)
    assert torch.equal(batch["row"], rows) and batch["segment_id"] == songs.store.ids.tolist()


# Missing


@pytest.mark.parametrize("slot", FEATURES)
def test_a_batch_in_which_nobody_has_a_slot(songs, slot):
    rows = songs.rows_without(slot)
    raw, stored = songs.raw(rows), songs.stored(rows)
    batch = raw.collate([raw[at] for at in range(len(rows))])
    assert len(rows) > 1 and batch[slot] is None and not batch["modality_mask"][:, list(FEATURES).index(slot)].any()
    features, present = songs.slot_encoders()(batch)
    assert features[slot].shape == (len(rows), raw.widths[slot]) and not features[slot].any()
    assert torch.equal(present, stored.collate(list(stored))["modality_mask"])
    logits, _ = model_for(raw.widths, songs.targets)(features, present)
    assert all(out.isfinite().all() for out in logits)


@pytest.mark.parametrize("row", [0, 3])
def test_one_row_is_a_batch(songs, row):
    raw, encoders = songs.raw(), songs.slot_encoders()
    whole, _ = encoders(raw.collate(list(raw)))
    (batch,) = DataLoader(songs.raw(np.array([row])), collate_fn=raw.collate)
    features, present = encoders(batch)
    assert present.shape == (1, 3) and batch["row"].tolist() == [row]
    for slot, vectors in features.items():
        torch.testing.assert_close(vectors[0], whole[slot][row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lazy", [False, True])
def test_what_stands_in_a_pending_row_is_not_read(lazy):
    tree = MemoryTree()
    store = make_store(tree, n=10, chunk_rows=4)
    feature = store.create_feature("audio/toy", RECORD)
    for chunk in feature.chunks():
        write_rows(feature, chunk, list(chunk), value=np.nan if chunk.start == 4 else 2.0)
    status = feature.status
    status[4:8] = Status.PENDING  # as a run leaves them that was killed while it encoded these rows again
    tree.write("features/audio/toy/status", 0, status)
    with pytest.raises(StoreError, match=r"audio/toy is unfinished: 4 of 10 rows are pending.\n.*allow_pending"):
        StoredSegments(store, {"audio": "audio/toy"}, lazy=lazy)
    assert len(StoredSegments(store, {"audio": "audio/toy"}, rows=np.arange(4), lazy=lazy)) == 4
    data = StoredSegments(store, {"audio": "audio/toy"}, lazy=lazy, allow_pending=True)
    batch = data.collate(list(data))
    assert batch["modality_mask"][:, 0].tolist() == [True] * 4 + [False] * 4 + [True] * 2
    assert batch["audio"].tolist() == [[2.0] * 3] * 4 + [[0.0] * 3] * 4 + [[2.0] * 3] * 2


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_segment_is_the_callers_to_change(lazy, dtype):
    store = make_store(MemoryTree(), n=4)
    write_rows(store.create_feature("audio/toy", RECORD, dtype=dtype), range(4), list(range(4)), value=2.0)
    data = StoredSegments(store, {"audio": "audio/toy"}, lazy=lazy)
    data[0]["audio"].fill_(5.0)
    assert data[0]["audio"].tolist() == [2.0] * 3


# Labels


def test_every_kind_of_label_and_none():
    columns = {
        "mood": np.array(["sad", "", "happy", ""], dtype=STRING),
        "energy": np.array([0.5, 2.0, np.nan, np.nan]),
        "tags": np.array([[1.0, 0.0], [np.nan, 1.0], [1.0, 1.0], [np.nan] * 2]),
        "shares": np.array([[1.0, 3.0], [0.0, 0.0], [np.nan, 1.0], [2.0, 2.0]]),
    }
    ids = np.array(list("abcd"), dtype=STRING)
    store = Store.create(MemoryTree(), {"id": ids, "group": ids}, columns, {"layout": "test"})
    feature = store.create_feature("audio/toy", RECORD)
    write_rows(feature, range(4), list(range(4)))
    kinds = {"mood": "categorical", "energy": "regression", "tags": "multi_label", "shares": "soft_distribution"}
    targets = load_targets(store, [TargetConfig(name=name, kind=kind) for name, kind in kinds.items()])
    (batch,) = DataLoader(StoredSegments(store, {"audio": "audio/toy"}, targets), batch_size=4)
    known = {"mood": [1, 0, 1, 0], "energy": [1, 1, 0, 0], "tags": [1, 0, 1, 0], "shares": [1, 0, 0, 1]}
    assert {name: mask.int().tolist() for name, mask in batch["label_mask"].items()} == known
    assert {name: labels.tolist() for name, labels in batch["label"].items()} == {
        "mood": [1, -100, 0, -100],
        "energy": [[0.5], [2.0], [0.0], [0.0]],
        "tags": [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]],
        "shares": [[0.25, 0.75], [0.0, 0.0], [0.0, 0.0], [0.5, 0.5]],
    }
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(logits, batch["label"]["mood"])
    torch.testing.assert_close(loss, targets[0].loss(logits, batch["row"]))
    (nobody,) = DataLoader(StoredSegments(store, {"audio": "audio/toy"}, rows=np.array([1])))
    assert nobody["label"] == nobody["label_mask"] == {}


# Loaders


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_and_shuffling_change_nothing_but_the_order(songs, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform cannot {method}")
    rows = np.arange(0, 48, 2)
    datasets = [songs.raw(rows), songs.stored(rows), songs.stored(rows, lazy=True)]
    if method == "spawn":  # its workers take seconds to start, so there is one
        datasets = datasets[:1] if songs.store.source["layout"] == "folder" else datasets[2:]
    expected = [{item["row"]: item for item in data} for data in datasets]  # leaves files open and chunks cached
    for data, by_row in zip(datasets, expected, strict=True):
        loader = DataLoader(
            data,
            batch_size=5,
            shuffle=True,
            generator=torch.Generator().manual_seed(1),
            num_workers=1 if method == "spawn" else 2,
            collate_fn=data.collate,
            multiprocessing_context=method,
        )
        batches = list(loader)
        order = torch.cat([batch["row"] for batch in batches]).tolist()
        assert sorted(order) == rows.tolist() != order
        for batch in batches:
            # a new process may compute with another number of threads, and sums then differ in their last bits
            assert_same(batch, data.collate([by_row[row] for row in batch["row"].tolist()]), relative=1e-5)


def test_a_split_part_and_a_subset_of_it(songs):
    rows = songs.store.split("default").rows(Part.VAL)
    data = songs.stored(rows)
    assert [item["row"] for item in data] == rows.tolist() and len(data) == len(rows) > 2
    (batch,) = DataLoader(Subset(data, [2, 0]), batch_size=2)
    assert batch["row"].tolist() == rows[[2, 0]].tolist()
    assert batch["segment_id"] == songs.store.ids[rows[[2, 0]]].tolist()


class CountingTree(MemoryTree):
    def __init__(self) -> None:
        super().__init__()
        self.vectors_read: list[int] = []

    def read(self, path, start=0, stop=None):
        if path.endswith("/vectors"):
            self.vectors_read.append(start)
        return super().read(path, start, stop)


def chunked_store(n: int, chunk_rows: int) -> tuple[Store, CountingTree]:
    """Row r holds the vector (r, r, r)."""
    tree = CountingTree()
    store = make_store(tree, n, chunk_rows)
    feature = store.create_feature("audio/toy", RECORD)
    for chunk in feature.chunks():
        for row in chunk:
            write_rows(feature, chunk, [row], value=row, status=Status.ABSENT if row % 4 == 3 else Status.PRESENT)
    tree.vectors_read.clear()
    return store, tree


def test_lazy_reads_whole_chunks_and_keeps_a_few():
    store, tree = chunked_store(n=40, chunk_rows=4)
    data = StoredSegments(store, {"audio": "audio/toy"}, lazy=True)
    assert tree.vectors_read == []
    for _ in DataLoader(data, batch_size=3):
        pass
    assert tree.vectors_read == list(range(0, 40, 4)), "each chunk once, in order"
    tree.vectors_read.clear()
    (batch,) = DataLoader(data, batch_size=40, sampler=np.random.default_rng(0).permutation(40).tolist())
    assert sorted(tree.vectors_read) == list(range(0, 40, 4)), "each chunk once, whatever the order of the batch"
    present = batch["modality_mask"][:, 0]
    assert torch.equal(batch["audio"][:, 0], torch.where(present, batch["row"], 0).float()) and present.sum() == 30
    tree.vectors_read.clear()
    for chunk in range(CHUNKS_KEPT + 1):
        data[4 * chunk]
    data[4 * CHUNKS_KEPT], data[4]
    assert len(tree.vectors_read) == CHUNKS_KEPT + 1
    data[0], data[4]
    assert len(tree.vectors_read) == CHUNKS_KEPT + 2, "the one that was used longest ago has gone, no other"


@given(
    chunk_rows=st.integers(1, 12),
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    data=st.data(),
)
def test_lazy_is_in_memory_for_any_rows_in_any_order(chunk_rows, rows, data):
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=20))
    store, _ = chunked_store(10, chunk_rows)
    features, targets = {"audio": "audio/toy"}, load_targets(store, [TargetConfig(name="mood")])
    memory, lazy = (StoredSegments(store, features, targets, np.array(rows), lazy=lazy) for lazy in (False, True))
    assert_same(memory.__getitems__(indices), lazy.__getitems__(indices))
    assert_same(memory.__getitems__(indices), [memory[at] for at in indices])
    assert [item["row"] for item in lazy.__getitems__(indices)] == [rows[at] for at in indices]


# End to end


def test_gradients_reach_the_encoders_and_frozen_ones_stay(songs):
    torch.manual_seed(0)
    cnn = build_encoder("mel_cnn", {"hidden_dim": 8, "channels": [8, 8], "n_mels": 16})
    by_slot = {"text": songs.encoders["text"], "audio": cnn}
    rows = np.union1d(np.arange(6), songs.rows_without("audio")[:2])
    raw = RawSegments(songs.store, songs.source, by_slot, songs.targets, rows)
    encoders = SlotEncoders(by_slot).train()
    (batch,) = DataLoader(raw, batch_size=len(rows), collate_fn=raw.collate)
    features, present = encoders(batch)
    assert present[:, 1].any() and not present[:, 1].all() and not features["text"].requires_grad
    model = model_for(encoders.widths, songs.targets)
    logits, _ = model(features, present)
    sum(target.loss(out, batch["row"]) for target, out in zip(songs.targets, logits, strict=True)).backward()
    weights = list(cnn.parameters())
    assert weights and all(weight.grad.isfinite().all() and weight.grad.any() for weight in weights)
    encoders.requires_grad_(False)
    features, present = encoders(batch)
    assert not features["audio"].requires_grad

    encoders.requires_grad_(True)
    nobody = RawSegments(songs.store, songs.source, by_slot, songs.targets, songs.rows_without("audio"))
    features, present = encoders(nobody.collate(list(nobody)))
    logits, _ = model(features, present)
    model.zero_grad()
    logits[0].sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


class Spoiled(Encoder):
    """A learned length of the lyric, NaN where it is even."""

    name, modality, width = "spoiled", "text", 1

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.settings = {}

    def prepare(self, raw):
        return len(raw.text)

    def collate(self, items):
        return {"lengths": torch.tensor(items, dtype=torch.float32)[:, None]}

    def forward(self, batch):
        return Encoded(torch.where(batch["lengths"] % 2 == 0, torch.nan, self.linear(batch["lengths"])))


def test_a_vector_that_is_not_finite_is_missing_but_no_secret_while_learning(songs):
    encoder = Spoiled()
    raw = RawSegments(songs.store, songs.source, {"text": encoder})
    batch = raw.collate(list(raw))
    here, even = batch["modality_mask"][:, 0], torch.zeros(len(raw), dtype=torch.bool)
    even[here] = batch["text"]["lengths"][:, 0] % 2 == 0
    assert even.any() and (here & ~even).any() and not here.all()
    encoders = SlotEncoders({"text": encoder}).eval()
    features, present = encoders(batch)
    assert torch.equal(present[:, 0], here & ~even) and features["text"].isfinite().all()
    assert torch.equal(features["text"].ne(0)[:, 0], here & ~even)
    assert torch.equal(batch["modality_mask"][:, 0], here), "the batch is as it was"
    features, present = encoders.train()(batch)
    assert torch.equal(present[:, 0], here) and torch.equal(features["text"].isnan()[:, 0], even)


def test_any_slots_also_two_of_one_modality(songs):
    by_slot = {"timbre": songs.encoders["audio"], "my.score": songs.encoders["midi"], "audio": songs.encoders["audio"]}
    raw = RawSegments(songs.store, songs.source, by_slot)
    features, present = SlotEncoders(by_slot).eval()(raw.collate(list(raw)))
    assert list(features) == list(by_slot) and present.shape == (len(raw), 3)
    assert torch.equal(features["timbre"], features["audio"]) and torch.equal(present[:, 0], present[:, 2])
    assert not torch.equal(present[:, 0], present[:, 1])


def test_worker_processes_get_no_weights(songs):
    encoder = Spoiled()
    encoder.ballast = torch.nn.Linear(1000, 1000)
    assert (
        len(pickle.dumps(encoder))
        > 4_000_000
        > 10 * len(pickle.dumps(RawSegments(songs.store, songs.source, {"text": encoder})))
    )


# Mistakes


def test_slots_in_another_order_or_with_a_taken_name_are_refused(songs):
    raw = songs.raw()
    batch = raw.collate([raw[0]])
    swapped = SlotEncoders({slot: songs.encoders[slot] for slot in ("audio", "text", "midi")})
    with pytest.raises(ValueError, match="audio, text, midi, in this order; got text, audio, midi"):
        swapped(batch)
    with pytest.raises(ValueError, match="slots text, audio, in this order; got text, audio, midi"):
        SlotEncoders({slot: songs.encoders[slot] for slot in ("text", "audio")})(batch)
    for name in ("label", "row", "failures"):
        with pytest.raises(ConfigError, match=f"cannot be called '{name}'"):
            StoredSegments(songs.store, {name: "text/lsa"})
