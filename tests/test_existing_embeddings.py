"""docs/existing-embeddings.md at a small size: every command that stands there, in its order."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from stores import open_store

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "existing-embeddings.md").read_text("utf-8")
SMALL = ("--segments", "120", "--songs", "12", "--width", "16", "--audio-width", "8")
FAST = ("--set", "training.epochs=2", "--set", "training.bootstrap=100", "--seeds", "1")


def lines_of(language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_every_command_of_the_document_works(project, run_cli):
    (project / "config.yaml").write_text("\n".join(lines_of("yaml")))
    commands = [shlex.split(line, comments=True) for line in lines_of("bash")]
    assert [command[1] for command in commands] == [
        "examples/existing_embeddings.py",
        "import",
        "import",
        "inspect",
        "fit",
        "predict",
        "import",
    ]
    subprocess.run([sys.executable, ROOT / commands[0][1], *SMALL], check=True, capture_output=True)
    shutil.copy("training_data_with_embeddings.parquet", "new_songs.parquet")
    for _, *arguments in commands[1:]:
        output = run_cli(*arguments, *(FAST if arguments[0] == "fit" else ())).output
        if arguments[0] == "fit":
            assert "was imported: whether its encoder has seen" in output and "confidence" in output
    assert open_store("features.zarr").features() == [
        "audio/audio_embedding",
        "concept/concept_embedding",
        "text/lyric_embedding",
    ]
    assert "microsoft/deberta-v3-base" in open_store("new.zarr")["text/lyric_embedding"].record["weights"]["source"]
    predictions = pq.read_table("runs/gated/predictions.parquet")
    assert {"mood.p.mood_prob_happy", "confidence.predicted"} <= set(predictions.column_names)
    assert pq.read_table("predictions.parquet").num_rows == 120
    assert len(predictions) > 10 and (project / "runs/gated/report.html").is_file()
