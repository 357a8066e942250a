"""Progress: one bar where it can be updated, lines that say something new in a log, no library's noise beside it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from small import policy, tokenizer
from synthetic import make_records

from dphlib import stats
from dphlib.models.load import save_model
from dphlib.runtime import progress
from dphlib.runtime.progress import Progress
from dphlib.settings.variants import RunConfig
from dphlib.training.tracking import reward_text, tracked

REPOSITORY = Path(__file__).parents[1]


class Clock:
    """A clock that only moves when told."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.delenv(progress.PROGRESS_FILE, raising=False)
    return clock


# --- A log ----------------------------------------------------------------------------------


def test_a_log_gets_a_line_at_each_tenth_with_the_note(clock, capsys):
    with Progress("train", 40, "jobs") as shown:
        for second in range(1, 401):
            clock.now += 1
            shown.update(second / 10, f"grpo seed 0: reward {second / 1000:.2f}")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[0] == "train: 4 of 40 jobs · 40 s · about 6 min left · grpo seed 0: reward 0.04"
    assert lines[8] == "train: 36 of 40 jobs · 6 min 0 s · about 40 s left · grpo seed 0: reward 0.36"
    assert lines[9] == "train: 40 of 40 jobs · 6 min 40 s · grpo seed 0: reward 0.40"


def test_a_log_gets_no_line_that_says_nothing_new_but_one_in_five_minutes(clock, capsys):
    with Progress("train", 2, "jobs") as shown:
        for _ in range(599):
            clock.now += 1
            shown.update(0.05)
        assert capsys.readouterr().err.splitlines() == ["train: 0 of 2 jobs · 5 min 0 s · about 3 h 15 min left"]


def test_a_log_has_nothing_of_what_is_soon_done(clock, capsys):
    with Progress("verify", 3, "answers") as shown:
        for done in (1, 2, 3):
            clock.now += 3
            shown.update(done)
    assert capsys.readouterr().err == ""


def test_a_loop_of_nothing_shows_nothing(clock, capsys):
    with Progress("train", 0, "jobs") as shown:
        clock.now += 1000
        shown.update(0)
    assert capsys.readouterr().err == ""


# --- A file ---------------------------------------------------------------------------------


def test_a_file_is_for_the_driver_and_silences_the_lines(clock, capsys, monkeypatch, tmp_path):
    path = tmp_path / "progress.json"
    monkeypatch.setenv(progress.PROGRESS_FILE, str(path))
    with Progress("evaluate", 10, "suites") as shown:
        assert json.loads(path.read_text())["done"] == 0
        clock.now += 20
        shown.update(4, "base 0")
        wanted = {"label": "evaluate", "unit": "suites", "done": 4, "total": 10, "elapsed_s": 20.0, "note": "base 0"}
        assert json.loads(path.read_text()) == wanted
        clock.now += 0.4
        shown.update(5)
        assert json.loads(path.read_text())["done"] == 4, "at most twice a second"
    assert json.loads(path.read_text())["done"] == 10
    assert capsys.readouterr().err == "" and os.listdir(tmp_path) == ["progress.json"]


# --- A terminal -----------------------------------------------------------------------------


def on_a_terminal(program: str, **environment: str) -> str:
    """What a program writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "100", **environment}
    settings.pop(progress.PROGRESS_FILE, None)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stderr=theirs, env=settings)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # Linux' end of a terminal
        pass
    os.close(ours)
    assert process.wait() == 0
    return said.decode()


ONE_LOOP = """
    from dphlib.runtime import progress
    from dphlib.runtime.files import say
    progress._QUIET_S = 0.0
    with progress.Progress("train", 4, "jobs") as shown:
        shown.update(1.5, "grpo seed 0: reward 0.41")
        say("a line between")
        shown.update(2.5, "grpo seed 0: reward 0.52")
