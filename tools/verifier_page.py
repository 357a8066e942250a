"""The tables of docs/verifier.md, "What the verifier decides": what the verifiers say of the tests' own examples.

The examples are those that the tests assert (`tests/verifier_examples.py`). While the tables are made each one is
judged, and an outcome that is not the tests' is an error. `python -m tools.site --write` puts them into the page,
`--check` tells when they are stale. The figures on recorded data are those that the tests of that data assert.
"""

from __future__ import annotations

import inspect
import json
import re
import runpy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from dphlib.types import OUTCOMES, Verdict
from dphlib.verify import gold_cache
from dphlib.verify import math as verify_math
from dphlib.verify import sql as verify_sql
from dphlib.verify import sql_rules as sql_judge
from dphlib.verify.math import MathVerifier
from dphlib.verify.math_text import MAX_CHARS, extract_boxed
from dphlib.verify.sql import SqlVerifier

PAGE = Path("docs", "verifier.md")
EXAMPLES, DATABASES, SQL_KNOWN, MATH_KNOWN = (
    Path("tests", name)
    for name in ("verifier_examples.py", "databases.py", "known_disagreements.json", "math_disagreements.json")
)
SQL_MODES: tuple[Literal["bird", "spider", "paper"], ...] = ("bird", "spider", "paper")
MATH_MODES: tuple[Literal["strict", "compat"], ...] = ("strict", "compat")
LIMITS: dict[str, Any] = {"max_ops": 2_000_000, "timeout_s": 30.0}  # operations decide, on a busy machine too

Examples = dict[str, Any]
Rows = Iterable[Sequence[str]]

MEANINGS = {
    "correct": "Its result, or its value, is the gold's.",
    "wrong": "It is another; or, in mathematics, it is not worked out.",
    "no_answer": "There is nothing to judge: no closed fence with a statement in it, no balanced box with a content.",
    "invalid": "It cannot be run or read: an error of SQLite, several statements, LaTeX that is none.",
    "forbidden": "It would do more than read. It was not run.",
    "timeout": "It used up its operations, or its wall clock.",
    "too_large": "Its result, or its text, is beyond the limits. A cut result equals nothing.",
    "infra_error": "Not a judgement: the gold fails, or the worker died twice. Never a reward; take the row out.",
}


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page by name. Raises ValueError where a verifier and an example disagree."""
    examples, databases = runpy.run_path(str(root / EXAMPLES)), runpy.run_path(str(root / DATABASES))
    sql_known, math_known = (json.loads((root / path).read_text(encoding="utf-8")) for path in (SQL_KNOWN, MATH_KNOWN))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        databases["make_database"](folder, "club")
        sql = [stack.enter_context(SqlVerifier(folder, mode, **LIMITS)) for mode in SQL_MODES]
        math = [stack.enter_context(MathVerifier(mode, timeout_s=60.0)) for mode in MATH_MODES]
        return {
            "outcomes": _outcomes(),
            **_sql_examples(examples, databases, sql),
            "sql-limits": table(("limit", "value", "of what", "beyond it"), _sql_limits()),
            **_sql_figures(sql_known["sql"]),
            **_math_examples(examples, math),
            "math-limits": table(("limit", "value", "of what", "beyond it"), _math_limits()),
            **_math_figures(math_known),
        }


# --- Markdown -----------------------------------------------------------------------------------------


def code(text: str | None) -> str:
    """A table's cell of literal text, lines joined by ⏎; a dash for None.

    >>> print(code("a | b"), code("```sql x ```"), code(None), code(""))
    `a \\| b` ```` ```sql x ``` ```` - (empty)
    """
    if not text:
        return "-" if text is None else "(empty)"
    text = text.replace("\r\n", "\n").replace("\n", " ⏎ ").replace("|", "\\|").strip()
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    inside = f" {text} " if "`" in (text[0], text[-1]) else text
    return f"{fence}{inside}{fence}"


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table, its last line ended."""
    return "".join("| " + " | ".join(line) + " |\n" for line in (head, ["---"] * len(head), *rows))


