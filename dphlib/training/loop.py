"""The training loop, visible from top to bottom: draw, roll out, verify, rehearse, update, log.

L = L_exp + eta * L_pef. Rollouts on D_exp carry group advantages and PPO-clip and no KL; stored answers of D_pef carry
the divergence through its generator. Both sets share micro-batches, told apart by a loss id for each token.

1. Token mean over the mini-batch for each set, two separate means (the authors average all rows together). Sequence
   mean and Dr. GRPO's constant divisor are settings.
2. Rows whose advantage is exactly zero pass through no model, because their gradient is exactly zero; they stay in the
   denominators. With a reverse KL (`rkl`) or an entropy bonus on every token all rows pass.
3. The sampler draws from the whole distribution: the authors cut it at `top_p` = 0.9 and do not correct for it, which
   that setting of `TrainConfig` does too.
4. `dapo` has dynamic sampling and overlong shaping, which the authors' `dapo.sh` leaves out, and no KL, which it keeps.
5. Where another program than the trainer samples, `importance_cap` weights each token's advantage for the difference.
   The reverse KL, the entropy bonus and the fresh answers of JS by definition are not weighted.
6. The initial policy is a second model, or for an adapter the same model with its adapter switched off.
7. On a base in float16 the backward pass runs on the loss times a power of two near the batch's number of tokens, or a
   token's share of the mean would be rounded to nothing; a step whose gradient overflows all the same is left out.

Rows are made in `rows`, log entries in `log`; what passes rows through a model is in `step` and `scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.losses import ON_POLICY_DIVERGENCE
from dphlib.models.tuning import initial_policy, optimizer
from dphlib.partition import Reference
from dphlib.runtime.files import RunError, digest
from dphlib.runtime.machine import derive_seed
from dphlib.sampling.protocol import Sampler, SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.methods import MethodConfig
from dphlib.settings.stages import TrainConfig
from dphlib.training import memory
from dphlib.training.checkpoints import Checkpoints, fingerprint
from dphlib.training.importance import ImportanceStats, importance_weights
from dphlib.training.log import Clock, log_row
from dphlib.training.rows import Cycle, Row, exploration_rows, learning, rehearsal_rows, token_count
from dphlib.training.step import scored, update
from dphlib.types import Group, Problem
from dphlib.verify import Verifier

_CHANGES_NO_NUMBER = ("iterations", "diagnose_every", "token_budget", "checkpoint_every")
"""Settings that may change when a run goes on from a checkpoint (`token_budget` changes rounding)."""


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
    sampler: Sampler | None = None,
    folder: Path | None = None,
    on_iteration: Callable[[dict[str, Any]], None] = lambda log: None,
    paged_8bit: bool | None = None,
) -> list[dict[str, Any]]:
    """Trains `policy` in place.

    Args:
        policy: what of it requires a gradient is trained; `tuning.prepare` makes LoRA and QLoRA policies.
        prompts: what is explored: all prompts for a baseline, D_exp for DPH. Empty: only rehearsal.
        references: stored answers, of D_pef or of all prompts; a method without a divergence leaves them alone. Empty
            with a divergence: only exploration.
        base: the initial policy, frozen: the online reference where the method needs one, else only for the
            logged `kl_to_base`. An adapted policy needs none.
        sampler: draws the rollouts; by default the policy itself through Transformers.
        folder: keeps the log and, every `config.checkpoint_every` iterations, a checkpoint; a run that was interrupted
            goes on from the last. It belongs to this run alone.
        on_iteration: called with the iteration's log row after its update, not again for iterations before a restart.
        paged_8bit: see `tuning.optimizer`.

    Returns:
        One log row per iteration, entries as in `log.METRICS`.

    Raises:
        ValueError: nothing to train on, or a method that needs the base model without it.
        RunError: out of memory, with the settings to change; a checkpoint that cannot be used.
    """
    if not prompts and not (references and method.divergence):
        raise ValueError("nothing to train on: no prompt to explore and no stored answer to rehearse")
    if method.needs_reference and base is None and not hasattr(policy, "disable_adapter"):
        raise ValueError("this method needs the initial policy beside it (rkl, dph_js_definition): pass base")
    sampler = sampler or TransformersSampler(policy, tokenizer, batch_rows=1024)
    backend = str(sampler.record()["sampler"])
    adamw = optimizer(policy, config.lr, paged_8bit=paged_8bit)
    prompt_cycle = Cycle(prompts, derive_seed("prompts", seed))
    reference_cycle = Cycle(references if method.divergence else [], derive_seed("references", seed))
    cycles = {"prompts": prompt_cycle, "references": reference_cycle}
    recipe = _recipe(policy, prompts, references, method, config, seed)
    kept = Checkpoints(folder, recipe) if folder else None
    logs = kept.restore(policy, adamw, cycles) if kept else []
    if len(logs) > config.iterations:
        raise RunError(f"{folder} holds a run of {len(logs)} iterations, {config.iterations} are asked for; remove it")
    for iteration in range(len(logs) + 1, config.iterations + 1):
        clock = Clock()
        draw_seed = derive_seed("rollouts", seed, iteration)

        # 1. Roll out on the prompts to explore, by the policy as it is now, and verify.
        with memory.advised(f"the rollouts of iteration {iteration}", memory.sampling_advice, config, backend):
            sampler.sync(policy)
            drawn_by = sampler.record()
            clock.lap("sync_s")
            groups = _roll_out(sampler, verifier, prompt_cycle, method, config, draw_seed, clock)
            rows, rewards = exploration_rows(groups, tokenizer, method, config)

            # 2. Rehearse: stored answers with the log-probs that pi_ref gave them.
            stored = reference_cycle.draw(config.rehearsal_rows)
            rehearsal = rehearsal_rows(stored, tokenizer)
            if method.divergence == "js_definition":
                rehearsal += _on_policy_rows(stored, sampler, tokenizer, config, draw_seed, clock)

        # 3. An online reference scores rollouts, for the methods that need one; the trainer scores what another
        #    program drew.
        longest = max((token_count([row]) for row in (*rows, *rehearsal)), default=0)
        present = (policy, config, longest, backend)
        with memory.advised(f"the scoring of iteration {iteration}", memory.scoring_advice, *present):
            with initial_policy(policy, base) as initial:
                reference_tokens = _score_by_reference(initial, tokenizer, rows, rehearsal, method, config, clock)
            weights = _weigh_by_sampler(policy, tokenizer, learning(rows, method), config, clock)

        # 4. One optimizer step for each mini-batch.
        stats, norms, policy_tokens = [], [], 0
        with memory.advised(f"the update of iteration {iteration}", memory.update_advice, *present):
            for part in range(config.mini_batches):
                step = (iteration - 1) * config.mini_batches + part + 1
                for group in adamw.param_groups:
                    group["lr"] = learning_rate(config, step)
                batch = rows[part :: config.mini_batches] + rehearsal[part :: config.mini_batches]
                step_stats, norm, tokens = update(policy, tokenizer.pad_token_id, adamw, batch, method, config)
                stats.append(step_stats)
                norms.append(norm)
                policy_tokens += tokens
        clock.lap("update_s")

        # 5. Log, and keep what is needed to go on from here.
        due = config.diagnose_every and (iteration == 1 or iteration % config.diagnose_every == 0)
        with initial_policy(policy, base) as initial:
            kl = _kl_to_base(initial, tokenizer, groups, config) if initial is not None and due else None
        logs.append(
            log_row(
                iteration, groups, rewards, stats, norms, clock,
                weights=weights.to_log(), sampler=drawn_by, kl_to_base=kl, lr=learning_rate(config, step),
                rl_rows=len(rows), rehearsal_rows=len(rehearsal),
                policy_tokens=policy_tokens, reference_tokens=reference_tokens,
            )
        )  # fmt: skip
        if kept:
            kept.log(logs[-1])
        on_iteration(logs[-1])
        if kept and config.checkpoint_every and iteration % config.checkpoint_every == 0:
            kept.save(iteration, policy, adamw, cycles)
    return logs


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of an optimizer step, counted from 1: linear warm-up, then constant.

    >>> [learning_rate(TrainConfig(lr=0.5, warmup_steps=2), step) for step in (1, 2, 3)]
    [0.25, 0.5, 0.5]
    """
    return config.lr if step >= config.warmup_steps else config.lr * step / config.warmup_steps


