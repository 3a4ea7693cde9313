"""What a report shows of segments: the map, the worst mistakes, audio, data health; where the store is, and where not.

The way is that of a user: `cli fit` and `cli report` on the demo songs.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featurize.segments import RawAudio, UnreadableInput
from fusion import leak_scan, memory
from fusion.report import clips
from fusion.report.answers import answers
from fusion.report.downloads import download
from fusion.report.embed import array_base64, script_json
from fusion.report.positions import place
from fusion.report.segment_map import NOWHERE, classes_colour, quantized
from stores import health, open_store
from tests.test_report import target_metrics, write_run
from tests.unrendered import unrendered_pictures

SMALL = [part for setting in ("training.epochs=2", "training.seeds=[0]", "training.bootstrap=100")
         for part in ("--set", setting)]  # fmt: skip


@pytest.fixture(scope="session")
def trained(demo_data, tmp_path_factory):
    """A project with a finished run; copied, never written to."""
    from click.testing import CliRunner

    from cli import cli

    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(demo_data, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            ["ingest", "data"],
            ["featurize", "--encoder", "lsa", "--workers", "0"],
            ["featurize", "--encoder", "midi_stats", "--workers", "0"],
            ["fit", "--fusion", "gated", "--target", "mood", "--name", "g", *SMALL],
        ):
            result = CliRunner().invoke(cli, command)
            assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def project(trained, tmp_path, monkeypatch):
    folder = shutil.copytree(trained, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def unrendered():
    """For one test; the reports of others are compared with that of `trained`."""
    with unrendered_pictures():
        yield


def page_of(path="runs/g/report.html"):
    return Path(path).read_text("utf-8")


def data_of(page, name):
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1]) if found else None


def array_of(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def csv_of(page, name):
    found = re.search(rf'download="g-{name}.csv" href="data:text/csv;charset=utf-8,([^"]*)"', page)
    return list(csv.DictReader(io.StringIO(unquote_to_bytes(html.unescape(found[1])).decode())))


def test_the_map_says_what_the_store_says(project):
    store, on_map = open_store(Path("features.zarr")), data_of(page_of(), "map-data")
    assert on_map["ids"] == store.ids.tolist() and on_map["groups"] == store.groups.tolist()
    colours = {colour["name"]: colour for colour in on_map["colours"]}
    mood = colours["mood"]
    codes = array_of(mood["codes"], np.uint16)
    assert [mood["classes"][code] if code != NOWHERE else "" for code in codes] == store.label("mood").tolist()
    for feature in on_map["features"]:
        xy = array_of(feature["xy"], np.uint16).reshape(-1, 2)
        assert ((xy != NOWHERE).all(axis=1) == store[feature["name"]].present).all()
    row = store["text/lsa"].present.argmax()
    assert on_map["texts"][row] == Path(f"data/lyrics/{store.ids[row]}.txt").read_text("utf-8").strip()
    verdicts = colours["mood, right or wrong"]
    judged = array_of(verdicts["codes"], np.uint16) != NOWHERE
    assert sorted(store.ids[judged]) == sorted(
        set(pq.read_table("runs/g/predictions.parquet")["segment_id"].to_pylist())
    )


def test_the_worst_mistakes_have_text_and_audio(project):
    page = page_of()
    mistakes = csv_of(page, "mistakes")
    assert mistakes and all(row["true"] != row["predicted"].rpartition(" (")[0] for row in mistakes)
    wrong = [float(row["wrongness"]) for row in mistakes]
    assert wrong == sorted(wrong, reverse=True)
    players = set(re.findall(r'data-clip="([^"]*)"', page))
    sounds = data_of(page, "clips")
    assert players and players <= set(sounds)
    table = csv.DictReader(io.StringIO(Path("data/segments.csv").read_text("utf-8")))
    seconds = {r["segment_id"]: float(r["end_seconds"]) - float(r["start_seconds"]) for r in table if r["audio_path"]}
    assert players == set(seconds) & {row["segment_id"] for row in mistakes}
    for segment_id in players:
        with soundfile.SoundFile(io.BytesIO(base64.b64decode(sounds[segment_id]))) as file:
            assert file.format == "MP3" and abs(file.frames / file.samplerate - seconds[segment_id]) < 0.1


def test_numbers_can_be_downloaded_in_full(project):
    metrics, page = json.loads(Path("runs/g/metrics.json").read_text()), page_of()
    test = metrics["targets"]["mood"]["splits"]["test"]
    rows = csv_of(page, "scores")
    (ours,) = [r for r in rows if (r["model"], r["part"], r["metric"]) == ("gated", "test", "accuracy")]
    assert float(ours["value"]) == test["value"] and int(ours["n"]) == test["n"]
    assert sum(float(row["mean_count_over_seeds"]) for row in csv_of(page, "confusion")) == test["n"]
    assert len(csv_of(page, "history")) == pq.read_table("runs/g/history.parquet").num_rows
    assert sum(int(row["n"]) for row in csv_of(page, "calibration")) == test["n"]


def test_the_report_again_is_the_same_and_the_options_leave_out(project, run_cli):
    before = page_of()
    assert "Report: runs/g/report.html" in run_cli("report", "g").output
    assert page_of() == before
    output = run_cli("report", "runs/g", "--no-text", "--no-audio", "--map", "tsne", "--max-points", "20").output
    page = page_of()
    assert "no texts: Texts were left out" in output and "no audio: Audio was left out" in output
    assert data_of(page, "clips") is None and data_of(page, "map-data")["texts"] is None
    assert data_of(page, "map-data")["n"] == 20 and "t-SNE (perplexity" in page and "20 of 48" in page
    run_cli("report", "g", "--map", "none", "--clips", "0", "--no-health")
    assert data_of(page_of(), "map-data") is None and "Health of the features" not in page_of()


def test_without_store_or_raw_data_it_says_so(project, run_cli, unrendered):
    Path("data").rename("elsewhere")
    assert "no texts: The raw data of features.zarr was at " in run_cli("report", "g").output
    assert "no texts" not in run_cli("report", "g", "--data", "elsewhere").output
    Path("features.zarr").rename("moved.zarr")
    output = run_cli("report", "g").output
    assert "no store: The store features.zarr is not here." in output and "cli report RUN --store" in page_of()
    assert data_of(page_of(), "map-data") is None and "mood" in page_of()
    run_cli("report", "g", "--store", "moved.zarr", "--data", "elsewhere")
    assert data_of(page_of(), "map-data")["n"] == 48
    assert "--store" in run_cli("report", "g", "--store", "nowhere.zarr", code=2).output
    assert "There is no run or ablation 'h'. Known: g." in run_cli("report", "h", code=2).output


def test_features_that_are_no_longer_the_runs_are_not_shown(project, run_cli, unrendered):
    run_cli("featurize", "--encoder", "lsa", "--option", "n_components=8", "--replace", "--workers", "0")
    run_cli("report", "g")
    assert [feature["name"] for feature in data_of(page_of(), "map-data")["features"]] == ["midi/midi_stats"]


def test_a_file_that_cannot_be_heard_is_named(project, run_cli, unrendered):
    before = set(data_of(page_of(), "clips"))
    for path in Path("data/audio").iterdir():
        path.write_bytes(b"no audio")
    run_cli("report", "g")
    page = page_of()
    assert data_of(page, "clips") is None and before
    assert "No audio: " in page and "cannot decode" in page


def test_data_health_counts_what_failed(project, run_cli):
    page = re.sub(r"<[^>]+>", " ", page_of())
    feature = open_store(Path("features.zarr"))["midi/midi_stats"]
    present = int(feature.present.sum())
    distinct = len(np.unique(feature.read_input_hashes()[feature.present], axis=0))
    assert f"midi/midi_stats {present} {48 - present} 0 0 {distinct} " in " ".join(page.split())
    assert "across the parts of split default" in page


def test_what_is_larger_than_memory_is_not_read_to_look_at_it(project, run_cli, unrendered, monkeypatch):
    run_cli("report", "g")
    assert "Nothing was looked at" not in page_of()
    monkeypatch.setattr(memory, "memory_bytes", lambda: 10_000)
    monkeypatch.setattr(leak_scan, "scan", None)
    monkeypatch.setattr(health, "findings", None)
    run_cli("report", "g")
    page = html.unescape(page_of())
    for command in ("inspect", "leaks"):
        assert f"of features are more than 1/8 of the memory. `cli {command}` reads them." in page
    assert "midi/midi_stats" in page and "Nothing found." not in page  # that would be said of what was looked at


# What it rests on


def test_seeds_are_averaged_and_the_surest_mistake_comes_first(tmp_path):
    classes = ["x", "y", "z"]
    shares = {"a": [0.9, 0.1, 0.0], "b": [0.2, 0.5, 0.3], "c": [0.0, 0.0, 1.0], "d": [1.0, 0.0, 0.0]}
    truth = {"a": "y", "b": "x", "c": "z", "d": None}
    ids = [*shares, *shares]  # two seeds
    columns = {"t.true": [truth[i] for i in ids], "t.predicted": ["x"] * 8}
    for at, name in enumerate(classes):
        columns[f"t.p.{name}"] = [shares[i][at] + (0.05 if n < 4 else -0.05) * (at == 0) for n, i in enumerate(ids)]
    run = write_run(tmp_path, {"t": target_metrics("categorical", "accuracy", classes, 4)}, columns, 8)
    table = pq.read_table(run / "predictions.parquet").drop_columns(["segment_id", "seed"])
    table = table.append_column("segment_id", [ids]).append_column("seed", [[0] * 4 + [1] * 4])
    pq.write_table(table, run / "predictions.parquet")
    from fusion.report.folder import RunFolder

    found = RunFolder.read(run)
    said = answers(found, "t", found.metrics["targets"]["t"])
    assert said.ids == ["a", "b", "c", "d"]
    assert said.predicted == ["x", "y", "z", "x"] and said.truth == ["y", "x", "z", ""]
    np.testing.assert_allclose(said.wrongness, [0.8, 0.3, 0.0, np.nan])
    np.testing.assert_array_equal(said.right, [0, 0, 1, np.nan])
    assert said.worst(8) == [0, 1]


@given(st.recursive(st.text() | st.integers() | st.none(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_no_text_can_leave_a_script(value):
    text = str(script_json(value))
    assert not set(text) & set("<>&\u2028\u2029") and json.loads(text) == value


@given(st.lists(st.text(max_size=3), max_size=20))
def test_codes_give_the_classes_back(texts):
    colour = classes_colour("c", texts)
    codes = array_of(colour["codes"], np.uint16)
    assert [colour["classes"][code] if code != NOWHERE else "" for code in codes] == texts
    counts = [texts.count(name) for name in colour["classes"]]
    assert counts == sorted(counts, reverse=True)


FLOATS = st.floats(-1e4, 1e4, width=32)


@given(arrays(np.float32, st.tuples(st.integers(0, 12), st.integers(1, 4)), elements=FLOATS))
def test_every_vector_has_a_place(vectors):
    placed = place(vectors, "pca")
    assert placed.xy.shape == (len(vectors), 2) and np.isfinite(placed.xy).all()
    positions = quantized(placed.xy)
    assert positions.shape == placed.xy.shape and (positions < NOWHERE).all()


def test_columns_in_other_units_are_standardized_first():
    values = np.random.default_rng(0).normal(size=(60, 6))
    values[:, 0] *= 1e4
    assert "6 standardized columns" in place(values, "pca").said
    assert "the 6 columns" in place(np.random.default_rng(0).normal(size=(60, 6)), "pca").said
    assert "t-SNE" in place(values, "tsne").said and "Principal" in place(values[:5], "tsne").said


def test_positions_keep_their_shape():
    xy = quantized(np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]])).astype(int)
    assert xy[1, 0] - xy[0, 0] == NOWHERE - 1  # the wider axis is filled
    assert xy[0, 1] - xy[2, 1] == pytest.approx((NOWHERE - 1) / 2, abs=1)  # the other to the same scale, y upwards


def test_arrays_are_little_endian():
    assert array_of(array_base64(np.array([1, 258], ">u2")), "<u2").tolist() == [1, 258]


def test_clips_end_where_the_budget_ends(monkeypatch):
    rng = np.random.default_rng(0)
    blob = rng.normal(size=22_050).astype("<f4").tobytes()
    raws = [RawAudio(samples=blob, sample_rate_hz=22_050), None, UnreadableInput("broken"), *[RawAudio(samples=blob,
            sample_rate_hz=22_050)] * 3]  # fmt: skip

    def raw(row):
        if isinstance(raws[row], Exception):
            raise raws[row]
        return raws[row]

    ids, source = list("abcdef"), SimpleNamespace(raw=raw)
    found = clips.make_clips(ids, source, range(6), 3)
    assert list(found.base64) == ["a", "d", "e"] and found.failed == {"c": "broken"} and not found.full
    monkeypatch.setattr(clips, "BUDGET_BYTES", 2 * len(found.base64["a"]))
    found = clips.make_clips(ids, source, range(6), 9)
    assert list(found.base64) == ["a", "d"] and found.full


def test_a_table_cannot_compute_in_a_spreadsheet():
    found = download("../=x", ["name", "=n"], [["=1+1", -1.5], ["a", None]])
    assert found.name == "x.csv"
    assert unquote_to_bytes(found.href.partition(",")[2]).decode() == "name,'=n\n'=1+1,-1.5\na,\n"
