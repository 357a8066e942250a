"""What readers are shown of the CPU world agrees with what the world was built from."""

from __future__ import annotations

import pytest

from dphlib.lessons.world import (
    card,
    column_content,
    decisive_column,
    examples,
    four_answers,
    question_of,
    right_table,
    suite_table,
    table_rows,
    tables_of,
)
from dphlib.settings.stages import WorldConfig
from dphlib.verify import Verifier
from dphlib.world.people_places import build_world
from dphlib.world.templates import STYLES, sql_answer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    config = WorldConfig(problems={"train": 44, "in_domain": 7, "cross_domain": 33, "out_of_domain": 6})
    return folder / "database", build_world(config, folder)


def test_questions_are_read_off_their_prompts(world):
    root, suites = world
    for problem in suites["train"] + suites["cross_domain"]:
        question = question_of(problem)
        assert problem.prompt.endswith(f"question : {question.text} answer :")
        assert question.table in tables_of(problem) and len(tables_of(problem)) == 2
        rows = table_rows(root, problem)
        assert list(rows.columns) == list(question.table.columns) and len(rows) == 8
        assert decisive_column(problem) in rows.columns
        content = column_content(root, problem)
        assert set(content["column"]) == {decisive_column(problem)} and (content["rows"] <= content["of"]).all()
    with pytest.raises(ValueError, match="is a sum"):
        question_of(suites["out_of_domain"][0])


def test_examples_on_which_styles_differ_come_first(world):
    _, suites = world
    for form in ("highest", "list_above"):
        shown = examples(suites["train"], form)
        assert {problem.meta["family"].split()[0] for problem in shown} == {form}
        assert examples(suites["train"], shown[0].meta["family"])[0] == shown[0]
        everyone = [problem.meta["right_styles"].count(" ") == 3 for problem in shown]
        assert everyone == sorted(everyone)
    with pytest.raises(ValueError, match="no problem of family 'shared'"):
        examples(suites["train"], "shared")


def test_verdicts_on_the_four_answers_are_the_problems_right_styles(world):
    root, suites = world
    with Verifier(root) as verifier:
        for problem in suites["train"] + suites["cross_domain"]:
            answers = four_answers(root, problem, verifier)
            assert list(answers["style"]) == list(STYLES)
            right = set(answers.loc[answers["verdict"] == "correct", "style"])
            assert right == set(problem.meta["right_styles"].split())
            assert set(answers["verdict"]) <= {"correct", "wrong"}
            assert verifier.verify_many([(problem, sql_answer("direct", problem.gold))])[0].outcome == "correct"
            assert len(right) == len(STYLES) or (len(right) == 1 and problem.meta["content"] == "hidden")


def test_tables_of_suites_and_of_right_styles(world):
    _, suites = world
    table = suite_table(suites).set_index("suite")
    assert dict(table["problems"]) == {"train": 44, "in_domain": 7, "cross_domain": 33, "out_of_domain": 6}
    assert table.loc["train", "databases"] == 44 and table.loc["out_of_domain", "databases"] == 0
    assert table.loc["cross_domain", "prompts also in train"] == 0
    right = right_table(suites["train"])
    assert right["problems"].iloc[:-1].sum() == right["problems"].iloc[-1] == 44
    assert (right.loc[right["content"].isin(["clean", "hard"]), [*STYLES, "any", "all"]] == 100).all().all()
    last = right.iloc[-1]
    assert last["all"] <= min(last[s] for s in STYLES) and last["any"] >= max(last[s] for s in STYLES)
    assert last["family"] == "every problem"
    problems = suites["train"]
    alike = {set(problem.meta["right_styles"].split()) == set(STYLES): problem for problem in problems}
    assert "right: every style)" in card(alike[True])
    assert f"right: {', '.join(alike[False].meta['right_styles'].split())})" in card(alike[False])
