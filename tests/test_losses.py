"""The partitioned loss against hand computation, against exact gradients, and on degenerate batches."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dphlib.divergences import exact, generator
from dphlib.losses import (
    EXPLORE,
    IGNORE,
    NEAR_PERFECT,
    ON_POLICY_DIVERGENCE,
    count_denominators,
    divergence_of,
    group_advantages,
    partitioned_loss,
)

torch.set_num_threads(1)

FORWARD = generator("forward_kl")
AGGREGATIONS = [("token_mean", None), ("sequence_mean", None), ("dr_grpo", 7)]


def hand_example(dtype=torch.float64):
    """A row of D_exp and a row of D_pef, the last token of each ignored."""
    ratios = torch.tensor([[1.5, 0.5, 9.0], [2.0, 0.5, 9.0]], dtype=dtype)
    old = torch.tensor([[-1.0, -2.0, -1.0], [-1.5, -2.5, -1.0]], dtype=dtype)
    return {
        "logprobs_B_T": (old + ratios.log()).requires_grad_(),
        "loss_id_B_T": torch.tensor([[EXPLORE, EXPLORE, IGNORE], [NEAR_PERFECT, NEAR_PERFECT, IGNORE]]),
        "old_logprobs_B_T": old,
        "advantages_B_T": torch.tensor([[1.0, 2.0, 5.0], [0.0, 0.0, 0.0]], dtype=dtype),
        "ref_logprobs_B_T": old,
    }


def call(batch, **settings):
    settings = {"divergence": FORWARD, "eta": 0.5, **settings}
    return partitioned_loss(**batch, **settings)


def test_hand_computed_2_by_3():
    batch = hand_example()
    loss, stats = call(batch)
    explore = (-1.2 * 1.0 - 0.5 * 2.0) / 2  # ratio 1.5 is clipped at 1.2; 0.5 is not, its advantage is positive
    near_perfect = ((2 - 1 - math.log(2)) + (0.5 - 1 - math.log(0.5))) / 2  # k3: u - 1 - log u
    assert loss.item() == pytest.approx(explore + 0.5 * near_perfect, rel=1e-12)
    assert float(stats.explore) == pytest.approx(explore)
    assert float(stats.near_perfect) == pytest.approx(near_perfect)
    assert (int(stats.explore_tokens), int(stats.near_perfect_tokens)) == (2, 2)
    assert float(stats.clip_fraction) == 0.5 and float(stats.dual_clip_fraction) == 0
    assert float(stats.ratio_mean) == pytest.approx(1.0)
    assert float(stats.old_kl) == pytest.approx((0.5 - math.log(1.5) - 0.5 - math.log(0.5)) / 2)
    loss.backward()
    # clipped: 0; -A r / 2 tokens; eta (u - 1) / 2 tokens
    expected = torch.tensor([[0.0, -0.5, 0.0], [0.25, -0.125, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(batch["logprobs_B_T"].grad, expected)


def test_log_row_leaves_out_what_was_not_computed():
    row = call(hand_example())[1].to_dict()
    assert "kl" not in row and row["explore_tokens"] == 2 and all(math.isfinite(v) for v in row.values())
    assert call(hand_example(), rkl_coef=0.1)[1].to_dict()["kl"] > 0


@pytest.mark.parametrize(("dual_clip", "expected"), [(3.0, 3.0), (None, 9.0)])
def test_dual_clip_caps_a_negative_advantage(dual_clip, expected):
    batch = hand_example()
    batch["logprobs_B_T"] = batch["old_logprobs_B_T"] + math.log(9)
    batch["advantages_B_T"] = torch.full((2, 1), -1.0, dtype=torch.float64)  # one advantage a row
    _, stats = call(batch, dual_clip=dual_clip)
    assert float(stats.explore) == pytest.approx(expected)
    assert float(stats.dual_clip_fraction) == (dual_clip is not None)


def test_clip_higher():
    _, stats = call(hand_example(), clip_high=0.28)
    assert float(stats.explore) == pytest.approx((-1.28 - 1.0) / 2)


def test_rkl_baseline_adds_k3_on_explore_tokens():
    batch = hand_example()
    batch["ref_logprobs_B_T"] = batch["logprobs_B_T"].detach() + torch.tensor([2.0, 0.5, 3.0]).double().log()
    plain, _ = call(batch)
    for estimator, pair in (("k3", [1 - math.log(2), -0.5 - math.log(0.5)]), ("k2", [math.log(2) ** 2 / 2] * 2)):
        loss, stats = call(batch, rkl_coef=0.04, rkl_estimator=estimator)
        assert (loss - plain).item() == pytest.approx(0.04 * sum(pair) / 2)
        assert float(stats.kl) == pytest.approx((1 - math.log(2) - 0.5 - math.log(0.5)) / 2)


def tokens(loss_id_B_T, logprobs_B_T, **more):
    """A batch whose old and reference log-probs are 0 and whose advantages are 1, unless given."""
    ids = torch.tensor(loss_id_B_T)
    zeros = torch.zeros(ids.shape)
    others = {"old_logprobs_B_T": zeros, "ref_logprobs_B_T": zeros, "advantages_B_T": zeros + 1}
    return {"logprobs_B_T": logprobs_B_T, "loss_id_B_T": ids, **others, **more}


@pytest.mark.parametrize(("aggregation", "max_new_tokens"), AGGREGATIONS)
def test_aggregations(aggregation, max_new_tokens):
    """Rows of 1 and 3 EXPLORE tokens on policy with A = -1 and -2: per-token losses 1 and 2."""
    batch = tokens([[1, 0, 0], [1, 1, 1]], torch.zeros(2, 3), advantages_B_T=torch.tensor([[-1.0], [-2.0]]))
    loss, _ = call(batch, aggregation=aggregation, max_new_tokens=max_new_tokens)
    expected = {"token_mean": 7 / 4, "sequence_mean": 3 / 2, "dr_grpo": 7 / (2 * 7)}[aggregation]
    assert loss.item() == pytest.approx(expected)


def random_batch(seed, rows=6, width=5):
    g = torch.Generator().manual_seed(seed)
    logprobs = -3 * torch.rand(rows, width, generator=g, dtype=torch.float64)
    near = lambda: logprobs + 0.3 * torch.randn(rows, width, generator=g, dtype=torch.float64)  # noqa: E731
    ids = torch.randint(1, 4, (rows, 1), generator=g).expand(rows, width).clone()
    ids[torch.arange(width) >= torch.randint(0, width + 1, (rows, 1), generator=g)] = IGNORE
    return {
        "logprobs_B_T": logprobs.requires_grad_(),
        "loss_id_B_T": ids,
        "old_logprobs_B_T": near().detach(),
        "advantages_B_T": torch.randn(rows, width, generator=g, dtype=torch.float64),
        "ref_logprobs_B_T": near().detach(),
    }


@pytest.mark.parametrize(("aggregation", "max_new_tokens"), AGGREGATIONS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 6), pad=st.integers(0, 4))
def test_loss_does_not_depend_on_micro_batches_or_padding(aggregation, max_new_tokens, seed, cut, pad):
    batch = random_batch(seed)
    how = {"divergence": "js_definition", "rkl_coef": 0.1}
    how |= {"aggregation": aggregation, "max_new_tokens": max_new_tokens}
    whole, whole_stats = call(batch, **how)
    (whole_gradient,) = torch.autograd.grad(whole, batch["logprobs_B_T"])

    denominators = count_denominators(batch["loss_id_B_T"], aggregation, max_new_tokens)
    parts = []
    for rows in (slice(0, cut), slice(cut, None)):
        part = {name: tensor[rows] for name, tensor in batch.items()}
        for name in part:  # rubbish in the padding, on the left and on the right
            rubbish = IGNORE if name == "loss_id_B_T" else math.nan
            part[name] = torch.nn.functional.pad(part[name], (pad, 4 - pad), value=rubbish)
        parts.append(call(part, denominators=denominators, **how))
    split = sum(loss for loss, _ in parts)
    (split_gradient,) = torch.autograd.grad(split, batch["logprobs_B_T"])
    torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(split_gradient, whole_gradient, rtol=1e-12, atol=1e-12)
    joined = reduce(add, (stats for _, stats in parts)).to_dict()
    assert joined == pytest.approx(whole_stats.to_dict(), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [[0, 0, 0], [1, 1, 0], [2, 2, 0], [3, 3, 0], [1, 2, 0]], ids=str)
def test_empty_sets_and_masked_infinities(first, dtype):
    ids = torch.tensor([first, [0, 0, 0]])
    values = []
    for rubbish in (-math.inf, math.inf, math.nan, -math.inf):
        values.append(torch.where(ids > 0, -1.0, rubbish).to(dtype))
    logprobs, old, advantages, ref = values
    others = {"old_logprobs_B_T": old, "advantages_B_T": advantages, "ref_logprobs_B_T": ref}
    batch = tokens(ids.tolist(), logprobs.requires_grad_(), **others)
    loss, stats = call(batch, divergence="js_definition", rkl_coef=0.1)
    loss.backward()
    assert loss.isfinite() and logprobs.grad.isfinite().all()
    assert (logprobs.grad[ids == 0] == 0).all()
    assert all(math.isfinite(value) for value in stats.to_dict().values())
    if not (ids > 0).any():
        assert loss.item() == 0


def test_empty_batch_is_a_zero_with_a_graph():
    logprobs = torch.zeros(0, 4, requires_grad=True)
    loss, _ = call({"logprobs_B_T": logprobs, "loss_id_B_T": torch.zeros(0, 4, dtype=torch.long)})
    loss.backward()
    assert loss.item() == 0


def test_tensors_that_no_token_needs_may_be_none():
    near = tokens([[NEAR_PERFECT]], torch.zeros(1, 1), old_logprobs_B_T=None, advantages_B_T=None)
    explore = tokens([[EXPLORE]], torch.zeros(1, 1), ref_logprobs_B_T=None)
    assert float(call(near)[0]) == 0 and float(call(explore)[0]) == -1


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-1e4, -89.0, 0.0, 25.0, 89.0, 1e4])
def test_extreme_ratios_are_finite(advantage, log_ratio):
    logprobs = torch.full((1, 1), log_ratio, requires_grad=True)
    batch = tokens([[EXPLORE]], logprobs, advantages_B_T=torch.full((1, 1), advantage))
    loss, _ = call(batch, dual_clip=None, rkl_coef=0.1)
    loss.backward()
    assert loss.isfinite() and logprobs.grad.isfinite().all()
    if advantage < 0 and log_ratio > 0:
        assert float(logprobs.grad) > 1  # a probability that ran away is still pushed down


# A categorical model with every token as a row of its own: weighting row v by the probability that it is
# drawn turns the loss into its exact expectation.


def expectation(rows_logprobs, weights, loss_id, **settings):
    """Exact expectation of the loss over one token, and the sum runs over the vocabulary."""
    total = 0.0
    for v in range(len(weights)):
        batch = {"logprobs_B_T": rows_logprobs[v].view(1, 1), "loss_id_B_T": torch.tensor([[loss_id]])}
        loss, _ = partitioned_loss(
            **batch, **{k: x[v].view(1, 1) if torch.is_tensor(x) else x for k, x in settings.items()}
        )
        total = total + weights[v] * loss
    return total


def small_model():
    torch.manual_seed(1)
    p_ref = torch.randn(6, dtype=torch.float64).softmax(-1)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    return p_ref, logits, logits.log_softmax(-1)


def gradient(scalar, logits):
    return torch.autograd.grad(scalar, logits, retain_graph=True)[0]


@pytest.mark.parametrize(("name", "params"), [("forward_kl", {}), ("js", {}), ("alpha", {"alpha": 0.5})])
def test_stored_answers_give_the_exact_gradient_of_the_divergence(name, params):
    p_ref, logits, logprobs = small_model()
    how = {"ref_logprobs_B_T": p_ref.log(), "divergence": generator(name, **params), "eta": 0.3}
    estimate = expectation(logprobs, p_ref, NEAR_PERFECT, **how)
    true = 0.3 * exact(name, p_ref, logprobs.exp(), **params)
    torch.testing.assert_close(estimate, true)
    torch.testing.assert_close(gradient(estimate, logits), gradient(true, logits))


def test_js_by_definition_is_js_in_value_and_gradient():
    p_ref, logits, logprobs = small_model()
    how = {"ref_logprobs_B_T": p_ref.log(), "divergence": "js_definition", "eta": 0.3}
    stored = expectation(logprobs, p_ref, NEAR_PERFECT, **how)
    on_policy = expectation(logprobs, logprobs.exp().detach(), ON_POLICY_DIVERGENCE, **how)
    p_theta = logprobs.exp()
    mean = (p_ref + p_theta) / 2
    halves = (p_ref * (p_ref / mean).log()).sum() / 2, (p_theta * (p_theta / mean).log()).sum() / 2
    for estimate, half in zip((stored, on_policy), halves, strict=True):
        torch.testing.assert_close(estimate, 0.3 * half)
        torch.testing.assert_close(gradient(estimate, logits), 0.3 * gradient(half, logits))
    true = 0.3 * exact("js", p_ref, p_theta)
    torch.testing.assert_close(stored + on_policy, true)
    torch.testing.assert_close(gradient(stored + on_policy, logits), gradient(true, logits))


def test_on_policy_explore_term_is_the_policy_gradient():
    _, logits, logprobs = small_model()
    rewards = torch.randn(6, dtype=torch.float64)
    how = {"old_logprobs_B_T": logprobs.detach(), "advantages_B_T": rewards, "divergence": FORWARD, "eta": 0}
    estimate = expectation(logprobs, logprobs.exp().detach(), EXPLORE, **how)
    torch.testing.assert_close(gradient(estimate, logits), -gradient((logprobs.exp() * rewards).sum(), logits))


def test_rehearsal_by_minus_log_likelihood():
    batch = hand_example()
    loss, _ = call(batch, divergence=divergence_of("likelihood"), eta=1.0)
    loss.backward()
    torch.testing.assert_close(batch["logprobs_B_T"].grad[1], torch.tensor([-0.5, -0.5, 0.0]).double())


def test_stored_log_probabilities_may_be_in_bf16():
    batch = {k: v.detach().bfloat16() if v.is_floating_point() else v for k, v in hand_example().items()}
    loss, _ = call(batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(call(hand_example())[0].item(), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"old_logprobs_B_T": None}, "old_logprobs_B_T is None, but tokens with loss id 1"),
        ({"advantages_B_T": None}, "advantages_B_T is None"),
        ({"ref_logprobs_B_T": None}, "ref_logprobs_B_T is None, but tokens with loss id 2"),
        ({"ref_logprobs_B_T": torch.zeros(2, 2)}, r"ref_logprobs_B_T has shape \(2, 2\)"),
        ({"advantages_B_T": torch.zeros(2)}, r"advantages_B_T has shape \(2,\)"),
        ({"loss_id_B_T": torch.full((2, 3), 4)}, r"unknown loss ids \[4\]"),
        ({"loss_id_B_T": torch.ones(2, 3)}, "integer dtype"),
        ({"loss_id_B_T": torch.full((2, 3), 3)}, "js_definition"),
        ({"denominators": (0, 1)}, "denominator of loss id 1 is 0"),
        ({"divergence": "js"}, "divergence is 'js'"),
        ({"eta": -1.0}, "eta is -1"),
        ({"eta": math.nan}, "eta is nan"),
        ({"clip_low": 1.5}, "clip_low is 1.5"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0"),
        ({"rkl_estimator": "k1"}, "rkl_estimator is 'k1'"),
        ({"aggregation": "mean"}, "aggregation is 'mean'"),
        ({"aggregation": "dr_grpo"}, "max_new_tokens is None"),
        ({"max_new_tokens": 5}, "max_new_tokens is 5"),
    ],
)
def test_wrong_calls_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        partitioned_loss(**{**hand_example(), "divergence": FORWARD, "eta": 1.0, **changes})


def test_advantages_of_a_group():
    rewards = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0], [1.0, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.float64)
    advantages = group_advantages(rewards)
    std = math.sqrt(7 / 8 / 8 * 8 / 7)  # variance with divisor n - 1: (7/8^2 + 49/64) / 7
    assert float(advantages[0, 0]) == pytest.approx((1 - 1 / 8) / (std + 1e-6))
    assert float(advantages[0, 1]) == pytest.approx((0 - 1 / 8) / (std + 1e-6))
    torch.testing.assert_close(advantages.sum(-1), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(group_advantages(rewards, scale="none"), rewards - rewards.mean(-1, keepdim=True))


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0, 1e9])
@pytest.mark.parametrize("size", [1, 3, 8, 10, 16])
def test_equal_rewards_give_exactly_zero(scale, value, size):
    for dtype in (torch.float32, torch.float64):
        assert (group_advantages(torch.full((2, size), value, dtype=dtype), scale=scale) == 0).all()


def test_unjudged_answers_are_left_out():
    with_gap = group_advantages(torch.tensor([[1.0, 0.0, math.nan, 0.0], [math.nan] * 4]))
    without = group_advantages(torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(with_gap[0, [0, 1, 3]], without[0])
    assert float(with_gap[0, 2]) == 0 and (with_gap[1] == 0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.8, 1.0]), min_size=1, max_size=16))
def test_advantages_are_centred_ordered_and_finite(rewards):
    advantages = group_advantages(torch.tensor([rewards]))[0]
    assert advantages.isfinite().all() and abs(float(advantages.sum())) < 1e-4
    order = torch.tensor(rewards).argsort(stable=True)
    assert (advantages[order].diff() >= 0).all()


def test_wrong_groups_are_refused():
    with pytest.raises(ValueError, match="scale is 'var'"):
        group_advantages(torch.zeros(1, 2), scale="var")
    with pytest.raises(ValueError, match="problems, samples"):
        group_advantages(torch.zeros(3))
