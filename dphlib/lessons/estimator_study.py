"""What the estimators of a token's divergence are worth on a pair of models: the initial policy and one that drifted.

`measure` takes answers drawn anew M times to the same prompts and gives a row an estimator: bias, variance at a
position, variance of the mini-batch's gradient over the redraws, pull on collapsed tokens, bytes and time.

Both models' whole distributions are held, (N, V) a redraw: a study for small vocabularies, not part of training.

- Bias and variance at a position are exact sums over the vocabulary, given the prefix.
- The gradient's variance is the trace of its covariance over redraws, of the mean over the positions of one mini-batch.
  Redrawing changes the prefixes too; that part is common to all, so the definition's variance is not zero.
- That trace is of the redraws made. Tokens that pi_ref hardly draws and the policy likes (u far above 1) may be in none
  of them; one sample then misses their gradient and their noise, and its trace comes out too small. The exact `sd` is
  not fooled: above 0.35 nats for JS it can only come from such tokens, for f(0) is log(2)/2.
- `mean_of_answers` is the mean over `answers` redraws at a time: as many times the positions.
- A collapsed token is one with pi_ref >= 0.05 that the policy gives less than a tenth of that. Its pull is minus the
  gradient of the position's estimate with respect to the token's logit: the mean, and the deviation over draws.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dphlib.divergences import Divergence
from dphlib.lessons.estimator_moments import ESTIMATORS, exact_moments, moment_columns
from dphlib.logprobs import binned_logprobs_from_hidden, logprobs_from_hidden
from dphlib.training.estimators import (
    PLAIN_BYTES,
    TopK,
    as_stored,
    bytes_per_token,
    sampled_tail_divergence,
    topk_divergence,
)
from dphlib.training.scoring import TokenRow, answer_hidden

COLLAPSED_REF = 0.05
COLLAPSED_RATIO = 0.1


class _Reference(NamedTuple):
    """pi_ref at the positions of one redraw: all of it, the stored tokens' part, and what top-K stores."""

    logprobs_N_V: Tensor
    chosen_N: Tensor
    top: TopK


