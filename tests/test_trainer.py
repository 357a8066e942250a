"""The training loop: bitwise repeatable, learns what is rewarded, and skips nothing that has a gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from small import RewardsFirstToken, logged_names, policy, sum_problems, tokenizer, untimed

from dphlib.losses import EXPLORE, NEAR_PERFECT, count_denominators
from dphlib.models.tuning import prepare
from dphlib.partition import Reference
from dphlib.runtime.files import RunError
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.methods import CONTROL_CONFIGS, METHOD_CONFIGS, MethodConfig
from dphlib.settings.stages import TrainConfig, TuningConfig
from dphlib.training import loop, scoring
from dphlib.training import step as steps
from dphlib.training.rows import Row, batch_denominators, mini_batches
from dphlib.training.scoring import answer_logprobs
from dphlib.types import Group, Verdict

CONFIG = TrainConfig(
    iterations=10,
    prompts=4,
    rollouts=4,
    rehearsal_rows=4,
    lr=3e-3,
    max_new_tokens=6,
    overlong_buffer=2,
    diagnose_every=5,
)
EVERY = METHOD_CONFIGS | CONTROL_CONFIGS
DIVERGENT = [name for name, method in METHOD_CONFIGS.items() if method.divergence]


class JudgesAlways(RewardsFirstToken):
    def __init__(self, outcome):
        self.outcome = outcome

    def groups(self, problems, answers):
        return [Group(p, tuple(g), (Verdict(self.outcome),) * len(g)) for p, g in zip(problems, answers, strict=True)]


def references(count: int = 6) -> list[Reference]:
    sampler = TransformersSampler(policy(), tokenizer())
    problems = [replace(p, id=f"r{p.id}") for p in sum_problems(count)]
    answers = sampler.sample(problems, SamplingConfig(1, 1.0, 1.0, 6), 5)
    return [Reference(p, a[0].token_ids, a[0].logprobs) for p, a in zip(problems, answers, strict=True)]


def run(
    method: str | MethodConfig,
    seed: int = 0,
    verifier=None,
    stored=None,
    prompts=None,
    learner=None,
    options=None,
    **changes,
):
    learner = learner or policy()
    logs = loop.train(
        learner,
        tokenizer(),
        sum_problems(8) if prompts is None else prompts,
        references() if stored is None else stored,
        verifier or RewardsFirstToken(),
        EVERY[method] if isinstance(method, str) else method,
        replace(CONFIG, **changes),
        seed,
        **{"base": policy().requires_grad_(False)} | (options or {}),
    )
    return learner, logs


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", list(EVERY))
def test_ten_steps_repeat_bitwise_and_depend_on_the_seed(method):
    (first, logs), (again, logs_again), (other, _) = run(method), run(method), run(method, seed=1)
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))
    assert untimed(logs) == untimed(logs_again)


def test_reward_rises_under_grpo():
    _, logs = run("grpo", iterations=40, rollouts=8, lr=1e-2)
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
    logs = loop.train(learner, *arguments, base=base)
    assert logs[-1]["loss_near_perfect"] < 0.7 * logs[0]["loss_near_perfect"]
    assert logs[-1]["rl_rows"] == 0


def rows(advantages):
    prompts = [tokenizer()(p.prompt)["input_ids"] for p in sum_problems(len(advantages))]
    answers = [tuple(range(5, 8 + i)) for i in range(len(advantages))]
    return [
        Row((prompt, answer), EXPLORE, advantage, [-3.0] * len(answer))
        for prompt, answer, advantage in zip(prompts, answers, advantages, strict=True)
    ]


def step_gradient(batch, method="dph_f", token_budget=8192, **changes):
    learner = policy()
    captured = {}

    class Capture(torch.optim.SGD):
        def step(self, closure=None):
            captured["gradient"] = torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]])

    config = replace(CONFIG, token_budget=token_budget, max_grad_norm=1e9, **changes)
    optimizer = Capture(learner.parameters(), lr=0.0)
    step = loop.update(learner, tokenizer().pad_token_id, optimizer, batch, EVERY[method], config)
    return captured["gradient"], step.losses, step.tokens


def mixed_batch():
    stored = [
        Row((tokenizer()(r.problem.prompt)["input_ids"], r.token_ids), NEAR_PERFECT, ref_logprobs=r.logprobs)
        for r in references(3)
    ]
    for row in stored:  # off the reference, where the divergence has a gradient
        row.ref_logprobs = [value - 0.5 for value in row.ref_logprobs]
    return rows([1.0, -1.0, 0.0, 2.0]) + stored


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
    now, before = ([value for row in rows for value in row] for rows in (now, before))
    assert now == pytest.approx([value for _, a in pairs for value in a.logprobs], abs=1e-5)
    assert now != pytest.approx(before, abs=1e-3)


def test_top_p_draws_likely_tokens_only_and_keeps_the_whole_distributions_logprobs(monkeypatch):
    """The authors' hidden bias, reproduced: the log-probs handed to the update are those without the nucleus."""
    made, seen, mean = loop.exploration_rows, [], {}
    monkeypatch.setattr(loop, "exploration_rows", lambda *arguments: seen.append(made(*arguments)) or seen[-1])
    for top_p in (1.0, 0.5):
        run("grpo", iterations=1, top_p=top_p, lr=0.0)
        rows, _ = seen[-1]
        whole = scoring.scored(policy(), tokenizer().pad_token_id, [row.tokens for row in rows])
        for row, logprobs_T in zip(rows, whole, strict=True):
            assert list(row.drawn_logprobs) == pytest.approx(logprobs_T.tolist(), abs=1e-5)
        mean[top_p] = torch.cat(whole).mean()
    assert mean[0.5] > mean[1.0] + 0.05


