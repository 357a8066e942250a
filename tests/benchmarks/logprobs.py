"""Log-probabilities at Llama's vocabulary, forward and backward: memory and time, ours beside other ways.

    python tests/benchmarks/logprobs.py --head trained
    python tests/benchmarks/logprobs.py --head frozen
    python tests/benchmarks/logprobs.py --device cuda --dtype bfloat16 --hidden 4096 --head frozen

8,192 tokens, a vocabulary of 128,256, hidden states of 512 values: Llama-3.1-8B's 4,096 would be minutes a pass on two
cores; fewer values make less of the matrix products, which are what ours has one more of where the head is trained, so
the GPU line is the harder one on time. `plain` is log_softmax of all logits in fp32; `trl` is the chunked function
under TRL's trainers; `liger` Liger's fused cross entropy, Triton only. `--head frozen` is the case of LoRA and QLoRA.

Each case in a process of its own, in turns. Memory is what its peak exceeds the inputs by: resident on a CPU (the plain
way's gigabytes leave nothing to argue about), `max_memory_allocated` on a GPU. `difference` is the largest one from
the plain way's log-probabilities of the first 128 tokens (Liger's, which gives their sum alone: of the means).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from measuring import Target, in_child, in_turns, ratio, resident, seconds, tell
from torch import Tensor

from dphlib.logprobs import logprobs_from_hidden
from dphlib.runtime.machine import cores

WARM_TOKENS, CHECKED_TOKENS = 256, 128


def plain(hidden_N_D: Tensor, weight_V_D: Tensor, tokens_N: Tensor) -> Tensor:
    logits_N_V = (hidden_N_D @ weight_V_D.T).float()
    return logits_N_V.log_softmax(-1).gather(-1, tokens_N[:, None])[:, 0]


def trl_chunked(hidden_N_D: Tensor, weight_V_D: Tensor, tokens_N: Tensor) -> Tensor:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    size = _CHUNKED_LOGPROB_CHUNK_SIZE
    return ChunkedLogProbFunction.apply(hidden_N_D, weight_V_D, None, tokens_N, 1.0, size, None, 1.0, ("log_probs",))[0]


def liger(hidden_N_D: Tensor, weight_V_D: Tensor, tokens_N: Tensor) -> Tensor:
    """The sum alone: its gradient is made in the forward pass for a cross entropy of equal weights."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return -LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_V_D, hidden_N_D, tokens_N)


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": plain,
    "ours": logprobs_from_hidden,
    "trl": trl_chunked,
    "liger": liger,
}


def absent(way: str, device: str) -> str:
    """Why a way does not run here; "" where it does."""
    package = {"trl": "trl", "liger": "liger_kernel"}.get(way)
    if package and importlib.util.find_spec(package) is None:
        return f"{way} does not run here: {package} is not installed"
    if way == "liger" and device != "cuda":
        return "liger does not run here: its kernels are Triton's, which needs a GPU"
    return ""


def child(options: argparse.Namespace) -> int:
    """Seconds, memory and correctness of one way, printed as JSON."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    of = {"dtype": getattr(torch, options.dtype), "device": options.device}
    hidden = torch.randn(options.tokens, options.hidden, **of).requires_grad_()
    weight = (torch.randn(options.vocabulary, options.hidden, **of) / options.hidden**0.5).requires_grad_(
        options.head == "trained"
    )
    tokens = torch.randint(options.vocabulary, (options.tokens,), device=options.device)

    def passes(count: int) -> None:
        WAYS[options.child](hidden[:count], weight, tokens[:count]).sum().backward()
        hidden.grad = weight.grad = None

    passes(min(WARM_TOKENS, options.tokens))
    taken: list[float] = []
    if options.device == "cuda":
        passes(options.tokens)  # kernels are chosen by shape
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        taken += [seconds(partial(passes, options.tokens)) for _ in range(3)]
        peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:
        found = resident(lambda: taken.append(seconds(partial(passes, options.tokens))))
        peak_mib = found.peak - found.before
    few = hidden[:CHECKED_TOKENS].detach(), weight.detach(), tokens[:CHECKED_TOKENS]
    got, true = WAYS[options.child](*few), plain(*few)
    difference = float((got - true).abs().max() if got.dim() else (got - true.sum()).abs() / len(true))
    print(json.dumps({"seconds": median(taken), "peak_mib": peak_mib, "difference": difference}))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", choices=("trained", "frozen"), default="trained")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return child(options)
    passed_on = sys.argv[1:] if arguments is None else arguments
    reasons = {way: absent(way, options.device) for way in WAYS}
    cases = {way: partial(in_child, __file__, *passed_on, "--child", way) for way in WAYS if not reasons[way]}
    found = in_turns(cases, options.repeats)
    rows: list[dict[str, Any]] = []
    for way, results in found.items():
        row: dict[str, Any] = {"way": way, "head": options.head}
        row |= {key: median(result[key] for result in results) for key in ("seconds", "peak_mib", "difference")}
        for key in ("seconds", "peak_mib"):
            row[f"{key}_to_plain"] = ratio([r[key] for r in results], [r[key] for r in found["plain"]]).median
        rows.append(row)
    ours = next(row for row in rows if row["way"] == "ours")
    targets = [
        Target("time, ours to the plain way", ours["seconds_to_plain"], 1.3),
        Target("peak memory, ours to the plain way", ours["peak_mib_to_plain"], 1 / 8),
    ]
    tell("logprobs", vars(options), rows, targets, [reason for reason in reasons.values() if reason])
    return 0


if __name__ == "__main__":
    sys.exit(main())
