"""Supervised fine-tuning of the CPU world's base: the corpus, cross-entropy on the answers' tokens, nothing else."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import islice

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.config import SftConfig, WorldConfig
from dphlib.cpuworld import corpus

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


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: WorldConfig,
    config: SftConfig,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Trains `model` in place on `config.steps` batches of the corpus, lr falling as a cosine after a short warm-up.

    Returns:
        The loss of each step, nats a token.
    """
    pairs = corpus(world, random.Random(f"sft-{config.seed}"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.01, betas=(0.9, 0.98))
    warm_up = max(1, config.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))),
    )
    model.train()
    losses = []
    for step in range(config.steps):
        # Sorting a few batches' worth by length halves the padding.
        if step % 8 == 0:
            pool = sorted(islice(pairs, 8 * config.batch), key=lambda pair: len(pair[0]) + len(pair[1]))
            batches = [pool[i : i + config.batch] for i in range(0, len(pool), config.batch)]
            random.Random(f"{config.seed}-{step}").shuffle(batches)
        tokens_B_T, labels_B_T = encode(tokenizer, batches[step % 8])
        attention_B_T = (tokens_B_T != tokenizer.pad_token_id).long()
        hidden_B_T_D = model.model(input_ids=tokens_B_T, attention_mask=attention_B_T).last_hidden_state
        scored = labels_B_T[:, 1:] != IGNORED
        logits_N_V = model.lm_head(hidden_B_T_D[:, :-1][scored])
        loss = F.cross_entropy(logits_N_V, labels_B_T[:, 1:][scored])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        on_step(step + 1, losses[-1])
    model.eval()
    return losses
