"""Each verdict forced from made-up records: claims that hold, fail, stay open or were not run; how they are shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import make_records, make_rows, make_train_logs, with_styles

from dphlib.analysis.claims import (
    CLAIMS,
    SYMBOLS,
    VERDICTS,
    Claim,
    PartResult,
    both_points,
    combine,
    evaluate_claims,
    from_json,
    print_table,
    rule,
    to_json,
    verdict_counts,
)
from dphlib.analysis.labels import CLAIM_NAMES, VERDICT_COLOURS, claim_name
from dphlib.figures.claims import claims_figure, parts_table
from dphlib.scores import ArmScores

SUITES = ("in_domain", "cross_domain", "out_of_domain")
# method: (greedy accuracy, share of problems that every sample solves in / cross / out of domain, styles)
PAPER = {
    "base": (0.40, (0.92, 0.92, 0.92), 4),
    "grpo": (0.70, (0.72, 0.50, 0.20), 1),
    "dapo": (0.70, (0.72, 0.50, 0.20), 1),
    "rkl": (0.70, (0.72, 0.45, 0.04), 1),
    "dph_f": (0.75, (0.85, 0.80, 0.80), 4),
    "dph_js": (0.74, (0.87, 0.80, 0.80), 3),
}


PROBLEMS = 48


def run(method, seed, greedy, solvable, styles, *, variant="main", samples=16, jitter=True, **columns):
    """One run: every sample solves the first problems, none the rest; one problem per seed is flipped."""
    rng = np.random.default_rng([abs(seed), len(method)])
    right = np.arange(PROBLEMS) < round(greedy * PROBLEMS)
    frames = []
    for suite, share in zip(SUITES, solvable, strict=True):
        solved = np.arange(PROBLEMS) < round(share * PROBLEMS)
        solved[rng.integers(PROBLEMS)] ^= jitter
        flags = np.repeat(solved[:, None], samples, axis=1)
        frames.append(make_rows(method, seed, flags, greedy=right, suite=suite, variant=variant))
    return with_styles(pd.concat(frames, ignore_index=True), styles).assign(**columns)


def world(spec=PAPER, seeds=(0, 1, 2), **over):
    return pd.concat(
        [run(m, s, *spec[m], **over) for m in spec for s in ((0,) if m == "base" else seeds)], ignore_index=True
    )


def logs(seeds=(0, 1, 2), **reference):
    """Train logs of two iterations; `reference` overrides a method's reference tokens per iteration."""
    tokens = {"grpo": 0, "rkl": 100, "dph_f": 0, "dph_js": 0, **reference}
    rows = [(m, s, i, t) for m, t in tokens.items() for s in seeds for i in range(2)]
    frame = pd.DataFrame(rows, columns=["method", "seed", "iteration", "reference_tokens"])
    return frame.assign(variant="main", policy_tokens=200, step_s=1.0)


RECORDS = world()
SCORES = ArmScores.final(RECORDS)


def verdicts(records=RECORDS, train_logs=None, profile="cpu", only=None):
    claims = [claim for claim in CLAIMS if only is None or claim.id in only]
    return {r.id: r for r in evaluate_claims(ArmScores.final(records), train_logs, profile, claims=claims)}


def verdict_of(claim, records=RECORDS, train_logs=None):
    return verdicts(records, train_logs, only=[claim])[claim].verdict


ABLATIONS = {"generator_as_good_as_definition", "threshold_8_as_good_as_6"}
OTHER_ARMS = {"forward_keeps_more_than_reverse", "dph_above_reverse_gradient", "rehearsal_beyond_selection"}
OTHER_ARMS |= {"partition_costs_nothing"}
ABLATIONS |= OTHER_ARMS


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
    open_ones = {"out_rkl_loses_most", "loss_grows_with_shift"} | ABLATIONS
    assert refuted >= {claim.id for claim in CLAIMS} - open_ones
    assert not [i for i, r in got.items() if r.verdict == "supported"]


