"""The SQL verifier gives the same verdicts wherever it is called: threads, processes, notebooks, a busy machine."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from databases import BOMBS, fenced, make_database

from dphlib.verify.sql import SqlVerifier

ROOT = Path(__file__).resolve().parents[1]
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
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("databases")
    make_database(root, "club")
    return root


@pytest.fixture(scope="module")
def expected(root):
    """The verdicts in the main thread, one worker."""
    with SqlVerifier(root, **LIMITS) as verifier:
        found = judged(verifier)
    outcomes = {outcome for outcome, _ in found}
    kinds = {"correct", "wrong", "no_answer", "forbidden", "invalid", "timeout", "too_large", "infra_error"}
    assert outcomes == kinds
    return found


def judged(verifier: SqlVerifier) -> list[list[str]]:
    return [[verdict.outcome, verdict.detail] for verdict in verifier.verify_many(ITEMS)]


def test_one_by_one_and_in_any_order(root, expected):
    with SqlVerifier(root, workers=3, **LIMITS) as verifier:
        backwards = verifier.verify_many(ITEMS[::-1])[::-1]
    with SqlVerifier(root, **LIMITS) as verifier:
        singles = [verifier.verify(*item) for item in ITEMS]
        assert verifier.verify_many([]) == []
    assert singles == backwards == [type(v)(*pair) for v, pair in zip(singles, expected, strict=True)]


def test_threads_that_share_a_verifier_and_threads_that_have_their_own(root, expected):
    found = []
    with SqlVerifier(root, workers=2, **LIMITS) as shared:

        def ask(own: bool) -> None:
            if own:
                with SqlVerifier(root, **LIMITS) as verifier:
                    found.append(judged(verifier))
            else:
                found.append(judged(shared))

        threads = [threading.Thread(target=ask, args=(i % 2 == 0,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [expected] * 6


def test_inside_a_running_event_loop(root, expected):
    async def ask() -> list:
        with SqlVerifier(root, **LIMITS) as verifier:
            here = judged(verifier)
            there = await asyncio.gather(*(asyncio.to_thread(judged, verifier) for _ in range(3)))
        return [here, *there]

    assert asyncio.run(ask()) == [expected] * 4


def judge_in_process(verifier: SqlVerifier | str, pipe) -> None:
    """In a child: a verifier handed over, or one made here (from the folder's name)."""
    if isinstance(verifier, str):
        verifier = SqlVerifier(verifier, **LIMITS)
    found = judged(verifier)
    pipe.send((found, verifier.pids()))  # and ends without closing it, as a worker process does


def wait_gone(pids: list[int]) -> bool:
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("handed", ["made there", "new", "used"])
def test_in_processes(root, expected, method, daemon, handed):
    context = multiprocessing.get_context(method)
    with SqlVerifier(root, **LIMITS) as verifier:
        if handed == "used":
            verifier.verify_many(ITEMS[:5])
        ours, theirs = context.Pipe()
        argument = str(root) if handed == "made there" else verifier
        child = context.Process(target=judge_in_process, args=(argument, theirs), daemon=daemon)
        child.start()
        assert ours.poll(60), "no answer from the child"
        found, pids = ours.recv()
        child.join(20)
        assert child.exitcode == 0 and found == expected
        assert pids and not set(pids) & set(verifier.pids())
        assert not Path("/proc").exists() or wait_gone(pids)
        assert judged(verifier) == expected  # the parent's workers are as they were


def test_a_fork_in_the_middle_of_another_threads_batch(root, expected):
    slow = [("club", "SELECT 1", fenced(f"{BOMBS['recursion']} -- {i}")) for i in range(12)]
    with SqlVerifier(root, max_ops=2_000_000, workers=2) as verifier:
        busy = threading.Thread(target=verifier.verify_many, args=(slow,))
        busy.start()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, verifier.verify("club", "SELECT 1", fenced("SELECT 1")).outcome.encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as file:
            assert file.read() == "correct"
        os.waitpid(child, 0)
        busy.join(60)
        assert not busy.is_alive() and len(verifier.pids()) == 2


def test_a_closed_verifier_stays_closed_in_a_forked_copy(root):
    verifier = SqlVerifier(root)
    verifier.close()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            verifier.verify("club", "SELECT 1", fenced("SELECT 1"))
        except RuntimeError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        assert "closed" in file.read()
    os.waitpid(child, 0)


def test_in_a_notebook_and_after_its_interrupt(root, expected, tmp_path):
    manager = pytest.importorskip("jupyter_client.manager")
    setup = f"""
import json, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_sql_contract import LIMITS, ITEMS, judged
from databases import BOMBS, fenced
from dphlib.verify.sql import SqlVerifier
verifier = SqlVerifier({str(root)!r}, **LIMITS)
print(json.dumps(judged(verifier)))
"""
    endless = f"""
slow = SqlVerifier({str(root)!r}, timeout_s=60, max_ops=10**12)
print("started", flush=True)
slow.verify("club", "SELECT 1", fenced(BOMBS["recursion"]))
"""
    again = "print(slow.verify('club', 'SELECT 1', fenced('SELECT 1')).outcome); slow.close(); verifier.close()"

    def printed(client, source: str, interrupt=None) -> tuple[str, str]:
        texts = []

        def hook(message) -> None:
            if message["msg_type"] == "stream":
                texts.append(message["content"]["text"])
                if interrupt and "started" in texts[-1]:
                    threading.Timer(0.5, interrupt).start()

        reply = client.execute_interactive(source, output_hook=hook, timeout=60)
        return "".join(texts), reply["content"].get("ename", "")

    kernel, client = manager.start_new_kernel(kernel_name="python3")
    try:
        text, error = printed(client, setup)
        assert json.loads(text) == expected, error
        start = time.monotonic()
        assert printed(client, endless, kernel.interrupt_kernel)[1] == "KeyboardInterrupt"
        assert time.monotonic() - start < 20
        assert printed(client, again)[0].strip() == "correct"
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)


def test_the_same_verdicts_on_a_busy_machine(root, expected):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 2))]
    try:
        with SqlVerifier(root, workers=8, **LIMITS) as verifier:
            assert judged(verifier) == expected
            assert len(verifier.pids()) == 8
    finally:
        for process in busy:
            process.kill()
            process.wait()
