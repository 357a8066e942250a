"""What the GPU profiles run, on a CPU: data sets, a base that is not trained here, adapters, every stage."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pandas as pd
import pytest
import torch
from data_files import official
from small import RewardsFirstToken, base_config, logged_names, sum_problems

from dphlib.experiment import pipeline as pipeline_module
from dphlib.experiment import policies
from dphlib.experiment import problems as problem_sets
from dphlib.experiment.pipeline import Pipeline
from dphlib.losses import NEAR_PERFECT
from dphlib.models import tuning
from dphlib.models.adapters import describe_base, load_adapter
from dphlib.models.load import Placement, load_model
from dphlib.partition import Reference
from dphlib.runtime.jobs import DEVICES, WORKERS, Job, run_jobs
from dphlib.sampling import vllm as vllm_sampler
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.profiles import profile
from dphlib.settings.stages import BackendConfig, DataConfig, TuningConfig
from dphlib.settings.variants import RunConfig
from dphlib.training import loop
from dphlib.training.rows import Row
from dphlib.training.scoring import answer_logprobs
from dphlib.verify import Verifier

pytestmark = pytest.mark.slow

SUITES = {
    "train": ("bird_train", "gsm8k_train"),
    "in_domain": ("bird_dev",),
    "cross_domain": ("spider_dev",),
    "out_of_domain": ("aime24", "amc23"),
}
RUN = RunConfig("rkl", "main", 0)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(policies, "placement_of", lambda settings: Placement("cpu", "float32", "sdpa"))


def small(base_folder, kind="lora"):
    """`gpu80` with a tiny base, tiny suites and Transformers as its sampler."""
    settings = profile("gpu80")
    return replace(
        settings,
        base=base_config(base_folder),
        tuning=TuningConfig(kind, rank=2, alpha=4, gradient_checkpointing=True, paged_8bit=False),
        backend=BackendConfig("transformers", batch_rows=64),
        data=DataConfig(SUITES, problems={"train": 2}, max_prompt_tokens=4000),
        train=replace(settings.train, iterations=2, prompts=2, rollouts=4, rehearsal_rows=2, max_new_tokens=6),
        evaluation=replace(
            settings.evaluation,
            samples=dict.fromkeys(list(SUITES)[1:], 2),
            steps=(1,),
            step_samples=2,
            max_new_tokens=6,
        ),
    )


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    folder = official(tmp_path / "data")
    monkeypatch.setenv(problem_sets.FOLDER, str(folder))
    return folder


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_every_stage_runs_on_data_sets_with_a_base_that_is_not_trained_here(
    tmp_path, base_folder, data_folder, kind, monkeypatch
):
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)  # random weights solve nothing
    made, asked = loop.optimizer, []
    monkeypatch.setattr(loop, "optimizer", lambda *a, **options: asked.append(options) or made(*a, **options))
    settings = small(base_folder, kind)
    pipeline = Pipeline(tmp_path / "run", settings)
    trained = pipeline.train_one(RUN).path
    rows = [json.loads(line) for line in (trained / "train_log.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and list(rows[0]) == logged_names()
    assert asked == [{"paged_8bit": False}]
    assert all(row["tis_mean"] == pytest.approx(1, abs=1e-3) and row["reference_tokens"] > 0 for row in rows)
    assert all(row["unjudged"] == 0 and row["grad_norm"] > 0 for row in rows)
    records = pd.read_parquet(pipeline.evaluate_one(RUN).path / "records.parquet")
    assert set(records["suite"]) == set(SUITES) - {"train"}
    assert set(records[records["suite"] == "out_of_domain"]["subset"]) == {"aime24", "amc23"}
    assert set(pd.read_parquet(trained / "waypoints.parquet")["step"]) == {1}
    assert (trained / "adapter").exists() == (kind != "full") and (trained / "model").exists() == (kind == "full")
    if kind == "lora":
        card = (trained / "adapter" / "README.md").read_text()
        assert "rkl, variant main" in card and "licence mit" in card and "2 problems of bird_train (" in card
        loaded, _ = policies.load_trained(settings, base_folder, trained)
        described = describe_base(base_folder, "mit")
        by_hand = load_adapter(load_model(base_folder)[0], trained / "adapter", described)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), by_hand.parameters(), strict=True))


def test_suites_carry_their_sets_and_databases_are_linked(tmp_path, base_folder, data_folder, capsys):
    settings = replace(small(base_folder), data=DataConfig(SUITES, problems={"train": 2}, max_prompt_tokens=40))
    pipeline = Pipeline(tmp_path / "run", settings)
    pipeline.world()
    assert "in_domain: 1 of 1 prompts are longer than 40 tokens and left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="'in_domain' has no problem"):
        pipeline.suite("in_domain")
    pipeline = Pipeline(tmp_path / "run", small(base_folder))
    (problem,) = pipeline.suite("in_domain")
    assert (problem.id, problem.db_id, problem.meta["family"]) == ("bird_dev/7", "bird_dev.club", "bird_dev")
    link = pipeline.databases() / "bird_dev.club" / "bird_dev.club.sqlite"
    assert link.resolve() == data_folder / "bird/dev_20240627/dev_databases/club/club.sqlite"
    assert len(pipeline.suite("train")) == 2 and {p.kind for p in pipeline.suite("cross_domain")} == {"sql"}
    assert Pipeline(tmp_path / "run", small(base_folder)).world().reused


def test_other_files_are_another_world_and_another_sampler_gives_other_answers(
    tmp_path, base_folder, data_folder, monkeypatch
):
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)
    settings = small(base_folder)
    first = Pipeline(tmp_path / "run", settings)
    keys = first.world().key, first.presample("in_domain").key
    fewer = replace(settings, backend=replace(settings.backend, batch_rows=32, memory_fraction=0.1))
    assert Pipeline(tmp_path / "run", fewer).presample("in_domain").key != keys[1]
    same = replace(settings, backend=replace(settings.backend, memory_fraction=0.1))
    assert Pipeline(tmp_path / "run", same).presample("in_domain").key == keys[1]
    database = data_folder / "bird/dev_20240627/dev_databases/club/club.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE more (x)")
    connection.close()
    changed = Pipeline(tmp_path / "run", settings).world().key
    path = data_folder / "amc23/test.jsonl"
    path.write_text(path.read_text().replace("27.0", "28.0"))
    assert len({keys[0], changed, Pipeline(tmp_path / "run", settings).world().key}) == 3


@pytest.mark.parametrize(("workers", "seen"), [(None, ["3", "5"]), (3, ["3", "5", "3"])])
def test_jobs_run_on_gpus_of_their_own_and_share_none_unless_more_workers_are_asked_for(workers, seen):
    jobs = [Job(f"run-{i}", os.getenv, {"key": DEVICES}) for i in range(len(seen))]
    assert run_jobs(jobs, workers=workers, label="gpus", devices=["3", "5"]) == seen


@pytest.mark.parametrize(("gpus", "workers"), [(["3", "5"], None), ([], 1)])
def test_a_gpu_profile_trains_one_run_per_gpu(tmp_path, base_folder, data_folder, monkeypatch, gpus, workers):
    def asked(jobs, **options):
        raise KeyboardInterrupt((options["workers"], options["devices"]))

    monkeypatch.setattr(pipeline_module, "gpus", lambda: gpus)
    monkeypatch.setattr(pipeline_module, "run_jobs", asked)
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)
    with pytest.raises(KeyboardInterrupt) as stopped:
        Pipeline(tmp_path / "run", small(base_folder)).train([RUN])
    assert stopped.value.args == ((workers, gpus),)


def test_verifiers_take_the_cores_that_a_gpus_process_leaves_idle(base_folder, monkeypatch):
    monkeypatch.setattr(policies, "cores", lambda: 16)
    assert policies.judges(small(base_folder)) == 16 and policies.judges(profile("cpu")) == 1
    monkeypatch.setenv(WORKERS, "8")
    assert policies.judges(small(base_folder)) == 2
    with Verifier("nowhere", 3) as verifier:
        assert {verifier._sql._pool._workers, verifier._math._pool._workers} == {3}


def test_a_tokenizer_without_a_padding_token_pads_by_its_end(base_folder, tmp_path):
    """Llama 3.1's has none; answers and log-probs are the same whichever token pads."""
    folder = tmp_path / "llama"
    shutil.copytree(base_folder, folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    assert settings.pop("pad_token")
    path.write_text(json.dumps(settings))
    problems, drawn = sum_problems(5), []
    for where in (base_folder, folder):
        policy, words = load_model(where)
        answers = TransformersSampler(policy, words).sample(problems, SamplingConfig(2, 1.0, 1.0, 6), 0)
        pairs = [(p.prompt, a.token_ids) for p, group in zip(problems, answers, strict=True) for a in group]
        drawn.append((answers, answer_logprobs(policy, words, pairs)))
    assert words.pad_token_id == words.eos_token_id
    assert drawn[0][0] == drawn[1][0]
    for ours, theirs in zip(drawn[0][1], drawn[1][1], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_a_set_that_is_not_there_is_named(tmp_path, base_folder, monkeypatch):
    monkeypatch.setenv(problem_sets.FOLDER, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"bird_train: .* has no bird/train/train.json.*Get the files from"):
        Pipeline(tmp_path / "run", small(base_folder)).world()


@pytest.mark.parametrize(("kind", "same"), [("lora", True), ("qlora", False)])
def test_stored_answers_get_the_log_probs_of_the_policy_that_is_trained(base_folder, kind, same):
    """A 4-bit base is another policy than the unquantised one that sampled: the divergence must start at 0."""
    settings = small(base_folder, kind)
    initial, words = policies.load_initial(settings, base_folder)
    problems = sum_problems(3)
    answers = TransformersSampler(initial, words).sample(problems, SamplingConfig(1, 1.0, 1.0, 6), 0)
    stored = [Reference(p, a[0].token_ids, a[0].logprobs) for p, a in zip(problems, answers, strict=True)]
    policy, _ = policies.load_policy(settings, base_folder, 0)
    again = policies.rescored(settings, policy, words, stored)
    pairs = [
        (a, b) for one, two in zip(again, stored, strict=True) for a, b in zip(one.logprobs, two.logprobs, strict=True)
    ]
    assert (max(abs(a - b) for a, b in pairs) < 1e-4) == same
    theirs = answer_logprobs(policy, words, [(r.problem.prompt, r.token_ids) for r in again])
    assert [list(r.logprobs) for r in again] == [pytest.approx(row, abs=1e-5) for row in theirs]


class FakeEngine(TransformersSampler):
    """In place of vLLM: draws as Transformers does from the base in the folder, and notes what it was asked for."""

    made: ClassVar[list[FakeEngine]] = []

    def __init__(self, folder, words, **options):
        super().__init__(load_model(folder)[0], words, 64)
        self.options, self.given = options, []
        self.made.append(self)

    def sync(self, policy):
        self.given.append(policy)

    def close(self):
        self.given.append("closed")


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.setattr(vllm_sampler, "VllmSampler", FakeEngine)
    monkeypatch.setattr(FakeEngine, "made", [])
    return FakeEngine.made


def test_an_engine_is_given_weights_only_where_they_are_not_the_bases(
    tmp_path, base_folder, data_folder, engines, monkeypatch
):
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)
    settings = replace(small(base_folder, "full"), backend=BackendConfig("vllm", max_tokens=128))
    loaded = []
    load_initial = policies.load_initial
    monkeypatch.setattr(policies, "load_initial", lambda *a: loaded.append(a) or load_initial(*a))
    pipeline = Pipeline(tmp_path / "run", settings)
    pipeline.presample()
    pipeline.evaluate_one()
    assert [engine.given for engine in engines] == [["closed"], ["closed"]]
    assert not loaded, "the engine has the base already, and the base's log-probs are the policy's own"
    pipeline.evaluate_one(RUN)
    by_training, by_evaluation = (engine.given for engine in engines[2:])
    assert len(by_training) == settings.train.iterations + 2 and by_training[-1] == "closed"  # and at the way-point
    assert len(by_evaluation) == 2


def test_an_engine_with_nothing_beside_it_takes_nine_tenths_of_what_is_free(base_folder, engines, monkeypatch):
    settings = replace(small(base_folder), backend=BackendConfig("vllm", memory_fraction=0.3, sleep=True))
    beside, words = policies.load_policy(settings, base_folder, 0)
    monkeypatch.setattr(policies, "placement_of", lambda settings: Placement("cuda", "bfloat16", "sdpa"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 2**30, 80 * 2**30))
    for policy in (None, beside):
        with policies.sampling(settings, base_folder, policy, words):
            pass
    alone, together = (engine.options for engine in engines)
    assert alone["memory_fraction"] == pytest.approx(0.9 * 60 / 80) and not alone["sleep"]
    assert (together["memory_fraction"], together["sleep"], together["lora_rank"]) == (0.3, True, 2)


def test_stored_answers_are_scored_once_and_only_for_a_divergence(tmp_path, base_folder, data_folder, monkeypatch):
    monkeypatch.setattr(Verifier, "groups", RewardsFirstToken.groups)
    settings, counted = small(base_folder), []
    rescored = policies.rescored
    monkeypatch.setattr(policies, "rescored", lambda *a: counted.append(len(a[3])) or rescored(*a))
    pipeline = Pipeline(tmp_path / "run", replace(settings, presample=replace(settings.presample, threshold=1)))
    pipeline.train_one(RunConfig("grpo", "main", 0))
    stored = len(pipeline.parts().references)
    assert not counted and stored > 0
    for name in ("dph_f", "dph_js"):
        pipeline.train_one(RunConfig(name, "main", 0))
    again = pipeline.references("train", pipeline.partition(), settings.method_config(RunConfig("dph_f", "main", 0)))
    assert counted == [stored] and [r.token_ids for r in again] == [r.token_ids for r in pipeline.parts().references]
    quantised = replace(pipeline.settings, tuning=replace(settings.tuning, kind="qlora"))
    Pipeline(tmp_path / "run", quantised).train_one(RunConfig("dph_f", "main", 0))
    assert counted == [stored, stored], "4-bit weights are another base"


def test_the_lesson_on_all_weights_of_a_large_base_trains_an_adapter(base_folder, monkeypatch, repository):
    """Notebook 04 learns a batch in its kernel, where an optimizer of 8 billion weights would take 135 GiB."""
    settings = small(base_folder, "full")
    cells = json.loads((repository / "notebooks" / "04_train.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if cell["id"] == "lesson-steps")
    policy, words = policies.load_policy(settings, base_folder, 0)
    trained, whole = [], policy.num_parameters()
    made = tuning.optimizer
    monkeypatch.setattr(
        tuning,
        "optimizer",
        lambda policy, *a: trained.append(policy.num_parameters(only_trainable=True)) or made(policy, *a),
    )
    prompt = words("question : 1 answer :")["input_ids"]
    batch = [Row((prompt, (5, 6)), NEAR_PERFECT, 0.0, (), (-1.0, -2.0), [1.0, 1.0])]
    space = {"settings": settings, "policies": policies, "policy": policy, "tokenizer": words, "batch": batch}
    space |= {"pipeline": SimpleNamespace(base_folder=lambda index: base_folder), "lesson_steps": 1, "seed": 0}
    exec(source, space | {"lesson": settings.method_config(RunConfig("dph_f", "main", 0))})
    assert len(trained) == 2 and 0 < max(trained) < whole / 5
