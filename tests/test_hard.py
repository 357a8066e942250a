"""The hard problems: which they are, that they are answered anew and apart, and what is drawn of them."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from small import small_profile
from synthetic import make_hard_records, make_presample, make_records, make_train_logs, with_draws

from dphlib import stats
from dphlib.analysis.labels import SUITES
from dphlib.experiment import evaluate, hard
from dphlib.experiment.pipeline import Pipeline
from dphlib.experiment.results import FIGURES, TABLES, Results, draw, figure, table
from dphlib.intervals import interval
from dphlib.runtime.files import RunError
from dphlib.scores import ArmScores
from dphlib.settings.profiles import profile
from dphlib.settings.stages import EvalConfig
from dphlib.settings.studies import HARD, STUDIES, chosen, planned_runs, study_runs
from dphlib.settings.variants import RunConfig

pytestmark = pytest.mark.slow

RUN = RunConfig("grpo", "main", 0)


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return make_hard_records()


def test_hard_is_what_the_base_solves_in_an_eighth_of_its_answers_or_less():
    made = make_records(("base", "grpo"), (0,), ablations=False)
    in_domain = (made["suite"] == "in_domain") & (made["temperature"] > 0)
    ids = sorted(set(made.loc[in_domain, "problem_id"]))[:4]
    for problem, correct in zip(ids, (0, 4, 5, 32), strict=True):  # of 32 answers
        made.loc[in_domain & (made["problem_id"] == problem), "correct"] = correct
    got = hard.hard_problems(made)
    assert set(ids[:2]) <= set(got["in_domain"]) and not set(ids[2:]) & set(got["in_domain"])
    base = stats.sampled(made[made["method"] == "base"]).set_index("problem_id")
    assert all(8 * base.loc[one, "correct"] <= base.loc[one, "n"] for problems in got.values() for one in problems)
    with pytest.raises(ValueError, match="none is hard"):
        hard.hard_problems(made.assign(correct=made["n"]))


def test_it_is_asked_for_like_a_study_and_changes_no_plain_run():
    settings = profile("cpu")
    assert chosen("all") == (*STUDIES, HARD) and chosen("hard") == (HARD,)
    assert planned_runs(settings, ["hard"]) == planned_runs(settings) and study_runs(settings, ["hard"]) == []
    assert HARD not in chosen(settings.studies)
    runs = hard.hard_runs(settings)
    assert set(runs) <= set(settings.main_runs()) and {run.method for run in runs} == set(hard.HARD_METHODS)
    assert hard.draws(settings) == 256


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The base and one run of a small world, evaluated plainly, then on the hard problems."""
    evaluation = EvalConfig(samples=dict.fromkeys(SUITES, 4), steps=(), step_suite="in_domain", max_new_tokens=12)
    pipeline = Pipeline(tmp_path_factory.mktemp("run"), small_profile(evaluation=evaluation))
    seeds, build = [], evaluate.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "build", lambda *a, **o: (seeds.append(o["draw_seed"]), build(*a, **o)))
        plain = [pipeline.evaluate_one(), pipeline.evaluate_one(RUN)]
        return pipeline, plain, [hard.answered(pipeline, run) for run in (0, RUN)], seeds


def test_all_models_answer_the_hard_problems_anew(built):
    pipeline, plain, stages, seeds = built
    base = pd.read_parquet(plain[0].path / "records.parquet")
    problems = hard.hard_problems(base)
    for stage, method in zip(stages, ("base", "grpo"), strict=True):
        rows = pd.read_parquet(stage.path / "records.parquet")
        assert {s: sorted(set(part["problem_id"])) for s, part in rows.groupby("suite")} == problems
        assert set(rows["drawn"]) == {hard.draws(pipeline.settings)} == {32} and rows["problem_id"].is_unique
        assert set(rows["method"]) == {method} and set(rows["temperature"]) == {1.0}
    assert len(set(seeds)) == len(seeds) == 4, "the answers are others than those that chose the problems"
    shorter = replace(pipeline.settings.evaluation, max_new_tokens=8)
    for settings, run in ((pipeline.settings, RUN), (replace(pipeline.settings, evaluation=shorter), 0)):
        assert hard.answered(Pipeline(pipeline.run.root, settings), run).reused == (settings is pipeline.settings)


