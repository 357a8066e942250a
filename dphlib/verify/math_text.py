"""What the text of a mathematical answer is, before any algebra: its box, its numbers, its units, restatements.

Pure string rules of `verify_math`'s strict mode. Every pattern runs in linear or, on the 2,000 characters of a
box at most, quadratic time, so that no answer can slow it.

What it does not do: read LaTeX. A text that no rule here settles goes to math-verify.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_CHARS = 2_000  # of a box; longer ones are no answer to a problem, but cost seconds to parse

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


def extract_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{}`, None if there is none or it is blank. Linear in the text.

    >>> extract_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}"), extract_boxed(r"\boxed{1")
    ('\\frac{1}{2}', None)
    """
    found = boxes(text)
    return text[slice(*found[-1])].strip() or None if found else None


# Dress: what changes nothing in the meaning.

# Drawn as nothing, or the same as their LaTeX. Marks that turn the direction of writing stay: they change what is read.
_CHARACTERS = dict.fromkeys((0xAD, 0x200B, 0x200C, 0x200D, 0x200E, *range(0x2060, 0x2065), 0xFEFF)) | str.maketrans(
    {"−": "-", "×": r"\times ", "·": r"\cdot ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "∪": r"\cup "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\neq ", "\xa0": " "}
    | {chr(0xFF01 + i): chr(0x21 + i) for i in range(94)}  # full width
)
_DELIMITERS = re.compile(r"(?<!\\)(?:\$|\\[()\[\]])")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|,?\\[,!;: ]|,?~)\s*\d{3})+(?!\d)")
_STOP = re.compile(r"(?<!\\right)(?<!\.)\.$")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[a-z]+\}(?:\s*\{([^{}]*)\})?")
_PERCENT = re.compile(
    r"\s*(?:\\text\s*\{\s*(?:percentage|percent|pct)\s*\}|(?<=[\d}\s])(?:percentage|percent|pct)(?![A-Za-z]))"
)
_FONT = r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf)|mbox|boldsymbol|operatorname)\s*"
_UNWRAP = re.compile(_FONT + r"\{([^{}]*)\}")
_AND_OR = re.compile(r",?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\{])(?:and|or)(?![A-Za-z}]))")
_DRESS = re.compile(
    r"\\(?:left|right)(?![a-z])|\\(?:displaystyle|q?quad|degree)|\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\[!,;:> %$]|[$%~°\s]"
)


def tidy(text: str) -> str:
    r"""`text` without mathematics delimiters, invisible characters, colours and digit grouping, in LaTeX's spelling.

    >>> tidy(r"\( 10{,}000 \)."), tidy("−5")
    ('10000', '-5')
    """
    text = _COLOUR.sub(r"\1", _DELIMITERS.sub("", _STOP.sub("", " ".join(text.translate(_CHARACTERS).split()))))
    text = _PERCENT.sub(r"\%", text)
    return _STOP.sub("", _GROUPED.sub(lambda group: re.sub(r"\D", "", group[0]), text).strip())


def _bare(text: str) -> str:
    """LaTeX without its dress: fonts, spacing, currency, percent and degree signs; "and" and "or" as commas."""
    text = _DRESS.sub("", _UNWRAP.sub(r"\1", _AND_OR.sub(",", text)))
    return re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text).rstrip(".")


# Numbers.

_PLAIN = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+", re.ASCII)
_INTEGER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)"
_NUMBER = re.compile(
    rf"(?=[+-]?\.?\d)([+-]?{_INTEGER}?(?:\.\d*)?)(?:(?:\\times|\\cdot)10\^(?:\{{([+-]?\d+)\}}|(\d)))?", re.ASCII
)
_FRACTION = re.compile(rf"([+-]?)(\d*)\\frac(?:\{{([+-]?{_INTEGER})\}}|(\d))(?:\{{({_INTEGER})\}}|(\d))", re.ASCII)
_SIDE = rf"(?:\(([+-]?{_INTEGER})\)|\{{([+-]?{_INTEGER})\}}|({_INTEGER}))"
_SLASH = re.compile(rf"([+-]?){_SIDE}/{_SIDE}", re.ASCII)
_BASED = re.compile(r"(\d[\dA-F]*)_\{?(\d+)\}?", re.ASCII)
_APART = re.compile(r"\d,?(?:\s|~|\\[,;:!> ]|\\q?quad)+\d", re.ASCII)


def plain_number(text: str) -> Fraction | None:
    """The exact value of an integer or decimal, with or without commas at the thousands; None for all else.

    >>> plain_number("1,250.50") == Fraction(2501, 2), plain_number("1/2")
    (True, None)
    """
    text = tidy(text) if len(text) <= MAX_CHARS else ""
    return Fraction(text.replace(",", "")) if _PLAIN.fullmatch(text) else None


