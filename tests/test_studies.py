"""Studies: which runs they need, what their tables say, and how that reads; and what an iteration costs."""

from __future__ import annotations

import re
from dataclasses import replace

import pandas as pd
import pytest
from synthetic import ABLATIONS, make_cost, make_records, make_study_records, make_train_logs, with_draws

from dphlib import stats
from dphlib.analysis import studies as ablations
from dphlib.analysis.labels import COLOURS
from dphlib.experiment.results import FIGURES, TABLES
from dphlib.figures import studies as study_plots
from dphlib.intervals import holm
from dphlib.settings.methods import CONTROLS
from dphlib.settings.profiles import PROFILES, profile
from dphlib.settings.studies import STUDIES, Arm, Comparison, arms_beyond, chosen, comparisons, planned_runs, study_runs
from dphlib.settings.variants import VARIANTS

CPU = profile("cpu")
NAMES = ("controls", "threshold", "length")


@pytest.fixture(scope="module")
def records():
    return make_study_records(replace(CPU, ablation_seeds=(0, 1)), NAMES)


@pytest.fixture(scope="module")
def table(records):
    return ablations.study_table(records, CPU, NAMES, ["in_domain", "out_of_domain"])


@pytest.mark.parametrize("name", PROFILES)
def test_every_study_can_run_alone_and_a_usual_run_has_none_of_its_arms(name):
    settings = profile(name)
    usual = {(run.method, run.variant) for run in planned_runs(settings)}
    for study in STUDIES:
        runs = study_runs(settings, [study])
        assert len(set(runs)) == len(runs)
        of_none = study == "strength" or (study == "complementarity" and settings.data is not None)
        assert bool(arms_beyond(settings, [study])) != of_none, (
            "it is of main runs alone, or of the CPU world's problems"
        )
        arms = {(run.method, run.variant) for run in runs}
        compared = {tuple(arm) for one in comparisons(settings, study) for arm in (one.arm, one.against)}
        assert arms == compared and not usual & set(arms_beyond(settings, [study]))


def test_the_full_profile_trains_every_kind_of_setting_with_the_seeds_that_are_asked_for():
    runs = study_runs(profile("cpu", study_seeds="3"), tuple(STUDIES))
    assert {run.variant.partition("=")[0] for run in runs} == (set(VARIANTS) - {"domain"}) | {"main"}
    assert all(len({r.seed for r in runs if r.variant == run.variant and r.method == run.method}) == 3 for run in runs)
    assert {run.method for run in runs} == {run.method for run in CPU.main_runs()} - {"dapo"} | set(CONTROLS)


def test_smoke_trains_one_comparison_of_a_study_for_each_figure():
    settings = profile("smoke")
    in_worlds_of_their_own = {"complementarity"}
    drawn = [one for one in FIGURES.values() if one.studies and not set(one.studies) <= in_worlds_of_their_own]
    assert all(set(one.studies) & set(chosen(settings.studies)) for one in drawn)
    assert all(len(comparisons(settings, name)) == 1 for name in STUDIES)
    assert {run.train_config(settings.train).iterations for run in study_runs(settings, ["length"])} == {1, 2}


def test_controls_have_the_seeds_of_the_papers_methods():
    settings = profile("cpu", "5")
    seeds = {}
    for run in study_runs(settings, ["controls"]):
        seeds.setdefault((run.method, run.variant), []).append(run.seed)
    assert seeds["sft_rehearsal", "main"] == seeds["dph_f", "main"] == [0, 1, 2, 3, 4]
    assert seeds["grpo_dexp", "clip_high=0.28"] == list(settings.ablation_seeds)