def _roll_out(
    sampler: Sampler,
    verifier: Verifier,
    prompts: Cycle,
    method: MethodConfig,
    config: TrainConfig,
    seed: int,
    clock: Clock,
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


def _on_policy_rows(
    stored: Sequence[Reference],
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    seed: int,
    clock: Clock,
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
    initial: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    rehearsal: Sequence[Row],
    method: MethodConfig,
    config: TrainConfig,
    clock: Clock,
) -> int:
    """Fills `ref_logprobs` of the rows that need an online reference; returns the tokens that passed through it."""
    needing = list(rows) if method.rkl_coef > 0 else []
    needing += [row for row in rehearsal if row.loss_id == ON_POLICY_DIVERGENCE]
    if needing:
        reference_logprobs = scored(initial, tokenizer, [row.tokens for row in needing], config)
        for row, logprobs in zip(needing, reference_logprobs, strict=True):
            row.ref_logprobs = logprobs
    clock.lap("reference_s")
    return token_count(needing)


def _weigh_by_sampler(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    config: TrainConfig,
    clock: Clock,
) -> ImportanceStats:
    """Weights for rows that another program drew; their old log-probs become the trainer's. Nothing without a cap."""
    stats = ImportanceStats()
    if config.importance_cap is not None:
        trainers = scored(policy, tokenizer, [row.tokens for row in rows], config)
        for row, logprobs in zip(rows, trainers, strict=True):
            ours, theirs = torch.tensor([logprobs]), torch.tensor([row.old_logprobs])
            weights_1_T, row_stats = importance_weights(
                ours, theirs, torch.ones_like(ours, dtype=torch.bool), config.importance_cap
            )
            row.old_logprobs, row.weights = logprobs, weights_1_T[0].tolist()
            stats += row_stats
    clock.lap("rescore_s")
    return stats


def _kl_to_base(
    initial: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    config: TrainConfig,
) -> float | None:
    """Estimate of KL(pi_theta || pi_base), nats a token, on two answers of each group, taken before the update."""
    pairs = [(g.problem.prompt, a) for g in groups for a in g.answers[:2]]
    if not pairs:
        return None
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = [(prompt, answer.token_ids) for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
    base_logprobs = scored(initial, tokenizer, answers, config)
    difference = sum(sum(a.logprobs) - sum(row) for (_, a), row in zip(pairs, base_logprobs, strict=True))
    return difference / sum(len(answer.token_ids) for _, answer in pairs)


def _recipe(
    policy: PreTrainedModel,
    prompts: Sequence[Problem],
    references: Sequence[Reference],
    method: MethodConfig,
    config: TrainConfig,
    seed: int,
) -> dict[str, Any]:
    """What decides a run's numbers; a checkpoint belongs to one recipe."""
    settings = {name: value for name, value in asdict(config).items() if name not in _CHANGES_NO_NUMBER}
    return {
        "method": asdict(method),
        "train": settings,
        "seed": seed,
        "prompts": digest([problem.to_json() for problem in prompts]),
        "references": digest([[reference.problem.id, reference.token_ids] for reference in references]),
        "base": fingerprint(policy),
        "formats": sorted({str(p.dtype) for p in policy.parameters() if p.requires_grad}),
    }
