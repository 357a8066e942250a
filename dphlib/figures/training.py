"""Figures of the logs, the cost, the generators and the base model's regime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dphlib.analysis.labels import COLOURS, NAMES, SUITES
from dphlib.figures.style import (
    GREY,
    INTERVAL,
    INTERVAL_ONE_SEED,
    absent_note,
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
from dphlib.scores import ArmScores, base_count
from dphlib.settings.methods import HEADLINE, METHODS

COSTED = ("grpo", "rkl", "dph_f", "dph_js")
"""The methods whose cost the paper's claim is about."""
CURVES = {
    "reward": "reward of rollouts (%)",
    "entropy": "entropy (nats / token)",
    "kl_to_base": "KL to base (nats / token)",
    "response_tokens": "response length (tokens)",
    "loss_near_perfect": r"$\mathbf{\mathcal{D}}_\mathbf{pef}$ loss (nats / token)",
}
PHASES = {
    "sample_s": ("sample", "#4C78A8"),
    "verify_s": ("verify", "#A5C8E4"),
    "reference_s": ("online reference", "#B5478F"),
    "update_s": ("update", "#9C9C9C"),
}
EXPLORE, REHEARSE = "#E3A869", "#44679F"
"""Colours of D_exp and D_pef."""
_DIVERGENCE_LINES: dict[str, tuple[str, Any]] = {
    "forward_kl": ("#0072B2", "-"),
    "js": ("#1BA784", "-"),
    "alpha": ("#B5813F", "-"),
    "reverse_kl": ("#B5478F", (0, (3, 1, 1, 1))),
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
    """Figure 5: reward, entropy, KL to base, response length and D_pef loss over iterations.

    Args:
        train_logs: rows of the train logs with method, variant, seed; the variant `main` is drawn.
        methods: which to draw; the base, which is not trained, has no curve.
    """
    rows = train_logs[(train_logs["variant"] == "main") & train_logs["method"].isin(methods)]
    if rows.empty:
        raise ValueError(f"no train log of {', '.join(methods)} (main): train them first (notebook 04)")
    drawn = [m for m in methods if m in set(rows["method"])]
    fig, axes = panels(2, 3, 3.7)
    for ax, (column, name) in zip(axes.ravel(), CURVES.items(), strict=False):
        for method in drawn:
            _curve(ax, rows[rows["method"] == method], method, column)
        ax.set(title=name, xlabel="iteration")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if column in ("entropy", "kl_to_base", "loss_near_perfect"):
            ax.set_ylim(bottom=min(0, ax.dataLim.y0))  # an estimate of a KL from few samples can be negative
    for ax in axes[0]:
        ax.set_xlabel("")
    spare = axes[1, 2]
    spare.axis("off")
    handles = [plt.Line2D([], [], label=NAMES[m], **{**line_style(m), "marker": None}) for m in drawn]
    spare.legend(handles=handles, loc="center", handlelength=2.6, labelspacing=0.9)
    absent = absent_note([m for m in methods if m != "base"], drawn)
    line = "Thin: seeds; thick: mean over seeds, smoothed over five logged iterations."
    note(fig, [f"{line} Methods without rehearsal have no D_pef loss.", absent])
    return fig


def _curve(ax: Axes, rows: pd.DataFrame, method: str, column: str) -> None:
    """One column of a method's logs over iterations: its seeds, and their mean, smoothed where it is long."""
    if column == "loss_near_perfect" and not (rows["rehearsal_rows"] > 0).any():
        return
    values = pd.to_numeric(rows[column]) * (100 if column == "reward" else 1)
    wide = rows.assign(value=values).pivot(index="iteration", columns="seed", values="value").dropna(how="all")
    ax.plot(wide.index, wide, color=COLOURS[method], linewidth=0.5, alpha=0.3)
    mean = wide.mean(axis=1)
    smooth = mean.rolling(5, center=True, min_periods=1).mean() if len(wide) > 20 else mean
    ax.plot(wide.index, smooth, **{**line_style(method), "marker": None})


def cost_figure(cost: pd.DataFrame, methods: Sequence[str] = COSTED) -> Figure:
    """Figure 6: seconds by phase, tokens through models, peak memory of an iteration.

    Args:
        cost: one row per iteration: method, step, sample_s, verify_s, reference_s, update_s, step_s, peak_gib,
            reference_tokens, policy_tokens. Every method in it is drawn.
        methods: those that ought to be there; an absent one is named.
    """
    drawn = [m for m in METHODS if m in set(cost["method"])]
    if not drawn:
        raise ValueError("no cost measurement of any method: measure it first (notebook 07)")
    groups = cost.groupby("method", observed=True)
    fig, axes = panels(1, 3, 1.15 + 0.22 * len(drawn), sharey=True, width_ratios=(1.35, 1.15, 0.8))
    time, tokens, memory = axes[0]
    for ax in (time, tokens, memory):
        y = rows_axis(ax, [NAMES[m] for m in drawn])
    bar = {"height": 0.7, "edgecolor": "white", "linewidth": 0.5}

    start = np.zeros(len(drawn))
    for column, (name, colour) in PHASES.items():
        width = groups[column].median().loc[drawn].to_numpy(float)
        time.barh(y, width, left=start, color=colour, label=name, **bar)
        start += width
    whole = groups["step_s"].quantile([0.25, 0.75]).unstack().loc[drawn].to_numpy(float)
    time.hlines(y, whole[:, 0], whole[:, 1], color="#222", linewidth=1)
    time.set_xlabel("seconds an iteration")

    policy = groups["policy_tokens"].mean().loc[drawn].to_numpy(float) / 1000
    reference = groups["reference_tokens"].mean().loc[drawn].to_numpy(float) / 1000
    tokens.barh(y, policy, color=PHASES["update_s"][1], label="policy", **bar)
    tokens.barh(y, reference, left=policy, color=PHASES["reference_s"][1], label="online reference", **bar)
    tokens.set_xlabel("thousand tokens an iteration")

    peak = groups["peak_gib"].max().loc[drawn].to_numpy(float)
    memory.barh(y, peak, color=PHASES["sample_s"][1], **bar)
    memory.set_xlabel("peak memory (GiB)")
    for ax in (time, tokens):
        legend_of_bars(ax, 2, -0.02, 1.0)
    shared_ticks([tokens, memory])
    times = "black line: middle half of the iterations' whole time. The base is not trained."
    note(fig, [f"Median of {int(groups.size().min())} iterations or more; {times}", absent_note(methods, drawn)])
    return fig


def divergence_curves(curves: pd.DataFrame) -> Figure:
    """Figure 7: generators f and their gradients df/dd against d.

    Args:
        curves: tidy, columns name, d, value, gradient (nats).
    """
    names = sorted(dict.fromkeys(curves["name"]), key=lambda name: parse(name)[0] not in _DIVERGENCE_LINES)
    fig, axes = panels(1, 2, 2.7)
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
    fig, axes = panels(1, 3, 2.6, width_ratios=(1.25, 1.25, 0.8))
    curve, counts, sizes = axes[0]
    _pass_of_base(curve, records)
    heights = np.bincount(correct, minlength=k + 1)
    _presample_counts(counts, heights, threshold)
    _set_sizes(sizes, int(heights[:threshold].sum()), int(heights[threshold:].sum()))
    bases = base_count(records)
    note(fig, [f"Bands: {INTERVAL if bases > 1 else INTERVAL_ONE_SEED}."])
    return fig


def _pass_of_base(ax: Axes, records: pd.DataFrame) -> None:
    scores = ArmScores.final(records[(records["method"] == "base") & (records["variant"] == "main")])
    longest: list[int] = []
    suites = [(suite, n) for suite in SUITES if (n := scores.answers("base", suite)) is not None]
    for (suite, answers), marker, shade in zip(suites, "so^", ("#1A1A1A", "#5E5E5E", "#9A9A9A"), strict=False):
        ks = powers_of_two(answers)
        got = [interval([scores.of("base", suite, "pass", k)]) for k in ks]
        low, high = (np.clip([100 * getattr(one, side) for one in got], 0, 100) for side in ("low", "high"))
        ax.fill_between(ks, low, high, color=shade, alpha=0.12, linewidth=0)
        ax.plot(ks, [100 * one.estimate for one in got], color=shade, marker=marker, label=SUITES[suite])
        longest = max(longest, ks, key=len)
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
        fontsize=6.6,
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
            fontsize=6.8,
        )
    ax.set_xticks([0, 1], [r"$\mathcal{D}_\mathrm{exp}$", r"$\mathcal{D}_\mathrm{pef}$"])
    ylim = (0, 1.22 * max(exploration, near_perfect))
    ax.set(ylabel="training prompts", title="partition", xlim=(-0.6, 1.6), ylim=ylim)
    ax.grid(axis="x", visible=False)
