"""Pass@k against exact fractions, the tidy numbers on hand-made records, refusals, interval coverage."""

from __future__ import annotations

import time
from fractions import Fraction
from itertools import combinations
from math import comb, log

import numpy as np
import pandas as pd
import pytest

from dphlib import stats


def rows(method="base", seed=-1, correct=((True, False),), *, step=0, variant="main", suite="in_domain", **over):
    """Sampled answers: one entry of `correct` a problem, one flag a sample."""
    out = []
    for p, flags in enumerate(correct):
        for sample, flag in enumerate(flags):
            row = dict(
                method=method, variant=variant, seed=seed, step=step, suite=suite, subset=f"family{p % 2}",
                problem_id=f"p{p}", sample=sample, correct=bool(flag), outcome="correct" if flag else "wrong",
                style="direct", answer_hash=f"{p}{int(flag)}", tokens=10, truncated=False, entropy=0.5,
                logprob=-5.0, base_logprob=-6.0, temperature=1.0, top_p=1.0, max_new_tokens=64,
            )  # fmt: skip
            out.append(
                {
                    **row,
                    **{key: value[p][sample] if isinstance(value, list) else value for key, value in over.items()},
                }
            )
    return pd.DataFrame(out)


def greedy_rows(*args, **kwargs):
    return rows(*args, **kwargs).assign(sample=-1, temperature=0.0)


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


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer():
    answers = [True, True, False, False, False]
    subsets = list(combinations(answers, 3))
    assert stats.pass_at_k(5, 2, 3) == sum(map(any, subsets)) / len(subsets)


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


def test_pass_curve_and_subset_means():
    records = rows(correct=((1, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)))
    curve = stats.pass_curve(records, [1, 2, 4]).set_index("k")["pass_at_k"]
    assert curve.to_dict() == pytest.approx({1: 1.25 / 3, 2: 1.5 / 3, 4: 2 / 3})
    parts = stats.pass_curve(records, [4], by=["subset"]).set_index("subset")
    assert parts["pass_at_k"].to_dict() == {"family0": 1.0, "family1": 0.0}
    assert parts["problems"].to_dict() == {"family0": 2, "family1": 1}
    with pytest.raises(ValueError, match=r"pass@8: base \(main\).*n=4"):
        stats.pass_curve(records, [8])


def test_greedy_and_sampled_answers_never_mix():
    records = pd.concat([rows(correct=((0, 0), (0, 0))), greedy_rows(correct=((1,), (0,)))])
    assert stats.greedy_accuracy(records)["greedy"].item() == 0.5
    assert stats.pass_curve(records, [2])["pass_at_k"].item() == 0.0
    with pytest.raises(ValueError, match="more than one temperature"):
        stats.problem_table(records)


def test_unjudged_answers_leave_n_and_are_not_wrong():
    records = rows(correct=((1, 0, 0, 0),), outcome=[["correct", "wrong", "infra_error", "infra_error"]])
    table = stats.problem_table(records)
    assert table[["drawn", "n", "c"]].iloc[0].to_list() == [4, 2, 1]
    assert stats.pass_curve(records, [1])["pass_at_k"].item() == 0.5


def test_an_answer_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="stand twice"):
        stats.pass_curve(pd.concat([rows(), rows()]), [1])


def test_final_keeps_each_runs_own_last_step():
    records = pd.concat([rows("grpo", 0, step=10), rows("grpo", 0, step=20), rows("grpo", 1, step=10), rows()])
    kept = stats.final(records)
    assert set(zip(kept["method"], kept["seed"], kept["step"], strict=True)) == {
        ("grpo", 0, 20),
        ("grpo", 1, 10),
        ("base", -1, 0),
    }


def test_avg_at_k_takes_the_first_samples_only():
    records = rows(correct=((1, 0, 0, 0), (1, 1, 0, 0)))
    assert stats.avg_at_k(records, 2)["avg_at_k"].item() == 0.75
    with pytest.raises(ValueError, match="k=5"):
        stats.avg_at_k(records, 5)


