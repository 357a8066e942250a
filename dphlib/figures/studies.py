"""Figures of the studies: each comparison's effect with its interval, and what each weight does.

Input is `analysis.studies.study_table`, which names what was not run; a row without a run is drawn as an empty line
that says so. A difference is clear, in colour and in words, where its sentence says that it is: by Holm's p.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from dphlib.analysis.labels import COLOURS, FAMILY, NAMES, SUITES, label
from dphlib.analysis.pretrained import PRETRAINED, SMALL_MODEL
from dphlib.analysis.studies import is_clear
from dphlib.figures.style import (
    GREY,
    INTERVAL,
    POINT,
    SMALL,
    cut_long_intervals,
    interval_bar,
    legend,
    line_style,
    note,
    panels,
    rows_axis,
    shared_ticks,
)
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import STUDIES, comparisons
from dphlib.settings.variants import RunConfig, parse

_PANELS = (
    ("in domain", "greedy", "in domain\ngreedy"),
    ("in domain", "Pass@8", "in domain\nPass@8"),
    ("in domain", "styles_nats", "in domain\nstyles"),
    ("out of domain", "Pass@8", "out of domain\nPass@8"),
)
_NAMED = 6
"""Up to so many settings that were not run are named, more are counted."""
CLEAR = {True: "#0070BA", False: "#7A7A7A"}
"""Colour of a difference that is clear by Holm's p, and of one that is not."""


def comparison_figure(table: pd.DataFrame) -> Figure:
    """The differences of some studies, one row per comparison under its study's question, one panel per measure.

    A study of which nothing was run has no rows and is named below.

    Raises:
        ValueError: nothing of it was run.
    """
    _demand_a_run(table)
    drawn_studies = set(table.loc[table["status"] == "run", "study"])
    absent = [name for name in dict.fromkeys(table["study"]) if name not in drawn_studies]
    table = table[table["study"].isin(drawn_studies)]
    rows = table[["study", "arm", "against"]].drop_duplicates().to_numpy().tolist()
    names = [_name(arm, against) for _, arm, against in rows]
    heights, heads = _places([study for study, _, _ in rows])
    fig, axes = panels(1, len(_PANELS), 1.35 + 0.3 * max(heights), sharey=True)
    cut = False
    for ax, (suite, measure, title) in zip(axes[0], _PANELS, strict=True):
        of_panel = table[(table["suite"] == suite) & (table["measure"] == measure)]
        of_panel = of_panel.set_index(["study", "arm", "against"])
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=2)
        ax.set_yticks(heights, names, fontsize=SMALL + 0.3, linespacing=0.95)
        ax.set_ylim(max(heights) + 0.7, -0.5)
        ax.grid(axis="y", visible=False)
        drawn = [(y, of_panel.loc[tuple(key)]) for y, key in zip(heights, rows, strict=True)]
        ends = [bar for y, row in drawn if (bar := _effect(ax, y, row)) is not None]
        cut |= bool(ends) and cut_long_intervals(ax, ends)
        ax.set_title(title, fontsize=8)
        ax.set_xlabel("nats" if measure == "styles_nats" else "points")
        ax.annotate("Holm's p", (1.03, 1.005), xycoords="axes fraction", fontsize=SMALL - 0.6, color=GREY, va="bottom")
        ax.xaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))
        ax.spines["left"].set_visible(False)  # it would cross the questions
    shared_ticks(axes[0])
    for y, study in heads:
        for ax in axes[0]:
            ax.axhspan(y - 0.5, y + 0.5, color="white", zorder=2.2, linewidth=0)
        place = blended_transform_factory(fig.transFigure, axes[0, 0].transData)
        question = fig.text(0.01, y, STUDIES[study].question, transform=place, fontsize=SMALL + 0.5, zorder=5)
        question.set(weight="bold", va="center", color=GREY, in_layout=False)
    line = f"Bars: {INTERVAL}. Blue, and p in bold: clear by Holm's p, corrected over the study; grey: unclear."
    line += " Arrowhead: the interval goes on." if cut else ""
    line += " A row without a minus is compared with the method's main run."
    note(fig, [line, f"Not run: {', '.join(absent)}." if absent else ""])
    return fig


def changes_figure(effects: pd.DataFrame, measure: str = "Pass@8") -> Figure:
    """What each ablation changes in one measure, a row for each, a panel for each suite; no verdict is coloured.

    Args:
        effects: `analysis.studies.effects`, not empty.
    """
    suites = [name for name in SUITES.values() if name in set(effects["suite"])]
    names = list(dict.fromkeys(effects["ablation"]))
    fig, axes = panels(1, len(suites), 1.0 + 0.27 * len(names), sharey=True)
    cut = False
    for ax, suite in zip(axes[0], suites, strict=True):
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=2)
        heights = dict(zip(names, rows_axis(ax, names), strict=True))
        rows = effects[(effects["suite"] == suite) & effects[measure].notna()]
        numbers = rows[["ablation", f"{measure}_low", measure, f"{measure}_high"]].itertuples(index=False, name=None)
        drawn = [(heights[name], (low, value, high), CLEAR[False]) for name, low, value, high in numbers]
        for y, ends, colour in drawn:
            interval_bar(ax, y, ends, colour, markersize=4.4)
        cut |= bool(drawn) and cut_long_intervals(ax, drawn)
        ax.set(title=suite, xlabel=f"{measure} (points)")
    shared_ticks(axes[0, 1:])
    line = f"Minus the method's main run. Bars: {INTERVAL}, not corrected for their number."
    note(fig, [line + (" Arrowhead: the interval goes on." if cut else "")])
    return fig