def checked(what: str, found: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """`found`; ValueError naming the example where it is not what the example wants."""
    if list(found) != list(wanted):
        raise ValueError(f"{EXAMPLES}: {what} gives {list(found)}, not {list(wanted)}: change the example or the code")
    return list(found)


# --- Tables -------------------------------------------------------------------------------------------


def _outcomes() -> str:
    rewards = ((name, Verdict(name).reward) for name in OUTCOMES)  # type: ignore[arg-type]
    rows = ((f"`{name}`", "none" if reward is None else f"{reward:g}", MEANINGS[name]) for name, reward in rewards)
    return table(("outcome", "reward", "meaning"), rows)


def _sql_outcomes(verifiers: Sequence[SqlVerifier], gold: str, text: str, wanted: Sequence[str]) -> list[str]:
    found = [verifier.verify("club", gold, text).outcome for verifier in verifiers]
    return checked(f"{text!r} for {gold!r}", found, wanted)


def _sql_examples(examples: Examples, databases: Examples, sql: Sequence[SqlVerifier]) -> dict[str, str]:
    fenced, modes, outcomes = databases["fenced"], [f"`{mode}`" for mode in SQL_MODES], partial(_sql_outcomes, sql)
    every = len(SQL_MODES)
    hostile = databases["HOSTILE"]
    for statement in hostile:
        outcomes("SELECT 1", fenced(statement), ["forbidden"] * every)
    return {
        "sql-extraction": table(
            ("answer (⏎ is the end of a line)", "`bird`, `spider`", "`paper`"),
            (
                (code(text), *map(code, checked(repr(text), [take(text) for take in _TAKEN], wanted)))
                for text, *wanted in examples["SQL_EXTRACTION"]
            ),
        ),
        "sql-database": f"```sql\n{databases['CLUB'].strip()}\n```\n",
        "sql-comparison": table(
            ("gold", "answer", *modes),
            (
                (code(gold), code(answer), *outcomes(gold, fenced(answer), wanted))
                for gold, answer, *wanted in examples["SQL_COMPARISON"]
            ),
        ),
        "sql-empty": table(
            ("answer", "text", *modes),
            (
                (name, code(text), *outcomes(examples["EMPTY_GOLD"], text, ["no_answer"] * every))
                for name, text in examples["EMPTY_ANSWERS"]
            ),
        ),
        "sql-forbidden": "\n".join(f"- {code(statement)}" for statement in hostile) + "\n",
        "sql-golds": table(
            ("gold", "which", *modes),
            (
                (code(gold), why, *outcomes(gold, fenced("SELECT 1"), ["infra_error"] * every))
                for gold, why in examples["FAILING_GOLDS"]
            ),
        ),
        "sql-others": table(
            ("mode", "gold", "answer", "here", "theirs", "why"),
            (
                (
                    f"`{mode}`",
                    code(gold),
                    code(text),
                    *_sql_outcomes([sql[SQL_MODES.index(mode)]], gold, text, [wanted]),
                    score,
                    why,
                )
                for mode, gold, text, wanted, score, why in examples["SQL_OTHERS"]
            ),
        ),
    }


_TAKEN: tuple[Callable[[str], str | None], ...] = (verify_sql.extract_sql, verify_sql._extract_as_paper)


def _defaults(verifier: type) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(verifier).parameters.items()}


def _sql_limits() -> Iterator[tuple[str, str, str, str]]:
    default = _defaults(SqlVerifier)
    yield "`max_ops`", f"{default['max_ops']:,} SQLite operations", "a query", "`timeout`"
    yield "`timeout_s`", f"{default['timeout_s']:g} s of wall clock", "a query; its worker is killed", "`timeout`"
    yield "`max_rows`", f"{default['max_rows']:,} rows", "a result", "`too_large`"
    yield "`max_cells`", f"{default['max_cells']:,} cells", "a result", "`too_large`"
    yield "fixed", f"{sql_judge.MAX_RESULT_BYTES:,} bytes", "texts and blobs of a result", "`too_large`"
    yield "fixed", f"{sql_judge.MAX_VALUE_BYTES:,} bytes", "one value", "`too_large`"
    yield "fixed", f"{sql_judge.HEAP_BYTES >> 20:,} MiB", "SQLite's memory", "`too_large`"
    yield "fixed", f"{sql_judge.MAX_SQL_CHARS:,} characters", "a statement", "`invalid`"
    yield "fixed", f"{sql_judge.MATCHING_STEPS:,} rounds", "the matching of columns", "`too_large`"
    yield "fixed", f"{verify_sql.MEMORY_MIB:,} MiB", "a worker", "it dies: one retry, then `infra_error`"
    yield "`kept`", f"{default['kept']:,} verdicts", "a verifier's memory", "the least recently used is dropped"
    yield "`cache_dir`", f"{gold_cache.MIN_OPS:,} operations or more", "a gold kept on disk", "a quicker one just runs"


