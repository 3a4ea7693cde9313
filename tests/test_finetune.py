"""`cli finetune`: it begins where the run ended, never ends worse on validation, and its encoders are of use."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from contextlib import ExitStack, chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

import fusion.tracking
from featurize.project import StoreRows, open_source_of
from featurize.trained import find_tuned, load_trained
from fusion import checkpoint
from fusion.config import FinetuningConfig, load_config
from fusion.end_to_end import EndToEnd, EndToEndData, without_vectors
from fusion.evaluate import patterns
from fusion.finetuning import finetune
from fusion.identity import rounding_effect
from fusion.live_slots import live_slots
from fusion.load_run import load_features, load_run
from fusion.raw_data import RawInputs
from fusion.train import infer
from stores import open_store
from tests.finetuning_project import make_project
from tests.notebook import Notebook

pytestmark = pytest.mark.usefixtures("unrendered")

ROOT = Path(__file__).parents[1]
QUICK = ("--workers", "0")
KILLS = 2
EPOCHS = 3


@pytest.fixture(scope="module")
def fitted(demo_data, tmp_path_factory) -> Path:
    """Read only."""
    return make_project(tmp_path_factory.mktemp("fitted") / "project", demo_data)


@pytest.fixture
def project(fitted, tmp_path, monkeypatch) -> Path:
    """A copy of it, and we stand in it."""
    folder = shutil.copytree(fitted, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def metrics_of(run: str) -> dict:
    return json.loads(Path("runs", run, "metrics.json").read_text("utf-8"))


class EndToEndRun:
    """A run's model on live encoders, and the same segments in the store."""

    def __init__(self, name: str, settings: FinetuningConfig | None = None):
        self.run, self.store = load_run(Path(name)), open_store("features.zarr")
        self.segments = load_features(self.run, self.store)
        source = open_source_of(self.store, Path("features.zarr"), load_config())
        settings = settings or FinetuningConfig()
        self.live = live_slots(self.run, self.store, settings, {}, [Path("encoders")], [], "cpu")
        rows = np.arange(self.store.n_segments)
        self.inputs = {}
        for slot, one in self.live.items():
            there = rows[self.segments.present[:, self.run.slots.index(slot)].numpy()]
            raws = StoreRows(self.store, source, one.encoder.modality)
            self.inputs[slot] = RawInputs(one.encoder, raws, there, len(rows))
        self.data = EndToEndData(without_vectors(self.segments, list(self.live)), self.inputs)
        encoders = {slot: one.encoder for slot, one in self.live.items()}
        frames = {slot: 4 for slot in self.live if slot in self.run.frame_slots}
        self.model = EndToEnd(self.run.model, encoders, frames, settings.precision)

    def largest_difference(self, rows: np.ndarray, present: torch.Tensor | None = None) -> float:
        live, _ = infer(self.model, self.data, rows, present)
        stored = self.run.logits(self.segments, rows, present)
        return max(float((a - b).abs().max()) for a, b in zip(live, stored, strict=True))


@pytest.fixture
def end_to_end(project):
    with ExitStack() as exits:

        def open_run(name: str, settings: FinetuningConfig | None = None) -> EndToEndRun:
            found = EndToEndRun(name, settings)
            for inputs in found.inputs.values():
                exits.enter_context(inputs)
            return found

        yield open_run


def test_a_dry_run_says_what_would_learn_and_changes_nothing(project, run_cli):
    def every_byte():
        return {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}

    before = every_byte()
    arguments = ("finetune", "--from", "early", "--unfreeze", "audio,text", *QUICK, "--dry-run")
    plan = json.loads(run_cli(*arguments, "--json").output)
    assert every_byte() == before
    assert plan["run"] == "early-tuned" and plan["epochs"] == 2 and list(plan["learning"]) == ["text", "audio"]
    assert min(plan["learning"].values()) > 0 and plan["seconds_per_epoch"] > 0
    assert plan["seconds"] > plan["epochs"] * plan["seconds_per_epoch"] + plan["read_seconds"]
    assert "weights of audio/mel_cnn would learn" in run_cli(*arguments).output
    assert "exists" in run_cli(*arguments, "--name", "late", code=2).output


