"""`cli predict` and `Predictor`: equal numbers by every way, and what is missing, unreadable or does not fit."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from cli import cli
from featurize.encoders import build_encoder
from featurize.errors import ConfigError, SourceError, UnknownName
from featurize.segments import RawAudio, RawMidi, RawText
from featurize.trained import save_trained
from fusion import predictor as module
from fusion.load_run import load_features, load_run
from fusion.prediction_file import new_file
from fusion.predictor import Predictor, open_data
from stores import open_store
from stores.errors import StoreError, TriadError
from stores.feature import Status
from stores.store import Part

pytestmark = pytest.mark.usefixtures("unrendered")

ROOT = Path(__file__).parents[1]
FAST = ("--no-baselines", "--set", "training.epochs=4", "--set", "training.bootstrap=100")
CONFIG = "model: {targets: [{name: mood}, {name: energy}]}\n"
FEATURES = {"lsa": 0, "mel_stats": 0, "midi_stats": 0, "mel_patches": 4, "piano_roll_columns": 3}  # and their frames


def invoke(*arguments: str | Path) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


@pytest.fixture(scope="module")
def finished(demo_data, tmp_path_factory) -> Path:
    """A project with runs `gated`, of two seeds, and `framed`, whose model reads frames; copied, never written."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "config.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        invoke("ingest", demo_data)
        for name, n_frames in FEATURES.items():
            invoke("featurize", "--encoder", name, "--workers", "0", "--frames", str(n_frames))
        plain = ("--feature", "audio/mel_stats", "--feature", "midi/midi_stats")
        invoke("fit", "--fusion", "gated", "--seeds", "2", *plain, *FAST)
        framed = ("--feature", "audio/mel_patches", "--feature", "midi/piano_roll_columns")
        invoke("fit", "--fusion", "cross_attention", "--seeds", "1", "--name", "framed", *framed, *FAST)
    return folder


@pytest.fixture
def folder(project, finished) -> Path:
    shutil.copytree(finished, project, dirs_exist_ok=True)
    return project


