"""Fine-tuning of a pretrained base on the CPU world's corpus, through its own tokenizer and chat format.

As in the paper's style experiment: the model learns the four styles of the corpus before any reinforcement learning.
Weights are fp32; where the processor has bfloat16, products are computed in it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.models import pretrained
from dphlib.runtime.files import write_json
from dphlib.settings.stages import PretrainedConfig, WorldConfig
from dphlib.training.supervised import add_gradient
from dphlib.world.people_places import corpus


def batches(world: WorldConfig, config: PretrainedConfig) -> Iterator[list[tuple[str, str]]]:
    """Endless batches of (prompt in the chat format, answer)."""
    pairs = corpus(world, random.Random(f"sft-{config.seed}"))
    while True:
        yield [(pretrained.chat_prompt(prompt), answer) for prompt, answer in islice(pairs, config.batch)]


def learning_rate(config: PretrainedConfig, step: int) -> float:
    """Learning rate of a step, counted from 1: linear warm-up, then linear to zero after the last.

    >>> config = PretrainedConfig("", "", "", "", "", "", steps=4, lr=1.0, warmup=2)
    >>> [learning_rate(config, step) for step in (1, 2, 3, 4)]
    [0.5, 0.75, 0.5, 0.25]
    """
    return config.lr * min(step / config.warmup, (config.steps + 1 - step) / config.steps)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: WorldConfig,
    config: PretrainedConfig,
    *,
    in_bfloat16: bool,
    kept: Any,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[dict[str, Any]]:
    """Trains `model` in place.

    Args:
        in_bfloat16: products of matrices are computed in it.
        kept: `training.checkpoints.Checkpoints` of this training alone, from whose last one it goes on.
        on_step: called after each step with its loss, nats per token.

    Returns:
        A row for each step: `iteration`, `loss`, and `tokens` that were passed, padding included.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.0, betas=(0.9, 0.95))
    logs = kept.restore(model, optimizer, {})
    model.train()
    for step, batch in enumerate(islice(batches(world, config), len(logs), config.steps), len(logs) + 1):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=in_bfloat16):
            loss, tokens = add_gradient(model, tokenizer, batch)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        logs.append({"iteration": step, "loss": loss, "tokens": tokens})
        kept.log(logs[-1])
        on_step(step, loss)
        if step % config.checkpoint_every == 0 and step < config.steps:
            kept.save(step, model, optimizer, {})
    model.eval()
    return logs


def build(
    out: Path,
    world: WorldConfig,
    config: PretrainedConfig,
    device: str,
    threads: int,
    *,
    in_bfloat16: bool,
    kept: Any,
    on_step: Callable[[int, float], None],
) -> None:
    """Fine-tunes the model and writes it to `out` in the Hugging Face layout, with `sft_log.json`; see `train`."""
    torch.set_num_threads(threads)
    model, tokenizer = pretrained.load(config, device)
    logs = train(model, tokenizer, world, config, in_bfloat16=in_bfloat16, kept=kept, on_step=on_step)
    pretrained.save(model, tokenizer, out)
    log = {name: [row[name] for row in logs] for name in ("loss", "tokens")}
    write_json(out / "sft_log.json", {**log, "parameters": model.num_parameters()})
