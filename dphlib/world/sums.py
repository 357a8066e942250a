"""Sums: the CPU world's out-of-domain suite, its five subsets, and the four ways to work them.

The counterpart of the paper's five math sets: same lead-ins as the SQL answers, another task. Which way of working is
the most reliable is up to the model; nothing hidden decides here.
"""

from __future__ import annotations

import random

from dphlib.types import Problem
from dphlib.world.templates import STYLES, sum_answer, sum_prompt

SUBSETS = ("add1", "add2", "sub1", "add3terms", "mul1")


def draw(rng: random.Random, subset: str) -> tuple[str, tuple[int, ...]]:
    """An operator and its operands: two digits plus or minus some, three single digits, a digit times a digit."""
    tens, digit = rng.randint(11, 79), rng.randint(2, 9)
    if subset == "add1":
        return "+", (tens, digit)
    if subset == "add2":
        return "+", (tens, rng.randint(11, 79))
    if subset == "sub1":
        return "-", (tens, digit)
    if subset == "add3terms":
        return "+", (digit, rng.randint(2, 9), rng.randint(2, 9))
    return "*", (digit, rng.randint(2, 9))


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
    """What is written between the lead-in and the box.

    >>> working("nested", "+", (12, 34))
    '( 12 + 30 ) + 4 = 42 + 4 ='
    >>> working("stepwise", "*", (7, 3))
    '7 * 2 = 14 , 14 + 7 ='
    """
    if style == "direct":
        return ""
    if style == "aliased":
        return f"{expression(operator, operands)} ="
    first, rest = _split(operator, operands)
    if style == "nested":
        return f"( {first} ) {rest} = {_evaluate(first)} {rest} ="
    return f"{first} = {_evaluate(first)} , {_evaluate(first)} {rest} ="


def _split(operator: str, operands: tuple[int, ...]) -> tuple[str, str]:
    """A first step and what remains to be done with its result."""
    a, b = operands[0], operands[-1]
    if len(operands) == 3:
        return f"{a} + {operands[1]}", f"+ {b}"
    if operator == "*":
        return f"{a} * {b - 1}", f"+ {a}"
    if b > 10:  # the tens first
        return f"{a} + {b - b % 10}", f"+ {b % 10}"
    return f"{a} {operator} {b // 2}", f"{operator} {b - b // 2}"


def _evaluate(step: str) -> int:
    left, operator, right = step.split()
    return value(operator, (int(left), int(right)))


def corpus_pair(rng: random.Random, style: str, slip_rate: float) -> tuple[str, str]:
    """One (prompt, answer) of the supervised corpus; a slip moves the result by a digit."""
    operator, operands = draw(rng, rng.choice(SUBSETS))
    result = value(operator, operands)
    if rng.random() < slip_rate:
        result += rng.choice((-10, -1, 1, 10))
    return sum_prompt(expression(operator, operands)), sum_answer(style, working(style, operator, operands), result)


def build_suite(rng: random.Random, suite: str, count: int) -> list[Problem]:
    """`count` different problems, the subsets in turn; sums need no database."""
    problems: list[Problem] = []
    seen: set[tuple[str, tuple[int, ...]]] = set()
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
