"""The stages on a small world: built once, reused, rebuilt when damaged, equal when made again."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from small import small_profile, untimed

from dphlib.cli import main as cli
from dphlib.experiment.pipeline import Pipeline
from dphlib.integrations import store
from dphlib.runtime.files import read_jsonl
from dphlib.settings.stages import TuningConfig
from dphlib.settings.variants import RunConfig
from dphlib.training import loop
from dphlib.types import EvalRecord, Verdict

pytestmark = pytest.mark.slow

RUN = RunConfig("dph_js_definition", "main", 0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    pipeline = Pipeline(root, small_profile())
    pipeline.train_one(RUN)
    pipeline.evaluate_one(RUN)
    return root


def test_everything_is_reused_the_second_time(built, capsys):
    again = Pipeline(built, small_profile())
    assert again.train_one(RUN).reused
    assert again.evaluate_one(RUN).reused
    assert "building" not in capsys.readouterr().err


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
    assert records["suite"].value_counts().to_dict() == {suite: 2 * problems[suite] for suite in samples}
    expected = {suite: problems[suite] * (count + 1) for suite, count in samples.items()}  # and the greedy one
    assert records.groupby("suite")["drawn"].sum().to_dict() == expected
    assert ((records["compared_tokens"] > 0) == (records["temperature"] > 0)).all()


def test_another_setting_builds_anew_only_what_depends_on_it(built):
    settings = small_profile()
    changed = Pipeline(built, replace(settings, train=replace(settings.train, lr=1e-5)))
    assert changed.base().reused
    assert changed.partition().reused
    assert not changed.train_one(RUN).reused


def test_the_partition_is_exported_for_other_trainers(built, tmp_path, monkeypatch, capsys):
    pipeline = Pipeline(built, small_profile())
    monkeypatch.setattr(cli, "_pipeline", lambda *_: pipeline)
    for arguments, threshold in (([], pipeline.settings.presample.threshold), (["--threshold", "2"], 2)):
        folder = tmp_path / str(len(arguments))
        assert cli.main(["partition", *arguments, "--export", str(folder)]) == 0
        held, parts = store.read(folder), pipeline.parts("train", threshold)
        assert (list(held.exploration), list(held.references)) == (parts.exploration, parts.references)
        assert held.threshold == threshold
    assert cli.main(["partition", "--export", str(folder)]) == 1
    assert "holds a store" in capsys.readouterr().err
    monkeypatch.setattr(pipeline, "parts", None)  # not asked: the folder is looked at before any work
    assert cli.main(["partition", "--export", str(folder / store.HEAD / "below")]) == 1
    assert "choose another folder" in capsys.readouterr().err


def test_partition_follows_the_threshold(built):
    pipeline = Pipeline(built, small_profile())
    groups = pipeline.groups()
    for threshold in (1, 8):
        parts = pipeline.parts("train", threshold)
        assert [p.id for p in parts.near_perfect] == [g.problem.id for g in groups if g.correct >= threshold]
        stored = json.loads((pipeline.partition("train", threshold).path / "partition.json").read_text())
        assert stored["threshold"] == threshold


@pytest.fixture
def judged(built, tmp_path, monkeypatch):
    """The built run with made-up verdicts, for its policy solves nothing.

    Of three prompts one is never solved, one always, one once; the extra draw is right on every other prompt.
    """
    root, groups = tmp_path / "run", Pipeline.groups
    shutil.copytree(built, root)
    for stage in (root / "stages").glob("partition-*"):
        shutil.rmtree(stage)

    def with_verdicts(self, suite="train", draw="k", config=None, seed=0):
        found = groups(self, suite, draw, config, seed)
        for i, group in enumerate(found):
            right = (i % 2 == 0) if draw == "extra" else (0, len(group.answers), 1)[i % 3]
            verdicts = [Verdict("correct" if sample < right else "wrong") for sample in range(len(group.answers))]
            found[i] = replace(group, verdicts=tuple(verdicts))
        return found

    monkeypatch.setattr(Pipeline, "groups", with_verdicts)
    return root


def given_to_the_trainer(root, monkeypatch, *runs) -> list[dict]:
    """What each run hands to the trainer: prompts, stored answers, method, training; nothing is trained."""
    seen = []

    def look(policy, tokenizer, prompts, references, verifier, method, config, seed, **_):
        ids = {"prompts": {p.id for p in prompts}, "stored": [r.problem.id for r in references]}
        seen.append({**ids, "method": method, "config": config})
        raise InterruptedError

    monkeypatch.setattr(loop, "train", look)
    for run in runs:
        with pytest.raises(InterruptedError):
            Pipeline(root, small_profile()).train_one(run)
    return seen


def test_each_cell_of_the_factorial_explores_and_rehearses_what_it_says(judged, monkeypatch):
    """All prompts or D_exp; no stored answer, those of D_pef, or those of every prompt that has one."""
    names = ("grpo", "grpo_dexp", "dph_f_explore_all", "dph_f", "dph_f_all", "dph_f_rehearse_all", "sft_rehearsal")
    runs = [RunConfig(name, "main", 0) for name in names]
    seen = dict(zip(names, given_to_the_trainer(judged, monkeypatch, *runs), strict=True))
    pipeline = Pipeline(judged, small_profile())
    parts, every = pipeline.parts(), {p.id for p in pipeline.suite("train")}
    near_perfect, exploration = ({p.id for p in found} for found in (parts.near_perfect, parts.exploration))
    explored = {name: one["prompts"] for name, one in seen.items()}
    stored = {name: set(one["stored"]) for name, one in seen.items()}
    correct = {g.problem.id for draw in ("k", "extra") for g in pipeline.groups(draw=draw) if g.correct}
    assert near_perfect and exploration and correct & exploration and near_perfect | exploration == every
    assert all(explored[name] == every for name in ("grpo", "dph_f_explore_all", "dph_f_all"))
    of_d_exp = ("grpo_dexp", "dph_f", "dph_f_rehearse_all", "sft_rehearsal")
    assert all(explored[name] == exploration for name in of_d_exp)
    assert stored["dph_f"] and stored["dph_f"] <= near_perfect
    assert stored["dph_f"] == stored["dph_f_explore_all"] == stored["sft_rehearsal"]
    assert stored["dph_f_all"] == stored["dph_f_rehearse_all"] == correct


def test_a_setting_of_pre_sampling_and_of_training_reaches_the_run(judged, monkeypatch):
    variants = ("k=4", "answers=4", "top_p=0.9", "iterations=7", "entropy=0.01", "clip_high=0.2", "threshold=8")
    runs = [RunConfig("dph_f", variant, 0) for variant in variants]
    got = dict(zip(variants, given_to_the_trainer(judged, monkeypatch, *runs), strict=True))
    main = given_to_the_trainer(judged, monkeypatch, RunConfig("dph_f", "main", 0))[0]
    train = small_profile().train
    assert got["top_p=0.9"]["config"] == replace(train, top_p=0.9) and main["config"] == train
    assert got["iterations=7"]["config"] == replace(train, iterations=7)
    assert got["entropy=0.01"]["method"].entropy_coef == 0.01 and got["clip_high=0.2"]["method"].clip_high == 0.2
    assert set(got["answers=4"]["stored"]) == set(main["stored"]) and len(got["answers=4"]["stored"]) > len(
        main["stored"]
    )
    pipeline, run = Pipeline(judged, small_profile()), RunConfig("dph_f", "k=4", 0)
    groups = pipeline.groups(config=run.presample_config(pipeline.settings.presample))
    assert {len(g.answers) for g in groups} == {4} and got["k=4"]["prompts"] == {
        g.problem.id for g in groups if not g.correct
    }


def test_a_longer_run_is_the_main_run_and_then_more(tmp_path):
    """Equal random streams: at the main run's length the longer one has its log, and way-points up to its own."""
    settings = small_profile()
    pipeline = Pipeline(tmp_path, settings)
    runs = [RunConfig("grpo", v, 0) for v in ("main", "iterations=3")]
    main, longer = (untimed(read_jsonl(pipeline.train_one(run).path / "train_log.jsonl")) for run in runs)
    assert len(longer) == 3 and longer[: len(main)] == main
    waypoints = pd.read_parquet(pipeline.train_one(runs[1]).path / "waypoints.parquet")
    assert sorted(waypoints["step"].unique()) == [1, 2, 3] and set(waypoints["variant"]) == {"iterations=3"}
    records = pd.read_parquet(pipeline.evaluate_one(runs[1]).path / "records.parquet")
    assert set(records["step"]) == {3} and set(records["suite"]) == set(settings.evaluation.samples)


