"""What the loop can be told: batches in pieces, schedules, clipping, what to stop by, precision, and going on."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from featurize.config import TargetConfig
from featurize.errors import ConfigError, UnknownName
from fusion import balance
from fusion import checkpoint as checkpoint_module
from fusion.balance import modulation
from fusion.checkpoint import Checkpoint
from fusion.config import FusionConfig, SlotTrainingConfig, TrainingConfig
from fusion.data import SegmentData
from fusion.early_stopping import StoppingRule
from fusion.optimization import SlotGradients, _factor, dominating_slot, make_optimizer
from fusion.targets import Target
from fusion.train import Trained, train, train_model
from stores.errors import TriadError
from tests.fusion_contract import make_data, make_targets
from tests.test_train import TRAIN, VAL, losses, same_weights

N = 360
STILL = FusionConfig(hidden_dim=8, dropout=0.0)  # nothing that is drawn anew for each piece
TRAINING = TrainingConfig(
    precision="fp32",
    epochs=5,
    patience=5,
    batch_size=64,
    lr=1e-2,
    weight_decay=0.01,
    slot_weight_decay=None,
    modality_dropout=0.3,
)


def with_every_kind_of_target() -> tuple[SegmentData, list[Target]]:
    """Unequal classes, and labels that lack in some rows: every mean divides by something else."""
    rng = np.random.default_rng(0)
    vectors = {slot: rng.normal(size=(N, 4)) for slot in ("text", "audio")}
    score = vectors["text"][:, 0] + rng.normal(size=N)
    mood = np.select([score > 1, score > -1], ["high", "middle"], "low")
    mood[rng.random(N) < 0.3] = ""
    energy = np.where(rng.random(N) < 0.5, np.nan, score)
    tags = np.where(score > 0, "a;b", np.where(rng.random(N) < 0.2, "", "b"))
    targets = make_targets(
        {"mood": mood.tolist(), "energy": energy, "tags": tags.tolist(), "p": np.abs(score), "q": np.abs(score - 1)},
        TargetConfig(name="mood", class_weights="balanced", label_smoothing=0.1, loss_weight=2.0),
        TargetConfig(name="energy", kind="regression"),
        TargetConfig(name="tags", kind="multi_label"),
        TargetConfig(name="shares", columns=["p", "q"], kind="soft_distribution"),
    )
    return make_data(vectors, rng.random((N, 2)) < 0.8), targets


def run(training: TrainingConfig, fusion: FusionConfig = STILL, checkpoint: Checkpoint | None = None) -> Trained:
    data, targets = with_every_kind_of_target()
    return train(data, targets, TRAIN, VAL, fusion, training, seed=0, checkpoint=checkpoint)


@pytest.mark.parametrize("piece", [7, 32, 64, 1000])
def test_a_batch_in_pieces_teaches_the_same(piece: int) -> None:
    whole, pieces = run(TRAINING), run(TRAINING.model_copy(update={"micro_batch_size": piece}))
    np.testing.assert_allclose(losses(pieces), losses(whole), rtol=1e-4)
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(pieces.model.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_the_schedule_rises_and_falls() -> None:
    cosine = [_factor(step, n_steps=100, warmup=0.1, schedule="cosine") for step in range(101)]
    assert cosine[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert cosine[10] == 1 and cosine[55] == pytest.approx(0.5) and cosine[100] == pytest.approx(0)
    assert all(after < before for before, after in pairwise(cosine[10:]))
    assert {_factor(step, n_steps=100, warmup=0.1, schedule="constant") for step in range(9, 100)} == {1.0}
    assert _factor(0, n_steps=1, warmup=0.0, schedule="cosine") == 1


def test_a_slot_may_have_its_own_rate_and_schedule() -> None:
    """With next to no rate, the slot's projection stays where it was; the others learn."""
    start = run(TRAINING.model_copy(update={"lr": 1e-12})).model
    frozen = SlotTrainingConfig(lr=1e-12, weight_decay=0.0, schedule="constant", warmup=0.5)
    found = run(TRAINING.model_copy(update={"slots": {"audio": frozen}})).model
    before, after = start.state_dict(), found.state_dict()
    moved = {name: float((after[name] - before[name]).abs().max()) for name in after if "projections" in name}
    assert len(moved) == 4
    assert all((change > 1e-3) == ("slot_text" in name) for name, change in moved.items()), moved

    training = TRAINING.model_copy(update={"slots": {"audio": SlotTrainingConfig(lr=0.5, warmup=0.5)}})
    optimizer, schedule = make_optimizer(found, training, n_steps=10)
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    shared, text, audio = np.array(rates).T
    assert shared[0] == TRAINING.lr and (np.diff(shared) < 0).all() and (text == shared).all()
    assert audio[:5] == pytest.approx(0.5 * np.arange(1, 6) / 5) and audio[5] == 0.5 and (np.diff(audio[5:]) < 0).all()
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(found.parameters()))


