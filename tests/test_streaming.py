"""What is larger than memory: the same numbers as in memory, each row once an epoch, and no more of it at a time."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import fusion.memory
import fusion.streamed_inputs
import fusion.streaming
from benchmarks.streaming import main as benchmark
from benchmarks.streaming import make_store
from featurize.errors import ConfigError
from fusion.ablation import ablate
from fusion.baselines import concatenation, linear
from fusion.checkpoint import Checkpoint
from fusion.config import FusionConfig, TrainingConfig, validated
from fusion.data import SegmentData, load_segments
from fusion.fitting import fit
from fusion.memory import feature_bytes, memory_bytes, too_large
from fusion.model import Moments
from fusion.modules import Frames
from fusion.streamed_inputs import StreamedInputs, whole_groups
from fusion.streaming import StreamedSegments, open_segments, stream_segments
from fusion.targets import load_targets
from fusion.train import Trained, train
from stores import open_store
from stores.backends import new_tree
from stores.base import STRING, ArrayTree
from stores.errors import DamagedStore, StoreError
from stores.feature import Status
from stores.memory_store import MemoryTree
from stores.store import Part, Split, Store
from tests.stores_contract import RECORD
from tests.stores_contract import make_store as empty_store

pytestmark = pytest.mark.usefixtures("unrendered")

N, CHUNK_ROWS, T = 1_000, 64, 3
WIDTHS = {"text": 6, "audio": 4}
FEATURES = {slot: f"{slot}/toy" for slot in WIDTHS}
TRAINING = TrainingConfig(epochs=3, batch_size=50, lr=1e-2, weight_decay=0.01)
FUSION = FusionConfig(hidden_dim=8, dropout=0.1)


def build(tree: ArrayTree) -> Store:
    """Text tells the label; audio has frames, and lacks in every third row. Songs of five segments."""
    rng = np.random.default_rng(0)
    label = (np.arange(N) // 7) % 2
    segments = {"id": np.arange(N).astype(STRING), "group": (np.arange(N) // 5).astype(STRING)}
    labels = {"liked": np.array(["no", "yes"], dtype=STRING)[label]}
    made = Store.create(tree, segments, labels, {"layout": "test"}, CHUNK_ROWS)
    vectors = {slot: rng.normal(size=(N, width)).astype(np.float16) for slot, width in WIDTHS.items()}
    vectors["text"][:, 0] += 2 * label - 1
    present = {"text": np.arange(N) % 10 > 0, "audio": np.arange(N) % 3 > 0}
    n_frames = rng.integers(0, T + 1, N)
    frames = np.where((np.arange(T) < n_frames[:, None])[:, :, None], rng.normal(size=(N, T, WIDTHS["audio"])), 0)
    for slot, width in WIDTHS.items():
        feature = made.create_feature(FEATURES[slot], {**RECORD, "width": width}, frames=T if slot == "audio" else 0)
        for chunk in feature.chunks():
            rows = np.array(chunk)
            status = np.where(present[slot][rows], Status.PRESENT, Status.ABSENT).astype(np.uint8)
            of_frames = {"frames": frames[rows], "n_frames": n_frames[rows]} if feature.has_frames else {}
            hashes = np.ones((len(rows), 16), np.uint8)
            feature.write_chunk(chunk, rows, vectors[slot][rows], status, hashes, [""] * len(rows), **of_frames)
    parts = np.array([Part.TRAIN, Part.TRAIN, Part.TRAIN, Part.VAL, Part.TEST], np.uint8)[np.arange(N) // 5 % 5]
    made.write_split(Split("default", parts, {"method": "grouped", "seed": 0}))
    return made


@pytest.fixture(scope="module")
def store() -> Store:
    return build(MemoryTree())


def streamed(store: Store, window_chunks: int | None = None, with_frames: bool = True) -> StreamedSegments:
    """With windows of so many chunks; of all there are where `None`."""
    segments = stream_segments(store, FEATURES, with_frames=with_frames)
    row = sum(segments.chunks.row_bytes(slot) for slot in segments.slots)
    return segments if window_chunks is None else replace(segments, window_bytes=window_chunks * CHUNK_ROWS * row)


def rows_of(store: Store, part: Part) -> np.ndarray:
    return store.split("default").rows(part)


def trained(store: Store, data: SegmentData | StreamedSegments, strategy: str = "late", **changes) -> Trained:
    training = TRAINING.model_copy(update={key: value for key, value in changes.items() if key != "checkpoint"})
    rows = rows_of(store, Part.TRAIN), rows_of(store, Part.VAL)
    fusion = FUSION.model_copy(update={"strategy": strategy})
    return train(data, load_targets(store, []), *rows, fusion, training, 0, changes.get("checkpoint"))


def same_weights(one: Trained, other: Trained) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def losses(run: Trained) -> list[tuple[float, float]]:
    return [(epoch["train_loss"], epoch["val_loss"]) for epoch in run.history]


def same_batches(one, other) -> None:
    for (rows, inputs), (their_rows, theirs) in zip(one, other, strict=True):
        assert torch.equal(rows, their_rows) and list(inputs) == list(theirs)
        for slot, feature in inputs.items():
            pairs = [(feature, theirs[slot])]
            if isinstance(feature, Frames):
                pairs = [(getattr(feature, name), getattr(theirs[slot], name)) for name in ("pooled", "values", "mask")]
            assert all(torch.equal(ours, others) and ours.dtype == others.dtype for ours, others in pairs), slot


# Batches


@given(
    wanted=st.lists(st.lists(st.integers(0, N - 1), max_size=90), max_size=8),
    in_order=st.booleans(),
    window_chunks=st.sampled_from([1, 2, 5, None]),
    at_hand=st.booleans(),
)
def test_batches_are_those_of_the_segments_in_memory(store, wanted, in_order, window_chunks, at_hand):
    """Any rows in any order, several times, none at all; from the store, and from the copy of some rows."""
    data, segments = load_segments(store, FEATURES, with_frames=True), streamed(store, window_chunks)
    if in_order:
        flat = iter(sorted(row for batch in wanted for row in batch))
        wanted = [[next(flat) for _ in batch] for batch in wanted]
    rows = [torch.tensor(batch, dtype=torch.int64) for batch in wanted]
    if at_hand:
        segments.keep_at_hand(np.array([*(row for batch in wanted for row in batch), 7, 500]))
    same_batches(segments.batches(rows), data.batches(rows))
    same_batches(segments.only(["audio"]).batches(rows), data.only(["audio"]).batches(rows))


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_a_store_on_disk_gives_the_same(store, tmp_path, suffix):
    with new_tree(tmp_path / f"features{suffix}") as tree:
        build(tree)
    there = open_store(tmp_path / f"features{suffix}")
    rows = streamed(there, 3).epoch_order(torch.arange(N), torch.Generator().manual_seed(0)).split(33)
    same_batches(streamed(there, 3).batches(rows), load_segments(store, FEATURES, with_frames=True).batches(rows))


# The order of an epoch


@given(
    kept=st.sets(st.integers(0, N - 1)),
    window_chunks=st.sampled_from([1, 2, 5, 15, None]),
    seed=st.integers(0, 5),
)
def test_an_epoch_has_each_row_once_in_an_order_of_the_seed_alone(store, kept, window_chunks, seed):
    rows = torch.tensor(sorted(kept), dtype=torch.int64)
    orders = [streamed(store, window_chunks).epoch_order(rows, torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0].sort()[0], rows)


def test_windows_are_whole_chunks_mixed_within_and_others_in_each_epoch(store):
    rows, generator = torch.arange(15 * CHUNK_ROWS), torch.Generator().manual_seed(0)
    segments = streamed(store, 5)
    first, second = (segments.epoch_order(rows, generator) for _ in range(2))
    windows = [set((part // CHUNK_ROWS).tolist()) for part in first.split(5 * CHUNK_ROWS)]
    assert [len(chunks) for chunks in windows] == [5, 5, 5] and len(set().union(*windows)) == 15
    assert windows != [set((part // CHUNK_ROWS).tolist()) for part in second.split(5 * CHUNK_ROWS)]
    for batch in first.split(CHUNK_ROWS):  # a chunk has 13 songs of five rows, a window 65
        assert len((batch // CHUNK_ROWS).unique()) == 5 and len((batch // 5).unique()) > 26


def test_windows_hardly_differ_in_size():
    sizes = {n: fusion.streaming._chunks_of_a_window(n, 73) for n in (0, 1, 73, 74, 98, 977)}
    assert sizes == {0: 0, 1: 1, 73: 73, 74: 37, 98: 49, 977: 70}


def test_a_window_is_read_once(store, monkeypatch):
    """However its rows are cut in batches: no chunk is read twice in an epoch."""
    segments, read = streamed(store, 4), []
    original = type(segments.chunks).read
    monkeypatch.setattr(type(segments.chunks), "read", lambda *a: (read.append(a[1:]), original(*a))[1])
    rows = torch.from_numpy(rows_of(store, Part.TRAIN))
    for _ in segments.batches(segments.epoch_order(rows, torch.Generator().manual_seed(0)).split(50)):
        pass
    assert sorted(read) == sorted((slot, chunk) for slot in WIDTHS for chunk in range(16))


# Training


@pytest.mark.parametrize("strategy", ["late", "early"])
def test_one_window_trains_as_in_memory_to_the_last_bit(store, strategy):
    """Order, batches and statistics are the same numbers, so everything is."""
    in_memory = trained(store, load_segments(store, FEATURES, with_frames=strategy == "early"), strategy)
    from_store = trained(store, streamed(store, None, strategy == "early"), strategy)
    assert same_weights(in_memory, from_store) and losses(in_memory) == losses(from_store)


@pytest.mark.parametrize("strategy", ["late", "early"])
def test_windows_train_as_memory_does_in_the_same_order(store, monkeypatch, strategy):
    segments = streamed(store, 3, strategy == "early")
    from_store = trained(store, segments, strategy)
    monkeypatch.setattr(SegmentData, "epoch_order", lambda _, rows, generator: segments.epoch_order(rows, generator))
    in_memory = trained(store, load_segments(store, FEATURES, with_frames=strategy == "early"), strategy)
    assert same_weights(in_memory, from_store) and losses(in_memory) == losses(from_store)


def test_an_interrupted_training_ends_as_if_nothing_had_happened(store, tmp_path):
    whole = trained(store, streamed(store, 3))
    path = tmp_path / "training.pt"
    trained(store, streamed(store, 3), epochs=1, schedule="constant", checkpoint=Checkpoint(path, "key"))
    assert len(torch.load(path, weights_only=True)["history"]) == 1
    once = trained(store, streamed(store, 3), schedule="constant")
    resumed = trained(store, streamed(store, 3), schedule="constant", checkpoint=Checkpoint(path, "key"))
    assert same_weights(once, resumed) and losses(once) == losses(resumed) and not same_weights(once, whole)


@given(st.lists(st.integers(0, 40), max_size=5), st.sampled_from([1.0, 1e3]))
def test_moments_piece_by_piece_are_those_of_the_whole(sizes, offset):
    pieces = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) + offset for n in sizes]
    moments = Moments()
    for piece in pieces:
        moments.add(piece)
    together = torch.cat([torch.zeros(0, 3), *pieces]).double()
    assert moments.n == len(together)
    if len(together):
        torch.testing.assert_close(moments.mean, together.mean(dim=0))
        torch.testing.assert_close(moments.deviation, together.std(dim=0, correction=0), rtol=1e-6, atol=1e-9)


# Baselines


def test_linear_models_have_the_inputs_of_memory(store):
    train_rows, some = rows_of(store, Part.TRAIN), np.array([999, 3, 3, 70])
    in_memory = concatenation(load_segments(store, FEATURES), train_rows)
    for with_frames in (False, True):
        inputs = StreamedInputs(streamed(store, 3, with_frames), train_rows)
        np.testing.assert_array_equal(inputs.sample, train_rows)  # all fit
        np.testing.assert_allclose(inputs.take(some), in_memory[some], rtol=1e-6)


def test_a_linear_model_is_fitted_to_a_sample_and_judged_on_all(store, monkeypatch):
    monkeypatch.setattr(fusion.streamed_inputs, "SAMPLE_BYTES", 4 * 12 * 100)  # 100 rows
    (target,) = load_targets(store, [])
    parts = [rows_of(store, part) for part in (Part.TRAIN, Part.VAL, Part.TEST)]
    inputs = StreamedInputs(streamed(store, 3, False), parts[0])
    in_memory = concatenation(load_segments(store, FEATURES), parts[0])
    expected = linear(in_memory, target, inputs.sample, *parts[1:])
    np.testing.assert_allclose(linear(inputs, target, *parts), expected, rtol=1e-4)
    assert len(inputs.sample) == 100


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 70))
def test_a_sample_is_whole_groups(group_of, at_most):
    groups = np.array([f"g{number}" for number in group_of], dtype=STRING)
    rows = np.flatnonzero(np.arange(len(groups)) % 4 > 0) if len(groups) > 1 else np.arange(1)
    kept = whole_groups(groups, rows, at_most)
    assert len(kept) and (np.diff(kept) > 0).all() and np.isin(kept, rows).all()
    assert len(kept) <= at_most or len(np.unique(groups[kept])) == 1
    assert not np.isin(groups[np.setdiff1d(rows, kept)], groups[kept]).any()


# A whole fit


CONFIG = {"training": {**TRAINING.model_dump(), "seeds": [0], "bootstrap": 200, "stream": True}}


def test_a_streamed_fit_says_so_and_has_the_numbers_of_one_in_memory(store, tmp_path):
    """Here everything fits in one window, so no number but the linear models' may differ, and these by rounding."""
    found = {}
    for stream in (True, False):
        config = validated({"training": {**CONFIG["training"], "stream": stream}}, "test")
        found[stream] = fit(store, config, runs=tmp_path, name=f"stream-{stream}")
    notes = found[True].metrics["notes"]
    assert any("streamed from the store" in note for note in notes)
    assert not any("streamed" in note for note in found[False].metrics["notes"])
    assert not any("Of the" in note and "training segments" in note for note in notes)  # no sample: all fits
    ours, theirs = (found[stream].metrics["targets"]["liked"] for stream in (True, False))
    assert ours["splits"] == theirs["splits"] and ours["presence_patterns"] == theirs["presence_patterns"]
    for name, parts in theirs["baselines"].items():
        assert ours["baselines"][name]["test"]["value"] == pytest.approx(parts["test"]["value"], abs=0.01), name
    weights = [load_file(run.folder / "model.safetensors") for run in found.values()]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    tables = [pq.read_table(run.folder / "predictions.parquet") for run in found.values()]
    assert tables[0].equals(tables[1])
    assert {path.name for path in tmp_path.iterdir()} == {"stream-True", "stream-False"}


