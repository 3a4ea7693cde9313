"""`cli export STORE --to …`: what is written comes back through `cli import` as it was."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from stores import open_store
from stores.feature import Status


@pytest.fixture
def store(project, demo_data, run_cli):
    run_cli("ingest", demo_data, "--set", "split.stratify_by=mood")
    run_cli("featurize", "--encoder", "lsa")
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", "--dtype", "float32")
    return open_store("features.zarr")


def check_equal(one, other):
    assert one.ids.tolist() == other.ids.tolist() and one.features() == other.features()
    for name in one.features():
        np.testing.assert_array_equal(one[name].present, other[name].present)
        assert not (other[name].status == Status.PENDING).any()
        np.testing.assert_array_equal(one[name].vectors[:], other[name].vectors[:])


@pytest.mark.parametrize("kind", ["parquet", "npz", "hdf5"])
def test_what_is_exported_comes_back(store, demo_data, run_cli, kind):
    output = run_cli("export", "features.zarr", "--to", kind).output
    arguments = shlex.split(output.partition("Back into a store: cli ")[2])
    if kind != "parquet":  # which alone knows groups and labels
        run_cli("ingest", demo_data, "--set", "split.stratify_by=mood", "--store", "back.zarr")
    run_cli(*arguments, "--store", "back.zarr", "--dtype", "float32")
    back = open_store("back.zarr")
    check_equal(store, back)
    if kind == "parquet":
        assert back.groups.tolist() == store.groups.tolist() and back.label_names() == store.label_names()
        for label in store.label_names():
            np.testing.assert_array_equal(back.label(label), store.label(label))


def test_one_feature_under_another_name(store, run_cli):
    arguments = ("export", "features.zarr", "--to", "npz", "--feature", "text/lsa", "--out", "lyrics.npz")
    found = json.loads(run_cli(*arguments, "--json").output)
    assert found["columns"] == {"text.lsa_embedding": "text/lsa"}
    with np.load("lyrics.npz") as arrays:
        assert set(arrays) == {"segment_id", "text.lsa_embedding", "has_text.lsa_embedding"}
        np.testing.assert_array_equal(arrays["text.lsa_embedding"], store["text/lsa"].vectors[:])
    assert "lyrics.npz exists" in run_cli(*arguments, code=2).output
    run_cli(*arguments, "--overwrite")


def test_mistakes_write_nothing(store, run_cli):
    store.tree.write(store["text/lsa"].array_path("status"), 0, np.zeros(2, np.uint8))
    for arguments, expected in (
        (("--to", "npz"), "text/lsa has 2 rows that are not encoded yet"),
        (("--to", "npz", "--feature", "audio/clap"), "no feature 'audio/clap'"),
        (("--to", "npz", "--out", "nowhere/x.npz"), "there is no folder nowhere"),
        (("--to", "npz", "--onnx", "x.onnx"), "Say what"),
        ((), "Say what"),
    ):
        assert expected in run_cli("export", "features.zarr", *arguments, code=2).output
    assert "no store" in run_cli("export", "gone.zarr", "--to", "parquet", code=2).output
    assert not [path for path in Path().iterdir() if path.name != "features.zarr"]
