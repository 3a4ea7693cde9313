"""Weights and runs that mean harm: what would run code is refused in a line and not run, what does not fit is not used.

Pickles as CLAP's `.pt`, as `.bin` of a Hugging Face checkpoint, and as arrays of npz: `test_clap.py`,
`test_deberta.py`, `test_import.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from featurize.encoders import build_encoder
from featurize.errors import ConfigError
from featurize.trained import save_trained
from fusion.checkpoint import Checkpoint
from tests.test_deberta import KINDS, new_model, new_tokenizer

ROOT = Path(__file__).parents[1]


class Evil:
    """Unpickled, it leaves a folder behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def marker(tmp_path):
    """A path that exists once the code in `Evil(marker)` has run: at the end of the test it does not."""
    path = tmp_path / "the code was run"
    yield path
    assert not path.exists()
    pickle.loads(pickle.dumps(Evil(path)))
    assert path.exists(), "it would have been run"


def one_line(output: str) -> str:
    assert output.startswith("Error: ") and output.count("\n") == 1, output
    return output


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    """A project with a store of imported vectors and the run `late`; copied, never written."""
    from click.testing import CliRunner

    from cli import cli

    folder = tmp_path_factory.mktemp("fitted")
    rng = np.random.default_rng(0)
    columns = {
        "segment_id": [f"s{i}" for i in range(24)],
        "group": [f"g{i // 2}" for i in range(24)],
        "mood": list("ab") * 12,
        "lyric_embedding": list(rng.normal(size=(24, 3)).astype(np.float32)),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pq.write_table(pa.table(columns), "vectors.parquet")
        small = ["--set", "training.epochs=2", "--set", "training.seeds=[0]", "--set", "training.bootstrap=100"]
        for command in (["import", "vectors.parquet"], ["fit", "--name", "late", "--no-baselines", *small]):
            assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0
    return folder


@pytest.fixture
def run(project, fitted) -> Path:
    shutil.copytree(fitted, project, dirs_exist_ok=True)
    return Path("runs/late")


def refused(run_cli, *command: str) -> str:
    output: str = run_cli(*(command or ("predict", "late", "features.zarr", "--out", "p.csv")), code=2).output
    assert not Path("p.csv").exists()
    return output


@pytest.mark.parametrize("form", ["pickle", "zip", "empty", "huge header"])
def test_a_run_whose_weights_are_no_safetensors(run, run_cli, marker, form):
    path = run / "model.safetensors"
    if form == "zip":
        torch.save({"w": Evil(marker)}, path)
    else:
        path.write_bytes(
            {"pickle": pickle.dumps(Evil(marker)), "empty": b"", "huge header": b"\xff" * 7 + b"\0{}"}[form]
        )
    assert "model.safetensors holds no model of a run" in one_line(refused(run_cli))


def rewrite(path: Path, change=lambda tensors: None, **facts) -> None:
    """The file again, with tensors changed in place and some of its facts replaced."""
    with safe_open(path, "pt") as file:
        known = json.loads(file.metadata()["triad_fusion"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    change(tensors)
    save_file(tensors, path, metadata={"triad_fusion": json.dumps({**known, **facts})})


WEIGHT = "fusion.interact.0.bias"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: tensors.pop(WEIGHT), f'Missing key.*"{WEIGHT}"'),
        (lambda tensors: tensors.update(unheard_of=torch.zeros(1)), 'Unexpected key.*"unheard_of"'),
        (lambda tensors: tensors.update({WEIGHT: torch.zeros(3, 3)}), f"size mismatch for {WEIGHT}"),
        (lambda tensors: tensors[WEIGHT].fill_(torch.nan), f"{WEIGHT} holds NaN or infinity"),
    ],
    ids=["missing", "unknown", "misshapen", "NaN"],
)
def test_weights_that_do_not_fit_their_run(run, run_cli, change, reason):
    rewrite(run / "model.safetensors", change)
    output = refused(run_cli)
    assert re.search(reason, output) and "rain" in output and output.count("\n") <= 2


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"widths": {}}, "metrics.json names the slots text"),
        ({"widths": {"text": 10**9}}, "widths.text: Input should be less than or equal to"),
        ({"widths": {"text": -1}}, "widths.text: Input should be greater than 0"),
        ({"targets": 3}, "targets: Input should be a valid"),
        ({"targets": []}, "targets: List should have at least 1 item"),
        ({"fusion": None}, "fusion: Input should be a"),
        ({"fusion": {"strategy": "os.system"}}, "There is no fusion 'os.system'"),
        ({"fusion": {"hidden_dim": 10**9}}, "less than or equal to 65536"),
    ],
)
def test_facts_that_do_not_fit_their_run(run, run_cli, facts, reason):
    rewrite(run / "model.safetensors", **facts)
    assert reason in refused(run_cli)


