"""The training loop, visible from top to bottom: draw, roll out, verify, rehearse, update, log.

L = L_exp + eta * L_pef. Rollouts on D_exp carry group advantages and PPO-clip and no KL; stored answers of D_pef carry
the divergence through its generator. Both sets share micro-batches, told apart by a loss id for each token.

1. Token mean over the mini-batch for each set, two separate means (the authors average all rows together).
2. Rows whose advantage is exactly zero pass through no model, because their gradient is exactly zero; they stay in the
   denominators. With a reverse KL (`rkl`) or an entropy bonus on every token all rows pass.
3. The sampler draws from the whole distribution: the authors cut it at `top_p` = 0.9 and do not correct for it, which
   that setting of `TrainConfig` does too.
4. `dapo` has dynamic sampling and overlong shaping, which the authors' `dapo.sh` leaves out, and no KL, which it keeps.

It does not checkpoint within a run: a run of the CPU profile is a minute, and a stage is built whole or not at all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.config import MethodConfig, TrainConfig
from dphlib.divergences import generator
from dphlib.losses import (
    EXPLORE,
    IGNORE,
    NEAR_PERFECT,
    ON_POLICY_DIVERGENCE,
    Denominators,
    PartitionedLossStats,
    group_advantages,
    negative_log_likelihood,
    partitioned_loss,
)
from dphlib.machine import derive_seed, peak_gib
from dphlib.partition import Reference
from dphlib.sampler import SamplingConfig, TransformersSampler
from dphlib.scoring import TokenRow, answer_logprobs, batch_logprobs, micro_batches, score_rows
from dphlib.types import Answer, Group, Problem
from dphlib.verify import Verifier


@dataclass(slots=True)
class Row:
    """One answer to learn from; log-probs in nats, one for each answer token."""

    tokens: TokenRow
    loss_id: int
    advantage: float = 0.0
    old_logprobs: Sequence[float] = ()
    ref_logprobs: Sequence[float] = ()


class Cycle:
    """Endless draws without replacement: every item once, shuffled, then again. An empty one gives nothing."""

    def __init__(self, items: Sequence[Any], seed: int) -> None:
        self._items, self._random, self._left = list(items), random.Random(seed), []

    def draw(self, count: int) -> list[Any]:
        drawn: list[Any] = []
        while self._items and len(drawn) < count:
            if not self._left:
                self._left = self._random.sample(self._items, len(self._items))
            drawn.append(self._left.pop())
        return drawn


def train(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Problem],
    references: Sequence[Reference],
    verifier: Verifier,
    method: MethodConfig,
    config: TrainConfig,
    seed: int,
    *,
    base: PreTrainedModel | None = None,
    on_iteration: Callable[[dict[str, Any]], None] = lambda log: None,
) -> list[dict[str, Any]]:
    """Trains `policy` in place.

    Args:
        prompts: what is explored: all prompts for a baseline, D_exp for DPH. Empty: only rehearsal.
        references: stored answers, of D_pef or of all prompts; a method without a divergence leaves them alone. Empty
            with a divergence: only exploration.
        base: the initial policy, frozen: the online reference where the method needs one, else only for the
            logged `kl_to_base`.
        on_iteration: called with the iteration's log row after its update.

    Returns:
        One log row an iteration; notebook 04 explains every entry.

    Raises:
        ValueError: nothing to train on, or a method that needs the base model without it.
    """
    if not prompts and not (references and method.divergence):
        raise ValueError("nothing to train on: no prompt to explore and no stored answer to rehearse")
    if method.needs_reference and base is None:
        raise ValueError("this method needs the initial policy beside it (rkl, dph_js_definition): pass base")
    sampler = TransformersSampler(policy, tokenizer, batch_rows=1024)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.lr, weight_decay=0.0)
    prompt_cycle = Cycle(prompts, derive_seed("prompts", seed))
    reference_cycle = Cycle(references if method.divergence else [], derive_seed("references", seed))
    logs: list[dict[str, Any]] = []
    for iteration in range(1, config.iterations + 1):
        clock = _Clock()
        draw_seed = derive_seed("rollouts", seed, iteration)

        # 1. Roll out on the prompts to explore, and verify.
        groups = _roll_out(sampler, verifier, prompt_cycle, method, config, draw_seed, clock)
        rows, rewards = _exploration_rows(groups, tokenizer, method, config)

        # 2. Rehearse: stored answers with the log-probs that pi_ref gave them.
        stored = reference_cycle.draw(config.rehearsal_rows)
        rehearsal = _rehearsal_rows(stored, tokenizer)
        if method.divergence == "js_definition":
            rehearsal += _on_policy_rows(stored, sampler, tokenizer, config, draw_seed, clock)

        # 3. An online reference scores rollouts, for the methods that need one.
        reference_tokens = _score_by_reference(base, tokenizer, rows, rehearsal, method, clock)

        # 4. One optimizer step for each mini-batch.
        stats, norms, policy_tokens = [], [], 0
        for part in range(config.mini_batches):
            batch = rows[part :: config.mini_batches] + rehearsal[part :: config.mini_batches]
            step_stats, norm, tokens = update(policy, tokenizer.pad_token_id, optimizer, batch, method, config)
            stats.append(step_stats)
            norms.append(norm)
            policy_tokens += tokens
        clock.lap("update_s")

        # 5. Log.
        total = sum(stats[1:], start=stats[0])
        answers = [answer for group in groups for answer in group.answers]
        due = config.diagnose_every and (iteration == 1 or iteration % config.diagnose_every == 0)
        diagnose = base is not None and due
        logs.append(
            {
                "iteration": iteration,
                "reward": _mean([v.reward for g in groups for v in g.verdicts if v.reward is not None]),
                "entropy": _mean([answer.entropy for answer in answers]),
                "kl_to_base": _kl_to_base(base, tokenizer, groups) if diagnose else None,
                "response_tokens": _mean([len(answer.token_ids) for answer in answers]),
                "loss": float(total.loss) / config.mini_batches,
                "loss_explore": float(total.explore) / config.mini_batches,
                "loss_near_perfect": float(total.near_perfect + total.on_policy_divergence) / config.mini_batches,
                "grad_norm": _mean(norms),
                "clip_fraction": float(total.clip_fraction),
                "truncated": _mean([answer.truncated for answer in answers]),
                "informative_groups": sum(len({r for r in group if r is not None}) > 1 for group in rewards),
                "unjudged": sum(v.reward is None for g in groups for v in g.verdicts),
                "rl_rows": len(rows),
                "rehearsal_rows": len(rehearsal),
                "reference_tokens": reference_tokens,
                "policy_tokens": policy_tokens,
                **clock.seconds,
                "step_s": sum(clock.seconds.values()),
                "peak_gib": round(peak_gib(), 3),
            }
        )
        on_iteration(logs[-1])
    return logs


def update(
    policy: PreTrainedModel,
    pad_token_id: int,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Row],
    method: MethodConfig,
    config: TrainConfig,
) -> tuple[PartitionedLossStats, float, int]:
    """One optimizer step on `batch`.

    Returns:
        (statistics of the whole mini-batch, gradient norm before clipping, tokens of the rows learnt from,
        a prompt counted for each of its rows).
    """
    counts = {loss_id: sum(len(r.tokens[1]) for r in batch if r.loss_id == loss_id) for loss_id in range(1, 4)}
    denominators = Denominators(counts[EXPLORE], counts[NEAR_PERFECT], counts[ON_POLICY_DIVERGENCE])
    every_row = method.rkl_coef > 0 or method.entropy_coef > 0  # these have a gradient without an advantage
    learn = [row for row in batch if row.loss_id != EXPLORE or row.advantage != 0 or every_row]
    policy.train()
    total, tokens = None, 0
    for indices in micro_batches([row.tokens for row in learn], config.token_budget):
        rows = [learn[i] for i in indices]
        logprobs_B_T, mask_B_T, entropy_B_T = score_rows(
            policy, pad_token_id, [row.tokens for row in rows], with_entropy=method.entropy_coef > 0
        )
        loss, stats = partitioned_loss(
            logprobs_B_T,
            loss_id_B_T=torch.tensor([[row.loss_id] for row in rows]).where(mask_B_T, IGNORE),
            old_logprobs_B_T=_padded([row.old_logprobs for row in rows], mask_B_T),
            advantages_B_T=torch.tensor([[row.advantage] for row in rows]),
            ref_logprobs_B_T=_padded([row.ref_logprobs for row in rows], mask_B_T),
            entropy_B_T=entropy_B_T,
            divergence=_divergence(method),
            eta=method.eta,
            clip_low=method.clip_low,
            clip_high=method.clip_high,
            dual_clip=config.dual_clip,
            rkl_coef=method.rkl_coef,
            entropy_coef=method.entropy_coef,
            denominators=denominators,
        )
        loss.backward()
        total = stats if total is None else total + stats
        tokens += sum(len(prompt) + len(answer) for prompt, answer in (row.tokens for row in rows))
    policy.eval()
    if total is None:  # every group agreed and nothing is rehearsed: no gradient, the weights stay
        zero = torch.zeros(())
        return PartitionedLossStats(*([zero] * len(PartitionedLossStats.__dataclass_fields__))), 0.0, 0
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, float(norm), tokens


def _divergence(method: MethodConfig) -> Any:
    if method.divergence == "js_definition":
        return "js_definition"
    if method.divergence == "likelihood":
        return negative_log_likelihood
    if method.divergence is None:
        return generator("forward_kl")  # a baseline has no token for it
    return generator(method.divergence, **({"alpha": method.alpha} if method.alpha is not None else {}))


def _roll_out(
    sampler: TransformersSampler,
    verifier: Verifier,
    prompts: Cycle,
    method: MethodConfig,
    config: TrainConfig,
    seed: int,
    clock: _Clock,
) -> list[Group]:
    """A batch of verified groups; with dynamic sampling, groups with equal rewards are replaced by further draws."""
    setting = SamplingConfig(config.rollouts, 1.0, config.top_p, config.max_new_tokens)
    groups: list[Group] = []
    for attempt in range(config.max_draws if method.dynamic_sampling else 1):
        drawn = prompts.draw(config.prompts - len(groups))
        answers = sampler.sample(drawn, setting, derive_seed(seed, attempt))
        clock.lap("sample_s")
        verified = verifier.groups(drawn, answers)
        clock.lap("verify_s")
        groups += [g for g in verified if not method.dynamic_sampling or 0 < g.correct < len(g.answers)]
        if len(groups) == config.prompts:
            break
    return groups


def _exploration_rows(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, method: MethodConfig, config: TrainConfig
) -> tuple[list[Row], list[list[float | None]]]:
    """Rows with group advantages; an answer without judgement gets none and is left out of its group's mean."""
    rewards = [
        [_shaped(v.reward, a, method, config) for a, v in zip(g.answers, g.verdicts, strict=True)] for g in groups
    ]
    if not groups:
        return [], []
    as_numbers = [[float("nan") if r is None else r for r in group] for group in rewards]
    advantages_P_G = group_advantages(torch.tensor(as_numbers))
    prompts = tokenizer([group.problem.prompt for group in groups])["input_ids"]
    rows = [
        Row((prompt, answer.token_ids), EXPLORE, advantage, answer.logprobs)
        for prompt, group, advantages in zip(prompts, groups, advantages_P_G.tolist(), strict=True)
        for answer, advantage in zip(group.answers, advantages, strict=True)
    ]
    return rows, rewards


