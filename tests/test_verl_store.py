"""The partition in verl's form, and the plug-in where no verl is; the real verl is in tests/with_verl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import numpy
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from small import policy, save_policy, small_profile, sum_problems, tokenizer
from transformers import AutoTokenizer

from dphlib.analysis.claims import evaluate_claims
from dphlib.analysis.studies import token_budget
from dphlib.cli import main as cli
from dphlib.experiment.pipeline import Pipeline
from dphlib.figures.training import training_curves
from dphlib.integrations.verl import plugin as verl_plugin
from dphlib.integrations.verl import store as verl_store
from dphlib.integrations.verl.plugin import PartitionedDataset, schedule
from dphlib.integrations.verl.store import EXPLORE_LOOP, REPLAY_LOOP
from dphlib.integrations.verl.weights import bring, find_weights, log_rows
from dphlib.models.load import load_model, save_model
from dphlib.partition import Partition, Reference
from dphlib.runtime.files import InputError, RunError
from dphlib.scores import ArmScores
from dphlib.settings.variants import MAIN, RunConfig
from dphlib.types import Verdict

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def parts():
    problems = sum_problems(9)
    stored = [Reference(problem, (5, 6 + i, 2), (-0.5, -1.25, -1e-9)) for i, problem in enumerate(problems[6:])]
    return Partition(problems[6:], problems[:6], stored)


@pytest.fixture(scope="module")
def store(base_folder, parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return verl_store.write_store(parts, base_folder, tokenizer(), folder)


def settings(**changes):
    """What the data set reads of verl's `data`: attributes and `get`, as OmegaConf has them."""

    class Node(dict):
        __getattr__ = dict.__getitem__

    dph = Node(explore_prompts=2, rehearsal_rows=3, rollouts=4, epochs=2, seed=0)
    data = Node(train_batch_size=5, gen_batch_size=None, shuffle=False, max_prompt_length=64, max_response_length=8)
    return Node(data | {"dph": dph} | changes)


@pytest.fixture(autouse=True)
def whole_configuration_is_verls(monkeypatch):
    """These tests have verl's `data` alone; tests/with_verl have the whole."""
    monkeypatch.setattr(verl_plugin, "_check_whole", lambda data: None)


def loaded(folder):
    return AutoTokenizer.from_pretrained(folder)


