"""Independent jobs as parallel processes: progress with the time left, errors that help, no left-overs.

    jobs = [Job(f"grpo-{seed}", train_job, {"seed": seed}) for seed in range(5)]
    results = run_jobs(jobs, workers=None, label="train")

A worker is a fresh interpreter, neither a fork nor a copy of `__main__`, so this works from a script, Jupyter
and papermill. It stays alive over several jobs (importing torch costs seconds) and uses one thread. Arguments
and results travel as JSON. A result does not depend on the number of workers or on their order, given that a
job seeds what it draws from; before each job `random`, numpy and torch, where loaded, are seeded by its name.

Whatever ends the parent, SIGKILL too, leaves no process (see `child`). A job is not retried (finished stages are kept,
so running again goes on from there), and several machines are not used.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from dphlib.runtime.child import Lifeline, watch
from dphlib.runtime.files import UserError, say
from dphlib.runtime.machine import cores, derive_seed, release_gpu, seed_everything
from dphlib.runtime.progress import PROGRESS_FILE, Progress, begin_job, measured
from dphlib.runtime.progress import report as report  # a job's function takes it from here

WORKERS = "DPH_WORKERS"
"""Environment variable of a worker: how many of them share the machine."""
DEVICES = "CUDA_VISIBLE_DEVICES"
_ONE_THREAD = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)
_SHOWN = 2
"""Workers whose job progress names."""
_OOM_HINT = "most often memory ran out: run again with fewer workers (finished stages are kept)"


class JobError(UserError, RuntimeError):
    """A job failed, or its worker died. `job` names it."""

    def __init__(self, job: str, message: str) -> None:
        super().__init__(f"job {job}: {message}")
        self.job = job


@dataclass(frozen=True, slots=True)
class Job:
    """One call to be made in another process.

    Args:
        name: unique among the jobs of a call; shown to the reader.
        function: of a module, which the worker imports from the parent's `sys.path`.
        arguments: keyword arguments, JSON.
    """

    name: str
    function: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)


# --- The worker's side ---------------------------------------------------------------------------


def _serve(connection_fd: int, lifeline_fd: int) -> None:
    """A worker's life: receive a job, run it, answer, until the parent closes the connection."""
    watcher = watch(lifeline_fd)
    os.set_inheritable(connection_fd, False)  # a process that a job starts must not keep it open
    connection, lock = Connection(connection_fd), threading.Lock()

    def send(message: Mapping[str, Any]) -> None:
        body = json.dumps(message).encode()
        with lock:
            connection.send_bytes(body)

    while True:
        try:
            job = json.loads(connection.recv_bytes())
        except EOFError:
            break
        begin_job(send)
        try:
            call = getattr(importlib.import_module(job["module"]), job["function"])
            _reset(derive_seed("job", job["name"]))
            answer = call(**job["arguments"])
            sys.stdout.flush()
            send({"kind": "done", "result": answer})
        except UserError as error:
            send({"kind": "error", "error": str(error)})
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            send({"kind": "error", "error": f"{what}\n\nin the worker:\n{traceback.format_exc()}"})
    os.kill(watcher, signal.SIGKILL)
    os.waitpid(watcher, 0)