def test_slots_own_weights_may_decay_by_themselves() -> None:
    model = run(TRAINING.model_copy(update={"epochs": 1})).model
    training = TRAINING.model_copy(
        update={"slot_weight_decay": 3.0, "slots": {"audio": SlotTrainingConfig(weight_decay=0.5)}}
    )
    groups = make_optimizer(model, training, n_steps=10)[0].param_groups
    decay_of = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert len(decay_of) == len(list(model.parameters()))
    for name, weight in model.named_parameters():
        expected = 3.0 if "slot_text" in name else 0.5 if "slot_audio" in name else TRAINING.weight_decay
        assert decay_of[id(weight)] == expected, name


def test_an_unknown_slot_is_named() -> None:
    with pytest.raises(ConfigError, match="training.slots names 'video'; this model has text, audio"):
        run(TRAINING.model_copy(update={"slots": {"video": SlotTrainingConfig(lr=1.0)}}))


class TwoSlots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        for parameter, gradient in ((self.a, [3.0, 4.0]), (self.b, [0.3, 0.4]), (self.shared, [0.0, 12.0])):
            parameter.grad = torch.tensor(gradient)

    def slot_parameters(self) -> dict[str, list[nn.Parameter]]:
        return {"a": [self.a], "b": [self.b]}

    def norms(self) -> list[float]:
        return [float(parameter.grad.norm()) for parameter in (self.a, self.b, self.shared)]


def test_gradients_are_clipped_together_or_slot_by_slot() -> None:
    together, apart, own = TwoSlots(), TwoSlots(), TwoSlots()
    norms = SlotGradients(together, TrainingConfig(clip=1.0)).clip()
    assert {slot: float(norm) for slot, norm in norms.items()} == pytest.approx({"a": 5.0, "b": 0.5})
    total = math.sqrt(25 + 0.25 + 144)
    assert together.norms() == pytest.approx([5 / total, 0.5 / total, 12 / total], rel=1e-4)
    SlotGradients(apart, TrainingConfig(clip=1.0, clip_per_slot=True)).clip()
    assert apart.norms() == pytest.approx([1.0, 0.5, 1.0], rel=1e-4)
    SlotGradients(own, TrainingConfig(clip=100.0, slots={"a": SlotTrainingConfig(clip=2.0)})).clip()
    assert own.norms() == pytest.approx([2.0, 0.5, 12.0], rel=1e-4)


@pytest.mark.parametrize("piece", [7, 64])
def test_auxiliary_losses_of_pieces_add_up_too(piece: int) -> None:
    training = TRAINING.model_copy(update={"auxiliary_loss": 0.5, "gradient_modulation": 0.3})
    whole, pieces = run(training), run(training.model_copy(update={"micro_batch_size": piece}))
    np.testing.assert_allclose(losses(pieces), losses(whole), rtol=1e-4)
    assert losses(whole) != losses(run(TRAINING)) and not same_weights(whole, run(TRAINING))
    assert whole.model.state_dict().keys() == run(TRAINING).model.state_dict().keys()  # the heads are gone


