"""The gold check: what fails is named and never becomes a reward; what is odd is listed."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from data_files import COUNT, SCHEMA, bird, official, spider, write
from databases import make_database
from hypothesis import given, settings
from hypothesis import strategies as st

from dphlib.cli import main as cli
from dphlib.data.check import FailingGoldsError, build, check
from dphlib.data.limit_ties import limit_probes, parse_sql
from dphlib.data.load import find, read
from dphlib.data.sets import SUITES

pytestmark = pytest.mark.slow

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")


@pytest.fixture
def root(tmp_path):
    return official(tmp_path / "data")


def checked(suite, folder, **options):
    source = find(suite, data_dir=folder)
    return check(read(source), source, **options)


# --- SQL ---

ROWS = {
    "sound": COUNT,
    "syntax": "SELEC 1",
    "column": "SELECT absent FROM singer",
    "writes": "DELETE FROM singer",
    "endless": "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
    "too many rows": "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 2000) SELECT x FROM r",
    "chance": "SELECT random()",
    "comment": "-- nothing",
    "empty": "SELECT name FROM singer WHERE age > 90",
    "tie": "SELECT name FROM singer ORDER BY age DESC LIMIT 1",
    "no tie": "SELECT name FROM singer ORDER BY age LIMIT 1",
    "time": "SELECT count(*) FROM singer WHERE date('now') > '2000-01-01'",
    "limit by query": "SELECT name FROM singer ORDER BY age LIMIT (SELECT 1)",
}


LIMITS = {"max_ops": 300_000, "max_rows": 1000}


@pytest.fixture
def odd(root):
    """BIRD dev with one row of each kind, named by its kind."""
    rows = [bird(f"{kind}?", sql, question_id=kind) for kind, sql in ROWS.items()]
    write(root / "bird/dev_20240627/dev.json", rows)
    return root


def test_every_kind_of_gold_is_found(odd):
    found = checked("bird_dev", odd, limits=LIMITS)
    reasons = {name: why.partition(":")[0] for name, why in found.failing.items()}
    assert reasons == {
        "syntax": "infra_error",
        "column": "infra_error",
        "writes": "infra_error",
        "endless": "infra_error",
        "too many rows": "infra_error",
        "chance": "not the same result a second time (1 rows)",
        "comment": "no_answer",
    }
    assert "gold is timeout" in found.failing["endless"] and "gold is forbidden" in found.failing["writes"]
    assert "gold is too_large" in found.failing["too many rows"] and "no such column" in found.failing["column"]
    assert found.empty == ["empty"] and found.ties == ["tie"] and found.changing == ["time"]
    assert found.unprobed == ["limit by query"] and found.problems == len(ROWS)
    assert not found.missing and not found.unread


def test_a_set_with_failing_golds_is_refused_or_built_without_them(odd):
    with pytest.raises(FailingGoldsError, match=r"bird_dev: 7 of 13 golds fail \(syntax, column, .*drop_failing=True"):
        build(find("bird", "dev", data_dir=odd), limits=LIMITS)
    problems, found = build(find("bird", "dev", data_dir=odd), drop_failing=True, limits=LIMITS)
    kept = ["sound", "tie", "no tie", "time", "limit by query"]
    assert [problem.id for problem in problems] == kept
    assert len(found.failing) == 7 and found.empty == ["empty"]
    assert all("CREATE TABLE singer" in problem.prompt for problem in problems)
    problems, _ = build(find("bird", "dev", data_dir=odd), drop_failing=True, keep_empty=True, limits=LIMITS)
    assert [problem.id for problem in problems] == [*kept[:1], "empty", *kept[1:]]


def test_a_set_of_which_nothing_is_left_is_refused(root):
    write(root / "bird/dev_20240627/dev.json", [bird(sql="SELECT name FROM singer WHERE 0")])
    with pytest.raises(ValueError, match=r"no problem is left of 1: 0 golds fail, 1 results are empty"):
        build(find("bird", "dev", data_dir=root))
    assert len(build(find("bird", "dev", data_dir=root), keep_empty=True)[0]) == 1


def test_missing_and_unreadable_databases_fail_with_their_reason(root):
    write(root / "spider/dev.json", [spider(db_id=db_id) for db_id in ("club", "gone", "text", "wal", "gone")])
    (root / "spider/database/text").mkdir()
    (root / "spider/database/text/text.sqlite").write_text("version https://git-lfs.github.com/spec/v1")
    make_database(root / "spider/database", "wal", SCHEMA + "PRAGMA journal_mode = WAL;")
    found = checked("spider_dev", root)
    assert found.missing == {"gone": 2} and list(found.failing) == ["1", "2", "3", "4"]
    assert "is not an SQLite database" in found.failing["2"] and "WAL" in found.failing["3"]
    with pytest.raises(
        FailingGoldsError, match=r"1 databases of 2 problems are not there: gone.*2 of 5 golds fail \(2, 3"
    ):
        build(find("spider", "dev", data_dir=root))
    assert [p.id for p in build(find("spider", "dev", data_dir=root), drop_failing=True)[0]] == ["0"]


def test_questions_that_stand_twice_are_grouped_by_database(root):
    make_database(root / "spider/database", "other", SCHEMA)
    rows = [spider(), spider("How many singers  are there?"), spider(db_id="other"), spider("Names?")]
    write(root / "spider/dev.json", [*rows, spider("Names?", "SELECT name FROM singer")])
    found = checked("spider_dev", root)
    assert found.duplicates == [["0", "1"], ["3", "4"]] and found.conflicting == [["3", "4"]]


# --- Mathematics ---


def test_answers_that_strict_cannot_read_fail(root):
    answers = ["\\frac{1}{2}", "\\frac{1}{2", "no real solution", "}{", "The area is $5$, so $x=2$"]
    rows = [{"problem": f"{n}?", "answer": answer, "unique_id": str(n)} for n, answer in enumerate(answers)]
    write(root / "math500/test.jsonl", rows)
    found = checked("math500", root)
    assert set(found.failing) == {"1", "3"} and found.compat_only == ["1"] and found.text_only == ["4"]
    with pytest.raises(FailingGoldsError, match=r"math500: 2 of 5 golds fail \(1, 3\)"):
        build(find("math500", data_dir=root))
    assert [p.id for p in build(find("math500", data_dir=root), drop_failing=True)[0]] == ["0", "2"]


# --- Ties ---

# Each with the sort keys of every row, in order, by hand.
CLAUSES = [
    ("SELECT a FROM t ORDER BY b", "SELECT b FROM t ORDER BY b"),
    ("SELECT a, b AS k FROM t ORDER BY k DESC", "SELECT b FROM t ORDER BY b DESC"),
    ("SELECT a FROM t ORDER BY b DESC, 1", "SELECT b, a FROM t ORDER BY b DESC, a"),
    (
        "SELECT a, count(*) FROM t GROUP BY a ORDER BY count(*) DESC",
        "SELECT count(*) FROM t GROUP BY a ORDER BY 1 DESC",
    ),
    ("SELECT a, count(*) AS n FROM t GROUP BY a ORDER BY n", "SELECT count(*) FROM t GROUP BY a ORDER BY 1"),
    ("SELECT DISTINCT b FROM t ORDER BY b", "SELECT DISTINCT b FROM t ORDER BY b"),
    ("SELECT a FROM t UNION SELECT b FROM t ORDER BY 1", "SELECT a k FROM t UNION SELECT b FROM t ORDER BY k"),
    ("SELECT a FROM t UNION ALL SELECT b FROM t ORDER BY a", "SELECT a k FROM t UNION ALL SELECT b FROM t ORDER BY k"),
    ("WITH c AS (SELECT a + b AS s FROM t) SELECT s FROM c ORDER BY s", "SELECT a + b FROM t ORDER BY 1"),
    ("SELECT t.`a` FROM t WHERE b > 0 ORDER BY CAST(t.`b` AS REAL) / 2", "SELECT b FROM t WHERE b > 0 ORDER BY b"),
]
ROW = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(st.sampled_from(CLAUSES), st.lists(ROW, max_size=7), st.integers(1, 5), st.integers(0, 2))
@settings(max_examples=150)
def test_a_tie_at_the_cut_is_found_where_the_keys_say_so(clauses, rows, limit, offset):
    clause, all_keys = clauses
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
    keys = connection.execute(all_keys).fetchall()
    cut = limit + offset
    tied = cut < len(keys) and keys[cut - 1] == keys[cut]
    probes, without = limit_probes(parse_sql(f"{clause} LIMIT {limit} OFFSET {offset}"))
    assert without == 0 and len(probes) == 1
    last, following = (connection.execute(sql).fetchall() for sql in (probes[0].last, probes[0].next))
    assert (last == following != []) == tied


@pytest.mark.parametrize(
    ("sql", "probes", "without"),
    [
        ("SELECT a FROM t LIMIT 1", 0, 0),
        ("SELECT a FROM t ORDER BY a", 0, 0),
        ("SELECT a FROM t WHERE a = (SELECT b FROM t ORDER BY b LIMIT 1) ORDER BY a LIMIT 2", 2, 0),
        ("SELECT a FROM t ORDER BY a LIMIT 0", 0, 1),
        ("SELECT a FROM t ORDER BY 9 LIMIT 1", 0, 1),
        ("SELECT DISTINCT a FROM t ORDER BY b LIMIT 2", 0, 1),
        ("SELECT DISTINCT u.a FROM t AS u ORDER BY a LIMIT 2", 1, 0),
        ("SELECT a AS k FROM t ORDER BY k + 1 LIMIT 1", 0, 1),
        ("SELECT a FROM t ORDER BY a LIMIT 2, 3", 1, 0),
    ],
)
def test_what_is_probed(sql, probes, without):
    found, left = limit_probes(parse_sql(sql))
    assert (len(found), left) == (probes, without)


# --- The command ---


def test_dph_data_check_reports_all_that_the_folder_holds(root, tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["data", "check", "--data-dir", str(root), "--report", str(report)]
    assert cli.main(arguments) == 0
    sets = json.loads(report.read_text())["sets"]
    assert len(sets) == len(SUITES) and not any(one["failing"] for one in sets)
    assert "bird_mini_dev" in capsys.readouterr().out


def test_dph_data_check_fails_on_a_failing_gold_and_names_it(root, tmp_path, capsys):
    report = tmp_path / "report.json"
    rows = [bird("?", ROWS[kind], question_id=kind) for kind in ("syntax", "tie", "tie")]
    write(root / "bird/dev_20240627/dev.json", rows)
    arguments = ["data", "check", "--data-dir", str(root), "--sets", "bird_dev", "aime24", "--report", str(report)]
    assert cli.main(arguments) == 1
    out, err = capsys.readouterr()
    assert "dev.json; revision: unknown (dev.json)" in err
    assert "bird_dev: ties: ids tie" in out and "bird_dev: repeated: ids tie" in out
    assert "fail, infra_error: gold is invalid" in out
    sets = {one["suite"]: one for one in json.loads(report.read_text())["sets"]}
    assert sets["bird_dev"]["revision"] == "unknown (dev.json)" and sets["bird_dev"]["problems"] == 2
    assert list(sets) == ["bird_dev", "aime24"] and "syntax" in sets["bird_dev"]["failing"]


def test_a_file_that_cannot_be_read_fails_the_check_but_not_the_others(root, tmp_path, capsys):
    (root / "aime24/test.jsonl").write_text("{")
    report = tmp_path / "report.json"
    arguments = ["data", "check", "--data-dir", str(root), "--sets", "aime24", "amc23", "--report", str(report)]
    assert cli.main(arguments) == 1
    found = json.loads(report.read_text())
    assert "aime24/test.jsonl:1: not JSON" in found["errors"]["aime24"] and found["sets"][0]["suite"] == "amc23"
    assert "not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data-dir", "nowhere"], "no folder nowhere"),
        (["--data-dir", "."], ". holds none of the data sets; `dph data list` says where each belongs"),
        (["--data-dir", ".", "--sets", "gsm8k"], "gsm8k_train: . has no gsm8k/train.jsonl"),
        (["--data-dir", ".", "--sets", "nothing"], "unknown data set 'nothing'"),
    ],
)
def test_what_a_user_can_mend_is_one_line(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "check", *arguments]) == 1
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1


# --- The real files ---


@needs_shared
def test_real_spider_golds_hold_where_there_is_a_database(tmp_path):
    (tmp_path / "spider").mkdir()
    for name in ("dev.json", "tables.json", "database"):
        (tmp_path / "spider" / name).symlink_to(SHARED / "spider" / name)
    found = checked("spider_dev", tmp_path, workers=2)
    there = {path.name for path in (SHARED / "spider/database").iterdir()}
    gone = [row["db_id"] for row in json.loads((SHARED / "spider/dev.json").read_text()) if row["db_id"] not in there]
    assert sum(found.missing.values()) == len(gone) == len(found.failing) and set(found.missing) == set(gone)
    assert not found.unread and not found.unprobed and not found.changing
    assert found.empty and found.ties