@pytest.mark.parametrize("name", ["late", "early"])
@pytest.mark.parametrize("unfreeze", [None, ["audio"]], ids=["all slots live", "audio live"])
def test_frozen_end_to_end_logits_are_those_of_the_store(end_to_end, name, unfreeze):
    """Identity 2, with whatever is hidden; `early` reads frames."""
    both = end_to_end(name, FinetuningConfig(unfreeze=unfreeze))
    assert list(both.live) == (unfreeze or ["text", "audio", "midi"])
    rows = np.arange(both.store.n_segments)
    precisions = dict.fromkeys(both.live, "fp32")
    allowed = rounding_effect(both.run, both.segments, rows, precisions)
    assert 0 < both.largest_difference(rows) < allowed
    for pattern in patterns(both.run.slots):
        hidden = both.segments.present.clone()
        hidden[:, [index for index, slot in enumerate(both.run.slots) if slot not in pattern]] = False
        shown = replace(both.segments, present=hidden)
        assert both.largest_difference(rows, hidden) <= rounding_effect(both.run, shown, rows, precisions)


def test_what_the_store_holds_of_live_slots_takes_no_memory(project):
    segments = load_features(load_run(Path("early")), open_store("features.zarr"))
    without = without_vectors(segments, ["audio"])
    for before, after in ((segments.vectors, without.vectors), (segments.frames, without.frames)):
        assert after["audio"].shape == before["audio"].shape and after["audio"].untyped_storage().nbytes() <= 8
        assert after["text"] is before["text"]


def test_an_encoder_runs_for_the_rows_that_are_shown_and_no_other(end_to_end, monkeypatch):
    both = end_to_end("late")
    encoder = both.live["audio"].encoder
    seen = []
    collate = encoder.collate
    monkeypatch.setattr(encoder, "collate", lambda items: seen.append(len(items)) or collate(items))
    rows = torch.arange(12)
    ((_, inputs),) = both.data.batches([rows])
    present = both.data.present[rows]
    both.model(inputs, present)
    assert seen == [int(present[:, 1].sum())] and 0 < seen[0] < 12
    hidden = present.clone()
    hidden[:6, 1] = False
    both.model(inputs, hidden)
    assert seen[1] == int(hidden[:, 1].sum()) < seen[0]
    hidden[:, 1] = False
    logits, _ = both.model(inputs, hidden)
    assert len(seen) == 2 and all(out.isfinite().all() for out in logits)


def test_from_a_run_to_tuned_encoders_and_back_into_the_store(project, demo_data, run_cli, monkeypatch):
    notebook = Notebook()
    monkeypatch.setattr(fusion.tracking, "open_trackers", lambda _: [notebook])
    output = run_cli("finetune", "--from", "late", *QUICK, "--track", "tensorboard").output
    assert "Encoders and store agree" in output and "before fine-tuning" in output
    folder = Path("runs/late-tuned")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "encoders",
        "environment.json",
        "history.parquet",
        "metrics.json",
        "model.safetensors",
        "predictions.parquet",
        "report.html",
    ]
    metrics, history = metrics_of("late-tuned"), pq.read_table(folder / "history.parquet").to_pylist()
    assert [epoch["epoch"] for epoch in history] == [0, 1, 2] and history[0]["train_loss"] is None
    (told,) = notebook.told.values()
    assert {step: row["val_loss"] for step, row in told.items()} == {row["epoch"]: row["val_loss"] for row in history}
    assert notebook.ended == ["finished"] and notebook.files["metrics.json"] == (folder / "metrics.json").read_bytes()
    tuning = metrics["finetuning"]
    assert tuning["val_loss"]["before"] == history[0]["val_loss"]
    assert tuning["val_loss"]["after"] == min(epoch["val_loss"] for epoch in history)
    assert tuning["best_epoch"] == np.argmin([epoch["val_loss"] for epoch in history])
    assert 0 < tuning["identity"]["largest_difference"] < tuning["identity"]["rounding"]
    for target in metrics["targets"].values():
        assert {"train", "val", "test"} <= set(target["splits"])
        assert {"difference", "ci95", "better"} == set(target["comparisons"]["before fine-tuning"])
    before = metrics_of("late")["targets"]["mood"]["splits"]["test"]["value"]
    assert metrics["targets"]["mood"]["baselines"]["before fine-tuning"]["test"]["value"] == pytest.approx(before)
    assert "before fine-tuning" in (folder / "report.html").read_text("utf-8")
    run_cli("report", "late-tuned")

    assert "cli featurize --encoder late-tuned:text" in run_cli("evaluate", "late-tuned", code=2).output
    for slot, name in (("text", "deberta"), ("audio", "mel_cnn"), ("midi", "event")):
        feature = f"{slot}/{name}-late-tuned"
        assert feature in run_cli("featurize", "--encoder", f"late-tuned:{slot}", *QUICK, "--audit", 5).output
        record = open_store("features.zarr")[feature].record
        assert record == json.loads((folder / "encoders" / slot / "record.json").read_text("utf-8"))
        assert record["trained_on"]["labels"] and record["trained_on"]["split"] == "default"
        assert record["weights"]["source"] == "cli finetune"
        assert ("before" in record["trained_on"]) == (slot != "text")
        assert find_tuned(record, Path("runs")) == folder / "encoders" / slot
        begun_with = {**record, "trained_on": None}  # of the same weights, where no epoch was better
        assert find_tuned(begun_with, Path("runs")) is None

    run = load_run(Path("late-tuned"))
    store = open_store("features.zarr")
    predicted = pq.read_table(folder / "predictions.parquet").to_pydict()
    rows = np.array([store.ids.tolist().index(segment_id) for segment_id in predicted["segment_id"]])
    energy = run.predict(load_features(run, store), rows)[1][:, 0]
    np.testing.assert_allclose(energy, predicted["energy.predicted"], atol=0.01)
    assert "those that have these slots" in run_cli("evaluate", "late-tuned").output

    tables = []
    for data in ("features.zarr", demo_data):  # raw segments pass through the tuned encoders
        run_cli("predict", "late-tuned", data, "--out", "of.parquet", "--overwrite", "--workers", 0)
        tables.append(pq.read_table("of.parquet").to_pydict())
    np.testing.assert_allclose(tables[1]["energy.predicted"], tables[0]["energy.predicted"], atol=0.01)

    run_cli("split", "--name", "other", "--seed", 5)
    fit = ["fit", "--split", "other", "--slots", "text", "--feature", "text/deberta-late-tuned", "--no-baselines"]
    output = run_cli(*fit, code=2).output
    assert "text/deberta-late-tuned was trained on split default and saw" in output and "--allow-leak" in output

    output = run_cli("finetune", "--from", "late-tuned", "--name", "again", "--epochs", 1, *QUICK).output
    assert "Encoders and store agree" in output  # tuned encoders are found with the run that tuned them
    assert metrics_of("again")["slots"]["text"] == "deberta-again"


