"""Each verdict forced from made-up records: claims that hold, fail, cannot be told, or were not run."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pytest

from dphlib.analysis.claims import (
    CLAIMS,
    PROFILES,
    Quantity,
    above,
    combine,
    evaluate_claims,
    print_table,
    rule,
    to_json,
)
from dphlib.settings.methods import METHODS

STYLES = np.array(["direct", "aliased", "nested", "stepwise"])
SUITES = ("in_domain", "cross_domain", "out_of_domain")
# method: (greedy accuracy, share of problems that every sample solves in / cross / out of domain, styles)
PAPER = {
    "base": (0.40, (0.95, 0.95, 0.95), 4),
    "grpo": (0.70, (0.72, 0.50, 0.20), 1),
    "dapo": (0.70, (0.72, 0.50, 0.20), 1),
    "rkl": (0.70, (0.72, 0.45, 0.04), 1),
    "dph_f": (0.72, (0.85, 0.80, 0.80), 4),
    "dph_js": (0.74, (0.87, 0.80, 0.80), 3),
}


PROBLEMS = 48


def run(method, seed, greedy, solvable, styles, *, variant="main", samples=16, temperature=1.0, jitter=True):
    """One run: every sample solves the first problems, none the rest; one problem a seed is flipped."""
    rng = np.random.default_rng([abs(seed), len(method)])
    right = np.arange(PROBLEMS) < round(greedy * PROBLEMS)
    flags = []
    for share in solvable:
        solved = np.arange(PROBLEMS) < round(share * PROBLEMS)
        solved[rng.integers(PROBLEMS)] ^= jitter
        flags += [right, *[solved] * samples]
    correct = np.concatenate(flags)
    sample = np.tile(np.repeat(np.arange(-1, samples), PROBLEMS), len(SUITES))
    columns = dict(
        method=method, variant=variant, seed=seed, step=60 * (method != "base"), subset="all", sample=sample,
        suite=np.repeat(SUITES, (samples + 1) * PROBLEMS), correct=correct,
        problem_id=np.tile([f"p{i}" for i in range(PROBLEMS)], len(flags)),
        outcome=np.where(correct, "correct", "wrong"), style=STYLES[sample % styles], answer_hash="aa",
        tokens=5, truncated=False, entropy=0.1, logprob=-1.0, base_logprob=-1.0, top_p=1.0, max_new_tokens=32,
        temperature=np.where(sample < 0, 0.0, temperature),
    )  # fmt: skip
    return pd.DataFrame(columns)


def world(spec=PAPER, seeds=(0, 1, 2), **over):
    return pd.concat(
        [run(m, s, *spec[m], **over) for m in spec for s in ((-1,) if m == "base" else seeds)],
        ignore_index=True,
    )


def logs(seeds=(0, 1, 2), **reference):
    """Train logs of two iterations; `reference` overrides a method's reference tokens per iteration."""
    tokens = {"grpo": 0, "rkl": 100, "dph_f": 0, "dph_js": 0, **reference}
    return pd.DataFrame(
        [
            dict(
                method=m,
                variant="main",
                seed=s,
                iteration=i,
                reference_tokens=t,
                policy_tokens=200,
                step_s=1.0,
            )
            for m, t in tokens.items()
            for s in seeds
            for i in range(2)
        ]
    )


RECORDS = world()


def verdicts(records=RECORDS, train_logs=None, profile="cpu", only=None):
    claims = [claim for claim in CLAIMS if only is None or claim.id in only]
    return {r.id: r for r in evaluate_claims(records, train_logs, profile, claims=claims)}


ABLATIONS = {"generator_as_good_as_definition", "threshold_8_as_good_as_6"}


def test_records_with_the_papers_shape_support_every_main_claim():
    got = verdicts(train_logs=logs())
    assert {i: r.verdict for i, r in got.items() if r.verdict != "supported"} == dict.fromkeys(ABLATIONS, "not run")
    for claim_id, r in got.items():
        if claim_id not in ABLATIONS | {"no_reference_model"}:
            assert r.low > -0.02 and r.low <= r.estimate <= r.high and len(r.per_seed) == 3


def test_records_of_the_opposite_shape_refute_the_claims():
    opposite = {"base": (0.6, (0.7, 0.7, 0.7), 4)}
    opposite |= {m: (0.4, (0.9, 0.9, 0.9), 4) for m in ("grpo", "dapo", "rkl")}
    opposite |= {m: (0.2, (0.5, 0.5, 0.5), 2) for m in ("dph_f", "dph_js")}
    got = verdicts(world(opposite), logs(rkl=0, dph_f=3))
    refuted = {i for i, r in got.items() if r.verdict == "not supported"}
    assert refuted >= {
        "greedy_rises", "pass_k_falls", "pass_16_falls_rkl", "grpo_keeps_one_style", "dph_keeps_styles",
        "dph_greedy_highest", "js_pass_8_above_grpo", "dph_nearer_at_large_k", "cross_every_rl_loses",
        "cross_dph_loses_least", "out_every_rl_loses", "out_dph_loses_least", "no_reference_model",
    }  # fmt: skip
    assert not [i for i, r in got.items() if r.verdict == "supported"]


