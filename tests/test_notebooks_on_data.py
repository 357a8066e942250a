"""All notebooks on a GPU profile: data sets in their official layout, a base in a folder, a QLoRA adapter; on a CPU.

The cells of all nine run here in one process, in the order and with the parameters that the driver passes, and jobs run
in it too; then the command itself runs one notebook by papermill, on what is built. The settings are those that a user
gives: the profile `gpu80-smoke` and the environment.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
from pathlib import Path

import IPython.display
import nbformat
import pandas as pd
import pytest
from data_files import bird, official, spider, write
from scripted_base import ANSWERS, save_base
from small import logged_names

from dphlib.analysis.claims import from_json
from dphlib.cli import main as cli
from dphlib.cli import run
from dphlib.data import load as data
from dphlib.experiment import cost, draws, results
from dphlib.experiment import pipeline as stages
from dphlib.experiment import problems as problem_sets
from dphlib.experiment.store import write_run_manifest
from dphlib.report import pages as report
from dphlib.report.notebooks import check_executed, declared_parameters, find_notebooks
from dphlib.runtime.machine import deterministic
from dphlib.settings.environment import profile_from_environment as profile
from dphlib.types import STYLE_COUNTS

pytestmark = pytest.mark.slow

PROFILE = "gpu80-smoke"
SMALL = {"draws": 64, "lesson_steps": 2}  # parameters of notebooks 01, 04 and 06
NOTEBOOKS = find_notebooks(Path(__file__).resolve().parents[1] / "notebooks")
FOUR = "SELECT count(*) FROM singer"
GOLDS = (
    FOUR,
    f"{FOUR} WHERE age > 10",
    "SELECT min(singer_id) FROM singer",
    f"{FOUR} WHERE name = 'Ana'",
    f"{FOUR} WHERE age > 30",
    f"{FOUR} WHERE age < 90",
)


def make_data(root: Path) -> Path:
    """The sets of `gpu80` with a few rows more than `data_files` has; of some the scripted base knows the answer."""
    official(root)
    write(root / "bird/train/train.json", [bird(f"Question {i}?", gold) for i, gold in enumerate(GOLDS * 2)])
    dev = [bird(f"Asked {i}?", gold, question_id=i, difficulty="simple") for i, gold in enumerate(GOLDS[:5])]
    write(root / "bird/dev_20240627/dev.json", dev)
    write(root / "spider/dev.json", [spider(f"Spider {i}?", gold) for i, gold in enumerate(GOLDS[:4])])
    write(root / "amc23/test.jsonl", [{"id": i, "problem": f"p{i}", "answer": 4.0 + i % 2} for i in range(4)])
    sums = [{"question": f"{i} of {i + 4} are gone, how many are left?", "answer": "so\n#### 4"} for i in range(6)]
    write(root / "gsm8k/train.jsonl", sums)
    return root


def at_once(jobs, *, workers, label, devices=()):
    """`run_jobs` in this process: a worker's start costs more than its work here."""
    return [job.function(**json.loads(json.dumps(job.arguments))) for job in jobs]


def text_of(value: object) -> str:
    if isinstance(value, pd.DataFrame | pd.Series):
        return value.to_string()
    return str(getattr(value, "data", value))


