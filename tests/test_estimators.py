"""The estimators of a divergence: bounds of top-K, exact moments against all draws, and what the study is to show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dphlib.divergences import DIVERGENCES, divergence, exact, generator
from dphlib.lessons.categorical import tiny_pair
from dphlib.lessons.estimators import (
    ESTIMATORS,
    TopK,
    as_stored,
    binned,
    draw_rows,
    exact_moments,
    measure,
    nucleus,
    sampled_tail_divergence,
    topk_divergence,
)

torch.set_num_threads(1)

CASES = [(name, {"alpha": 0.5} if name == "alpha" else {}) for name in DIVERGENCES]
EVERY = pytest.mark.parametrize(("name", "params"), CASES, ids=[name for name, _ in CASES])


def distributions(n: int = 3, v: int = 9, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a reference, and logits, with gradient, of a policy; float64."""
    noise = torch.Generator().manual_seed(seed)
    log_p = (2 * torch.randn(n, v, generator=noise, dtype=torch.float64)).log_softmax(-1)
    return log_p, (log_p + torch.randn(n, v, generator=noise, dtype=torch.float64)).requires_grad_()


def top_of(log_p, k):
    ids = log_p.topk(k).indices
    return TopK(ids, binned(log_p, ids))


def topk_at(k: int, log_p, logits, f):
    top = top_of(log_p, k)
    return topk_divergence(binned(logits.log_softmax(-1), top.ids_N_K), top.logprobs_N_K1, f)


def test_a_tiny_rest_keeps_its_digits():
    """1 - sum of the K would be 0 in fp32, its logarithm minus infinity."""
    logits = torch.tensor([[60.0, 20.0, 19.0]])
    rest = binned(logits.log_softmax(-1), torch.tensor([[0]]))[0, 1].item()
    assert rest == pytest.approx(-40 + math.log1p(math.exp(-1)), rel=1e-6)


@EVERY
def test_a_lower_bound_that_rises_with_k_to_the_divergence(name, params):
    log_p, logits = distributions()
    true = exact(name, log_p.exp(), logits.softmax(-1), **params)
    values = torch.stack([topk_at(k, log_p, logits, generator(name, **params)) for k in range(1, 10)])
    assert (values.diff(dim=0) >= -1e-12).all() and (values[0] < 0.99 * true).any()
    torch.testing.assert_close(values[-1], true)
    for ours, whole in zip(*(torch.autograd.grad(x.sum(), logits) for x in (values[-1], true)), strict=True):
        torch.testing.assert_close(ours, whole)


@EVERY
@pytest.mark.parametrize("k", [1, 4, 9])
def test_sampled_tail_is_unbiased_in_value_and_gradient(name, params, k):
    """Every token as the stored one, each with its probability."""
    log_p, logits = distributions()
    f, top, log_q = generator(name, **params), top_of(log_p, k), logits.log_softmax(-1)
    bins, expected = binned(log_q, top.ids_N_K), torch.zeros(3, dtype=torch.float64)
    for v in range(9):
        tokens = torch.full((3,), v)
        value = sampled_tail_divergence(bins, top, tokens, log_q[:, v] - log_p[:, v], f)
        expected = expected + log_p[:, v].exp() * value
    true = exact(name, log_p.exp(), log_q.exp(), **params)
    torch.testing.assert_close(expected, true, rtol=1e-9, atol=1e-12)
    grads = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (expected, true)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-8, atol=1e-10)


@EVERY
def test_a_collapsed_token_is_pulled_back_at_every_position_that_has_it(name, params):
    """The policy gives a likely token 40 nats less: all is finite, and where f(0) is infinite it is pulled."""
    log_p = torch.tensor([[0.5, 0.3, 0.1, 0.1]]).log()
    logits = torch.tensor([[0.0, -40.0, 0.0, 0.0]], requires_grad=True)
    bins = logits.log_softmax(-1)
    value = topk_divergence(bins, log_p, generator(name, **params)).sum()
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    if math.isinf(DIVERGENCES[name].at_zero):
        assert float(-logits.grad[0, 1]) > 0.29


