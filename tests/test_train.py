"""The training loop on data so small that every claim can be checked."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from featurize.config import TargetConfig
from featurize.errors import ConfigError, UnknownName
from fusion.baselines import concatenation, linear
from fusion.config import FusionConfig, TrainingConfig
from fusion.data import SegmentData
from fusion.model import Standardize
from fusion.modules import FUSIONS
from fusion.targets import Target
from fusion.train import Trained, infer, total_loss, train
from stores.errors import TriadError
from tests.fusion_contract import make_data, make_targets

N = 360
TRAIN, VAL, TEST = np.arange(0, 200), np.arange(200, 280), np.arange(280, N)
FUSION = FusionConfig(strategy="late", hidden_dim=16, dropout=0.1)
SHORT = TrainingConfig(
    precision="fp32", epochs=4, patience=4, batch_size=64, lr=3e-3, weight_decay=0.01, modality_dropout=0.2
)
LONG = TrainingConfig(
    precision="fp32", epochs=80, patience=25, batch_size=50, lr=1e-2, weight_decay=0.01, modality_dropout=0.0
)
EACH_FUSION = pytest.mark.parametrize("strategy", list(FUSIONS))


@pytest.fixture(autouse=True)
def one_thread():
    """On tensors this small a second thread only waits, and for long where other tests run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def additive_data(seed: int = 0) -> tuple[SegmentData, list[Target]]:
    """Three slots, each often missing; the label is the sign of what they add up to, and lacks in every eighth row."""
    rng = np.random.default_rng(seed)
    vectors = {slot: rng.normal(size=(N, width)) for slot, width in {"text": 6, "audio": 4, "my.concept": 3}.items()}
    present = rng.random((N, 3)) < 0.7
    evidence = sum(present[:, i] * v[:, :2].sum(axis=1) for i, v in enumerate(vectors.values()))
    mood = np.where(evidence > 0, "up", "down")
    mood[::8] = ""
    return make_data(vectors, present), make_targets(
        {"mood": mood.tolist(), "energy": evidence}, TargetConfig(name="mood")
    )


def xor_data(seed: int = 0) -> tuple[SegmentData, list[Target]]:
    """Text and audio each say yes or no; the label is whether they agree."""
    rng = np.random.default_rng(seed)
    said = rng.choice([-1.0, 1.0], (N, 2))
    direction = np.array([1.0, -1.0, 1.0, 0.0])
    vectors = {
        slot: said[:, i : i + 1] * direction + 0.3 * rng.normal(size=(N, 4)) for i, slot in enumerate(("text", "audio"))
    }
    label = np.where(said[:, 0] == said[:, 1], "agree", "differ")
    return make_data(vectors, np.ones((N, 2), bool)), make_targets({"label": label.tolist()})


def run(
    data: SegmentData,
    targets: list[Target],
    training: TrainingConfig = SHORT,
    *,
    fusion: FusionConfig = FUSION,
    train_rows: np.ndarray = TRAIN,
    val_rows: np.ndarray = VAL,
    seed: int = 0,
) -> Trained:
    return train(data, targets, train_rows, val_rows, fusion, training, seed)


def accuracy(trained: Trained, data: SegmentData, rows: np.ndarray) -> float:
    target = trained.targets[0]
    rows = rows[target.known.numpy()[rows]]
    logits, _ = infer(trained.model, data, rows)
    return float((logits[0].argmax(dim=1) == target.truth[rows]).float().mean())


def same_weights(one: Trained, other: Trained) -> bool:
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def losses(trained: Trained) -> list[tuple[float, float]]:
    return [(epoch["train_loss"], epoch["val_loss"]) for epoch in trained.history]


def with_rows(data: SegmentData, rows: np.ndarray | slice, value: float) -> SegmentData:
    """The same data with other vectors in some rows."""
    vectors = {slot: values.clone() for slot, values in data.vectors.items()}
    for values in vectors.values():
        values[rows] = value
    return replace(data, vectors=vectors)


# What it learns


