"""Log-probabilities of answer rows under a policy, for training and for a reference.

Rows are padded on the right, cut into micro-batches by a token budget and scored on the answers' tokens only, through
`logprobs.logprobs_from_hidden`, so that no (tokens x vocabulary) tensor is held beyond a chunk.

A prompt passes through the model once for several of its answers. Its keys and values are kept and handed on to a
second pass, that of the answers; or, as gradient checkpointing rules this out, which makes a layer's states again in
the backward pass, a prompt and its answers are packed into one sequence (`packing`). Layers that do not attend to all
earlier tokens (sliding window, linear) get a prompt with each of its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from dphlib.logprobs import logprobs_from_hidden
from dphlib.models.output_head import output_head
from dphlib.sampling.protocol import Sampler
from dphlib.sampling.shared_prompt import attends_fully
from dphlib.training import packing
from dphlib.training.packing import TokenRow


def micro_batches(rows: Sequence[TokenRow], token_budget: int, prompts_once: bool = False) -> list[list[int]]:
    """Row indices in batches of at most `token_budget` padded tokens, rows of like length together.

    A row longer than the budget has a batch of its own.

    Args:
        prompts_once: a batch passes the prompt of several rows once (`passes_prompts_once`), so it counts once; each
            row's copy of its keys and values is not counted.

    >>> micro_batches([([1] * 3, [1] * 1), ([1], [1]), ([1, 1], [1, 1])], 8)
    [[1], [2, 0]]
    >>> four = [([1] * 6, [1] * 2)] * 4
    >>> len(micro_batches(four, 16)), len(micro_batches(four, 16, prompts_once=True))
    (2, 1)
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    batches: list[list[int]] = []
    # The longest row of a batch comes first and sets its width; its longest prompt and answer may be others'.
    widest = prompt_width = answer_width = 0
    prompts: set[tuple[int, ...]] = set()
    for index in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
        prompt, answer = tuple(rows[index][0]), rows[index][1]
        count = len(batches[-1]) + 1 if batches else 0
        different = len(prompts) + (prompt not in prompts)
        tokens = count * widest
        if prompts_once and different < count:
            tokens = different * max(prompt_width, len(prompt)) + count * max(answer_width, len(answer))
        if batches and tokens <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            widest, prompt_width, answer_width, prompts = lengths[index], 0, 0, set()
        prompt_width, answer_width = max(prompt_width, len(prompt)), max(answer_width, len(answer))
        prompts.add(prompt)
    return [batch[::-1] for batch in reversed(batches)]


class ScoredRows(NamedTuple):
    """What a policy gives the answer tokens of rows, T the longest answer; answers start at column 0.

    Padding is 0.0 in `logprobs_B_T` and `entropy_B_T` (nats) and False in `mask_B_T`.
    """

    logprobs_B_T: torch.Tensor
    mask_B_T: torch.Tensor
    entropy_B_T: torch.Tensor | None


def score_rows(
    policy: PreTrainedModel,
    pad_token_id: int,
    rows: Sequence[TokenRow],
    with_entropy: bool = False,
    packed: bool | None = None,
) -> ScoredRows:
    """Log-probabilities of the rows' answer tokens, with gradient.

    Args:
        with_entropy: also give the entropy of the distribution that each token was drawn from, with gradient;
            without it nothing of it is computed.
        packed: pack prompts and answers, inside `packing.attention`; by default as `packing.packs_prompts` says.
    """
    hidden_N_D, chosen_N, mask_B_T = answer_hidden(policy, pad_token_id, rows, packed)
    weight_V_D, head = policy.get_output_embeddings().weight, output_head(policy)
    entropy_N = None
    if with_entropy:
        scored_N, entropy_N = logprobs_from_hidden(hidden_N_D, weight_V_D, chosen_N, head=head, with_entropy=True)
    else:
        scored_N = logprobs_from_hidden(hidden_N_D, weight_V_D, chosen_N, head=head)

    def placed(values_N: torch.Tensor) -> torch.Tensor:
        return torch.zeros(mask_B_T.shape, device=mask_B_T.device).masked_scatter(mask_B_T, values_N)

    return ScoredRows(placed(scored_N), mask_B_T, None if entropy_N is None else placed(entropy_N))


