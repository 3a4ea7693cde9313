"""Everything that is shown works: each document is done as it says, and the example in every command's help runs."""

from __future__ import annotations

import csv
import inspect
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, nullcontext
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from cli import COMMANDS, cli
from featurize.timecode import seconds_to_smpte
from stores import open_store
from stores.feature import Status
from tests import test_clap, test_deberta, test_wav2vec2
from tests.finetuning_project import make_project
from tests.shown import DOCUMENTS, FAST, READ, ROOT, RUN, Reader, blocks_of, commands_of, one_process, parse, run_cli
from tests.test_ingest import write_split_parquet
from tests.unrendered import unrendered_pictures

BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
NOT_RUN = [block for block in BLOCKS if block.not_run is not None]
ELSEWHERE = {  # documents that a test file of their own runs
    "extend.md": "test_extend.py",
    "python.md": "test_extend.py",
    "scale.md": "test_scale.py",
    "tracking.md": "test_tracking.py",
}
TO_RUN = [block.document for block in BLOCKS if block.language in RUN and not block.not_run]
WITH_BLOCKS = [document for document in dict.fromkeys(TO_RUN) if document.name not in ELSEWHERE]
LEARNED = {"text": "deberta", "audio": "mel_cnn", "midi": "event"}
HELP_ELSEWHERE = {"cli demo"}  # test_demo.py runs it, at full size
RENDERED = {"README.md"}  # whose reports have their pictures rendered


@pytest.fixture(scope="module", autouse=True)
def in_one_process():
    with one_process():
        yield


@pytest.fixture(scope="module")
def fresh(demo_data, tmp_path_factory) -> Path:
    """A clone's examples, raw songs, and small random models where the documents name those of Hugging Face."""
    folder = tmp_path_factory.mktemp("fresh") / "project"
    folder.mkdir()
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name in ("my-songs", "new-songs"):
        shutil.copytree(demo_data, folder / name)
    family, config, tokenizer = test_deberta.KINDS["deberta-v2"]
    test_deberta.new_model(family, config).save_pretrained(folder / "microsoft/deberta-v3-base")
    test_deberta.new_tokenizer(tokenizer).save_pretrained(folder / "microsoft/deberta-v3-base")
    test_wav2vec2.save(test_wav2vec2.new_model("wav2vec2"), folder / "facebook/wav2vec2-base")
    test_clap.save_hugging_face(folder / "laion/larger_clap_music", fused=False)
    with chdir(folder):
        Reader().type([["python", "examples/existing_embeddings.py"]])
        Path("training_data_with_embeddings.parquet").rename("new_songs.parquet")
        Path("clap.parquet").unlink()
    return folder


@pytest.fixture(scope="module")
def ingested(fresh, tmp_path_factory) -> Path:
    """The same with a store in which nothing is encoded yet."""
    folder = shutil.copytree(fresh, tmp_path_factory.mktemp("ingested") / "project")
    with chdir(folder):
        Path("config.yaml").write_text("data: {path: my-songs}\nmodel: {targets: [{name: mood}]}\n", "utf-8")
        run_cli("ingest")
    return folder


@pytest.fixture(scope="module")
def finished(fresh, demo_data, tmp_path_factory) -> Path:
    """A project in which everything has been done once: encoders that can learn and some that cannot, runs, folds."""
    with unrendered_pictures():
        folder = make_project(tmp_path_factory.mktemp("finished") / "project", demo_data)
    shutil.copytree(fresh, folder, dirs_exist_ok=True)
    with chdir(folder):
        run_cli("fit", "--fusion", "gated", "--no-baselines", *FAST["fit"])
        for encoder in ("lsa", "mel_stats", "midi_stats"):
            run_cli("featurize", "--encoder", encoder, *FAST["featurize"])
        choose(Path(), LEARNED)
    return folder


# Documents


def rename_columns(folder: Path) -> None:
    table = pyarrow.csv.read_csv(folder / "my-songs/segments.csv")
    names = {"group": "artist", "text": "lyrics"}
    table = table.rename_columns([names.get(name, name) for name in table.column_names])
    pyarrow.csv.write_csv(table, folder / "my-songs/segments.csv")


def only_mood(folder: Path) -> None:
    table = pyarrow.csv.read_csv(folder / "my-songs/segments.csv")
    pyarrow.csv.write_csv(table.drop_columns("energy"), folder / "my-songs/segments.csv")
    (folder / "config.yaml").write_text("training: {epochs: 2, bootstrap: 100}\n", "utf-8")  # for what Python does


def choose(folder: Path, encoders: dict[str, str]) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    config["model"] |= {f"{slot}_encoder": {"type": name} for slot, name in encoders.items()}
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")


def two_slots(folder: Path) -> None:
    choose(folder, {"text": "lsa", "audio": "mel_stats"})
    store = open_store(folder / "features.zarr")
    for name in store.features():
        if name.startswith("midi/"):
            store.delete_feature(name)


