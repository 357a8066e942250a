"""The benchmarks of training start and give a result at their smallest size, and count what they say they count."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.stages import ModelConfig

pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")


def told(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_step_cost_gives_every_method_the_same_rollouts(script, capsys):
    assert script("step_cost").main(["--size", "tiny", "--answer", "5", "--repeats", "1"]) == 0
    facts = told(capsys)
    rows = {row["method"]: row for row in facts["rows"]}
    assert list(rows) == ["grpo", "rkl", "dph_f", "dph_js"] and {row["rl_rows"] for row in rows.values()} == {16}
    assert rows["grpo"]["policy_tokens"] == rows["rkl"]["policy_tokens"] == rows["rkl"]["reference_tokens"]
    assert rows["dph_f"]["policy_tokens"] == rows["dph_js"]["policy_tokens"] > rows["grpo"]["policy_tokens"]
    assert rows["dph_f"]["rehearsal_rows"] == 2 and rows["grpo"]["step_to_grpo"] == 1.0
    assert len(facts["targets"]) == 4 and all(isinstance(target["held"], bool) for target in facts["targets"])


def test_step_cost_counts_the_tokens_that_packed_prompts_save(script, capsys):
    assert script("step_cost").main(["--size", "tiny", "--answer", "5", "--repeats", "1", "--measure", "packing"]) == 0
    packed, apart = told(capsys)["rows"]
    assert packed["unique"] == apart["unique"] < apart["tokens"] / 2 and packed["tokens"] <= 1.1 * packed["unique"]
    assert packed["update_cpu_s"] > 0 and apart["update_cpu_s"] > 0


@linux
@pytest.mark.parametrize("count", ["resident", "tensors"])
def test_step_cost_measures_the_memory_of_one_method(script, capsys, count):
    assert script("step_cost").main(["--size", "tiny", "--answer", "5", "--child", "rkl", "--count", count]) == 0
    assert told(capsys)[f"{count}_mib"] > 0.1


@linux
@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize("way", ["plain", "ours", "trl"])
def test_every_way_to_log_probabilities_gives_the_plain_ones(script, capsys, way, head):
    sizes = ["--tokens", "300", "--vocabulary", "3000", "--hidden", "16", "--threads", "1"]
    assert script("logprobs").main([*sizes, "--head", head, "--child", way]) == 0
    facts = told(capsys)
    assert facts["seconds"] > 0 and facts["difference"] < 1e-4


def test_liger_says_why_it_does_not_run_here(script):
    assert "does not run here" in script("logprobs").absent("liger", "cpu")
    assert script("logprobs").absent("ours", "cpu") == ""


def test_trl_and_ours_take_equal_steps(script, capsys):
    sizes = ["--size", "tiny", "--prompts", "2", "--rollouts", "2", "--answer", "3", "--pairs", "1", "--threads", "1"]
    assert script("trl_step").main(sizes) == 0
    theirs, ours = told(capsys)["rows"]
    assert (theirs["program"], ours["program"]) == ("trl", "ours")
    assert theirs["step_s"] > 0 and ours["step_s"] >= ours["sample_s"] + ours["update_s"] > 0


def test_the_sweep_trains_every_method_and_seed(script, capsys, monkeypatch):
    sweep, seen = script("sweep"), []

    def in_this_process(jobs, *, workers, label):
        seen.append((workers, [job.name for job in jobs]))
        return [job.function(**job.arguments) for job in jobs]

    monkeypatch.setattr(sweep, "run_jobs", in_this_process)
    arguments = ["--size", "tiny", "--seeds", "1", "--iterations", "1", "--workers", "1", "--loop-steps", "3"]
    assert sweep.main(arguments) == 0
    assert [names for _, names in seen[2:5]] == [["rkl-0", "dph_f-0", "dph_js-0", "grpo-0"]] * 3
    assert all(row["training_s"] > 0 and row["share"] > 0 for row in told(capsys)["rows"])


def test_an_endless_policy_never_ends_an_answer(script):
    measuring = script("measuring")
    tokenizer = measuring.words()
    policy = measuring.endless_policy(ModelConfig(32, 64, 2, 2, 2), tokenizer)
    answers = TransformersSampler(policy, tokenizer).sample(measuring.sql_problems(8), SamplingConfig(64, 1, 1, 20), 0)
    assert all(len(a.token_ids) == 20 and tokenizer.eos_token_id not in a.token_ids for g in answers for a in g)
    assert len({a.token_ids for g in answers for a in g}) > 500, "it draws, it does not repeat itself"


def test_the_peak_of_tensors_is_exact(script):
    def two_then_one():
        first, second = torch.empty(2**20), torch.empty(2**20)  # 4 MiB each
        del first
        return second + 1.0

    assert script("measuring").tensors_peak_mib(two_then_one) == pytest.approx(8, abs=0.01)
