"""`dph run` and `dph replot`: an interrupted run goes on where it stopped, damage is found, nothing stale is kept.

The notebooks here are stand-ins that write one table each; so is the report, a list of these tables.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest

from dphlib.cli import main as cli
from dphlib.cli import run as run_command
from dphlib.experiment.store import verify_run_manifest, write_run_manifest
from dphlib.report.notebooks import NotebookRun

NAMES = ["00_first", "01_second", "02_third"]


class Command:
    """`dph run --profile smoke` with stand-ins for what is slow.

    Args:
        root: folder of the notebooks and the artifacts.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.out, self.index = root, root / "smoke", root / "smoke/report/index.html"
        self.code, self.stop_at, self.executed = "as it was", "", []
        (root / "notebooks").mkdir()
        for name in NAMES:
            parameters = nbformat.v4.new_code_cell("profile_name = ''\nroot = ''", metadata={"tags": ["parameters"]})
            nbformat.write(nbformat.v4.new_notebook(cells=[parameters]), root / f"notebooks/{name}.ipynb")

    def __call__(self, *arguments: str, stop_at: str = "") -> list[str]:
        """The notebooks that were executed to their end; with `stop_at`, the run is interrupted there."""
        self.stop_at, self.executed = stop_at, []
        status = cli.main(["run", "--profile", "smoke", "--artifacts", str(self.root), *arguments])
        assert status == (130 if stop_at else 0)
        if not stop_at and not arguments:
            assert verify_run_manifest(self.out) == []
            assert self.index.read_text() == self.code * len(NAMES), "the report is of this code's tables"
        return self.executed

    def reach(self, place: str) -> None:
        if place == self.stop_at:
            raise KeyboardInterrupt

    def run_notebooks(self, folder, out, parameters, names, on_done) -> None:
        for name in names:
            self.reach(name)
            copy = nbformat.read(folder / f"{name}.ipynb", as_version=4)
            copy.cells[0].update(execution_count=1)
            copy.cells[0].metadata["papermill"] = {"status": "completed"}
            for part in ("notebooks", "tables"):
                (out / part).mkdir(exist_ok=True)
            nbformat.write(copy, out / f"notebooks/{name}.ipynb")
            (out / f"tables/{name}.csv").write_text(self.code)
            (out / "claims.json").write_text("[]")
            on_done(NotebookRun(name, out / f"notebooks/{name}.ipynb", 1.0, 1, {}))
            self.executed.append(name)

    def build_report(self, out: Path) -> None:
        """Pages first, the index last, as `report.build_report`."""
        self.reach("before the first page")
        (out / "report/notebooks").mkdir(parents=True, exist_ok=True)
        (out / "report/notebooks/00_first.html").write_text(self.code)
        self.reach("after the first page")
        self.index.write_text("".join((out / f"tables/{name}.csv").read_text() for name in NAMES))

    def write_run_manifest(self, out: Path, extra: dict) -> None:
        if self.index.is_file():
            self.reach("before the last manifest")
        write_run_manifest(out, extra)