def test_an_empty_bin_costs_nothing_and_has_no_gradient():
    bins = torch.tensor([[0.5, 0.5, 0.0]]).log().requires_grad_()
    value = topk_divergence(bins, torch.tensor([[0.25, 0.75, 0.0]]).log(), generator("forward_kl"))
    value.sum().backward()
    assert value.isfinite().all() and bins.grad.isfinite().all() and float(bins.grad[0, 2]) == 0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="same K tokens"):
        topk_divergence(torch.zeros(2, 3), torch.zeros(2, 4), generator("js"))


@EVERY
def test_float16_moves_the_estimate_by_little(name, params):
    log_p, logits = distributions(n=40)
    top = top_of(log_p, 4)
    bins = binned(logits.detach().log_softmax(-1), top.ids_N_K)
    rounded = as_stored(top, torch.float16)
    torch.testing.assert_close(rounded.logprobs_N_K1.logsumexp(-1), torch.zeros(40))
    values = [topk_divergence(bins, t.logprobs_N_K1, generator(name, **params)).mean().item() for t in (top, rounded)]
    assert values[1] == pytest.approx(values[0], rel=5e-3)


# --- The study ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    base, policy = tiny_pair(0)
    return base, policy, draw_rows(base, [[1, token] for token in range(2, 8)], 24, 6, seed=0)


@pytest.fixture(scope="module")
def measured(pair):
    return measure(*pair, divergence("forward_kl"), k=8, timed=1)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "alpha"])
def test_moments_are_those_of_all_draws(name):
    """Every token drawn, each with its probability: value and gradient by autograd, their mean and variance by hand."""
    log_p, policy = distributions()
    log_q, f, top = policy.detach().log_softmax(-1), divergence(name), top_of(log_p, 3)
    n = torch.arange(3).repeat_interleave(9)
    v = torch.arange(9).repeat(3)
    ours = exact_moments(log_q, log_p, top, f, (n, v), answers=5)

    def outcome(estimator, y):
        logits = log_q.clone().requires_grad_()
        now = logits.log_softmax(-1)
        tokens = torch.full((3,), y)
        d = now[:, y] - log_p[:, y]
        bins = binned(now, top.ids_N_K)
        value = {
            "one_sample": lambda: f(d),
            "definition": lambda: topk_divergence(now, log_p, f),
            "topk": lambda: topk_divergence(bins, top.logprobs_N_K1, f),
            "topk_sampled_tail": lambda: sampled_tail_divergence(bins, top, tokens, d, f),
        }[estimator]()
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        return value.detach(), -gradient

    for estimator in ESTIMATORS:
        drawn = [outcome("one_sample" if estimator == "mean_of_answers" else estimator, y) for y in range(9)]
        weight = log_p.exp().T
        for index, (values, mean, variance) in enumerate(
            (
                (torch.stack([value for value, _ in drawn]), ours[estimator].value_N, ours[estimator].variance_N),
                (
                    torch.stack([pull for _, pull in drawn]),
                    ours[estimator].pull_W.reshape(3, 9),
                    ours[estimator].pull_variance_W.reshape(3, 9),
                ),
            )
        ):
            w = weight[:, :, None] if index else weight
            true_mean = (w * values).sum(0)
            true_variance = (w * values.square()).sum(0) - true_mean**2
            divisor = 5 if estimator == "mean_of_answers" else 1
            torch.testing.assert_close(mean, true_mean, rtol=1e-8, atol=1e-10)
            torch.testing.assert_close(variance, true_variance / divisor, rtol=1e-6, atol=1e-9)


