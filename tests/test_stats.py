"""Pass@k against exact fractions, the tidy numbers on hand-made records, refusals, interval coverage."""

from __future__ import annotations

from fractions import Fraction
from math import comb, log

import numpy as np
import pandas as pd
import pytest
from synthetic import make_rows as rows

from dphlib import stats
from dphlib.types import STYLE_COUNTS, EvalRecord
from dphlib.world.templates import OTHER_STYLE, STYLES


def greedy_rows(*args, **kwargs):
    return rows(*args, **kwargs).assign(temperature=0.0)


# ---------------------------------------------------------------------------------------------- pass@k


def test_pass_at_k_equals_the_exact_fraction_up_to_64():
    for n in range(1, 65):
        c, k = np.meshgrid(np.arange(n + 1), np.arange(1, n + 1))
        got = stats.pass_at_k(n, c, k)
        exact = [
            [float(1 - Fraction(comb(n - int(ci), int(ki)), comb(n, int(ki)))) for ci, ki in zip(cr, kr, strict=True)]
            for cr, kr in zip(c, k, strict=True)
        ]
        assert np.array_equal(got, exact)


def test_pass_at_k_broadcasts_and_gives_a_float_for_scalars():
    assert isinstance(stats.pass_at_k(8, np.int64(2), 1), float)
    assert stats.pass_at_k([4, 8], 2, [[1], [2]]).shape == (2, 2)
    assert stats.pass_at_k(np.array([], int), np.array([], int), 1).shape == (0,)
    assert stats.pass_at_k(np.array([4.0]), np.array([4.0]), 4)[0] == 1.0
    assert stats.pass_at_k(2000, 1, 1000) == 0.5


@pytest.mark.parametrize(
    "n, c, k", [(4, 1, 5), (4, 5, 1), (4, -1, 1), (-4, 0, 1), (4, 1, 0), (4, 1.5, 1), (4, np.nan, 1)]
)
def test_pass_at_k_refuses_what_has_no_meaning(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        stats.pass_at_k(n, c, k)
    with pytest.raises(ValueError, match="pass@k"):
        stats.pass_at_k(np.array([n, 8]), np.array([c, 2]), np.array([k, 1]))


# ---------------------------------------------------------------------------------------------- tidy numbers


def test_pass_curve_is_the_mean_of_the_unbiased_estimates():
    records = rows(correct=((1, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)))
    curve = stats.pass_curve(records, [1, 2, 4]).set_index("k")["pass_at_k"]
    assert curve.to_dict() == pytest.approx({1: 1.25 / 3, 2: 1.5 / 3, 4: 2 / 3})
    with pytest.raises(ValueError, match=r"pass@8: base \(main\).*n=4"):
        stats.pass_curve(records, [8])


def test_greedy_and_sampled_answers_never_mix():
    records = pd.concat([rows(correct=((0, 0), (0, 0))), greedy_rows(correct=((1,), (0,)))])
    assert stats.greedy_accuracy(records)["greedy"].item() == 0.5
    assert stats.pass_curve(records, [2])["pass_at_k"].item() == 0.0
    with pytest.raises(ValueError, match="2 problems stand twice"):
        stats.once(records)


def test_unjudged_answers_leave_n_and_are_not_wrong():
    records = rows(correct=((1, 0, 0, 0),), n=2)
    assert stats.pass_curve(records, [1])["pass_at_k"].item() == 0.5
    with pytest.raises(ValueError, match="n=2 judged, 4 drawn"):
        stats.pass_curve(records, [4])


@pytest.mark.parametrize("change", [{}, {"top_p": 0.9}])
def test_a_problem_that_stands_twice_is_refused(change):
    with pytest.raises(ValueError, match=r"1 problems stand twice, such as .*'p0'"):
        stats.pass_curve(pd.concat([rows(), rows(**change)]), [1])


def test_final_keeps_each_runs_own_last_step():
    records = pd.concat([rows("grpo", 0, step=10), rows("grpo", 0, step=20), rows("grpo", 1, step=10), rows()])
    kept = stats.final(records)
    assert set(zip(kept["method"], kept["seed"], kept["step"], strict=True)) == {
        ("grpo", 0, 20),
        ("grpo", 1, 10),
        ("base", 0, 0),
    }


def test_auc_is_the_mean_height_over_log2_k():
    records = rows(correct=((1, 0, 0, 0),))
    assert stats.auc_at_k(records, 4)["auc_at_k"].item() == pytest.approx((0.25 + 0.5) / 4 + (0.5 + 1.0) / 4)
    width = log(3, 2)
    by_hand = (0.375 + 0.625 * (width - 1)) / width  # pass@k is 1/4, 1/2, 3/4 at k = 1, 2, 3
    assert stats.auc_at_k(records, 3)["auc_at_k"].item() == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="2 or more"):
        stats.auc_at_k(records, 1)


