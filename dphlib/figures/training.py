"""Figures of the logs, the cost, the generators and the base model's regime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dphlib.analysis.labels import COLOURS, FAMILY, NAMES, SET_COLOURS, SUITE_COLOURS, SUITES
from dphlib.figures.style import (
    GREY,
    INTERVAL,
    INTERVAL_ONE_SEED,
    SMALL,
    absent_note,
    interval_ticks,
    legend,
    legend_of_bars,
    line_style,
    log2_axis,
    note,
    panels,
    powers_of_two,
    rows_axis,
    shared_ticks,
)
from dphlib.generators import GENERATORS, label, parse
from dphlib.intervals import interval
from dphlib.rivals import RIVALS
from dphlib.scores import ArmScores
from dphlib.settings.methods import CONTROLS, HEADLINE, METHODS

COSTED = ("grpo", "rkl", "dph_f", "dph_js")
"""The methods whose cost the paper's claim is about."""
CURVES = {
    "reward": "reward of rollouts (%)",
    "entropy": "entropy (nats / token)",
    "kl_to_base": "KL to base (nats / token)",
    "response_tokens": "answer length (tokens)",
    "loss_near_perfect": r"$\mathbf{\mathcal{D}}_\mathbf{pef}$ loss (nats / token)",
}
OTHERS = {
    "divergences": tuple(name for name in FAMILY if name not in HEADLINE),
    "controls": ("grpo_dexp", "sft_rehearsal", "dph_f_all", "dph_f_explore_all", "dph_f_rehearse_all"),
    "reverse KL": ("rkl_k2", "dph_rkl"),
    "rivals": tuple(RIVALS),
}
"""The methods that are not in the figure of the headline's, in rows; one that is new is among the controls."""
OTHERS["controls"] += tuple(m for m in CONTROLS if not any(m in group for group in OTHERS.values()))
LIVE = {"reward": "reward of rollouts (%)", "style_entropy": "style entropy, validation (nats)"}
"""What `live_curves` draws."""
OTHER_CURVES = ("reward", "entropy", "kl_to_base")
_SMOOTHED_FROM = 20
"""A curve of more logged iterations is smoothed; the KL to the base is logged at fewer."""
PHASES = {
    "sample_s": ("sample", "#4C78A8"),
    "verify_s": ("verify", "#A5C8E4"),
    "reference_s": ("online reference", COLOURS["rkl"]),
    "update_s": ("update", "#8C8C8C"),
}
TOKENS = {"policy_tokens": ("policy", "#3F3F3F"), "reference_tokens": ("online reference", COLOURS["rkl"])}
MEMORY = "#7C8A6B"
EXPLORE, REHEARSE = SET_COLOURS["exploration"], SET_COLOURS["near_perfect"]
"""Colours of D_exp and D_pef."""
_DIVERGENCE_LINES: dict[str, tuple[str, Any]] = {
    "forward_kl": (COLOURS["dph_f"], "-"),
    "js": (COLOURS["dph_js"], "-"),
    "alpha": (COLOURS["alpha_0.5"], "-"),
    "reverse_kl": (COLOURS["rkl"], (0, (3, 1, 1, 1))),
}
"""Colour and line of those that the paper draws; the others are grey."""


def divergence_style(name: str) -> tuple[str, str, Any]:
    """Label, colour and line of a divergence of `generators`, or of the alpha divergence with an alpha.

    >>> divergence_style("alpha_0.8")[0]
    'alpha 0.8'
    """
    kind, _ = parse(name)
    if kind in _DIVERGENCE_LINES:
        return label(name), *_DIVERGENCE_LINES[kind]
    others = [each for each in GENERATORS if each not in _DIVERGENCE_LINES]
    return label(name), str(np.linspace(0.35, 0.75, len(others))[others.index(kind)]), (0, (2, 1))


