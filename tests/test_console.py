"""What every command does alike: --quiet, --debug, colours, completion, and asking before something goes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import COMMANDS, cli
from featurize.encoders import ENCODERS
from featurize.progress import duration, progress_bar, size, steps
from fusion.config import FUSION_NAMES
from fusion.modules import FUSIONS
from stores import open_store
from stores.console import common_options, tinted
from stores.convert import convert

PROGRAM = [sys.executable, "-c", "from cli import cli; cli()"]


def on_a_terminal(folder: Path, *arguments: str, typed: bytes = b"", **environment: str) -> tuple[str, int]:
    """What a command writes to a terminal, both streams, and its exit code."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=folder,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "TERM": "xterm", **environment},
    )
    os.close(follower)
    os.write(leader, typed)
    seen = b""
    while True:
        try:
            block = os.read(leader, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not block:
            break
        seen += block
    os.close(leader)
    return seen.decode(), process.wait()


@pytest.fixture
def store(project, demo_data, run_cli) -> Path:
    run_cli("ingest", demo_data, "--set", "split.stratify_by=mood")
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0")
    return project / "features.zarr"


# Quiet


@pytest.mark.parametrize("arguments", [("--quiet", "split"), ("split", "--quiet"), ("split", "-q")])
def test_quiet_stands_before_or_after_the_command(store, run_cli, arguments):
    result = run_cli(*arguments, "--name", "other")
    assert (result.stdout, result.stderr) == ("", "") and "other" in open_store(store).splits()


def test_quiet_leaves_errors_json_and_what_is_the_result(store, run_cli):
    assert "exists and is frozen" in run_cli("split", "--quiet", code=2).stderr
    assert json.loads(run_cli("featurize", "--encoder", "midi_stats", "--quiet", "--json").stdout)["present"] > 0
    for arguments in (("inspect",), ("config", "show"), ("config", "schema"), ("completion", "bash")):
        assert len(run_cli("--quiet", *arguments).stdout) > 100


def test_quiet_progress_writes_nothing(capsys, monkeypatch):
    monkeypatch.setattr("featurize.progress.LINE_EVERY_SECONDS", 0.0)
    with click.Context(cli) as context:
        context.meta["triad.quiet"] = True
        with progress_bar("toy", "segments") as update, steps("toy") as say:
            update(1, 3), update(2, 3), say("something")
    assert capsys.readouterr() == ("", "")
    with progress_bar("toy", "segments") as update:
        update(1, 3), update(2, 3)
    assert "toy: 2 of 3 segments" in capsys.readouterr().err


def test_every_command_has_the_common_options():
    context = click.Context(cli)

    def check(command: click.Command) -> None:
        names = {name for parameter in command.params for name in parameter.opts}
        assert {"--quiet", "--debug"} <= names, command.name
        for inner in getattr(command, "commands", {}).values():
            check(inner)

    for name in COMMANDS:
        check(cli.get_command(context, name))
    assert len(common_options()) == 2 and cli.get_command(context, "fit") is not cli.get_command(context, "fit")


# Mistakes


@pytest.mark.parametrize("arguments", [("--debug", "fit"), ("fit", "--debug")])
def test_debug_shows_the_traceback_of_a_mistake(project, run_cli, arguments):
    message = "Error: There is no store at features.zarr. `cli ingest DATA` makes one.\n"
    assert run_cli("fit", code=2).stderr == message
    with_traceback = run_cli(*arguments, code=2).stderr
    assert with_traceback.startswith("Traceback (most recent call last)") and "stores/backends.py" in with_traceback
    assert with_traceback.endswith(message)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("comfig",), "Did you mean 'config'?"),
        (("config", "shwo"), "Did you mean 'show'?"),
        (("fit", "--fusio", "late"), "--fusion"),
    ],
)
def test_what_was_meant_is_named(project, run_cli, arguments, hint):
    assert hint in run_cli(*arguments, code=2).stderr


# Colours


def test_colours_on_a_terminal_and_not_with_no_color(tmp_path):
    (tmp_path / "segments.csv").write_text("segment_id,group\na,x\na,y\nb,z\n")
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)):
        seen, code = on_a_terminal(tmp_path, "ingest", ".", "--check", **environment)
        assert "duplicate id" in seen and code == 2
        assert ("\x1b[" in seen) == coloured, environment
    assert tinted("Nothing of that kind: x") == "Nothing of that kind: x"


