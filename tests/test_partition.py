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


def test_several_stored_answers_are_of_the_same_prompts_as_one():
    """The extra draw's first, then the correct pre-samples in order; a prompt whose extra draw failed stays without."""
    groups = [group("a", ["wrong"] + ["correct"] * 7), counted("b", 8), counted("c", 2)]
    extra = [group("a", ["correct"]), group("b", ["wrong"]), group("c", ["correct"])]
    one, four, all_ = (partition(groups, 6, extra, answers=n).references for n in (1, 4, 99))
    assert {r.problem.id for r in one} == {r.problem.id for r in four} == {"a"}
    assert [r.token_ids[0] for r in four] == [0, 1, 2, 3] and four[0] == one[0]
    assert [r.token_ids[0] for r in all_] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert len(partition(groups, 6, answers=3).references) == 6  # without an extra draw: a's and b's first three
    with pytest.raises(ValueError, match="answers is 0"):
        partition(groups, 6, extra, answers=0)


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=20))
def test_everywhere_each_prompt_with_a_correct_answer_has_one_stored(drawn):
    groups = [counted(str(i), c) for i, (c, _) in enumerate(drawn)]
    extra = [group(str(i), ["correct" if right else "wrong"]) for i, (_, right) in enumerate(drawn)]
    everywhere = partition(groups, 6, extra, everywhere=True)
    assert [r.problem.id for r in everywhere.references] == [str(i) for i, (c, x) in enumerate(drawn) if c or x]
    kept = partition(groups, 6, extra)
    assert (everywhere.near_perfect, everywhere.exploration) == (kept.near_perfect, kept.exploration)
    assert [r for r in everywhere.references if r in kept.references] == kept.references  # D_pef's are the same answers


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
