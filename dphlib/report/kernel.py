"""A notebook kernel that is this interpreter, and the end of everything that it started.

Installed kernels are not asked: one named `python3` may belong to another environment. Every process that the
kernel starts inherits a mark in its environment, so that all of them are found, whatever session or parent
they have by then. A kernel may be started long before it is used, with its imports made. Linux and macOS, main
thread only (signals).
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from dphlib.runtime.jobs import PROGRESS_FILE
from dphlib.runtime.places import ROOT

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


class Kernel:
    """A kernel that has begun to start; `end` ends it and all that it started.

    Args:
        folder: its working directory.
        environment: added to this process's.
        modules: what it imports while it starts; those that it cannot import are left to the notebook.

    Attributes:
        manager: what nbclient and papermill take as `km`.
        progress: the file in which its loops say how far they are, see `jobs.Progress`.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], modules: Sequence[str] = ()) -> None:
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        self.mark = secrets.token_hex(8)
        self._folder = tempfile.TemporaryDirectory(prefix="dph-kernel-", ignore_cleanup_errors=True)
        scratch = Path(self._folder.name)
        self.progress = scratch / "progress.json"
        self.manager = AsyncKernelManager(kernel_name=KERNEL)
        first = f"from dphlib.report.kernel import preload; preload({list(modules)!r}); del preload"
        try:
            marks = {MARK: self.mark, PROGRESS_FILE: str(self.progress)}
            with own_kernel(scratch, {**environment, **marks}):
                run_sync(self.manager.start_kernel)(
                    cwd=str(folder), extra_arguments=[f"--IPKernelApp.exec_lines={first}"]
                )
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Ends it; safe to call again."""
        end_marked(self.mark)
        self._folder.cleanup()


def preload(modules: Iterable[str]) -> None:
    """Imports modules ahead of the notebook that will; a name that fails is the notebook's to report."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:
            continue


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
    """Ends a kernel and all it started: asked at first, after 2 s killed, again until none is found."""
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
def stopping(name: str, kernels: Sequence[Kernel]) -> Iterator[None]:
    """SIGINT and SIGTERM end these kernels at once and raise `NotebookInterrupted` naming the notebook."""

    def stop(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not stop the clearing up
        for kernel in kernels:
            kernel.end()
        raise NotebookInterrupted(name, number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
