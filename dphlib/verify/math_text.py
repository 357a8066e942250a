"""What the text of a mathematical answer is, before any algebra: its box, its numbers, its units, restatements.

Pure string rules of strict mode, on tidy text (`math_spelling`). Every pattern runs in linear or, on the 2,000
characters of a box at most, quadratic time, so that no answer can slow it.

What it does not do: read LaTeX. A text that no rule here settles goes to `math_algebra`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import Any

from dphlib.verify.math_spelling import tidy

MAX_VALUES = 64  # of one part with several signs `\pm`
MAX_BETWEEN = 80  # characters between two boxes of one list
MAX_CHARS = 2_000  # of a box; longer ones are no answer to a problem, but cost seconds to parse


class UnreadableError(Exception):
    """A text that latex2sympy or sympy cannot handle."""


_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def boxes(text: str) -> list[tuple[int, int]]:
    r"""Start and end of the content of every balanced `\boxed{}`, in the order of their starts. Linear in the text.

    >>> boxes(r"\boxed{1}, \boxed{\boxed{2}}")
    [(7, 8), (18, 27), (25, 26)]
    """
    open_braces: list[tuple[bool, int]] = []
    found: list[tuple[int, int]] = []
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "{" or token.startswith("\\boxed"):
            open_braces.append((token != "{", match.end()))
        elif token == "}" and open_braces:
            boxed, start = open_braces.pop()
            if boxed:
                found.append((start, match.start()))
    return sorted(found)


def joined_boxes(text: str) -> list[str]:
    r"""The contents of the last boxes that stand in one list, with nothing but commas, "and", "or" and names between.

    >>> joined_boxes(r"\boxed{7}. So $x=\boxed{1}$ and $y = \boxed{2}$."), joined_boxes(r"\boxed{1}, no, \boxed{2}")
    (['1', '2'], ['2'])
    """
    found = [(start, end) for start, end in boxes(text) if text[start:end].strip()]
    outer = [box for i, box in enumerate(found) if not i or box[0] > found[i - 1][1]]
    if not outer or outer[-1] != found[-1]:
        return []
    at = len(outer) - 1
    while at:
        between = text[outer[at - 1][1] + 1 : text.rindex("\\boxed", 0, outer[at][0])]
        if len(between) > MAX_BETWEEN or not _JOINED.fullmatch(between):
            break
        at -= 1
    return [text[start:end].strip() for start, end in outer[at:]]


_JOINED = re.compile(
    r"(?:[\s$]|\\[()\[\],;: ]|\\q?quad)*(?:,|;|,?\s*(?:and|or)\b|,?\s*\\(?:text|mbox)\s*\{\s*,?\s*(?:and|or)\s*\})"
    r"(?:[\s$]|\\[()\[\],;: ]|\\q?quad|[A-Za-z](?:_\{?\w\}?)?\s*=)*"
)


def extract_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{}`, None if there is none or it is blank. Linear in the text.

    >>> extract_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}"), extract_boxed(r"\boxed{1")
    ('\\frac{1}{2}', None)
    """
    found = boxes(text)
    return text[slice(*found[-1])].strip() or None if found else None


# Bare text.

_FONT = r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf)|mbox|boldsymbol|operatorname)\s*"
_UNWRAP = re.compile(_FONT + r"\{([^{}]*)\}")
_DRESS = re.compile(r"(?<!\\)\\[%$]|\^\s*(?:\\circ|\{\s*\\circ\s*\})|[$%°]")
_SPACE = re.compile(r"(\\[A-Za-z]+ (?=[A-Za-z])|(?<=\d) (?=\d))|\s+")


@lru_cache(maxsize=20_000)
def bare(text: str) -> str:
    r"""Tidy text without fonts, currency, percent and degree signs, and without the spaces that part nothing.

    >>> print(bare(r"\mathrm{h} = 30^\circ \cdot x"))
    h=30\cdot x
    """
    return _SPACE.sub(r"\1", _DRESS.sub("", _UNWRAP.sub(r" \1", text))).rstrip(".")


# Numbers.

