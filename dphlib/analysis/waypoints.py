"""What runs were on their way: the way-points of each, and where it would have been stopped."""

from __future__ import annotations

import pandas as pd

from dphlib import stats
from dphlib.training.stopping import plateau

RUN = ["method", "variant", "seed"]
K = 8


def waypoint_table(records: pd.DataFrame) -> pd.DataFrame:
    """One row per run and step of the records of one suite, mean over its problems.

    Returns:
        Columns method, variant, seed, step, suite, problems, pass_1, pass_k (shares, K draws), auc_k
        (`stats.auc_at_k`), styles_nats, and greedy, NaN where there are no greedy answers.
    """
    at = [*RUN, "step", "suite"]
    curve = stats.pass_curve(records, (1, K))
    wide = curve.pivot(index=[*at, "problems"], columns="k", values="pass_at_k").reset_index("problems")
    table = wide.rename(columns={1: "pass_1", K: "pass_k"})
    table["auc_k"] = stats.auc_at_k(records, K).set_index(at)["auc_at_k"]
    table["styles_nats"] = stats.style_entropy(records).set_index(at)["per_problem_nats"]
    table["greedy"] = float("nan")
    if len(greedy := stats.greedy(records)):
        table["greedy"] = stats.greedy_accuracy(greedy).set_index(at)["greedy"]
    return table.reset_index().rename_axis(columns=None)


def stopping_steps(waypoints: pd.DataFrame) -> pd.Series:
    """Step of the first plateau of Pass@1 of each run; index method, variant, seed. None of the base models."""
    trained = waypoints[waypoints["method"] != "base"].sort_values("step")
    groups = trained.groupby(RUN, observed=True)
    return groups.apply(lambda rows: int(rows["step"].iloc[plateau(list(rows["pass_1"]))]), include_groups=False)


def at_stopping(records: pd.DataFrame, waypoints: pd.DataFrame) -> pd.DataFrame:
    """The records (or way-points) of each run at its stopping step; those of the base models as they are."""
    steps = stopping_steps(waypoints).rename("stopping_step").reset_index()
    rows = (
        records[RUN]
        .astype({"method": str, "variant": str})
        .merge(steps.astype({"method": str, "variant": str}), on=RUN, how="left")
    )
    here = (records["step"].to_numpy() == rows["stopping_step"].to_numpy()) | (records["method"] == "base").to_numpy()
    return records[here]
