"""SQL verified by execution: extraction, comparisons, limits, verdicts that are kept, errors of a set-up."""

from __future__ import annotations

import itertools
import random
import sqlite3
from contextlib import ExitStack

import pytest
from databases import ENDLESS, by_permutations, fenced, make_database
from hypothesis import given, settings
from hypothesis import strategies as st
from verifier_examples import EMPTY_ANSWERS, EMPTY_GOLD, FAILING_GOLDS, SQL_COMPARISON, SQL_EXTRACTION, SQL_OTHERS

from dphlib.verify.sql import SqlVerifier, extract_sql
from dphlib.verify.sql_rules import is_ordered, same_results


@pytest.fixture(scope="module")
def modes(root):
    with ExitStack() as stack:
        modes = ("bird", "spider", "paper")
        yield {mode: stack.enter_context(SqlVerifier(root, mode, max_ops=5_000_000)) for mode in modes}


@pytest.mark.parametrize(("text", "sql", "papers"), SQL_EXTRACTION)
def test_extraction(modes, text, sql, papers):
    assert extract_sql(text) == sql
    assert modes["paper"]._extract(text) == papers
    assert modes["bird"]._extract(text) == modes["spider"]._extract(text) == sql


@pytest.mark.parametrize(
    "text",
    [
        "```sql\n" + "\n" * 200_000,
        "```sql" * 50_000,
        "```sql " + "[" * 200_000 + " ```",
        "```sql " + "'" * 200_001 + "```",
        "```sql\n" + " \n" * 100_000,
        "```sql" + " " * 200_000,
    ],
    ids=range(6),
)
def test_extraction_is_linear(modes, text):
    """Otherwise it would take hours."""
    for verifier in modes.values():
        verifier._extract(text)


@pytest.mark.parametrize(("gold", "answer", "bird", "spider", "paper"), SQL_COMPARISON)
def test_which_results_are_the_same(modes, gold, answer, bird, spider, paper):
    outcomes = {mode: verifier.verify("club", gold, fenced(answer)).outcome for mode, verifier in modes.items()}
    assert outcomes == {"bird": bird, "spider": spider, "paper": paper}


@pytest.mark.parametrize("answer", ["SELECT 'a\0b'", "SELECT '\ud800'", "SELECT 1 -- " + "x" * 60_000])
def test_odd_text_is_invalid(modes, answer):
    for verifier in modes.values():
        assert verifier.verify("club", "SELECT 1", fenced(answer)).outcome == "invalid"


@pytest.mark.parametrize(("mode", "gold", "text", "outcome"), [row[:4] for row in SQL_OTHERS])
def test_where_others_decide_otherwise(modes, mode, gold, text, outcome):
    assert modes[mode].verify("club", gold, text).outcome == outcome


@pytest.mark.parametrize("text", [text for _, text in EMPTY_ANSWERS])
def test_no_answer_is_not_an_empty_result(modes, text):
    for verifier in modes.values():
        assert verifier.verify("club", EMPTY_GOLD, fenced(EMPTY_GOLD)).outcome == "correct"
        verdict = verifier.verify("club", EMPTY_GOLD, text)
        assert (verdict.outcome, verdict.reward) == ("no_answer", 0.0)


@pytest.mark.parametrize("gold", [gold for gold, _ in FAILING_GOLDS])
def test_a_gold_that_fails_is_nobodys_zero(modes, gold):
    for verifier in modes.values():
        verdict = verifier.verify("club", gold, fenced("SELECT 1"))
        assert verdict.outcome == "infra_error" and verdict.reward is None
        assert "gold" in verdict.detail and gold[:100] in verdict.detail


def test_paper_compares_sets_for_rows_of_bird(root):
    with SqlVerifier(root, "paper", cmp_method="bird") as paper:
        gold = "SELECT id, age FROM t"
        assert paper.verify("club", gold, fenced("SELECT id, age FROM t UNION ALL SELECT id, age FROM t")).reward == 1.0
        assert paper.verify("club", gold, fenced("SELECT age, id FROM t")).outcome == "wrong"


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


tables = st.integers(1, 4).flatmap(
    lambda width: st.tuples(*[st.lists(st.tuples(*[st.integers(0, 2)] * width), max_size=6)] * 2)
)


@settings(max_examples=300)
@given(tables, st.randoms(use_true_random=False))
def test_column_matching_equals_trying_all_permutations(pair, rng):
    gold, answer = pair
    assert same_results(gold, answer, ordered=False) == by_permutations(gold, answer, ordered=False)
    if gold:
        order = rng.sample(range(len(gold[0])), len(gold[0]))
        moved = rng.sample([tuple(row[i] for i in order) for row in gold], len(gold))
        assert same_results(gold, moved, ordered=False) is True


