"""A notebook kernel that is this interpreter, and the end of everything that it started.

Installed kernels are not asked: one named `python3` may belong to another environment. Every process that the
kernel starts inherits a mark in its environment, so that all of them are found, whatever session or parent
they have by then. Linux and macOS, main thread only (signals).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from dphlib.places import ROOT

KERNEL = "dph"
MARK = "DPH_KERNEL_OF"


class NotebookInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while a notebook ran; `code` is the exit status a shell expects (130 or 143)."""

    def __init__(self, name: str, number: int) -> None:
        what = f"{name} interrupted by {signal.Signals(number).name}"
        super().__init__(f"{what}; run again to go on from what is kept")
        self.code = 128 + number


@contextmanager
def own_kernel(scratch: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Points Jupyter at a kernel that is this interpreter, with its connection files in `scratch`."""
    spec = scratch / "kernels" / KERNEL / "kernel.json"
    spec.parent.mkdir(parents=True)
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    kernel_environment = {
        **environment,
        "PYTHONPATH": python_path,
        "IPYTHONDIR": str(scratch / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures go into the notebook
    }
    argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
    # Jupyter expands $ in these values
    escaped = {key: value.replace("$", "$$") for key, value in kernel_environment.items()}
    spec.write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python", "env": escaped}),
        encoding="utf-8",
    )
    ours = {"JUPYTER_PATH": str(scratch), "JUPYTER_RUNTIME_DIR": str(scratch / "runtime")}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def marked(mark: str) -> list[psutil.Process]:
    """Live processes that carry the mark, whatever session or parent they have by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or somebody else's, whose environment cannot be read
    return found


def end_marked(mark: str) -> None:
    """Ends the kernel and all it started: asked at first, after 2 s killed, again until none is found."""
    for attempt in range(10):
        if not (processes := marked(mark)):
            return
        for process in processes:
            try:
                process.terminate() if attempt == 0 else process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=2)


@contextmanager
def stopping(name: str, mark: str) -> Iterator[None]:
    """SIGINT and SIGTERM end the kernel at once and raise `NotebookInterrupted` naming the notebook."""

    def stop(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not stop the clearing up
        end_marked(mark)
        raise NotebookInterrupted(name, number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