def test_auc_is_the_mean_height_over_log2_k():
    assert stats.auc_log2_k([1, 2, 4, 8], [0.3] * 4) == pytest.approx(0.3)
    assert stats.auc_log2_k([1, 4], [0.0, 1.0]) == 0.5
    records = rows(correct=((1, 0, 0, 0),))
    assert stats.auc_at_k(records, 4)["auc_at_k"].item() == pytest.approx((0.25 + 0.5) / 4 + (0.5 + 1.0) / 4)
    assert stats.auc_at_k(records, 3)["auc_at_k"].item() == pytest.approx(
        stats.auc_log2_k([1, 2, 3], [0.25, 0.5, 0.75])
    )
    with pytest.raises(ValueError, match="ascending"):
        stats.auc_log2_k([2, 1], [0.1, 0.2])


def test_keep_and_explore_are_plain_shares_at_k_equal_n():
    base = rows(correct=((1, 0), (0, 1), (0, 0), (0, 0), (0, 0)))
    tuned = rows("grpo", 0, correct=((1, 1), (0, 0), (1, 0), (0, 0), (0, 0)), step=5)
    got = stats.keep_explore(pd.concat([base, tuned]), k=2).iloc[0]
    assert got[["keep", "explore"]].to_list() == pytest.approx([1 / 2, 1 / 3])
    assert got[["preserved", "lost", "gained"]].to_list() == [1.0, 1.0, 1.0]


def test_keep_and_explore_are_the_expectation_over_all_draws_of_k():
    base_flags, tuned_flags = [(1, 0, 0), (0, 0, 0)], [(0, 1, 1), (0, 1, 0)]
    records = pd.concat([rows(correct=base_flags), rows("dph_f", 0, correct=tuned_flags, step=5)])
    kept = lost = gained = draws = 0
    for b in combinations(range(3), 2):
        for t in combinations(range(3), 2):
            draws += 1
            for flags_b, flags_t in zip(base_flags, tuned_flags, strict=True):
                solved_b, solved_t = any(flags_b[i] for i in b), any(flags_t[i] for i in t)
                kept, lost, gained = (
                    kept + (solved_b and solved_t),
                    lost + (solved_b and not solved_t),
                    gained + (solved_t and not solved_b),
                )
    got = stats.keep_explore(records, k=2).iloc[0]
    assert got[["preserved", "lost", "gained"]].to_list() == pytest.approx([kept / draws, lost / draws, gained / draws])


def test_keep_explore_refuses_missing_base_and_other_problems():
    tuned = rows("grpo", 0, correct=((1, 1), (0, 1)), step=5)
    with pytest.raises(ValueError, match=r"no records of base \(main\) on in_domain; there are: grpo"):
        stats.keep_explore(tuned, k=2)
    with pytest.raises(ValueError, match=r"their problems differ.*'p1'"):
        stats.keep_explore(pd.concat([rows(), tuned]), k=2)


def test_keep_is_the_weighted_mean_that_the_bootstrap_takes():
    rng = np.random.default_rng(1)
    base = rows(correct=rng.random((20, 4)) < 0.3)
    tuned = [rows("grpo", s, correct=rng.random((20, 4)) < 0.5, step=5) for s in range(3)]
    records = pd.concat([base, *tuned])
    table = stats.problem_table(records)
    solved = stats.arm(table, "base", "in_domain", k=2).values_SP[0]
    arm = stats.arm(table, "grpo", "in_domain", k=2).values_SP
    split = stats.keep_explore(records, k=2)
    keep, explore = (
        stats.hierarchical_bootstrap(arm, weights_P=solved),
        stats.hierarchical_bootstrap(arm, weights_P=1 - solved),
    )
    assert [x for _, x in keep.per_seed] == pytest.approx(split["keep"].to_list())
    assert [x for _, x in explore.per_seed] == pytest.approx(split["explore"].to_list())
    assert keep.low < keep.estimate < keep.high


# ---------------------------------------------------------------------------------------------- behaviour