# ---------------------------------------------------------------------------------------------- behaviour


def test_style_entropy_tells_one_style_a_problem_from_one_style_in_all():
    flags = ((0,) * 4,) * 2
    own = rows("grpo", 0, correct=flags, direct=[4, 0], nested=[0, 4])
    mixed = rows("dph_f", 0, correct=flags, direct=2, nested=2)
    lost = rows("rkl", 0, correct=flags, direct=0, other=4)
    got = stats.style_entropy(pd.concat([own, mixed, lost])).set_index("method")
    assert got["per_problem_nats"].to_dict() == pytest.approx({"grpo": 0.0, "dph_f": log(2), "rkl": 0.0})
    assert got["pooled_nats"].to_dict() == pytest.approx({"grpo": log(2), "dph_f": log(2), "rkl": 0.0})
    assert got["styles"].to_dict() == {"grpo": 2, "dph_f": 2, "rkl": 0}


def test_every_style_of_the_world_has_its_count_in_the_records():
    assert STYLE_COUNTS == (*STYLES, OTHER_STYLE)
    assert [name for name in EvalRecord.__slots__ if name in STYLE_COUNTS] == list(STYLE_COUNTS)


def test_style_shares_sum_to_one_and_show_other():
    shares = stats.style_shares(rows(correct=((0,) * 4,), direct=2, nested=1, other=1)).iloc[0]
    assert shares[list(STYLE_COUNTS)].to_list() == [0.5, 0.0, 0.25, 0.0, 0.25]


def test_entropy_and_kl_are_per_token_of_their_own():
    numbers = {"tokens": [20, 30], "entropy": [2.0, 15.0], "compared_tokens": [10, 30], "log_ratio": [2.0, 2.0]}
    records = rows(correct=((1, 0), (0,)), truncated=[1, 0], **numbers)
    got = stats.answer_statistics(records).iloc[0]
    assert got["entropy_nats"] == pytest.approx(17 / 50)
    assert got["kl_to_base_nats"] == pytest.approx(4 / 40)
    assert got["truncated"] == pytest.approx(1 / 3)
    assert np.isnan(stats.answer_statistics(records.assign(compared_tokens=0, log_ratio=0.0))["kl_to_base_nats"].item())


def test_an_entropy_that_some_answers_lack_is_unknown():
    records = pd.concat([rows("grpo", 0, ((1,), (0,)), entropy=[0.5, np.nan]), rows("grpo", 1)])
    assert stats.answer_statistics(records)["entropy_nats"].fillna(-1).to_list() == [-1, 0.5]


def test_truncation_rate_counts_greedy_answers_too():
    records = pd.concat([rows(correct=((1, 0, 0),)), greedy_rows(correct=((1,),), truncated=1)])
    assert stats.truncation_rate(records)["truncated"].item() == 0.25


def test_distinct_correct_is_the_mean_over_problems_answered_alike():
    records = rows(correct=((1, 1, 1, 0), (0, 0, 0, 1)), distinct=[2, 1])
    assert stats.distinct_correct(records)[["distinct_correct", "drawn"]].iloc[0].to_list() == [1.5, 4]
    with pytest.raises(ValueError, match=r"base.*answered 2 to 4 times"):
        stats.distinct_correct(records.assign(drawn=[2, 4]))


@pytest.mark.parametrize(
    "function",
    [
        lambda records: stats.pass_curve(records, [1]),
        stats.distinct_correct,
        stats.greedy_accuracy,
        stats.style_entropy,
        stats.answer_statistics,
        stats.truncation_rate,
    ],
)
def test_empty_records_are_an_error_and_not_an_empty_answer(function):
    with pytest.raises(ValueError, match=r"no records|no sampled"):
        function(rows().iloc[:0])