def test_seeds_that_disagree_are_inconclusive():
    spread = [run("grpo", s, g, (0.75,) * 3, 1) for s, g in enumerate((0.2, 0.7, 0.5))]
    got = verdicts(
        pd.concat([run("base", -1, *PAPER["base"]), *spread, *[run("dapo", s, *PAPER["dapo"]) for s in range(3)]])
    )
    result = got["greedy_rises"]
    assert result.verdict == "inconclusive" and result.low <= 0 < result.high
    assert [p.verdict for p in result.parts] == ["inconclusive", "supported"]
    assert "decided by: GRPO > base, in-domain greedy" in result.detail


def test_smoke_never_settles_a_claim():
    got = verdicts(train_logs=logs(), profile="smoke").values()
    assert {r.verdict for r in got} == {"inconclusive", "not run"}
    assert {p.verdict for r in got for p in r.parts} == {"inconclusive", "not run"}
    assert all("smoke profile" in r.detail for r in got if r.verdict == "inconclusive")
    opposite = verdicts(train_logs=logs(rkl=0), profile="smoke")["no_reference_model"]
    assert opposite.verdict == "inconclusive"


def test_fewer_than_three_seeds_are_inconclusive_whatever_the_effect():
    got = verdicts(world(seeds=(0, 1)), logs(seeds=(0, 1)))
    assert {r.verdict for i, r in got.items() if i not in ABLATIONS} == {"inconclusive"}
    assert "too few seeds: 2" in got["greedy_rises"].detail


def test_absent_arms_suites_samples_and_logs_are_not_run_and_say_what_lacks():
    without = verdicts(RECORDS[RECORDS["method"] != "dapo"])
    assert without["greedy_rises"].verdict == "not run"
    assert "no records of DAPO, in-domain greedy" in without["greedy_rises"].detail
    assert without["js_pass_8_above_grpo"].verdict == "supported"
    assert without["no_reference_model"].verdict == "not run"

    assert verdicts(RECORDS[RECORDS["suite"] != "cross_domain"])["cross_dph_loses_least"].verdict == "not run"
    few = verdicts(world(samples=8))
    assert few["pass_k_falls"].verdict == "not run" and few["js_pass_8_above_grpo"].verdict == "supported"
    assert "needs 16 judged answers a problem, there are 8" in few["dph_nearer_at_large_k"].detail
    assert {r.verdict for r in verdicts(RECORDS.iloc[:0]).values()} == {"not run"}


def test_one_refuted_part_refutes_the_claim_even_if_another_was_not_run():
    spec = {**PAPER, "grpo": (0.2, *PAPER["grpo"][1:])}
    records = world(spec)
    assert (
        verdicts(records[records["method"] != "dapo"], only=["greedy_rises"])["greedy_rises"].verdict == "not supported"
    )
    assert combine(["supported", "not run", "inconclusive"]) == "not run"
    assert combine(["supported", "inconclusive"]) == "inconclusive"


@pytest.mark.parametrize(
    "low, high, tolerance, verdict",
    [
        (0.01, 0.1, 0.0, "supported"),
        (0.0, 0.1, 0.0, "inconclusive"),
        (-0.1, 0.0, 0.0, "not supported"),
        (-0.1, 0.1, 0.0, "inconclusive"),
        (-0.01, 0.1, 0.02, "supported"),
        (-0.01, -0.005, 0.02, "supported"),
        (-0.1, -0.01, 0.02, "inconclusive"),
        (-0.1, -0.03, 0.02, "not supported"),
    ],
)
def test_rule(low, high, tolerance, verdict):
    assert rule(low, high, tolerance) == verdict


def test_not_worse_allows_the_tolerance_and_no_more():
    for behind, verdict in ((0.0, "supported"), (0.25, "not supported")):
        spec = {**PAPER, "dph_f": (0.70 - behind, *PAPER["dph_f"][1:])}
        assert verdicts(world(spec), only=["dph_greedy_highest"])["dph_greedy_highest"].verdict == verdict


