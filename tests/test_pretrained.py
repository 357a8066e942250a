"""The small model's effects beside a pretrained model's: both runs' own numbers, and why they are left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic import make_records, make_train_logs

from dphlib.analysis import sentences
from dphlib.analysis.pretrained import EFFECTS, MEASURES, PRETRAINED, SMALL_MODEL, pretrained_table
from dphlib.experiment import results as results_module
from dphlib.experiment.results import FIGURES, Results, figure, table
from dphlib.intervals import interval
from dphlib.scores import ArmScores
from dphlib.settings.profiles import profile

METHODS = ("base", "grpo", "grpo_dexp", "rkl", "dph_f", "dph_js")


@pytest.fixture(scope="module")
def small() -> Results:
    records = make_records(METHODS, (0, 1, 2), bases=(0, 1, 2), ablations=False, steps=False)
    return Results(profile("cpu"), records, make_train_logs(METHODS), pd.DataFrame())


@pytest.fixture(scope="module")
def other() -> pd.DataFrame:
    """Of one base, two runs each; DPH-JS was not trained."""
    return make_records(METHODS[:-1], (0, 1), ablations=False, steps=False)


def test_each_effect_is_the_runs_own_with_its_interval(small, other):
    made = pretrained_table(small.scores, ArmScores.final(other))
    shown = sum(map(len, MEASURES.values()))
    assert dict(made["model"].value_counts()) == {SMALL_MODEL: shown * len(EFFECTS), PRETRAINED: shown * 4}
    rows = made.set_index(["model", "suite", "measure", "method"])
    for model, scores, runs in ((SMALL_MODEL, small.scores, 3), (PRETRAINED, ArmScores.final(other), 2)):
        row = rows.loc[(model, "cross domain", "Pass@8", "DPH-F")]
        got = interval([scores.of(name, "cross_domain", "pass", 8) for name in ("dph_f", "grpo")], np.subtract)
        numbers = row[["difference", "difference_low", "difference_high"]].to_list()
        assert numbers == pytest.approx([100 * x for x in (got.estimate, got.low, got.high)])
        assert row["minus"] == "GRPO" and row["runs"] == runs
    assert (PRETRAINED, "in domain", "greedy", "DPH-JS") not in rows.index
    said = sentences.pretrained(made, "dph_f", suite="cross_domain")
    assert said.startswith("DPH-F minus GRPO, cross domain Pass@8, in points: small model ")
    assert f"SmolLM2-135M {row['difference']:+.1f} [{row['difference_low']:+.1f}, " in said
    assert said.endswith("(2 runs, too few to decide).") and sentences.pretrained(made, "dapo") == "DAPO: not run."


def test_they_are_drawn_where_the_other_run_is_recorded(small, other, tmp_path, monkeypatch):
    where = tmp_path / "records.parquet"
    monkeypatch.setattr(results_module, "_PRETRAINED", where)
    product = FIGURES["fig21_pretrained"]
    assert product.why_absent(small) == "no run of a pretrained model is recorded"
    other.to_parquet(where)
    assert product.why_absent(small) == ""
    assert (
        product.why_absent(replace(small, settings=profile("lm")))
        == "it is the profile cpu's, beside a pretrained model's"
    )
    drawn = figure("fig21_pretrained", small, tmp_path)
    assert "open: SmolLM2-135M, 2 runs" in drawn.get_supxlabel()
    assert len(drawn.axes) == sum(map(len, MEASURES.values()))
    assert len(table("table_pretrained", small, tmp_path)) > 0 and (tmp_path / "tables/table_pretrained.csv").is_file()
