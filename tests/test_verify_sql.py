"""Judging SQL by execution: extraction, comparisons, hostile statements, bombs, real Spider data."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dphlib.sql_judge import is_ordered, same_results
from dphlib.verify_sql import SqlVerifier, extract_sql

SPIDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "spider"
ROOT = Path(__file__).resolve().parent.parent
needs_spider = pytest.mark.skipif(not SPIDER.exists(), reason="needs ../shared/data/spider")


def fenced(sql: str) -> str:
    return f"Some thought.\n```sql\n{sql}\n```\n"


def make_database(root: Path, db_id: str, script: str) -> Path:
    path = root / db_id / f"{db_id}.sqlite"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("databases")
    make_database(
        root,
        "club",
        """
        CREATE TABLE t (id INTEGER, name TEXT, age INTEGER, data);
        INSERT INTO t VALUES (1, 'ann', 30, NULL), (2, 'bob', 20, x'00ff'), (3, 'cy', 20, 1e999),
                             (4, 'ann', 30, 9007199254740993), (5, 'dé', NULL, CAST(x'ff41' AS TEXT)),
                             (6, 'dé', NULL, CAST(x'fe41' AS TEXT));
        CREATE TABLE empty (a);
        """,
    )
    return root


@pytest.fixture(scope="module")
def bird(root):
    with SqlVerifier(root, timeout_s=1.5, max_ops=20_000_000) as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("text", "sql"),
    [
        ("Directly : ```sql SELECT name FROM singer ```", "SELECT name FROM singer"),
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("```SQL\r\nSELECT 1;\r\n```", "SELECT 1;"),
        ("```sql SELECT 1 ``` or rather ```sql SELECT 2 ```", "SELECT 2"),
        ("```sql SELECT 1 ``` or rather ```sql SELECT 2", "SELECT 1"),
        ("```sql\nSELECT 'a -- b' -- c\n```", "SELECT 'a -- b' -- c"),
        ("SELECT 1", None),
        ("```\nSELECT 1\n```", None),
        ("```sqlite\nSELECT 1\n```", None),
        ("```sql SELECT 1", None),
        ("```sql ```", None),
        ("```sql\n;\n```", None),
        ("```sql\n-- SELECT 1\n/* SELECT 2 */ /* open\n```", None),
        ("", None),
    ],
)
def test_extraction(text, sql):
    assert extract_sql(text) == sql


def test_extraction_is_linear(root):
    texts = ["```sql\n" + "\n" * 200_000, "```sql" * 50_000, "```sql " + "[" * 200_000 + " ```"]
    texts += ["```sql " + "'" * 200_001 + "```", "```sql\n" + " \n" * 100_000, "```sql" + " " * 200_000]
    with SqlVerifier(root, "paper") as paper:
        start = time.perf_counter()
        for text in texts:
            extract_sql(text)
            paper._extract(text)
        assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("gold", "answer", "outcome"),
    [
        ("SELECT name FROM t", "SELECT DISTINCT name FROM t ORDER BY 1 DESC", "correct"),
        ("SELECT name, age FROM t", "SELECT age, name FROM t", "wrong"),
        ("SELECT name FROM t WHERE id < 3", "SELECT name FROM t", "wrong"),
        ("SELECT a FROM empty", "SELECT id FROM t WHERE id > 9", "correct"),
        ("SELECT NULL", "SELECT age FROM t WHERE id = 5", "correct"),
        ("SELECT 1", "SELECT 1.0", "correct"),
        ("SELECT data FROM t WHERE id = 4", "SELECT 9007199254740992.0", "wrong"),
        ("SELECT data FROM t WHERE id = 3", "SELECT 9e999", "correct"),
        ("SELECT data FROM t WHERE id = 2", "SELECT x'00ff'", "correct"),
        ("SELECT data FROM t WHERE id = 5", "SELECT data FROM t WHERE id = 5", "correct"),
        ("SELECT data FROM t WHERE id = 5", "SELECT data FROM t WHERE id = 6", "wrong"),
        ("SELECT 1", "SELECT nothing FROM t", "invalid"),
        ("SELECT 1", "SELEC 1", "invalid"),
        ("SELECT 1", "SELECT 1; SELECT 1", "invalid"),
        ("SELECT 1", "SELECT 'a\0b'", "invalid"),
        ("SELECT 1", "SELECT '\ud800'", "invalid"),
        ("SELECT 1", "SELECT 1 -- " + "x" * 60_000, "invalid"),
        ("SELECT 1", "SELECT value FROM json_each('[1]')", "correct"),
    ],
)
def test_bird_outcomes(bird, gold, answer, outcome):
    assert bird.verify("club", gold, fenced(answer)).outcome == outcome


@pytest.mark.parametrize("text", ["", "no fence", "```sql SELECT a FROM empty", "```sql\n-- nothing\n```"])
def test_no_answer_is_not_an_empty_result(bird, text):
    verdict = bird.verify("club", "SELECT a FROM empty", text)
    assert (verdict.outcome, verdict.reward) == ("no_answer", 0.0)


ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) "


@pytest.mark.parametrize(
    "gold",
    [
        "SELECT nothing FROM t",
        "DELETE FROM t",
        "SELEC",
        "",
        ENDLESS + "SELECT count(*) FROM r",
        "SELECT a.id FROM t a, t b, t c, t d, t e, t f, t g, t h",
    ],
)
def test_a_gold_that_fails_is_nobodys_zero(bird, gold):
    verdict = bird.verify("club", gold, fenced("SELECT 1"))
    assert verdict.outcome == "infra_error" and verdict.reward is None
    assert "gold" in verdict.detail and gold[:100] in verdict.detail


@pytest.mark.parametrize(
    ("gold", "answer", "spider", "paper"),
    [
        ("SELECT name, age FROM t", "SELECT age, name FROM t", True, True),
        ("SELECT name FROM t", "SELECT DISTINCT name FROM t", False, False),
        ("SELECT id FROM t ORDER BY id", "SELECT id FROM t ORDER BY id DESC", False, True),
        ("SELECT id, name FROM t ORDER BY id", "SELECT name, id FROM t ORDER BY id", True, True),
        ("SELECT id FROM t", "SELECT id FROM t ORDER BY id DESC", True, True),
        (
            "SELECT id FROM t WHERE age = (SELECT age FROM t ORDER BY age DESC LIMIT 1)",
            "SELECT id FROM t WHERE age = 30 ORDER BY id DESC",
            True,
            True,
        ),
        ("SELECT id FROM t WHERE id >= 3", "SELECT id FROM t WHERE id > = 3", True, True),
        ("SELECT data FROM t WHERE id = 5", "SELECT data FROM t WHERE id = 6", True, True),
    ],
)
def test_spider_and_paper(root, gold, answer, spider, paper):
    for mode, expected in (("spider", spider), ("paper", paper)):
        with SqlVerifier(root, mode) as verifier:
            assert verifier.verify("club", gold, fenced(answer)).outcome == (
                "correct" if expected else "wrong"
            )


def test_paper_follows_the_authors_in_extraction_and_bird_rows(root):
    with SqlVerifier(root, "paper", cmp_method="bird") as paper:
        assert paper.verify("club", "SELECT id FROM t", "```sql SELECT id FROM t ```").outcome == "no_answer"
        text = fenced("SELECT id FROM t") + "```sql\n-- Your SQL query\n```\n"
        assert paper.verify("club", "SELECT id FROM t", text).outcome == "correct"
        assert (
            paper.verify("club", "SELECT id, age FROM t", fenced("SELECT age, id FROM t")).outcome == "wrong"
        )


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t order  by a", True),
        ("SELECT a FROM t WHERE b = 'order by' ", False),
        ("SELECT a FROM t -- order by a", False),
        ("SELECT a, row_number() OVER (ORDER BY b) FROM t", False),
        ("SELECT a FROM t WHERE a IN (SELECT a FROM t ORDER BY a LIMIT 1) ORDER/**/BY a", True),
        ('SELECT "order" by_, 1 FROM t', False),
    ],
)
def test_top_level_order(sql, ordered):
    assert is_ordered(sql) is ordered


def by_all_permutations(gold, answer):
    if len(gold) != len(answer) or not gold:
        return len(gold) == len(answer)
    if len(gold[0]) != len(answer[0]):
        return False
    return any(
        sorted(tuple(row[i] for i in order) for row in answer) == sorted(gold)
        for order in itertools.permutations(range(len(gold[0])))
    )


tables = st.integers(1, 4).flatmap(
    lambda width: st.tuples(*[st.lists(st.tuples(*[st.integers(0, 2)] * width), max_size=6)] * 2)
)


@settings(max_examples=300)
@given(tables, st.randoms(use_true_random=False))
def test_column_matching_equals_trying_all_permutations(pair, rng):
    gold, answer = pair
    assert same_results(gold, answer, ordered=False) == by_all_permutations(gold, answer)
    if gold:
        order = rng.sample(range(len(gold[0])), len(gold[0]))
        moved = rng.sample([tuple(row[i] for i in order) for row in gold], len(gold))
        assert same_results(gold, moved, ordered=False) is True


@pytest.mark.parametrize("width", [9, 12])
def test_interchangeable_columns_are_quick_and_leave_random_alone(width):
    unit = [tuple(int(i == j) for j in range(width)) for i in range(width)]
    cycle = [tuple(int(j in (i, (i + 1) % width)) for j in range(width)) for i in range(width)]
    half = width // 2
    two = [
        tuple(
            int(j in (i, (i + 1) % half if i < half else half + (i + 1 - half) % (width - half)))
            for j in range(width)
        )
        for i in range(width)
    ]
    even = [bits for bits in itertools.product((0, 1), repeat=width) if sum(bits) % 2 == 0]
    odd = [bits for bits in itertools.product((0, 1), repeat=width) if sum(bits) % 2]
    state = random.getstate()
    start = time.perf_counter()
    assert same_results(unit, unit[::-1], ordered=False) is True
    assert same_results(cycle, [row[::-1] for row in cycle], ordered=False) is True
    assert (
        same_results(cycle, two, ordered=False) is False
    )  # one ring against two: refinement alone sees no difference
    assert same_results(even, odd, ordered=False) is False
    assert time.perf_counter() - start < 1
    assert random.getstate() == state


HOSTILE = [
    "DELETE FROM t",
    "UPDATE t SET age = 1 RETURNING *",
    "INSERT INTO t SELECT * FROM t",
    "WITH x AS (SELECT 1) DELETE FROM t",
    "DROP TABLE t",
    "ALTER TABLE t RENAME TO u",
    "CREATE TABLE u (a)",
    "CREATE TEMP TABLE t (name)",
    "CREATE VIRTUAL TABLE v USING fts5(a)",
    "CREATE INDEX i ON t (id)",
    "ATTACH 'other.sqlite' AS other",
    "DETACH main",
    "PRAGMA table_info(t)",
    "PRAGMA writable_schema = ON",
    "SELECT * FROM pragma_table_info('t')",
    "VACUUM",
    "VACUUM INTO 'copy.sqlite'",
    "ANALYZE",
    "REINDEX",
    "BEGIN",
    "SAVEPOINT s",
    "EXPLAIN DELETE FROM t",
    "SELECT load_extension('x')",
    "SELECT 1; DROP TABLE t",
    "SELECT 1; -- x\nPRAGMA query_only = OFF; SELECT 2",
]


def test_hostile_statements_are_forbidden_and_leave_no_trace(root):
    def state():
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()}

    before = state(), sorted(os.listdir("."))
    with SqlVerifier(root) as verifier:
        for sql in HOSTILE:
            assert (verifier.verify("club", "SELECT * FROM t", fenced(sql)).outcome, sql) == (
                "forbidden",
                sql,
            )
            assert (
                verifier.verify("club", "SELECT count(*), 6 FROM t", fenced("SELECT 6, 6")).outcome
                == "correct"
            )
    assert (state(), sorted(os.listdir("."))) == before


DOUBLING = "WITH RECURSIVE r(x) AS (SELECT 'aaaaaaaa' UNION ALL SELECT x || x FROM r) "
NESTED = "WITH t0 AS (SELECT 1 AS a)" + "".join(
    f", t{i} AS (SELECT x.a FROM t{i - 1} x, t{i - 1} y)" for i in range(1, 40)
)
BOMBS = {
    "recursion": ENDLESS + "SELECT count(*) FROM r",
    "rows": ENDLESS + "SELECT x FROM r",
    "cells": ENDLESS + "SELECT x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x FROM r",
    "blobs": ENDLESS + "SELECT zeroblob(1900000) FROM r",
    "product": "SELECT count(*) FROM " + ", ".join(f"t t{i}" for i in range(20)),
    "sorted product": "SELECT * FROM " + ", ".join(f"t t{i}" for i in range(12)) + " ORDER BY 1, 5, 9",
    "randomblob": "SELECT randomblob(1000000000)",
    "printf": "SELECT printf('%.*c', 1000000000, 'x')",
    "doubling": DOUBLING + "SELECT x FROM r",
    "group_concat": ENDLESS + "SELECT group_concat(x) FROM r",
    "replace": "SELECT replace(hex(zeroblob(900000)), '0', '0123456789')",
    "nested": NESTED + " SELECT count(*) FROM t39",
    "instr": "SELECT sum(instr(zeroblob(1990000), zeroblob(900000) || x'01')) FROM t a, t b, t c",
    "like": "SELECT count(*) FROM t a, t b, t c WHERE hex(zeroblob(900000)) LIKE '%0%0%0%0%0%0%0%0%0%1'",
    "sort": ENDLESS + "SELECT x, hex(randomblob(500)) FROM r ORDER BY 2",
    "distinct": ENDLESS.replace("ALL ", "") + "SELECT count(DISTINCT x) FROM r",
    "parentheses": "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "or": "SELECT " + " OR ".join(["1"] * 5000),
    "compound": " UNION ".join(["SELECT 1"] * 2000),
}


def test_bombs_end_by_the_deadline_and_leave_the_others_untouched(root):
    with SqlVerifier(root, timeout_s=0.8, max_ops=10_000_000) as verifier:
        verifier.verify("club", "SELECT 1", fenced("SELECT 1"))
        for name, sql in BOMBS.items():
            start = time.perf_counter()
            outcome = verifier.verify("club", "SELECT 1", fenced(sql)).outcome
            assert (name, outcome) in {(name, o) for o in ("timeout", "too_large", "invalid", "wrong")}
            assert time.perf_counter() - start < 0.8 + 1, name
            assert verifier.verify("club", "SELECT 1", fenced(f"SELECT 1 -- {name}")).outcome == "correct"
            peaks = [
                Path(f"/proc/{pid}/status").read_text() for pid in verifier.pids() if Path("/proc").exists()
            ]
            assert all(int(peak.split("VmHWM:")[1].split()[0]) < 800 << 10 for peak in peaks), name
        executed = verifier.executed
        assert verifier.verify("club", "SELECT 1", fenced(BOMBS["instr"])).reward == 0.0
        assert verifier.executed == executed  # a bomb goes off once


def test_a_result_beyond_the_caps_equals_nothing(root):
    sql = "SELECT a.id, b.id FROM t a, t b"
    for caps in ({"max_rows": 35}, {"max_cells": 71}):
        with SqlVerifier(root, **caps) as verifier:
            assert verifier.verify("club", "SELECT 1", fenced(sql)).outcome == "too_large"
            assert verifier.verify("club", sql, fenced(sql)).outcome == "infra_error"
    with SqlVerifier(root, max_rows=36, max_cells=72) as verifier:
        assert verifier.verify("club", sql, fenced(sql)).outcome == "correct"


def test_the_budget_of_operations_repeats_exactly(root):
    ends = []
    for _ in range(3):
        with SqlVerifier(root, max_ops=200_000) as verifier:
            sizes = range(10_000, 60_000, 2_000)
            items = [("club", "SELECT 1", fenced(f"{ENDLESS.replace(' FROM r)', f' FROM r LIMIT {n})')}SELECT count(*) FROM r")) for n in sizes]  # fmt: skip  # noqa: E501
            ends.append([verdict.outcome for verdict in verifier.verify_many(items)])
    assert ends[0] == ends[1] == ends[2]
    assert set(ends[0]) == {"wrong", "timeout"}


def test_same_verdicts_on_one_worker_and_on_many(root):
    answers = [
        "SELECT id FROM t",
        "SELECT name FROM t",
        "DROP TABLE t",
        "SELEC",
        BOMBS["recursion"],
        "SELECT id + 0 FROM t",
    ]
    golds = ["SELECT id FROM t", "SELECT name FROM t", "SELECT nothing"]
    items = [
        ("club", gold, fenced(f"{answer} -- {i}")) for i in range(20) for gold in golds for answer in answers
    ]
    verdicts = []
    for workers in (1, 3):
        with SqlVerifier(root, workers=workers, max_ops=1_000_000) as verifier:
            verdicts.append(verifier.verify_many(items))
    assert verdicts[0] == verdicts[1]
    assert {v.outcome for v in verdicts[0]} == {
        "correct",
        "wrong",
        "forbidden",
        "invalid",
        "timeout",
        "infra_error",
    }


def test_equal_items_cost_one_execution(root):
    with SqlVerifier(root) as verifier:
        items = [("club", "SELECT id FROM t", fenced(f"SELECT {i % 5} FROM t")) for i in range(100_000)]
        start = time.perf_counter()
        verdicts = verifier.verify_many(items)
        assert len(verdicts) == 100_000 and verifier.executed == 5
        assert time.perf_counter() - start < 10
        verifier.verify_many(items[:100])
        assert verifier.executed == 5


def test_memory_of_verdicts_is_bounded(root):
    with SqlVerifier(root, kept=10) as verifier:
        items = [("club", "SELECT 1", fenced(f"SELECT {i}")) for i in range(25)]
        verifier.verify_many(items)
        verifier.verify_many(items[15:])
        assert verifier.executed == 25
        verifier.verify_many(items[:15])
        assert verifier.executed == 40


@pytest.mark.parametrize("db_id", ["a?mode=rw", "a#b", "100%41", "with space", "é"])
def test_names_with_special_characters_stay_read_only(tmp_path, db_id):
    make_database(tmp_path, db_id, "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    files = sorted(tmp_path.rglob("*"))
    with SqlVerifier(tmp_path) as verifier:
        assert verifier.verify(db_id, "SELECT a FROM t", fenced("SELECT 1")).outcome == "correct"
        assert verifier.verify(db_id, "SELECT a FROM t", fenced("DELETE FROM t")).outcome == "forbidden"
    assert sorted(tmp_path.rglob("*")) == files


def test_a_changed_database_is_read_anew(tmp_path):
    path = make_database(tmp_path, "d", "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    with SqlVerifier(tmp_path) as verifier:
        assert verifier.verify("d", "SELECT a FROM t", fenced("SELECT 1")).outcome == "correct"
        path.unlink()
        connection = sqlite3.connect(path)
        connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (2), (3);")
        connection.close()
        assert verifier.verify("d", "SELECT a FROM t", fenced("SELECT 1")).outcome == "wrong"


def test_setup_errors_name_the_database(tmp_path, root):
    with SqlVerifier(root) as verifier:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            verifier.verify("nowhere", "SELECT 1", fenced("SELECT 1"))
        with pytest.raises(ValueError, match="folder name"):
            verifier.verify("../club", "SELECT 1", fenced("SELECT 1"))
    make_database(tmp_path, "wal", "PRAGMA journal_mode = WAL; CREATE TABLE t (a);")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "text.sqlite").write_text("version https://git-lfs.github.com/spec/v1\n")
    with SqlVerifier(tmp_path) as verifier:
        with pytest.raises(ValueError, match="WAL"):
            verifier.verify("wal", "SELECT 1", fenced("SELECT 1"))
        with pytest.raises(ValueError, match="not an SQLite database"):
            verifier.verify("text", "SELECT 1", fenced("SELECT 1"))
    with pytest.raises(ValueError, match="'exact'"):
        SqlVerifier(root, "exact")


def test_a_corrupt_database_is_nobodys_zero(tmp_path):
    path = make_database(tmp_path, "d", "CREATE TABLE t (a); CREATE TABLE u (a); INSERT INTO t VALUES (1);")
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with SqlVerifier(tmp_path) as verifier:
        assert verifier.verify("d", "SELECT a FROM t", fenced("SELECT 1")).outcome == "infra_error"


def test_no_torch_is_imported():
    code = "import sys, dphlib.verify_sql, dphlib.verify_math\n"
    code += "print([m for m in ('torch', 'transformers', 'sympy', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@needs_spider
def test_every_spider_gold_is_correct_against_itself():
    rows = [row for row in json.loads((SPIDER / "dev.json").read_text())
            if (SPIDER / "database" / row["db_id"] / f"{row['db_id']}.sqlite").exists()]  # fmt: skip
    assert len(rows) > 700
    items = [(row["db_id"], row["query"], fenced(row["query"])) for row in rows]
    for mode in ("bird", "spider", "paper"):
        with SqlVerifier(SPIDER / "database", mode) as verifier:
            verdicts = verifier.verify_many(items)
        assert [item for item, v in zip(items, verdicts, strict=True) if v.outcome != "correct"] == []


@needs_spider
def test_agrees_with_set_equality_of_another_evaluator():
    file = SPIDER.parent / "grader_sql" / "ibm_spider_verdicts.jsonl"
    rows = [row for row in map(json.loads, file.open()) if (SPIDER / "database" / row["db_id"]).exists()]
    assert len(rows) > 50
    with SqlVerifier(SPIDER / "database") as verifier:
        verdicts = verifier.verify_many([(r["db_id"], r["gold"], fenced(r["prediction"])) for r in rows])
    other = [r["id"] for r, v in zip(rows, verdicts, strict=True) if v.reward != r["expected_bird_set_equal"]]
    assert other == []