def test_seeds_that_disagree_are_inconclusive():
    spread = [run("grpo", s, g, (0.75,) * 3, 1) for s, g in enumerate((0.2, 0.7, 0.5))]
    got = verdicts(
        pd.concat([run("base", 0, *PAPER["base"]), *spread, *[run("dapo", s, *PAPER["dapo"]) for s in range(3)]])
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


@pytest.mark.parametrize("share, said", [(1.0, "above 95 %"), (0.05, "below 10 %")])
def test_a_base_without_room_leaves_its_claims_untestable_whatever_the_arms_did(share, said):
    got = verdicts(world({**PAPER, "base": (0.40, (0.92, 0.92, share), 4)}))
    one = got["out_dph_loses_least"]
    assert one.verdict == "not testable" and "the base's out-of-domain Pass@8 is" in one.detail
    assert said in one.detail and one.low is not None  # the numbers are shown all the same
    assert {part.verdict for part in one.parts} == {"not testable"} and {part.p for part in one.parts} == {None}
    assert got["loss_grows_with_shift"].verdict == "not testable"
    assert got["cross_dph_loses_least"].verdict == "supported"
    assert combine(["not testable", "supported"]) == "not testable"
    assert combine(["not run", "not testable"]) == "not run"
    without = verdicts(RECORDS[RECORDS["method"] != "base"])
    assert without["out_every_rl_loses"].verdict == "not run" and without["out_dph_loses_least"].verdict == "supported"


def decided(name, verdict, *p, headline=True):
    parts = [PartResult(f"{name}{i}", verdict, "share", 0.1, 0.01, 0.2, p=value) for i, value in enumerate(p)]
    return Claim(name, name, "", lambda evidence: parts, headline=headline)


def test_a_verdict_holds_jointly_if_holms_correction_over_all_parts_leaves_it():
    claims = [
        decided("sure", "supported", 1e-4, 1e-5),
        decided("alone", "supported", 1e-4, 0.03),
        decided("against", "not supported", 0.04, 1e-3),  # one refuted part is enough
        decided("barely", "not supported", 0.04),
        decided("unclear", "inconclusive", 0.4),
        decided("counted", "supported", None),
        decided("aside", "supported", 0.001, headline=False),
    ]
    got = {one.id: one.holds_jointly for one in evaluate_claims(SCORES, None, "cpu", claims)}
    expected = {"sure": True, "alone": False, "against": True, "barely": False, "unclear": True, "counted": True}
    assert got == {**expected, "aside": None}
    three = [decided("a", "supported", 0.012), decided("b", "supported", 0.02), decided("c", "supported", 0.06)]
    assert [one.holds_jointly for one in evaluate_claims(SCORES, None, "cpu", three)] == [True, True, False]


def test_p_of_a_part_is_about_the_tolerance(results):
    decided = [part for one in results for part in one.parts if part.p is not None]
    assert len(decided) > 20
    for part in decided:
        outside = part.low > -part.tolerance or part.high < -part.tolerance
        assert (part.p < 0.05) == outside, part.label


def test_absent_arms_suites_samples_and_logs_are_not_run_and_say_what_lacks():
    without = verdicts(RECORDS[RECORDS["method"] != "dapo"])
    assert without["greedy_rises"].verdict == "not run"
    assert "no records of DAPO, in-domain greedy" in without["greedy_rises"].detail
    assert without["js_pass_8_above_grpo"].verdict == "supported"
    assert without["no_reference_model"].verdict == "not run"

    assert verdicts(RECORDS[RECORDS["suite"] != "cross_domain"])["cross_dph_loses_least"].verdict == "not run"
    few = verdicts(world(samples=8))
    assert few["pass_k_falls"].verdict == "not run" and few["js_pass_8_above_grpo"].verdict == "supported"
    assert "needs 16 judged answers per problem, there are 8" in few["dph_nearer_at_large_k"].detail
    assert {r.verdict for r in verdicts(RECORDS.iloc[:0]).values()} == {"not run"}


def test_one_refuted_part_refutes_the_claim_even_if_another_was_not_run():
    records = world({**PAPER, "grpo": (0.2, *PAPER["grpo"][1:])})
    assert verdict_of("greedy_rises", records[records["method"] != "dapo"]) == "not supported"
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


@pytest.mark.parametrize("behind, verdict", [(0.0, "supported"), (0.25, "not supported")])
def test_not_worse_allows_the_tolerance_and_no_more(behind, verdict):
    spec = {**PAPER, "dph_f": (0.70 - behind, *PAPER["dph_f"][1:])}
    assert verdict_of("dph_greedy_highest", world(spec)) == verdict


def test_ablation_variants_are_judged_when_they_are_there():
    def three(method, like, **over):
        return [run(method, s, *PAPER[like], jitter=False, **over) for s in range(3)]

    same = [*three("dph_f", "dph_f"), *three("dph_js", "dph_js"), *three("dph_js_definition", "dph_js")]
    same += three("dph_f", "dph_f", variant="threshold=8")
    got = verdicts(pd.concat([*same, *three("dph_js", "dph_js", variant="threshold=8")]), only=ABLATIONS)
    assert {got[i].verdict for i in ABLATIONS - OTHER_ARMS} == {"supported"}
    got = verdicts(pd.concat([*same, *three("dph_js", "grpo", variant="threshold=8")]), only=ABLATIONS)
    assert got["threshold_8_as_good_as_6"].verdict == "not supported"
    assert "DPH-JS (threshold 8)" in got["threshold_8_as_good_as_6"].detail


def test_intermediate_steps_do_not_count():
    early = RECORDS[RECORDS["method"] == "grpo"].assign(step=1, correct=0)
    assert to_json(list(verdicts(pd.concat([RECORDS, early])).values())) == to_json(list(verdicts().values()))


def test_large_k_is_the_largest_that_was_drawn():
    got = verdicts(world(samples=32), only=["dph_nearer_at_large_k"])["dph_nearer_at_large_k"]
    assert {p.label for p in got.parts} == {f"DPH-{m} > GRPO, in-domain Pass@32" for m in ("F", "JS")}


def test_a_base_that_solves_nothing_leaves_relative_losses_open():
    spec = {**PAPER, "base": (0.4, (0.0, 0.92, 0.92), 4)}
    claim = next(replace(one, testable=None) for one in CLAIMS if one.id == "loss_grows_with_shift")
    (got,) = evaluate_claims(ArmScores.final(world(spec)), None, "cpu", [claim])
    assert got.verdict in ("inconclusive", "not supported")
    assert json.loads(to_json([got]))  # no NaN in the file


def test_wall_times_cannot_change_a_verdict_and_counters_can():
    slow = logs().assign(step_s=1e6)
    assert to_json(evaluate_claims(SCORES, slow, "cpu")) == to_json(evaluate_claims(SCORES, logs(), "cpu"))
    assert verdict_of("no_reference_model", train_logs=logs(dph_js=1)) == "not supported"
    assert verdict_of("no_reference_model", train_logs=logs(rkl=0)) == "not supported"


def test_a_seed_that_learnt_from_no_row_leaves_the_cost_unjudged():
    made = logs()
    made.loc[(made["method"] == "dph_f") & (made["seed"] == 1), "policy_tokens"] = 0
    got = verdicts(train_logs=made, only=["no_reference_model"])["no_reference_model"]
    assert got.verdict == "not run" and "a seed of DPH-F learnt from no row" in got.detail


def test_json_is_the_same_for_shuffled_records_and_its_floats_are_rounded():
    first = to_json(evaluate_claims(SCORES, logs(), "cpu"))
    shuffled = RECORDS.sample(frac=1, random_state=3)
    assert to_json(evaluate_claims(ArmScores.final(shuffled), logs().sample(frac=1, random_state=4), "cpu")) == first
    rows = json.loads(first)
    assert [row["id"] for row in rows] == [claim.id for claim in CLAIMS]
    assert all(row[x] is None or row[x] == round(row[x], 6) for row in rows for x in ("estimate", "low", "high"))


@pytest.fixture(scope="module")
def results():
    """Verdicts of several kinds; the ablations were not run."""
    return evaluate_claims(ArmScores.final(make_records(ablations=False, steps=False)), make_train_logs(), "cpu")


def test_results_are_read_again_also_those_of_a_file_without_the_deciding_part(results):
    text = to_json(results)
    assert to_json(from_json(text)) == text
    rows = json.loads(text)
    for row in rows:
        del row["deciding"]
    assert to_json(from_json(json.dumps(rows))) == text


def test_the_deciding_part_is_the_weakest_of_those_with_the_verdict(results):
    for one in results:
        part = one.deciding_part
        assert (part.estimate, part.low, part.high, part.verdict) == (one.estimate, one.low, one.high, one.verdict)
        assert f"decided by: {part.label}" in one.detail
        of_verdict = [p.low + p.tolerance for p in one.parts if p.verdict == one.verdict and p.low is not None]
        assert part.low is None or part.low + part.tolerance == min(of_verdict)


def test_the_terminal_shows_every_claim(results):
    out = io.StringIO()
    print_table(results, file=out)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(results).items()) in text
    assert text.count("Table") >= 12 and "points" in text