_INTEGER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(rf"[+-]?{_DECIMAL}", re.ASCII)
_NUMBER = re.compile(
    rf"([+-]?)(?:({_DECIMAL})(?:(?:\\times|\\cdot)10\^\{{([+-]?\d+)\}})?|10\^\{{([+-]?\d+)\}})", re.ASCII
)
_FRACTION = re.compile(rf"([+-]?)(\d*)\\frac\{{([+-]?{_DECIMAL})\}}\{{([+-]?{_DECIMAL})\}}", re.ASCII)
_SIDE = rf"(?:\(([+-]?{_DECIMAL})\)|\{{([+-]?{_DECIMAL})\}}|({_DECIMAL}))"
_SLASH = re.compile(rf"([+-]?){_SIDE}[/:]{_SIDE}", re.ASCII)
_BASED = re.compile(r"(\d[\dA-F]*)_\{(\d+)\}", re.ASCII)
_APART = re.compile(r"\d,?\s+\d", re.ASCII)


def plain_number(text: str) -> Fraction | None:
    """The exact value of an integer or decimal, with or without commas at the thousands; None for all else.

    >>> plain_number("1,250.50") == Fraction(2501, 2), plain_number("1/2")
    (True, None)
    """
    text = tidy(text) if len(text) <= MAX_CHARS else ""
    return _decimal(text) if _PLAIN.fullmatch(text) else None


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def exact_value(text: str) -> tuple[Fraction, int | None] | None:
    r"""The value of a number, ratio or mixed number, and its decimals (None of a ratio); None for all else.

    >>> exact_value(r"1.50 \times 10^{3}"), exact_value(r"-5\frac12"), exact_value(r"10\%")
    ((Fraction(1500, 1), -1), (Fraction(-11, 2), None), None)
    """
    text = tidy(text)
    if "%" in text or _APART.search(text):
        return None
    text = bare(text)
    if bracket(text) == "(":
        text = "" if "," in text else inside(text)
    if match := _NUMBER.fullmatch(text):
        sign, digits, power = match[1], (match[2] or "1").replace(",", ""), int(match[3] or match[4] or 0)
        if abs(power) > MAX_CHARS:
            return None
        return Fraction(sign + digits) * Fraction(10) ** power, len(digits.partition(".")[2]) - power
    if match := _FRACTION.fullmatch(text):
        whole, above, below = int(match[2] or 0), _decimal(match[3]), _decimal(match[4])
    elif match := _SLASH.fullmatch(text):
        whole, (above, below) = 0, (_decimal(next(filter(None, match.groups()[i : i + 3]))) for i in (1, 4))
    else:
        return None
    if not below or (whole and (above < 0 or below < 0)):
        return None
    return (whole + above / below) * (-1 if match[1] == "-" else 1), None


def same_value(gold: str, answer: str) -> bool | None:
    r"""Whether two numbers are equal, exactly; None if one is no number that `exact_value` reads.

    A gold with its base (`204_5`) wants the same digits, and the same base or none.

    A decimal also equals a ratio that gives it when rounded or cut to its decimals, if these are six or more and it
    is no smaller than 0.001; a decimal never equals another decimal.

    Per cent: 12.5 % is 0.125. Where the gold is in per cent, its figure alone (12.5) is right too; where only the
    answer is, so is the gold's figure, unless that is at most 1 and therefore a share.

    >>> same_value(r"\frac{1}{3}", "0.333333"), same_value("0.333333", "0.3333333"), same_value("1", "x")
    (True, False, None)
    >>> same_value(r"12.5\%", r"\frac{1}{8}"), same_value(r"12.5\%", "12.5"), same_value("50", "0.5")
    (True, True, False)
    """
    gold, answer = tidy(gold), tidy(answer)
    based, given = (_BASED.fullmatch(bare(text)) for text in (gold, answer))
    if based:
        return given.groups() == based.groups() if given else bare(answer) == based[1]
    cents = [text.endswith("%") for text in (gold, answer)]
    one, other = (exact_value(re.sub(r"\s*\\?%$", "", text)) for text in (gold, answer))
    if one is None or other is None:
        return None
    if cents[0] == cents[1]:
        return _equal(one, other)
    figures = cents[0] or abs(one[0]) > 1
    return (figures and _equal(one, other)) or _equal(
        *(_share(v) if c else v for v, c in zip((one, other), cents, strict=True))
    )


