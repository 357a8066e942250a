"""TRL, the real one, on this machine's CPU: the stored answers are trained, and as `dphlib.losses` says."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import accelerate
import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from small import policy as small_policy
from small import save_policy, tokenizer
from small_trl import PROBLEMS, TEMPLATED, config, dph, equal_rewards, export_store, rehearsed, unlike_export

from dphlib.divergences import generator
from dphlib.integrations import store
from dphlib.integrations.trl import (
    TESTED,
    DPHTrainer,
    prompt_dataset,
    rehearsal_order,
    verified_reward,
    warn_of_untested,
)
from dphlib.losses import EXPLORE, IGNORE, NEAR_PERFECT, partitioned_loss
from dphlib.models import tuning
from dphlib.models.load import Placement, load_model
from dphlib.runtime.files import InputError
from dphlib.training.scoring import answer_logprobs, score_rows
from dphlib.verify import Verifier

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
logging.getLogger("trl").setLevel(logging.ERROR)


@pytest.fixture(scope="module")
def held_folder(base_folder, tmp_path_factory) -> Path:
    return export_store(tmp_path_factory.mktemp("store"), base_folder)


@pytest.fixture(scope="module")
def held(held_folder) -> store.Store:
    return store.read(held_folder)


def adapted(base_folder: Path):
    """The base with an adapter that is not zero: it has left the reference before the first step."""
    torch.manual_seed(5)
    adapter = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(load_model(base_folder)[0], adapter)


def trainable(policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


def stored_divergence(policy, held) -> float:
    """Mean over stored tokens of the forward KL's generator."""
    scored = answer_logprobs(policy, tokenizer(), [(r.problem.prompt, r.token_ids) for r in held.references])
    d = [a - b for r, row in zip(held.references, scored, strict=True) for a, b in zip(row, r.logprobs, strict=True)]
    return float(generator("forward_kl")(torch.tensor(d)).mean())


# --- Rehearsal is trained --------------------------------------------------------------------------


def test_two_steps_with_lora_bring_the_stored_answers_back_where_plain_grpo_moves_nothing(base_folder, held, tmp_path):
    """All rewards are equal, so GRPO has no gradient at all: what moves is moved by the stored answers."""
    policy = adapted(base_folder)
    before, far = trainable(policy), stored_divergence(policy, held)
    trainer = dph(policy, tmp_path, held, rehearsal_rows=6, learning_rate=3e-3)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "rehearsal/divergence" in row]
    assert [row["reward"] for row in logs] == [1.0, 1.0]
    assert logs[0]["rehearsal/divergence"] == pytest.approx(far, rel=1e-5), "all six are rehearsed in each step"
    assert logs[0]["loss"] == pytest.approx(0.5 * far, rel=1e-3) and logs[0]["grad_norm"] > 0
    assert stored_divergence(policy, held) < logs[1]["rehearsal/divergence"] < far
    assert all(not torch.equal(now, before[name]) for name, now in trainable(policy).items())

    plain = adapted(base_folder)
    trl.GRPOTrainer(
        plain,
        equal_rewards,
        config(tmp_path),
        train_dataset=prompt_dataset(held.exploration),
        processing_class=tokenizer(),
    ).train()
    assert all(torch.equal(now, before[name]) for name, now in trainable(plain).items())


def test_a_fresh_adapter_starts_at_the_reference_and_the_verifier_rewards(base_folder, held, tmp_path):
    """As a user does it: base by name, adapter by configuration, the rollouts judged by the verifier."""
    with Verifier(tmp_path / "no-databases") as verifier:
        rewards = verified_reward(verifier, held.exploration)
        adapter = LoraConfig(r=4, target_modules="all-linear")
        options = {"peft_config": adapter, "processing_class": None}
        trainer = dph(str(base_folder), tmp_path, held, rewards=rewards, arguments=options, rehearsal_rows=6)
        frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
        trainer.train()
    first, second = [row for row in trainer.state.log_history if "rehearsal/log_ratio" in row]
    assert abs(first["rehearsal/log_ratio"]) < 1e-5, "TRL gives stored tokens the log-probabilities that were stored"
    assert first["rehearsal/divergence"] < 1e-9
    assert first["rewards/verified/mean"] == 0.0, "the base is random"
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} and all(
        torch.equal(p, frozen[name]) for name, p in trainer.model.named_parameters() if not p.requires_grad
    )
    assert "rehearsal/divergence" in second