def test_drawing_with_top_p_biases_the_one_sample_estimate_only():
    log_p, policy = distributions()
    log_q = policy.detach().log_softmax(-1)
    nothing = (torch.zeros(0, dtype=torch.long),) * 2
    cut = exact_moments(log_q, log_p, top_of(log_p, 3), divergence("forward_kl"), nothing, top_p=0.7)
    true = exact("forward_kl", log_p.exp(), log_q.exp())
    torch.testing.assert_close(cut["definition"].value_N, true)
    assert float((cut["one_sample"].value_N - true).abs().min()) > 0.01
    p = nucleus(log_p.exp(), 0.7)
    torch.testing.assert_close(p.sum(-1), torch.ones(3).double())
    smallest_kept = log_p.exp().masked_fill(p == 0, 1).min(-1, keepdim=True).values
    assert torch.equal(p == 0, log_p.exp() < smallest_kept) and (p == 0).any()
    assert torch.equal(nucleus(log_p.exp(), 1.0), log_p.exp())


@pytest.mark.slow
def test_the_order_that_the_study_is_there_to_show(measured):
    table = measured.set_index("estimator")
    assert list(table.index) == list(ESTIMATORS)
    assert table.loc["definition", "bias"] == 0 and table.loc["one_sample", "bias_share"] == pytest.approx(0, abs=1e-9)
    assert -0.5 < table.loc["topk", "bias_share"] < 0  # a lower bound
    assert abs(table.loc["topk_sampled_tail", "bias_share"]) < 1e-3  # float16 of the stored log-probs
    ratio = table["variance_ratio"]
    assert ratio["one_sample"] == 1 and ratio["topk"] > 3 and ratio["definition"] > 3
    assert 2 < ratio["mean_of_answers"] < 8  # 4 answers
    assert table.loc["topk", "gradient_bias"] < table.loc["one_sample", "gradient_bias"]
    assert list(table["bytes"]) == [8, 32, 4, 42, 42]
    assert table.loc["topk", "pull"] == pytest.approx(table.loc["definition", "pull"], rel=0.05)
    assert table.loc["topk", "pull_sd"] == 0 < table.loc["one_sample", "pull_sd"]
    assert measured.attrs["redraws"] == 24 and measured.attrs["positions"] == 24 * 6 * 6
    assert measured.attrs["collapsed"] > 0 and (table["ms"] > 0).all()


@pytest.mark.slow
def test_the_gradients_variance_is_that_of_gradients_taken_one_by_one(pair, measured):
    base, policy, draws = pair
    gradients = []
    for rows in draws:
        tokens = torch.tensor([[*prompt, *answer] for prompt, answer in rows])
        log_q, log_p = (
            model(input_ids=tokens).logits[:, 1:-1].log_softmax(-1).gather(-1, tokens[:, 2:, None])
            for model in (policy, base)
        )
        d = log_q - log_p
        grads = torch.autograd.grad((torch.expm1(d) - d).mean(), policy.parameters())
        gradients.append(torch.cat([g.flatten() for g in grads]).double().numpy())
    trace = np.var(gradients, axis=0, ddof=1).sum()
    assert measured.set_index("estimator").loc["one_sample", "gradient_sd"] == pytest.approx(trace**0.5, rel=1e-3)


def test_draws_repeat_and_follow_the_model(pair):
    base, _, draws = pair
    assert draws == draw_rows(base, [[1, token] for token in range(2, 8)], 24, 6, seed=0)
    assert len(draws) == 24 and all(len(rows) == 6 for rows in draws)
    first = [rows[0][1][0] for rows in draw_rows(base, [[1, 2]], 3000, 1, seed=1)]
    with torch.no_grad():
        p = base(input_ids=torch.tensor([[1, 2]])).logits[0, -1].softmax(-1)
    seen = np.bincount(first, minlength=64) / 3000
    assert np.abs(seen - p.numpy()).max() < 0.04


def test_too_few_redraws_are_refused(pair):
    with pytest.raises(ValueError, match="needs 8 or more"):
        measure(pair[0], pair[1], pair[2][:7], divergence("js"))
