r"""Mathematical answers -> verdicts: math-verify, in a worker that can be killed, behind rules of our own.

- `strict` (for training): judges the content of the last balanced `\boxed{}` and nothing else, or of several boxes
  in one list (`\boxed{1}` and `\boxed{2}`) where the gold has as many values. `math_spelling` brings both texts into
  one spelling; `math_text` says what is a number, a unit, a restatement; two numbers are compared exactly there, all
  else in a worker by `math_algebra`, with math-verify.
- `compat`: math-verify with its default extraction on the whole answer, for comparison with others' figures.

Departures of `strict` from math-verify, which accepts all of the answers named:

1. a chain of equations (`1=2=3=4=5` for 5) is `wrong`, and so is an equation whose left side has no letter (`2+3=5`
   for 5). Where the gold is no equation, the left side is otherwise whatever it is: `|z|=5`, `f(g(2))=5`,
   `a+b+c=5`; but a sum set to 0 is an equation still to be solved;
2. where the gold is a number, or numbers, so is anything but numbers (`10!`, `12+34`, `\sqrt{4}`, `6/2` for an
   integer; `1/2` for 0.5 and `3.0` for 3 are right), and elsewhere a sum, product, factorial, derivative, matrix
   operation and the like that the gold does not have;
3. `x, x` is not `x`, and `\{1,2\}` is not `(1,2)`;
4. a letter behind a number is a variable, not a unit (`4t` for 4, `\frac{x}{2}d`); centimetres are not metres, a
   million is no unit, p.m. is not a.m., other words behind an answer are not dropped (`x \text{ is not the answer}`),
   nor is a prime; `4,6` is not `m=6,b=4`;
5. a decimal equals a ratio only as its correct rounding to six places or more, never below 0.001 (`0.00000002` for
   `10^{-8}`), and `204_6` is not `204_5`;
6. a command that hides or defines something (`\phantom`, a comment) is `wrong`;
7. a gold that cannot be read, or does not verify against itself, is `infra_error`, never a reward, even where
   the answer has no box. Where only the same text can match a gold (`AS_TEXT` is the detail of that match), it
   should not be trained on.

Right in `strict`, often not in math-verify: `27+38i` for `27+38 i`, `1+\sqrt{19}, 1-\sqrt{19}` for `1 \pm \sqrt{19}`,
`4.5e33` for `4.5 \times 10^{33}`, `0 \le x < 1` for `[0,1)`, `y=\frac{1}{x}` for `xy=1`, `17.5` or `0.175` for `17.5\%`
(`same_value` has the rule), `2516\text{ (base 8)}` for `2516_8`, `1 1/4` for `5/4`, `\pi/4` for `45^\circ`.

Departure of `compat`: a gold without a mark of mathematics (`$`, `\boxed`, `\(`, `\[`) is read as if it were boxed.

What it does not do: tell a symbolic expression that was left as it stood (`x+x` for `2x`) from one that was
simplified; read decimal commas, or digits other than 0 to 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

from dphlib.types import Verdict
from dphlib.verify.math_spelling import tidy
from dphlib.verify.math_text import (
    ANSWER_WORDS,
    GOLD_WORDS,
    MAX_CHARS,
    UnreadableError,
    bare,
    boxes,
    exact_value,
    extract_boxed,
    items,
    joined_boxes,
    plain_number,
    restatement,
    same_value,
    split_units,
)
from dphlib.verify.pool import Pool, PooledVerifier, WorkerSpec
from dphlib.verify.worker import Task

MAX_ANSWER_CHARS = 20_000  # `compat`: the end of the answer that is searched
MEMORY_MIB = 2048

_MARK = re.compile(r"(?<!\\)\$|\\boxed|\\\(|\\\[")
AS_TEXT = "the gold is read as text only: no other spelling of it can be correct"


class MathVerifier(PooledVerifier):
    """Judges mathematical answers; a context manager, safe to use from several threads.

    Args:
        mode: `strict` or `compat`, see the module.
        workers: worker processes, started at the first answer that needs one.
        timeout_s: seconds of the processor for reading the gold, and again for the answer and the comparison.
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
        spec = WorkerSpec("dphlib.verify.math:MathChecker", {"mode": mode}, timeout_s, MEMORY_MIB)
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
        verdicts = self._pool.verdicts(jobs)
        return [
            entry if isinstance(entry, Verdict) and verdict.outcome != "infra_error" else verdict
            for entry, verdict in zip(entries, verdicts, strict=True)
        ]

    def _entry(self, gold: str, text: str) -> Task | Verdict:
        for name, value in (("gold", gold), ("answer_text", text)):
            if not isinstance(value, str):
                raise TypeError(f"{name}={value!r}: must be text, such as {str(value)!r}")
        if self.mode == "compat":
            return ("", gold, text[-MAX_ANSWER_CHARS:]) if text.strip() else Verdict("no_answer", "empty answer")
        content = _answer(gold, text)
        if content is None:
            return Verdict("no_answer", "no balanced \\boxed{} with a content")
        if len(content) > MAX_CHARS:
            return Verdict("too_large", f"{len(content)} characters in the box, at most {MAX_CHARS}")
        values = plain_number(gold), plain_number(content)
        if values[0] is not None and values[1] is not None:
            return Verdict("correct") if values[0] == values[1] else Verdict("wrong", "another number")
        return "", gold, content