def test_low_rank_updates_leave_a_plain_encoder(project, run_cli):
    pytest.importorskip("peft")
    output = run_cli("finetune", "--from", "late", "--unfreeze", "text", "--lora", 2, "--name", "low", *QUICK).output
    assert "text: deberta, updates of rank 2" in output
    assert metrics_of("low")["slots"] == {"text": "deberta-low", "audio": "mel_cnn", "midi": "event"}
    run_cli("featurize", "--encoder", "low:text", "--as", "plain", "--audit", 5, *QUICK)
    Path("small-bert").rename("moved")
    assert "small-bert" in run_cli("featurize", "--encoder", "low:text", "--as", "plain", *QUICK, code=2).output
    moved = ("--option", "pretrained_model=moved")
    output = run_cli("featurize", "--encoder", "low:text", "--as", "plain", *moved, *QUICK).output
    assert "0 encoded, 0 copied from equal inputs, 48 unchanged" in output


def test_what_cannot_be_helps_on(project, run_cli):
    for arguments, message in (
        (["--from", "nope"], "no run 'nope'"),
        (["--from", "late", "--unfreeze", "video"], "--unfreeze names slot 'video'; run late has text, audio, midi"),
        (["--from", "late", "--lora", "4"], "mel_cnn has no attention that LoRA could update"),
        (["--from", "late", "--last-layers", "9"], "last_layers is 9, but encoder deberta has 2 blocks"),
        (["--from", "late", "--encoder", "text=nowhere"], "there is nothing at nowhere"),
        (["--from", "late", "--set", "finetuning.last_layers=0"], "expected at least 1"),
        (["--from", "late", "--set", "finetuning.slots={video: {lr: 1}}"], "finetuning.slots names 'video'"),
    ):
        output = run_cli("finetune", *arguments, *QUICK, code=2).output
        assert message in output, output
        assert len(output[output.index("Error:") :].strip().splitlines()) <= 2, output
    assert sorted(path.parent.name for path in Path("runs").glob("*/metrics.json")) == ["early", "late"]