def training_curves(train_logs: pd.DataFrame, methods: Sequence[str] = HEADLINE) -> Figure:
    """Figure 5: reward, entropy, KL to base, answer length and D_pef loss over iterations, means over seeds.

    Args:
        train_logs: rows of the train logs with method, variant, seed; the variant `main` is drawn.
        methods: which to draw; the base, which is not trained, has no curve.
    """
    rows = train_logs[(train_logs["variant"] == "main") & train_logs["method"].isin(methods)]
    if rows.empty:
        raise ValueError(f"no train log of {', '.join(methods)} (main): train them first (notebook 04)")
    drawn = [m for m in methods if m in set(rows["method"])]
    fig, axes = panels(2, 3, 4.3)
    for ax, column in zip(axes.ravel(), CURVES, strict=False):
        _curves(ax, rows, drawn, column)
    for ax in axes[0, :2]:  # the last one has no panel below it
        ax.set_xlabel("")
    _legend_instead(axes[1, 2], drawn)
    absent = absent_note([m for m in methods if m != "base"], drawn)
    note(fig, [f"{_said(rows)} Methods without rehearsal have no D_pef loss.", absent])
    return fig


def other_training_curves(train_logs: pd.DataFrame) -> Figure:
    """Figure 5, second part: reward, entropy and KL to base of the methods beyond the headline's, a row for each group.

    GRPO is drawn thin in every panel, to compare with. Without any of them the panel says so.
    """
    rows = train_logs[train_logs["variant"] == "main"]
    there = set(rows["method"])
    groups = [found for group in OTHERS.values() if (found := [m for m in group if m in there])]
    if not groups:
        fig, axes = panels(1, 1, 0.8)
        axes[0, 0].axis("off")
        note(fig, ["No method beyond those of the other figure was trained."])
        return fig
    heights = [max(1.55, 0.24 * len(group)) for group in groups]
    widths = (1, 1, 1, 0.72)
    fig, axes = panels(
        len(groups), 4, 0.75 + sum(heights), sharex=True, height_ratios=heights, sharey="col", width_ratios=widths
    )
    for place, group in enumerate(groups):
        for ax, column in zip(axes[place], OTHER_CURVES, strict=False):
            if "grpo" in there:
                grey = {"color": "#9A9A9A", "linewidth": 0.9, "linestyle": "-"}
                _curve(ax, rows[rows["method"] == "grpo"], "grpo", column, **grey)
            _curves(ax, rows, group, column, marked=True)
            if place > 0:
                ax.set_title("")
            if place < len(groups) - 1:
                ax.set_xlabel("")
        _legend_instead(axes[place, 3], group, marked=True)
    absent = absent_note([m for group in OTHERS.values() for m in group], there)
    note(fig, [f"{_said(rows)} Thin grey: GRPO.", absent])
    return fig


def live_curves(measured: pd.DataFrame) -> Figure:
    """Reward and style entropy of runs that are being trained, a line for each run in the colour of its method.

    Args:
        measured: method, run, iteration, name (of `LIVE`) and value.
    """
    fig, axes = panels(1, len(LIVE), 2.5)
    for ax, (name, title) in zip(axes[0], LIVE.items(), strict=True):
        for (method, _), rows in measured[measured["name"] == name].groupby(["method", "run"], sort=False):
            rows = rows.sort_values("iteration")
            values = rows["value"] * (100 if name == "reward" else 1)
            style = line_style(str(method)) if name != "reward" else {**line_style(str(method)), "marker": ""}
            ax.plot(rows["iteration"], values, **{**style, "linewidth": 0.9, "markersize": 3})
        ax.set(title=title, xlabel="iteration")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0, 1].axhline(np.log(4), color=GREY, linestyle=":", linewidth=1)
    axes[0, 1].set_ylim(0, 1.05 * np.log(4))
    legend(fig, [method for method in NAMES if method in set(measured["method"])])
    runs = measured["run"].nunique()
    note(
        fig, [f"{runs} run{'s' if runs != 1 else ''} so far, a line for each. Dotted: ln 4, four styles in equal use."]
    )
    return fig


def _said(rows: pd.DataFrame) -> str:
    seeds = rows.groupby("method", observed=True)["seed"].nunique()
    more = " or more" if seeds.max() > seeds.min() else ""
    count = f"{seeds.min()} seeds{more}" if seeds.max() > 1 else "one seed"
    long = rows.groupby("method", observed=True)["iteration"].nunique().max() > _SMOOTHED_FROM
    smoothed = f" Curves of more than {_SMOOTHED_FROM} points are smoothed over five." if long else ""
    return f"Mean over {count}.{smoothed}"