def test_a_plain_run_is_what_it_was(built):
    """The stages of a plain run are found again after the hard problems were answered, under the same keys."""
    pipeline, plain, *_ = built
    later = Pipeline(pipeline.run.root, pipeline.settings)
    found = [later.evaluate_one(), later.evaluate_one(RUN)]
    assert all(stage.reused for stage in found)
    assert [stage.key for stage in found] == [stage.key for stage in plain]
    assert [stage.content_hash for stage in found] == [stage.content_hash for stage in plain]


def test_collected_they_are_the_stages_of_base_and_main_runs(built, monkeypatch):
    pipeline, _, stages, _ = built
    monkeypatch.setattr(hard, "HARD_METHODS", ("grpo",))
    got = hard.hard_records(pipeline)
    assert_frame_equal(got, pd.concat([pd.read_parquet(s.path / "records.parquet") for s in stages], ignore_index=True))


def test_they_are_not_compared_with_plain_answers(records):
    plain = make_records(("base", "grpo"), (0, 1), ablations=False)
    of_hard = ArmScores.final(records).of("base", "in_domain", "pass", 8)
    same = plain[plain["problem_id"].isin(set(records["problem_id"]))]
    for rows, differ in ((plain, "their problems differ"), (same, r"drawn 32\.0 and 64\.0|drawn 64\.0 and 32\.0")):
        with pytest.raises(ValueError, match=differ):
            of_plain = ArmScores.final(rows).of("grpo", "in_domain", "pass", 8)
            interval([of_plain, of_hard], lambda a, b: a - b)


def test_the_table_has_pass_at_k_of_all_answers_and_counts_problems(records):
    got = hard.hard_table(records)
    assert list(dict.fromkeys(got["suite"])) == ["in domain", "out of domain"]
    assert list(got["method"][:5]) == ["base", "GRPO", "RKL", "DPH-F", "DPH-JS"] and set(got["seeds"]) == {1, 2}
    curve = stats.pass_curve(records, [4, 16, 64]).groupby(["suite", "method", "k"])["pass_at_k"].mean()
    row = got[(got["suite"] == "in domain") & (got["method"] == "DPH-F")].iloc[0]
    for k in (4, 16, 64):
        assert row[f"Pass@{k}"] == pytest.approx(100 * curve["in_domain", "dph_f", k])
        assert row[f"Pass@{k}_low"] <= row[f"Pass@{k}"] <= row[f"Pass@{k}_high"]
    assert row["problems"] == 12 and 0 <= row["preserved"] + row["lost"] <= 12
    base = got[(got["suite"] == "in domain") & (got["method"] == "base")].iloc[0]
    assert base["lost"] == pytest.approx(base["gained"])  # against its own other half: chance alone


def test_they_are_recorded_apart_drawn_where_there_and_leave_nothing_where_not(records, tmp_path, monkeypatch):
    plain = make_records(("base", "grpo"), (0,), ablations=False)
    presample = make_presample(12).assign(suite="train", family="highest")
    results = Results(profile("cpu"), plain, make_train_logs(("base", "grpo"), (0,)), presample)
    with_hard = replace(results, hard=records)
    for one in (results, with_hard):
        one.write(tmp_path / str(one is with_hard))
    assert (tmp_path / "True/records.parquet").read_bytes() == (tmp_path / "False/records.parquet").read_bytes()
    again = Results.load(tmp_path / "True", results.settings)
    order = ["method", "variant", "seed", "step", "suite", "temperature", "problem_id"]
    rows = records.sort_values(order, ignore_index=True)
    assert_frame_equal(again.hard.astype(records.dtypes), rows, check_exact=True)
    assert Results.load(tmp_path / "False", results.settings).hard is None

    for name, known in (("FIGURES", FIGURES), ("TABLES", TABLES)):
        of_hard = {key: product for key, product in known.items() if product.hard}
        monkeypatch.setattr(f"dphlib.experiment.results.{name}", of_hard)
    monkeypatch.setattr("dphlib.experiment.results.decide_claims", lambda results, root: [])
    for one in (results, replace(with_hard, hard=with_draws(records, 4))):
        draw(one, tmp_path / f"drawn{one.hard is not None}")
    drawn = {p.name for p in (tmp_path / "drawnTrue").rglob("*.*")} - {
        p.name for p in (tmp_path / "drawnFalse").rglob("*.*")
    }
    assert drawn == {"fig14_hard.png", "fig14_hard.svg", "table_hard.csv"}
    with pytest.raises(RunError, match="--studies hard"):
        figure("fig14_hard", results, tmp_path)
    with pytest.raises(RunError, match="--studies hard"):
        table("table_hard", results, tmp_path)
    results.write(tmp_path / "True")
    assert not (tmp_path / "True/hard.parquet").exists()
