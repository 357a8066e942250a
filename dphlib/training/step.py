"""Rows through a model: scored, or learnt from by one optimizer step, each of several processes on its share.

The denominators of the loss are those of the whole mini-batch, which every process knows, so gradients and statistics
of the shares add up to those of the batch. Gradients are added up once a step, in the format of the optimizer's weights
(fp32), and clipped by the norm of the sum; sharded weights (`sharding`) add them up in the backward pass by themselves.
Rows with one prompt stay in one process, which passes the prompt once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.divergences import generator
from dphlib.losses import IGNORE, PartitionedLossStats, negative_log_likelihood, partitioned_loss
from dphlib.models.sharding import is_sharded, whole
from dphlib.models.tuning import fold_gradients
from dphlib.runtime.processes import ALONE, Processes
from dphlib.settings.methods import MethodConfig
from dphlib.settings.stages import TrainConfig
from dphlib.training.rows import Row, aggregation, batch_denominators, learning, padded, token_count
from dphlib.training.scoring import TokenRow, batch_logprobs, micro_batches, passes_prompts_once, score_rows


def update(
    policy: PreTrainedModel,
    pad_token_id: int,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Row],
    method: MethodConfig,
    config: TrainConfig,
    processes: Processes = ALONE,
) -> tuple[PartitionedLossStats, float, int]:
    """One optimizer step on `batch`.

    Returns:
        (statistics of the whole mini-batch, gradient norm before clipping, NaN where it overflowed in float16, tokens
        of the rows learnt from, a prompt counted for each of its rows).
    """
    denominators = batch_denominators(batch, config)
    learn = learning(batch, method)
    mine = [learn[i] for i in processes.shares(*_weighed([row.tokens for row in learn]))[processes.rank]]
    policy.train()
    total, scale = None, _loss_scale(policy, learn)
    once = passes_prompts_once(policy)
    for indices in _rounds(policy, [row.tokens for row in mine], config.token_budget, processes, once):
        rows = [mine[i] for i in indices] or [min(learn, key=lambda row: token_count([row]))]
        logprobs_B_T, mask_B_T, entropy_B_T = score_rows(
            policy, pad_token_id, [row.tokens for row in rows], with_entropy=method.entropy_coef > 0
        )
        advantages_B_T = torch.tensor([[row.advantage] for row in rows], device=mask_B_T.device)
        if config.importance_cap is not None:  # linear in the advantage, so this is the weight of the token's loss
            advantages_B_T = advantages_B_T * padded([row.weights for row in rows], mask_B_T)
        loss, stats = partitioned_loss(
            logprobs_B_T,
            loss_id_B_T=torch.tensor([[row.loss_id] for row in rows], device=mask_B_T.device).where(mask_B_T, IGNORE),
            old_logprobs_B_T=padded([row.old_logprobs for row in rows], mask_B_T),
            advantages_B_T=advantages_B_T,
            ref_logprobs_B_T=padded([row.ref_logprobs for row in rows], mask_B_T),
            entropy_B_T=entropy_B_T,
            divergence=_divergence(method),
            eta=method.eta,
            clip_low=method.clip_low,
            clip_high=method.clip_high,
            dual_clip=config.dual_clip,
            rkl_coef=method.rkl_coef,
            entropy_coef=method.entropy_coef,
            denominators=denominators,
            **aggregation(config),
        )
        factor = scale if indices else 0
        (loss if factor == 1 else loss * factor).backward()
        fold_gradients(optimizer)
        if indices:
            total = stats if total is None else total + stats
    policy.eval()
    if not learn:  # every group agreed and nothing is rehearsed: no gradient, the weights stay
        return _no_stats(), 0.0, 0
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if processes.count > 1:
        total = _added_up(total or _no_stats(), processes)
        if not is_sharded(policy):
            for parameter in stepped:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            processes.add_up([parameter.grad for parameter in stepped])
    if scale > 1:
        for parameter in stepped:
            if parameter.grad is not None:
                parameter.grad /= scale
    norm = whole(torch.nn.utils.clip_grad_norm_(stepped, config.max_grad_norm))
    if scale > 1 and not norm.isfinite():
        optimizer.zero_grad(set_to_none=True)
        return total, float("nan"), token_count(learn)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, float(norm), token_count(learn)


def _loss_scale(policy: Any, rows: Sequence[Row]) -> int:
    """1, or for a base in float16 the largest power of two that is not above the rows' number of answer tokens."""
    if policy.get_output_embeddings().weight.dtype != torch.float16:
        return 1
    return 1 << max(1, sum(len(row.tokens[1]) for row in rows)).bit_length() - 1


def scored(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[TokenRow],
    config: TrainConfig,
    processes: Processes = ALONE,
) -> list[list[float]]:
    """Log-probs of the rows' answer tokens under `model`, nats, in order; micro-batches of twice the token budget."""

    def score(mine: list[TokenRow]) -> list[list[float]]:
        logprobs: list[list[float]] = [[] for _ in mine]
        # What inference mode gathers of sharded weights cannot be used for a gradient later.
        with torch.no_grad() if is_sharded(model) else torch.inference_mode():
            for indices in _rounds(model, mine, 2 * config.token_budget, processes):
                batch = [mine[i] for i in indices] or [min(rows, key=lambda row: len(row[0]) + len(row[1]))]
                scored_B_T, _ = batch_logprobs(model, tokenizer.pad_token_id, batch)
                for index, values in zip(indices, scored_B_T.tolist(), strict=bool(indices)):
                    logprobs[index] = values[: len(mine[index][1])]
        return logprobs

    return processes.spread(score, rows, *_weighed(rows))


def _weighed(rows: Sequence[TokenRow]) -> tuple[list[Hashable], list[int]]:
    """What keeps rows together, their prompts, and their sizes in tokens."""
    return [tuple(prompt) for prompt, _ in rows], [len(prompt) + len(answer) for prompt, answer in rows]


def _rounds(
    model: Any, mine: Sequence[TokenRow], token_budget: int, processes: Processes, prompts_once: bool = False
) -> list[list[int]]:
    """Micro-batches of this process's rows; for a sharded model empty ones too, until all processes have as many.

    `prompts_once` is for passes with a gradient, which keep every layer's states. One without keeps those of a single
    layer: there the keys and values of a shared prompt, a copy for each row, weigh as much as the prompt itself.
    """
    batches = micro_batches(mine, token_budget, prompts_once)
    if is_sharded(model):
        batches += [[]] * (max(processes.gather(len(batches))) - len(batches))
    return batches


def _no_stats() -> PartitionedLossStats:
    return PartitionedLossStats(*[torch.zeros(()) for _ in fields(PartitionedLossStats)])


def _added_up(stats: PartitionedLossStats, processes: Processes) -> PartitionedLossStats:
    """The statistics of all processes' shares together."""
    parts = processes.gather([float(getattr(stats, field.name)) for field in fields(stats)])
    return PartitionedLossStats(*torch.tensor(parts, dtype=torch.float64).sum(0))


def _divergence(method: MethodConfig) -> Any:
    if method.divergence == "js_definition":
        return "js_definition"
    if method.divergence == "likelihood":
        return negative_log_likelihood
    if method.divergence is None:
        return generator("forward_kl")  # a baseline has no token for it
    return generator(method.divergence, **({"alpha": method.alpha} if method.alpha is not None else {}))
