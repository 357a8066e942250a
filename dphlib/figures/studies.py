"""Figures of the studies: each comparison's effect with its interval, and what each weight does.

Input is `ablations.study_table`, which names what was not run; a row without a run is drawn as an empty line that says
so. See `plots` for the other figures.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphlib.analysis.labels import COLOURS, MARKERS, NAMES, label
from dphlib.figures.style import GREY, INTERVAL, legend, line_style, note, panels, shared_ticks
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import comparisons
from dphlib.settings.variants import RunConfig

_PANELS = (
    ("in domain", "greedy", "in domain\ngreedy"), ("in domain", "Pass@8", "in domain\nPass@8"),
    ("in domain", "styles_nats", "in domain\nstyle entropy"), ("out of domain", "Pass@8", "out of domain\nPass@8"),
)  # fmt: skip
_I = "bars: 95 % interval over seeds and problems (hierarchical bootstrap with Student's quantile)"
CAPTIONS = {
    "fig11_controls": "Each row is one comparison, its first arm minus its second on the same problems; right of the "
    f"line the first is higher; {_I}.",
    "fig12_eta": "Each method at several weights of its divergence; the filled point is the main run; lines join "
    f"weights of one method; {_I}.",
    "fig13_ablations": "Each row is one setting changed, minus the main run of its method on the same problems; right "
    f"of the line the changed setting is higher; {_I}.",
}


def comparison_figure(table: pd.DataFrame) -> Figure:
    """The differences of some studies, a row a comparison and a panel a measure.

    Raises:
        ValueError: nothing of it was run.
    """
    _demand_a_run(table)
    rows = table[["study", "arm", "against"]].drop_duplicates().to_numpy().tolist()
    fig, axes = panels(1, len(_PANELS), 0.85 + 0.24 * len(rows), sharey=True)
    for ax, (suite, measure, title) in zip(axes[0], _PANELS, strict=True):
        of_panel = table[(table["suite"] == suite) & (table["measure"] == measure)]
        of_panel = of_panel.set_index(["study", "arm", "against"])
        for y, key in zip(range(len(rows))[::-1], rows, strict=True):
            _effect(ax, y, of_panel.loc[tuple(key)])
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=2)
        ax.set_title(title)
        ax.set_xlabel("nats" if measure == "styles_nats" else "points")
        ax.grid(axis="y", visible=False)
    names = [arm if arm.startswith(f"{against},") else f"{arm} minus {against}" for _, arm, against in rows]
    axes[0, 0].set_yticks(range(len(rows))[::-1], names, fontsize=6.3)
    axes[0, 0].set_ylim(-0.6, len(rows) - 0.4)
    shared_ticks(axes[0, 1:])
    absent = [name for name, (study, arm, against) in zip(names, rows, strict=True) if not _ran(table, arm, against)]
    note(fig, [f"Bars: {INTERVAL}; blue leaves zero out, uncorrected. Without a second name: minus the main run.",
               f"not run: {'; '.join(absent)}" if absent else ""])  # fmt: skip
    return fig


def weight_figure(table: pd.DataFrame, settings: Profile) -> Figure:
    """Four measures against the weight of the divergence, log scale, a line a method.

    Args:
        table: `ablations.study_table` of the study `eta`.
        settings: the profile that it was made with.

    Raises:
        ValueError: nothing of it was run.
    """
    _demand_a_run(table)
    arms = {label(*arm): arm for one in comparisons(settings, "eta") for arm in (one.arm, one.against)}
    weights = {name: settings.method_config(RunConfig(*arm, 0)).weight for name, arm in arms.items()}
    table = table.assign(
        method=table["arm"].map(lambda name: arms[name].method), x=table["arm"].map(weights),
        against_x=table["against"].map(weights),
    )  # fmt: skip
    ran = table[table["status"] == "run"]
    drawn = [method for method in NAMES if method in set(ran["method"])]
    fig, axes = panels(1, len(_PANELS), 2.7)
    for ax, (suite, measure, title) in zip(axes[0], _PANELS, strict=True):
        of_panel = ran[(ran["suite"] == suite) & (ran["measure"] == measure)].sort_values("x")
        for method in drawn:
            _sweep(ax, of_panel[of_panel["method"] == method], method)
        ax.set_xscale("log")
        ax.set_title(title)
        ax.set_xlabel("weight")
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
    mark: dict[str, Any] = {"color": COLOURS[method], "marker": MARKERS[method], "linestyle": "", "zorder": 5}
    ax.plot(rows["x"], rows["mean"], markersize=3.2, markerfacecolor="white", **mark)
    ax.plot([main["against_x"]], [main["against_mean"]], markersize=4.2, **mark)


def _effect(ax: Axes, y: float, row: pd.Series) -> None:
    if row["status"] != "run":
        ax.text(0, y, " not run", va="center", ha="left", fontsize=5.8, color=GREY)
        return
    told = row["low"] > 0 or row["high"] < 0
    colour = "#0072B2" if told else "#8A8A8A"
    ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2, alpha=0.5, solid_capstyle="butt")
    ax.plot([row["difference"]], [y], color=colour, marker="o" if told else "D", markersize=4, zorder=5,
            markeredgecolor="white", markeredgewidth=0.4)  # fmt: skip


def _ran(table: pd.DataFrame, arm: str, against: str) -> bool:
    rows = table[(table["arm"] == arm) & (table["against"] == against)]
    return bool((rows["status"] == "run").any())


def _demand_a_run(table: pd.DataFrame) -> None:
    if not (table["status"] == "run").any():
        names = ", ".join(dict.fromkeys(table["study"]))
        raise ValueError(
            f"nothing of the studies {names} was run: run them with dph ablate, or notebook 07's `studies`"
        )
