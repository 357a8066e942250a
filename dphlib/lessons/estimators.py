r"""Estimates of a token's divergence at the positions of stored answers: four ways to it, and what each is worth.

At a position with prefix s, D_f = sum over v of pi_ref(v|s) f(u_v), u = pi_theta/pi_ref.

    one_sample         f(u_y), y the stored token, drawn from pi_ref: the paper's; unbiased, the noise of one draw
    mean_of_answers    the mean of that over R stored answers per prompt: 1/R of the variance, R times bytes and passes
    definition         the whole sum, for which an online reference gives its V log-probs: no noise at a position
    topk               the K likeliest tokens of pi_ref and their log-probs are stored when the answers are drawn, and
                       the rest of the mass is one bin: a sum over K + 1 bins, no reference model, no sampling noise
    topk_sampled_tail  the K tokens summed, and f(u_y) added where the stored token is none of them: unbiased

Top-K is a lower bound. Lumping tokens into a bin maps the outcomes, and no f-divergence grows under such a map (data
processing). It is the full divergence where K = V or where the policy keeps the ratios within the rest, and it does not
fall as K grows. What it misses is how the policy reshuffles the tokens that pi_ref held unlikely all together.

`measure` compares them on a pair of models, from answers drawn anew M times to the same prompts; both models' whole
distributions, (N, V), are held: a study for small vocabularies, not part of training. How each column is obtained, and
where it misleads, is in `docs/method.md`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dphlib.divergences import Divergence
from dphlib.logprobs import logprobs_from_hidden
from dphlib.training.scoring import TokenRow, answer_hidden

ESTIMATORS = ("one_sample", "mean_of_answers", "definition", "topk", "topk_sampled_tail")
COLLAPSED_REF = 0.05
COLLAPSED_RATIO = 0.1
"""A collapsed token has pi_ref of at least `COLLAPSED_REF`, and the policy gives less than this share of it."""
PLAIN_BYTES = 8
"""Per token of the plain store: its id as int32 and its log-prob as fp32."""


# --- The estimates ------------------------------------------------------------------------------------------------


class TopK(NamedTuple):
    """The reference's K likeliest tokens at N positions, and the rest.

    Args:
        ids_N_K: token ids, int64.
        logprobs_N_K1: nats: log pi_ref of each of them, then the log of the mass of all other tokens.
    """

    ids_N_K: Tensor
    logprobs_N_K1: Tensor


def binned(logprobs_N_V: Tensor, ids_N_K: Tensor) -> Tensor:
    """Log-probabilities of K tokens per position and, last, of all others together, (N, K + 1)."""
    # over the other tokens, not as 1 - sum of the K: that has no digit left where they hold nearly all
    rest_N_1 = logprobs_N_V.scatter(-1, ids_N_K, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logprobs_N_V.gather(-1, ids_N_K), rest_N_1], -1)


def topk_divergence(logprobs_N_K1: Tensor, ref_logprobs_N_K1: Tensor, divergence: Callable[[Tensor], Tensor]) -> Tensor:
    """sum over bins of pi_ref(bin) f(pi_theta(bin) / pi_ref(bin)) at each position, differentiable in the policy.

    With K tokens and the rest as bins it is the top-K estimate; with all V tokens as bins it is the definition.

    Args:
        logprobs_N_K1: log pi_theta of the bins, nats, with gradient.
        ref_logprobs_N_K1: log pi_ref of the same bins; a bin of mass zero (minus infinity) costs nothing.
        divergence: a generator of `dphlib.divergences`.

    Returns:
        D_N in nats, never above the full divergence (as long as no d is beyond `divergences.BOUND`).

    Raises:
        ValueError: shapes that differ.

    >>> from dphlib.divergences import generator
    >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> topk_divergence(q, p, generator("total_variation"))
    tensor([0.2500])
    """
    if logprobs_N_K1.shape != ref_logprobs_N_K1.shape:
        raise ValueError(
            f"logprobs_N_K1 has shape {tuple(logprobs_N_K1.shape)}, ref_logprobs_N_K1 {tuple(ref_logprobs_N_K1.shape)};"
            " both need the same K tokens and the rest as their last column"
        )
    ref = ref_logprobs_N_K1.to(logprobs_N_K1.dtype)
    occupied = ref > -torch.inf
    d = torch.where(occupied, logprobs_N_K1, 0.0) - torch.where(occupied, ref, 0.0)
    return (ref.exp() * divergence(d)).sum(-1)


def sampled_tail_divergence(
    logprobs_N_K1: Tensor, reference: TopK, tokens_N: Tensor, d_N: Tensor, divergence: Callable[[Tensor], Tensor]
) -> Tensor:
    """The K tokens summed, and f(exp d) of the stored token where it is none of them: unbiased, unlike the lumped rest.

    Args:
        logprobs_N_K1, divergence: see `topk_divergence`.
        reference: what was stored.
        tokens_N: the stored answers' tokens.
        d_N: log pi_theta - log pi_ref of those, nats, with gradient.
    """
    top_N = topk_divergence(logprobs_N_K1[:, :-1], reference.logprobs_N_K1[:, :-1], divergence)
    in_tail_N = (reference.ids_N_K != tokens_N[:, None]).all(-1)
    return top_N + torch.where(in_tail_N, divergence(torch.where(in_tail_N, d_N, 0.0)), 0.0)


def bytes_per_token(k: int, vocabulary: int, dtype: torch.dtype = torch.float16) -> int:
    """Bytes that a token of a stored answer takes with its top K: beside the plain store K ids, of 2 bytes where the
    vocabulary allows it, and K + 1 log-probs, the rest's log-mass among them. k = 0 is the plain store alone.

    >>> bytes_per_token(8, 500), bytes_per_token(8, 128_256, torch.float32), bytes_per_token(0, 500)
    (42, 76, 8)
    """
    return PLAIN_BYTES + (k * (2 if vocabulary <= 2**16 else 4) + (k + 1) * dtype.itemsize if k else 0)


def as_stored(reference: TopK, dtype: torch.dtype = torch.float16) -> TopK:
    """A reference as a file would give it back: log-probs rounded to `dtype`, then each row a distribution again."""
    return TopK(reference.ids_N_K, torch.log_softmax(reference.logprobs_N_K1.to(dtype).float(), -1))


# --- Exact moments ------------------------------------------------------------------------------------------------


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
        One row per estimator: estimator, value, bias, bias_share, sd, pull, pull_sd; see `measure`.
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


# --- A pair of models ---------------------------------------------------------------------------------------------


class _Reference(NamedTuple):
    """pi_ref at the positions of one redraw: all of it, the stored tokens' part, and what top-K stores."""

    logprobs_N_V: Tensor
    chosen_N: Tensor
    top: TopK


