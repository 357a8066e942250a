"""The benchmarks of training start and give a result at their smallest size, and count what they say they count."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.stages import ModelConfig

pytestmark = pytest.mark.slow

linux = pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark of memory is read from /proc")


@pytest.fixture
def script(monkeypatch):
    """Imports a benchmark as its own run does."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    return importlib.import_module


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


def test_gpu_step_runs_every_kind_and_method_on_a_cpu(script, capsys):
    assert script("gpu_step").main(["--size", "tiny", "--methods", "rkl", "dph_js"]) == 0
    rows = told(capsys)["rows"]
    assert [(row["kind"], row["method"]) for row in rows] == [
        (kind, method) for kind in ("lora", "qlora", "full") for method in ("rkl", "dph_js")
    ]
    assert all(row["grad_norm"] > 0 and row["tokens_s"] > 0 and row["share"] > 0 for row in rows)
    assert all(row["rows"] == 4 + row["method"].startswith("dph") for row in rows)
    assert all((row["through_reference"] > 0) == (row["method"] == "rkl") for row in rows)


@pytest.mark.parametrize(("kind", "checkpointing"), [("lora", "off"), ("full", "on")])
def test_the_operations_of_a_step_are_those_that_torch_counts(script, capsys, monkeypatch, kind, checkpointing):
    """But for attention, which it does not count on a CPU, and the first layer's inputs, which under LoRA have no
    gradient without checkpointing: of two layers a part, of 32 none to speak of.
    """
    gpu_step, counts = script("gpu_step"), []
    train, formula = gpu_step.loop.train, gpu_step.operations

    def counting(*arguments, **options):
        with FlopCounterMode(display=False) as counter:
            logs = train(*arguments, **options)
        counts.append(counter.get_total_flops() / len(logs))
        return logs

    monkeypatch.setattr(gpu_step.loop, "train", counting)

    def without_attention(*arguments):
        *before, _, answer, head_again = arguments
        return formula(*before, 0, answer, head_again)

    monkeypatch.setattr(gpu_step, "operations", without_attention)
    monkeypatch.setattr(gpu_step, "product_rate", lambda *_: 1.0)
    methods = ["grpo", "rkl"] if kind == "full" else ["grpo"]  # torch's counter trips over PEFT in inference mode
    arguments = ["--size", "tiny", "--kinds", kind, "--methods", *methods, "--checkpointing", checkpointing]
    assert gpu_step.main(arguments) == 0
    for row, counted in zip(told(capsys)["rows"], counts, strict=True):
        assert row["share_run"] * row["step_s"] == pytest.approx(counted, rel=0.01 if kind == "full" else 0.05)


def test_an_8b_step_without_a_gpu_is_one_line(script, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        script("gpu_step").main([])
    assert "no GPU here: size 8b needs one; --size tiny runs" in capsys.readouterr().err.splitlines()[-1]


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
