"""Prompts and answers in packs: a prompt passes through the model once for all of its answers, by checkpointing too.

A pack is [prompt, answer, answer, ...]. A mask lets each answer see the prompt and itself alone, and its positions go
on from the prompt's end, so that values and gradients are those of separate rows, but for rounding.

1. On a GPU the mask is FlexAttention's, which skips what it leaves out: all packs of a micro-batch are one sequence.
2. Elsewhere it is a dense one, under which every token meets every other of its pack. So each pack is a sequence of its
   own, and takes no more answers than is cheaper than passing the prompt again.

Both are made by Transformers for the attention that the model's configuration names.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask

from dphlib.sampling.shared_prompt import attends_fully

TokenRow = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens and answer tokens."""
Pack = list[int]
"""Indices of rows that share a prompt."""
FLEX = "flex_attention"
_MASKED = (FLEX, "sdpa", "eager")
"""Transformers' names of the attention that skips what a mask leaves out, and of all that heed a mask."""


def packs_prompts(policy: PreTrainedModel) -> bool:
    """Whether a policy's rows are packed: under gradient checkpointing, in training and evaluation mode alike."""
    if not policy.is_gradient_checkpointing or not attends_fully(policy.config):
        return False
    # Positions that a model takes from a token's place in the sequence would be wrong from the second answer on.
    given = "position_ids" in inspect.signature(policy.get_decoder().forward).parameters
    return given and not getattr(policy.config, "alibi", False)


@contextmanager
def attention(policy: Any, packed: bool) -> Iterator[None]:
    """Inside, the attention heeds the masks of packs: FlexAttention on a GPU, where the model has it.

    The backward pass belongs inside too, as it passes checkpointed layers again. Without `packed` nothing changes.
    """
    before = wanted = policy.config._attn_implementation
    if packed and policy.device.type == "cuda" and policy._supports_flex_attn:
        wanted = FLEX
    elif packed and before not in _MASKED:
        wanted = "sdpa"
    if wanted == before:
        yield
        return
    policy.set_attn_implementation(wanted)
    try:
        yield
    finally:
        policy.set_attn_implementation(before)


def packs(rows: Sequence[TokenRow], pairs_per_token: float, token_budget: float = math.inf) -> list[Pack]:
    """All rows in packs, each with answers of one prompt in their order.

    An answer of T tokens joins a pack of L where it costs less than a pack of its own with the prompt's W tokens:
    2 L T + T^2 pairs of tokens that meet, against (W + T)^2 pairs and W tokens. It makes no pack longer than
    `token_budget`. An answer's last token predicts nothing and is left out.

    Args:
        pairs_per_token: pairs that cost as much as the rest of a layer costs for a token; infinite where attention
            skips what its mask leaves out.

    >>> rows = [([1] * 4, [2] * 3), ([5] * 4, [2] * 3), ([1] * 4, [2] * 3), ([1] * 4, [2] * 3)]
    >>> packs(rows, math.inf), packs(rows, math.inf, token_budget=8)
    ([[0, 2, 3], [1]], [[0, 2], [3], [1]])
    """
    of_prompt: dict[tuple[int, ...], Pack] = {}
    for index, (prompt, _) in enumerate(rows):
        of_prompt.setdefault(tuple(prompt), []).append(index)
    made: list[Pack] = []
    for prompt, indices in of_prompt.items():
        width, length = len(prompt), 0
        for index in indices:
            own = len(rows[index][1]) - 1
            cheaper = 2 * length * own + own**2 <= (width + own) ** 2 + pairs_per_token * width
            if length and cheaper and length + own <= token_budget:
                made[-1].append(index)
                length += own
            else:
                made.append([index])
                length = width + own
    return made


def micro_batches(policy: PreTrainedModel, rows: Sequence[TokenRow], token_budget: int) -> list[list[int]]:
    """Row indices in batches whose packs have at most `token_budget` tokens, padding included; long packs first.

    Less than a tenth of a batch is padding. A row longer than the budget has a batch of its own. Within a batch the
    indices ascend, so that `answer_hidden` packs its rows as they were packed here.
    """
    made = packs(rows, _pairs_per_token(policy), token_budget)
    batches: list[list[int]] = []
    tokens, widest = 0, 0
    for length, pack in sorted(((_length(rows, pack), pack) for pack in made), key=lambda found: -found[0]):
        more = length if _skips(policy) else widest  # packs in one sequence need no padding
        if batches and tokens + more <= token_budget and more < length / 0.9:
            batches[-1] += pack
            tokens += more
        else:
            batches.append(list(pack))
            tokens = widest = length
    return [sorted(batch) for batch in batches]