@EACH_FUSION
def test_additive_evidence_is_learned_from_what_is_there(strategy):
    data, targets = additive_data()
    trained = run(data, targets, LONG, fusion=FUSION.model_copy(update={"strategy": strategy}))
    truth = targets[0].truth[TEST][targets[0].known[TEST]]
    majority = float(max(truth.float().mean(), 1 - truth.float().mean()))
    assert accuracy(trained, data, TEST) > majority + 0.2


@EACH_FUSION
def test_what_only_shows_in_combination_is_learned(strategy):
    data, targets = xor_data()
    inputs = concatenation(data, TRAIN)
    baseline = linear(inputs, targets[0], TRAIN, VAL, TEST).argmax(axis=1)
    assert (baseline == targets[0].truth[TEST].numpy()).mean() <= 0.65
    training = LONG.model_copy(update={"epochs": 30})
    trained = run(data, targets, training, fusion=FUSION.model_copy(update={"strategy": strategy}))
    assert accuracy(trained, data, TEST) >= 0.85
    for slot in data.slots:
        hidden = torch.tensor([other != slot for other in data.slots]).expand(len(TEST), -1)
        logits, _ = infer(trained.model, data, TEST, hidden)
        assert (logits[0].argmax(dim=1) == targets[0].truth[TEST]).float().mean() <= 0.65


def test_every_kind_of_target_is_learned_at_once():
    data, _ = additive_data()
    evidence = sum(data.present[:, i].numpy() * v[:, 0].numpy() for i, v in enumerate(data.vectors.values()))
    share = 1 / (1 + np.exp(-2 * evidence))
    labels = {
        "mood": np.where(evidence > 0, "up", "down").tolist(),
        "tags": np.where(evidence > 0, '["up", "any"]', '["any"]').tolist(),
        "energy": 100 + 10 * evidence,
        "when": np.stack([share, 1 - share], axis=1),
    }
    kinds = {"mood": "categorical", "tags": "multi_label", "energy": "regression", "when": "soft_distribution"}
    targets = make_targets(labels, *(TargetConfig(name=name, kind=kind) for name, kind in kinds.items()))
    trained = run(data, targets, LONG.model_copy(update={"epochs": 30}))
    logits, _ = infer(trained.model, data, TEST)
    mood, tags, energy, when = (t.predict(out) for t, out in zip(trained.targets, logits, strict=True))
    up = evidence[TEST] > 0
    assert (mood.argmax(axis=1) == up).mean() > 0.75  # classes: down, up
    assert ((tags[:, 1] > 0.5) == up).mean() > 0.75 and (tags[:, 0] > 0.5).all()  # labels: any, up
    assert np.corrcoef(energy[:, 0], evidence[TEST])[0, 1] > 0.75 and abs(energy.mean() - 100) < 5
    assert np.corrcoef(when[:, 0], share[TEST])[0, 1] > 0.7


# Seeds


@EACH_FUSION
def test_the_same_seed_gives_the_same_run(strategy):
    data, targets = additive_data()
    fusion = FUSION.model_copy(update={"strategy": strategy})
    first = run(data, targets, fusion=fusion, seed=3)
    torch.rand(7)  # whatever else drew random numbers meanwhile
    again = run(data, targets, fusion=fusion, seed=3)
    assert same_weights(first, again) and losses(first) == losses(again) and first.best_epoch == again.best_epoch
    other = run(data, targets, fusion=fusion, seed=4)
    assert not same_weights(first, other) and losses(first) != losses(other)


# Early stopping


def test_the_best_weights_are_restored():
    data, targets = additive_data()
    noise = replace(targets[0], truth=torch.from_numpy(np.random.default_rng(0).integers(0, 2, N)))
    training = TrainingConfig(
        precision="fp32", epochs=60, patience=5, batch_size=32, lr=1e-2, weight_decay=0.0, modality_dropout=0.0
    )
    trained = run(data, [noise], training)
    val = [epoch["val_loss"] for epoch in trained.history]
    assert [epoch["epoch"] for epoch in trained.history] == list(range(1, len(val) + 1))
    assert trained.best_epoch == 1 + int(np.argmin(val)) and len(val) == trained.best_epoch + 5 < 60
    rows = VAL[noise.known.numpy()[VAL]]
    logits, _ = infer(trained.model, data, rows)
    assert float(total_loss(trained.targets, logits, torch.from_numpy(rows))) == min(val) < val[-1]
    assert not trained.model.training


