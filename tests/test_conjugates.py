"""Convex conjugates: the Fenchel-Young inequality, equality at the slope, domains, and the variational form."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dphlib.divergences import DIVERGENCES, divergence, exact
from dphlib.lessons.categorical import variational_bound

torch.set_num_threads(1)

CASES = [(name, {}) for name in DIVERGENCES if name != "alpha"]
CASES += [("alpha", {"alpha": a}) for a in (0.001, 0.2, 0.5, 0.8, 0.999)]
IDS = [name + "".join(f"_{value}" for value in params.values()) for name, params in CASES]
EVERY = pytest.mark.parametrize(("name", "params"), CASES, ids=IDS)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=150)
@given(t=st.floats(-30, 30) | st.floats(-1, 1) | st.floats(-1e-6, 1e-6), d=st.floats(-15, 15))
def test_fenchel_young_inequality(t, d):
    """u t <= f(u) + f*(t) at every u and t, f* infinite outside its domain."""
    for name, params in CASES:
        f = divergence(name, **params)
        value, dual = float(f.value(column(d))), float(f.conjugate(column(t)))
        assert dual == math.inf or math.exp(d) * t <= value + dual + 1e-9 * (1 + value + abs(math.exp(d) * t)), name


@EVERY
def test_equality_at_the_slope_of_f_where_the_conjugates_slope_is_u(name, params):
    f, d = divergence(name, **params), torch.linspace(-6, 4, 41, dtype=torch.float64)
    if name == "total_variation":
        d = d[d != 0]  # at the kink every t in [-1/2, 1/2] is a slope
    u = d.exp()
    t = (f.slope(d) / u).requires_grad_()  # f'(u)
    dual = f.conjugate(t)
    torch.testing.assert_close(dual, u * t - f.value(d), rtol=1e-9, atol=1e-12)
    if name != "total_variation":  # there f* is a straight line, whose slope is any u beyond 1
        torch.testing.assert_close(torch.autograd.grad(dual.sum(), t)[0], u, rtol=1e-8, atol=1e-12)


@EVERY
def test_facts_that_all_conjugates_share(name, params):
    f = divergence(name, **params)
    dual = f.conjugate
    assert float(dual(column(0.0))) == pytest.approx(0, abs=1e-15)
    end = f.slope_at_infinity
    if math.isfinite(end):
        inside, outside = float(dual(column(0.3 * end))), float(dual(column(end + 1e-9)))
        assert math.isfinite(inside) and outside == math.inf
        assert math.isfinite(float(dual(column(end)))) == (r"\le" in f.conjugate_domain)
    if math.isfinite(f.at_zero):
        lowest = -1e15 if name == "alpha" else -700.0  # alpha's comes down slowly where alpha is near 1
        slow = params.get("alpha", 0) > 0.9
        assert slow or float(dual(column(lowest))) == pytest.approx(-f.at_zero, rel=1e-2)
    t = torch.linspace(-5, min(end, 3.0) - 0.01, 101, dtype=torch.float64)
    values = dual(t)
    assert (values.diff() >= 0).all() and (values.diff().diff() >= -1e-12).all()  # rises, and is convex
    assert dual(t.float()).dtype == torch.float32


@EVERY
def test_near_zero_it_keeps_its_precision(name, params):
    """f*(t) = t + t^2 / (2 f''(1)) + ...: no cancellation."""
    if name == "total_variation":
        return
    t = column(1e-7, -1e-7)
    f = divergence(name, **params)
    torch.testing.assert_close(f.conjugate(t), t + t**2 / (2 * f.second_derivative_at_1), rtol=1e-12, atol=0)


def test_jeffreys_through_lambert_far_out():
    """w + log w = 1 - t, so t is known where w is chosen."""
    w = column(1e-200, 1e-3, 1.0, 50.0, 1e8)
    ours = divergence("jeffreys").conjugate(1 - w - w.log())
    torch.testing.assert_close(ours, 1 / w - 1 - w.log(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", IDS)
def test_the_variational_form_reaches_the_divergence_and_never_exceeds_it(name):
    torch.manual_seed(0)
    p, q = torch.randn(2, 9, dtype=torch.float64).softmax(-1)
    kind, params = CASES[IDS.index(name)]
    true = float(exact(kind, p, q, **params))
    best = divergence(kind, **params).slope(q.log() - p.log()) * p / q
    if name == "total_variation":
        best = best.round(decimals=1)  # exactly the domain's end, not a rounding beyond it
    assert float(variational_bound(name, best, p, q)) == pytest.approx(true, rel=1e-9)
    for noise in 0.3 * torch.randn(50, 9, dtype=torch.float64):
        assert float(variational_bound(name, best + noise, p, q)) <= true + 1e-12
