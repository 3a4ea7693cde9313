"""`cli train-encoder`: it learns from the training part alone, leaves a usable encoder, and `fit` knows what it saw."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import fusion.tracking
from featurize.augment import AudioAugmentation
from featurize.encoders import build_encoder
from featurize.errors import ConfigError
from featurize.segments import RawAudio, RawMidi, UnreadableInput
from featurize.trained import load_trained, save_trained
from fusion.raw_data import RawInputs
from stores import open_store
from stores.store import Part
from tests.notebook import Notebook

pytestmark = pytest.mark.usefixtures("unrendered")

SMALL = ["--option", "hidden_dim=16", "--option", "channels=[8, 8]", "--option", "n_mels=16"]
QUICK = ["--set", "encoder_training.epochs=2", "--workers", "0", *SMALL]


@pytest.fixture
def ingested(project, demo_data, run_cli):
    run_cli("ingest", demo_data)
    return project


def small_cnn():
    torch.manual_seed(0)
    return build_encoder("mel_cnn", {"hidden_dim": 16, "channels": [8, 8], "n_mels": 16})


class Tones:
    """One second of a sine for each row; row 2 has no audio, row 3 cannot be read, row 4 has no file."""

    def raw(self, row):
        if row == 2:
            return None
        if row == 4:
            raise UnreadableInput("no such file")
        if row == 3:
            return RawAudio(samples=b"abc", sample_rate_hz=22050)
        samples = np.sin(2 * np.pi * (220 + 20 * row) * np.arange(22050) / 22050).astype("<f4")
        return RawAudio(samples=samples.tobytes(), sample_rate_hz=22050)


def test_trained_encoders_featurize_like_any_other_and_fit_knows_what_they_saw(ingested, run_cli, monkeypatch):
    notebook = Notebook()
    monkeypatch.setattr(fusion.tracking, "open_trackers", lambda _: [notebook])
    output = run_cli("featurize", "--encoder", "mel_cnn", code=2).output
    assert "mel_cnn has no weights" in output and "cli train-encoder --encoder mel_cnn" in output
    run_cli("featurize", "--encoder", "mel_stats")

    output = run_cli("train-encoder", "--encoder", "mel_cnn", "--target", "mood", "--track", "mlflow", *QUICK).output
    for model in ("mel_cnn ", "audio/mel_stats, linear", "majority"):
        assert model in output
    folder = ingested / "encoders" / "mel_cnn"
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.yaml",
        "environment.json",
        "metrics.json",
        "history.parquet",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["val_loss"] for row in notebook.told["mel_cnn/default/seed 0"].values()] == metrics["val_loss"]
    score = metrics["targets"]["mood"]["models"]["mel_cnn"]["value"]
    assert notebook.values["mood/mel_cnn/val/accuracy"] == score and notebook.ended == ["finished"]
    store = open_store("features.zarr")
    with_audio = store["audio/mel_stats"].present
    for part, n in ((Part.TRAIN, metrics["n_train"]), (Part.VAL, metrics["n_val"])):
        assert n == with_audio[store.split("default").rows(part)].sum() > 0

    output = run_cli("train-encoder", "--encoder", "mel_cnn", *QUICK, code=2).output
    assert "exists" in output and "--overwrite" in output

    run_cli("featurize", "--encoder", "mel_cnn", "--audit", 5)
    record = open_store("features.zarr")["audio/mel_cnn"].record
    assert record["width"] == 16 and record["trained_on"]["labels"] is True
    assert record["weights"]["source"] == "cli train-encoder" and len(record["weights"]["sha256"]) == 64
    quick = ["--set", "training.epochs=2", "--seeds", 1, "--target", "mood", "--feature", "audio/mel_cnn"]
    run_cli("fit", *quick)
    run_cli("split", "--name", "other", "--seed", 5)
    output = run_cli("fit", "--split", "other", *quick, code=2).output
    assert "audio/mel_cnn was trained on split default and saw" in output and "--allow-leak" in output


def test_a_test_group_that_chose_the_epoch_is_a_leak_too(ingested, run_cli):
    """A split with the same training part, whose test part is the old validation part."""
    from stores.store import Split

    run_cli("train-encoder", "--encoder", "mel_cnn", "--target", "mood", *QUICK)
    run_cli("featurize", "--encoder", "mel_cnn")
    store = open_store("features.zarr")
    old = store.split("default")
    swapped = np.select([old.parts == Part.VAL, old.parts == Part.TEST], [Part.TEST, Part.VAL], old.parts)
    store.write_split(Split("swapped", swapped.astype(np.uint8), dict(old.facts)))
    output = run_cli("fit", "--split", "swapped", "--target", "mood", code=2).output
    assert "audio/mel_cnn was trained on split default and saw" in output


def test_several_targets_and_the_seed_decides(ingested, run_cli):
    targets = ["--target", "mood", "--target", "energy"]
    for name in ("a", "b"):
        run_cli("train-encoder", "--encoder", "mel_cnn", "--name", name, *targets, *QUICK)
    run_cli(
        "train-encoder", "--encoder", "mel_cnn", "--name", "c", "--set", "encoder_training.seed=1", *targets, *QUICK
    )
    sha = {
        name: load_trained(ingested / "encoders" / name, "mel_cnn", {}).weights()["sha256"] for name in ("a", "b", "c")
    }
    assert sha["a"] == sha["b"] != sha["c"]
    metrics = json.loads((ingested / "encoders" / "a" / "metrics.json").read_text())
    assert set(metrics["targets"]) == {"mood", "energy"}


def test_an_encoder_that_needs_no_training_says_so(ingested, run_cli):
    output = run_cli("train-encoder", "--encoder", "mel_stats", code=2).output
    assert "mel_stats needs no training" in output and "cli featurize --encoder mel_stats" in output


def test_raw_inputs_leave_out_what_cannot_be_read_and_augment_by_row_and_epoch():
    encoder = small_cnn()
    rows = torch.tensor([5, 0])
    batches = {}
    for workers in (0, 2):
        augmentation = AudioAugmentation(["noise", "pitch_shift"], 22050)
        with RawInputs(encoder, Tones(), np.arange(6), 8, augmentation=augmentation, workers=workers) as inputs:
            assert inputs.present[:, 0].tolist() == [True, True, False, False, False, True, False, False]
            assert inputs.usable(np.array([5, 3, 0])).tolist() == [5, 0]
            assert set(inputs.failures) == {3, 4} and inputs.failures[4] == "no such file"
            ((_, plain),) = inputs.batches([rows])
            ((_, first),) = inputs.batches([rows], augmentation_seed=1)
            (_, (_, alone)) = inputs.batches([rows[:1], rows[1:]], augmentation_seed=1)
            epochs = [dict(next(iter(inputs.batches([rows], augmentation_seed=seed)))[1]) for seed in range(2, 8)]
        batches[workers] = first
        expected = encoder.collate([encoder.prepare(Tones().raw(row)) for row in (5, 0)])
        assert all(torch.equal(plain[name], expected[name]) for name in expected)
        assert torch.equal(alone["samples"][0, : 22050 - 1], first["samples"][1, : 22050 - 1])  # its row's own seed
        assert any(not torch.equal(epoch["samples"], plain["samples"]) for epoch in epochs)
    assert all(torch.equal(batches[0][name], batches[2][name]) for name in batches[0])


class Blobs:
    """MIDI as bytes, as a media file has it; it counts how often it is asked."""

    def __init__(self, paths):
        self.contents = [path.read_bytes() for path in paths]
        self.asked = 0

    def raw(self, row):
        self.asked += 1
        return RawMidi(data=self.contents[row], end_seconds=3.0)


def test_blobs_of_midi_are_read_once(demo_data):
    source = Blobs(sorted((demo_data / "midi").iterdir()))
    rows = np.arange(len(source.contents))
    encoder = build_encoder("piano_roll", {"hidden_dim": 8, "channels": [4, 4]})
    with RawInputs(encoder, source, rows, len(rows)) as inputs:
        usable = torch.from_numpy(inputs.usable(rows))
        for _ in range(2):
            (items,) = inputs.items([usable])
        assert len(usable) > 2 and source.asked == len(rows)
        for row, item in zip(usable.tolist(), items, strict=True):
            np.testing.assert_array_equal(item, encoder.prepare(source.raw(row)))


def test_a_saved_encoder_is_the_same_and_refuses_what_it_is_not(tmp_path):
    encoder = small_cnn()
    encoder.trained_on = {"split": "s", "labels": True}
    options = {"hidden_dim": 16, "channels": [8, 8], "n_mels": 16}
    save_trained(tmp_path, encoder, options)
    again = load_trained(tmp_path, "mel_cnn", {"hidden_dim": 16})
    assert again.record.weights["sha256"] == encoder.record.weights["sha256"] and again.trained_on == encoder.trained_on
    with pytest.raises(ConfigError, match="trained with hidden_dim=16, this run asks for 32"):
        load_trained(tmp_path, "mel_cnn", {"hidden_dim": 32})
    with pytest.raises(ConfigError, match="holds a trained mel_cnn, not piano_roll"):
        load_trained(tmp_path, "piano_roll", {})
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ConfigError, match="not an encoder that cli train-encoder wrote"):
        load_trained(tmp_path, "mel_cnn", {})


SMALL_MIDI = ["--set", "encoder_training.epochs=6", "--workers", "0", "--option", "hidden_dim=16"]
SMALL_MIDI += ["--option", "n_layers=1", "--option", "n_heads=2"]


def test_midi_is_learned_without_labels_and_then_with_them(ingested, run_cli):
    """Guessing hidden notes gets better than their frequencies tell; its weights start the next training; and `fit`
    looks at all that either has seen."""
    more = ["encoder_training.lr=0.01", "encoder_training.batch_size=4", "encoder_training.epochs=20"]
    masked = ["train-encoder", "--encoder", "music_transformer", *SMALL_MIDI, "--objective", "masked_events"]
    output = run_cli(*masked, *(part for setting in more for part in ("--set", setting))).output
    metrics = json.loads((ingested / "encoders/music_transformer/metrics.json").read_text())
    assert "nats per hidden token" in output and metrics["targets"] == {}
    best = metrics["val_loss"][metrics["best_epoch"] - 1]
    assert best < metrics["val_loss_by_frequency"]

    start = ["--from", "encoders/music_transformer", "--name", "tuned", "--target", "mood", *SMALL_MIDI]
    run_cli("split", "--name", "other", "--seed", 5)
    run_cli("train-encoder", "--encoder", "music_transformer", *start, "--split", "other")
    before = load_trained(ingested / "encoders/music_transformer", "music_transformer", {})
    tuned = load_trained(ingested / "encoders/tuned", "music_transformer", {})
    assert before.trained_on["labels"] is False and tuned.trained_on["labels"] is True
    assert tuned.trained_on["before"] == before.trained_on
    assert tuned.weights()["sha256"] != before.weights()["sha256"]

    run_cli("featurize", "--encoder", "music_transformer", "--option", "pretrained_model=encoders/tuned")
    quick = ["--set", "training.epochs=1", "--seeds", 1, "--target", "mood", "--no-baselines"]
    output = run_cli("fit", "--split", "other", *quick).output
    assert "was trained on split default and saw" in output and "without labels" in output


def test_only_encoders_of_tokens_learn_without_labels(ingested, run_cli):
    output = run_cli("train-encoder", "--encoder", "mel_cnn", "--objective", "masked_events", *QUICK, code=2).output
    assert "mel_cnn cannot learn from masked events; event and music_transformer can" in output


def test_the_same_tokens_are_hidden_after_every_epoch():
    """So that epochs can be compared; in training they are drawn anew."""
    from featurize.encoders.event import EventBasedEncoder
    from fusion.masked_events import MaskedEventLosses
    from tests.test_event import any_notes

    torch.manual_seed(0)
    encoder = EventBasedEncoder(hidden_dim=16, n_layers=1, n_heads=2, dropout=0.0)
    model = MaskedEventLosses(encoder)
    batch = encoder.collate([encoder.prepare_score(any_notes(n, n)) for n in (5, 40)])
    present = torch.ones(2, 1, dtype=torch.bool)
    with torch.no_grad():
        (first,), (second,) = (model.eval()(batch, present)[0] for _ in range(2))
        (third,), (fourth,) = (model.train()(batch, present)[0] for _ in range(2))
    assert first.shape == (2, 1) and torch.equal(first, second) and not torch.equal(third, fourth)


def test_frequencies_are_counted_and_smoothed():
    """Two ids seen 3 and 1 times of a vocabulary of n: the second's probability is (1 + 1) / (4 + n)."""
    from featurize.encoders.event import EventBasedEncoder
    from fusion.masked_events import nats_by_frequency

    encoder = EventBasedEncoder(hidden_dim=4, n_layers=1, n_heads=1)
    (n_ids,) = encoder.vocabulary_sizes

    def batch(*ids):
        mask = torch.ones(1, len(ids), dtype=torch.bool)
        return {"ids": torch.tensor(ids)[None, :, None], "mask": mask, "n_windows": torch.tensor([1])}

    found = nats_by_frequency(encoder, [batch(7, 7, 9, 7)], [batch(9), batch(7)])
    assert found == pytest.approx(-(np.log(2 / (4 + n_ids)) + np.log(4 / (4 + n_ids))) / 2, rel=1e-6)