@dataclass(frozen=True)
class _Pair:
    """What is measured; the fields are the arguments of `measure`."""

    base: PreTrainedModel
    policy: PreTrainedModel
    divergence: Divergence
    k: int
    dtype: torch.dtype
    pad_token_id: int

    @torch.no_grad()
    def reference(self, rows: Sequence[TokenRow]) -> _Reference:
        hidden_N_D, tokens_N, _ = answer_hidden(self.base, self.pad_token_id, rows)
        logprobs_N_V = _all_logprobs(hidden_N_D, self.base)
        ids_N_K = logprobs_N_V.topk(self.k).indices
        top = as_stored(TopK(ids_N_K, binned(logprobs_N_V, ids_N_K)), self.dtype)
        return _Reference(logprobs_N_V, logprobs_N_V.gather(-1, tokens_N[:, None])[:, 0], top)

    def estimate(self, name: str, hidden_N_D: Tensor, tokens_N: Tensor, reference: _Reference) -> Tensor:
        """The estimator's value at each position, with gradient."""
        if name == "definition":
            return topk_divergence(_all_logprobs(hidden_N_D, self.policy), reference.logprobs_N_V, self.divergence)
        if name == "topk":
            logprobs_N_K1 = binned(_all_logprobs(hidden_N_D, self.policy), reference.top.ids_N_K)
            return topk_divergence(logprobs_N_K1, reference.top.logprobs_N_K1, self.divergence)
        weight_V_D = self.policy.get_output_embeddings().weight
        d_N = logprobs_from_hidden(hidden_N_D, weight_V_D, tokens_N) - reference.chosen_N
        if name == "topk_sampled_tail":
            logprobs_N_K1 = binned(_all_logprobs(hidden_N_D, self.policy), reference.top.ids_N_K)
            return sampled_tail_divergence(logprobs_N_K1, reference.top, tokens_N, d_N, self.divergence)
        return self.divergence(d_N)

    def gradients(self, hidden_N_D: Tensor, tokens_N: Tensor, reference: _Reference) -> dict[str, Tensor]:
        """Gradient of each estimator's mean over the positions; `mean_of_answers` is the mean of several of these."""
        found = {}
        for name in ESTIMATORS:
            if name != "mean_of_answers":
                loss = self.estimate(name, hidden_N_D, tokens_N, reference).mean()
                parts = torch.autograd.grad(loss, self.trained, retain_graph=True)
                found[name] = torch.cat([part.flatten() for part in parts])
        return found

    @property
    def trained(self) -> list[Tensor]:
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def update_ms(self, name: str, rows: Sequence[TokenRow]) -> float:
        """Milliseconds of an update with an estimator; what is stored is made before the clock starts."""
        reference = self.reference(rows)
        started = time.perf_counter()
        if name == "definition":
            reference = self.reference(rows)
        hidden_N_D, tokens_N, _ = answer_hidden(self.policy, self.pad_token_id, rows)
        torch.autograd.grad(self.estimate(name, hidden_N_D, tokens_N, reference).mean(), self.trained)
        return 1000 * (time.perf_counter() - started)


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
    """One row for each of `ESTIMATORS`.

    Args:
        base, policy: pi_ref and pi_theta, of one vocabulary; parameters of the policy must require gradients.
        draws_M_P: M redraws of the stored answers, each one row per prompt, the same prompts in the same order.
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
        leave); bytes (stored per token), bytes_ratio (to the plain store); ms (an update: forward and backward pass
        and, for the definition, the online reference's); pull, pull_sd (mean over collapsed tokens; NaN where there
        are none); attrs: positions, collapsed, redraws.

    Raises:
        ValueError: too few redraws for two groups of `answers`.
    """
    if len(draws_M_P) < 2 * answers:
        raise ValueError(f"{len(draws_M_P)} redraws; the variance of means over {answers} needs {2 * answers} or more")
    pair = _Pair(base, policy, divergence, k, dtype, pad_token_id)
    spreads = {name: _Spread() for name in ESTIMATORS}
    moments, positions, collapsed, group = [], 0, 0, []
    for rows in draws_M_P:
        hidden_N_D, tokens_N, _ = answer_hidden(policy, pad_token_id, rows)
        reference = pair.reference(rows)
        logprobs_N_V = _all_logprobs(hidden_N_D.detach(), policy)
        ref_p, d = reference.logprobs_N_V.exp(), logprobs_N_V - reference.logprobs_N_V
        position_N, token_N = ((ref_p >= COLLAPSED_REF) & (d.exp() < COLLAPSED_RATIO)).nonzero(as_tuple=True)
        of_models = (logprobs_N_V, reference.logprobs_N_V, reference.top)
        moments.append(exact_moments(*of_models, divergence, (position_N, token_N), answers=answers, top_p=top_p))
        gradients = pair.gradients(hidden_N_D, tokens_N, reference)
        for name, gradient in gradients.items():
            spreads[name].add(gradient)
        group.append((len(tokens_N), gradients["one_sample"]))
        if len(group) == answers:
            total = sum(n for n, _ in group)
            weighed = [gradient * (n / total) for n, gradient in group]
            spreads["mean_of_answers"].add(reduce(torch.add, weighed))
            group = []
        positions, collapsed = positions + len(tokens_N), collapsed + len(position_N)
    table = moment_columns(moments).set_index("estimator")
    for column, values in _gradient_columns(spreads).items():
        table[column] = values
    vocabulary = policy.get_output_embeddings().weight.shape[0]
    stored = {"mean_of_answers": answers * PLAIN_BYTES, "definition": 4, "one_sample": PLAIN_BYTES}
    table["bytes"] = [stored.get(name, bytes_per_token(k, vocabulary, dtype)) for name in ESTIMATORS]
    table["bytes_ratio"] = table["bytes"] / PLAIN_BYTES
    table["ms"] = _median_ms(pair, draws_M_P, answers, timed)
    table.attrs = {"positions": positions, "collapsed": collapsed, "redraws": len(draws_M_P)}
    return table[[c for c in table if c not in ("pull", "pull_sd")] + ["pull", "pull_sd"]].reset_index()


