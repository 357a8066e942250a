"""Packs: a prompt passes once for all of its answers under gradient checkpointing and LoRA, and numbers stay."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import transformers.integrations.flex_attention as flex
import transformers.masking_utils as masks
from small import policy, tokenizer
from torch.nn.attention import flex_attention as torch_flex
from transformers import MistralConfig, MistralForCausalLM

from dphlib.losses import EXPLORE
from dphlib.models.tuning import prepare
from dphlib.sampling.shared_prompt import ATTENTION
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import TrainConfig, TuningConfig
from dphlib.training import packing, scoring
from dphlib.training.rows import Row
from dphlib.training.step import update

PAD = tokenizer().pad_token_id
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.fixture
def flex_on_cpu(monkeypatch):
    """FlexAttention's plain form: uncompiled it has a backward pass on a CPU too, which torch refuses to start."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    plain = lambda *states, training, **options: torch_flex.flex_attention(*states, **options)  # noqa: E731
    monkeypatch.setattr(flex, "compile_friendly_flex_attention", plain)
    made = masks.create_block_mask
    monkeypatch.setattr(masks, "create_block_mask", lambda *a, **options: made(*a, **options | {"_compile": False}))


def rows(prompts: int = 4, answers: int = 5, prompt: int = 20, answer: int = 6) -> list[scoring.TokenRow]:
    """Answers of different lengths to prompts of different lengths, one prompt's not side by side."""
    drawn = torch.Generator().manual_seed(0)
    asked = [(1, *torch.randint(4, 40, (prompt + 2 * n,), generator=drawn).tolist()) for n in range(prompts)]
    lengths = [1 + (3 * n) % answer for n in range(prompts * answers)]
    return [
        (asked[n % prompts], tuple(torch.randint(4, 40, (length,), generator=drawn).tolist()))
        for n, length in enumerate(lengths)
    ]


def unique_tokens(rows) -> int:
    return sum(map(len, {prompt for prompt, _ in rows})) + sum(len(answer) for _, answer in rows)


def learner(kind: str = "full", checkpointing: bool = True, dtype=torch.float32, attention: str = "sdpa"):
    model = policy().to(dtype)
    model.set_attn_implementation(attention)
    model = prepare(model, TuningConfig(kind, rank=2, alpha=4, gradient_checkpointing=checkpointing))
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # else zero, and with it the gradient of lora_A
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=drawn))
    return model.train()


def counted(model) -> list[int]:
    """Filled with the tokens that enter the model's embedding, padding included, at each pass."""
    seen: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda module, given, _: seen.append(given[0].numel()))
    return seen


def scores_and_gradient(model, batch, packed: bool | None):
    scored_B_T = scoring.score_rows(model, PAD, batch, packed=packed).logprobs_B_T
    weights_B_T = torch.randn(scored_B_T.shape, generator=torch.Generator().manual_seed(2))
    (scored_B_T * weights_B_T).sum().backward()
    gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
    return scored_B_T.detach(), gradient


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_rows_give_the_numbers_of_rows_passed_alone(flex_on_cpu, attention, kind, dtype):
    """Log-probs and gradients: in float32 to 1e-5, in bfloat16 to 1 % of the gradient's norm and 0.005 nats."""
    packed, alone = (learner(kind, True, DTYPES[dtype], how) for how in (attention, "sdpa"))
    seen, seen_alone = counted(packed), counted(alone)
    ours, gradient = scores_and_gradient(packed, rows(), None)
    plain, plain_gradient = scores_and_gradient(alone, rows(), False)
    assert len(seen) == 1 and seen[0] < seen_alone[0] / 3
    off = float((gradient - plain_gradient).norm() / plain_gradient.norm())
    if dtype == "fp32":
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)
        assert off < 1e-5
    else:
        torch.testing.assert_close(ours, plain, atol=5e-3, rtol=0)
        assert off < 0.01


def update_once(model, batch, **changes) -> int:
    """Tokens that entered the embedding in one optimizer step."""
    seen = counted(model)
    stepped = [parameter for parameter in model.parameters() if parameter.requires_grad]
    learnt = [Row(row, EXPLORE, 1.0 - 2 * (n % 2), [-3.0] * len(row[1])) for n, row in enumerate(batch)]
    config = replace(TrainConfig(token_budget=512), **changes)
    step = update(model, PAD, torch.optim.SGD(stepped, lr=0.0), learnt, METHOD_CONFIGS["grpo"], config)
    assert math.isfinite(step.grad_norm) and step.grad_norm > 0
    return sum(seen)


