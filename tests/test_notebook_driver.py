"""The notebook driver on small notebooks: success is proved, failure is named, nothing is left running."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from waiting import gone, until

from dphlib.report import notebooks
from dphlib.report.notebooks import NotebookError, check_executed, run_notebooks
from dphlib.runtime.progress import File, Moment, duration
from tools.reference import normalise

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 'seed: int = 1\nprofile: str = "smoke"\n'

CHILD = "child = subprocess.Popen(['sleep', 'infinity'])"


def write(folder: Path, name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    """A notebook with a markdown cell, a `parameters` cell if wanted, and code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A notebook")])
    if parameters is not None:
        tagged = nbformat.v4.new_code_cell(parameters)
        tagged.metadata["tags"] = ["parameters"]
        notebook.cells.append(tagged)
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, folder / name)
    return folder / name


def outputs(path: Path) -> str:
    return json.dumps([cell.get("outputs", []) for cell in nbformat.read(path, as_version=4).cells])


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[notebooks.NotebookRun]]:
    """Two notebooks executed once, in a folder whose name has a space and braces."""
    root = tmp_path_factory.mktemp("a {run} ")
    where = "import os, sys, dphlib\nprint(sys.executable, os.getcwd(), dphlib.__file__)"
    write(root / "in", "01_second.ipynb", "print('second', seed)", where, parameters="seed: int = 1")
    write(root / "in", "00_first.ipynb", "print('first', seed, profile)")
    write(root / "in", "scratch.ipynb", "1 / 0")
    runs = run_notebooks(root / "in", root / "out", {"seed": 7, "profile": "cpu"})
    return root, runs


def test_notebooks_run_in_order_with_the_parameters_that_they_declare(executed):
    root, runs = executed
    assert [run.name for run in runs] == ["00_first", "01_second"]
    assert [dict(run.parameters) for run in runs] == [{"seed": 7, "profile": "cpu"}, {"seed": 7}]
    assert "first 7 cpu" in outputs(runs[0].path) and "second 7" in outputs(runs[1].path)
    assert sorted(path.name for path in (root / "out/notebooks").iterdir()) == ["00_first.ipynb", "01_second.ipynb"]
    assert [check_executed(run.path) for run in runs] == [run.cells for run in runs] == [3, 4]


def test_a_copys_links_lead_where_the_sources_did_and_no_link_names_this_machine(tmp_path):
    link = "[docs](../docs/a.md), ../docs"
    write(tmp_path / "in", "00_first.ipynb", "1", parameters=None)
    copy, place = tmp_path / "in/00_first.ipynb", tmp_path / "artifacts/cpu/notebooks"
    notebook = nbformat.read(copy, as_version=4)
    notebook.cells[0].source = link
    nbformat.write(notebook, copy)
    notebooks._move_links(copy, tmp_path / "in", tmp_path.parent / "elsewhere/notebooks")
    assert nbformat.read(copy, as_version=4).cells[0].source == link
    notebooks._move_links(copy, tmp_path / "in", place)
    moved = nbformat.read(copy, as_version=4).cells[0].source
    assert moved == "[docs](../../../docs/a.md), ../docs"
    assert (place / "../../../docs").resolve() == (tmp_path / "docs").resolve()


def test_kernel_is_this_interpreter_and_starts_in_the_notebooks_folder(executed):
    root, runs = executed
    text = outputs(runs[1].path)
    assert sys.executable in text and str(root / "in") in text and str(ROOT / "dphlib") in text


def test_normalised_copy_names_no_place_of_this_machine_and_still_counts_as_executed(executed, tmp_path):
    root, runs = executed
    copy = tmp_path / "copy.ipynb"
    copy.write_bytes(runs[1].path.read_bytes())
    normalise(copy, root=root)
    text = copy.read_text()
    for place in (str(root), sys.prefix, str(Path.home()) + "/", "start_time", "duration"):
        assert place not in text
    assert "second 7" in text and check_executed(copy) == 4
    once = copy.read_bytes()
    normalise(copy, root=root)
    assert copy.read_bytes() == once


