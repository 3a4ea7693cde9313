"""The example in every command's help runs as it stands; every command in the documents parses."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import click
import pytest

from cli import COMMANDS, cli
from stores import open_store
from tests.finetuning_project import make_project, run_cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ELSEWHERE = {"cli demo"}  # test_demo.py runs it, at full size


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


@pytest.fixture(scope="module")
def finished(demo_data, tmp_path_factory) -> Path:
    """A project in which everything has been done once; read only."""
    folder = make_project(tmp_path_factory.mktemp("finished") / "project", demo_data)
    with chdir(folder):
        with Path("config.yaml").open("a", encoding="utf-8") as file:
            file.write("encoder_training: {epochs: 1}\n")
        run_cli("fit", "--fusion", "gated", "--no-baselines")
        for name in ("my-songs", "new-songs"):
            shutil.copytree(demo_data, name)
        small = ("--segments", "60", "--songs", "12", "--width", "8", "--audio-width", "8")
        program = [sys.executable, ROOT / "examples/existing_embeddings.py", *small]
        subprocess.run(program, check=True, capture_output=True)
    return folder


BEFOREHAND = {  # what must not be there yet
    "ingest": ["features.zarr"],
    "import": ["features.zarr"],
    "train-encoder": ["encoders/mel_cnn"],
    "config init": ["config.yaml"],
}


@pytest.mark.parametrize("name", [name for name, line in EXAMPLES.items() if line not in ELSEWHERE])
def test_the_example_of_a_command_runs_as_it_stands(finished, tmp_path, name):
    if name == "export":
        pytest.importorskip("onnxscript", reason="pip install 'triad-fusion[onnx]'")
    folder = shutil.copytree(finished, tmp_path / "project")
    for path in BEFOREHAND.get(name, ()):
        shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
    line = EXAMPLES[name]
    with chdir(folder):
        if ">" not in line:
            run_cli(*shlex.split(line)[1:])
            return
        here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
        environment = {**os.environ, **here, "PYTHONPATH": str(ROOT)}
        subprocess.run(["bash", "-euc", line], check=True, env=environment)
        written = folder / line.split()[-1].replace("~/", "")
        assert written.stat().st_size > 500


def test_the_store_of_the_examples_is_not_empty(finished):
    store = open_store(finished / "features.zarr")
    assert store.n_segments == 48 and len(store.features()) == 3


def lines_in_documents() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text("utf-8"), re.DOTALL):
            for line in block.splitlines():
                yield from ((document.name, part) for part in re.findall(r"(?:^|&& ) *(cli [^&|]+)", line))


def test_every_command_in_the_documents_parses():
    """Options that are no more, values that they do not take, arguments that are missing."""
    found = list(lines_in_documents())
    assert len(found) > 40
    for document, line in found:
        words = shlex.split(line.partition(">")[0], comments=True)[1:]
        command: click.Command = cli
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            inner = command.get_command(click.Context(command), words[0])
            assert inner is not None, f"{document}: {line}"
            command, words = inner, words[1:]
        try:
            command.make_context(line, words)
        except click.ClickException as error:
            pytest.fail(f"{document}: {line}: {error.format_message()}")
