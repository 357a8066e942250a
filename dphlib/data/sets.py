"""The data sets of `sets.toml`: official files, copy on the hub, fields, how a gold is read, licence and source.

`load` reads by it, `dph data list` prints it, and the data sets' part of THIRD_PARTY.md is made from it. No data set is
part of this repository: a user gets it from its source, under its licence.

A hub revision is given only if it was seen, in full, in the public code of at least two unrelated projects together
with the hub id and split. A copy that differs from the official files says so in `Hub.note`. A file's hash is in
`REVISIONS` if its bytes were here or if public code pins it together with where it comes from.

A gold is read by a function of the row as the file has it: KeyError names the field that is missing, ValueError says
what is wrong with it. Nothing is corrected: finding bad golds is for `check`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from dphlib.runtime.files import table_beside
from dphlib.types import Kind
from dphlib.verify.math_text import extract_boxed


@dataclass(frozen=True, slots=True)
class Hub:
    """A copy on the Hugging Face hub.

    Args:
        id: `owner/name`.
        revision: full commit hash, "" where none could be verified: the user then has to give one.
        split, config: the copy's own names.
        note: in what the copy differs from the official files.
    """

    id: str
    revision: str
    split: str
    config: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a set.

    Args:
        files: alternatives below the data folder, the first that is there counts; each is one file or several
            that are read one after the other.
        rows: of the official files.
        hub: its copy on the hub.
        databases: folder of `<db_id>/<db_id>.sqlite`, beside the first file.
        tables: description of the databases, beside the first file.
        databases_of: suites whose databases and description it uses, the first that is there, for a set without.
    """

    files: Sequence[Sequence[str]]
    rows: int
    hub: Hub | None = None
    databases: str = ""
    tables: str = ""
    databases_of: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set.

    Args:
        name, title: as in commands, and as its authors call it.
        kind: which verifier judges it.
        splits: name -> split.
        question: fields of which the first that a row has is the question.
        gold: the gold SQL or answer of a row; raises KeyError or ValueError where the row has none.
        licence: of the data.
        source: where to get the official files.
        citation: authors, title, where.
        licence_seen: where we read the licence; "" where we did not: check it before you publish anything made from it.
        labels: meta label -> field of the row.
        id: field that names a row; "" counts the rows.
    """

    name: str
    title: str
    kind: Kind
    splits: Mapping[str, Split]
    question: Sequence[str]
    gold: Callable[[Mapping[str, Any]], str]
    licence: str
    source: str
    citation: str
    licence_seen: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    id: str = ""

    def suite(self, split: str) -> str:
        """The name of the split's problems: the set's, with the split's where there are several.

        >>> DATA_SETS["bird"].suite("dev"), DATA_SETS["aime24"].suite("test")
        ('bird_dev', 'aime24')
        """
        return self.name if len(self.splits) == 1 else f"{self.name}_{split}"


# --- Golds ---


def _field(row: Mapping[str, Any], *names: str) -> str:
    """The first of the fields that is a text with something in it, or a number."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    raise KeyError(" or ".join(names))


def bird_gold(row: Mapping[str, Any]) -> str:
    """`SQL`; `sql` in older revisions and in copies, where it may be another thing beside `SQL`.

    >>> bird_gold({"SQL": "SELECT 1", "sql": ["SELECT 1"]}), bird_gold({"sql": "SELECT 2"})
    ('SELECT 1', 'SELECT 2')
    """
    return _field(row, "SQL", "sql")


def spider_gold(row: Mapping[str, Any]) -> str:
    """`query` as it is."""
    return _field(row, "query")


def gsm8k_gold(row: Mapping[str, Any]) -> str:
    """The number after the last `####`, without commas at the thousands.

    >>> gsm8k_gold({"answer": "9 * 200 = 1,800\\n#### 1,800"})
    '1800'
    """
    _, mark, number = _field(row, "answer").rpartition("####")
    if not mark or not number.strip():
        raise ValueError("no number after ####")
    return number.strip().replace(",", "")


def whole_gold(row: Mapping[str, Any]) -> str:
    r"""A whole number: leading zeros, `.0` and a degree sign left out.

    >>> whole_gold({"answer": "025"}), whole_gold({"answer": 27.0}), whole_gold({"answer": "336^\\circ"})
    ('25', '27', '336')
    """
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?$|°$", "", _field(row, "answer")).strip()
    if not re.fullmatch(r"[+-]?\d{1,18}(?:\.0*)?", text, re.ASCII):
        raise ValueError(f"answer {text!r} is no whole number")
    return str(Fraction(text))


def plain_gold(row: Mapping[str, Any]) -> str:
    """`answer` as it is."""
    return _field(row, "answer")


def olympiad_gold(row: Mapping[str, Any]) -> str:
    """The one text in `final_answer`; several answers are in it with commas between.

    >>> olympiad_gold({"final_answer": ["$69$,$84$"]})
    '$69$,$84$'
    """
    answers = row["final_answer"]
    if not isinstance(answers, list) or len(answers) != 1:
        raise ValueError(f"final_answer {answers!r} is no list of one text")
    return _field({"final_answer": answers[0]}, "final_answer")


def college_gold(row: Mapping[str, Any]) -> str:
    """Without the `$...$` where it goes round the whole answer.

    >>> college_gold({"answer": "$7,-7$"}), college_gold({"answer": "$x$ or $y$"})
    ('7,-7', '$x$ or $y$')
    """
    text = _field(row, "answer")
    whole = re.fullmatch(r"(\${1,2})([^$]+)\1", text)
    return whole[2].strip() if whole else text


def minerva_gold(row: Mapping[str, Any]) -> str:
    r"""The last `\boxed{}` of the worked solution; `answer` in copies that have it. Powers of ten as LaTeX has them.

    >>> minerva_gold({"solution": r"$\boxed{1.5}$, so \boxed{1.6} cm"}), minerva_gold({"answer": "4.5e33"})
    ('1.6', '4.5 \\times 10^{33}')
    """
    boxed = extract_boxed(row["solution"]) if isinstance(row.get("solution"), str) else None
    gold = boxed or _field(row, "answer")
    power = re.fullmatch(r"([+-]?\d+(?:\.\d*)?)[eE]([+-]?\d+)", gold, re.ASCII)
    return f"{power[1]} \\times 10^{{{int(power[2])}}}" if power else gold


# --- The table ---

GOLDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    read.__name__: read
    for read in (bird_gold, spider_gold, gsm8k_gold, whole_gold, plain_gold, olympiad_gold, college_gold, minerva_gold)
}
"""How a gold is read, by the name that `sets.toml` gives."""


def _split(hub: Mapping[str, str] | None = None, **fields: Any) -> Split:
    return Split(hub=Hub(**hub) if hub else None, **fields)


def _data_set(name: str, gold: str, splits: Mapping[str, Mapping[str, Any]], **fields: Any) -> DataSet:
    return DataSet(name, gold=GOLDS[gold], splits={split: _split(**of) for split, of in splits.items()}, **fields)


_TABLE = table_beside(__file__)
REVISIONS: dict[str, str] = _TABLE.pop("revisions")
"""sha256 of a file -> the revision that it is."""
DATA_SETS = {name: _data_set(name, **fields) for name, fields in _TABLE.items()}
SUITES = {one.suite(split): (one, split) for one in DATA_SETS.values() for split in one.splits}
"""Name of a split's problems -> set and split."""


def licence_text(data_set: DataSet) -> str:
    """The licence and where it was read, or that it was not."""
    seen = f"read in: {data_set.licence_seen}" if data_set.licence_seen else "**not verified, check upstream**"
    return f"{data_set.licence} ({seen})"