def test_a_slot_that_is_surer_than_the_others_learns_more_slowly() -> None:
    """Scores 0.8, 0.2 and 0.4: the first is 8/3 of the others' mean."""
    sure, all_seen = torch.tensor([0.8, 0.2, 0.4]).log().neg(), torch.ones(3, dtype=torch.bool)
    assert modulation(sure, all_seen, 0.3).tolist() == pytest.approx([1 - math.tanh(0.3 * 8 / 3), 1.0, 1.0])
    assert modulation(sure, all_seen, 0.0).tolist() == [1.0, 1.0, 1.0]
    some_seen = torch.tensor([True, False, True])  # 0.8 beside 0.4 alone
    assert modulation(sure, some_seen, 0.3).tolist() == pytest.approx([1 - math.tanh(0.3 * 2), 1.0, 1.0])
    for seen in ([True, False, False], [False, False, False]):
        assert modulation(sure, torch.tensor(seen), 0.3).tolist() == [1.0, 1.0, 1.0]
    assert modulation(torch.tensor([0.1, 0.1]), all_seen[:2], 0.3).tolist() == [1.0, 1.0]


def test_modulation_changes_gradients_and_its_heads_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    training = TRAINING.model_copy(update={"gradient_modulation": 0.3})
    monkeypatch.setattr(balance, "modulation", lambda losses, *_: torch.ones_like(losses))
    assert same_weights(run(training), run(TRAINING))
    monkeypatch.setattr(balance, "modulation", lambda *_: torch.tensor([0.0, 1.0]))
    start = run(TRAINING.model_copy(update={"lr": 1e-12, "epochs": 1})).model.state_dict()
    moved = {name: float((w - start[name]).abs().max()) for name, w in run(training).model.state_dict().items()}
    text, audio = (
        max(change for name, change in moved.items() if f"slot_{slot}.weight" in name) for slot in ("text", "audio")
    )
    assert text < 0.02 * audio  # weight decay alone moves it


def test_the_history_tells_how_hard_each_slot_pulls() -> None:
    history = run(TRAINING).history
    assert all(epoch["gradient_norm.text"] > 0 and epoch["gradient_norm.audio"] > 0 for epoch in history)


def test_a_slot_that_dominates_is_found() -> None:
    history = [{"gradient_norm.a": 10.0, "gradient_norm.b": 3.0}, {"gradient_norm.a": 10.0, "gradient_norm.b": 3.0}]
    slot, share = dominating_slot(history, ["a", "b"])
    assert slot == "a" and share == pytest.approx(200 / 218)
    assert dominating_slot([{"gradient_norm.a": 10.0, "gradient_norm.b": 4.0}], ["a", "b"]) is None
    assert dominating_slot([{"gradient_norm.a": 10.0}], ["a"]) is None
    assert dominating_slot([{"gradient_norm.a": 0.0, "gradient_norm.b": 0.0}], ["a", "b"]) is None


def test_it_stops_by_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([0.5, 0.3, 0.4, 0.35, 0.6, 0.1])
    monkeypatch.setattr(StoppingRule, "badness", lambda *_: next(said))
    trained = run(TRAINING.model_copy(update={"epochs": 6, "patience": 3}))
    assert trained.best_epoch == 2 and len(trained.history) == 5


def test_what_only_gets_worse_stays_as_it_came() -> None:
    """Epoch 0 is the model before its first step, and a candidate for the best."""
    data, targets = with_every_kind_of_target()
    good = run(TRAINING.model_copy(update={"epochs": 20}))
    ruinous = TRAINING.model_copy(update={"lr": 10.0, "epochs": 3, "patience": 9})
    weights = {name: weight.clone() for name, weight in good.model.state_dict().items()}
    again = train_model(good.model, data, targets, TRAIN, VAL, ruinous, 0, first_epoch=0)
    assert [epoch["epoch"] for epoch in again.history] == [0, 1, 2, 3] and again.best_epoch == 0
    assert again.history[0]["train_loss"] is None and again.history[0]["val_loss"] < again.history[1]["val_loss"]
    assert all(torch.equal(weight, weights[name]) for name, weight in again.model.state_dict().items())
    assert again.history[0]["val_loss"] == pytest.approx(good.history[good.best_epoch - 1]["val_loss"], rel=1e-5)

    impatient = ruinous.model_copy(update={"patience": 1})
    soon = train_model(good.model, data, targets, TRAIN, VAL, impatient, 0, first_epoch=0)
    assert [epoch["epoch"] for epoch in soon.history] == [0, 1]


