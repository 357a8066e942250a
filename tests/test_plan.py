"""GPU profiles and what they need: known models, sane estimates, one clear line where something is missing."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from dphlib.cli import main as cli
from dphlib.data.sets import SUITES
from dphlib.experiment import plan, policies
from dphlib.experiment import problems as problem_sets
from dphlib.models import load
from dphlib.models.tuning import prepare
from dphlib.runtime.files import RunError, write_manifest
from dphlib.settings.environment import chosen_by_environment, profile_from_environment
from dphlib.settings.gpu import BASES, GPU_PROFILES, OMNISQL_32B, SMOKE
from dphlib.settings.profiles import PROFILES, profile
from dphlib.settings.variants import RunConfig

GPU = tuple(GPU_PROFILES)


def empty_model(base):
    """The architecture of a base with no memory behind its weights."""
    kind, config = (Qwen2ForCausalLM, Qwen2Config) if base.biases else (LlamaForCausalLM, LlamaConfig)
    with torch.device("meta"):
        return kind(
            config(
                vocab_size=base.vocabulary,
                hidden_size=base.hidden_size,
                intermediate_size=base.intermediate_size,
                num_hidden_layers=base.layers,
                num_attention_heads=base.heads,
                num_key_value_heads=base.kv_heads,
                head_dim=base.head_size,
                tie_word_embeddings=base.tied,
            )
        )


@pytest.mark.parametrize("base", BASES.values(), ids=lambda base: base.name)
def test_weights_are_counted_as_transformers_counts_them(base):
    assert base.parameters == empty_model(base).num_parameters()


@pytest.mark.parametrize("name", ["gpu24", "gpu80"])
def test_trained_weights_are_those_that_the_tuning_trains(name):
    settings = profile(name)
    policy = prepare(empty_model(settings.base), replace(settings.tuning, kind="lora"))
    assert plan.trained_parameters(settings) == sum(p.numel() for p in policy.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", GPU)
def test_a_profile_is_complete(name):
    settings = profile(name)
    assert re.fullmatch(r"[0-9a-f]{40}", settings.base.revision)
    assert all(one in SUITES for names in settings.data.suites.values() for one in names)
    assert {"train", *settings.evaluation.samples} <= set(problem_sets.suites(settings))
    assert settings.data.max_prompt_tokens + settings.train.max_new_tokens <= settings.backend.max_tokens
    assert settings.train.rehearsal_rows * 8 == settings.train.prompts * settings.train.rollouts  # [code]
    assert settings.train.importance_cap and settings.train.checkpoint_every
    for run in (*settings.main_runs(), *settings.ablation_runs()):
        assert settings.method_config(run).weight <= 0.2 and max(settings.waypoints(run), default=0) <= 368
    assert settings.base.name in BASES


def test_the_paper_profile_weighs_js_as_strongly_as_forward_kl():
    settings = profile("paper")
    forward, main = (settings.method_config(RunConfig(method, "main", 0)) for method in ("dph_f", "dph_js"))
    assert main.eta * main.curvature == forward.eta * forward.curvature
    assert settings.method_config(RunConfig("dph_js", "eta=0.01", 0)).eta == 0.01
    with pytest.raises(ValueError, match="is its main run"):
        settings.method_config(RunConfig("dph_js", "eta=0.2", 0))


def test_estimates_follow_the_settings():
    small, large, whole = (plan.plan(profile(name)) for name in GPU)
    assert small.fits and large.fits and not whole.fits, "no single GPU holds the whole 8B model in training"
    assert "several GPUs by verl" in plan.to_text(profile("paper"))
    assert "verl" not in plan.to_text(profile("gpu80"))
    assert 14.9 < large.memory["base"] / 2**30 < 15.0
    lora = replace(profile("gpu24"), tuning=replace(profile("gpu24").tuning, kind="lora"))
    assert plan.plan(lora).memory["base"] > 2 * small.memory["base"]
    free = replace(profile("gpu80"), tuning=replace(profile("gpu80").tuning, gradient_checkpointing=False))
    assert plan.plan(free).memory["update"] > 10 * large.memory["update"]
    twice = replace(profile("gpu80"), train=replace(profile("gpu80").train, iterations=400))
    assert plan.plan(twice).run_hours == pytest.approx(2 * large.run_hours)


@pytest.mark.parametrize("name", PROFILES)
def test_the_command_gives_the_needs_or_says_that_they_are_not_known(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "ARTIFACTS", tmp_path)
    status = cli.main(["plan", "--profile", name])
    said = capsys.readouterr()
    if name in ("smoke", "lm", "lm-smoke"):
        assert status == 1 and f"no recorded run of profile {name} in" in said.err
        return
    assert status == 0
    needs = ("downloads:", "disk:", "GPU memory:", "hours:", "fit")
    words = needs if name.removesuffix(SMOKE) in GPU else ("min", "peak memory")
    assert all(word in said.out for word in words)


def test_hours_count_the_prompt_of_a_group_once():
    def hours(rollouts: int, prompt_tokens: int) -> float:
        settings = profile("gpu80")
        train, data = (
            replace(settings.train, rollouts=rollouts),
            replace(settings.data, max_prompt_tokens=prompt_tokens),
        )
        return plan.plan(replace(settings, train=train, data=data)).run_hours

    assert hours(16, 8000) - hours(16, 4000) == pytest.approx(hours(4, 8000) - hours(4, 4000)) != 0


def record(folder: Path, profile_name: str, **more: object) -> None:
    """A run that has been recorded, by its manifest."""
    seconds = {"set-up": 120.0, "00_kick_the_tires": 30.0, "04_train": 330.0}
    facts = {"profile": profile_name, "asked": {}, "seconds": seconds, "peak_gib": 1.0, "peak_gib_largest_child": 2.0}
    write_manifest(folder, {**facts, "machine": {"cores": 2, "cpu": "AMD EPYC"}, "files": {}, **more})


def test_minutes_are_the_profiles_own_by_part_and_their_sum_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "REFERENCE", tmp_path / "reference")
    monkeypatch.setattr(cli, "ARTIFACTS", tmp_path)
    for folder in ("reference", "smoke"):
        (tmp_path / folder).mkdir()
    record(tmp_path / "reference", "cpu")
    assert cli.main(["plan"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert "profile cpu, measured on 2 cores of AMD EPYC: 8 min" in first
    assert [" ".join(line.split()) for line in lines] == [
        "minutes by part, of ./run_all.sh cpu:",
        "set-up 2.0",
        "00_kick_the_tires 0.5",
        "04_train 5.5",
    ]
    assert cli.main(["plan", "--profile", "smoke"]) == 1, "the reference's are not those of another profile"
    record(tmp_path / "smoke", "smoke")
    assert cli.main(["plan", "--profile", "smoke"]) == 0
    assert "of ./run_all.sh smoke:" in capsys.readouterr().out


def test_minutes_of_a_larger_run_say_how_much_larger(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "REFERENCE", tmp_path)
    record(tmp_path, "cpu", asked={"seeds": "5", "studies": "eta"})
    logs = [{"method": "grpo", "variant": "main", "seed": row % 3, "iteration": row} for row in range(6)]
    pd.DataFrame(logs).to_parquet(tmp_path / "train_log.parquet")
    assert cli.main(["plan"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "minutes by part, of ./run_all.sh cpu --seeds 5 --studies eta:" in said
    plain = len({*profile("cpu").main_runs(), *profile("cpu").ablation_runs()})
    assert said[-1] == f"it trained 3 runs; ./run_all.sh cpu trains {plain}"


def test_gpu24_fits_colabs_free_gpu_by_calculation_and_what_draws_more_at_a_time_does_not(monkeypatch, capsys):
    monkeypatch.setenv("DPH_SAMPLER", "transformers")
    settings = profile_from_environment("gpu24")
    free = plan.plan(settings, "t4")
    assert free.fits and free.memory_gib < 0.8 * free.card.memory_gib, "a fifth is left for what is not in the formulae"
    assert not plan.plan(profile("gpu80"), "t4").fits
    many = replace(settings, backend=replace(settings.backend, batch_rows=1024))
    assert not plan.plan(many, "t4").fits
    assert cli.main(["plan", "--profile", "gpu24", "--card", "t4"]) == 0
    said = capsys.readouterr().out
    assert "NVIDIA T4" in said and "float16" in said and "not measured" in said
    page = (Path(__file__).resolve().parents[1] / "docs" / "gpu.md").read_text()
    assert f"{free.memory_gib:.0f} GiB of 15; {free.presample_hours:.1f} hours of pre-sampling" in page
    assert f"{free.run_hours:.1f} per run of 100 iterations, {free.evaluation_hours:.1f} for its evaluation" in page
    assert cli.main(["plan", "--profile", "gpu24", "--card", "a1"]) == 1
    assert "unknown card 'a1'; known: t4, l4" in capsys.readouterr().err


@pytest.mark.parametrize("name", GPU)
def test_the_smoke_size_of_a_gpu_profile_is_the_same_model_and_sets_on_few_problems(name):
    full, small = profile(name), profile(name + SMOKE)
    assert small.base == full.base and small.tuning == full.tuning and small.backend == full.backend
    assert small.data.suites == full.data.suites and max(small.data.problems.values()) <= 12
    assert small.train.iterations == 2 and small.cost_iterations == 1
    assert small.main_runs() == full.main_runs() and small.ablation_runs() == full.ablation_runs()
    assert min(small.evaluation.samples.values()) == 16, "Pass@16 of Table 1 needs them"


# --- What the environment changes -----------------------------------------------------------------


def test_a_base_of_the_hub_that_reads_too_little_is_told_when_it_is_there(monkeypatch, tmp_path):
    LlamaConfig(max_position_embeddings=600).save_pretrained(tmp_path)
    monkeypatch.setattr(load, "fetch", lambda name, revision: tmp_path)
    settings = chosen_by_environment(profile("gpu24"), {"DPH_BASE": "someone/small@" + "0" * 40})
    with pytest.raises(RunError, match="someone/small reads at most 600 tokens, profile gpu24 has up to 1536"):
        policies.base_folder(settings)


def test_the_cpu_has_to_be_asked_for(monkeypatch, without_gpu):
    with pytest.raises(RunError, match="needs an NVIDIA GPU"):
        policies.placement_of(profile("gpu24"))
    monkeypatch.setenv("DPH_DEVICE", "cpu")
    assert policies.placement_of(profile("gpu24")).device == "cpu"
    monkeypatch.setenv("DPH_DEVICE", "tpu")
    with pytest.raises(ValueError, match="DPH_DEVICE='tpu'"):
        policies.placement_of(profile("gpu24"))


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an `nvidia-smi` first on the path, which prints the drivers' versions, or fails where there is none."""

    def make(*drivers: str) -> None:
        command = tmp_path / "nvidia-smi"
        lines = "".join(f"echo {driver}\n" for driver in drivers)
        command.write_text(f'#!/bin/sh\n[ "$1" = --query-gpu=driver_version ] || exit 2\n{lines or "exit 9"}\n')
        command.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return make


