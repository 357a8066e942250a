"""What is trained: all weights, a LoRA adapter, or a LoRA adapter over a 4-bit base (QLoRA), by one setting.

16-bit weights are trained through fp32 copies in the optimizer, or small learning rates would be rounded away. See
docs/method.md. Adapters on disk: see `adapters`. Not here: anything vLLM cannot serve (DoRA, biases, embeddings).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dphlib.models import load
from dphlib.models.load import Placement, choose_placement
from dphlib.models.output_head import refuse_other_head
from dphlib.runtime.files import InputError
from dphlib.settings.stages import TuningConfig

_BLOCK = 64  # weights that share one NF4 scale
_HALF = (torch.bfloat16, torch.float16)


def load_policy(
    folder: Path, config: TuningConfig, *, placement: Placement | None = None, seed: int = 0
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A policy ready to be trained, and its tokenizer.

    Args:
        folder: in the Hugging Face layout.
        placement: device, number format, attention; by default what the hardware is best at.
        seed: of the adapter's initial weights.
    """
    placement = placement or choose_placement()
    quantization = quantization_for(placement) if config.kind == "qlora" else None
    policy, tokenizer = load.load_model(folder, placement, quantization=quantization)
    return prepare(policy, config, seed), tokenizer


def quantization_for(placement: Placement) -> Any:
    """QLoRA's 4-bit format: NF4, scales quantised too, products in the placement's number format."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=placement.torch_dtype,
    )


def prepare(policy: PreTrainedModel, config: TuningConfig, seed: int = 0) -> Any:
    """`policy` with what is to be trained, and nothing else, requiring a gradient.

    Returns:
        `policy` itself for `full`, else a `PeftModel` around it; in evaluation mode.

    Raises:
        ValueError: it carries an adapter already, is not quantised as `config` says, has none of the target modules,
            or would have all weights trained in float16.
    """
    refuse_adapted(policy)
    quantised = bool(getattr(policy, "is_loaded_in_4bit", False))
    if quantised != (config.kind == "qlora"):
        now = "4-bit" if quantised else "not quantised"
        raise ValueError(f"tuning is {config.kind!r} and the model is {now}; load it by tuning.load_policy")
    if config.kind == "full" and policy.dtype == torch.float16:
        raise InputError("all weights in float16 overflow while training; use lora or qlora on this GPU, or float32")
    if quantised:
        _ready_for_gradients(policy)
        refuse_other_head(policy, "the 4-bit model")  # not before: a forward pass would repack its layers
    if config.gradient_checkpointing:
        policy.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if config.kind == "full":
        return policy.requires_grad_(True).eval()

    from peft import LoraConfig, get_peft_model

    present = {name.rpartition(".")[2] for name, _ in policy.named_modules()}
    if missing := sorted(set(config.target_modules) - present):
        raise InputError(f"the model has no layer named {', '.join(missing)}; choose target_modules that it has")
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(policy, lora, autocast_adapter_dtype=policy.dtype == torch.float16)
    return adapted.eval()


@contextmanager
def initial_policy(policy: Any, base: Any = None) -> Iterator[Any]:
    """The frozen policy that training began with: `base`, else an adapted policy with its adapter switched off.

    None where there is neither.
    """
    if base is not None or not hasattr(policy, "disable_adapter"):
        yield base
        return
    with policy.disable_adapter():
        yield policy


@contextmanager
def mixed_with_base(policy: Any, base: Any, share: float) -> Iterator[None]:
    """Inside, a policy's weights are moved the given share of the way back to those it began with.

    Args:
        base: the initial policy; an adapter needs none, for without it the policy is that one.
    """
    adapted = hasattr(policy, "disable_adapter")
    moved = [(n, p) for n, p in policy.named_parameters() if "lora_B" in n or not adapted] if share else []
    before = [parameter.detach().clone() for _, parameter in moved]
    initial = dict(base.named_parameters()) if moved and not adapted else {}
    with torch.no_grad():
        for name, parameter in moved:
            parameter.mul_(1 - share) if adapted else parameter.lerp_(initial[name], share)
    try:
        yield
    finally:
        with torch.no_grad():
            for (_, parameter), value in zip(moved, before, strict=True):
                parameter.copy_(value)


def refuse_adapted(policy: Any) -> None:
    """Raises ValueError when `policy` carries an adapter already."""
    if any("lora_A" in name for name, _ in policy.named_modules()):
        raise ValueError("the model carries an adapter already; load the base again, an adapter is never wrapped twice")


def _ready_for_gradients(policy: PreTrainedModel) -> None:
    """Checks the 4-bit layers' shapes, and turns off a repacking under which they give no gradient."""
    import bitsandbytes

    for name, layer in policy.named_modules():
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            if layer.in_features % _BLOCK:
                raise InputError(
                    f"{name} reads {layer.in_features} values, which NF4 cannot cut into blocks of {_BLOCK}; "
                    "choose a model whose sizes are multiples of it, or tuning lora"
                )
            # On a CPU with AVX512-BF16, bitsandbytes repacks a layer at its first forward pass in evaluation mode, for
            # a kernel that has no backward pass, and never unpacks it: after a rollout nothing would be learnt.
            layer.support_avx512bf16_for_cpu = False


