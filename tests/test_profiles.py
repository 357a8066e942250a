"""Profiles: what they hold for all, and what the environment changes of those for GPUs, read once at the door."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from small import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

from dphlib.runtime.files import InputError
from dphlib.runtime.jobs import Job, run_jobs
from dphlib.settings.environment import ENVIRONMENT, chosen_by_environment, profile_from_environment
from dphlib.settings.gpu import BASES
from dphlib.settings.profiles import PROFILES, profile


def chosen(name: str, **environment: str):
    return chosen_by_environment(profile(name), {f"DPH_{key}": value for key, value in environment.items()})


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_holds_within_its_own_base_and_changes_by_its_variables_alone(name, monkeypatch):
    assert chosen(name) == profile(name)
    monkeypatch.setenv("DPH_METHODS", "grpo,dph_js")
    opened = profile_from_environment(name)
    assert opened == chosen(name, METHODS="grpo,dph_js")
    assert (opened == profile(name)) == profile(name).small, "the profiles of the small model read no variable"


def test_seeds_of_a_profile_can_be_given():
    settings = profile("cpu", "5", "0,3")
    assert settings.seeds == (0, 1, 2, 3, 4) and settings.ablation_seeds == (0, 3)
    assert {run.seed for run in settings.main_runs()} == {0, 1, 2, 3, 4}
    assert replace(settings, seeds=(0, 1, 2), ablation_seeds=(0,)) == profile("cpu")


def test_tuning_sampler_and_methods_are_chosen_by_the_environment():
    settings = chosen("gpu80", TUNING="full", METHODS="dph_js, grpo", SAMPLER="transformers")
    assert (settings.tuning.kind, settings.backend.program) == ("full", "transformers")
    assert settings.methods == ("grpo", "dph_js")
    assert {run.method for run in (*settings.main_runs(), *settings.ablation_runs())} == {"grpo", "dph_js"}


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("DPH_TUNING", "dora", "DPH_TUNING='dora'; known: full, lora, qlora"),
        ("DPH_SAMPLER", "sglang", "DPH_SAMPLER='sglang'; known: transformers, vllm"),
        ("DPH_METHODS", "grpo,ppo", "unknown method 'ppo'; known: grpo"),
        ("DPH_METHODS", "grpo,rkl", "DPH_METHODS lacks dph_js; the notebooks compare grpo and dph_js"),
    ],
)
def test_what_the_environment_may_not_name_is_one_clear_error(variable, value, says):
    assert variable in ENVIRONMENT
    with pytest.raises(ValueError, match=re.escape(says)):
        chosen_by_environment(profile("gpu80"), {variable: value})


def test_a_base_is_known_or_named_with_its_commit_or_a_folder(tmp_path):
    assert chosen("gpu80", BASE="Qwen/Qwen2.5-Math-7B").base == BASES["Qwen/Qwen2.5-Math-7B"]
    given = chosen("paper", BASE=f"seeklhy/OmniSQL-32B@{'0' * 40}").base
    assert given.revision == "0" * 40 and given.layers == 64
    folder = chosen("gpu24", BASE=str(tmp_path)).base
    assert (folder.name, folder.revision) == (str(tmp_path), None)


def test_the_shape_of_a_base_in_a_folder_is_read_for_the_estimate(tmp_path):
    sizes = SHAPE | {"num_hidden_layers": 3, "tie_word_embeddings": True, "max_position_embeddings": 4096}
    config = LlamaConfig(vocab_size=1000, **sizes)
    config.save_pretrained(tmp_path)
    base = chosen("gpu80", BASE=str(tmp_path)).base
    assert (base.layers, base.kv_heads, base.head_size, base.tied, base.revision) == (3, 2, 8, True, None)
    with torch.device("meta"):
        assert base.parameters == LlamaForCausalLM(config).num_parameters()


def test_prompts_are_no_longer_than_the_base_can_read(tmp_path):
    short = chosen("gpu80", BASE="Qwen/Qwen2.5-Math-7B")
    assert short.data.max_prompt_tokens + short.train.max_new_tokens == short.backend.max_tokens == 4096
    with pytest.raises(ValueError, match="7B reads at most 4096 tokens, and an answer of this profile"):
        chosen("paper", BASE="Qwen/Qwen2.5-Math-7B")
    LlamaConfig(max_position_embeddings=600).save_pretrained(tmp_path)
    assert chosen("gpu24", BASE=str(tmp_path)).data.max_prompt_tokens == 600 - 512


def test_a_job_opens_the_profile_that_its_parent_has(tmp_path, monkeypatch):
    (tmp_path / "opening.py").write_text(
        "from dphlib.settings.environment import profile_from_environment\n"
        "def opened(name): return repr(profile_from_environment(name))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DPH_TUNING", "qlora")
    monkeypatch.setenv("DPH_METHODS", "grpo,dph_js")
    (there,) = run_jobs([Job("open", import_module("opening").opened, {"name": "gpu80"})], workers=1, label="opening")
    assert there == repr(profile_from_environment("gpu80")) != repr(profile("gpu80"))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"num_attention_heads": "many"}'])
def test_a_folder_whose_configuration_is_damaged_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json is not a model's configuration .* get the model's files again"):
        chosen_by_environment(profile("gpu24"), {"DPH_BASE": str(tmp_path)})