def test_epochs_are_the_limit():
    assert len(run(*additive_data()).history) == SHORT.epochs


def test_a_validation_split_without_labels_is_refused():
    """Its loss is zero whatever the model does, and the first epoch would always be the best."""
    data, targets = additive_data()
    with pytest.raises(TriadError, match="validation"):
        run(data, targets, val_rows=VAL[VAL % 8 == 0])


# What must not matter


@EACH_FUSION
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30], ids=["nan", "inf", "huge"])
def test_numbers_stored_where_nothing_is_present_do_not_matter(strategy, value):
    data, targets = additive_data()
    dirty = {
        slot: torch.where(data.present[:, i : i + 1], vectors, value)
        for i, (slot, vectors) in enumerate(data.vectors.items())
    }
    training = SHORT.model_copy(update={"epochs": 2})
    fusion = FUSION.model_copy(update={"strategy": strategy})
    clean = run(data, targets, training, fusion=fusion)
    other = run(replace(data, vectors=dirty), targets, training, fusion=fusion)
    assert same_weights(clean, other) and losses(clean) == losses(other)


def test_rows_without_a_label_are_not_used():
    data, targets = additive_data()
    unlabelled = np.flatnonzero(~targets[0].known.numpy())
    assert len(np.intersect1d(unlabelled, TRAIN)) > 10
    plain = run(data, targets)
    assert same_weights(plain, run(with_rows(data, unlabelled, 1e4), targets))
    without = run(data, targets, train_rows=np.setdiff1d(TRAIN, unlabelled), val_rows=np.setdiff1d(VAL, unlabelled))
    assert same_weights(plain, without) and losses(plain) == losses(without)


def test_a_row_with_one_of_two_labels_is_used():
    data, targets = additive_data()
    first = targets[0]
    coin = torch.from_numpy(np.random.default_rng(0).integers(0, 2, N))
    half = replace(first, name="half", truth=coin, known=~first.known)
    plain = run(data, [first, half])
    assert not same_weights(plain, run(with_rows(data, np.flatnonzero(half.known.numpy()), 3.0), [first, half]))


def test_nothing_is_learned_from_val_and_test():
    data, targets = additive_data()
    plain = run(data, targets)
    assert same_weights(plain, run(with_rows(data, TEST, 1e4), targets))
    once = SHORT.model_copy(update={"epochs": 1})  # the validation split chooses the epoch, and nothing else
    assert same_weights(run(data, targets, once), run(with_rows(data, VAL, 1e4), targets, once))
    assert not same_weights(plain, run(with_rows(data, TRAIN[:9], 2.0), targets))


def test_labels_of_val_and_test_do_not_scale_the_target():
    data, _ = additive_data()
    energy = np.random.default_rng(0).normal(size=N)
    moved = np.where(np.isin(np.arange(N), TRAIN), energy, 1e4)
    wanted = TargetConfig(name="energy", kind="regression")
    fitted = [run(data, make_targets({"energy": e}, wanted), SHORT).targets[0] for e in (energy, moved)]
    assert fitted[0].mean == fitted[1].mean and fitted[0].scale == fitted[1].scale


def test_a_target_that_weighs_more_is_heard_more():
    _, targets = additive_data()
    logits, rows = [torch.randn(20, 2, generator=torch.Generator().manual_seed(0))], torch.arange(20)
    plain, heavy = total_loss(targets, logits, rows), replace(targets[0], loss_weight=3.0)
    torch.testing.assert_close(total_loss([heavy], logits, rows), 3 * plain)
    torch.testing.assert_close(total_loss([heavy, targets[0]], logits * 2, rows), 4 * plain)


# Mistakes


def test_a_loss_that_is_no_number_names_epoch_and_remedy():
    data, targets = additive_data()
    wild = SHORT.model_copy(update={"lr": 1e30})
    with pytest.raises(TriadError, match=r"loss became (nan|inf) in epoch 1 \(seed 5\).*--set training\.lr=1e\+29"):
        run(data, targets, wild, seed=5)