@pytest.mark.parametrize(
    ("drivers", "cuda", "says"),
    [
        (["550.54.15"], "13.0", "driver 550.54.15): CUDA 13.0 needs driver 580 or later; update the driver, or take"),
        (["470.256.02"], "12.8", "driver 470.256.02): CUDA 12.8 needs driver 525 or later; update the driver, or take"),
        (["580.65.06"], "13.0", "(driver 580.65.06): see what CUDA_VISIBLE_DEVICES hides, and whether the driver is"),
        (["580.65.06"], None, "(driver 580.65.06): it is a build for CPUs; install the build for GPUs"),
        (["999.1", "999.1"], "99.0", "(driver 999.1): see what CUDA_VISIBLE_DEVICES hides"),
        ([], "13.0", "and this machine shows none; run it where `nvidia-smi` lists one, or take the profile cpu"),
    ],
)
def test_a_driver_that_answers_while_torch_shows_no_gpu_is_named(
    drivers, cuda, says, nvidia_smi, monkeypatch, without_gpu
):
    nvidia_smi(*drivers)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    with pytest.raises(RunError, match=r"^profile gpu80 needs an NVIDIA GPU and ") as error:
        policies.placement_of(profile("gpu80"))
    assert says in str(error.value) and "\n" not in str(error.value)


# --- What is missing -----------------------------------------------------------------------------


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("command", [["run"], ["presample"], ["train", "dph_js"], ["evaluate", "grpo"]])
@pytest.mark.parametrize("name", GPU)
def test_a_gpu_profile_without_a_gpu_is_one_line_before_anything_is_made(name, command, tmp_path, capsys, without_gpu):
    assert (
        cli.main([command[0], *[f"--method={m}" for m in command[1:]], "--profile", name, "--artifacts", str(tmp_path)])
        == 1
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"dph: profile {name} needs an NVIDIA GPU and this machine shows none; run it where `nvidia-smi` lists one, "
        "or take the profile cpu"
    ]
    assert not list(tmp_path.rglob("*.json"))


def test_a_base_without_a_known_commit_has_to_be_given():
    settings = replace(profile("gpu80"), base=OMNISQL_32B)
    with pytest.raises(RunError, match=r"no commit of it could be verified.*DPH_BASE=NAME@COMMIT"):
        policies.base_folder(settings)
    assert "commit to be given" in plan.to_text(settings)
