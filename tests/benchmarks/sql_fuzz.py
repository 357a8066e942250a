"""Fuzzes the SQL verifier at length: the properties of `tests/test_sql_fuzz.py`, 100,000 random cases.

    python tests/benchmarks/sql_fuzz.py [--cases 100000] [--seed 0]

Prints the cases and seconds of each property; exit status 1, with the smallest case found, where one does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import hypothesis  # noqa: E402
import test_sql_fuzz as fuzz  # noqa: E402
from databases import make_database  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from dphlib.verify.sql_rules import SqlChecker  # noqa: E402


def properties(root: Path) -> dict[str, tuple[float, st.SearchStrategy, Callable[..., None]]]:
    """Share of the cases, what is drawn, and what must hold."""
    path = make_database(root, "two", fuzz.TABLES)
    uri = f"file:{path}?mode=ro&immutable=1"
    limits = {"max_ops": 1_000_000, "max_rows": 1_000, "max_cells": 10_000}
    checkers = [SqlChecker(mode, mode == "bird", **limits) for mode in ("bird", "spider", "paper")]
    plain = fuzz.PlainComparison(str(path))

    def outcomes(gold: str, answer: str) -> list[str]:
        return [checker((uri, gold, answer), lambda phase: None)[0] for checker in checkers]

    def check_queries(pair: tuple[str, str]) -> None:
        plain.check(*pair, *outcomes(*pair))

    def check_junk(text: str) -> None:
        assert "infra_error" not in outcomes("SELECT x FROM a", text)

    junk = st.one_of(st.text(max_size=80), fuzz.answer_texts)
    return {
        "extraction": (0.4, fuzz.answer_texts, fuzz.check_extraction),
        "comparison": (0.3, fuzz.results, fuzz.check_comparison),
        "random queries against sqlite3": (0.15, st.tuples(fuzz.queries(), fuzz.queries()), check_queries),
        "junk as SQL": (0.15, junk, check_junk),
    }


def hold(strategy: st.SearchStrategy, check: Callable[..., None], cases: int, seed: int) -> tuple[int, str]:
    """Checks `cases` random cases; returns how many there were, and whether the property holds."""
    count = 0

    @hypothesis.settings(
        max_examples=cases, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.seed(seed)
    @hypothesis.given(strategy)
    def counted(case: object) -> None:
        nonlocal count
        count += 1
        check(case)

    try:
        counted()
    except Exception as error:
        return count, f"does not hold: {error!r}\n" + "\n".join(getattr(error, "__notes__", []))
    return count, "holds"


def main() -> int:
    """Runs every property; 1 if one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total = 0
    results = set()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        for name, (share, strategy, check) in properties(Path(scratch)).items():
            start = time.perf_counter()
            count, result = hold(strategy, check, round(share * arguments.cases), arguments.seed)
            total += count
            results.add(result)
            print(f"{name:32} {count:8} cases {time.perf_counter() - start:8.1f} s  {result}", flush=True)
    seconds = time.perf_counter() - started
    print(f"{'all':32} {total:8} cases {seconds:8.1f} s ({time.process_time():.1f} s of one core)")
    return int(results != {"holds"})


if __name__ == "__main__":
    sys.exit(main())
