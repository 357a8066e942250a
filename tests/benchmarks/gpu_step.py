"""A training step of an 8B model on one GPU: LoRA, QLoRA and full, tokens a second, share of the GPU's rate, memory.

    python tests/benchmarks/gpu_step.py --folder /dev/shm/llama --kinds lora
    python tests/benchmarks/gpu_step.py --folder /dev/shm/llama --kinds qlora
    python tests/benchmarks/gpu_step.py --folder /dev/shm/llama --kinds full        an H200's memory is needed
    python tests/benchmarks/gpu_step.py --size tiny                                 the same code on a CPU, in seconds

Llama-3.1-8B's shape (`gpu.LLAMA_8B`) with random weights, written once to `--folder` and loaded from there by
`tuning.load_policy`, as any base is; nothing is downloaded. Then the real `loop.train`, an optimizer step on 64
sequences of 2,048 tokens each iteration, the first of which warms up. DPH has 8 stored answers more, the authors'
eighth; RKL has its online reference: the base under the adapter, or a second model. Only the rollouts are not real:
random tokens take their place, so sampling and judging count nothing.

`tokens_s`: tokens learnt from in a second of scoring and updating. `share`: of the rate that a large matrix product
reaches in the same run, the operations that a step needs: those of the layers forward and backward (weight gradients
where weights are trained), of the output layer on answer tokens, of causal attention, of the reference. `share_run`
counts what was computed again too (checkpointed layers, logits of a trained head). Full fine-tuning has gradient
checkpointing and paged 8-bit moments: fp32 moments of 8 billion weights do not fit beside the rest on one GPU.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import JudgesInTurn, Target, seconds, tell, words
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

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
    heads=4,
    kv_heads=2,
    head_size=16,
    vocabulary=1024,
)
SIZES: dict[str, tuple[BaseConfig, dict[str, int]]] = {
    "8b": (LLAMA_8B, {"sequences": 64, "rollouts": 8, "length": 2048, "prompt": 512, "rank": 32, "product": 8192}),
    "tiny": (TINY, {"sequences": 4, "rollouts": 2, "length": 48, "prompt": 16, "rank": 4, "product": 256}),
}
BUDGET = {"lora": 4096, "qlora": 4096, "full": 16_384}
KINDS = tuple(BUDGET)


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
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=base.vocabulary,
        hidden_size=base.hidden_size,
        intermediate_size=base.intermediate_size,
        num_hidden_layers=base.layers,
        num_attention_heads=base.heads,
        num_key_value_heads=base.kv_heads,
        head_dim=base.head_size,
        max_position_embeddings=8192,
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


def operations(
    base: BaseConfig,
    tuned: TuningConfig,
    learnt: int,
    scored: int,
    rows: int,
    scored_rows: int,
    length: int,
    answer: int,
    head_again: bool,
) -> tuple[float, float]:
    """Operations of a step: those that it needs, and those and what is computed again.

    Args:
        learnt, scored: tokens through the layers with a gradient, and without one.
        rows, scored_rows: sequences of `length` tokens, the last `answer` of which meet the output layer.
        head_again: the logits of a trained head are made again, as they do not fit one chunk.
    """
    whole = tuned.kind == "full"
    linear, head = 2 * base.linear_parameters, 2 * base.vocabulary * base.hidden_size * answer
    attention = 2 * length**2 * base.heads * base.head_size * base.layers  # causal: half of both products
    adapter = 0 if whole else 2 * tuned.rank * base.layers * sum(map(sum, base.layer_matrices.values()))
    forward = linear * learnt + adapter * learnt + (head + attention) * rows
    backward = linear * learnt * (1 + whole) + 2 * adapter * learnt + (head * (1 + whole) + 2 * attention) * rows
    reference = linear * scored + (head + attention) * scored_rows
    again = 0
    if tuned.gradient_checkpointing:  # up to what a layer's backward pass needs last, the input of its last product
        inner, outer = base.layer_matrices["down_proj"]
        again = (linear + adapter - 2 * base.layers * inner * outer * whole) * learnt + attention * rows
    needed = forward + backward + reference
    return needed, needed + again + head * rows * (whole and head_again)


def step_of(
    method: str,
    policy: Any,
    tokenizer: Any,
    reference: Any,
    base: BaseConfig,
    tuned: TuningConfig,
    options: argparse.Namespace,
    sizes: dict[str, int],
    rate: float,
) -> dict[str, Any]:
    """The row of one method."""
    answer = sizes["length"] - sizes["prompt"]
    sampler = RandomTokens(base.vocabulary, tokenizer)
    prompts = sizes["sequences"] // sizes["rollouts"]
    problems = problems_of(prompts + max(1, sizes["sequences"] // 8), sizes["prompt"])
    explored, rehearsed = problems[:prompts], problems[prompts:]
    stored = sampler.sample(rehearsed, SamplingConfig(1, 1.0, 1.0, answer), 1)
    references = [Reference(p, a.token_ids, a.logprobs) for p, (a,) in zip(rehearsed, stored, strict=True)]
    config = TrainConfig(
        iterations=1 + options.steps,
        prompts=prompts,
        rollouts=sizes["rollouts"],
        mini_batches=1,
        rehearsal_rows=len(references),
        lr=1e-6,
        max_new_tokens=answer,
        diagnose_every=0,
        token_budget=options.token_budget or BUDGET[tuned.kind],
    )
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    arguments = (policy, tokenizer, explored, references, JudgesInTurn(), METHOD_CONFIGS[method], config, 0)
    with counted(policy, reference) as passed:
        logs = loop.train(*arguments, base=reference, sampler=sampler, paged_8bit=tuned.paged_8bit)
    log = logs[-1]
    spent = median(row["reference_s"] + row["update_s"] for row in logs[1:])
    rows, scored_rows = log["rl_rows"] + log["rehearsal_rows"], log["reference_tokens"] // sizes["length"]
    learnt, scored = (passed[gradient] // len(logs) for gradient in (True, False))
    head_again = config.token_budget * base.vocabulary > CHUNK_ELEMENTS
    needed, run = operations(base, tuned, learnt, scored, rows, scored_rows, sizes["length"], answer, head_again)
    return {
        "rows": rows,
        "tokens": log["policy_tokens"],
        "through_layers": learnt,
        "through_reference": scored,
        "reference_s": log["reference_s"],
        "step_s": spent,
        "tokens_s": log["policy_tokens"] / spent,
        "share": needed / spent / rate,
        "share_run": run / spent / rate,
        "peak_gib": gpu_peak_gib() or peak_gib(),
        "grad_norm": log["grad_norm"],
    }


def measure(kind: str, folder: Path, placement: Placement, options: argparse.Namespace, rate: float) -> list[dict]:
    """Rows of all methods under one kind of tuning; a method that does not fit has the reason in its row."""
    base, sizes = SIZES[options.size]
    checkpointing = kind == "full" if options.checkpointing == "auto" else options.checkpointing == "on"
    paged = True if kind == "full" and placement.device == "cuda" else None
    tuned = TuningConfig(
        kind, rank=sizes["rank"], alpha=2 * sizes["rank"], gradient_checkpointing=checkpointing, paged_8bit=paged
    )
    policy, tokenizer = tuning.load_policy(folder, tuned, placement=placement)
    rows = []
    for method in options.methods:
        row: dict[str, Any] = {"kind": kind, "method": method, "checkpointing": checkpointing}
        reference = None
        try:
            if kind == "full" and METHOD_CONFIGS[method].needs_reference:
                reference = load_model(folder, placement)[0].requires_grad_(False)
            row |= step_of(method, policy, tokenizer, reference, base, tuned, options, sizes, rate)
        except RunError as error:
            row["error"] = str(error)
        rows.append(row)
        say(" ".join(f"{name} {value}" for name, value in row.items()))
        del reference
        policy.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--methods", nargs="+", choices=COST_METHODS, default=COST_METHODS)
    parser.add_argument("--steps", type=int, default=1, help="measured, after one that warms up")
    parser.add_argument("--checkpointing", choices=("auto", "on", "off"), default="auto", help="auto: full alone")
    parser.add_argument("--token-budget", type=int, help=f"of a micro-batch; by default {BUDGET}")
    parser.add_argument(
        "--folder", type=Path, help="where the base is, or is to be written; by default a temporary one"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="by default bfloat16, on a CPU float32")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.size != "tiny":
        parser.error("no GPU here: size 8b needs one; --size tiny runs the same code on a CPU")
    placement = Placement(device, options.dtype or ("bfloat16" if device == "cuda" else "float32"), "sdpa")
    base, sizes = SIZES[options.size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_base(folder, base, placement)
        rate = product_rate(sizes["product"], placement)
        rows = [row for kind in options.kinds for row in measure(kind, folder, placement, options, rate)]
    notes = [
        f"product of two {sizes['product']} x {sizes['product']} matrices: {rate / 1e12:.3g} tera-operations a second"
    ]
    notes += [f"{row['kind']} {row['method']}: {row['error']}" for row in rows if "error" in row]
    targets = [
        Target(f"share of the matrix product's rate, lora {row['method']}", row["share"], 0.4, at_most=False)
        for row in rows
        if row["kind"] == "lora" and "share" in row and device == "cuda"
    ]
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    settings |= {"parameters": base.parameters, **sizes, "placement": str(placement), "product_rate": rate}
    tell("gpu_step", settings, [{k: v for k, v in row.items() if k != "error"} for row in rows], targets, notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