def _shaped(reward: float | None, answer: Answer, method: MethodConfig, config: TrainConfig) -> float | None:
    """DAPO's soft overlong penalty: 0 up to the buffer, then linear, -1 at the token limit."""
    if reward is None or not method.overlong_shaping:
        return reward
    over = len(answer.token_ids) - (config.max_new_tokens - config.overlong_buffer)
    return reward - min(1.0, max(0, over) / config.overlong_buffer)


def _rehearsal_rows(stored: Sequence[Reference], tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    if not stored:
        return []
    prompts = tokenizer([reference.problem.prompt for reference in stored])["input_ids"]
    return [
        Row((prompt, reference.token_ids), NEAR_PERFECT, ref_logprobs=reference.logprobs)
        for prompt, reference in zip(prompts, stored, strict=True)
    ]


def _on_policy_rows(
    stored: Sequence[Reference],
    sampler: TransformersSampler,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    seed: int,
    clock: _Clock,
) -> list[Row]:
    """The second half of JS by its definition: one answer of the policy as it is now to each rehearsed prompt."""
    if not stored:
        return []
    setting = SamplingConfig(1, 1.0, 1.0, config.max_new_tokens)
    problems = [reference.problem for reference in stored]
    answers = sampler.sample(problems, setting, derive_seed(seed, "on-policy"))
    clock.lap("sample_s")
    prompts = tokenizer([problem.prompt for problem in problems])["input_ids"]
    return [
        Row((prompt, answer[0].token_ids), ON_POLICY_DIVERGENCE)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _score_by_reference(
    base: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    rehearsal: Sequence[Row],
    method: MethodConfig,
    clock: _Clock,
) -> int:
    """Fills `ref_logprobs` of the rows that need an online reference; returns the tokens that passed through it."""
    needing = list(rows) if method.rkl_coef > 0 else []
    needing += [row for row in rehearsal if row.loss_id == ON_POLICY_DIVERGENCE]
    if needing:
        with torch.inference_mode():
            for indices in micro_batches([row.tokens for row in needing], 16_384):
                batch = [needing[i] for i in indices]
                scored_B_T, _ = batch_logprobs(base, tokenizer.pad_token_id, [row.tokens for row in batch])
                for row, scored in zip(batch, scored_B_T.tolist(), strict=True):
                    row.ref_logprobs = scored[: len(row.tokens[1])]
    clock.lap("reference_s")
    return sum(len(row.tokens[0]) + len(row.tokens[1]) for row in needing)


def _kl_to_base(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, groups: Sequence[Group]) -> float | None:
    """Estimate of KL(pi_theta || pi_base), nats a token, on two answers of each group, taken before the update."""
    pairs = [(g.problem.prompt, a) for g in groups for a in g.answers[:2]]
    if not pairs:
        return None
    scored = answer_logprobs(base, tokenizer, [(prompt, answer.token_ids) for prompt, answer in pairs])
    difference = sum(sum(a.logprobs) - sum(row) for (_, a), row in zip(pairs, scored, strict=True))
    return difference / sum(len(answer.token_ids) for _, answer in pairs)


def _padded(values: Sequence[Sequence[float]], mask_B_T: torch.Tensor) -> torch.Tensor:
    padded = torch.zeros(mask_B_T.shape)
    for index, row in enumerate(values):
        padded[index, : len(row)] = torch.tensor(row)
    return padded


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


class _Clock:
    """Wall seconds of each phase of an iteration."""

    def __init__(self) -> None:
        self.seconds = {"sample_s": 0.0, "verify_s": 0.0, "reference_s": 0.0, "update_s": 0.0}
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now
