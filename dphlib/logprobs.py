"""Log-probabilities of given tokens from hidden states, in chunks, and the entropies of their distributions.

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

A bias, a scale or a soft cap of the output layer is described by an `OutputHead`. Not here: sharded weights (gather
them first).
Pass the hidden states of the scored positions only: position t - 1 scores token t.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Logits that a chunk holds unless `chunk` is given: 128 MiB in fp32."""
_TILE = 128
"""A GPU's matrix product is cut into tiles of so many rows and columns; part of one takes the time of a whole."""

_HALF = (torch.bfloat16, torch.float16)


class OutputHead(NamedTuple):
    """What comes after `hidden @ weight.T`: a bias, then a scale, then a soft cap c tanh(logits / c).

    >>> OutputHead(scale=0.5).logits(torch.tensor([4.0]))
    tensor([2.])
    """

    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, layer_output: Tensor) -> Tensor:
        """The model's logits, given what its output layer, with its bias, gives."""
        scaled = layer_output if self.scale == 1.0 else layer_output * self.scale
        return scaled if self.softcap is None else self.softcap * (scaled / self.softcap).tanh()


PLAIN = OutputHead()


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


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    """`logits`, capped in place."""
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _cap_slope(log_p: Tensor, lse_N: Tensor, temperature: float, softcap: float | None) -> Tensor | None:
    """d capped / d logits where capping, dividing and normalising gave `log_p`; None for 1 everywhere."""
    return None if softcap is None else 1 - ((log_p + lse_N[:, None]) * (temperature / softcap)) ** 2