@pytest.fixture
def new_data(demo_data, tmp_path) -> Path:
    """Six segments of the demo songs: no labels, no groups; one MIDI file damaged, one audio file gone."""
    rows = list(csv.DictReader((demo_data / "segments.csv").read_text("utf-8").splitlines()))
    having = [row for row in rows if row["audio_path"] and row["midi_path"]][:6]
    data = tmp_path / "new"
    for row in having:
        for column in ("text_path", "audio_path", "midi_path"):
            if row[column]:
                (data / row[column]).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(demo_data / row[column], data / row[column])
    columns = ["segment_id", "text_path", "audio_path", "midi_path", "start_seconds", "end_seconds"]
    having[0]["midi_path"], having[1]["audio_path"] = "damaged.mid", "gone.flac"
    (data / "damaged.mid").write_bytes(b"no MIDI")
    having[2]["segment_id"] = "=1+1"
    with (data / "segments.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(having)
    return data


def rows_of(table: pa.Table) -> dict[str, dict]:
    return {row["segment_id"]: row for row in table.to_pylist()}


def check_close(found: pa.Table, expected: pa.Table) -> None:
    """Equal but for the last bits, which hang on how many rows are multiplied at once."""
    assert found.schema == expected.schema
    for name in expected.column_names:
        if pa.types.is_floating(expected.schema.field(name).type):
            np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert found[name].to_pylist() == expected[name].to_pylist()


# Equal numbers


@pytest.mark.parametrize("run", ["gated", "framed"])
def test_every_way_gives_the_same_numbers(run, folder, demo_data):
    predictor = Predictor(run)
    store, source = open_data(Path("features.zarr")), open_data(demo_data)
    of_store = predictor.predict(store)
    assert of_store.num_rows == 48 and predictor.predict(source).equals(of_store)

    segments = [
        {"segment_id": name, **{slot: source.raw(row, slot) for slot in predictor.run.slots}}
        for row, name in enumerate(source.ids)
    ]
    assert predictor.predict(segments).equals(of_store)

    vectors, frames = {}, {}
    for slot, name in predictor.run.features.items():
        feature = store.feature(name)
        vectors[slot] = np.where(feature.present[:, None], feature.vectors[:], np.nan)
        if slot in predictor.run.frame_slots:
            frames[slot] = (feature.frames[:], feature.n_frames)
    assert predictor.predict_vectors(vectors, frames=frames, ids=source.ids).equals(of_store)
    assert bool(frames) == (run == "framed")


def test_of_the_saved_model_it_is_what_the_run_predicted(folder):
    predictor, store = Predictor("gated"), open_store("features.zarr")
    model = predictor.run.metrics["model"]
    rows = store.split(model["split"]).rows(Part.TEST)
    found = pa.concat_tables(predictor.blocks(store, rows))
    then = pq.read_table("runs/gated/predictions.parquet").to_pylist()
    then = [row for row in then if (row["seed"], row["split"]) == (model["seed"], model["split"])]
    assert found.num_rows == len(then) > 4
    shared = [name for name in then[0] if name in found.column_names]
    assert {"mood.predicted", "mood.p.calm", "energy.predicted", "weight.audio"} <= {*shared}
    assert [{name: row[name] for name in shared} for row in found.to_pylist()] == [
        {name: row[name] for name in shared} for row in then
    ]
    assert [row["used.midi"] for row in found.to_pylist()] == [row["present.midi"] for row in then]
    check_close(pa.concat_tables([predictor.predict(store).take(rows)]), found)


@pytest.mark.parametrize("run", ["gated", "framed"])
def test_blocks_are_parts_of_the_whole(run, folder, demo_data, monkeypatch):
    predictor, store, source = Predictor(run), open_data(Path("features.zarr")), open_data(demo_data)
    whole = predictor.predict(store)
    some = np.array([0, 6, 7, 30, 47])
    monkeypatch.setattr(module, "BLOCK_ROWS", 35)  # 7 with 4 frames a row
    steps: list[tuple[str, int, int]] = []
    blocks = list(predictor.blocks(source, progress=lambda *step: steps.append(step)))
    assert [block.num_rows for block in blocks] == ([35, 13] if run == "gated" else [7] * 6 + [6])
    assert steps[-1] == ("midi segments", 48, 48) and max(done for _, done, _ in steps) == 48
    check_close(pa.concat_tables(blocks), whole)
    check_close(pa.concat_tables(predictor.blocks(store)), whole)
    for data in (store, source):
        check_close(pa.concat_tables(predictor.blocks(data, some)), whole.take(some))


def test_calibrated_divides_by_the_temperature_of_evaluate(folder, run_cli):
    with pytest.raises(ConfigError, match=r"no temperatures yet.*cli evaluate runs/gated"):
        Predictor("gated", calibrated=True)
    run_cli("evaluate", "gated")
    path = Path("runs/gated/evaluation.json")
    evaluation = json.loads(path.read_text())
    evaluation["targets"]["mood"]["calibration"]["temperature"] = {"value": 2.5, "n": 9, "at_limit": False}
    path.write_text(json.dumps(evaluation))
    store, run = open_store("features.zarr"), load_run(Path("gated"))
    found = Predictor("gated", calibrated=True).predict(store)
    logits = run.logits(load_features(run, store), np.arange(48))[0].double().numpy()
    expected = softmax(logits / 2.5, axis=1)
    assert np.abs(expected - softmax(logits, axis=1)).max() > 1e-3
    for column, name in enumerate(run.targets[0].classes):
        np.testing.assert_allclose(found[f"mood.p.{name}"].to_numpy(), expected[:, column], rtol=1e-12)
    assert found["energy.predicted"].equals(Predictor("gated").predict(store)["energy.predicted"])
    evaluation["targets"]["mood"]["calibration"]["temperature"]["at_limit"] = True
    path.write_text(json.dumps(evaluation))
    with pytest.raises(ConfigError, match="a temperature for none of the targets"):
        Predictor("gated", calibrated=True)


# What is missing


def test_what_cannot_be_read_is_missing_with_its_reason(folder, new_data, run_cli):
    output = run_cli("predict", "gated", new_data, "--workers", "0").output
    assert "midi   there in 5 of 6" in output and "failed 1: gone.flac does not exist" in output
    table = pq.read_table("predictions.parquet")
    damaged, gone, *others = table.to_pylist()
    assert damaged["failed.midi"] and not damaged["used.midi"] and damaged["weight.midi"] == 0 and damaged["used.audio"]
    assert "gone.flac does not exist" in gone["failed.audio"] and not gone["used.audio"] and gone["used.midi"]
    assert all(row[f"failed.{slot}"] is None for row in others for slot in ("text", "audio", "midi"))

    predictor, source = Predictor("gated"), open_data(new_data)
    segments = [{slot: source.raw(row, slot) for slot in ("text", "audio", "midi") if row + 3 > 4} for row in range(6)]
    segments[0] = {slot: source.raw(0, slot) for slot in ("text", "audio")}  # absent is missing just the same
    segments[1] = {slot: source.raw(1, slot) for slot in ("text", "midi")}
    found = predictor.predict(segments)
    same = [name for name in table.column_names if not name.startswith(("segment_id", "failed."))]
    assert found.select(same).equals(table.select(same))


def test_a_slot_that_is_not_shown_is_a_slot_that_is_not_there(folder, demo_data):
    source = open_data(demo_data)
    shown = Predictor("gated", slots=["text", "midi"])
    segments = [{slot: source.raw(row, slot) for slot in ("text", "midi")} for row in range(48)]
    expected = Predictor("gated").predict(segments)
    for data in (source, open_store("features.zarr")):
        found = shown.predict(data)
        assert found.drop(["segment_id"]).equals(expected.drop(["segment_id"]))
    assert not any(found["used.audio"].to_pylist()) and found["weight.audio"].to_pylist() == [0.0] * 48


def test_nothing_at_all_has_a_prediction(folder):
    predictor = Predictor("gated")
    empty = predictor.predict([])
    first, second = predictor.predict([{}, {"segment_id": "x", "text": None}]).to_pylist()
    assert empty.num_rows == 0 and list(first) == empty.column_names and second["segment_id"] == "x"
    assert list(first) == list(second) and not first["used.text"]
    for name in first.keys() - {"segment_id"}:  # two rows of one product may differ in the last bit
        assert second[name] == (pytest.approx(first[name], abs=1e-6) if isinstance(first[name], float) else first[name])
    assert sum(first[name] for name in first if name.startswith("mood.p.")) == pytest.approx(1)
    assert predictor.predict_vectors({}, ids=["x"]).equals(predictor.predict([{"segment_id": "x"}]))


def test_rows_that_are_not_featurized_yet_count_as_missing_and_are_told(folder, run_cli):
    store = open_store("features.zarr")
    feature = store["audio/mel_stats"]
    status = feature.status
    there = int((status == Status.PRESENT).sum())
    first = int(np.flatnonzero(status == Status.PRESENT)[0])
    status[first] = Status.PENDING
    store.tree.write(feature.array_path("status"), 0, status)
    output = run_cli("predict", "gated", "features.zarr").output
    assert "audio/mel_stats: 1 rows are not featurized yet" in output and f"audio  there in {there - 1} of 48" in output
    assert pq.read_table("predictions.parquet")["used.audio"].to_pylist()[first] is False


# Files


def test_all_formats_say_the_same(folder, new_data, run_cli):
    for name in ("a.parquet", "a.csv", "a.jsonl"):
        assert f"Predictions: {name}" in run_cli("predict", "gated", new_data, "--out", name, "--workers", "0").output
    printed = run_cli("predict", "gated", new_data, "--out", "-", "--workers", "0").stdout
    assert printed == Path("a.csv").read_text("utf-8")
    table = pq.read_table("a.parquet")
    assert [json.loads(line) for line in Path("a.jsonl").read_text("utf-8").splitlines()] == table.to_pylist()
    read = list(csv.DictReader(printed.splitlines()))
    for row, expected in zip(read, table.to_pylist(), strict=True):
        for name, value in expected.items():
            if isinstance(value, bool):
                assert row[name] == str(value).lower()
            elif isinstance(value, float):
                assert float(row[name]) == value
            else:
                assert row[name] == ("'=1+1" if value == "=1+1" else value or "")
    assert read[2]["segment_id"] == "'=1+1"  # no spreadsheet computes it


def test_a_file_is_not_replaced_unasked_and_appears_whole(folder, run_cli, tmp_path):
    Path("predictions.parquet").write_text("mine")
    assert "--overwrite" in run_cli("predict", "gated", "features.zarr", code=2).output
    assert Path("predictions.parquet").read_text() == "mine"
    found = json.loads(run_cli("predict", "gated", "features.zarr", "--overwrite", "--json").stdout)
    assert found["segments"] == 48 and found["out"] == "predictions.parquet"
    assert sum(found["targets"]["mood"]["predicted"].values()) == 48
    assert pq.read_table("predictions.parquet").num_rows == 48
    for name in ("x.csv", "x.parquet"):
        with pytest.raises(ZeroDivisionError), new_file(tmp_path / name, name[2:]) as write:
            write(pa.table({"a": [1]}))
            raise ZeroDivisionError
    assert list(tmp_path.glob("*x.*")) == list(tmp_path.glob(".x*")) == []


# Where data and encoders are


def test_a_split_parquet_is_predicted_too(folder, demo_data, tmp_path):
    source = open_data(demo_data)
    ids = source.ids[:8]
    raws = [source.raw(row, "midi") for row in range(8)]
    blobs = [None if raw is None else raw.read_bytes() for raw in raws]
    spans = {"start_seconds": source.start_seconds[:8], "end_seconds": source.end_seconds[:8]}
    pq.write_table(pa.table({"segment_id": ids, **spans}), tmp_path / "songs_metadata.parquet")
    pq.write_table(pa.table({"segment_id": ids, "midi_binary": blobs}), tmp_path / "songs_media.parquet")
    found = Predictor("gated").predict(open_data(tmp_path))
    segments = [{"segment_id": name, "midi": raw} for name, raw in zip(ids, raws, strict=True)]
    assert found.equals(Predictor("gated").predict(segments))
    assert any(found["used.midi"].to_pylist())


def test_trained_encoders_are_found_beside_the_store_or_where_one_says(folder, demo_data, run_cli):
    options = {"hidden_dim": 8, "channels": [2, 2]}
    Path("encoders/mine").mkdir(parents=True)
    save_trained(Path("encoders/mine"), build_encoder("mel_cnn", options), options)
    where = ("--option", "pretrained_model=encoders/mine", "--as", "mine", "--set", f"data.path={demo_data}")
    run_cli("featurize", "--encoder", "mel_cnn", *where, "--workers", "0")
    run_cli("fit", "--slots", "audio", "--feature", "audio/mine", "--name", "trained", *FAST)
    run_cli("predict", "trained", demo_data, "--workers", "0", "--out", "raw.parquet")
    run_cli("predict", "trained", "features.zarr", "--out", "stored.parquet")
    assert pq.read_table("raw.parquet").equals(pq.read_table("stored.parquet"))
    shutil.move("encoders/mine", "elsewhere")
    output = run_cli("predict", "trained", demo_data, "--out", "again.parquet", code=2).output
    assert "audio/mine was made by a trained mel_cnn" in output and "--encoder audio=FOLDER" in output
    run_cli("predict", "trained", demo_data, "--out", "again.parquet", "--encoder", "audio=elsewhere", "--workers", "0")
    assert pq.read_table("again.parquet").equals(pq.read_table("raw.parquet"))


def test_the_run_finds_its_store_or_is_told_where_it_is(folder, demo_data, run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = Predictor(folder / "runs" / "gated").predict(open_data(demo_data))  # the store is beside runs/
    shutil.move(folder / "features.zarr", tmp_path / "moved.zarr")
    with pytest.raises(TriadError, match=r"kept in the store it was trained on, features\.zarr: There is no store at"):
        Predictor(folder / "runs" / "gated").predict(open_data(demo_data))
    again = Predictor(folder / "runs" / "gated", store=Path("moved.zarr"))
    assert again.predict(open_data(demo_data)).equals(whole)
    open_store("moved.zarr").delete_feature("text/lsa")
    with pytest.raises(TriadError, match="needs text/lsa"):
        Predictor(folder / "runs" / "gated", store=Path("moved.zarr")).predict([{}])
    only = Predictor(folder / "runs" / "gated", store=Path("moved.zarr"), slots=["audio"])
    assert only.predict(open_data(demo_data)).num_rows == 48


# Mistakes

MISTAKES = [  # arguments, what the message must hold
    (["predict", "gate", "features.zarr"], ["no run 'gate'", "Did you mean 'gated'"]),
    (["predict", "gated", "nowhere"], ["nothing at nowhere"]),
    (["predict", "gated", "nowhere.zarr"], ["no store at nowhere.zarr"]),
    (["predict", "gated", "features.zarr", "--slots", "video"], ["no slot of run gated 'video'"]),
    (["predict", "gated", "features.zarr", "--out", "x.txt"], ["ends in .parquet, .csv, .jsonl"]),
    (["predict", "gated", "features.zarr", "--out", "no/x.csv"], ["no folder no"]),
    (["predict", "gated", "features.zarr", "--out", "-", "--json"], ["nothing else"]),
    (["predict", "gated", "features.zarr", "--encoder", "audio"], ["SLOT=FOLDER"]),
    (["predict", "gated", "features.zarr", "--encoder", "video=x"], ["no slot of run gated 'video'"]),
    (["predict", "gated", "features.zarr", "--calibrated"], ["cli evaluate"]),
    (["export", "gated", "--onnx", "config.yaml"], ["config.yaml exists"]),
    (["export", "gated", "--onnx", "no/x.onnx"], ["no folder no"]),
    (["export", "gated", "--onnx", "x.onnx", "--calibrated"], ["cli evaluate"]),
]


def test_mistakes_get_two_lines_and_leave_everything_as_it_was(folder, run_cli):
    before = sorted(folder.rglob("*"))
    for arguments, expected in MISTAKES:
        output = run_cli(*arguments, code=2).output
        assert all(text in output for text in expected), output
        assert len(output[output.index("Error:") :].strip().splitlines()) <= 2, output
    assert sorted(folder.rglob("*")) == before


def test_a_table_with_a_repeated_id_or_a_bad_time_is_refused(folder, new_data):
    table = (new_data / "segments.csv").read_text()
    lines = table.splitlines()
    (new_data / "segments.csv").write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(SourceError, match="1 x duplicate id"):
        Predictor("gated").predict(open_data(new_data))
    header = lines[0].split(",")
    cells = lines[1].split(",")
    cells[header.index("start_seconds")] = "soon"
    (new_data / "segments.csv").write_text("\n".join([lines[0], ",".join(cells)]) + "\n")
    with pytest.raises(SourceError, match="time that is no number"):
        Predictor("gated").predict(open_data(new_data))


def test_paths_that_leave_the_data_folder_are_refused_unless_they_are_meant(folder, demo_data, run_cli):
    lyric = sorted((demo_data / "lyrics").iterdir())[0]
    Path("data").mkdir()
    Path("data/segments.csv").write_text(f"segment_id,text_path\na,{lyric}\n")
    assert "1 paths cannot be used" in run_cli("predict", "gated", "data", code=2).output
    run_cli("predict", "gated", "data", "--set", "data.allow_outside_root=true")
    assert pq.read_table("predictions.parquet")["used.text"].to_pylist() == [True]


def test_raw_inputs_and_arrays_of_the_wrong_kind_are_refused(folder):
    predictor, framed = Predictor("gated"), Predictor("framed")
    with pytest.raises(UnknownName, match="no slot of run gated 'lyrics'"):
        predictor.predict([{"lyrics": RawText("la")}])
    with pytest.raises(ConfigError, match="Segment 0: text is a str; expected a RawText"):
        predictor.predict([{"text": "la"}])
    with pytest.raises(ConfigError, match="Segment x: midi is a RawAudio; expected a RawMidi"):
        predictor.predict([{"segment_id": "x", "midi": RawAudio(path=Path("a.wav"))}])
    (unread,) = predictor.predict([{"midi": RawMidi(data=b"?"), "audio": RawAudio(path=Path("none.wav"))}]).to_pylist()
    assert unread["failed.midi"] and "none.wav" in unread["failed.audio"] and not unread["used.audio"]

    widths = predictor.run.widths
    vectors = np.zeros((3, widths["text"]))
    vectors[1, 0] = np.nan
    with pytest.raises(ConfigError, match="vector of row 1 has NaN"):
        predictor.predict_vectors({"text": vectors})
    with pytest.raises(ConfigError, match=rf"expected numbers \(n, {widths['text']}\)"):
        predictor.predict_vectors({"text": np.zeros((3, 2))})
    with pytest.raises(ConfigError, match="equally many rows"):
        predictor.predict_vectors({"text": np.zeros((3, widths["text"])), "audio": np.zeros((2, widths["audio"]))})
    with pytest.raises(UnknownName, match="no slot"):
        predictor.predict_vectors({"video": np.zeros((3, 2))})
    audio = np.zeros((2, framed.run.widths["audio"]))
    with pytest.raises(ConfigError, match="reads frames, too"):
        framed.predict_vectors({"audio": audio})
    with pytest.raises(ConfigError, match="n_frames must be from 0 to T, 4"):
        framed.predict_vectors({"audio": audio}, frames={"audio": (np.zeros((2, 4, audio.shape[1])), np.array([5, 0]))})


def test_another_stores_features_are_refused(folder, demo_data, run_cli):
    other = ("--option", "n_mels=32", "--replace", "--set", f"data.path={demo_data}")
    run_cli("featurize", "--encoder", "mel_stats", *other, "--workers", "0")
    assert "213 columns; run gated was trained on 277" in run_cli("predict", "gated", "features.zarr", code=2).output
    open_store("features.zarr").delete_feature("text/lsa")
    with pytest.raises(TriadError, match="cli featurize --encoder lsa"):
        Predictor("gated").predict(open_store("features.zarr"))
    assert "cli featurize --encoder lsa" in run_cli("predict", "gated", "features.zarr", code=2).output
    with pytest.raises(StoreError, match="no store"):
        open_data(Path("none.zarr"))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(hidden=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_numbers_of_what_is_missing_are_never_read(finished, hidden):
    """By vectors: NaN throughout, or left out where no row has the slot."""
    predictor = Predictor(finished / "runs" / "gated")
    store = open_store(finished / "features.zarr")
    here = ~np.array(hidden)
    features = predictor.run.features.items()
    full = {slot: store.feature(name).vectors[: len(here)].astype(np.float32) for slot, name in features}
    vectors = {
        slot: np.where(here[:, column, None], full[slot], np.nan)
        for column, slot in enumerate(full)
        if here[:, column].any()
    }
    found = predictor.predict_vectors(vectors, ids=[str(row) for row in range(len(here))])
    for column, slot in enumerate(full):
        assert found[f"used.{slot}"].to_pylist() == here[:, column].tolist()
    numbers = [column.to_numpy() for column in found.columns if pa.types.is_floating(column.type)]
    assert np.isfinite(numbers).all()
    for row in range(len(here)):
        alone = predictor.predict_vectors(
            {slot: values[row : row + 1] for slot, values in vectors.items()}, ids=[str(row)]
        )
        check_close(alone, found.slice(row, 1))