def test_an_adapter_is_kept_with_its_card_and_evaluated_on_the_worlds_base(built):
    settings = small_profile(tuning=TuningConfig("lora", rank=2, alpha=4))
    settings = replace(settings, evaluation=replace(settings.evaluation, samples={"in_domain": 2}))
    pipeline = Pipeline(built, settings)
    trained = pipeline.train_one(RUN)
    assert pipeline.base().reused and not (trained.path / "model").exists()
    card = (trained.path / "adapter" / "README.md").read_text()
    for words in ("dph_js_definition, variant main", "CPU world of dphlib, suite train, 12 problems", "| Seeds | 0 |"):
        assert words in card
    records = pd.read_parquet(pipeline.evaluate_one(RUN).path / "records.parquet")
    assert len(records) == 6 * 2 and pipeline.train_one(RUN).reused


def test_an_interrupted_stage_goes_on_from_its_checkpoint_to_the_same_files(built, tmp_path, monkeypatch, capsys):
    run, roots = RunConfig("dph_js", "main", 0), [tmp_path / name for name in ("whole", "cut")]
    for root in roots:
        shutil.copytree(built, root)
    settings = small_profile()
    settings = replace(
        settings,
        train=replace(settings.train, iterations=5, checkpoint_every=2),
        evaluation=replace(settings.evaluation, steps=(1, 3)),
    )
    whole = Pipeline(roots[0], settings).train_one(run).path
    report = Pipeline._report

    def interrupted(self, share):
        if share == 4 / 5:
            raise KeyboardInterrupt
        report(self, share)

    monkeypatch.setattr(Pipeline, "_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Pipeline(roots[1], settings).train_one(run)
    monkeypatch.undo()
    left = next((roots[1] / "stages").glob(".work-*"))
    assert (left / "step-000002").is_dir()
    resumed = Pipeline(roots[1], settings).train_one(run).path
    assert "training goes on after iteration 2" in capsys.readouterr().err
    for name in ("model/model.safetensors", "waypoints.parquet"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name
    rows = [untimed(read_jsonl(path / "train_log.jsonl")) for path in (resumed, whole)]
    assert rows[0] == rows[1] and len(rows[0]) == 5
    assert not left.exists(), "checkpoints go when the stage is finished"


def test_unknown_and_empty_suites_are_named(built, tmp_path):
    with pytest.raises(ValueError, match="unknown suite 'bird'; known: train"):
        Pipeline(built, small_profile()).suite("bird")
    settings = small_profile()
    empty = replace(settings, world=replace(settings.world, problems={**settings.world.problems, "in_domain": 0}))
    with pytest.raises(ValueError, match="'in_domain' has no problem"):
        Pipeline(tmp_path, empty).suite("in_domain")


def test_a_run_with_another_share_of_hidden_problems_has_its_own_world_and_the_same_base(built):
    pipeline = Pipeline(built, small_profile())
    run = RunConfig("dph_f", "hidden=0.8", 0)
    mixed = pipeline.of(run)
    assert mixed is not pipeline and pipeline.of(RunConfig("dph_f", "main", 0)) is pipeline
    assert mixed.base().path == pipeline.base().path and mixed.world().path != pipeline.world().path
    records = pipeline.evaluate([run])
    trained = records[records["method"] == "dph_f"]
    assert set(trained["variant"]) == {"hidden=0.8"} and set(trained["suite"]) == {"in_domain"}
    ids = {problem.id for problem in mixed.suite("in_domain")}
    assert set(trained.loc[trained["suite"] == "in_domain", "problem_id"]) == ids