def measure(
    base: PreTrainedModel,
    policy: PreTrainedModel,
    draws_M_P: Sequence[Sequence[TokenRow]],
    divergence: Divergence,
    *,
    k: int = 8,
    answers: int = 4,
    dtype: torch.dtype = torch.float16,
    pad_token_id: int = 0,
    top_p: float = 1.0,
    timed: int = 5,
) -> pd.DataFrame:
    """One row an estimator of `ESTIMATORS`.

    Args:
        base, policy: pi_ref and pi_theta, of one vocabulary; parameters of the policy must require gradients.
        draws_M_P: M redraws of the stored answers, each a row a prompt, the same prompts in the same order.
        divergence: of `divergences.divergence`.
        k, dtype: tokens that top-K stores, and the type of their log-probs in the file.
        answers: redraws that `mean_of_answers` takes at a time; M must hold two such groups at least.
        top_p: how the answers were drawn; below 1 the one-sample estimate is biased, for it never sees the rest.
        timed: updates whose time is measured, of which the median is given; 0 leaves `ms` NaN.

    Returns:
        Columns estimator; value (its mean at a position, nats); bias and bias_share (of the true value); sd (of one
        position's estimate, given the prefix); gradient_norm (of the mean gradient); gradient_sd (root of the trace of
        its covariance); variance_ratio (the one-sample estimate's trace over this one's); gradient_bias (distance of
        the mean gradient from the definition's, share of the latter; for an unbiased one the noise that M redraws
        leave); pull, pull_sd (mean over collapsed tokens; NaN where there is none); bytes (stored a token), bytes_ratio
        (to the plain store); ms (an update: forward and backward pass and, for the definition, the online reference's);
        attrs: positions, collapsed, redraws.

    Raises:
        ValueError: too few redraws for two groups of `answers`.
    """
    if len(draws_M_P) < 2 * answers:
        raise ValueError(f"{len(draws_M_P)} redraws; the variance of means over {answers} needs {2 * answers} or more")
    gradients = {name: _Spread() for name in ESTIMATORS}
    moments, positions, collapsed, group = [], 0, 0, []
    for rows in draws_M_P:
        hidden_N_D, tokens_N, _ = answer_hidden(policy, pad_token_id, rows)
        reference = _reference(base, pad_token_id, rows, k, dtype)
        logprobs_N_V = _all_logprobs(hidden_N_D.detach(), policy)
        ref_p, d = reference.logprobs_N_V.exp(), logprobs_N_V - reference.logprobs_N_V
        watched = ((ref_p >= COLLAPSED_REF) & (d.exp() < COLLAPSED_RATIO)).nonzero(as_tuple=True)
        moments.append(
            exact_moments(
                logprobs_N_V, reference.logprobs_N_V, reference.top, divergence, watched, answers=answers, top_p=top_p
            )
        )
        for name in ESTIMATORS:
            if name == "mean_of_answers":
                continue
            loss = _estimate(name, hidden_N_D, policy, tokens_N, reference, divergence).mean()
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, _trained(policy), retain_graph=True)])
            gradients[name].add(gradient)
            if name == "one_sample":
                group.append((len(tokens_N), gradient))
        if len(group) == answers:
            total = sum(n for n, _ in group)
            gradients["mean_of_answers"].add(sum(gradient * (n / total) for n, gradient in group))
            group = []
        positions, collapsed = positions + len(tokens_N), collapsed + len(watched[0])
    table = moment_columns(moments).set_index("estimator")
    truth = gradients["definition"].mean()
    table["gradient_norm"] = [float(gradients[name].mean().norm()) for name in ESTIMATORS]
    table["gradient_sd"] = [gradients[name].trace() ** 0.5 for name in ESTIMATORS]
    table["variance_ratio"] = (table.loc["one_sample", "gradient_sd"] / table["gradient_sd"]) ** 2
    table["gradient_bias"] = [float((gradients[name].mean() - truth).norm() / truth.norm()) for name in ESTIMATORS]
    vocabulary = policy.get_output_embeddings().weight.shape[0]
    stored = {"mean_of_answers": answers * PLAIN_BYTES, "definition": 4, "one_sample": PLAIN_BYTES}
    table["bytes"] = [stored.get(name, bytes_per_token(k, vocabulary, dtype)) for name in ESTIMATORS]
    table["bytes_ratio"] = table["bytes"] / PLAIN_BYTES
    table["ms"] = _milliseconds(base, policy, draws_M_P, divergence, k, dtype, pad_token_id, answers, timed)
    table.attrs = {"positions": positions, "collapsed": collapsed, "redraws": len(draws_M_P)}
    return table[[c for c in table if c not in ("pull", "pull_sd")] + ["pull", "pull_sd"]].reset_index()


def _trained(policy: PreTrainedModel) -> list[Tensor]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


@torch.no_grad()
def _reference(
    base: PreTrainedModel, pad_token_id: int, rows: Sequence[TokenRow], k: int, dtype: torch.dtype
) -> _Reference:
    hidden_N_D, tokens_N, _ = answer_hidden(base, pad_token_id, rows)
    logprobs_N_V = _all_logprobs(hidden_N_D, base)
    ids_N_K = logprobs_N_V.topk(k).indices
    rest_N = logprobs_N_V.scatter(-1, ids_N_K, -torch.inf).logsumexp(-1)
    binned = torch.cat([logprobs_N_V.gather(-1, ids_N_K), rest_N[:, None]], -1)
    return _Reference(
        logprobs_N_V, logprobs_N_V.gather(-1, tokens_N[:, None])[:, 0], as_stored(TopK(ids_N_K, binned), dtype)
    )


def _all_logprobs(hidden_N_D: Tensor, model: PreTrainedModel) -> Tensor:
    return (hidden_N_D @ model.get_output_embeddings().weight.T).log_softmax(-1)


