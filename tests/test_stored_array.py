"""What a store gives to numpy, pyarrow, pandas and torch, and what it says of itself."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion import to_torch
from stores.errors import StoreError
from stores.memory_store import MemoryTree
from stores.store import Part, Split, Store
from stores.stored_array import StoredArray
from tests.stores_contract import RECORD, make_store

NUMBERS = np.arange(23 * 3 * 2, dtype=np.float32).reshape(23, 3, 2)


def stored(chunk_rows: int, reads: list[range] | None = None) -> StoredArray:
    def read(rows: range) -> np.ndarray:
        if reads is not None:
            reads.append(rows)
        return NUMBERS[rows.start : rows.stop].copy()

    return StoredArray("toy", NUMBERS.shape, NUMBERS.dtype, chunk_rows, read)


row = st.integers(-23, 22)
slices = st.slices(23)
first = st.one_of(row, slices, st.lists(row, max_size=30), st.lists(st.booleans(), min_size=23, max_size=23))
rest = st.one_of(st.just(()), st.tuples(st.integers(-3, 2)), st.tuples(st.slices(3), st.integers(0, 1)))


@given(first, rest, st.integers(1, 30))
def test_it_is_indexed_as_numpys(rows, others, chunk_rows):
    rows = np.array(rows, bool if rows and isinstance(rows[0], bool) else int) if isinstance(rows, list) else rows
    found, expected = stored(chunk_rows)[(rows, *others)], NUMBERS[(rows, *others)]
    assert np.shape(found) == expected.shape
    np.testing.assert_array_equal(found, expected)
    if not others:
        np.testing.assert_array_equal(stored(chunk_rows)[rows], expected)


@pytest.mark.parametrize("key", [..., None, (slice(None), [0, 2]), ([1, 2], [0, 1]), np.ones((23, 3), bool), ()])
def test_the_rest_of_numpys_indices(key):
    np.testing.assert_array_equal(stored(4)[key], NUMBERS[key])


@pytest.mark.parametrize("key", [23, -24, [0, 23], np.ones(22, bool)])
def test_rows_that_are_not_there(key):
    with pytest.raises(IndexError):
        stored(4)[key]


def test_only_the_chunks_that_are_asked_for_are_read():
    reads: list[range] = []
    array = stored(5, reads)
    assert array.shape == (23, 3, 2) and len(array) == 23 and array.size == 138 and array.nbytes == 552
    assert "float32 (23, 3, 2)" in repr(array) and reads == []
    array[[7, 21, 6]]
    assert reads == [range(6, 8), range(21, 22)]
    array[3]
    assert reads[2:] == [range(3, 4)]


def test_numpy_takes_it_for_an_array():
    array = stored(5)
    np.testing.assert_array_equal(np.asarray(array), NUMBERS)
    np.testing.assert_array_equal(array * 2 + 1, NUMBERS * 2 + 1)
    assert (array == NUMBERS).all() and np.mean(array) == NUMBERS.mean() and np.asarray(array, float).dtype == float
    np.testing.assert_array_equal(np.stack(list(array)), NUMBERS)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(array, copy=False)


@pytest.fixture
def store() -> Store:
    """10 segments in chunks of 4; audio/toy has the rows 0 and 3, row 1 absent, row 2 failed, the others pending."""
    store = make_store(MemoryTree(), 10, 4)
    feature = store.create_feature("audio/toy", RECORD)
    vectors = np.array([[1, 2, 3], [7, 7, 7], [7, 7, 7], [4, 5, 6]], np.float32)
    hashes = np.ones((4, 16), np.uint8)
    feature.write_chunk(range(4), np.arange(4), vectors, np.array([1, 2, 3, 1]), hashes, ["", "", "no audio", ""])
    return store


def test_to_numpy_and_torch(store):
    feature = store["audio/toy"]
    assert feature.ids.tolist() == store.ids.tolist() and feature.status.tolist() == [1, 2, 3, 1, *[0] * 6]
    np.testing.assert_array_equal(feature.to_numpy(), feature.vectors)
    with_holes = feature.to_numpy(missing=np.nan)
    assert with_holes.dtype == np.float16 and (np.isnan(with_holes).all(axis=1) == ~feature.present).all()
    vectors, present = to_torch(feature)
    assert (vectors.numpy() == feature.vectors).all() and (present.numpy() == feature.present).all()
    import torch

    assert (torch.from_dlpack(feature.vectors).numpy() == feature.vectors).all()


def test_to_arrow_and_pandas(store):
    table = store["audio/toy"].to_arrow()
    assert table.column_names[:2] == ["segment_id", "group"] and table.column_names[-1] == "vector"
    assert table["vector"].type == pa.list_(pa.float16(), 3)
    assert table["vector"].to_pylist() == [[1, 2, 3], None, None, [4, 5, 6], *[None] * 6]
    assert table["segment_id"].to_pylist() == store.ids.tolist()
    frame = store.to_pandas()
    assert frame.index.tolist() == store.ids.tolist() and frame["audio/toy"].isna().sum() == 8


def test_a_label_named_as_another_column_keeps_its_values():
    ids = np.array(["a", "b"], np.dtypes.StringDType())
    labels = {"group": np.array([1.0, np.nan]), "vector": ids}
    store = Store.create(MemoryTree(), {"id": ids, "group": ids}, labels, {"layout": "test"})
    store.create_feature("audio/toy", RECORD)
    table = store["audio/toy"].to_arrow()
    assert table["label.group"].to_pylist() == [1.0, None] and table["label.vector"].to_pylist() == ["a", "b"]


def test_pandas_is_asked_for_where_it_is_missing(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StoreError, match="pip install pandas"):
        store["audio/toy"].to_pandas()


def test_a_store_says_what_it_holds(store):
    store.write_split(Split("default", np.array([0] * 6 + [1, 1, 2, 2], np.uint8), {"method": "grouped"}))
    assert len(store.split("default").rows(Part.TRAIN)) == 6
    text = repr(store)
    assert "segments       10" in text and "6 train, 2 val, 2 test" in text
    assert text.splitlines()[-1].split() == ["audio/toy", "2", "1", "1", "6", "3", "float16"]
    assert "2 present, 1 absent, 1 failed, 6 pending" in repr(store["audio/toy"])
    assert list(store) == ["audio/toy"] and "audio/toy" in store and "audio/other" not in store


def test_nothing_that_strangers_wrote_is_obeyed_by_a_notebook_or_a_terminal():
    evil = "<img src=x onerror=alert(1)>\x1b[2J\n<b>"
    ids = np.array([evil, "b"], np.dtypes.StringDType())
    store = Store.create(MemoryTree(), {"id": ids, "group": ids}, {evil: ids}, {"layout": "test"})
    store.create_feature(f"audio/{evil.replace('/', '')}", {**RECORD, "encoder": evil})
    store.write_split(Split(evil, np.zeros(2, np.uint8), {"method": "grouped"}))
    shown = [store, store[store.features()[0]]]
    for thing in shown:
        html, text = thing._repr_html_(), repr(thing)
        assert "<img" not in html and "<b>" not in html and "&lt;img" in html
        assert "\x1b" not in html and "\x1b" not in text and "\\n<b>" in text


def test_a_damaged_store_still_says_what_it_can(store):
    store.tree.delete("features/audio/toy/status")
    assert "damaged" in repr(store) and "damaged" in repr(store["audio/toy"])
