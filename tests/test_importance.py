"""Truncated importance weights against hand computation."""

from __future__ import annotations

import math

import pytest
import torch

from dphlib.training.importance import ImportanceStats, importance_weights

OLD = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, -9.0]])
DRAWN = torch.tensor([[-1.0, -2.5, -3.5], [-2.0, -1.0, -9.0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_weights_and_statistics_equal_a_hand_computation():
    weights, stats = importance_weights(OLD, DRAWN, MASK, cap=2.0)
    expected = [[1.0, math.exp(0.5), 2.0], [math.exp(-1.0), 0.0, 0.0]]
    torch.testing.assert_close(weights, torch.tensor(expected))
    log = stats.to_log()
    assert log["tis_mean"] == pytest.approx((1.0 + math.exp(0.5) + 2.0 + math.exp(-1.0)) / 4)
    assert log["tis_max"] == pytest.approx(math.exp(3.0))
    assert log["tis_truncated"] == 0.25
    assert log["sampler_gap"] == pytest.approx((0 + 0.5 + 3.0 + 1.0) / 4)
    gaps = (0.0, 0.5, 3.0, -1.0)
    assert log["sampler_kl"] == pytest.approx(sum(math.exp(gap) - 1 - gap for gap in gaps) / 4)


def test_micro_batches_add_up():
    _, whole = importance_weights(OLD, DRAWN, MASK)
    parts = [importance_weights(OLD[i : i + 1], DRAWN[i : i + 1], MASK[i : i + 1])[1] for i in range(2)]
    assert (parts[0] + parts[1]).to_log() == pytest.approx(whole.to_log())


def test_no_gradient_flows_through_a_weight():
    old = OLD.clone().requires_grad_()
    weights, _ = importance_weights(old, DRAWN, MASK)
    (weights * old).sum().backward()
    torch.testing.assert_close(old.grad, weights)


@pytest.mark.parametrize("gap", [-1e4, -800.0, 800.0, 1e4])
def test_a_huge_gap_stays_finite(gap):
    weights, stats = importance_weights(torch.tensor([[gap]]), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert weights.item() == pytest.approx(2.0 if gap > 0 else 0.0)
    assert all(math.isfinite(value) for value in stats.to_log().values())


def test_padding_may_hold_anything():
    padded = torch.tensor([[-1.0, float("-inf")]])
    weights, stats = importance_weights(padded, padded, torch.tensor([[True, False]]))
    assert weights.tolist() == [[1.0, 0.0]] and stats.tokens == 1


def test_no_token_gives_no_number():
    _, stats = importance_weights(OLD, DRAWN, torch.zeros_like(MASK))
    assert stats == ImportanceStats() and set(stats.to_log().values()) == {None}


def test_what_cannot_be_weighted_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        importance_weights(OLD, DRAWN[:, :2], MASK)
    with pytest.raises(ValueError, match=r"cap is 0\.5"):
        importance_weights(OLD, DRAWN, MASK, cap=0.5)
    with pytest.raises(ValueError, match="not finite"):
        importance_weights(OLD, DRAWN.clone().fill_(float("-inf")), MASK)
