"""Judges answers in processes of its own that can be killed: the pool under `verify_sql` and `verify_math`.

A job is three strings `(context, gold, answer)`. A worker process runs one job after another and tells when
it turns from the gold to the answer, so each of the two has `timeout_s` seconds of wall clock for itself, and
the time that a job waits in the queue counts for neither. What can happen:

- the answer runs past its time: the worker is killed and replaced, the outcome is `timeout`;
- the gold runs past its time: `infra_error` naming the gold, remembered, so that it costs its time only once;
- the worker dies (killed from outside, out of memory) or is not given the processor: one retry, then
  `infra_error`.

The processes are started by `subprocess`, never by fork (a fork of a process with torch's threads can
deadlock), without `site`, and load the standard library and the judge alone. The two sides speak
length-prefixed JSON over a socket pair: nothing that a worker writes is unpickled. A worker dies with its
parent (`PR_SET_PDEATHSIG`, end of the socket, and a timer of its own), ignores Ctrl-C, and has limits on
memory, core dumps and file size.

What it does not do: isolate the file system or the network. A judge must not run code from an answer.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dphlib.types import OUTCOMES, Verdict
from dphlib.verify.worker import HEADER, Job, frame

START_S = 60.0  # a worker reports ready in well under a second; a loaded machine may need longer
CHUNK = 64, 256  # least and most jobs that a worker gets at a time: with 64 alone, small jobs are an eighth slower
CHUNK_CHARS = 4_000_000  # of a chunk's jobs together, lest reading them takes a worker's memory
REST_S, REST_JOBS = 0.0005, 8  # how long the parent lets verdicts gather, while more jobs than these are out
KEPT_CHARS = 4_000  # verdicts of longer jobs are not kept
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
        judge: `module:callable`; called once in the worker with `options`, gives a `Judge`.
        options: keyword arguments of it, JSON.
        timeout_s: wall-clock seconds for the gold, and again for the answer.
        memory_mib: limit on the worker's address space (not enforced on macOS).
        file_mib: size of a file up to which the judge may lift its limit, which is 0 otherwise.
    """

    judge: str
    options: dict[str, Any]
    timeout_s: float
    memory_mib: int
    file_mib: int = 0


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
        self._spec, self._workers, self._kept = spec, workers, kept
        self._start_over()
        _POOLS.add(self)

    def _start_over(self) -> None:
        self.executed = 0  # jobs sent to workers rather than answered from memory
        self._verdicts, self._lock = OrderedDict[Job, Verdict](), threading.Lock()
        self._queue, stuck = queue.SimpleQueue(), {}  # type: ignore[var-annotated]  # golds that ran out of time, shared
        self._slots = [_Slot(self._spec, stuck) for _ in range(self._workers)]
        self._started = False
        self._close = weakref.finalize(self, _close, self._queue, self._slots)

    def _after_fork(self) -> None:
        for slot in self._slots:
            if slot.process is not None:
                slot.process.disown()
        self._lock = threading.Lock()  # another thread may have held it
        if self._close.detach():  # was not closed
            self._start_over()

    def judge(self, entries: Sequence[Job | Verdict]) -> list[Verdict]:
        """The verdict of each job, in order; an entry that is a verdict already stays as it is.

        A job judged before, or twice in `entries`, runs once. Raises RuntimeError when the pool was closed or
        workers cannot start.
        """
        self._check_usable()
        verdicts: list[Verdict | None] = [None] * len(entries)
        places: dict[Job, list[int]] = {}
        with self._lock:
            for i, entry in enumerate(entries):
                if isinstance(entry, Verdict):
                    verdicts[i] = entry
                elif (known := self._verdicts.get(entry)) is not None:
                    self._verdicts.move_to_end(entry)
                    verdicts[i] = known
                else:
                    places.setdefault(entry, []).append(i)
        if places:
            jobs = sorted(places, key=lambda job: job[:2])  # one gold's answers go to one worker
            for job, verdict in zip(jobs, self._run(jobs), strict=True):
                for i in places[job]:
                    verdicts[i] = verdict
        return verdicts  # type: ignore[return-value]

    def pids(self) -> list[int]:
        """Process ids of the workers now alive."""
        processes = [slot.process for slot in self._slots]
        return [p.popen.pid for p in processes if p is not None and p.popen.poll() is None]

    def close(self) -> None:
        """Ends the workers; jobs already handed in are finished first. Closing twice is harmless."""
        with self._lock:  # no job comes in behind the end mark
            self._close()

    def _check_usable(self) -> None:
        if not self._close.alive:
            raise RuntimeError("verifier is closed: make a new one, or do the work inside its `with` block")

    def _run(self, jobs: list[Job]) -> list[Verdict]:
        with self._lock:
            self._check_usable()
            if not self._started:
                for slot in self._slots:  # a worker lives as long as the thread that starts it (PR_SET_PDEATHSIG)
                    slot.thread = threading.Thread(target=slot.serve, args=(self._queue,), daemon=True)
                    slot.thread.start()
                self._started = True
            self.executed += len(jobs)
            chunks = [_Chunk(part) for part in _cut(jobs, len(self._slots))]
            for chunk in chunks:
                self._queue.put(chunk)
        try:
            for chunk in chunks:
                chunk.done.wait()
                if chunk.error is not None:
                    raise RuntimeError(f"judge worker: {chunk.error}") from chunk.error
        except BaseException:  # Ctrl-C, or the error above: nobody waits for the rest
            for chunk in chunks:
                chunk.cancelled = True
            for slot in self._slots:
                slot.interrupt(chunks)
            raise
        verdicts = [verdict for chunk in chunks for verdict in chunk.verdicts]
        with self._lock:
            for job, verdict in zip(jobs, verdicts, strict=True):
                if verdict.outcome != "infra_error" and sum(map(len, job)) <= KEPT_CHARS:
                    self._verdicts[job] = verdict
            while len(self._verdicts) > self._kept:
                self._verdicts.popitem(last=False)
        return verdicts


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def _after_fork() -> None:
    for pool in tuple(_POOLS):
        pool._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _close(waiting: queue.SimpleQueue, slots: list[_Slot]) -> None:
    for _ in slots:
        waiting.put(None)
    for slot in slots:
        if slot.thread is not None and slot.thread is not threading.current_thread():
            slot.thread.join()