def test_a_row_is_the_paired_difference_of_the_two_arms(records, table):
    rows = stats.final(records)
    curve = stats.pass_curve(rows[rows["suite"] == "in_domain"], [8]).groupby(["method", "variant"])["pass_at_k"].mean()
    one = table[(table["study"] == "controls") & (table["arm"] == "SFT rehearsal")]
    one = one[(one["suite"] == "in domain") & (one["measure"] == "Pass@8")].iloc[0]
    mean, against = curve["sft_rehearsal", "main"], curve["dph_f", "main"]
    assert one["mean"] == pytest.approx(100 * mean) and one["against_mean"] == pytest.approx(100 * against)
    assert one["difference"] == pytest.approx(100 * (mean - against))
    assert one["low"] < one["difference"] < one["high"] and one["mean_low"] <= one["mean"] <= one["mean_high"]
    assert (one["seeds"], one["against_seeds"], one["unit"]) == (3, 3, "points")
    assert list(table.columns) == ablations.COLUMNS and set(table["status"]) == {"run"}
    assert set(table.loc[table["study"] == "length", "seeds"]) == {2}


def test_the_difference_to_itself_is_zero_within_a_zero_interval(records):
    """The pairing at work: the same arm under another name has no difference in any draw of problems."""
    again = records[records["variant"] == "main"]
    again = again[again["method"] == "dph_f"].assign(method="sft_rehearsal")
    both = records[records["method"] != "sft_rehearsal"]
    got = ablations.study_table(pd.concat([both, again], ignore_index=True), CPU, ["controls"], ["in_domain"])
    one = got[got["arm"] == "SFT rehearsal"]
    assert (one["difference"].abs() < 1e-9).all()


def test_what_was_not_run_keeps_its_rows_and_says_so():
    usual = make_records(("base", "grpo", "dph_f", "dph_js"), steps=False)
    got = ablations.study_table(usual, CPU, ["controls", "threshold"], ["in_domain"])
    at_8 = got["arm"].str.endswith("threshold 8")
    assert set(got.loc[~at_8, "status"]) == {"not run"} and "run" in set(got.loc[at_8, "status"])
    said = ablations.sentences(got)
    assert "Rehearsing by plain -log pi instead of forward KL: not run." in said
    with pytest.raises(ValueError, match="nothing of the studies controls was run"):
        study_plots.comparison_figure(got[got["study"] == "controls"])


def test_a_sentence_has_the_change_the_numbers_and_the_seeds(table):
    said = ablations.sentences(table)
    assert len(said) == table["change"].nunique() == sum(len(comparisons(CPU, name)) for name in NAMES)
    text = next(one for one in said if one.startswith("Raising the threshold of DPH-F from 6 to 8 "))
    rows = table[(table["arm"] == "DPH-F, threshold 8") & (table["measure"] == "Pass@8")].set_index("suite")
    for suite in ("in domain", "out of domain"):
        one = rows.loc[suite]
        assert f"{one['difference']:+.1f} points [{one['low']:+.1f}, {one['high']:+.1f}]" in text
    assert text.endswith("(2 runs against 3).")
    for one in said:
        assert " changes in-domain Pass@8 by " in one and one.count("clear") == one.count("Pass@8")


def test_a_family_of_comparisons_is_corrected_and_the_sentences_say_so(table):
    """Holm over a study's comparisons on one suite in one measure; the words follow interval and correction."""
    for (study, _, _), family in table.groupby(["study", "suite", "measure"]):
        assert len(family) == len(comparisons(CPU, study)) and len(family) > 1
        assert family["p_holm"].tolist() == pytest.approx(holm(family["p"]).tolist())
    one = table[table["study"] == "controls"].iloc[[0]].assign(suite="in domain", measure="Pass@8", unit="points")
    wide = {"difference": 3.0, "low": 0.5, "high": 5.5, "p": 0.02}
    for numbers, p, says in (
        (wide, 0.2, r"by \+3.0 points \[\+0.5, \+5.5\], unclear \(p 0.020, Holm's p of 1 is 0.200\)"),
        (wide, 0.0002, r", clear \(Holm's p of 1 is below 0.001\)"),
        ({"difference": -3.0, "low": -5.5, "high": -0.5}, 0.04, r"by -3.0 .*, clear \(Holm's p of 1 is 0.040\)"),
        ({"difference": 3.0, "low": -0.5, "high": 5.5}, 0.04, r"\], unclear \(\d+ runs"),
    ):
        said = ablations.sentences(one.assign(**numbers, p_holm=p))
        assert len(said) == 1 and re.search(says, said[0]), said


