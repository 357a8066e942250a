"""The generated blocks of docs/verifier.md, "What the verifiers decide": what they say of the tests' own examples.

The examples are those that the tests assert (`tests/verifier_examples.py`). While the tables are made each one is
judged, and an outcome that is not the tests' is an error. The figures on recorded data are those that the tests of that
data assert.
"""

from __future__ import annotations

import inspect
import json
import runpy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dphlib.types import OUTCOMES, Verdict
from dphlib.verify import MathVerifier, SqlVerifier, sql_rules
from dphlib.verify import math as math_rules
from dphlib.verify import sql as sql_modes
from dphlib.verify.math_text import MAX_CHARS, extract_boxed
from tools.blocks import code, rendered

TESTS = Path("tests")
EXAMPLES = TESTS / "verifier_examples.py"
SQL_MODES, MATH_MODES = ("bird", "spider", "paper"), ("strict", "compat")
LIMITS: dict[str, Any] = {"max_ops": 2_000_000}


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page. Raises ValueError where a verifier and an example disagree."""
    examples, databases = (
        runpy.run_path(str(root / TESTS / name)) for name in ("verifier_examples.py", "databases.py")
    )
    known, disagreements = (
        json.loads((root / TESTS / name).read_text(encoding="utf-8"))
        for name in ("known_disagreements.json", "math_disagreements.json")
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        databases["make_database"](folder, "club")
        sql = {mode: stack.enter_context(SqlVerifier(folder, mode, **LIMITS)) for mode in SQL_MODES}
        maths = {mode: stack.enter_context(MathVerifier(mode, timeout_s=60.0)) for mode in MATH_MODES}
        return rendered(
            "verifier",
            outcomes={name: Verdict(name).reward for name in OUTCOMES},  # type: ignore[arg-type]
            **_sql_tables(examples, databases, sql),
            **_math_tables(examples, maths),
            club=databases["CLUB"].strip(),
            hostile=databases["HOSTILE"],
            sql_default=_defaults(SqlVerifier),
            math_default=_defaults(MathVerifier),
            sql_fixed={**vars(sql_rules), "MEMORY_MIB": sql_modes.MEMORY_MIB},
            math_fixed={**vars(math_rules), "MAX_CHARS": MAX_CHARS},
            sets=known["sql"]["spider_mode_against_set_equality"]["rows"],
            accuracy=known["sql"]["accuracy_over_729_rows"],
            failing=known["sql"]["golds_that_fail"],
            listed=sorted(disagreements["vectors"] + disagreements["outcomes"], key=lambda entry: entry["reason"]),
            golds=disagreements["golds"],
            reasons=disagreements["reasons"],
            cases=Counter(one["reason"] for kind in ("vectors", "outcomes", "golds") for one in disagreements[kind]),
        )


def _defaults(verifier: type) -> dict[str, Any]:
    return {name: one.default for name, one in inspect.signature(verifier).parameters.items()}


def checked(what: str, found: Sequence[Any], wanted: Sequence[Any]) -> list[Any]:
    """`found`; ValueError naming the example where it is not what the example wants."""
    if list(found) != list(wanted):
        raise ValueError(f"{EXAMPLES}: {what} gives {list(found)}, not {list(wanted)}: change the example or the code")
    return list(found)


Rows = list[tuple[Any, ...]]


def _sql_tables(examples: dict[str, Any], databases: dict[str, Any], sql: dict[str, SqlVerifier]) -> dict[str, Rows]:
    fenced = databases["fenced"]

    def outcomes(gold: str, text: str, wanted: Sequence[str], modes: Sequence[str] = SQL_MODES) -> list[str]:
        found = [sql[mode].verify("club", gold, text).outcome for mode in modes]
        return checked(f"{text!r} for {gold!r}", found, wanted)

    for statement in databases["HOSTILE"]:
        outcomes("SELECT 1", fenced(statement), ["forbidden"] * len(SQL_MODES))
    return {
        "sql_extraction": [
            (code(text), *map(code, checked(repr(text), [take(text) for take in _TAKEN], wanted)))
            for text, *wanted in examples["SQL_EXTRACTION"]
        ],
        "sql_comparison": [
            (code(gold), code(answer), *outcomes(gold, fenced(answer), wanted))
            for gold, answer, *wanted in examples["SQL_COMPARISON"]
        ],
        "sql_empty": [
            (name, code(text), *outcomes(examples["EMPTY_GOLD"], text, ["no_answer"] * len(SQL_MODES)))
            for name, text in examples["EMPTY_ANSWERS"]
        ],
        "sql_golds": [
            (code(gold), why, *outcomes(gold, fenced("SELECT 1"), ["infra_error"] * len(SQL_MODES)))
            for gold, why in examples["FAILING_GOLDS"]
        ],
        "sql_others": [
            (f"`{mode}`", code(gold), code(text), *outcomes(gold, text, [wanted], [mode]), score, why)
            for mode, gold, text, wanted, score, why in examples["SQL_OTHERS"]
        ],
    }


_TAKEN: tuple[Callable[[str], str | None], ...] = (sql_modes.extract_sql, sql_modes._extract_as_paper)


def _math_tables(examples: dict[str, Any], maths: dict[str, MathVerifier]) -> dict[str, Rows]:
    def judged(name: str, text_of: Callable[[str], str]) -> Rows:
        items = [(gold, text_of(text)) for gold, text, *_ in examples[name]]
        verdicts = zip(*(verifier.verify_many(items) for verifier in maths.values()), strict=True)
        rows: Rows = []
        for (gold, text, *wanted), found in zip(examples[name], verdicts, strict=True):
            outcomes = checked(f"{text!r} for {gold!r}", [verdict.outcome for verdict in found], wanted)
            rows.append((code(gold), code(text), *outcomes))
        return rows

    return {
        "math_extraction": [
            (code(text), *map(code, checked(repr(text), [extract_boxed(text)], [wanted])))
            for text, wanted in examples["MATH_EXTRACTION"]
        ],
        "math_restatements": judged("MATH_RESTATEMENTS", examples["boxed"]),
        "math_answers": judged("MATH_ANSWERS", examples["boxed"]),
        "math_texts": judged("MATH_TEXTS", str),
    }
