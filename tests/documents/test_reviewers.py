"""The page of questions: every study is asked, and what the records hold or lack is what is said."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd
import pytest
from synthetic import (
    PROBLEMS,
    make_hard_records,
    make_records,
    make_rows,
    make_study_records,
    make_temperature_records,
    make_train_logs,
)

from dphlib.analysis.claims import CLAIMS, evaluate_claims
from dphlib.analysis.studies import change_of
from dphlib.analysis.waypoints import waypoint_table
from dphlib.analysis.weights import candidates, chosen_weight
from dphlib.experiment.results import Results
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.studies import STUDIES, Arm, comparisons
from dphlib.types import VALIDATION
from tools import evidence, reviewers

TOLD = "threshold"
STEP = 10


@pytest.fixture(scope="module")
def settings() -> Profile:
    """The profile's, in a world of as many problems as the made-up records have."""
    made = profile("cpu", "3", "2")
    problems = {**made.world.problems, "in_domain": PROBLEMS["in_domain"]}
    return replace(made, world=replace(made.world, problems=problems))


@pytest.fixture(scope="module")
def results(settings) -> Results:
    """Main runs, one study, hard problems, and nothing else."""
    main = make_records(("base", "grpo", "dapo", "rkl", "dph_f", "dph_js"), (0, 1, 2), ablations=False, steps=False)
    study = make_study_records(settings, [TOLD])
    records = pd.concat([main, study[study["variant"] != "main"]], ignore_index=True)
    return Results(
        settings,
        records,
        make_train_logs(),
        pd.DataFrame(),
        beyond={"hard": make_hard_records(), "temperature": make_temperature_records()},
    )


def test_every_study_and_no_unknown_one_is_asked():
    named = {part.partition(":")[0] for question in reviewers.QUESTIONS for part in question.studies}
    assert named == set(STUDIES)
    assert {name for question in reviewers.QUESTIONS for name in question.claims} <= {claim.id for claim in CLAIMS}


def test_arms_that_a_question_names_are_compared_in_the_study(settings):
    for question in reviewers.QUESTIONS:
        for part in question.studies:
            name, _, only = part.partition(":")
            compared = {one.arm.method for one in comparisons(settings, name)}
            assert set(only.split(",")) <= compared or not only, part


def test_each_question_has_what_the_run_holds_or_says_that_it_is_not_answered(results, settings):
    decided = evaluate_claims(results.scores, results.train_logs, "cpu")
    text = reviewers.made(results, decided)["questions"]
    sections = re.split(r"(?m)^### ", text)[1:]
    assert len(sections) == len(reviewers.QUESTIONS)
    for question, section in zip(reviewers.QUESTIONS, sections, strict=True):
        assert section.startswith(question.text) and re.search(r"(?m)^- \S", section), question.text
        for part in question.studies:
            absent = (
                f"- Not answered: `{part}` is not in the recorded run; `--studies {part.partition(':')[0]}` makes it."
            )
            there = any(
                f"{change_of(one, settings)} changes" in section
                for one in comparisons(settings, part.partition(":")[0])
            )
            told = f"comparisons of `{part.partition(':')[0]}`" in section
            assert (absent in section) != (there or told), part
    (threshold,) = (section for section in sections if "`threshold`" in section)
    assert "Of 4 comparisons of `threshold`" in threshold
    assert "Pass@64 of 12 hard problems" in text and "Claim: " in text
    assert "DPH-F from T = 0.5 to 1.3: Pass@1 " in text and "too few to decide); exploratory, uncorrected." in text
    plain = reviewers.made(replace(results, beyond={}), decided)["questions"]
    assert "`--studies hard` draws them." in plain and "`--studies temperature` draws them." in plain


def with_waypoints(settings: Profile, right: dict[str, int]) -> pd.DataFrame:
    """DPH-F's candidates with two runs each, one way-point on validation: `right` of 8 answers of a problem correct."""
    parts = []
    for variant, count in right.items():
        for seed in (0, 1):
            flags = [[i < count for i in range(8)]] * 3
            parts.append(make_rows("dph_f", seed, flags, variant=variant, suite=VALIDATION, step=STEP))
    return waypoint_table(pd.concat(parts, ignore_index=True))


def test_validation_chooses_the_weight_and_every_candidate_is_needed(settings):
    main, low, high = (arm.variant for arm in candidates(settings, "dph_f"))
    assert {main, low, high} <= {one.arm.variant for one in comparisons(settings, "eta")} | {"main"}
    assert chosen_weight(with_waypoints(settings, {main: 1, low: 3, high: 2}), settings, "dph_f") == Arm("dph_f", low)
    assert chosen_weight(with_waypoints(settings, {main: 2, low: 2, high: 2}), settings, "dph_f") == Arm("dph_f")
    assert chosen_weight(with_waypoints(settings, {main: 1, low: 3}), settings, "dph_f") is None


def test_dph_is_set_against_grpo_where_each_stopped_and_not_at_the_end(settings):
    right = {"grpo": {5: 2, 10: 2, 15: 2}, "dph_f": {5: 1, 10: 4, 15: 4, 20: 4}}  # of 8 on validation
    parts = [make_rows("base", 0, [[True, False] * 4] * 3)]
    for method, ways in right.items():
        for seed, (step, count) in ((seed, way) for seed in (0, 1) for way in ways.items()):
            of = {"seed": seed, "step": step}
            parts.append(make_rows(method, correct=[[i < count for i in range(8)]] * 3, suite=VALIDATION, **of))
            solved = [
                [i < 2 * (step == max(ways)) + count for i in range(8)]
            ] * 3  # more at the end than where it stopped
            parts.append(make_rows(method, correct=solved, **of))
    records = pd.concat(parts, ignore_index=True)
    on_the_way, records = (records[(records["suite"] == VALIDATION) == there] for there in (True, False))
    results = Results(settings, records, pd.DataFrame(), pd.DataFrame(), waypoints=waypoint_table(on_the_way))
    said = evidence.stopped_sentences(results)
    assert "DPH-F minus GRPO Pass@1 +25.0 points" in said[0]  # 4/8 at step 10 less 2/8 at step 5
    assert said[-1] == "Mean iteration of the stopping point: GRPO 5, DPH-F 10."