def test_every_claim_has_its_line_under_its_verdict_at_both_points(results):
    counts, stopped = verdict_counts(results), [replace(one, verdict="inconclusive") for one in results[:-1]]
    table = both_points(results, stopped)
    assert sorted(text.strip("*") for text in table["claim"]) == sorted(claim.text for claim in CLAIMS)
    assert sum(counts.values()) == len(results) and counts["not run"] >= 1 and counts["supported"] >= 1
    assert table["at the end"].tolist() == [f"{SYMBOLS[v]} {v}" for v, count in counts.items() for _ in range(count)]
    not_run = table[table["at the end"].str.endswith("not run")]
    assert (not_run["effect that decided"] == "-").all()
    assert table["at the stopping points"].value_counts().to_dict() == {"○ inconclusive": len(results) - 1, "-": 1}
    assert table["claim"].str.startswith("**").sum() == sum(claim.headline for claim in CLAIMS)


def test_parts_can_be_chosen_by_verdict(results):
    every = parts_table(results)
    assert len(every) == sum(len(one.parts) for one in results)
    supported = parts_table(results, "supported")
    assert set(supported["claim"]) == {claim_name(one.id) for one in results if one.verdict == "supported"}
    assert set(every.loc[every["claim"] == claim_name("dph_greedy_highest"), "tolerance"]) == {"2 points"}
    assert list(parts_table([], "not run").columns) == list(every.columns)
    with pytest.raises(ValueError, match="'maybe': all, supported"):
        parts_table(results, "maybe")