def test_a_path_that_only_begins_like_the_root_is_left_alone(tmp_path):
    path = write(tmp_path, "00_a.ipynb")
    notebook = nbformat.read(path, as_version=4)
    text = f"{tmp_path}/data/x.csv {tmp_path} {tmp_path}-other/x ./run_all.sh"
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text=text)]
    nbformat.write(notebook, path)
    normalise(path, root=tmp_path)
    shown = nbformat.read(path, as_version=4).cells[1].outputs[0].text.split()
    assert shown[:2] == ["data/x.csv", "."] and shown[2].endswith("-other/x") and shown[3] == "./run_all.sh"


def test_failed_cell_is_named_and_no_copy_passes_for_complete(tmp_path):
    write(tmp_path / "in", "00_bad.ipynb", "print('before')", "def f():\n    raise ValueError('the reason')\nf()")
    write(tmp_path / "in", "01_never.ipynb", "print(1)")
    earlier = tmp_path / "out/notebooks/00_bad.ipynb"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("a copy of an earlier run")
    with pytest.raises(NotebookError) as caught:
        run_notebooks(tmp_path / "in", tmp_path / "out", {"seed": 2})
    message = str(caught.value)
    assert "00_bad.ipynb: cell 3" in message  # counted in the source, without papermill's injected cell
    assert "the reason" in message and "raise ValueError" in message and "00_bad.failed.ipynb" in message
    assert [path.name for path in earlier.parent.iterdir()] == ["00_bad.failed.ipynb"]
    assert "before" in outputs(earlier.with_name("00_bad.failed.ipynb"))


def test_a_group_of_errors_is_named_with_what_it_says(tmp_path):
    """IPython gives no error output for one."""
    tasks = (
        "import asyncio\nasync def fails(text):\n    raise ValueError(text)\n"
        "async with asyncio.TaskGroup() as group:\n    group.create_task(fails('the reason'))"
    )
    write(tmp_path / "in", "00_group.ipynb", "print('before')", tasks)
    with pytest.raises(NotebookError) as caught:
        run_notebooks(tmp_path / "in", tmp_path / "out", {"seed": 2})
    message = str(caught.value)
    assert "00_group.ipynb: cell 3: ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)" in message
    assert "ValueError: the reason" in message


