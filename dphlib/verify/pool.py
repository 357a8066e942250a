"""Checks answers in worker processes that can be killed: the pool under `SqlVerifier` and `MathVerifier`.

A task is three strings `(context, gold, answer)`. A worker runs one task after another and says when it turns to
the gold and to the answer; each of the two has `timeout_s` seconds of the processor for itself, which the kernel
counts (`ITIMER_PROF`). So neither the time that a task waits in the queue nor a busy machine changes an outcome.
What can happen:

- the answer uses up its time: the worker is gone and is replaced, the outcome is `timeout`;
- the gold uses up its time: `infra_error` naming the gold, remembered, so that it costs its time only once;
- the worker dies (killed from outside, out of memory), or says nothing for `PATIENCE` times that time by the clock
  on the wall (stopped, or hardly given the processor): one retry, then `infra_error`.

The processes are started by `subprocess`, never by fork (a fork of a process with torch's threads can deadlock),
without `site`, and load the standard library and the checker alone. The two sides speak length-prefixed JSON over a
socket pair: nothing that a worker writes is unpickled. A worker dies with its parent (`PR_SET_PDEATHSIG`, end of the
socket, its own timer), ignores Ctrl-C, and has limits on memory, core dumps and file size.

What it does not do: isolate the file system or the network. A checker must not run code from an answer.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dphlib.types import OUTCOMES, Verdict
from dphlib.verify.worker import HEADER, Task, frame

START_S = 60.0  # a worker is ready in well under a second; a loaded machine may need longer
PATIENCE = 10  # seconds of the clock on the wall for each second of the processor
CHUNK = 64, 256  # fewest and most tasks that a worker gets at a time: with 64 alone, small tasks take an eighth longer
CHUNK_CHARS = 4_000_000  # of a chunk's tasks together, so that reading them does not take up a worker's memory
REST_S, REST_TASKS = 0.0005, 8  # how long the parent lets verdicts gather while more tasks than these are out
KEPT_CHARS = 4_000  # verdicts of longer tasks are not kept
MAX_FRAME = 1 << 20  # of a reply
KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "TZ")
_BOOT = """
import sys
sys.path.insert(0, sys.argv[1])
from dphlib.verify.worker import serve
serve(int(sys.argv[2]))
"""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker process runs, and its limits.

    Args:
        checker: `module:callable`; called once in the worker with `options`, gives a `Checker`.
        options: keyword arguments of it, JSON.
        timeout_s: seconds of the processor for the gold, and again for the answer.
        memory_mib: limit on the worker's address space (not enforced on macOS).
    """

    checker: str
    options: dict[str, Any]
    timeout_s: float
    memory_mib: int


