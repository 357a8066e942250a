r"""Estimates of a token's divergence D_f at the positions of stored answers, beside each other.

At a position with prefix s, D_f = sum over v of pi_ref(v|s) f(u_v), u = pi_theta/pi_ref. Four ways to it:

    one sample       f(u_y), y the stored token, drawn from pi_ref: the paper's; unbiased, the noise of one draw
    several answers  the mean of that over R stored answers a prompt: 1/R of the variance, R times the bytes and passes
    definition       the whole sum, for which an online reference gives its V log-probs: no noise left at a position
    top-K            ours: the K likeliest tokens of pi_ref and their log-probs are stored when the answers are drawn,
                     the rest of the mass is one bin; a sum over K + 1 bins, no reference model, no sampling noise

Top-K is a lower bound. Lumping tokens into a bin is a map of the outcomes, and no f-divergence grows under one (data
processing; here: Jensen, for f is convex and the bin's ratio is the mean of its tokens' ratios under pi_ref). It is the
full divergence where K = V, where the policy keeps the ratios within the rest, and it does not fall as K grows. What it
misses is the policy's reshuffling of tokens that pi_ref held unlikely all together.

`sampled_tail` takes that bias away at no further byte: the K tokens are summed, and the stored token's own f(u_y) is
added where it is none of them. It is unbiased, and noisy only as far as the tail is drawn.

Stored besides the plain store's token id (int32) and log-prob (fp32), 8 bytes a token: K ids (2 bytes up to 65,536
tokens, else 4) and K + 1 log-probs (2 bytes in float16, 4 in fp32), the rest's log-mass among them, for 1 - sum has no
digits left where K tokens hold nearly all. K = 8 takes 8 + 16 + 18 = 42 bytes, 5.25 times the plain store, for a small
vocabulary in float16, and 8 + 32 + 36 = 76 bytes, 9.5 times, for a large one in fp32.

Here are tensors and files only; what each estimate is worth on a pair of models is measured in `estimator_study`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dphlib.logprobs import binned_logprobs_from_hidden, top_ids_from_hidden

PLAIN_BYTES = 8
"""Of the plain store, a token: its id as int32 and its log-prob as fp32."""


class TopK(NamedTuple):
    """The reference's K likeliest tokens at N positions, and the rest.

    Args:
        ids_N_K: token ids, int64.
        logprobs_N_K1: nats, fp32: log pi_ref of each of them, then the log of the mass of all other tokens.
    """

    ids_N_K: Tensor
    logprobs_N_K1: Tensor


def topk_reference(hidden_N_D: Tensor, lm_head_weight_V_D: Tensor, k: int, *, chunk: int | None = None) -> TopK:
    """What is stored of the reference, from its hidden states; without gradient, never holding (N, V).

    Args and Raises: see `logprobs.binned_logprobs_from_hidden`; k in 1..V.
    """
    ids_N_K = top_ids_from_hidden(hidden_N_D, lm_head_weight_V_D, k, chunk=chunk)
    with torch.no_grad():
        binned = binned_logprobs_from_hidden(hidden_N_D, lm_head_weight_V_D, ids_N_K, chunk=chunk)
    return TopK(ids_N_K, binned.float())


def topk_divergence(logprobs_N_K1: Tensor, ref_logprobs_N_K1: Tensor, divergence: Callable[[Tensor], Tensor]) -> Tensor:
    """sum over bins of pi_ref(bin) f(pi_theta(bin) / pi_ref(bin)) at each position, differentiable in the policy.

    With K tokens and the rest as bins it is the top-K estimate; with all V tokens as bins it is the definition.

    Args:
        logprobs_N_K1: log pi_theta of the bins, nats, with gradient (`logprobs.binned_logprobs_from_hidden`).
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
    logprobs_N_K1: Tensor,
    reference: TopK,
    tokens_N: Tensor,
    d_N: Tensor,
    divergence: Callable[[Tensor], Tensor],
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


# --- The stored file --------------------------------------------------------------------------------------------------


def id_dtype(vocabulary: int) -> torch.dtype:
    """The smaller of uint16 and int32 that holds every token id.

    >>> id_dtype(65_536), id_dtype(128_256)
    (torch.uint16, torch.int32)
    """
    return torch.uint16 if vocabulary <= 2**16 else torch.int32


def bytes_per_token(k: int, vocabulary: int, dtype: torch.dtype = torch.float16) -> int:
    """Bytes that a token of a stored answer takes with its top K and in the plain store, which k = 0 is alone.

    >>> bytes_per_token(8, 500), bytes_per_token(8, 128_256, torch.float32), bytes_per_token(0, 500)
    (42, 76, 8)
    """
    return PLAIN_BYTES + (k * id_dtype(vocabulary).itemsize + (k + 1) * dtype.itemsize if k else 0)


def as_stored(reference: TopK, dtype: torch.dtype = torch.float16) -> TopK:
    """A reference as it comes back from the file: log-probs rounded to `dtype`, then each row a distribution again."""
    rounded = reference.logprobs_N_K1.to(dtype).float()
    return TopK(reference.ids_N_K.long(), torch.log_softmax(rounded, -1))


def save_topk(path: Path, answers: Sequence[TopK], vocabulary: int, dtype: torch.dtype = torch.float16) -> None:
    """Writes the top K of stored answers, one `TopK` an answer, into one safetensors file.

    Args:
        path: the file; written as it goes, so give it a place that is renamed when whole (a stage's folder).
        answers: in the order of the stored answers, all with one K.
        vocabulary: number of token ids, for the smallest type that holds them.
        dtype: of the log-probs, float16 or float32.

    Raises:
        ValueError: no answer, several K, or a dtype that is neither.
    """
    from safetensors.torch import save_file

    widths = {answer.ids_N_K.shape[1] for answer in answers}
    if len(widths) != 1:
        raise ValueError(f"top K of widths {sorted(widths)}: a file holds at least one answer, all with the same K")
    if dtype not in (torch.float16, torch.float32):
        raise ValueError(f"dtype is {dtype}; use torch.float16, or torch.float32 for twice the bytes")
    tensors = {
        "ids": torch.cat([answer.ids_N_K for answer in answers]).to(id_dtype(vocabulary)),
        "logprobs": torch.cat([answer.logprobs_N_K1 for answer in answers]).to(dtype),
        "lengths": torch.tensor([len(answer.ids_N_K) for answer in answers], dtype=torch.int32),
    }
    save_file(tensors, path)


def load_topk(path: Path) -> list[TopK]:
    """What `save_topk` wrote, an answer an entry, each row of log-probs a distribution.

    Raises:
        FileNotFoundError: no such file.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"no stored top K at {path}: run the stage that scores the stored answers first")
    tensors = load_file(path)
    lengths = tensors["lengths"].tolist()
    reference = as_stored(TopK(tensors["ids"], tensors["logprobs"]), torch.float32)
    split = zip(reference.ids_N_K.split(lengths), reference.logprobs_N_K1.split(lengths), strict=True)
    return [TopK(ids, logprobs) for ids, logprobs in split]
