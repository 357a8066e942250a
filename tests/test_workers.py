"""The worker pool: what happens when workers stall, die, or are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from dphlib.types import Verdict
from dphlib.verify.pool import CHUNK_CHARS, Pool, WorkerSpec, _cpu_seconds, _cut

ROOT = Path(__file__).resolve().parent.parent


class Script:
    """A judge that does what gold and answer say, such as "sleep 0.4", "spin" or "die"."""

    def __call__(self, job, phase):
        _, gold, answer = job
        phase("gold")
        self.act(gold)
        phase("answer")
        return "wrong", str(self.act(answer) or answer)

    def act(self, text):
        word, _, rest = text.partition(" ")
        if word == "sleep":
            time.sleep(float(rest))
        elif word == "spin":
            while True:
                pass
        elif word == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif word == "raise":
            raise ArithmeticError(rest)
        elif word == "fill":
            return len(bytearray(int(rest)))
        elif word == "write":
            Path(rest).write_text("x")
        elif word == "modules":
            return " ".join(name for name in ("torch", "transformers", "numpy") if name in sys.modules)
        elif word == "garbage":
            os.write(0, b"\xff\xff\xff\xff garbage")
            time.sleep(5)


def make(**kwargs) -> Pool:
    options = {"timeout_s": 0.6, "memory_mib": 512, **kwargs}
    workers = options.pop("workers", 1)
    return Pool(WorkerSpec("tests.test_workers:Script", {}, **options), workers=workers)


@pytest.fixture
def pool():
    pool = make()
    yield pool
    pool.close()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def gone(pids, within_s: float) -> bool:
    end = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(alive, pids))


def start_s() -> float:
    """Seconds that a worker takes to start just now: little, unless the machine is busy."""
    start = time.monotonic()
    pool = make()
    pool.judge([("", "g", "start")])
    pool.close()
    return time.monotonic() - start


def test_order_duplicates_and_given_verdicts(pool):
    given = Verdict("no_answer")
    jobs = [("", "g", str(i % 7)) for i in range(500)]
    verdicts = pool.judge([given, *jobs])
    assert verdicts[0] is given
    assert [verdict.detail for verdict in verdicts[1:]] == [str(i % 7) for i in range(500)]
    assert pool.executed == 7
    pool.judge(jobs)
    assert pool.executed == 7


@pytest.mark.parametrize(
    ("jobs", "workers", "sizes"),
    [(1, 4, [1]), (100, 2, [50, 50]), (600, 1, [150] * 4), (4096, 1, [256] * 16), (1024, 8, [64] * 16)],
)  # fmt: skip
def test_jobs_are_cut_into_parts_for_the_workers(jobs, workers, sizes):
    numbered = [("", "", str(i)) for i in range(jobs)]
    parts = _cut(numbered, workers)
    assert [job for part in parts for job in part] == numbered and list(map(len, parts)) == sizes


def test_long_jobs_make_short_parts():
    long, longer = ("", "", "x" * (CHUNK_CHARS // 3)), ("", "", "x" * (2 * CHUNK_CHARS))
    assert list(map(len, _cut([long] * 7 + [longer, longer, ("", "", "")], 1))) == [3, 3, 1, 1, 1, 1]


def test_a_stalled_answer_times_out_and_the_others_are_untouched(pool):
    pool.judge([("", "g", "start")])
    start = time.monotonic()
    verdicts = pool.judge([("", "g", answer) for answer in ("a", "spin", "b", "sleep 0.4", "c")])
    assert [verdict.outcome for verdict in verdicts] == ["wrong", "timeout", "wrong", "wrong", "wrong"]
    assert time.monotonic() - start < 0.6 + 0.4 + 1 + 2 * start_s()


def test_waiting_in_the_queue_is_no_time_of_the_query(pool):
    jobs = [("", f"g{i}", f"sleep 0.{i}5") for i in range(5)]  # 1.25 s in all, 0.6 s each at most
    assert {verdict.outcome for verdict in pool.judge(jobs)} == {"wrong"}


def test_gold_and_answer_have_their_own_time(pool):
    assert pool.judge([("", "sleep 0.4", "sleep 0.41")])[0].outcome == "wrong"


def test_a_stalled_gold_is_nobodys_zero_and_costs_its_time_once(pool):
    start = time.monotonic()
    verdicts = pool.judge([("db", "spin gold", str(i)) for i in range(50)])
    assert {verdict.outcome for verdict in verdicts} == {"infra_error"}
    assert "spin gold" in verdicts[0].detail and verdicts[0].reward is None
    assert pool.judge([("db", "spin gold", "later")])[0].outcome == "infra_error"
    assert time.monotonic() - start < 0.6 + 1 + 3 * start_s()


def test_worker_killed_from_outside_is_tried_again(pool):
    pool.judge([("", "g", "start")])
    (pid,) = pool.pids()
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    assert pool.judge([("", "g", "sleep 0.4")])[0].outcome == "wrong"
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGKILL)
    assert gone([pid], 2)
    assert pool.judge([("", "g", "b")])[0].outcome == "wrong"


def test_worker_that_dies_twice_is_infra_error_and_the_others_are_untouched(pool):
    verdicts = pool.judge([("", "g", answer) for answer in ("a", "die", "b", "garbage", "c")])
    assert [v.outcome for v in verdicts] == ["wrong", "infra_error", "wrong", "infra_error", "wrong"]
    assert verdicts[1].reward is None


def test_a_stopped_worker_is_not_the_answers_fault():
    pool = make(timeout_s=1.0)
    pool.judge([("", "g", "start")])
    os.kill(pool.pids()[0], signal.SIGSTOP)
    assert pool.judge([("", "g", "b")])[0].outcome == "wrong"
    pool.close()


def test_an_error_of_the_judge_is_infra_error(pool):
    verdict = pool.judge([("", "g", "raise bad luck")])[0]
    assert verdict.outcome == "infra_error" and "bad luck" in verdict.detail
    assert pool.judge([("", "g", "b")])[0].outcome == "wrong"


def test_limits_on_memory_and_files(pool, tmp_path):
    verdicts = pool.judge([("", "g", f"fill {1 << 30}"), ("", "g", f"write {tmp_path}/x"), ("", "g", "b")])
    assert [verdict.outcome for verdict in verdicts] == ["infra_error", "infra_error", "wrong"]
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0


def test_workers_are_lean_and_start_quickly(pool):
    assert pool.judge([("", "g", "modules x")])[0].detail == "modules x"
    used = _cpu_seconds(pool.pids()[0])  # of the processor, so that a busy machine does not count
    assert used is None or used < 0.5  # far below; the tests' own imports are in it


def test_several_workers_and_threads_give_the_same_verdicts():
    pool = make(workers=2)
    results: dict[int, list[str]] = {}

    def ask(i: int) -> None:
        results[i] = [v.detail for v in pool.judge([("", str(n % 5), f"{i} {n}") for n in range(300)])]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {i: [f"{i} {n}" for n in range(300)] for i in range(4)}
    assert len(pool.pids()) == 2
    pool.close()


def test_close_ends_the_workers_and_says_so_afterwards():
    pool = make(workers=2)
    pool.judge([("", "g", str(n)) for n in range(200)])
    pids = pool.pids()
    pool.close()
    pool.close()
    assert gone(pids, 2)
    with pytest.raises(RuntimeError, match="closed"):
        pool.judge([("", "g", "new")])


def test_a_forgotten_pool_is_cleaned_up():
    pool = make()
    pool.judge([("", "g", "a")])
    pids = pool.pids()
    del pool
    assert gone(pids, 5)


def test_a_worker_that_cannot_start_is_told():
    pool = Pool(WorkerSpec("dphlib.no_such_module:Judge", {}, 1.0, 512))
    with pytest.raises(RuntimeError, match="no_such_module"):
        pool.judge([("", "g", "a")])
    pool.close()


@pytest.mark.parametrize(("workers", "timeout_s", "name"), [(0, 1.0, "workers=0"), (1, 0.0, "timeout_s=0")])
def test_bad_settings_are_named(workers, timeout_s, name):
    with pytest.raises(ValueError, match=name):
        make(workers=workers, timeout_s=timeout_s)


def start_parent(body: str) -> subprocess.Popen:
    code = "from tests.test_workers import make\nimport os, sys, time, threading\npool = make(timeout_s=60.0)\n"
    code += "pool.judge([('', 'g', 'a')])\nprint(*pool.pids(), flush=True)\n" + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("work", ["time.sleep(60)", "pool.judge([('', 'g', 'spin')])"])
def test_workers_die_with_their_parent(work):
    parent = start_parent(work)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids and all(map(alive, pids))
    time.sleep(0.2)
    parent.kill()
    parent.communicate()
    assert gone(pids, 5)


def test_interrupt_stops_the_call_and_the_work():
    parent = start_parent(
        """
        try:
            pool.judge([("", "g", "spin"), *(("", "g", str(n)) for n in range(1000))])
        except KeyboardInterrupt:
            print("interrupted", pool.judge([("", "g", "next")])[0].outcome, flush=True)
        """
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    time.sleep(0.3)
    parent.send_signal(signal.SIGINT)
    start = time.monotonic()
    out, err = parent.communicate(timeout=20)
    assert out.strip() == "interrupted wrong", err
    assert time.monotonic() - start < 5 and gone(pids, 5)


def test_a_forked_copy_has_workers_of_its_own_and_leaves_the_parents_alone(pool):
    pool.judge([("", "g", "a")])
    pids = pool.pids()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            outcome = pool.judge([("", "g", "b")])[0].outcome
            os.write(write, f"{outcome} {pool.executed} {len(pool.pids())} {pool.pids() == pids}".encode())
            pool.close()
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        assert file.read() == "wrong 1 1 False"
    assert pool.pids() == pids and pool.judge([("", "g", "c")])[0].outcome == "wrong"
