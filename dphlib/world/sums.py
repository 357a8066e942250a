"""Sums: the CPU world's out-of-domain suite, its six subsets, and the four ways to work them.

The counterpart of the paper's math sets: same lead-ins as the SQL answers, another task. In half of the problems a word
has several readings and the question does not say which is meant; each of the four analysts has one, and each subset
odds of its own for whose is right. The other half is arithmetic that is hard for a small model, right in every style.
"""

from __future__ import annotations

import random

from dphlib.settings.stages import WorldConfig
from dphlib.types import Problem
from dphlib.world.families import Content, Family, styled_families
from dphlib.world.templates import STYLES, sum_answer, sum_prompt

READ, WORKED = ("shared", "rounded", "range"), ("sum", "difference", "product")
NOUNS = ("apples", "coins", "miles", "pages", "votes", "litres")
SUBSETS = (*READ, *WORKED)


def families(config: WorldConfig) -> list[Family]:
    """A hidden family for each word with several readings and each noun, and one for each kind of arithmetic."""
    forms: list[tuple[str, str, Content]] = [(form, noun, "hidden") for form in READ for noun in NOUNS]
    return styled_families(config, "sums", [*forms, *((form, "", "hard") for form in WORKED)])


def draw(rng: random.Random, subset: str) -> tuple[int, ...]:
    """Operands of a problem; where a word has several readings, such that no two agree."""
    while True:
        if subset == "shared":
            operands: tuple[int, ...] = (rng.randint(3, 59), rng.choice((2, 4, 5)))
        elif subset == "rounded":
            operands = (rng.randint(11, 399),)
        elif subset == "range":
            first = rng.randint(11, 49)
            operands = (first, first + rng.randint(3, 20))
        elif subset == "difference":
            operands = tuple(sorted((rng.randint(12, 98), rng.randint(12, 98)), reverse=True))
        elif subset == "sum":
            operands = (rng.randint(12, 98), rng.randint(12, 98))
        else:
            operands = (rng.randint(12, 49), rng.randint(2, 6))
        if subset in WORKED or len({value(subset, operands, style) for style in STYLES}) == len(STYLES):
            return operands


def text(subset: str, operands: tuple[int, ...], noun: str = "") -> str:
    """
    >>> text("shared", (17, 5), "apples"), text("rounded", (47,), "miles"), text("sum", (12, 34))
    ('17 apples shared by 5', '47 miles rounded', '12 + 34')
    """
    a, b = operands[0], operands[-1]
    return {
        "shared": f"{a} {noun} shared by {b}",
        "rounded": f"{a} {noun} rounded",
        "range": f"{noun} from {a} to {b}",
        "sum": f"{a} + {b}",
        "difference": f"{a} - {b}",
        "product": f"{a} * {b}",
    }[subset]


def value(subset: str, operands: tuple[int, ...], style: str) -> float:
    """The result, as `style` reads the words.

    >>> [value("shared", (17, 5), style) for style in STYLES]  # whole part, remainder, rounded up, exact
    [3, 2, 4, 3.4]
    >>> [value("rounded", (47,), style) for style in STYLES]  # down to a ten, to the nearest ten, five, hundred
    [40, 50, 45, 0]
    >>> [value("range", (13, 18), style) for style in STYLES]  # length, numbers in it, numbers inside, middle
    [5, 6, 4, 15.5]
    """
    a, b = operands[0], operands[-1]
    if subset in WORKED:
        return {"sum": a + b, "difference": a - b, "product": a * b}[subset]
    readings = {
        "shared": (a // b, a % b, -(-a // b), a / b),
        "rounded": (a // 10 * 10, (a + 5) // 10 * 10, (2 * a + 5) // 10 * 5, (a + 50) // 100 * 100),
        "range": (b - a, b - a + 1, b - a - 1, (a + b) / 2),
    }
    return readings[subset][STYLES.index(style)]


def working(style: str, subset: str, operands: tuple[int, ...], noun: str = "") -> str:
    """What is written between the lead-in and the box.

    >>> working("nested", "sum", (12, 34))
    '( 12 + 30 ) + 4 = 42 + 4 ='
    >>> working("stepwise", "product", (27, 3))
    '20 * 3 = 60 , 60 + 7 * 3 ='
    >>> working("nested", "shared", (17, 5), "apples")
    '( 17 apples shared by 5 ) ='
    """
    said, (a, b) = text(subset, operands, noun), (operands[0], operands[-1])
    if style == "direct":
        return ""
    if style == "aliased":
        return f"{said} ="
    if subset in READ:
        return f"( {said} ) =" if style == "nested" else f"{said} , so"
    if subset == "product":
        first, rest, so_far = f"{a - a % 10} * {b}", f"+ {a % 10} * {b}", (a - a % 10) * b
    else:  # the tens first
        sign, tens = ("+", b - b % 10) if subset == "sum" else ("-", b - b % 10)
        first, rest = f"{a} {sign} {tens}", f"{sign} {b % 10}"
        so_far = a + tens if subset == "sum" else a - tens
    return f"( {first} ) {rest} = {so_far} {rest} =" if style == "nested" else f"{first} = {so_far} , {so_far} {rest} ="


def sum_of(problem: Problem) -> tuple[str, tuple[int, ...], str]:
    """Question, operands and noun of a problem that `build_suite` made."""
    operands, noun = tuple(map(int, problem.meta["slots"].split())), problem.meta["family"].partition(" ")[2]
    return text(problem.meta["subset"], operands, noun), operands, noun


def corpus_pair(rng: random.Random, made: list[Family], slip_rate: float) -> tuple[str, str]:
    """One (prompt, answer) of the supervised corpus; a slip moves the result by a one or a ten."""
    hidden = rng.random() < 0.5
    family = rng.choice([one for one in made if (one.content == "hidden") == hidden])
    style = family.draw(rng, family.habits)
    form, noun, operands = family.form, family.attribute, draw(rng, family.form)
    result = value(form, operands, style)
    if rng.random() < slip_rate:
        result += rng.choice((-10, -1, 1, 10))
    return sum_prompt(text(form, operands, noun)), sum_answer(style, working(style, form, operands, noun), result)


def build_suite(rng: random.Random, config: WorldConfig, suite: str, count: int) -> list[Problem]:
    """`count` different problems, hidden and worked in turn; sums need no database."""
    problems: list[Problem] = []
    made, seen = families(config), set()
    kinds = [[one for one in made if one.content == content] for content in ("hidden", "hard")]
    while len(problems) < count:
        kind = kinds[len(problems) % 2]
        family = kind[len(problems) // 2 % len(kind)]
        operands = draw(rng, family.form)
        if (family.name, operands) in seen:
            continue
        seen.add((family.name, operands))
        owner = family.draw(rng, family.odds)
        right = (owner,) if family.content == "hidden" else STYLES
        meta = {"family": family.name, "subset": family.form, "content": family.content}
        meta |= {"right_styles": " ".join(sorted(right)), "slots": " ".join(map(str, operands))}
        prompt = sum_prompt(text(family.form, operands, family.attribute))
        gold = f"{value(family.form, operands, owner):g}"
        problems.append(Problem(f"{suite}_{len(problems):04d}", suite, "math", prompt, gold, None, meta))
    return problems
