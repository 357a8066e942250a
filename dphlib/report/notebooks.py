"""Runs the notebooks in order through papermill, shows how far they are, proves that every cell completed.

    for run in run_notebooks(Path("notebooks"), Path("artifacts/cpu"), {"profile": "cpu"}):
        print(run.name, run.wall_s)

- The kernel is this interpreter's own ipykernel, whatever kernels are installed; it starts in the notebooks'
  folder, as in Jupyter, finds this `dphlib`, and has no IPython profile of the user's.
- An output notebook is no proof of success: papermill writes one after each cell. It is written under another
  name and gets its own only when every code cell is `completed`; else it is kept as `NN_name.failed.ipynb`.
- Whatever ends a notebook, its kernel and every process that the kernel started are gone afterwards: each
  carries a mark in its environment. If this process is killed, the kernel, which watches it, ends itself.
- Progress goes from `jobs.Progress` through a file to the terminal, never into the notebook's outputs.
- While a notebook runs, the kernels of the next two start and make their imports.

It does not decide what has to run again: the notebooks do, through `runs`. Linux and macOS, main thread only.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from dphlib.report.kernel import KERNEL, Kernel, NotebookInterrupted, stopping
from dphlib.runtime.files import atomic_path
from dphlib.runtime.jobs import duration
from dphlib.runtime.places import ROOT

__all__ = [
    "NotebookError",
    "NotebookInterrupted",
    "NotebookRun",
    "check_executed",
    "declared_parameters",
    "find_notebooks",
    "normalise",
    "run_notebooks",
]

_NAME = re.compile(r"\d\d_\w+")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


# Threads that wait for each other by long spinning take ten times as long as one thread on a machine that is busy;
# threads that sleep at once take half as long again on one that is idle. A short spin costs little on either.
_PATIENT_THREADS = {"GOMP_SPINCOUNT": "10000"}
# glibc gives large tensors back to the system at once and fetches them page by page again: a tenth of sampling's time.
_KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
# Bars that a model's loading draws, and tqdm's advice to install a widget, are nothing to read in a notebook.
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}


# Kernels that start ahead: two, for a notebook may be done before a kernel has started.
_WARM = 2
# Imports on a machine that has never read these libraries from its disk take longer than papermill's own minute.
_START_S = 600


class NotebookError(RuntimeError):
    """A notebook cannot be run or did not complete; the message names it, the cell and the way out."""


@dataclass(frozen=True, slots=True)
class NotebookRun:
    """One notebook that ran to its end.

    Args:
        name: file name without suffix.
        path: the executed copy.
        wall_s: seconds, its own kernel's start included for the first notebook of a call.
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
            known = ", ".join(path.stem for path in found)
            raise NotebookError(f"no notebook {name!r} in {folder}; there are: {known}")
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
        folder: where `NN_*.ipynb` lie; also the kernels' working directory.
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
    kernels: list[Kernel] = []
    waiting = deque(paths)

    def warm_up(count: int) -> None:
        while waiting and len(kernels) < count:
            kernels.append(_new_kernel(waiting.popleft()))

    try:
        for path in paths:
            place = f"[{everything.index(path) + 1}/{len(everything)}]"
            print(f"{place} {path.stem} ...", flush=True)
            passed = {name: value for name, value in parameters.items() if name in declared[path]}
            with stopping(path.stem, kernels):
                started = time.monotonic()
                warm_up(1)
                cells = _run_one(path, out / path.name, passed, kernels[0], lambda: warm_up(1 + _WARM))
                kernels.pop(0)
            runs.append(NotebookRun(path.stem, out / path.name, time.monotonic() - started, cells, passed))
            print(f"{place} {path.stem} done in {runs[-1].wall_s:.1f} s", flush=True)
            on_done(runs[-1])
    finally:
        for kernel in kernels:
            kernel.end()
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