@pytest.mark.parametrize("few", ["seeds", "against_seeds"])
def test_what_too_few_runs_show_is_never_clear(table, few):
    one = table[table["study"] == "controls"].iloc[[0]].assign(suite="in domain", measure="Pass@8", unit="points")
    one = one.assign(difference=3.0, low=0.5, high=5.5, p=0.001, p_holm=0.001, seeds=3, against_seeds=3)
    assert ", clear (" in ablations.sentences(one)[0] and ablations.is_clear(one.iloc[0])
    fewer = one.assign(**{few: 2})
    assert ", unclear (too few runs)" in ablations.sentences(fewer)[0] and not ablations.is_clear(fewer.iloc[0])


@pytest.mark.parametrize(
    ("method", "variant", "says"),
    [
        ("dph_js", "eta=2", "Raising the weight eta of DPH-JS from 0.8 to 2"),
        ("rkl", "eta=0.05", "Lowering the weight eta of RKL from 0.2 to 0.05"),
        ("dph_f", "k=4", "Lowering the pre-samples k of DPH-F from 8 to 4"),
        ("dph_f", "authors_eta=8", "Lowering the weight of DPH-F to the authors' eta / 8, from 0.2 to 0.025"),
        ("grpo", "iterations=120", "Raising the iterations of GRPO from 60 to 120"),
        ("grpo", "domain=sums", "GRPO, trained on sums, instead of GRPO"),
    ],
)
def test_a_change_is_said_with_both_values(method, variant, says):
    assert ablations.change_of(Comparison(Arm(method, variant), Arm(method)), CPU) == says


def test_every_comparison_of_the_profile_is_said_differently():
    said = [(name, ablations.change_of(one, CPU)) for name in STUDIES for one in comparisons(CPU, name)]
    assert len(set(said)) == len(said)


def test_figures_draw_every_comparison_and_name_what_is_absent(records, table):
    controls = table[table["study"] == "controls"]
    drawn = study_plots.comparison_figure(controls).axes[1].lines
    expected = controls[(controls["suite"] == "in domain") & (controls["measure"] == "Pass@8")]["difference"]
    points = {round(float(line.get_xdata()[0]), 6) for line in drawn if len(line.get_xdata()) == 1}
    assert {round(x, 6) for x in expected} <= points
    absent = controls.assign(status=controls["status"].mask(controls["arm"] == "SFT rehearsal", "not run"))
    fig = study_plots.comparison_figure(absent)
    row = [label.get_text() for label in fig.axes[0].get_yticklabels()].index("SFT rehearsal minus DPH-F")
    for ax in fig.axes:
        (said,) = [text for text in ax.texts if text.get_text() == " not run"]
        assert said.get_position()[1] == ax.get_yticks()[row]


def test_a_study_without_a_run_has_no_rows_and_is_named(table):
    nothing = table.assign(status=table["status"].mask(table["study"] == "controls", "not run"))
    fig, whole = study_plots.comparison_figure(nothing), study_plots.comparison_figure(table)
    assert "Not run: controls." in " ".join(fig._supxlabel.get_text().split())
    assert "Not run" not in whole._supxlabel.get_text()
    assert not any(text.get_text() == STUDIES["controls"].question for text in fig.texts)
    assert len(fig.axes[0].get_yticks()) == len(whole.axes[0].get_yticks()) - len(comparisons(CPU, "controls"))