@pytest.mark.parametrize("budget", [200, 4096])
@pytest.mark.parametrize(("kind", "checkpointing"), [("full", True), ("lora", True)])
def test_an_update_passes_each_prompt_once(kind, checkpointing, budget):
    """128 answers to eight prompts of 40 tokens, in micro-batches that hold one prompt or all of them."""
    batch = rows(prompts=8, answers=16, prompt=40, answer=5)
    tokens = update_once(learner(kind, checkpointing), batch, token_budget=budget)
    assert tokens <= 1.1 * unique_tokens(batch)
    assert tokens < 0.3 * sum(len(prompt) + len(answer) for prompt, answer in batch)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_an_update_without_checkpointing_does_so_too(kind):
    """There keys and values are handed on: prompts are padded to the longest prompt, answers to the longest answer."""
    model, batch, real = learner(kind, checkpointing=False), rows(prompts=8, answers=16, prompt=40, answer=5), []
    model.get_input_embeddings().register_forward_hook(lambda _, given, __: real.append(int((given[0] != PAD).sum())))
    tokens = update_once(model, batch, token_budget=4096)
    assert sum(real) <= unique_tokens(batch) and tokens <= 1.5 * unique_tokens(batch)


def test_flex_attention_needs_no_padding(flex_on_cpu):
    batch = rows(prompts=8, answers=16, prompt=40, answer=5)
    tokens = update_once(learner("lora", attention="flex_attention"), batch, token_budget=300)
    assert tokens == unique_tokens(batch) - len(batch)  # the last token of an answer predicts nothing


def test_a_model_with_a_sliding_window_passes_each_row_alone():
    torch.manual_seed(0)
    shape = MistralConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        sliding_window=8,
    )
    model = prepare(MistralForCausalLM(shape), TuningConfig("full", gradient_checkpointing=True))
    assert not packing.packs_prompts(model)
    batch = rows()
    assert update_once(model, batch) >= sum(len(prompt) + len(answer) for prompt, answer in batch)


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("budget", [60, 150, 10_000])
def test_micro_batches_keep_to_the_budget_and_are_packed_again_as_they_were(attention, budget):
    model, batch = learner(attention=attention), rows(prompts=6, answers=9)
    cut = packing.micro_batches(model, batch, budget)
    assert sorted(index for indices in cut for index in indices) == list(range(len(batch)))
    seen = counted(model)
    for indices in cut:
        laid = packing.packs([batch[i] for i in indices], packing._pairs_per_token(model))
        lengths = [packing._length([batch[i] for i in indices], pack) for pack in laid]
        passed = sum(lengths) if attention == "flex_attention" else max(lengths) * len(lengths)
        assert passed <= budget or len(indices) == 1
        if attention == "sdpa":
            with torch.no_grad():
                scoring.score_rows(model, PAD, [batch[i] for i in indices])
            assert len(indices) == len(laid) or seen[-1] == passed


def test_under_a_dense_mask_a_pack_ends_where_another_answer_costs_more_than_the_prompt():
    """Long answers to a short prompt: attention over all of them would cost more than the prompt that is saved."""

    def cost(made, batch) -> float:
        lengths = [packing._length(batch, pack) for pack in made]
        return sum(length**2 + 200.0 * length for length in lengths)

    long, short = ([((1,) * w, (2,) * t) for _ in range(16)] for w, t in ((10, 80), (80, 10)))
    assert max(map(len, packing.packs(long, 200.0))) <= 2
    assert packing.packs(long, math.inf) == packing.packs(short, 200.0) == [list(range(16))]
    for batch in (long, short):
        made = packing.packs(batch, 200.0)
        assert cost(made, batch) <= cost([[i] for i in range(16)], batch)


def test_attention_heeds_masks_inside_and_is_put_back_after_an_error(monkeypatch):
    model = learner(attention=ATTENTION)  # like flash attention it knows no mask of packs
    with pytest.raises(ValueError, match="heeds no mask; pass packs inside"):
        scoring.score_rows(model, PAD, rows())
    with packing.attention(model, False):
        assert model.config._attn_implementation == ATTENTION
    with pytest.raises(KeyboardInterrupt), packing.attention(model, True):
        scoring.score_rows(model, PAD, rows())
        assert model.config._attn_implementation == "sdpa"
        raise KeyboardInterrupt
    assert model.config._attn_implementation == ATTENTION
    monkeypatch.setattr(type(model), "device", property(lambda _: torch.device("cuda")))
    with packing.attention(model, True):
        assert model.config._attn_implementation == packing.FLEX