def test_an_entropy_bonus_raises_the_entropy_of_a_sharp_policy_and_nothing_else_does():
    """Rewards that agree have no gradient, so what moves the policy is the bonus alone, on every row."""
    entropy = {}
    for coef in (0.0, 0.5):
        learner = policy()
        with torch.no_grad():
            learner.get_output_embeddings().weight.mul_(12)
        method = replace(METHOD_CONFIGS["grpo"], entropy_coef=coef)
        arguments = (tokenizer(), sum_problems(8), [], JudgesAlways("wrong"), method, replace(CONFIG, iterations=12), 0)
        logs = loop.train(learner, *arguments)
        entropy[coef] = (logs[0]["entropy"], sum(log["entropy"] for log in logs[-4:]) / 4)
        assert all((log["policy_tokens"] > 0) == (coef > 0) for log in logs)
    assert entropy[0.5][0] == entropy[0.0][0]
    assert entropy[0.5][1] > entropy[0.0][1] + 0.3


def gradient_by_hand(batch, of_tokens) -> torch.Tensor:
    """Of the mean over all tokens of what `of_tokens` makes of -log pi, from the model's own logits."""
    learner, losses = policy(), []
    for row in batch:
        prompt, answer = row.tokens
        logits_T_V = learner(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        losses.append(of_tokens(torch.nn.functional.cross_entropy(logits_T_V, torch.tensor(answer), reduction="none")))
    torch.cat(losses).mean().backward()
    return torch.cat([p.grad.flatten() for p in learner.parameters()])


def test_sft_rehearsal_has_the_gradient_of_the_mean_negative_log_likelihood():
    """eta times the mean of -log pi over the stored answers' tokens."""
    stored = [row for row in mixed_batch() if row.loss_id == NEAR_PERFECT]
    got, _, _ = step_gradient(stored, "sft_rehearsal")
    expected = gradient_by_hand(stored, lambda nll_T: CONTROL_CONFIGS["sft_rehearsal"].eta * nll_T)
    torch.testing.assert_close(got, expected, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("method", ["rkl", "rkl_k2"])
def test_rkl_is_trained_with_its_estimators_gradient(method):
    """Of the mean over tokens of k3, or of x^2 / 2 for k2, x = log pi_ref - log pi."""
    batch = rows([0.0, 0.0, 0.0])
    for row in batch:
        row.ref_logprobs = [-3.0] * len(row.tokens[1])
    got, _, _ = step_gradient(batch, method)

    def penalty(nll_T):
        x_T = nll_T - 3.0
        return EVERY[method].rkl_coef * (x_T.square() / 2 if method == "rkl_k2" else x_T.exp() - 1 - x_T)

    torch.testing.assert_close(got, gradient_by_hand(batch, penalty), atol=1e-6, rtol=1e-4)


def test_grpo_on_d_exp_leaves_stored_answers_alone():
    learner, logs = run("grpo_dexp", iterations=2)
    nothing_stored, _ = run("grpo_dexp", stored=[], iterations=2)
    assert torch.equal(weights(learner), weights(nothing_stored))
    assert all(row["rehearsal_rows"] == 0 and row["loss_near_perfect"] == 0 for row in logs)


def test_dph_f_without_weight_is_grpo_on_d_exp_at_its_clip():
    """What the study `controls` rests on: eta = 0 leaves GRPO with clip_high 0.28, to the last bit of every step."""
    no_weight = replace(METHOD_CONFIGS["dph_f"], rehearses="none", divergence=None, eta=0.0)
    high = replace(CONTROL_CONFIGS["grpo_dexp"], clip_high=0.28)
    assert no_weight == high
    assert torch.equal(weights(run(no_weight, iterations=2)[0]), weights(run(high, iterations=2)[0]))


@pytest.mark.parametrize(
    ("outcome", "reward", "unjudged"), [("correct", 1, 0), ("wrong", 0, 0), ("infra_error", None, 16)]
)
def test_groups_that_agree_or_were_not_judged_leave_the_weights_alone_under_grpo(outcome, reward, unjudged):
    learner, logs = run("grpo", verifier=JudgesAlways(outcome), iterations=2)
    assert torch.equal(weights(learner), weights(policy()))
    assert all((row["informative_groups"], row["reward"], row["unjudged"]) == (0, reward, unjudged) for row in logs)


def test_dapo_draws_again_and_stops_at_its_limit():
    _, logs = run("dapo", verifier=JudgesAlways("wrong"), iterations=1)
    assert (logs[0]["rl_rows"], logs[0]["groups"], logs[0]["rounds"]) == (0, 0, CONFIG.max_draws)
    assert logs[0]["loss"] == 0.0


class OnePromptInFourIsUndecided(RewardsFirstToken):
    """Groups of every fourth problem have one right answer, those of the others none; keeps what it is given."""

    def __init__(self):
        self.rounds = []

    def groups(self, problems, answers):
        self.rounds.append([int(p.id[1:]) % 4 == 0 for p in problems])
        right = [Verdict("correct"), *[Verdict("wrong")] * (CONFIG.rollouts - 1)]
        none = [Verdict("wrong")] * CONFIG.rollouts
        return [
            Group(p, tuple(g), tuple(right if int(p.id[1:]) % 4 == 0 else none))
            for p, g in zip(problems, answers, strict=True)
        ]


def test_dapo_refills_its_batch_by_whole_batches_and_cuts_it_to_size():
    """Eight prompts, two of them undecided: four take three rounds of four prompts or more."""
    verifier = OnePromptInFourIsUndecided()
    _, logs = run("dapo", verifier=verifier, iterations=3)
    left = iter(verifier.rounds)
    for log in logs:
        undecided = [sum(next(left)) for _ in range(log["rounds"])]
        assert sum(undecided) >= CONFIG.prompts > sum(undecided[:-1]), "no round more than are needed"
        assert log["groups"] == log["informative_groups"] == CONFIG.prompts and log["grad_norm"] > 0
        assert log["rl_rows"] == CONFIG.prompts * CONFIG.rollouts
    assert not list(left) and all(len(drawn) == CONFIG.prompts for drawn in verifier.rounds)


def test_dapo_learns_from_what_is_there_after_its_last_round():
    _, logs = run("dapo", verifier=OnePromptInFourIsUndecided(), iterations=2, max_draws=2)
    for log in logs:  # two rounds are all eight prompts
        assert (log["rounds"], log["groups"], log["rl_rows"]) == (2, 2, 2 * CONFIG.rollouts) and log["grad_norm"] > 0
    assert all((row["rounds"], row["groups"]) == (1, CONFIG.prompts) for row in run("grpo", iterations=1)[1])


def test_what_there_is_nothing_to_train_on_is_refused():
    _, only_exploration = run("dph_f", stored=[], iterations=2)
    assert all(row["rehearsal_rows"] == 0 and row["loss_near_perfect"] == 0 for row in only_exploration)
    with pytest.raises(ValueError, match="nothing to train on"):
        run("grpo", prompts=[])
    with pytest.raises(ValueError, match="nothing to train on"):
        run("dph_js", prompts=[], stored=[])
    with pytest.raises(ValueError, match="pass base"):
        run("rkl", options={"base": None})


# --- Another program samples -----------------------------------------------------------------------


class DrawsElsewhere(TransformersSampler):
    """A sampler by the protocol that copies the policy when it is told to, and is off by `shift` in its log-probs."""

    def __init__(self, shift: float = 0.0, model=None) -> None:
        super().__init__(model or policy(), tokenizer())
        self.shift, self.synced = shift, 0

    def sync(self, learner):
        self.synced += 1
        if learner is not self.model:
            self.model.load_state_dict(learner.state_dict())

    def record(self):
        return {"sampler": "elsewhere 1.0", "adapter_sha256": f"{self.synced:064x}"}

    def sample(self, problems, config, seed, **_):
        groups = super().sample(problems, config, seed)
        shifted = [[replace(a, logprobs=tuple(v - self.shift for v in a.logprobs)) for a in g] for g in groups]
        return shifted


def test_a_sampler_by_the_protocol_is_synced_before_each_draw_and_recorded():
    sampler = DrawsElsewhere()
    learner, logs = run("dph_f", options={"sampler": sampler}, iterations=3)
    alone, _ = run("dph_f", iterations=3)
    assert torch.equal(weights(learner), weights(alone)), "an exact copy draws the same answers"
    assert [row["sampler"] for row in logs] == ["elsewhere 1.0"] * 3
    assert [int(row["adapter_sha256"], 16) for row in logs] == [1, 2, 3]


def test_weights_of_an_exact_sampler_are_one_and_change_nothing_but_rounding():
    plain, logs = run("dph_f", iterations=2)
    weighted, weighted_logs = run("dph_f", options={"sampler": DrawsElsewhere()}, iterations=2, importance_cap=2.0)
    assert all(row["tis_mean"] is None for row in logs)
    for row in weighted_logs:
        assert row["tis_mean"] == pytest.approx(1.0, abs=1e-4) and row["tis_truncated"] == 0.0
        assert row["sampler_gap"] < 1e-4 and 0 <= row["sampler_kl"] < 1e-6
    torch.testing.assert_close(weights(plain), weights(weighted), atol=2e-4, rtol=0)


@pytest.mark.parametrize(("shift", "expected"), [(0.5, math.exp(0.5)), (2.0, 2.0), (-1.0, math.exp(-1.0))])
def test_the_gradient_is_multiplied_by_the_truncated_weight_and_the_ratio_starts_at_one(shift, expected):
    """Every token has the same gap here, so the whole exploration gradient must be the weight's multiple."""
    gradients = {}
    for cap in (None, 2.0):
        options = {"sampler": DrawsElsewhere(shift if cap else 0.0)}
        _, logs = run("grpo", options=options, iterations=1, mini_batches=1, importance_cap=cap, max_grad_norm=1e9)
        gradients[cap] = logs[0]["grad_norm"]
        assert logs[0]["clip_fraction"] == 0.0 and logs[0]["old_kl"] == pytest.approx(0.0, abs=1e-6)
    assert gradients[2.0] == pytest.approx(expected * gradients[None], rel=1e-3)
    assert logs[0]["tis_mean"] == pytest.approx(expected, rel=1e-4)
    assert logs[0]["tis_max"] == pytest.approx(math.exp(shift), rel=1e-3)
    assert logs[0]["tis_truncated"] == (1.0 if shift > math.log(2) else 0.0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_ratio_is_exactly_one_at_the_first_update_in_bf16_too(monkeypatch, kind, checkpointing):
    """Rounding in 16 bits differs with how rows are batched, so old log-probs have to be those of the update's pass.

    Scored apart, ratios were off by up to 6e-4 here, where prompts have different lengths.
    """
    prompts = [replace(p, prompt=f"{p.prompt} " * (1 + i % 4)) for i, p in enumerate(sum_problems(8))]
    learner = prepared(kind, checkpointing, torch.bfloat16)
    computed, ratios = steps.partitioned_loss, []

    def watched(logprobs_B_T, *, loss_id_B_T, old_logprobs_B_T, **others):
        ratios.append((logprobs_B_T.detach() - old_logprobs_B_T)[loss_id_B_T == EXPLORE].exp())
        given = {"loss_id_B_T": loss_id_B_T, "old_logprobs_B_T": old_logprobs_B_T}
        return computed(logprobs_B_T, **given, **others)

    monkeypatch.setattr(steps, "partitioned_loss", watched)
    options = {"sampler": DrawsElsewhere(0.3, learner), "base": None}
    changes = {"importance_cap": 2.0, "iterations": 1, "mini_batches": 1, "rollouts": 8, "token_budget": 120}
    _, logs = run("grpo", prompts=prompts, learner=learner, options=options, **changes)
    assert len(ratios) > 1 and sum(map(len, ratios)) > 50
    assert max(float((ratio - 1).abs().max()) for ratio in ratios) == 0
    assert logs[0]["old_kl"] == 0 and logs[0]["tis_mean"] == pytest.approx(math.exp(0.3), rel=0.02)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_whole_groups_pass_each_prompt_once_in_an_iteration(monkeypatch, cap):
    """Packed, under checkpointing: at most 1.1 tokens enter the embedding for each one that is learnt from."""
    made, seen, passed = loop.exploration_rows, [], []
    monkeypatch.setattr(loop, "exploration_rows", lambda *arguments: seen.append(made(*arguments)) or seen[-1])
    learner = prepared("lora", checkpointing=True)
    entered = lambda _, given, __: passed.append(given[0].numel() if learner.training else 0)  # noqa: E731
    learner.get_input_embeddings().register_forward_hook(entered)
    run("rkl", learner=learner, iterations=1, rollouts=8, whole_groups=True, importance_cap=cap, options={"base": None})
    rows = [row.tokens for row in seen[0][0]]
    unique = sum(map(len, {prompt for prompt, _ in rows})) + sum(len(answer) for _, answer in rows)
    assert len(rows) == 32 and 0.5 * unique < sum(passed) <= 1.1 * unique
    parts = [{row.tokens[0] for row in batch} for batch in mini_batches(seen[0][0], [], replace(CONFIG, rollouts=8))]
    assert parts[0] == parts[1], "by default every prompt has answers in both steps"


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize(("checkpointing", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_another_programs_log_probs_are_not_taken_for_a_distance_from_the_base(kind, checkpointing, dtype):
    """One that adds a constant to each: the policy still is the base, so the estimate of the KL is exactly 0."""
    learner = prepared(kind, checkpointing, dtype)
    options = {"sampler": DrawsElsewhere(0.3, learner)}
    options |= {"base": policy().to(dtype).requires_grad_(False) if kind == "full" else None}
    _, logs = run("grpo", learner=learner, options=options, iterations=2, diagnose_every=1)
    assert logs[0]["kl_to_base"] == 0 and 1e-4 < abs(logs[1]["kl_to_base"]) < 0.1


# --- Adapters --------------------------------------------------------------------------------------


def prepared(kind, checkpointing=False, dtype=torch.float32):
    tuning = TuningConfig(kind, rank=2, alpha=4, gradient_checkpointing=checkpointing)
    return prepare(policy().to(dtype), tuning)


@pytest.mark.parametrize("method", ["rkl", "dph_js_definition"])
def test_an_adapters_initial_policy_is_the_model_with_the_adapter_switched_off(method):
    """It gives what a second model gives, and the adapter is on again afterwards."""
    with_base, logs = run(method, learner=prepared("lora"), iterations=3)
    alone, alone_logs = run(method, learner=prepared("lora"), options={"base": None}, iterations=3)
    assert torch.equal(weights(with_base), weights(alone))
    assert [row["kl_to_base"] for row in logs] == [row["kl_to_base"] for row in alone_logs]
    assert alone_logs[0]["kl_to_base"] is not None and logs[-1]["grad_norm"] > 0


# --- Settings --------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_over_optimizer_steps_and_no_longer():
    _, logs = run("grpo", iterations=3, lr=0.004, warmup_steps=4)
    assert [row["lr"] for row in logs] == [0.002, 0.004, 0.004]  # two steps an iteration, the last one is logged
    slow, _ = run("grpo", iterations=1, lr=0.004, warmup_steps=1000)
    fast, _ = run("grpo", iterations=1, lr=0.004)
    moved = [(weights(learner) - weights(policy())).abs().max() for learner in (slow, fast)]
    assert moved[0] < 0.01 * moved[1]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "dr_grpo"])
def test_every_aggregation_is_that_of_the_whole_batch_however_it_is_cut(aggregation):
    config = replace(CONFIG, aggregation=aggregation)
    batch = mixed_batch()
    longest = max(len(row.tokens[1]) for row in batch)
    ids_B_T = torch.tensor([[row.loss_id] * len(row.tokens[1]) + [0] * (longest - len(row.tokens[1])) for row in batch])
    limit = config.max_new_tokens if aggregation == "dr_grpo" else None
    assert batch_denominators(batch, config) == count_denominators(ids_B_T, aggregation, limit)
    whole, stats, _ = step_gradient(batch, aggregation=aggregation)
    cut, cut_stats, _ = step_gradient(mixed_batch(), token_budget=1, aggregation=aggregation)
    torch.testing.assert_close(whole, cut, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(stats.loss, cut_stats.loss, atol=1e-6, rtol=1e-5)
    if aggregation != "token_mean":
        assert not torch.allclose(whole, step_gradient(mixed_batch())[0], atol=1e-5)


# --- The log and out of memory ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "rkl", "dph_js_definition"])
def test_a_log_row_has_every_documented_entry_in_order_and_no_other(method):
    _, logs = run(method, iterations=1)
    assert list(logs[0]) == logged_names()
    assert all(isinstance(value, (int, float, str, type(None))) for value in logs[0].values())


OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.00 GiB of which 1.00 GiB is free."
)


@pytest.mark.parametrize(
    ("place", "settings", "says"),
    [
        (
            (steps, "score_rows"),
            {},
            r"update of iteration 1 \(CUDA out of memory\).*budget 8192 -> 4096 \(same result, 50 %",
        ),
        ((steps, "score_rows"), {}, r"gradient_checkpointing False -> True.*kind full -> lora"),
        ((steps, "score_rows"), {"token_budget": 8}, r"max_new_tokens 6 -> 3 \(the longest row has \d+ tokens\)"),
        ((loop, "scored"), {}, r"scoring of iteration 1.*token_budget 8192 -> 4096"),
        ((loop._Run, "_roll_out"), {}, r"rollouts of iteration 1.*batch_rows to half"),
    ],
)
def test_out_of_memory_names_the_settings_to_change_and_by_how_much(monkeypatch, place, settings, says):
    def full(*_, **__):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(*place, full)
    with pytest.raises(RunError, match=says):
        run("rkl", iterations=1, **settings)


def test_another_error_is_not_taken_for_a_full_memory(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(steps, "score_rows", fails)
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"):
        run("grpo", iterations=1)
