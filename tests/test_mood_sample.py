"""120 real clips, most without MIDI: ingest, three encoders, both fusions. Skipped where the clips are not."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from stores import open_store
from tests.conftest import MOOD_SAMPLE, needs_mood_sample

pytestmark = needs_mood_sample

QUICK = ("--set", "training.epochs=3", "--set", "training.bootstrap=100")


@pytest.fixture
def data(tmp_path):
    return shutil.copytree(MOOD_SAMPLE, tmp_path / "mood-sample")


def test_from_real_clips_to_two_results(project, data, run_cli):
    output = run_cli("ingest", data).output
    assert "120 segments in 109 groups" in output and "error" not in output
    assert [int(re.search(rf"{m} +(\d+)", output)[1]) for m in ("text", "audio", "midi")] == [103, 120, 50]
    for encoder, present in (("lsa", 103), ("mel_stats", 120), ("midi_stats", 50)):
        output = run_cli("featurize", "--encoder", encoder).output
        assert f"{present} present, {120 - present} absent, 0 failed of 120" in output

    for encoder in ("lsa", "mel_stats", "midi_stats"):
        assert (
            "0 encoded, 0 copied from equal inputs, 120 unchanged" in run_cli("featurize", "--encoder", encoder).output
        )

    before = open_store("features.zarr")["text/lsa"].vectors[:]
    lyric = data / "lyrics" / "445.txt"
    lyric.write_text(lyric.read_text("utf-8") + "and one more line about the rain\n", "utf-8")
    assert "1 encoded, 0 copied from equal inputs, 119 unchanged" in run_cli("featurize", "--encoder", "lsa").output
    store = open_store("features.zarr")
    changed = np.flatnonzero((store["text/lsa"].vectors[:] != before).any(axis=1))
    assert store.ids[changed].tolist() == ["445"]

    output = run_cli("fit", "--fusion", "gated", "--seeds", "1", *QUICK).output
    for name in ("text alone", "audio alone", "midi alone", "majority", "logistic regression", "mask only"):
        assert re.search(rf"^  {name} +\d\.\d", output, re.MULTILINE), output
    run_cli("fit", "--fusion", "late", "--seeds", "1", "--no-baselines", *QUICK)
    for fusion in ("gated", "late"):
        metrics = json.loads((project / "runs" / fusion / "metrics.json").read_text())
        assert metrics["targets"]["mood"]["splits"]["test"]["n"] == 18
