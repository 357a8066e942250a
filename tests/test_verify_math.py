"""Judging mathematics: what is taken out of an answer, and the examples of docs/verifier.md.

Spellings and answers made to deceive are in test_math_spellings.py, to stall in test_math_robustness.py, random ones
in test_math_fuzz.py, recorded judgements in test_math_data.py.
"""

from __future__ import annotations

import pytest
from verifier_examples import MATH_ANSWERS, MATH_EXTRACTION, MATH_RESTATEMENTS, MATH_TEXTS, boxed

from dphlib.types import Verdict
from dphlib.verify.math import MathVerifier, extract_boxed, plain_number
from dphlib.verify.math_text import joined_boxes


@pytest.fixture(scope="module")
def strict():
    with MathVerifier(timeout_s=5.0) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def compat():
    with MathVerifier("compat") as verifier:
        yield verifier


@pytest.mark.parametrize(("text", "content"), MATH_EXTRACTION)
def test_last_balanced_box(text, content):
    assert extract_boxed(text) == content


def test_texts_of_200_kB_are_searched_for_a_box():
    for text in ("\\boxed{" * 30_000, "\\boxed" + " " * 200_000, "}" * 200_000):
        assert extract_boxed(text) is None and extract_boxed(text + r" \boxed{5}") in ("5", None)
    assert extract_boxed("\\boxed{" + "(" * 200_000 + "}") == "(" * 200_000
    assert joined_boxes("\\boxed{1}" + " " * 200_000 + ", \\boxed{2}") == ["2"]
    assert joined_boxes(", ".join(["\\boxed{1}"] * 20_000)) == ["1"] * 20_000


def test_plain_numbers_are_exact_and_need_no_worker():
    with MathVerifier() as verifier:
        items = [("46", "46"), ("46", "046"), ("0.30", "0.3"), ("9007199254740993", "9007199254740992")]
        items += [("1,000", "1000"), ("-5", "- 5"), ("46", "4 6"), ("1" * 1500, "1" * 1500)]
        plain = [item for item in items if plain_number(item[1]) is not None]
        verdicts = verifier.verify_many([(gold, boxed(answer)) for gold, answer in plain])
        assert verifier.executed == 0 and verifier.pids() == []
        assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
        assert ("46", "4 6") not in plain


@pytest.mark.parametrize(("gold", "content", "outcome", "math_verify"), [*MATH_RESTATEMENTS, *MATH_ANSWERS])
def test_outcomes_of_a_box(strict, compat, gold, content, outcome, math_verify):
    assert strict.verify(gold, boxed(content)).outcome == outcome
    assert compat.verify(gold, boxed(content)).outcome == math_verify


@pytest.mark.parametrize(("gold", "text", "outcome", "math_verify"), MATH_TEXTS)
def test_outcomes_of_a_text(strict, compat, gold, text, outcome, math_verify):
    verdict = strict.verify(gold, text)
    assert verdict.outcome == outcome
    assert verdict.reward == Verdict(outcome).reward
    assert compat.verify(gold, text).outcome == math_verify


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'loose'"):
        MathVerifier("loose")
