"""Rivals: each rule against an example worked by hand, and every rival in the training loop."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import combinations, product

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import RewardsFirstToken, policy, small_profile, sum_problems, tokenizer
from test_trainer import CONFIG, JudgesAlways, prepared, run, weights

from dphlib import rivals
from dphlib.analysis.labels import NAMES
from dphlib.experiment import train_run
from dphlib.experiment.pipeline import Pipeline
from dphlib.losses import EXPLORE, IGNORE, NEAR_PERFECT, generator, group_advantages, partitioned_loss
from dphlib.models.tuning import mixed_with_base
from dphlib.rivals import RIVALS, Answers, ReviewQueue, Reviews
from dphlib.settings.methods import CONFIGS, CONTROLS, METHOD_CONFIGS
from dphlib.settings.variants import RunConfig
from dphlib.training import loop
from dphlib.training.rows import Row, exploration_rows, set_advantages, weigh_tokens
from dphlib.types import Answer, Group, Verdict

NAN = math.nan


def standard(rewards_P_G):
    return group_advantages(torch.from_numpy(rewards_P_G)).numpy()


def of(rewards, logprobs=None, reference=None, kl_weight=0.0):
    rewards = np.array(rewards, dtype=float)
    return Answers(rewards, np.zeros_like(rewards) if logprobs is None else np.array(logprobs), reference, kl_weight)


# --- Advantages of answers -------------------------------------------------------------------------


def test_pass_at_k_by_hand():
    """Of 8 with k = 4 a correct answer among c gets 8 C(8-c, 3) / 70, so with six right or more there is nothing."""
    rule = RIVALS["pass_at_k"].advantages
    for right, expected in ((0, 0), (1, 8 * 35 / 70), (2, 8 * 20 / 70), (5, 8 * 1 / 70), (6, 0), (8, 0)):
        rewards = [1.0] * right + [0.0] * (8 - right)
        np.testing.assert_allclose(rule(of([rewards]), standard), [[expected] * right + [0] * (8 - right)])


def test_pass_at_k_is_its_sum_over_all_subsets_for_any_reward_and_leaves_unjudged_answers_out():
    """Equation 33 as it is written, by enumeration; an answer without judgement is no member of any subset."""
    rewards = np.array([0.3, 1.0, NAN, -0.2, 0.3, 0.9])
    (got,) = rivals.pass_at_k(of([rewards]), standard, share=0.5)
    judged = [0, 1, 3, 4, 5]
    expected = np.zeros(6)
    for subset in combinations(judged, 3):
        for i in subset:
            others = max(rewards[j] for j in subset if j != i)
            expected[i] += 5 * (max(rewards[j] for j in subset) - others) / math.comb(5, 3)
    np.testing.assert_allclose(got, expected)
    assert not rivals.pass_at_k(of([[1.0, NAN, NAN, 0, NAN, NAN]]), standard, share=0.5).any()


def test_the_gradient_of_pass_at_k_is_unbiased():
    """One correct answer of probability p: the mean over all groups of four is d/dp of 1 - (1 - p)^2, exactly."""
    p, found = 0.3, 0.0
    for rewards in product((0.0, 1.0), repeat=4):
        chance = math.prod(p if r else 1 - p for r in rewards)
        score = [1 / p if r else -1 / (1 - p) for r in rewards]
        (advantages,) = rivals.pass_at_k(of([rewards]), standard, share=0.5)
        found += chance * float(np.mean(advantages * score))
    assert found == pytest.approx(2 * (1 - p))


def test_the_unlikeliest_right_answer_gains_most_also_where_all_are_right():
    """Four answers, ranks 0 to 3 by log-prob per token: rewards 1, 0.9375, 0.875, 0.8125, and a wrong one stays 0."""
    rule = RIVALS["unlikely"].advantages
    logprobs = [[-9.0, -0.5, -1.0, -0.1], [-9.0, -0.5, -1.0, -0.1]]
    got = rule(of([[1.0, 1, 1, 1], [1, 0, 1, 1]], logprobs), standard)
    expected = np.array([[1, 0.875, 0.9375, 0.8125], [1, 0, 0.9375, 0.8125]])
    np.testing.assert_allclose(got, standard(expected))
    assert got[0].argsort().tolist() == [3, 1, 2, 0] and got[0].max() > 1


def test_focal_weights_fall_with_the_share_of_right_answers():
    """1 of 4, 3 of 4 and, one not judged, 1 of 3 right: GRPO's advantages times 3/4, 1/4 and 2/3."""
    rewards = np.array([[1.0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, NAN]])
    got = RIVALS["f_grpo"].advantages(of(rewards), standard)
    np.testing.assert_allclose(got, standard(rewards) * np.array([[3 / 4], [1 / 4], [2 / 3]]))