def answer_hidden(
    policy: PreTrainedModel, pad_token_id: int, rows: Sequence[TokenRow], packed: bool | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Last hidden states of the positions that predict the rows' answer tokens, with gradient.

    Args:
        packed: see `score_rows`.

    Returns:
        (hidden_N_D, tokens_N, mask_B_T): the answers' N tokens, row by row, so that `masked_scatter` with the mask puts
        N values in their places; T the longest answer, answers start at column 0.
    """
    longest = max(len(answer) for _, answer in rows)
    answers_B_T = torch.full((len(rows), longest), pad_token_id)
    mask_B_T = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, (_, answer) in enumerate(rows):
        answers_B_T[index, : len(answer)] = torch.tensor(answer)
        mask_B_T[index, : len(answer)] = True
    answers_B_T, mask_B_T = answers_B_T.to(policy.device), mask_B_T.to(policy.device)
    prompts = list(dict.fromkeys(tuple(prompt) for prompt, _ in rows))
    shared = len(prompts) < len(rows)
    if shared and (packing.packs_prompts(policy) if packed is None else packed):
        return packing.answer_hidden(policy, pad_token_id, rows), answers_B_T[mask_B_T], mask_B_T
    if shared and longest > 1 and passes_prompts_once(policy):
        hidden_B_T_D = _hidden_after_shared(policy, pad_token_id, rows, prompts, answers_B_T)
        return hidden_B_T_D[mask_B_T], answers_B_T[mask_B_T], mask_B_T
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    tokens_B_W = torch.full((len(rows), width), pad_token_id)
    scored_B_W = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        tokens_B_W[index, :end] = torch.tensor([*prompt, *answer])
        scored_B_W[index, len(prompt) - 1 : end - 1] = True  # the position before a token predicts it
    # Padded on the right: no token sees what follows it, so no mask is needed.
    hidden_B_W_D = policy.get_decoder()(input_ids=tokens_B_W.to(policy.device), use_cache=False).last_hidden_state
    return hidden_B_W_D[scored_B_W.to(policy.device)], answers_B_T[mask_B_T], mask_B_T


def passes_prompts_once(policy: PreTrainedModel) -> bool:
    """Whether a prompt's keys and values can be handed on to its answers, by the policy and its present mode."""
    return not (policy.training and policy.is_gradient_checkpointing) and attends_fully(policy.config)


def _hidden_after_shared(
    policy: PreTrainedModel,
    pad_token_id: int,
    rows: Sequence[TokenRow],
    prompts: Sequence[tuple[int, ...]],
    answers_B_T: torch.Tensor,
) -> torch.Tensor:
    """Hidden states (B, T, D) that predict the answers, each prompt passed once for all of its rows."""
    device, number = policy.device, {prompt: index for index, prompt in enumerate(prompts)}
    prompt_B = torch.tensor([number[tuple(prompt)] for prompt, _ in rows], device=device)
    lengths_P = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths_P.max())
    tokens_P_W = torch.tensor([[*p, *[pad_token_id] * (width - len(p))] for p in prompts], device=device)
    decoder, cache = policy.get_decoder(), DynamicCache(config=policy.config)
    hidden_P_W_D = decoder(input_ids=tokens_P_W, past_key_values=cache, use_cache=True).last_hidden_state
    last_P_D = hidden_P_W_D[torch.arange(len(prompts), device=device), lengths_P - 1]
    layer: Any
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.index_select(0, prompt_B), layer.values.index_select(0, prompt_B)
    lengths_B_1 = lengths_P[prompt_B, None]
    own_B_T = answers_B_T[:, :-1]
    seen_B_W = torch.arange(width, device=device) < lengths_B_1
    hidden_B_T_D = decoder(
        input_ids=own_B_T,
        attention_mask=torch.cat([seen_B_W, torch.ones_like(own_B_T, dtype=torch.bool)], 1),
        position_ids=lengths_B_1 + torch.arange(own_B_T.shape[1], device=device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return torch.cat([last_P_D.index_select(0, prompt_B)[:, None], hidden_B_T_D], 1)


def scored(
    model: PreTrainedModel,
    pad_token_id: int,
    rows: Sequence[TokenRow],
    token_budget: int = 16_384,
    packed: bool | None = None,
) -> list[torch.Tensor]:
    """Log-probs of each row's answer tokens under `model`, nats, on the CPU, in order; without gradient.

    `packed`: see `score_rows`. Two models whose log-probs are to be compared need the same.
    """
    logprobs: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    packed = packing.packs_prompts(model) if packed is None else packed
    with torch.inference_mode(), packing.attention(model, packed):
        # Without a gradient only one layer's states are kept, among which the keys and values of a shared prompt, a
        # copy for each row, weigh as much as the prompt itself: so prompts are counted for each row. Packs copy none.
        cut = packing.micro_batches(model, rows, token_budget) if packed else micro_batches(rows, token_budget)
        for indices in cut:
            scored_B_T = score_rows(model, pad_token_id, [rows[i] for i in indices], packed=packed).logprobs_B_T.cpu()
            for index, logprobs_T in zip(indices, scored_B_T, strict=True):
                logprobs[index] = logprobs_T[: len(rows[index][1])].clone()
    return logprobs


def drawn_by_policy(sampler: Sampler) -> bool:
    """Whether a sampler's log-probs are the trainer's own: the policy itself drew, by Transformers.

    Another program's are those of other kernels, perhaps of another number format or an unquantised base. What they
    are compared with has to be scored by that program too, or both by the trainer.
    """
    return sampler.record()["sampler"] == "transformers"


def answer_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, answers: Sequence[tuple[str, Sequence[int]]]
) -> list[list[float]]:
    """`scored` for (prompt text, answer token ids), as numbers."""
    prompts = tokenizer([prompt for prompt, _ in answers])["input_ids"] if answers else []
    rows = [(prompt, ids) for prompt, (_, ids) in zip(prompts, answers, strict=True)]
    return [logprobs_T.tolist() for logprobs_T in scored(model, tokenizer.pad_token_id, rows)]
