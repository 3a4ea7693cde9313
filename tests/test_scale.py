"""docs/scale.md: its commands run, against stand-ins for schedulers; its tables are what `benchmarks.scale` prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import scale
from tests.test_kill import every_file
from tests.test_shards import ten_chunks  # noqa: F401 (a fixture)

DOCUMENT = Path(__file__).parents[1] / "docs" / "scale.md"

STAND_INS = {
    "cli": """#!/bin/bash
printf '%s\\n' "$*" >> "$RECORDED"
""",
    "sbatch": """#!/bin/bash
range=$(sed -n 's/^#SBATCH --array=//p' "$1")
export SLURM_ARRAY_TASK_ID
for SLURM_ARRAY_TASK_ID in $(seq "${range%-*}" "${range#*-}" | tac); do bash "$1"; done
""",
    "parallel": """#!/bin/bash
while read -r line; do "${@//'{}'/$line}"; done
""",
}


def snippet(name: str) -> str:
    (found,) = re.findall(rf"<!-- stand-in: {name} -->\n```\w+\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    return found


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A PATH with stand-ins; what they were asked to run, in order."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in STAND_INS.items():
        (folder / name).write_text(script)
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORDED", str(tmp_path / "recorded"))
    return lambda: (tmp_path / "recorded").read_text().splitlines()


def run_slurm(folder: Path) -> None:
    (folder / "featurize.sh").write_text(snippet("slurm"))
    subprocess.run(["sbatch", str(folder / "featurize.sh")], check=True)


def run_parallel(_folder: Path) -> None:
    subprocess.run(["bash", "-c", snippet("parallel")], check=True)


def run_modal(_folder: Path, monkeypatch) -> None:
    """`map` calls the function for each, as Modal does in machines of its own."""

    class App:
        def __init__(self, name: str):
            pass

        def function(self, **_options):
            return lambda function: SimpleNamespace(map=lambda shards: map(function, shards))

        def local_entrypoint(self):
            return lambda function: function()

    image = SimpleNamespace(debian_slim=lambda: SimpleNamespace(pip_install=lambda *_: None))
    volume = SimpleNamespace(from_name=lambda _: SimpleNamespace(commit=lambda: None))
    monkeypatch.setitem(sys.modules, "modal", SimpleNamespace(App=App, Image=image, Volume=volume))
    exec(compile(snippet("modal"), "modal snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("name", ["slurm", "parallel", "modal"])
def test_the_job_arrays_of_the_document_fill_the_store(name, recorded, ten_chunks, tmp_path, run_cli, monkeypatch):  # noqa: F811
    if name == "modal":
        run_modal(tmp_path, monkeypatch)
    else:
        {"slurm": run_slurm, "parallel": run_parallel}[name](tmp_path)
    one, many = (shutil.copytree(ten_chunks, ten_chunks.with_name(f"{name}-{n}.zarr")) for n in ("one", "many"))
    asked = recorded()
    assert len(asked) == 8 and all("--encoder clap --shard" in line for line in asked)
    for line in asked:  # the encoder of the document needs weights
        words = line.replace("clap", "midi_stats").replace("--store /songs/features.zarr", "").split()
        run_cli(*words, "--workers", "0", "--store", many)
    run_cli("featurize", "--encoder", "midi_stats", "--workers", "0", "--store", one)
    assert every_file(many) == every_file(one)


def test_the_tables_of_the_document_are_what_the_benchmark_prints():
    text = DOCUMENT.read_text("utf-8")
    inputs = json.loads(scale.INPUTS.read_text("utf-8"))
    found = scale.tables(inputs)
    assert set(found) == {"inputs", "store", "gpu", "time"}
    for name, table in found.items():
        assert table in text, f"{name}: python -m benchmarks.scale prints another table"
    assert inputs["machine"] in text


def test_the_arithmetic_of_a_table_by_hand():
    """10^9 rows in chunks of 1,024 are 976,563; 5 puts each; the kept record of what a run really asked for."""
    inputs = json.loads(scale.INPUTS.read_text("utf-8"))
    (line,) = [line for line in scale.tables(inputs)["store"].splitlines() if line.startswith("| 10^9")]
    assert "| 976,563 |" in line and f"{976_563 * inputs['store']['requests_per_chunk']['PUT']:,.0f}" in line
    deberta = inputs["flops"]["deberta"]["flops"]
    assert 2 * 128 * 85e6 < deberta < 4 * 128 * 85e6  # two operations a weight and token, and attention


def test_what_a_run_asks_of_a_store_is_what_the_inputs_say(tmp_path):
    """Bytes, objects and requests do not depend on the machine."""
    kept = json.loads(scale.INPUTS.read_text("utf-8"))["store"]
    found = scale.measure_store(tmp_path, 2)
    assert found["requests_per_chunk"] == kept["requests_per_chunk"]
    assert found["objects_per_chunk"] == kept["objects_per_chunk"] == 4
    for width, n_bytes in kept["bytes_per_row"].items():
        assert found["bytes_per_row"][width] == pytest.approx(n_bytes, rel=1e-3)
        assert 2 * int(width) < n_bytes < 2 * int(width) + 32


def test_a_simulated_run_does_all_work_and_no_worker_is_faster_than_it_is(monkeypatch):
    monkeypatch.setattr(scale, "SPEED_SPREAD", 0)
    monkeypatch.setattr(scale, "FAILURES_PER_HOUR", 0)
    for shared in (False, True):
        for n_workers in (1, 16, 300):
            hours, lost = scale.simulate(1000, 3.6, n_workers, shared=shared)
            assert hours == pytest.approx(-(-1000 // n_workers) / 1000) and lost == 0
    monkeypatch.undo()
    static, shared = (scale.simulate(100_000, 3.6, 64, shared=shared) for shared in (False, True))
    assert static[0] > shared[0] > 100_000 / 1000 / 64 * 0.9
    assert 0 < static[1] < 0.01 and 0 < shared[1] < 0.01
