"""A store stands alone, is whole or refused, and knows the base and the tokenizer that it was made with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from small import WORLD, base_config, policy, save_policy, small_profile, sum_problems, tokenizer

from dphlib.cli import main as cli
from dphlib.experiment import policies
from dphlib.experiment.pipeline import Pipeline
from dphlib.integrations import store
from dphlib.models.load import Placement, build_tokenizer
from dphlib.partition import Partition, Reference
from dphlib.runtime.files import RunError, sha256_file
from dphlib.settings.stages import BackendConfig
from dphlib.training.scoring import answer_logprobs


@pytest.fixture
def parts():
    problems = sum_problems(5)
    return Partition(problems[:2], problems[2:], [Reference(problems[0], (5, 2), (-0.5, -0.25))])


def test_what_is_exported_is_read_again(tmp_path, parts, base_folder):
    held = store.export(tmp_path / "new", parts, 6, base_folder)
    assert held == store.read(tmp_path / "new")
    assert (list(held.exploration), list(held.references), held.threshold) == (parts.exploration, parts.references, 6)
    assert held.prompt_ids == (tuple(tokenizer()(parts.references[0].problem.prompt)["input_ids"]),)
    assert held.exploration_ids == tuple(tuple(tokenizer()(p.prompt)["input_ids"]) for p in parts.exploration)
    held.refuse_other(base_folder, tokenizer())  # passes: they are the same


def test_what_the_command_exports_are_the_log_probs_of_the_trainer(tmp_path, parts, base_folder, monkeypatch):
    """Where another program drew, the store has the base's own, to 1e-5, so that a divergence starts at 0."""
    drawn = [tuple(ids) for ids in ([5, 2], [7, 9, 2], [8])]
    stored = [Reference(p, ids, (-9.0,) * len(ids)) for p, ids in zip(parts.exploration, drawn, strict=True)]
    settings = replace(small_profile(), base=base_config(base_folder), backend=BackendConfig("vllm"))
    monkeypatch.setattr(policies, "placement_of", lambda settings: Placement("cpu", "float32", "sdpa"))
    monkeypatch.setattr(Pipeline, "_read_parts", lambda *_: parts._replace(references=stored))
    monkeypatch.setattr(Pipeline, "partition", lambda pipeline, *_, **__: pipeline.base())
    monkeypatch.setattr(cli, "_pipeline", lambda *_: Pipeline(tmp_path / "run", settings))
    assert cli.main(["partition", "--export", str(tmp_path / "store")]) == 0
    held = store.read(tmp_path / "store").references
    expected = answer_logprobs(policy(width=64), tokenizer(), [(r.problem.prompt, r.token_ids) for r in held])
    assert [list(r.logprobs) for r in held] == [pytest.approx(row, abs=1e-5) for row in expected]


@pytest.mark.parametrize("name", [store.REFERENCES, store.EXPLORATION])
def test_a_store_without_the_prompts_token_ids_is_refused(tmp_path, parts, base_folder, name):
    store.export(tmp_path, parts, 6, base_folder)
    row = json.loads((tmp_path / name).read_text().splitlines()[0])
    del row["prompt_ids"]
    (tmp_path / name).write_text(json.dumps(row) + "\n")
    head = json.loads((tmp_path / store.HEAD).read_text())
    head["files"][name] = sha256_file(tmp_path / name)
    (tmp_path / store.HEAD).write_text(json.dumps(head))
    with pytest.raises(RunError, match=f"{name} holds no token ids of prompts; export it again"):
        store.read(tmp_path)


def test_a_store_is_not_overwritten_and_damage_is_named(tmp_path, parts, base_folder):
    store.export(tmp_path, parts, 6, base_folder)
    with pytest.raises(RunError, match="holds a store; remove it or choose another folder"):
        store.export(tmp_path, parts, 6, base_folder)
    with open(tmp_path / store.REFERENCES, "a") as file:
        file.write("\n")
    with pytest.raises(RunError, match=r"references.jsonl is not what was exported"):
        store.read(tmp_path)
    (tmp_path / store.HEAD).write_text('{"threshold": 6}')  # what the stage's own folder has
    with pytest.raises(FileNotFoundError, match="dph partition --export"):
        store.read(tmp_path)
    (tmp_path / store.HEAD).write_text('{"thresh')
    with pytest.raises(RunError, match=r"partition.json is damaged \(.*\); copy or export the store again"):
        store.read(tmp_path)


def test_another_tokenizer_or_base_is_refused(tmp_path, parts, base_folder):
    held = store.export(tmp_path / "store", parts, 6, base_folder)
    other = save_policy(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="made with another base model"):
        held.refuse_other(other, tokenizer())
    fewer = build_tokenizer(WORLD, corpus_pairs=20)
    with pytest.raises(ValueError, match="made with another tokenizer"):
        held.refuse_other(base_folder, fewer)


def test_a_tokenizers_hash_is_of_what_it_does():
    ours = store.tokenizer_sha256(tokenizer())
    changed = build_tokenizer(WORLD, corpus_pairs=3000)
    assert store.tokenizer_sha256(changed) == ours
    changed.padding_side = "right"
    changed("a text that is long enough", truncation=True, max_length=3, padding="max_length")
    assert store.tokenizer_sha256(changed) == ours, "padding and truncation are the caller's"
    changed.backend_tokenizer.post_processor = None  # no token in front any more
    assert store.tokenizer_sha256(changed) != ours