def test_style_entropy_tells_one_style_a_problem_from_one_style_in_all():
    flags = ((0,) * 4,) * 2
    own = rows("grpo", 0, correct=flags, style=[["direct"] * 4, ["nested"] * 4])
    mixed = rows("dph_f", 0, correct=flags, style=[["direct", "nested"] * 2] * 2)
    lost = rows("rkl", 0, correct=flags, style="other")
    got = stats.style_entropy(pd.concat([own, mixed, lost])).set_index("method")
    assert got["per_problem_nats"].to_dict() == pytest.approx({"grpo": 0.0, "dph_f": log(2), "rkl": 0.0})
    assert got["pooled_nats"].to_dict() == pytest.approx({"grpo": log(2), "dph_f": log(2), "rkl": 0.0})
    assert got["styles"].to_dict() == {"grpo": 2, "dph_f": 2, "rkl": 0}


def test_style_shares_sum_to_one_and_show_other():
    shares = stats.style_shares(rows(correct=((0,) * 4,), style=[["direct", "direct", "nested", "other"]]))
    assert shares.set_index("style")["share"].to_dict() == {"direct": 0.5, "nested": 0.25, "other": 0.25}


def test_entropy_and_kl_are_per_token_and_kl_skips_rows_without_a_base():
    records = rows(
        correct=((1, 0, 0),), tokens=[[10, 30, 10]], entropy=[[0.1, 0.5, 0.1]], logprob=[[-4.0, -10.0, -1.0]],
        base_logprob=[[-6.0, -12.0, np.nan]], truncated=[[True, False, False]],
    )  # fmt: skip
    got = stats.answer_statistics(records).iloc[0]
    assert got["entropy_nats"] == pytest.approx(17 / 50)
    assert got["kl_to_base_nats"] == pytest.approx(4 / 40)
    assert got["truncated"] == pytest.approx(1 / 3)
    assert np.isnan(stats.answer_statistics(records.assign(base_logprob=np.nan))["kl_to_base_nats"].item())


def test_truncation_rate_counts_greedy_answers_too():
    records = pd.concat([rows(correct=((1, 0, 0),)), greedy_rows(correct=((1,),), truncated=True)])
    assert stats.truncation_rate(records)["truncated"].item() == 0.25


def test_distinct_correct_counts_each_correct_answer_once_in_the_first_samples():
    records = rows(correct=((1, 1, 1, 0, 1), (0, 0, 0, 0, 1)), answer_hash=[["a", "a", "b", "c", "d"], ["x"] * 5])
    assert stats.distinct_correct(records, 4)["distinct_correct"].item() == 1.0
    assert stats.distinct_correct(records, 5)["distinct_correct"].item() == 2.0
    with pytest.raises(ValueError, match="only 5 samples"):
        stats.distinct_correct(records, 6)


@pytest.mark.parametrize(
    "function",
    [
        lambda r: stats.pass_curve(r, [1]), stats.greedy_accuracy, stats.style_shares, stats.style_entropy,
        stats.answer_statistics, stats.truncation_rate, lambda r: stats.distinct_correct(r, 1),
    ],
)  # fmt: skip
def test_empty_records_are_an_error_and_not_an_empty_answer(function):
    with pytest.raises(ValueError, match=r"no records|no sampled"):
        function(rows().iloc[:0])


# ---------------------------------------------------------------------------------------------- arms


