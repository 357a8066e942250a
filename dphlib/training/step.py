"""One optimizer step on a mini-batch of rows, a micro-batch at a time.

The denominators of the loss are those of the whole mini-batch, so gradients and statistics of its micro-batches add up
to those of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dphlib.losses import IGNORE, Denominators, PartitionedLossStats, divergence_of, partitioned_loss
from dphlib.models.tuning import fold_gradients
from dphlib.settings.methods import MethodConfig
from dphlib.settings.stages import TrainConfig
from dphlib.training.rows import Row, aggregation, batch_denominators, learning, padded, token_count
from dphlib.training.scoring import micro_batches, passes_prompts_once, score_rows


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
        (statistics of the whole mini-batch, gradient norm before clipping, NaN where it overflowed in float16, tokens
        of the rows learnt from, a prompt counted for each of its rows).
    """
    denominators = batch_denominators(batch, config)
    learn = learning(batch, method)
    if not learn:  # every group agreed and nothing is rehearsed: no gradient, the weights stay
        return PartitionedLossStats(*[torch.zeros(()) for _ in fields(PartitionedLossStats)]), 0.0, 0
    policy.train()
    total, scale = None, _loss_scale(policy, learn)
    for indices in micro_batches([row.tokens for row in learn], config.token_budget, passes_prompts_once(policy)):
        rows = [learn[i] for i in indices]
        loss, stats = _loss(policy, pad_token_id, rows, denominators, method, config)
        (loss if scale == 1 else loss * scale).backward()
        fold_gradients(optimizer)
        total = stats if total is None else total + stats
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
    return total, norm, token_count(learn)


def _loss(
    policy: PreTrainedModel,
    pad_token_id: int,
    rows: Sequence[Row],
    denominators: Denominators,
    method: MethodConfig,
    config: TrainConfig,
) -> tuple[Tensor, PartitionedLossStats]:
    """Loss of a micro-batch as a part of its mini-batch's, and its statistics."""
    with_entropy = method.entropy_coef > 0
    logprobs_B_T, mask_B_T, entropy_B_T = score_rows(policy, pad_token_id, [row.tokens for row in rows], with_entropy)
    advantages_B_T = torch.tensor([[row.advantage] for row in rows], device=mask_B_T.device)
    if config.importance_cap is not None:  # linear in the advantage, so this is the weight of the token's loss
        advantages_B_T = advantages_B_T * padded([row.weights for row in rows], mask_B_T)
    return partitioned_loss(
        logprobs_B_T,
        loss_id_B_T=torch.tensor([[row.loss_id] for row in rows], device=mask_B_T.device).where(mask_B_T, IGNORE),
        old_logprobs_B_T=padded([row.old_logprobs for row in rows], mask_B_T),
        advantages_B_T=advantages_B_T,
        ref_logprobs_B_T=padded([row.ref_logprobs for row in rows], mask_B_T),
        entropy_B_T=entropy_B_T,
        divergence=divergence_of(method.divergence, method.alpha),
        eta=method.eta,
        clip_low=method.clip_low,
        clip_high=method.clip_high,
        dual_clip=config.dual_clip,
        rkl_coef=method.rkl_coef,
        entropy_coef=method.entropy_coef,
        denominators=denominators,
        **aggregation(config),
    )


def _loss_scale(policy: Any, rows: Sequence[Row]) -> int:
    """1, or for a base in float16 the largest power of two that is not above the rows' number of answer tokens."""
    if policy.get_output_embeddings().weight.dtype != torch.float16:
        return 1
    return 1 << max(1, sum(len(row.tokens[1]) for row in rows)).bit_length() - 1
