"""The SQL verifier under answers that mean harm: statements that write, bombs, junk."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import random
import sqlite3
import threading
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from databases import BOMBS, ENDLESS, HOSTILE, fenced

from dphlib.types import OUTCOMES
from dphlib.verify.sql import MEMORY_MIB, SqlVerifier

pytestmark = pytest.mark.slow

PROC = Path("/proc")
GOLD = "SELECT id, name FROM t"


def state(root: Path) -> tuple:
    """Every file below `root` with its hash, and what statements name in the workers' directory."""
    files = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}
    return files, [name for name in ("other.sqlite", "copy.sqlite") if Path("/", name).exists()]


def test_hostile_statements_are_forbidden_and_leave_no_trace(root):
    before = state(root)
    with SqlVerifier(root) as verifier:
        for sql in HOSTILE:
            assert (verifier.verify("club", "SELECT * FROM t", fenced(sql)).outcome, sql) == ("forbidden", sql)
            # The next gold sees the tables as they were.
            gold, answer = f"SELECT count(*), 6 FROM t -- {sql[:9]}", fenced("SELECT 6, 6")
            assert verifier.verify("club", gold, answer).outcome == "correct"
    assert state(root) == before


def test_a_gold_that_writes_is_nobodys_zero_and_writes_nothing(root):
    before = state(root)
    with SqlVerifier(root) as verifier:
        for sql in HOSTILE:
            assert verifier.verify("club", sql, fenced(sql)).outcome == "infra_error", sql
    assert state(root) == before


def test_bombs_end_by_their_budgets_and_leave_the_others_untouched(root):
    """None of them needs the clock, so that a slow machine decides as a fast one does."""
    with SqlVerifier(root, max_ops=10_000_000) as verifier:
        for name, sql in BOMBS.items():
            verdict = verifier.verify("club", "SELECT 1", fenced(sql))
            assert verdict.outcome in ("timeout", "too_large", "invalid"), name
            assert "killed" not in verdict.detail, name
            assert verifier.verify("club", "SELECT 1", fenced(f"SELECT 1 -- {name}")).outcome == "correct"
            peaks = [(PROC / str(pid) / "status").read_text() for pid in verifier.pids() if PROC.exists()]
            assert all(int(peak.split("VmHWM:")[1].split()[0]) < 800 << 10 for peak in peaks), name
        executed = verifier.executed
        assert verifier.verify("club", "SELECT 1", fenced(BOMBS["instr"])).reward == 0.0
        assert verifier.executed == executed  # a bomb goes off once


def test_the_processor_time_ends_what_no_budget_does(root, monkeypatch):
    monkeypatch.setattr("dphlib.verify.pool.PATIENCE", 10**6)
    endless = ENDLESS + "SELECT count(*) FROM r"
    with SqlVerifier(root, timeout_s=0.3, max_ops=10**15) as verifier:
        assert verifier.verify("club", "SELECT 1", fenced(endless)).outcome == "timeout"
        verdicts = verifier.verify_many([("club", endless, fenced(f"SELECT {i}")) for i in range(100)])
        assert {(verdict.outcome, verdict.reward) for verdict in verdicts} == {("infra_error", None)}
        assert "gold" in verdicts[0].detail and endless in verdicts[0].detail


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT printf('%05.1f|%-6s|%,d|%.3c|%c', 3.14159, name, 1234567, 'ab', name) FROM t",
        "SELECT format('%.*c', id, 'x'), format('%*d', id, age), format(NULL), printf('%s', x'00ff') FROM t",
        "SELECT replace(name, 'n', 'm'), trim(name, 'a'), instr(name, 'n') FROM t WHERE name LIKE '%n%'",
        "SELECT printf('%.300f', 1.5), printf(), printf('%d%')",
    ],
)
def test_the_functions_with_shorter_limits_give_what_sqlite_gives(root, sql):
    rows = sqlite3.connect(root / "club" / "club.sqlite").execute(sql).fetchall()
    cells = [
        [f"'{cell}'" if isinstance(cell, str) else "NULL" if cell is None else str(cell) for cell in row]
        for row in rows
    ]
    gold = "VALUES " + ", ".join(f"({', '.join(row)})" for row in cells)
    with SqlVerifier(root) as verifier:
        assert verifier.verify("club", gold, fenced(sql)).outcome == "correct"


def junk(kind: int, i: int) -> tuple[str, set[str]]:
    """An answer made of rubbish, unlike any other, and what it may come to."""
    rng = random.Random(1000 * kind + i)
    noise = "".join(chr(rng.choice([0, 39, 59, 96, 0xD800, 0xFFFF, rng.randrange(32, 0x2FFF)])) for _ in range(60))
    return [
        (noise + str(i), {"no_answer"}),
        (f"```sql SELECT 1 -- {i}", {"no_answer"}),
        (f"```sql\n-- {i}\n/* SELECT 1 */;\n```", {"no_answer"}),
        (fenced(f"SELECT id FROM nothing_{i}"), {"invalid"}),
        (fenced(f"SELECT '{noise.replace(chr(39), '')}{chr(0)}', {i}"), {"invalid", "no_answer"}),
        (fenced(f"SELECT {i}, {'(' * 600}1{')' * 600}"), {"invalid", "wrong"}),  # as SQLite limits it
        (fenced(f"SELECT {i}, data, hex(data), typeof(data), upper(data) FROM t"), {"wrong"}),
        (fenced(f"SELECT randomblob({i}), abs(random()) FROM t"), {"wrong"}),
    ][kind]


