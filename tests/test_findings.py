"""docs/findings.md: its blocks follow the run they are made from, and its words follow the verdicts."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from synthetic import make_hard_records, make_records, make_study_records, make_train_logs

from dphlib.analysis import studies as ablations
from dphlib.analysis.claims import evaluate_claims, to_json
from dphlib.experiment.results import Results
from dphlib.report.facts import read_json
from dphlib.settings.profiles import profile
from tools import findings, site

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / findings.PAGE).read_text(encoding="utf-8")
METHODS = ("base", "grpo", "dapo", "rkl", "dph_f", "dph_js")


def make_reference(root: Path) -> Path:
    """A repository whose reference run is made up and has neither studies nor hard problems."""
    run = root / findings.RUN
    records, logs = make_records(METHODS, (0, 1, 2)), make_train_logs(METHODS, (0, 1, 2))
    presample = pd.DataFrame({"suite": ["train"], "problem_id": ["p"], "family": ["f"], "correct": [8]})
    Results(profile("cpu"), records, logs, presample).write(run)
    (run / "claims.json").write_text(to_json(evaluate_claims(records, logs, "cpu")))
    (run / "manifest.json").write_text(json.dumps({"profile": "cpu", "asked": {"seeds": "3"}}))
    for name in (findings.COVERAGE, findings.PAGE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    make_reference(root)
    return root, findings.page_blocks(root)


def test_every_block_of_the_page_is_filled():
    blocks = re.findall(r"<!-- generated:([\w-]+) -->\n(.*?)<!-- /generated:\1 -->", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("<!-- generated:") == 12
    assert all(body.strip() for _, body in blocks)


def test_each_claim_stands_under_its_verdict_with_its_effect(plain):
    root, blocks = plain
    parts = re.split(r"^\*\*(.+)\*\* \((.+): \d+\)$", blocks["verdicts"], flags=re.MULTILINE)
    under = {verdict: body for _, verdict, body in zip(*[iter(parts[1:])] * 3, strict=True)}
    assert list(under) == list(findings.HEADINGS)
    for claim in read_json(root / findings.RUN / "claims.json"):
        assert [verdict for verdict, body in under.items() if claim["text"] in body] == [claim["verdict"]]


def test_judged_at_once_fewer_claims_are_settled():
    records, logs = make_records(METHODS, (0, 1, 2), ablations=False, steps=False), make_train_logs(METHODS, (0, 1, 2))
    one, wide = evaluate_claims(records, logs, "cpu"), evaluate_claims(records, logs, "cpu", level=1 - 0.05 / 17)
    for a, b in zip(one, wide, strict=True):
        assert b.verdict in (a.verdict, "inconclusive")
        for x, y in zip(a.parts, b.parts, strict=True):
            if x.low is not None and x.unit in ("share", "nats"):
                assert y.low <= x.low and y.high >= x.high and y.estimate == x.estimate


def test_what_was_not_run_is_said_with_its_command(plain):
    _, blocks = plain
    for name in ("strength", "eta", "controls", "length"):
        assert blocks[name] == (
            f"The study `{name}` is not in the reference run; `./run_all.sh cpu --studies {name}` makes it.\n"
        )
    assert "--studies hard" in blocks["hard"]


def studied(study: str) -> Results:
    settings = profile("cpu", "2", "2")
    return Results(settings, make_study_records(settings, [study]), pd.DataFrame(), pd.DataFrame())


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("online", [True, False])
def test_the_words_on_strength_follow_the_corrected_differences_on_the_same_answers(stored, online):
    results = studied("strength")
    made = ablations.study_table(results.records, results.settings, ["strength"], ["in_domain"])
    rkl = made["arm"].str.startswith("RKL")
    p = rkl.map({True: 0.01 if online else 0.9, False: 0.01 if stored else 0.9})
    said, apart = findings._strength_summary(made.assign(p_holm=p, low=1.0, high=2.0)).split("RKL, on fresh")
    count = made.loc[(made["against"] == "DPH-F") & ~rkl, "arm"].nunique()
    assert f"on in domain Pass@8 {count} of {count} by their own intervals and {count * stored} after Holm's" in said
    assert ("So among these a difference remains" in said) == stored and ("MARA's objection" in said) != stored
    assert f"on in domain Pass@8 1 of 1 by their own intervals and {int(online)} after Holm's" in apart


def test_the_controls_are_said_and_summed_up_in_the_five_questions():
    results = studied("controls")
    block = findings._studies(results, "controls", findings._controls_summary)
    assert block.count("- ") >= 5 and "Rehearsing by plain -log pi instead of forward KL" in block
    for asks in ("the data selection alone", "forward KL on top", "JS on top", "plain SFT in place", "the partition"):
        assert asks in block
    made = ablations.study_table(results.records, results.settings, ["controls"], ["in_domain"])
    one = made[(made["arm"] == "SFT rehearsal") & (made["measure"] == "Pass@8")]
    assert f"forward KL {one['difference'].iloc[0]:+.1f} (" in block


def test_support_and_steps_count_what_the_records_hold(plain):
    _, blocks = plain
    assert blocks["support"].count("base, drawn again") == 5  # three k in domain, the largest elsewhere
    assert "in domain, k = 16: at least a problem more lost than gained by" in blocks["support"]
    rows = re.findall(r"^\| (GRPO|RKL|DPH-F) \|.*\| (.+) \|$", blocks["steps"], re.MULTILINE)
    assert len(rows) == 3 and all(re.fullmatch(r"at none|\d+", where) for _, where in rows)


def test_hard_problems_are_shown_where_they_were_answered():
    block = findings._hard(Results(profile("cpu"), *[pd.DataFrame()] * 3, hard=make_hard_records(draws=16)))
    assert "Pass@16" in block and block.count("DPH-JS") == 2


def test_a_block_changed_by_hand_is_written_back(plain, monkeypatch):
    root, blocks = plain
    monkeypatch.setattr(findings, "page_blocks", lambda root: blocks)
    text = site.fresh_page(findings, root)
    assert text.count("--studies hard") == 1
    (root / findings.PAGE).write_text(text.replace("settled one by one", "settled"))
    assert site.fresh_page(findings, root) == text