def _estimate(
    name: str, hidden_N_D: Tensor, policy: PreTrainedModel, tokens_N: Tensor, reference: _Reference, f: Divergence
) -> Tensor:
    """The estimator's value at each position, with gradient, computed as training would."""
    weight_V_D = policy.get_output_embeddings().weight
    if name == "definition":
        return topk_divergence(_all_logprobs(hidden_N_D, policy), reference.logprobs_N_V, f)
    if name == "topk":
        binned = binned_logprobs_from_hidden(hidden_N_D, weight_V_D, reference.top.ids_N_K)
        return topk_divergence(binned, reference.top.logprobs_N_K1, f)
    d_N = logprobs_from_hidden(hidden_N_D, weight_V_D, tokens_N) - reference.chosen_N
    if name == "topk_sampled_tail":
        binned = binned_logprobs_from_hidden(hidden_N_D, weight_V_D, reference.top.ids_N_K)
        return sampled_tail_divergence(binned, reference.top, tokens_N, d_N, f)
    return f(d_N)


class _Spread:
    """Mean and total variance of vectors, added one by one."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(()), 0.0

    def add(self, vector: Tensor) -> None:
        vector = vector.double()
        self.count, self.sum, self.squares = self.count + 1, self.sum + vector, self.squares + float(vector @ vector)

    def mean(self) -> Tensor:
        return self.sum / self.count

    def trace(self) -> float:
        """Trace of the sample covariance: the variances of all components, added."""
        return max(0.0, self.squares - float(self.sum @ self.sum) / self.count) / (self.count - 1)


def _milliseconds(
    base: PreTrainedModel,
    policy: PreTrainedModel,
    draws_M_P: Sequence[Sequence[TokenRow]],
    f: Divergence,
    k: int,
    dtype: torch.dtype,
    pad_token_id: int,
    answers: int,
    timed: int,
) -> list[float]:
    """Median milliseconds of an update with each estimator; what is stored is made before the clock starts."""

    def update(name: str, rows: Sequence[TokenRow], reference: _Reference) -> float:
        started = time.perf_counter()
        if name == "definition":
            reference = _reference(base, pad_token_id, rows, k, dtype)
        hidden_N_D, tokens_N, _ = answer_hidden(policy, pad_token_id, rows)
        loss = _estimate(name, hidden_N_D, policy, tokens_N, reference, f).mean()
        torch.autograd.grad(loss, _trained(policy))
        return 1000 * (time.perf_counter() - started)

    taken: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for start in range(timed + 1 if timed else 0):
        for name in ESTIMATORS:
            parts = draws_M_P[: answers if name == "mean_of_answers" else 1]
            rows = [row for part in parts for row in part]
            milliseconds = update(name, rows, _reference(base, pad_token_id, rows, k, dtype))
            if start:  # the first warms up
                taken[name].append(milliseconds)
    return [float(pd.Series(taken[name], dtype=float).median()) for name in ESTIMATORS]


def draw_rows(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], redraws: int, tokens: int, seed: int
) -> list[list[TokenRow]]:
    """Answers of exactly `tokens` tokens from the whole distribution, for a model without a tokenizer.

    Args:
        prompts: token ids, all of one length.

    Returns:
        M redraws of a row a prompt, as `measure` takes them. Same seed, same answers.
    """
    noise = torch.Generator().manual_seed(seed)
    rows = torch.tensor([prompt for _ in range(redraws) for prompt in prompts])
    width = rows.shape[1]
    with torch.inference_mode():
        for _ in range(tokens):
            p_B_V = model(input_ids=rows, use_cache=False).logits[:, -1].softmax(-1)
            rows = torch.cat([rows, torch.multinomial(p_B_V, 1, generator=noise)], 1)
    drawn = [(row[:width], row[width:]) for row in rows.tolist()]
    return [drawn[start : start + len(prompts)] for start in range(0, len(drawn), len(prompts))]


def tidy(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Several results of `measure` under one another, the first column says which: `policy, divergence`."""
    return pd.concat([table.assign(measured=name) for name, table in tables.items()], ignore_index=True)[
        ["measured", *next(iter(tables.values())).columns]
    ]
