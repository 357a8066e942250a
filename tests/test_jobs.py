"""Jobs: same results however many workers, a clear error for each way to fail, and no process left behind."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from waiting import alive, gone, until

from dphlib.runtime import jobs, progress
from dphlib.runtime.jobs import Job, JobError, run_jobs
from dphlib.runtime.progress import duration, report, tell

REPOSITORY = Path(__file__).parents[1]
NOTES = {"grpo-main-seed0": "grpo seed 0: reward 0.41", "base 0": ""}
BODIES = """
import atexit, json, os, random, signal, subprocess, sys, time
from pathlib import Path
from dphlib.runtime.files import write_text
from dphlib.runtime.progress import Progress, report, tell

def square(x): return {"x": x, "square": x * x, "pair": (x, None)}
def draw(): return random.random()
def environment(): return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "DPH_PROGRESS_FILE")}
def group(): return [os.getpid(), os.getpgid(0), sys.modules["__main__"].__dict__.get("marker")]
def speak(text): print(text)
def fail(after):
    while after and not Path(after).exists(): time.sleep(0.05)
    raise KeyError("no such column")
def unjson(): return {1, 2}
def forever():
    while True: signal.pause()
def die(number): print("last words", flush=True); os.kill(os.getpid(), number); forever()
def leave(status): os._exit(status)
def fork_and_die():
    if os.fork() == 0:
        forever()
    os.kill(os.getpid(), signal.SIGKILL)
def pids(folder, name):
    child = subprocess.Popen(["sleep", "infinity"])
    write_text(Path(folder) / name, f"{os.getpid()} {child.pid}")
    forever()
def orphan(folder):
    write_text(Path(folder) / "orphan", str(subprocess.Popen(["sleep", "infinity"]).pid))
def clean_up(path): atexit.register(Path(path).write_text, "cleaned")
def say_and_see(path, note):
    if note:
        tell(note)
    report(1, 4)
    seen = Path(path).with_name("seen")
    while not seen.exists():
        if json.loads(Path(path).read_text())["note"] == "grpo seed 0: reward 0.41 · base 0":
            seen.touch()
        time.sleep(0.05)
def half(path):
    report(1, 2)
    while (seen := json.loads(Path(path).read_text())["done"]) < 0.5:
        time.sleep(0.05)
    with Progress("inner", 4, "steps") as progress:
        progress.update(4)
    return seen
"""


@pytest.fixture
def bodies(tmp_path, monkeypatch) -> ModuleType:
    """A module of job functions that only the parent's `sys.path` knows."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "job_bodies.py").write_text(BODIES)
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, "job_bodies", raising=False)
    return importlib.import_module("job_bodies")


def written_pids(folder: Path, count: int) -> list[int]:
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    found = [int(pid) for path in files for pid in path.read_text().split()]
    return found if len(found) == count else []


# --- Results --------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_come_in_the_jobs_order_whatever_the_workers(bodies, workers):
    work = [Job(f"square-{x}", bodies.square, {"x": x}) for x in (3, 1, 2, 5, 4)]
    results = run_jobs(work, workers=workers, label="squares")
    assert results == [{"x": x, "square": x * x, "pair": [x, None]} for x in (3, 1, 2, 5, 4)]


def test_random_draws_do_not_depend_on_workers_or_order(bodies):
    work = [Job(f"draw-{x}", bodies.draw) for x in range(3)]
    one = run_jobs(work, workers=1, label="draws")
    assert len(set(one)) == 3
    assert run_jobs(work[::-1], workers=2, label="draws") == one[::-1]


def test_no_jobs_no_results():
    assert run_jobs([], workers=None, label="nothing") == []


def test_a_worker_is_a_fresh_interpreter_with_one_thread(bodies, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "marker", "parent", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    work = [Job("group", bodies.group), Job("environment", bodies.environment)]
    (pid, group, marker), environment = run_jobs(work, workers=1, label="fresh")
    assert marker is None and pid == group != os.getpgid(0)
    assert environment == {"OMP_NUM_THREADS": "1", "DPH_PROGRESS_FILE": None}


def test_what_a_job_prints_reaches_the_reader(bodies, capsys):
    run_jobs([Job("grpo-0", bodies.speak, {"text": "ü, 100 %"})], workers=1, label="speak")
    assert "[grpo-0] ü, 100 %\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("work", "workers", "message"),
    [
        ([Job("a", duration), Job("a", duration)], 1, "more than once: a"),
        ([Job("a", lambda: 1)], 1, "job a: <lambda> is not a function of a module to be imported"),
        ([Job("a", duration, {"x": {1}})], 1, "job a: arguments must be JSON"),
        ([Job("a", duration)], 0, "workers = 0; at least 1"),
    ],
)
def test_bad_calls_are_refused_before_anything_starts(work, workers, message, monkeypatch):
    monkeypatch.setattr(jobs, "_Worker", lambda inbox: pytest.fail("a worker was started"))
    with pytest.raises(ValueError, match=message):
        run_jobs(work, workers=workers, label="bad")


# --- Failures -------------------------------------------------------------------------------