def test_a_sample_is_stated(store, tmp_path, monkeypatch):
    monkeypatch.setattr(fusion.streamed_inputs, "SAMPLE_BYTES", 4 * 12 * 100)
    notes = fit(store, validated(CONFIG, "test"), runs=tmp_path).metrics["notes"]
    (note,) = [note for note in notes if "linear models" in note]
    assert "Of the 600 training segments" in note and "logistic regression 100" in note and "audio alone 240" in note


def test_a_feature_that_changes_meanwhile_is_noticed(tmp_path):
    made = empty_store(MemoryTree(), 10, 4)
    feature = made.create_feature("audio/toy", RECORD)
    for value in (1.0, 2.0):
        for chunk in feature.chunks():
            rows, status = np.array(chunk), np.full(len(chunk), Status.PRESENT)
            hashes = np.full((len(chunk), 16), int(value), np.uint8)
            feature.write_chunk(chunk, rows, np.full((len(chunk), 3), value), status, hashes, [""] * len(chunk))
        if value == 1.0:
            segments = stream_segments(made, {"audio": "audio/toy"})
            segments.check_unchanged()
    with pytest.raises(StoreError, match="audio/toy was written while it was being read"):
        segments.check_unchanged()


def test_damage_is_told_from_the_thread_that_reads(tmp_path):
    make_store(tmp_path / "s.zarr", 3_000, dict.fromkeys(("text", "audio", "midi"), 4))
    segments = stream_segments(open_store(tmp_path / "s.zarr"), {"text": "text/drawn"})
    rows = torch.arange(3_000).split(256)
    chunk = tmp_path / "s.zarr" / "features" / "text" / "drawn" / "vectors" / "c" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DamagedStore, match="checksum"):
        list(segments.batches(rows))
    chunk.unlink()
    with pytest.raises(DamagedStore, match="rows 1024 to 2047: the vectors are gone"):
        list(segments.batches(rows))