@pytest.mark.parametrize("content", ["{}", "[]", '{"slots": 3', "[" * 100_000])
@pytest.mark.parametrize("name", ["metrics.json", "environment.json"])
def test_json_that_is_not_the_runs(run, run_cli, name, content):
    (run / name).write_text(content, "utf-8")
    assert f"{name} cannot be read (" in one_line(refused(run_cli))
    if name == "metrics.json":
        assert f"{name} cannot be read (" in one_line(refused(run_cli, "report", "late"))


def test_a_checkpoint_that_holds_code_is_passed_over(tmp_path, marker):
    path = tmp_path / "training.pt"
    torch.save({"key": "k", "model": Evil(marker)}, path)
    Checkpoint(path, "k").restore(None)  # type: ignore[arg-type]  # nothing usable: the state is left alone


@pytest.mark.parametrize("form", ["pickle", "NaN", "unknown", "misshapen", "no facts"])
def test_weights_of_an_encoder_that_was_trained_here(project, run_cli, demo_data, marker, form):
    folder = Path("encoders/mel_cnn")
    folder.mkdir(parents=True)
    options = {"hidden_dim": 4, "channels": [2], "n_mels": 8}
    save_trained(folder, build_encoder("mel_cnn", options), options)
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        name = sorted(key for key in file.keys() if file.get_tensor(key).is_floating_point())[0]  # noqa: SIM118
    if form == "pickle":
        torch.save({"w": Evil(marker)}, path)
    elif form == "NaN":
        rewrite(path, lambda tensors: tensors[name].fill_(torch.nan))
    elif form == "no facts":
        save_file({"w": torch.zeros(1)}, path, metadata={"triad_fusion": "[]"})
    else:
        rewrite(path, lambda tensors: tensors.update({"w" if form == "unknown" else name: torch.zeros(1, 2, 3)}))
    run_cli("ingest", demo_data)
    output = one_line(run_cli("featurize", "--encoder", "mel_cnn", "--workers", "0", code=2).output)
    reasons = {"NaN": f"{name} holds NaN or infinity", "unknown": "does not fit", "misshapen": "does not fit"}
    assert reasons.get(form, "is not an encoder that cli train-encoder wrote") in output


def test_a_pickle_alone_as_clap_weights(project, run_cli, demo_data, marker, recwarn):
    Path("evil.pt").write_bytes(pickle.dumps(Evil(marker)))
    run_cli("ingest", demo_data)
    output = run_cli("featurize", "--encoder", "clap", "--option", "pretrained_model=evil.pt", code=2).output
    assert "evil.pt holds" in one_line(output) and "weights_only" not in output


@pytest.mark.parametrize("kind", ["bytes", "references", "opaque", "elsewhere"])
def test_hdf5_objects_are_not_imported(run, run_cli, marker, kind):
    evil = pickle.dumps(Evil(marker))
    with h5py.File("o.h5", "w") as file:
        file["ids"] = [b"s0"]
        if kind == "bytes":
            rows = file.create_dataset("x_embedding", (1,), dtype=h5py.vlen_dtype(np.uint8))
            rows[0] = np.frombuffer(evil, np.uint8)
        elif kind == "references":
            file["x_embedding"] = np.array([file["ids"].ref], dtype=h5py.ref_dtype)
        elif kind == "opaque":
            file["x_embedding"] = np.void(evil)
        else:
            file["x_embedding"] = h5py.ExternalLink("/etc/passwd", "/x")
    output = run_cli("import", "o.h5", "--column", "x_embedding=text/x", code=2).output
    assert output.startswith("Error: ") and "x_embedding" in output


@pytest.mark.parametrize("known", [True, False], ids=["a model transformers has", "another model"])
def test_a_checkpoint_that_asks_for_its_own_code(tmp_path, marker, known):
    folder = tmp_path / "checkpoint"
    family, settings, tokenizer = KINDS["deberta"]
    new_model(family, settings).save_pretrained(folder)
    new_tokenizer(tokenizer).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    if not known:
        config["model_type"] = "unheard-of"
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n", "utf-8")
    with pytest.raises(ConfigError, match=r"asks for code that the checkpoint ships \(auto_map\)") as caught:
        build_encoder("deberta", {"pretrained_model": str(folder)})
    assert "\n" not in str(caught.value)


def test_no_code_of_others_is_trusted_anywhere():
    sources = [path for name in ("stores", "featurize", "fusion") for path in sorted((ROOT / name).rglob("*.py"))]
    assert len(sources) > 100
    for path in [ROOT / "cli.py", *sources]:
        text = path.read_text("utf-8")
        for call in re.findall(
            r"trust_remote_code\s*=\s*(\w+)|weights_only\s*=\s*(\w+)|allow_pickle\s*=\s*(\w+)", text
        ):
            assert call in {("False", "", ""), ("", "True", ""), ("", "", "False")}, path
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, path
            assert "np.load(" not in line or "allow_pickle=False" in line, path
            assert not re.search(r"yaml\.(load|unsafe_load|full_load)\(|\beval\(\"|\bexec\(|shell=True", line), path
            # only what a process of ours was handed by another of ours, and what could be
            assert "pickle.loads(" not in line or path.name in ("cell_pool.py", "check.py"), path
