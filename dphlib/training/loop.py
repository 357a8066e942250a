"""The training loop, visible from top to bottom: draw, roll out, verify, rehearse, update, log.

L = L_exp + eta * L_pef. Rollouts on D_exp carry group advantages and PPO-clip and no KL; stored answers of D_pef carry
the divergence through its generator. Both share micro-batches; a loss id for each token says which loss it belongs to.
How this departs from the authors' code is listed in docs/method.md.

Rows are made in `rows`, passed through models in `scoring` and `step`; log entries are in `log`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.losses import EXPLORE, ON_POLICY_DIVERGENCE
from dphlib.models.tuning import initial_policy, optimizer
from dphlib.partition import Reference
from dphlib.rivals import RIVALS, ReviewQueue
from dphlib.runtime.files import InputError, RunError, digest
from dphlib.runtime.machine import derive_seed
from dphlib.sampling.protocol import Sampler, SamplingConfig, prompt_ids
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.methods import MethodConfig
from dphlib.settings.stages import TrainConfig
from dphlib.training import memory, packing
from dphlib.training.checkpoints import Checkpoints, fingerprint
from dphlib.training.log import Clock, log_row
from dphlib.training.packing import TokenRow
from dphlib.training.rows import (
    Cycle,
    Row,
    exploration_rows,
    learning,
    mini_batches,
    rehearsal_rows,
    set_advantages,
    token_count,
    weigh_tokens,
)
from dphlib.training.scoring import drawn_by_policy, scored
from dphlib.training.step import update
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
        One log row per iteration; docs/training_log.md explains the entries.

    Raises:
        ValueError: nothing to train on, or a method that needs the base model without it.
        RunError: out of memory, with the settings to change; a checkpoint that cannot be used.
    """
    if not prompts and not (references and method.divergence):
        raise InputError("nothing to train on: no prompt to explore and no stored answer to rehearse")
    if method.needs_reference and base is None and not hasattr(policy, "disable_adapter"):
        raise ValueError("this method needs the initial policy beside it (rkl, dph_js_definition): pass base")
    stored = references if method.divergence else []
    tokenised = list(zip(stored, prompt_ids(tokenizer, [reference.problem for reference in stored]), strict=True))
    reviews = RIVALS[method.rival].reviews if method.rival else None
    queue = ReviewQueue(reviews, derive_seed("reviews", seed)) if reviews else None
    run = _Run(
        policy,
        tokenizer,
        base,
        sampler or TransformersSampler(policy, tokenizer),
        verifier,
        method,
        config,
        seed,
        optimizer(policy, config.lr, paged_8bit=paged_8bit),
        Cycle(prompts, derive_seed("prompts", seed)),
        Cycle(tokenised, derive_seed("references", seed)),
        queue,
        {problem.id: problem for problem in prompts} if queue else {},
    )
    cycles = {"prompts": run.prompts, "references": run.references} | ({"reviews": queue} if queue else {})
    kept = Checkpoints(folder, _recipe(policy, prompts, references, method, config, seed)) if folder else None
    logs = kept.restore(policy, run.optimizer, cycles) if kept else []
    if len(logs) > config.iterations:
        raise RunError(f"{folder} holds a run of {len(logs)} iterations, {config.iterations} are asked for; remove it")
    for iteration in range(len(logs) + 1, config.iterations + 1):
        logs.append(run.iterate(iteration))
        if kept:
            kept.log(logs[-1])
        on_iteration(logs[-1])
        if kept and config.checkpoint_every and iteration % config.checkpoint_every == 0:
            kept.save(iteration, policy, run.optimizer, cycles)
    return logs


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of an optimizer step, counted from 1: linear warm-up, then constant.

    >>> [learning_rate(TrainConfig(lr=0.5, warmup_steps=2), step) for step in (1, 2, 3)]
    [0.25, 0.5, 0.5]
    """
    return config.lr if step >= config.warmup_steps else config.lr * step / config.warmup_steps


@dataclass(slots=True)
class _Run:
    """What every iteration of a run uses; the arguments of `train`, its optimizer and the order of its data."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    base: PreTrainedModel | None
    sampler: Sampler
    verifier: Verifier
    method: MethodConfig
    config: TrainConfig
    seed: int
    optimizer: torch.optim.Optimizer
    prompts: Cycle
    references: Cycle
    reviews: ReviewQueue | None
    by_id: Mapping[str, Problem]

    def iterate(self, iteration: int) -> dict[str, Any]:
        """One iteration; returns its log row."""
        policy, method, config = self.policy, self.method, self.config
        backend = str(self.sampler.record()["sampler"])
        clock = Clock()

        # 1. Roll out on the prompts to explore, by the policy as it is now, and verify.
        with memory.advised(f"the rollouts of iteration {iteration}", memory.sampling_ways(config, backend)):
            draw_seed = derive_seed("rollouts", self.seed, iteration)
            self.sampler.sync(policy)
            drawn_by = self.sampler.record()
            clock.lap("sync_s")
            reviewed = self.reviews.due(iteration, config.prompts) if self.reviews else []
            groups, rounds = self._roll_out([self.by_id[name] for name in reviewed], draw_seed, clock)
            if self.reviews:
                self.reviews.saw((group.problem.id, group.correct == len(group.answers)) for group in groups)
            rows, rewards = exploration_rows(groups, method, config)

            # 2. Rehearse: stored answers with the log-probs that pi_ref gave them.
            stored = self.references.draw(config.rehearsal_rows)
            rehearsal = rehearsal_rows(stored)
            if method.divergence == "js_definition":
                rehearsal += self._on_policy_rows([reference.problem for reference, _ in stored], draw_seed, clock)

        # 3. An online reference scores rollouts, for the methods that need one; the trainer scores what another
        #    program drew, before the first step moves the policy. What the first step learns from, that step scores.
        batches = mini_batches(rows, rehearsal, config)
        longest = max((token_count([row]) for row in (*rows, *rehearsal)), default=0)
        with memory.advised(
            f"the scoring of iteration {iteration}", memory.scoring_ways(policy, config, longest, backend)
        ):
            reference_tokens = self._score_by_reference(rows, rehearsal)
            clock.lap("reference_s")
            set_advantages(rows, rewards, method, config)
            weigh_tokens(batches, method, derive_seed("tokens", self.seed, iteration))
            self._score_old([row for batch in batches[1:] for row in learning(batch, method)])
            clock.lap("rescore_s")
            due = config.diagnose_every and (iteration == 1 or iteration % config.diagnose_every == 0)
            kl_to_base = self._kl_to_base(groups) if due else None
            clock.skip()

        # 4. One optimizer step for each mini-batch.
        steps = []
        with memory.advised(
            f"the update of iteration {iteration}", memory.update_ways(policy, config, longest, backend)
        ):
            for part, batch in enumerate(batches, 1):
                lr = learning_rate(config, (iteration - 1) * config.mini_batches + part)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                steps.append(update(policy, self.tokenizer.pad_token_id, self.optimizer, batch, method, config))
        clock.lap("update_s")

        # 5. Log.
        return log_row(
            iteration,
            groups,
            rewards,
            steps,
            clock,
            kl_to_base=kl_to_base,
            lr=lr,
            rounds=rounds,
            rl_rows=len(rows),
            rehearsal_rows=len(rehearsal),
            reference_tokens=reference_tokens,
            sampler=drawn_by,
        )

    def _roll_out(self, first: list[Problem], seed: int, clock: Clock) -> tuple[list[Group], int]:
        """A batch of verified groups, `first` among its prompts, and the rounds of rollouts that it took.

        Dynamic sampling draws a whole batch in each round, leaves out groups with equal rewards, and goes on until a
        batch is full, which it is cut to; after `max_draws` rounds the batch is what there is.
        """
        dynamic, config = self.method.dynamic_sampling, self.config
        setting = SamplingConfig(config.rollouts, 1.0, config.top_p, config.max_new_tokens)
        groups: list[Group] = []
        rounds = 0
        while rounds < (config.max_draws if dynamic else 1) and len(groups) < config.prompts:
            drawn = first + self.prompts.draw(config.prompts - len(first))
            first = []
            answers = self.sampler.sample(drawn, setting, derive_seed(seed, rounds))
            clock.lap("sample_s")
            verified = self.verifier.groups(drawn, answers)
            clock.lap("verify_s")
            groups += [g for g in verified if not dynamic or 0 < g.correct < len(g.answers)]
            rounds += 1
        return groups[: config.prompts], rounds

    def _on_policy_rows(self, problems: Sequence[Problem], seed: int, clock: Clock) -> list[Row]:
        """The second half of JS by its definition: one answer of the policy as it is now to each rehearsed prompt."""
        setting = SamplingConfig(1, 1.0, 1.0, self.config.max_new_tokens)
        answers = self.sampler.sample(problems, setting, derive_seed(seed, "on-policy"))
        clock.lap("sample_s")
        return [Row((answer.prompt_ids, answer.token_ids), ON_POLICY_DIVERGENCE) for (answer,) in answers]

    def _score_by_reference(self, rows: Sequence[Row], rehearsal: Sequence[Row]) -> int:
        """Fills `ref_logprobs` of the rows that need an online reference; returns the tokens that passed through it."""
        needing = list(rows) if self.method.rkl_coef > 0 else []
        needing += [row for row in rehearsal if row.loss_id == ON_POLICY_DIVERGENCE]
        if needing:
            with initial_policy(self.policy, self.base) as initial:
                for row, logprobs_T in zip(
                    needing, self._scored(initial, [row.tokens for row in needing]), strict=True
                ):
                    row.ref_logprobs = logprobs_T
        return token_count(needing)

    def _score_old(self, rows: Sequence[Row]) -> None:
        """Fills `old_logprobs` of rollouts, which importance weights need."""
        if self.config.importance_cap is not None:
            rows = [row for row in rows if row.loss_id == EXPLORE]
            for row, logprobs_T in zip(rows, self._scored(self.policy, [row.tokens for row in rows]), strict=True):
                row.old_logprobs = logprobs_T

    def _kl_to_base(self, groups: Sequence[Group]) -> float | None:
        """Estimate of KL(pi_theta || pi_base), nats per token, on two rollouts of each group; both by one program."""
        answers = [answer for group in groups for answer in group.answers[:2]]
        rows = [(answer.prompt_ids, answer.token_ids) for answer in answers]
        with initial_policy(self.policy, self.base) as initial:
            if initial is None or not answers:
                return None
            base_logprobs = self._scored(initial, rows)
        if self.config.importance_cap is None and drawn_by_policy(self.sampler):
            logprobs = [sum(answer.logprobs) for answer in answers]
        else:
            logprobs = [sum(logprobs_T.tolist()) for logprobs_T in self._scored(self.policy, rows)]
        gaps = [ours - sum(of_base_T.tolist()) for ours, of_base_T in zip(logprobs, base_logprobs, strict=True)]
        return sum(gaps) / sum(len(answer.token_ids) for answer in answers)

    def _scored(self, model: PreTrainedModel, rows: Sequence[TokenRow]) -> list[torch.Tensor]:
        """Log-probs under a model, passed as the policy is."""
        packed = packing.packs_prompts(self.policy)
        return scored(model, self.tokenizer.pad_token_id, rows, 2 * self.config.token_budget, packed)


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
