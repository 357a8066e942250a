"""Prompts to answers: token ids and the log-probabilities that the sampling policy gave them.

`Sampler` is the protocol that every backend keeps; `TransformersSampler` is the one that runs anywhere, the other is
in `vllm_sampler`. The prompt of a group is read once and its cache shared by the group's rows; rows that ended leave
the batch. Token ids are carried from here to the trainer and never tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.models.sharding import whole
from dphlib.runtime.processes import ALONE, Processes
from dphlib.sampling.shared_prompt import decoding
from dphlib.types import GREEDY_SAMPLE, Answer, Problem


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How answers are drawn.

    Args:
        samples: answers a problem.
        temperature: 0 is greedy (then `samples` must be 1).
        top_p: nucleus mass; the log-probabilities returned are those without it.
        max_new_tokens: an answer that has not ended by then is truncated.
    """

    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        if self.temperature == 0 and self.samples != 1:
            raise ValueError(f"greedy decoding gives one answer, {self.samples} asked for")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, it must lie in (0, 1]")
        if self.samples < 1 or self.temperature < 0 or self.max_new_tokens < 1:
            raise ValueError(f"samples and max_new_tokens must be at least 1, temperature at least 0: {self}")


class Sampler(Protocol):
    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        """`config.samples` answers for each problem, in the order of `problems`."""
        ...

    def sync(self, policy: Any) -> None:
        """Makes the next answers those of `policy` as it is now; called after each update, before sampling."""
        ...

    def record(self) -> dict[str, str | None]:
        """Which program and which adapter the next answers come from, for the rollouts' log row."""
        ...


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
    alone is always a batch, whatever its length. Without the second bound, greedy answers, one to a prompt, would read
    `batch_rows` prompts at once, which takes more memory a token than decoding does.

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
        model: the policy; used as it stands at each call, so a training step is seen at once.
        tokenizer: pads on the left.
        batch_rows: rows decoded at a time, fewer where prompts are long (`batches`). It decides which random numbers a
            row gets: same value, same answers.
        processes: each decodes a part of every batch, and a row gets the random numbers that it gets from one alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_rows: int = 1024,
        processes: Processes = ALONE,
    ) -> None:
        self.model, self.tokenizer, self.batch_rows = model, tokenizer, batch_rows
        self.processes = processes

    def sample(
        self,
        problems: Sequence[Problem],
        config: SamplingConfig,
        seed: int,
        on_done: Callable[[int], None] = lambda problems_done: None,
    ) -> list[list[Answer]]:
        """See `Sampler.sample`. Deterministic in (weights, problems, config, seed, batch_rows)."""
        generator = torch.Generator().manual_seed(seed)
        tokens = self.tokenizer([problem.prompt for problem in problems])["input_ids"] if problems else []
        answers: list[list[Answer]] = [[] for _ in problems]
        done = 0
        for indices in batches([len(prompt) for prompt in tokens], config, self.batch_rows):
            rows = self._decode([tokens[i] for i in indices], config, generator)
            texts = self.tokenizer.batch_decode([row[0] for row in rows], skip_special_tokens=True) if rows else []
            first, _ = self.processes.cut(len(indices))
            drawn = []
            for row_index, (row, text) in enumerate(zip(rows, texts, strict=True), first * config.samples):
                problem = problems[indices[row_index // config.samples]]
                sample = GREEDY_SAMPLE if config.temperature == 0 else row_index % config.samples
                drawn.append(Answer(problem.id, sample, tuple(row[0]), tuple(row[1]), text, row[2], row[3]))
            everyones = (answer for part in self.processes.gather(drawn) for answer in part)
            for row_index, answer in enumerate(everyones):
                answers[indices[row_index // config.samples]].append(answer)
            on_done(done := done + len(indices))
        return answers

    def sync(self, policy: Any) -> None:
        """Nothing is to be done: the policy's own weights are used."""
        if policy is not self.model:
            raise ValueError("this sampler draws from the model it was made with; make one for the other policy")

    def record(self) -> dict[str, str | None]:
        return {"sampler": "transformers", "adapter_sha256": None}

    @torch.inference_mode()
    def _decode(
        self, prompts: list[list[int]], config: SamplingConfig, generator: torch.Generator
    ) -> list[tuple[list[int], list[float], bool, float]]:
        """(token ids, log-probs, truncated, mean entropy) of this process's rows, a prompt's samples side by side.

        Rows are numbered over all processes, which go from step to step together: random numbers are drawn for all rows
        that are left, and each process takes those of its own.
        """
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        rows, steps = len(prompts) * config.samples, config.max_new_tokens
        first, last = self.processes.cut(len(prompts))
        here = torch.zeros(rows, dtype=torch.bool)
        here[first * config.samples : last * config.samples] = True
        tokens_B_N = torch.full((rows, steps), pad)
        logprobs_B_N = torch.zeros(rows, steps)
        entropy_B_N = torch.zeros(rows, steps)
        lengths = torch.full((rows,), steps)
        ended = torch.zeros(rows, dtype=torch.bool)
        alive = torch.arange(rows)  # which row of the answer each row of the batch is
        mine = here  # those of the batch that are decoded here
        own = prompts[first:last]
        with decoding(self.model, own, config.samples, steps, pad) if own else nullcontext() as batch:
            for step in range(steps):
                drawn_B_1 = torch.rand(len(alive), 1, generator=generator) if config.temperature else None
                if mine.any():
                    logprobs_B_V = torch.log_softmax(batch.logits_B_V.float(), -1)
                    drawn_B = _choose(logprobs_B_V, config, drawn_B_1[mine] if config.temperature else None)
                    logprob_B = logprobs_B_V.gather(1, drawn_B[:, None])[:, 0].cpu()  # the rows' own numbers only
                    spread_B, chosen_B = -(logprobs_B_V.exp() * logprobs_B_V).sum(-1).cpu(), drawn_B.cpu()
                    row_B = alive[mine]
                    live = ~ended[row_B]
                    target = row_B[live]
                    tokens_B_N[target, step] = chosen_B[live]
                    logprobs_B_N[target, step] = logprob_B[live]
                    entropy_B_N[target, step] = spread_B[live]
                    now = live & (chosen_B == eos)
                    ended[row_B[now]] = True
                    lengths[row_B[now]] = step + 1
                ended = self.processes.unite(ended)
                keep = ~ended[alive]
                if not keep.any() or step == steps - 1:
                    break
                if keep.float().mean() < 0.9:  # dropping rows copies what is cached of them, so not at every step
                    if (kept := keep[mine]).any():
                        batch.keep(kept.nonzero()[:, 0].to(self.model.device))
                        chosen_B = chosen_B[kept]
                    alive, mine = alive[keep], mine[keep]
                if mine.any():
                    batch.step(chosen_B.to(self.model.device))
        sums_B = entropy_B_N.sum(-1) / lengths
        return [
            (tokens[:n], logprobs[:n], not finished, entropy)
            for tokens, logprobs, n, finished, entropy in zip(
                tokens_B_N[here].tolist(),
                logprobs_B_N[here].tolist(),
                lengths[here].tolist(),
                ended[here].tolist(),
                sums_B[here].tolist(),
                strict=True,
            )
        ]


class CopySampler(TransformersSampler):
    """Draws from a whole copy of a policy that is sharded, for decoding would gather all weights for each token.

    `model` is the copy, which `sync` gives the policy's weights.
    """

    @torch.no_grad()
    def sync(self, policy: Any) -> None:
        for name, parameter in policy.named_parameters():
            self.model.get_parameter(name).copy_(whole(parameter))


class SpreadSampler:
    """A program of which each process has one: it answers a share of the problems, every process gets all answers.

    The program's draws must depend on problem and seed alone. Equal problems stay together, so that it sees their
    number.
    """

    def __init__(self, sampler: Sampler, processes: Processes) -> None:
        self.sampler, self.processes = sampler, processes

    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        keys, sizes = [problem.id for problem in problems], [1] * len(problems)
        return self.processes.spread(lambda part: self.sampler.sample(part, config, seed), problems, keys, sizes)

    def sync(self, policy: Any) -> None:
        self.sampler.sync(policy)

    def record(self) -> dict[str, str | None]:
        return self.sampler.record()


def _choose(logprobs_B_V: torch.Tensor, config: SamplingConfig, drawn_B_1: torch.Tensor | None) -> torch.Tensor:
    """One token a row: the likeliest at temperature 0, else a draw from the tempered, nucleus-cut distribution.

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