def mixed(count: int) -> list[tuple[str, set[str]]]:
    """Answers to `GOLD`, all different, each with the outcomes that it may have."""
    made: list[tuple[str, set[str]]] = []
    for sql in BOMBS.values():
        made += [(fenced(f"{sql} -- {i}"), {"timeout", "too_large", "invalid", "wrong"}) for i in range(2)]
    made += [(fenced(f"SELECT id, name FROM t WHERE '{'x' * 200_000}' != '{i}'"), {"invalid"}) for i in range(20)]
    made += [(f"{'y' * 200_000} {i} {fenced('SELECT id, name FROM t')}", {"correct"}) for i in range(20)]
    for i in range(count - len(made)):
        turn = i % 12
        if turn < 2:
            made.append((fenced(f"SELECT id, name FROM t WHERE id < {i} + 10"), {"correct"}))
        elif turn < 4:
            made.append((fenced(f"SELECT id, name FROM t WHERE id > {i % 3} - 1 -- {i}"), {"correct", "wrong"}))
        elif turn < 8:
            sql = HOSTILE[(i // 12 + turn) % len(HOSTILE)]
            made.append((fenced(f"{sql} -- {i}"), {"forbidden"}))
        else:
            made.append(junk((i // 12 + turn) % 8, i))
    random.Random(7).shuffle(made)
    return made


def resident_mib() -> float:
    return int((PROC / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def descriptors_open() -> dict[str, str]:
    """Descriptor -> what it is of; without event counters, which ZeroMQ's threads of earlier tests open and close."""
    found = {}
    for descriptor in (PROC / "self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found[descriptor.name] = os.readlink(descriptor)
    return {descriptor: name for descriptor, name in found.items() if name != "anon_inode:[eventfd]"}


@pytest.mark.skipif(not PROC.exists(), reason="needs /proc to count what is left over")
def test_ten_thousand_mixed_hostile_answers_in_one_batch(root):
    """No hang, no leak, no changed database; the same outcomes one way and the other."""
    answers = mixed(10_000)
    gc.collect()  # what other tests left open is not closed in between
    before = state(root)
    descriptors = descriptors_open()
    threads = threading.active_count()
    resident = 0.0
    results = []
    for workers, some in ((3, answers), (1, answers[::-1])):
        with SqlVerifier(root, max_ops=200_000, workers=workers) as verifier:
            verifier.verify("club", GOLD, fenced("SELECT 1"))
            resident = resident or resident_mib()
            verdicts = verifier.verify_many([("club", GOLD, text) for text, _ in some])
            pids = verifier.pids()
            assert verifier.verify("club", GOLD, fenced("SELECT id, name FROM t WHERE 1")).outcome == "correct"
        assert not any((PROC / str(pid)).exists() for pid in pids)
        odd = [(text[:80], v) for (text, may), v in zip(some, verdicts, strict=True) if v.outcome not in may]
        assert odd == []
        assert all(json.loads(json.dumps(asdict(v)))["outcome"] in OUTCOMES for v in verdicts)
        results.append({text: verdict.outcome for (text, _), verdict in zip(some, verdicts, strict=True)})
    changed = [text[:80] for text in results[0] if results[0][text] != results[1][text]]
    assert changed == []
    counts = Counter(results[0].values())
    assert len(results[0]) == 10_000 and min(counts[o] for o in ("correct", "wrong", "forbidden", "invalid")) > 300
    assert state(root) == before
    assert {fd: name for fd, name in descriptors_open().items() if fd not in descriptors} == {}
    assert threading.active_count() <= threads
    assert resident_mib() - resident < 200


def test_answers_of_200_kb(root):
    long = "SELECT 1 -- " + "x" * 200_000
    texts = [fenced(long), "x" * 200_000 + fenced("SELECT 1"), fenced("SELECT 1") * 5000, "```sql " * 30_000]
    with SqlVerifier(root) as verifier:
        outcomes = [verdict.outcome for verdict in verifier.verify_many([("club", "SELECT 1", t) for t in texts])]
        assert outcomes == ["invalid", "correct", "correct", "no_answer"]
        assert verifier.verify("club", long, fenced("SELECT 1")).outcome == "infra_error"


@pytest.mark.parametrize("mode", ["bird", "spider", "paper"])
def test_every_kind_of_value_is_judged_and_its_verdict_can_be_written(root, mode):
    values = ["NULL", "x''", "x'00ff'", "CAST(x'ff00fe' AS TEXT)", "9e999", "-9e999", "9007199254740993"]
    values += ["-9223372036854775808", "0.1 + 0.2", "'\u2028'", "''", "'\U0001f600'", "char(0)", "char(55296)"]
    items = [("club", f"SELECT {a}, 1", fenced(f"SELECT {b}, 1")) for a in values for b in values]
    with SqlVerifier(root, mode) as verifier:
        verdicts = iter(verifier.verify_many(items))
    for a in values:
        for b in values:
            verdict = next(verdicts)
            assert json.loads(json.dumps(asdict(verdict))) == asdict(verdict)
            assert verdict.outcome in ("correct", "wrong"), (a, b, verdict)
            if a == b:
                assert verdict.outcome == "correct", a


@pytest.mark.skipif(not PROC.exists(), reason="needs /proc to read a process's limits")
def test_workers_have_their_limits(root):
    with SqlVerifier(root) as verifier:
        verifier.verify("club", "SELECT 1", fenced("SELECT 1"))
        (pid,) = verifier.pids()
        lines = (PROC / str(pid) / "limits").read_text().splitlines()
    soft = {line[:25].strip(): line[25:].split()[0] for line in lines}
    hard = {line[:25].strip(): line[25:].split()[1] for line in lines}
    assert soft["Max core file size"] == hard["Max core file size"] == "0"
    assert soft["Max file size"] == hard["Max file size"] == "0"
    assert int(hard["Max address space"]) == MEMORY_MIB << 20
