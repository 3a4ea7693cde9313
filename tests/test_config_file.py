"""`cli config init`, `schema` and `show`: made from the models, and true of them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from fusion.config import Config, load_config
from fusion.config_file import commented_yaml


def values_in_force(run_cli, *arguments: str) -> dict:
    return json.loads(run_cli("config", "show", "--json", *arguments).output)


def test_the_written_file_is_the_defaults(project, run_cli):
    output = run_cli("config", "init").output
    assert "Wrote config.yaml" in output and "No data set stands there yet" in output
    assert load_config(project / "config.yaml") == Config() == load_config()
    assert Path("config.yaml").read_text().startswith("# yaml-language-server: $schema=config.schema.json\n")
    assert json.loads(Path("config.schema.json").read_text()) == json.loads(run_cli("config", "schema").output)


def test_every_key_of_the_file_says_what_it_means():
    def keys(values: dict) -> list[str]:
        return [
            name for key, value in values.items() for name in [key, *keys(value if isinstance(value, dict) else {})]
        ]

    lines = commented_yaml().splitlines()
    stated = [number for number, line in enumerate(lines) if re.match(r" *\w+:", line)]
    assert [lines[number].split(":")[0].strip() for number in stated] == keys(Config().model_dump(mode="json"))
    for number in stated:
        assert "  # " in lines[number] or lines[number - 1].strip().startswith("#"), lines[number]


def test_a_file_that_exists_is_left_alone(project, run_cli):
    Path("config.yaml").write_text("training: {lr: 0.1}\n")
    assert "config.yaml exists, and is left as it is" in run_cli("config", "init", code=2).output
    assert Path("config.yaml").read_text() == "training: {lr: 0.1}\n" and not Path("config.schema.json").exists()
    run_cli("config", "init", "other.yaml")
    assert load_config(Path("other.yaml")) == Config()
    assert "no folder nowhere" in run_cli("config", "init", "nowhere/config.yaml", code=2).output


def test_the_data_beside_it_is_found_and_can_be_ingested(project, demo_data, run_cli):
    shutil.copytree(demo_data, "songs")
    Path("notes.csv").write_text("a,b\n1,2\n")  # a table of something else
    output = run_cli("config", "init").output
    assert "data.path: songs (48 segments)" in output and "mood (categorical)" in output
    config = load_config()
    assert config.data.path == Path("songs")
    assert config == Config(data={"path": "songs"})
    (example,) = re.findall(r"#   (targets: .*)", Path("config.yaml").read_text())
    assert {target["name"] for target in yaml.safe_load(example)["targets"]} <= {"mood", "energy"}
    assert "48 segments in 12 groups" in run_cli("ingest").output


def test_a_split_parquet_is_found_in_the_folder_itself(project, run_cli):
    table = pa.table({"segment_id": ["a", "b", "c"], "song_id": ["x", "y", "z"], "mood": ["sad", "happy", "sad"]})
    pq.write_table(table, "songs_metadata.parquet")
    output = run_cli("config", "init").output
    assert "data.path: . (3 segments)" in output and load_config().data.path == Path()


def test_init_takes_a_folder(tmp_path, run_cli):
    run_cli("config", "init", tmp_path)
    assert load_config(tmp_path / "config.yaml") == Config()


def test_show_says_where_a_value_comes_from(project, run_cli):
    Path("config.yaml").write_text("training: {lr: 0.1, patience: 15}\nmodel: {targets: [{name: mood}]}\n")
    found = values_in_force(run_cli, "--set", "training.epochs=7", "--set", "training.slots.audio.lr=0.2")
    origins = {key: setting["origin"] for key, setting in found.items() if setting["origin"] != "default"}
    assert origins == {
        "training.lr": "config.yaml",
        "training.patience": "config.yaml",
        "model.targets": "config.yaml",
        "training.epochs": "--set",
        "training.slots.audio.lr": "--set",
    }
    assert found["training.epochs"]["value"] == 7 and found["split.val"] == {"value": 0.15, "origin": "default"}
    changed = values_in_force(run_cli, "--set", "training.epochs=7", "--changed")
    assert set(changed) == {"training.lr", "training.epochs", "model.targets"}  # 15 is the default, wherever it stands
    assert re.search(r"^training.lr +0.1 +config.yaml$", run_cli("config", "show").output, re.MULTILINE)


def test_show_without_a_file_is_all_default(project, run_cli):
    assert {setting["origin"] for setting in values_in_force(run_cli).values()} == {"default"}
    assert run_cli("config", "show", "--changed").output == "Everything is at its default.\n"


def test_a_set_goes_before_the_file_in_what_is_shown(project, run_cli):
    Path("mine.yaml").write_text("split: {seed: 3}\n")
    found = values_in_force(run_cli, "--config", "mine.yaml", "--set", "split.seed=4")
    assert found["split.seed"] == {"value": 4, "origin": "--set"}
    found = values_in_force(run_cli, "--config", "mine.yaml")
    assert found["split.seed"] == {"value": 3, "origin": "mine.yaml"}
