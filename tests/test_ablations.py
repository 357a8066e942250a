"""What one setting changes, and what it costs: differences and counts that can be checked by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic import ABLATIONS, make_cost, make_records, make_train_logs

from dphlib import stats
from dphlib.analysis import studies as ablations


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return make_records(("base", "grpo", "dph_f", "dph_js"), (0, 1, 2), steps=False)


def test_each_ablation_stands_against_its_own_main_arm(records):
    got = ablations.effects(records)
    arms = {(m, v) for m, v in ABLATIONS if m in ("grpo", "dph_f", "dph_js")}
    assert len(got) == sum(1 if v == "domain=sums" else 2 for _, v in arms) and set(got["seeds"]) == {"2 against 3"}
    row = got[(got["ablation"] == "DPH-JS, threshold 8") & (got["suite"] == "in domain")].iloc[0]
    mean = stats.pass_curve(stats.final(records), [8])
    mean = mean[(mean["method"] == "dph_js") & (mean["suite"] == "in_domain")].groupby("variant")["pass_at_k"].mean()
    assert row["Pass@8"] == pytest.approx(100 * (mean["threshold=8"] - mean["main"]))
    assert row["Pass@8_low"] < row["Pass@8"] < row["Pass@8_high"]


def test_a_suite_that_was_not_evaluated_has_no_row(records):
    got = ablations.effects(records)
    assert set(got.loc[got["ablation"].str.contains("trained on sums"), "suite"]) == {"out of domain"}
    assert set(ablations.effects(records, ["cross_domain"])["suite"]) == {"cross domain"}


def test_a_measure_that_needs_more_answers_is_left_out(records):
    few = records[records["sample"] < 8]
    got = ablations.effects(few, ["in_domain"])
    assert "Pass@8" in got and "Pass@16" not in got


def test_any_number_of_seeds_will_do_and_different_numbers_of_answers_will_not(records):
    more = make_records(("base", "grpo", "dph_f", "dph_js"), (0, 1, 2, 3, 4), steps=False)
    assert set(ablations.effects(more)["seeds"]) == {"2 against 5"}
    one = make_records(("base", "dph_f"), (0,), steps=False)
    assert set(ablations.effects(one)["seeds"]) == {"1 against 1"}
    fewer = records[(records["variant"] != "threshold=8") | (records["sample"] < 24)]
    with pytest.raises(ValueError, match=r"cannot be compared, they differ in drawn 24\.0 and 32\.0"):
        ablations.effects(fewer, ["in_domain"])


def test_without_ablations_it_says_so(records):
    with pytest.raises(ValueError, match=r"settings\.ablation_runs\(\)"):
        ablations.effects(records[records["variant"] == "main"])


def test_budget_counts_what_an_iteration_was_given():
    logs = make_train_logs(("grpo", "rkl", "dph_js"), (0, 1))
    got = ablations.token_budget(logs, prompts=18).set_index("method")
    assert got.index.tolist() == ["GRPO", "RKL", "DPH-JS"] and set(got["informative groups (%)"]) == {50.0}
    assert got["reference tokens"].tolist() == [0, 5000, 0] and got["rehearsed answers"].tolist() == [0, 0, 16]
    assert got.loc["GRPO", "policy tokens"] == pytest.approx(logs.loc[logs["method"] == "grpo", "policy_tokens"].mean())


def test_cost_has_exact_tokens_and_the_middle_half_of_the_seconds():
    cost = make_cost()
    got = ablations.cost_table(cost).set_index("method")
    rkl = cost[cost["method"] == "rkl"]
    assert got.index.tolist() == ["GRPO", "RKL", "DPH-F", "DPH-JS"]
    assert got.loc["RKL", "step_s"] == pytest.approx(rkl["step_s"].median())
    assert got.loc["RKL", "reference per policy token"] == pytest.approx(5000 / rkl["policy_tokens"].mean())
    assert (got["step_s_low"] <= got["step_s"]).all() and got.loc["DPH-F", "reference tokens"] == 0