def optimizer(policy: Any, lr: float, *, paged_8bit: bool | None = None) -> torch.optim.Optimizer:
    """AdamW on what `prepare` left to be trained.

    16-bit weights are trained through fp32 copies, which the optimizer's state holds; the policy gets their rounded
    values after each step. For fp32 weights this is plain AdamW.

    Args:
        policy: from `prepare`.
        lr: learning rate.
        paged_8bit: 8-bit moments in memory that moves to the CPU when the GPU is full (bitsandbytes; GPU only).
            By default for QLoRA on a GPU. Loading its state keeps the copies at the rounded weights.

    Raises:
        ValueError: nothing to train, or `paged_8bit` on a CPU.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("no weight requires a gradient; pass the policy through tuning.prepare first")
    on_gpu = trained[0].is_cuda
    if paged_8bit is None:
        paged_8bit = on_gpu and bool(getattr(policy, "is_loaded_in_4bit", False))
    if paged_8bit and not on_gpu:
        raise InputError("paged 8-bit AdamW needs a GPU; leave paged_8bit out, plain AdamW runs on a CPU")
    copies = [(p, torch.nn.Parameter(p.detach().float())) for p in trained if p.dtype in _HALF]
    of = dict(copies)
    targets = [of.get(parameter, parameter) for parameter in trained]
    if paged_8bit:
        import bitsandbytes

        made: torch.optim.Optimizer = bitsandbytes.optim.PagedAdamW8bit(targets, lr=lr, weight_decay=0.0)
    else:
        made = torch.optim.AdamW(targets, lr=lr, weight_decay=0.0)
    if copies:
        _step_through_copies(made, copies)
    return made


@torch.no_grad()
def fold_gradients(made: torch.optim.Optimizer) -> None:
    """Adds the gradients of 16-bit weights to those of their fp32 copies, and frees them; nothing for fp32 weights.

    Called after each micro-batch: a sum of many micro-batches in bfloat16 would lose the small ones.
    """
    for weight, copy in getattr(made, "fp32_copies", ()):
        if weight.grad is not None:
            gradient = weight.grad.float()
            copy.grad = gradient if copy.grad is None else copy.grad.add_(gradient)
            weight.grad = None


def _step_through_copies(
    made: torch.optim.Optimizer, copies: list[tuple[torch.nn.Parameter, torch.nn.Parameter]]
) -> None:
    """Hooks: gradients go to the fp32 copies before a step, rounded weights come back; the state keeps the copies."""
    made.fp32_copies = copies  # type: ignore[attr-defined]

    def before(*_: Any) -> None:
        fold_gradients(made)

    @torch.no_grad()
    def after(*_: Any) -> None:
        for weight, copy in copies:
            weight.copy_(copy)

    def keep(_: Any, state: dict[str, Any]) -> None:
        state["fp32_copies"] = [copy.detach().clone() for _, copy in copies]

    @torch.no_grad()
    def restore(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        for (weight, copy), kept in zip(copies, state["fp32_copies"], strict=True):
            copy.copy_(kept)
            weight.copy_(copy)
        return {key: value for key, value in state.items() if key != "fp32_copies"}

    made.register_step_pre_hook(before)
    made.register_step_post_hook(after)
    made.register_state_dict_post_hook(keep)
    made.register_load_state_dict_pre_hook(restore)
