"""The sampler over HTTP against a small server of vLLM's shape: ids, log-probs, adapters, weights, faults."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from completion_server import CompletionServer
from dphlib.sampling.server import ServerSampler
from small import RewardsFirstToken, policy, sum_problems, tokenizer
from test_trainer import CONFIG

from dphlib.experiment import policies
from dphlib.models.adapters import adapter_sha256
from dphlib.models.tuning import prepare
from dphlib.runtime.files import RunError
from dphlib.sampling import server as server_sampler
from dphlib.sampling.protocol import SamplingConfig, TransformersSampler
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.profiles import profile
from dphlib.settings.stages import BackendConfig, TuningConfig
from dphlib.training import loop as trainer
from dphlib.training.scoring import answer_logprobs
from dphlib.types import GREEDY_SAMPLE

DRAWS, GREEDY = SamplingConfig(3, 1.0, 1.0, 6), SamplingConfig(1, 0.0, 1.0, 6)


@pytest.fixture
def server():
    served = CompletionServer()
    yield served
    served.close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(server_sampler, "_PAUSE_S", 0.0)


def sampler_of(server, tmp_path, adapters=True, **options):
    return ServerSampler([server.url], tmp_path, tokenizer(), adapters=adapters, **options)


def adapted(seed: int = 0):
    """A policy with an adapter that is not the base's any more."""
    learner = prepare(policy(), TuningConfig("lora", rank=2, alpha=4), seed)
    with torch.no_grad():
        for name, parameter in learner.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return learner


def logprobs(answers):
    return [value for group in answers for answer in group for value in answer.logprobs]


def scored(learner, problems, answers):
    pairs = [(p.prompt, a.token_ids) for p, group in zip(problems, answers, strict=True) for a in group]
    return [value for row in answer_logprobs(learner, tokenizer(), pairs) for value in row]


def test_answers_are_the_servers_tokens_with_their_logprobs(server, tmp_path):
    sampler, problems = sampler_of(server, tmp_path), sum_problems(4)
    drawn = sampler.sample(problems, DRAWS, 0)
    assert [[a.sample for a in group] for group in drawn] == [[0, 1, 2]] * 4
    assert logprobs(drawn) == pytest.approx(scored(policy(), problems, drawn), abs=1e-5)
    for group in drawn:
        for answer in group:
            assert answer.truncated == (answer.token_ids[-1] != tokenizer().eos_token_id)
            assert answer.text == tokenizer().decode(answer.token_ids, skip_special_tokens=True)
            assert math.isnan(answer.entropy)
    greedy = sampler.sample(problems, GREEDY, 0)
    theirs = TransformersSampler(policy(), tokenizer()).sample(problems, GREEDY, 0)
    assert [a.token_ids for (a,) in greedy] == [a.token_ids for (a,) in theirs]
    assert greedy[0][0].sample == GREEDY_SAMPLE
    requests = [body for path, body in server.asked if path == "/v1/completions"]
    prompts = [tokenizer()(p.prompt)["input_ids"] for p in problems] * 2
    assert sorted(r["prompt"] for r in requests) == sorted(prompts), "token ids go in, with one BOS"
    assert all(r["return_token_ids"] and r["logprobs"] == 0 and r["ignore_eos"] for r in requests)


def test_draws_repeat_whatever_the_order_and_the_number_of_servers(server, tmp_path):
    problems, other = sum_problems(5), CompletionServer()
    first = sampler_of(server, tmp_path).sample(problems, DRAWS, 7)
    two = ServerSampler([server.url, f"{other.url}/"], tmp_path, tokenizer(), adapters=True)
    turned = two.sample(problems[::-1], DRAWS, 7)[::-1]
    assert [[a.token_ids for a in group] for group in turned] == [[a.token_ids for a in group] for group in first]
    assert any(path == "/v1/completions" for path, _ in other.asked)
    twice = two.sample([problems[0], problems[0]], DRAWS, 7)
    assert [a.token_ids for a in twice[0]] == [a.token_ids for a in first[0]] != [a.token_ids for a in twice[1]]
    other.close()


def test_an_adapter_is_loaded_under_the_name_of_its_hash_and_the_one_before_is_removed(server, tmp_path):
    sampler, problems = sampler_of(server, tmp_path), sum_problems(3)
    names = []
    for learner in (adapted(0), adapted(1)):
        sampler.sync(learner)
        drawn = sampler.sample(problems, DRAWS, 0)
        assert logprobs(drawn) == pytest.approx(scored(learner, problems, drawn), abs=1e-5)
        sha256 = sampler.record()["adapter_sha256"]
        (folder,) = tmp_path.iterdir()
        assert folder.name == f"policy-{sha256[:16]}" and adapter_sha256(folder) == sha256
        names.append(folder.name)
    assert set(server.models) == {"base", names[1]} and names[0] != names[1]
    loads = len(server.asked)
    sampler.sync(adapted(1))
    assert len(server.asked) == loads, "an adapter that did not change is not sent again"
    assert sampler.record()["sampler"] == "server vllm 0.32.0"


