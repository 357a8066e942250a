"""What a GPU run may lack or be given in the wrong form: one clear line each, with the way out.

Further lines are tested where their modules are: no GPU in `test_plan`, checkpoints in `test_checkpoints`, adapters,
the hub's refusals and chat templates in `test_tuning`, vLLM's versions in `test_sampler`, memory in `test_trainer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import pandas as pd
import pytest
from data_files import official
from small import RewardsFirstToken, policy, tokenizer
from test_gpu_path import small
from test_trainer import OUT_OF_MEMORY

from dphlib.analysis import tables as analysis_tables
from dphlib.cli import main as cli
from dphlib.experiment import plan, policies, results
from dphlib.experiment import problems as problem_sets
from dphlib.experiment.cost import measure_cost
from dphlib.experiment.pipeline import Pipeline
from dphlib.models.load import Placement, load_model, save_model
from dphlib.runtime.files import UserError
from dphlib.sampling import vllm as vllm_sampler
from dphlib.settings.environment import profile_from_environment as profile
from dphlib.settings.stages import BackendConfig, DataConfig
from dphlib.settings.variants import RunConfig
from dphlib.verify import Verifier

COMMANDS = ["presample", "partition", "run", "train --method dph_js", "evaluate --method grpo", "ablate --study eta"]


@pytest.fixture
def gpu_of(monkeypatch):
    """Makes this machine one with a GPU of some memory in GiB, and with some version of vLLM."""

    def make(gib: float, vllm: str | None = vllm_sampler.VERSION) -> None:
        monkeypatch.setattr(policies, "choose_placement", lambda: Placement("cuda", "bfloat16", "sdpa"))
        monkeypatch.setattr(plan, "gpu_total_gib", lambda: gib)
        monkeypatch.setattr(vllm_sampler.require_vllm, "__defaults__", (lambda name: vllm if name == "vllm" else None,))

    return make


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(policies, "placement_of", lambda settings: Placement("cpu", "float32", "sdpa"))


def said(capsys, arguments, folder) -> str:
    """The one line that a command ends with, before it has made anything."""
    assert cli.main([*arguments, "--artifacts", str(folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert not list(folder.rglob("*.json"))
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_too_little_gpu_memory_is_one_line_before_anything_is_made(command, tmp_path, capsys, gpu_of):
    gpu_of(15.0)
    line = said(capsys, [*command.split(), "--profile", "gpu80"], tmp_path)
    trains = command.startswith(("train", "evaluate", "ablate"))
    action, gib = ("training", 33) if trains else ("pre-sampling", 16)
    assert line.startswith(f"dph: profile gpu80: {action} needs at least {gib} GiB of GPU memory for meta-llama/Llama")
    assert "(lora), and this GPU has 15; take a smaller profile (gpu24), a smaller base by DPH_BASE, or" in line


@pytest.mark.parametrize(
    ("name", "action", "needs"),
    [
        ("gpu24", "pre-sampling", 3),
        ("gpu24", "evaluation", 6),
        ("gpu24", "training", 4),
        ("gpu80", "pre-sampling", 16),
        ("gpu80", "evaluation", 31),
        ("gpu80", "training", 33),
        ("paper", "pre-sampling", 17),
        ("paper", "evaluation", 47),
        ("paper", "training", 165),
    ],
)
def test_memory_is_asked_for_by_action(name, action, needs, repository):
    settings = profile(name)
    assert plan.least_gib(settings, action) == pytest.approx(needs, abs=0.5)
    assert plan.least_gib(settings, action) < plan.CARDS[plan.CARD_OF[name]].memory_gib or needs == 165
    plan.require_memory(settings, action, needs + 1)
    way = "by verl (docs/verl.md)" if needs == 165 else "take a smaller profile"
    with one_line(rf"profile {name}: {action} needs at least {needs} GiB .* this GPU has {needs - 1}; .*") as error:
        plan.require_memory(settings, action, needs - 1)
    assert way in str(error.value)
    page = (repository / "docs" / "gpu.md").read_text(encoding="utf-8")
    order = ("pre-sampling", "training", "evaluation")
    assert f"| `{name}` | {' | '.join(f'{plan.least_gib(settings, one):.0f}' for one in order)} |" in page


def test_what_no_batch_makes_smaller_follows_the_settings(monkeypatch):
    paged = replace(profile("paper"), tuning=replace(profile("paper").tuning, paged_8bit=True))
    plan.require_memory(paged, "training", 139.8)
    by_transformers = replace(profile("gpu80"), backend=replace(profile("gpu80").backend, program="transformers"))
    assert plan.least_gib(by_transformers, "training") < plan.least_gib(profile("gpu80"), "training") - 15
    monkeypatch.setenv("DPH_BASE", "/models/of/a/shape/that/is/not/known")
    plan.require_memory(profile("gpu80"), "training", 1.0)
    plan.require_memory(profile("cpu"), "training", 0.0)


def test_a_stage_that_is_there_asks_for_no_memory(tmp_path, base_folder, monkeypatch, on_cpu):
    """A small base that counts as known: on a GPU on which it samples and does not train, then on one of no memory."""
    monkeypatch.setenv(problem_sets.FOLDER, str(official(tmp_path / "data")))
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)
    settings, run_config = small(base_folder), RunConfig("grpo", "main", 0)
    monkeypatch.setitem(plan.BASES, settings.base.name, settings.base)
    gib = {action: plan.least_gib(settings, action) for action in ("pre-sampling", "training")}
    monkeypatch.setattr(plan, "gpu_total_gib", lambda: sum(gib.values()) / 2)
    assert gib["pre-sampling"] < gib["training"]
    pipeline = Pipeline(tmp_path / "run", settings)
    pipeline.require_memory({"pre-sampling": Pipeline.presample})
    pipeline.partition()
    with one_line("training needs at least"):
        pipeline.require_memory({"training": partial(Pipeline.train_one, run=run_config)})
    for trains in (partial(pipeline.train_one, run_config), partial(measure_cost, pipeline)):
        with one_line("training needs at least"):
            trains()
    monkeypatch.setattr(plan, "gpu_total_gib", lambda: 0.0)
    pipeline.require_memory({"pre-sampling": Pipeline.presample})
    pipeline.parts()
    with one_line("pre-sampling needs at least"):
        pipeline.require_memory({"pre-sampling": partial(Pipeline.presample, suite="cross_domain")})
    with one_line("evaluation needs at least"):
        pipeline.evaluate_one()
    assert pipeline.lacks(partial(Pipeline.presample, suite="cross_domain")) and not pipeline.lacks(Pipeline.partition)


def test_runs_that_were_trained_elsewhere_are_collected_where_training_does_not_fit(
    tmp_path, base_folder, monkeypatch, on_cpu, capsys, repository
):
    """Without a cost, and with a sentence in its place, as notebook 07 shows them."""
    monkeypatch.setenv(problem_sets.FOLDER, str(official(tmp_path / "data")))
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)
    settings, run_config = small(base_folder), RunConfig("grpo", "main", 0)
    eight = dict.fromkeys(settings.evaluation.samples, 8)  # for Pass@8
    settings = replace(settings, evaluation=replace(settings.evaluation, samples=eight, step_samples=8))
    pipeline = Pipeline(tmp_path / "run", settings)
    for one in (run_config, 0):  # here, for a job's process would open the profile by its name
        pipeline.evaluations(one)
    monkeypatch.setitem(plan.BASES, settings.base.name, settings.base)
    gib = {action: plan.least_gib(settings, action) for action in ("evaluation", "training")}
    monkeypatch.setattr(plan, "gpu_total_gib", lambda: sum(gib.values()) / 2)
    collected = results.collect(pipeline, [run_config], with_cost=True)
    assert set(collected.records["method"]) == {"base", "grpo"} and collected.cost is None
    assert "the cost of an iteration is not measured: profile gpu80: training needs" in capsys.readouterr().out
    assert results.left_out(collected)["fig6_cost"] == "the cost of an iteration was not measured"

    cells = json.loads((repository / "notebooks" / "07_ablations.ipynb").read_text(encoding="utf-8"))["cells"]
    source = {cell["id"]: "".join(cell["source"]) for cell in cells}
    nothing = pd.DataFrame(columns=["column", "status", "suite", "ablation", "Pass@8", "measure"], dtype=object)
    names = ("study", "arm", "against", "difference", "method", "variant", "ours")
    nothing = nothing.assign(**{name: pd.Series(dtype=str) for name in names})
    tables = dict.fromkeys(("table5", "effects", "sizes", "controls", "swept"), nothing)
    space = {"results": collected, "out": tmp_path, "Markdown": str, "pd": pd, "tables": analysis_tables, **tables}
    for cell in ("fig6", "cost-table", "numbers"):
        exec(source[cell], space)
    assert results.NO_COST in capsys.readouterr().out and space["metrics"] == {}


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, "dph: sampler vllm: vLLM is not installed; on a GPU: pip install"),
        ("0.9.1", "dph: sampler vllm: vLLM 0.9.1 is installed, 0.32.0 is needed; pip install vllm==0.32.0"),
    ],
)
def test_vllm_is_looked_for_before_anything_is_made(version, says, tmp_path, capsys, gpu_of, monkeypatch):
    gpu_of(80.0, version)
    line = said(capsys, ["train", "--method", "dph_js", "--profile", "gpu80"], tmp_path)
    assert line.startswith(says) and line.endswith("or choose the sampler transformers")
    monkeypatch.setenv("DPH_SAMPLER", "transformers")
    monkeypatch.setattr(plan, "gpu_total_gib", lambda: 1.0)
    assert "GiB of GPU memory" in said(capsys, ["train", "--method", "dph_js", "--profile", "gpu80"], tmp_path)


@contextmanager
def one_line(says: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    with pytest.raises(UserError, match=says) as error:
        yield error
    assert "\n" not in str(error.value)


def test_a_model_cut_in_half_is_named(tmp_path):
    save_model(policy(), tokenizer(), tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with one_line(r"model\.safetensors is damaged .*; copy or download it again"):
        load_model(tmp_path)


def test_a_base_without_a_chat_template_is_named_when_the_problems_are_made(tmp_path, base_folder, monkeypatch):
    monkeypatch.setenv(problem_sets.FOLDER, str(official(tmp_path / "data")))
    settings = small(base_folder)
    settings = replace(settings, base=replace(settings.base, chat=True), data=DataConfig({"train": ("amc23",)}))
    with one_line("has no chat template; take the instruct variant"):
        Pipeline(tmp_path / "run", settings).world()


@pytest.mark.parametrize(
    ("kind", "way"), [("lora", "tuning.kind lora -> qlora"), ("qlora", "a smaller base by DPH_BASE")]
)
def test_a_model_that_does_not_fit_when_it_is_loaded(base_folder, monkeypatch, on_cpu, kind, way):
    settings = small(base_folder, kind)
    monkeypatch.setattr("dphlib.models.load.load_model", Mock(side_effect=OUT_OF_MEMORY))
    for load, *arguments in (
        (policies.load_policy, settings, base_folder, 0),
        (policies.load_initial, settings, base_folder),
        (policies.load_trained, settings, base_folder, None),
    ):
        with one_line("out of memory in loading the model .*Change one of these") as error:
            load(*arguments)
        assert way in str(error.value) and "nvidia-smi" in str(error.value)


def test_answers_that_do_not_fit_outside_of_training(base_folder):
    with one_line(r"out of memory in drawing answers .*backend\.batch_rows to half"):
        with policies.sampling(small(base_folder), base_folder, policy(), tokenizer()):
            raise OUT_OF_MEMORY
    with pytest.raises(ValueError, match=r"^another$"):
        with policies.sampling(small(base_folder), base_folder, policy(), tokenizer()):
            raise ValueError("another")


@pytest.mark.parametrize(
    "words",
    [
        "Free memory on device cuda:0 (3.0/24.0 GiB) on startup is less than desired GPU memory utilization (0.35, 8.4 "
        "GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`.",
    ],
)
def test_a_vllm_that_does_not_fit(base_folder, monkeypatch, on_cpu, words):
    monkeypatch.setattr(vllm_sampler, "VllmSampler", Mock(side_effect=ValueError(words)))
    settings = replace(small(base_folder), backend=BackendConfig("vllm", memory_fraction=0.35))
    with one_line(r"out of memory in starting vLLM .*backend\.memory_fraction 0\.35 -> .*DPH_SAMPLER=transformers"):
        with policies.sampling(settings, base_folder, None, tokenizer()):
            raise AssertionError("no engine, no sampler")
