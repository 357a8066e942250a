"""The inside of a worker process: reads tasks from file descriptor 0, checks each, writes the verdict there.

`pool` starts it and says what can happen. Imports little, so that a worker that was killed is replaced quickly.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import IO, Any

Task = tuple[str, str, str]
"""Context (a database, or ""), gold, answer."""
Checker = Callable[[Task, Callable[[str], None]], tuple[str, str]]
"""Gets a task and `phase`, to be called with "gold" or "answer" as it turns to it; returns outcome, detail."""

HEADER = struct.Struct(">I")


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
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _die_with(parent)
    messages = open(0, "rb", closefd=False)
    hello = _read(messages)
    if hello is None:
        return
    try:
        sys.path[:] = hello["path"]
        _limit(hello["memory_mib"])
        module, _, name = hello["checker"].partition(":")
        checker: Checker = getattr(importlib.import_module(module), name)(**hello["options"])
    except BaseException as error:  # sent to the parent, which raises it
        import traceback

        return _write("".join(traceback.format_exception(error)))
    timeout_s = hello["timeout_s"]
    _write("ready")

    def arm(seconds: float) -> None:
        """Ends the process by SIGPROF once it has used so many seconds of the processor, whatever it is doing then."""
        signal.setitimer(signal.ITIMER_PROF, seconds)

    def phase(name: str) -> None:
        arm(timeout_s)
        _write(name)

    try:
        while (tasks := _read(messages)) is not None:
            arm(timeout_s)
            for task in tasks:
                try:
                    reply = checker(tuple(task), phase)
                except Exception as error:
                    reply = ("infra_error", f"{type(error).__name__}: {error}"[:500])
                arm(timeout_s)  # before the reply: a signal that comes first is this task's, not the next one's
                _write(reply)
            arm(0)
    except BrokenPipeError:
        pass  # the parent is gone


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _limit(memory_mib: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (memory_mib << 20, memory_mib << 20))


def _read(messages: IO[bytes]) -> Any:
    """The next message; None when the parent has ended, in the middle of one too."""
    header = messages.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    body = messages.read(size)
    return json.loads(body) if len(body) == size else None


_frame = lru_cache(1000)(frame)  # most verdicts have been given before


def _write(reply: str | tuple[str, str]) -> None:
    body = _frame(reply)
    while (sent := os.write(0, body)) < len(body):
        body = body[sent:]