def _gradient_columns(spreads: dict[str, _Spread]) -> dict[str, list[float]]:
    truth, traces = spreads["definition"].mean(), [spreads[name].trace() for name in ESTIMATORS]
    return {
        "gradient_norm": [float(spreads[name].mean().norm()) for name in ESTIMATORS],
        "gradient_sd": [trace**0.5 for trace in traces],
        "variance_ratio": [(traces[0] ** 0.5 / trace**0.5) ** 2 for trace in traces],
        "gradient_bias": [float((spreads[name].mean() - truth).norm() / truth.norm()) for name in ESTIMATORS],
    }


def _median_ms(pair: _Pair, draws_M_P: Sequence[Sequence[TokenRow]], answers: int, timed: int) -> list[float]:
    taken: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for turn in range(timed + 1 if timed else 0):
        for name in ESTIMATORS:
            parts = draws_M_P[: answers if name == "mean_of_answers" else 1]
            milliseconds = pair.update_ms(name, [row for part in parts for row in part])
            if turn:  # the first warms up
                taken[name].append(milliseconds)
    return [float(pd.Series(taken[name], dtype=float).median()) for name in ESTIMATORS]


def _all_logprobs(hidden_N_D: Tensor, model: PreTrainedModel) -> Tensor:
    return (hidden_N_D @ model.get_output_embeddings().weight.T).log_softmax(-1)


def draw_rows(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], redraws: int, tokens: int, seed: int
) -> list[list[TokenRow]]:
    """Answers of exactly `tokens` tokens from the whole distribution, for a model without a tokenizer.

    Args:
        prompts: token ids, all of one length.

    Returns:
        M redraws, each one row per prompt, as `measure` takes them. Same seed, same answers.
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
