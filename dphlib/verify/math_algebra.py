r"""Whether two mathematical answers say the same: by their parts, and by sympy for what is in them. Runs in the worker.

Both texts are tidy (`math_spelling`), without units, and the answer is no restatement (`math_text`). They are taken
apart as text, and only what has no more parts is parsed, so that a rule holds wherever a value stands:

1. a list is its values in any order; a gold list of several different values may be met by one that repeats some.
   Braces round all of it change nothing; `a \pm b` is two values, several signs are independent unless there is a
   `\mp`. Named values (`x=1,y=2`) are paired by name, with values that have none in their order;
2. `x \in S`, `S`, an interval, a union, an inequality solved for a letter (`0 \le x < 1`) and a set-builder are sets of
   numbers, and compared as such; "or" joins them, a comma or "and" intersects them unless nothing would be left;
3. an equation is the same as one that differs by a factor that is a number; one that says what a letter is
   (`x=5`) is met only by one that says it too, or by the value alone;
4. `i` is the imaginary unit unless it is an index or a letter of a name; letters are real, and upper and lower case of
   a letter are one unless both occur;
5. a decimal is compared to six places with what is none, an angle in degrees with one in radians by its value.

A text that sympy or latex2sympy cannot handle is `UnreadableError`, whatever else is raised is a fault of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify import verify
from sympy import FiniteSet, I, Interval, Reals, Symbol, Union, oo
from sympy.concrete.expr_with_limits import ExprWithLimits

from dphlib.verify.math_text import (
    INEQUALITY,
    Item,
    UnreadableError,
    bare,
    bracket,
    inside,
    is_name,
    is_sentence,
    items,
    same_value,
    signs,
    split,
)

MAX_VALUES = 200  # of a list
MAX_CONDITIONS = 8  # on one letter

Region = tuple[str, Any]
"""The letter that a set of numbers confines, "" if it names none, and the set."""

_RULES = NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
_COMPARED = re.compile(r"(<|>|=|\\(?:le|ge|neq|in)(?![A-Za-z]))")
_BUILDER = re.compile(r"\\\{\s*(?P<name>[^|:{}]{1,20}?)\s*(?:\\in\s*\\mathbb\{R\}\s*)?[|:](?P<condition>.*)\\\}")
_ALL_REALS = frozenset(("allrealnumbers", "allreals", "realnumbers", "everyrealnumber"))
_NAMED_SETS = {"\\mathbb{R}": Reals, "\\emptyset": sympy.S.EmptySet}
_TURNED = {"<": ">", "\\le": "\\ge", ">": "<", "\\ge": "\\le"}


def foreign(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls sympy, latex2sympy or what is made of them alone: what they raise is the text's fault."""
    try:
        return call(*arguments, **options)
    except Exception as error:
        raise UnreadableError(f"{type(error).__name__}: {error}"[:300]) from error


# --- Expressions --------------------------------------------------------------------------------------


@lru_cache(maxsize=5_000)
def parse(text: str) -> Any:
    """The expression that a text is, None if it is none. What has no value (`12:00` as a ratio) is a name."""
    try:
        return foreign(_parse, text.strip())
    except UnreadableError:
        return None


def _parse(text: str) -> Any:
    letters = re.sub(r"\\[A-Za-z]+", "", text)
    both_cases = any(letter.isupper() and letter.lower() in letters for letter in set(letters))
    config = ConversionConfig(lowercase_symbols=not both_cases)
    read = latex2sympy(normalize_latex(text, _RULES), is_real=True, normalization_config=None, conversion_config=config)
    if read in (sympy.nan, sympy.zoo) or (read.has(sympy.zoo, sympy.nan) and not read.has(oo)):
        return Symbol(f"undefined {bare(text)}")
    index = Symbol("i", real=True)
    if not read.has(I, index) or read.has(ExprWithLimits):
        return read
    letter = {I: Symbol("I", real=True), index: I}  # latex2sympy has it the other way round
    return read.xreplace(letter) if hasattr(read, "xreplace") else read.subs(letter, simultaneous=True)


