"""Strangers' labels, ids and reasons are shown; a terminal never takes them for commands."""

from __future__ import annotations

import csv
import gc
import io
import json
import sys
import weakref
from contextlib import redirect_stdout
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cli import cli
from stores import open_store
from stores.terminal import data_stdout, own_stderr, plain, plain_output

TITLE = "\x1b]0;owned\x07"
BACKWARDS = "\u202egpj.exe"
EVIL = f"calm{TITLE}\x9b2J\r{BACKWARDS}"


def test_no_command_passes_on_what_a_terminal_would_obey(project, run_cli):
    moods = [EVIL, "wild"] * 6
    with Path("segments.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["segment_id", "group", "text", f"mood{TITLE}", "audio_path"])
        rows.writerows(
            [f"s{i}{TITLE}", f"g{i}", "la " + "lo" * i, mood, f"no{TITLE}.wav"] for i, mood in enumerate(moods)
        )
    outputs = [
        run_cli("ingest", "."),
        run_cli("featurize", "--encoder", "lsa", "--workers", "0"),
        run_cli("featurize", "--encoder", "mel_stats", "--workers", "0"),
        run_cli("inspect"),
        run_cli("verify", "--store", f"no{TITLE}", code=2),
        run_cli("fit", "--target", f"no{TITLE}", code=2),
    ]
    for output in (result.output for result in outputs):
        assert not set(output) & {"\x1b", "\x07", "\x9b", "\r", "\u202e"}, output
    assert r"calm\x1b]0;owned\x07\x9b2J\r\u202egpj.exe 6" in outputs[3].output  # shown, and how many
    shown = json.loads(run_cli("inspect", "--json").output)
    assert shown["labels"][f"mood{TITLE}"]["counts"][EVIL] == 6  # as it is
    assert open_store("features.zarr").label(f"mood{TITLE}")[0] == EVIL


@given(st.text())
def test_words_stay_as_they_are(text):
    shown = plain(text)
    assert plain(shown) == shown and "\x1b" not in shown
    if text.isprintable():
        assert shown == text


def test_data_in_a_pipe_stays_as_it_is(capsys):
    with plain_output():
        data_stdout().write(EVIL)
    assert capsys.readouterr().out == EVIL


def test_progress_bars_draw_on_the_terminal_itself(capsys):
    own = sys.stderr
    with plain_output():
        assert own_stderr() is own
        print("a\tb\x1b[2J\n", end="")
    assert sys.stderr is own and capsys.readouterr().out == "a\tb\\x1b[2J\n"


def test_a_call_in_a_long_lived_process_keeps_no_stream():
    """click remembers the streams that it printed to, by a weak reference to what it then holds itself."""
    out = io.StringIO()
    with redirect_stdout(out):
        cli.main(["config", "schema"], standalone_mode=False)
    assert json.loads(out.getvalue())
    remembered = weakref.ref(out)
    del out
    gc.collect()
    assert remembered() is None
