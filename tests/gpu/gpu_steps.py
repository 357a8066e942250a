"""A training step of an 8B model on one GPU: LoRA, QLoRA and full, tokens a second, share of the GPU's rate, memory.

Part of `first_quarter_hour`. The base has Llama-3.1-8B's shape (`gpu.LLAMA_8B`) and random weights and is loaded by
`tuning.load_policy`, as any base is. Then the real `loop.train`, an optimizer step on 32 sequences of 2,048 tokens each
iteration, the first of which warms up. DPH has 4 stored answers more, the authors' eighth; RKL has its online
reference: the base under the adapter, or a second model. Only the rollouts are not real: random tokens take their
place, so sampling and judging count nothing.

`tokens_s`: tokens learnt from in a second of scoring and updating. `share`: of the rate that a large matrix product
reaches in the same run, the operations that a step needs: those of the layers forward and backward (weight gradients
where weights are trained), of the output layer on answer tokens, of the pairs of tokens that meet in attention, of the
reference. `share_run` counts what was computed again too (checkpointed layers, logits of a trained head). Layers are
checkpointed as in the profiles. Full fine-tuning has paged 8-bit moments: fp32 moments of 8 billion weights do not fit
beside the rest on one GPU.
"""

from __future__ import annotations

import gc
import math
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from measuring import JudgesInTurn, seconds, words

from dphlib.experiment.cost import COST_METHODS
from dphlib.logprobs import CHUNK_ELEMENTS
from dphlib.models import tuning
from dphlib.models.load import Placement, load_model, save_model
from dphlib.partition import Reference
from dphlib.runtime.files import RunError, say
from dphlib.runtime.machine import gpu_peak_gib, peak_gib
from dphlib.sampling.protocol import SamplingConfig, prompt_ids
from dphlib.settings.gpu import LLAMA_8B
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import BaseConfig, TrainConfig, TuningConfig
from dphlib.training import loop
from dphlib.types import Answer, Problem

TINY = BaseConfig(
    "tiny",
    None,
    "apache-2.0",
    layers=2,
    hidden_size=64,
    intermediate_size=128,
    heads=2,
    kv_heads=1,
    head_size=32,  # vLLM's attention on a CPU has no smaller ones
    vocabulary=1024,
)
BUDGET = {"lora": 16_384, "qlora": 16_384, "full": 16_384}
KINDS = tuple(BUDGET)


@dataclass(frozen=True, slots=True)
class Size:
    """Shape of the base and of a step: rows, rows of a prompt, tokens; rank of adapters; side of the matrix product."""

    base: BaseConfig
    sequences: int
    rollouts: int
    length: int
    prompt: int
    rank: int
    product: int


SIZES = {
    "8b": Size(LLAMA_8B, sequences=32, rollouts=8, length=2048, prompt=512, rank=32, product=8192),
    "tiny": Size(TINY, sequences=4, rollouts=2, length=48, prompt=16, rank=4, product=256),
}
_CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


class RandomTokens:
    """In place of a sampler: answers of random tokens, each with the log-prob of a guess."""

    def __init__(self, vocabulary: int, tokenizer: PreTrainedTokenizerBase) -> None:
        self.vocabulary, self.tokenizer = vocabulary, tokenizer

    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        drawn, size = random.Random(seed), config.max_new_tokens
        logprobs = (-math.log(self.vocabulary),) * size

        def answer(problem: Problem, prompt: tuple[int, ...], index: int) -> Answer:
            ids = tuple(drawn.choices(range(self.vocabulary), k=size))
            return Answer(problem.id, index, ids, logprobs, "", True, prompt_ids=prompt)

        prompts = prompt_ids(self.tokenizer, problems)
        return [[answer(p, ids, i) for i in range(config.samples)] for p, ids in zip(problems, prompts, strict=True)]

    def sync(self, policy: Any) -> None:
        pass

    def record(self) -> dict[str, str | None]:
        return {"sampler": "random tokens", "adapter_sha256": None}


