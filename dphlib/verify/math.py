r"""Mathematical answers -> verdicts: math-verify, in a worker that can be killed, behind rules of our own.

- `strict` (for training): judges the content of the last balanced `\boxed{}` and nothing else. `math_text` says
  what is a box, a number, a unit, a restatement. Two plain numbers are compared exactly, here; other numbers
  exactly, in the worker; what remains is decided by math-verify.
- `compat`: math-verify with its default extraction on the whole answer, for comparison with others' figures.

Departures of `strict` from math-verify, which accepts all of the answers named:

1. a chain of equations (`1=2=3=4=5` for 5), or an equation whose left side is no name (`2+3=5` for 5), is `wrong`;
2. where the gold is a number, or numbers, so is anything but numbers (`10!`, `12+34`, `\sqrt{4}`, `6/2` for an
   integer; `1/2` for 0.5 and `3.0` for 3 are right), and elsewhere a sum, product, factorial, derivative, matrix
   operation and the like that the gold does not have;
3. several boxes are not joined into a set, `x, x` is not `x`, and `\{1,2\}` is not `(1,2)`;
4. a letter behind a number is a variable, not a unit (`4t` for 4, `\frac{x}{2}d`); centimetres are not metres, a
   million is no unit, p.m. is not a.m., other words behind an answer are not dropped (`x \text{ is not the answer}`),
   nor is a prime; `4,6` is not `m=6,b=4`;
5. a decimal equals a ratio only as its correct rounding to six places or more, never below 0.001 (`0.00000002` for
   `10^{-8}`), and `204_6` is not `204_5`;
6. a command that hides or defines something (`\phantom`, a comment) is `wrong`;
7. a gold that cannot be read, or does not verify against itself, is `infra_error`, never a reward, even where
   the answer has no box.

Departure of `compat`: a gold without a mark of mathematics (`$`, `\boxed`, `\(`, `\[`) is read as if it were boxed.

What it does not do: tell a symbolic expression that was left as it stood (`x+x` for `2x`) from one that was
simplified; read decimal commas, or digits other than 0 to 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from dphlib.types import Verdict
from dphlib.verify.math_text import (
    MAX_CHARS,
    boxes,
    exact_value,
    extract_boxed,
    plain_number,
    restatement,
    same_value,
    split_units,
    tidy,
)
from dphlib.verify.pool import Pool, WorkerSpec
from dphlib.verify.worker import Job

MAX_ANSWER_CHARS = 20_000  # `compat`: the end of the answer that is searched
MEMORY_MIB = 2048

_MARK = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
_UNREAD = "nothing that math-verify can read"


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
        spec = WorkerSpec("dphlib.verify.math:MathJudge", {"mode": mode}, timeout_s, MEMORY_MIB)
        self._pool = Pool(spec, workers=workers, kept=kept)
        self._again = partial(MathVerifier, mode, workers=workers, timeout_s=timeout_s, kept=kept)

    def verify(self, gold: str, answer_text: str) -> Verdict:
        """The verdict on one answer; see `verify_many`."""
        return self.verify_many([(gold, answer_text)])[0]

    def verify_many(self, items: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of `(gold, answer_text)`, in order; equal items run once.

        The gold is the bare answer, LaTeX or plain, with or without `$` around it.
        """
        entries = [self._entry(gold, text) for gold, text in items]
        # Without an answer to judge, the gold is still read: one that cannot be is nobody's 0.
        jobs = [
            ("", gold, "") if isinstance(entry, Verdict) and plain_number(gold) is None else entry
            for entry, (gold, _) in zip(entries, items, strict=True)
        ]
        verdicts = self._pool.judge(jobs)
        return [
            entry if isinstance(entry, Verdict) and verdict.outcome != "infra_error" else verdict
            for entry, verdict in zip(entries, verdicts, strict=True)
        ]

    def _entry(self, gold: str, text: str) -> Job | Verdict:
        for name, value in (("gold", gold), ("answer_text", text)):
            if not isinstance(value, str):
                raise TypeError(f"{name}={value!r}: must be text, such as {str(value)!r}")
        if self.mode == "compat":
            return ("", gold, text[-MAX_ANSWER_CHARS:]) if text.strip() else Verdict("no_answer", "empty answer")
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

    def __reduce__(self) -> tuple[Callable[[], MathVerifier], tuple[()]]:
        return self._again, ()

    def __enter__(self) -> MathVerifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MathJudge:
    """Runs in the worker, math-verify's own time limits (SIGALRM) off: the parent's deadline stands in."""

    def __init__(self, mode: Literal["strict", "compat"]) -> None:
        import logging

        from latex2sympy2_extended.math_normalization import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse, verify

        logging.disable()
        self._strict = mode == "strict"
        self._parse, self._verify = parse, verify
        # The units are taken off by `split_units`: math-verify takes a variable `t` or `d` for one.
        rules = NormalizationConfig(units=not self._strict, malformed_operators=True, nits=True)
        self._box_only = [LatexExtractionConfig(boxed_match_priority=0, normalization_config=rules)]
        self._golds: dict[str, list[Any] | None] = {}

    def __call__(self, job: Job, phase: Callable[[str], None]) -> tuple[str, str]:
        _, gold, answer = job
        if gold not in self._golds:
            phase("gold")
            if len(self._golds) >= 10_000:
                self._golds.clear()
            self._golds[gold] = self._read_strict_gold(gold) if self._strict else self._read_compat_gold(gold)
            phase("answer")
        known = self._golds[gold]
        if known is None:
            return "infra_error", f"gold cannot be read, or does not verify against itself: {gold[:300]}"
        try:
            return self._judge(_gold_text(gold), known, answer)
        except Exception as error:  # of an answer that cannot be handled, not of the machine
            return "invalid", f"{type(error).__name__}: {error}"[:300]

    def _judge(self, gold: str, known: list[Any], answer: str) -> tuple[str, str]:
        if not answer:
            return "no_answer", ""
        if not self._strict:
            read = self._parse(answer, parsing_timeout=None)
            return self._compared(known, read) if read else ("no_answer", _UNREAD)
        if tidy(answer) == gold:  # which was found to verify against itself
            return "correct", ""
        if reason := restatement(gold, answer):
            return "wrong", reason
        value = split_units(tidy(answer), words=exact_value(split_units(gold)[0]) is not None)[0]
        if (same := same_value(split_units(gold)[0], value)) is not None:
            return ("correct" if same else "wrong"), ""
        if (small := exact_value(value)) is not None and small[1] is not None and 0 < abs(small[0]) < 1e-3:
            return "wrong", "a decimal too small for a comparison to six decimals"
        read = self._read_box(value)
        return self._compared(known, read) if read else ("invalid", _UNREAD)

    def _compared(self, gold: list[Any], answer: list[Any]) -> tuple[str, str]:
        return ("correct", "") if self._equal(gold, answer) else ("wrong", "")

    def _read_strict_gold(self, gold: str) -> list[Any] | None:
        text = _gold_text(gold)
        paired = extract_boxed(f"\\boxed{{{text}}}") == text  # not empty, each brace has its partner, no box
        if not paired or restatement(text, text):
            return None
        read = self._read_box(split_units(text)[0])
        return read if read and self._equal(read, read) else None

    def _read_compat_gold(self, gold: str) -> list[Any] | None:
        """As plain math-verify reads it, but without a mark (`$`, `\\boxed`) as if it were boxed: of an unmarked
        text plain math-verify takes the last number only."""
        text = gold if _MARK.search(gold) else f"\\boxed{{{gold.strip()}}}"
        read = self._parse(text, parsing_timeout=None)
        return read if read and self._equal(read, read) else None

    def _read_box(self, content: str) -> list[Any]:
        read = self._parse(f"\\boxed{{{content}}}", extraction_config=self._box_only, parsing_timeout=None)
        # What came out as infinite or undefined ("12:00" as a ratio) is compared by its text alone.
        return [part for part in read if isinstance(part, str) or not _undefined(part)]

    def _equal(self, gold: list[Any], answer: list[Any]) -> bool:
        return bool(self._verify(gold, answer, timeout_seconds=None))


def _gold_text(gold: str) -> str:
    """The gold, or the content of its box if it has exactly one, tidied."""
    found = boxes(gold)
    return tidy(gold[slice(*found[0])] if len(found) == 1 else gold)


def _undefined(expression: Any) -> bool:
    from sympy import nan, oo, zoo

    return expression in (nan, zoo) or (expression.has(zoo, nan) and not expression.has(oo))
