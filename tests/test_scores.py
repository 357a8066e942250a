"""Scores of arms from hand-made records: order, names, refusals, base models; keep and explore against enumeration."""

from __future__ import annotations

from itertools import combinations, product
from math import log

import numpy as np
import pandas as pd
import pytest
from synthetic import make_rows as rows

from dphlib.intervals import interval
from dphlib.scores import ArmScores, keep_and_explore, with_bases


def scores_of(records, method, suite="in_domain", *measure):
    return ArmScores.final(records).of(method, suite, *measure)


def test_scores_are_seeds_by_problems_in_order_and_name_what_is_missing():
    records = pd.concat([rows("grpo", s, correct=((1, 0), (s, s))) for s in (1, 0)])
    scores = ArmScores.final(records.sample(frac=1, random_state=0))
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
    assert ArmScores.final(rows("grpo", 0, direct=0)).get("grpo", "in_domain", "styles_nats") is None


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
    scores = ArmScores.final(both)
    with pytest.raises(ValueError, match=named):
        interval([scores.of(m, "in_domain") for m in ("base", "grpo")], lambda a, b: b - a)
    with pytest.raises(ValueError, match=named):
        scores_of(pd.concat([rows("grpo", 0, **ours), rows("grpo", 1, **{**ours, **change})]), "grpo")


def test_runs_of_an_arm_that_ended_at_different_steps_are_no_final_models():
    unequal = pd.concat([rows("grpo", 0), rows("grpo", 1, step=9)])
    with pytest.raises(ValueError, match=r"grpo \(main\): runs end at steps 5 to 9"):
        ArmScores.final(unequal)
    assert ArmScores(unequal).of("grpo", "in_domain").seeds == (0, 1)  # each at its stopping point
    with pytest.raises(ValueError, match="2 steps"):
        ArmScores(pd.concat([rows("grpo", 0), rows("grpo", 0, step=9)]))


def test_a_run_belongs_to_the_base_model_of_its_seed():
    bases = [rows("base", b, correct=((1, b), (0, b)), step=0) for b in range(2)]
    records = with_bases(pd.concat([*bases, *(rows("grpo", s, correct=((1, 1), (0, 1))) for s in range(4))]), 2)
    base, tuned = (scores_of(records, method) for method in ("base", "grpo"))
    assert (base.bases, base.trained) == ((0, 1), False) and (tuned.bases, tuned.trained) == ((0, 1, 0, 1), True)
    assert tuned.strata == ("family0", "family1")
    got = interval([tuned, base], np.subtract)
    assert [effect for _, effect in got.per_seed] == [0.5, 0.0, 0.5, 0.0]
    of_one = records[records["method"] != "base"]
    assert scores_of(of_one, "grpo").bases == (0, 1, 0, 1)


@pytest.mark.parametrize("seeds", [(7, 9), (2, 7), (5,), (17, 3, 9)])
def test_seeds_in_no_order_still_belong_to_the_profiles_base_models(seeds):
    """The seeds alone do not tell: 7 and 9 have bases 1 and 3 of six, and 3 and 1 of four."""
    bases = [rows("base", b, step=0) for b in sorted({seed % 6 for seed in seeds})]
    records = with_bases(pd.concat([*bases, *(rows("grpo", seed) for seed in seeds)]), 6)
    tuned = scores_of(records, "grpo")
    assert tuned.bases == tuple(seed % 6 for seed in sorted(seeds))
    assert scores_of(records, "base").bases == scores_of(records, "base").seeds


# ---------------------------------------------------------------------------------------------- keep and explore


def split_of(records, method="grpo", k=2):
    return keep_and_explore(ArmScores.final(records), method, "in_domain", k)


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


def test_each_run_keeps_what_its_own_base_model_solves():
    bases = [rows("base", 0, correct=((1,), (0,)), step=0), rows("base", 1, correct=((0,), (1,)), step=0)]
    tuned = [rows("grpo", 0, correct=((1,), (0,))), rows("grpo", 1, correct=((1,), (1,)))]
    got = split_of(with_bases(pd.concat([*bases, *tuned]), 2), k=1)
    assert [got.preserved, got.lost, got.gained] == [1.0, 0.0, 0.5]
    assert [got.keep().estimate, got.explore().estimate] == [1.0, 0.5]
