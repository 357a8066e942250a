"""Throughput of the SQL verifier, alone and beside a reference as evaluators are commonly written.

    python tests/benchmarks/sql_verifier.py [--data ../shared/data] [--queries 20000] [--repeats 3] [--json out.json]

The reference opens a connection for each pair, runs gold and answer in a thread (or a forked process) of its own
and waits for it with a time limit. BIRD's evaluator does so by `func_timeout`, which is measured too where it is
installed (pip install func_timeout). Every answer is different from every other, so that ours runs each one. All is
measured in one run, in turns; the best of `--repeats` counts. Besides the wall clock, the seconds of the processor
(parent and workers) show what a busy machine hides.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dphlib.runtime.files import write_json  # noqa: E402
from dphlib.runtime.machine import machine  # noqa: E402
from dphlib.verify.sql import SqlVerifier  # noqa: E402

Item = tuple[str, str, str]
TIMEOUT_S = 30.0
MODES = ("bird", "spider", "paper")
SCRIPT = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, country TEXT, age INTEGER);
WITH RECURSIVE r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r LIMIT 100)
INSERT INTO singer SELECT i, 'name ' || i, 'country ' || (i % 7), 20 + i % 40 FROM r;
CREATE TABLE concert (id INTEGER PRIMARY KEY, singer_id INTEGER REFERENCES singer (id), year INTEGER);
INSERT INTO concert SELECT id, 1 + (id * 7) % 100, 2010 + id % 9 FROM singer;
"""
GOLDS = [
    "SELECT count(*) FROM singer",
    "SELECT name FROM singer WHERE age > 50",
    "SELECT country, count(*) FROM singer GROUP BY country",
    "SELECT s.name FROM singer s JOIN concert c ON c.singer_id = s.id WHERE c.year = 2014",
]


def fenced(sql: str) -> str:
    return f"```sql\n{sql}\n```"


def small_items(count: int, mark: int) -> list[Item]:
    """Small queries, every answer's text different from every other's."""
    return [("small", GOLDS[i % 4], f"{GOLDS[i % 4]} -- {mark} {i}") for i in range(count)]


def group_items(count: int, mark: int) -> list[Item]:
    """The same in a trainer's groups: 8 answers to a problem, 4.6 of them different on average.

    That share is near the base model's on the CPU world, in and cross domain.
    """
    items = []
    for i in range(count):
        problem, sample = divmod(i, 8)
        different = 5 if problem % 5 in (0, 2, 4) else 4
        sql = GOLDS[problem % 4]
        items.append(("small", sql, f"{sql} -- {mark} {problem} {sample % different}"))
    return items


def make_small(root: Path) -> None:
    path = root / "small" / "small.sqlite"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.executescript(SCRIPT)
    connection.close()


def processor_s(pids: Sequence[int]) -> float:
    """Seconds of processor of this process and of `pids`."""
    total = time.process_time()
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def ours(root: Path, items: Sequence[Item], *, mode: str = "bird", workers: int = 1, **settings: Any) -> dict[str, Any]:
    """Time of one batch; the workers have started, nothing is remembered."""
    with SqlVerifier(root, mode, workers=workers, **settings) as verifier:
        db_id = items[0][0]
        verifier.verify_many([(db_id, "SELECT 1", fenced(f"SELECT 1 -- {i}")) for i in range(2 * workers)])
        before, start = processor_s(verifier.pids()), time.perf_counter()
        verdicts = verifier.verify_many([(db_id, gold, fenced(sql)) for db_id, gold, sql in items])
        wall_s = time.perf_counter() - start
        used_s = processor_s(verifier.pids()) - before
    return {"wall_s": wall_s, "processor_s": used_s, "correct": [verdict.outcome == "correct" for verdict in verdicts]}


def check_plainly(path: str, gold: str, sql: str) -> bool:
    connection = sqlite3.connect(path)
    try:
        cursor = connection.cursor()
        cursor.execute(sql)
        answer = cursor.fetchall()
        cursor.execute(gold)
        return set(answer) == set(cursor.fetchall())
    except sqlite3.Error:
        return False
    finally:
        connection.close()


def in_func_timeout(path: str, gold: str, sql: str) -> bool:
    """As BIRD's evaluator calls it."""
    from func_timeout import FunctionTimedOut, func_timeout

    try:
        return func_timeout(TIMEOUT_S, check_plainly, args=(path, gold, sql))
    except FunctionTimedOut:
        return False


