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
from waiting import gone, until

from dphlib.types import Verdict
from dphlib.verify import pool as pool_module
from dphlib.verify.pool import Pool, WorkerSpec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


class Script:
    """A checker that does what gold and answer say, such as "use 0.4", "spin" or "die"."""

    def __call__(self, task, phase):
        _, gold, answer = task
        phase("gold")
        self.act(gold)
        phase("answer")
        return "wrong", str(self.act(answer) or answer)

    def act(self, text):
        word, _, rest = text.partition(" ")
        if word == "use":  # so many seconds of the processor
            start = time.process_time()
            while time.process_time() - start < float(rest):
                pass
        elif word == "spin":  # for ever; a folder per turn says that it has begun
            if rest:
                os.mkdir(f"{rest}/{os.getpid()}")
            while True:
                pass
        elif word == "once":  # spins the first time
            if not os.path.exists(rest):
                os.mkdir(rest)
                self.act(f"spin {rest}")
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
            self.act("spin")


def make(*, workers: int = 1, timeout_s: float = 600.0) -> Pool:
    return Pool(WorkerSpec("tests.test_workers:Script", {}, timeout_s, 512), workers=workers)


@pytest.fixture
def pool():
    with_much_time = make()
    yield with_much_time
    with_much_time.close()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(pool_module, "PATIENCE", 10**6)  # however little of the processor it is given
    with_little_time = make(timeout_s=0.5)
    yield with_little_time
    with_little_time.close()


def outcomes(pool: Pool, answers, gold: str = "g") -> list[str]:
    return [verdict.outcome for verdict in pool.verdicts([("", gold, answer) for answer in answers])]


def test_order_duplicates_and_given_verdicts(pool):
    given = Verdict("no_answer")
    tasks = [("", "g", str(i % 7)) for i in range(500)]
    verdicts = pool.verdicts([given, *tasks])
    assert verdicts[0] is given
    assert [verdict.detail for verdict in verdicts[1:]] == [str(i % 7) for i in range(500)]
    assert pool.executed == 7
    pool.verdicts(tasks)
    assert pool.executed == 7


def test_an_answer_that_never_ends_times_out_and_the_others_are_untouched(hasty):
    assert outcomes(hasty, ["a", "spin", "b", "use 0.3", "c"]) == ["wrong", "timeout", "wrong", "wrong", "wrong"]


def test_gold_and_answer_have_their_own_time_and_the_queue_costs_none(hasty):
    tasks = [("", f"use 0.3{i}", "use 0.3") for i in range(3)]
    assert {verdict.outcome for verdict in hasty.verdicts(tasks)} == {"wrong"}


def test_a_gold_that_never_ends_is_nobodys_zero_and_costs_its_time_once(hasty, tmp_path):
    gold = f"spin {tmp_path}"
    verdicts = hasty.verdicts([("db", gold, str(i)) for i in range(50)])
    verdicts += hasty.verdicts([("db", gold, "later")])
    assert {(verdict.outcome, verdict.reward) for verdict in verdicts} == {("infra_error", None)}
    assert gold in verdicts[0].detail
    assert len(list(tmp_path.iterdir())) == 1


def test_workers_killed_in_the_middle_are_replaced_and_no_other_verdict_changes(tmp_path):
    """A task whose worker is killed once gets its verdict; killed each time, none: never a silent zero."""
    answers = [f"answer {i}" for i in range(300)]
    for i in range(3):
        answers[70 * i + 30] = f"once {tmp_path}/{i}"
        (tmp_path / f"always{i}").mkdir()
        answers[70 * i + 60] = f"spin {tmp_path}/always{i}"
    pool = make(workers=2)
    verdicts: list[Verdict] = []
    batch = threading.Thread(target=lambda: verdicts.extend(pool.verdicts([("", "g", a) for a in answers])))
    batch.start()
    killed = set()
    while batch.is_alive():
        for begun in set(tmp_path.glob("*/*")) - killed:
            os.kill(int(begun.name), signal.SIGKILL)
            killed.add(begun)
        time.sleep(0.01)
    pool.close()
    assert len(killed) == 3 + 2 * 3
    for answer, verdict in zip(answers, verdicts, strict=True):
        expected = "infra_error" if answer.startswith("spin") else "wrong"
        assert (verdict.outcome, answer) == (expected, answer)
        assert expected == "infra_error" or verdict.detail == answer


