"""Every file in examples/: the commands in its head, in their order, on small data. Only hardware is exchanged."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pyarrow.csv
import pytest
import torch

from fusion.config import load_config
from tests import test_deberta, test_wav2vec2
from tests.shown import FAST, Reader, one_process
from tests.test_ingest import write_split_parquet

pytestmark = pytest.mark.usefixtures("unrendered")

EXAMPLES = Path(__file__).parents[1] / "examples"


def commands_of(path: Path) -> list[list[str]]:
    """The `cli …` lines in the comments that a file begins with."""
    head = path.read_text("utf-8").partition("\n\n")[0].splitlines()
    return [shlex.split(line.lstrip("# ")) for line in head if re.match(r"#\s+cli ", line)]


def songs(demo_data: Path) -> None:
    shutil.copytree(demo_data, "my-songs")


def songs_with_more_labels(demo_data: Path) -> None:
    songs(demo_data)
    table = pyarrow.csv.read_csv("my-songs/segments.csv")
    for name, values in (
        ("tags", ["happy;loud", "loud", "slow", ""]),
        ("red", [0.2, 0.5, 0.1, None]),
        ("green", [0.3, 0.5, 0.1, None]),
        ("blue", [0.5, 0.0, 0.8, None]),
    ):
        table = table.append_column(name, [[values[row % 4] for row in range(len(table))]])
    pyarrow.csv.write_csv(table, "my-songs/segments.csv")


def split_parquet(demo_data: Path) -> None:
    write_split_parquet(demo_data, Path("parquet"))


def vectors(_demo_data: Path) -> None:
    Reader().type([["python", str(EXAMPLES / "existing_embeddings.py")]])


def checkpoints(demo_data: Path) -> None:
    """Where the configuration names models of Hugging Face, small ones with random weights stand in their place."""
    songs(demo_data)
    family, config, tokenizer = test_deberta.KINDS["deberta-v2"]
    test_deberta.new_model(family, config).save_pretrained("microsoft/deberta-v3-base")
    test_deberta.new_tokenizer(tokenizer).save_pretrained("microsoft/deberta-v3-base")
    test_wav2vec2.save(test_wav2vec2.new_model("wav2vec2"), Path("facebook/wav2vec2-base"))


DATA = {
    "folder.yaml": songs,
    "split_parquet.yaml": split_parquet,
    "precomputed_vectors.yaml": vectors,
    "targets.yaml": songs_with_more_labels,
    "frames.yaml": songs,
    "pretrained_encoders.yaml": checkpoints,
    "gpu.yaml": checkpoints,
    "cross_validation.yaml": songs,
}
ELSEWHERE = {
    "finetune.yaml",
    "existing_embeddings.py",
}  # test_shown.py, with docs/finetune.md and docs/existing-embeddings.md


@pytest.fixture(scope="module", autouse=True)
def in_one_process():
    with one_process():
        yield


def test_every_example_has_its_test():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {*DATA, *ELSEWHERE}


@pytest.mark.parametrize("name", DATA)
def test_the_commands_of_an_example_end_in_a_result(project, demo_data, run_cli, name):
    DATA[name](demo_data)
    shutil.copy(EXAMPLES / name, "config.yaml")
    commands = commands_of(EXAMPLES / name)
    assert [command[0] for command in commands] == ["cli"] * len(commands) and len(commands) >= 4
    for _, *arguments in commands:
        if not torch.cuda.is_available():
            arguments = ["cpu" if word == "cuda" else word for word in arguments]
        run_cli(*arguments, *FAST.get(arguments[0], ()))
    config = load_config()
    (folder,) = Path("runs").iterdir()
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    assert metrics["fusion"] == config.model.fusion.strategy
    assert set(metrics["targets"]) == {target.name for target in config.model.targets}
    assert len(metrics["slots"]) > 1 and (folder / "report.html").is_file()
    assert metrics["split"]["folds"] == (5 if name == "cross_validation.yaml" else 1)