@pytest.mark.parametrize("prepared", ["by us", "by TRL"])
def test_two_steps_of_qlora(base_folder, held, tmp_path, prepared):
    placement = Placement("cpu", "float32", "sdpa")
    if prepared == "by us":
        settings = tuning.TuningConfig("qlora", rank=4)
        policy, options = tuning.load_policy(base_folder, settings, placement=placement)[0], {}
    else:
        policy = str(base_folder)
        options = {"quantization_config": tuning.quantization_for(placement)}
        options["peft_config"] = LoraConfig(r=4, target_modules="all-linear")
    trainer = dph(policy, tmp_path, held, arguments=options, rehearsal_rows=6, learning_rate=2e-4)
    before = trainable(trainer.model)
    trainer.train()
    first, second = rehearsed(trainer)
    assert 0 < second < first < 0.1, "the 4-bit base is near the stored log-probabilities, not at them"
    assert any(not torch.equal(now, before[name]) for name, now in trainable(trainer.model).items())


# --- Prompts are the store's token ids -------------------------------------------------------------


def test_rollouts_continue_the_exported_ids_and_no_text_is_tokenised_again(base_folder, tmp_path):
    held = store.read(export_store(tmp_path / "store", base_folder, TEMPLATED))
    policy, words, read = adapted(base_folder), unlike_export(base_folder), []
    trainer = dph(policy, tmp_path, held, arguments={"processing_class": words})
    generate = policy.generate

    def reading(input_ids, attention_mask, **options):
        masks = attention_mask.bool()
        read.extend(tuple(row[mask].tolist()) for row, mask in zip(input_ids, masks, strict=True))
        return generate(input_ids=input_ids, attention_mask=attention_mask, **options)

    policy.generate = reading
    trainer.train()
    text_ids = {tuple(words(problem.prompt)["input_ids"]) for problem in held.exploration}
    assert len(read) == 8 and set(read) <= set(held.exploration_ids) and not set(read) & text_ids


def test_prompts_that_the_store_does_not_have_are_tokenised_by_trl(base_folder, held, tmp_path):
    words = unlike_export(base_folder)
    trainer = dph(adapted(base_folder), tmp_path, held, arguments={"processing_class": words})
    known, other = held.exploration[0].prompt, "<s> question : 1 + 2 answer :"
    ids, images, fields = trainer._tokenize_prompts([known, other])
    assert ids == [list(held.exploration_ids[0]), words(other)["input_ids"]] and (images, fields) == (None, {})


# --- The loss is ours ------------------------------------------------------------------------------


def mixed_batch(policy, held, eta, divergence):
    """Rollouts as TRL hands them to its loss, and our loss of them and of all stored answers in one call."""
    torch.manual_seed(0)
    pad = tokenizer().pad_token_id
    prompts = [tokenizer()(p.prompt)["input_ids"] for p in PROBLEMS[6:]]
    rollouts = [(prompt, torch.randint(4, len(tokenizer()), (3 + i,)).tolist()) for i, prompt in enumerate(prompts)]
    scored = score_rows(policy, pad, rollouts)
    old = scored.logprobs_B_T.detach() + 1.5 * torch.randn(scored.mask_B_T.shape)
    advantages = torch.tensor([1.5, -0.7, -1.2, 0.4])
    inputs = {
        "prompt_ids": tokenizer().pad({"input_ids": prompts}, return_tensors="pt")["input_ids"],
        "prompt_mask": tokenizer().pad({"input_ids": prompts}, return_tensors="pt")["attention_mask"],
        "completion_ids": torch.nn.utils.rnn.pad_sequence([torch.tensor(a) for _, a in rollouts], True, pad),
        "completion_mask": scored.mask_B_T.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": scored.mask_B_T.sum(),
    }

    stored = [(tokenizer()(r.problem.prompt)["input_ids"], r.token_ids) for r in held.references]
    both = score_rows(policy, pad, rollouts + stored)
    count, width = both.mask_B_T.shape
    ids = torch.tensor([EXPLORE] * 4 + [NEAR_PERFECT] * (count - 4))[:, None].where(both.mask_B_T, IGNORE)
    old_all, ref_all = torch.zeros(count, width), torch.zeros(count, width)
    old_all[:4, : old.shape[1]] = old
    for row, reference in enumerate(held.references, 4):
        ref_all[row, : len(reference.logprobs)] = torch.tensor(reference.logprobs)
    loss, stats = partitioned_loss(
        both.logprobs_B_T,
        loss_id_B_T=ids,
        old_logprobs_B_T=old_all,
        ref_logprobs_B_T=ref_all,
        advantages_B_T=torch.cat([advantages, torch.zeros(count - 4)])[:, None],
        divergence=divergence,
        eta=eta,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=3.0,
    )
    assert stats.clip_fraction > 0 and stats.dual_clip_fraction > 0 and stats.near_perfect > 1e-3
    return inputs, loss