def test_a_job_that_raises_names_itself_and_stops_the_others(bodies, tmp_path):
    folder = tmp_path / "pids"
    folder.mkdir()
    work = [
        Job("slow", bodies.pids, {"folder": str(folder), "name": "slow"}),
        Job("wrong", bodies.fail, {"after": str(folder / "slow")}),
    ]
    with pytest.raises(JobError, match="job wrong: KeyError: 'no such column'") as caught:
        run_jobs(work, workers=2, label="train")
    assert caught.value.job == "wrong" and "in fail" in str(caught.value), "the worker's traceback is there"
    gone(written_pids(folder, 2))


def test_results_that_cannot_travel_name_the_job(bodies):
    with pytest.raises(JobError, match=r"job odd: .*not JSON serializable"):
        run_jobs([Job("odd", bodies.unjson)], workers=1, label="odd")


@pytest.mark.parametrize(
    ("call", "arguments", "message"),
    [
        ("die", {"number": signal.SIGKILL}, "killed by signal 9 .*memory.*fewer workers"),
        ("die", {"number": signal.SIGSEGV}, r"killed by signal 11 \(SIGSEGV\)"),
        ("leave", {"status": 3}, "ended with exit status 3"),
        ("fork_and_die", {}, "killed by signal 9"),
    ],
)
def test_a_killed_worker_names_the_job_and_the_way_out(bodies, call, arguments, message):
    work = [Job("dph_f-2", getattr(bodies, call), arguments)]
    with pytest.raises(JobError, match=f"job dph_f-2: its worker .*{message}") as caught:
        run_jobs(work, workers=1, label="train")
    assert caught.value.job == "dph_f-2"
    assert ("last words" in str(caught.value)) == (call == "die")


# --- Nothing left behind --------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_parents_end_leaves_no_process(bodies, tmp_path, number):
    """The parent reads its program from stdin, so `__main__` cannot be imported, as in a notebook."""
    folder = tmp_path / "pids"
    folder.mkdir()
    program = f"""
        import sys
        sys.path[:0] = [{str(REPOSITORY)!r}, {str(tmp_path / "path")!r}]
        import job_bodies
        from dphlib.runtime.jobs import Job, run_jobs
        work = [Job(x, job_bodies.pids, {{"folder": {str(folder)!r}, "name": x}}) for x in "abc"]
        run_jobs(work, workers=2, label="train")
    """
    parent = subprocess.Popen([sys.executable, "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parent.stdin.write(textwrap.dedent(program))
    parent.stdin.close()
    until(lambda: written_pids(folder, 4))  # two workers, each with a child
    pids = written_pids(folder, 4)
    assert all(alive(pid) for pid in pids)
    groups = {os.getpgid(pid) for pid in pids}
    parent.send_signal(number)
    assert parent.wait() != 0
    until(lambda: not members(groups))  # the watchers too
    with parent.stderr:
        assert ("KeyboardInterrupt" in parent.stderr.read()) == (number == signal.SIGINT)


def members(groups: set[int]) -> list[int]:
    """Live processes of these groups."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and os.getpgid(int(path.name)) in groups and alive(int(path.name)):
                found.append(int(path.name))
        except ProcessLookupError:
            continue
    return found


def test_success_cleans_up_in_the_worker_and_ends_what_a_job_started(bodies, tmp_path):
    mark = tmp_path / "mark"
    work = [Job("orphan", bodies.orphan, {"folder": str(tmp_path)}), Job("clean", bodies.clean_up, {"path": str(mark)})]
    gc.collect()  # what other tests left open is not closed in between
    before = set(os.listdir("/proc/self/fd"))
    run_jobs(work, workers=1, label="clean")
    assert mark.read_text() == "cleaned"
    gone([int((tmp_path / "orphan").read_text())])
    assert set(os.listdir("/proc/self/fd")) <= before, "no open pipe is left"


# --- Progress -------------------------------------------------------------------------------


@pytest.fixture
def progress_file(monkeypatch, tmp_path) -> Path:
    """The file of progress, which holds every moment."""
    monkeypatch.setenv(progress.PROGRESS_FILE, str(tmp_path / "progress.json"))
    monkeypatch.setattr(progress, "_MESSAGE_EVERY_S", 0.0)
    return tmp_path / "progress.json"


def test_a_jobs_own_progress_counts_as_a_fraction(bodies, progress_file):
    assert run_jobs([Job("half", bodies.half, {"path": str(progress_file)})], workers=1, label="train") == [0.5]
    last = json.loads(progress_file.read_text())
    assert (last["label"], last["done"], last["total"]) == ("train", 1, 1)
    report(1, 2)  # outside a worker it does nothing
    tell("grpo")


def test_progress_names_what_each_job_is_at(bodies, progress_file):
    """A job's name until it says more, such as its method and reward."""
    both = [Job(name, bodies.say_and_see, {"path": str(progress_file), "note": note}) for name, note in NOTES.items()]
    run_jobs(both, workers=2, label="train")


def test_of_many_workers_two_are_named():
    busy = [SimpleNamespace(note=f"grpo seed {seed}: reward 0.4") for seed in range(5)]
    assert jobs._notes(busy[:2]) == "grpo seed 0: reward 0.4 · grpo seed 1: reward 0.4"
    assert jobs._notes(busy).endswith("grpo seed 1: reward 0.4 · and 3 more")