def _share(value: tuple[Fraction, int | None]) -> tuple[Fraction, int | None]:
    return value[0] / 100, None if value[1] is None else value[1] + 2


def _equal(one: tuple[Fraction, int | None], other: tuple[Fraction, int | None]) -> bool:
    if one[0] == other[0] or (one[1] is None) == (other[1] is None):
        return one[0] == other[0]
    (ratio, _), (decimal, places) = sorted((one, other), key=lambda value: value[1] is not None)
    if places is None or places < 6 or abs(decimal) < Fraction(1, 1000):
        return False
    shifted = abs(ratio) * 10**places
    return decimal * ratio > 0 and abs(decimal) * 10**places in (int(shifted), int(shifted + Fraction(1, 2)))


# Units.

_ALIKE = """
mm millimeter millimetre; cm centimeter centimetre; m meter metre; km kilometer kilometre; in inch inche; ft feet foot;
yd yard; mi mile; s sec second; min minute; h hr hour; day; week; month; year yr; mg milligram; g gram; kg kilogram; lb
pound; oz ounce; ml mL; l L liter litre; gal gallon; N newton; J joule; W watt; V volt; A ampere; K kelvin; C; F; Pa; Hz
hertz; rad radian; deg degree; mph; kph kmh; cent; dollar USD; euro; mol; eV; T; H
"""
_UNITS = {name: group.split()[0] for group in _ALIKE.split(";") for name in group.split()}
# Words that make another number, or another statement, of what they follow.
_NO_UNIT = frozenset(
    "and or not no is isn are if when where for but except unless wrong instead mod modulo over times plus minus "
    "negative half halves quarter third fourth fifth sixth seventh eighth ninth tenth twelfth hundredth thousandth "
    "hundred thousand million billion trillion dozen percent percentage pct squared cubed factorial base nor to "
    "vs versus between than least most more less".split()
)
_OPPOSITE = {frozenset(pair.split("/")) for pair in "am/pm east/west north/south left/right up/down gain/loss".split()}
_OPEN_END = re.compile(r"[=<>+\-*/^_,;:(\[{]$|\\(?:cdot|times|div|pm|mp|l?eq?|g?eq?|approx|neq?|to)$")
GOLD_WORDS, ANSWER_WORDS = 4, 3  # letters of a unit that is a plain word, behind a number
_KNOWN = frozenset(_UNITS.values())
_WORDS = re.compile(r"[A-Za-z]+")
_UNIT = re.compile(
    rf"(?<![\s~])(?<!\\[,;:! ])(?P<gap>(?:\s|~|\\[,;:! ]|/|\\cdot(?![a-z]))*+)"
    rf"(?:{_FONT}\{{(?P<font>[^{{}}]*)\}}|(?<![A-Za-z\\])(?P<plain>[A-Za-z]+(?:(?:\s|/)[A-Za-z]+)*))"
    r"\s*(?P<power>\^\s*(?:\d|\{\s*-?\d\s*\}))?\s*$"
)


_TWO_WORDS = re.compile(r"(?<![A-Za-z\\])(?:[A-Za-z]{3,} [A-Za-z]{2,}|[A-Za-z]{2,} [A-Za-z]{3,})")


def is_sentence(text: str) -> bool:
    r"""Whether a tidy text is words with mathematics among them, which only the same text can match.

    >>> is_sentence("The area is 5, so x=2"), is_sentence("no real solution"), is_sentence(r"2\text{ or }3")
    (True, False, False)
    """
    plain = re.sub(_FONT + r"\{[^{}]*\}", " ", text)
    return _TWO_WORDS.search(plain) is not None and re.search(r"[\d=\\]", text) is not None


