"""Batched sampling by Transformers with a KV cache: runs anywhere.

The prompt of a group is read once and its cache shared by the group's rows; rows that ended leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.models.load import end_tokens
from dphlib.sampling.protocol import SamplingConfig, prompt_ids
from dphlib.sampling.shared_prompt import decoding
from dphlib.types import GREEDY_SAMPLE, Answer, Problem


def prompt_tokens(batch_rows: int, max_new_tokens: int) -> int:
    """Tokens that a batch's prompts may have, padding included: a quarter of the room of `batch_rows` answers.

    >>> prompt_tokens(256, 512)
    32768
    """
    return batch_rows * max_new_tokens // 4


def batches(lengths: Sequence[int], config: SamplingConfig, batch_rows: int) -> list[list[int]]:
    """Which prompts are answered together, by their index, the short ones first (less padding).

    A batch has at most `batch_rows` answers, and its prompts, each held once and padded to the longest, have at most a
    quarter of the tokens that so many answers have room for: both together stay within 5/4 of that room. One prompt
    alone is always a batch, whatever its length. Without the second bound, greedy answers, one per prompt, would read
    `batch_rows` prompts at once, which takes more memory per token than decoding does.

    Args:
        lengths: tokens of each prompt.
    """
    most_prompts, most_tokens = batch_rows // config.samples, prompt_tokens(batch_rows, config.max_new_tokens)
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        prompts = len(found[-1]) + 1 if found else 0
        if found and prompts <= most_prompts and prompts * lengths[index] <= most_tokens:
            found[-1].append(index)
        else:
            found.append([index])
    return found


class TransformersSampler:
    """Batched sampling with a KV cache by `transformers`.

    Args:
        model: the policy; used as it is at each call, so a training step is seen at once.
        tokenizer: pads on the left. An answer ends at its end token and at those of the model's generation config.
        batch_rows: rows decoded at a time, fewer where prompts are long (`batches`). It decides which random numbers a
            row gets: same value, same answers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_rows: int = 1024) -> None:
        self.model, self.tokenizer, self.batch_rows = model, tokenizer, batch_rows

    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        """See `Sampler.sample`. Deterministic in (weights, problems, config, seed, batch_rows)."""
        generator = torch.Generator().manual_seed(seed)
        prompts = prompt_ids(self.tokenizer, problems)
        answers: list[list[Answer]] = [[] for _ in problems]
        for indices in batches([len(prompt) for prompt in prompts], config, self.batch_rows):
            rows = self._decode([prompts[i] for i in indices], config, generator)
            shown = [list(ids if truncated else ids[:-1]) for ids, _, truncated, _ in rows]  # without the end token
            texts = self.tokenizer.batch_decode(shown, skip_special_tokens=True)
            for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
                index = indices[number // config.samples]
                sample = GREEDY_SAMPLE if config.temperature == 0 else number % config.samples
                token_ids, logprobs, truncated, entropy = row
                answers[index].append(
                    Answer(problems[index].id, sample, token_ids, logprobs, text, truncated, entropy, prompts[index])
                )
        return answers

    def sync(self, policy: Any) -> None:
        """Nothing is to be done: the policy's own weights are used."""
        if policy is not self.model:
            raise ValueError("this sampler draws from the model it was made with; make one for the other policy")

    def record(self) -> dict[str, str | None]:
        return {"sampler": "transformers", "adapter_sha256": None}

    @torch.inference_mode()
    def _decode(
        self, prompts: list[tuple[int, ...]], config: SamplingConfig, generator: torch.Generator
    ) -> list[tuple[tuple[int, ...], tuple[float, ...], bool, float]]:
        """(token ids, log-probs, truncated, mean entropy) of each row, a prompt's samples side by side."""
        ends = torch.tensor(end_tokens(self.tokenizer, self.model.generation_config))
        pad = self.tokenizer.pad_token_id
        rows, steps = len(prompts) * config.samples, config.max_new_tokens
        tokens_B_N = torch.full((rows, steps), pad)
        logprobs_B_N = torch.zeros(rows, steps)
        entropy_B_N = torch.zeros(rows, steps)
        lengths_B = torch.full((rows,), steps)
        ended_B = torch.zeros(rows, dtype=torch.bool)
        alive = torch.arange(rows)  # which row of the answer each row of the batch is
        with decoding(self.model, prompts, config.samples, steps, pad) as batch:
            for step in range(steps):
                drawn_B_1 = torch.rand(len(alive), 1, generator=generator)
                logprobs_B_V = torch.log_softmax(batch.logits_B_V.float(), -1)
                next_B = _choose(logprobs_B_V, config, drawn_B_1)
                logprob_B = logprobs_B_V.gather(1, next_B[:, None])[:, 0].cpu()  # the rows' own numbers only
                spread_B = -(logprobs_B_V.exp() * logprobs_B_V).sum(-1).cpu()
                next_B = next_B.cpu()
                live = ~ended_B[alive]
                target = alive[live]
                tokens_B_N[target, step] = next_B[live]
                logprobs_B_N[target, step] = logprob_B[live]
                entropy_B_N[target, step] = spread_B[live]
                now = target[torch.isin(next_B[live], ends)]
                ended_B[now] = True
                lengths_B[now] = step + 1
                keep = ~ended_B[alive]
                if not keep.any() or step == steps - 1:
                    break
                if keep.float().mean() < 0.9:  # dropping rows copies what is cached of them, so not at every step
                    batch.keep(keep.nonzero()[:, 0].to(self.model.device))
                    next_B, alive = next_B[keep], alive[keep]
                batch.step(next_B.to(self.model.device))
        mean_entropy_B = entropy_B_N.sum(-1) / lengths_B
        columns = (tokens_B_N, logprobs_B_N, lengths_B, ended_B, mean_entropy_B)
        return [
            (tuple(tokens[:length]), tuple(logprobs[:length]), not ended, entropy)
            for tokens, logprobs, length, ended, entropy in zip(*(c.tolist() for c in columns), strict=True)
        ]


def _choose(logprobs_B_V: torch.Tensor, config: SamplingConfig, drawn_B_1: torch.Tensor) -> torch.Tensor:
    """One token per row: the likeliest at temperature 0, else a draw from the tempered, nucleus-cut distribution.

    `drawn_B_1` are uniform numbers in [0, 1), which temperature 0 does not need.
    """
    if config.temperature == 0:
        return logprobs_B_V.argmax(-1)
    probs_B_V = torch.softmax(logprobs_B_V / config.temperature, -1)
    if config.top_p < 1:
        sorted_B_V, index_B_V = probs_B_V.sort(-1, descending=True)
        before_B_V = _cumulative(sorted_B_V) - sorted_B_V
        sorted_B_V = sorted_B_V.masked_fill(before_B_V >= config.top_p, 0.0)  # the likeliest token always stays
        probs_B_V = torch.zeros_like(probs_B_V).scatter_(-1, index_B_V, sorted_B_V)
    # By the inverse distribution function: `multinomial` draws an exponential for each token of the vocabulary.
    cumulative_B_V = _cumulative(probs_B_V)
    total_B_1 = cumulative_B_V[:, -1:]
    drawn_B_1 = drawn_B_1.to(probs_B_V.device) * total_B_1
    drawn_B_1 = drawn_B_1.minimum(total_B_1.nextafter(torch.zeros_like(total_B_1)))  # below it, whatever the rounding
    return (cumulative_B_V <= drawn_B_1).sum(-1)


def _cumulative(probs_B_V: torch.Tensor, fixed_point: bool | None = None) -> torch.Tensor:
    """Running sums along the vocabulary; on a GPU in fixed point, where a sum of floats does not repeat itself."""
    if not (probs_B_V.is_cuda if fixed_point is None else fixed_point):
        return probs_B_V.cumsum(-1)
    return probs_B_V.double().mul_(2**40).long().cumsum(-1).double().mul_(2.0**-40)
