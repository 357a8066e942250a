"""Out of memory: an error that names the settings to change, and by how much.

    with advised("the update", update_advice, policy, config, longest, backend):
        ...

What a run needs before it starts is estimated by `plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dphlib.runtime.files import RunError
from dphlib.settings.stages import TrainConfig

_SIGNS = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED")
# vLLM finds out by counting, before anything fails, and says it in a ValueError.
_VLLM_SIGNS = (
    "is less than desired GPU memory utilization",
    "No available memory for the cache blocks",
    "larger than the available KV cache memory",
)


@contextmanager
def advised(doing: str, advice: Callable[..., str], *of: Any) -> Iterator[None]:
    """Turns an out-of-memory error inside into a `RunError` with `advice(*of)`; other errors pass unchanged."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:
        signs = _VLLM_SIGNS if isinstance(error, ValueError) else _SIGNS
        if isinstance(error, RunError) or not (isinstance(error, MemoryError) or any(s in str(error) for s in signs)):
            raise
        reason = str(error).strip().partition(". ")[0].partition("\n")[0] or "out of memory"
        raise RunError(f"out of memory in {doing} ({reason}{_held()}). {advice(*of)}") from error


def update_advice(policy: Any, config: TrainConfig, longest: int, backend: str) -> str:
    """What makes an update fit, the least harmful first.

    Args:
        longest: tokens of the longest row, prompt and answer.
        backend: program of the sampler; vLLM in this process holds memory of its own.
    """
    ways = []
    if config.token_budget > longest:
        budget = max(longest, config.token_budget // 2)
        share = round(100 * budget / config.token_budget)
        ways.append(f"train.token_budget {config.token_budget} -> {budget} (same result, {share} % of the activations)")
    if not policy.is_gradient_checkpointing:
        ways.append("tuning.gradient_checkpointing False -> True (same result, a third more time)")
    ways += _sampler_ways(backend)
    ways += _weight_ways(policy)
    if config.token_budget <= longest:
        half = max(1, config.max_new_tokens // 2)
        ways.append(f"train.max_new_tokens {config.max_new_tokens} -> {half} (the longest row has {longest} tokens)")
    return _sentence(ways)


def scoring_advice(policy: Any, config: TrainConfig, longest: int, backend: str) -> str:
    """What makes scoring without a gradient fit; it takes micro-batches of twice the token budget."""
    budget = max(longest // 2, config.token_budget // 2)
    ways = [f"train.token_budget {config.token_budget} -> {budget} (same result)"] * (budget < config.token_budget)
    return _sentence(ways + _sampler_ways(backend) + _weight_ways(policy))


def sampling_advice(config: TrainConfig, backend: str) -> str:
    """What makes rollouts fit; `backend` is the sampler's program."""
    half = max(1, config.max_new_tokens // 2)
    shorter = f"train.max_new_tokens {config.max_new_tokens} -> {half}"
    if backend.startswith("vllm"):
        return _sentence(["backend.memory_fraction 0.05 lower", "backend.sleep True"])
    ways = ["backend.batch_rows to half (half the cache; answers are drawn by other random numbers)"]
    return _sentence([*ways, shorter])


def loading_advice(kind: str) -> str:
    """What makes a model fit that is loaded; `kind` of tuning."""
    ways = [] if kind == "qlora" else [f"tuning.kind {kind} -> qlora (a quarter of the weights' memory)"]
    ways.append("a smaller base by DPH_BASE")
    return _sentence([*ways, "end what else holds the GPU (nvidia-smi lists it)"])


def engine_advice(memory_fraction: float) -> str:
    """What makes vLLM start."""
    now = f"backend.memory_fraction {memory_fraction:g}"
    ways = [f"{now} -> more, where weights and cache need it", f"{now} -> less, where others hold the GPU (nvidia-smi)"]
    return _sentence([*ways, "backend.max_tokens to half", "DPH_SAMPLER=transformers"])


def _sampler_ways(backend: str) -> list[str]:
    if not backend.startswith("vllm"):
        return []
    return ["backend.sleep False -> True, or backend.memory_fraction 0.1 lower (a tenth of the GPU for the trainer)"]


def _weight_ways(policy: Any) -> list[str]:
    """Less memory for what is trained and what is frozen, in GiB, counted on this policy."""
    total = sum(p.numel() for p in policy.parameters())
    if getattr(policy, "is_loaded_in_4bit", False):
        return []
    if hasattr(policy, "peft_config"):
        # 16 bits a weight against 4 bits and the doubly quantised scales, 4.127 bits
        return [f"tuning.kind lora -> qlora (weights {_gib(total * 2)} -> {_gib(total * 4.127 / 8)})"]
    # gradient and two moments; of 16-bit weights an fp32 copy and its gradient too
    held = sum(p.numel() * (12 if p.element_size() == 4 else 18) for p in policy.parameters() if p.requires_grad)
    return [f"tuning.kind full -> lora (gradients, moments and copies: {_gib(held)} less)"]


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def _sentence(ways: list[str]) -> str:
    return "Change one of these and run again: " + "; ".join(ways)


def _held() -> str:
    """What this process holds of the GPU."""
    if not torch.cuda.is_available():
        return ""
    return f"; this process holds {torch.cuda.memory_allocated() / 2**30:.1f} GiB of it"
