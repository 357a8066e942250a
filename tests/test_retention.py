"""What RL kept: small hand-made records whose numbers can be counted, and the made-up run for the whole."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic import make_records
from synthetic import make_rows as rows

from dphlib import stats
from dphlib.analysis import retention, tables
from dphlib.analysis.labels import NAMES
from dphlib.settings.methods import METHODS


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return make_records(("base", "grpo", "dph_js"), (0, 1), ablations=False)


BASE = rows("base", 0, [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
TUNED = rows("grpo", 0, [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])


def test_keep_and_explore_are_counted():
    got = retention.capability_split(pd.concat([BASE, TUNED]), k=4).iloc[0]
    assert (got["method"], got["keep"], got["explore"]) == ("GRPO", 50.0, 50.0)
    assert (got["preserved"], got["lost"], got["gained"], got["seeds"]) == (1.0, 1.0, 1.0, 1)


def test_the_base_against_itself_loses_by_chance_alone():
    """2k answers: two draws without replacement of one right answer of four; both halves hold it never."""
    got = retention.capability_split(pd.concat([BASE, TUNED]), k=2)
    assert got["method"].tolist() == ["base, drawn again", "GRPO"]
    assert got.loc[0, ["preserved", "lost", "gained"]].tolist() == pytest.approx([1.0, 0.5, 0.5])
    assert "base, drawn again" not in set(retention.capability_split(pd.concat([BASE, TUNED]), k=4)["method"])


def test_losses_are_shares_of_the_bases():
    got = retention.losses(pd.concat([BASE, TUNED, rows("rkl", 0, [[1] * 4, [0] * 4, [0] * 4, [0] * 4])]), k=4)
    assert got.set_index("method")["in domain"].to_dict() == {"GRPO": 0.0, "RKL": 50.0}


def test_a_base_that_solves_nothing_has_no_share_to_lose():
    nothing = rows("base", 0, [[0] * 4] * 4)
    got = retention.losses(pd.concat([nothing, TUNED]), k=4)
    assert got["in domain"].isna().all() and tables.readable(got)["in domain (%)"].tolist() == ["-"]
    split = retention.capability_split(pd.concat([nothing, TUNED]), k=4)
    assert split["keep"].isna().all() and split["explore"].tolist() == [50.0]


def test_support_adds_up_to_the_problems(records):
    got = retention.support(records)
    assert set(got["suite"]) == {"in domain", "cross domain", "out of domain"}
    assert set(zip(got["suite"], got["k"], strict=True)) == {
        *(("in domain", k) for k in (1, 8, 16)),
        *((suite, k) for suite in ("cross domain", "out of domain") for k in (1, 8)),
    }
    with pytest.raises(ValueError, match="support needs two answers per problem, in_domain has one"):
        retention.support(pd.concat([rows("base", 0, [[1]]), rows("grpo", 0, [[1]])]))
    parts = got[["preserved", "lost", "gained", "neither"]]
    assert parts.sum(axis=1).tolist() == pytest.approx(got["problems"].tolist()) and parts.to_numpy().min() > -1e-9
    again = got[got["method"] == "base, drawn again"]
    assert again["lost"].tolist() == pytest.approx(again["gained"].tolist())


def test_behaviour_is_the_mean_over_seeds(records):
    got = retention.behaviour(records, "in_domain").set_index("method")
    final = stats.final(records[records["suite"] == "in_domain"])
    entropy = stats.answer_statistics(final[final["method"] == "grpo"])["entropy_nats"].mean()
    assert got.loc["GRPO", "entropy_nats"] == pytest.approx(entropy)
    assert got["seeds"].to_dict() == {"base": 1, "GRPO": 2, "DPH-JS": 2} and got.loc["base", "kl_to_base_nats"] == 0
    with pytest.raises(ValueError, match="'elsewhere'; the records have cross_domain, in_domain"):
        retention.behaviour(records, "elsewhere")


def test_every_measure_is_that_of_its_own_function(records):
    got = retention.measures(records, 4).set_index(["suite", "method"])
    assert len(got) == 9 and list(got)[:3] == ["keep", "explore", "AUC@16 (%)"]
    rows = stats.final(records[records["suite"] == "out_of_domain"])
    split = retention.capability_split(records, 4, ("grpo",), "out_of_domain").set_index("method")
    one = got.loc[("out of domain", "GRPO")]
    assert one[["keep", "explore"]].tolist() == split.loc["GRPO", ["keep", "explore"]].tolist()
    assert got.loc[("out of domain", "base"), "keep"] == split.loc["base, drawn again", "keep"]
    of_grpo = rows[rows["method"] == "grpo"]
    assert one["AUC@16 (%)"] == pytest.approx(100 * stats.auc_at_k(of_grpo, 16)["auc_at_k"].mean())
    distinct = stats.distinct_correct(of_grpo)["distinct_correct"].mean()
    assert one["distinct_correct"] == pytest.approx(distinct) and one["seeds"] == 2


def test_the_problem_that_changed_most_is_found():
    both = pd.concat([BASE, TUNED])
    assert retention.changed_problem(both, "grpo", "lost", k=4) == "p1"
    assert retention.changed_problem(both, "grpo", "gained", k=4) == "p2"
    assert retention.changed_problem(both, "grpo", "lost", k=4, rank=1) == "p0"  # no change, first by its id
    better = rows("dph_js", 0, [[1] * 4, [1, 0, 0, 0], [0] * 4, [1] * 4])
    three = pd.concat([both, better])
    assert retention.changed_problem(three, "grpo", "lost", k=4, than="dph_js") == "p1"
    assert retention.changed_problem(three, "grpo", "lost", k=4, rank=1, than="dph_js") == "p3"
    with pytest.raises(ValueError, match="direction 'up': one of lost, gained"):
        retention.changed_problem(both, "grpo", "up")
    with pytest.raises(ValueError, match="rank 4: in_domain has 4 problems"):
        retention.changed_problem(both, "grpo", "lost", k=4, rank=4)


def test_a_seeds_rows_are_those_of_its_runs_and_of_their_base():
    frames = [rows("base", base) for base in (0, 1)] + [rows("grpo", seed) for seed in (0, 1, 7)]
    got = retention.of_seed(pd.concat(frames), 7, 1)
    assert sorted(zip(got["method"], got["seed"], strict=True)) == [("base", 1), ("grpo", 7)]


def test_models_answers_stand_side_by_side():
    made = [("base", 3, "correct", "a"), ("base", 1, "wrong", "b"), ("GRPO", 4, "wrong", "c")]
    answers = pd.DataFrame(made, columns=["model", "times", "verdict", "answer"])
    got = retention.side_by_side(answers)
    correct, wrong = tables.verdict("correct"), tables.verdict("wrong")
    assert got.to_dict("list") == {
        "base": [f"3 × {correct}<br><code>a</code>", f"1 × {wrong}<br><code>b</code>"],
        "GRPO": [f"4 × {wrong}<br><code>c</code>", ""],
    }
    assert len(retention.side_by_side(answers, 1)) == 1


@pytest.mark.parametrize("function", [retention.capability_split, retention.losses, retention.support])
def test_without_the_base_nothing_is_compared(function, records):
    with pytest.raises(ValueError, match="evaluate the base first"):
        function(records[records["method"] != "base"])


def test_answers_are_counted_by_style():
    rows = [("base", "nested", 3, "wrong"), ("base", "direct", 1, "correct"), ("GRPO", "nested", 4, "correct")]
    drawn = pd.DataFrame(rows, columns=["model", "style", "times", "verdict"])
    got = retention.style_counts(drawn).set_index("model")
    assert got.index.tolist() == ["base", "GRPO"]
    assert got.loc["base", ["direct", "aliased", "nested", "correct", "different answers"]].tolist() == [1, 0, 3, 1, 2]
    assert got.loc["GRPO", ["nested", "correct"]].tolist() == [4, 4]


def test_every_method_of_the_records_has_a_row_in_the_papers_order():
    got = retention.capability_split(make_records(seeds=(0,), ablations=False, steps=False), k=4)
    assert got["method"].tolist() == ["base, drawn again", *(NAMES[m] for m in METHODS if m != "base")]
    assert (got["seeds"][1:] == 1).all()
    for name in ("keep", "explore"):
        assert got[name].between(got[f"{name}_low"], got[f"{name}_high"]).all()
        assert got[f"{name}_low"].min() >= 0 and got[f"{name}_high"].max() <= 100