def normalise(path: Path, root: Path = ROOT) -> None:
    """Rewrites an executed notebook for committing: no times, no absolute path of this machine.

    papermill's status of each cell stays, so `check_executed` still holds. Paths below `root` become relative
    to it; those of the interpreter, the temporary and the home folder become `<python>`, `<tmp>` and `~`.
    """
    notebook = _read(path)
    temporary_folder = tempfile.gettempdir()
    places = {str(Path.home()): "~", temporary_folder: "<tmp>", os.path.realpath(temporary_folder): "<tmp>"}
    places |= {sys.base_prefix: "<python>", sys.prefix: "<python>"}
    places |= {str(root.absolute()): ".", str(root.resolve()): "."}
    # Longest first: the virtual environment often lies below the root, and the root below the home folder.
    patterns = []
    for place, name in sorted(places.items(), key=lambda entry: len(entry[0]), reverse=True):
        start = rf"(?<!\w){re.escape(place)}"
        patterns += [(rf"{start}/(?=[\w.])", "")] if name == "." else []
        patterns += [(rf"{start}(?![\w-])", name)]

    def relative(value: Any) -> Any:
        if isinstance(value, str):
            for place, name in patterns:
                value = re.sub(place, name, value)
            return value
        if isinstance(value, list):
            return [relative(entry) for entry in value]
        return {key: relative(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if "papermill" in cell.metadata:
            cell.metadata["papermill"] = {k: v for k, v in cell.metadata.papermill.items() if k == "status"}
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = relative(cell.source)
        if cell.cell_type == "code":
            cell.outputs = [nbformat.from_dict(relative(dict(output))) for output in cell.outputs]
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


# --- One notebook ---------------------------------------------------------------------------------


def _new_kernel(path: Path) -> Kernel:
    """A kernel for a notebook, which begins with the imports that the notebook makes."""
    modules: list[str] = []
    for cell in _read(path).cells:
        if cell.cell_type == "code":
            modules += _imported(cell.source)
    return Kernel(path.parent, {**_PATIENT_THREADS, **_KEPT_MEMORY, **_QUIET}, list(dict.fromkeys(modules)))


def _imported(source: str) -> list[str]:
    """Modules, and names that may be modules, which the statements of a cell import, in order.

    >>> _imported("import numpy as np; from dphlib import stats")
    ['numpy', 'dphlib', 'dphlib.stats']
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # a line for IPython alone
        return []
    names: list[str] = []
    for statement in statements:
        if isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names += [statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)]
    return names


def _run_one(
    path: Path, final: Path, parameters: Mapping[str, Any], kernel: Kernel, on_start: Callable[[], None]
) -> int:
    """Executes one notebook; the number of its code cells. `on_start` is called once its kernel is there; the kernel is
    gone afterwards."""
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    partial, failed = final.with_name(f".tmp-{final.name}"), final.with_suffix(".failed.ipynb")
    for stale in (final, partial, failed):  # a copy of an earlier run must not stand beside this run's results
        stale.unlink(missing_ok=True)
    tagged = [index for index, cell in enumerate(_read(path).cells) if "parameters" in cell.metadata.get("tags", [])]

    def source_index(index: int) -> int:  # papermill puts a cell with what it passes after the tagged one
        return index - (bool(parameters) and index > tagged[0])

    def entered(cell: Any, cell_index: int) -> None:
        if cell_index == 0:
            on_start()
        at["cell"] = source_index(cell_index)

    at = {"cell": 0}
    try:
        with _Status(kernel.progress, at):
            execute_notebook(
                *(str(p).replace("{", "{{").replace("}", "}}") for p in (path, partial)),
                parameters=dict(parameters),
                kernel_name=KERNEL,
                language="python",
                cwd=path.parent,
                progress_bar=False,
                start_timeout=_START_S,
                on_cell_start=entered,
                km=kernel.manager,
            )
        cells = check_executed(partial)
    except PapermillExecutionError as error:
        at["cell"] = source_index(error.cell_index)
        trace = "\n".join(_COLOURS.sub("", line) for line in error.traceback).strip().splitlines()
        what = "\n    ".join([f"{error.ename}: {error.evalue}", *trace[-6:]])
        raise NotebookError(_failure(path, partial, failed, at["cell"], what)) from error
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


def _failure(path: Path, partial: Path, failed: Path, cell: int, what: str) -> str:
    kept = f"; what ran is in {os.path.relpath(failed)}" if partial.exists() else ""
    return f"{path.name}: cell {cell}: {what}\n{path.name} did not complete{kept}"


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise NotebookError(f"{path}: cannot be read as a notebook: {error}") from error


# --- The status line ------------------------------------------------------------------------------


class _Status:
    """While a notebook runs: on a terminal one line refreshed in place, else a line every 12 s."""

    def __init__(self, progress: Path, at: Mapping[str, int]) -> None:
        self._progress, self._at = progress, at
        self._started, self._ended = time.monotonic(), threading.Event()
        self._live = sys.stdout.isatty()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=2)
        if self._live:
            print("\r\x1b[K", end="", flush=True)

    def _watch(self) -> None:
        while not self._ended.wait(0.5 if self._live else float(os.environ.get("DPH_STATUS_EVERY_S", "12"))):
            line = f"      {self.line()}"
            if self._live:
                print(f"\r\x1b[K{line[: os.get_terminal_size().columns - 1]}", end="", flush=True)
            else:
                print(line, flush=True)

    def line(self) -> str:
        """Cell and seconds, and what the cell's loop last said of itself."""
        text = f"cell {self._at['cell']} · {duration(time.monotonic() - self._started)}"
        try:
            row = json.loads(self._progress.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return text
        if row["done"] >= row["total"]:  # of a loop that ended
            return text
        left = f" · about {duration(row['left_s'])} left" if row.get("left_s") else ""
        done = f"{round(row['done'], 1):g} of {row['total']} {row.get('unit', '')}".rstrip()
        return f"{text} · {row['label']}: {done}{left}"