def test_ablation_variants_are_judged_when_they_are_there():
    def three(method, like, **over):
        return [run(method, s, *PAPER[like], jitter=False, **over) for s in range(3)]

    same = [*three("dph_f", "dph_f"), *three("dph_js", "dph_js"), *three("dph_js_definition", "dph_js")]
    same += three("dph_f", "dph_f", variant="threshold=8")
    got = verdicts(pd.concat([*same, *three("dph_js", "dph_js", variant="threshold=8")]), only=ABLATIONS)
    assert {got[i].verdict for i in ABLATIONS} == {"supported"}
    got = verdicts(pd.concat([*same, *three("dph_js", "grpo", variant="threshold=8")]), only=ABLATIONS)
    assert got["threshold_8_as_good_as_6"].verdict == "not supported"
    assert "DPH-JS (threshold=8)" in got["threshold_8_as_good_as_6"].detail


def test_intermediate_steps_do_not_count():
    early = RECORDS[RECORDS["method"] == "grpo"].assign(step=10, correct=False, outcome="wrong")
    assert to_json(list(verdicts(pd.concat([RECORDS, early])).values())) == to_json(list(verdicts().values()))


def test_large_k_is_the_largest_that_was_drawn():
    got = verdicts(world(samples=32), only=["dph_nearer_at_large_k"])["dph_nearer_at_large_k"]
    assert {p.label for p in got.parts} == {f"DPH-{m} > GRPO, in-domain Pass@32" for m in ("F", "JS")}


def test_arms_that_were_drawn_differently_are_refused():
    hot = [run("grpo", s, *PAPER["grpo"], temperature=0.7) for s in range(3)]
    with pytest.raises(
        ValueError, match=r"grpo \(main\) on in_domain.*temperature 1.0 and 0.7|temperature 0.7 and 1.0"
    ):
        verdicts(pd.concat([RECORDS[RECORDS["method"] != "grpo"], *hot]))


def test_a_base_that_solves_nothing_leaves_relative_losses_open():
    spec = {**PAPER, "base": (0.4, (0.0, 0.95, 0.95), 4)}
    got = verdicts(world(spec), only=["loss_grows_with_shift"])["loss_grows_with_shift"]
    assert got.verdict in ("inconclusive", "not supported")
    assert json.loads(to_json([got]))  # no NaN in the file


def test_wall_times_cannot_change_a_verdict_and_counters_can():
    slow = logs().assign(step_s=1e6)
    assert to_json(evaluate_claims(RECORDS, slow, "cpu")) == to_json(evaluate_claims(RECORDS, logs(), "cpu"))
    assert (
        verdicts(train_logs=logs(dph_js=1), only=["no_reference_model"])["no_reference_model"].verdict
        == "not supported"
    )
    assert (
        verdicts(train_logs=logs(rkl=0), only=["no_reference_model"])["no_reference_model"].verdict == "not supported"
    )


def test_a_seed_that_learnt_from_no_row_leaves_the_cost_unjudged():
    made = logs()
    made.loc[(made["method"] == "dph_f") & (made["seed"] == 1), "policy_tokens"] = 0
    got = verdicts(train_logs=made, only=["no_reference_model"])["no_reference_model"]
    assert got.verdict == "not run" and "a seed of DPH-F learnt from no row" in got.detail


def test_json_is_the_same_for_shuffled_records_and_its_floats_are_rounded():
    first = to_json(evaluate_claims(RECORDS, logs(), "cpu"))
    shuffled = RECORDS.sample(frac=1, random_state=3)
    assert to_json(evaluate_claims(shuffled, logs().sample(frac=1, random_state=4), "cpu")) == first
    rows = json.loads(first)
    assert [row["id"] for row in rows] == [claim.id for claim in CLAIMS]
    assert all(row[x] is None or row[x] == round(row[x], 6) for row in rows for x in ("estimate", "low", "high"))
    assert to_json(evaluate_claims(RECORDS, logs(), "cpu", rng_seed=1)) != first


def test_frame_and_table_show_every_claim():
    results = evaluate_claims(RECORDS, logs(), "cpu")
    frame = to_frame(results)
    assert list(frame["claim"].unique()) == [claim.id for claim in CLAIMS]
    assert len(frame) == sum(len(r.parts) for r in results)
    out = io.StringIO()
    print_table(results, file=out)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert f"{len(CLAIMS) - 2} supported, 0 not supported, 0 inconclusive, 2 not run" in text
    assert "points" in text and "Table 1" in text


def test_claims_are_well_formed():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    for claim in CLAIMS:
        assert claim.profile in PROFILES[1:] and claim.text.endswith(".") and claim.paper_ref
    with pytest.raises(ValueError, match="profile 'laptop': one of smoke, "):
        evaluate_claims(RECORDS, None, "laptop")
    part = above(Quantity("dph_f", "in_domain", "greedy"), Quantity("grpo", "in_domain", "greedy"), 0.02)
    assert part.label == "DPH-F >= GRPO less 2 points, in-domain greedy"
    assert all(q.name for q in (Quantity(m, "in_domain") for m in METHODS))
