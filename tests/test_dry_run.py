"""`--dry-run`: it says what then happens, measures what it tells, and changes nothing on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import cli
from fusion.runs import open_run
from stores import open_store

pytestmark = pytest.mark.usefixtures("unrendered")

ENCODE = [("featurize", "--encoder", name, "--workers", "0") for name in ("lsa", "midi_stats")]
FAST = ("--set", "training.epochs=6", "--set", "training.bootstrap=100", "--seeds", "2")


@pytest.fixture(scope="module")
def featurized(demo_data, tmp_path_factory) -> Path:
    """A store with two features; read only."""
    store = tmp_path_factory.mktemp("featurized") / "features.zarr"
    for arguments in (("ingest", str(demo_data), "--set", "model.targets=[{name: mood}]"), *ENCODE):
        result = CliRunner().invoke(cli, [*arguments, "--store", str(store)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return store


@pytest.fixture
def features(project, featurized, demo_data, run_cli) -> Path:
    """A project folder with that store, and we stand in it."""
    (project / "config.yaml").write_text("model: {targets: [{name: mood}]}\n")
    shutil.copytree(featurized, project / "features.zarr")
    run_cli("ingest", demo_data)
    return project


@pytest.fixture
def dry_run(run_cli):
    """What `COMMAND --dry-run` says, as JSON; fails the test where a byte of this folder changed."""

    def run(*arguments: str) -> dict:
        def every_byte() -> dict[str, bytes | None]:
            return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}

        before = every_byte()
        text = run_cli(*arguments, "--dry-run").output
        assert "Nothing was written." in text
        found = json.loads(run_cli(*arguments, "--dry-run", "--json").output)
        assert every_byte() == before
        return found

    return run


@pytest.mark.parametrize("name", ["lsa", "midi_stats", "mel_stats"])
def test_featurize_does_what_its_dry_run_said(project, demo_data, run_cli, dry_run, name):
    run_cli("ingest", demo_data, "--set", "split.stratify_by=mood")
    arguments = ("featurize", "--encoder", name, "--workers", "0")
    plan = dry_run(*arguments)
    done = json.loads(run_cli(*arguments, "--json").output)
    assert plan["stored"] == {"pending": 48, "present": 0, "absent": 0, "failed": 0}
    assert (plan["to_encode"], plan["copied"]) == (done["encoded"], done["copied"])
    assert plan["width"] == done["width"] and plan["seconds"] > 0 and plan["sample"] == min(16, plan["to_encode"])
    assert done["present"] == plan["to_encode"] + plan["copied"] and plan["unreadable"] == done["failed"] == 0
    assert plan["n_bytes"] == 48 * (2 * plan["width"] + 17)
    again = dry_run(*arguments)
    assert (again["to_encode"], again["unchanged"] + again["absent"], again["seconds"]) == (0, 48, 0.0)
    assert again["stored"]["present"] == done["present"]


def test_one_lyric_that_changed_is_one_input(project, demo_data, run_cli, dry_run):
    shutil.copytree(demo_data, "data")
    run_cli("ingest", "data", "--set", "split.stratify_by=mood")
    run_cli("featurize", "--encoder", "lsa")
    lyrics = sorted(Path("data/lyrics").iterdir())
    lyrics[0].write_text("a wholly new line about the sea\n", "utf-8")
    shutil.copy(lyrics[1], lyrics[2])
    lyrics[3].unlink()
    plan = dry_run("featurize", "--encoder", "lsa")
    done = json.loads(run_cli("featurize", "--encoder", "lsa", "--json").output)
    assert (plan["to_encode"], plan["copied"], plan["unreadable"]) == (1, 1, 1)
    assert (done["encoded"], done["copied"], done["failed"]) == (1, 1, 1)


def test_a_dry_run_makes_the_mistakes_of_the_run(features, run_cli):
    for arguments, expected in (
        (("featurize", "--encoder", "midi_stats", "--frames", "4"), "has no frames"),
        (("featurize", "--encoder", "lsa", "--replace", "--split", "nope"), "no split 'nope'"),
        (("featurize", "--encoder", "lsa", "--audit", "3"), "does not look ahead at --audit"),
        (("fit", "--slots", "video"), "no feature video/"),
        (("ablate", "--fusion", "lat"), "no fusion 'lat'"),
    ):
        assert expected in run_cli(*arguments, "--dry-run", code=2).output


def test_fit_trains_what_its_dry_run_said(features, run_cli, dry_run):
    arguments = ("fit", "--fusion", "gated", *FAST)
    plan = dry_run(*arguments)
    assert plan["run"] == "gated" and plan["epochs"] == 6
    assert plan["trainings"] == {"fusion": 2, "text alone": 2, "midi alone": 2}
    assert plan["seconds"] == pytest.approx(sum(12 * s for s in plan["seconds_per_epoch"].values()))
    assert all(seconds > 0 for seconds in plan["seconds_per_epoch"].values())
    run_cli(*arguments)
    from safetensors.numpy import load_file

    weights = load_file(open_run(Path("gated")) / "model.safetensors")
    assert plan["n_bytes"] == sum(array.nbytes for array in weights.values())
    run_cli("split", "--folds", "3", "--name", "cv")
    plan = dry_run(*arguments, "--split", "cv", "--no-baselines")
    assert plan["trainings"] == {"fusion": 6} and plan["run"] == "gated-2"


def test_ablate_counts_what_is_finished(features, run_cli, dry_run):
    arguments = ("ablate", "--fusion", "late,gated", *FAST)
    plan = dry_run(*arguments)
    assert (plan["cells"], plan["finished"], plan["measured_by"]) == (17, 0, "epochs")
    assert plan["to_run"] == {"late": 6, "logistic regression": 3, "gated": 6, "mask only": 1, "majority": 1}
    assert plan["not_measured"] == ["logistic regression", "mask only", "majority"] and plan["seconds"] > 0
    run_cli("ablate", "--fusion", "late", *FAST)
    plan = dry_run(*arguments)
    assert (plan["finished"], plan["to_run"], plan["not_measured"]) == (11, {"gated": 6}, [])
    plan = dry_run("ablate", "--fusion", "late", *FAST[:-1], "3")
    assert (plan["to_run"], plan["measured_by"]) == ({"late": 3}, "finished cells")
    assert "0 of 11 cells were run now" in run_cli("ablate", "--fusion", "late", *FAST).output
    assert open_store("features.zarr").features() == ["midi/midi_stats", "text/lsa"]