def test_what_has_changed_since_is_found_before_anything_is_trained(project, demo_data, tmp_path, run_cli):
    data = shutil.copytree(demo_data, tmp_path / "data")
    for path in data.glob("audio/*"):
        samples, sample_rate_hz = soundfile.read(path)
        soundfile.write(path, samples[::-1] / 2, sample_rate_hz)
    arguments = ("finetune", "--from", "late", "--set", f"data.path={data}", *QUICK)
    output = run_cli(*arguments, code=2).output
    assert "The encoders do not give what the store holds" in output and "most by audio/mel_cnn" in output
    for path in data.glob("audio/*"):
        path.unlink()
    output = run_cli(*arguments, code=2).output
    assert "whose audio cannot be read any more" in output and "data.path" in output
    assert not Path("runs/late-tuned").exists()


def test_a_store_with_another_split_is_refused(project, run_cli):
    run_cli("split", "--replace", "--seed", 7)
    assert (
        "does not have split default as run late was trained on it"
        in run_cli("finetune", "--from", "late", *QUICK, code=2).output
    )


def test_encoders_without_weights_are_read_from_the_store(project, run_cli):
    run_cli("featurize", "--encoder", "lsa", *QUICK)
    run_cli("featurize", "--encoder", "midi_stats", *QUICK)
    features = ("--feature", "text/lsa", "--feature", "midi/midi_stats", "--feature", "audio/mel_cnn")
    run_cli("fit", "--fusion", "gated", "--no-baselines", *features)
    run_cli("finetune", "--from", "gated", "--epochs", 1, *QUICK)
    metrics = metrics_of("gated-tuned")
    assert list(metrics["finetuning"]["slots"]) == ["audio"]
    assert metrics["slots"] == {"text": "lsa", "audio": "mel_cnn-gated-tuned", "midi": "midi_stats"}
    assert "weight.audio" in pq.read_schema(Path("runs/gated-tuned/predictions.parquet")).names
    output = run_cli("finetune", "--from", "gated", "--unfreeze", "text", code=2).output
    assert "text/lsa has no weights that can learn" in output


def test_the_example_configuration_is_one():
    settings = load_config(ROOT / "examples" / "finetune.yaml").finetuning
    assert settings.gradient_checkpointing and settings.slots["text"].lr == 1e-5


def test_a_trained_encoder_is_as_it_was_saved(project):
    assert load_trained(Path("encoders/mel_cnn"), "mel_cnn", {}).loaded_from == {"source": "cli train-encoder"}


# Killed at any moment


def finetune_in_place(folder: Path) -> None:
    """In that folder; every epoch is saved."""
    with chdir(folder):
        settings = {"epochs": EPOCHS, "patience": 9, "unfreeze": "[audio]"}
        config = load_config(overrides=[f"finetuning.{key}={value}" for key, value in settings.items()])
        store = open_store("features.zarr")
        source = open_source_of(store, Path("features.zarr"), config)
        checkpoint.SAVE_EVERY_SECONDS = 0.0
        finetune(store, source, load_run(Path("late")), config, name="tuned")


def test_a_killed_fine_tuning_goes_on_and_ends_the_same(fitted, tmp_path, monkeypatch):
    whole, killed = (shutil.copytree(fitted, tmp_path / name) for name in ("whole", "killed"))
    monkeypatch.setattr(checkpoint, "SAVE_EVERY_SECONDS", checkpoint.SAVE_EVERY_SECONDS)  # restored afterwards
    finetune_in_place(whole)

    file = killed / "runs" / ".tuned.partial" / "checkpoints" / "model.pt"

    def saved_at() -> int:
        return file.stat().st_mtime_ns if file.is_file() else 0

    context, moments = multiprocessing.get_context("forkserver"), random.Random(0)
    died = 0
    for _ in range(KILLS):
        before = saved_at()
        process = context.Process(target=finetune_in_place, args=(killed,))
        process.start()
        while process.is_alive() and saved_at() == before:  # until it has got further than the one before it
            time.sleep(0.002)
        process.join(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        died += process.exitcode == -signal.SIGKILL
    assert died > 0
    if not (killed / "runs/tuned").exists():
        finetune_in_place(killed)

    histories = [pq.read_table(folder / "runs/tuned/history.parquet").to_pydict() for folder in (whole, killed)]
    assert histories[0]["epoch"] == histories[1]["epoch"] == list(range(EPOCHS + 1))
    for column in ("train_loss", "val_loss", "gradient_norm.audio"):
        expected, found = (np.array(history[column], dtype=float) for history in histories)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    for file in ("model.safetensors", "encoders/audio/model.safetensors"):
        expected, found = (load_file(folder / "runs" / "tuned" / file) for folder in (whole, killed))
        for name, weights in expected.items():
            np.testing.assert_allclose(found[name], weights, rtol=1e-4, atol=1e-5, err_msg=name)
