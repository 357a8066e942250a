"""Log-probabilities of given tokens from hidden states, in chunks: one token a position, or K and the rest of the mass.

With a vocabulary of 128k the logits of a micro-batch of 8k tokens are 4 GiB in fp32, and the plain way holds
several such tensors for the backward pass. Here the logits of a chunk of tokens are made, used and dropped;
only what fits one chunk is kept. Values and gradients are those of the plain way

    log_softmax(hidden @ weight.T / temperature).gather(tokens)

with logits in fp32 (float64 for float64 inputs), also when hidden states and weight are 16-bit. The backward pass of
what does not fit one chunk:

1. A weight that is trained: the logits are made again, a block of the vocabulary for all tokens at a time, so that the
   block's rows of the weight's gradient are whole at once. Four matrix products where the plain way has three.
2. A frozen weight, as under an adapter: a log-probability's slope along its hidden state does not depend on what comes
   back, so the forward pass takes it along, and nothing is made again. Two products, as many as the plain way.

Not here: output layers with a bias, logit scaling or soft-capping; and sharded weights (gather them first).
Pass the hidden states of the scored positions only: position t - 1 scores token t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Logits that a chunk holds unless `chunk` is given: 128 MiB in fp32."""
_TILE = 128
"""A GPU's matrix product is cut into tiles of so many rows and columns; part of one takes the time of a whole."""

_HALF = (torch.bfloat16, torch.float16)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 (16-bit operands of one dtype are multiplied as they are, and accumulated in fp32)."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype not in _HALF:
            return a @ b.to(a.dtype)
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()


def _divided(logits: Tensor, temperature: float) -> Tensor:
    """`logits`, divided in place; at temperature 1 a pass over them is saved."""
    return logits if temperature == 1.0 else logits.div_(temperature)


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        tokens: Tensor,
        temperature: float,
        chunk: int,
        entropy: bool,
        along: bool,
    ) -> tuple[Tensor, Tensor]:
        working = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs_N, lse_N, entropy_N = (torch.empty(len(hidden), dtype=working, device=hidden.device) for _ in range(3))
        slope_N_D = torch.empty(hidden.shape, dtype=working, device=hidden.device) if along else None
        log_p = None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = _divided(_matmul(hidden[rows], weight.T), temperature)
            lse_N[rows] = lse = logits.logsumexp(-1)
            log_p = logits.sub_(lse[:, None])
            logprobs_N[rows] = log_p.gather(-1, tokens[rows, None]).squeeze(-1)
            if entropy:
                entropy_N[rows] = -(log_p.exp() * log_p).sum(-1)
            if slope_N_D is not None:  # d logprob / d logits = onehot - p
                slope = log_p.exp_().neg_()
                slope.scatter_add_(-1, tokens[rows, None], slope.new_ones(len(slope), 1))
                slope_N_D[rows] = _divided(_matmul(slope.to(weight.dtype), weight), temperature)
        # what fits one chunk is kept, which saves a small vocabulary the second product
        kept = log_p if len(hidden) <= chunk else None
        ctx.save_for_backward(hidden, weight, tokens, lse_N, entropy_N, kept, slope_N_D)
        ctx.temperature, ctx.chunk, ctx.entropy = temperature, chunk, entropy
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, lse_N, entropy_N, kept, slope_N_D = ctx.saved_tensors
        rest = (None,) * 5
        if slope_N_D is not None:
            return ((slope_N_D * grad_logprobs_N[:, None]).to(hidden.dtype), None, *rest)

        def scale_of(log_p: Tensor) -> Tensor:
            # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
            scale = grad_logprobs_N[:, None]
            return scale + grad_entropy_N[:, None] * (log_p + entropy_N[:, None]) if ctx.entropy else scale

        if kept is not None:
            grad_logits = kept.exp().mul_(-scale_of(kept))
            grad_logits = grad_logits.scatter_add_(-1, tokens[:, None], grad_logprobs_N[:, None])
            return (*_through_logits(ctx, hidden, weight, lse_N, kept, lambda rows, log_p: grad_logits), *rest)

        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros(hidden.shape, dtype=lse_N.dtype, device=hidden.device) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        width = _whole_tiles(ctx.chunk * len(weight) // max(1, len(hidden)))
        for start in range(0, len(weight), width):
            block = weight[start : start + width]
            log_p = _divided(_matmul(hidden, block.T), ctx.temperature).sub_(lse_N[:, None])
            scale = scale_of(log_p)
            grad_logits = log_p.exp_().mul_(-scale)
            inside = (tokens >= start) & (tokens < start + len(block))
            column = (tokens - start).clamp(0, len(block) - 1)
            grad_logits.scatter_add_(-1, column[:, None], grad_logprobs_N.where(inside, 0.0)[:, None])
            grad_logits = _divided(grad_logits, ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden += _matmul(grad_logits.to(weight.dtype), block)
            if grad_weight is not None:
                grad_weight[start : start + width] = _matmul(grad_logits.T, hidden)
        return (None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, *rest)


class _BinnedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float, chunk: int) -> Tensor:
        working = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        binned_N_K1 = torch.empty(len(hidden), ids.shape[1] + 1, dtype=working, device=hidden.device)
        lse_N = torch.empty(len(hidden), dtype=working, device=hidden.device)
        log_p = None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = _divided(_matmul(hidden[rows], weight.T), temperature)
            lse_N[rows] = lse = logits.logsumexp(-1)
            log_p = logits.sub_(lse[:, None])
            binned_N_K1[rows, :-1] = log_p.gather(-1, ids[rows])
            # over the other tokens, not as 1 - sum of the K: that has no digit left where they hold nearly all
            binned_N_K1[rows, -1] = log_p.scatter(-1, ids[rows], -math.inf).logsumexp(-1)
        kept = log_p if len(hidden) <= chunk else None
        ctx.save_for_backward(hidden, weight, ids, lse_N, binned_N_K1[:, -1].clone(), kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        return binned_N_K1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N_K1: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, ids, lse_N, log_rest_N, kept = ctx.saved_tensors
        # K = V leaves no rest: log 0 has no gradient to give
        grad_rest_N = grad_N_K1[:, -1].where(log_rest_N.isfinite(), 0.0)
        log_rest_N = log_rest_N.where(log_rest_N.isfinite(), 0.0)
        grad_sum_N = grad_N_K1[:, :-1].sum(-1) + grad_rest_N

        def grad_logits(rows: slice, log_p: Tensor) -> Tensor:
            # d logprob / d logits = onehot - p;  d log rest / d logits = p / rest outside the K tokens - p
            within_rest = (log_p - log_rest_N[rows, None]).scatter_(-1, ids[rows], -math.inf).exp_()
            grad_logits = log_p.exp().mul_(-grad_sum_N[rows, None])
            grad_logits += within_rest.mul_(grad_rest_N[rows, None])
            return grad_logits.scatter_add_(-1, ids[rows], grad_N_K1[rows, :-1])

        return (*_through_logits(ctx, hidden, weight, lse_N, kept, grad_logits), None, None, None)


def _through_logits(
    ctx: Any,
    hidden: Tensor,
    weight: Tensor,
    lse_N: Tensor,
    kept: Tensor | None,
    grad_logits_of: Callable[[slice, Tensor], Tensor],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of hidden states and weight, a chunk at a time.

    Args:
        kept: log-probabilities of all positions where they fit one chunk; made again otherwise.
        grad_logits_of: positions and their log-probabilities -> gradient with respect to logits / temperature.
    """
    need_hidden, need_weight = ctx.needs_input_grad[:2]
    grad_hidden = torch.empty_like(hidden) if need_hidden else None
    grad_weight = torch.zeros_like(weight, dtype=lse_N.dtype) if need_weight else None
    for start in range(0, len(hidden), ctx.chunk):
        rows = slice(start, start + ctx.chunk)
        log_p = kept
        if log_p is None:
            log_p = _divided(_matmul(hidden[rows], weight.T), ctx.temperature).sub_(lse_N[rows, None])
        grad_logits = _divided(grad_logits_of(rows, log_p), ctx.temperature)
        if need_hidden:
            grad_hidden[rows] = _matmul(grad_logits.to(weight.dtype), weight).to(hidden.dtype)
        if need_weight:
            grad_weight += _matmul(grad_logits.to(hidden.dtype).T, hidden[rows])
    return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype)


@overload
def logprobs_from_hidden(
    hidden_N_D: Tensor,
    lm_head_weight_V_D: Tensor,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    with_entropy: Literal[False] = False,
) -> Tensor: ...


@overload
def logprobs_from_hidden(
    hidden_N_D: Tensor,
    lm_head_weight_V_D: Tensor,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    with_entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def logprobs_from_hidden(
    hidden_N_D: Tensor,
    lm_head_weight_V_D: Tensor,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probabilities of `tokens_N` under softmax(hidden @ weight.T / temperature), never holding (N, V).

    Args:
        hidden_N_D: last hidden states (after the final norm) of the positions that predict `tokens_N`.
        lm_head_weight_V_D: weight of the output layer, in its stored layout; no bias.
        tokens_N: token ids, each in [0, V).
        temperature: divides the logits; > 0.
        chunk: tokens whose logits are held at once; so many that they are `CHUNK_ELEMENTS` logits when None.
        with_entropy: also give the entropy of each of the distributions, differentiable too.

    Returns:
        log-probs_N in nats, fp32 (float64 for float64 inputs); with `with_entropy` the pair (log-probs_N,
        entropies_N), both in nats and at that temperature.

    Raises:
        ValueError: shapes that do not fit, temperature or chunk out of range.

    >>> logprobs_from_hidden(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([2]))
    tensor([-1.3863])
    """
    hidden, weight, chunk = _checked(hidden_N_D, lm_head_weight_V_D, tokens_N, "tokens_N", "(N,)", temperature, chunk)
    frozen = torch.is_grad_enabled() and hidden.requires_grad and not weight.requires_grad
    along = frozen and not with_entropy and len(hidden) > chunk
    logprobs_N, entropy_N = _ChosenLogprobs.apply(hidden, weight, tokens_N, temperature, chunk, with_entropy, along)
    return (logprobs_N, entropy_N) if with_entropy else logprobs_N


def binned_logprobs_from_hidden(
    hidden_N_D: Tensor,
    lm_head_weight_V_D: Tensor,
    ids_N_K: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Tensor:
    """Log-probabilities of K tokens a position and of the rest of the mass, never holding (N, V).

    The rest is summed over the other tokens in the logarithm, so it is exact down to the smallest mass.

    Args:
        hidden_N_D, lm_head_weight_V_D, temperature, chunk: see `logprobs_from_hidden`.
        ids_N_K: K different token ids a position, each in [0, V), K <= V.

    Returns:
        (N, K + 1) in nats, fp32 (float64 for float64 inputs): the K tokens in the order given, then the log of the
        mass of all others, which is minus infinity when K = V. Each row is a distribution over K + 1 bins.

    Raises:
        ValueError: shapes that do not fit, an id twice at one position, temperature or chunk out of range.

    >>> binned_logprobs_from_hidden(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([[2, 0]])).exp()
    tensor([[0.2500, 0.2500, 0.5000]])
    """
    hidden, weight, chunk = _checked(hidden_N_D, lm_head_weight_V_D, ids_N_K, "ids_N_K", "(N, K)", temperature, chunk)
    in_order = ids_N_K.sort(-1).values
    if bool((in_order[:, 1:] == in_order[:, :-1]).any()):
        raise ValueError(
            "ids_N_K names a token twice at one position; its mass would count twice: give K different ids"
        )
    return _BinnedLogprobs.apply(hidden, weight, ids_N_K, temperature, chunk)


@torch.no_grad()
def top_ids_from_hidden(hidden_N_D: Tensor, lm_head_weight_V_D: Tensor, k: int, *, chunk: int | None = None) -> Tensor:
    """The K likeliest tokens of each position, likeliest first, (N, K); never holding (N, V).

    Raises:
        ValueError: shapes that do not fit, chunk out of range, k outside 1..V.

    >>> top_ids_from_hidden(torch.ones(1, 1), torch.tensor([[1.0], [3.0], [2.0]]), 2)
    tensor([[1, 2]])
    """
    nobody = torch.zeros(len(hidden_N_D), 0, dtype=torch.long)
    hidden, weight, chunk = _checked(hidden_N_D, lm_head_weight_V_D, nobody, "ids_N_K", "(N, K)", 1.0, chunk)
    if not 1 <= k <= len(weight):
        raise ValueError(f"k is {k}; it must lie in 1..{len(weight)}, the size of the vocabulary")
    parts = hidden.split(chunk) if len(hidden) else [hidden]
    return torch.cat([_matmul(part, weight.T).topk(k).indices for part in parts])


def _whole_tiles(count: int) -> int:
    """`count`, at least 1, without the last part of a tile where there is a whole one.

    >>> _whole_tiles(0), _whole_tiles(100), _whole_tiles(261)
    (1, 100, 256)
    """
    return count - count % _TILE if count > _TILE else max(1, count)


def _checked(
    hidden: Tensor, weight: Tensor, ids: Tensor, name: str, wanted: str, temperature: float, chunk: int | None
) -> tuple[Tensor, Tensor, int]:
    """Hidden states and weight in one dtype, and the chunk, after the arguments were found to fit."""
    shapes = tuple(hidden.shape), tuple(weight.shape), tuple(ids.shape)
    fits = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or shapes[2][:1] != shapes[0][:1] or ids.dim() != wanted.count("N") + wanted.count("K"):
        raise ValueError(
            f"hidden_N_D, lm_head_weight_V_D, {name} have shapes {shapes[0]}, {shapes[1]}, {shapes[2]}; they must be"
            f" (N, D), (V, D), {wanted}: select the scored positions first, such as hidden_B_T_D[mask_B_T]"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be > 0 (greedy decoding has no log-probabilities)")
    if chunk is None:
        chunk = _whole_tiles(CHUNK_ELEMENTS // len(weight))
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 token, or None for the default")
    if hidden.dtype != weight.dtype:  # autocast leaves 16-bit activations beside fp32 weights
        hidden = hidden.to(torch.promote_types(hidden.dtype, weight.dtype))
    return hidden, weight, chunk
