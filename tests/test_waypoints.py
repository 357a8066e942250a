"""The way-points of runs, and the records at their stopping points."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic import make_rows

from dphlib import stats
from dphlib.analysis.waypoints import at_stopping, stopping_steps, waypoint_table


def on_the_way(method: str, seed: int, correct: dict[int, int]) -> pd.DataFrame:
    """Eight draws on each of four problems at each step, so many of them correct, and a greedy answer that is wrong."""
    parts = [
        make_rows(method, seed, [[1] * right + [0] * (8 - right)] * 4, greedy=[0] * 4, step=step, suite="validation")
        for step, right in correct.items()
    ]
    return pd.concat(parts, ignore_index=True)


ROWS = pd.concat(
    [
        on_the_way("base", 0, {0: 2}),
        on_the_way("grpo", 0, {5: 4, 10: 6, 15: 6, 20: 5, 25: 8}),  # no gain after 10
        on_the_way("grpo", 1, {5: 2, 10: 4, 15: 6, 20: 7, 25: 8}),  # gains to the end
    ],
    ignore_index=True,
)


def test_a_way_point_is_the_mean_over_its_problems():
    table = waypoint_table(ROWS).set_index(["method", "seed", "step"])
    assert len(table) == 11 and set(table["problems"]) == {4} and set(table["greedy"]) == {0.0}
    one = table.loc[("grpo", 0, 10)]
    assert one["pass_1"] == 6 / 8 and one["pass_k"] == 1.0 and one["suite"] == "validation"
    without = waypoint_table(stats.sampled(ROWS))
    assert without["greedy"].isna().all()


def test_a_run_stops_at_its_first_plateau():
    steps = stopping_steps(waypoint_table(ROWS))
    assert steps.to_dict() == {("grpo", "main", 0): 10, ("grpo", "main", 1): 25}


@pytest.mark.parametrize("coded", [False, True])
def test_records_at_the_stopping_point_are_those_of_its_step_and_all_of_the_base(coded):
    records = pd.concat(
        [make_rows("base", step=0), *(make_rows("grpo", seed, step=step) for seed in (0, 1) for step in (10, 25))],
        ignore_index=True,
    )
    if coded:
        records = records.astype({"method": "category", "variant": "category"})
    found = at_stopping(records, waypoint_table(ROWS))
    assert sorted(set(zip(found["method"], found["seed"], found["step"], strict=True))) == [
        ("base", 0, 0),
        ("grpo", 0, 10),
        ("grpo", 1, 25),
    ]