# Asking


def test_a_demo_does_not_replace_what_it_has_not_made(project, run_cli):
    Path("config.yaml").write_text("mine: 1\n")
    message = run_cli("demo", ".", code=2).stderr
    assert "its config.yaml would be replaced" in message and "--yes" in message
    assert Path("config.yaml").read_text() == "mine: 1\n" and len(list(project.iterdir())) == 1


def test_on_a_terminal_it_asks(project):
    Path("config.yaml").write_text("mine: 1\n")
    seen, code = on_a_terminal(project, "demo", ".", typed=b"n\n")
    assert "would be replaced. Go on? [y/N]" in seen and code == 1
    assert Path("config.yaml").read_text() == "mine: 1\n" and len(list(project.iterdir())) == 1


# Completion


def completions(*words: str) -> list[str]:
    environment = {
        "_CLI_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["cli", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(cli, [], prog_name="cli", env=environment)
    return [line.partition(",")[2] for line in result.output.splitlines() if line]


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete -o nosort -F"), ("zsh", "#compdef cli"), ("fish", "complete --")]
)
def test_the_script_of_each_shell(run_cli, shell, line):
    script = run_cli("completion", shell).output
    assert line in script and f"_CLI_COMPLETE={shell}_complete" in script


def test_bash_takes_its_script(run_cli, tmp_path):
    (tmp_path / "completion.sh").write_text(run_cli("completion", "bash").output)
    subprocess.run(["bash", "-euc", f". '{tmp_path}/completion.sh'; complete -p cli"], check=True, capture_output=True)


def test_names_are_completed_from_the_folder_one_stands_in(store, run_cli):
    Path("runs/first").mkdir(parents=True)
    Path("runs/first/metrics.json").write_text("{}")
    Path("runs/unfinished").mkdir()
    run_cli("split", "--folds", "3", "--name", "cv")
    assert completions("fe") == ["featurize"] and completions("config", "s") == ["schema", "show"]
    assert completions("featurize", "--encoder", "mel") == ["mel_cnn", "mel_patches", "mel_stats"]
    assert completions("fit", "--fusion", "l") == ["late", "low_rank"]
    assert completions("ablate", "--fusion", "late,g") == ["late,gated"]
    assert completions("fit", "--feature", "") == ["midi/midi_stats"]
    assert completions("fit", "--split", "") == ["cv", "cv.0", "cv.1", "cv.2", "default"]
    assert set(completions("fit", "--target", "")) == {"mood", "energy"}
    assert completions("report", "f")[0] == "first" and completions("finetune", "--from", "")[0] == "first"
    convert(store, Path("copy.h5"))
    assert completions("fit", "--store", "copy.h5", "--feature", "mi") == ["midi/midi_stats"]


def test_where_there_is_nothing_nothing_is_offered(project):
    assert completions("fit", "--feature", "") == completions("fit", "--split", "x") == []
    Path("features.zarr").write_bytes(b"no store")
    assert completions("fit", "--feature", "") == []


def test_completing_a_name_waits_for_no_model_library(store):
    code = (
        "import os, sys; sys.argv = ['cli']; import cli\n"
        "try: cli.cli(prog_name='cli')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'zarr', 'sklearn', 'librosa', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "_CLI_COMPLETE": "bash_complete"}
    for words in ("cli fit --feature m", "cli featurize --encoder mel", "cli ablate --fusion la", "cli report "):
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
        assert result.returncode == 0 and result.stdout, result.stderr


def test_names_for_completion_are_the_registered_ones():
    assert tuple(FUSIONS) == FUSION_NAMES and set(completions("featurize", "--encoder", "")) == set(ENCODERS)


# Numbers for people


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (59.6, "60 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (9000, "2.5 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("n_bytes", "text"), [(40_000, "40 kB"), (12_500_000, "12.5 MB"), (3.4e9, "3.4 GB")])
def test_sizes(n_bytes, text):
    assert size(n_bytes) == text