def test_mara_makes_the_target_of_reverse_kl_uniform_over_right_answers():
    """pi_ref exp(r / beta) / Z with the rule's rewards: both right answers alike, the wrong one as it was."""
    beta, reference = 0.1, np.log(np.array([[0.6, 0.1, 0.3]]))
    (got,) = RIVALS["mara"].advantages(of([[1.0, 1.0, 0.0]], None, reference, beta), standard)
    rewards = np.array([1, 1 + beta * math.log(0.6 / 0.1), 0])
    np.testing.assert_allclose(got, rewards - rewards.mean())
    target = np.exp(reference[0] + got / beta)
    assert target[0] == pytest.approx(target[1])
    assert target[0] / target[2] == pytest.approx(0.6 / 0.3 * math.exp(1 / beta))
    none = RIVALS["mara"].advantages(of([[0.0, 0.0, NAN]], None, reference, beta), standard)
    assert none.tolist() == [[0, 0, 0]]


# --- Tokens ------------------------------------------------------------------------------------------

ADVANTAGES = np.array([2.0, 2.0, -1.0, -1.0, 0.0, -2.0])
LOGPROBS = np.array([-0.1, -3.0, -0.1, -3.0, -0.1, -5.7])
COVARIANCES = np.array([2, 2, -1, -1, 0, -2]) * (LOGPROBS + 2)  # the means are 0 and -2


def test_covariances_by_hand():
    np.testing.assert_allclose(rivals.covariances(ADVANTAGES, LOGPROBS), COVARIANCES)
    np.testing.assert_allclose(COVARIANCES, [3.8, -2.0, -1.9, 1.0, 0.0, 7.4])


def test_kl_cov_holds_the_tokens_of_the_largest_covariance():
    for share, chosen in ((0.002, [5]), (0.4, [0, 5]), (0.5, [0, 3, 5])):
        kept, old_kl = rivals.kl_cov(ADVANTAGES, LOGPROBS, np.random.default_rng(0), share=share, weight=1.0)
        assert np.flatnonzero(old_kl).tolist() == chosen and set(old_kl[chosen]) == {1.0} and (kept == 1).all()
    assert not rivals.kl_cov(
        np.zeros(3), np.arange(3.0), np.random.default_rng(0), share=1.0, weight=1.0
    ).old_kl_N.any()


def test_clip_cov_drops_tokens_between_its_bounds_at_random():
    """Within 0.9 and 5 are the first (3.8) and the fourth (1.0); one or, at a share of a third, both drop out."""
    dropped = set()
    for seed in range(20):
        rule = rivals.clip_cov(ADVANTAGES, LOGPROBS, np.random.default_rng(seed), share=1e-4, low=0.9, high=5.0)
        dropped.add(tuple(np.flatnonzero(rule.kept_N == 0)))
    assert dropped == {(0,), (3,)}
    rule = rivals.clip_cov(ADVANTAGES, LOGPROBS, np.random.default_rng(0), share=1 / 3, low=0.9, high=5.0)
    assert rule.kept_N.tolist() == [0, 1, 1, 0, 1, 1] and not rule.old_kl_N.any()


def test_the_loss_adds_the_weighted_distance_to_the_old_policy():
    old, ratio = torch.tensor([[-1.0, -2.0, -1.0]]).double(), torch.tensor([[0.5, 2.0, 2.0]]).double()
    batch = {
        "loss_id_B_T": torch.tensor([[EXPLORE, EXPLORE, IGNORE]]),
        "old_logprobs_B_T": old,
        "advantages_B_T": torch.ones(1, 1).double(),
        "divergence": generator("forward_kl"),
        "eta": 1.0,
        "clip_low": 1.0,
        "clip_high": 1e6,
    }
    logprobs = (old + ratio.log()).requires_grad_()
    plain, _ = partitioned_loss(logprobs, **batch)
    held, _ = partitioned_loss(logprobs, old_kl_B_T=torch.tensor([[0.0, 3.0, 9.0]]).double(), **batch)
    assert plain.item() == pytest.approx(-(0.5 + 2.0) / 2), "no clip"
    assert (held - plain).item() == pytest.approx(3 * math.log(2) / 2)
    (gradient,) = torch.autograd.grad(held - plain, logprobs)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 1.5, 0.0]]).double())