@pytest.mark.parametrize("width", [9, 12])
def test_interchangeable_columns_are_told_apart_without_trying_all_orders(width):
    unit = [tuple(int(i == j) for j in range(width)) for i in range(width)]
    cycle = [tuple(int(j in (i, (i + 1) % width)) for j in range(width)) for i in range(width)]
    half = width // 2
    two = [
        tuple(
            int(j in (i, (i + 1) % half if i < half else half + (i + 1 - half) % (width - half))) for j in range(width)
        )
        for i in range(width)
    ]
    even = [bits for bits in itertools.product((0, 1), repeat=width) if sum(bits) % 2 == 0]
    odd = [bits for bits in itertools.product((0, 1), repeat=width) if sum(bits) % 2]
    state = random.getstate()
    assert same_results(unit, unit[::-1], ordered=False) is True
    assert same_results(cycle, [row[::-1] for row in cycle], ordered=False) is True
    assert same_results(cycle, two, ordered=False) is False  # one ring against two: refinement alone sees no difference
    assert same_results(even, odd, ordered=False) is False
    assert random.getstate() == state


def test_a_result_beyond_the_caps_equals_nothing(root):
    sql = "SELECT a.id, b.id FROM t a, t b"
    for caps in ({"max_rows": 35}, {"max_cells": 71}):
        with SqlVerifier(root, **caps) as verifier:
            assert verifier.verify("club", "SELECT 1", fenced(sql)).outcome == "too_large"
            assert verifier.verify("club", sql, fenced(sql)).outcome == "infra_error"
    with SqlVerifier(root, max_rows=36, max_cells=72) as verifier:
        assert verifier.verify("club", sql, fenced(sql)).outcome == "correct"


def test_the_budget_of_operations_repeats_exactly(root):
    counts = [
        ENDLESS.replace(" FROM r)", f" FROM r LIMIT {n})") + "SELECT count(*) FROM r"
        for n in range(10_000, 60_000, 2_000)
    ]
    ends = []
    for _ in range(3):
        with SqlVerifier(root, max_ops=200_000) as verifier:
            verdicts = verifier.verify_many([("club", "SELECT 1", fenced(sql)) for sql in counts])
            ends.append([verdict.outcome for verdict in verdicts])
    assert ends[0] == ends[1] == ends[2]
    assert set(ends[0]) == {"wrong", "timeout"}


def test_equal_items_run_once(root):
    with SqlVerifier(root) as verifier:
        items = [("club", "SELECT id FROM t", fenced(f"SELECT {i % 5} FROM t")) for i in range(1_000)]
        assert len(verifier.verify_many(items)) == 1_000
        verifier.verify_many(items[:100])
        assert verifier.executed == 5


def test_the_least_recently_used_verdicts_are_dropped(root):
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


def test_a_database_damaged_cut_short_empty_or_a_folder(tmp_path):
    path = make_database(tmp_path, "damaged", "CREATE TABLE t (a); CREATE TABLE u (a); INSERT INTO t VALUES (1);")
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    path = make_database(tmp_path, "short", "CREATE TABLE t (a); INSERT INTO t SELECT hex(zeroblob(60000));")
    path.write_bytes(path.read_bytes()[:9_000])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "none.sqlite").touch()
    (tmp_path / "folder" / "folder.sqlite").mkdir(parents=True)
    with SqlVerifier(tmp_path) as verifier:
        for name in ("damaged", "short"):
            verdict = verifier.verify(name, "SELECT a FROM t", fenced("SELECT 1"))
            assert verdict.outcome == "infra_error" and "malformed" in verdict.detail
        assert verifier.verify("none", "SELECT 1", fenced("SELECT 1")).outcome == "correct"  # a database without tables
        assert verifier.verify("none", "SELECT a FROM t", fenced("SELECT 1")).outcome == "infra_error"
        with pytest.raises(OSError, match=r"folder\.sqlite"):
            verifier.verify("folder", "SELECT 1", fenced("SELECT 1"))


def test_many_open_databases_and_large_golds_leave_the_limits_as_they_are(tmp_path):
    """What a worker has checked before must not decide about the next answer."""
    for i in range(6):
        make_database(tmp_path, f"d{i}", "CREATE TABLE t (a); INSERT INTO t SELECT hex(zeroblob(900000));")
    numbers = ENDLESS + "SELECT x FROM r LIMIT 30"
    large = f"SELECT a || x FROM t, ({numbers})"  # 54 MB
    with SqlVerifier(tmp_path) as verifier:
        items = [(f"d{i % 6}", f"{large} -- {i}", fenced("SELECT 1")) for i in range(30)]
        assert {verdict.outcome for verdict in verifier.verify_many(items)} == {"wrong"}
        assert verifier.verify("d0", large, fenced(large)).outcome == "correct"