def test_a_present_vector_that_is_no_number_does_not_pass():
    data, targets = additive_data()
    with pytest.raises(TriadError, match="epoch 1"):
        run(with_rows(data, TRAIN[1:2], torch.nan), targets)


def test_a_training_split_without_labels_is_refused():
    data, targets = additive_data()
    with pytest.raises(ConfigError, match="no segment of the training split has this label"):
        run(data, targets, train_rows=TRAIN[TRAIN % 8 == 0])


def test_an_unknown_fusion_is_refused():
    with pytest.raises(UnknownName, match="late"):
        run(*additive_data(), fusion=FUSION.model_copy(update={"strategy": "latte"}))


# Prediction


def test_prediction_in_pieces_is_the_same(monkeypatch):
    data, targets = additive_data()
    trained = run(data, targets, fusion=FUSION.model_copy(update={"strategy": "gated"}))
    whole, weights = infer(trained.model, data, TEST)
    monkeypatch.setattr("fusion.data.EVALUATION_BATCH", 7)
    pieces, some = infer(trained.model, data, TEST)
    torch.testing.assert_close(pieces[0], whole[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some, weights, rtol=1e-5, atol=1e-6)
    assert whole[0].shape == (len(TEST), 2) and weights.shape == (len(TEST), 3)


def test_no_rows_give_no_predictions():
    data, targets = additive_data()
    logits, _ = infer(run(data, targets).model, data, TEST[:0])
    assert logits[0].shape == (0, 2)


def test_hidden_slots_are_missing_slots():
    data, targets = additive_data()
    trained = run(data, targets)
    shown = data.present[TEST].clone()
    shown[:, 1] = False
    absent = replace(with_rows(data, TEST[:0], 0), present=torch.cat([data.present[: TEST[0]], shown]))
    absent.vectors["audio"][TEST] = torch.nan
    assert torch.equal(infer(trained.model, data, TEST, shown)[0][0], infer(trained.model, absent, TEST)[0][0])
    assert not torch.equal(infer(trained.model, data, TEST, shown)[0][0], infer(trained.model, data, TEST)[0][0])


# Standardization


def test_standardized_columns_have_mean_zero_and_variance_one():
    vectors = 5 + 3 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    standardize = Standardize(4)
    standardize.fit(vectors.half())
    standardized = standardize(vectors.half())
    assert standardized.dtype == torch.float32
    torch.testing.assert_close(standardized.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-2)
    torch.testing.assert_close(standardized.std(dim=0), torch.ones(4), rtol=0, atol=2e-2)


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4, 1e-8])
def test_constant_columns_stay_zero(value):
    vectors = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    vectors[:, 1] = value
    standardize = Standardize(2)
    standardize.fit(vectors)
    found = standardize(torch.tensor([[0.0, value], [1e6, value + 1], [-1e6, 6e4]]))
    assert found.isfinite().all() and not found[:, 1].any() and found[1, 0] > found[0, 0] > found[2, 0]


def test_a_slot_that_training_never_saw_stays_finite():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        standardize = Standardize(3)
        standardize.fit(torch.zeros(0, 3))
        assert standardize(torch.ones(2, 3)).isfinite().all()
    data, targets = additive_data()
    present = data.present.clone()
    present[TRAIN, 1] = False
    trained = run(replace(data, present=present), targets)
    assert infer(trained.model, data, TEST)[0][0].isfinite().all()


def test_standardization_uses_present_training_rows_only():
    data, targets = additive_data()
    trained = run(data, targets)
    rows = TRAIN[targets[0].known.numpy()[TRAIN]]
    for i, (slot, standardize) in enumerate(zip(data.slots, trained.model.standardize.values(), strict=True)):
        seen = data.vectors[slot][rows][data.present[rows, i]]
        torch.testing.assert_close(standardize.mean, seen.mean(dim=0))
        torch.testing.assert_close(standardize.scale, seen.std(dim=0, correction=0))
