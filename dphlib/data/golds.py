"""The gold of a row: how each data set's answer field becomes a SQL text or a bare answer.

Each function takes a row as the file has it. KeyError names the field that is missing, ValueError says what is
wrong with it. Nothing is corrected here: a gold that is no good is for `data_check` to find.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dphlib.verify.math_text import extract_boxed

Row = Mapping[str, Any]


def _field(row: Row, *names: str) -> str:
    """The first of the fields that is a text with something in it, or a number."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    raise KeyError(" or ".join(names))


def bird_gold(row: Row) -> str:
    """`SQL`; `sql` in older revisions and in copies, where it may be another thing beside `SQL`.

    >>> bird_gold({"SQL": "SELECT 1", "sql": ["SELECT 1"]}), bird_gold({"sql": "SELECT 2"})
    ('SELECT 1', 'SELECT 2')
    """
    return _field(row, "SQL", "sql")


def spider_gold(row: Row) -> str:
    """`query` as it stands."""
    return _field(row, "query")


def gsm8k_gold(row: Row) -> str:
    """The number after the last `####`, without commas at the thousands.

    >>> gsm8k_gold({"answer": "9 * 200 = 1,800\\n#### 1,800"})
    '1800'
    """
    _, mark, number = _field(row, "answer").rpartition("####")
    if not mark or not number.strip():
        raise ValueError("no number after ####")
    return number.strip().replace(",", "")


def whole_gold(row: Row) -> str:
    r"""A whole number: leading zeros, `.0` and a degree sign left out.

    >>> whole_gold({"answer": "025"}), whole_gold({"answer": 27.0}), whole_gold({"answer": "336^\\circ"})
    ('25', '27', '336')
    """
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?$|°$", "", _field(row, "answer")).strip()
    if not re.fullmatch(r"[+-]?\d{1,18}(?:\.0*)?", text, re.ASCII):
        raise ValueError(f"answer {text!r} is no whole number")
    return str(Fraction(text))


def plain_gold(row: Row) -> str:
    """`answer` as it stands."""
    return _field(row, "answer")


def olympiad_gold(row: Row) -> str:
    """The one text in `final_answer`; several answers stand in it with commas between.

    >>> olympiad_gold({"final_answer": ["$69$,$84$"]})
    '$69$,$84$'
    """
    answers = row["final_answer"]
    if not isinstance(answers, list) or len(answers) != 1:
        raise ValueError(f"final_answer {answers!r} is no list of one text")
    return _field({"final_answer": answers[0]}, "final_answer")


def college_gold(row: Row) -> str:
    """Without the `$...$` where it goes round the whole answer.

    >>> college_gold({"answer": "$7,-7$"}), college_gold({"answer": "$x$ or $y$"})
    ('7,-7', '$x$ or $y$')
    """
    text = _field(row, "answer")
    whole = re.fullmatch(r"(\${1,2})([^$]+)\1", text)
    return whole[2].strip() if whole else text


def minerva_gold(row: Row) -> str:
    r"""The last `\boxed{}` of the worked solution; `answer` in copies that have it. Powers of ten as LaTeX has them.

    >>> minerva_gold({"solution": r"$\boxed{1.5}$, so \boxed{1.6} cm"}), minerva_gold({"answer": "4.5e33"})
    ('1.6', '4.5 \\times 10^{33}')
    """
    boxed = extract_boxed(row["solution"]) if isinstance(row.get("solution"), str) else None
    gold = boxed or _field(row, "answer")
    power = re.fullmatch(r"([+-]?\d+(?:\.\d*)?)[eE]([+-]?\d+)", gold, re.ASCII)
    return f"{power[1]} \\times 10^{{{int(power[2])}}}" if power else gold
