"""Random texts through the mathematics verifier: nothing raises, and no gold that can be read is an `infra_error`.

`DPH_FUZZ_CASES=100000 python -m pytest tests/test_math_fuzz.py` does so at length.
"""

from __future__ import annotations

import os
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dphlib.verify.math import MathVerifier
from dphlib.verify.math_text import exact_value, extract_boxed, plain_number, restatement, same_value, split_units, tidy
from tests.math_cases import PIECES

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("DPH_FUZZ_CASES", "1200"))  # of each property
COMPARED = 100

latex = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
short = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
anything = latex | st.text(max_size=80)
ratios = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=500)
decimals = st.decimals(-10_000, 10_000, places=3).map(str)


def is_balanced(text: str) -> bool:
    return extract_boxed(f"\\boxed{{{text}}}") in (text.strip(), None) and "\\boxed" not in text


@settings(max_examples=CASES)
@given(before=anything, content=latex, after=anything)
def test_the_last_balanced_box_is_found_whatever_stands_before_it(before, content, after):
    text = f"{before} \\boxed{{{content}}} {after}"
    found = extract_boxed(text)
    assert found is None or (found and found == found.strip() and found in text)
    if is_balanced(content) and extract_boxed(f"\\boxed{{{content}}}") and not before.endswith("\\"):
        assert extract_boxed(f"{before} \\boxed{{{content}}}") == content.strip()


@settings(max_examples=CASES)
@given(gold=anything, content=anything)
def test_the_rules_on_text_never_raise_and_agree_with_each_other(gold, content):
    reason = restatement(gold, content)
    assert reason is None or reason
    value, units = split_units(tidy(content))
    assert tidy(content).startswith(value) and bool(units) == (value != tidy(content))
    number = plain_number(content)
    if number is not None:
        assert exact_value(content) in (None, (number, exact_value(content) and exact_value(content)[1]))
    assert same_value(gold, content) in (True, False, None)


@settings(max_examples=CASES)
@given(one=ratios, other=ratios, decimal=decimals)
def test_numbers_are_compared_exactly_and_symmetrically(one, other, decimal):
    def ratio(value: Fraction) -> str:
        return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"

    assert same_value(ratio(one), ratio(one)) is True
    assert same_value(ratio(one), ratio(other)) is same_value(ratio(other), ratio(one)) is (one == other)
    assert exact_value(f"{one.numerator}/{one.denominator}") == exact_value(ratio(one)) == (one, None)
    assert same_value(decimal, ratio(one)) is same_value(ratio(one), decimal) is (Fraction(decimal) == one)
    assert plain_number(decimal) == Fraction(decimal)


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(workers=2, timeout_s=3.0) as verifier:
        yield verifier


@settings(max_examples=CASES // COMPARED)
@given(golds=st.lists(short, min_size=4, max_size=4), contents=st.lists(short, min_size=25, max_size=25))
def test_random_comparisons_end_and_a_readable_gold_is_never_an_infra_error(verifier, golds, contents):
    """`COMPARED` comparisons each time, and each gold with itself."""
    own = verifier.verify_many([(gold, f"\\boxed{{{gold}}}") for gold in golds])
    items = [(gold, f"\\boxed{{{content}}}") for gold in golds for content in contents]
    for (gold, _), verdict in zip(items, verifier.verify_many(items), strict=True):
        if own[golds.index(gold)].outcome == "correct":
            assert verdict.reward is not None, (gold, verdict)
        assert own[golds.index(gold)].outcome in ("correct", "infra_error", "no_answer")