def execute(path: Path, parameters: dict[str, object], shown: list[str]) -> None:
    """Runs the code cells of a notebook; what each printed, displayed and ended with goes to `shown`, a text a cell."""
    passed = {name: value for name, value in parameters.items() if name in declared_parameters(path)}
    space: dict[str, object] = {"__name__": "__main__"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        tree, out = ast.parse(cell.source), io.StringIO()
        last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        shown.append("")
        with contextlib.redirect_stdout(out):
            exec(compile(tree, f"{path.name}:{cell.id}", "exec"), space)
            value = eval(compile(last, f"{path.name}:{cell.id}", "eval"), space) if last else None
        shown[-1] += out.getvalue() + ("" if value is None else text_of(value))
        if "parameters" in cell.metadata.get("tags", []):
            space |= passed


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(folder of the artifacts, notebook -> text that each of its code cells showed)."""
    place = tmp_path_factory.mktemp("data-run")
    folder = make_data(place / "data")
    texts = [p.prompt for name in ("bird_train", "spider_dev", "amc23") for p in data.load(name, data_dir=folder)]
    shown: dict[str, list[str]] = {path.stem: [] for path in NOTEBOOKS}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "DPH_BASE": str(save_base(place / "base", texts)),
            "DPH_DATA": str(folder),
            "DPH_TUNING": "qlora",
            "DPH_SAMPLER": "transformers",
            "DPH_DEVICE": "cpu",
            "DPH_METHODS": "grpo,dph_js",
        }.items():
            patch.setenv(name, value)
        for module in (stages, cost, results):
            patch.setattr(module, "run_jobs", at_once)
        patch.setattr(draws, "deterministic", lambda *_: deterministic(1))  # as the other tests, and quicker
        for path in NOTEBOOKS:
            seen = shown[path.stem]
            patch.setattr(
                IPython.display,
                "display",
                lambda *values, seen=seen: seen.__setitem__(-1, seen[-1] + "\n".join(map(text_of, values))),
            )
            execute(path, {"profile_name": PROFILE, "root": str(place / "artifacts"), **SMALL}, seen)
        yield place / "artifacts", shown


def test_every_notebook_left_its_numbers_and_no_cell_shows_an_empty_number(ran):
    artifacts, shown = ran
    assert len(shown) == 9
    for name, cells in shown.items():
        assert json.loads((artifacts / PROFILE / "metrics" / f"{name}.json").read_text())
        if name not in ("01_divergences",):  # which shows what careless formulas give
            bare = [text for text in cells if "nan" in text.replace("finance", "").split()]
            assert not bare, bare


def test_the_base_was_explored_and_rehearsed(ran):
    artifacts, _ = ran
    numbers = json.loads((artifacts / PROFILE / "metrics" / "03_presample_and_partition.json").read_text())
    assert numbers["near_perfect"] > 0 < numbers["exploration"] and numbers["references"] > 0
    assert 0.2 < numbers["base_accuracy"] < 0.8, "the scripted base's chances, not nothing and not all"
    assert numbers["largest_logprob_gap"] < 1e-3
    logs = pd.read_parquet(artifacts / PROFILE / "train_log.parquet")
    rows = logs[(logs["method"] == "dph_js") & (logs["variant"] == "main")]
    assert rows["iteration"].tolist() == [1, 2] and set(logged_names()) <= set(rows)
    assert (rows["rehearsal_rows"] > 0).all() and (rows["unjudged"] == 0).all() and rows["grad_norm"].max() > 0
    adapters = list((artifacts / PROFILE / "stages").glob("train-dph_js-main-seed0-*/adapter/README.md"))
    assert len(adapters) == 1 and "bird_train" in adapters[0].read_text()


def test_what_data_sets_cannot_show_is_said_and_not_made_up(ran):
    artifacts, shown = ran
    of_02, of_06 = "\n".join(shown["02_base_and_data"]), "\n".join(shown["06_retention_and_ood"])
    for words in (
        "Left out: in bird_train nobody knows",
        "not trained here",
        "have no styles that could be told apart",
    ):
        assert words in of_02
    assert "have no styles that could be told apart" in of_06
    records = pd.read_parquet(artifacts / PROFILE / "records.parquet")
    assert set(records["suite"]) == {"in_domain", "cross_domain", "out_of_domain"}
    assert not records[list(STYLE_COUNTS)].any(axis=None)
    figures = {path.stem for path in (artifacts / PROFILE / "figures").glob("*.svg")}
    assert "fig4_styles" not in figures and {"fig1_method", "fig2_pass_at_k", "fig6_cost", "fig9_base"} <= figures
    assert "Figure 4" in next(text for text in shown["08_claims_and_report"] if "Not drawn" in text)


def test_what_data_sets_can_show_is_shown(ran):
    _, shown = ran
    cells = shown["02_base_and_data"]
    assert any("'Ana'" in text and "| ---" in text for text in cells), "the first rows of the problem's table"
    assert any("BIRD dev" in text and "bird_dev" in text and "spider_dev" in text for text in cells)
    answers = next(text for text in shown["06_retention_and_ood"] if "different answers" in text)
    assert "base" in answers and "GRPO" in answers and "correct" in answers
    named = [text for text in shown["05_evaluate_passk"] if "trained on bird_train" in text]
    assert named and "half a million" not in "".join(named)


def test_claims_without_data_are_not_run_and_a_smoke_profile_settles_none(ran):
    artifacts, _ = ran
    judged = {one.id: one for one in from_json((artifacts / PROFILE / "claims.json").read_text())}
    assert {one.verdict for one in judged.values()} == {"not run", "inconclusive"}
    styles = judged["grpo_keeps_one_style"]
    assert styles.verdict == "not run" and styles.estimate is None and "style entropy" in styles.detail
    assert judged["js_pass_8_above_grpo"].verdict == "inconclusive"
    assert judged["js_pass_8_above_grpo"].estimate is not None
    assert "no records of DAPO" in judged["greedy_rises"].detail


def test_the_command_runs_a_notebook_by_papermill_and_the_report_names_the_model(ran, capsys):
    artifacts, _ = ran
    assert cli.main(["run", "--profile", PROFILE, "--artifacts", str(artifacts), "--only", "03"]) == 0
    root = artifacts / PROFILE
    assert check_executed(root / "notebooks" / "03_presample_and_partition.ipynb") > 5
    settings = profile(PROFILE)
    extra = {"profile": PROFILE, "seeds": [0], "ours": settings.described, "seconds": {}}
    write_run_manifest(root, extra)
    page = report.build_report(root).read_text()
    write_run_manifest(root, extra)
    assert settings.base.name in page and "half a million" not in page
    capsys.readouterr()
    assert cli.main(["run", "--profile", PROFILE, "--artifacts", str(artifacts), "--only", "03"]) == 0
    assert "03_presample_and_partition: reused" in capsys.readouterr().out


def test_a_change_of_the_environment_runs_the_notebooks_again(ran, monkeypatch):
    before = run._outside(profile(PROFILE))
    assert before == run._outside(profile(PROFILE))
    monkeypatch.setenv("DPH_METHODS", "grpo,dph_f,dph_js")
    assert run._outside(profile(PROFILE)) != before
    monkeypatch.undo()
    path = Path(problem_sets._folder()) / "amc23/test.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace("p0", "other"))
    assert run._outside(profile(PROFILE)) != before
    path.write_text(whole)


def test_the_scripted_base_answers_as_it_was_written(ran):
    artifacts, _ = ran
    (stage,) = (artifacts / PROFILE / "stages").glob("evaluate-base-*")
    rows = pd.read_parquet(stage / "records.parquet")
    rows = rows[(rows["suite"] == "in_domain") & (rows["temperature"] > 0)].set_index("problem_id")
    right = rows["correct"] / rows["n"]
    assert right["bird_dev/0"] == pytest.approx(ANSWERS["```sql\nSELECT 4\n```"], abs=0.4)
    assert right["bird_dev/4"] == 0.0, "two singers are older than 30, which no answer says"