@pytest.fixture
def run(tmp_path, monkeypatch) -> Command:
    """A run that is finished."""
    run = Command(tmp_path)
    monkeypatch.setattr(run_command, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(run_command, "code_version", lambda modules: run.code)
    monkeypatch.setattr(run_command, "run_notebooks", run.run_notebooks)
    monkeypatch.setattr(run_command, "write_run_manifest", run.write_run_manifest)
    monkeypatch.setattr("dphlib.report.pages.build_report", run.build_report)
    assert run() == NAMES
    return run


def test_a_finished_run_executes_nothing(run, capsys):
    before = run.index.stat().st_mtime_ns
    assert run() == [] and run.index.stat().st_mtime_ns == before
    assert "nothing had changed" in capsys.readouterr().out


def test_an_interrupted_rerun_goes_on_where_it_stopped(run, capsys):
    run.code = "edited"
    assert run(stop_at="01_second") == NAMES[:1]
    assert run() == NAMES[1:]
    assert "run again" not in capsys.readouterr().err.replace("run again to go on", "")


@pytest.mark.parametrize("place", ["before the first page", "after the first page", "before the last manifest"])
def test_an_interrupted_finish_is_finished_by_the_next_run(run, place, capsys):
    run.code = "edited"
    assert run(stop_at=place) == NAMES
    assert run() == [], "the notebooks were done"
    assert "notebooks run again" not in capsys.readouterr().err


def test_one_notebook_alone_is_no_damage_and_is_not_executed_twice(run, capsys):
    run.code = "edited"
    assert run("--only", "01") == NAMES[1:2]
    assert run() == [NAMES[0], NAMES[2]]
    assert not capsys.readouterr().err


def test_after_one_notebook_alone_the_next_run_renews_report_and_manifest(run):
    source = run.root / "notebooks/01_second.ipynb"
    source.write_text(source.read_text().replace("profile_name = ''", "profile_name = 'other'"))
    assert run("--only", "01") == NAMES[1:2]
    run.index.write_text("old")
    assert run() == []


@pytest.mark.parametrize("name", ["tables/00_first.csv", "report/index.html", "manifest.json"])
def test_damage_of_a_finished_run_is_found(run, name, capsys):
    (run.out / name).write_text("{}")
    assert run() == NAMES
    assert name in capsys.readouterr().err


def test_a_lost_file_is_damage_and_a_lost_manifest_is_written_again(run, capsys):
    (run.out / "report/index.html").unlink()
    assert run() == NAMES and "index.html is missing" in capsys.readouterr().err
    (run.out / "manifest.json").unlink()
    assert run() == []


@pytest.mark.parametrize("first", [{"stop_at": "00_first"}, {"stop_at": "01_second"}, {"only": "01"}])
def test_damage_that_was_found_is_mended_though_the_run_is_interrupted(run, first):
    (run.out / "tables/02_third.csv").write_text("damaged")
    done = run("--only", first["only"]) if "only" in first else run(**first)
    assert run() == [name for name in NAMES if name not in done]


# ---------------------------------------------------------------------------------------------- last words


def test_a_smoke_run_ends_in_six_lines_without_claims(run, capsys):
    (run.root / "smoke/figures").mkdir()
    (run.root / "smoke/figures/fig1.svg").write_text("")
    run.code = "edited"
    run()
    *_, before, works, nothing, time, report, results, after = capsys.readouterr().out.splitlines()
    assert not before and works == "everything works: 3 of 3 notebooks, 1 figures, 3 tables, a report"
    assert "nothing about the method" in nothing and re.fullmatch(r"time: \d+ s, 3 notebooks executed; .*", time)
    assert report == f"report: {run.index}, explorer.html beside it" and results == f"results: {run.out}"
    assert after == "next: ./run_all.sh cpu; dph plan --profile cpu says what it takes"


def test_a_full_run_ends_by_its_verdicts_beside_the_references(tmp_path, monkeypatch, capsys):
    facts = {"profile": "cpu", "seconds": {"00": 5.0}, "peak_gib": 1.0, "peak_gib_largest_child": 2.0}
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    (tmp_path / "claims.json").write_text("[]")
    for name in ("verdict_agreement", "agreement"):
        monkeypatch.setattr(f"dphlib.experiment.agreement.{name}", lambda out, profile, name=name: name)
    run_command._closing_words(tmp_path, ["00_first"], 6.0)
    *claims, empty, verdicts, records, time, report, results = capsys.readouterr().out.splitlines()
    assert any("Claims" in line for line in claims) and not empty
    assert (verdicts, records) == ("verdict_agreement", "agreement")
    assert time == "time: 6 s, 1 notebook executed; peak memory 2.0 GiB"
    assert report.startswith("report: ") and results == f"results: {tmp_path}"


@pytest.mark.parametrize(
    ("done", "seconds", "says"),
    [
        (["00", "01"], 100.4, "1 min 40 s, 2 notebooks executed; peak"),
        (["01"], 30.0, "30 s, 1 notebook executed; built from nothing they take 1 min 30 s; peak"),
        ([], 1.0, "1 s, nothing had changed, all notebooks reused; built from nothing they take 1 min 30 s; peak"),
    ],
)
def test_no_time_of_a_run_contradicts_another(done, seconds, says):
    """Set-up is not part of a run: what a run says of itself is never less than its notebooks' sum."""
    recorded = {"seconds": {"set-up": 600.0, "00": 40.0, "01": 50.0}, "peak_gib": 1.0, "peak_gib_largest_child": 2.0}
    assert run_command._times(done, seconds, recorded).startswith(says)


# ---------------------------------------------------------------------------------------------- replot


@pytest.fixture
def recorded(tmp_path, monkeypatch) -> Path:
    """Two recorded runs, `larger` with one figure more; what is drawn from one is what it has."""

    def draw(source: Path, out: Path, asked: tuple[str, str, str]) -> None:
        for path in (path for path in source.rglob("*.*") if path.suffix in (".svg", ".csv")):
            copy = out / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())

    for name, figures in (("larger", ("fig1", "fig14")), ("smaller", ("fig1",))):
        for path in ("tables/table1.csv", *(f"figures/{figure}.svg" for figure in figures)):
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(name)
        write_run_manifest(tmp_path / name, {"profile": "smoke"})
    monkeypatch.setattr("dphlib.experiment.results.draw_recorded", draw)
    monkeypatch.setattr("dphlib.report.explorer.build_explorer", lambda source, out: None)
    return tmp_path


def replot(recorded: Path, source: str, out: str = "replot") -> int:
    return cli.main(["replot", "--source", str(recorded / source), "--out", str(recorded / out)])


def test_what_an_earlier_replot_left_is_not_compared(recorded, capsys):
    assert replot(recorded, "larger") == 0 and (recorded / "replot/figures/fig14.svg").is_file()
    assert replot(recorded, "smaller") == 0, capsys.readouterr()
    assert "2 files" in capsys.readouterr().out and not (recorded / "replot/figures/fig14.svg").exists()


def test_what_differs_and_what_the_source_lacks_are_named(recorded, capsys):
    (recorded / "replot").mkdir()
    (recorded / "replot/claims.json").write_text("[]")
    assert replot(recorded, "smaller") == 1
    (recorded / "smaller/claims.json").write_text("[1]")
    assert replot(recorded, "smaller") == 1
    said = capsys.readouterr().out
    assert "not in smaller: claims.json" in said and "differs from smaller: claims.json" in said
    assert said.count("3 files") == said.count("2 of them equal") == 2


def test_a_replot_into_its_own_source_is_refused(recorded, capsys):
    assert replot(recorded, "smaller", "smaller") == 1
    assert "give another folder with --out" in capsys.readouterr().err
    assert (recorded / "smaller/figures/fig1.svg").is_file()