def _legend_instead(ax: Axes, methods: Sequence[str], marked: bool = False) -> None:
    """A legend of lines in place of a panel; if `marked`, with the marker or the letter of each."""
    ax.axis("off")
    marks = {} if marked else {"marker": ""}
    handles = [Line2D([], [], label=NAMES[m], **{**line_style(m), **marks}) for m in methods]
    for handle, method in zip(handles, methods, strict=True):
        if marked and (letter := _letter(method)):
            handle.set(marker="", label=f"{letter}  {NAMES[method]}")
    if marked:
        ax.legend(handles=handles, loc="center left", bbox_to_anchor=(-0.2, 0.5), borderaxespad=0, labelspacing=0.4)
    else:
        ax.legend(handles=handles, loc="center", handlelength=2.6, labelspacing=0.9)


def _curves(ax: Axes, rows: pd.DataFrame, methods: Sequence[str], column: str, marked: bool = False) -> None:
    """One column of the logs over iterations, a line for each method; if `marked`, with four markers on it."""
    for place, method in enumerate(methods):
        line = _curve(ax, rows[rows["method"] == method], method, column)
        if marked and line is not None and np.size(line.get_xdata()):
            _mark(ax, line, method, place / len(methods))
    ax.set(title=CURVES[column], xlabel="iteration")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if column in ("entropy", "kl_to_base", "loss_near_perfect"):
        ax.set_ylim(bottom=min(0, ax.dataLim.y0))  # an estimate of a KL from few samples can be negative


def _letter(method: str) -> str:
    """The letter that marks a method, "" for one that has a shape."""
    marker = line_style(method)["marker"]
    return marker.strip("$") if isinstance(marker, str) and "$" in marker else ""


