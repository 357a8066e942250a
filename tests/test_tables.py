"""Tables: ours equal the statistics, the paper's are as in its table images, absent arms say so."""

from __future__ import annotations

import html
import re

import numpy as np
import pandas as pd
import pytest
from synthetic import make_records, make_tables, with_draws

from dphlib import stats
from dphlib.analysis import paper, tables
from dphlib.scores import ArmScores
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.profiles import profile
from dphlib.world.sums import SUBSETS


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return make_records(steps=False)


@pytest.fixture(scope="module")
def every(records) -> dict[str, pd.DataFrame]:
    return make_tables(records)


def cell(table: pd.DataFrame, row: str, column: str) -> pd.Series:
    found = table[(table["row"] == row) & (table["column"] == column)]
    assert len(found) == 1
    return found.iloc[0]


# ---------------------------------------------------------------------------------------------- the paper


def test_the_papers_averages_follow_from_its_five_sets():
    gap = {method: abs(np.mean(row[:5]) - row[5]) for method, row in paper.TABLE_2.rows.items()}
    assert max(gap.values()) < 0.02, gap


def test_the_papers_tables_are_whole_and_looked_up_by_name():
    for table in (paper.TABLE_1, paper.TABLE_2, paper.TABLE_3, paper.TABLE_3_QWEN, *paper.TABLE_5.values()):
        assert all(len(row) == len(table.columns) for row in table.rows.values())
        assert all(0 <= value <= 100 for row in table.rows.values() for value in row)
    assert paper.TABLE_1.cell("dph_js", "BIRD Pass@8") - paper.TABLE_1.cell("grpo", "BIRD Pass@8") == pytest.approx(4.3)
    assert paper.TABLE_2.text("grpo", "College Math P@8") == "38.40"
    with pytest.raises(KeyError, match="no column 'BIRD'"):
        paper.TABLE_1.cell("grpo", "BIRD")


# ---------------------------------------------------------------------------------------------- ours


def test_table_1_equals_the_statistics_and_stands_beside_the_paper(records, every):
    rows = stats.final(records[(records["method"] == "grpo") & (records["suite"] == "cross_domain")])
    got = cell(every["table1"], "GRPO", "cross domain Pass@16")
    assert got["ours"] == pytest.approx(100 * stats.pass_curve(rows, (16,))["pass_at_k"].mean())
    assert 0 <= got["low"] <= got["ours"] <= got["high"] <= 100 and got["seeds"] == 3
    assert got["paper"] == "80.6"
    greedy = cell(every["table1"], "GRPO", "cross domain greedy")
    assert greedy["ours"] == pytest.approx(100 * stats.greedy_accuracy(rows)["greedy"].mean())


def test_table_1_has_the_sampled_pass_1_beside_greedy_and_no_number_of_the_paper_for_it(records, every):
    rows = stats.final(records[(records["method"] == "grpo") & (records["suite"] == "in_domain")])
    got = cell(every["table1"], "GRPO", "in domain Pass@1")
    assert got["ours"] == pytest.approx(100 * stats.pass_curve(rows, (1,))["pass_at_k"].mean()) and got["paper"] == ""
    columns = list(dict.fromkeys(every["table1"]["column"]))
    assert columns[:4] == [f"in domain {name}" for name in ("greedy", "Pass@1", "Pass@8", "Pass@16")]


def test_both_points_stand_side_by_side(records):
    final = ArmScores.final(records)
    fewer = stats.final(records)
    stopped = ArmScores(fewer.assign(correct=fewer["correct"].where(fewer["method"] == "base", 0)))
    table = tables.table_points(final, stopped)
    at_end, at_stop = (cell(table, "GRPO", f"in domain Pass@8, {point}") for point in ("end", "stopped"))
    assert at_end["ours"] == pytest.approx(100 * final.of("grpo", "in_domain", "pass", 8).mean)
    assert at_stop["ours"] == 0 < at_end["ours"] and set(table["paper"]) == {""}
    shown = tables.wide(table)
    assert list(shown.columns)[2:6] == [
        f"in domain {x}" for x in ("greedy, stopped", "greedy, end", "Pass@1, stopped", "Pass@1, end")
    ]
    assert (
        cell(table, "base", "cross domain Pass@8, end")["ours"]
        == cell(table, "base", "cross domain Pass@8, stopped")["ours"]
    )