def test_a_metric_is_read_in_its_own_direction() -> None:
    _, targets = with_every_kind_of_target()
    rows = np.flatnonzero(targets[0].known.numpy())[:40]
    truth = targets[0].truth[rows]
    right = torch.nn.functional.one_hot(truth, 3).float() * 9
    everything = [right, torch.zeros(40, 1), torch.zeros(40, 2), torch.zeros(40, 2)]
    assert StoppingRule("loss", targets).badness(1.5, everything, rows) == 1.5
    assert StoppingRule("accuracy", targets).badness(1.5, everything, rows) == -1
    assert StoppingRule("mood/macro_f1", targets).badness(1.5, everything, rows) == -1
    assert 0 < StoppingRule("mood/log_loss", targets).badness(1.5, everything, rows) < 0.01
    known = rows[targets[1].known.numpy()[rows]]
    rmse = StoppingRule("energy/rmse", targets).badness(1.5, everything, rows)
    assert rmse == pytest.approx(float(targets[1].truth[known].square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"), [("f2", "metric for a categorical target"), ("moud/macro_f1", "target to stop by 'moud'")]
)
def test_what_cannot_be_stopped_by_is_named(text: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        run(TRAINING.model_copy(update={"early_stopping": text}))


def test_a_metric_that_is_undefined_says_so() -> None:
    data = make_data({"text": np.ones((N, 2))}, np.ones((N, 1), bool))
    targets = make_targets({"x": np.where(np.arange(N) < 200, np.arange(N), 7.0)})
    with pytest.raises(TriadError, match="r2 is not defined on the validation part"):
        train(data, targets, TRAIN, VAL, STILL, TRAINING.model_copy(update={"early_stopping": "r2"}), 0)


def test_bfloat16_learns_as_much() -> None:
    plain, half = run(TRAINING), run(TRAINING.model_copy(update={"precision": "bf16"}))
    assert all(weight.dtype == torch.float32 for weight in half.model.parameters())
    assert losses(half) != losses(plain)
    np.testing.assert_allclose(losses(half), losses(plain), rtol=0.03)


class Killed(Exception):
    pass


def dies_after_saving(n: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every epoch is saved, and `Killed` is raised behind the `n`th time. Returns the epochs as they are saved."""
    save, saved = Checkpoint.save, []

    def save_and_die(self, state, **options):
        save(self, state, **options)
        saved.append(len(state.history))
        if len(saved) == n:
            raise Killed

    monkeypatch.setattr(checkpoint_module, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(Checkpoint, "save", save_and_die)
    return saved


@pytest.mark.parametrize("after", [1, 3, 5])
def test_an_interrupted_training_ends_as_if_nothing_had_happened(after, tmp_path, monkeypatch) -> None:
    fusion = STILL.model_copy(update={"dropout": 0.3})
    expected = run(TRAINING, fusion)
    saved = dies_after_saving(after, monkeypatch)
    file = tmp_path / "a" / "b.pt"
    with pytest.raises(Killed):
        run(TRAINING, fusion, Checkpoint(file, "key"))
    found = run(TRAINING, fusion, Checkpoint(file, "key"))
    assert saved == [*range(1, after + 1), *range(after + 1, 6), 5]
    assert same_weights(found, expected) and losses(found) == losses(expected)
    assert found.best_epoch == expected.best_epoch and [path.name for path in file.parent.iterdir()] == ["b.pt"]

    again = run(TRAINING, fusion, Checkpoint(file, "key"))  # it is finished: not one epoch is repeated
    assert again.history == found.history and same_weights(again, found)


def test_a_checkpoint_of_something_else_is_not_used(tmp_path) -> None:
    expected = run(TRAINING)
    file = tmp_path / "a.pt"
    run(TRAINING.model_copy(update={"lr": 0.1}), checkpoint=Checkpoint(file, "other"))
    assert same_weights(run(TRAINING, checkpoint=Checkpoint(file, "key")), expected)
    file.write_bytes(file.read_bytes()[:1000])
    assert same_weights(run(TRAINING, checkpoint=Checkpoint(file, "key")), expected)