def test_figures_colour_and_say_what_the_sentences_call_clear(table):
    """By Holm's p and not by the interval alone: in figure and sentence the same differences are clear."""
    one = table[table["study"] == "controls"].iloc[:5].copy()  # a row per measure
    one = one.assign(status="run", difference=3.0, low=0.5, high=5.5, p=0.02)
    for p_holm, word, shown in ((0.2, "unclear", ".200"), (0.04, "clear", ".040"), (0.0002, "clear", "<.001")):
        rows = pd.concat([one.assign(suite=suite) for suite in ("in domain", "out of domain")]).assign(p_holm=p_holm)
        (said,) = ablations.sentences(rows)
        assert f", {word} (" in said
        fig = study_plots.comparison_figure(rows)
        for ax in fig.axes:
            points = [line for line in ax.lines if line.get_marker() == "o"]
            assert [line.get_color() for line in points] == [study_plots.CLEAR[word == "clear"]]
            (p,) = [text for text in ax.texts if text.get_text() == shown]
            weight = "bold" if word == "clear" else "normal"
            assert p.get_color() == points[0].get_color() and p.get_weight() == weight


def test_a_figure_has_each_studys_question_above_its_rows(table):
    fig = study_plots.comparison_figure(table)
    questions = [text.get_text() for text in fig.texts if text.get_text().endswith("?")]
    assert questions == [STUDIES[name].question for name in NAMES]
    labels = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert len(labels) == len(table[["arm", "against"]].drop_duplicates())
    assert not any("_" in text.replace("D_exp", "") or "=" in text for text in labels)


def test_an_interval_that_would_hide_the_others_is_cut_and_the_figure_says_so(table):
    controls = table[table["study"] == "controls"]
    controls = controls.assign(low=controls["difference"] - 1, high=controls["difference"] + 1)
    assert "goes on" not in study_plots.comparison_figure(controls)._supxlabel.get_text()
    first = controls["arm"] == controls["arm"].iloc[0]
    controls.loc[first, ["low", "high"]] = [-900.0, 900.0]
    fig = study_plots.comparison_figure(controls)
    assert "goes on" in " ".join(fig._supxlabel.get_text().split())
    assert all(ax.get_xlim()[1] < 450 for ax in fig.axes)
    assert all({8, 9} <= {line.get_marker() for line in ax.lines} for ax in fig.axes)


def test_the_sweep_draws_the_means_at_their_weights():
    records = make_study_records(replace(CPU, seeds=(0,), ablation_seeds=(0,)), ["eta"])
    table = ablations.study_table(records, CPU, ["eta"], ["in_domain", "out_of_domain"])
    fig = study_plots.weight_figure(table, CPU)
    line = next(one for one in fig.axes[1].lines if len(one.get_xdata()) == 4 and one.get_color() == COLOURS["rkl"])
    assert list(line.get_xdata()) == pytest.approx([0.05, 0.2, 0.8, 1.6], rel=0.15)  # moved apart from the others
    ticks = fig.axes[5].xaxis
    assert [ticks.get_major_formatter()(x) for x in ticks.get_majorticklocs()] == ["0.05", "0.2", "0.8", "1.6"]
    assert "f^{\\prime\\prime}(1)" in fig.axes[5].get_xlabel()
    of = table[(table["suite"] == "in domain") & (table["measure"] == "Pass@8")].set_index("arm")
    assert line.get_ydata()[2] == pytest.approx(of.loc["RKL, eta 0.8", "mean"])
    assert line.get_ydata()[1] == pytest.approx(of.loc["RKL, eta 0.8", "against_mean"])


