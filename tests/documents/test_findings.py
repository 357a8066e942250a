"""The page of findings: what is recorded is what is said, whichever way it falls, and the page stays short."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic import (
    PROBLEMS,
    make_records,
    make_study_records,
    make_train_logs,
    make_waypoints,
)

from dphlib.analysis.claims import CLAIMS, SYMBOLS, ClaimResult, evaluate_claims
from dphlib.analysis.labels import claim_name
from dphlib.analysis.waypoints import at_stopping
from dphlib.experiment.results import CLAIMS_FIGURE, FIGURES, Results
from dphlib.scores import ArmScores
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.studies import STUDIES
from tools import findings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def settings() -> Profile:
    """The profile's, in a world of as many problems as the made-up records have."""
    made = profile("cpu", "3", "2")
    problems = {**made.world.problems, "in_domain": PROBLEMS["in_domain"]}
    return replace(made, world=replace(made.world, problems=problems))


@pytest.fixture(scope="module")
def whole(settings) -> Results:
    """Every arm of every study, from three bases, with way-points; main runs have rows at each of them."""
    rest = make_records(("base", "dapo"), bases=(1, 2), ablations=False, steps=False)
    records = pd.concat([make_study_records(settings, tuple(STUDIES)), rest], ignore_index=True)
    main = records[(records["variant"] == "main") & (records["method"] != "base")]
    ways = make_waypoints(records)
    # On the way a run solves less: every second problem it does not answer right.
    place = main.groupby(["method", "variant", "seed", "suite", "temperature"]).cumcount()
    less = main["correct"].where(place % 2 > 0, 0)
    early = [main.assign(step=step, correct=less) for step in (5, 15, 30)]
    records = pd.concat([records, *early], ignore_index=True)
    return Results(settings, records, make_train_logs(), pd.DataFrame(), waypoints=ways)


@pytest.fixture(scope="module")
def ended(whole) -> list[ClaimResult]:
    return evaluate_claims(whole.scores, whole.train_logs, "cpu")


@pytest.fixture(scope="module")
def stopped(whole) -> list[ClaimResult]:
    main = whole.records[whole.records["variant"] == "main"]
    return evaluate_claims(ArmScores(at_stopping(main, whole.waypoints)), whole.train_logs, "cpu")


def made(results: Results, ended: Sequence[ClaimResult], stopped: Sequence[ClaimResult]) -> dict[str, str]:
    return findings.made(results, ended, stopped, {*FIGURES, CLAIMS_FIGURE})


def words(text: str) -> int:
    """As they are read: without marker lines and the lines of tables."""
    return len(re.sub(r"(?m)^<!--.*$|^\| ---.*$|\|", " ", text).split())


# --- What is asked ------------------------------------------------------------------------------------


def test_each_claim_is_in_one_section():
    named = [claim for question in findings.QUESTIONS.values() for claim in question.claims]
    assert sorted(named) == sorted(claim.id for claim in CLAIMS)
    shown = {figure for question in findings.QUESTIONS.values() for figure in question.figures}
    assert shown <= {*FIGURES, CLAIMS_FIGURE}


def test_each_section_says_what_was_measured_and_what_is_not_shown():
    _, *sections, last = re.split(r"(?m)^## ", PAGE)
    assert len(sections) == len(findings.QUESTIONS) and last.startswith("What cannot be tested here")
    for name, section in zip(findings.QUESTIONS, sections, strict=True):
        before, after = section.split(f"<!-- generated:{name} -->")
        assert "easure" in before and "Not shown: " in after, name


def test_the_whole_page_is_short():
    assert words(PAGE) < 1500


# --- Sections -----------------------------------------------------------------------------------------


def test_each_claim_has_the_symbol_of_its_verdict_and_those_not_supported_come_first(whole, ended, stopped):
    last = findings.QUESTIONS["collapse"].claims[-1]
    found = [replace(claim, verdict="not supported") if claim.id == last else claim for claim in ended]
    blocks, of = made(whole, found, stopped), {claim.id: claim for claim in found}
    assert f"Claims: {SYMBOLS['not supported']} *{claim_name(last)}* · " in blocks["collapse"]
    for name, question in findings.QUESTIONS.items():
        said = {f"{SYMBOLS[of[claim].verdict]} *{claim_name(claim)}*" for claim in question.claims}
        line = re.search(r"(?m)^Claims: (.*)$", blocks[name])
        assert (set(line[1].split(" · ")) if line else set()) == said