def test_pending_rows_are_named():
    made = empty_store(MemoryTree())
    made.create_feature("audio/toy", RECORD)
    with pytest.raises(StoreError, match="10 of 10 rows are pending"):
        stream_segments(made, {"audio": "audio/toy"})
    assert not stream_segments(made, {"audio": "audio/toy"}, allow_pending=True).present.any()


# When


def test_what_is_too_large_for_memory_is_streamed(store, monkeypatch):
    n_bytes = N * 2 * (6 + 4)
    assert feature_bytes(store, FEATURES) == n_bytes and feature_bytes(store, FEATURES, True) == n_bytes + N * 2 * T * 4
    for memory, expected in ((8 * n_bytes, False), (8 * n_bytes - 1, True), (None, False)):
        monkeypatch.setattr(fusion.memory, "memory_bytes", lambda memory=memory: memory)
        assert too_large(store, FEATURES) is expected
        assert isinstance(open_segments(store, FEATURES), StreamedSegments) is expected
        assert isinstance(open_segments(store, FEATURES, True), StreamedSegments)
        assert isinstance(open_segments(store, FEATURES, False), SegmentData)


def test_a_container_has_its_own_memory(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(fusion.memory, "CONTAINER_LIMIT", limit)
    whole = memory_bytes()
    limit.write_text("max\n")
    assert memory_bytes() == whole
    limit.write_text("1000000\n")
    assert memory_bytes() == 1_000_000


def test_an_ablation_says_that_it_does_not_stream(store, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="training.stream is true, but cli ablate reads"):
        ablate(store, validated(CONFIG, "test"), ablations=tmp_path)
    monkeypatch.setattr(fusion.memory, "memory_bytes", lambda: 1)
    config = validated({"training": {**CONFIG["training"], "stream": "auto", "epochs": 1}}, "test")
    found = ablate(store, config, fusions=["late"], subsets=[["text"]], ablations=tmp_path)
    assert any("cli ablate has read" in note for note in found.metrics["notes"])


# From the command line


def test_fit_and_evaluate_stream_on_request(project, run_cli):
    make_store(Path("features.zarr"), 2_000, dict.fromkeys(("text", "audio", "midi"), 4))
    short = ["--seeds", "1", "--set", "training.epochs=2", "--set", "training.bootstrap=200"]
    assert "streamed from the store" in run_cli("fit", "--stream", *short).output
    assert "streamed" not in run_cli("fit", "--no-stream", *short).output
    assert "stream: true" in Path("runs/late/config.yaml").read_text()
    assert run_cli("evaluate", "late", "--json").output  # reads the same way
    assert "Input should be" in run_cli("fit", "--set", "training.stream=perhaps", code=2).output


def test_the_benchmark_runs(tmp_path, capsys):
    plot = tmp_path / "plot.svg"
    sizes = ["--rows", "600", "--rows", "1200", "--no-fits", "--widths", "4,3,2", "--repetitions", "1"]
    benchmark([*sizes, "--stores", str(tmp_path), "--plot", str(plot)], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "600 segments, an epoch of" in printed and printed.count("over 1 pairs") == 2 and not plot.exists()
    assert (tmp_path / "1200.zarr").is_dir()


# Memory


def test_memory_does_not_grow_with_the_store(tmp_path):
    """However many rows, what is held at a time is two windows, a chunk of half a window, and a few facts a row."""
    for n in (4_096, 16_384):
        make_store(tmp_path / f"{n}.zarr", n, {"text": 256, "audio": 4, "midi": 4})
        segments = stream_segments(open_store(tmp_path / f"{n}.zarr"), {"text": "text/drawn"})
        segments = replace(segments, window_bytes=2 * 1024 * 512)
        batches = segments.epoch_order(torch.arange(n), torch.Generator().manual_seed(0)).split(256)
        tracemalloc.start()
        for _ in segments.batches(batches):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * segments.window_bytes