"""


def screen(written: str) -> list[str]:
    """The lines that stand on the terminal in the end."""
    lines, at = [""], 0
    for part in re.split(r"(\x1b\[\d*A|\x1b\[2K|\r|\n)", re.sub(r"\x1b\[[\d;?]*[mlh]", "", written)):
        if part.endswith("A") and part.startswith("\x1b"):
            at -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[at] = ""
        elif part == "\n":
            at += 1
            lines += [""] * (at == len(lines))
        elif part != "\r" and part:
            lines[at] = part
    return [line.strip() for line in lines if line.strip()]


def test_a_terminal_has_one_bar_and_lines_stand_above_it():
    above, bar = screen(on_a_terminal(ONE_LOOP))
    assert above == "a line between"
    assert re.fullmatch(r"train ━+ 4 of 4 jobs \d+ s", bar), bar


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("progress._QUIET_S = 0.0", ""),  # a short loop
        ("shown.update(2.5, ", "raise SystemExit(0)  # "),
    ],
)
def test_a_bar_of_a_short_loop_and_of_one_that_did_not_end_goes(before, after):
    assert screen(on_a_terminal(ONE_LOOP.replace(before, after))) == ["a line between"]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    assert on_a_terminal(ONE_LOOP.replace("4 jobs", "4"), TERM="dumb").splitlines()[0] == (
        "train: 1 of 4 jobs · 0 s · about 0 s left · grpo seed 0: reward 0.41"
    )


# --- Jupyter --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kernel():
    """Executes a cell as Jupyter does, without anything of our driver; gives the messages that it sends."""
    from jupyter_client.manager import start_new_kernel

    places = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    manager, client = start_new_kernel(env={**os.environ, "PYTHONPATH": places}, extra_arguments=["--log-level=ERROR"])

    def execute(cell: str) -> list[dict]:
        sent = []
        reply = client.execute_interactive(textwrap.dedent(cell), output_hook=sent.append, timeout=600)
        assert reply["content"]["status"] == "ok", reply["content"]
        shown = ("stream", "display_data", "update_display_data")
        return [message for message in sent if message["msg_type"] in shown]

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_jupyter_has_one_bar_that_is_updated(kernel):
    first, *later = kernel(ONE_LOOP.replace('say("a line between")', "progress._MESSAGE_EVERY_S = 0.0"))
    assert first["msg_type"] == "display_data" and {m["msg_type"] for m in later} == {"update_display_data"}
    bars = {message["content"]["transient"]["display_id"] for message in (first, *later)}
    last = later[-1]["content"]["data"]
    assert len(bars) == 1 and 'value="1.0000"' in last["text/html"] and last["text/plain"].startswith("train: 4 of 4")
    assert any("2 of 4 jobs" in m["content"]["data"]["text/plain"] for m in later)


@pytest.mark.slow
def test_jupyter_has_no_line_for_each_stage_and_a_terminal_has(kernel, tmp_path):
    program = f"""
        from pathlib import Path
        from dphlib.experiment.store import open_run
        open_run(Path({str(tmp_path)!r}), "smoke").stage(
            "world", params={{}}, code=(), build=lambda out: (out / "a").write_text("b"))
        None
    """
    assert kernel(program) == []
    shutil.rmtree(tmp_path / "stages")
    assert on_a_terminal(program) == "world: building\r\n"


@pytest.mark.slow
def test_jupyter_shows_no_librarys_noise(kernel, tmp_path):
    """Neither a bar of loading and saving, nor an advice on widgets, nor what libraries have to mend."""
    save_model(policy(), tokenizer(), tmp_path / "model")
    sent = kernel(f"""
        import warnings
        from pathlib import Path
        warnings.simplefilter("default")
        from dphlib.experiment.pipeline import Pipeline
        from dphlib.settings.profiles import profile
        Pipeline({str(tmp_path / "run")!r}, profile("smoke"))
        import torch
        from dphlib.models.load import load_model, save_model
        save_model(*load_model(Path({str(tmp_path / "model")!r})), Path({str(tmp_path / "again")!r}))
        torch.jit.script(torch.nn.Identity())
    """)
    assert not sent, [message["content"] for message in sent]
    (downloads,) = kernel(f"""
        from huggingface_hub.utils import {are_progress_bars_disabled.__name__} as off
        print(off("huggingface_hub.snapshot_download"))
    """)
    assert downloads["content"]["text"] == "False\n", "they take minutes"


@pytest.mark.slow
def test_jupyter_has_one_plot_of_what_is_measured_meanwhile_and_nothing_where_nobody_watches(kernel, tmp_path):
    """Each job measures in a process of its own; the last state is drawn in the end."""
    (tmp_path / "measuring.py").write_text(
        "from dphlib.runtime.progress import measured\n"
        "def job(run):\n"
        "    for iteration in (1, 2, 3):\n"
        "        measured('grpo', run, iteration, {'reward': 0.1 * iteration})\n"
    )
    program = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from measuring import job
        from dphlib.lessons.live import training_curves
        from dphlib.runtime.jobs import Job, run_jobs
        with training_curves():
            jobs = [Job(run, job, {{"run": run}}) for run in ("grpo seed 0", "grpo seed 1")]
            run_jobs(jobs, workers=1, label="train")
        None
    """
    plots = [message for message in kernel(program) if "image/png" in message["content"].get("data", {})]
    assert plots[0]["msg_type"] == "display_data" and {m["msg_type"] for m in plots[1:]} == {"update_display_data"}
    assert len({message["content"]["transient"]["display_id"] for message in plots}) == 1
    driven = f"import os; os.environ[{progress.PROGRESS_FILE!r}] = {str(tmp_path / 'progress.json')!r}"
    kernel(driven)
    try:
        assert kernel(program) == []
    finally:
        kernel(f"import os; del os.environ[{progress.PROGRESS_FILE!r}]")