def test_weights_of_a_whole_policy_are_reloaded_and_the_prefix_cache_reset(server, tmp_path):
    sampler, problems, learner = sampler_of(server, tmp_path, adapters=False), sum_problems(3), policy(seed=5)
    sampler.sync(learner)
    drawn = sampler.sample(problems, DRAWS, 0)
    assert logprobs(drawn) == pytest.approx(scored(learner, problems, drawn), abs=1e-5)
    assert [path for path, _ in server.asked][2:4] == ["/collective_rpc", "/reset_prefix_cache"]
    with pytest.raises(ValueError, match="made for all weights"):
        sampler.sync(adapted())
    server.faults.add("cache held")
    with pytest.raises(RunError, match="did not reset its prefix cache"):
        sampler.sync(learner)


def test_a_run_trains_on_what_the_server_draws_with_each_steps_own_adapter(server, tmp_path):
    learner = prepare(policy(), TuningConfig("lora", rank=2, alpha=4))
    config = replace(CONFIG, iterations=3, mini_batches=1, lr=1e-2, importance_cap=2.0)
    arguments = (tokenizer(), sum_problems(8), [], RewardsFirstToken(), METHOD_CONFIGS["rkl"], config, 0)
    logs = trainer.train(learner, *arguments, sampler=sampler_of(server, tmp_path))
    assert len({row["adapter_sha256"] for row in logs}) == 3
    assert all(row["tis_mean"] == pytest.approx(1, abs=1e-3) and row["sampler_gap"] < 1e-4 for row in logs)
    assert all(row["grad_norm"] > 0 and row["sync_s"] > 0 for row in logs)


def test_the_profiles_sampler_is_named_by_the_environment(server, tmp_path, monkeypatch):
    settings = replace(profile("gpu80"), backend=BackendConfig("vllm_server"))
    monkeypatch.delenv(server_sampler.SERVERS, raising=False)
    with pytest.raises(RunError, match="set DPH_SERVERS"):
        with policies.sampling(settings, tmp_path, adapted(), tokenizer()):
            raise AssertionError("no sampler without an address")
    monkeypatch.setenv(server_sampler.SERVERS, server.url)
    monkeypatch.setenv(server_sampler.SHARED, str(tmp_path))
    with policies.sampling(settings, tmp_path, adapted(), tokenizer()) as sampler:
        assert sampler.record()["adapter_sha256"] and len(list(tmp_path.iterdir())) == 1


# --- What goes wrong -------------------------------------------------------------------------------


def test_a_busy_server_is_asked_again_and_one_that_is_gone_is_named(server, tmp_path):
    sampler, problems = sampler_of(server, tmp_path), sum_problems(1)
    expected = sampler.sample(problems, DRAWS, 0)
    server.faults.add("busy")
    assert sampler.sample(problems, DRAWS, 0) == expected
    server.close()
    with pytest.raises(RunError, match=r"http://127.*/v1/completions does not answer .*start `vllm serve` there"):
        sampler.sample(problems, DRAWS, 0)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("no ids", "0 token ids and . log-probs .* knows return_token_ids"),
        ("other end", "not at the tokenizer's end token .* --generation-config vllm"),
    ],
)
def test_a_server_with_other_settings_is_refused(server, tmp_path, fault, says):
    server.faults.add(fault)
    with pytest.raises(RunError, match=says):
        sampler_of(server, tmp_path).sample(sum_problems(2), DRAWS, 0)


def test_endpoints_that_are_not_there_name_the_setting(server, tmp_path):
    server.faults |= {"no adapters", "no development"}
    with pytest.raises(RunError, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        sampler_of(server, tmp_path).sync(adapted())
    with pytest.raises(RunError, match="VLLM_SERVER_DEV_MODE=1"):
        sampler_of(server, tmp_path, adapters=False).sync(policy())
    with pytest.raises(ValueError, match="are more than max_tokens = 128"):
        sampler_of(server, tmp_path).sample(sum_problems(1), replace(DRAWS, max_new_tokens=128), 0)


def test_a_key_is_sent_and_asked_for(server, tmp_path, monkeypatch):
    server.key = "secret"
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(RunError, match=r"401 .*set VLLM_API_KEY"):
        sampler_of(server, tmp_path)
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert sampler_of(server, tmp_path).max_tokens == 128


def test_servers_that_differ_are_refused_and_another_version_is_told(server, tmp_path, capsys):
    other = CompletionServer(version="0.31.0")
    with pytest.raises(RunError, match="the servers differ"):
        ServerSampler([server.url, other.url], tmp_path, tokenizer(), adapters=True)
    ServerSampler([other.url], tmp_path, tokenizer(), adapters=True)
    assert "runs vLLM 0.31.0; this was tested with 0.32.0" in capsys.readouterr().err
    other.close()