def test_table_2_has_a_column_for_each_kind_of_sums_and_their_average(every):
    table = every["table2"]
    ours = [cell(table, "DPH-F", subset)["ours"] for subset in SUBSETS]
    average = cell(table, "DPH-F", "average")
    assert average["ours"] == pytest.approx(np.mean(ours)) and average["paper"] == "53.69"
    assert cell(table, "DPH-F", "paper: AMC23 P@32")["paper"] == "90.00"


def test_table_3_is_of_models_trained_on_sums_and_keeps_the_uncertain_columns_as_they_are(records, every):
    rows = records[(records["method"] == "grpo") & (records["variant"] == "domain=sums")]
    got = cell(every["table3"], "GRPO, trained on sums", "sums Pass@8")
    assert got["ours"] == pytest.approx(100 * stats.pass_curve(rows, (8,))["pass_at_k"].mean()) and got["seeds"] == 2
    assert cell(every["table3"], "base", "paper: Llama")["paper"] == "40.0 | 23.3 | 95.0"


def test_table_3_needs_eight_draws_and_no_more(records):
    few = with_draws(records[records["suite"] == "out_of_domain"], 8)
    table = tables.table3(ArmScores.final(few))
    assert set(table["status"]) == {"run", "paper only"}


def test_table_4_compares_the_thresholds_and_has_no_number_of_the_paper(every):
    table = every["table4"]
    assert list(dict.fromkeys(table["row"])) == ["DPH-F, 6 of 8", "DPH-F, 8 of 8", "DPH-JS, 6 of 8", "DPH-JS, 8 of 8"]
    assert set(table["variant"]) == {"main", "threshold=8"} and set(table["paper"]) == {""}
    assert (table["status"] == "run").all()


def test_table_5_pairs_each_weight_with_the_papers_of_the_same_rank(every):
    table = every["table5"]
    assert (table["status"] == "run").all() and len(table) == 36
    assert cell(table, "definition, eta 0.2 / 0.05", "cross domain Pass@16")["paper"] == "84.7"
    assert cell(table, "generator, eta 0.8 / 0.2", "in domain greedy")["paper"] == "62.8"
    assert {"eta=0.04", "eta=0.2", "main"} == set(table["variant"])


def test_the_ablations_of_the_profile_are_those_that_the_tables_look_for(every):
    planned = {(run.method, run.variant) for run in profile("cpu").ablation_runs()}
    looked_for = set()
    for name in ("table3", "table4", "table5"):
        looked_for |= set(zip(every[name]["method"], every[name]["variant"], strict=True))
    assert planned <= looked_for


def test_methods_table_has_a_row_each_and_no_weight_that_nobody_gave(every):
    table = every["methods"].set_index("Method")
    assert len(table) == len(METHOD_CONFIGS)
    assert table.loc["DPH-JS", "authors' weight"] == "0.05-0.2" and table.loc["RKL", "online reference"] == "yes"
    assert table.loc["DPH-JS by definition", "authors' weight"] == "not available"


def test_an_absent_arm_keeps_its_row_as_not_run(records):
    table = tables.table1(ArmScores.final(records[records["method"] != "dapo"]))
    rows = table[table["method"] == "dapo"]
    assert len(rows) == 8 and set(rows["status"]) == {"not run"} and rows["ours"].isna().all()
    shown = tables.wide(table).set_index("")
    assert shown.loc["DAPO", "in domain greedy"] == "not run / 60.0" and shown.loc["DAPO", "seeds"] == "0"
    assert "not run" in tables.to_html(table) and "| DAPO | 0 | not run / 60.0 |" in tables.to_markdown(table)


def test_a_suite_that_was_not_evaluated_is_not_run_either(records):
    table = tables.table2(ArmScores.final(records[records["suite"] != "out_of_domain"]))
    assert set(table["status"]) == {"not run", "paper only"} and set(SUBSETS) <= set(table["column"])


