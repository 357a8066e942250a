"""Sentences written by hand: their numbers are the records'; one that the records do not bear out stops the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import make_records, make_train_logs, make_waypoints

from dphlib.analysis.claims import evaluate_claims
from dphlib.experiment.results import Results
from dphlib.intervals import interval
from dphlib.runtime.files import RunError
from dphlib.settings.profiles import profile
from tools.statements import Statements

TEMPLATE = (Path(__file__).resolve().parents[2] / "tools/templates/findings.j2").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def results() -> Results:
    """Three runs each; DPH-F solves all, GRPO nothing, RKL as much as DAPO."""
    records = make_records(("base", "grpo", "dapo", "rkl", "dph_f"), ablations=False, steps=False)
    sampled, method = records["temperature"] > 0, records["method"]
    records.loc[sampled & (method == "grpo"), "correct"] = 0
    records.loc[sampled & (method == "dph_f"), "correct"] = records["n"]
    records.loc[method == "dapo", "correct"] = records.loc[method == "rkl", "correct"].to_numpy()
    ways = make_waypoints(records)
    early = [records[method != "base"].assign(step=step) for step in (5, 15)]
    rows = pd.concat([records, *early], ignore_index=True)
    return Results(profile("cpu"), rows, make_train_logs(), pd.DataFrame(), waypoints=ways)


@pytest.fixture(scope="module")
def statements(results) -> Statements:
    decided = evaluate_claims(results.scores, results.train_logs, "cpu")
    return Statements(results, decided)


def test_a_difference_is_the_records_either_way_round(results, statements):
    scores = results.scores
    got = interval(
        [scores.of("base", "in_domain", "pass", 16), scores.of("grpo", "in_domain", "pass", 16)], np.subtract
    )
    said = statements.above("base", "grpo", "Pass@16")
    assert said == statements.below("grpo", "base", "Pass@16")
    numbers = [float(x) for x in re.fullmatch(r"([\d.]+) points \[([\d.]+), ([\d.]+)\]", said).groups()]
    assert numbers == pytest.approx([100 * x for x in (got.estimate, got.low, got.high)], abs=0.051)
    assert statements.above("dph_f", "grpo", suite="cross_domain").startswith("100.0 points [")
    assert re.fullmatch(r"\+0\.0 points \[[-+][\d.]+, \+[\d.]+\]", statements.unclear("rkl", "dapo"))


@pytest.mark.parametrize(
    ("word", "pair", "where", "says"),
    [
        ("above", ("grpo", "dph_f"), {}, "says above, the records say -100.0 points"),
        ("below", ("dph_f", "grpo"), {}, "says above, the records say -100.0 points"),
        ("above", ("rkl", "dapo"), {}, "says above, the records say +0.0 points"),
        ("unclear", ("dph_f", "grpo"), {}, "says unclear, the records say +100.0 points"),
        ("above", ("dph_js", "grpo"), {}, "no records of DPH-JS"),
        ("above", ("dph_f eta=0.8", "grpo"), {}, "no records of DPH-F"),
        ("above", ("dph_f", "grpo"), {"at": "hidden"}, "dph_f against grpo, in_domain Pass@8, hidden: no records"),
    ],
)
def test_a_sentence_that_the_records_do_not_bear_out_is_not_written(statements, word, pair, where, says):
    with pytest.raises(RunError, match=re.escape(says)):
        getattr(statements, word)(*pair, **where)


def test_what_is_counted_of_the_claims(statements):
    assert sum(int(n) for n in re.findall(r"\d+", statements.counts())) == len(statements.claims)
    heads, decided, jointly = statements.firm()
    assert heads == 7 >= decided >= jointly >= 0


def test_the_written_text_has_no_number_of_its_own():
    text = re.sub(r"(?s)\{[{%#].*?[}%#]\}", "", TEMPLATE)
    assert not re.search(r"\d", re.sub(r"Pass@\d+|Figure \d+|fig\d+\w*|\(k2\)|95 %|80 %|\d+ draws", "", text))