def split_units(text: str, *, words: int = 0) -> tuple[str, tuple[str, ...]]:
    r"""`text` without the units at its end, and these, last first, in one spelling.

    Units are words in a text font; behind a number also plain ones that are known and longer than a letter, and, after
    a space, any whose longest has at least so many letters as `words` says. A plain letter is a variable. Words that
    change the value ("million", "or", "not") are no units.

    >>> split_units(r"12 \text{ cm}^2"), split_units("4t"), split_units("5 apples", words=4)
    (('12', ('cm^2',)), ('4t', ()), ('5', ('apple',)))
    """
    units: list[str] = []
    while len(units) < 4 and (match := _UNIT.search(text)) and match.start() > 0:
        found, rest = _WORDS.findall(match["font"] or match["plain"] or ""), text[: match.start()].rstrip()
        if match["plain"] is None:
            fits = not re.search(r"[^A-Za-z\s.~/^{}\d°-]|(?:^|\s)\d", match["font"])
            fits = fits and (len(found[0]) > 1 or found[0] in _UNITS) if len(found) == 1 else fits
        else:
            square_metres = words and match["plain"] == "m" and match["power"] and match["gap"].isspace()
            known = square_metres or (len(match["plain"]) > 1 and all(_unit(word) in _KNOWN for word in found))
            lengths = list(map(len, found))
            spaced = words and match["gap"].isspace() and min(lengths) > 1 and max(lengths) >= words
            fits = bool(known or spaced) and exact_value(rest) is not None
        if not fits or not 0 < len(found) <= 5 or _OPEN_END.search(rest) or any(map(_is_value, found)):
            break
        units.append("".join(map(_unit, found)) + re.sub(r"[\s{}]", "", match["power"] or ""))
        text = rest
    return text, tuple(units)


def _is_value(word: str) -> bool:
    return bool({word.lower(), word.lower().removesuffix("s")} & _NO_UNIT)


def _unit(word: str) -> str:
    singular = word[:-1] if len(word) > 2 and word.endswith("s") else word
    return _UNITS.get(word) or _UNITS.get(singular) or _UNITS.get(singular.lower(), singular)


# Parts.

_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|zeta|eta|(?:var)?theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|(?:var)?phi|"
    r"chi|psi|omega|Gamma|Delta|Theta|Lambda|Phi|Psi|Omega|ell)(?![A-Za-z])"
)
_LETTER = rf"(?:[A-Za-z]|{_GREEK})"
_NAME = re.compile(
    rf"(?:[A-Z][A-Za-z]*|[A-Za-z]{{4,}}|{_LETTER})(?:_\{{[^{{}}]*\}}|_?[0-9])?'*(?:\^\{{-1\}})?(?:\([^()=]*\))?|\\text\{{[^{{}}]+\}}"
)
_NAMES = re.compile(r"\([A-Za-z][A-Za-z0-9_{}]*(?:,[A-Za-z][A-Za-z0-9_{}]*)*\)")
_QUANTITY = re.compile(rf"(?<![A-Za-z\\])[A-Za-z]|{_GREEK}")
_SIGN = re.compile(r"\\(pm|mp)(?![A-Za-z])\s*")
_BRACKETS = {"(": ")]", "[": ")]", "\\{": ("\\}",)}


_SEPARATORS = re.compile(r"[()\[\]{}]|[,;:]|(?<![<>!\\:])=(?!=)|\\(?:land|lor|cup|cap|in|approx)(?![A-Za-z])")


def split(text: str, *others: str) -> list[str]:
    r"""Parts between the commas, semicolons, "and" and "or" (or `others`) outside all brackets.

    A number with commas is one part.

    >>> split("1,(2,3)"), split("1,000"), split(r"(1,2)\cup(3,4)", r"\cup")
    (['1', '(2,3)'], ['1,000'], ['(1,2)', '(3,4)'])
    """
    if _NUMBER.fullmatch(text):
        return [text]  # its commas are at the thousands
    marks = others or (",", ";", "\\land", "\\lor")
    parts, depth, start = [], 0, 0
    for match in _SEPARATORS.finditer(text):
        mark = match[0]
        depth += (mark in "([{") - (mark in ")]}")
        if mark in marks and depth <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return ([part for part in parts if part.strip()] or [""]) if "\\l" in text else parts


def bracket(text: str) -> str:
    r"""Which bracket, "(", "[" or "\\{", opens `text` and is closed by its last character; "" if none."""
    for opening, closing in _BRACKETS.items():
        if text.startswith(opening) and any(text.endswith(mark) for mark in closing):
            depth = 0
            for i, letter in enumerate(text):
                depth += (letter in "([{") - (letter in ")]}")
                if depth == 0 and i >= len(opening) - 1:
                    return opening if i == len(text) - 1 else ""
    return ""