def make_base(folder: Path, base: BaseConfig, placement: Placement) -> None:
    """Writes the model with random weights, unless it is there, and a tokenizer that gives prompts of known length."""
    if (folder / "config.json").is_file():
        return
    tokenizer = words()
    tokenizer.chat_template = _CHAT
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=base.vocabulary,
        hidden_size=base.hidden_size,
        intermediate_size=base.intermediate_size,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.kv_heads,
        head_dim=base.head_size,
        max_position_embeddings=131_072,
        tie_word_embeddings=base.tied,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.device(placement.device):
        policy = AutoModelForCausalLM.from_config(config, dtype=placement.torch_dtype)
    save_model(policy, tokenizer, folder)


def problems_of(count: int, tokens: int) -> list[Problem]:
    """Problems whose prompts have `tokens` tokens each: a beginning, then digits."""
    drawn = random.Random(0)
    prompts = (" ".join(drawn.choices("0123456789", k=tokens - 1)) for _ in range(count))
    return [Problem(f"p{i}", "train", "math", prompt, "", None) for i, prompt in enumerate(prompts)]


def product_rate(size: int, placement: Placement) -> float:
    """Operations a second of a product of two square matrices in the placement's number format, median of 20."""
    of = {"dtype": placement.torch_dtype, "device": placement.device}
    a, b = torch.randn(size, size, **of), torch.randn(size, size, **of)
    for _ in range(5):
        a @ b
    return 2 * size**3 / median(seconds(lambda: a @ b) for _ in range(20))


@contextmanager
def counted(*models: Any) -> Iterator[Counter[bool]]:
    """Tokens that enter models inside, with (True) and without a gradient; a prompt that rows share enters once."""
    tokens: Counter[bool] = Counter()

    def count(module: Any, inputs: Any, output: Any) -> None:
        tokens[torch.is_grad_enabled()] += inputs[0].numel()

    handles = [one.get_input_embeddings().register_forward_hook(count) for one in models if one is not None]
    try:
        yield tokens
    finally:
        for handle in handles:
            handle.remove()


def pairs(tokens: float, rows: int, size: Size) -> float:
    """Pairs of tokens that meet in attention when `rows` rows pass as `tokens` tokens, a shared prompt once."""
    answer = size.length - size.prompt
    prompts = (tokens - rows * answer) / size.prompt
    return prompts * size.prompt**2 / 2 + rows * (size.prompt * answer + answer**2 / 2)


def operations(
    base: BaseConfig,
    tuned: TuningConfig,
    learnt: tuple[float, float, float],
    scored: tuple[float, float, float],
    head_again: bool,
) -> tuple[float, float]:
    """Operations of a step: those that it needs, and those and what is computed again.

    Args:
        learnt, scored: with a gradient, and without one: tokens through the layers, answer tokens, which meet the
            output layer, and pairs of tokens that meet in attention.
        head_again: the logits of a trained head are made again, as they do not fit one chunk.
    """
    whole, (tokens, answers, met) = tuned.kind == "full", learnt
    linear, head = 2 * base.linear_parameters, 2 * base.vocabulary * base.hidden_size
    attention = 4 * base.heads * base.head_size * base.layers * met
    adapter = 0 if whole else 2 * tuned.rank * base.layers * sum(map(sum, base.layer_matrices.values()))
    forward = (linear + adapter) * tokens + head * answers + attention
    backward = (linear * (1 + whole) + 2 * adapter) * tokens + head * (1 + whole) * answers + 2 * attention
    by_reference = 4 * base.heads * base.head_size * base.layers * scored[2]
    reference = linear * scored[0] + head * scored[1] + by_reference
    again = 0.0
    if tuned.gradient_checkpointing:  # up to what a layer's backward pass needs last, the input of its last product
        inner, outer = base.layer_matrices["down_proj"]
        again = (linear + adapter - 2 * base.layers * inner * outer * whole) * tokens + attention
    needed = forward + backward + reference
    return needed, needed + again + head * answers * (whole and head_again)