def pretrained_figure(table: pd.DataFrame) -> Figure:
    """Figure 21: the main effects of the small model and of a pretrained one, a row for each, a panel for each measure.

    Args:
        table: `analysis.pretrained.pretrained_table`.
    """
    shown = table[["suite", "measure"]].drop_duplicates().to_numpy().tolist()
    names = list(dict.fromkeys(table["method"] + " minus " + table["minus"]))
    fig, axes = panels(-(-len(shown) // 3), 3, 5.2, sharey=True)
    for ax, (suite, measure) in zip(axes.flat, shown, strict=True):
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=2)
        heights = dict(zip(names, rows_axis(ax, names), strict=True))
        drawn = []
        for row in table[(table["suite"] == suite) & (table["measure"] == measure)].to_dict("records"):
            small = row["model"] == SMALL_MODEL
            y = heights[f"{row['method']} minus {row['minus']}"] + (0.16 if small else -0.16)
            ends = (row["difference_low"], row["difference"], row["difference_high"])
            colour = _COLOUR_OF[row["method"]]
            interval_bar(
                ax, y, ends, colour, **({} if small else {"markerfacecolor": "white", "markeredgecolor": colour})
            )
            drawn.append((y, ends, colour))
        cut_long_intervals(ax, drawn)
        ax.set_title(f"{suite}, {measure}", fontsize=8)
        ax.set_xlabel("points")
    runs = table.groupby("model", sort=False)["runs"].min()
    marks = {SMALL_MODEL: "filled", PRETRAINED: "open"}
    said = "; ".join(f"{marks[model]}: {model}, {count} runs" for model, count in runs.items())
    note(fig, [f"{said[0].upper()}{said[1:]}. Bars: {INTERVAL}, not corrected for their number."])
    return fig


_COLOUR_OF = {NAMES[method]: colour for method, colour in COLOURS.items()}


def _name(arm: str, against: str) -> str:
    """A comparison's row: the arm, minus the other where that is not the main run of its method, on lines that fit."""
    said = arm if arm.startswith(f"{against},") else f"{arm} minus {against}"
    return said if len(said) <= 30 else said.replace(" minus ", "\nminus ")


def _places(studies: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights of the rows from the top, and of a head above the rows of each study.

    >>> _places(["a", "a", "b"])
    ([1.0, 2.0, 4.0], [(0.0, 'a'), (3.0, 'b')])
    """
    heights: list[float] = []
    heads: list[tuple[float, str]] = []
    for study in studies:
        if not heads or heads[-1][1] != study:
            heads.append((float(len(heights) + len(heads)), study))
        heights.append(float(len(heights) + len(heads)))
    return heights, heads


def weight_figure(table: pd.DataFrame, settings: Profile) -> Figure:
    """Four measures against the strength of the divergence, eta f''(1), log scale, one line per method.

    The alpha family and JS by definition have a row of panels of their own.

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
    there = set(ran["method"])
    family = [method for method in FAMILY if method in there and method not in ("dph_f", "dph_js")]
    others = [method for method in NAMES if method in there and method not in family]
    groups = [group for group in (others, family) if group]
    fig, axes = panels(len(groups), len(_PANELS), 0.9 + 2.0 * len(groups), sharex=True, sharey="col")
    strengths = sorted({round(x, 6) for x in (*ran["x"], *ran["against_x"])})
    for place, (row, group) in enumerate(zip(axes, groups, strict=True)):
        for ax, (suite, measure, title) in zip(row, _PANELS, strict=True):
            of_panel = ran[(ran["suite"] == suite) & (ran["measure"] == measure)].sort_values("x")
            for method, apart in zip(group, np.linspace(-1, 1, len(group)) if len(group) > 1 else [0], strict=True):
                _sweep(ax, of_panel[of_panel["method"] == method], method, 1.13**apart)
            _strength_axis(ax, strengths)
            if place == 0:
                ax.set_title(f"{title} ({'nats' if measure == 'styles_nats' else '%'})")
            if place == len(groups) - 1:
                ax.set_xlabel(r"$\eta\,f^{\prime\prime}(1)$")
    legend(fig, [method for group in groups for method in group], columns=5)
    absent = [name for name in dict.fromkeys(table["arm"]) if name not in set(ran["arm"])]
    line = f"Strength: eta f''(1). Filled: the main run. Upright bars: {INTERVAL}; methods are moved apart."
    named = "; ".join(absent) if len(absent) <= _NAMED else f"{len(absent)} of {table['arm'].nunique()} settings"
    note(fig, [line, f"Not run: {named}." if absent else ""])
    return fig


def complementarity_figure(table: pd.DataFrame, settings: Profile) -> Figure:
    """In-domain Pass@8 of DPH-F and GRPO, and their difference, against the share of the problems that are hidden.

    Args:
        table: `analysis.studies.study_table` of `complementarity`.
        settings: the profile that it was made with.

    Raises:
        ValueError: nothing of it was run.
    """
    _demand_a_run(table)
    shares = {
        label(*one.arm): _hidden_share(one.arm.variant, settings) for one in comparisons(settings, "complementarity")
    }
    rows = table[(table["suite"] == "in domain") & (table["measure"] == "Pass@8")]
    rows = rows.assign(share=100 * rows["arm"].map(shares)).sort_values("share")
    ran = rows[rows["status"] == "run"]
    fig, ((levels, gained),) = panels(1, 2, 2.9)
    for method, column in (("grpo", "against_mean"), ("dph_f", "mean")):
        levels.plot(ran["share"], ran[column], **line_style(method))
    gained.axhline(0, color=GREY, linewidth=0.9)
    gained.plot(ran["share"], ran["difference"], color=GREY, linewidth=0.8)
    for _, row in ran.iterrows():
        colour = CLEAR[is_clear(row)]
        gained.vlines(row["share"], row["low"], row["high"], color=colour, linewidth=1.8, alpha=0.55)
        gained.plot([row["share"]], [row["difference"]], **{**POINT, "color": colour})
    levels.set_ylabel("Pass@8 (%)")
    gained.set_ylabel("DPH-F minus GRPO (points)")
    for ax in (levels, gained):
        ax.set_xlabel("hidden problems (%)")
        ax.set_xticks(ran["share"], [f"{share:g}" for share in ran["share"]])
    legend(fig, ["grpo", "dph_f"])
    runs = "; ".join(f"{row.share:g} %: {min(row.seeds, row.against_seeds)}" for row in ran.itertuples())
    absent = ", ".join(f"{share:g} %" for share in rows.loc[rows["status"] != "run", "share"])
    line = f"Right: {INTERVAL}; blue: clear by Holm's p, grey: unclear. Runs per arm at {runs}."
    note(fig, [line, absent and f"Not run: {absent}."])
    return fig


def _hidden_share(variant: str, settings: Profile) -> float:
    """The share of an arm's problems in domain that are hidden."""
    key, value = parse(variant)
    return value if key == "hidden" else settings.world.content_shares["hidden"]


def _strength_axis(ax: Axes, strengths: Sequence[float]) -> None:
    """A log axis whose ticks are the strengths that were run."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(list(strengths)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _sweep(ax: Axes, rows: pd.DataFrame, method: str, apart: float) -> None:
    """One method's means at its weights, times a factor, with the interval of each that is not the main run."""
    if rows.empty:
        return
    main, x = rows.iloc[0], apart * rows["x"]
    middle = (apart * main["against_x"], main["against_mean"])
    style = line_style(method)
    ax.plot(*zip(*sorted([*zip(x, rows["mean"], strict=True), middle]), strict=True), **{**style, "marker": None})
    ax.vlines(x, rows["mean_low"], rows["mean_high"], color=COLOURS[method], linewidth=1, alpha=0.5)
    mark = {**style, "linestyle": "", "zorder": 5}
    hollow = {"markerfacecolor": "white", "markeredgecolor": COLOURS[method], "markeredgewidth": 0.9}
    ax.plot(x, rows["mean"], **{**mark, "markersize": 3.6, **hollow})
    ax.plot(*([value] for value in middle), **{**mark, "markersize": 5})


def _effect(ax: Axes, y: float, row: pd.Series) -> tuple[float, tuple[float, float, float], str] | None:
    """One difference with its interval, and Holm's p beside it; returns height, ends and colour of what was run."""
    if row["status"] != "run":
        ax.text(0, y, " not run", va="center", ha="left", fontsize=SMALL - 0.6, color=GREY)
        return None
    clear = is_clear(row)
    ends = (row["low"], row["difference"], row["high"])
    interval_bar(ax, y, ends, CLEAR[clear], markersize=4.4)
    p = "<.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}".lstrip("0")
    weight = "bold" if clear else "normal"
    ax.annotate(
        p, (1.03, y), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL - 0.4, color=CLEAR[clear]
    ).set(weight=weight)
    return y, ends, CLEAR[clear]


def _demand_a_run(table: pd.DataFrame) -> None:
    if not (table["status"] == "run").any():
        names = ", ".join(dict.fromkeys(table["study"]))
        raise ValueError(
            f"nothing of the studies {names} was run: run them with dph ablate, or notebook 07's `studies`"
        )
