"""What the study says of the estimators: exact moments against draws, and the order that it is there to show."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small import policy as small_policy
from small import tokenizer

from dphlib.divergences import DIVERGENCES, divergence, exact
from dphlib.lessons.categorical import tiny_pair
from dphlib.lessons.estimator_moments import ESTIMATORS, exact_moments, nucleus
from dphlib.lessons.estimator_study import draw_rows, measure
from dphlib.training.estimators import TopK, sampled_tail_divergence, topk_divergence
from dphlib.training.scoring import answer_logprobs, answer_topk

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair():
    base, policy = tiny_pair(0)
    return base, policy, draw_rows(base, [[1, token] for token in range(2, 8)], 24, 6, seed=0)


@pytest.fixture(scope="module")
def measured(pair):
    return measure(*pair, divergence("forward_kl"), k=8, timed=1)


def distributions(v: int = 9, n: int = 3):
    noise = torch.Generator().manual_seed(2)
    return (2 * torch.randn(2, n, v, generator=noise, dtype=torch.float64)).log_softmax(-1)


def top_of(log_p, k):
    ids = log_p.topk(k).indices
    return TopK(ids, torch.cat([log_p.gather(-1, ids), log_p.scatter(-1, ids, -math.inf).logsumexp(-1, True)], -1))


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "alpha"])
def test_moments_are_those_of_all_draws(name):
    """Every token drawn, each with its probability: value and gradient by autograd, their mean and variance by hand."""
    log_p, log_q = distributions()
    f, top = divergence(name), top_of(log_p, 3)
    n = torch.arange(3).repeat_interleave(9)
    v = torch.arange(9).repeat(3)
    ours = exact_moments(log_q, log_p, top, f, (n, v), answers=5)

    def outcome(estimator, y):
        logits = log_q.clone().requires_grad_()
        now = logits.log_softmax(-1)
        tokens = torch.full((3,), y)
        d = now[:, y] - log_p[:, y]
        rest = now.scatter(-1, top.ids_N_K, -math.inf).logsumexp(-1, True)
        bins = torch.cat([now.gather(-1, top.ids_N_K), rest], -1)
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
    log_p, log_q = distributions()
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


def test_the_top_k_of_stored_answers_holds_their_own_logprobs():
    """Through batches of several lengths: where a token is among its K, both ways of scoring it agree."""
    model = small_policy()
    answers = [("a b c", [5, 6, 7, 8]), ("d", [9]), ("e f", [10, 11])]
    top = answer_topk(model, tokenizer(), answers, k=len(tokenizer()), token_budget=12)
    scored = answer_logprobs(model, tokenizer(), answers)
    assert [len(each.ids_N_K) for each in top] == [4, 1, 2]
    for each, (_, ids), logprobs in zip(top, answers, scored, strict=True):
        place = (each.ids_N_K == torch.tensor(ids)[:, None]).float().argmax(-1)
        found = each.logprobs_N_K1.gather(-1, place[:, None])[:, 0]
        torch.testing.assert_close(found, torch.tensor(logprobs), rtol=1e-5, atol=1e-5)
    assert answer_topk(model, tokenizer(), [], k=3) == []