def exact_value(text: str) -> tuple[Fraction, int | None] | None:
    r"""The value of a number, ratio or mixed number, and its decimals (None of a ratio); None for all else.

    >>> exact_value(r"1.50 \times 10^{3}"), exact_value(r"-5\frac12"), exact_value(r"10\%")
    ((Fraction(1500, 1), -1), (Fraction(-11, 2), None), None)
    """
    text = tidy(text)
    if "%" in text or _APART.search(text):
        return None
    bare = _bare(text)
    if _bracket(bare) == "(":
        bare = "" if "," in bare else _inside(bare)
    if match := _NUMBER.fullmatch(bare):
        digits, power = match[1].replace(",", ""), int(match[2] or match[3] or 0)
        if abs(power) > MAX_CHARS:
            return None
        return Fraction(digits) * Fraction(10) ** power, len(digits.partition(".")[2]) - power
    if match := _FRACTION.fullmatch(bare) or _SLASH.fullmatch(bare):
        sign, *numbers = (part.replace(",", "") if part else part for part in match.groups())
        if match.re is _FRACTION:
            whole, above, below = int(numbers[0] or 0), int(numbers[1] or numbers[2]), int(numbers[3] or numbers[4])
        else:
            whole, above, below = 0, *(int(next(filter(None, numbers[i : i + 3]))) for i in (0, 3))
        if below and not (whole and above < 0):
            return (whole + Fraction(above, below)) * (-1 if sign == "-" else 1), None
    return None


def same_value(gold: str, answer: str) -> bool | None:
    r"""Whether two numbers are equal, exactly; None if one is no number that `exact_value` reads.

    A gold with its base (`204_5`) wants the same digits, and the same base or none.

    A decimal also equals a ratio that gives it when rounded or cut to its decimals, if these are six or more and it
    is no smaller than 0.001; a decimal never equals another decimal.

    >>> same_value(r"\frac{1}{3}", "0.333333"), same_value("0.333333", "0.3333333"), same_value("1", "x")
    (True, False, None)
    """
    based, given = (_BASED.fullmatch(_bare(tidy(text))) for text in (gold, answer))
    if based:
        return given.groups() == based.groups() if given else _bare(tidy(answer)) == based[1]
    one, other = exact_value(gold), exact_value(answer)
    if one is None or other is None:
        return None
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
_KNOWN = frozenset(_UNITS.values())
_WORDS = re.compile(r"[A-Za-z]+")
_UNIT = re.compile(
    rf"(?<![\s~])(?<!\\[,;:! ])(?P<gap>(?:\s|~|\\[,;:! ]|/|\\cdot(?![a-z]))*+)"
    rf"(?:{_FONT}\{{(?P<font>[^{{}}]*)\}}|(?<![A-Za-z\\])(?P<plain>[A-Za-z]+(?:(?:\s|/)[A-Za-z]+)*))"
    r"\s*(?P<power>\^\s*(?:\d|\{\s*-?\d\s*\}))?\s*$"
)


def split_units(text: str, *, words: bool = False) -> tuple[str, tuple[str, ...]]:
    r"""`text` without the units at its end, and these, last first, in one spelling.

    Units are words in a text font; behind a number also plain ones that are known and longer than a letter, and with
    `words` any of three letters or more after a space. A plain letter is a variable. Words that change the value
    ("million", "or", "not") are no units.

    >>> split_units(r"12 \text{ cm}^2"), split_units("4t"), split_units("5 apples", words=True)
    (('12', ('cm^2',)), ('4t', ()), ('5', ('apple',)))
    """
    units: list[str] = []
    while len(units) < 4 and (match := _UNIT.search(text)) and match.start() > 0:
        found, rest = _WORDS.findall(match["font"] or match["plain"] or ""), text[: match.start()].rstrip()
        if match["plain"] is None:
            fits = not re.search(r"[^A-Za-z\s.~/^{}\d°-]|(?:^|\s)\d", match["font"])
            fits = fits and (len(found[0]) > 1 or found[0] in _UNITS) if len(found) == 1 else fits
        else:
            known = len(match["plain"]) > 1 and all(_unit(word) in _KNOWN for word in found)
            spaced = words and re.search(r"[\s~]", match["gap"]) and len(match["plain"]) > 2
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


# Restatements.