def _mark(ax: Axes, line: Line2D, method: str, start: float) -> None:
    """Four markers on a line, the first of them after a share of a quarter of it; a letter stands on white."""
    x, y = (np.asarray(values) for values in line.get_data())
    at = np.unique((len(x) - 1) * (np.arange(4) + 0.3 + 0.7 * start) // 4).astype(int)
    style = {**line_style(method), "linestyle": ""}
    if _letter(method):
        ax.plot(x[at], y[at], marker="o", markersize=6.5, color="white", linestyle="", zorder=5)
        style |= {"markersize": 4.6, "zorder": 6}
    ax.plot(x[at], y[at], **style)


def _curve(ax: Axes, rows: pd.DataFrame, method: str, column: str, **look: Any) -> Line2D | None:
    """One column of a method's logs over iterations, its mean over seeds, smoothed where it is long."""
    if column == "loss_near_perfect" and not (rows["rehearsal_rows"] > 0).any():
        return None
    values = pd.to_numeric(rows[column]) * (100 if column == "reward" else 1)
    wide = rows.assign(value=values).pivot(index="iteration", columns="seed", values="value").dropna(how="all")
    mean = wide.mean(axis=1)
    smooth = mean.rolling(5, center=True, min_periods=1).mean() if len(wide) > _SMOOTHED_FROM else mean
    style = {**line_style(method), "marker": None, "linewidth": 1.6, **look}
    return ax.plot(smooth.index.to_numpy(), smooth.to_numpy(), **style)[0]


def cost_figure(cost: pd.DataFrame) -> Figure:
    """Figure 6: seconds by phase, tokens through models, peak memory of an iteration, each in its own unit.

    Args:
        cost: one row per iteration: method, step, sample_s, verify_s, reference_s, update_s, step_s, peak_gib,
            reference_tokens, policy_tokens. Every method in it is drawn; an absent one of `COSTED` is named.
    """
    drawn = [m for m in METHODS if m in set(cost["method"])]
    if not drawn:
        raise ValueError("no cost measurement of any method: measure it first (notebook 07)")
    groups = cost.groupby("method", observed=True)
    fig, axes = panels(1, 3, 1.75 + 0.25 * len(drawn), sharey=True, width_ratios=(1.3, 1.2, 0.8))
    time, tokens, memory = axes[0]
    for ax in (time, tokens, memory):
        y = rows_axis(ax, [NAMES[m] for m in drawn])
    bar = {"height": 0.7, "edgecolor": "white", "linewidth": 0.5}

    medians = {PHASES[name]: groups[name].median().loc[drawn].to_numpy(float) for name in PHASES}
    _stacked(time, y, medians, bar)
    whole = groups["step_s"].quantile([0.25, 0.75]).unstack().loc[drawn].to_numpy(float)
    time.hlines(y, whole[:, 0], whole[:, 1], color="#222", linewidth=1)
    means = {TOKENS[name]: groups[name].mean().loc[drawn].to_numpy(float) / 1000 for name in TOKENS}
    _stacked(tokens, y, means, bar)
    peak = groups["peak_gib"].max().loc[drawn].to_numpy(float)
    memory.barh(y, peak, color=MEMORY, **bar)
    for ax, title, unit in (
        (time, "time", "seconds (median)"),
        (tokens, "tokens", "thousand tokens (mean)"),
        (memory, "memory", "GiB (peak)"),
    ):
        ax.set_title(title, pad=32)
        ax.set_xlabel(unit)
    for ax in (time, tokens):
        legend_of_bars(ax, 2, -0.02, 1.0)
    shared_ticks([tokens, memory])
    count = int(groups.size().min())
    note(
        fig,
        [
            "Three costs in three units. Time: the median of each phase; black line: the middle half of the whole, "
            f"over {count} iterations or more. Tokens: their mean. Memory: the process's peak.",
            absent_note(COSTED, drawn),
        ],
    )
    return fig


def _stacked(ax: Axes, y: Sequence[float], parts: Mapping[tuple[str, str], np.ndarray], bar: Mapping[str, Any]) -> None:
    """Horizontal bars of parts, by their name and colour, one behind the other."""
    start = np.zeros(len(y))
    for (name, colour), width in parts.items():
        ax.barh(y, width, left=start, color=colour, label=name, **bar)
        start += width


def divergence_curves(curves: pd.DataFrame) -> Figure:
    """Figure 7: generators f and their gradients df/dd against d.

    Args:
        curves: tidy, columns name, d, value, gradient (nats).
    """
    names = sorted(dict.fromkeys(curves["name"]), key=lambda name: parse(name)[0] not in _DIVERGENCE_LINES)
    fig, axes = panels(1, 2, 3.1)
    measured = {"value": r"$f(e^d)$ (nats)", "gradient": r"$\mathrm{d}f / \mathrm{d}d$"}
    for ax, (column, measure) in zip(axes[0], measured.items(), strict=True):
        for name in names:
            rows = curves[curves["name"] == name].sort_values("d")
            text, colour, dash = divergence_style(name)
            ax.plot(rows["d"], rows[column], color=colour, linestyle=dash, label=text)
        ax.axvline(0, color=GREY, linewidth=0.7, zorder=1)
        ax.axhline(0, color=GREY, linewidth=0.7, zorder=1)
        ax.set(xlabel=r"$d = \log\,\pi_\theta - \log\,\pi_\mathrm{ref}$ of a token (nats)", ylabel=measure)
        # the side of collapsed tokens decides, the other side grows exponentially and leaves the panel
        collapsed = curves.loc[curves["d"] <= 0, column]
        if column == "value":
            ax.set_ylim(-0.1 * collapsed.max(), 1.3 * collapsed.max())
        else:
            ax.set_ylim(1.15 * collapsed.min(), -1.6 * collapsed.min())
    left, right = axes[0]
    left.set_title("generator")
    right.set_title("gradient: pull on a token")
    fig.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(names))
    note(fig, ["d < 0: the policy gives the stored token less than the initial policy did (it collapsed)."])
    return fig


