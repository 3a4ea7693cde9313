"""What we show to be typed, and a reader who types it: fenced blocks of the documents, run on small data.

A block is run unless the document itself says `<!-- not run: REASON -->` above it. A block with a title, as in
`yaml title="config.yaml"`, is a file of that name. Commands are run as they stand, but for `FAST`: settings that make
them short are given after their own options.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
from click.testing import CliRunner
from markdown_it import MarkdownIt

from cli import cli
from featurize import stated_times
from featurize.limits import Limits
from featurize.survey import notes
from featurize.workers import Preparer
from fusion.config import load_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FAST = {
    "fit": ("--set", "training.epochs=2", "--set", "training.bootstrap=100", "--seeds", "1", "--plain-report"),
    "ablate": ("--set", "training.epochs=1", "--set", "training.bootstrap=100", "--seeds", "1", "--workers", "0"),
    "leaks": ("--set", "training.epochs=2", "--set", "training.bootstrap=100", "--seeds", "1"),
    "train-encoder": ("--set", "encoder_training.epochs=1", "--workers", "0"),
    "finetune": ("--set", "finetuning.epochs=1", "--workers", "0"),
    "featurize": ("--workers", "0"),
    "align": ("--workers", "0"),
    "inspect": ("--no-costs",),
    "report": ("--clips", "2"),
    "demo": ("--songs", "6", "--workers", "0"),
    "existing_embeddings.py": ("--segments", "120", "--songs", "12", "--width", "16", "--audio-width", "8"),
}
RUN, READ = {"bash", "python", "yaml"}, {"", "csv", "text", "json", "html", "toml"}
NEVER = {"pip", "git", "curl", "wget", "sudo", "docker", "pytest"}
FOR_A_SHELL = set("<>|&;$*?~`")


@dataclass(frozen=True)
class Block:
    document: Path
    line: int
    language: str
    title: str | None
    not_run: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def blocks_of(document: Path) -> Iterator[Block]:
    tokens = MarkdownIt().parse(document.read_text("utf-8"))
    for before, token in pairwise(tokens):
        if token.type != "fence":
            continue
        language, _, attributes = token.info.strip().partition(" ")
        title = re.search(r'title="([^"]+)"', attributes)
        reason = before.type == "html_block" and re.search(r"<!-- not run: (.+?) -->", before.content)
        line = token.map[0] + 1 if token.map else 0
        yield Block(document, line, language, title and title[1], reason[1] if reason else None, token.content)


def commands_of(text: str) -> Iterator[list[list[str]] | str]:
    """Line by line: the commands that it joins by `&&`, or the line itself where only a shell understands it.

    A text with a here-document is one line.
    """
    lines = [text] if "<<" in text else text.replace("\\\n", " ").splitlines()
    for line in lines:
        words = _words(line)
        if any(FOR_A_SHELL & set(word) for word in words if word != "&&"):
            yield line
        elif words:
            commands: list[list[str]] = [[]]
            for word in words:
                commands[-1].append(word) if word != "&&" else commands.append([])
            yield commands


def _words(line: str) -> list[str]:
    """Of what stands in quotes nothing is left that a shell would read."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="<>|&;")
    lexer.whitespace_split = True
    return list(lexer)


@dataclass
class Reader:
    """Does what a document says, block by block, in the folder in which it stands. `names` are those of its Python."""

    fast: dict[str, Sequence[str]] = field(default_factory=lambda: dict(FAST))
    names: dict = field(default_factory=dict)
    output: str = ""

    def read(self, block: Block) -> None:
        if block.title is not None:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, "utf-8")
        if block.not_run is not None:
            return
        if block.language == "bash":
            for line in commands_of(block.text):
                self.type(line)
        elif block.language == "python":
            self.output += self._python(block)
        elif block.language == "yaml":
            Path(".snippet.yaml").write_text(block.text, "utf-8")
            load_config(Path(".snippet.yaml"))

    def type(self, line: list[list[str]] | str) -> None:
        """Commands of a line; their output is added to `output`."""
        words = _words(line) if isinstance(line, str) else [word for command in line for word in command]
        strange = NEVER.intersection(words)
        assert not strange, f"{strange} change the machine: say `<!-- not run: REASON -->` above the block"
        if isinstance(line, str):
            here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(Path.cwd())}
            environment = {**os.environ, **here, "PYTHONPATH": str(ROOT)}
            command = ["bash", "-euo", "pipefail", "-c", line]
            done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            self.output += done.stdout
            return
        for program, *arguments in line:
            if program == "cli":
                fewer = ("--folds", "3") if "--folds" in arguments else ()
                self.output += run_cli(*arguments, *self.fast.get(arguments[0], ()), *fewer)
            elif program == "cd":
                os.chdir(arguments[0])
            elif program == "python" and arguments[0].endswith(".py"):
                self.output += self._program(*arguments)
            else:
                self.type(shlex.join([program, *arguments]))

    def _python(self, block: Block) -> str:
        with redirect_stdout(StringIO()) as printed:
            exec(compile("\n" * block.line + block.text, block.document, "exec"), self.names)
        return printed.getvalue()

    def _program(self, file: str, *arguments: str) -> str:
        arguments = (*arguments, *self.fast.get(Path(file).name, ()))
        with (
            patch.object(sys, "argv", [file, *arguments]),
            redirect_stdout(StringIO()) as printed,
            suppress(SystemExit),  # the end of a click program
        ):
            runpy.run_path(file, run_name="__main__")
        return printed.getvalue()


@contextmanager
def one_process() -> Iterator[None]:
    """What `ingest` and `inspect` look at by sample is prepared here: each starts up to four processes otherwise."""

    def preparer(encoder: Any, workers: int, limits: Limits, **_: Any) -> Preparer:
        return Preparer(encoder, 0, limits)

    with patch.object(stated_times, "Preparer", preparer), patch.object(notes, "Preparer", preparer):
        yield


def run_cli(*arguments: str) -> str:
    result = CliRunner().invoke(cli, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, f"cli {shlex.join(arguments)}: {result.output}"
    return result.output


def parse(words: Iterable[str]) -> None:
    """Raise unless there is such a command, or such a measurement, with such options and values."""
    program, *words = (word for word in words if not re.match(r"[A-Z_]+=", word))
    if program == "python" and words[:1] == ["-m"] and words[1].startswith("benchmarks"):
        package = words[1] if "." in words[1] else f"{words[1]}.__main__"
        command, words = import_module(package).main, words[2:]
    elif program == "python" and words[0].endswith(".py"):
        command, words = runpy.run_path(str(ROOT / words[0]))["main"], words[1:]
    elif program == "cli":
        command = cli
    else:
        assert program in OTHER_PROGRAMS, f"{program} is not known here"
        return
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(click.Context(command), words[0])
        assert inner is not None, f"no command {words[0]}"
        command, words = inner, words[1:]
    command.make_context(program, words)


OTHER_PROGRAMS = {"pip", "tensorboard", "pytest", "git", "cd", "python3.11", ".", "ruff", "mypy", "export"}
