"""The main job, as the README's first command runs it: `cli demo`, at full size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fusion.demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished demo, and what it printed."""
    here = tmp_path_factory.mktemp("demo")
    return here / "demo", _cli(here, "demo")


def _cli(folder: Path, *arguments: str) -> str:
    program = [sys.executable, "-c", "from cli import cli; cli()", *arguments]
    offline = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    result = subprocess.run(program, cwd=folder, capture_output=True, text=True, env=offline, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_ends_in_a_report(demo):
    folder, output = demo
    report = folder / "runs" / "demo" / "report.html"
    assert str(report.resolve()) in output and report.stat().st_size > 20_000


def test_fusion_beats_every_single_slot_beyond_the_interval(demo):
    folder, _ = demo
    mood = json.loads((folder / "runs/demo/metrics.json").read_text())["targets"]["mood"]
    for name in ("text alone", "audio alone", "midi alone", "majority", "mask only"):
        assert mood["comparisons"][name]["better"] is True, (name, mood["comparisons"][name])
    fused = mood["splits"]["test"]
    best = max(mood["baselines"][f"{slot} alone"]["test"]["value"] for slot in ("text", "audio", "midi"))
    assert fused["ci95"][0] > best  # the whole interval lies above the best single slot
    assert fused["value"] < 0.97, "a perfect score would be too good to be true"


def test_the_data_misses_what_it_should(demo):
    folder, output = demo
    assert "text 93%, audio 85%, midi 43% of the segments" in output
    metrics = json.loads((folder / "runs/demo/metrics.json").read_text())
    assert metrics["n_segments"] == 720 and metrics["n_groups"] == 120 and metrics["notes"] == []
    prior = metrics["targets"]["mood"]["baselines"]["majority"]["test"]["value"]
    assert abs(metrics["targets"]["mood"]["baselines"]["mask only"]["test"]["value"] - prior) < 0.12


def test_again_it_goes_on_and_the_folder_is_a_project(project, run_cli, monkeypatch, unrendered):
    short = "training: {epochs: 2, seeds: [0], bootstrap: 100}\n"
    monkeypatch.setattr(fusion.demo, "CONFIG", fusion.demo.CONFIG + short)
    assert " 0 encoded now" not in run_cli("demo", "--songs", "6", "--workers", "0").output
    assert run_cli("demo", "--songs", "6", "--workers", "0").output.count(" 0 encoded now, 0 copied") == 3
    monkeypatch.chdir("demo")
    assert "0 encoded" in run_cli("featurize", "--encoder", "mel_stats", "--workers", "0").output
    fitted = run_cli("fit", "--fusion", "gated", "--seeds", "1", "--no-baselines").output
    assert "runs/gated/report.html" in fitted
