"""Results in words: hand-made records whose numbers can be counted, and the made-up run for the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import make_cost, make_records, make_study_records, make_train_logs
from synthetic import make_rows as rows

from dphlib import stats
from dphlib.analysis import retention, sentences, studies
from dphlib.analysis.claims import both_points, evaluate_claims
from dphlib.analysis.labels import NAMES
from dphlib.analysis.waypoints import waypoint_table
from dphlib.intervals import interval
from dphlib.scores import ArmScores
from dphlib.settings.profiles import profile

HALF, ALL, NONE, ONE = [1, 1, 0, 0], [1] * 4, [0] * 4, [1, 0, 0, 0]
CPU = profile("cpu")


def scores(tuned: list[list[int]], base: list[list[int]], seeds: int = 3) -> ArmScores:
    arms = [rows("base", 0, base, greedy=[1] * len(base))]
    arms += [rows("grpo", seed, tuned, greedy=[1, 0, *[0] * (len(tuned) - 2)]) for seed in range(seeds)]
    return ArmScores.final(pd.concat(arms, ignore_index=True))


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return make_records(("base", "grpo", "rkl", "dph_f", "dph_js"), steps=False)


@pytest.mark.parametrize(
    ("tuned", "base", "course"),
    [
        ([ALL, ALL, NONE, NONE], [ONE, ONE, ONE, ONE], "crosses the base at k = 3"),
        ([ALL, ALL, ALL, HALF], [ONE] * 4, "stays above the base at every k up to 4"),
        ([ONE, NONE, NONE, NONE], [HALF] * 4, "stays below the base at every k up to 4"),
        ([ONE, ONE, ONE, ONE], [ALL, ONE, NONE, NONE], "starts below the base and is above it from k = 2"),
        ([HALF, ONE, ALL, NONE], [HALF, ONE, ALL, NONE], "equals the base at every k"),
    ],
)
def test_where_a_curve_crosses_the_bases(tuned, base, course):
    said = sentences.crossing(scores(tuned, base), "grpo", 4)
    assert said.startswith(f"GRPO {course}: Pass@1 ") and said.endswith(" points (3 runs).")


@pytest.mark.parametrize(
    ("tuned", "base", "k"),
    [
        ([ALL, ALL, NONE, NONE], [ONE, ONE, ONE, ONE], 3),
        ([ALL, ALL, ALL, HALF], [ONE] * 4, None),
        ([ONE, NONE, NONE, NONE], [HALF] * 4, None),
        ([ONE, ONE, ONE, ONE], [ALL, ONE, NONE, NONE], None),
    ],
)
def test_a_figure_marks_the_crossing_that_the_sentence_names(tuned, base, k):
    of_run = scores(tuned, base)
    assert sentences.crossing_k(of_run, "grpo") == k
    assert (f"crosses the base at k = {k}" in sentences.crossing(of_run, "grpo", 4)) == (k is not None)


def test_what_the_base_can_do_and_whether_it_is_in_the_regime(records):
    of_run = ArmScores.final(records)
    one, several = (100 * of_run.of("base", "in_domain", "pass", k).mean for k in (1, 8))
    said = sentences.room(of_run)
    assert said.startswith(f"In domain the base solves {one:.1f} % [") and f"{several:.1f} % [" in said
    assert f"with 8: {several - one:+.1f} [" in said
    found = pd.DataFrame(
        {"quantity": ["a", "b"], "value": [1.0, 9.0], "low": 0.0, "high": 5.0, "inside": [True, False]}
    )
    assert (
        sentences.inside({0: found}) == "1 of 2 quantities are within their ranges; outside: b of base 0, 9 for 0 to 5."
    )
    assert sentences.inside({0: found[:1]}) == "All 1 quantities of 1 bases are within their ranges."
    assert sentences.inside({0: found[["quantity", "value"]]}) == "", "of data sets there are no ranges"


def test_a_crossing_has_the_difference_and_its_interval(records):
    of_run = ArmScores.final(records)
    got = interval([of_run.of(name, "in_domain", "pass", 8) for name in ("grpo", "base")], np.subtract)
    curve = stats.pass_curve(stats.final(records), [8]).groupby(["suite", "method"])["pass_at_k"].mean()
    assert 100 * got.estimate == pytest.approx(100 * (curve["in_domain", "grpo"] - curve["in_domain", "base"]))
    shown = f"Pass@8 {100 * got.estimate:+.1f} [{100 * got.low:+.1f}, {100 * got.high:+.1f}]"
    assert shown in sentences.crossing(of_run, "grpo") and shown in sentences.gain_and_price(of_run, "grpo")


def test_fewer_than_three_runs_are_too_few_and_what_is_absent_was_not_run():
    few = scores([ALL, ALL, NONE, NONE], [ONE] * 4, seeds=2)
    for maker in (sentences.crossing, sentences.gain_and_price, sentences.styles):
        assert maker(few, "grpo").endswith("(2 runs, too few to decide)."), maker
        assert maker(few, "dapo") == "DAPO: not run.", maker
    assert "(1 run, too few to decide)" in sentences.styles(scores([ONE] * 4, [ONE] * 4, 1), "grpo")
    assert sentences.both_points(few, few, "dapo") == "DAPO: not run."


def test_another_suite_is_named_first(records):
    said = sentences.crossing(ArmScores.final(records), "grpo", 8, "out_of_domain")
    assert said.startswith("Out of domain, GRPO ")


def test_k_is_cut_to_the_answers_that_there_are():
    assert "Pass@4 -50.0" in sentences.crossing(scores([ALL, ALL, NONE, NONE], [ONE] * 4), "grpo", 99)


def test_a_difference_whose_interval_holds_zero_is_unclear(records):
    same = [records[records["method"] == "base"], records[records["method"] == "dph_f"]]
    js = same[1].assign(method="dph_js")
    said = sentences.crossing(ArmScores.final(pd.concat([*same, js])), "dph_js", against="dph_f")
    assert said.startswith("DPH-JS equals DPH-F at every k: Pass@1 +0.0 [") and said.count("] (unclear)") == 2


def test_greedy_accuracy_is_told_beside_its_price():
    said = sentences.gain_and_price(scores([ALL, ALL, NONE, NONE], [ONE] * 4), "grpo", 4)
    assert said.startswith("GRPO against the base in domain: greedy -75.0 [") and "Pass@4 -50.0 [" in said


def test_styles_are_told_beside_the_bases(records):
    said = sentences.styles(ArmScores.final(records), "grpo")
    of_suite = stats.final(records[records["suite"] == "in_domain"])
    nats = stats.style_entropy(stats.sampled(of_suite)).groupby("method")["per_problem_nats"].mean()
    assert f"is {nats['grpo']:.2f} nats, the base's {nats['base']:.2f}: -" in said


def test_both_points_are_told_in_one_sentence(records):
    final = ArmScores.final(records)
    early = ArmScores.final(records[(records["method"] != "grpo") | (records["seed"] < 3)])
    said = sentences.both_points(final, early, "grpo")
    assert said.startswith("GRPO's Pass@8 minus the base's, in points: ") and "] at its stopping points, " in said
    assert said.endswith("] at the end (3 runs).")
    elsewhere = sentences.both_points(final, early, "grpo", suite="cross_domain")
    assert elsewhere.startswith("Cross domain, GRPO's Pass@8 minus the base's, ")


def on_the_way(seed: int, correct: dict[int, int]) -> list[pd.DataFrame]:
    return [
        rows("grpo", seed, [[1] * right + [0] * (8 - right)] * 4, step=step, suite="validation")
        for step, right in correct.items()
    ]


def test_stopping_has_its_iterations_and_what_the_rest_changes():
    falls, rises = {5: 4, 10: 6, 15: 6, 20: 5, 25: 5}, {5: 2, 10: 4, 15: 6, 20: 7, 25: 8}
    made = [*on_the_way(0, falls), *on_the_way(1, falls), *on_the_way(2, rises)]
    table = waypoint_table(pd.concat(made, ignore_index=True))
    said = sentences.stopping(table, "grpo")
    assert said.startswith("GRPO stops at iteration 15 (10 to 25); from there to the end, validation Pass@1 -8.3 [")
    assert said.endswith("(unclear), Pass@8 +0.0 (unclear) points (3 runs).")
    alone = sentences.stopping(waypoint_table(pd.concat(on_the_way(0, falls), ignore_index=True)), "grpo")
    assert "iteration 10; from there to the end, validation Pass@1 -12.5, Pass@8 +0.0" in alone, "no interval of one"
    assert alone.endswith("(1 run, too few to decide).")
    never = waypoint_table(pd.concat(on_the_way(2, rises), ignore_index=True))
    assert sentences.stopping(never, "grpo") == (
        "GRPO reaches no plateau before the end, iteration 25 (1 run, too few to decide)."
    )
    assert sentences.stopping(table, "rkl") == "RKL: not run."
    assert sentences.stopping(None, "grpo") == "GRPO: no way-points were measured."


def test_training_is_told_from_its_first_to_its_last_iterations():
    logs = make_train_logs(("base", "grpo"))
    late, first = (
        logs[part].groupby("seed")["entropy"].mean().mean() for part in (logs["iteration"] > 38, logs["iteration"] <= 7)
    )
    said = sentences.training(logs, "grpo")
    assert said.startswith("GRPO's rollouts from the first 7 to the last 7 of 45 iterations: reward +0.")
    assert f"token entropy {late - first:+.3f} [" in said and said.endswith(" nats (3 runs).")
    assert sentences.training(logs, "rkl") == "RKL: not run."
    assert "entropy" not in sentences.training(logs.assign(entropy=np.nan), "grpo")
    neither = logs.assign(entropy=np.nan, reward=np.nan)
    assert sentences.training(neither, "grpo") == "GRPO: neither reward nor entropy was logged."
    some = logs.assign(entropy=logs["entropy"].where(logs["iteration"] != 2))
    assert "token entropy" in sentences.training(some, "grpo"), "an iteration without rollouts does not hide the rest"
    alone = sentences.training(logs[logs["seed"] == 0], "grpo")
    assert "[" not in alone and alone.endswith("(1 run, too few to decide).")


def test_cost_has_tokens_and_seconds():
    tokens, seconds = sentences.cost(studies.cost_table(make_cost()))
    assert "RKL passes 0." in tokens and tokens.endswith("; GRPO, DPH-F and DPH-JS pass none.")
    assert " s [" in seconds and "for GRPO, " in seconds
    assert sentences.cost(pd.DataFrame()) == ["The cost of an iteration was not measured."]


def test_keep_and_explore_stand_beside_the_base_drawn_again(records):
    split = retention.capability_split(records, 8)
    said = sentences.kept(split, "grpo")
    row = split.set_index("method").loc["GRPO"]
    assert f"keeps {row['keep']:.1f} % [{row['keep_low']:.1f}, {row['keep_high']:.1f}] of what the base solves" in said
    again = split.set_index("method").loc[retention.AGAIN]
    assert said.endswith("(3 runs).") and f"solves {again['keep']:.1f} % [" in sentences.kept_by_chance(split)
    assert "not known" in sentences.kept_by_chance(split[split["method"] != retention.AGAIN])
    assert sentences.kept(split, "dapo") == "DAPO: not run."
    nothing = retention.capability_split(pd.concat([rows("base", 0, [NONE] * 4), rows("grpo", 0, [ALL] * 4)]), 4)
    assert "keeps an unknown share of what" in sentences.kept(nothing, "grpo", 4)


def test_losses_are_told_suite_by_suite(records):
    losses = retention.losses(records)
    said = sentences.lost(losses, "grpo")
    one = losses.set_index("method").loc["GRPO"]
    assert f"{-one['out of domain']:+.1f} % [{-one['out of domain_high']:+.1f}, " in said
    assert said.index(" in domain") < said.index(" cross domain") < said.index(" out of domain")
    assert said.endswith("(3 runs).") and sentences.lost(losses, "dapo") == "DAPO: not run."


def test_support_has_what_chance_alone_would_lose(records):
    support = retention.support(records)
    said = sentences.reached(support, "grpo")
    row = support[(support["suite"] == "in domain") & (support["k"] == 16)].set_index("method").loc["GRPO"]
    assert said.startswith(f"In domain with 16 answers, GRPO loses {row['lost']:.1f} [{row['lost_low']:.1f}, ")
    assert f"] of 24 problems and gains {row['gained']:.1f} [{row['gained_low']:.1f}, " in said
    for name in ("lost", "gained"):
        assert 0 <= row[f"{name}_low"] < row[name] < row[f"{name}_high"] <= 24
    assert sentences.reached(support, "dapo") == "DAPO: not run."


def test_ablations_are_told_with_their_intervals():
    made = make_records(("base", "dph_f", "dph_js"), steps=False)
    effects = studies.effects(made, ["in_domain", "cross_domain"])
    said = sentences.changes(effects)
    assert len(said) == effects["ablation"].nunique()
    text = next(one for one in said if one.startswith("DPH-F, threshold 8: Pass@8 "))
    assert " in domain, " in text and text.endswith("in points (2 against 3 runs, too few to decide).")
    most = effects.loc[effects["Pass@8"].abs().idxmax()]
    largest = sentences.largest_change(effects)
    assert (
        f"The largest: {most['ablation']}, {most['suite']} {most['Pass@8']:+.1f} [{most['Pass@8_low']:+.1f}, "
        in largest
    )
    clear = sum(row["Pass@8_low"] > 0 or row["Pass@8_high"] < 0 for _, row in effects.iterrows())
    assert f" of {clear} of {len(effects)} changes " in largest
    assert (
        sentences.changes(effects.iloc[:0]) == [sentences.largest_change(effects.iloc[:0])] == ["No ablation was run."]
    )
    assert sentences.changes(effects.assign(**{"Pass@8": np.nan}))[0].endswith(": too few answers for Pass@8.")


def test_a_study_that_was_not_run_has_one_sentence_and_each_other_one_its_mark():
    run = make_study_records(replace(CPU, ablation_seeds=(0, 1, 2)), ["direction"])
    said = sentences.of_studies(studies.study_table(run, CPU, ["direction", "rivals"], ["in_domain"]))
    assert len(said) == 3 and said[2].startswith("– Do other ways to keep a policy broad do as well? Not run: ")
    table = studies.study_table(run, CPU, ["direction"], ["in_domain"])
    for sentence, plain in zip(said, studies.sentences(table), strict=False):
        assert sentence[2:] == plain
        assert sentence[0] == ("●" if ", clear (" in plain else "○")
    part = sentences.of_studies(studies.study_table(run[run["method"] != "rkl_k2"], CPU, ["direction"], ["in_domain"]))
    assert part[1] == "– Not run: Reverse KL's gradient (k2) instead of forward KL's (k3) in RKL."
    cells = make_study_records(replace(CPU, ablation_seeds=(0, 1, 2)), ["controls"])
    *_, absent = sentences.of_studies(studies.study_table(cells, CPU, ["factorial"], ["in_domain"]))
    assert absent == "– Not run: 6 more comparisons, named in the table."


def test_leading_sentences_are_the_first_of_studies_that_were_run():
    run = make_study_records(replace(CPU, ablation_seeds=(0, 1, 2)), ["direction", "threshold"])
    table = studies.study_table(run, CPU, ["rivals", "direction", "threshold"], ["in_domain"])
    whole = sentences.of_studies(table)
    assert sentences.leading(table) == [whole[1], whole[3]] and sentences.leading(table, 1) == [whole[1]]
    assert sentences.leading(table[table["study"] == "rivals"]) == ["No study was run."]


def test_the_weight_that_validation_chooses_is_named():
    better = {"main": 4, "eta=0.05": 7, "eta=0.8": 2}
    made = [
        rows("dph_f", 0, [[1] * (right if step == 5 else 2) + [0] * (8 - (right if step == 5 else 2))] * 4).assign(
            step=step, suite="validation", variant=variant
        )
        for variant, right in better.items()
        for step in (5, 10, 15)
    ]
    table = waypoint_table(pd.concat(made, ignore_index=True))
    said = sentences.chosen_weights(table, CPU, ["dph_f", "rkl", "dph_js"])
    assert said == [
        "DPH-F: validation chooses the weight 0.05, and the main run has 0.2.",
        "Not run for RKL and DPH-JS: validation chooses among three weights (study `eta`).",
    ]
    main = table.assign(variant=table["variant"].replace({"main": "eta=0.05", "eta=0.05": "main"}))
    assert sentences.chosen_weights(main, CPU, ["dph_f"]) == [
        "DPH-F: validation chooses the weight 0.2, the main run's."
    ]
    for without in (None, table[table["variant"] != "main"]):
        assert sentences.chosen_weights(without, CPU, ["dph_f"])[0].startswith("Not run for DPH-F: ")


def test_verdicts_at_both_points_are_counted_and_those_that_differ_are_named(records):
    final = evaluate_claims(ArmScores.final(records), make_train_logs(), "cpu")
    assert sentences.verdicts(final, ())[1].startswith("At the stopping points: not judged")
    same = sentences.verdicts(final, final)
    assert len(same) == 2 and same[0].split(", ", 1)[1] == same[1].split(", ", 1)[1]
    assert f" of {len(final)} claims " in same[0]
    other = [replace(one, verdict="inconclusive") if one.id == "greedy_rises" else one for one in final]
    differs = sentences.verdicts(final, other)[2:]
    before = next(one for one in final if one.id == "greedy_rises")
    assert len(differs) == (before.verdict != "inconclusive")
    assert all(before.text in one and "at the stopping points inconclusive" in one for one in differs)
    table = both_points(final, other).set_index("claim")
    assert len(table) == len(final) and table.loc[before.text, "at the stopping points"] == "○ inconclusive"
    assert set(both_points(final, ())["at the stopping points"]) == {"-"}


def test_a_claim_has_its_verdict_and_the_effect_that_decided(records):
    final = {one.id: one for one in evaluate_claims(ArmScores.final(records), make_train_logs(), "cpu")}
    kept = final["dph_keeps_styles"]
    assert sentences.claim(kept).startswith(f"**{kept.verdict.capitalize()}**: {kept.text.rstrip('.')} (")
    assert sentences.claim(kept).count(f": {kept.estimate:.2f} nats [") == 1
    absent = next(one for one in final.values() if one.verdict == "not run")
    assert sentences.claim(absent).startswith(
        f"**Not run**: {absent.text.rstrip('.')} ("
    ) and "no records of" in sentences.claim(absent)


def test_bullets_are_a_list():
    assert sentences.bullets(["a.", "b 5 %."]) == "- a.\n- b 5\u00a0%." and NAMES["grpo"] == "GRPO"