def groups(*rewards):
    """A group for each list of rewards; answer i of group g has i + 1 tokens of log-prob -(g + i + 1)."""
    made = []
    for g, group in enumerate(rewards):
        problem = sum_problems(g + 1)[-1]
        answers = [
            Answer(problem.id, i, tuple(range(6, 7 + i)), (-1.0 - g - i,) * (i + 1), "", False, 0.0, (5,))
            for i in range(len(group))
        ]
        verdicts = tuple(Verdict("correct" if reward else "wrong") for reward in group)
        made.append(Group(problem, tuple(answers), verdicts))
    return made


def test_each_step_chooses_its_tokens_by_the_log_probs_of_the_drawing_policy():
    """A penalty from the second step on: before it, log pi/pi_old is 0 but for rounding, whose sign would be learnt."""
    method = CONFIGS["kl_cov"]
    rows, rewards = exploration_rows(groups([1, 0], [1, 0]), method, CONFIG)
    set_advantages(rows, rewards, method, CONFIG)
    stored = Row(((5,), (6, 7)), NEAR_PERFECT, ref_logprobs=(-1.0, -1.0))
    batches = [[rows[1], rows[2], stored], [rows[0], rows[3]]]
    weigh_tokens(batches, method, 0)
    assert [sum(row.old_kl) for row in rows] == [1, 0, 0, 0] and stored.kept == ()
    assert all(list(row.kept) == [1.0] * len(row.tokens[1]) for row in rows)
    plain, _ = exploration_rows(groups([1, 0]), CONFIGS["grpo"], CONFIG)
    weigh_tokens([plain], CONFIGS["grpo"], 0)
    assert all(row.kept == () and row.old_kl == () for row in plain)


# --- Prompts ----------------------------------------------------------------------------------------


def test_a_mastered_prompt_waits_comes_again_and_leaves_or_goes_back_to_the_end():
    queue = ReviewQueue(Reviews(chance=1.0, every=5, share=0.1), seed=0)
    queue.saw([("a", True), ("b", False), ("c", True), ("a", True), ("d", True)])
    assert queue.due(4, 20) == [] and queue.due(5, 4) == [], "0.1 of 4 prompts is none"
    assert queue.due(5, 20) == ["a", "c"]
    queue.saw([("a", False), ("c", True), ("e", True)])
    assert queue.due(10, 30) == ["d", "a", "e"], "a was lost and waits behind d; c is done"
    queue.saw([])
    assert queue.due(15, 30) == []


def test_a_prompt_enters_with_a_chance_and_a_restored_queue_goes_on_alike():
    names = [(f"p{i}", True) for i in range(400)]
    queue = ReviewQueue(RIVALS["remind"].reviews, seed=1)
    queue.saw(names[:200])
    again = ReviewQueue(RIVALS["remind"].reviews, seed=2)
    again.restore(queue.state())
    for each in (queue, again):
        each.saw(names[200:])
    assert queue.state() == again.state()
    assert 70 < len(queue.state()["waiting"]) < 130  # 0.25 of 400


class SolvesOne(RewardsFirstToken):
    """The first problem is solved throughout; keeps the prompts of each batch."""

    def __init__(self):
        self.batches = []

    def groups(self, problems, answers):
        self.batches.append([p.id for p in problems])
        return [
            replace(group, verdicts=(Verdict("correct"),) * len(group.answers)) if group.problem.id == "p0" else group
            for group in super().groups(problems, answers)
        ]


def test_reviews_take_places_of_the_batch_and_survive_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(RIVALS, "remind", RIVALS["remind"]._replace(reviews=Reviews(chance=1.0, every=2, share=0.2)))

    def trained(verifier, iterations, folder=None):
        learner, config = policy(), replace(CONFIG, prompts=10, iterations=iterations, checkpoint_every=1)
        arguments = (tokenizer(), sum_problems(40), [], verifier, CONFIGS["remind"], config, 0)
        logs = loop.train(learner, *arguments, folder=folder)
        assert all(log["groups"] == 10 for log in logs)
        return weights(learner)

    whole, parts = SolvesOne(), SolvesOne()
    expected = trained(whole, 8)
    seen = [name for batch in whole.batches for name in batch]
    assert len(seen) == 80 and seen.count("p0") > 2, "twice by its turn"
    trained(parts, 5, tmp_path)
    assert torch.equal(trained(parts, 8, tmp_path), expected) and parts.batches == whole.batches


