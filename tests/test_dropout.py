"""Dropout by random bytes is dropout: how often, how much, and which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.modules.dropout import ByteDropout


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_each_number_is_dropped_by_itself_as_often_as_asked(p):
    torch.manual_seed(0)
    dropped = ByteDropout(p)(torch.ones(4000, 64)) == 0
    chance = round(256 * p) / 256
    error = (chance * (1 - chance) / len(dropped)) ** 0.5
    assert abs(chance - p) <= 1 / 512
    assert ((dropped.float().mean(dim=0) - chance).abs() < 5 * error).all(), "a place in a word of 8 bytes is unfair"
    together = torch.corrcoef(dropped.T.float()) - torch.eye(64)
    assert together.abs().max() < 5 / len(dropped) ** 0.5


@given(st.integers(0, 40), st.integers(0, 9), st.floats(0.0, 0.99))
def test_what_stays_is_scaled_exactly_and_gradients_go_the_same_way(n, width, p):
    dropout = ByteDropout(p)
    values = torch.rand(n, width).add(0.5).requires_grad_()
    dropped = dropout(values)
    assert dropped.shape == values.shape
    scale = 256 / (256 - dropout.n_dropped)
    stays = dropped != 0
    torch.testing.assert_close(dropped[stays], scale * values[stays])
    dropped.sum().backward()
    torch.testing.assert_close(values.grad, torch.where(stays, scale, 0.0))


def test_nothing_is_dropped_where_nothing_is_learned_or_no_chance_is_given():
    values = torch.rand(5, 3)
    assert ByteDropout(0.9).eval()(values) is values
    assert ByteDropout(0.0)(values) is values


def test_the_same_seed_drops_the_same():
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(ByteDropout(0.5)(torch.ones(100)))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_chance_that_is_none_is_refused(p):
    with pytest.raises(ValueError, match=f"dropout is {p}"):
        ByteDropout(p)
