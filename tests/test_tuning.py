"""Full, LoRA and QLoRA: what is trained, what stays, what is written, and what is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import errors
from small import RewardsFirstToken, save_policy, sum_problems, tokenizer

from dphlib.losses import EXPLORE
from dphlib.models import adapters, load, tuning
from dphlib.models.adapters import Card, describe_base, load_adapter, save_adapter
from dphlib.models.load import Placement, fetch, load_model, placement_for, save_model
from dphlib.runtime.files import RunError
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import LINEAR_LAYERS, TrainConfig, TuningConfig
from dphlib.training import loop
from dphlib.training import step as steps
from dphlib.training.rows import Row
from dphlib.training.scoring import answer_logprobs

KINDS = ("full", "lora", "qlora")
TRAIN = TrainConfig(
    iterations=2, prompts=4, rollouts=4, mini_batches=1, rehearsal_rows=0, lr=1e-2, max_new_tokens=6, overlong_buffer=2
)
CARD = Card("dph_f, eta 0.2", "CPU world, 256 problems", (0, 1), "apache-2.0")


def policy_of(folder: Path, kind: str, *, dtype: str = "float32", **settings):
    return tuning.load_policy(
        folder, TuningConfig(kind, rank=4, alpha=8, **settings), placement=Placement("cpu", dtype, "sdpa")
    )[0]


def drawn(policy):
    """Answers to some problems, as (prompt, ids)."""
    problems = sum_problems(4)
    answers = TransformersSampler(policy, tokenizer()).sample(problems, SamplingConfig(4, 1.0, 1.0, 6), 0)
    return [(p.prompt, a.token_ids) for p, group in zip(problems, answers, strict=True) for a in group]


def weights(policy) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def one_update(policy, optimizer) -> float:
    """One step of the trainer on its own rollouts; returns the gradient's norm."""
    old = [answer_logprobs(policy, tokenizer(), [pair])[0] for pair in drawn(policy)]
    rows = [
        Row((tokenizer()(prompt)["input_ids"], ids), EXPLORE, float((-1) ** i), logprobs)
        for i, ((prompt, ids), logprobs) in enumerate(zip(drawn(policy), old, strict=True))
    ]
    return loop.update(policy, tokenizer().pad_token_id, optimizer, rows, METHOD_CONFIGS["grpo"], TRAIN)[1]


# --- What is trained -----------------------------------------------------------------------------


def many_rows(count: int) -> list[Row]:
    """Rows with a small advantage, so many that a token's share of their mean is tiny."""
    prompts = [(tokenizer()(p.prompt)["input_ids"], [5 + i, 9, 7 + i, 6]) for i, p in enumerate(sum_problems(count))]
    return [Row(pair, EXPLORE, 0.01 * (-1) ** i, [-3.0] * 4) for i, pair in enumerate(prompts)]


def test_in_float16_gradients_are_those_of_float32_and_a_step_that_overflows_is_left_out(base_folder, monkeypatch):
    moved = {}
    for name, dtype, scaled in (("32", "float32", True), ("16", "float16", True), ("16, plain", "float16", False)):
        policy = policy_of(base_folder, "lora", dtype=dtype)
        if not scaled:
            monkeypatch.setattr(steps, "_loss_scale", lambda policy, rows: 1)
        learnt = [p for p in policy.parameters() if p.requires_grad]
        assert {p.dtype for p in learnt} == {torch.float32}, "adapters on float16 stay in float32"
        before = [p.detach().clone() for p in learnt]
        plain = torch.optim.SGD(learnt, lr=1.0)
        train = replace(TRAIN, max_grad_norm=1e9)
        loop.update(policy, tokenizer().pad_token_id, plain, many_rows(60), METHOD_CONFIGS["grpo"], train)
        moved[name] = torch.cat([(now - was).ravel() for now, was in zip(learnt, before, strict=True)]).detach()
    error = {name: float((one - moved["32"]).norm() / moved["32"].norm()) for name, one in moved.items()}
    assert error["16"] < 0.02 < error["16, plain"], error
    monkeypatch.setattr(steps, "_loss_scale", lambda policy, rows: 2**60)
    policy = policy_of(base_folder, "lora", dtype="float16")
    before = weights(policy)
    adamw = tuning.optimizer(policy, 0.1)
    norm = loop.update(policy, tokenizer().pad_token_id, adamw, many_rows(4), METHOD_CONFIGS["grpo"], TRAIN)[1]
    assert norm != norm and all(torch.equal(now, before[name]) for name, now in weights(policy).items())