def base_regime(records: pd.DataFrame, presample: pd.DataFrame, *, k: int = 8, threshold: int = 6) -> Figure:
    """Figure 9: the base's Pass@k on each suite, the counts of correct pre-samples, the sizes of D_pef and D_exp.

    Args:
        records: frame of EvalRecord rows; the base's are drawn.
        presample: one row per training prompt, with `correct`, the correct ones of its k pre-samples.
        k, threshold: of the partition.
    """
    correct = presample["correct"].to_numpy()
    if correct.max() > k or not 1 <= threshold <= k:
        raise ValueError(
            f"threshold {threshold} and up to {correct.max()} correct of k = {k}: pass the partition's own k"
        )
    fig, axes = panels(1, 3, 2.9, width_ratios=(1.25, 1.25, 0.8))
    curve, counts, sizes = axes[0]
    _pass_of_base(curve, records)
    heights = np.bincount(correct, minlength=k + 1)
    _presample_counts(counts, heights, threshold)
    _set_sizes(sizes, int(heights[:threshold].sum()), int(heights[threshold:].sum()))
    bases = records.loc[records["method"] == "base", "seed"].nunique()
    note(fig, [f"Upright bars: {INTERVAL if bases > 1 else INTERVAL_ONE_SEED}."])
    return fig


def _pass_of_base(ax: Axes, records: pd.DataFrame) -> None:
    scores = ArmScores.final(records[(records["method"] == "base") & (records["variant"] == "main")])
    longest: list[int] = []
    suites = [(suite, n) for suite in SUITES if (n := scores.answers("base", suite)) is not None]
    for (suite, answers), marker, apart in zip(suites, "so^", (0.93, 1, 1.07), strict=False):
        ks, colour = np.array(powers_of_two(answers)), SUITE_COLOURS[suite]
        got = [interval([scores.of("base", suite, "pass", k)]) for k in ks]
        interval_ticks(ax, apart * ks, got, colour, (0, 100))
        ax.plot(apart * ks, [100 * one.estimate for one in got], color=colour, marker=marker, label=SUITES[suite])
        longest = max(longest, list(ks), key=len)
    log2_axis(ax, longest)
    ax.set(xlabel="k (answers drawn)", ylabel="Pass@k (%)", title="base model", ylim=(0, 103))
    ax.legend(loc="lower right", handlelength=1.6)


def _presample_counts(ax: Axes, heights: np.ndarray, threshold: int) -> None:
    """Training prompts by their number of correct pre-samples, with the threshold."""
    k = len(heights) - 1
    ax.bar(range(threshold), heights[:threshold], color=EXPLORE, width=0.82)
    ax.bar(range(threshold, k + 1), heights[threshold:], color=REHEARSE, width=0.82)
    ax.axvline(threshold - 0.5, color="#222", linestyle=(0, (4, 1.6)), linewidth=1)
    side, shift = ("right", -3) if 2 * threshold > k else ("left", 3)  # of the line, where there is room
    ax.annotate(
        f"threshold {threshold} of {k}",
        (threshold - 0.5, 1),
        xycoords=("data", "axes fraction"),
        ha=side,
        va="top",
        xytext=(shift, -1),
        textcoords="offset points",
        fontsize=SMALL,
    )
    ax.set(xlabel=f"correct of {k} pre-samples", ylabel="training prompts", title="pre-samples")
    ax.set_xticks(range(k + 1))
    ax.set_ylim(0, 1.14 * heights.max())
    ax.grid(axis="x", visible=False)


def _set_sizes(ax: Axes, exploration: int, near_perfect: int) -> None:
    for x, (size, colour) in enumerate(((exploration, EXPLORE), (near_perfect, REHEARSE))):
        ax.bar([x], [size], color=colour, width=0.62)
        ax.annotate(
            f"{size}\n({100 * size / (exploration + near_perfect):.0f} %)",
            (x, size),
            ha="center",
            va="bottom",
            xytext=(0, 2),
            textcoords="offset points",
            fontsize=SMALL,
        )
    ax.set_xticks([0, 1], [r"$\mathcal{D}_\mathrm{exp}$", r"$\mathcal{D}_\mathrm{pef}$"])
    ylim = (0, 1.22 * max(exploration, near_perfect))
    ax.set(ylabel="training prompts", title="partition", xlim=(-0.6, 1.6), ylim=ylim)
    ax.grid(axis="x", visible=False)