def test_verdicts_at_both_points_are_counted(whole, ended, stopped):
    at_end, of_stop = {claim.id: claim for claim in ended}, {claim.id: claim for claim in stopped}
    block = made(whole, ended, stopped)["stopping"]
    there = [name for name in at_end if of_stop[name].verdict != "not run"]
    alike = sum(at_end[name].verdict == of_stop[name].verdict for name in there)
    assert f"{len(there)} of 21 claims are judged at both points" in block and f"{alike} times." in block
    assert 0 < alike < len(there)
    assert len(there) == 19, "runs with another threshold or clip have no way-points"
    assert "Mean iteration of the stopping point: GRPO " in block
    only = made(whole, ended, [])
    assert "judged at both points" not in only["stopping"]


@pytest.mark.parametrize(
    ("p", "says"),
    [
        ([0.9, 0.9], "0 of 2 clear; their intervals lie within [-2.0, +2.0] points."),
        (
            [0.01, 0.9],
            "1 of 2 clear (A +1.0 [+0.0, +2.0]); the others' intervals lie within [-2.0, +0.0] points.",
        ),
        ([0.01, 0.01], "2 of 2 clear (A +1.0 [+0.0, +2.0], B -1.0 [-2.0, +0.0])."),
    ],
)
def test_comparisons_are_clear_by_their_corrected_p(p, says):
    common = {"suite": "in domain", "measure": "Pass@8", "status": "run", "seeds": 3, "against_seeds": 18}
    rows = [{**common, "arm": "A", "difference": 1.0, "low": 0.0, "high": 2.0, "p_holm": p[0]}]
    rows += [{**common, "arm": "B", "difference": -1.0, "low": -2.0, "high": 0.0, "p_holm": p[1]}]
    assert findings.clear_ones(pd.DataFrame(rows), "Them") == f"Them: {says}"


def test_every_rival_and_weight_is_told(whole, ended, stopped):
    blocks = made(whole, ended, stopped)
    assert blocks["rivals"].count(" of 8 clear") == 2 and "Each weight chosen on validation" in blocks["weights"]
    assert " of 6 clear" in blocks["direction"]


def test_what_was_not_run_or_cannot_be_tested_is_said(settings):
    methods = ("base", "grpo", "dapo", "rkl", "dph_f", "dph_js")
    records = make_records(methods, ablations=False, steps=False)
    on_sums = (records["suite"] == "out_of_domain") & (records["method"] == "base")
    records.loc[on_sums, "correct"] = records.loc[on_sums, "n"]
    results = Results(settings, records, make_train_logs(methods), pd.DataFrame())
    decided = evaluate_claims(results.scores, results.train_logs, "cpu")
    blocks = made(results, decided, [])
    assert "Not answered: `rivals` is not in the recorded run; `--studies rivals` makes it." in blocks["rivals"]
    assert "Not answered: `eta` is not in the recorded run; `--studies eta` makes it." in blocks["weights"]
    assert "no way-points" in blocks["stopping"] and "no way-points" in blocks["weights"]
    why = "(the base's out-of-domain Pass@8 is 100.0 %, above 95 %)"
    assert f"out of domain: DPH loses least {why}" in blocks["untestable"]
    assert "Claims not run: " in blocks["untestable"] and f"{SYMBOLS['not run']} *" in blocks["direction"]


def test_the_method_shows_the_coverage_that_was_simulated():
    rows = json.loads((ROOT / "tests/benchmarks/coverage.json").read_text())["coverage"]
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    head = re.search(r"(?m)^\| base models x runs from each \| (.*) \|$", text)[1].split(" | ")
    for row in rows:
        name = row["world"] + (" (ratio)" if row["ratio"] else "")
        shown = re.search(rf"(?m)^\| {re.escape(name)} \|(.*)\|$", text)[1].split("|")
        assert float(shown[head.index(f"{row['bases']} x {row['runs']}")]) == row["coverage"], row