def step_of(
    method: str, policy: Any, tokenizer: Any, reference: Any, tuned: TuningConfig, size: Size, rate: float, steps: int
) -> dict[str, Any]:
    """The row of one method."""
    base, answer = size.base, size.length - size.prompt
    sampler = RandomTokens(base.vocabulary, tokenizer)
    prompts = size.sequences // size.rollouts
    problems = problems_of(prompts + max(1, size.sequences // 8), size.prompt)
    explored, rehearsed = problems[:prompts], problems[prompts:]
    stored = sampler.sample(rehearsed, SamplingConfig(1, 1.0, 1.0, answer), 1)
    references = [Reference(p, a.token_ids, a.logprobs) for p, (a,) in zip(rehearsed, stored, strict=True)]
    config = TrainConfig(
        iterations=1 + steps,
        prompts=prompts,
        rollouts=size.rollouts,
        mini_batches=1,
        rehearsal_rows=len(references),
        lr=1e-6,
        max_new_tokens=answer,
        diagnose_every=0,
        token_budget=BUDGET[tuned.kind],
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    arguments = (policy, tokenizer, explored, references, JudgesInTurn(), METHOD_CONFIGS[method], config, 0)
    with counted(policy, reference) as passed:
        logs = loop.train(*arguments, base=reference, sampler=sampler, paged_8bit=tuned.paged_8bit)
    log = logs[-1]
    spent = median(row["reference_s"] + row["update_s"] for row in logs[1:])
    rows, scored_rows = log["rl_rows"] + log["rehearsal_rows"], log["reference_tokens"] // size.length
    learnt, scored = (passed[gradient] / len(logs) for gradient in (True, False))
    needed, run = operations(
        base,
        tuned,
        (learnt, rows * answer, pairs(learnt, rows, size)),
        (scored, scored_rows * answer, pairs(scored, scored_rows, size)),
        config.token_budget * base.vocabulary > CHUNK_ELEMENTS,
    )
    return {
        "rows": rows,
        "tokens": log["policy_tokens"],
        "through_layers": round(learnt),
        "through_reference": round(scored),
        "reference_s": log["reference_s"],
        "step_s": spent,
        "tokens_s": log["policy_tokens"] / spent,
        "share": needed / spent / rate,
        "share_run": run / spent / rate,
        "peak_gib": gpu_peak_gib() or peak_gib(),
        "grad_norm": log["grad_norm"],
    }


def measure(
    kind: str,
    folder: Path,
    placement: Placement,
    size: Size,
    rate: float,
    steps: int = 1,
    methods: Sequence[str] = COST_METHODS,
    checkpointing: bool = True,
) -> list[dict[str, Any]]:
    """Rows of all methods under one kind of tuning; a method that does not fit has the reason in its row.

    Args:
        rate: of `product_rate`.
        steps: measured, after one that warms up.
    """
    paged = True if kind == "full" and placement.device == "cuda" else None
    tuned = TuningConfig(
        kind, rank=size.rank, alpha=2 * size.rank, gradient_checkpointing=checkpointing, paged_8bit=paged
    )
    policy, tokenizer = tuning.load_policy(folder, tuned, placement=placement)
    rows = []
    for method in methods:
        row: dict[str, Any] = {"kind": kind, "method": method}
        reference = None
        try:
            if kind == "full" and METHOD_CONFIGS[method].needs_reference:
                reference = load_model(folder, placement)[0].requires_grad_(False)
            row |= step_of(method, policy, tokenizer, reference, tuned, size, rate, steps)
        except (RunError, torch.OutOfMemoryError) as error:  # the latter where the optimizer is made
            row["error"] = " ".join(str(error).split())
        rows.append(row)
        say(" ".join(f"{name} {value}" for name, value in row.items()))
        del reference
        policy.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows
