"""Log-probabilities of given tokens from hidden states, in chunks.

With a vocabulary of 128k the logits of a micro-batch of 8k tokens are 4 GiB in fp32, and the plain way holds
several such tensors for the backward pass. Here the logits of a chunk of tokens are made, used and dropped,
and made again in the backward pass. Values and gradients are those of the plain way

    log_softmax(hidden @ weight.T / temperature).gather(tokens)

with logits in fp32 (float64 for float64 inputs), also when hidden states and weight are 16-bit.

Not here: output layers with a bias, logit scaling or soft-capping; and sharded weights (gather them first).
Pass the hidden states of the scored positions only: position t - 1 scores token t.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Logits that a chunk holds unless `chunk` is given: 128 MiB in fp32."""

_HALF = (torch.bfloat16, torch.float16)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in fp32 (16-bit operands of one dtype are multiplied as they are, and accumulated in fp32)."""
    with torch.autocast(a.device.type, enabled=False):
        if a.dtype not in _HALF:
            return a @ b.to(a.dtype)
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32)
        return a.float() @ b.float()


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
    ) -> tuple[Tensor, Tensor]:
        working = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs_N, lse_N, entropy_N = (
            torch.empty(len(hidden), dtype=working, device=hidden.device) for _ in range(3)
        )
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = _matmul(hidden[rows], weight.T) / temperature
            lse = logits.logsumexp(-1)
            logprobs_N[rows] = logits.gather(-1, tokens[rows, None]).squeeze(-1) - lse
            lse_N[rows] = lse
            if entropy:
                p = (logits - lse[:, None]).exp()
                entropy_N[rows] = lse - (p * logits).sum(-1)
        ctx.save_for_backward(hidden, weight, tokens, lse_N, entropy_N)
        ctx.temperature, ctx.chunk, ctx.entropy = temperature, chunk, entropy
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, lse_N, entropy_N = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=lse_N.dtype) if need_weight else None
        for start in range(0, len(hidden), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            log_p = _matmul(hidden[rows], weight.T) / ctx.temperature - lse_N[rows, None]
            p = log_p.exp()
            # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
            scale = grad_logprobs_N[rows, None]
            if ctx.entropy:
                scale = scale + grad_entropy_N[rows, None] * (log_p + entropy_N[rows, None])
            grad_logits = -p * scale
            grad_logits.scatter_add_(-1, tokens[rows, None], grad_logprobs_N[rows, None])
            grad_logits /= ctx.temperature
            if need_hidden:
                grad_hidden[rows] = _matmul(grad_logits.to(weight.dtype), weight).to(hidden.dtype)
            if need_weight:
                grad_weight += _matmul(grad_logits.to(hidden.dtype).T, hidden[rows])
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
            None,
            None,
        )


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
    hidden, weight, tokens = hidden_N_D, lm_head_weight_V_D, tokens_N
    shapes = tuple(hidden.shape), tuple(weight.shape), tuple(tokens.shape)
    if (
        hidden.dim() != 2
        or weight.dim() != 2
        or hidden.shape[1] != weight.shape[1]
        or shapes[2] != shapes[0][:1]
    ):
        raise ValueError(
            "hidden_N_D, lm_head_weight_V_D, tokens_N have shapes {}, {}, {}; they must be (N, D), (V, D), (N,):"
            " select the scored positions first, such as hidden_B_T_D[mask_B_T]".format(*shapes)
        )
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}; it must be > 0 (greedy decoding has no log-probabilities)"
        )
    if chunk is None:
        chunk = max(1, CHUNK_ELEMENTS // len(weight))
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 token, or None for the default")
    if hidden.dtype != weight.dtype:  # autocast leaves 16-bit activations beside fp32 weights
        hidden = hidden.to(torch.promote_types(hidden.dtype, weight.dtype))
    logprobs_N, entropy_N = _ChosenLogprobs.apply(hidden, weight, tokens, temperature, chunk, with_entropy)
    return (logprobs_N, entropy_N) if with_entropy else logprobs_N
