"""Mean and variance of the estimators of a token's divergence, by exact sums over the vocabulary, given the prefixes.

Needs both models' whole distributions, (N, V): for studies of small vocabularies, not for training. See
`estimator_study` for what the estimators are and for what else is measured of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from dphlib.divergences import Divergence
from dphlib.training.estimators import TopK

ESTIMATORS = ("one_sample", "mean_of_answers", "definition", "topk", "topk_sampled_tail")


class Moments(NamedTuple):
    """An estimator's mean and variance over the draws, N positions, and its pull on W watched tokens; float64."""

    value_N: Tensor
    variance_N: Tensor
    pull_W: Tensor
    pull_variance_W: Tensor


@torch.no_grad()
def exact_moments(
    logprobs_N_V: Tensor,
    ref_logprobs_N_V: Tensor,
    top: TopK,
    divergence: Divergence,
    watched: tuple[Tensor, Tensor],
    *,
    answers: int = 4,
    top_p: float = 1.0,
) -> dict[str, Moments]:
    """Each estimator's moments by sums over the vocabulary, given the prefixes.

    Args:
        logprobs_N_V, ref_logprobs_N_V: log pi_theta and log pi_ref, nats, all finite.
        top: what is stored of the reference.
        watched: positions and token ids, (W,) each; the pull is minus the gradient at that token's logit.
        answers, top_p: see `measure`.
    """
    log_q, log_p = logprobs_N_V.double(), ref_logprobs_N_V.double()
    q, p, d = log_q.exp(), log_p.exp(), log_q - log_p
    k, top_p_K1 = top.ids_N_K.shape[1], top.logprobs_N_K1.double().exp()
    in_tail = torch.ones_like(p, dtype=torch.bool).scatter_(-1, top.ids_N_K, False)
    rest_N_1 = (q * in_tail).sum(-1, keepdim=True)
    top_q_K1 = torch.cat([q.gather(-1, top.ids_N_K), rest_N_1], -1)
    occupied = (top_p_K1 > 0) & (top_q_K1 > 0)
    top_d_K1 = (top_q_K1 / top_p_K1).where(occupied, 1.0).log()
    value, slope, drawn = divergence(d), divergence.slope(d), nucleus(p, top_p)
    n, v = watched
    q_W = q[n, v]

    def sampled(mask: Tensor | bool) -> tuple[Tensor, ...]:
        """Mean and variance of f and of the pull over draws y, those outside the mask counting nothing."""
        weight = drawn * mask
        mean_N, square_N = (weight * value).sum(-1), (weight * value.square()).sum(-1)
        pull_W = q_W * (weight * slope).sum(-1)[n] - (weight * slope)[n, v]
        squares = weight * slope.square()
        pull_square_W = squares[n, v] * (1 - q_W) ** 2 + q_W**2 * (squares.sum(-1)[n] - squares[n, v])
        return mean_N, square_N - mean_N**2, pull_W, pull_square_W - pull_W**2

    def summed(bins: int) -> tuple[Tensor, Tensor]:
        """The sum over the first bins, the rest being the last, and minus its gradient at the watched logits."""
        weight_K1, bin_d_K1 = top_p_K1[:, :bins], top_d_K1[:, :bins]
        weighted = weight_K1 * divergence.slope(bin_d_K1)
        by_token = torch.zeros_like(p).scatter_(-1, top.ids_N_K, weighted[:, :k])
        if bins > k:
            share = q / rest_N_1.clamp(min=torch.finfo(q.dtype).tiny)
            by_token = torch.where(in_tail, share * weighted[:, k:], by_token)
        return (weight_K1 * divergence(bin_d_K1)).sum(-1), q_W * weighted.sum(-1)[n] - by_token[n, v]

    mean_N, variance_N, pull_W, pull_variance_W = sampled(True)
    tail = sampled(in_tail)
    lumped_N, lumped_pull_W = summed(k + 1)
    top_N, top_pull_W = summed(k)
    true_pull_W = q_W * (p * slope).sum(-1)[n] - (p * slope)[n, v]
    none_N, none_W = torch.zeros_like(mean_N), torch.zeros_like(pull_W)
    return {
        "one_sample": Moments(mean_N, variance_N, pull_W, pull_variance_W),
        "mean_of_answers": Moments(mean_N, variance_N / answers, pull_W, pull_variance_W / answers),
        "definition": Moments((p * value).sum(-1), none_N, true_pull_W, none_W),
        "topk": Moments(lumped_N, none_N, lumped_pull_W, none_W),
        "topk_sampled_tail": Moments(top_N + tail[0], tail[1], top_pull_W + tail[2], tail[3]),
    }


def moment_columns(moments: Sequence[dict[str, Moments]]) -> pd.DataFrame:
    """Means over all positions, and over all watched tokens, of several results of `exact_moments`.

    Returns:
        One row an estimator: estimator, value, bias, bias_share, sd, pull, pull_sd; see `measure`.
    """
    rows = []
    for name in ESTIMATORS:
        joined = Moments(*(torch.cat(parts) for parts in zip(*(each[name] for each in moments), strict=True)))
        value, variance, pull, pull_variance = (float(part.mean()) for part in joined)
        rows.append(
            {"estimator": name, "value": value, "sd": variance**0.5, "pull": pull, "pull_sd": pull_variance**0.5}
        )
    table = pd.DataFrame(rows)
    true = table.loc[table["estimator"] == "definition", "value"].iloc[0]
    table.insert(2, "bias", table["value"] - true)
    table.insert(3, "bias_share", table["bias"] / true)
    return table


def nucleus(p_N_V: Tensor, top_p: float) -> Tensor:
    """The distribution that sampling with top_p draws from: the likeliest tokens up to that mass, scaled to sum to 1.

    >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]), 0.7)
    tensor([[0.6250, 0.3750, 0.0000]])
    """
    if top_p == 1:
        return p_N_V
    in_order, index = p_N_V.sort(-1, descending=True)
    kept = in_order.masked_fill(in_order.cumsum(-1) - in_order >= top_p, 0.0)
    return torch.zeros_like(p_N_V).scatter_(-1, index, kept / kept.sum(-1, keepdim=True))
