"""Figures of the studies: each comparison's effect with its interval, and what each weight does.

Input is `analysis.studies.study_table`, which names what was not run; a row without a run is drawn as an empty line
that says so.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphlib.analysis.labels import COLOURS, LOOKS, NAMES, label
from dphlib.figures.style import GREY, INTERVAL, interval_bar, legend, line_style, note, panels, rows_axis, shared_ticks
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import comparisons
from dphlib.settings.variants import RunConfig

_PANELS = (
    ("in domain", "greedy", "in domain\ngreedy"),
    ("in domain", "Pass@8", "in domain\nPass@8"),
    ("in domain", "styles_nats", "in domain\nstyle entropy"),
    ("out of domain", "Pass@8", "out of domain\nPass@8"),
)


def comparison_figure(table: pd.DataFrame) -> Figure:
    """The differences of some studies, one row per comparison and one panel per measure.

    Raises:
        ValueError: nothing of it was run.
    """
    _demand_a_run(table)
    rows = table[["study", "arm", "against"]].drop_duplicates().to_numpy().tolist()
    names = [arm if arm.startswith(f"{against},") else f"{arm} minus {against}" for _, arm, against in rows]
    fig, axes = panels(1, len(_PANELS), 0.85 + 0.24 * len(rows), sharey=True)
    for ax, (suite, measure, title) in zip(axes[0], _PANELS, strict=True):
        of_panel = table[(table["suite"] == suite) & (table["measure"] == measure)]
        of_panel = of_panel.set_index(["study", "arm", "against"])
        for y, key in zip(rows_axis(ax, names, fontsize=6.3), rows, strict=True):
            _effect(ax, y, of_panel.loc[tuple(key)])
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=2)
        ax.set(title=title, xlabel="nats" if measure == "styles_nats" else "points")
    shared_ticks(axes[0, 1:])
    ran = set(table.loc[table["status"] == "run", ["arm", "against"]].itertuples(index=False, name=None))
    absent = [name for name, (_, arm, against) in zip(names, rows, strict=True) if (arm, against) not in ran]
    line = f"Bars: {INTERVAL}; blue leaves zero out, uncorrected. Without a second name: minus the main run."
    note(fig, [line, f"not run: {'; '.join(absent)}" if absent else ""])
    return fig


def weight_figure(table: pd.DataFrame, settings: Profile) -> Figure:
    """Four measures against the strength of the divergence, eta f''(1), log scale, one line per method.

    Args:
        table: `analysis.studies.study_table` of `eta`.
        settings: the profile that it was made with.

    Raises:
        ValueError: nothing of it was run.
    """
    _demand_a_run(table)
    arms = {label(*arm): arm for one in comparisons(settings, "eta") for arm in (one.arm, one.against)}
    configs = {name: settings.method_config(RunConfig(*arm, 0)) for name, arm in arms.items()}
    weights = {name: config.weight * config.curvature for name, config in configs.items()}
    methods = table["arm"].map(lambda name: arms[name].method)
    table = table.assign(method=methods, x=table["arm"].map(weights), against_x=table["against"].map(weights))
    ran = table[table["status"] == "run"]
    drawn = [method for method in NAMES if method in set(ran["method"])]
    fig, axes = panels(1, len(_PANELS), 2.7)
    for ax, (suite, measure, title) in zip(axes[0], _PANELS, strict=True):
        of_panel = ran[(ran["suite"] == suite) & (ran["measure"] == measure)].sort_values("x")
        for method in drawn:
            _sweep(ax, of_panel[of_panel["method"] == method], method)
        ax.set(xscale="log", title=title, xlabel="strength, eta f''(1)")
    axes[0, 0].set_ylabel("% (style entropy: nats)")
    legend(fig, drawn, columns=4)
    absent = [name for name in dict.fromkeys(table["arm"]) if name not in set(ran["arm"])]
    note(fig, [f"Filled: the main run. Bars: {INTERVAL}.", f"not run: {'; '.join(absent)}" if absent else ""])
    return fig


def _sweep(ax: Axes, rows: pd.DataFrame, method: str) -> None:
    """One method's means at its weights, with the interval of each that is not the main run."""
    if rows.empty:
        return
    main = rows.iloc[0]
    points = sorted([*zip(rows["x"], rows["mean"], strict=True), (main["against_x"], main["against_mean"])])
    ax.plot(*zip(*points, strict=True), **{**line_style(method), "marker": None})
    ax.vlines(rows["x"], rows["mean_low"], rows["mean_high"], color=COLOURS[method], linewidth=1, alpha=0.45)
    mark: dict[str, Any] = {"color": COLOURS[method], "marker": LOOKS[method].marker, "linestyle": "", "zorder": 5}
    ax.plot(rows["x"], rows["mean"], markersize=3.2, markerfacecolor="white", **mark)
    ax.plot([main["against_x"]], [main["against_mean"]], markersize=4.2, **mark)


def _effect(ax: Axes, y: float, row: pd.Series) -> None:
    if row["status"] != "run":
        ax.text(0, y, " not run", va="center", ha="left", fontsize=5.8, color=GREY)
        return
    clear = row["low"] > 0 or row["high"] < 0
    mark: dict[str, Any] = {"color": "#0072B2", "marker": "o"} if clear else {"color": "#8A8A8A", "marker": "D"}
    ends = (row["low"], row["difference"], row["high"])
    interval_bar(ax, y, ends, width=2, alpha=0.5, markersize=4, markeredgewidth=0.4, **mark)


def _demand_a_run(table: pd.DataFrame) -> None:
    if not (table["status"] == "run").any():
        names = ", ".join(dict.fromkeys(table["study"]))
        raise ValueError(
            f"nothing of the studies {names} was run: run them with dph ablate, or notebook 07's `studies`"
        )