def _cut(jobs: list[Job], workers: int) -> list[list[Job]]:
    """The jobs, in order, in parts for one worker each: a quarter of its share, within `CHUNK` and `CHUNK_CHARS`."""
    share, (least, most) = -(-len(jobs) // workers), CHUNK
    size, parts, chars = min(share, most, max(least, share // 4)), [[]], 0  # type: ignore[var-annotated]
    for job in jobs:
        chars += (length := sum(map(len, job)))
        if len(parts[-1]) == size or (parts[-1] and chars > CHUNK_CHARS):
            parts.append([])
            chars = length
        parts[-1].append(job)
    return parts


@dataclass(slots=True)
class _Chunk:
    jobs: list[Job]
    verdicts: list[Verdict] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    cancelled: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class _Slot:
    """A thread, and the worker process it owns and replaces."""

    spec: WorkerSpec
    stuck: dict[tuple[str, str], Verdict]
    process: _Process | None = None
    thread: threading.Thread | None = None
    chunk: _Chunk | None = None

    def serve(self, waiting: queue.SimpleQueue) -> None:
        while (chunk := waiting.get()) is not None:
            self.chunk = chunk
            try:
                self._judge(chunk)
            except Exception as error:  # handed to the caller
                chunk.error = error
                self._drop()
            chunk.done.set()
            self.chunk = chunk = None
        self._drop()

    def interrupt(self, chunks: list[_Chunk]) -> None:
        """Stops the work on any of `chunks`; from another thread."""
        process = self.process
        if process is not None and any(self.chunk is chunk for chunk in chunks):
            process.popen.kill()

    def _drop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process = None

    def _judge(self, chunk: _Chunk) -> None:
        attempts = 0
        while not chunk.cancelled and len(chunk.verdicts) < len(chunk.jobs):
            job = chunk.jobs[len(chunk.verdicts)]
            if job[:2] in self.stuck:
                chunk.verdicts.append(self.stuck[job[:2]])
                continue
            if self.process is not None and self.process.popen.poll() is not None:
                self._drop()  # died between two chunks: no job's fault
            if self.process is None:
                self.process = _Process(self.spec)
            before = len(chunk.verdicts)
            phase, end = self.process.run(chunk.jobs[before:], chunk.verdicts, self.spec.timeout_s)
            if end == "all":
                return
            self._drop()
            attempts = attempts + 1 if len(chunk.verdicts) == before else 1
            context, gold, answer = job = chunk.jobs[len(chunk.verdicts)]
            if end == "timeout":
                verdict = Verdict("timeout", f"killed after {self.spec.timeout_s:g} s")
                if phase == "gold":
                    told = f"gold took over {self.spec.timeout_s:g} s: {gold[:300]} {context}"
                    verdict = Verdict("infra_error", told)
                    self.stuck[job[:2]] = verdict
            elif attempts < 2:
                continue
            else:
                text = gold if phase == "gold" else answer
                verdict = Verdict("infra_error", f"worker {end} twice on the {phase}: {text[:300]}")
            chunk.verdicts.append(verdict)
            attempts = 0


class _Process:
    """One worker process and the parent's end of its socket."""

    def __init__(self, spec: WorkerSpec) -> None:
        if not sys.executable:
            raise RuntimeError("sys.executable is empty: judge workers need a Python interpreter to start")
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
        hello = {"judge": spec.judge, "options": spec.options, "memory_mib": spec.memory_mib}
        hello["file_mib"] = spec.file_mib
        hello["path"] = [root, *(os.path.abspath(p) for p in sys.path if p)]
        hello["timer_s"] = spec.timeout_s + 5.0
        try:
            self._socket.settimeout(START_S)
            self._socket.sendall(frame(hello))
            answer = self._next(time.monotonic() + START_S)
        except OSError as error:
            answer = f"{error!r}, exit status {self.popen.poll()}"
        if answer != "ready":
            self.kill()
            raise RuntimeError(f"worker for {spec.judge} did not start: {answer}")

    def run(self, jobs: list[Job], verdicts: list[Verdict], timeout_s: float) -> tuple[str, str]:
        """Appends the verdicts of `jobs` as they come; returns the last phase and how it ended: "all",
        "timeout", "died" or "starved" (the time ran out, yet the worker was hardly given the processor)."""
        phase, left = "answer", len(jobs)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(frame(jobs))
            while left:
                if left > REST_JOBS and not self._buffer:
                    time.sleep(REST_S)  # a parent woken for each verdict costs a fifth of the throughput
                reply = self._next(time.monotonic() + timeout_s)
                if reply in ("gold", "answer"):
                    phase = reply
                    continue
                outcome, detail = reply
                if outcome not in OUTCOMES or not isinstance(detail, str):
                    raise ValueError(reply)
                verdicts.append(Verdict(outcome, detail))
                phase, left = "answer", left - 1
        except _Starved:
            return phase, "starved"
        except TimeoutError:
            return phase, "timeout"
        except (OSError, ValueError, TypeError):  # end of the socket, or something that is not our protocol
            return phase, "died"
        return phase, "all"

    def _next(self, deadline: float) -> Any:
        buffer, slow_since, used_before = self._buffer, 0.0, None
        while len(buffer) < 4 or len(buffer) < 4 + (size := HEADER.unpack_from(buffer)[0]):
            if len(buffer) >= 4 and size > MAX_FRAME:
                raise ValueError(f"frame of {size} bytes")
            left = deadline - time.monotonic()
            try:
                # Past the deadline, still take what came while this thread was kept waiting itself.
                self._socket.settimeout(max(0.0, left if used_before is not None else min(left, 0.05)))
                data = self._socket.recv(1 << 16)
            except (TimeoutError, BlockingIOError):
                used, now = _cpu_seconds(self.popen.pid), time.monotonic()
                if used_before is None:
                    used_before, slow_since = used, now
                if now < deadline:
                    continue
                if used is not None and used - used_before < 0.05 * (now - slow_since) - 0.02:  # type: ignore[operator]
                    raise _Starved from None
                raise TimeoutError from None
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


class _Starved(Exception):
    pass


def _cpu_seconds(pid: int) -> float | None:
    """Processor time of a process; None where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