def test_rows_hold_both_sets_with_the_tokens_that_the_policy_saw(store, parts):
    table, described = verl_store.read_store(store)
    rows = table.to_pylist()
    assert (described.exploration, described.references, table.num_rows) == (6, 3, 9)
    for row, problem in zip(rows[:6], parts.exploration, strict=True):
        assert row["agent_name"] == EXPLORE_LOOP and row["extra_info"]["answer_ids"] == []
        assert row["prompt"] == [{"role": "user", "content": problem.prompt}]
        assert row["reward_model"] == {"style": "rule", "ground_truth": problem.gold}
        assert row["extra_info"]["prompt_ids"] == tokenizer()(problem.prompt)["input_ids"]
    for row, reference in zip(rows[6:], parts.references, strict=True):
        info = row["extra_info"]
        assert row["agent_name"] == REPLAY_LOOP and info["problem_id"] == reference.problem.id
        assert (tuple(info["answer_ids"]), tuple(info["answer_logprobs"])) == (reference.token_ids, reference.logprobs)
    assert [row["extra_info"]["index"] for row in rows] == list(range(9))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p._replace(references=[]), "0 answers are stored"),
        (lambda p: p._replace(exploration=[]), "D_exp has 0 prompts"),
        (lambda p: p._replace(references=[replace(p.references[0], logprobs=(-1.0,))]), "3 tokens, 1 log-prob"),
        (lambda p: p._replace(references=[replace(p.references[0], token_ids=(), logprobs=())]), "0 tokens"),
    ],
)
def test_what_cannot_be_trained_on_is_not_written(change, says, parts, base_folder, tmp_path):
    with pytest.raises(ValueError, match=says):
        verl_store.write_store(change(parts), base_folder, tokenizer(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def exchange_two_words(folder: Path) -> None:
    """Gives a folder's tokenizer another vocabulary."""
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_another_tokenizer_or_base_is_refused_by_hash(store, base_folder, tmp_path):
    PartitionedDataset(str(store), loaded(base_folder), settings())
    other_base, other_words, neither = (tmp_path / name for name in ("other base", "other words", "neither"))
    save_policy(other_base, seed=1)
    with pytest.raises(RunError, match=r"another base model: sha256 .*pre-sample this one"):
        PartitionedDataset(str(store), loaded(other_base), settings())
    exchange_two_words(save_policy(other_words))
    with pytest.raises(RunError, match="another tokenizer: sha256"):
        PartitionedDataset(str(store), loaded(other_words), settings())
    neither.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors in"):
        verl_store.check_store(verl_store.read_store(store)[1], neither, tokenizer())
    with pytest.raises(RunError, match="no folder; download the base"):
        PartitionedDataset(str(store), SimpleNamespace(name_or_path="some/model"), settings())


def test_the_chat_template_does_not_make_it_another_tokenizer(store, base_folder, tmp_path):
    words = loaded(base_folder)
    words.chat_template = "{{ messages }}"
    save_model(policy(width=64), words, tmp_path)
    verl_store.check_store(verl_store.read_store(store)[1], tmp_path, loaded(tmp_path))


def test_a_file_of_another_kind_or_format_is_refused(store, base_folder, tmp_path):
    plain = tmp_path / "plain.parquet"
    parquet.write_table(pa.table({"prompt": ["a"]}), plain)
    with pytest.raises(RunError, match="format None, 1 is needed; write it by `dph verl`"):
        verl_store.read_store(plain)
    plain.write_text("not parquet")
    with pytest.raises(RunError, match="no parquet file"):
        verl_store.read_store(plain)
    with pytest.raises(RunError, match="no parquet file"):
        verl_store.read_store(tmp_path / "absent")
    table = parquet.read_table(store)
    parquet.write_table(table.slice(0, 8).replace_schema_metadata(table.schema.metadata), plain)
    with pytest.raises(RunError, match="8 rows, not 6 \\+ 3"):
        verl_store.read_store(plain)


def test_a_schedule_draws_each_set_without_replacement():
    rows = schedule(explore=6, stored=4, prompts=2, rehearsal_rows=3, epochs=2, seed=0)
    explored, stored = rows[:, 1::2].ravel(), rows[:, ::2].ravel()
    assert rows.shape == (6, 5)
    for epoch in (explored[:6], explored[6:]):
        assert sorted(epoch) == list(range(6))
    assert not numpy.array_equal(explored[:6], explored[6:]), "shuffled anew"
    assert sorted(stored[:16]) == sorted([6, 7, 8, 9] * 4) and set(stored) == {6, 7, 8, 9}
    again = schedule(explore=6, stored=4, prompts=2, rehearsal_rows=3, epochs=2, seed=0)
    assert numpy.array_equal(rows, again)
    assert not numpy.array_equal(rows, schedule(explore=6, stored=4, prompts=2, rehearsal_rows=3, epochs=2, seed=1))
    with pytest.raises(ValueError, match="make no step"):
        schedule(explore=3, stored=1, prompts=4, rehearsal_rows=1, epochs=1, seed=0)


def test_each_of_verls_agent_loop_workers_gets_its_share_of_the_rollouts():
    """verl gives each worker a stretch of the batch: with the prompts first, three of eight would do all rollouts."""
    rows = schedule(explore=256, stored=300, prompts=128, rehearsal_rows=256, epochs=1, seed=0)
    for step in rows:
        assert [int((stretch < 256).sum()) for stretch in numpy.split(step, 8)] == [16] * 8


def test_the_data_set_gives_batches_of_both_sets_and_says_how_often_each_is_rolled_out(store, base_folder):
    rows = PartitionedDataset([str(store)], loaded(base_folder), settings())
    assert len(rows) == 6 * 5  # two epochs of 6 prompts, 2 a step
    for start in range(0, len(rows), 5):
        batch = [rows[i] for i in range(start, start + 5)]
        assert [row["agent_name"] for row in batch] == [REPLAY_LOOP, EXPLORE_LOOP] * 2 + [REPLAY_LOOP]
        assert [row["__rollout_n__"] for row in batch] == [1, 4, 1, 4, 1]


def test_validation_prompts_come_in_their_order_and_are_rolled_out_as_verl_says(parts, base_folder, tmp_path):
    file = verl_store.write_prompts(parts.near_perfect, base_folder, tokenizer(), tmp_path)
    rows = PartitionedDataset(str(file), loaded(base_folder), settings())
    assert [rows[i]["extra_info"]["problem_id"] for i in range(len(rows))] == [p.id for p in parts.near_perfect]
    assert all("__rollout_n__" not in rows[i] and rows[i]["agent_name"] == EXPLORE_LOOP for i in range(3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_batch_size": 6}, "train_batch_size is 6"),
        ({"shuffle": True}, "shuffle True"),
        ({"gen_batch_size": 1}, "gen_batch_size 1"),
        ({"max_prompt_length": 3}, "prompt_ids in a row, data.max_prompt_length is 3"),
        ({"max_response_length": 2}, "3 answer_ids in a row, data.max_response_length is 2"),
    ],
)
def test_settings_that_do_not_fit_the_file_are_refused(change, says, store, base_folder):
    with pytest.raises(ValueError, match=says):
        PartitionedDataset(str(store), loaded(base_folder), settings(**change))


def test_the_command_writes_both_files_of_a_run(monkeypatch, tmp_path, capsys):
    def parts(pipeline, suite, **_):  # three training steps make no policy that is right
        problems = pipeline.suite(suite)
        return Partition(problems[:3], problems[3:], [Reference(p, (5, 2), (-0.5, -0.25)) for p in problems[:3]])

    monkeypatch.setattr("dphlib.cli.verl.profile_from_environment", lambda name: small_profile())
    monkeypatch.setattr(Pipeline, "parts", parts)
    monkeypatch.setattr(Pipeline, "references", lambda pipeline, suite, *_: parts(pipeline, suite).references)
    out = tmp_path / "out"
    assert cli.main(["verl", "--out", str(out), "--artifacts", str(tmp_path)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed[-3:] == [str(out / "train.parquet"), str(out / "validation.parquet"), str(out / "launch.sh")]
    described = verl_store.read_store(out / "train.parquet")[1]
    assert (described.exploration, described.references) == (9, 3)
    assert verl_store.read_store(out / "validation.parquet")[1].exploration == 6
    (base,) = (tmp_path / "cpu" / "stages").glob("base-*")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = [str(out / "launch.sh"), "trainer.total_training_steps=3"]
    settings = subprocess.run(
        command, env=os.environ | {"PYTHON": str(python)}, capture_output=True, text=True, check=True
    )
    given = settings.stdout.splitlines()
    assert f"data.train_files={out}/train.parquet" in given and f"actor_rollout_ref.model.path={base}" in given
    assert "actor_rollout_ref.actor.policy_loss.loss_mode=dph_js" in given and given[-1] == command[1]
    verl_store.check_store(described, base, loaded(base))


def test_a_command_for_verl_says_which_way_and_a_method_that_verl_does_not_train_is_refused(tmp_path, capsys):
    assert cli.main(["verl", "--artifacts", str(tmp_path)]) == 1
    assert "give either --out FOLDER" in capsys.readouterr().err
    assert cli.main(["verl", "--artifacts", str(tmp_path), "--out", str(tmp_path / "out"), "--method", "grpo"]) == 1
    assert "method 'grpo' in verl: one of alpha_0.2, " in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_rewards_are_the_verifiers_and_an_answer_that_cannot_be_judged_is_no_zero(monkeypatch, tmp_path):
    info = {"problem_id": "p", "kind": "math", "db_id": ""}
    verl_plugin._verifier.cache_clear()
    right = verl_plugin.compute_score("sums", "so \\boxed{46}", "46", info, databases=str(tmp_path), num_turns=1)
    wrong = verl_plugin.compute_score("sums", "so \\boxed{47}", "46", info, databases=str(tmp_path))
    assert (right, wrong) == (1.0, 0.0)
    verifier = verl_plugin._verifier(str(tmp_path), 1)
    monkeypatch.setattr(verifier, "verify_many", lambda pairs: [Verdict("infra_error", "the worker died")])
    with pytest.raises(RunError, match="could not be judged \\(the worker died\\)"):
        verl_plugin.compute_score("sums", "so \\boxed{46}", "46", info, databases=str(tmp_path))
    verifier.close()
    verl_plugin._verifier.cache_clear()


def test_as_many_answers_are_judged_at_a_time_as_were_asked_for(monkeypatch, tmp_path):
    together, asked = Barrier(2), []

    class Judge:
        def __init__(self, databases, workers):
            asked.append(workers)

        def verify_many(self, pairs):
            together.wait(timeout=60)  # passed only by two at once
            return [Verdict("correct")]

    monkeypatch.setattr("dphlib.verify.Verifier", Judge)
    verl_plugin._verifier.cache_clear()
    info = {"problem_id": "p", "kind": "math", "db_id": ""}
    judged = {"ground_truth": "46", "extra_info": info, "databases": str(tmp_path), "workers": 2}
    verl_plugin._verifier(str(tmp_path), 2)
    with ThreadPoolExecutor(2) as threads:  # as verl's reward manager calls it
        scores = threads.map(lambda text: verl_plugin.compute_score("sums", text, **judged), ("a", "b"))
        assert list(scores) == [1.0, 1.0] and asked == [2]
    verl_plugin._verifier.cache_clear()


def test_a_missing_verl_and_another_version_are_one_line_with_the_way_out():
    way_out = r'pip install "dphlib\[verl\]" "verl\[vllm,fsdp\]==0.9.1"'
    for version, says in ((None, "is not installed"), ("0.9.0", "0.9.0 is installed"), ("0.10.0", "0.10.0 is")):
        with pytest.raises(RunError, match=f"verl {says}.*{way_out}") as refused:
            verl_plugin.check_version(version)
        assert "\n" not in str(refused.value)
    verl_plugin.check_version("0.9.1")


@pytest.mark.skipif("verl" in sys.modules, reason="verl is loaded in this process")
def test_without_verl_the_module_can_be_imported_and_registers_nothing(monkeypatch):
    monkeypatch.setattr(verl_plugin, "package_version", lambda name: None)
    with pytest.raises(RunError, match="verl is not installed"):
        verl_plugin.register()


# --- Back from verl ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_verl(tmp_path_factory):
    """A pipeline, and a folder as verl.model_merger writes it: weights of its base after some training."""
    root = tmp_path_factory.mktemp("runs")
    pipeline = Pipeline(root / "cpu", small_profile())
    model, words = load_model(pipeline.base_folder())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder = root / "checkpoints/global_step_3/actor/huggingface"
    save_model(model.bfloat16(), words, folder)
    return pipeline, root, folder


METRICS = {
    "dph/explore_rows": 24,
    "dph/rehearsal_rows": 8,
    "dph/eta": 0.2,
    "critic/score/mean": 0.3,
    "actor/rehearsal_loss": 0.05,
    "actor/grad_norm": 1.5,
    "actor/pg_clipfrac": 0.01,
    "perf/total_num_tokens": 900,
}


def test_verls_weights_become_a_run_that_is_evaluated_drawn_and_judged(of_verl, monkeypatch, tmp_path, capsys):
    pipeline, root, folder = of_verl
    monkeypatch.setattr("dphlib.cli.verl.profile_from_environment", lambda name: pipeline.settings)
    metrics = tmp_path / "dph.jsonl"
    steps = [{"step": 0, "data": {"val-core/acc": 0.1}}, *({"step": n, "data": METRICS} for n in (1, 2))]
    metrics.write_text("".join(json.dumps(step) + "\n" for step in steps))
    command = ["verl", "--artifacts", str(root), "--import", str(folder.parents[1])]
    assert cli.main([*command, "--method", "dph_f", "--metrics", str(metrics)]) == 0
    assert cli.main([*command, "--method", "dph_js"]) == 0  # without metrics
    runs = [RunConfig(method, MAIN, 0) for method in ("dph_f", "dph_js")]
    stage, bare = (pipeline.train_one(run).path for run in runs)
    assert str(bare) in capsys.readouterr().out
    assert json.loads((stage / "imported.json").read_text())["trained_by"] == "verl"

    row = json.loads((stage / "train_log.jsonl").read_text().splitlines()[1])
    assert row["iteration"] == 2 and row["reward"] == pytest.approx(0.3 * 32 / 24)
    assert (row["loss_near_perfect"], row["grad_norm"], row["policy_tokens"]) == (pytest.approx(0.25), 1.5, 900)
    assert row["kl_to_base"] is None and row["reference_tokens"] == 0

    records = pd.read_parquet(pipeline.evaluate_one(runs[0]).path / "records.parquet")
    assert set(records["method"]) == {"dph_f"} and records["compared_tokens"].any()
    base = pd.read_parquet(pipeline.evaluate_one().path / "records.parquet")
    assert not records["entropy"].equals(base["entropy"]), "the imported weights answer, not the base's"
    for chosen in (runs, runs[1:]):  # with a log of verl's, and with none at all
        logs = pipeline.train_logs(chosen)
        training_curves(logs)
        token_budget(logs, prompts=4)
        evaluate_claims(ArmScores.final(pipeline.evaluate(runs[:1])), logs, "cpu")

    assert cli.main([*command, "--method", "dph_f"]) == 1
    assert "dph_f-main-seed0 is trained already" in capsys.readouterr().err


def other_weights(folder, change):
    """A copy of a model folder with its tensors changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_of_another_kind_are_refused_in_one_line(of_verl, tmp_path):
    pipeline, _, folder = of_verl
    base, settings = pipeline.base_folder(), pipeline.settings

    def refused(weights, says, profile=settings, kind=RunError):
        with pytest.raises(kind, match=says) as error:
            bring(tmp_path / "stage", weights, base, profile, None)
        assert "\n" not in str(error.value)

    refused(base, "holds the weights of the base itself")
    for number, (change, says) in enumerate(
        [
            (lambda tensors: tensors.pop("model.norm.weight"), "only .* has the tensor model.norm.weight"),
            (lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}), r"model.norm.weight is \(3,\), not"),
        ]
    ):
        copied = shutil.copytree(folder, tmp_path / f"copy {number}")
        other_weights(copied, change)
        refused(copied, says)
    words = shutil.copytree(folder, tmp_path / "words")
    exchange_two_words(words)
    refused(words, "has another tokenizer")
    adapters = replace(settings, tuning=replace(settings.tuning, kind="lora"))
    refused(folder, r"trains adapters \(lora\), verl's weights are whole", adapters)

    parts = tmp_path / "global_step_9/actor"
    parts.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no weights in"):
        find_weights(parts)
    merge = r"python -m verl.model_merger merge --backend fsdp --local_dir .*/global_step_10/actor "
    last = tmp_path / "global_step_10/actor"
    last.mkdir(parents=True)
    for folder, rank in ((parts, 0), (last, 0), (last, 1)):
        (folder / f"model_world_size_3_rank_{rank}.pt").touch()
    with pytest.raises(RunError, match=f"2 of the 3 parts of a checkpoint of verl, without rank 2: .*, then {merge}"):
        find_weights(tmp_path)
    (last / "model_world_size_3_rank_2.pt").touch()
    with pytest.raises(RunError, match=rf"in 3 part\(s\), not merged: {merge}"):
        find_weights(tmp_path)
    metrics = tmp_path / "metrics"
    for content, says in (("{}", "line 1: no step and data"), ("", "has no step of training")):
        metrics.write_text(content)
        with pytest.raises(InputError, match=says):
            list(log_rows(metrics))
