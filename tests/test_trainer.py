"""The training loop: bitwise repeatable, learns what is rewarded, and skips nothing that has a gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import policy, sum_problems, tokenizer

from dphlib import trainer
from dphlib.config import METHOD_CONFIGS, TrainConfig
from dphlib.losses import EXPLORE, NEAR_PERFECT
from dphlib.partition import Reference
from dphlib.sampler import SamplingConfig, TransformersSampler
from dphlib.scoring import answer_logprobs
from dphlib.types import Group, Verdict

CONFIG = TrainConfig(
    iterations=10, prompts=4, rollouts=4, rehearsal_rows=4, lr=3e-3, max_new_tokens=6, overlong_buffer=2,
    diagnose_every=5,
)  # fmt: skip
DIVERGENT = [name for name, method in METHOD_CONFIGS.items() if method.divergence]


class RewardsFirstToken:
    """A stand-in for the verifier: an answer is correct when its first token is even."""

    def groups(self, problems, answers):
        return [
            Group(p, tuple(group), tuple(Verdict("correct" if a.token_ids[0] % 2 == 0 else "wrong") for a in group))
            for p, group in zip(problems, answers, strict=True)
        ]


class JudgesAlways(RewardsFirstToken):
    def __init__(self, outcome):
        self.outcome = outcome

    def groups(self, problems, answers):
        return [
            Group(p, tuple(g), (Verdict(self.outcome),) * len(g)) for p, g in zip(problems, answers, strict=True)
        ]


def references(count: int = 6) -> list[Reference]:
    sampler = TransformersSampler(policy(), tokenizer())
    problems = [replace(p, id=f"r{p.id}") for p in sum_problems(count)]
    answers = sampler.sample(problems, SamplingConfig(1, 1.0, 1.0, 6), 5)
    return [Reference(p, a[0].token_ids, a[0].logprobs) for p, a in zip(problems, answers, strict=True)]


def run(method: str, seed: int = 0, verifier=None, stored=None, prompts=None, **changes):
    learner, base = policy(), policy().requires_grad_(False)
    logs = trainer.train(
        learner, tokenizer(), sum_problems(8) if prompts is None else prompts,
        references() if stored is None else stored, verifier or RewardsFirstToken(), METHOD_CONFIGS[method],
        replace(CONFIG, **changes), seed, base=base,
    )  # fmt: skip
    return learner, logs


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", list(METHOD_CONFIGS))
def test_ten_steps_repeat_bitwise_and_depend_on_the_seed(method):
    (first, logs), (again, logs_again), (other, _) = run(method), run(method), run(method, seed=1)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    timeless = [{k: v for k, v in row.items() if not k.endswith(("_s", "_gib"))} for row in logs]
    assert timeless == [{k: v for k, v in row.items() if not k.endswith(("_s", "_gib"))} for row in logs_again]


def test_reward_rises_under_grpo():
    _, logs = run("grpo", iterations=40)
    early, late = (sum(row["reward"] for row in logs[part]) / 10 for part in (slice(0, 10), slice(-10, None)))
    assert late > early + 0.2


@pytest.mark.parametrize("method", DIVERGENT)
def test_rehearsal_holds_the_stored_answers(method):
    """Without any reward to follow, the divergence alone must bring a displaced policy back to its references."""
    stored, base = references(), policy().requires_grad_(False)
    learner = policy()
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    config = replace(CONFIG, iterations=30, lr=1e-3)
    method_config = replace(METHOD_CONFIGS[method], eta=1.0)
    arguments = (tokenizer(), [], stored, RewardsFirstToken(), method_config, config, 0)
    logs = trainer.train(learner, *arguments, base=base)
    assert logs[-1]["loss_near_perfect"] < 0.7 * logs[0]["loss_near_perfect"]
    assert logs[-1]["rl_rows"] == 0


def rows(advantages):
    prompts = [tokenizer()(p.prompt)["input_ids"] for p in sum_problems(len(advantages))]
    answers = [tuple(range(5, 8 + i)) for i in range(len(advantages))]
    return [
        trainer.Row((prompt, answer), EXPLORE, advantage, [-3.0] * len(answer))
        for prompt, answer, advantage in zip(prompts, answers, advantages, strict=True)
    ]


def step_gradient(batch, method="dph_f", token_budget=8192):
    learner = policy()
    captured = {}

    class Capture(torch.optim.SGD):
        def step(self, closure=None):
            captured["gradient"] = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])

    config = replace(CONFIG, token_budget=token_budget, max_grad_norm=1e9)
    optimizer = Capture(learner.parameters(), lr=0.0)
    stats, _, tokens = trainer.update(learner, tokenizer().pad_token_id, optimizer, batch, METHOD_CONFIGS[method], config)
    return captured["gradient"], stats, tokens


def mixed_batch():
    stored = [
        trainer.Row((tokenizer()(r.problem.prompt)["input_ids"], r.token_ids), NEAR_PERFECT, ref_logprobs=r.logprobs)
        for r in references(3)
    ]
    for row in stored:  # off the reference, where the divergence has a gradient
        row.ref_logprobs = [value - 0.5 for value in row.ref_logprobs]
    return rows([1.0, -1.0, 0.0, 2.0]) + stored


def test_the_step_does_not_depend_on_how_micro_batches_are_cut():
    whole, stats, _ = step_gradient(mixed_batch())
    cut, cut_stats, _ = step_gradient(mixed_batch(), token_budget=1)
    torch.testing.assert_close(whole, cut, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(stats.loss, cut_stats.loss, atol=1e-6, rtol=1e-5)


def test_rows_without_advantage_pass_through_no_model_and_keep_their_place_in_the_mean():
    """Their gradient is zero, so leaving them out must equal passing them with an advantage of almost zero."""
    skipped, _, few = step_gradient(mixed_batch())
    passed_batch = mixed_batch()
    passed_batch[2].advantage = 1e-30
    passed, _, all_tokens = step_gradient(passed_batch)
    torch.testing.assert_close(skipped, passed, atol=1e-7, rtol=1e-4)
    assert all_tokens - few == sum(map(len, passed_batch[2].tokens))


def test_rkl_passes_every_row_and_counts_its_reference_tokens():
    _, logs = run("rkl", iterations=2)
    assert all(row["reference_tokens"] > 0 for row in logs)
    assert logs[0]["policy_tokens"] == logs[0]["reference_tokens"]
    for method in ("grpo", "dph_f", "dph_js"):
        assert all(row["reference_tokens"] == 0 for row in run(method, iterations=2)[1])


def test_on_policy_at_the_first_update_and_the_sampler_follows_the_step():
    learner, _ = run("grpo", iterations=1, mini_batches=1)
    problems = sum_problems(3)
    answers = TransformersSampler(learner, tokenizer()).sample(problems, SamplingConfig(2, 1.0, 1.0, 6), 0)
    pairs = [(p.prompt, a) for p, g in zip(problems, answers, strict=True) for a in g]
    now = answer_logprobs(learner, tokenizer(), [(prompt, a.token_ids) for prompt, a in pairs])
    before = answer_logprobs(policy(), tokenizer(), [(prompt, a.token_ids) for prompt, a in pairs])
    sampled = [list(a.logprobs) for _, a in pairs]
    assert sum(now, []) == pytest.approx(sum(sampled, []), abs=1e-5)
    assert sum(now, []) != pytest.approx(sum(before, []), abs=1e-3)


@pytest.mark.parametrize("outcome", ["correct", "wrong"])
def test_agreeing_groups_leave_the_weights_alone_under_grpo(outcome):
    learner, logs = run("grpo", verifier=JudgesAlways(outcome), iterations=2)
    assert torch.equal(weights(learner), weights(policy()))
    assert [row["informative_groups"] for row in logs] == [0, 0]


def test_unjudged_answers_are_counted_and_train_nothing():
    learner, logs = run("grpo", verifier=JudgesAlways("infra_error"), iterations=1)
    assert logs[0]["unjudged"] == 16
    assert logs[0]["reward"] is None
    assert torch.equal(weights(learner), weights(policy()))


def test_dapo_draws_again_and_stops_at_its_limit():
    _, logs = run("dapo", verifier=JudgesAlways("wrong"), iterations=1)
    assert logs[0]["rl_rows"] == 0
    assert logs[0]["loss"] == 0.0


def test_empty_sets():
    _, only_exploration = run("dph_f", stored=[], iterations=2)
    assert all(row["rehearsal_rows"] == 0 and row["loss_near_perfect"] == 0 for row in only_exploration)
    with pytest.raises(ValueError, match="nothing to train on"):
        run("grpo", prompts=[])
    with pytest.raises(ValueError, match="nothing to train on"):
        run("dph_js", prompts=[], stored=[])


def test_a_method_that_needs_a_reference_says_so():
    with pytest.raises(ValueError, match="pass base"):
        trainer.train(
            policy(), tokenizer(), sum_problems(2), [], RewardsFirstToken(), METHOD_CONFIGS["rkl"], CONFIG, 0
        )
