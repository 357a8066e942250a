"""Runs the notebooks in order through papermill, shows how far they are, proves that every cell completed.

    for run in run_notebooks(Path("notebooks"), Path("artifacts/cpu"), {"profile": "cpu"}):
        print(run.name, run.wall_s)

- The kernel is this interpreter's own ipykernel, whatever kernels are installed; it starts in the notebooks'
  folder, as in Jupyter, finds this `dphlib`, and has no IPython profile of the user's. It ends with this process.
- An output notebook is no proof of success: papermill writes one after each cell. It is written under another
  name and gets its own only when every code cell is `completed`; else it is kept as `NN_name.failed.ipynb`.
- Progress goes from `progress.Progress` through a file to the terminal, never into the notebook's outputs.

It does not decide what has to run again: `dph run` does, and the notebooks by their stages. Linux and macOS, main
thread only.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat

from dphlib.runtime.child import Lifeline
from dphlib.runtime.files import UserError, meant
from dphlib.runtime.places import ROOT
from dphlib.runtime.progress import PROGRESS_FILE, Moment, duration, viewer

_NAME = re.compile(r"\d\d_\w+")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


_ENVIRONMENT = {
    # Threads that wait for each other by long spinning take ten times as long as one thread on a machine that is busy;
    # threads that sleep at once take half as long again on one that is idle. A short spin costs little on either.
    "GOMP_SPINCOUNT": "10000",
    # glibc gives large tensors back to the system at once and fetches them page by page again: a tenth of sampling's
    # time.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    # Bars of downloads are nothing to read in an executed notebook.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
# Imports on a machine that has never read these libraries from its disk take longer than papermill's own minute.
_START_S = 600
_LOOK_EVERY_S = 0.5


class NotebookError(UserError, RuntimeError):
    """A notebook cannot be run or did not complete; the message names it, the cell and the way out."""


class NotebookInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM while a notebook ran; `code` is the exit status a shell expects (130 or 143)."""

    def __init__(self, name: str, number: int) -> None:
        what = f"{name} interrupted by {signal.Signals(number).name}"
        super().__init__(f"{what}; run again to go on from what is kept")
        self.code = 128 + number


@dataclass(frozen=True, slots=True)
class NotebookRun:
    """One notebook that ran to its end.

    Args:
        name: file name without suffix.
        path: the executed copy.
        wall_s: seconds, its kernel's start included.
        cells: code cells, all completed.
        parameters: those that were passed.
    """

    name: str
    path: Path
    wall_s: float
    cells: int
    parameters: Mapping[str, Any]


