"""Waiting for an event, however long it takes: for the tests that need something to be in the middle, or over.

from waiting import alive, busy_machine, gone, until
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import psutil


def until(happened: Callable[[], object]) -> bool:
    while not happened():
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for yet does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def gone(pids: Iterable[int]) -> bool:
    """Waits until every process has ended."""
    pids = list(pids)
    return until(lambda: not any(map(alive, pids)))


@contextmanager
def busy_machine(loops: int) -> Iterator[None]:
    """While it is entered, so many processes compute for nothing."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