class Pool:
    """Worker processes and the verdicts they gave; start is lazy, any thread may call it.

    A forked copy starts afresh in its process, with workers of its own and nothing remembered.

    Args:
        spec: what to run.
        workers: processes, at least 1.
        kept: verdicts remembered; the least recently used is dropped first.
    """

    def __init__(self, spec: WorkerSpec, *, workers: int = 1, kept: int = 50_000) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise ValueError(f"workers={workers!r}: must be an integer of at least 1")
        if not spec.timeout_s > 0:
            raise ValueError(f"timeout_s={spec.timeout_s!r}: must be above 0 seconds")
        self._spec = spec
        self._workers = workers
        self._kept = kept
        self._start_over()
        _POOLS.add(self)

    def _start_over(self) -> None:
        self.executed = 0  # tasks sent to workers rather than answered from memory
        self._verdicts: OrderedDict[Task, Verdict] = OrderedDict()
        self._lock = threading.Lock()
        # A worker lives as long as the thread that starts it (PR_SET_PDEATHSIG), and the threads as the executor.
        self._executor = ThreadPoolExecutor(self._workers)
        stuck: dict[tuple[str, str], Verdict] = {}
        self._slots = [_Slot(self._spec, stuck) for _ in range(self._workers)]
        self._idle: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._idle.put(slot)
        self._close = weakref.finalize(self, _close, self._executor, self._slots)

    def _after_fork(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.disown()
        self._lock = threading.Lock()  # another thread may have held it
        if self._close.detach():  # was not closed
            self._start_over()

    def verdicts(self, entries: Sequence[Task | Verdict]) -> list[Verdict]:
        """The verdict of each task, in order; an entry that is a verdict already stays as it is.

        A task that was checked before, or is twice in `entries`, runs once. Raises RuntimeError when the pool was
        closed or workers cannot start.
        """
        self._check_usable()
        tasks = dict.fromkeys(entry for entry in entries if not isinstance(entry, Verdict))
        known: dict[Task, Verdict] = {}
        with self._lock:
            for task in tasks:
                if task in self._verdicts:
                    self._verdicts.move_to_end(task)
                    known[task] = self._verdicts[task]
        # One gold's answers go to one worker.
        unknown = sorted((task for task in tasks if task not in known), key=lambda task: task[:2])
        if unknown:
            known |= zip(unknown, self._run(unknown), strict=True)
        return [entry if isinstance(entry, Verdict) else known[entry] for entry in entries]

    def pids(self) -> list[int]:
        """Process ids of the workers now alive."""
        processes = [slot.process for slot in self._slots]
        return [p.popen.pid for p in processes if p is not None and p.popen.poll() is None]

    def close(self) -> None:
        """Ends the workers; tasks already handed in are finished first. Closing twice is harmless."""
        with self._lock:  # no task comes in behind the end mark
            self._close()

    def _check_usable(self) -> None:
        if not self._close.alive:
            raise RuntimeError("verifier is closed: make a new one, or do the work inside its `with` block")

    def _run(self, tasks: list[Task]) -> list[Verdict]:
        cancelled = threading.Event()
        with self._lock:
            self._check_usable()
            self.executed += len(tasks)
            chunks = _cut(tasks, self._workers)
            futures = [self._executor.submit(_check, self._idle, chunk, cancelled) for chunk in chunks]
        try:
            verdicts = [verdict for future in futures for verdict in future.result()]
        except BaseException as error:  # Ctrl-C, or a worker that did not start: nobody waits for the rest
            cancelled.set()
            for future in futures:
                future.cancel()
            for slot in self._slots:
                slot.interrupt(cancelled)
            if isinstance(error, Exception):
                raise RuntimeError(f"verifier's worker: {error}") from error
            raise
        with self._lock:
            for task, verdict in zip(tasks, verdicts, strict=True):
                if verdict.outcome != "infra_error" and sum(map(len, task)) <= KEPT_CHARS:
                    self._verdicts[task] = verdict
            while len(self._verdicts) > self._kept:
                self._verdicts.popitem(last=False)
        return verdicts


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in tuple(_POOLS):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)


class PooledVerifier:
    """What a verifier with a pool of workers is besides: a context manager, safe to use from several threads.

    Forked or sent to another process, it starts afresh there, with workers of its own.
    """

    _pool: Pool
    _again: Callable[[], Any]
    """Makes another one like it."""

    def pids(self) -> list[int]:
        """Process ids of the workers now alive."""
        return self._pool.pids()

    @property
    def executed(self) -> int:
        """Answers that went to a worker rather than being remembered."""
        return self._pool.executed

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return self._again, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(executor: ThreadPoolExecutor, slots: list[_Slot]) -> None:
    executor.shutdown()
    for slot in slots:
        slot.drop()


