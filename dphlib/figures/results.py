"""A table in, a figure out: Pass@k, keep and explore, styles, Pass@k over training; and the names of all figures.

    save(pass_curves(records), folder, "fig2_pass_at_k")

The schematic is in `method_plot`, the figures of logs, cost, generators and the base in `run_plots`; both are handed on
here. `records` is the frame of `records.parquet`. The base is in every figure that compares methods; what was asked for
and not run is named under the panels. Intervals are those of `stats.bootstrap`, cut at 0 and 100 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphlib import stats
from dphlib.analysis.labels import COLOURS, FAMILY, MARKERS, NAMES, STYLE_COLOURS, SUITES
from dphlib.figures.method import method_figure
from dphlib.figures.style import (
    GREY,
    absent_note,
    interval_note,
    legend,
    line_style,
    log2_axis,
    note,
    panels,
    save,
    shared_ticks,
    use_style,
)  # fmt: skip
from dphlib.figures.training import base_regime, cost_figure, divergence_curves, training_curves
from dphlib.settings.methods import HEADLINE, METHODS

__all__ = [
    "CAPTIONS", "FAMILY", "base_regime", "cost_figure", "divergence_curves", "keep_explore", "method_figure",
    "pass_curves", "pass_over_steps", "save", "styles", "training_curves", "use_style",
]  # fmt: skip

_I = "95 % interval over seeds and problems (hierarchical bootstrap with Student's quantile)"
CAPTIONS = {
    "fig1_method": "Answers sampled from the initial policy part the prompts into the near-perfect "
    "set, whose "
    "stored answers are rehearsed through the generator, and the exploration set, which is trained on as in "
    "GRPO. Bars: "
    "share of each solution style among the in-domain answers of the final models, mean over seeds.",
    "fig2_pass_at_k": f"Top: mean over seeds, each seed as a faint point. Bottom: difference to the "
    f"base on the same problems; bands: {_I}.",
    "fig2_pass_at_k_family": "Pass@k against k for the divergences of the rehearsal: forward KL (DPH-F), the "
    "alpha family, "
    f"JS (DPH-JS). Bottom: difference to the base on the same problems; bands: {_I}.",
    "fig3_keep_explore": "Capability split on the in-domain suite. Keep: of what the base solves with k answers, "
    "the share "
    f"that the tuned model still solves; explore: of the rest, the share newly solved. Bars: {_I}; faint points: "
    "seeds; dashed: the base against fresh draws of itself. "
    "The paper's k is not available; ours is on the axis.",
    "fig4_styles": "Left: share of each style among sampled in-domain answers, mean over seeds. "
    f"Right: entropy of the styles within a problem's answers; bars: {_I}; the dotted line is four styles in "
    "equal use.",
    "fig5_training": "Each seed is a thin line, the mean over seeds thick; no interval.",
    "fig6_cost": "Left: seconds an iteration by phase, median over iterations. Middle: tokens through "
    "the policy "
    "(forward and backward) and through an online reference model, mean. Right: peak resident memory of the process.",
    "fig7_divergences": "The generators f against d = log pi_theta - log pi_ref of a token, and their gradients.",
    "fig8_pass_over_steps": "In-domain Pass@k over training, each seed a thin line, the mean over seeds thick; "
    "no interval. "
    "Points on the way are estimated from fewer answers than the last; the estimator is unbiased in both.",
    "fig14_hard": "Problems of which the base solved at most an eighth of its answers in the plain evaluation, all "
    "answered anew. Top: mean over seeds, each seed as a faint point. Bottom: difference to the base on the same "
    f"problems; bands: {_I}.",
    "fig9_base": "Left: Pass@k of the base, "
    "with the 95 % interval over problems. Middle: correct answers of the pre-samples of each training prompt, "
    "with the "
    "threshold of the partition. Right: sizes of the two sets.",
}  # fmt: skip


def _main(records: pd.DataFrame, methods: Sequence[str], suite: str | None = None) -> pd.DataFrame:
    """Final main rows of some methods; ValueError without the base, which every comparison shows."""
    rows = records[(records["variant"] == "main") & records["method"].isin(methods)]
    if suite is not None:
        rows = rows[rows["suite"] == suite]
    rows = stats.final(rows)
    if "base" not in set(rows["method"]):
        where = f" on {suite}" if suite else ""
        raise ValueError(f"no records of the base model{where}: evaluate the base first (notebook 02), then draw")
    return rows


def _present(rows: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    there = set(rows["method"])
    return [m for m in methods if m in there]


def _seeds(rows: pd.DataFrame) -> int:
    """Seeds of the trained method that has the fewest."""
    trained = rows[rows["method"] != "base"].groupby("method", observed=True)["seed"].nunique()
    return int(trained.min()) if len(trained) else 1


def _ks(table: pd.DataFrame) -> list[int]:
    return [2**i for i in range(int(np.log2(max(1, table["n"].min()))) + 1)]


# ------------------------------------------------------------------------------------------------ Figure 2


def pass_curves(records: pd.DataFrame, methods: Sequence[str] = HEADLINE, ks: Sequence[int] | None = None) -> Figure:
    """Figure 2: Pass@k against k on each suite, and the paired difference to the base.

    Args:
        records: frame of EvalRecord rows.
        methods: which to draw, the base among them.
        ks: default: powers of two up to the answers that were drawn.
    """
    rows = _main(stats.sampled(records), methods)
    suites = [s for s in SUITES if s in set(rows["suite"])]
    table = stats.problem_table(rows)
    fig, axes = panels(2, len(suites), 4.1, sharex="col", height_ratios=(1.35, 1))
    for column, suite in enumerate(suites):
        of_suite = table[table["suite"] == suite]
        if "base" not in set(of_suite["method"]):
            raise ValueError(f"no records of the base model on {suite}: evaluate the base there, then draw")
        wanted = list(ks or _ks(of_suite))
        base = [stats.arm(of_suite, "base", suite, "pass", k) for k in wanted]
        top, bottom = axes[:, column]
        bottom.axhline(0, color=COLOURS["base"], linewidth=1.2, linestyle=(0, (4, 1.6)), zorder=5)
        for method in _present(of_suite, methods):
            arms = {k: stats.arm(of_suite, method, suite, "pass", k) for k in wanted}
            mean = [100 * arms[k].values_SP.mean() for k in wanted]
            top.plot(wanted, mean, **line_style(method))
            if method == "base":
                continue
            for k in wanted:
                points = 100 * arms[k].values_SP.mean(axis=1)
                top.scatter([k] * len(points), points, s=5, color=COLOURS[method], alpha=0.35, linewidths=0, zorder=3)
            got = [stats.bootstrap([arms[k], b], np.subtract) for k, b in zip(wanted, base, strict=True)]
            low, high = (100 * np.array([getattr(one, side) for one in got]) for side in ("low", "high"))
            bottom.fill_between(
                wanted, low, high, color=COLOURS[method], alpha=0.13 if len(methods) < 7 else 0.08, linewidth=0
            )
            bottom.plot(wanted, [100 * one.estimate for one in got], **line_style(method))
        log2_axis(bottom, wanted)
        top.set_title(SUITES[suite])
        bottom.set_xlabel("k (answers drawn)")
    axes[0, 0].set_ylabel("Pass@k (%)")
    axes[1, 0].set_ylabel("difference to base\n(percentage points)")
    legend(fig, _present(rows, methods))
    note(fig, [f"Bands: {interval_note(_seeds(rows))}, paired by problem.", absent_note(methods, rows["method"])])
    return fig


# ------------------------------------------------------------------------------------------------ Figure 3


def keep_explore(
    records: pd.DataFrame, ks: Sequence[int] = (1, 8, 16), methods: Sequence[str] = METHODS, suite: str = "in_domain"
) -> Figure:
    """Figure 3: keep and explore (`stats.keep_explore`) of each method, a column a k."""
    rows = _main(stats.sampled(records), methods, suite)
    table = stats.problem_table(rows)
    trained = [m for m in _present(rows, methods) if m != "base"]
    if not trained:
        raise ValueError("no trained method in the records: there is nothing to compare with the base")
    usable = [k for k in ks if 2 * k <= table["n"].min()]  # 2k answers, for the model that did not change
    if not usable:
        raise ValueError(f"keep and explore at k = {list(ks)} need 2k answers a problem, there are {table['n'].min()}")
    fig, axes = panels(2, len(usable), 0.95 + 0.34 * len(trained), sharey=True, sharex="row")
    y, unknown = np.arange(len(trained))[::-1], False
    for column, k in enumerate(usable):
        base = stats.arm(table, "base", suite, "pass", k)
        b_P = base.values_SP[0]
        again_P = 2 * b_P - stats.arm(table, "base", suite, "pass", 2 * k).values_SP[0]  # unbiased for b squared
        for row, (name, weights_P) in enumerate((("keep", b_P), ("explore", 1 - b_P))):
            ax: Axes = axes[row, column]
            if weights_P.sum() > 0:
                unchanged = (again_P if name == "keep" else b_P - again_P).sum() / weights_P.sum()
                ax.axvline(100 * unchanged, color=COLOURS["base"], linestyle=(0, (4, 1.6)), linewidth=1)
                for where, method in zip(y, trained, strict=True):
                    values_SP = stats.arm(table, method, suite, "pass", k).values_SP
                    with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold no such problem
                        got = stats.hierarchical_bootstrap(values_SP, weights_P=weights_P)
                    _interval_bar(ax, where, method, got)
                    unknown |= not np.isfinite(got.low)
            ax.set_title(f"{name}, k = {k}")
            ax.set_yticks(y, [NAMES[m] for m in trained])
            ax.grid(axis="y", visible=False)
            ax.set_ylim(-0.6, len(trained) - 0.4)
            ax.set_xlabel("% of what the base solves" if name == "keep" else "% of what the base does not solve")
    shared_ticks(axes[:, 1:].ravel())
    note(fig, [f"Bars: {interval_note(_seeds(rows))}; faint points: seeds. Dashed: the base against fresh draws of "
               "itself.",
               "No bar: too few problems for an interval." if unknown else "",
               absent_note(methods, rows["method"])])  # fmt: skip
    return fig


def _interval_bar(ax: Axes, y: float, method: str, got: stats.Interval, scale: float = 100) -> None:
    """Point, interval and seeds of one method on a horizontal axis."""
    low, high = np.clip([scale * got.low, scale * got.high], 0, 100 if scale == 100 else np.inf)
    colour = COLOURS[method]
    ax.plot([low, high], [y, y], color=colour, linewidth=2.2, alpha=0.45, solid_capstyle="butt")
    if len(got.per_seed) > 1:
        points = [scale * value for _, value in got.per_seed]
        ax.scatter(points, [y] * len(points), s=7, color=colour, alpha=0.4, linewidths=0, zorder=3)
    ax.plot([scale * got.estimate], [y], color=colour, marker=MARKERS[method], markersize=4.6,
            markeredgecolor="white", markeredgewidth=0.5, zorder=5)  # fmt: skip


# ------------------------------------------------------------------------------------------------ Figure 4


def styles(records: pd.DataFrame, methods: Sequence[str] = METHODS, suite: str = "in_domain") -> Figure:
    """Figure 4: style shares as stacked bars, and the entropy of the styles within a problem, in nats."""
    rows = _main(stats.sampled(records), methods, suite)
    present = _present(rows, methods)
    shares = stats.style_shares(rows).groupby(["method", "style"], observed=True)["share"].sum().unstack(fill_value=0.0)
    shares = shares.div(shares.sum(axis=1), axis=0)  # the mean over seeds: each seed's shares sum to 1
    fig, axes = panels(1, 2, 0.95 + 0.24 * len(present), sharey=True, width_ratios=(1.7, 1))
    left, right = axes[0]
    y = np.arange(len(present))[::-1]
    start = np.zeros(len(present))
    for style, colour in STYLE_COLOURS.items():
        if style not in shares:
            continue
        width = 100 * shares.loc[present, style].to_numpy()
        left.barh(y, width, left=start, color=colour, height=0.74, label=style, edgecolor="white", linewidth=0.6)
        for where, x, w in zip(y, start, width, strict=True):
            if w >= 9:
                dark = style in ("direct", "stepwise")
                left.text(
                    x + w / 2,
                    where,
                    f"{w:.0f}",
                    ha="center",
                    va="center",
                    fontsize=6.3,
                    color="white" if dark else "#222",
                )
        start = start + width
    left.set_yticks(y, [NAMES[m] for m in present])
    left.set_xlim(0, 100)
    left.set_xlabel("share of sampled answers (%)")
    left.grid(visible=False)
    left.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=5, handlelength=0.9, handleheight=0.9,
                columnspacing=1.2, borderaxespad=0.2)  # fmt: skip
    table = stats.problem_table(rows)
    for where, method in zip(y, present, strict=True):
        got = stats.bootstrap([stats.arm(table, method, suite, "styles_nats")], lambda mean: mean)
        _interval_bar(right, where, method, got, scale=1)
    right.axvline(np.log(4), color=GREY, linestyle=":", linewidth=1)
    right.set_xlim(0, 1.05 * np.log(4))
    right.set_xticks([0, 0.5, 1.0])
    shared_ticks([right])
    right.set_xlabel("style entropy within a problem (nats)")
    right.set_ylim(-0.6, len(present) - 0.4)
    right.grid(axis="y", visible=False)
    note(fig, [f"Bars: {interval_note(_seeds(rows))}; base: over problems. Faint points: seeds. Dotted: ln 4.",
               absent_note(methods, rows["method"])])  # fmt: skip
    return fig


# ------------------------------------------------------------------------------------------------ Figure 8


def pass_over_steps(
    records: pd.DataFrame, ks: Sequence[int] = (1, 8, 16), methods: Sequence[str] = HEADLINE, suite: str = "in_domain"
) -> Figure:
    """Figure 8: Pass@k of each run at the steps at which it was evaluated; every run starts at the base."""
    rows = records[(records["variant"] == "main") & records["method"].isin(methods) & (records["suite"] == suite)]
    _main(rows, methods)
    rows = stats.sampled(rows)
    usable = [k for k in ks if k <= stats.problem_table(rows)["n"].min()]
    curve = stats.pass_curve(rows, usable)
    fig, axes = panels(1, len(usable), 2.55)
    for ax, k in zip(axes[0], usable, strict=True):
        of_k = curve[curve["k"] == k]
        base = 100 * float(of_k.loc[of_k["method"] == "base", "pass_at_k"].iloc[0])
        ax.axhline(base, color=COLOURS["base"], linestyle=(0, (4, 1.6)), linewidth=1.2, zorder=6)
        for method in (m for m in _present(rows, methods) if m != "base"):
            wide = 100 * of_k[of_k["method"] == method].pivot(index="step", columns="seed", values="pass_at_k")
            wide = pd.concat([pd.DataFrame(base, index=[0], columns=wide.columns), wide])
            ax.plot(wide.index, wide, color=COLOURS[method], linewidth=0.6, alpha=0.35)
            ax.plot(wide.index, wide.mean(axis=1), **line_style(method))
        ax.set_title(f"Pass@{k}")
        ax.set_xlabel("iteration")
    axes[0, 0].set_ylabel(f"{SUITES.get(suite, suite)} (%)")
    legend(fig, _present(rows, methods))
    note(fig, ["Thin: seeds; thick: mean over seeds. Dashed: the base, where every run starts.",
               absent_note(methods, rows["method"])])  # fmt: skip
    return fig
