"""A small database and the answers that the tests of the SQL verifier give it, honest and hostile.

from databases import fenced, make_database
"""

from __future__ import annotations

import itertools
import sqlite3
import tomllib
from collections import Counter
from contextlib import closing
from pathlib import Path

CLUB = """
CREATE TABLE t (id INTEGER, name TEXT, age INTEGER, data);
INSERT INTO t VALUES (1, 'ann', 30, NULL), (2, 'bob', 20, x'00ff'), (3, 'cy', 20, 1e999),
                     (4, 'ann', 30, 9007199254740993), (5, 'dé', NULL, CAST(x'ff41' AS TEXT)),
                     (6, 'dé', NULL, CAST(x'fe41' AS TEXT));
CREATE TABLE empty (a);
"""


def fenced(sql: str) -> str:
    """An answer as a model gives it."""
    return f"Some thought.\n```sql\n{sql}\n```\n"


def write_database(path: Path, script: str) -> Path:
    """Runs a script on a database, which is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY; {script}")
    return path


def make_database(root: Path, db_id: str, script: str = CLUB) -> Path:
    """A database in the layout of Spider and BIRD."""
    return write_database(root / db_id / f"{db_id}.sqlite", script)


def by_permutations(gold: list[tuple], answer: list[tuple] | None, *, ordered: bool) -> bool:
    """Spider's rule, by trying every permutation of columns that hold the same values."""
    if not gold or not answer:
        return answer == gold
    if len(gold) != len(answer) or len(gold[0]) != len(answer[0]):
        return False
    mine, theirs = ([Counter(column) for column in zip(*rows, strict=True)] for rows in (gold, answer))
    choices = [[j for j, other in enumerate(theirs) if other == column] for column in mine]
    for order in itertools.product(*choices):
        if len(set(order)) == len(order):
            moved = [tuple(row[j] for j in order) for row in answer]
            if (moved == gold) if ordered else (Counter(moved) == Counter(gold)):
                return True
    return False


_EXAMPLES = Path(__file__).with_name("verifier_examples.toml")
HOSTILE: list[str] = tomllib.loads(_EXAMPLES.read_text(encoding="utf-8"))["HOSTILE"]

ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) "
DOUBLING = "WITH RECURSIVE r(x) AS (SELECT 'aaaaaaaa' UNION ALL SELECT x || x FROM r) "


def chain(first: str, body: str) -> str:
    """40 common table expressions, each made from the one before it (`{}`)."""
    return f"WITH t0 AS ({first})" + "".join(f", t{i} AS ({body.replace('{}', f't{i - 1}')})" for i in range(1, 40))


LONG = "replace(hex(zeroblob(16000)), '0', 'a')"  # 32,000 characters
BOMBS = {
    "recursion": ENDLESS + "SELECT count(*) FROM r",
    "rows": ENDLESS + "SELECT x FROM r",
    "cells": ENDLESS + "SELECT x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x FROM r",
    "blobs": ENDLESS + "SELECT zeroblob(1900000) FROM r",
    "product": "SELECT count(*) FROM " + ", ".join(f"t t{i}" for i in range(20)),
    "sorted product": "SELECT * FROM " + ", ".join(f"t t{i}" for i in range(12)) + " ORDER BY 1, 5, 9",
    "randomblob": "SELECT randomblob(1000000000)",
    "printf": "SELECT printf('%.*c', 1000000000, 'x')",
    "format": "SELECT format('%d %.1c %.1000000000c', 1, 'x', 'y')",
    "doubling": DOUBLING + "SELECT x FROM r",
    "group_concat": ENDLESS + "SELECT group_concat(x) FROM r",
    "replace": "SELECT replace(hex(zeroblob(900000)), '0', '0123456789')",
    "nested": chain("SELECT 1 AS a", "SELECT x.a FROM {} x, {} y") + " SELECT count(*) FROM t39",
    "subqueries": chain("SELECT 1 AS a", "SELECT (SELECT a FROM {}) + (SELECT a FROM {}) AS a") + " SELECT a FROM t39",
    "expressions": chain("SELECT age AS a FROM t", "SELECT a + a AS a FROM {}") + " SELECT a FROM t39",
    "instr": "SELECT sum(instr(zeroblob(1990000), zeroblob(900000) || x'01')) FROM t a, t b, t c",
    "like": "SELECT count(*) FROM t a, t b, t c WHERE hex(zeroblob(900000)) LIKE '%0%0%0%0%0%0%0%0%0%1'",
    "glob": "SELECT count(*) FROM t a, t b, t c WHERE hex(zeroblob(900000)) GLOB '*0*0*0*0*0*0*0*0*0*1'",
    "trim": f"SELECT trim({LONG}, replace({LONG}, 'a', 'b') || replace({LONG}, 'a', 'c'))",
    "json_patch": ENDLESS.replace(" FROM r)", " FROM r LIMIT 90000)")
    + "SELECT json_patch(json_group_object(x, 1), json_group_object(-x, 1)) FROM r",
    "sort": ENDLESS + "SELECT x, hex(randomblob(500)) FROM r ORDER BY 2",
    "distinct": ENDLESS.replace("ALL ", "") + "SELECT count(DISTINCT x) FROM r",
    "window": ENDLESS + "SELECT sum(x) OVER (ORDER BY x DESC) FROM r",
    "json": ENDLESS + "SELECT json_group_array(x) FROM r",
    "parentheses": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "or": "SELECT " + " OR ".join(["1"] * 5000),
    "compound": " UNION ".join(["SELECT 1"] * 2000),
    "columns": "SELECT " + ", ".join(["1"] * 20_000),
}