def find_notebooks(folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """`NN_*.ipynb` of a folder in order; `names` ("04_train", "04_train.ipynb" or "04") selects among them.

    Raises NotebookError when there is none, or for a name that none has.
    """
    found = sorted(path for path in folder.glob("*.ipynb") if _NAME.fullmatch(path.stem))
    if not found:
        raise NotebookError(f"no notebook NN_name.ipynb in {folder}")
    if names is None:
        return found
    wanted = [name.removesuffix(".ipynb") for name in names]
    for name in wanted:
        if not any(name in (path.stem, path.stem[:2]) for path in found):
            known = [path.stem for path in found]
            raise NotebookError(f"no notebook {name!r} in {folder}; there are: {', '.join(known)}{meant(name, known)}")
    return [path for path in found if path.stem in wanted or path.stem[:2] in wanted]


def declared_parameters(path: Path) -> tuple[str, ...]:
    """Names assigned in the one cell tagged `parameters`; NotebookError when there is not exactly one."""
    cells = [cell for cell in _read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise NotebookError(
            f"{path.name}: {len(cells)} cells tagged `parameters`, 1 code cell needed; "
            "set the tag in Jupyter under Property Inspector > Cell tags"
        )
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise NotebookError(f"{path.name}: the cell tagged `parameters` is not Python: {error}") from error
    names: list[str] = []
    for statement in statements:
        single = [getattr(statement, "target", None)]
        targets = statement.targets if isinstance(statement, ast.Assign) else single
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return tuple(names)


def run_notebooks(
    folder: Path,
    out_root: Path,
    parameters: Mapping[str, Any],
    names: Sequence[str] | None = None,
    on_done: Callable[[NotebookRun], None] = lambda run: None,
) -> list[NotebookRun]:
    """Executes the notebooks of a folder in order into `<out_root>/notebooks/`; stops at the first failure.

    Args:
        folder: where the `NN_*.ipynb` are; also the kernels' working directory.
        out_root: run folder, such as `artifacts/cpu`.
        parameters: name -> scalar; each goes to the notebooks whose `parameters` cell declares it.
        names: run these only, see `find_notebooks`.
        on_done: called after each notebook.

    Raises:
        NotebookError: unknown notebook or parameter (before anything runs), failed cell, dead kernel.
        NotebookInterrupted: SIGINT or SIGTERM; kernels and children are gone by then.
    """
    paths = find_notebooks(folder, names)
    declared = {path: declared_parameters(path) for path in paths}
    known = sorted(set().union(*declared.values()))
    if unknown := sorted(set(parameters) - set(known)):
        there_are = ", ".join(known) or "none"
        raise NotebookError(f"no notebook declares the parameter {unknown[0]!r}; there are: {there_are}")
    out = out_root.absolute() / "notebooks"
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    everything = find_notebooks(folder)
    for path in paths:
        place = f"[{everything.index(path) + 1}/{len(everything)}]"
        print(f"{place} {path.stem} ...", flush=True)
        passed = {name: value for name, value in parameters.items() if name in declared[path]}
        started = time.monotonic()
        with _stopping(path.stem):
            cells = _run_one(path, out / path.name, passed)
        runs.append(NotebookRun(path.stem, out / path.name, time.monotonic() - started, cells, passed))
        print(f"{place} {path.stem} done in {duration(runs[-1].wall_s)}", flush=True)
        on_done(runs[-1])
    return runs


def check_executed(path: Path) -> int:
    """Number of code cells, after proof that each was executed, without error, and is `completed`.

    Raises NotebookError that names the first cell for which this does not hold.
    """
    cells = [(index, cell) for index, cell in enumerate(_read(path).cells) if cell.cell_type == "code"]
    if not cells:
        raise NotebookError(f"{path}: no code cell")
    for index, cell in cells:
        status = cell.metadata.get("papermill", {}).get("status")
        if any(output.output_type == "error" for output in cell.outputs):
            problem = "raised an error"
        elif cell.source.strip() and cell.execution_count is None:
            problem = "was not executed"
        elif status != "completed":
            problem = f"is {status or 'without papermill status'}, not completed"
        else:
            continue
        raise NotebookError(f"{path}: cell {index} {problem}")
    return len(cells)


# --- One notebook ---------------------------------------------------------------------------------


def _run_one(path: Path, final: Path, parameters: Mapping[str, Any]) -> int:
    """Executes one notebook by a kernel that is gone afterwards; the number of its code cells."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    partial, failed = final.with_name(f".tmp-{final.name}"), final.with_suffix(".failed.ipynb")
    for stale in (final, partial, failed):  # a copy of an earlier run must not stand beside this run's results
        stale.unlink(missing_ok=True)
    tagged = [index for index, cell in enumerate(_read(path).cells) if "parameters" in cell.metadata.get("tags", [])]
    at = {"cell": 0}

    def entered(cell: Any, cell_index: int) -> None:  # papermill puts a cell with what it passes after the tagged one
        at["cell"] = cell_index - (bool(parameters) and cell_index > tagged[0])

    kernel = _Kernel(path.parent, _ENVIRONMENT)
    try:
        with _Status(path.stem, kernel.progress, at):
            execute_notebook(
                *(str(p).replace("{", "{{").replace("}", "}}") for p in (path, partial)),
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=path.parent,
                progress_bar=False,
                start_timeout=_START_S,
                on_cell_start=entered,
                km=kernel.manager,
            )
        _move_links(partial, path.parent, final.parent)
        cells = check_executed(partial)
    except PapermillExecutionError as error:
        raise NotebookError(_failure(path, partial, failed, at["cell"], _raised(error, partial))) from error
    except DeadKernelError as error:
        what = "the kernel died (most often memory ran out)"
        raise NotebookError(_failure(path, partial, failed, at["cell"], what)) from error
    except (NotebookError, RuntimeError, TimeoutError) as error:
        raise NotebookError(_failure(path, partial, failed, at["cell"], str(error))) from error
    finally:
        kernel.end()
        if partial.exists() and sys.exc_info()[0] is not None:
            os.replace(partial, failed)
    os.replace(partial, final)
    return cells


def _move_links(copy: Path, source: Path, place: Path) -> None:
    """A copy's links to what lies above its source's folder (`../docs/...`) as they are from where the copy will be.

    Outside the folder above they stay as they are: a path from there would name this machine's.
    """
    above, place = source.resolve().parent, place.resolve()
    if not place.is_relative_to(above):
        return
    notebook, start = _read(copy), Path(os.path.relpath(above, place)).as_posix()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", f"]({start}/")
    nbformat.write(notebook, copy)


def _raised(error: Any, executed: Path) -> str:
    """What a cell raised, with the last lines of its traceback."""
    if error.traceback:
        trace = "\n".join(_COLOURS.sub("", line) for line in error.traceback).strip().splitlines()
        return "\n    ".join([f"{error.ename}: {error.evalue}", *trace[-6:]])
    # IPython prints the traceback of an ExceptionGroup, and hands on nothing of it.
    failed = next(cell for cell in _read(executed).cells if cell.metadata.get("papermill", {}).get("exception"))
    trace = "".join(output.text for output in failed.outputs if output.get("name") == "stderr").strip().splitlines()
    named = [line.lstrip(" |+") for line in trace if "ExceptionGroup: " in line]
    return "\n    ".join([*named[:1], *trace[-6:]])


def _failure(path: Path, partial: Path, failed: Path, cell: int, what: str) -> str:
    kept = f"; what ran is in {os.path.relpath(failed)}" if partial.exists() else ""
    return f"{path.name}: cell {cell}: {what}\n{path.name} did not complete{kept}"


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise NotebookError(f"{path}: cannot be read as a notebook: {error}") from error


# --- The kernel ------------------------------------------------------------------------------------


class _Kernel:
    """A kernel that has begun to start; `end` kills it and what it started.

    Args:
        folder: its working directory.
        environment: added to this process's.

    Attributes:
        manager: what nbclient and papermill take as `km`.
        progress: the file in which its loops say how far they are, see `progress.File`.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager
        from jupyter_core.utils import run_sync

        self._folder = tempfile.TemporaryDirectory(prefix="dph-kernel-", ignore_cleanup_errors=True)
        self._lifeline, self._process = Lifeline(), None
        scratch = Path(self._folder.name)
        self.progress = scratch / "progress.json"
        watched = f"from dphlib.runtime.child import watch; watch({self._lifeline.fd})"
        launched = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
        self.manager = AsyncKernelManager(connection_file=str(scratch / "connection.json"))
        self.manager._kernel_spec = KernelSpec(
            argv=[sys.executable, "-c", f"{watched}; {launched}", "--log-level=ERROR", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {
            PROGRESS_FILE: str(self.progress),
            "PYTHONPATH": python_path,
            "IPYTHONDIR": str(scratch / "ipython"),  # no profile of the user's
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # figures go into the notebook
        }
        try:
            run_sync(self.manager.start_kernel)(
                cwd=str(folder), env={**os.environ, **environment, **own}, pass_fds=(self._lifeline.fd,)
            )
            provisioner: Any = self.manager.provisioner
            self._process = provisioner.process
            self._lifeline.started(self._process.pid)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Ends it; safe to call again."""
        self._lifeline.close()
        if self._process:
            self._process.wait()
        self._folder.cleanup()


@contextmanager
def _stopping(name: str) -> Iterator[None]:
    """SIGINT and SIGTERM raise `NotebookInterrupted` naming the notebook; a second one changes nothing."""

    def stop(number: int, _: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second Ctrl-C must not stop the clearing up
        raise NotebookInterrupted(name, number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- The status line ------------------------------------------------------------------------------


class _Status:
    """While a notebook runs: its cell and what the cell's loop says of itself, see `progress`."""

    def __init__(self, name: str, progress: Path, at: Mapping[str, int]) -> None:
        self._name, self._progress, self._at = name, progress, at
        self._started, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        view = viewer()
        while not self._ended.wait(_LOOK_EVERY_S):
            view.show(self.moment())
        view.close()

    def moment(self) -> Moment:
        """The loop that the cell is in, or how long the notebook has been running."""
        where = f"{self._name}, cell {self._at['cell']}"
        try:
            loop = Moment(**json.loads(self._progress.read_text(encoding="utf-8")))
        except FileNotFoundError:
            loop = Moment("")
        if not loop.total or loop.ended:
            return Moment(where, elapsed_s=time.monotonic() - self._started)
        return replace(loop, label=f"{where}, {loop.label}")
