"""Out of memory: an error that names the settings to change, and by how much.

    with advised("the update", update_ways(policy, config, longest, backend)):
        ...

What a run needs before it starts is estimated by `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
def advised(doing: str, ways: Sequence[str]) -> Iterator[None]:
    """Turns an out-of-memory error inside into a `RunError` that names `ways` out; other errors pass unchanged."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError) as error:
        signs = _VLLM_SIGNS if isinstance(error, ValueError) else _SIGNS
        if isinstance(error, RunError) or not (isinstance(error, MemoryError) or any(s in str(error) for s in signs)):
            raise
        reason = str(error).strip().partition(". ")[0].partition("\n")[0] or "out of memory"
        if torch.cuda.is_available():
            reason += f"; this process holds {torch.cuda.memory_allocated() / 2**30:.1f} GiB of it"
        raise RunError(
            f"out of memory in {doing} ({reason}). Change one of these and run again: {'; '.join(ways)}"
        ) from error


def update_ways(policy: Any, config: TrainConfig, longest: int, backend: str) -> list[str]:
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
    ways += _lighter(policy, backend)
    if config.token_budget <= longest:
        ways.append(f"{_shorter(config)} (the longest row has {longest} tokens)")
    return ways


def scoring_ways(policy: Any, config: TrainConfig, longest: int, backend: str) -> list[str]:
    """What makes scoring without a gradient fit; it takes micro-batches of twice the token budget."""
    budget = max(longest // 2, config.token_budget // 2)
    ways = [f"train.token_budget {config.token_budget} -> {budget} (same result)"] * (budget < config.token_budget)
    return ways + _lighter(policy, backend)


def sampling_ways(config: TrainConfig, backend: str) -> list[str]:
    """What makes rollouts fit; `backend` is the sampler's program."""
    if backend.startswith("vllm"):
        return ["backend.memory_fraction 0.05 lower", "backend.sleep True"]
    half = "backend.batch_rows to half (half the cache; answers are drawn by other random numbers)"
    return [half, _shorter(config)]


def loading_ways(kind: str) -> list[str]:
    """What makes a model fit that is loaded; `kind` of tuning."""
    ways = [] if kind == "qlora" else [f"tuning.kind {kind} -> qlora (a quarter of the weights' memory)"]
    return [*ways, "a smaller base by DPH_BASE", "end what else holds the GPU (nvidia-smi lists it)"]


def engine_ways(memory_fraction: float | None) -> list[str]:
    """What makes vLLM start; `memory_fraction` is the profile's, None for an engine that takes what is free."""
    ways = ["end what else holds the GPU (nvidia-smi lists it)"]
    if memory_fraction is not None:
        now = f"backend.memory_fraction {memory_fraction:g}"
        ways = [f"{now} -> more, where weights and cache need it"]
        ways += [f"{now} -> less, where others hold the GPU (nvidia-smi)"]
    return [*ways, "backend.max_tokens to half", "DPH_SAMPLER=transformers"]


def _shorter(config: TrainConfig) -> str:
    return f"train.max_new_tokens {config.max_new_tokens} -> {max(1, config.max_new_tokens // 2)}"


def _lighter(policy: Any, backend: str) -> list[str]:
    """Less memory for the sampler's engine, and for what is trained and what is frozen."""
    ways = []
    if backend.startswith("vllm"):
        ways.append(
            "backend.sleep False -> True, or backend.memory_fraction 0.1 lower (a tenth of the GPU for the trainer)"
        )
    if hasattr(policy, "peft_config"):
        if not getattr(policy, "is_loaded_in_4bit", False):
            ways.append("tuning.kind lora -> qlora (a quarter of the weights' memory)")
    else:
        ways.append("tuning.kind full -> lora (next to no gradients, moments and copies)")
    return ways
