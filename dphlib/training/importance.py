"""Truncated importance weights between the sampler's policy and the trainer's, when two programs compute it.

A sampler in another number format, with other kernels or with an unquantised base draws from a distribution that
differs a little from the trainer's. Each token's advantage, and so its PPO-clip loss, is multiplied by

    w = min(pi_trainer_old(token) / pi_sampler(token), cap)

without gradient, where `old` is the trainer's policy before the update. The PPO ratio keeps its own old log-probs,
the trainer's: the weight corrects for who drew the token, the ratio for the updates since.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dphlib.divergences import generator

_k3 = generator("forward_kl")


@dataclass(frozen=True, slots=True)
class ImportanceStats:
    """Sums over tokens, so that the statistics of micro-batches add up to those of the batch.

    Args:
        tokens: tokens weighted.
        weight_sum: of the truncated weights.
        ratio_max: largest ratio before truncation; 0 without tokens.
        truncated: tokens whose ratio was above the cap.
        gap_sum: of |log pi_trainer_old - log pi_sampler|, nats.
        kl_sum: of the estimate r - 1 - log r of KL(pi_sampler || pi_trainer_old), r the ratio, nats.
    """

    tokens: int = 0
    weight_sum: float = 0.0
    ratio_max: float = 0.0
    truncated: int = 0
    gap_sum: float = 0.0
    kl_sum: float = 0.0

    def __add__(self, other: ImportanceStats) -> ImportanceStats:
        return ImportanceStats(
            self.tokens + other.tokens,
            self.weight_sum + other.weight_sum,
            max(self.ratio_max, other.ratio_max),
            self.truncated + other.truncated,
            self.gap_sum + other.gap_sum,
            self.kl_sum + other.kl_sum,
        )

    def to_log(self) -> dict[str, float | None]:
        """Entries of a log row, None without tokens; docs/training_log.md explains them."""
        count = self.tokens
        return {
            "tis_mean": self.weight_sum / count if count else None,
            "tis_max": self.ratio_max if count else None,
            "tis_truncated": self.truncated / count if count else None,
            "sampler_gap": self.gap_sum / count if count else None,
            "sampler_kl": self.kl_sum / count if count else None,
        }


def importance_weights(
    trainer_logprobs_B_T: Tensor, sampler_logprobs_B_T: Tensor, mask_B_T: Tensor, cap: float = 2.0
) -> tuple[Tensor, ImportanceStats]:
    """exp(log pi_trainer_old - log pi_sampler), at most `cap`, for each token; no gradient flows through it.

    Args:
        trainer_logprobs_B_T: under the trainer's policy before the update, nats.
        sampler_logprobs_B_T: as the sampler returned them, nats; both at temperature 1 and without top-p.
        mask_B_T: True on answer tokens.
        cap: upper bound of a weight, at least 1.

    Returns:
        (weights_B_T in fp32, 0 where the mask is False, statistics).

    Raises:
        ValueError: shapes differ, `cap` below 1, or a log-prob that is not finite.

    >>> import torch
    >>> old, drawn = torch.tensor([[-1.0, -1.0]]), torch.tensor([[-1.0, -3.0]])
    >>> importance_weights(old, drawn, torch.tensor([[True, True]]))[0]
    tensor([[1., 2.]])
    """
    shapes = {tuple(t.shape) for t in (trainer_logprobs_B_T, sampler_logprobs_B_T, mask_B_T)}
    if len(shapes) != 1:
        raise ValueError(f"log-probs and mask have shapes {sorted(shapes)}; they must be one shape, (rows, tokens)")
    if not cap >= 1:
        raise ValueError(f"cap is {cap}; it must be at least 1, or agreeing tokens would be truncated too")
    gap_B_T = (trainer_logprobs_B_T - sampler_logprobs_B_T).detach().float().masked_fill(~mask_B_T, 0.0)
    if not gap_B_T.isfinite().all():
        raise ValueError("a log-prob of an answer token is not finite; are these the answers that the sampler drew?")
    # Bounded before the exponential, so that no gap overflows.
    weights_B_T = gap_B_T.clamp(max=math.log(cap)).exp().masked_fill(~mask_B_T, 0.0)
    tokens = int(mask_B_T.sum())
    stats = ImportanceStats(
        tokens=tokens,
        weight_sum=float(weights_B_T.double().sum()),
        ratio_max=_exp(float(gap_B_T[mask_B_T].max())) if tokens else 0.0,
        truncated=int((gap_B_T > math.log(cap)).sum()),
        gap_sum=float(gap_B_T.abs().double().sum()),
        kl_sum=float(_k3(gap_B_T.double()).sum()),
    )
    return weights_B_T, stats


def _exp(value: float) -> float:
    """exp, at most the largest float: a log holds no infinity."""
    return math.exp(min(value, 709.0))
