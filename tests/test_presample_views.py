"""The tables and the figure of pre-sampling: counts that add up, verdicts, the threshold that is asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dphlib.lessons import presampling as presample_views
from dphlib.types import Answer, Group, Problem, Verdict

K = 4


def group(name: str, correct: int, subset: str, answers: int = K) -> Group:
    problem = Problem(
        name, "train", "sql", f"question {name}", "SELECT 1", name, {"family": f"f-{subset}", "subset": subset}
    )
    drawn = tuple(Answer(name, i, (5, 6, 2), (-1.0, -0.5, 0.0), f"{name} {i}", False) for i in range(answers))
    return Group(problem, drawn, tuple(Verdict("correct" if i < correct else "wrong") for i in range(answers)))


GROUPS = [group("a", 4, "clean"), group("b", 3, "clean"), group("c", 3, "hidden"), group("d", 0, "hidden")]
EXTRA = [group(name, right, "clean", 1) for name, right in (("a", 1), ("b", 0), ("c", 1), ("d", 1))]


def test_each_prompt_is_counted_once_under_its_family():
    table = presample_views.counts(GROUPS)
    assert table[range(K + 1)].to_numpy().sum() == len(GROUPS)
    clean = table[table["family"] == "f-clean"].iloc[0]
    assert (clean[4], clean[3], clean[0]) == (1, 1, 0)


def test_outcomes_are_shares_within_a_subset_with_an_answer_to_look_at():
    table = presample_views.outcomes(GROUPS).set_index("outcome")
    assert list(table.index) == ["correct", "wrong"]
    assert table["answers"].sum() == K * len(GROUPS)
    assert table.loc["correct", "clean (%)"] == pytest.approx(100 * 7 / 8, abs=0.05)
    assert table.loc["wrong", "example"] == "b 3"


def test_sets_follow_the_threshold_and_a_failed_extra_draw_leaves_no_reference():
    table = presample_views.sets(GROUPS, EXTRA, 3).set_index("set")
    assert table.loc["D_pef", ["prompts", "clean", "hidden", "with a reference"]].tolist() == [3, 2, 1, 2]
    assert table.loc["D_exp", "prompts"] == 1
    assert table.loc["D_pef", "correct of the 4 (%)"] == pytest.approx(100 * 10 / 12)
    assert table.loc["D_pef", "correct of the extra one (%)"] == pytest.approx(100 * 2 / 3)
    assert presample_views.sets(GROUPS, EXTRA, 4).set_index("set").loc["D_pef", "prompts"] == 1


def test_an_empty_set_has_no_accuracy():
    table = presample_views.sets(GROUPS[-1:], EXTRA, 1).set_index("set")
    assert table.loc["D_pef", "prompts"] == 0 and np.isnan(table.loc["D_pef", "correct of the 4 (%)"])


def test_thresholds_show_every_one_and_mark_the_chosen():
    table = presample_views.thresholds(GROUPS, EXTRA, 3)
    assert table["D_pef"].tolist() == [3, 3, 3, 1]
    assert table["D_pef without a reference"].tolist() == [1, 1, 1, 0]
    assert table.loc[table[""] == "chosen", "threshold"].tolist() == ["3 of 4"]


def test_a_stored_answer_token_by_token():
    from dphlib.partition import partition

    references = partition(GROUPS, 3, EXTRA).references
    pieces = {5: "SELECT", 6: "1", 2: "</s>"}
    shown = presample_views.reference_tokens(references, lambda ids: [pieces[i] for i in ids], example=0)
    assert shown["token"].tolist() == ["SELECT", "1", "</s>"]
    assert shown["sum (nats)"].iloc[-1] == pytest.approx(-1.5)
    assert shown["probability"].iloc[0] == pytest.approx(np.exp(-1))
    beyond = presample_views.reference_tokens(references, lambda ids: [pieces[i] for i in ids], example=len(references))
    pd.testing.assert_frame_equal(shown, beyond)
    assert presample_views.reference_tokens([], lambda ids: [pieces[i] for i in ids], 0).empty


def test_figure_shows_the_threshold_asked_for():
    low, high = (presample_views.partition_figure(GROUPS, EXTRA, threshold) for threshold in (2, 4))
    lines = [figure.axes[0].lines[0].get_xdata()[0] for figure in (low, high)]
    assert lines == [1.5, 3.5]
    assert [bar.get_height() for bar in low.axes[0].containers[0]] == [0, 0, 0, 1, 1]


def test_threshold_outside_and_nothing_drawn_are_told():
    with pytest.raises(ValueError, match="it must lie in 1"):
        presample_views.sets(GROUPS, EXTRA, 5)
    with pytest.raises(ValueError, match="pre-sample the suite first"):
        presample_views.partition_figure([], [], 1)


def test_each_base_has_a_row_with_its_own_partition():
    table = presample_views.of_bases({0: (GROUPS, EXTRA), 4: (GROUPS[2:], EXTRA[2:])}, 3)
    assert table.to_dict("list") == {
        "base": [0, 4],
        "correct (%)": [100 * 10 / 16, 100 * 3 / 8],
        "D_pef": [3, 1],
        "D_exp": [1, 1],
        "references": [2, 1],
    }


def test_the_partition_in_sentences():
    size, luck, parts = presample_views.findings(GROUPS, EXTRA, 3)
    assert size == "3 of 4 prompts (75.0 %) are near perfect at 3 of 4; 2 of them have a stored answer."
    assert "83.3 % are correct, of the extra answers 66.7 %: selection luck is +16.7 points" in luck
    assert parts == "100 % of the clean prompts, 50 % of the hidden prompts are near perfect."
    spread = "Of 4 prompts 25 % were solved in all 4 answers, 25 % in none, 50 % in some."
    assert presample_views.spread(GROUPS) == spread
    assert len(presample_views.findings(GROUPS[-1:], EXTRA, 1)) == 2, "of no prompt there is no luck"