def _cut(tasks: list[Task], workers: int) -> list[list[Task]]:
    """The tasks, in order, in parts for one worker each: a quarter of its share, within `CHUNK` and `CHUNK_CHARS`."""
    share = -(-len(tasks) // workers)
    fewest, most = CHUNK
    size = min(share, most, max(fewest, share // 4))
    parts: list[list[Task]] = [[]]
    chars = 0
    for task in tasks:
        length = sum(map(len, task))
        chars += length
        if len(parts[-1]) == size or (parts[-1] and chars > CHUNK_CHARS):
            parts.append([])
            chars = length
        parts[-1].append(task)
    return parts


def _check(idle: queue.SimpleQueue[_Slot], tasks: list[Task], cancelled: threading.Event) -> list[Verdict]:
    slot = idle.get()
    slot.cancelled = cancelled
    try:
        return slot.check(tasks, cancelled)
    except Exception:
        slot.drop()
        raise
    finally:
        slot.cancelled = None
        idle.put(slot)


@dataclass(slots=True)
class _Slot:
    """The place of one worker process, which is replaced when it dies."""

    spec: WorkerSpec
    stuck: dict[tuple[str, str], Verdict]
    """Golds that ran out of time; shared by the slots."""
    process: _Process | None = None
    cancelled: threading.Event | None = None
    """Of the call whose tasks it is running."""

    def interrupt(self, cancelled: threading.Event) -> None:
        """Stops the work for the call of `cancelled`; from another thread."""
        process = self.process
        if process is not None and self.cancelled is cancelled:
            process.popen.kill()

    def drop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process = None

    def check(self, tasks: list[Task], cancelled: threading.Event) -> list[Verdict]:
        verdicts: list[Verdict] = []
        attempts = 0
        while not cancelled.is_set() and (before := len(verdicts)) < len(tasks):
            gold = tasks[before][:2]
            if gold in self.stuck:
                verdicts.append(self.stuck[gold])
                continue
            if self.process is not None and self.process.popen.poll() is not None:
                self.drop()  # died between two chunks: no task's fault
            if self.process is None:
                self.process = _Process(self.spec)
            if cancelled.is_set():  # while it started, when there was no process to interrupt
                break
            phase, end = self.process.run(tasks[before:], verdicts)
            if end == "done":
                break
            self.drop()
            attempts = attempts + 1 if len(verdicts) == before else 1
            if end == "timeout" or attempts == 2:
                verdicts.append(self._failed(tasks[len(verdicts)], phase, end))
                attempts = 0
        return verdicts

    def _failed(self, task: Task, phase: str, end: str) -> Verdict:
        context, gold, answer = task
        if end != "timeout":
            text = gold if phase == "gold" else answer
            return Verdict("infra_error", f"worker {end} twice on the {phase}: {text[:300]}")
        if phase == "answer":
            return Verdict("timeout", f"killed after {self.spec.timeout_s:g} s")
        verdict = Verdict("infra_error", f"gold took over {self.spec.timeout_s:g} s: {gold[:300]} {context}")
        self.stuck[task[:2]] = verdict
        return verdict


class _Process:
    """One worker process and the parent's end of its socket."""

    def __init__(self, spec: WorkerSpec) -> None:
        if not sys.executable:
            raise RuntimeError("sys.executable is empty: a verifier's workers need a Python interpreter to start")
        root = str(Path(__file__).resolve().parents[2])
        environment = {k: v for k, v in os.environ.items() if k in KEPT_ENVIRONMENT or k.startswith("DPH_")}
        environment |= {"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        self._socket, theirs = socket.socketpair()
        self._buffer = bytearray()
        with theirs:
            self.popen = subprocess.Popen(  # type: ignore[call-overload]
                [sys.executable, "-s", "-S", "-B", "-P", "-c", _BOOT, root, str(os.getpid())],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        hello = {
            "checker": spec.checker,
            "options": spec.options,
            "timeout_s": spec.timeout_s,
            "memory_mib": spec.memory_mib,
            "path": [root, *(os.path.abspath(p) for p in sys.path if p)],
        }
        try:
            self._socket.settimeout(START_S)
            self._socket.sendall(frame(hello))
            answer = self._next()
        except OSError as error:
            answer = f"{error!r}, exit status {self.popen.poll()}"
        if answer != "ready":
            self.kill()
            raise RuntimeError(f"worker for {spec.checker} did not start: {answer}")
        self._socket.settimeout(PATIENCE * spec.timeout_s)

    def run(self, tasks: list[Task], verdicts: list[Verdict]) -> tuple[str, str]:
        """Appends the verdicts of `tasks` as they come; returns the last phase and how it ended: "done", "timeout",
        "died", or "stalled" (nothing came for too long, and the worker had not used up its processor time)."""
        phase = "answer"
        left = len(tasks)
        try:
            self._socket.sendall(frame(tasks))
            while left:
                if left > REST_TASKS and not self._buffer:
                    time.sleep(REST_S)  # a parent woken for each verdict costs a fifth of the throughput
                reply = self._next()
                if reply in ("gold", "answer"):
                    phase = reply
                    continue
                outcome, detail = reply
                if outcome not in OUTCOMES or not isinstance(detail, str):
                    raise ValueError(reply)
                verdicts.append(Verdict(outcome, detail))
                phase = "answer"
                left -= 1
        except TimeoutError:
            return phase, "stalled"
        except (OSError, ValueError, TypeError):  # end of the socket, or something that is not our protocol
            self.kill()
            return phase, "timeout" if self.popen.returncode == -signal.SIGPROF else "died"
        return phase, "done"

    def _next(self) -> Any:
        buffer = self._buffer
        while len(buffer) < 4 or len(buffer) < 4 + (size := HEADER.unpack_from(buffer)[0]):
            if len(buffer) >= 4 and size > MAX_FRAME:
                raise ValueError(f"frame of {size} bytes")
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("end of the socket")
            buffer += data
        body = bytes(buffer[4 : 4 + size])
        del buffer[: 4 + size]
        return json.loads(body)

    def disown(self) -> None:
        """In a forked copy: lets go of the parent's worker."""
        self._socket.close()
        self.popen.returncode = 0  # not ours to wait for

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
        self._socket.close()
