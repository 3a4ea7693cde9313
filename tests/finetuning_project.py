"""A project with fitted runs on a small text model, a CNN and a transformer, none of which has learned anything yet."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch
from click.testing import CliRunner

from cli import cli
from featurize.encoders import build_encoder
from featurize.trained import save_trained
from fusion.leaks import seen
from stores import open_store
from tests.test_deberta import KINDS, new_model, new_tokenizer

AUDIO = {"hidden_dim": 12, "channels": [4, 8], "n_mels": 16}
MIDI = {"hidden_dim": 16, "n_layers": 2, "n_heads": 2, "tokenization": "separate", "max_events": 1024}
CONFIG = """\
model: {{targets: [{{name: mood}}, {{name: energy}}]}}
data: {{path: {data}}}
training: {{epochs: 15, lr: 0.01, seeds: [0], bootstrap: 100}}
finetuning: {{epochs: 2, lr: 0.001}}
preprocessing: {{audio: {{augmentations: [noise]}}}}
"""


def run_cli(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def make_project(folder: Path, data: Path) -> Path:
    """Its features have up to 4 frames a segment; runs: `late` on their vectors, `early` on their frames."""
    folder.mkdir()
    with contextlib.chdir(folder):
        Path("config.yaml").write_text(CONFIG.format(data=data), "utf-8")
        run_cli("ingest", data)
        family, config, tokenizer = KINDS["bert"]
        new_model(family, config).save_pretrained("small-bert")
        new_tokenizer(tokenizer).save_pretrained("small-bert")
        store = open_store("features.zarr")
        torch.manual_seed(0)
        for name, options in (("mel_cnn", AUDIO), ("event", MIDI)):
            encoder = build_encoder(name, options)
            encoder.trained_on = seen(store, store.split("default"), True, None)
            Path("encoders", name).mkdir(parents=True)
            save_trained(Path("encoders", name), encoder, options)
            run_cli("featurize", "--encoder", name, "--workers", "0", "--frames", "4")
        run_cli("featurize", "--encoder", "deberta", "--option", "pretrained_model=small-bert", "--frames", "4")
        for fusion in ("late", "early"):
            run_cli("fit", "--fusion", fusion, "--no-baselines")
    return folder
