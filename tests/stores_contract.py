"""The contract of a store backend: subclass `TreeContract`, provide `tree`, and get every test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stores.base import STRING, ArrayTree
from stores.errors import RecordMismatch, StoreError
from stores.feature import Status
from stores.store import Part, Split, Store
from stores.verify import verify

RECORD = {
    "encoder": "toy",
    "class_name": "Toy",
    "modality": "audio",
    "width": 3,
    "weights": {},
    "parameters": {"hop_length": 512},
    "precision": "fp32",
    "libraries": {},
    "trained_on": None,
}

# Hypothesis frowns on a fixture, and on one test method, shared between examples; here both hold no state of their own.
SHARED = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30)


def make_store(tree: ArrayTree, n: int = 10, chunk_rows: int = 4) -> Store:
    segments = {
        "id": np.array([f"s{i}" for i in range(n)], dtype=STRING),
        "group": np.array([f"g{i // 2}" for i in range(n)], dtype=STRING),
        "start_seconds": np.arange(n, dtype=np.float64),
    }
    labels = {"mood": np.array(["a", ""] * n, dtype=STRING)[:n], "soft": np.full((n, 2), 0.5, np.float32)}
    return Store.create(tree, segments, labels, {"layout": "test"}, chunk_rows)


def write(feature, chunk, rows, value=1.0, status=Status.PRESENT, hash_byte=7, reason="", n_frames=0):
    n = len(rows)
    frames = {}
    if feature.has_frames:
        counts = np.full(n, n_frames)
        frames = {"frames": np.full((n, feature.max_frames, feature.width), value, np.float32), "n_frames": counts}
    feature.write_chunk(
        chunk,
        np.array(rows),
        np.full((n, feature.width), value, np.float32),
        np.full(n, status, np.uint8),
        np.full((n, 16), hash_byte, np.uint8),
        [reason] * n,
        **frames,
    )


class TreeContract:
    """`tree` is an empty backend; `reopen(tree)` gives a second view of the same data, as another process would."""

    @pytest.fixture
    def tree(self) -> ArrayTree:
        raise NotImplementedError

    def reopen(self, tree: ArrayTree) -> ArrayTree:
        raise NotImplementedError

    # The tree

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64", "bool"])
    def test_new_array_reads_zero_and_keeps_what_is_written(self, tree, dtype):
        tree.create("a/b", (5, 2), np.dtype(dtype), 2)
        assert not tree.read("a/b").any() and tree.read("a/b").dtype == dtype
        values = np.arange(4).reshape(2, 2).astype(dtype)
        tree.write("a/b", 2, values)
        again = self.reopen(tree)
        np.testing.assert_array_equal(again.read("a/b", 2, 4), values)
        np.testing.assert_array_equal(again.read("a/b", 0, 2), np.zeros((2, 2), dtype))
        assert again.layout("a/b") == ((5, 2), np.dtype(dtype), 2)

    @SHARED
    @given(texts=st.lists(TEXTS, min_size=0, max_size=9))
    def test_texts_survive(self, tree, texts):
        tree.create("texts", (len(texts),), STRING, 4)
        for start in range(0, len(texts), 4):
            tree.write("texts", start, np.array(texts[start : start + 4], dtype=STRING))
        assert self.reopen(tree).read("texts").tolist() == texts

    def test_an_all_zero_chunk_counts_as_written(self, tree):
        tree.create("z", (5,), np.dtype("uint8"), 2)
        assert tree.stored_chunks("z") == set()
        tree.write("z", 2, np.zeros(2, np.uint8))
        tree.write("z", 4, np.zeros(1, np.uint8))
        assert self.reopen(tree).stored_chunks("z") == {1, 2}

    def test_attributes_of_groups_and_arrays(self, tree):
        assert tree.attributes("nowhere") == {}
        tree.set_attributes("g", {"a": 1})
        tree.create("g/x", (1,), np.dtype("uint8"), 1)
        tree.set_attributes("g/x", {"b": [1, "ü"]})
        tree.set_attributes("g", {"c": None})
        again = self.reopen(tree)
        assert again.attributes("g") == {"c": None} and again.attributes("g/x") == {"b": [1, "ü"]}
        assert again.children("g") == ["x"] and again.children("nowhere") == []

    def test_delete_and_unknown(self, tree):
        tree.create("g/x", (1,), np.dtype("uint8"), 1)
        tree.delete("g")
        tree.delete("g")
        assert tree.children("") == []
        with pytest.raises(StoreError, match="no array 'g/x'"):
            tree.read("g/x")

    def test_create_replaces(self, tree):
        tree.create("x", (4,), np.dtype("uint8"), 2)
        tree.write("x", 0, np.ones(2, np.uint8))
        tree.create("x", (3, 1), np.dtype("float32"), 2)
        assert tree.read("x").shape == (3, 1) and not tree.read("x").any() and tree.stored_chunks("x") == set()

    # The store on it

    def test_segments_and_labels_come_back(self, tree):
        make_store(tree)
        store = Store(self.reopen(tree))
        assert store.n_segments == 10 and store.ids[3] == "s3" and store.groups[3] == "g1"
        assert store.label_names() == ["mood", "soft"] and store.label("soft").shape == (10, 2)
        assert store.label("mood").tolist()[:2] == ["a", ""]
        with pytest.raises(StoreError, match="no label 'tempo'; it has mood, soft"):
            store.label("tempo")

    @pytest.mark.parametrize("n", [0, 1, 4, 5])
    def test_any_number_of_segments(self, tree, n):
        store = make_store(tree, n)
        feature = store.create_feature("audio/toy", RECORD)
        for chunk in feature.chunks():
            write(feature, chunk, list(chunk))
        assert feature.present.sum() == n and feature.vectors.shape == (n, 3)
        assert list(verify(store)) == []

    @SHARED
    @given(names=st.lists(TEXTS.filter(bool), min_size=1, max_size=3, unique=True))
    def test_labels_of_any_name(self, tree, names):
        tree.delete("labels")
        Store.create(tree, _two_ids(), {name: np.zeros(2) for name in names}, {})
        assert [Store(self.reopen(tree)).label(name).sum() for name in names] == [0.0] * len(names)

    def test_four_statuses_are_four_facts(self, tree):
        feature = make_store(tree).create_feature("audio/toy", RECORD)
        chunk = feature.chunks()[0]
        write(feature, chunk, [0], 2.0)
        write(feature, chunk, [1], 3.0, Status.ABSENT)
        write(feature, chunk, [2], np.nan, Status.FAILED, reason="not audio")
        again = Store(self.reopen(tree)).feature("audio/toy")
        assert again.status.tolist()[:4] == [1, 2, 3, 0]
        np.testing.assert_array_equal(again.vectors[:4, 0], [2, 0, 0, 0])  # zero, never NaN, where not present
        assert again.failures[2] == "not audio" and again.present.tolist()[:3] == [True, False, False]

    def test_rows_of_a_chunk_keep_what_they_had(self, tree):
        feature = make_store(tree).create_feature("audio/toy", RECORD)
        chunk = feature.chunks()[1]
        write(feature, chunk, [4, 6], 1.0)
        write(feature, chunk, [5], 2.0, hash_byte=9)
        np.testing.assert_array_equal(feature.read_vectors(chunk)[:, 0], [1, 2, 1, 0])
        np.testing.assert_array_equal(feature.read_input_hashes(chunk)[:, 0], [7, 9, 7, 0])

    def test_statuses_are_written_last_and_taken_back_first(self, tree, monkeypatch):
        feature = make_store(tree).create_feature("audio/toy", RECORD)
        chunk = feature.chunks()[0]
        write(feature, chunk, [0, 1])
        order = []
        original = tree.write

        def spy(path, start, values):
            order.append((path.rsplit("/", 1)[-1], values.tolist() if path.endswith("status") else None))
            original(path, start, values)

        monkeypatch.setattr(tree, "write", spy)
        write(feature, chunk, [1])
        assert [name for name, _ in order] == ["status", "vectors", "input_hash", "failure", "status"]
        assert order[0][1] == [1, 0, 0, 0] and order[-1][1] == [1, 1, 0, 0]

    def test_vectors_beyond_float16_turn_the_feature_to_float32(self, tree):
        feature = make_store(tree).create_feature("audio/toy", RECORD)
        write(feature, feature.chunks()[0], [0, 1], 1.5)
        write(feature, feature.chunks()[1], [4], 1e6)
        again = Store(self.reopen(tree)).feature("audio/toy")
        assert again.dtype == np.float32 and again.vectors[4, 0] == 1e6 and again.vectors[1, 0] == 1.5
        assert list(verify(Store(tree))) == []

    def test_frames_stand_beside_vectors_and_are_written_before_the_status(self, tree, monkeypatch):
        store = make_store(tree)
        feature = store.create_feature("audio/toy", RECORD, frames=2)
        order = []
        original = tree.write
        monkeypatch.setattr(tree, "write", lambda path, *rest: (order.append(path), original(path, *rest)))
        write(feature, feature.chunks()[0], [0, 2], 1.5, n_frames=2)
        names = ["status", "vectors", "frames", "n_frames", "input_hash", "failure", "status"]
        assert [path.rsplit("/", 1)[-1] for path in order] == names
        write(feature, feature.chunks()[0], [1], np.nan, Status.FAILED, n_frames=2)
        again = Store(self.reopen(tree)).feature("audio/toy")
        assert again.has_frames and again.max_frames == 2 and again.frames.shape == (10, 2, 3)
        np.testing.assert_array_equal(again.frames[:4, 1, 0], [1.5, 0, 1.5, 0])
        np.testing.assert_array_equal(again.n_frames[:4], [2, 0, 2, 0])
        write(feature, feature.chunks()[1], [4], 1e6, n_frames=1)  # too large for float16: both grow
        again = Store(self.reopen(tree)).feature("audio/toy")
        assert again.frames.dtype == again.vectors.dtype == np.float32
        assert again.frames[4, 0, 0] == 1e6 and again.frames[0, 0, 0] == 1.5
        assert list(verify(Store(tree))) == []

    def test_a_feature_without_frames_says_how_to_get_some(self, tree):
        with pytest.raises(StoreError, match=r"no frames. Write them: cli featurize --encoder toy --frames"):
            make_store(tree).create_feature("audio/toy", RECORD).frames[:]

    def test_another_record_never_mixes_in(self, tree):
        store = make_store(tree)
        store.open_feature("audio/toy", RECORD)
        assert store.open_feature("audio/toy", RECORD).fingerprint == store["audio/toy"].fingerprint
        other = {**RECORD, "parameters": {"hop_length": 256}}
        with pytest.raises(RecordMismatch, match="hop_length: 512 in the store, 256 now") as caught:
            store.open_feature("audio/toy", other)
        assert "--as toy-" in str(caught.value) and "--replace" in str(caught.value)

    def test_an_incomplete_record_is_refused(self, tree):
        with pytest.raises(StoreError, match="lacks weights"):
            make_store(tree).create_feature("audio/toy", {k: v for k, v in RECORD.items() if k != "weights"})

    def test_a_half_created_feature_does_not_exist(self, tree, monkeypatch):
        store = make_store(tree)
        monkeypatch.setattr(tree, "set_attributes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.create_feature("audio/toy", RECORD)
        monkeypatch.undo()
        assert store.features() == []
        assert store.create_feature("audio/toy", RECORD).status.sum() == 0

    def test_state_of_a_fitted_encoder(self, tree):
        state = {"idf": np.arange(3.0), "vocabulary": np.frombuffer(b"[1]", np.uint8)}
        make_store(tree).create_feature("audio/toy", RECORD, state=state)
        again = Store(self.reopen(tree)).feature("audio/toy").state()
        assert list(again) == ["idf", "vocabulary"] and again["vocabulary"].tobytes() == b"[1]"

    def test_splits_are_frozen_with_their_facts(self, tree):
        store = make_store(tree)
        parts = np.array([0, 0, 1, 1, 2, 2, 255, 255, 0, 0], np.uint8)
        store.write_split(Split("default", parts, {"method": "grouped", "seed": 3}))
        again = Store(self.reopen(tree))
        assert again.splits() == ["default"] and again.split("default").facts["seed"] == 3
        assert again.split("default").rows(Part.VAL).tolist() == [2, 3]
        store.delete_split("default")
        assert Store(self.reopen(tree)).splits() == []

    def test_features_are_deleted_whole(self, tree):
        store = make_store(tree)
        store.create_feature("audio/toy", RECORD)
        store.create_feature("text/toy.v2 é", RECORD)
        assert store.features() == ["audio/toy", "text/toy.v2 é"]
        store.delete_feature("audio/toy")
        assert Store(self.reopen(tree)).features() == ["text/toy.v2 é"]

    @pytest.mark.parametrize("name", ["audio", "audio/a/b", "/x", "audio/"])
    def test_feature_names_have_a_slot_and_an_encoder(self, tree, name):
        with pytest.raises(StoreError, match="slot/encoder"):
            make_store(tree).create_feature(name, RECORD)


def _two_ids() -> dict[str, np.ndarray]:
    return {"id": np.array(["a", "b"], dtype=STRING), "group": np.array(["g", "g"], dtype=STRING)}
