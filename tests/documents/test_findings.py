"""The page of findings: what is recorded is what is said, whichever way it falls, and the page stays short."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic import (
    PROBLEMS,
    make_hard_records,
    make_records,
    make_study_records,
    make_temperature_records,
    make_train_logs,
    make_waypoints,
)

from dphlib.analysis.claims import CLAIMS, VERDICTS, ClaimResult, Decision, PartResult, evaluate_claims, to_json
from dphlib.analysis.labels import claim_name
from dphlib.analysis.studies import change_of
from dphlib.analysis.waypoints import at_stopping
from dphlib.experiment.results import CLAIMS_FIGURE, FIGURES, Results, write_beyond
from dphlib.scores import ArmScores
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.studies import STUDIES, comparisons
from tools import evidence, findings, reviewers, run
from tools.blocks import fill

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
WHERE = "artifacts/some"
NUMBERS = {"supported": (0.04, 0.02, 0.06), "not supported": (-0.04, -0.06, -0.02), "inconclusive": (0.01, -0.01, 0.03)}


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
    return findings.made(results, WHERE, ended, stopped, {*FIGURES, CLAIMS_FIGURE})


def judged(claim: ClaimResult, verdict: Decision, joint: bool = True) -> ClaimResult:
    """The claim with another verdict, and one part of numbers that give it."""
    absent = {"not testable": "the base solves all", "not run": "no records of GRPO"}
    numbers = NUMBERS.get(verdict, (None, None, None))
    part = PartResult("A > B, in-domain Pass@8", verdict, "share", *numbers, reason=absent.get(verdict, ""))
    of_part = dict(zip(("estimate", "low", "high"), numbers, strict=True)) | {"parts": (part,), "deciding": part.label}
    holds = None if claim.holds_jointly is None else joint
    return replace(claim, verdict=verdict, unit="share", holds_jointly=holds, **of_part)


def sentences(abstract: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z0-9])", abstract.strip())


def words(text: str) -> int:
    """As they are read: without marker lines and the lines of tables."""
    return len(re.sub(r"(?m)^<!--.*$|^\| ---.*$|\|", " ", text).split())


# --- What is asked ------------------------------------------------------------------------------------


def test_each_claim_is_in_one_section_and_each_headline_in_the_abstract():
    named = [claim for question in findings.QUESTIONS.values() for claim in question.claims]
    assert sorted(named) == sorted(claim.id for claim in CLAIMS)
    assert list(findings.ASKED) == [claim.id for claim in CLAIMS if claim.headline]
    shown = {figure for question in findings.QUESTIONS.values() for figure in question.figures}
    assert shown <= {*FIGURES, CLAIMS_FIGURE}


def test_each_section_says_what_was_measured_and_what_is_not_shown():
    _, *sections, last = re.split(r"(?m)^## ", PAGE)
    assert len(sections) == len(findings.QUESTIONS) and last.startswith("What cannot be tested here")
    for name, section in zip(findings.QUESTIONS, sections, strict=True):
        before, after = section.split(f"<!-- generated:{name} -->")
        assert "easure" in before and "Not shown: " in after, name


def test_the_whole_page_is_short(whole, ended, stopped):
    page = fill(PAGE, made(whole, ended, stopped), "docs/findings.md")
    assert words(PAGE) < 1500 and words(page) < 1500 and page.count("![") >= 8
    refuted = [judged(claim, "not supported") for claim in ended]
    assert words(fill(PAGE, made(whole, refuted, refuted), "docs/findings.md")) < 1500


# --- The abstract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_abstract_follows_the_headline_claims(whole, ended, verdict):
    every = [judged(claim, verdict) for claim in ended]
    lines = sentences(made(whole, every, every)["abstract"])
    assert 8 <= len(lines) <= 10 and all(line.endswith(".") for line in lines)
    runs = whole.records[whole.records["method"] != "base"].groupby(["method", "variant", "seed"]).ngroups
    assert (
        lines[0].startswith(f"{runs} runs of ")
        and f"21 claims by a protocol fixed beforehand: 21 {verdict}." in lines[0]
    )
    begins, why = {
        "supported": ("", "4.0 points [2.0, 6.0]"),
        "not supported": ("It is not supported that ", "-4.0 points [-6.0, -2.0]"),
        "inconclusive": ("Whether ", "1.0 points [-1.0, 3.0]"),
        "not testable": ("Whether ", "the base solves all"),
        "not run": ("Whether ", "no records of GRPO"),
    }[verdict]
    for asked, line in zip(findings.ASKED.values(), lines[2:9], strict=True):
        assert line.lower().startswith(f"{begins}{asked}".lower()) and line.endswith(f"({why}).")
    assert ("No claim comes out as not supported." == lines[1]) == (verdict != "not supported")
    settled = 7 if verdict in ("supported", "not supported") else 0
    assert f"decided: {settled} of 7 one by one, {settled} of 7 when all" in lines[9] and lines[9].endswith("7 of 7.")


def test_the_abstract_names_the_clearest_of_what_is_not_supported(ended):
    found = [judged(claim, "supported") for claim in ended]
    for place, p in ((0, 0.04), (5, 0.001), (9, 0.02), (12, 0.03)):
        one = judged(found[place], "not supported")
        found[place] = replace(one, parts=(replace(one.parts[0], p=p),))
    named = "; ".join(claim_name(found[place].id) for place in (5, 9, 12))
    assert findings.refuted(found) == f"Not supported: {named}; and 1 more."


# --- Sections -----------------------------------------------------------------------------------------


def test_claims_that_are_not_supported_come_first_and_numbers_are_the_recorded_ones(whole, ended, stopped):
    last = findings.QUESTIONS["collapse"].claims[-1]
    found = [judged(claim, "not supported") if claim.id == last else claim for claim in ended]
    blocks, of = made(whole, found, stopped), {claim.id: claim for claim in found}
    assert re.findall(r"(?m)^- \*(.*)\.\* \*\*(.*?)\*\*", blocks["collapse"])[0] == (claim_name(last), "Not supported")
    for name, question in findings.QUESTIONS.items():
        lines = re.findall(r"(?m)^- \*(.*)\.\* \*\*(.*?)\*\*(.*)$", blocks[name])
        said = {text.lower(): (verdict.lower(), rest) for text, verdict, rest in lines}
        for claim in (of[name] for name in question.claims):
            verdict, rest = said[claim_name(claim.id).lower()]
            assert verdict == claim.verdict
            if claim.unit == "share" and claim.estimate is not None:
                numbers = [float(x) for x in re.search(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", rest).groups()]
                assert numbers == pytest.approx([100 * x for x in (claim.estimate, claim.low, claim.high)], abs=0.051)


@pytest.mark.parametrize(
    ("joint", "at_stop", "says"),
    [
        (True, "supported", ""),
        (False, "supported", ", but not jointly"),
        (True, "inconclusive", ", but not at the stopping point"),
        (False, "not supported", ", but not jointly and not at the stopping point"),
        (True, "not run", ", and not judged at the stopping point"),
    ],
)
def test_a_supported_claim_says_where_it_does_not_hold(whole, ended, joint, at_stop, says):
    found = [judged(claim, "supported", joint) for claim in ended]
    blocks = made(whole, found, [judged(claim, at_stop) for claim in ended])
    for line in sentences(blocks["abstract"])[2:9]:
        assert line.endswith(f"(4.0 points [2.0, 6.0]){says}.")
    assert f"*DPH-JS: Pass@8 above GRPO's.* **Supported**, 4.0 [2.0, 6.0]{says}.\n" in blocks["keep"]
    plain = says.replace("not jointly and ", "").replace(", but not jointly", "")
    assert f"*DPH keeps more styles than GRPO.* **Supported**, 4.0 [2.0, 6.0]{plain}.\n" in blocks["keep"]


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
    assert "no stopping point is recorded." in only["abstract"] and "judged at both points" not in only["stopping"]


@pytest.mark.parametrize(
    ("at_end", "at_stop", "says"),
    [
        (["DPH-F in Pass@8"], ["DPH-JS in Pass@8"], "Stopped in time, GRPO is still below DPH-JS in Pass@8 "),
        (["DPH-F in Pass@8"], [], "Only at the end is GRPO below DPH-F in Pass@8: what is shown is robustness to "),
        ([], [], "DPH is shown to be above GRPO at neither point"),
    ],
)
def test_what_stopping_early_says_of_dph_follows_the_intervals(at_end, at_stop, says):
    assert says in findings.what_follows(at_end, at_stop)


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


def test_of_fewer_than_three_runs_no_comparison_is_clear():
    common = {"suite": "in domain", "measure": "Pass@8", "status": "run", "low": 0.5, "high": 2.0, "p_holm": 0.001}
    rows = pd.DataFrame([{**common, "arm": "A", "difference": 1.0, "seeds": 2, "against_seeds": 18}])
    said = "Them: 0 of 1 clear, 1 of too few runs; their intervals lie within [+0.5, +2.0] points."
    assert findings.clear_ones(rows, "Them") == said
    assert findings._difference(rows.iloc[0]) == "+1.0 [+0.5, +2.0] (too few runs)"
    assert findings._difference(pd.Series({**rows.iloc[0], "seeds": 3})) == "**+1.0 [+0.5, +2.0]**"


def test_of_fewer_than_three_runs_no_effect_is_shown(settings):
    """Two runs of GRPO and DPH: the same words as for a claim, and nothing follows from stopping early."""
    methods = ("base", "grpo", "dph_f", "dph_js")
    records = make_records(methods, (0, 1), ablations=False, steps=False)
    low = (records["method"] == "grpo") & (records["temperature"] > 0)
    records.loc[low, "correct"] = 0
    results = Results(settings, records, make_train_logs(methods), pd.DataFrame(), waypoints=make_waypoints(records))
    scores = results.scores
    pair = [scores.of(name, "in_domain", "pass", 8) for name in ("dph_f", "grpo")]
    assert evidence.gap(*pair).low > 0 and evidence.minus(*pair, "DPH-F")[0].endswith("] (too few runs)")
    assert evidence.few(scores.of("base", "in_domain")) == ""
    said = " ".join(findings.drift(results))
    assert said.count("nats [") == said.count("] (too few runs)") == 2
    found = " ".join(findings.stopping(results))
    assert found.count(" (too few runs) |") >= 4 and "DPH is shown to be above GRPO at neither point." in found


def test_every_cell_of_the_factorial_and_every_rival_is_told(whole, ended, stopped, settings):
    blocks = made(whole, ended, stopped)
    for name in ("factorial", "direction"):
        table = whole.study([name])
        for one in comparisons(settings, name):
            change = change_of(one, settings)
            row = table[(table["change"] == change) & (table["suite"] == "in domain") & (table["measure"] == "Pass@8")]
            assert f"- {change.strip(',')}: " in blocks[name]
            assert f"{row['difference'].item():+.1f} [{row['low'].item():+.1f}, " in blocks[name]
    assert blocks["rivals"].count(" of 8 clear") == 2 and "Each weight chosen on validation" in blocks["weights"]
    assert blocks["complementarity"].count(" hidden: ") == 3 and "minus GRPO" in blocks["shift"]


def test_what_was_not_run_or_cannot_be_tested_is_said(settings):
    methods = ("base", "grpo", "dapo", "rkl", "dph_f", "dph_js")
    records = make_records(methods, ablations=False, steps=False)
    on_sums = (records["suite"] == "out_of_domain") & (records["method"] == "base")
    records.loc[on_sums, "correct"] = records.loc[on_sums, "n"]
    results = Results(settings, records, make_train_logs(methods), pd.DataFrame())
    decided = evaluate_claims(results.scores, results.train_logs, "cpu")
    blocks = made(results, decided, [])
    for name in ("direction", "factorial", "rivals"):
        assert f"Not answered: `{name}` is not in the recorded run; `--studies {name}` makes it." in blocks[name]
    part = blocks["complementarity"]
    assert part.count(": not run\n") == 3 and "`--studies complementarity` makes what was not run." in part
    assert "Not answered: `eta` is not in the recorded run; `--studies eta` makes it." in blocks["weights"]
    assert "no way-points" in blocks["stopping"] and "no way-points" in blocks["weights"]
    why = "(the base's out-of-domain Pass@8 is 100.0 %, above 95 %)"
    assert f"out of domain DPH loses least {why}" in blocks["untestable"]
    assert f"GRPO, DAPO and RKL out of domain cannot be tested here {why}." in blocks["abstract"]
    assert "Claims not run: " in blocks["untestable"] and "**Not run**." in blocks["direction"]


@pytest.fixture
def repository(tmp_path, settings) -> Path:
    """One whose reference, of a few runs, is recorded without verdicts."""
    methods = ("base", "grpo", "dapo", "rkl", "dph_f", "dph_js")
    records = make_records(methods, ablations=False, steps=False)
    presample = pd.DataFrame({"base": [0], "suite": ["train"], "correct": [3]})
    results = Results(settings, records, make_train_logs(methods), presample)
    results.write(tmp_path / run.WHERE)
    (tmp_path / run.WHERE / "manifest.json").write_text('{"profile": "cpu"}')
    return tmp_path


def test_of_runs_in_another_world_nothing_is_said(repository):
    assert set(findings.page_blocks(repository).values()) == {f"{run.NOTHING}\n"}


def test_the_full_reference_is_shown_with_its_verdicts_and_figures(repository, settings, monkeypatch):
    monkeypatch.setattr(run, "profile_of", lambda folder: settings)
    shutil.copytree(repository / run.WHERE, repository / run.FULL)
    decided = evaluate_claims(Results.load(repository / run.FULL, settings).scores, None, "cpu")
    written = [judged(claim, "supported") for claim in decided]
    (repository / run.FULL / "claims.json").write_text(to_json(written))
    (repository / run.FULL / "claims_stopped.json").write_text(
        to_json([judged(one, "inconclusive") for one in written])
    )
    (repository / run.FULL / "figures").mkdir()
    (repository / run.FULL / "figures" / "fig4_styles.png").touch()
    blocks = findings.page_blocks(repository)
    assert f"`{run.FULL}`" in blocks["abstract"] and "21 supported." in blocks["abstract"]
    assert reviewers.page_blocks(repository)["provenance"].startswith(f"From `{run.FULL}`: ")
    assert blocks["keep"].startswith(f"![Figure 4, solution styles](../{run.FULL}/figures/fig4_styles.png)\n\n- *")
    assert blocks["collapse"].startswith("- *") and blocks["collapse"].count(", but not at the stopping point.") == 4


def test_what_the_full_reference_lacks_beyond_the_protocol_is_of_the_reference(repository, settings, monkeypatch):
    monkeypatch.setattr(run, "profile_of", lambda folder: settings)
    monkeypatch.setattr(evidence, "recorded_profile", lambda folder: settings)
    shutil.copytree(repository / run.WHERE, repository / run.FULL)
    (repository / run.FULL / "claims.json").touch()
    write_beyond({"hard": make_hard_records()}, repository / run.WHERE)
    write_beyond({"temperature": make_temperature_records()}, repository / run.FULL)
    where, results = evidence.load(repository)
    assert where == run.FULL and set(results.beyond) == {"hard", "temperature"}


def test_the_method_shows_the_coverage_that_was_simulated():
    rows = json.loads((ROOT / "tests/benchmarks/coverage.json").read_text())["coverage"]
    text = (ROOT / "docs/method.md").read_text(encoding="utf-8")
    head = re.search(r"(?m)^\| base models x runs from each \| (.*) \|$", text)[1].split(" | ")
    for row in rows:
        name = row["world"] + (" (ratio)" if row["ratio"] else "")
        shown = re.search(rf"(?m)^\| {re.escape(name)} \|(.*)\|$", text)[1].split("|")
        assert float(shown[head.index(f"{row['bases']} x {row['runs']}")]) == row["coverage"], row