def test_the_picture_has_a_row_for_each_claim_that_has_an_interval(results):
    figure = claims_figure(results)
    names = {" ".join(text.get_text().split()) for ax in figure.axes for text in ax.get_yticklabels()}
    assert names == {claim_name(one.id) for one in results if one.unit in ("share", "nats")}
    assert "no reference model online: supported" in " ".join(figure._supxlabel.get_text().split())
    with pytest.raises(ValueError, match="notebook 08"):
        claims_figure([])


def test_every_claim_has_a_few_words_of_its_own():
    assert list(CLAIM_NAMES) == [claim.id for claim in CLAIMS]
    assert len(set(CLAIM_NAMES.values())) == len(CLAIMS) and max(map(len, CLAIM_NAMES.values())) <= 50


def test_a_verdict_is_a_colour_and_a_word_on_one_shape(results):
    figure, drawn = claims_figure(results), 0
    for ax in figure.axes:
        names = (" ".join(text.get_text().split()) for text in ax.get_yticklabels())
        rows = dict(zip(ax.get_yticks(), names, strict=True))
        words = {rows[text.xy[1]]: text for text in ax.texts}
        points = [line for line in ax.lines if line.get_marker() not in ("None", "", None)]
        assert {line.get_marker() for line in points} - {8, 9} == {"o"}
        for one in (one for one in results if claim_name(one.id) in words):
            text = words[claim_name(one.id)]
            assert text.get_text().split(" ", 1)[1] == one.verdict and text.get_color() == VERDICT_COLOURS[one.verdict]
            of_row = [line for line in points if rows[line.get_ydata()[0]] == claim_name(one.id)]
            assert {line.get_color() for line in of_row} <= {VERDICT_COLOURS[one.verdict]}
            drawn += 1
    assert drawn == sum(one.unit in ("share", "nats") for one in results)
    assert len(set(VERDICT_COLOURS.values())) == len(VERDICTS) == len(VERDICT_COLOURS)


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="profile 'laptop': one of smoke, "):
        evaluate_claims(SCORES, None, "laptop")
