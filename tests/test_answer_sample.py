"""The answers that a run keeps for a reader: which problems, of whom, counted and judged."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from small import small_profile, sum_problems

from dphlib.analysis.labels import SUITES
from dphlib.experiment.answer_sample import COLUMNS, DRAWS, answer_sample, chosen
from dphlib.experiment.pipeline import Pipeline
from dphlib.settings.stages import EvalConfig
from dphlib.settings.variants import RunConfig
from dphlib.types import Problem
from dphlib.verify import Verifier
from dphlib.world.templates import style_of

RUNS = [RunConfig("grpo", "main", 1), RunConfig("grpo", "main", 0), RunConfig("dapo", "clip_high=0.3", 0)]


def test_problems_are_chosen_by_name_and_family_alone():
    problems = [
        Problem(f"p{i:03d}", "in_domain", "sql", "", "", None, {"family": f"family {i % 8}"}) for i in range(64)
    ]
    got = chosen(problems, 16)
    assert Counter(problem.meta["family"] for problem in got) == dict.fromkeys((f"family {i}" for i in range(8)), 2)
    assert got == chosen(problems[::-1], 16) and len({problem.id for problem in got}) == 16
    assert len(chosen(sum_problems(5), 16)) == 5


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Pipeline:
    evaluation = EvalConfig(samples=dict.fromkeys(SUITES, 2), steps=(), step_suite="in_domain", max_new_tokens=12)
    return Pipeline(tmp_path_factory.mktemp("run"), small_profile(evaluation=evaluation))


@pytest.mark.slow
def test_the_base_and_the_first_seeds_main_runs_answer_and_every_answer_is_judged(pipeline):
    rows = answer_sample(pipeline, RUNS)
    assert tuple(rows.columns) == COLUMNS and set(rows["method"]) == {"base", "grpo"} and set(rows["seed"]) == {0}
    problems = {problem.id: problem for suite in SUITES for problem in pipeline.suite(suite)}
    assert set(rows["problem_id"]) == set(problems), "all of suites so small"
    assert set(rows.groupby(["problem_id", "method"])["times"].sum()) == {DRAWS}
    assert not rows.duplicated(["problem_id", "method", "answer"]).any()
    asked = [(problems[row.problem_id], row.answer) for row in rows.itertuples()]
    with Verifier(pipeline.databases()) as verifier:
        assert rows["verdict"].tolist() == [verdict.outcome for verdict in verifier.verify_many(asked)]
    assert rows["style"].tolist() == [style_of(answer) for _, answer in asked]
    assert rows["prompt"].tolist() == [problem.prompt for problem, _ in asked]
    assert_frame_equal(answer_sample(pipeline, RUNS[1:]), rows)
    (stage,) = (pipeline.run.root / "stages").glob("answers-*")
    assert_frame_equal(pd.read_parquet(stage / "answers.parquet"), rows)
