"""Figures of the results: Pass@k, keep and explore, styles.

    save(pass_curves(records), folder, "fig2_pass_at_k")

`records` is the frame of `records.parquet`. The base is in every figure that compares methods; what was asked for and
not run is named under the panels. Intervals are cut at 0 and 100 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphlib import stats
from dphlib.analysis.labels import COLOURS, NAMES, SUITES
from dphlib.figures.style import (
    GREY,
    absent_note,
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
    scores = ArmScores.final(rows)
    suites = [suite for suite in SUITES if suite in set(rows["suite"])]
    fig, axes = panels(2, len(suites), 4.9, sharex="col", height_ratios=(1.1, 1))
    for (top, bottom), suite in zip(axes.T, suites, strict=True):
        if scores.get("base", suite) is None:
            raise ValueError(f"no records of the base model {SUITES[suite]}: evaluate the base there, then draw")
        present = _present(rows[rows["suite"] == suite], methods)
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
        bottom.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        log2_axis(bottom, wanted)
        top.set_title(SUITES[suite])
        bottom.set_xlabel("k (answers drawn)")
    axes[0, 0].set_ylabel("Pass@k (%)")
    axes[1, 0].set_ylabel("difference to base\n(percentage points)")
    legend(fig, _present(rows, methods))
    bars = f"Upright bars: {interval_note(rows)}, paired by problem; methods are moved apart along k."
    note(fig, [bars, absent_note(methods, rows["method"])])
    return fig


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
