"""The running mean of the weights: by hand, and as the loop uses it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fusion.averaging import WeightAverage
from fusion.train import infer
from tests.test_loop import TRAINING, run, with_every_kind_of_target
from tests.test_train import VAL, losses, same_weights


def test_the_mean_by_hand():
    model = nn.Linear(1, 1, bias=False)
    weights = [2.0, 5.0, -1.0, 4.0]
    nn.init.constant_(model.weight, weights[0])
    averaged, expected = WeightAverage(model, 0.25), weights[0]
    for step, weight in enumerate(weights[1:], start=1):
        nn.init.constant_(model.weight, weight)
        averaged.update()
        decay = min(0.25, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight
        assert float(averaged.model.weight) == pytest.approx(expected)
    assert float(model.weight.detach()) == weights[-1]


def test_buffers_are_taken_as_they_are():
    model = nn.BatchNorm1d(2)
    averaged = WeightAverage(model, 0.9)
    model.train()(torch.randn(8, 2))
    averaged.update()
    assert torch.equal(averaged.model.running_mean, model.running_mean)
    assert int(averaged.model.num_batches_tracked) == 1


def test_without_a_decay_it_is_the_model_itself():
    model = nn.Linear(1, 1)
    averaged = WeightAverage(model, 0.0)
    averaged.update()
    assert averaged.model is model and averaged.state_dict() == {}


def test_it_goes_on_where_it_was():
    model = nn.Linear(2, 2)
    averaged = WeightAverage(model, 0.9)
    for _ in range(3):
        nn.init.normal_(model.weight)
        averaged.update()
    other = WeightAverage(model, 0.9)
    other.load_state_dict(averaged.state_dict())
    nn.init.normal_(model.weight)
    averaged.update()
    other.update()
    assert all(torch.equal(a, b) for a, b in zip(averaged.model.parameters(), other.model.parameters(), strict=True))


def test_what_validation_sees_is_what_is_kept_and_steps_are_taken_without_it():
    """The trained weights do not feel the mean: the losses in training are the same, those on validation are not."""
    plain, averaged = (run(TRAINING.model_copy(update={"weight_averaging": decay})) for decay in (0.0, 0.9))
    assert [epoch["train_loss"] for epoch in plain.history] == [epoch["train_loss"] for epoch in averaged.history]
    assert [epoch["val_loss"] for epoch in plain.history] != [epoch["val_loss"] for epoch in averaged.history]
    assert not same_weights(plain, averaged) and np.isfinite(losses(averaged)).all()
    data, _ = with_every_kind_of_target()
    logits, _ = infer(averaged.model, data, VAL)
    kept = sum(
        target.loss_weight * float(target.loss(out, torch.from_numpy(VAL)))
        for target, out in zip(averaged.targets, logits, strict=True)
    )
    assert kept == pytest.approx(averaged.history[averaged.best_epoch - 1]["val_loss"], rel=1e-5)