def test_dead_kernel_is_named_and_its_processes_are_gone(tmp_path):
    start = f"import subprocess, os, pathlib\n{CHILD}\npathlib.Path('child').write_text(str(child.pid))"
    write(tmp_path / "in", "00_dies.ipynb", start, "import signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(NotebookError, match=r"00_dies\.ipynb: cell 3: the kernel died"):
        run_notebooks(tmp_path / "in", tmp_path / "out", {})
    gone([int((tmp_path / "in/child").read_text())])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_driver_leaves_no_process(tmp_path, number):
    start = (
        f"import subprocess, os, pathlib, signal\n{CHILD}\n"
        "pathlib.Path('pids.tmp').write_text(f'{os.getpid()} {child.pid}')\n"
        "os.rename('pids.tmp', 'pids')\n"
        "signal.pause()"
    )
    write(tmp_path / "in", "00_long.ipynb", start)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from dphlib.report.notebooks import NotebookInterrupted, run_notebooks\n"
        f"try:\n    run_notebooks(Path({str(tmp_path / 'in')!r}), Path({str(tmp_path / 'out')!r}), {{}})\n"
        "except NotebookInterrupted as stop:\n    print(stop, file=sys.stderr)\n    sys.exit(stop.code)\n"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        until(lambda: (tmp_path / "in/pids").exists() or driver.poll() is not None)
        driver.send_signal(number)
        _, errors = driver.communicate()
    finally:
        driver.kill()
    gone([*map(int, (tmp_path / "in/pids").read_text().split())])
    if number != signal.SIGKILL:
        assert driver.returncode == 128 + number
        assert "00_long interrupted" in errors
        assert [path.name for path in (tmp_path / "out/notebooks").iterdir()] == ["00_long.failed.ipynb"]


def test_unknown_parameter_is_refused_before_anything_runs_and_the_known_are_listed(tmp_path):
    write(tmp_path / "in", "00_a.ipynb", "open('ran', 'w')")
    with pytest.raises(NotebookError, match=r"'sed'; there are: profile, seed"):
        run_notebooks(tmp_path / "in", tmp_path / "out", {"sed": 1})
    assert not (tmp_path / "in/ran").exists()


def test_notebook_without_parameters_cell_is_refused(tmp_path):
    write(tmp_path / "in", "00_a.ipynb", parameters=None)
    with pytest.raises(NotebookError, match=r"00_a\.ipynb: 0 cells tagged `parameters`"):
        run_notebooks(tmp_path / "in", tmp_path / "out", {})


def test_declared_parameters_are_the_assigned_names(tmp_path):
    source = "seed: int = 1  # of training = all\nlimit: Optional[int] = None\nrate = 0.5\nprint(rate)"
    assert notebooks.declared_parameters(write(tmp_path, "00_a.ipynb", parameters=source)) == ("seed", "limit", "rate")


def test_selection_by_name_or_number(tmp_path):
    for name in ("00_a.ipynb", "01_b.ipynb", "02_c.ipynb"):
        write(tmp_path, name)
    assert [path.stem for path in notebooks.find_notebooks(tmp_path, ["02", "00_a.ipynb"])] == ["00_a", "02_c"]
    with pytest.raises(NotebookError, match=r"no notebook '07'.*there are: 00_a, 01_b, 02_c"):
        notebooks.find_notebooks(tmp_path, ["07"])
    with pytest.raises(NotebookError, match="no notebook NN_name"):
        notebooks.find_notebooks(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda cell: cell.metadata.papermill.update(status="running"), "is running, not completed"),
        (lambda cell: cell.metadata.pop("papermill"), "without papermill status"),
        (lambda cell: cell.update(execution_count=None), "was not executed"),
        (
            lambda cell: cell.outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])),
            "raised an error",
        ),
    ],
)
def test_check_executed_refuses_a_copy_that_is_not_whole(executed, tmp_path, damage, problem):
    notebook = nbformat.read(executed[1][0].path, as_version=4)
    damage(notebook.cells[-1])
    nbformat.write(notebook, tmp_path / "copy.ipynb")
    with pytest.raises(NotebookError, match=problem):
        check_executed(tmp_path / "copy.ipynb")


def test_the_status_gives_what_the_loop_said_until_it_ended(tmp_path):
    loop = Moment("train", 12, 60, "iterations", 3.0, "grpo seed 0: reward 0.41")
    status = notebooks._Status("04_train", tmp_path / "progress.json", {"cell": 2})
    assert str(status.moment()) == "04_train, cell 2: 0 s"
    File(tmp_path / "progress.json").show(loop)
    wanted = "12 of 60 iterations · 3 s · about 12 s left · grpo seed 0: reward 0.41"
    assert str(status.moment()) == f"04_train, cell 2, train: {wanted}"
    File(tmp_path / "progress.json").show(replace(loop, done=60))
    assert "train:" not in str(status.moment())


def test_a_log_has_no_line_of_a_notebook_that_is_soon_done(tmp_path, capfd):
    write(tmp_path / "in", "00_a.ipynb", "print(1)")
    (run,) = run_notebooks(tmp_path / "in", tmp_path / "out", {})
    out, err = capfd.readouterr()
    assert out.splitlines() == ["[1/1] 00_a ...", f"[1/1] 00_a done in {duration(run.wall_s)}"] and not err