@pytest.mark.parametrize(
    ("name", "params", "loss_type"), [("js", {}, "dapo"), ("forward_kl", {}, "bnpo"), ("alpha", {"alpha": 0.5}, "dapo")]
)
def test_loss_and_gradient_of_a_mixed_batch_are_those_of_dphlib(base_folder, held, tmp_path, name, params, loss_type):
    policy, divergence = adapted(base_folder), generator(name, **params)
    trainer = dph(policy, tmp_path, held, rehearsal_rows=6, eta=0.7, divergence=divergence, loss_type=loss_type)
    trainer.current_gradient_accumulation_steps = 1
    policy.train()
    inputs, ours = mixed_batch(policy, held, 0.7, divergence)
    weights = [p for p in policy.parameters() if p.requires_grad]
    expected = torch.autograd.grad(ours, weights)
    theirs = trainer.compute_loss(policy, inputs)
    assert theirs.item() == pytest.approx(ours.item(), abs=1e-6)
    for got, want in zip(torch.autograd.grad(theirs, weights), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)

    policy.eval()
    with torch.no_grad():
        in_evaluation = trainer.compute_loss(policy, inputs)
        alone = trl.GRPOTrainer.compute_loss(trainer, policy, inputs)
    assert in_evaluation == alone != pytest.approx(theirs.item(), abs=1e-3)


def five_rows(policy, folder, held, **sizes) -> DPHTrainer:
    """Two steps of five stored answers each, with a step as long as its gradient."""
    trainer = dph(policy, folder, held, rehearsal_rows=5, optim="sgd", learning_rate=0.3, **sizes)
    trainer.train()
    return trainer


class OneOfTwo:
    """The trainer's accelerator as the first or the second of two processes has it; each gathers its own value only."""

    num_processes = 2

    def __init__(self, real, index: int) -> None:
        self.real, self.process_index = real, index

    def __getattr__(self, name: str):
        return getattr(self.real, name)


def test_two_processes_share_a_step_and_its_denominator(base_folder, held, tmp_path):
    """Three stored answers for one, two for the other: averaged, loss and gradient are those of one process.

    `tests/benchmarks/trl_processes.py` does it with real processes.
    """
    policy = adapted(base_folder)
    trainer = dph(policy, tmp_path, held, rehearsal_rows=5)
    trainer.current_gradient_accumulation_steps = 1
    weights = [p for p in policy.parameters() if p.requires_grad]
    alone = trainer._rehearsal_loss(policy)
    expected, real, parts = torch.autograd.grad(alone, weights), trainer.accelerator, []
    for index in (0, 1):
        trainer.accelerator, trainer._micro_batch = OneOfTwo(real, index), (-1, -1)
        parts.append(trainer._rehearsal_loss(policy))
    trainer.accelerator = real
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-2)
    together = (parts[0] + parts[1]) / 2
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)
    for got, want in zip(torch.autograd.grad(together, weights), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-7, rtol=1e-5)
    one, *logged = trainer._metrics["train"]["rehearsal/divergence"]
    assert sum(logged) / 2 == pytest.approx(one, rel=1e-6)


# --- Which stored answers --------------------------------------------------------------------------


def test_every_stored_answer_comes_once_before_any_comes_again():
    whole = rehearsal_order(7, 1, 0, 21)
    assert [sorted(whole[i : i + 7]) for i in (0, 7, 14)] == [list(range(7))] * 3
    assert whole[:7] != whole[7:14] and whole != rehearsal_order(7, 2, 0, 21)
    assert whole[5:16] == rehearsal_order(7, 1, 5, 11)


def test_micro_batches_cut_the_step_and_do_not_change_it(base_folder, held, tmp_path):
    """Five rows a step, in one micro-batch, or three and two with different lengths."""
    results = []
    for batch, accumulated in ((8, 1), (4, 2)):
        policy = adapted(base_folder)
        sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        results.append((rehearsed(five_rows(policy, tmp_path, held, **sizes)), trainable(policy)))
    (logged, weights), (cut_logged, cut_weights) = results
    assert cut_logged == pytest.approx(logged, rel=1e-5) and logged[0] != logged[1]
    for name, weight in weights.items():
        torch.testing.assert_close(cut_weights[name], weight, atol=1e-6, rtol=1e-5)


