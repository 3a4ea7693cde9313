"""The commands as a user types them, on real files; mistakes get one or two lines and exit code 2."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cli import COMMANDS, cli
from stores import open_store
from stores.feature import Status

pytestmark = pytest.mark.usefixtures("unrendered")

FAST = ("--set", "training.epochs=3", "--set", "training.bootstrap=100", "--seeds", "1")


@pytest.fixture(scope="session")
def featurized(demo_data, tmp_path_factory) -> Path:
    """A store with its three features; read only."""
    store = tmp_path_factory.mktemp("featurized") / "features.zarr"
    for arguments in (["ingest", demo_data, "--set", "model.targets=[{name: mood}]"], *ENCODE):
        result = CliRunner().invoke(cli, [*map(str, arguments), "--store", str(store)])
        assert result.exit_code == 0, result.output
    return store


ENCODE = [["featurize", "--encoder", name, "--workers", "0"] for name in ("lsa", "mel_stats", "midi_stats")]


@pytest.fixture
def features(project, featurized, demo_data, run_cli) -> Path:
    """A project folder with a store and its three features."""
    (project / "config.yaml").write_text("model: {targets: [{name: mood}, {name: energy}]}\n")
    shutil.copytree(featurized, project / "features.zarr")
    run_cli("ingest", demo_data)  # tells the copy where the raw data is from here
    return project


def test_the_users_lines_work_as_written_inside_a_project_folder(features, run_cli):
    result = run_cli("featurize", "--encoder", "mel_stats")
    assert "0 encoded, 0 copied from equal inputs, 48 unchanged" in result.output
    result = run_cli("fit", "--fusion", "gated", *FAST)
    folder = features / "runs" / "gated"
    assert "runs/gated/report.html" in result.output and (folder / "report.html").stat().st_size > 10_000
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "environment.json",
        "history.parquet",
        "metrics.json",
        "model.safetensors",
        "predictions.parquet",
        "report.html",
    ]


def test_metrics_json_has_what_others_will_read(features, run_cli):
    run_cli("fit", "--fusion", "late", *FAST)
    metrics = json.loads((features / "runs/late/metrics.json").read_text())
    assert set(metrics["targets"]) == {"mood", "energy"}
    for target in metrics["targets"].values():
        scores = [target["splits"][part] for part in ("train", "val", "test")]
        scores += [baseline[part] for baseline in target["baselines"].values() for part in ("val", "test")]
        scores += target["presence_patterns"].values()
        for score in scores:
            assert {"metric", "value", "ci95", "n"} <= set(score) and score["metric"] == target["metric"]
            if score["ci95"] is not None and score["n_groups"] > 2:
                assert score["ci95"][0] <= score["value"] <= score["ci95"][1]
        assert set(target["baselines"]) == {
            "text alone",
            "audio alone",
            "midi alone",
            "majority",
            "logistic regression",
            "mask only",
        }
        assert list(target["presence_patterns"]) == [
            "text",
            "audio",
            "midi",
            "text+audio",
            "text+midi",
            "audio+midi",
            "text+audio+midi",
        ]
        assert set(target["comparisons"]) == set(target["baselines"])
    assert metrics["targets"]["mood"]["metric"] == "accuracy" and metrics["targets"]["energy"]["metric"] == "r2"
    predictions = pq.read_table(features / "runs/late/predictions.parquet").to_pydict()
    test = metrics["targets"]["mood"]["splits"]["test"]
    correct = np.mean([t == p for t, p in zip(predictions["mood.true"], predictions["mood.predicted"], strict=True)])
    assert len(predictions["segment_id"]) == test["n"] and correct == pytest.approx(test["value"])


def test_the_same_seed_gives_the_same_run(features, run_cli):
    for name in ("one", "two"):
        run_cli("fit", "--fusion", "gated", "--name", name, "--plain-report", *FAST)
    one, two = (json.loads((features / "runs" / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert {**one, "run": ""} == {**two, "run": ""}
    weights = [(features / "runs" / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    run_cli(
        "fit",
        "--fusion",
        "gated",
        "--name",
        "three",
        *FAST,
        "--set",
        "training.seeds=[7]",
        "--seeds",
        "2",
        "--no-baselines",
    )


def test_folds_are_pooled(features, run_cli):
    run_cli("split", "--folds", "3", "--name", "cv")
    result = run_cli("fit", "--split", "cv", "--no-baselines", *FAST)
    metrics = json.loads((features / "runs/late/metrics.json").read_text())
    test = metrics["targets"]["mood"]["splits"]["test"]
    assert metrics["split"]["folds"] == 3 and test["n"] == 48 and test["n_groups"] == 12
    assert "3 folds pooled" in result.output and metrics["targets"]["mood"]["baselines"] == {}
    assert any("text/lsa" in note for note in metrics["notes"])  # fitted on another split: said, not hidden


def test_fewer_folds_leave_none_of_the_old_behind(features, run_cli):
    run_cli("split", "--folds", "5", "--name", "cv")
    assert "cv.0 exists and is frozen" in run_cli("split", "--folds", "3", "--name", "cv", code=2).output
    assert "cv.0 exists and is frozen" in run_cli("split", "--name", "cv", code=2).output
    run_cli("split", "--folds", "3", "--name", "cv", "--replace")
    assert open_store("features.zarr").splits() == ["cv.0", "cv.1", "cv.2", "default"]


def test_a_mistake_with_replace_does_not_cost_the_old_feature(features, run_cli):
    before = open_store("features.zarr")["text/lsa"].vectors[:]
    run_cli("featurize", "--encoder", "lsa", "--replace", "--split", "nope", code=2)
    np.testing.assert_array_equal(open_store("features.zarr")["text/lsa"].vectors[:], before)
    assert ", 0 unchanged" in run_cli("featurize", "--encoder", "lsa", "--replace").output


def test_a_random_split_says_that_it_leaks_in_the_table(features, run_cli):
    assert "LEAK" in run_cli("split", "--name", "leaky", "--method", "random").output
    result = run_cli("fit", "--split", "leaky", "--no-baselines", *FAST)
    assert "LEAK: this split cuts through groups" in result.output


def test_slots_features_and_targets_can_be_chosen(features, run_cli):
    run_cli("featurize", "--encoder", "mel_stats", "--as", "mel_small", "--option", "n_mels=32", "--workers", "0")
    run_cli("fit", "--slots", "text,audio", "--feature", "audio/mel_small", "--target", "mood", *FAST)
    metrics = json.loads((features / "runs/late/metrics.json").read_text())
    assert metrics["slots"] == {"text": "lsa", "audio": "mel_small"} and list(metrics["targets"]) == ["mood"]


def test_touching_one_lyric_encodes_one_row(project, demo_data, run_cli, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    run_cli("ingest", data, "--set", "split.stratify_by=mood")
    run_cli("featurize", "--encoder", "lsa")
    before = open_store("features.zarr")["text/lsa"].vectors[:]
    ids = open_store("features.zarr").ids.tolist()
    lyric = sorted((data / "lyrics").iterdir())[0]
    lyric.write_text("a wholly new line about the sea\n", "utf-8")
    result = run_cli("featurize", "--encoder", "lsa")
    assert "1 encoded, 0 copied from equal inputs, 47 unchanged" in result.output
    after = open_store("features.zarr")["text/lsa"].vectors[:]
    changed = np.flatnonzero((before != after).any(axis=1))
    assert [ids[row] for row in changed] == [lyric.stem]


def test_failed_rows_are_counted_with_their_reasons_and_are_never_fatal(project, demo_data, run_cli, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(demo_data, data)
    midis = sorted((data / "midi").iterdir())
    midis[0].write_bytes(b"not a midi file")
    midis[1].unlink()
    assert "midi file that does not exist" in run_cli("ingest", data, "--set", "split.stratify_by=mood").output
    result = run_cli("featurize", "--encoder", "midi_stats", "--workers", "0")
    assert re.search(r"failed \d+: .*does not exist", result.output) and "e.g. 'song_" in result.output
    feature = open_store("features.zarr")["midi/midi_stats"]
    failed = feature.status == Status.FAILED
    assert failed.sum() >= 2 and not feature.vectors[failed].any() and (feature.failures[failed] != "").all()
    inspected = json.loads(run_cli("inspect", "--json").output)
    assert inspected["features"]["midi/midi_stats"]["failed"] == failed.sum()


def test_inspect_and_verify(features, run_cli):
    output = run_cli("inspect").output
    assert "48 segments in 12 groups" in output and "audio/mel_stats" in output and "default (grouped" in output
    assert "every chunk is there" in run_cli("verify").output
    victim = next((features / "features.zarr/features/audio/mel_stats/vectors/c").rglob("0"))
    victim = victim / "0" if victim.is_dir() else victim
    content = bytearray(victim.read_bytes())
    content[100] ^= 1
    victim.write_bytes(content)
    output = run_cli("verify", code=1).output
    assert "audio/mel_stats: vectors, chunk 0, rows 0 to 47" in output
    assert "cli verify" in run_cli("fit", *FAST, code=2).output


MISTAKES = [  # arguments, what the message must hold
    (["fit"], ["no store at features.zarr", "cli ingest"]),
    (["ingest", "nowhere"], ["nothing at nowhere"]),
    (["ingest"], ["Name the data"]),
    (["fitt"], ["no command 'fitt'", "Did you mean 'fit'"]),
    (["featurize", "--encoder", "wav2vec3"], ["no store"]),
    (["config", "--set", "training.lrr=1"], ["training.lrr", "did you mean 'lr'"]),
    (["config", "--set", "training.lr=-1"], ["training.lr is -1", "greater than 0"]),
    (["config", "--set", "training"], ["KEY=VALUE"]),
    (["config", "--config", "none.yaml"], ["none.yaml", "No such file"]),
    (["report", "nope"], ["no run or ablation 'nope'"]),
]


@pytest.mark.parametrize(("arguments", "expected"), MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_gets_two_lines_and_exit_code_2(project, run_cli, arguments, expected):
    output = run_cli(*arguments, code=2).output
    assert all(text in output for text in expected), output
    message = output[output.index("Error:") :]
    assert len(message.strip().splitlines()) <= 2, output


MISTAKES_WITH_A_STORE = [
    (["featurize", "--encoder", "wav2vec3"], ["no encoder 'wav2vec3'", "mel_stats"]),
    (
        ["featurize", "--encoder", "mel_stats", "--option", "n_mels=32"],
        ["n_mels: 64 in the store, 32 now", "--as", "--replace"],
    ),
    (["fit", "--fusion", "gate"], ["no fusion 'gate'", "Did you mean 'gated'"]),
    (["fit", "--target", "tempo"], ["no label 'tempo'", "mood, energy"]),
    (["fit", "--split", "cv"], ["no split 'cv'", "cli split"]),
    (["fit", "--slots", "video"], ["no feature video/"]),
    (["fit", "--feature", "audio/clap"], ["no feature audio/clap"]),
    (["fit", "--name", "../x"], ["plain name"]),
    (["split"], ["Split default exists and is frozen"]),
    (["split", "--val", "0.8", "--test", "0.4", "--name", "x"], ["leave nothing to train on"]),
]


def test_mistakes_with_a_store_leave_everything_as_it_was(features, run_cli):
    def every_byte():
        return {str(f): f.read_bytes() for f in features.rglob("*") if f.is_file()}

    before = every_byte()
    for arguments, expected in MISTAKES_WITH_A_STORE:
        output = run_cli(*arguments, code=2).output
        assert all(text in output for text in expected), output
        assert len(output[output.index("Error:") :].strip().splitlines()) <= 2, output
    assert every_byte() == before


def test_unfinished_features_are_not_taken_for_missing_ones(features, run_cli):
    store = open_store("features.zarr")
    feature = store["audio/mel_stats"]
    store.tree.write(feature.array_path("status"), 0, np.zeros(48, np.uint8))
    assert "48 of 48 rows are pending" in run_cli("fit", *FAST, code=2).output
    run_cli("fit", "--allow-pending", "--no-baselines", *FAST)


def test_an_encoder_that_saw_labels_of_held_out_songs_is_refused(features, run_cli):
    store = open_store("features.zarr")
    from featurize.pipeline import ids_sha256
    from stores.store import Part

    feature = store["audio/mel_stats"]
    run_cli("split", "--name", "other", "--seed", "5")
    rows = store.split("other").rows(Part.TRAIN)
    trained_on = {"split": "other", "n_segments": len(rows), "ids_sha256": ids_sha256(store.ids[rows]), "labels": True}
    copied = store.create_feature("audio/trained", {**feature.record, "trained_on": trained_on})
    for chunk in copied.chunks():
        copied.write_chunk(
            chunk,
            np.array(chunk),
            feature.read_vectors(chunk),
            feature.read_status(chunk),
            feature.read_input_hashes(chunk),
            feature.read_failures(chunk).tolist(),
        )
    arguments = ("fit", "--feature", "audio/trained", "--no-baselines", *FAST)
    output = run_cli(*arguments, code=2).output
    assert "audio/trained was trained on split other" in output and "--allow-leak" in output
    run_cli(*arguments, "--split", "other")
    assert "LEAK: audio/trained" in run_cli(*arguments, "--allow-leak").output


def test_every_command_is_documented_with_an_example():
    context = click.Context(cli)
    for name, (_, line) in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None and command.help and line.endswith(".")
        assert f"Example:\n  cli {name}" in inspect.cleandoc(command.help), name
        assert all(p.help or isinstance(p, click.Argument) or p.name in SELF_EXPLAINING for p in command.params), name
    assert list(cli.list_commands(context)) == list(COMMANDS)


SELF_EXPLAINING = {"seed", "batch_size", "runs", "ablations", "with_baselines", "dtype"}


def test_help_waits_for_no_library():
    code = (
        "import sys; sys.argv = ['cli', '--help']; import cli\n"
        "try: cli.cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'zarr', 'pyarrow', 'pydantic', 'yaml', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ingest" in result.stdout and "Encode every segment once" in result.stdout


def test_ingest_waits_for_no_library_that_it_does_not_need(project, demo_data):
    code = (
        f"import sys; sys.argv = ['cli', 'ingest', {str(demo_data)!r}]; import cli\n"
        "try: cli.cli()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'librosa', 'scipy.signal'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "Wrote features.zarr" in result.stdout, result.stderr


def test_a_bug_keeps_its_traceback(project, run_cli, monkeypatch):
    import fusion.config

    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(fusion.config, "load_config", broken)
    with pytest.raises(ZeroDivisionError):
        run_cli("config")