def inside(text: str) -> str:
    """The text without the brackets that `bracket` finds."""
    opening = bracket(text)
    return text[len(opening) : len(text) - len(opening)] if opening else text


def is_name(text: str) -> bool:
    r"""Whether a text is the name of something: a letter, a function of it, a word, several in brackets.

    >>> [is_name(text) for text in ("x", "a_{1}", "f(x)", r"\theta", "(x,y)", "2x", "|z|")]
    [True, True, True, True, True, False, False]
    """
    text = bare(text)
    return bool(_NAME.fullmatch(text) or _NAMES.fullmatch(text))


@dataclass(frozen=True, slots=True)
class Item:
    """One part of an answer: what stands left ("" if nothing does) and right of its `=` or `\\in`."""

    left: str
    value: str

    @property
    def text(self) -> str:
        return f"{self.left} = {self.value}" if self.left else self.value

    @property
    def solved(self) -> bool:
        """Says what a letter is, with no other letter in it."""
        return is_name(self.left) and not re.search(r"[A-Za-df-hj-z]", re.sub(r"\\[A-Za-z]+", "", self.value))


def listed(text: str) -> list[str]:
    r"""The parts of an answer, without braces round all of it, or other brackets round equations.

    >>> listed("[x=1,y=2]"), listed(r"\{1,2\}"), listed("(1,2)")
    (['x=1', 'y=2'], ['1', '2'], ['(1,2)'])
    """
    parts = split(inside(text))
    named = text[:1] + text[-1:] in ("()", "[]") and all(len(split(part, "=")) == 2 for part in parts)
    return parts if named or bracket(text) == "\\{" else split(text)


def items(text: str) -> list[Item]:
    r"""The parts of an answer, braces round all of them taken off, `\pm` written out.

    >>> [item.value for item in items(r"\{-2, 1 \pm \sqrt{5}\}")]
    ['-2', '1 +\\sqrt{5}', '1 -\\sqrt{5}']
    """
    found = []
    for part in listed(text):
        sides = split(part, "=", "\\in")
        left, value = sides[0].strip() if len(sides) == 2 else "", sides[-1].strip()  # of a chain, its end
        values = split(inside(value)) if left and bracket(value) == "\\{" else [value]
        found += [Item(left, one) for written in values for one in signs(written)]
    return found


def signs(text: str) -> list[str]:
    r"""`text` with every choice of its signs.

    >>> signs(r"\pm 2"), signs(r"a \pm b \mp c")
    (['2', '-2'], ['a +b -c', 'a -b +c'])
    """
    pieces = _SIGN.split(text)
    names = pieces[1::2]
    if not names:
        return [text]
    choices: Any = product("+-", repeat=len(names))
    if "mp" in names:
        choices = (["+-"[(name == "mp") ^ i] for name in names] for i in (0, 1))
    elif 2 ** len(names) > MAX_VALUES:
        return [text]
    written = []
    for choice in choices:
        out = pieces[0]
        for sign, rest in zip(choice, pieces[2::2], strict=True):
            unsigned = sign == "+" and (not out.strip() or out.rstrip()[-1] in "=({[,;<>")
            out += rest if unsigned else sign + rest
        written.append(out)
    return written


# Restatements.

_RELATION = re.compile(r"(?<![<>!\\])=(?!=)|\\in(?![A-Za-z])")
INEQUALITY = re.compile(r"<|>|\\(?:le|ge|neq)(?![A-Za-z])")
_UNWORKED = re.compile(
    r"!(?!=)|\\(?:sum|prod|i*int|lim|d?t?binom|gcd|lcm|det|p?b?mod|max|min)(?![A-Za-z])"
    r"|\\frac\{d(?:[^{}]|\{[^{}]*\})*\}\{d[a-z](?:\^\{?\d\}?)?\}|\\end\{[a-z]*\}\^"
)
_HIDING = re.compile(r"\\(?:[hv]?phantom|hspace|label|tag|def|let|newcommand|renewcommand|if[a-z]*)(?![A-Za-z])")
_COMMENT = re.compile(r"(?<!\\)%(?=\s*[^\s,;.%)\]}&\\])")
_PRIME = re.compile(r"'(?![A-Za-z])|\\prime(?![a-z])")  # no apostrophe


