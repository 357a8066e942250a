"""Recorded judgements of mathematical answers in ../shared/data, as the tests and benchmarks compare with them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data"
LISTED: dict[str, Any] = json.loads((HERE / "math_disagreements.json").read_text())
VECTORS = ("math_verify", "hendrycks_math", "reasoning_from_scratch")
GOLD_FIELDS = {
    "gsm8k_train": lambda row: row["answer"].rpartition("####")[2].strip(),
    "gsm8k_test": lambda row: row["answer"].rpartition("####")[2].strip(),
    "math500": lambda row: row["answer"],
    "aime24": lambda row: row["answer"],
    "olympiadbench": lambda row: row["final_answer"][0],
    "college_math": lambda row: row["answer"],
}

# Parts of random answers, sound and unsound.
PIECES = (
    *r"""
    0 1 2 7 10 12 46 0.5 .25 3.14 1,000 1{,}000 1/2 -1 +2 x y n t i e A \\ \pi \infty \theta \alpha \% \$ $ % ^\circ
    \frac{1}{2} \frac12 \frac{x}{2} \dfrac{ \sqrt{2} \sqrt2 \sqrt[3]{x} x^2 x^{-1} ^2 ^{ _1 _{ { } ( ) [ ] \{ \} |
    + - * / = < > ! ' , ; . : \le \ne \approx \pm \cdot \times \to \in \cup \quad \, \! \left( \right) \left\{ \right.
    \sin \log_2 \ln(x) \int_0^1 \sum_{k=1}^{3} \binom{4}{2} \begin{pmatrix}1\\2\end{pmatrix} \begin{cases} \boxed{
    \text{ \text{odd} \mathrm{km} apples nan é π − ５ 😀 f(x) 0x10 1e5 (1,2) [0,1) \{1,2\} 204_5 12:00 x=1
    """.split(),
    *(r"\text{ cm}", r"\text{ or }", " and ", " or ", " ", "  ", "~", "\n", "\u200b", "\u202e", "\x00", "\ud800"),
)

_SENTENCE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}\s")


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a JSONL file under ../shared/data."""
    return [json.loads(line) for line in (DATA / path).read_text().split("\n") if line]


def gold_answers(name: str) -> list[str]:
    """The gold answers of a data set."""
    return [GOLD_FIELDS[name](row) for row in read_rows(f"math/{name}.jsonl")]


def vectors() -> list[dict[str, Any]]:
    """Recorded cases with a gold and a prediction, `file` among their keys."""
    rows = [dict(row, file=name) for name in VECTORS for row in read_rows(f"grader_math/{name}.jsonl")]
    return [row for row in rows if row["gold"] is not None and row["prediction"] is not None]


def as_boxed(prediction: str) -> str:
    """A bare answer in a box; a text with words around its answer stays as it is, box or no box."""
    whole = "\\boxed" in prediction or _SENTENCE.search(prediction) is not None
    return prediction if whole else f"\\boxed{{{prediction}}}"


def self_answer(mode: str, gold: str) -> str:
    """The gold as an answer: in a box, but in `compat` as it is where it marks its own mathematics."""
    return gold if mode == "compat" and re.search(r"(?<!\\)\$", gold) else f"\\boxed{{{gold}}}"


def clipped(text: str) -> str:
    """A long text as the list of disagreements shows it: its end."""
    return text if len(text) <= 160 else "... " + text[-156:]


# --- The same answer written in another way -----------------------------------------------------------

_TEXT = r"\\(?:text(?:bf|it|rm|normal|sf)?|math(?:rm|bf|it|sf|bb|cal)|mbox|operatorname|begin|end)\s*\{[^{}]*\}"
_TOKEN = re.compile(rf"{_TEXT}|\\[A-Za-z]+|\\.|[A-Za-z]+|\d+(?:\.\d+)?|\s+|.", re.DOTALL)
_UNICODE = dict(zip("alpha beta gamma delta theta lambda mu pi phi omega".split(), "αβγδθλμπφω", strict=True))
_UNICODE |= {"infty": "∞", "cup": "∪", "cap": "∩", "pm": "±", "times": "×", "cdot": "⋅", "div": "÷", "in": "∈"}
_UNICODE |= {"leq": "≤", "le": "≤", "geq": "≥", "ge": "≥", "neq": "≠"}
_COMMAND = re.compile(rf"\\({'|'.join(_UNICODE)})(?![A-Za-z])\s?")
_RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def _with_spaces(text: str) -> str:
    """Spaces round relations and `+`, and between a number and a letter."""
    found, before = "", ""
    for token in _TOKEN.findall(text):
        behind_number = token[0].isalpha() and before[-1:].isdigit() and "\\" not in before
        found += f" {token} " if token in "+=<>" else f" {token}" if behind_number else token
        before = token
    return found


def _without_spaces(text: str) -> str:
    """Without the spaces that part neither two words nor two numbers."""
    tokens, found = _TOKEN.findall(text), ""
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        needed = (found[-1:].isalpha() and after[:1].isalpha()) or (found[-1:].isdigit() and after[:1].isdigit())
        found += token if not token.isspace() else " " if needed else ""
    return found


def _thin_spaces(text: str) -> str:
    r"""`\,` between a number and a letter, and for the spaces behind a letter or number."""
    found, before = "", ""
    for token in _TOKEN.findall(text):
        plain = before[-1:].isalnum() and not before.startswith("\\")
        found += "\\," if plain and (token.isspace() or (before[-1:].isdigit() and token[0].isalpha())) else ""
        found += "" if plain and token.isspace() else token
        before = token
    return found


def _upright(text: str) -> str:
    return "".join(f"\\mathrm{{{token}}}" if token in ("e", "i") else token for token in _TOKEN.findall(text))


def _unicode(text: str) -> str:
    text = re.sub(r"\\[td]?frac\{1\}\{2\}|\\[td]?frac12", "½", text)
    text = re.sub(r"\^(?:\{(\d+)\}|(\d)(?!\d))", lambda match: (match[1] or match[2]).translate(_RAISED), text)
    text = re.sub(r"\\sqrt\{(\d+|[a-z])\}(?![\da-z])", r"√\1", text)
    text = _COMMAND.sub(lambda match: _UNICODE[match[1]], text)
    return text if re.search(r"\\text|[A-Za-z]-[A-Za-z]", text) else text.replace("-", "−")


RESPELLINGS: dict[str, Callable[[str], str]] = {
    "spaces": _with_spaces,
    "no spaces": _without_spaces,
    "thin spaces": _thin_spaces,
    "dfrac": lambda text: re.sub(r"\\[td]?frac(?![a-z])", r"\\dfrac", text),
    "upright": _upright,
    "unicode": _unicode,
}