def equal(gold: Any, answer: Any) -> bool:
    """Whether math-verify finds two expressions equal; an unread one (None) equals nothing."""
    found = gold is not None and answer is not None and foreign(verify, gold, answer, timeout_seconds=None)
    return found and not foreign(_differ, gold, answer)


def _differ(gold: Any, answer: Any) -> bool:
    """Whether two exact numbers are surely not equal, where math-verify looks at 15 digits of their difference."""
    pair = (gold, answer)
    if not all(isinstance(one, sympy.Expr) and one.is_number and not one.has(sympy.Float, oo) for one in pair):
        return False
    difference = (gold - answer).evalf(2)
    return any(part.is_Float and part._prec > 1 and part != 0 for part in difference.as_real_imag())


def _exact(expression: Any) -> Any:
    return expression.xreplace({number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)})


def _in_radians(text: str) -> Any:
    read = parse(text)
    return foreign(lambda: read * sympy.pi / 180) if read is not None and "\\circ" in text else read


def _proportional(one: Any, other: Any, *, positive: bool) -> bool:
    """Whether one expression is a number times the other, a positive one if so wanted; of equations, but for what
    can be multiplied away."""
    if not one.free_symbols or one.free_symbols != other.free_symbols:
        return False
    pair = [_exact(expression) for expression in (one, other)]
    if not positive:
        pair = [sympy.fraction(sympy.together(expression))[0] for expression in pair]
    factor = sympy.simplify(sympy.cancel(pair[0] / pair[1]))
    return bool(factor.is_number and factor.is_finite and factor != 0 and (not positive or factor.is_positive))


# --- Answers ------------------------------------------------------------------------------------------


def same(gold: str, answer: str) -> bool:
    """Whether two answers say the same. Raises UnreadableError where they do not and `answer` cannot be read."""
    if bare(gold) == bare(answer):
        return bool(bare(gold))
    if is_sentence(gold):
        return False
    if (one := region(gold)) is not None:
        if (other := region(answer)) is not None:
            return not (one[0] and other[0] and one[0] != other[0]) and _same_sets(one[1], other[1])
        if INEQUALITY.search(answer):
            return False  # an inequality that is not solved
    if _same_lists(items(gold), items(answer)):
        return True
    if not readable(answer):
        raise UnreadableError("nothing that math-verify can read")
    return False


def readable(text: str) -> bool:
    """Whether every part of an answer is one that can be parsed, so that another spelling of it may be met."""
    if region(text) is not None:
        return True
    return not is_sentence(text) and all(_readable(item.value) for item in items(text))


def _readable(value: str) -> bool:
    parts = split(inside(value))
    return all(map(_readable, parts)) if bracket(value) and len(parts) > 1 else parse(value) is not None


def _same_lists(gold: Sequence[Item], answer: Sequence[Item]) -> bool:
    if len(gold) > 1 and _by_name(gold):
        names = [bare(item.left) for item in gold]
        if len(answer) == 1 and re.fullmatch(r"\s*\(.*\)\s*", answer[0].text):
            answer = [Item("", part) for part in split(inside(answer[0].value))]
        elif (given := _by_name(answer)) and set(given) == set(names):
            answer = [given[name] for name in names]
        return len(answer) == len(gold) and all(map(_same_items, gold, answer))
    if len(gold) == 1 and len(answer) > 1 and (given := _by_name(answer)):
        parts = split(inside(gold[0].value)) if bracket(gold[0].value) == "(" else []
        return len(parts) == len(given) and all(
            _same_values(parts[i], given[x].value) for i, x in enumerate(sorted(given))
        )
    return _matched(gold, answer, _same_items)


def _by_name(found: Sequence[Item]) -> dict[str, Item]:
    """The items by their names; empty if some have none, or the same."""
    named = {bare(item.left): item for item in found if is_name(item.left)}
    return named if len(named) == len(found) else {}


def _matched(gold: Sequence[Any], answer: Sequence[Any], alike: Callable[[Any, Any], bool]) -> bool:
    """Whether two lists are the same in any order. Where several golds all differ, the answer may repeat some."""
    if not len(gold) <= len(answer) <= (1 if len(gold) == 1 else MAX_VALUES):
        return False
    left = list(answer)
    for one in gold:
        place = next((i for i, other in enumerate(left) if alike(one, other)), None)
        if place is None:
            return False
        del left[place]
    repeated = all(any(alike(one, other) for one in gold) for other in left)
    return repeated and not (left and any(alike(one, other) for one, other in combinations(gold, 2)))


