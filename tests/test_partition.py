"""Partition: the threshold decides, references are correct answers, nothing is judged that was not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dphlib.partition import Reference, partition
from dphlib.types import Answer, Group, Problem, Verdict


def group(name: str, outcomes: list[str]) -> Group:
    problem = Problem(name, "train", "math", "q", "1")
    answers = tuple(Answer(name, i, (i, 2), (-0.5, -0.25), "", False) for i in range(len(outcomes)))
    return Group(problem, answers, tuple(Verdict(outcome) for outcome in outcomes))


def counted(name: str, correct: int, k: int = 8) -> Group:
    return group(name, ["correct"] * correct + ["wrong"] * (k - correct))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=30), st.integers(1, 8))
def test_every_prompt_is_in_exactly_one_set_and_the_threshold_decides(counts, threshold):
    groups = [counted(str(i), c) for i, c in enumerate(counts)]
    near_perfect, exploration, references = partition(groups, threshold)
    assert [p.id for p in near_perfect] == [str(i) for i, c in enumerate(counts) if c >= threshold]
    assert sorted(p.id for p in (*near_perfect, *exploration)) == sorted(str(i) for i in range(len(counts)))
    assert [r.problem.id for r in references] == [p.id for p in near_perfect]


def test_the_extra_draw_gives_the_reference_and_only_when_it_is_correct():
    groups = [counted("a", 8), counted("b", 6), counted("c", 5)]
    extra = [group("a", ["correct"]), group("b", ["wrong"]), group("c", ["correct"])]
    parts = partition(groups, 6, extra)
    assert [p.id for p in parts.near_perfect] == ["a", "b"]
    assert [(r.problem.id, r.token_ids) for r in parts.references] == [("a", (0, 2))]


def test_without_an_extra_draw_the_first_correct_answer_is_the_reference():
    (reference,) = partition([group("a", ["wrong", "correct", "correct"])], 2).references
    assert reference.token_ids == (1, 2)
    assert Reference.from_json(reference.to_json()) == reference


def test_empty_sets_are_allowed():
    assert partition([counted("a", 0)], 6).near_perfect == []
    assert partition([counted("a", 8)], 6).exploration == []


@pytest.mark.parametrize(
    ("groups", "threshold", "says"),
    [
        ([], 6, "no pre-sampled group"),
        ([counted("a", 1), counted("b", 1, k=4)], 1, "different sizes"),
        ([counted("a", 1)], 0, "1..8"),
        ([counted("a", 1)], 9, "1..8"),
        ([group("a", ["correct", "infra_error"])], 1, "could not be judged"),
    ],
)
def test_bad_input_is_refused_with_its_reason(groups, threshold, says):
    with pytest.raises(ValueError, match=says):
        partition(groups, threshold)
