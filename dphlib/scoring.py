"""Log-probabilities of answer rows under a policy, for training and for a reference.

Rows are padded on the right, cut into micro-batches by a token budget and scored on the answers' tokens only, through
`logprobs.logprobs_from_hidden`, so that no (tokens x vocabulary) tensor is held beyond a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.logprobs import logprobs_from_hidden

TokenRow = tuple[Sequence[int], Sequence[int]]
"""Prompt tokens and answer tokens."""


def micro_batches(rows: Sequence[TokenRow], token_budget: int) -> list[list[int]]:
    """Row indices in batches of at most `token_budget` padded tokens, rows of like length together.

    A row longer than the budget has a batch of its own.

    >>> micro_batches([([1] * 3, [1] * 1), ([1], [1]), ([1, 1], [1, 1])], 8)
    [[1], [2, 0]]
    """
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    batches: list[list[int]] = []
    widest = 0
    for index in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * widest <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
            widest = lengths[index]  # the longest row of a batch comes first and sets its width
    return [batch[::-1] for batch in reversed(batches)]


def batch_logprobs(
    policy: PreTrainedModel, pad_token_id: int, rows: Sequence[TokenRow]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of the rows' answer tokens, with gradient.

    Returns:
        (logprobs_B_T, mask_B_T), T the longest answer; answers start at column 0, padding is 0.0 and False.
    """
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    longest = max(len(answer) for _, answer in rows)
    device = policy.device
    tokens_B_W = torch.full((len(rows), width), pad_token_id)
    attention_B_W = torch.zeros(len(rows), width, dtype=torch.long)
    scored_B_W = torch.zeros(len(rows), width, dtype=torch.bool)
    mask_B_T = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        tokens_B_W[index, :end] = torch.tensor([*prompt, *answer])
        attention_B_W[index, :end] = 1
        scored_B_W[index, len(prompt) - 1 : end - 1] = True  # the position before a token predicts it
        mask_B_T[index, : len(answer)] = True
    hidden_B_W_D = policy.get_decoder()(
        input_ids=tokens_B_W.to(device), attention_mask=attention_B_W.to(device), use_cache=False
    ).last_hidden_state
    chosen_N = tokens_B_W[:, 1:][scored_B_W[:, :-1]].to(device)
    hidden_N_D = hidden_B_W_D[scored_B_W.to(device)]
    scored_N = logprobs_from_hidden(hidden_N_D, policy.get_output_embeddings().weight, chosen_N)
    mask_B_T = mask_B_T.to(device)
    # Both masks are read row by row, so the scored tokens fall into place in order.
    logprobs_B_T = torch.zeros(mask_B_T.shape, device=device).masked_scatter(mask_B_T, scored_N)
    return logprobs_B_T, mask_B_T


def answer_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    answers: Sequence[tuple[str, Sequence[int]]],
    token_budget: int = 16_384,
) -> list[list[float]]:
    """What `model` gives each token of each (prompt text, answer token ids), nats; without gradient, in order."""
    if not answers:
        return []
    prompts = tokenizer([prompt for prompt, _ in answers])["input_ids"]
    rows = [(prompt, ids) for prompt, (_, ids) in zip(prompts, answers, strict=True)]
    logprobs: list[list[float]] = [[] for _ in rows]
    with torch.inference_mode():
        for batch in micro_batches(rows, token_budget):
            scored_B_T, _ = batch_logprobs(model, tokenizer.pad_token_id, [rows[i] for i in batch])
            for index, row in zip(batch, scored_B_T.tolist(), strict=True):
                logprobs[index] = row[: len(rows[index][1])]
    return logprobs