def in_thread(path: str, gold: str, sql: str) -> bool:
    """One thread per query, the least that can wait with a limit."""
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(check_plainly(path, gold, sql)), daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return bool(found and found[0])


def in_process(path: str, gold: str, sql: str) -> bool:
    """One forked process per query, which can also be ended."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=lambda: theirs.send(check_plainly(path, gold, sql)), daemon=True)
    process.start()
    theirs.close()
    found = mine.poll(TIMEOUT_S) and mine.recv()
    process.kill()
    process.join()
    return bool(found)


def reference(root: Path, items: Sequence[Item], check: Callable[[str, str, str], bool]) -> dict[str, Any]:
    before, start = sum(os.times()[:4]), time.perf_counter()  # this process and the children it waited for
    correct = [check(f"{root}/{db_id}/{db_id}.sqlite", gold, sql) for db_id, gold, sql in items]
    wall_s = time.perf_counter() - start
    return {"wall_s": wall_s, "processor_s": sum(os.times()[:4]) - before, "correct": correct}


def spider_items(data: Path, mark: int = 0) -> list[Item]:
    """The dev golds that have a database, as answers to themselves, no two texts alike."""
    rows = json.loads((data / "spider" / "dev.json").read_text())
    root = data / "spider" / "database"
    found = [(row["db_id"], row["query"]) for row in rows if (root / row["db_id"]).exists()]
    random.Random(mark).shuffle(found)  # so that the first ones are like the rest
    return [(db_id, gold, f"{gold} -- {mark} {i}") for i, (db_id, gold) in enumerate(found)]


def side_by_side(
    root: Path, items_of: Callable[[int], list[Item]], repeats: int, few: int
) -> dict[str, dict[str, float]]:
    """Queries per second of ours and of the references on the same pairs, in turns; the processes run only `few`."""
    best: dict[str, dict[str, float]] = {}
    for turn in range(repeats):
        items = items_of(turn)
        runs = {
            "ours, 1 worker": ours(root, items),
            "ours, 2 workers": ours(root, items, workers=2),
            "thread per query": reference(root, items[: 5 * few], in_thread),
            "process per query": reference(root, items[:few], in_process),
        }
        if find_spec("func_timeout"):
            runs["func_timeout per query"] = reference(root, items[: 5 * few], in_func_timeout)
        for name, run in runs.items():
            count = len(run["correct"])
            if run["correct"] != runs["ours, 1 worker"]["correct"][:count]:
                raise SystemExit(f"{name} decides otherwise than ours")
            rates = best.setdefault(name, {"wall": 0.0, "processor": 0.0})
            for clock in rates:
                rates[clock] = max(rates[clock], count / run[f"{clock}_s"])
    return best


def main() -> None:
    """Measures, prints, and writes JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--queries", type=int, default=20_000, help="small queries per turn")
    parser.add_argument("--few", type=int, default=200, help="of them, those that the processes run; threads 5 x")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        make_small(scratch)
        spider = arguments.data / "spider" / "database"
        loads = {
            "small queries": (scratch, lambda turn: small_items(arguments.queries, turn)),
            "small queries in groups of 8": (scratch, lambda turn: group_items(arguments.queries, turn)),
            "Spider golds as answers": (spider, lambda turn: spider_items(arguments.data, turn)),
        }
        for title, (root, items_of) in loads.items():
            if not root.exists():
                print(f"\nno databases in {root}: left out")
                continue
            found[title] = side_by_side(root, items_of, arguments.repeats, arguments.few)
            print(f"\n{title + ', per second':44} {'wall':>10} {'processor':>10}")
            for name, rates in found[title].items():
                print(f"  {name:42} {rates['wall']:10.0f} {rates['processor']:10.0f}")
    if spider.exists():
        golds = spider_items(arguments.data)
        found["golds_s"] = {mode: ours(spider, golds, mode=mode, workers=2)["wall_s"] for mode in MODES}
        print(f"\n{len(golds)} Spider golds, 2 workers, all modes: {sum(found['golds_s'].values()):.2f} s")
    if arguments.json:
        write_json(arguments.json, found)


if __name__ == "__main__":
    main()
