"""vLLM with a policy that is trained whole: its weights are pushed into the engine."""

from __future__ import annotations

import pytest
import torch
from servable import DRAWS, GREEDY, RANK, assert_agrees, logprobs, scored, servable_policy, train_step
from small import sum_problems, tokenizer

from dphlib.models import tuning
from dphlib.models.load import load_model, save_model
from dphlib.models.tuning import TuningConfig
from dphlib.runtime.files import RunError

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def ending_policy():
    """A policy whose answers end early or not, about equally often."""
    policy = servable_policy()
    with torch.no_grad():  # tied embeddings: the end token's logit grows with its own row
        policy.get_input_embeddings().weight[tokenizer().eos_token_id] *= 40
    return policy


@pytest.fixture(scope="module")
def full_sampler(start, ending_policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ending")
    save_model(ending_policy, tokenizer(), folder)
    return start(folder)


def test_token_ids_are_the_models_and_the_end_token_is_scored(full_sampler, ending_policy):
    full_sampler.sync(ending_policy)
    problems = sum_problems(8)
    drawn = full_sampler.sample(problems, DRAWS, 0)
    answers = [a for group in drawn for a in group]
    end = tokenizer().eos_token_id
    assert {a.truncated for a in answers} == {True, False}, "some answers end and some do not, or it tests nothing"
    for answer in answers:
        assert answer.truncated == (answer.token_ids[-1] != end)
        assert end not in answer.token_ids[:-1] and len(answer.logprobs) == len(answer.token_ids) <= 12
        assert answer.text == tokenizer().decode(answer.token_ids, skip_special_tokens=True)
    assert logprobs(drawn) == pytest.approx(scored(ending_policy, problems, drawn), abs=1e-4)


def test_pushed_weights_are_what_the_sampler_draws_from(full_sampler, base_folder):
    problems = sum_problems(6)
    policy = tuning.prepare(load_model(base_folder)[0], TuningConfig("full"))
    full_sampler.sync(policy)
    assert_agrees(full_sampler, policy, problems)
    before = logprobs(full_sampler.sample(problems, GREEDY, 0))
    train_step(policy, tuning.optimizer(policy, 1e-2))
    full_sampler.sync(policy)
    assert logprobs(full_sampler.sample(problems, GREEDY, 0)) != pytest.approx(before, abs=1e-3)
    assert_agrees(full_sampler, policy, problems)
    assert full_sampler.record() == {"sampler": f"vllm {full_sampler.version}", "adapter_sha256": None}


def test_an_adapter_and_a_second_engine_are_refused(full_sampler, start, base_folder):
    adapted = tuning.prepare(load_model(base_folder)[0], TuningConfig("lora", rank=RANK))
    with pytest.raises(ValueError, match="made for all weights"):
        full_sampler.sync(adapted)
    with pytest.raises(RunError, match="lives in this process already"):
        start(base_folder)
