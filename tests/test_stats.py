"""Pass@k against exact fractions, the tidy numbers on hand-made records, refusals, interval coverage."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
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


def scores_of(records, method, suite="in_domain", *measure):
    return stats.FinalScores(records).of(method, suite, *measure)


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
        ("base", -1, 0),
    }


def test_auc_is_the_mean_height_over_log2_k():
    records = rows(correct=((1, 0, 0, 0),))
    assert stats.auc_at_k(records, 4)["auc_at_k"].item() == pytest.approx((0.25 + 0.5) / 4 + (0.5 + 1.0) / 4)
    width = log(3, 2)
    by_hand = (0.375 + 0.625 * (width - 1)) / width  # pass@k is 1/4, 1/2, 3/4 at k = 1, 2, 3
    assert stats.auc_at_k(records, 3)["auc_at_k"].item() == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="2 or more"):
        stats.auc_at_k(records, 1)


def split_of(records, method="grpo", k=2):
    return stats.keep_explore(stats.FinalScores(records), method, "in_domain", k)


def test_keep_and_explore_are_plain_shares_at_k_equal_n():
    base = rows(correct=((1, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    tuned = rows("grpo", 0, correct=((1, 1), (0, 0), (1, 0), (0, 0), (0, 0)))
    got = split_of(pd.concat([base, tuned]))
    assert [got.keep().estimate, got.explore().estimate] == pytest.approx([1 / 2, 1 / 3])
    assert [got.preserved, got.lost, got.gained] == [1.0, 1.0, 1.0]


def test_keep_and_explore_are_the_expectation_over_all_draws_of_k():
    base_flags, tuned_flags = [(1, 0, 0), (0, 0, 0)], [(0, 1, 1), (0, 1, 0)]
    records = pd.concat([rows(correct=base_flags), rows("grpo", 0, correct=tuned_flags)])
    pairs = list(product(combinations(range(3), 2), repeat=2))
    solved = [
        (any(of_base[i] for i in b), any(of_tuned[i] for i in t))
        for b, t in pairs
        for of_base, of_tuned in zip(base_flags, tuned_flags, strict=True)
    ]
    expected = [solved.count(pair) / len(pairs) for pair in ((True, True), (True, False), (False, True))]
    got = split_of(records)
    assert [got.preserved, got.lost, got.gained] == pytest.approx(expected)


def test_the_base_against_itself_is_estimated_from_twice_the_answers():
    flags = (1, 0, 0, 1, 0, 0)
    halves = [(set(x), set(range(6)) - set(x)) for x in combinations(range(6), 3)]
    both = np.mean([any(flags[i] for i in x) and any(flags[i] for i in y) for x, y in halves])
    got = split_of(rows(correct=(flags, (0,) * 6)), "base", 3)
    assert got.preserved == pytest.approx(both)  # disjoint halves of the 2k answers
    with pytest.raises(ValueError, match="pass@8"):
        split_of(rows(correct=(flags,)), "base", 4)


def test_keep_explore_refuses_missing_base_and_other_problems():
    tuned = rows("grpo", 0, correct=((1, 1), (0, 1)))
    with pytest.raises(ValueError, match=r"no records of base \(main\) on in_domain; there are: grpo"):
        split_of(tuned)
    with pytest.raises(ValueError, match=r"their problems differ.*'p1'"):
        split_of(pd.concat([rows(), tuned]))


def test_nothing_to_keep_or_to_explore_has_no_interval():
    tuned = rows("grpo", 0, correct=((1, 0), (0, 0)))
    assert split_of(pd.concat([rows(correct=((0, 0), (0, 0))), tuned])).keep() is None
    assert split_of(pd.concat([rows(correct=((1, 1), (1, 1))), tuned])).explore() is None


def test_keep_is_the_weighted_mean_and_has_an_interval_over_seeds_and_problems():
    rng = np.random.default_rng(1)
    base = rows(correct=rng.random((20, 4)) < 0.3)
    tuned = [rows("grpo", s, correct=rng.random((20, 4)) < 0.5) for s in range(3)]
    records = pd.concat([base, *tuned])
    solved, of_seeds = (scores_of(records, m, "in_domain", "pass", 2).values_SP for m in ("base", "grpo"))
    got = split_of(records)
    assert [x for _, x in got.keep().per_seed] == pytest.approx(((of_seeds * solved).sum(1) / solved.sum()).tolist())
    gained = (of_seeds * (1 - solved)).sum(1) / (1 - solved).sum()
    assert [x for _, x in got.explore().per_seed] == pytest.approx(gained.tolist())
    assert got.keep().low < got.keep().estimate < got.keep().high


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


# ---------------------------------------------------------------------------------------------- arms


def test_scores_are_seeds_by_problems_in_order_and_name_what_is_missing():
    records = pd.concat([rows("grpo", s, correct=((1, 0), (s, s))) for s in (1, 0)])
    scores = stats.FinalScores(records.sample(frac=1, random_state=0))
    found = scores.of("grpo", "in_domain", "pass", 1)
    assert found.seeds == (0, 1) and found.problems == ("p0", "p1")
    assert found.values_SP.tolist() == [[0.5, 0.0], [0.5, 1.0]]
    part = scores.get("grpo", "in_domain", "pass", 1, subset="family1")
    assert part.problems == ("p1",) and part.suite == "in_domain, family1"
    assert scores.answers("grpo", "in_domain") == 2 and scores.subsets("in_domain") == {"family0", "family1"}
    assert scores.get("grpo", "in_domain", "greedy") is None and scores.answers("grpo", "in_domain", "greedy") is None
    missing = r"no records of dapo \(main\) on in_domain; there are: grpo \(main\) on in_domain"
    with pytest.raises(ValueError, match=missing):
        scores.of("dapo", "in_domain")
    with pytest.raises(ValueError, match="on cross_domain"):
        scores.of("grpo", "cross_domain")


def test_styles_that_are_unknown_have_no_score():
    known = rows("grpo", 0, correct=((0, 0),), direct=1, nested=1)
    assert scores_of(known, "grpo", "in_domain", "styles_nats").values_SP.tolist() == [[pytest.approx(log(2))]]
    assert stats.FinalScores(rows("grpo", 0, direct=0)).get("grpo", "in_domain", "styles_nats") is None


@pytest.mark.parametrize(
    "change, named",
    [
        ({"temperature": 0.7}, "temperature 1.0 and 0.7"),
        ({"top_p": 0.9}, "top_p 1.0 and 0.9"),
        ({"max_new_tokens": 32}, "max_new_tokens 64.0 and 32.0"),
        ({"correct": ((1, 0, 0), (0, 0, 0))}, "drawn 2.0 and 3.0"),
        ({"correct": ((1, 0),)}, r"their problems differ: 1 only in the first \['p1'\]"),
    ],
)
def test_arms_that_were_drawn_differently_are_refused_by_name(change, named):
    ours = {"correct": ((1, 0), (0, 0)), "step": 5}
    both = pd.concat([rows("base", correct=ours["correct"]), rows("grpo", 0, **{**ours, **change})])
    scores = stats.FinalScores(both)
    with pytest.raises(ValueError, match=named):
        stats.bootstrap([scores.of(m, "in_domain") for m in ("base", "grpo")], lambda a, b: b - a)
    with pytest.raises(ValueError, match=named):
        scores_of(pd.concat([rows("grpo", 0, **ours), rows("grpo", 1, **{**ours, **change})]), "grpo")


def test_seeds_that_ended_at_different_steps_are_refused():
    with pytest.raises(ValueError, match=r"steps \[5, 9\]"):
        scores_of(pd.concat([rows("grpo", 0), rows("grpo", 1, step=9)]), "grpo")


def test_bootstrap_is_repeatable_and_paired():
    rng = np.random.default_rng(0)
    base = rng.random((1, 128))
    tuned = base + 0.1 + rng.normal(0, 0.001, (3, 128))
    got = stats.hierarchical_bootstrap(tuned, base, draws=2000, rng_seed=7)
    assert got == stats.hierarchical_bootstrap(tuned, base, draws=2000, rng_seed=7)
    assert got != stats.hierarchical_bootstrap(tuned, base, draws=2000, rng_seed=8)
    assert got.estimate == pytest.approx(tuned.mean() - base.mean())
    # Problems differ by 0.3; paired, that spread cancels and only the noise of 0.001 is left.
    assert 0.099 < got.low < got.estimate < got.high < 0.101
    assert [seed for seed, _ in got.per_seed] == [0, 1, 2]
    assert [x for _, x in got.per_seed] == pytest.approx((tuned - base).mean(axis=1))


def test_pairing_is_by_problem_id_and_not_by_position():
    values = np.arange(6.0)
    ids = tuple("abcdef")
    a = stats.Scores("a", "s", (-1,), ids, values[None])
    b = stats.Scores("b", "s", (-1,), ids[::-1], values[None, ::-1])
    got = stats.bootstrap([a, b], lambda x, y: x - y)
    assert (got.low, got.estimate, got.high) == (0.0, 0.0, 0.0)


def test_seeds_that_disagree_widen_the_interval_beyond_their_range():
    problems = np.zeros((1, 64))
    got = stats.hierarchical_bootstrap(problems + np.array([[0.0], [0.1], [0.2]]), problems)
    assert got.low < 0.0 and got.high > 0.2  # the outer seeds do not bound the truth
    same = stats.hierarchical_bootstrap(problems + 0.1, problems)
    assert same.low == pytest.approx(0.1) and same.high == pytest.approx(0.1)


def test_arms_must_be_finite_and_whole():
    with pytest.raises(ValueError, match="finite"):
        stats.hierarchical_bootstrap([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="the problems the same"):
        stats.hierarchical_bootstrap([[0.0, 1.0]], [[0.0]])
    with pytest.raises(ValueError, match="weights"):
        stats.hierarchical_bootstrap([[0.0, 1.0]], weights_P=[0.0, 0.0])
    with pytest.raises(ValueError, match="evaluate every seed"):
        one = stats.Scores("a", "s", (0, 1), ("p",), np.zeros((2, 1)))
        stats.bootstrap([one, stats.Scores("a", "t", (0, 2), ("p",), np.zeros((2, 1)))], lambda x, y: x - y)


@pytest.mark.parametrize("seed_spread", [0.0, 0.02, 0.06])
def test_interval_covers_the_truth_as_often_as_it_says(seed_spread):
    """150 simulated comparisons with the base, 3 seeds x 64 problems x 16 answers, true difference 0.

    Nominal coverage 95 %, binomial standard error of 150 trials 1.8 points; the degrees of freedom,
    estimated from three seeds, cost up to four points. At least 88 % is asked for (a plain percentile
    interval has about 83 % at the largest spread over seeds). With no spread over seeds the mean width
    stays below 1.3 times that of the normal interval over problems, so that no endless interval passes.
    """
    rng = np.random.default_rng(11)
    covered, widths, plain = 0, [], []
    for _ in range(150):
        rate_P = 0.1 + 0.8 * rng.random(64)
        base = rng.binomial(16, rate_P)[None] / 16
        tuned = rng.binomial(16, np.clip(rate_P + rng.normal(0, seed_spread, (3, 1)), 0, 1)) / 16
        got = stats.hierarchical_bootstrap(tuned, base, draws=400, rng_seed=int(rng.integers(2**31)))
        covered += got.low <= 0 <= got.high
        widths.append(got.high - got.low)
        plain.append(2 * 1.96 * np.std((tuned - base).mean(axis=0)) / 8)
    assert covered >= 0.88 * 150
    if seed_spread == 0.0:
        assert np.mean(widths) < 1.3 * np.mean(plain)


def test_p_is_below_a_level_where_its_interval_leaves_zero_out():
    rng = np.random.default_rng(4)
    found = 0
    for shift in np.linspace(0, 0.12, 25):
        base = rng.random((1, 40))
        tuned = base + shift + rng.normal(0, 0.1, (4, 40)) + rng.normal(0, 0.03, (4, 1))
        got = stats.hierarchical_bootstrap(tuned, base, draws=500)
        assert (got.p < 0.05) == (not got.low <= 0 <= got.high)
        found += got.p < 0.05
    assert 0 < found < 25
    same = stats.hierarchical_bootstrap(np.ones((3, 8)), np.ones((1, 8)))
    assert same.p == 1.0 and stats.hierarchical_bootstrap(np.ones((3, 8)), np.zeros((1, 8))).p == 0.0


def test_holm_is_the_step_down_rule_and_never_more_lenient_than_one_test():
    rng = np.random.default_rng(5)
    for _ in range(200):
        p = rng.random(rng.integers(1, 9)) ** 3
        adjusted = stats.holm(p)
        order, rejected = np.argsort(p), set()
        for place, i in enumerate(order):  # as Holm wrote it: go on while p_(i) <= level / (m - i + 1)
            if p[i] > 0.05 / (len(p) - place):
                break
            rejected.add(int(i))
        assert {int(i) for i in np.flatnonzero(adjusted <= 0.05)} == rejected
        assert (adjusted >= p).all() and (adjusted <= np.minimum(1, len(p) * p) + 1e-15).all()
    assert stats.holm([]).size == 0
    with_gap = stats.holm([0.02, np.nan, 0.5])
    assert np.isnan(with_gap[1]) and with_gap[[0, 2]].tolist() == [0.04, 0.5]
    with pytest.raises(ValueError, match="holm"):
        stats.holm([1.5])