class MathChecker:
    """Runs in the worker, math-verify's own time limits (SIGALRM) off: the parent's deadline stands in."""

    def __init__(self, mode: Literal["strict", "compat"]) -> None:
        import logging

        from math_verify import parse, verify

        from dphlib.verify import math_algebra  # sympy is for the worker alone

        logging.disable()
        self._strict = mode == "strict"
        self._parse, self._verify, self._algebra = parse, verify, math_algebra
        self._golds: dict[str, list[Any] | None] = {}

    def __call__(self, task: Task, phase: Callable[[str], None]) -> tuple[str, str]:
        _, gold, answer = task
        if gold not in self._golds:
            phase("gold")
            if len(self._golds) >= 10_000:
                self._golds.clear()
            self._golds[gold] = self._read_strict_gold(gold) if self._strict else self._read_compat_gold(gold)
            phase("answer")
        known = self._golds[gold]
        if known is None:
            return "infra_error", f"gold cannot be read, or does not verify against itself: {gold[:300]}"
        if not answer:
            return "no_answer", ""
        try:  # what else is raised is a fault of ours: the worker makes an `infra_error` of it
            return self._judge(_gold_text(gold), known, answer) if self._strict else self._compare(known, answer)
        except UnreadableError as error:
            return "invalid", str(error)

    def _judge(self, gold: str, known: list[Any], answer: str) -> tuple[str, str]:
        answer = tidy(answer)
        if answer == gold:  # which was found to verify against itself
            return "correct", known[0]
        if reason := restatement(gold, answer):
            return "wrong", reason
        gold = split_units(gold, words=GOLD_WORDS)[0]
        value = split_units(answer, words=ANSWER_WORDS if exact_value(gold) is not None else 0)[0]
        if (same := same_value(gold, value)) is not None:
            return ("correct" if same else "wrong"), ""
        if (small := exact_value(value)) is not None and small[1] is not None and 0 < abs(small[0]) < 1e-3:
            return "wrong", "a decimal too small for a comparison to six decimals"
        return ("correct" if self._algebra.same(gold, value) else "wrong"), ""

    def _read_strict_gold(self, gold: str) -> list[Any] | None:
        """How a gold is read, as the detail of a verdict says it; None if it cannot be."""
        text, raw = _gold_text(gold), _content(gold)
        paired = extract_boxed(f"\\boxed{{{raw}}}") == raw  # not empty, each brace has its partner, no box
        if not paired or not bare(text) or restatement(text, text):
            return None
        value = split_units(text, words=GOLD_WORDS)[0]
        return ["" if exact_value(value) is not None or self._algebra.readable(value) else AS_TEXT]

    def _compare(self, known: list[Any], answer: str) -> tuple[str, str]:
        read = self._algebra.foreign(self._parse, answer, parsing_timeout=None)
        if not read:
            return "no_answer", "nothing that math-verify can read"
        return ("correct" if self._algebra.foreign(self._verify, known, read, timeout_seconds=None) else "wrong"), ""

    def _read_compat_gold(self, gold: str) -> list[Any] | None:
        """As plain math-verify reads it, but without a mark (`$`, `\\boxed`) as if it were boxed: of an unmarked
        text plain math-verify takes the last number only."""
        text = gold if _MARK.search(gold) else f"\\boxed{{{gold.strip()}}}"
        read = self._parse(text, parsing_timeout=None)
        return read if read and self._verify(read, read, timeout_seconds=None) else None


def _answer(gold: str, text: str) -> str | None:
    """The content of the last box, or of the last boxes in one list where the gold has as many values."""
    content = extract_boxed(text)
    if content is not None and text.count("\\boxed") > 1 and len(text) - len(content) > 8:
        joined = joined_boxes(text)
        if len(joined) > 1 and len(joined) == len(items(_gold_text(gold))):
            return ", ".join(joined)
    return content


@lru_cache(maxsize=10_000)
def _gold_text(gold: str) -> str:
    return tidy(_content(gold))


def _content(gold: str) -> str:
    """The gold, or the content of its box if it has one (or the same several times)."""
    gold = gold if "\\begin" in gold else gold.replace("\\\\boxed", "\\boxed")
    found = {gold[slice(*box)].strip() for box in boxes(gold)}
    return found.pop() if len(found) == 1 else gold.strip()
