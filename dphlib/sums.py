"""Sums: the CPU world's out-of-domain suite, its five subsets, and the four ways to work them.

The counterpart of the paper's five math sets: same lead-ins as the SQL answers, another task. Which working is the
more reliable is the model's own doing; nothing hidden decides here.
"""

from __future__ import annotations

import random
from pathlib import Path

from dphlib.config import WorldConfig
from dphlib.prompts import STYLES, sum_answer, sum_prompt
from dphlib.types import Problem

SUBSETS = ("add2", "add3", "sub2", "add3terms", "mul1")


def draw(rng: random.Random, subset: str) -> tuple[str, tuple[int, ...]]:
    """An operator and its operands: two-digit and three-digit sums, differences, three terms, times a digit."""
    two = lambda: rng.randint(11, 99)  # noqa: E731
    if subset == "add2":
        return "+", (two(), two())
    if subset == "add3":
        return "+", (rng.randint(101, 999), rng.randint(101, 999))
    if subset == "sub2":
        high, low = sorted((two(), two()), reverse=True)
        return "-", (high, low)
    if subset == "add3terms":
        return "+", (two(), two(), two())
    return "*", (two(), rng.randint(2, 9))


def value(operator: str, operands: tuple[int, ...]) -> int:
    """
    >>> value("-", (46, 12))
    34
    """
    if operator == "+":
        return sum(operands)
    return operands[0] - operands[1] if operator == "-" else operands[0] * operands[1]


def expression(operator: str, operands: tuple[int, ...]) -> str:
    return f" {operator} ".join(map(str, operands))


def working(style: str, operator: str, operands: tuple[int, ...]) -> str:
    """What stands between the lead-in and the box.

    >>> working("nested", "+", (12, 34))
    '( 10 + 30 ) + ( 2 + 4 ) = 40 + 6 ='
    >>> working("stepwise", "*", (12, 3))
    '2 * 3 = 6 , 10 * 3 = 30 ,'
    """
    high = tuple(n - n % 10 for n in operands)
    ones = tuple(n % 10 for n in operands)
    if operator == "*":
        high, ones = (high[0], operands[1]), (ones[0], operands[1])
    total_high, total_ones = value(operator, high), value(operator, ones)
    if style == "direct":
        return ""
    if style == "aliased":
        return f"{expression(operator, operands)} ="
    if style == "nested":
        joined = f"{total_high} + {total_ones}" if total_ones >= 0 else f"{total_high} - {-total_ones}"
        return f"( {expression(operator, high)} ) + ( {expression(operator, ones)} ) = {joined} ="
    return f"{expression(operator, ones)} = {total_ones} , {expression(operator, high)} = {total_high} ,"


def corpus_pair(rng: random.Random, style: str, slip_rate: float) -> tuple[str, str]:
    """One (prompt, answer) of the supervised corpus; a slip moves the result by a digit."""
    operator, operands = draw(rng, rng.choice(SUBSETS))
    result = value(operator, operands)
    if rng.random() < slip_rate:
        result += rng.choice((-10, -1, 1, 10))
    return sum_prompt(expression(operator, operands)), sum_answer(style, working(style, operator, operands), result)


def build_suite(rng: random.Random, config: WorldConfig, suite: str, count: int, folder: Path) -> list[Problem]:
    """`count` different problems, the subsets in turn. `config` and `folder` are unused: sums need no database."""
    problems, seen = [], set()
    while len(problems) < count:
        subset = SUBSETS[len(problems) % len(SUBSETS)]
        operator, operands = draw(rng, subset)
        if (operator, operands) in seen:
            continue
        seen.add((operator, operands))
        meta = {"family": subset, "subset": subset, "right_styles": " ".join(STYLES)}
        prompt, gold = sum_prompt(expression(operator, operands)), str(value(operator, operands))
        problems.append(Problem(f"{suite}_{len(problems):04d}", suite, "math", prompt, gold, None, meta))
    return problems
