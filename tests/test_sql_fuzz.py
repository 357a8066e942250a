"""Fuzzing the SQL verifier: extraction and comparison never fail; random queries decided as plain `sqlite3` does.

`DPH_FUZZ_CASES=100000 python -m pytest tests/test_sql_fuzz.py` does so at length.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter

import pytest
from databases import make_database
from hypothesis import given, settings
from hypothesis import strategies as st

from dphlib.types import OUTCOMES
from dphlib.verify.sql import _extract_as_paper, extract_sql
from dphlib.verify.sql_rules import SqlChecker, is_ordered, same_results, sql_tokens

pytestmark = pytest.mark.slow

CASES = int(os.environ.get("DPH_FUZZ_CASES", "2800")) // 4  # of each property

TABLES = """
CREATE TABLE a (x INTEGER, y TEXT, z REAL);
INSERT INTO a VALUES (1, 'u', 1.5), (2, 'v', NULL), (2, 'v', NULL), (3, 'u', 0.5), (NULL, NULL, 2.0), (1, 'w', 1.0);
CREATE TABLE b (x INTEGER, w TEXT);
INSERT INTO b VALUES (1, 'u'), (1, 'v'), (3, 'w'), (NULL, 'u'), (4, NULL);
"""

PIECES = ["```sql", "```", "```SQL\n", "\n```\n", "```sql\n-- Your SQL query\n```\n", "SELECT", " x ", ";", "--", "/*"]
PIECES += ["*/", "'", '"', "`", "[", "]", "(", ")", "ORDER", "BY", ",", "\n", "\r\n", "\0", "\ud800", "é", "\u2028"]
answer_texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=25).map("".join)

cells = st.one_of(
    st.none(),
    st.integers(-2, 2),
    st.sampled_from([0.0, -0.0, 1.0, 2.0, float("inf"), 2**53, 2**53 + 1, float(2**53), "", "1", "a", b"", b"1"]),
)
results = st.integers(1, 5).flatmap(lambda width: st.tuples(*[st.lists(st.tuples(*[cells] * width), max_size=7)] * 2))

_columns = st.sampled_from(["x", "y", "z", "1", "NULL", "x + 1", "upper(y)", "coalesce(z, x)"])
_conditions = st.sampled_from(["x = 1", "y = 'u'", "z IS NULL", "x > 1", "y <> 'v'", "x IN (SELECT x FROM b)", "1"])


@st.composite
def queries(draw: st.DrawFn) -> str:
    """A small SELECT over the two tables; now and then one that fails."""
    columns = draw(st.lists(_columns, min_size=1, max_size=3))
    condition = draw(_conditions)
    kind = draw(st.integers(0, 6))
    if kind == 0:
        return f"SELECT {columns[0]}, count(*) FROM a WHERE {condition} GROUP BY {columns[0]}"
    if kind == 1:
        select = ", ".join(f"a.{c}" if c in ("x", "y", "z") else c.replace("x", "a.x") for c in columns)
        return f"SELECT {select}, b.w FROM a {draw(st.sampled_from(['', 'LEFT ']))}JOIN b ON a.x = b.x"
    query = f"SELECT {draw(st.sampled_from(['', 'DISTINCT ']))}{', '.join(columns)} FROM a WHERE {condition}"
    if kind == 2:
        other = draw(st.sampled_from(["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]))
        return f"{query} {other} SELECT {', '.join(draw(_columns) for _ in columns)} FROM a"
    if kind in (3, 4):
        direction = draw(st.sampled_from(["", " DESC"]))
        limit = draw(st.sampled_from(["", " LIMIT 2"]))
        return f"{query} ORDER BY {draw(st.integers(1, 4))}{direction}{limit}"
    return query if kind == 5 else query + draw(st.sampled_from([" AND", " ORDER BY", ")", " AND nothing = 1", "; "]))


class PlainComparison:
    """Verdicts of `sqlite3` as it comes: sets and bags."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)

    def rows(self, sql: str) -> list[tuple] | None:
        try:
            return self._connection.execute(sql).fetchall()
        except (sqlite3.Error, sqlite3.Warning):
            return None

    def check(self, gold: str, answer: str, bird: str, spider: str, paper: str) -> None:
        """Asserts that the three outcomes on `answer` are what the plain results say."""
        mine, theirs = self.rows(gold), self.rows(answer)
        if mine is None:
            assert {bird, spider, paper} == {"infra_error"}
        elif theirs is None:
            assert {bird, spider, paper} == {"invalid"}
        else:
            assert bird == ("correct" if set(mine) == set(theirs) else "wrong")
            if Counter(mine) == Counter(theirs):
                assert paper == "correct"
                assert spider == "correct" or is_ordered(gold)
            if len(mine) != len(theirs):
                assert paper == spider == "wrong"
            if mine == theirs:
                assert spider == "correct"


@settings(max_examples=CASES)
@given(answer_texts)
def test_extraction_never_fails(text):
    """Neither rule fails, and what it gives is a part of the text with a statement in it."""
    for extract in (extract_sql, _extract_as_paper):
        sql = extract(text)
        if sql is not None:
            assert sql in text.replace("```sql\n-- Your SQL query\n```\n", "")
            assert sql == sql.strip() and any(token != ";" for token in sql_tokens(sql))
    assert is_ordered(text) in (True, False)


@settings(max_examples=CASES)
@given(results)
def test_comparison_never_fails(pair):
    """Symmetric, reflexive, never looser than bags of cells, never stricter than bags of rows."""
    one, other = pair
    for ordered in (False, True):
        same = same_results(one, other, ordered=ordered)
        assert same in (True, False) and same == same_results(other, one, ordered=ordered)
        assert same_results(one, list(one), ordered=ordered) is True
        if same:
            assert Counter(v for row in one for v in row) == Counter(v for row in other for v in row)
    unordered = same_results(one, other, ordered=False)
    assert unordered or Counter(one) != Counter(other)
    assert unordered or not same_results(one, other, ordered=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("databases")
    make_database(root, "two", TABLES)
    return root


@pytest.fixture(scope="module")
def checkers(root):
    """One of each mode in this process: no worker between hypothesis and the code."""
    limits = {"max_ops": 1_000_000, "max_rows": 1_000, "max_cells": 10_000}
    return [SqlChecker(mode, mode == "bird", **limits) for mode in ("bird", "spider", "paper")]


@settings(max_examples=CASES)
@given(queries(), queries())
def test_random_queries_get_the_verdicts_of_plain_sqlite(root, checkers, gold, answer):
    uri = f"file:{root}/two/two.sqlite?mode=ro&immutable=1"
    outcomes = [checker((uri, gold, answer), lambda phase: None)[0] for checker in checkers]
    PlainComparison(f"{root}/two/two.sqlite").check(gold, answer, *outcomes)


@settings(max_examples=CASES)
@given(st.one_of(st.text(max_size=80), answer_texts))
def test_no_answer_makes_an_infra_error(root, checkers, text):
    uri = f"file:{root}/two/two.sqlite?mode=ro&immutable=1"
    for checker in checkers:
        outcome, detail = checker((uri, "SELECT x FROM a", text), lambda phase: None)
        assert outcome in OUTCOMES and outcome != "infra_error" and isinstance(detail, str)
