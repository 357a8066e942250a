"""Parts of the full reference: which runs each has, and that joined they are one run's results."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from synthetic import make_hard_records, make_presample, make_records, make_temperature_records, make_train_logs

from dphlib.experiment import exploratory, results
from dphlib.experiment.results import Results, read_beyond, write_beyond
from dphlib.runtime.files import RunError
from dphlib.settings.methods import DECISIVE
from dphlib.settings.studies import EXPLORATORY, STUDIES, planned_runs
from tools import parts

METHODS = ("base", "grpo", "dph_f")
BEYOND = {"hard": make_hard_records, "temperature": make_temperature_records}


def described(part: Path, protocol: str = "this") -> Path:
    part.mkdir(parents=True, exist_ok=True)
    (part / parts.DESCRIPTION).write_text(json.dumps({"protocol": protocol}))
    return part


def of_arms(folder: Path, seed: int, **description: str) -> Path:
    part = described(folder / f"decisive-{seed:02d}", **description)
    records = make_records(METHODS, (seed,), ablations=False, steps=False)
    presample = make_presample(12).assign(suite="train", family="highest")
    Results(parts.full_profile(), records, make_train_logs(METHODS, (seed,)), presample).write(part)
    return part


def beyond(folder: Path, seed: int) -> Path:
    part = described(folder / f"exploratory-{seed:02d}")
    write_beyond({name: made(METHODS, (seed,)) for name, made in BEYOND.items()}, part)
    return part


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(results, "draw", lambda results, out: [])


def test_the_kinds_of_a_seed_are_all_planned_runs_and_the_exploratory_the_decisive_ones():
    planned = planned_runs(parts.full_profile(), tuple(STUDIES))
    for seed in (0, 5, 6, 17):
        decisive, others, asked = (parts.runs_of(seed, kind) for kind in ("decisive", "others", "exploratory"))
        assert sorted(decisive + others, key=str) == sorted((r for r in planned if r.seed == seed), key=str)
        assert decisive == asked and {run.method for run in decisive} == set(DECISIVE)
        assert bool(others) == (seed < 6)
        assert {m for study in exploratory.EXPLORATORY.values() for m in study.methods} <= {r.method for r in asked}


def test_an_exploratory_part_has_the_answers_of_the_decisive_runs_and_is_made_once(tmp_path, monkeypatch):
    asked = []

    def records(pipeline: object, name: str, runs: list) -> pd.DataFrame:
        asked.append((name, [run.name for run in runs]))
        return BEYOND[name](METHODS, (4,))

    monkeypatch.setattr(exploratory, "records", records)
    monkeypatch.setattr(parts, "ARTIFACTS", tmp_path / "artifacts")
    part = parts.make(4, "exploratory", tmp_path)
    assert part == tmp_path / "exploratory-04" == parts.make(4, "exploratory", tmp_path)
    assert asked == [(name, [run.name for run in parts.runs_of(4, "decisive")]) for name in EXPLORATORY]
    assert {name: len(rows) for name, rows in read_beyond(part).items()} == {
        name: len(made(METHODS, (4,))) for name, made in BEYOND.items()
    }
    assert json.loads((part / parts.DESCRIPTION).read_text())["runs"] == asked[0][1]
    assert parts.make(18, "exploratory", tmp_path) is None


def test_joined_parts_are_one_runs_results(tmp_path, undrawn):
    made = [of_arms(tmp_path, 0), of_arms(tmp_path, 1), beyond(tmp_path, 0), beyond(tmp_path, 1)]
    parts.join(made, tmp_path / "full")
    joined = Results.load(tmp_path / "full", parts.full_profile())
    assert joined.scores.of("grpo", "in_domain").seeds == (0, 1) and len(joined.presample) == 12
    assert set(joined.beyond) == set(EXPLORATORY)
    assert joined.hard_scores.of("dph_f", "in_domain", "pass", 64).seeds == (0, 1)
    at = exploratory.at_temperatures(joined.beyond["temperature"])
    assert at[0.5].of("base", "in_domain").seeds == (0,) and at[1.3].of("grpo", "in_domain").seeds == (0, 1)
    parts.join(made[:2], tmp_path / "full")
    assert Results.load(tmp_path / "full", parts.full_profile()).beyond == {}


def test_what_cannot_be_joined_is_named(tmp_path, undrawn):
    with pytest.raises(RunError, match="no part with records of arms"):
        parts.join([beyond(tmp_path, 0)], tmp_path / "full")
    with pytest.raises(RunError, match="made by 2 protocols"):
        parts.join([of_arms(tmp_path, 0), of_arms(tmp_path, 1, protocol="older")], tmp_path / "full")
    again = tmp_path / "again"
    other = of_arms(again, 0)
    rows = pd.read_parquet(other / "records.parquet")
    rows.assign(correct=0).to_parquet(other / "records.parquet")
    with pytest.raises(RunError, match="two parts differ in"):
        parts.join([of_arms(tmp_path, 0), other], tmp_path / "full")


def test_the_kinds_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        parts.main(["make", "0", "--others", "--exploratory"])
    assert "not allowed with" in capsys.readouterr().err
