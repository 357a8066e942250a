"""Recorded results: written and read again they are the same, and drawn twice they give the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure
from pandas.testing import assert_frame_equal
from synthetic import make_cost, make_presample, make_records, make_study_records, make_train_logs

from dphlib.analysis.waypoints import waypoint_table
from dphlib.experiment import results as results_module
from dphlib.experiment.results import (
    FIGURES,
    TABLES,
    Results,
    beside_reference,
    close_notebook,
    decide_claims,
    draw,
    figure,
    left_out,
    table,
)
from dphlib.runtime.files import RunError
from dphlib.settings.profiles import profile

pytestmark = pytest.mark.slow

METHODS = ("base", "grpo", "dph_js")
SORTED_BY = ["method", "variant", "seed", "step", "suite", "temperature", "problem_id"]


@pytest.fixture(scope="module")
def results() -> Results:
    """Made-up results of a few methods; the rows stand in no order, the smallest numbers have many digits."""
    seeds = (0, 1)
    sums = make_presample(12).assign(suite="sums_train", family="")
    presample = pd.concat([make_presample(40).assign(suite="train", family="highest"), sums], ignore_index=True)
    records = make_records(METHODS, seeds).sample(frac=1, random_state=1, ignore_index=True)
    cost = make_cost().assign(step_s=lambda frame: frame["step_s"] / 3)
    columns = ["suite", "problem_id", "family", "correct"]
    main = records[(records["variant"] == "main") & (records["suite"] == "in_domain")]
    logs, on_the_way = make_train_logs(METHODS, seeds), waypoint_table(main)
    asked = {
        "suite": "in_domain",
        "problem_id": "p",
        "prompt": "how many",
        "gold": "SELECT 1",
        "method": "grpo",
        "seed": 0,
    }
    answers = pd.DataFrame([{**asked, "style": "direct", "times": 16, "verdict": "wrong", "answer": "Directly : 2"}])
    return Results(profile("cpu"), records, logs, presample[columns], cost, waypoints=on_the_way, answers=answers)


def written(results: Results, root: Path) -> Results:
    results.write(root)
    return Results.load(root, results.settings)


def sorted_logs(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["method", "variant", "seed", "iteration"], ignore_index=True)


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_is_written_is_read_again(results, tmp_path):
    again = written(results, tmp_path)
    read = again.records.astype(results.records.dtypes)
    assert_frame_equal(read, results.records.sort_values(SORTED_BY, ignore_index=True), check_exact=True)
    logs = again.train_logs[list(results.train_logs)].astype(results.train_logs.dtypes)
    assert_frame_equal(sorted_logs(logs), sorted_logs(results.train_logs), check_exact=True)
    assert_frame_equal(again.presample, results.presample, check_exact=True)
    assert_frame_equal(again.cost, results.cost, check_exact=True)
    steps = ["method", "variant", "seed", "step"]
    on_the_way = again.waypoints.astype(results.waypoints.dtypes)
    assert_frame_equal(on_the_way, results.waypoints.sort_values(steps, ignore_index=True), check_exact=True)
    assert_frame_equal(again.answers.astype(results.answers.dtypes), results.answers)


def test_written_again_gives_the_same_bytes(results, tmp_path):
    again = written(results, tmp_path / "first")
    again.write(tmp_path / "second")
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_a_smaller_run_leaves_nothing_of_the_larger_one(results, tmp_path):
    results.write(tmp_path)
    logs = results.train_logs[results.train_logs["method"] == "grpo"]
    again = written(replace(results, train_logs=logs, cost=None, answers=None), tmp_path)
    assert again.cost is None and again.answers is None and set(again.train_logs["method"]) == {"grpo"}


def test_a_variant_with_a_hyphen_and_a_number_that_was_not_measured_survive(results, tmp_path):
    logs = results.train_logs[results.train_logs["method"] == "dph_js"].assign(variant="eta=2.5e-05", loss=float("nan"))
    again = written(replace(results, train_logs=logs), tmp_path)
    assert set(again.train_logs["variant"]) == {"eta=2.5e-05"} and again.train_logs["loss"].isna().all()


@pytest.mark.parametrize("part", ["records.parquet", "train_log.parquet", "presample.csv"])
def test_a_run_that_is_not_there_is_named_with_the_way_out(results, part, tmp_path):
    with pytest.raises(RunError, match=r"records\.parquet is missing; run \./run_all\.sh cpu first"):
        Results.load(tmp_path / "nothing", results.settings)
    results.write(tmp_path)
    (tmp_path / part).rename(tmp_path / f"{part}.elsewhere")
    with pytest.raises(RunError, match=f"{part} is missing"):
        Results.load(tmp_path, results.settings)


def test_the_same_results_give_the_same_bytes(results, tmp_path):
    """From memory and from the files, drawn twice: figures, tables and claims."""
    names = ["fig4_styles", "fig6_cost", "table5", "methods"]
    again = written(results, tmp_path / "run")
    first = draw(results, tmp_path / "first", names)
    assert draw(again, tmp_path / "second", names) == first
    made = files(tmp_path / "first")
    assert made == files(tmp_path / "second")
    assert {name.partition(".")[0].rpartition("/")[2] for name in made} == {
        *names,
        "claims",
        "claims_stopped",
        "fig10_claims",
    }
    assert [row["id"] for row in json.loads(made["claims.json"])] == [one.id for one in first]


@pytest.fixture
def blank(results, monkeypatch):
    """Every figure and table with nothing in it."""
    drawn, made = Figure(figsize=(1, 1)), TABLES["methods"].make(results)
    for products, content in ((FIGURES, drawn), (TABLES, made)):
        for name, product in products.items():
            monkeypatch.setitem(products, name, replace(product, make=lambda results, content=content: content))


def test_usual_records_make_the_usual_files_and_a_study_adds_its_own(results, blank, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(results_module, "_PRETRAINED", tmp_path / "nothing")
    draw(results, tmp_path / "usual")
    usual = {name for name, product in (FIGURES | TABLES).items() if product.usual and not product.contents}
    expected = {f"figures/{n}.{end}" for n in usual & set(FIGURES) | {"fig10_claims"} for end in ("png", "svg")}
    expected |= {f"tables/{name}.csv" for name in usual & set(TABLES)} | {"claims.json", "claims_stopped.json"}
    assert set(files(tmp_path / "usual")) == expected
    absent = "fig11_controls fig12_eta fig13_ablations fig14_hard fig17_arms fig18_temperature fig19_complementarity "
    absent += "fig20_contents fig21_pretrained table_controls table_ablations table_arms table_hard table_temperature "
    absent += "table_contents table_pretrained"
    assert list(left_out(results)) == absent.split() and capsys.readouterr() == ("", "")
    settings = replace(results.settings, seeds=(0,), ablation_seeds=(0,))
    studied = replace(results, settings=settings, records=make_study_records(settings, ["controls"]))
    draw(studied, tmp_path / "studied")
    new = set(files(tmp_path / "studied")) - expected
    assert new == {"figures/fig11_controls.png", "figures/fig11_controls.svg", "tables/table_controls.csv"}
    draw(results, tmp_path / "studied")
    assert files(tmp_path / "studied") == files(tmp_path / "usual"), "a smaller run leaves nothing of the larger one"


def test_an_unknown_name_is_refused_with_the_known_ones_before_anything_is_drawn(results, tmp_path):
    with pytest.raises(ValueError, match=r"unknown figure 'fig2'; known: .*fig2_pass_at_k"):
        figure("fig2", results, tmp_path)
    with pytest.raises(ValueError, match="unknown table 'fig4_styles'; known: table1"):
        table("fig4_styles", results, tmp_path)
    with pytest.raises(ValueError, match="unknown figure or table 'table9'"):
        draw(results, tmp_path, ["fig4_styles", "table9"])
    assert not files(tmp_path)


def test_a_cost_that_was_not_measured_is_said(results, tmp_path):
    with pytest.raises(RunError, match="cost of an iteration was not measured"):
        figure("fig6_cost", replace(results, cost=None), tmp_path)


def test_claims_are_decided_by_the_profile_that_wrote_the_records(results, tmp_path):
    smoke = replace(results, settings=profile("smoke"))
    assert not any(one.verdict == "supported" for one in decide_claims(smoke, tmp_path))
    assert json.loads((tmp_path / "claims.json").read_text())


def test_a_notebook_is_closed_with_its_numbers_and_they_stand_beside_the_references(tmp_path, capsys):
    close_notebook("06_retention_and_ood", tmp_path, {"problems": 128, "loss": 0.51239})
    assert "2 numbers" in capsys.readouterr().out
    frame = beside_reference("06_retention_and_ood", tmp_path / "smoke", {"loss": 0.25, "new": 1}, tmp_path / "metrics")
    assert frame.to_numpy().tolist() == [["loss", "0.25", "0.5124"], ["new", "1", "not recorded"]]
    numbers = {"loss": 0.5124, "problems": 64, "new": 1}
    frame = beside_reference("06_retention_and_ood", tmp_path / "cpu", numbers, tmp_path / "metrics")
    assert frame["agrees"].tolist() == ["yes", "no, by 50 %", "-"]
