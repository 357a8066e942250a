"""What problems hold: the parts of a suite are told by the world's families, and their numbers are the suite's own."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from synthetic import make_rows

from dphlib.analysis import sentences
from dphlib.analysis.contents import by_content, content_table, contents
from dphlib.experiment.results import FIGURES, Results, left_out
from dphlib.figures.results import content_curves
from dphlib.settings.profiles import profile
from dphlib.settings.stages import WorldConfig

CONFIG = WorldConfig()
HELD = {"highest age": "hidden", "count_no married": "hidden", "two_filters": "hard", "aggregate": "clean"}


def records(right: dict[str, dict[str, int]]) -> pd.DataFrame:
    """Eight answers to five problems of each family, `right[method][content]` of them right, in three runs."""
    frames = []
    for method, of in right.items():
        for seed in range(3):
            families = [family for family in HELD for _ in range(5)]
            correct = [[i < of[HELD[family]] for i in range(8)] for family in families]
            frames.append(make_rows(method, seed, correct, base=seed, subset=families))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return records({"base": {"hidden": 4, "hard": 1, "clean": 8}, "grpo": {"hidden": 0, "hard": 8, "clean": 8}})


def test_every_problem_of_the_world_is_of_a_family_whose_content_is_known(tmp_path):
    from dphlib.experiment.pipeline import Pipeline

    known, pipeline = contents(CONFIG), Pipeline(tmp_path, profile("smoke"))
    for suite in ("in_domain", "cross_domain", "out_of_domain"):
        for problem in pipeline.suite(suite):
            assert known[suite, problem.meta["family"]] in ("clean", "hard", "hidden")
            assert known[suite, problem.meta["family"]] == problem.meta.get("content", problem.meta["subset"]), problem


def test_parts_hold_the_problems_of_their_families_and_the_differences_are_theirs(rows):
    parts = by_content(rows, CONFIG)
    assert {part: set(found["subset"]) for part, found in parts.items()} == {
        ("in_domain", "hidden"): {"highest age", "count_no married"},
        ("in_domain", "hard"): {"two_filters"},
    }
    table = content_table(parts).set_index(["holds", "method", "k"])
    assert table.loc[("hidden", "GRPO", 1), "minus base"] == pytest.approx(-50)
    assert table.loc[("hard", "GRPO", 1), "minus base"] == pytest.approx(100 * 7 / 8)
    assert (
        table.loc[("hard", "base", 8), "Pass@k"] == pytest.approx(100)
        and table.loc[("hidden", "GRPO", 8), "Pass@k"] == 0
    )
    assert np.isnan(table.loc[("hidden", "base", 1), "minus base"]) and set(table["problems"]) == {10, 5}


def test_sentences_give_both_sides_and_say_what_is_absent(rows):
    table = content_table(by_content(rows, CONFIG))
    assert "hidden problems Pass@8 -100.0" in sentences.contents(table, "grpo")
    assert sentences.contents(table, "dph_f") == "DPH-F: not run."


def test_the_figure_has_a_column_for_each_part_and_is_left_out_where_no_family_is_known(rows):
    fig = content_curves(by_content(rows, CONFIG))
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes[:2]] == [
        "in domain, hidden",
        "in domain, hard",
    ]
    of_other_families = Results(profile("cpu"), rows.assign(subset="family0"), pd.DataFrame(), pd.DataFrame())
    assert FIGURES["fig20_contents"].why_absent(of_other_families) == "no problem is of a family of the world"
    assert "fig20_contents" in left_out(of_other_families)