def _same_items(gold: Item, answer: Item) -> bool:
    if not gold.left or not answer.left:
        return (not gold.left or _is_quantity(gold.left)) and _same_values(gold.value, answer.value)
    if bare(gold.left) == bare(answer.left) and is_name(gold.left):
        return _same_values(gold.value, answer.value)
    if gold.solved:
        return bare(gold.left) == bare(answer.value) and _same_values(gold.value, answer.left)
    return _same_relations(gold.text, answer.text)


def _is_quantity(left: str) -> bool:
    """A name, or a ratio of such, but no expression in letters."""
    return is_name(left) or not re.search(r"[\d+\-^a-z]", re.sub(r"\\[A-Za-z]+", "", left))


def _same_values(gold: str, answer: str) -> bool:
    if bare(gold) == bare(answer) or not bare(answer):
        return bool(bare(answer))  # nothing is not even itself
    if (found := same_value(gold, answer)) is not None:
        return found
    kinds = bracket(gold), bracket(answer)
    parts, others = (split(inside(text)) if kind else [text] for text, kind in zip((gold, answer), kinds, strict=True))
    if len(parts) > 1 or len(others) > 1:
        if kinds == ("\\{", "\\{"):
            return _matched(parts, others, _same_values)
        ends = [text.strip()[:1] + text.strip()[-1:] for text in (gold, answer)]
        alike = ends[0] == ends[1] or (len(parts) > 2 and {"()", "[]"} >= set(ends))
        return alike and len(parts) == len(others) and all(map(_same_values, parts, others))
    for mark in ("\\cup", "\\cap"):
        parts, others = split(gold, mark), split(answer, mark)
        if len(parts) > 1 and len(others) > 1:
            return _matched(parts, others, _same_values)
    values, given = split(gold, "\\approx"), split(answer, "\\approx")
    if len(values) > 1 or len(given) > 1:  # each side of the answer is one of the gold
        return all(any(_same_values(one, other) for one in values) for other in given)
    if _COMPARED.search(gold) and _COMPARED.search(answer):
        return _same_relations(gold, answer)
    if ("\\circ" in gold) != ("\\circ" in answer) and "\\pi" in gold + answer:
        return equal(_in_radians(gold), _in_radians(answer))
    return equal(parse(gold), parse(answer))


def _same_relations(gold: str, answer: str) -> bool:
    one, other = _difference(gold), _difference(answer)
    if one is None or other is None:
        return equal(parse(gold), parse(answer))
    return one[0] == other[0] and foreign(_proportional, one[1], other[1], positive=one[0] in _TURNED)


def _difference(text: str) -> tuple[str, Any] | None:
    """Kind of a relation, turned so that it is `=`, `\\neq`, `>` or `\\ge`, and its left side less its right."""
    sides = _COMPARED.split(text)
    if len(sides) != 3:
        return None
    kind, left, right = sides[1], parse(sides[0]), parse(sides[2])
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return None
    if kind in ("<", "\\le"):
        kind, left, right = _TURNED[kind], right, left
    return kind.replace("\\in", "="), foreign(lambda: left - right)


# --- Sets of numbers ----------------------------------------------------------------------------------


@lru_cache(maxsize=5_000)
def region(text: str) -> Region | None:
    """The set of numbers that an answer is, None if it is no such answer, or a list of numbers (see `items`).

    >>> region(r"x \\in [0,1)") == region(r"0 \\le x < 1"), region(r"\\{1,2\\}")
    (True, None)
    """
    try:
        return _region(text.strip())
    except UnreadableError:
        return None