# --- In training -------------------------------------------------------------------------------------


def test_every_rival_is_a_method_of_its_own_with_a_source_and_a_name():
    assert set(RIVALS) <= set(CONTROLS)
    for name, rival in RIVALS.items():
        assert NAMES[name] == rival.label and "arXiv" in rival.source
        assert (
            replace(CONFIGS[name], rival=None, **{k: getattr(CONFIGS["grpo"], k) for k in rival.changes})
            == (METHOD_CONFIGS["grpo"])
        ), "GRPO but for its rule and changes"


@pytest.mark.parametrize("name", [name for name in RIVALS if name not in ("wise_ft", "remind")])
def test_a_rivals_rule_reaches_the_weights(name, monkeypatch):
    """The same run without the rule, all else of the rival's equal, comes out otherwise; all learn something."""
    reachable = partial(rivals.clip_cov, share=0.1, low=0.1, high=5.0)  # of a policy with random weights
    monkeypatch.setitem(RIVALS, "clip_cov", RIVALS["clip_cov"]._replace(tokens=reachable))
    trained = []
    for method in (CONFIGS[name], replace(CONFIGS[name], rival=None)):
        learner = policy()
        with torch.no_grad():
            learner.get_output_embeddings().weight.mul_(8)  # answers of different likelihood
        _, logs = run(method, learner=learner, iterations=3, rollouts=8)
        assert all(math.isfinite(log["loss"]) for log in logs) and any(log["grad_norm"] > 0 for log in logs)
        trained.append(weights(learner))
    assert not torch.equal(*trained)


def test_a_group_that_is_right_throughout_teaches_by_unlikeliness_and_nothing_by_focal_weights():
    for name, learns in (("unlikely", True), ("f_grpo", False), ("pass_at_k", False)):
        _, logs = run(name, verifier=JudgesAlways("correct"), iterations=1)
        assert (logs[0]["grad_norm"] > 0) == learns, name


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_weights_are_moved_their_share_of_the_way_back(kind):
    """All weights, or what an adapter adds: the change of a layer's output is halved."""
    learner, base = prepared(kind), policy()
    trained, _ = run("grpo", learner=learner, iterations=2, lr=1e-2, options={"base": None})
    name = "model.layers.0.self_attn.q_proj"
    layer, initial = (
        trained.get_submodule(f"base_model.model.{name}" if kind == "lora" else name),
        base.get_submodule(name),
    )
    given = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    start, end = initial(given), layer(given)
    assert (end - start).abs().max() > 1e-3
    with mixed_with_base(trained, base, 0.5):
        torch.testing.assert_close(layer(given), (start + end) / 2, atol=1e-6, rtol=1e-5)
    assert torch.equal(layer(given), end), "and as it was afterwards"


class RewardsInAStage(RewardsFirstToken):
    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.slow
def test_wise_ft_keeps_the_mean_of_grpo_and_the_base(tmp_path, monkeypatch):
    monkeypatch.setattr(train_run, "Verifier", RewardsInAStage)
    settings = small_profile()
    pipeline = Pipeline(
        tmp_path, replace(settings, evaluation=replace(settings.evaluation, steps=(), step_suite="in_domain"))
    )
    folders = [pipeline.train_one(RunConfig(name, "main", 0)).path / "model" for name in ("grpo", "wise_ft")]
    grpo, mixed, base = (load_file(f / "model.safetensors") for f in (*folders, pipeline.base_folder()))
    assert any(not torch.equal(grpo[name], base[name]) for name in grpo)
    for name, weight in mixed.items():
        torch.testing.assert_close(weight, (grpo[name] + base[name]) / 2, atol=1e-7, rtol=1e-5)


def test_mara_needs_the_initial_policy_and_counts_its_tokens():
    _, logs = run("mara", iterations=1)
    assert logs[0]["reference_tokens"] == logs[0]["policy_tokens"] > 0
    with pytest.raises(ValueError, match="pass base"):
        loop.train(
            policy(), tokenizer(), sum_problems(4), [], RewardsFirstToken(), CONFIGS["mara"], CONFIG, 0, base=None
        )
