"""The inside of a worker process: reads jobs from file descriptor 0, judges each, writes the verdict there.

`workers` starts it and says what can happen. Imports little, so that a killed worker is replaced quickly.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

Job = tuple[str, str, str]
"""Context (a database, or ""), gold, answer."""
Judge = Callable[[Job, Callable[[str], None]], tuple[str, str]]
"""Gets a job and `phase`, to be called with "gold" or "answer" as it turns to it; returns outcome, detail."""

HEADER = struct.Struct(">I")
REARM_S = 1.0  # the timer is armed no oftener, to spare a system call a job; `timer_s` outlasts a job by more than this


def frame(value: Any) -> bytes:
    """A message between the two sides: its length in 4 bytes, then JSON in ASCII.

    >>> frame(["correct", ""])
    b'\\x00\\x00\\x00\\x0f["correct", ""]'
    """
    body = json.dumps(value).encode("ascii")
    return HEADER.pack(len(body)) + body


def serve(parent: int) -> None:
    """The worker's main loop on file descriptor 0. `parent` is the process id that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    hello = _read()
    if hello is None:
        return
    try:
        sys.path[:] = hello["path"]
        _limit(hello["memory_mib"], hello["file_mib"])
        module, _, name = hello["judge"].partition(":")
        judge: Judge = getattr(importlib.import_module(module), name)(**hello["options"])
    except BaseException as error:  # told to the parent, which raises it
        import traceback

        return _write("".join(traceback.format_exception(error)))
    timer_s = hello["timer_s"]
    _write("ready")

    def phase(name: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, timer_s)  # default action: the end, should the parent be gone
        _write(name)

    try:
        while (jobs := _read()) is not None:
            armed = -REARM_S
            for job in jobs:
                if (now := time.monotonic()) >= armed + REARM_S:
                    signal.setitimer(signal.ITIMER_REAL, timer_s)
                    armed = now
                try:
                    reply = judge(tuple(job), phase)
                except Exception as error:
                    reply = ("infra_error", f"{type(error).__name__}: {error}"[:500])
                _write(reply)
            signal.setitimer(signal.ITIMER_REAL, 0)
    except BrokenPipeError:
        pass  # the parent is gone


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _limit(memory_mib: int, file_mib: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, file_mib << 20))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))


def _read() -> Any:
    def exactly(size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0 and (part := os.read(0, min(size, 1 << 20))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts) if size == 0 else b""

    header = exactly(4)
    body = exactly(HEADER.unpack(header)[0]) if header else b""
    return json.loads(body) if body else None


_frame = lru_cache(1000)(frame)  # most verdicts have been given before


def _write(reply: str | tuple[str, str]) -> None:
    body = _frame(reply)
    while (sent := os.write(0, body)) < len(body):
        body = body[sent:]
