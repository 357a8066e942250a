"""Figures of the results: Pass@k, keep and explore, styles.

    save(pass_curves(records), folder, "fig2_pass_at_k")

`records` is the frame of `records.parquet`. The base is in every figure that compares methods; what was asked for and
not run is named under the panels. Intervals are cut at 0 and 100 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from dphlib import stats
from dphlib.analysis.labels import COLOURS, NAMES, SUITES
from dphlib.analysis.sentences import crossing_k
from dphlib.figures.style import (
    GREY,
    SMALL,
    absent_note,
    ink_on,
    interval_bar,
    interval_note,
    interval_ticks,
    legend,
    line_style,
    log2_axis,
    note,
    panels,
    powers_of_two,
    readable_range,
    rows_axis,
    settle,
    shared_ticks,
    stacked_styles,
    style_shares,
)
from dphlib.intervals import Interval, interval
from dphlib.scores import ArmScores, Split, keep_and_explore
from dphlib.settings.methods import HEADLINE, METHODS


def _main(records: pd.DataFrame, methods: Sequence[str], suite: str | None = None) -> pd.DataFrame:
    """Final main rows of some methods; ValueError without the base, which every comparison shows."""
    rows = records[(records["variant"] == "main") & records["method"].isin(methods)]
    if suite is not None:
        rows = rows[rows["suite"] == suite]
    rows = stats.final(rows)
    if "base" not in set(rows["method"]):
        where = f" {SUITES[suite]}" if suite else ""
        raise ValueError(f"no records of the base model{where}: evaluate the base first (notebook 02), then draw")
    return rows


def _present(rows: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    there = set(rows["method"])
    return [m for m in methods if m in there]


# ------------------------------------------------------------------------------------------------ Figure 2


def pass_curves(records: pd.DataFrame, methods: Sequence[str] = HEADLINE) -> Figure:
    """Figure 2: Pass@k against k on each suite, and the paired difference to the base; k a power of two.

    Args:
        records: frame of EvalRecord rows.
        methods: which to draw, the base among them.
    """
    rows = _main(stats.sampled(records), methods)
    suites = [suite for suite in SUITES if suite in set(rows["suite"])]
    return _curves({(suite, SUITES[suite]): rows[rows["suite"] == suite] for suite in suites}, methods)


def content_curves(parts: Mapping[tuple[str, str], pd.DataFrame], methods: Sequence[str] = HEADLINE) -> Figure:
    """Figure 20: Pass@k against k in domain where problems are hidden and where they are hard, as in Figure 2.

    Args:
        parts: rows by suite and content, see `contents.by_content`.
    """
    shown = {part: _main(stats.sampled(rows), methods) for part, rows in parts.items() if part[0] == "in_domain"}
    return _curves({(suite, f"{SUITES[suite]}, {held}"): rows for (suite, held), rows in shown.items()}, methods)


def _curves(parts: Mapping[tuple[str, str], pd.DataFrame], methods: Sequence[str]) -> Figure:
    """A column of panels for each part: (suite, title) -> its rows."""
    fig, axes = panels(2, len(parts), 4.9, sharex="col", height_ratios=(1.1, 1))
    for (top, bottom), ((suite, title), rows) in zip(axes.T, parts.items(), strict=True):
        scores = ArmScores.final(rows)
        if scores.get("base", suite) is None:
            raise ValueError(f"no records of the base model {title}: evaluate the base there, then draw")
        present = _present(rows, methods)
        wanted = powers_of_two(min(scores.answers(method, suite) or 0 for method in present))
        bottom.axhline(0, color=COLOURS["base"], linewidth=1.2, linestyle=(0, (4, 1.6)), zorder=5)
        base, every = [scores.of("base", suite, "pass", k) for k in wanted], []
        for method, apart in zip(present, (1, *side_by_side(len(present) - 1)), strict=True):
            of_k = [scores.of(method, suite, "pass", k) for k in wanted]
            top.plot(wanted, [100 * one.mean for one in of_k], **line_style(method))
            if method == "base":
                continue
            got, x = [interval(pair, np.subtract) for pair in zip(of_k, base, strict=True)], apart * np.array(wanted)
            interval_ticks(bottom, x, got, COLOURS[method], (-100, 100))
            bottom.plot(x, [100 * one.estimate for one in got], **line_style(method))
            every += got
        ends = [[100 * getattr(one, side) for one in every] for side in ("estimate", "low", "high")]
        low, high = readable_range(*ends)
        crossed = {m: k for m in present if m != "base" and (k := crossing_k(scores, m, suite)) and k <= wanted[-1]}
        head = 0.07 * len(crossed) * (high - low)
        bottom.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low) + head)
        log2_axis(bottom, wanted)
        _annotate_crossings(bottom, crossed)
        top.set_title(title)
        bottom.set_xlabel("k (answers drawn)")
    axes[0, 0].set_ylabel("Pass@k (%)")
    axes[1, 0].set_ylabel("difference to base\n(percentage points)")
    rows = pd.concat(parts.values())
    legend(fig, _present(rows, methods))
    bars = f"Upright bars: {interval_note(rows)}, paired by problem; methods are moved apart along k."
    note(fig, [bars, absent_note(methods, rows["method"])])
    settle(fig)
    for ax in axes[1]:
        _keep_within(fig, ax)
    return fig


def _annotate_crossings(ax: Axes, crossed: Mapping[str, int]) -> None:
    """Where each method's mean falls below the base's: its name and k above the curves, a thin line down to zero."""
    top, bottom = ax.get_ylim()[1], ax.get_ylim()[0]
    for place, (method, k) in enumerate(sorted(crossed.items(), key=lambda item: item[1])):
        y = top - (0.5 + place) * 0.062 * (top - bottom)
        ax.plot([k, k], [0, y], color=COLOURS[method], linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=2)
        text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL - 0.6, "color": COLOURS[method]}
        edge = [withStroke(linewidth=2, foreground="white")]  # the lines of other methods pass behind it
        ax.text(k, y, f"{NAMES[method]} below from k = {k}", path_effects=edge, zorder=7, in_layout=False, **text)


def _keep_within(fig: Figure, ax: Axes) -> None:
    """Moves the words in a panel that is laid out to the sides, and makes them smaller, until they are within it."""
    panel, renderer = ax.get_window_extent(), FigureCanvasAgg(fig).get_renderer()
    for text in ax.texts:
        words = text.get_window_extent(renderer)
        text.set_fontsize(float(text.get_fontsize()) * min(1.0, panel.width / words.width))
        half = min(words.width, panel.width) / 2
        middle = np.clip((words.x0 + words.x1) / 2, panel.x0 + half, panel.x1 - half)
        text.set_x(ax.transData.inverted().transform((middle, 0))[0])


def side_by_side(methods: int) -> np.ndarray:
    """Factors of k that set so many methods side by side on a log axis, the whole within half a doubling.

    >>> side_by_side(3).round(2).tolist()
    [0.84, 1.0, 1.19]
    """
    return 2 ** (np.linspace(-1, 1, methods) / 4 if methods > 1 else np.zeros(methods))


# ------------------------------------------------------------------------------------------------ Figure 3


KS = (1, 8, 16)
"""Of keep and explore; those for which 2k answers were drawn are shown."""


def keep_explore(records: pd.DataFrame) -> Figure:
    """Figure 3: keep and explore (`scores.keep_and_explore`) of each method in domain, one column per k."""
    rows = _main(stats.sampled(records), METHODS, "in_domain")
    scores = ArmScores.final(rows)
    trained = [m for m in _present(rows, METHODS) if m != "base"]
    if not trained:
        raise ValueError("no trained method in the records: there is nothing to compare with the base")
    answers = min(scores.answers(method, "in_domain") or 0 for method in ("base", *trained))
    usable = [k for k in KS if 2 * k <= answers]  # 2k answers, for the model that did not change
    if not usable:
        raise ValueError(f"keep and explore at k = {list(KS)} need 2k answers per problem, there are {answers}")
    fig, axes = panels(2, len(usable), 1.3 + 0.38 * len(trained), sharey=True, sharex="row")
    unknown = False
    for column, k in zip(axes.T, usable, strict=True):
        splits = {method: keep_and_explore(scores, method, "in_domain", k) for method in ("base", *trained)}
        for ax, name in zip(column, ("keep", "explore"), strict=True):
            unknown |= _keep_or_explore(ax, splits, name)
            ax.set_title(f"{name}, k = {k}")
            rows_axis(ax, [NAMES[m] for m in trained])
            ax.set_xlabel("% of the base's solved" if name == "keep" else "% of the base's unsolved")
    shared_ticks(axes[:, 1:].ravel())
    bars = f"Bars: {interval_note(rows)}; faint points: seeds. Dashed: the base against fresh draws of itself."
    few = "No bar: too few problems for an interval." if unknown else ""
    note(fig, [bars, few, absent_note(METHODS, rows["method"])])
    return fig


def _keep_or_explore(ax: Axes, splits: dict[str, Split], name: str) -> bool:
    """One panel: a row per trained method, the base as a dashed line; whether an interval was not to be had."""
    intervals = {method: split.keep() if name == "keep" else split.explore() for method, split in splits.items()}
    unchanged, unknown = intervals.pop("base"), False
    if unchanged is None:
        return False
    ax.axvline(100 * unchanged.estimate, color=COLOURS["base"], linestyle=(0, (4, 1.6)), linewidth=1)
    for y, (method, got) in zip(range(len(intervals))[::-1], intervals.items(), strict=True):
        if got is not None:
            _interval_of_method(ax, y, method, got)
            unknown |= not np.isfinite(got.low)
    return unknown


def _interval_of_method(ax: Axes, y: float, method: str, got: Interval, scale: float = 100) -> None:
    """Point, interval and seeds of one method on a horizontal axis."""
    low, high = np.clip([scale * got.low, scale * got.high], 0, 100 if scale == 100 else np.inf)
    if len(got.per_seed) > 1:
        points = [scale * value for _, value in got.per_seed]
        ax.scatter(points, [y] * len(points), s=7, color=COLOURS[method], alpha=0.4, linewidths=0, zorder=3)
    interval_bar(ax, y, (low, scale * got.estimate, high), COLOURS[method])


REACHED = {"preserved": "#8FB8D9", "gained": "#1BA784", "lost": "#C4682B", "neither": "#E4E4E4"}
"""Who reaches a problem, and its colour."""


def support_bars(support: pd.DataFrame) -> Figure:
    """The problems that both models, only one or neither reaches, one panel per suite, at its largest k.

    Args:
        support: what `retention.support` gave.
    """
    suites = list(dict.fromkeys(support["suite"]))
    rows = {suite: part[part["k"] == part["k"].max()] for suite, part in support.groupby("suite", sort=False)}
    names = list(dict.fromkeys(support["method"]))
    fig, axes = panels(1, len(suites), 1.15 + 0.27 * len(names), sharey=True)
    for ax, suite in zip(axes[0], suites, strict=True):
        part = rows[suite].set_index("method").reindex(names)
        percent, start = 100 * part[list(REACHED)].div(part["problems"], axis=0), np.zeros(len(names))
        y = rows_axis(ax, names)
        for who, colour in REACHED.items():
            width = percent[who].to_numpy()
            ax.barh(y, width, left=start, color=colour, height=0.74, label=who, edgecolor="white", linewidth=0.6)
            for where, x, w in zip(y, start, width, strict=True):
                if w >= 7:
                    text = {"ha": "center", "va": "center", "fontsize": SMALL - 0.4, "color": ink_on(colour)}
                    ax.text(x + w / 2, where, f"{w:.0f}", **text)
            start = start + width
        ax.set(xlim=(0, 100), xlabel="problems (%)", title=f"{suite}, k = {rows[suite]['k'].iloc[0]:.0f}")
        ax.grid(visible=False)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(REACHED))
    shared_ticks(axes[0, 1:])
    note(fig, ["Expected numbers of problems, mean over seeds. First row: chance alone, the base against itself."])
    return fig


# ------------------------------------------------------------------------------------------------ Figure 4


def styles(records: pd.DataFrame) -> Figure:
    """Figure 4: style shares in domain as stacked bars, and the entropy of the styles within a problem, in nats."""
    rows = _main(stats.sampled(records), METHODS, "in_domain")
    present = _present(rows, METHODS)
    fig, axes = panels(1, 2, 1.1 + 0.26 * len(present), sharey=True, width_ratios=(1.7, 1))
    left, right = axes[0]
    y = rows_axis(left, [NAMES[m] for m in present])
    stacked_styles(left, y, 100 * style_shares(rows).loc[present])
    scores = ArmScores.final(rows)
    for where, method in zip(y, present, strict=True):
        got = interval([scores.of(method, "in_domain", "styles_nats")])
        _interval_of_method(right, where, method, got, scale=1)
    right.axvline(np.log(4), color=GREY, linestyle=":", linewidth=1)
    right.set(xlim=(0, 1.05 * np.log(4)), xticks=[0, 0.5, 1.0], xlabel="style entropy (nats)")
    shared_ticks([right])
    right.grid(axis="y", visible=False)
    bars = f"Bars: {interval_note(rows)}. Faint points: seeds. Dotted: ln 4."
    note(fig, [bars, absent_note(METHODS, rows["method"])])
    return fig