@pytest.mark.parametrize("kind", KINDS)
def test_two_iterations_of_the_trainer_move_what_is_trained_and_nothing_else(base_folder, kind):
    policy = policy_of(base_folder, kind)
    before, base_logprobs = weights(policy), answer_logprobs(policy, tokenizer(), drawn(policy))
    pairs = drawn(policy)
    logs = loop.train(policy, tokenizer(), sum_problems(8), [], RewardsFirstToken(), METHOD_CONFIGS["grpo"], TRAIN, 0)
    moved = {name for name, now in weights(policy).items() if not torch.equal(now, before[name])}
    expected = set(before) if kind == "full" else {name for name in before if "lora_" in name}
    assert moved == expected
    assert all(row["grad_norm"] > 0 for row in logs)
    after = answer_logprobs(policy, tokenizer(), pairs)
    assert max(abs(a - b) for x, y in zip(after, base_logprobs, strict=True) for a, b in zip(x, y, strict=True)) > 1e-3


def test_a_fresh_adapter_changes_nothing_and_its_seed_decides_its_weights(base_folder):
    pairs = drawn(policy_of(base_folder, "full"))
    plain = answer_logprobs(policy_of(base_folder, "full"), tokenizer(), pairs)
    assert answer_logprobs(policy_of(base_folder, "lora"), tokenizer(), pairs) == plain
    settings = TuningConfig("lora", rank=4)
    state = torch.get_rng_state()
    first, again, other = (weights(tuning.prepare(load_model(base_folder)[0], settings, seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_qlora_holds_the_layers_in_doubly_quantised_nf4_near_the_base(base_folder):
    import bitsandbytes

    policy = policy_of(base_folder, "qlora")
    layers = {n: m for n, m in policy.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert len(layers) == 2 * len(LINEAR_LAYERS)
    for layer in layers.values():
        state = layer.weight.quant_state
        assert (state.quant_type, state.nested, layer.weight.dtype) == ("nf4", True, torch.uint8)
        assert not layer.support_avx512bf16_for_cpu, "its kernel has no backward pass"
    pairs = drawn(policy_of(base_folder, "full"))
    plain, quantised = (
        torch.tensor([v for row in answer_logprobs(policy_of(base_folder, kind), tokenizer(), pairs) for v in row])
        for kind in ("full", "qlora")
    )
    assert 0 < (plain - quantised).abs().max() < 0.2


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_a_step_in_bfloat16(base_folder, kind):
    policy = policy_of(base_folder, kind, dtype="bfloat16")
    adapter = [p for p in policy.parameters() if p.requires_grad]
    assert {p.dtype for p in adapter} == {torch.bfloat16}
    optimizer = tuning.optimizer(policy, 1e-3)
    assert one_update(policy, optimizer) > 0
    assert all(p.dtype == torch.float32 for p in optimizer.state)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_gradient(base_folder, kind):
    class Capture(torch.optim.SGD):
        def step(self, closure=None):
            captured.append([p.grad.clone() for p in self.param_groups[0]["params"] if p.grad is not None])

    captured: list[list[torch.Tensor]] = []
    for checkpointing in (False, True):
        policy = policy_of(base_folder, kind, gradient_checkpointing=checkpointing)
        assert policy.is_gradient_checkpointing == checkpointing
        one_update(policy, Capture([p for p in policy.parameters() if p.requires_grad], lr=0.0))
    plain, checkpointed = captured
    assert plain and all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, checkpointed, strict=True))


# --- The optimizer -------------------------------------------------------------------------------


def test_the_optimizer_of_fp32_weights_is_plain_adamw(base_folder):
    ours, plain = policy_of(base_folder, "full"), policy_of(base_folder, "full")
    optimizers = tuning.optimizer(ours, 1e-3), torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        for policy, optimizer in zip((ours, plain), optimizers, strict=True):
            one_update(policy, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters(), strict=True))


def test_sixteen_bit_weights_add_up_steps_that_are_smaller_than_their_rounding():
    layer = torch.nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        layer.weight.fill_(1.0)  # the next bfloat16 below is 0.996
    plain = deepcopy(layer)
    for policy, optimizer in (
        (layer, tuning.optimizer(layer, 1e-4)),
        (plain, torch.optim.AdamW(plain.parameters(), lr=1e-4)),
    ):
        for _ in range(100):  # 100 steps of 1e-4
            policy(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert all(p.grad is None for p in policy.parameters())
    assert (plain.weight == 1.0).all()
    assert layer.weight.float().sub(0.99).abs().max() < 0.004


def test_gradients_of_many_micro_batches_add_up_in_fp32():
    """In bfloat16 1 + 0.001 is 1: of a thousand micro-batches only the first would count."""
    layer = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    made = tuning.optimizer(layer, 1e-4)
    for size in (1.0, *[0.001] * 1000):
        layer(torch.full((1, 1), size, dtype=torch.bfloat16)).sum().backward()
        tuning.fold_gradients(made)
        assert layer.weight.grad is None
    (copy,) = made.param_groups[0]["params"]
    assert copy.dtype == torch.float32 and copy.grad.item() == pytest.approx(2.0, rel=0.01)


def test_an_optimizer_that_cannot_be_is_refused(base_folder):
    policy = policy_of(base_folder, "full")
    with pytest.raises(ValueError, match="needs a GPU; leave paged_8bit out"):
        tuning.optimizer(policy, 1e-3, paged_8bit=True)
    with pytest.raises(ValueError, match=r"tuning\.prepare first"):
        tuning.optimizer(policy.requires_grad_(False), 1e-3)


# --- Adapters on disk ----------------------------------------------------------------------------


@pytest.fixture
def trained(base_folder):
    policy = policy_of(base_folder, "lora")
    one_update(policy, tuning.optimizer(policy, 1e-2))
    return policy


def test_a_saved_adapter_gives_the_same_logprobs_loaded_by_us_and_by_peft(base_folder, trained, tmp_path):
    from peft import PeftModel

    base = describe_base(base_folder, "apache-2.0")
    sha256 = save_adapter(trained, tmp_path / "adapter", base, CARD)
    assert sha256 == adapters.adapter_sha256(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        adapters.CONFIG,
        adapters.WEIGHTS,
        adapters.BASE,
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    pairs = drawn(trained)
    expected = answer_logprobs(trained, tokenizer(), pairs)
    ours = load_adapter(load_model(base_folder)[0], tmp_path / "adapter", base)
    assert answer_logprobs(ours, tokenizer(), pairs) == expected
    by_peft = PeftModel.from_pretrained(load_model(base_folder)[0], tmp_path / "adapter").eval()
    assert answer_logprobs(by_peft, tokenizer(), pairs) == expected


def test_the_card_and_the_configuration_say_what_it_is_and_not_where_it_lay(base_folder, trained, tmp_path):
    base = describe_base(base_folder, "apache-2.0", name="example/base", revision="0" * 40)
    sha256 = save_adapter(trained, tmp_path / "adapter", base, CARD)
    card = (tmp_path / "adapter" / "README.md").read_text()
    head = card.split("---")[1]
    assert "base_model: example/base" in head and "license: apache-2.0" in head and "library_name: peft" in head
    for word in ("dph_f, eta 0.2", "CPU world, 256 problems", "0, 1", "rank 4", sha256, base.sha256, "0" * 40):
        assert word in card
    settings = json.loads((tmp_path / "adapter" / adapters.CONFIG).read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("example/base", "0" * 40)
    assert all(str(base_folder) not in p.read_text() for p in (tmp_path / "adapter").glob("*.[jm]*"))


def test_a_copied_base_is_the_same_base_and_another_is_refused(base_folder, trained, tmp_path):
    save_adapter(trained, tmp_path / "adapter", describe_base(base_folder, "apache-2.0"), CARD)
    save_model(load_model(base_folder)[0], tokenizer(), tmp_path / "copy")
    copy = describe_base(tmp_path / "copy", "apache-2.0")
    assert load_adapter(load_model(tmp_path / "copy")[0], tmp_path / "adapter", copy)
    save_policy(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"is an adapter of .* the model is other"):
        load_adapter(
            load_model(tmp_path / "other")[0], tmp_path / "adapter", describe_base(tmp_path / "other", "apache-2.0")
        )


def test_damaged_and_missing_files_are_named(base_folder, trained, tmp_path):
    base = describe_base(base_folder, "apache-2.0")
    save_adapter(trained, tmp_path / "adapter", base, CARD)
    with pytest.raises(FileExistsError, match="not overwritten"):
        save_adapter(trained, tmp_path / "adapter", base, CARD)
    file = tmp_path / "adapter" / adapters.WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match="is damaged"):
        load_adapter(load_model(base_folder)[0], tmp_path / "adapter", base)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(load_model(base_folder)[0], tmp_path / "adapter", base)
    with pytest.raises(FileNotFoundError, match="must be saved as safetensors"):
        describe_base(tmp_path, "apache-2.0")


def test_an_adapter_is_never_wrapped_twice(base_folder, trained, tmp_path):
    base = describe_base(base_folder, "apache-2.0")
    save_adapter(trained, tmp_path / "adapter", base, CARD)
    for again in (
        lambda: tuning.prepare(trained, TuningConfig("lora")),
        lambda: tuning.prepare(trained, TuningConfig("full")),
        lambda: load_adapter(trained, tmp_path / "adapter", base),
        lambda: load_adapter(trained.get_base_model(), tmp_path / "adapter", base),
    ):
        with pytest.raises(ValueError, match="carries an adapter already"):
            again()


def test_a_full_policy_has_no_adapter_to_save(base_folder, tmp_path):
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(policy_of(base_folder, "full"), tmp_path / "a", describe_base(base_folder, "mit"), CARD)
    assert not list(tmp_path.iterdir())


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"kind": "dora"}, "known: full, lora, qlora"),
        ({"rank": 0}, "1 to 512"),
        ({"rank": 1024}, "the largest that vLLM serves"),
        ({"dropout": 1.0}, "0 <= dropout < 1"),
        ({"target_modules": ("q_proj", "embed_tokens")}, r"\['embed_tokens'\]"),
        ({"target_modules": ()}, "empty"),
    ],
)
def test_impossible_settings_are_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        TuningConfig(**{"kind": "lora", **bad})