def test_a_resumed_run_rehearses_what_the_uninterrupted_one_did(base_folder, held, tmp_path):
    whole, resumed = adapted(base_folder), adapted(base_folder)
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-3}
    dph(whole, tmp_path, held, **settings).train()
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "DPH-RL" in card and "2509.07430" in card
    dph(resumed, tmp_path, held, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, weight in trainable(whole).items():
        torch.testing.assert_close(trainable(resumed)[name], weight, atol=0, rtol=0)


# --- What is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"eta": 0.0}, "eta is 0.0; it must be above 0"),
        ({"rehearsal_rows": 1, "gradient_accumulation_steps": 2}, "rehearsal_rows is 1; .* has 2 micro-batches"),
        ({"temperature": 0.7}, "temperature is 0.7; the stored log-probabilities are at 1.0"),
    ],
)
def test_settings_that_would_leave_the_stored_answers_untrained_are_refused(
    base_folder, held, tmp_path, settings, says
):
    with pytest.raises(InputError, match=says):
        dph(adapted(base_folder), tmp_path, held, **settings)


def test_reentrant_checkpointing_is_refused_where_several_processes_train(base_folder, held, tmp_path, monkeypatch):
    """There it fails in the first backward pass, in DDP as in ZeRO."""
    settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    assert dph(adapted(base_folder), tmp_path, held, **settings).rehearsal_rows == 4
    monkeypatch.setattr(accelerate.Accelerator, "num_processes", 2)
    with pytest.raises(InputError, match=r"use_reentrant=True.* give gradient_checkpointing=False, or take ZeRO 2"):
        dph(adapted(base_folder), tmp_path, held, **settings)
    del settings["gradient_checkpointing_kwargs"]
    assert dph(adapted(base_folder), tmp_path, held, **settings).rehearsal_rows == 4


def test_a_store_without_answers_or_of_another_base_is_refused(base_folder, held, tmp_path):
    with pytest.raises(InputError, match="no stored answer; its threshold is 6: partition with a lower"):
        dph(adapted(base_folder), tmp_path, replace(held, references=()))
    with pytest.raises(InputError, match="D_exp is empty"):
        dph(adapted(base_folder), tmp_path, replace(held, exploration=()))
    other = tmp_path / "other"
    save_policy(other, seed=1)
    with pytest.raises(InputError, match=f"made with another base model .sha256 {held.base_sha256[:12]}"):
        dph(adapted(other), tmp_path, held)
    nameless = small_policy(width=64)
    with pytest.raises(InputError, match="cannot tell which weights the model has"):
        dph(nameless, tmp_path, held)
    assert dph(nameless, tmp_path, held, base=base_folder).rehearsal_rows == 4


def test_an_untested_version_is_named_with_the_tested_range(recwarn):
    warn_of_untested(trl.__version__)
    assert not recwarn
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"trl{TESTED}" in extras["trl"]
    for version in ("1.15.0", "1.17.0", "2.0.0"):
        with pytest.warns(UserWarning, match=rf"TRL {version} is installed, .* tested with >=1.16,<1.17"):
            warn_of_untested(version)


def test_without_the_extra_the_import_is_one_line_that_names_it():
    program = """
import sys
class NoTrl:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "trl":
            raise ModuleNotFoundError("No module named 'trl'", name="trl")
sys.meta_path.insert(0, NoTrl())
import dphlib.integrations.trl
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=120)
    assert done.returncode == 1
    assert re.fullmatch(r'ModuleNotFoundError: .*pip install "dphlib\[trl\]"', done.stderr.splitlines()[-1])
    assert "During handling" not in done.stderr


# --- What TRL reads, and how it is used --------------------------------------------------------------


def test_data_set_and_reward_speak_of_the_same_problems(held):
    rows = prompt_dataset(held.exploration)
    assert rows["prompt"] == [p.prompt for p in held.exploration] and rows["gold"] == [p.gold for p in PROBLEMS[6:]]
    right, wrong = f"so \\boxed{{{PROBLEMS[6].gold}}}", "so \\boxed{1}"
    with Verifier(Path("no-databases")) as verifier:
        reward = verified_reward(verifier, held.exploration)
        columns = {name: [rows[0][name], rows[0][name]] for name in rows.column_names if name != "prompt"}
        assert reward(prompts=["", ""], completions=[right, wrong], trainer_state=None, **columns) == [1.0, 0.0]
