"""vLLM, the real one, on this machine's CPU, against Transformers: `./run_all.sh test` runs it in .venv-vllm."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from servable import DRAWS, GREEDY, RANK, assert_agrees, logprobs, scored, servable_policy, train_step
from small import RewardsFirstToken, sum_problems, tokenizer

from dphlib.models import tuning
from dphlib.models.adapters import Card, describe_base, save_adapter
from dphlib.models.load import load_model
from dphlib.models.tuning import TuningConfig
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import TrainConfig
from dphlib.training import loop
from dphlib.types import GREEDY_SAMPLE

pytestmark = pytest.mark.vllm


def adapted(base_folder, seed: int = 0, steps: int = 2):
    """The base with an adapter that was trained for some steps, and its optimizer."""
    policy = tuning.prepare(load_model(base_folder)[0], TuningConfig("lora", rank=RANK), seed)
    optimizer = tuning.optimizer(policy, 2e-2)
    for step in range(steps):
        train_step(policy, optimizer, seed + step)
    return policy, optimizer


@pytest.fixture
def plain_base(sampler):
    sampler.use_adapter(None)
    return sampler


def test_greedy_tokens_and_logprobs_equal_transformers(plain_base):
    assert_agrees(plain_base, servable_policy(), sum_problems(6))
    (answer,), *_ = plain_base.sample(sum_problems(1), GREEDY, 0)
    assert answer.sample == GREEDY_SAMPLE and math.isnan(answer.entropy)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.0, 0.5)])
def test_logprobs_are_at_temperature_one_and_without_top_p(plain_base, temperature, top_p):
    problems = sum_problems(4)
    drawn = plain_base.sample(problems, replace(DRAWS, temperature=temperature, top_p=top_p), 3)
    assert logprobs(drawn) == pytest.approx(scored(servable_policy(), problems, drawn), abs=1e-4)


def test_n_samples_of_one_request_differ_and_seeds_repeat_whatever_the_order(plain_base):
    problems = sum_problems(5)
    first, again = (plain_base.sample(problems, DRAWS, 7) for _ in range(2))
    ids = [[a.token_ids for a in group] for group in first]
    assert ids == [[a.token_ids for a in group] for group in again]
    assert [[a.sample for a in group] for group in first] == [[0, 1, 2, 3]] * 5
    assert all(len(set(group)) == 4 for group in ids)
    assert len({group[0] for group in ids}) == 5
    shuffled = random.Random(0).sample(problems, 5)
    by_id = {p.id: g for p, g in zip(shuffled, plain_base.sample(shuffled, DRAWS, 7), strict=True)}
    assert [[a.token_ids for a in by_id[p.id]] for p in problems] == ids
    other = plain_base.sample(problems, DRAWS, 8)
    assert [[a.token_ids for a in group] for group in other] != ids
    twice = plain_base.sample([problems[0], problems[0]], DRAWS, 7)
    assert [a.token_ids for a in twice[0]] == ids[0] != [a.token_ids for a in twice[1]]


def test_a_step_moves_the_samplers_logprobs_and_they_agree_with_the_trainer_again(sampler, base_folder):
    problems = sum_problems(6)
    policy, optimizer = adapted(base_folder)
    sampler.sync(policy)
    assert_agrees(sampler, policy, problems)
    before, hash_before = sampler.sample(problems, GREEDY, 0), sampler.record()["adapter_sha256"]
    train_step(policy, optimizer)
    sampler.sync(policy)
    after = sampler.sample(problems, GREEDY, 0)
    assert logprobs(after) != pytest.approx(logprobs(before), abs=1e-3)
    assert_agrees(sampler, policy, problems)
    assert sampler.record()["adapter_sha256"] != hash_before
    assert sampler.record()["sampler"] == f"vllm {sampler.version}"


def test_two_adapters_in_turn_and_the_hash_names_each(sampler, base_folder):
    problems = sum_problems(5)
    (one, _), (two, _) = adapted(base_folder, 0), adapted(base_folder, 9)
    hashes = []
    for policy in (one, two, one, two):
        sampler.sync(policy)
        assert_agrees(sampler, policy, problems)
        hashes.append(sampler.record()["adapter_sha256"])
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]


def test_without_the_reset_the_prefix_cache_answers_from_the_adapter_before(sampler, base_folder):
    """What `sync` guards against is real: a swap alone gives log-probs of neither adapter."""
    long = [replace(p, prompt=f"{p.prompt} " * 8 + "answer :") for p in sum_problems(3)]
    (one, _), (two, _) = adapted(base_folder, 0, steps=4), adapted(base_folder, 9, steps=4)
    sampler.sync(one)
    sampler.sample(long, GREEDY, 0)
    folder = sampler._work / "policy"
    two.save_pretrained(folder)
    from vllm.lora.request import LoRARequest

    sampler.engine.llm_engine.add_lora(LoRARequest("policy", 1, str(folder), load_inplace=True))
    stale = sampler.sample(long, GREEDY, 0)
    assert logprobs(stale) != pytest.approx(scored(two, long, stale), abs=1e-4)
    sampler.sync(two)
    assert_agrees(sampler, two, long)


def test_an_adapter_saved_with_its_card_loads_in_vllm(plain_base, base_folder, tmp_path):
    policy, _ = adapted(base_folder, 3)
    card = Card("dph_js", "CPU world", (3,), "apache-2.0")
    sha256 = save_adapter(policy, tmp_path / "adapter", describe_base(base_folder, "apache-2.0"), card)
    plain_base.use_adapter(tmp_path / "adapter")
    assert plain_base.record()["adapter_sha256"] == sha256
    assert_agrees(plain_base, policy, sum_problems(5))
    plain_base.use_adapter(None)
    assert plain_base.record()["adapter_sha256"] is None
    assert_agrees(plain_base, servable_policy(), sum_problems(5))


def test_qlora_gives_its_adapter_to_the_unquantised_base(sampler, base_folder):
    policy, _ = tuning.load_policy(base_folder, TuningConfig("qlora", rank=RANK))
    train_step(policy, tuning.optimizer(policy, 2e-2))
    sampler.sync(policy)
    problems = sum_problems(5)
    drawn = sampler.sample(problems, DRAWS, 0)
    gaps = [a - b for a, b in zip(scored(policy, problems, drawn), logprobs(drawn), strict=True)]
    assert 1e-6 < max(map(abs, gaps)) < 0.5, "near the 4-bit trainer and not equal: importance weights are for this"


def test_the_process_is_left_as_it_was(sampler, base_folder):
    torch.manual_seed(0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    sampler.sync(adapted(base_folder, steps=0)[0])
    torch.set_rng_state(state)
    sampler.sample(sum_problems(2), DRAWS, 0)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert torch.set_num_threads.__module__ != "vllm.v1.worker.cpu_worker"


def test_what_does_not_fit_is_refused(sampler, base_folder):
    with pytest.raises(ValueError, match="made for adapters of rank 4"):
        sampler.sync(load_model(base_folder)[0])
    wide = tuning.prepare(load_model(base_folder)[0], TuningConfig("lora", rank=RANK + 4))
    with pytest.raises(ValueError, match="has rank 8, this sampler was made for 4"):
        sampler.sync(wide)
    with pytest.raises(ValueError, match="are more than max_tokens = 128"):
        sampler.sample(sum_problems(1), replace(GREEDY, max_new_tokens=128), 0)
    assert sampler.sample([], GREEDY, 0) == []


def test_a_run_trains_on_what_vllm_draws_with_each_steps_own_adapter(sampler, base_folder):
    policy = tuning.prepare(load_model(base_folder)[0], TuningConfig("lora", rank=RANK))
    config = TrainConfig(
        iterations=3,
        prompts=4,
        rollouts=4,
        mini_batches=1,
        rehearsal_rows=0,
        lr=1e-2,
        max_new_tokens=8,
        importance_cap=2.0,
        diagnose_every=1,
    )
    arguments = (tokenizer(), sum_problems(8), [], RewardsFirstToken(), METHOD_CONFIGS["rkl"], config, 0)
    logs = loop.train(policy, *arguments, sampler=sampler)
    assert [row["sampler"] for row in logs] == [f"vllm {sampler.version}"] * 3
    assert len({row["adapter_sha256"] for row in logs}) == 3
    for row in logs:
        assert row["tis_mean"] == pytest.approx(1.0, abs=1e-3) and row["sampler_gap"] < 1e-4
        assert row["tis_truncated"] == 0.0 and row["grad_norm"] > 0 and row["sync_s"] > 0
    assert logs[-1]["kl_to_base"] > 1e-3 > abs(logs[0]["kl_to_base"])