def test_arm_is_seeds_by_problems_in_order_and_names_what_is_missing():
    records = pd.concat([rows("grpo", s, correct=((1, 0), (s, s)), step=5) for s in (1, 0)])
    table = stats.problem_table(records.sample(frac=1, random_state=0))
    arm = stats.arm(table, "grpo", "in_domain", k=1)
    assert arm.seeds == (0, 1) and arm.problems == ("p0", "p1")
    assert arm.values_SP.tolist() == [[0.5, 0.0], [0.5, 1.0]]
    with pytest.raises(
        ValueError, match=r"no records of dapo \(main\) on in_domain; there are: grpo \(main\) on in_domain"
    ):
        stats.arm(table, "dapo", "in_domain")
    with pytest.raises(ValueError, match="on cross_domain"):
        stats.arm(table, "grpo", "cross_domain")


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
    table = stats.problem_table(
        pd.concat([rows("base", correct=ours["correct"]), rows("grpo", 0, **{**ours, **change})])
    )
    arms = [stats.arm(table, m, "in_domain", k=1) for m in ("base", "grpo")]
    with pytest.raises(ValueError, match=named):
        stats.bootstrap(arms, lambda a, b: b - a)
    seeds = stats.problem_table(pd.concat([rows("grpo", 0, **ours), rows("grpo", 1, **{**ours, **change})]))
    with pytest.raises(ValueError, match=named):
        stats.arm(seeds, "grpo", "in_domain", k=1)


def test_seeds_that_ended_at_different_steps_are_refused():
    table = stats.problem_table(pd.concat([rows("grpo", 0, step=5), rows("grpo", 1, step=9)]))
    with pytest.raises(ValueError, match=r"steps \[5, 9\]"):
        stats.arm(table, "grpo", "in_domain", k=1)


def test_bootstrap_is_repeatable_paired_and_fast():
    rng = np.random.default_rng(0)
    base = rng.random((1, 128))
    tuned = base + 0.1 + rng.normal(0, 0.001, (3, 128))
    start = time.perf_counter()
    got = stats.hierarchical_bootstrap(tuned, base, draws=2000, rng_seed=7)
    assert time.perf_counter() - start < 0.5
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
    a = stats.Arm("a", "s", (-1,), ids, values[None])
    b = stats.Arm("b", "s", (-1,), ids[::-1], values[None, ::-1])
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
        one = stats.Arm("a", "s", (0, 1), ("p",), np.zeros((2, 1)))
        stats.bootstrap([one, stats.Arm("a", "t", (0, 2), ("p",), np.zeros((2, 1)))], lambda x, y: x - y)


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
    told = 0
    for shift in np.linspace(0, 0.12, 25):
        base = rng.random((1, 40))
        tuned = base + shift + rng.normal(0, 0.1, (4, 40)) + rng.normal(0, 0.03, (4, 1))
        got = stats.hierarchical_bootstrap(tuned, base, draws=500)
        assert (got.p < 0.05) == (not got.low <= 0 <= got.high)
        told += got.p < 0.05
    assert 0 < told < 25
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


def test_intervals_lists_each_metric_of_each_arm():
    rng = np.random.default_rng(2)
    frames = [rows(correct=rng.random((8, 4)) < 0.5), greedy_rows(correct=rng.random((8, 1)) < 0.5)]
    for seed in range(3):
        frames.append(rows("grpo", seed, correct=rng.random((8, 4)) < 0.5, step=5))
        frames.append(greedy_rows("grpo", seed, correct=rng.random((8, 1)) < 0.5, step=5))
    records = pd.concat(frames)
    got = stats.intervals(records, [1, 4], draws=200)
    assert len(got) == 2 * 4 and set(got["metric"]) == {"greedy", "styles_nats", "pass"}
    assert (got["low"] <= got["estimate"]).all() and (got["estimate"] <= got["high"]).all()
    assert got.set_index(["method", "metric", "k"]).loc[("grpo", "greedy", 1), "seeds"] == 3
    mean = stats.pass_curve(records, [4]).groupby("method")["pass_at_k"].mean()
    passed = got[(got["metric"] == "pass") & (got["k"] == 4)].set_index("method")["estimate"]
    assert passed.to_dict() == pytest.approx(mean.to_dict())


def test_hundreds_of_thousands_of_rows_are_reduced_in_seconds():
    one = rows(correct=np.zeros((500, 64), bool))
    records = pd.concat([one.assign(method="grpo", seed=s) for s in range(10)], ignore_index=True)
    start = time.perf_counter()
    assert len(stats.problem_table(records)) == 5000
    assert time.perf_counter() - start < 10