@pytest.mark.slow
def test_jupyter_has_sliders_that_draw_the_figure_anew_and_a_picture_for_copies(kernel):
    (shown,) = kernel("""
        from dphlib.lessons.sliders import explore
        made = explore(d=-3.0, eta=0.2, alpha=0.5, right=(0.1, 0.25, 0.45, 0.2))
        display(made)
    """)
    assert {"application/vnd.jupyter.widget-view+json", "image/png"} <= set(shown["content"]["data"])
    assert shown["content"]["metadata"]["image/png"]["width"] == pytest.approx(7 * 96, abs=40)
    (said,) = kernel("""
        sliders, image = made._widget.children
        before = image.value
        sliders.children[0].value = -9.0
        print([slider.description for slider in sliders.children], image.value != before)
    """)
    assert said["content"]["text"] == "['d (nats)', 'eta', 'alpha'] True\n"


# --- What a run reports ---------------------------------------------------------------------


def test_training_tells_method_and_reward(monkeypatch, tmp_path):
    told: list[str] = []
    monkeypatch.setattr("dphlib.training.tracking.tell", told.append)
    answers = make_records(("base",), seeds=(0,), ablations=False, steps=False)
    answers = answers[answers["suite"] == "in_domain"]
    styles = {"style_entropy": float(stats.style_entropy(answers)["per_problem_nats"].iloc[0])}
    heard: list[tuple] = []
    with (
        progress.hearing(lambda *values: heard.append(values)),
        tracked("", tmp_path, None, RunConfig("dph_js", "main", 3)) as track,
    ):
        track({"iteration": 1, "reward": 0.4137})
        answers.to_parquet(tmp_path / "waypoint-5.parquet")
        track({"iteration": 6, "reward": None})
    assert told == ["dph_js seed 3: reward 0.41", "dph_js seed 3"]
    assert heard == [("dph_js", "dph_js seed 3", 1, {"reward": 0.4137}), ("dph_js", "dph_js seed 3", 5, styles)]
    assert reward_text(RunConfig("grpo", "iterations=30", 0), {"reward": 0}) == "grpo iterations=30 seed 0: reward 0.00"