def _reset(seed: int) -> None:
    """A job starts from the same random state whatever this worker did before."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        seed_everything(seed)
    elif "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    random.seed(seed)


# --- The parent's side ---------------------------------------------------------------------------


class _Worker:
    """A worker process seen from the parent."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self.job: Job | None = None
        self.fraction, self.note = 0.0, ""
        self.last_lines: deque[str] = deque(maxlen=20)
        self._line = b""
        places = [os.getcwd() if place == "" else place for place in sys.path if isinstance(place, str)]
        environment = {key: value for key, value in os.environ.items() if key != PROGRESS_FILE}
        environment |= dict.fromkeys(_ONE_THREAD, "1")
        environment |= {
            "PYTHONPATH": os.pathsep.join(dict.fromkeys([*places, str(Path(__file__).parents[2])])),
            "PYTHONHASHSEED": "0",  # the order of a set must not differ between workers
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **own,
        }
        self._lifeline = Lifeline()
        self.connection, far = Pipe()
        serve = f"from dphlib.runtime.jobs import _serve; _serve({far.fileno()}, {self._lifeline.fd})"
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", serve],
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(far.fileno(), self._lifeline.fd),
                start_new_session=True,
            )
        except BaseException:
            self.connection.close()
            self._lifeline.close()
            raise
        finally:
            far.close()
        self._lifeline.started(self.process.pid)
        os.set_blocking(self.process.stdout.fileno(), False)

    def start(self, job: Job) -> None:
        self.job, self.fraction, self.note = job, 0.0, job.name
        message = {"name": job.name, "module": job.function.__module__, "function": job.function.__name__}
        try:
            self.connection.send_bytes(json.dumps({**message, "arguments": dict(job.arguments)}).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # it died, which `receive` finds

    def sources(self) -> list[Any]:
        """What to wait for: its lines, and the messages of a job."""
        lines = [] if self.process.stdout.closed else [self.process.stdout]
        return [*lines, self.connection] if self.job else lines

    def receive(self) -> dict[str, Any]:
        """A message; `JobError` when it died in the middle of its job."""
        try:
            return json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            raise self.death() from None

    def pass_on(self) -> None:
        """Passes on the lines that it has printed."""
        if self.process.stdout.closed:
            return
        while part := self.process.stdout.read(65536):
            *lines, self._line = (self._line + part).split(b"\n")
            for line in lines:
                self._say(line)
        if part == b"":  # its end; None is nothing yet
            self.process.stdout.close()
            if self._line:
                self._say(self._line)

    def _say(self, raw: bytes) -> None:
        line = raw.decode("utf-8", errors="replace").rstrip("\r")
        self.last_lines.append(line)
        say(f"[{self.job.name}] {line}" if self.job else line)

    def death(self) -> JobError:
        """The error for a worker that ended in the middle of a job."""
        self.kill()
        status = self.process.wait()
        self.pass_on()
        said = "\n".join(self.last_lines)
        said = f"\nits last lines:\n{said}" if said else ""
        if status == -signal.SIGKILL:
            return JobError(self.job.name, f"its worker was killed by signal 9 (SIGKILL); {_OOM_HINT}{said}")
        if status < 0:
            which = f"signal {-status} ({signal.Signals(-status).name})"
            message = f"its worker was killed by {which}; run again (finished stages are kept){said}"
            return JobError(self.job.name, message)
        message = f"its worker ended with exit status {status} in the middle of the job{said}"
        return JobError(self.job.name, message)

    def leave(self, timeout_s: float) -> None:
        """Waits for an idle worker, whose connection is closed, to end by itself with its clean-up at exit."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass  # `close` follows

    def kill(self) -> None:
        """Ends the worker, its watcher and every process that its job started."""
        self._lifeline.kill()

    def close(self) -> None:
        self.kill()
        self.process.wait()
        self.pass_on()
        self.process.stdout.close()
        self.connection.close()
        self._lifeline.close()


def run_jobs(jobs: Sequence[Job], *, workers: int | None, label: str, devices: Sequence[str] = ()) -> list[Any]:
    """Runs jobs in worker processes in the given order (put the longest first); results in that order.

    Args:
        jobs: independent calls; they may not rely on each other or on their order.
        workers: processes at once; None for one per device, or per core without devices. At most one per job.
        label: shown with the progress.
        devices: GPUs as `CUDA_VISIBLE_DEVICES` names them; each worker sees one. Workers share them only where more
            workers than devices are asked for.

    Raises `JobError` when a job raises (with the worker's traceback where it is no `UserError`) or its worker dies; the
    other jobs are stopped first. ValueError for bad names, functions or arguments, before any starts. Ctrl-C stops all.
    """
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{label}: job names must be unique, given more than once: {', '.join(twice)}")
    for job in jobs:
        if job.function.__module__ == "__main__" or "<" in job.function.__qualname__:
            raise ValueError(
                f"job {job.name}: {job.function.__qualname__} is not a function of a module to be imported"
            )
        try:
            json.dumps(dict(job.arguments))
        except (TypeError, ValueError) as error:
            raise ValueError(f"job {job.name}: arguments must be JSON: {error}") from error
    if workers is not None and workers < 1:
        raise ValueError(f"{label}: workers = {workers}; at least 1, or None for one per core ({cores()} here)")

    release_gpu()  # the workers need it
    waiting = deque(jobs)
    results: dict[str, Any] = {}
    team: list[_Worker] = []
    try:
        with Progress(label, len(jobs), "jobs") as progress:
            count = min(len(jobs), workers or len(devices) or cores())
            for index in range(count):
                own = {WORKERS: str(count)} | ({DEVICES: devices[index % len(devices)]} if devices else {})
                team.append(_Worker(own))
                team[-1].start(waiting.popleft())
            while len(results) < len(jobs):
                _next_messages(team, waiting, results)
                busy = [worker for worker in team if worker.job]
                progress.update(len(results) + sum(worker.fraction for worker in busy), _notes(busy))
            for worker in team:
                worker.connection.close()
            for worker in team:
                worker.leave(timeout_s=10)
    finally:
        for worker in team:  # all first, then wait: a second Ctrl-C finds them dead already
            worker.kill()
        for worker in team:
            worker.close()
    return [results[name] for name in names]


def _notes(busy: Sequence[_Worker]) -> str:
    """What some of the workers are at."""
    said = " · ".join(worker.note for worker in busy[:_SHOWN])
    return f"{said} · and {len(busy) - _SHOWN} more" if len(busy) > _SHOWN else said


def _next_messages(team: Sequence[_Worker], waiting: deque[Job], results: dict[str, Any]) -> None:
    """Waits for what workers print and send, or finds a dead one whose connection a process of its job holds open."""
    ready = wait([source for worker in team for source in worker.sources()], timeout=0.5)
    for worker in team:
        worker.pass_on()
        if worker.connection not in ready:
            if worker.job and not ready and worker.process.poll() is not None:
                raise worker.death()
            continue
        message = worker.receive()
        if message["kind"] == "progress":
            worker.fraction = min(1.0, message["done"] / message["total"]) if message["total"] else 0.0
        elif message["kind"] == "note":
            worker.note = message["note"]
        elif message["kind"] == "measured":
            measured(message["method"], message["run"], message["iteration"], message["values"])
        elif message["kind"] == "error":
            raise JobError(worker.job.name, message["error"])
        else:
            worker.pass_on()
            results[worker.job.name] = message["result"]
            worker.job = None
            if waiting:
                worker.start(waiting.popleft())