def names_a_quantity(left: str, right: str) -> bool:
    r"""Whether the left side of an equation says what its right side is: it has a letter other than e, i and pi, or is
    one; and it is no sum that is set to 0, which is an equation still to be solved.

    >>> names_a_quantity("|z|", "5"), names_a_quantity("2+3", "5"), names_a_quantity("x^{2}-1", "0")
    (True, False, False)
    """
    sum_of = re.sub(r"\([^()]*\)|\[[^\[\]]*\]|\{[^{}]*\}|\|[^|]*\|", "", left)
    letters = [letter for letter in _QUANTITY.findall(re.sub(r"\\text(?=\{)", "", left)) if letter not in "ei"]
    return bool(is_name(left) or letters) and not (right == "0" and re.search(r".[+-]", sum_of))


def restatement(gold: str, content: str) -> str | None:
    r"""Why `content` is not a worked-out answer to `gold`, None if it may be one, whatever its value.

    >>> restatement("5", "x=5"), restatement("5", "2+3=5"), restatement("46", "12+34")
    (None, 'an equation, not an answer', 'not a worked-out number')
    """
    gold, gold_units = split_units(tidy(gold), words=GOLD_WORDS)
    content, units = split_units(tidy(content), words=ANSWER_WORDS if exact_value(gold) is not None else 0)
    known = all(unit.partition("^")[0] in _KNOWN for unit in gold_units + units)
    opposite = any(frozenset((a.lower(), b.lower())) in _OPPOSITE for a in gold_units for b in units)
    if opposite or (known and gold_units and units and gold_units != units):
        return "another unit"
    if set(_HIDING.findall(content) + _COMMENT.findall(content)) - set(_HIDING.findall(gold)):
        return "a command that hides or defines something"
    per_cent = "%" in gold
    angles = "\\circ" in gold + content and "\\pi" in gold + content
    gold, content = bare(gold), bare(content)
    if not _RELATION.search(gold):
        values = []
        for part in listed(content):
            sides = _RELATION.split(part)
            if len(sides) > 2 or (len(sides) == 2 and not names_a_quantity(*sides)):
                return "an equation, not an answer"
            values.append(split(part, "=", "\\in")[-1])
        content = ",".join(values)
    elif gold != content and any(_is_chain(part, gold) for part in listed(content)):
        return "a chain of equations"
    if len(_PRIME.findall(gold)) != len(_PRIME.findall(content)):
        return "a prime more or less"
    wanted, given = _values(gold, gold=True), _values(content)
    if all(map(_is_number, wanted)) and not angles:
        ratios = per_cent or any("." in value or not _NUMBER.fullmatch(value) for value in wanted)
        numbers = all(_is_number(value) if ratios else _NUMBER.fullmatch(value) for value in given)
        if not numbers and not (len(wanted) == 2 and INEQUALITY.search(content)):
            return "not a worked-out number"
    extra = set(_UNWORKED.findall(content)) - set(_UNWORKED.findall(gold))
    if content.count("\\begin") > gold.count("\\begin"):
        extra.add("\\begin")
    return f"not worked out: {min(extra)}" if extra else None


def _is_chain(part: str, gold: str) -> bool:
    """Whether a part has two equations side by side, or more in brackets and subscripts than any of the gold."""
    most = max(len(_RELATION.findall(one)) for one in listed(gold))
    return len(split(part, "=", "\\in")) > 2 or len(_RELATION.findall(part)) > most


def _is_number(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in (_NUMBER, _FRACTION, _SLASH))


def _values(text: str, *, gold: bool = False) -> list[str]:
    r"""The right sides of the parts of a bare text, tuples and sets in them taken apart; `\pm` makes two values.

    In a gold, an equation that does not say what something is stays whole.
    """
    values = [text]
    for _ in range(3):
        sides = [split(part, "=", "\\in") for value in values for part in split(value)]
        sides = [side[::-1] if len(side) == 2 and is_name(side[1]) and not is_name(side[0]) else side for side in sides]
        values = [
            inside(side[-1]) if not gold or len(side) != 2 or is_name(side[0]) else "=".join(side) for side in sides
        ]
    return [value.removeprefix("\\pm") for value in values for _ in range(1 + value.startswith("\\pm"))]