def _times(grad_logits: Tensor, slope: Tensor | None) -> Tensor:
    """`grad_logits`, multiplied in place."""
    return grad_logits if slope is None else grad_logits.mul_(slope)


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
        softcap: float | None,
    ) -> tuple[Tensor, Tensor]:
        working = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs_N, lse_N, entropy_N = (torch.empty(len(hidden), dtype=working, device=hidden.device) for _ in range(3))
        slope_N_D = torch.empty(hidden.shape, dtype=working, device=hidden.device) if along else None
        log_p = None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = _divided(_capped(_matmul(hidden[rows], weight.T), softcap), temperature)
            lse_N[rows] = lse = logits.logsumexp(-1)
            log_p = logits.sub_(lse[:, None])
            logprobs_N[rows] = log_p.gather(-1, tokens[rows, None]).squeeze(-1)
            if entropy:
                entropy_N[rows] = -(log_p.exp() * log_p).sum(-1)
            if slope_N_D is not None:  # d logprob / d logits = onehot - p
                of_cap = _cap_slope(log_p, lse, temperature, softcap)
                slope = log_p.exp_().neg_()
                slope.scatter_add_(-1, tokens[rows, None], slope.new_ones(len(slope), 1))
                slope = _times(slope, of_cap)
                slope_N_D[rows] = _divided(_matmul(slope.to(weight.dtype), weight), temperature)
        # what fits one chunk is kept, which saves a small vocabulary the second product
        kept = log_p if len(hidden) <= chunk else None
        ctx.save_for_backward(hidden, weight, tokens, lse_N, entropy_N, kept, slope_N_D)
        ctx.temperature, ctx.chunk, ctx.entropy, ctx.softcap = temperature, chunk, entropy, softcap
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, lse_N, entropy_N, kept, slope_N_D = ctx.saved_tensors
        rest = (None,) * 6
        if slope_N_D is not None:
            return ((slope_N_D * grad_logprobs_N[:, None]).to(hidden.dtype), None, *rest)

        def scale_of(log_p: Tensor) -> Tensor:
            # d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy)
            scale = grad_logprobs_N[:, None]
            return scale + grad_entropy_N[:, None] * (log_p + entropy_N[:, None]) if ctx.entropy else scale

        need_hidden, need_weight = ctx.needs_input_grad[:2]
        if kept is not None:
            grad_logits = kept.exp().mul_(-scale_of(kept))
            grad_logits.scatter_add_(-1, tokens[:, None], grad_logprobs_N[:, None])
            grad_logits = _times(grad_logits, _cap_slope(kept, lse_N, ctx.temperature, ctx.softcap))
            grad_logits = _divided(grad_logits, ctx.temperature)
            grad_hidden = _matmul(grad_logits.to(weight.dtype), weight).to(hidden.dtype) if need_hidden else None
            grad_weight = _matmul(grad_logits.to(hidden.dtype).T, hidden).to(weight.dtype) if need_weight else None
            return (grad_hidden, grad_weight, *rest)

        grad_hidden = torch.zeros(hidden.shape, dtype=lse_N.dtype, device=hidden.device) if need_hidden else None
        grad_weight = torch.empty_like(weight) if need_weight else None
        width = _whole_tiles(ctx.chunk * len(weight) // max(1, len(hidden)))
        for start in range(0, len(weight), width):
            block = weight[start : start + width]
            log_p = _divided(_capped(_matmul(hidden, block.T), ctx.softcap), ctx.temperature).sub_(lse_N[:, None])
            scale, of_cap = scale_of(log_p), _cap_slope(log_p, lse_N, ctx.temperature, ctx.softcap)
            grad_logits = log_p.exp_().mul_(-scale)
            inside = (tokens >= start) & (tokens < start + len(block))
            column = (tokens - start).clamp(0, len(block) - 1)
            grad_logits.scatter_add_(-1, column[:, None], grad_logprobs_N.where(inside, 0.0)[:, None])
            grad_logits = _divided(_times(grad_logits, of_cap), ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden += _matmul(grad_logits.to(weight.dtype), block)
            if grad_weight is not None:
                grad_weight[start : start + width] = _matmul(grad_logits.T, hidden)
        return (None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, *rest)


@overload
def logprobs_from_hidden(
    hidden_N_D: Tensor,
    lm_head_weight_V_D: Tensor,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    head: OutputHead = PLAIN,
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
    head: OutputHead = PLAIN,
    with_entropy: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def logprobs_from_hidden(
    hidden_N_D: Tensor,
    lm_head_weight_V_D: Tensor,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    head: OutputHead = PLAIN,
    with_entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probabilities of `tokens_N` under softmax(hidden @ weight.T / temperature), never holding (N, V).

    Args:
        hidden_N_D: last hidden states (after the final norm) of the positions that predict `tokens_N`.
        lm_head_weight_V_D: weight of the output layer, in its stored layout.
        tokens_N: token ids, each in [0, V).
        temperature: divides the logits; > 0.
        chunk: tokens whose logits are held at once; so many that they are `CHUNK_ELEMENTS` logits when None.
        head: what else the model does to its logits, see `models.output_head`.
        with_entropy: also give the entropy of each of the distributions, differentiable too.

    Returns:
        log-probs_N in nats, fp32 (float64 for float64 inputs); with `with_entropy` the pair (log-probs_N,
        entropies_N), both in nats and at that temperature.

    Raises:
        ValueError: shapes that do not fit, temperature or chunk out of range.

    >>> logprobs_from_hidden(torch.zeros(1, 3), torch.ones(4, 3), torch.tensor([2]))
    tensor([-1.3863])
    """
    hidden, weight, chunk = _checked(hidden_N_D, lm_head_weight_V_D, tokens_N, temperature, chunk)
    if head.bias_V is not None:  # one more column of the weight, which meets ones
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
        weight = torch.cat([weight, head.bias_V[:, None]], 1)
    softcap = None if head.softcap is None else head.softcap / head.scale  # the scale is a part of the temperature
    frozen = torch.is_grad_enabled() and hidden.requires_grad and not weight.requires_grad
    along = frozen and not with_entropy and len(hidden) > chunk
    logprobs_N, entropy_N = _ChosenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, weight, tokens_N, temperature / head.scale, chunk, with_entropy, along, softcap
    )
    return (logprobs_N, entropy_N) if with_entropy else logprobs_N


def _whole_tiles(count: int) -> int:
    """`count`, at least 1, without the last part of a tile where there is a whole one.

    >>> _whole_tiles(0), _whole_tiles(100), _whole_tiles(261)
    (1, 100, 256)
    """
    return count - count % _TILE if count > _TILE else max(1, count)


def _checked(
    hidden: Tensor, weight: Tensor, tokens: Tensor, temperature: float, chunk: int | None
) -> tuple[Tensor, Tensor, int]:
    """Hidden states and weight in one dtype, and the chunk, after the arguments were found to fit."""
    fits = hidden.dim() == weight.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not fits or tokens.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden_N_D, lm_head_weight_V_D, tokens_N have shapes {tuple(hidden.shape)}, {tuple(weight.shape)},"
            f" {tuple(tokens.shape)}; they must be (N, D), (V, D), (N,): select the scored positions first, such as"
            " hidden_B_T_D[mask_B_T]"
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
