"""The stages on a small world: built once, reused, rebuilt when damaged, equal when made again."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
from small import small_profile

from dphlib.config import METHOD_CONFIGS, PROFILES, RunConfig, profile
from dphlib.stages import Pipeline
from dphlib.types import EvalRecord

RUN = RunConfig("dph_js_definition", "main", 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    pipeline = Pipeline(root, small_profile())
    pipeline.train_one(RUN)
    pipeline.evaluate_one(RUN)
    return root


def test_everything_is_reused_the_second_time(built):
    again = Pipeline(built, small_profile())
    assert again.train_one(RUN).reused
    assert again.evaluate_one(RUN).reused
    assert again.run.built == []


def test_a_run_from_nothing_gives_the_same_records(built, tmp_path):
    fresh = Pipeline(tmp_path, small_profile())
    records, earlier = (
        pd.read_parquet(p.evaluate_one(RUN).path / "records.parquet") for p in (fresh, Pipeline(built, small_profile()))
    )
    pd.testing.assert_frame_equal(records, earlier)
    weights = [p.train_one(RUN).path / "model" / "model.safetensors" for p in (fresh, Pipeline(built, small_profile()))]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_records_have_every_column_and_every_answer(built):
    pipeline = Pipeline(built, small_profile())
    records = pd.read_parquet(pipeline.evaluate_one(RUN).path / "records.parquet")
    assert list(records.columns) == list(EvalRecord.__slots__)
    samples, problems = pipeline.settings.evaluation.samples, pipeline.settings.world.problems
    expected = {suite: problems[suite] * (count + 1) for suite, count in samples.items()}  # and the greedy one
    assert records["suite"].value_counts().to_dict() == expected
    assert records["base_logprob"].notna().sum() == 4 * sum(problems[suite] for suite in samples)


def test_another_setting_builds_anew_only_what_depends_on_it(built):
    settings = small_profile()
    changed = Pipeline(built, replace(settings, train=replace(settings.train, lr=1e-5)))
    assert changed.base().reused
    assert changed.partition().reused
    assert not changed.train_one(RUN).reused


def test_a_damaged_file_is_noticed_and_the_stage_built_again(tmp_path, capsys):
    first = Pipeline(tmp_path, small_profile())
    path = first.world().path / "train.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert not Pipeline(tmp_path, small_profile()).world().reused
    assert path.read_bytes() == whole
    assert "train.json" in capsys.readouterr().err


def test_partition_follows_the_threshold(built):
    pipeline = Pipeline(built, small_profile())
    groups = pipeline.groups()
    for threshold in (1, 8):
        parts = pipeline.parts("train", threshold)
        assert [p.id for p in parts.near_perfect] == [g.problem.id for g in groups if g.correct >= threshold]
        stored = json.loads((pipeline.partition("train", threshold).path / "partition.json").read_text())
        assert stored["threshold"] == threshold


def test_unknown_and_empty_suites_are_named(built, tmp_path):
    with pytest.raises(ValueError, match="unknown suite 'bird'; known: train"):
        Pipeline(built, small_profile()).suite("bird")
    settings = small_profile()
    empty = replace(settings, world=replace(settings.world, problems={**settings.world.problems, "in_domain": 0}))
    with pytest.raises(ValueError, match="'in_domain' has no problem"):
        Pipeline(tmp_path, empty).suite("in_domain")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ppo", "main", 0), "unknown method 'ppo'; known: grpo"),
        (("grpo", "lr=1", 0), "unknown variant 'lr=1'"),
    ],
)
def test_unknown_methods_and_variants_are_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        RunConfig(*arguments)


def test_profiles():
    with pytest.raises(ValueError, match="unknown profile 'gpu9'; known: smoke, cpu"):
        profile("gpu9")
    for name in PROFILES:
        settings = profile(name)
        assert {run.method for run in settings.main_runs()} == set(METHOD_CONFIGS)
        assert len({run.name for run in settings.main_runs() + settings.ablation_runs()}) == len(
            settings.main_runs() + settings.ablation_runs()
        )
    assert len(profile("cpu").seeds) >= 3
    assert profile("cpu").evaluation.samples["in_domain"] >= 64