def test_a_model_that_does_not_fit_the_setting_is_refused(base_folder, tmp_path):
    plain = load_model(base_folder)[0]
    with pytest.raises(ValueError, match="'qlora' and the model is not quantised"):
        tuning.prepare(plain, TuningConfig("qlora"))
    with pytest.raises(ValueError, match="use lora or qlora on this GPU"):
        tuning.prepare(load_model(base_folder)[0].half(), TuningConfig("full"))
    save_policy(tmp_path, width=32)
    with pytest.raises(ValueError, match="reads 32 values, which NF4 cannot cut into blocks of 64"):
        policy_of(tmp_path, "qlora")


# --- Placement and hub ------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "flash", "expected"),
    [
        (None, False, ("cpu", "float32", "sdpa")),
        ((7, 5), True, ("cuda", "float16", "sdpa")),
        ((8, 0), True, ("cuda", "bfloat16", "flash_attention_2")),
        ((9, 0), False, ("cuda", "bfloat16", "sdpa")),
        ((6, 1), False, ("cuda", "float32", "sdpa")),
    ],
)
def test_placement_follows_the_hardware(capability, flash, expected):
    placement = placement_for(capability, flash)
    assert (placement.device, placement.dtype, placement.attention) == expected
    assert str(placement).startswith(", ".join(expected))
    if capability == (7, 5):
        assert "float16 can overflow" in str(placement)


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (errors.GatedRepoError, r"a/model: its owner gives access on request .*hf auth login"),
        (errors.RepositoryNotFoundError, "a/model: no such model on the hub, or a private one"),
        (errors.RevisionNotFoundError, f"a/model: no revision {'0' * 40}"),
        (errors.LocalEntryNotFoundError, "not in the cache and the hub cannot be reached; connect"),
    ],
)
def test_the_hubs_refusals_become_one_line_with_the_way_out(monkeypatch, refusal, said):
    def refuse(*_, **__):
        answer = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
        raise refusal("no") if refusal is errors.LocalEntryNotFoundError else refusal("no", response=answer)

    monkeypatch.setattr(load, "snapshot_download", refuse)
    with pytest.raises(RunError, match=said) as error:
        fetch("a/model", "0" * 40)
    assert "\n" not in str(error.value)


def test_a_name_that_can_move_is_no_commit():
    with pytest.raises(ValueError, match="'main' can move"):
        fetch("a/model", "main")
