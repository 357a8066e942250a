"""The frontier: what a run gains in Pass@1, and what it pays in Pass@k and in styles, along its whole training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphlib.analysis.labels import COLOURS
from dphlib.analysis.waypoints import K, stopping_steps
from dphlib.figures.style import absent_note, legend, line_style, note, panels
from dphlib.settings.variants import MAIN
from dphlib.types import VALIDATION

FRONTIER = ("base", "grpo", "dapo", "rkl", "grpo_dexp", "dph_f", "dph_js")


def trajectories(waypoints: pd.DataFrame, methods: Sequence[str] = FRONTIER) -> pd.DataFrame:
    """The way-points of main runs, mean over runs: method, step, runs, pass_1, pass_k, styles_nats, greedy.

    Args:
        waypoints: `analysis.waypoints.waypoint_table`; the base models are at step 0.
    """
    rows = waypoints[(waypoints["variant"] == MAIN) & waypoints["method"].isin(methods)]
    groups = rows.groupby(["method", "step"], observed=True)
    means = groups[["pass_1", "pass_k", "styles_nats", "greedy"]].mean()
    means.insert(0, "runs", groups.size())
    return means.reset_index()


def frontier(waypoints: pd.DataFrame, methods: Sequence[str] = FRONTIER) -> Figure:
    """Pass@k, style entropy and greedy accuracy against sampled Pass@1, a line for each method's training.

    An open circle is the mean stopping point of a method's runs, the larger marker the end.

    Raises:
        ValueError: no records of the base or of a trained method.
    """
    table = trajectories(waypoints, methods)
    there = [method for method in methods if method in set(table["method"])]
    if "base" not in there or len(there) < 2:
        raise ValueError("no records of the base model or of a trained method: evaluate them, then draw")
    named = {
        "pass_k": (f"Pass@{K} (%)", 100),
        "styles_nats": ("style entropy (nats)", 1),
        "greedy": ("greedy (%)", 100),
    }
    measures = [(column, *named[column]) for column in named if column in table and table[column].notna().all()]
    fig, axes = panels(1, len(measures), 3.1)
    main = waypoints[waypoints["variant"] == MAIN]
    stops: Mapping[str, float] = {}
    if (main["suite"] == VALIDATION).all():
        stops = stopping_steps(main).groupby(level="method", observed=True).mean()
    for ax, (column, name, scale) in zip(axes[0], measures, strict=True):
        for method in there:
            _draw(ax, table, method, column, scale, stops.get(method))
        ax.set_xlabel("Pass@1 (%)")
        ax.set_ylabel(name)
    legend(fig, there)
    runs = int(table.loc[table["method"] != "base", "runs"].min())
    note(
        fig,
        [
            f"Mean over {runs} runs, from the base to the end of training; open circle: mean stopping point.",
            absent_note(methods, there),
        ],
    )
    return fig


def _draw(ax: Axes, table: pd.DataFrame, method: str, column: str, scale: float, stop: float | None) -> None:
    start = table[table["method"] == "base"]
    path = pd.concat([start, table[table["method"] == method].sort_values("step")])
    x, y, look = 100 * path["pass_1"], scale * path[column], line_style(method)
    if method == "base":
        ax.plot(x[:1], y[:1], **look)
        return
    ax.plot(x, y, color=look["color"], linestyle=look["linestyle"], linewidth=1.2, zorder=4)
    ax.plot(x.iloc[-1:], y.iloc[-1:], **{**look, "markersize": 5.5})
    if stop is not None:
        at = (path["step"] - stop).abs().to_numpy().argmin()
        ax.plot(x.iloc[at], y.iloc[at], marker="o", markersize=6, markerfacecolor="none", color=COLOURS[method])
