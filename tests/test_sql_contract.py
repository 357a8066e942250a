"""The SQL verifier gives the same verdicts wherever it is called: threads, event loops, processes, a busy machine."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time

import pytest
from databases import BOMBS, fenced
from waiting import busy_machine, gone, until

from dphlib.types import OUTCOMES, Verdict
from dphlib.verify import SqlVerifier

pytestmark = pytest.mark.slow

LIMITS = {"max_ops": 500_000, "max_rows": 1_000}
ITEMS = [
    ("club", gold, f"{fenced(answer)} {i}" if answer else f"nothing {i}")
    for i in range(3)
    for gold in ("SELECT id FROM t", "SELECT name, id FROM t ORDER BY id", "SELECT nothing", "SELECT a FROM empty")
    for answer in (
        "",
        f"SELECT id FROM t -- {i}",
        f"SELECT id, name FROM t -- {i}",
        f"SELECT a FROM empty -- {i}",
        f"DROP TABLE t -- {i}",
        f"SELEC {i}",
        f"{BOMBS['recursion']} -- {i}",
        f"{BOMBS['rows']} -- {i}",
        f"SELECT randomblob(1000000000), {i}",
    )
]


@pytest.fixture(scope="module")
def expected(root):
    """The verdicts in the main thread, one worker."""
    with SqlVerifier(root, **LIMITS) as verifier:
        found = verdicts_of(verifier)
    assert {verdict.outcome for verdict in found} == set(OUTCOMES)
    return found


def verdicts_of(verifier: SqlVerifier) -> list[Verdict]:
    return verifier.verify_many(ITEMS)


def test_one_by_one_and_in_any_order(root, expected):
    with SqlVerifier(root, workers=3, **LIMITS) as verifier:
        backwards = verifier.verify_many(ITEMS[::-1])[::-1]
    with SqlVerifier(root, **LIMITS) as verifier:
        singles = [verifier.verify(*item) for item in ITEMS]
        assert verifier.verify_many([]) == []
    assert singles == backwards == expected


def test_threads_that_share_a_verifier_and_threads_that_have_their_own(root, expected):
    found = []
    with SqlVerifier(root, workers=2, **LIMITS) as shared:

        def ask(own: bool) -> None:
            if own:
                with SqlVerifier(root, **LIMITS) as verifier:
                    found.append(verdicts_of(verifier))
            else:
                found.append(verdicts_of(shared))

        threads = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [expected] * 6


def test_inside_a_running_event_loop(root, expected):
    async def ask() -> list:
        with SqlVerifier(root, **LIMITS) as verifier:
            here = verdicts_of(verifier)
            there = await asyncio.gather(*(asyncio.to_thread(verdicts_of, verifier) for _ in range(3)))
        return [here, *there]

    assert asyncio.run(ask()) == [expected] * 4


def verify_in_process(verifier: SqlVerifier | str, pipe) -> None:
    """In a child: a verifier handed over, or one made here (from the folder's name)."""
    if isinstance(verifier, str):
        verifier = SqlVerifier(verifier, **LIMITS)
    found = verdicts_of(verifier)
    pipe.send((found, verifier.pids()))  # and ends without closing it, as a worker process does


@pytest.mark.parametrize(
    ("method", "daemon", "handed"),
    [
        ("fork", False, "made there"),
        ("fork", False, "new"),
        ("fork", True, "used"),
        ("spawn", True, "made there"),
        ("spawn", True, "new"),
        ("spawn", False, "used"),
    ],
)
def test_in_processes(root, expected, method, daemon, handed):
    context = multiprocessing.get_context(method)
    with SqlVerifier(root, **LIMITS) as verifier:
        if handed == "used":
            verifier.verify_many(ITEMS[:5])
        ours, theirs = context.Pipe()
        argument = str(root) if handed == "made there" else verifier
        child = context.Process(target=verify_in_process, args=(argument, theirs), daemon=daemon)
        child.start()
        theirs.close()  # so that a child that fails is an end of the pipe
        found, pids = ours.recv()
        child.join()
        assert child.exitcode == 0 and found == expected
        assert pids and not set(pids) & set(verifier.pids())
        assert gone(pids)
        assert verdicts_of(verifier) == expected  # the parent's workers are as they were


def asked_in_a_fork(verifier: SqlVerifier) -> str:
    """The outcome of a right answer, or the error's text, in a forked copy of this process."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(write, verifier.verify("club", "SELECT 1", fenced("SELECT 1")).outcome.encode())
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


def test_a_fork_in_the_middle_of_another_threads_batch(root):
    endless = [("club", "SELECT 1", fenced(f"{BOMBS['recursion']} -- {i}")) for i in range(2)]
    with SqlVerifier(root, max_ops=10**15, timeout_s=10**6, workers=2) as verifier:
        busy = threading.Thread(target=verifier.verify_many, args=(endless,))
        busy.start()
        until(verifier.pids)
        assert asked_in_a_fork(verifier) == "correct"
        while busy.is_alive():  # each answer is tried twice
            for pid in verifier.pids():
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def test_a_closed_verifier_stays_closed_in_a_forked_copy(root):
    verifier = SqlVerifier(root)
    verifier.close()
    assert "closed" in asked_in_a_fork(verifier)


def test_the_same_verdicts_on_a_busy_machine(root, expected):
    with busy_machine(2 * (os.cpu_count() or 2)), SqlVerifier(root, workers=8, **LIMITS) as verifier:
        assert verdicts_of(verifier) == expected
        assert len(verifier.pids()) == 8
