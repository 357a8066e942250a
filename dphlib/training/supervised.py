"""Cross-entropy on the answers of (prompt, answer) pairs: batches as tokens and labels, and the gradient of one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100


def encode(tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """(prompt, answer) pairs as right-padded tokens and labels, both (rows, tokens); prompt and padding are ignored."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    rows = [prompt + answer + [tokenizer.eos_token_id] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    tokens_B_T = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels_B_T = torch.full((len(rows), width), IGNORED)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        tokens_B_T[index, : len(row)] = torch.tensor(row)
        labels_B_T[index, len(prompt) : len(row)] = torch.tensor(row[len(prompt) :])
    return tokens_B_T, labels_B_T


def add_gradient(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[tuple[str, str]]
) -> tuple[float, int]:
    """Adds the gradient of a batch's mean loss; returns that loss, nats per token, and the number of tokens passed."""
    longest = max(len(prompt) + len(answer) for prompt, answer in batch)
    short = [pair for pair in batch if len(pair[0]) + len(pair[1]) <= longest / 2]
    # Sums are a third as long as SQL: two micro-batches save the padding.
    parts = [encode(tokenizer, part) for part in (short, [pair for pair in batch if pair not in short]) if part]
    scored_tokens = sum(int((labels[:, 1:] != IGNORED).sum()) for _, labels in parts)
    total = 0.0
    for tokens_B_T, labels_B_T in parts:
        # Padded on the right: no token sees what follows it, so no mask is needed.
        hidden_B_T_D = model.get_decoder()(tokens_B_T.to(model.device), use_cache=False).last_hidden_state
        scored = labels_B_T[:, 1:] != IGNORED
        logits_N_V = model.get_output_embeddings()(hidden_B_T_D[:, :-1][scored.to(model.device)])
        labels_N = labels_B_T[:, 1:][scored].to(model.device)
        loss = F.cross_entropy(logits_N_V.float(), labels_N, reduction="sum") / scored_tokens
        loss.backward()
        total += loss.item()
    return total, sum(tokens.numel() for tokens, _ in parts)
