"""One optimizer step on a mini-batch of rows, a micro-batch at a time.

The denominators of the loss are those of the whole mini-batch, so gradients and statistics of its micro-batches add up
to those of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dphlib.losses import EXPLORE, IGNORE, Denominators, PartitionedLossStats, divergence_of, partitioned_loss
from dphlib.models.tuning import fold_gradients
from dphlib.settings.methods import MethodConfig
from dphlib.settings.stages import TrainConfig
from dphlib.training import packing
from dphlib.training.importance import ImportanceStats, importance_weights
from dphlib.training.rows import Row, aggregation, batch_denominators, learning, padded, token_count
from dphlib.training.scoring import micro_batches, passes_prompts_once, score_rows


class Step(NamedTuple):
    """What an optimizer step did.

    Args:
        losses: statistics of the whole mini-batch.
        grad_norm: before clipping; NaN where it overflowed in float16.
        tokens: of the rows learnt from, a prompt counted for each of its rows.
        weights: of the importance weights.
    """

    losses: PartitionedLossStats
    grad_norm: float
    tokens: int
    weights: ImportanceStats


def update(
    policy: PreTrainedModel,
    pad_token_id: int,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Row],
    method: MethodConfig,
    config: TrainConfig,
) -> Step:
    """One optimizer step on `batch`."""
    denominators = batch_denominators(batch, config)
    learn = learning(batch, method)
    if not learn:  # every group agreed and nothing is rehearsed: no gradient, the weights stay
        return Step(_nothing(), 0.0, 0, ImportanceStats())
    policy.train()
    total, weights, scale = None, ImportanceStats(), _loss_scale(policy, learn)
    with packing.attention(policy, packed := packing.packs_prompts(policy)):
        tokens = [row.tokens for row in learn]
        if packed:
            cut = packing.micro_batches(policy, tokens, config.token_budget)
        else:
            cut = micro_batches(tokens, config.token_budget, passes_prompts_once(policy))
        for indices in cut:
            rows = [learn[i] for i in indices]
            loss, stats, of_rows = _loss(policy, pad_token_id, rows, denominators, method, config)
            (loss if scale == 1 else loss * scale).backward()
            fold_gradients(optimizer)
            total = stats if total is None else total + stats
            weights += of_rows
    policy.eval()
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if scale > 1:
        for parameter in stepped:
            if parameter.grad is not None:
                parameter.grad /= scale
    norm = float(torch.nn.utils.clip_grad_norm_(stepped, config.max_grad_norm))
    if scale == 1 or math.isfinite(norm):
        optimizer.step()
    else:
        norm = math.nan
    optimizer.zero_grad(set_to_none=True)
    return Step(total or _nothing(), norm, token_count(learn), weights)


def _nothing() -> PartitionedLossStats:
    return PartitionedLossStats(*[torch.zeros(()) for _ in fields(PartitionedLossStats)])


def _loss(
    policy: PreTrainedModel,
    pad_token_id: int,
    rows: Sequence[Row],
    denominators: Denominators,
    method: MethodConfig,
    config: TrainConfig,
) -> tuple[Tensor, PartitionedLossStats, ImportanceStats]:
    """Loss of a micro-batch as a part of its mini-batch's, its statistics, and those of its importance weights."""
    with_entropy = method.entropy_coef > 0
    logprobs_B_T, mask_B_T, entropy_B_T = score_rows(policy, pad_token_id, [row.tokens for row in rows], with_entropy)
    advantages_B_T = torch.tensor([[row.advantage] for row in rows], device=mask_B_T.device)
    loss_id_B_T = torch.tensor([[row.loss_id] for row in rows], device=mask_B_T.device).where(mask_B_T, IGNORE)
    old_B_T = drawn_B_T = padded([row.drawn_logprobs for row in rows], mask_B_T)
    weights = ImportanceStats()
    if (cap := config.importance_cap) is not None:
        old_B_T = padded([row.old_logprobs for row in rows], mask_B_T)
        own_B_1 = torch.tensor([[not len(row.old_logprobs)] for row in rows], device=mask_B_T.device)
        old_B_T = torch.where(own_B_1, logprobs_B_T.detach(), old_B_T)
        weights_B_T, weights = importance_weights(old_B_T, drawn_B_T, loss_id_B_T == EXPLORE, cap)
        advantages_B_T = advantages_B_T * weights_B_T  # linear in the advantage: this is the weight of the token's loss
    old_kl_B_T = None
    if any(len(row.kept) for row in rows):
        advantages_B_T = advantages_B_T * padded([row.kept for row in rows], mask_B_T)
        old_kl_B_T = padded([row.old_kl for row in rows], mask_B_T)
    loss, stats = partitioned_loss(
        logprobs_B_T,
        loss_id_B_T=loss_id_B_T,
        old_logprobs_B_T=old_B_T,
        advantages_B_T=advantages_B_T,
        ref_logprobs_B_T=padded([row.ref_logprobs for row in rows], mask_B_T),
        entropy_B_T=entropy_B_T,
        old_kl_B_T=old_kl_B_T,
        divergence=divergence_of(method.divergence, method.alpha),
        eta=method.eta,
        clip_low=method.clip_low,
        clip_high=method.clip_high,
        dual_clip=config.dual_clip,
        rkl_coef=method.rkl_coef,
        rkl_estimator=method.rkl_estimator,
        entropy_coef=method.entropy_coef,
        denominators=denominators,
        **aggregation(config),
    )
    return loss, stats, weights


def _loss_scale(policy: Any, rows: Sequence[Row]) -> int:
    """1, or for a base in float16 the largest power of two that is not above the rows' number of answer tokens."""
    if policy.get_output_embeddings().weight.dtype != torch.float16:
        return 1
    return 1 << max(1, sum(len(row.tokens[1]) for row in rows)).bit_length() - 1