_RELATION = re.compile(r"(?<![<>!\\])=(?!=)")
_NAME = re.compile(
    r"\\?[A-Za-z][A-Za-z0-9_{}'\\]*(?:\([^()=]*\))?|\([A-Za-z][A-Za-z0-9_]*(?:,[A-Za-z][A-Za-z0-9_]*)*\)"
)
_UNWORKED = re.compile(
    r"!(?!=)|\\(?:sum|prod|i*int|lim|d?t?binom|gcd|lcm|det|p?b?mod|max|min)(?![A-Za-z])"
    r"|\\frac\{d[^{}]*\}\{d[a-z](?:\^\d)?\}|\\end\{[a-z]*\}\^"
)
_HIDING = re.compile(r"\\(?:[hv]?phantom|hspace|label|tag|def|let|newcommand|renewcommand|if[a-z]*)(?![A-Za-z])")
_COMMENT = re.compile(r"(?<!\\)%(?=\s*[^\s,;.%)\]}&\\])")
_PRIME = re.compile(r"'(?![A-Za-z])|\\prime(?![a-z])")  # no apostrophe
_BRACKETS = {"(": ")]", "[": ")]", "\\{": ("\\}",)}


def restatement(gold: str, content: str) -> str | None:
    r"""Why `content` is not a worked-out answer to `gold`, None if it may be one, whatever its value.

    >>> restatement("5", "x=5"), restatement("5", "2+3=5"), restatement("46", "12+34")
    (None, 'an equation, not an answer', 'not a worked-out number')
    """
    gold, gold_units = split_units(tidy(gold))
    content, units = split_units(tidy(content), words=exact_value(gold) is not None)
    known = all(unit.partition("^")[0] in _KNOWN for unit in gold_units + units)
    opposite = any(frozenset((a.lower(), b.lower())) in _OPPOSITE for a in gold_units for b in units)
    if opposite or (known and gold_units and units and gold_units != units):
        return "another unit"
    if set(_HIDING.findall(content) + _COMMENT.findall(content)) - set(_HIDING.findall(gold)):
        return "a command that hides or defines something"
    gold, content = _bare(gold), _bare(content)
    if len(_PRIME.findall(gold)) != len(_PRIME.findall(content)):
        return "a prime more or less"
    if not _RELATION.search(gold):
        for part in _split(content):
            sides = _RELATION.split(part)
            if len(sides) > 2 or (len(sides) == 2 and not _NAME.fullmatch(sides[0])):
                return "an equation, not an answer"
    elif max(map(_equations, _split(content))) > max(map(_equations, _split(gold))):
        return "a chain of equations"
    wanted, given = _values(gold), _values(content)
    if all(map(_is_number, wanted)):
        ratios = any("." in value or not _NUMBER.fullmatch(value) for value in wanted)
        numbers = all(_is_number(value) if ratios else _NUMBER.fullmatch(value) for value in given)
        if not numbers or (len(wanted) == 1 and len(given) != 1):
            return "not a worked-out number"
        if len(wanted) == 1 and _bracket(content) not in ("", "(", _bracket(gold)):
            return "not a worked-out number"
    elif len(wanted) == 1 and len(_split(content)) > 1:
        return "several values for one"
    names = {sides[0] for part in _split(_inside(gold)) if len(sides := _RELATION.split(part)) == 2}
    if len(names) > 1 and not _RELATION.search(content) and len(given) == len(wanted):
        if any(same_value(*pair) is False for pair in zip(wanted, given, strict=True)):
            return "values in another order than the names of the gold"
    if {_bracket(gold), _bracket(content)} in ({"\\{", "("}, {"\\{", "["}):
        return "another kind of bracket"
    extra = set(_UNWORKED.findall(content)) - set(_UNWORKED.findall(gold))
    if content.count("\\begin") > gold.count("\\begin"):
        extra.add("\\begin")
    return f"not worked out: {min(extra)}" if extra else None


def _equations(part: str) -> int:
    return len(_RELATION.findall(part))


def _is_number(text: str) -> bool:
    return any(pattern.fullmatch(text) for pattern in (_NUMBER, _FRACTION, _SLASH))


def _split(text: str) -> list[str]:
    """Parts between the commas and semicolons that stand outside all brackets; a number with commas is one part."""
    if _NUMBER.fullmatch(text):
        return [text]
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter in ",;" and depth <= 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _bracket(text: str) -> str:
    r"""Which bracket, "(", "[" or "\\{", opens `text` and is closed by its last character; "" if none."""
    for opening, closing in _BRACKETS.items():
        if text.startswith(opening) and any(text.endswith(mark) for mark in closing):
            depth = 0
            for i, letter in enumerate(text):
                depth += (letter in "([{") - (letter in ")]}")
                if depth == 0 and i >= len(opening) - 1:
                    return opening if i == len(text) - 1 else ""
    return ""


def _inside(text: str) -> str:
    opening = _bracket(text)
    return text[len(opening) : len(text) - len(opening)] if opening else text


def _values(text: str) -> list[str]:
    r"""The right sides of the parts of a bare text, tuples and sets in them taken apart; `\pm` makes two values."""
    values = [text]
    for _ in range(3):
        sides = [_RELATION.split(part)[-1] for value in values for part in _split(value)]
        values = [_inside(side) for side in sides]
    return [value.removeprefix("\\pm") for value in values for _ in range(1 + value.startswith("\\pm"))]