def test_too_few_answers_are_refused_not_hidden(records):
    with pytest.raises(ValueError, match="pass@16"):
        tables.table1(ArmScores.final(with_draws(records, 10)))


# ---------------------------------------------------------------------------------------------- files


def test_csv_comes_back_as_it_was(every, tmp_path):
    for name, table in every.items():
        back = tables.read_csv(tables.to_csv(table, tmp_path / f"{name}.csv"))
        assert tables.to_markdown(back) == tables.to_markdown(table)
        assert tables.to_html(back) == tables.to_html(table)


def test_markdown_rows_have_as_many_cells_as_the_head_even_with_bars_in_the_text(every):
    for table in every.values():
        lines = tables.to_markdown(table).splitlines()
        assert len({line.count("|") for line in lines}) == 1 and len(lines) > 2


def test_html_escapes_what_it_is_given():
    assert "<script>" not in tables.to_html(pd.DataFrame({"a<b": ["<script>"]}))


def test_a_folded_table_is_the_same_table_under_a_line():
    table = pd.DataFrame({"k": [1]})
    got = tables.folded("k & more", table)
    assert (
        got.startswith("<details><summary>k &amp; more</summary>\n\n") and f"\n\n{tables.to_markdown(table)}\n" in got
    )


def test_code_in_a_cell_is_shown_as_it_is():
    """Jupyter's Markdown reads backticks, stars, lines and dollars inside of HTML's code too."""
    from nbconvert.filters import markdown2html

    text = "Inside : ```sql SELECT count(*), a_b_c FROM (SELECT * FROM t) WHERE $1 < `b` AND x$ = 'y|z' [1](2) ```"
    page = markdown2html(tables.to_markdown(pd.DataFrame({"answer": [tables.code(text)]})))
    (shown,) = re.findall("<td>(.*)</td>", page)
    assert html.unescape(shown) == f"<code>{text}</code>"


def test_a_notebook_shows_verdicts_by_shape_and_word_numbers_to_the_right_and_the_paper_below(every):
    rows = {
        "what": ["a", "b", "c"],
        "verdict": ["correct", "wrong", "no_answer"],
        "at the end": ["✔ supported", "-", "–"],
    }
    lines = str(tables.shown(pd.DataFrame(rows).assign(effect=[1.0, float("nan"), -2.5]))).splitlines()
    assert lines[1] == "| --- | --- | --- | ---: |"
    for line, said in zip(lines[2:], ("✔&nbsp;correct", "✘&nbsp;wrong", "⊘&nbsp;no answer"), strict=True):
        assert f">{said}</span>" in line
    assert ">✔&nbsp;supported</span>" in lines[2] and lines[3].endswith("| - | - |") and lines[4].endswith("| -2.5 |")
    text = str(tables.shown(every["table1"]))
    assert re.search(r"\*\*[\d.]+\*\*<br>\[[\d.]+, [\d.]+\]<br>paper 42.4", text)
    folded = str(tables.shown(every["table1"], fold="Table 1"))
    assert folded.startswith("<details><summary>Table 1</summary>") and text in folded
    assert str(tables.shown("a sentence")) == "a sentence"


def test_every_value_of_settings_has_a_row():
    settings = profile("cpu")
    rows = tables.settings_table(settings).set_index("setting")["value"]
    assert rows["world.seed"] == str(settings.world.seed) and rows["train.lr"] == "0.0003"
    assert not rows.index.duplicated().any() and "world" not in rows.index


def test_numbers_beside_the_references_are_folded_under_what_agrees():
    table = pd.DataFrame({"number": ["greedy_dph_f", "verdict_greedy_rises"], "here (cpu)": ["1", "supported"]})
    table["reference run"] = ["1", "inconclusive"]
    alone = repr(tables.compared(table))
    assert (
        "<summary>This run's numbers beside the reference run's</summary>" in alone and "| greedy DPH-F | 1 |" in alone
    )
    compared = repr(tables.compared(table.assign(agrees=["yes", "no"])))
    said = "1 of 2 numbers agree with the reference run; not: GRPO, DAPO: greedy accuracy rises"
    assert f"<summary>{said}</summary>" in compared and "&nbsp;yes" in compared
