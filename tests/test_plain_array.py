"""Chunks read without zarr-python: what this project writes, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from zarr.codecs import Crc32cCodec, GzipCodec

from stores.backends import new_tree
from stores.base import STRING
from stores.errors import DamagedStore
from stores.plain_array import PlainArray, plain_array
from stores.zarr_store import ZarrTree

DTYPES = [np.dtype(kind) for kind in ("bool", "u1", "i4", "i8", "f2", "f4", "f8")]
TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20), max_size=9)
NUMBERS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1, max_dims=3, max_side=9))
)


def document(tree: ZarrTree, path: str) -> dict:
    return json.loads((tree.path / path / "zarr.json").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> ZarrTree:
    path = tmp_path_factory.mktemp("plain") / "store.zarr"
    with new_tree(path):
        pass
    return ZarrTree(path)


@given(st.one_of(NUMBERS, TEXTS.map(lambda texts: np.array(texts, dtype=STRING))), st.integers(1, 4))
def test_what_is_written_is_read_without_zarr_python(tree, values, chunk_rows):
    tree.create("array", values.shape, values.dtype, chunk_rows)
    if len(values):
        tree.write("array", 0, values)
    rows = max(1, min(chunk_rows, len(values)))
    assert plain_array(document(tree, "array")) == PlainArray(values.shape, values.dtype, rows)
    reader = ZarrTree(tree.path)
    np.testing.assert_array_equal(reader.read("array"), values)
    assert reader.read("array").dtype == values.dtype and reader.layout("array") == (values.shape, values.dtype, rows)
    assert not len(values) or not reader._open  # zarr-python was not asked
    np.testing.assert_array_equal(zarr.open_array(tree.path / "array", mode="r")[:], values)  # and would have agreed


FOREIGN = {
    "compressed": {"compressors": [GzipCodec(), Crc32cCodec()]},
    "no checksum": {"compressors": None},
    "cut across": {"chunks": (4, 1)},
    "shards": {"chunks": (2, 3), "shards": (4, 3)},
    "keys with dots": {"chunk_key_encoding": {"name": "default", "separator": "."}},
    "version 2": {"zarr_format": 2, "compressors": None},
}


@pytest.mark.parametrize("how", FOREIGN)
def test_what_others_write_is_left_to_zarr_python(tmp_path, how):
    values = np.arange(30, dtype=np.float32).reshape(10, 3)
    with new_tree(tmp_path / "store.zarr"):
        pass
    settings = {"shape": values.shape, "chunks": (4, 3), "dtype": values.dtype, "compressors": [Crc32cCodec()]}
    array = zarr.create_array(tmp_path / "store.zarr" / "array", **(settings | FOREIGN[how]))
    array[:] = values
    if how == "version 2":
        assert plain_array(array.metadata.to_dict()) is None
        return
    tree = ZarrTree(tmp_path / "store.zarr")
    assert plain_array(document(tree, "array")) is None
    np.testing.assert_array_equal(tree.read("array"), values)


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), STRING], ids=str)
@pytest.mark.parametrize("damage", ["a bit", "cut short", "too long", "empty"])
def test_a_damaged_chunk_is_never_believed(tmp_path, dtype, damage):
    with new_tree(tmp_path / "store.zarr") as tree:
        tree.create("array", (10,), dtype, 4)
        tree.write("array", 0, np.arange(10).astype(dtype))
    chunk = tmp_path / "store.zarr" / "array" / "c" / "1"
    whole = chunk.read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    chunk.write_bytes({"a bit": flipped, "cut short": whole[:-1], "too long": whole + b"x", "empty": b""}[damage])
    tree = ZarrTree(tmp_path / "store.zarr")
    with pytest.raises(DamagedStore, match="rows 0 to 9 cannot be read"):
        tree.read("array")
    assert tree.read("array", 0, 4).tolist() == np.arange(4).astype(dtype).tolist()
    assert len(tree.read("array", 8)) == 2


@pytest.mark.parametrize("junk", [None, [], 7, {}, {"shape": 3}, {"shape": ["a"], "data_type": {}, "codecs": [None]}])
def test_anything_else_is_no_plain_array(junk):
    assert plain_array(junk) is None