def folds(folder: Path) -> None:
    with chdir(folder):
        run_cli("split", "--name", "cv", "--folds", "3")


def two_slots_and_folds(folder: Path) -> None:
    two_slots(folder)
    folds(folder)


def an_ablation(folder: Path) -> None:
    with chdir(folder):
        run_cli("ablate", "--fusion", "late", "--slots", "text,audio", *FAST["ablate"])


def two_blocks(folder: Path) -> None:
    text = (folder / "examples/finetune.yaml").read_text("utf-8")
    (folder / "examples/finetune.yaml").write_text(text.replace("{audio: 4}", "{audio: 1}"), "utf-8")


def models_of_ones_own(folder: Path) -> None:
    shutil.copytree(folder / "laion/larger_clap_music", folder / "models/larger_clap_music")
    shutil.copytree(folder / "microsoft/deberta-v3-base", folder / "models/all-MiniLM-L6-v2")


def clips_with_labels(folder: Path) -> None:
    """In demo/data, as from someone's disk: files named by id, and labels.csv in place of segments.csv."""
    data = shutil.move(folder / "my-songs", folder / "demo/data")
    with (data / "segments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["audio_path"]:
            samples, rate = soundfile.read(data / row["audio_path"])
            start, end = (round(float(row[key]) * rate) for key in ("start_seconds", "end_seconds"))
            soundfile.write(data / f"audio/{row['segment_id']}.flac", samples[start:end], rate)
        if row["midi_path"]:
            shutil.copy(data / row["midi_path"], data / f"midi/{row['segment_id']}.mid")
    write_rows(data / "labels.csv", [{key: row[key] for key in ("segment_id", "group", "mood")} for row in rows])
    (data / "segments.csv").unlink()


def songs_by_timecode(folder: Path) -> None:
    shutil.copytree(folder / "my-songs", folder / "timecodes")
    with (folder / "timecodes/segments.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {key: seconds_to_smpte(float(row[key]), "25", 100) for key in ("start_seconds", "end_seconds")}
    write_rows(folder / "timecodes/segments.csv", rows)


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def files_of_a_song(folder: Path) -> None:
    for name, found in (("s1.flac", "audio/*.flac"), ("song.flac", "audio/*.flac"), ("song.mid", "midi/*.mid")):
        shutil.copy(sorted(folder.glob(f"my-songs/{found}"))[0], folder / name)
    shutil.copytree(folder / "features.zarr", folder / "other.zarr")


def split_parquet(folder: Path) -> None:
    write_split_parquet(folder / "my-songs", folder / "parquet")
    table = pq.read_table(folder / "parquet/songs_metadata.parquet", columns=["segment_id"])
    vectors = np.random.default_rng(0).normal(size=(len(table), 8)).astype(np.float32)
    table = table.append_column("lyric_embedding", pa.array(list(vectors)))
    pq.write_table(table, folder / "training_data_with_embeddings.parquet")


def media_in_parquet(folder: Path) -> None:
    for path in write_split_parquet(folder / "my-songs", folder / "parquet").glob("*.parquet"):
        shutil.copy(path, folder)
    (folder / "small").mkdir()


def onnx_gives_what_the_run_gives(reader: Reader) -> None:
    names = reader.names
    assert names["table"].num_rows == 2 and names["table"]["used.audio"].to_pylist() == [True, True]
    zeros = np.zeros((1, names["slots"]["audio"]["width"]))
    expected = names["predictor"].predict_vectors({"audio": zeros}).to_pylist()[0]
    assert names["classes"] == ["angry", "calm", "happy", "sad"]
    of_model = [expected[f"mood.p.{name}"] for name in names["classes"]]
    np.testing.assert_allclose(names["probabilities"][0], of_model, atol=1e-5)


def batches_tell_what_is_missing(reader: Reader) -> None:
    status = open_store("features.zarr")["midi/midi_stats"].status
    assert f"'ABSENT': {(status == Status.ABSENT).sum()}" in reader.output
    assert reader.names["rows"].tolist() == reader.names["data"].rows.tolist()
    assert len(reader.names["batch"]["failures"])


def embeddings_end_in_predictions(reader: Reader) -> None:
    assert "was imported: whether its encoder has seen" in reader.output and "confidence" in reader.output
    features = ["audio/audio_embedding", "concept/concept_embedding", "text/lyric_embedding"]
    assert open_store("features.zarr").features() == features
    record = open_store("new.zarr")["text/lyric_embedding"].record
    assert "microsoft/deberta-v3-base" in record["weights"]["source"]
    predictions = pq.read_table("runs/gated/predictions.parquet")
    assert {"mood.p.mood_prob_happy", "confidence.predicted"} <= set(predictions.column_names)
    assert pq.read_table("predictions.parquet").num_rows == 120 and len(predictions) > 10


START = {  # what a reader has before: "finished" if nothing is said
    "README.md": "fresh",
    "split-parquet.md": "fresh",
    "start.md": "fresh",
    "config.md": "fresh",
    "encoders.md": "ingested",
    "existing-embeddings.md": "fresh",
    "midi.md": "ingested",
}
PREPARE: dict[str, Callable[[Path], None]] = {
    "README.md": only_mood,
    "alignment.md": songs_by_timecode,
    "split-parquet.md": split_parquet,
    "start.md": clips_with_labels,
    "ablation.md": two_slots,
    "data.md": rename_columns,
    "encoders.md": models_of_ones_own,
    "finetune.md": two_blocks,
    "fusion.md": two_slots_and_folds,
    "leaks.md": folds,
    "report.md": an_ablation,
    "predict.md": files_of_a_song,
    "storage.md": media_in_parquet,
}
AFTERWARDS: dict[str, Callable[[Reader], None]] = {
    "existing-embeddings.md": embeddings_end_in_predictions,
    "missing.md": batches_tell_what_is_missing,
    "predict.md": onnx_gives_what_the_run_gives,
}


@pytest.mark.parametrize("document", WITH_BLOCKS, ids=lambda path: path.name)
def test_a_document_works_from_top_to_bottom(document, request, tmp_path, monkeypatch):
    start = request.getfixturevalue(START.get(document.name, "finished"))
    folder = shutil.copytree(start, tmp_path / "project")
    if document.name in PREPARE:
        PREPARE[document.name](folder)
    monkeypatch.chdir(folder)
    reader = Reader()
    with nullcontext() if document.name in RENDERED else unrendered_pictures():
        for block in blocks_of(document):
            reader.read(block)
    if document.name in AFTERWARDS:
        AFTERWARDS[document.name](reader)


@pytest.mark.parametrize(("document", "test"), ELSEWHERE.items())
def test_a_document_that_is_run_elsewhere_is_run_there(document, test):
    assert document in (ROOT / "tests" / test).read_text("utf-8")


# Help


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command, and those of groups, by all its words."""
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", command.commands[inner]) for inner in command.commands)


def example_of(command: click.Command) -> str:
    _, found, after = inspect.cleandoc(command.help or "").partition("Example:\n")
    (line,) = (line.strip() for line in after.splitlines() if line.strip())
    assert found and line.startswith("cli ")
    return line


EXAMPLES = {name: example_of(command) for name, command in commands()}
BEFOREHAND = {"train-encoder": ["encoders/mel_cnn"]}  # what must not be there yet


def run_in_documents() -> set[str]:
    """Commands that the documents above are run with, as one types them."""
    shown = [block for block in BLOCKS if block.document in WITH_BLOCKS and block.language == "bash"]
    lines = [line for block in shown if block.not_run is None for line in commands_of(block.text)]
    return {shlex.join(words) for line in lines if isinstance(line, list) for words in line}


IN_DOCUMENTS = run_in_documents()


@pytest.mark.parametrize("name", [name for name, line in EXAMPLES.items() if line not in HELP_ELSEWHERE | IN_DOCUMENTS])
def test_the_example_of_a_command_runs_as_it_stands(finished, tmp_path, monkeypatch, name):
    folder = shutil.copytree(finished, tmp_path / "project")
    for path in BEFOREHAND.get(name, ()):
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    monkeypatch.chdir(folder)
    with unrendered_pictures():
        for line in commands_of(EXAMPLES[name]):
            Reader().type(line)


def test_the_store_of_the_examples_is_not_empty(finished):
    store = open_store(finished / "features.zarr")
    assert store.n_segments == 48 and len(store.features()) == 6


# What is not run


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: f"{block}: {block.not_run}")
def test_what_is_not_run_has_a_reason_and_parses(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for placeholder in ("folder", "mood-sample"):
        Path(placeholder).mkdir()
    assert len(block.not_run) > 5
    if block.language == "bash":
        for line in commands_of(block.text):
            for words in line if isinstance(line, list) else []:
                parse(words)
    elif block.language == "python":
        compile(block.text, str(block), "exec")


def test_most_of_what_is_shown_is_run():
    shown = [block for block in BLOCKS if block.language in RUN]
    assert len(shown) > 50 and len(NOT_RUN) < len(shown) / 4
    for block in BLOCKS:
        assert block.language in RUN | READ, f"{block}: {block.language} is not one of {RUN | READ}"
        if block.language not in RUN:
            assert not re.search(r"^(\$ )?(cli|pip|python) ", block.text, re.MULTILINE), f"{block}: commands are bash"
    for document in DOCUMENTS:
        assert not re.search(r"^    (cli|pip|python) ", document.read_text("utf-8"), re.MULTILINE), document