def answer_hidden(policy: PreTrainedModel, pad_token_id: int, rows: Sequence[TokenRow]) -> Tensor:
    """Last hidden states (N, D) of the positions that predict the N tokens of the rows' answers, row by row.

    Raises:
        ValueError: the policy's attention heeds no mask, outside `attention`.
    """
    if policy.config._attn_implementation not in _MASKED:
        raise ValueError(f"{policy.config._attn_implementation} heeds no mask; pass packs inside packing.attention")
    decoder, made = policy.get_decoder(), packs(rows, _pairs_per_token(policy))
    laid = _laid_out(rows, [made] if _skips(policy) else [[pack] for pack in made], pad_token_id)
    part_S_W, prompt_S_W = laid.part_S_W.to(policy.device), laid.prompt_S_W.to(policy.device)

    def sees(sequence: Any, head: Any, query: Any, key: Any) -> Any:
        part = part_S_W[sequence, key]
        return (part == part_S_W[sequence, query]) | (part == prompt_S_W[sequence, query])

    mask = create_causal_mask(
        config=decoder.config,
        inputs_embeds=torch.empty(*part_S_W.shape, 0, dtype=policy.dtype, device=policy.device),
        attention_mask=None,
        past_key_values=None,
        and_mask_function=sees,
    )
    hidden_S_W_D = decoder(
        input_ids=laid.tokens_S_W.to(policy.device),
        attention_mask=mask,
        position_ids=laid.position_S_W.to(policy.device),
        use_cache=False,
    ).last_hidden_state
    return hidden_S_W_D.flatten(0, 1).index_select(0, laid.place_N.to(policy.device))


class _Layout(NamedTuple):
    """Packs as S sequences of W tokens.

    Args:
        tokens_S_W, position_S_W: tokens, and their positions in prompt and answer.
        part_S_W, prompt_S_W: number of the prompt or answer that a token belongs to, and of its prompt; -1 for padding.
        place_N: where in S x W the answers' tokens are predicted, row by row.
    """

    tokens_S_W: Tensor
    position_S_W: Tensor
    part_S_W: Tensor
    prompt_S_W: Tensor
    place_N: Tensor


def _laid_out(rows: Sequence[TokenRow], sequences: Sequence[Sequence[Pack]], pad_token_id: int) -> _Layout:
    numbers = itertools.count()
    lines: list[list[tuple[int, int, int, int]]] = []
    places: list[tuple[int, list[int]]] = [(0, [])] * len(rows)
    for sequence in sequences:
        line: list[tuple[int, int, int, int]] = []
        for pack in sequence:
            prompt, of_prompt = rows[pack[0]][0], next(numbers)
            line += [(token, position, of_prompt, of_prompt) for position, token in enumerate(prompt)]
            last = len(line) - 1
            for index in pack:
                part, own = next(numbers), rows[index][1][:-1]
                # The prompt's last token predicts the answer's first, and each token of the answer the next.
                places[index] = len(lines), [last, *range(len(line), len(line) + len(own))]
                line += [(token, position, part, of_prompt) for position, token in enumerate(own, len(prompt))]
        lines.append(line)
    width = max(map(len, lines))
    padding = (pad_token_id, 0, -1, -1)
    tokens_S_W, position_S_W, part_S_W, prompt_S_W = torch.tensor(
        [line + [padding] * (width - len(line)) for line in lines]
    ).unbind(-1)
    place_N = torch.tensor([number * width + here for number, found in places for here in found])
    return _Layout(tokens_S_W, position_S_W, part_S_W, prompt_S_W, place_N)


def _skips(policy: PreTrainedModel) -> bool:
    """Whether the policy's attention skips what a mask leaves out."""
    return policy.config._attn_implementation == FLEX


def _pairs_per_token(policy: PreTrainedModel) -> float:
    """See `packs`; measured on a CPU, where 16-bit formats make products faster, and attention hardly."""
    return math.inf if _skips(policy) else policy.config.get_text_config().hidden_size * policy.dtype.itemsize


def _length(rows: Sequence[TokenRow], pack: Pack) -> int:
    return len(rows[pack[0]][0]) + sum(len(rows[index][1]) - 1 for index in pack)