def _region(text: str) -> Region | None:
    if built := _BUILDER.fullmatch(text):
        found = region(built["condition"])
        return ("", found[1]) if found and found[0] == bare(built["name"]) else None
    if len(forms := split(text, ":")) == 2:  # one set written in two ways
        one, other = map(region, forms)
        return one if one and other and _same_sets(one[1], other[1]) else None
    name, sides = "", split(text, "\\in")
    if len(sides) == 2 and is_name(sides[0]):
        name, text = bare(sides[0]), sides[1].strip()
    if re.sub(r"[^a-z]", "", text.removeprefix("\\text").lower()) in _ALL_REALS:
        return name, Reals
    pieces = [piece.strip() for piece in split(text, "\\cup")]
    if all(bracket(piece) or piece in _NAMED_SETS or "\\setminus" in piece for piece in pieces):
        if len(pieces) == 1 and bracket(text) == "\\{":
            return None
        sets = list(map(_piece, pieces))
        return None if None in sets else (name, foreign(Union, *sets))
    return None if name else _conditions(text)


def _piece(text: str) -> Any:
    """One interval, finite set or named set, or the difference of two; None if it is none."""
    if text in _NAMED_SETS:
        return _NAMED_SETS[text]
    if "\\setminus" in text:
        one, other = (_piece(side.strip()) for side in text.split("\\setminus", 1))
        return None if one is None or other is None else foreign(lambda: one - other)
    ends = _numbers(split(inside(text)))
    if ends is None or bracket(text) == "\\{":
        return None if ends is None else foreign(FiniteSet, *ends)
    made = foreign(Interval, *ends, text[0] == "(", text[-1] == ")") if len(ends) == 2 else None
    return made if isinstance(made, Interval) else None


def _numbers(texts: Iterable[str]) -> list[Any] | None:
    read = list(map(parse, texts))
    return list(map(_exact, read)) if all(isinstance(one, sympy.Expr) for one in read) else None


def _conditions(text: str) -> Region | None:
    parts = split(text)
    if len(parts) > MAX_CONDITIONS or not INEQUALITY.search(text):
        return None
    found = [one for part in parts if (one := _condition(part))]
    if len(found) != len(parts) or len({name for name, _ in found}) != 1:
        return None
    sets = [one for _, one in found]
    together = foreign(Union if "\\lor" in text else sympy.Intersection, *sets)
    return found[0][0], foreign(Union, *sets) if together.is_empty else together


def _condition(text: str) -> Region | None:
    """What one relation, or a double inequality, says of a letter."""
    sides = [side.strip() for side in _COMPARED.split(text)]
    names = [bare(side) for side in sides[::2] if is_name(side)]
    if len(sides) not in (3, 5) or len(names) != 1 or (len(sides) == 5 and not is_name(sides[2])):
        return None
    ends: dict[bool, tuple[Any, bool]] = {}  # of the interval: whether it is the lower one -> where, and whether open
    for left, kind, right in (sides[i : i + 3] for i in range(0, len(sides) - 2, 2)):
        values = _numbers(signs(left if is_name(right) else right))
        if values is None:
            return None
        if kind not in _TURNED:
            points = foreign(FiniteSet, *values)
            whole = kind == "=" or foreign(lambda: Reals - points)  # noqa: B023
            return None if len(sides) == 5 or kind == "\\in" else (names[0], points if whole is True else whole)
        lower = (kind in ("<", "\\le")) == is_name(right)
        if len(values) > 1 or lower in ends:
            return None
        ends[lower] = values[0], kind in ("<", ">")
    (low, low_open), (high, high_open) = ends.get(True, (-oo, True)), ends.get(False, (oo, True))
    return names[0], foreign(Interval, low, high, low_open, high_open)


def _same_sets(gold: Any, answer: Any) -> bool:
    if gold == answer:
        return True
    one, other = foreign(_pieces, gold), foreign(_pieces, answer)
    return len(one) == len(other) and all(
        a[2:] == b[2:] and equal(a[0], b[0]) and equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def _pieces(numbers: Any) -> list[tuple[Any, Any, bool, bool]]:
    """Start, end, and which of them are out, of each part of a set of numbers, from left to right."""
    found = []
    for part in numbers.args if isinstance(numbers, Union) else (numbers,):
        points = [(point, point, False, False) for point in part.args] if isinstance(part, FiniteSet) else None
        found += points or [(part.inf, part.sup, part.left_open, part.right_open)]
    known = all(end.is_number for piece in found for end in piece[:2])
    return sorted(found, key=lambda piece: piece[0].evalf() if known else sympy.default_sort_key(piece[0]))
