"""Mathematical answers -> verdicts: math-verify, in a worker that can be killed, behind rules of our own.

- `strict` (for training): judges the content of the last balanced `\\boxed{}` and nothing else. Two plain
  numbers are compared exactly, here. Otherwise `restatement` first rejects what is not worked out, then
  math-verify decides.
- `compat`: math-verify with its default extraction on the whole answer, for comparison with others' figures.

Departures of `strict` from math-verify, which accepts all of these:

1. a chain of equations (`1=2=3=4=5` for 5), or an equation whose left side is no name (`2+3=5` for 5), is
   `wrong`;
2. where the gold is a number, so is anything but a number (`10!`, `12+34`, `\\sqrt{4}`, `6/2` for an integer;
   `1/2` for 0.5 and `3.0` for 3 are right), and elsewhere a sum, product, factorial and the like that the
   gold does not have;
3. several boxes are not joined into a set;
4. a gold that cannot be read, or does not verify against itself, is `infra_error`, never a reward.

What it does not do: tell a symbolic expression that was left as it stood (`x+x` for `2x`) from one that was
simplified.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal

from dphlib.types import Verdict
from dphlib.worker_process import Job
from dphlib.workers import Pool, WorkerSpec

MAX_CHARS = 2_000  # of a box; longer ones are no answer to a problem, but cost seconds to parse
MAX_ANSWER_CHARS = 20_000  # `compat`: the end of the answer that is searched
MEMORY_MIB = 2048

_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_PLAIN = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[+-]?\.\d+")


def extract_boxed(text: str) -> str | None:
    r"""The content of the last balanced `\boxed{}`, None if there is none or it is blank. Linear in the text.

    >>> extract_boxed(r"\boxed{1} so \boxed{\frac{1}{2}}"), extract_boxed(r"\boxed{1")
    ('\\frac{1}{2}', None)
    """
    open_braces: list[tuple[bool, int]] = []
    best = (-1, -1)
    for match in _BRACES.finditer(text):
        token = match[0]
        if token == "{" or token.startswith("\\boxed"):
            open_braces.append((token != "{", match.end()))
        elif token == "}" and open_braces:
            boxed, start = open_braces.pop()
            if boxed and start > best[0]:
                best = (start, match.start())
    return text[best[0] : best[1]].strip() or None if best[0] >= 0 else None


def plain_number(text: str) -> Fraction | None:
    """The exact value of an integer or decimal, with or without commas at the thousands; None for all else.

    >>> plain_number("1,250.50") == Fraction(2501, 2), plain_number("1/2")
    (True, None)
    """
    text = text.strip().strip("$").strip() if len(text) <= MAX_CHARS else ""
    return Fraction(text.replace(",", "")) if text.isascii() and _PLAIN.fullmatch(text) else None


# Restatements.

_UNWRAP = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|boldsymbol|operatorname)\s*\{([^{}]*)\}"
)
_DRESS = re.compile(
    r"\\(?:left|right)(?![a-z])|\\(?:displaystyle|q?quad|degree)|\^\s*(?:\\circ|\{\s*\\circ\s*\})"
    r"|\\[!,;:> %$]|[$%~°\s]"
)
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?"
_NUMBER = re.compile(rf"(?=[+-]?\.?\d)[+-]?{_DECIMAL}(?:(?:\\times|\\cdot)10\^(?:\{{[+-]?\d+\}}|\d))?")
_RATIO = re.compile(
    r"[+-]?\d*(?:\\frac(?:\{[+-]?\d+\}\{\d+\}|\d\d|\d\{\d+\}|\{\d+\}\d))|[+-]?\d+/\d+|[+-]?\{?\d+\}?/\{?\d+\}?"
)
_UNIT = re.compile(
    r"[A-Za-z\\](?:[A-Za-z./\\]|\^\{-?\d\}|\^-?\d)*$"
)  # no nested repetition: an answer must not slow it
_RELATION = re.compile(r"(?<![<>!\\])=(?!=)")
_NAME = re.compile(r"\\?[A-Za-z][A-Za-z0-9_{}'\\]*(?:\([^()=]*\))?")
_PARTS = re.compile(r",|;|\\text\s*\{\s*(?:and|or)\s*\}|\band\b|\bor\b")
_UNWORKED = re.compile(r"!|\\(?:sum|prod|i?int|lim|d?t?binom|gcd|lcm|det|p?b?mod|max|min)(?![A-Za-z])")


def _bare(text: str) -> str:
    """LaTeX without its dress: fonts, spacing, currency, percent and degree signs."""
    text = _DRESS.sub("", _UNWRAP.sub(r"\1", text))
    return re.sub(r"\\[dt]frac(?![a-z])", r"\\frac", text).rstrip(".")


def restatement(gold: str, content: str) -> str | None:
    r"""Why `content` is not a worked-out answer to `gold`, None if it may be one, whatever its value.

    >>> restatement("5", "x=5"), restatement("5", "2+3=5"), restatement("46", "12+34")
    (None, 'an equation, not an answer', 'not a worked-out number')
    """
    gold, content = _bare(gold), _bare(content)
    if not _RELATION.search(gold):
        for part in _PARTS.split(content):
            sides = _RELATION.split(part)
            if len(sides) > 2 or (len(sides) == 2 and not _NAME.fullmatch(sides[0])):
                return "an equation, not an answer"
    elif max(map(_equations, _PARTS.split(content))) > max(map(_equations, _PARTS.split(gold))):
        return "a chain of equations"
    integer, ratio = _NUMBER.fullmatch(gold), _RATIO.fullmatch(gold)
    if integer or ratio:
        value = _UNIT.sub("", _RELATION.split(content)[-1])
        if _NUMBER.fullmatch(value) or (_RATIO.fullmatch(value) and (ratio or "." in gold)):
            return None
        return "not a worked-out number"
    extra = set(_UNWORKED.findall(content)) - set(_UNWORKED.findall(gold))
    return f"not worked out: {min(extra)}" if extra else None


def _equations(part: str) -> int:
    return len(_RELATION.findall(part))


class MathVerifier:
    """Judges mathematical answers; a context manager, safe to use from several threads.

    Args:
        mode: `strict` or `compat`, see the module.
        workers: worker processes, started at the first answer that needs one.
        timeout_s: wall-clock seconds for reading the gold, and again for the answer and the comparison.
        kept: verdicts remembered.
    """

    def __init__(
        self,
        mode: Literal["strict", "compat"] = "strict",
        *,
        workers: int = 1,
        timeout_s: float = 10.0,
        kept: int = 50_000,
    ) -> None:
        if mode not in ("strict", "compat"):
            raise ValueError(f"mode={mode!r}: must be 'strict' or 'compat'")
        self.mode = mode
        spec = WorkerSpec("dphlib.verify_math:MathJudge", {"mode": mode}, timeout_s, MEMORY_MIB)
        self._pool = Pool(spec, workers=workers, kept=kept)

    def verify(self, gold: str, answer_text: str) -> Verdict:
        """The verdict on one answer; see `verify_many`."""
        return self.verify_many([(gold, answer_text)])[0]

    def verify_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of `(gold, answer_text)`, in order; equal items run once.

        The gold is the bare answer, LaTeX or plain, with or without `$` around it.
        """
        return self._pool.judge([self._entry(gold, text) for gold, text in items])

    def _entry(self, gold: str, text: str) -> Job | Verdict:
        if self.mode == "compat":
            return (
                ("", gold, text[-MAX_ANSWER_CHARS:]) if text.strip() else Verdict("no_answer", "empty answer")
            )
        content = extract_boxed(text)
        if content is None:
            return Verdict("no_answer", "no balanced \\boxed{} with a content")
        if len(content) > MAX_CHARS:
            return Verdict("too_large", f"{len(content)} characters in the box, at most {MAX_CHARS}")
        values = plain_number(gold), plain_number(content)
        if values[0] is not None and values[1] is not None:
            return Verdict("correct") if values[0] == values[1] else Verdict("wrong", "another number")
        return "", gold, content

    def pids(self) -> list[int]:
        """Process ids of the workers now alive."""
        return self._pool.pids()

    @property
    def executed(self) -> int:
        """Answers that went to a worker."""
        return self._pool.executed

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MathJudge:
    """Runs in the worker, math-verify's own time limits (SIGALRM) off: the parent's deadline stands in."""

    def __init__(self, mode: Literal["strict", "compat"]) -> None:
        import logging

        from math_verify import LatexExtractionConfig, parse, verify

        logging.disable()
        self._strict = mode == "strict"
        self._parse, self._verify = parse, verify
        self._box_only = [LatexExtractionConfig(boxed_match_priority=0)]
        self._golds: dict[str, list[Any] | None] = {}

    def __call__(self, job: Job, phase: Callable[[str], None]) -> tuple[str, str]:
        _, gold, answer = job
        if gold not in self._golds:
            phase("gold")
            if len(self._golds) >= 10_000:
                self._golds.clear()
            self._golds[gold] = self._read_gold(gold)
            phase("answer")
        known = self._golds[gold]
        if known is None:
            return "infra_error", f"gold cannot be read, or does not verify against itself: {gold[:300]}"
        if self._strict and (reason := restatement(gold, answer)):
            return "wrong", reason
        read = self._read_box(answer) if self._strict else self._parse(answer, parsing_timeout=None)
        if not read:
            return "invalid" if self._strict else "no_answer", "nothing that math-verify can read"
        return ("correct", "") if self._equal(known, read) else ("wrong", "")

    def _read_gold(self, gold: str) -> list[Any] | None:
        if not self._strict and any(mark in gold for mark in ("$", "\\boxed", "\\(", "\\[")):
            read = self._parse(gold, parsing_timeout=None)  # math-verify finds it where it is marked
        else:
            bare = gold.strip().strip("$").strip()
            paired = extract_boxed(f"\\boxed{{{bare}}}") == bare  # not empty, each brace has its partner
            read = self._read_box(bare) if paired else []
        return read if read and self._equal(read, read) else None

    def _read_box(self, content: str) -> list[Any]:
        box = f"\\boxed{{{content}}}"
        read = self._parse(box, extraction_config=self._box_only, parsing_timeout=None)
        # What came out as infinite or undefined ("12:00" as a ratio) is compared by its text alone.
        return [part for part in read if isinstance(part, str) or not _undefined(part)]

    def _equal(self, gold: list[Any], answer: list[Any]) -> bool:
        return bool(self._verify(gold, answer, timeout_seconds=None))


def _undefined(expression: Any) -> bool:
    from sympy import nan, oo, zoo

    return expression in (nan, zoo) or (expression.has(zoo, nan) and not expression.has(oo))