def test_what_dph_gains_stands_at_the_share_of_hidden_problems():
    settings = replace(CPU, seeds=(0, 1, 2), ablation_seeds=(0, 1))
    records = make_study_records(settings, ["complementarity"])
    table = ablations.study_table(records, settings, ["complementarity"])
    levels, gained = study_plots.complementarity_figure(table, settings).axes
    rows = table[(table["suite"] == "in domain") & (table["measure"] == "Pass@8")].set_index("change")
    order = [f"DPH-F instead of GRPO where {share} % of the problems are hidden" for share in (0, 20, 80)]
    order.insert(2, "DPH-F instead of GRPO in the world as it is")
    for ax, colour, column in (
        (levels, COLOURS["dph_f"], "mean"),
        (levels, COLOURS["grpo"], "against_mean"),
        (gained, study_plots.GREY, "difference"),
    ):
        line = next(x for x in ax.lines if x.get_color() == colour and len(x.get_xdata()) == 4)
        assert list(line.get_xdata()) == [0, 20, 46, 80]
        assert list(line.get_ydata()) == pytest.approx(rows.loc[order, column].tolist())
    bars = [path.vertices[:, 1].tolist() for one in gained.collections for path in one.get_paths()]
    assert bars == [pytest.approx(rows.loc[change, ["low", "high"]].tolist()) for change in order]
    absent = records[records["variant"] != "hidden=0.8"]
    fig = study_plots.complementarity_figure(ablations.study_table(absent, settings, ["complementarity"]), settings)
    said = " ".join(fig._supxlabel.get_text().split())
    assert "Not run: 80 %." in said and "0 %: 2; 20 %: 2; 46 %: 3" in said


def test_every_study_has_its_place_in_a_figure_and_a_table():
    for products in (FIGURES, TABLES):
        assert {name for product in products.values() for name in product.studies} == set(STUDIES)


# --- Every variant against its main arm, and the cost ----------------------------------------------


@pytest.fixture(scope="module")
def usual():
    return make_records(("base", "grpo", "dph_f", "dph_js"), steps=False)


def test_each_ablation_stands_against_its_own_main_arm(usual):
    got = ablations.effects(usual)
    arms = {(m, v) for m, v in ABLATIONS if m in ("grpo", "dph_f", "dph_js")}
    assert len(got) == sum(1 if v == "domain=sums" else 2 for _, v in arms) and set(got["seeds"]) == {"2 against 3"}
    row = got[(got["ablation"] == "DPH-JS, threshold 8") & (got["suite"] == "in domain")].iloc[0]
    mean = stats.pass_curve(stats.final(usual), [8])
    mean = mean[(mean["method"] == "dph_js") & (mean["suite"] == "in_domain")].groupby("variant")["pass_at_k"].mean()
    assert row["Pass@8"] == pytest.approx(100 * (mean["threshold=8"] - mean["main"]))
    assert row["Pass@8_low"] < row["Pass@8"] < row["Pass@8_high"]


def test_the_figure_of_the_ablations_has_each_difference_on_its_suite_and_colours_none(usual):
    got = ablations.effects(usual)
    fig = study_plots.changes_figure(got)
    names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    for ax in fig.axes:
        rows = got[(got["suite"] == ax.get_title(loc="left")) & got["Pass@8"].notna()]
        points = [line for line in ax.lines if line.get_marker() == "o"]
        assert sorted(float(line.get_xdata()[0]) for line in points) == pytest.approx(sorted(rows["Pass@8"]))
        assert {line.get_color() for line in points} == {study_plots.CLEAR[False]}
    assert names == list(dict.fromkeys(got["ablation"]))


def test_what_was_not_evaluated_or_needs_more_answers_is_left_out(usual):
    got = ablations.effects(with_draws(usual, 8))
    assert set(got.loc[got["ablation"].str.contains("trained on sums"), "suite"]) == {"out of domain"}
    assert "Pass@8" in got and "Pass@16" not in got
    assert set(ablations.effects(usual, ["cross_domain"])["suite"]) == {"cross domain"}


def test_any_number_of_seeds_will_do():
    one = make_records(("base", "dph_f"), (0,), steps=False)
    assert set(ablations.effects(one)["seeds"]) == {"1 against 1"}


def test_without_ablations_there_are_the_columns_of_the_others_and_no_row(usual):
    found, some = ablations.effects(usual[usual["variant"] == "main"]), ablations.effects(usual)
    assert found.empty and set(found) == {name for name in some if not name.endswith(("_low", "_high"))}
    assert not found["ablation"].str.contains("threshold").any()


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