def _sql_figures(known: dict[str, Any]) -> dict[str, str]:
    difference, accuracy = known["spider_mode_against_set_equality"]["rows"], known["accuracy_over_729_rows"]
    causes = sorted({cause for counts in difference.values() for cause in counts})
    figures = (
        (f"`{name}`", *map(str, accuracy[name]), *(str(counts.get(cause, 0)) for cause in causes))
        for name, counts in difference.items()
    )
    head = (
        "predictions",
        "equal as sets (`bird`), of 729",
        "equal as bags",
        *(f"`spider` {cause}" for cause in causes),
    )
    golds = (
        (entry["set"], str(entry["rows"]), code(entry["gold"]), entry["reason"]) for entry in known["golds_that_fail"]
    )
    return {
        "sql-figures": table(head, figures),
        "sql-failing": table(("set", "rows", "gold", "reason"), golds),
    }


def _math_examples(examples: Examples, math: Sequence[MathVerifier]) -> dict[str, str]:
    head = ("gold", "answer", *(f"`{mode}`" for mode in MATH_MODES))

    def judged(name: str, text_of: Callable[[str], str]) -> str:
        listed = examples[name]
        items = [(gold, text_of(text)) for gold, text, *_ in listed]
        verdicts = zip(*(verifier.verify_many(items) for verifier in math), strict=True)
        rows = []
        for (gold, text, *wanted), both in zip(listed, verdicts, strict=True):
            rows.append((code(gold), code(text), *checked(f"{text!r} for {gold!r}", [v.outcome for v in both], wanted)))
        return table(head, rows)

    return {
        "math-extraction": table(
            ("answer", "judged"),
            (
                (code(text), *map(code, checked(repr(text), [extract_boxed(text)], [wanted])))
                for text, wanted in examples["MATH_EXTRACTION"]
            ),
        ),
        "math-restatements": judged("MATH_RESTATEMENTS", examples["boxed"]),
        "math-answers": judged("MATH_ANSWERS", examples["boxed"]),
        "math-texts": judged("MATH_TEXTS", str),
    }


def _math_limits() -> Iterator[tuple[str, str, str, str]]:
    default = _defaults(MathVerifier)
    yield "`timeout_s`", f"{default['timeout_s']:g} s of wall clock", "the gold, and again the answer", "`timeout`"
    yield "fixed", f"{MAX_CHARS:,} characters", "the content of a box", "`too_large`"
    yield "fixed", f"{verify_math.MAX_ANSWER_CHARS:,} characters", "the end of an answer, in `compat`", "not read"
    yield "fixed", f"{verify_math.MEMORY_MIB:,} MiB", "a worker", "it dies: one retry, then `infra_error`"
    yield "`kept`", f"{default['kept']:,} verdicts", "a verifier's memory", "the least recently used is dropped"


def _math_figures(known: dict[str, Any]) -> dict[str, str]:
    """Every listed disagreement, by reason; a source's score is 1 or 0."""
    listed = sorted(known["vectors"] + known["outcomes"], key=lambda entry: entry["reason"])
    counts = Counter(entry["reason"] for entry in (*listed, *known["golds"]))
    rows = (
        (
            f"`{entry['reason']}`",
            "math-verify" if entry.get("against") == "math-verify" else f"`{entry['file']}`",
            f"`{entry['mode']}`",
            code(entry["gold"]),
            code(entry["prediction"]),
            str(entry["expected"]),
            entry["ours"],
        )
        for entry in listed
    )
    golds = (
        (f"`{one['reason']}`", f"`{one['set']}`", str(one["index"]), code(one["gold"]), one["ours"])
        for one in known["golds"]
    )
    reasons = ((f"`{name}`", str(counts[name]), told) for name, told in known["reasons"].items())
    head = ("reason", "judged by", "our mode", "gold", "answer", "their score", "ours")
    return {
        "math-reasons": table(("reason", "cases", "in words"), reasons),
        "math-disagreements": table(head, rows),
        "math-golds": table(("reason", "set", "row", "gold", "`strict`"), golds),
    }