def test_a_worker_killed_between_two_calls_is_replaced(pool):
    pool.verdicts([("", "g", "start")])
    (pid,) = pool.pids()
    os.kill(pid, signal.SIGKILL)
    assert gone([pid]) and outcomes(pool, ["b"]) == ["wrong"]


def test_a_worker_that_dies_twice_is_infra_error_and_the_others_are_untouched(pool):
    verdicts = pool.verdicts([("", "g", answer) for answer in ("a", "die", "b", "garbage", "c")])
    assert [v.outcome for v in verdicts] == ["wrong", "infra_error", "wrong", "infra_error", "wrong"]
    assert verdicts[1].reward is None


def test_a_stopped_worker_is_not_the_answers_fault(monkeypatch):
    monkeypatch.setattr(pool_module, "PATIENCE", 3)
    pool = make(timeout_s=1.0)
    pool.verdicts([("", "g", "start")])
    os.kill(pool.pids()[0], signal.SIGSTOP)
    assert outcomes(pool, ["b"]) == ["wrong"]
    pool.close()


def test_an_error_of_the_checker_is_infra_error(pool):
    verdict = pool.verdicts([("", "g", "raise bad luck")])[0]
    assert verdict.outcome == "infra_error" and "bad luck" in verdict.detail
    assert outcomes(pool, ["b"]) == ["wrong"]


def test_limits_on_memory_and_files(pool, tmp_path):
    assert outcomes(pool, [f"fill {1 << 30}", f"write {tmp_path}/x", "b"]) == ["infra_error", "infra_error", "wrong"]
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size == 0


def test_workers_are_lean(pool):
    assert pool.verdicts([("", "g", "modules x")])[0].detail == "modules x"


def test_close_ends_the_workers_and_says_so_afterwards():
    pool = make(workers=2)
    pool.verdicts([("", "g", str(n)) for n in range(200)])
    pids = pool.pids()
    pool.close()
    pool.close()
    assert gone(pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.verdicts([("", "g", "new")])


def test_a_forgotten_pool_is_cleaned_up():
    pool = make()
    pool.verdicts([("", "g", "a")])
    pids = pool.pids()
    del pool
    assert gone(pids)


def test_the_error_of_a_worker_that_cannot_start_reaches_the_caller():
    pool = Pool(WorkerSpec("dphlib.no_such_module:Checker", {}, 1.0, 512))
    with pytest.raises(RuntimeError, match="no_such_module"):
        pool.verdicts([("", "g", "a")])
    pool.close()


@pytest.mark.parametrize(("workers", "timeout_s", "name"), [(0, 1.0, "workers=0"), (1, 0.0, "timeout_s=0")])
def test_bad_settings_are_named(workers, timeout_s, name):
    with pytest.raises(ValueError, match=name):
        make(workers=workers, timeout_s=timeout_s)


def start_parent(body: str) -> tuple[subprocess.Popen, list[int]]:
    """A process with a pool of its own that goes on with `body`, and its workers."""
    code = "import threading\nfrom tests.test_workers import make\npool = make()\n"
    code += "pool.verdicts([('', 'g', 'a')])\nprint(*pool.pids(), flush=True)\n" + textwrap.dedent(body)
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return parent, [int(pid) for pid in parent.stdout.readline().split()]


@pytest.mark.parametrize("busy", [True, False])
def test_workers_die_with_their_parent(busy, tmp_path):
    work = f"pool.verdicts([('', 'g', 'spin {tmp_path}')])" if busy else "threading.Event().wait()"
    parent, pids = start_parent(work)
    assert pids
    if busy:
        until(lambda: list(tmp_path.iterdir()))
    parent.kill()
    parent.communicate()
    assert gone(pids)


def test_interrupt_stops_the_call_and_the_work(tmp_path):
    parent, pids = start_parent(
        f"""
        try:
            pool.verdicts([("", "g", "spin {tmp_path}"), *(("", "g", str(n)) for n in range(1000))])
        except KeyboardInterrupt:
            print("interrupted", pool.verdicts([("", "g", "next")])[0].outcome, flush=True)
        """
    )
    until(lambda: list(tmp_path.iterdir()))
    parent.send_signal(signal.SIGINT)
    out, err = parent.communicate()
    assert out.strip() == "interrupted wrong", err
    assert gone(pids)
