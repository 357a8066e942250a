"""Figures of the lessons: one-mode fits, direction against strength, estimators, the curve of supervised fine-tuning.

They are shown in their notebook and are not among the paper's figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dphlib import stats
from dphlib.analysis.labels import STYLE_COLOURS, SUITES
from dphlib.figures.style import (
    GREY,
    SMALL,
    ink_on,
    legend_of_bars,
    log2_axis,
    note,
    panels,
    rows_axis,
    stacked_styles,
)
from dphlib.figures.training import divergence_style
from dphlib.types import STYLE_COUNTS

_ESTIMATORS = {
    "one_sample": ("one sample", "#D55E00", "-", "v"),
    "mean_of_answers": ("mean of several answers", "#B88A00", (0, (5, 1)), "<"),
    "definition": ("definition, online reference", "#1A1A1A", "-", "s"),
    "topk": ("top-K, rest lumped", "#0072B2", "-", "o"),
    "topk_sampled_tail": ("top-K, rest sampled", "#1BA784", (0, (1.2, 1)), "D"),
}
"""Label, colour, line and marker of each of `lessons.estimators.ESTIMATORS`."""


def one_mode_fits(fits: pd.DataFrame) -> Figure:
    """One panel per divergence: the two-mode reference in grey, the nearest distribution with one mode as a line.

    Args:
        fits: what `lessons.categorical.covering_fits` gave.
    """
    names = list(dict.fromkeys(fits["name"]))
    fig, axes = panels(1, len(names), 1.9, sharey=True)
    for ax, name in zip(axes[0], names, strict=True):
        rows = fits[fits["name"] == name]
        text, colour, _ = divergence_style(name)
        ax.bar(rows["token"], 100 * rows["reference"], width=1.0, color="#D0D0D0", label=r"$\pi_\mathrm{ref}$")
        ax.plot(rows["token"], 100 * rows["fitted"], color=colour, label="nearest with one mode")
        ax.set(title=text, xlabel="answer")
        ax.grid(axis="x", visible=False)
        ax.annotate(
            f"right half:\n{100 * rows['minor'].iloc[0]:.1f} %",
            (0.98, 0.97),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=6.6,
            color=colour,
        )
    axes[0, 0].set_ylabel("probability (%)")
    share = 100 * fits.loc[fits["token"] >= (fits["token"].max() + 1) / 2].groupby("name")["reference"].sum().iloc[0]
    grey = f"Grey: the reference, with {share:.0f} % of its mass in the right half."
    line = "Line: the distribution with one mode that has the least divergence"
    note(fig, [f"{grey} {line}; what is written is its mass in the right half."])
    return fig


def pulls(curves: pd.DataFrame, marked: Sequence[float]) -> Figure:
    """How strongly each divergence pulls back a token that lost so many nats, on a log axis, and JS's doubled.

    Args:
        curves: what `lessons.categorical.curves` gave.
        marked: values of d, at or below 0, where the pull of forward KL and of JS is written.
    """
    fig, axes = panels(1, 1, 3.0, width=5.6)
    ax, collapsed = axes[0, 0], curves[curves["d"] < 0]
    for name in dict.fromkeys(collapsed["name"]):
        rows = collapsed[collapsed["name"] == name].sort_values("d")
        text, colour, dash = divergence_style(name)
        d, pull = rows["d"].to_numpy(), -rows["gradient"].to_numpy()
        ax.plot(d, pull, color=colour, linestyle=dash, label=text)
        if name == "js":
            ax.plot(d, 2 * pull, color=colour, linestyle=(0, (1, 1.2)), label="2 x JS")
        if name in ("forward_kl", "js"):
            at = np.interp(marked, d, pull)
            ax.plot(marked, at, "o", color=colour, markersize=4, markeredgecolor="white")
            side, align = (4, "bottom") if name == "forward_kl" else (-4, "top")
            place = {"xytext": (0, side), "textcoords": "offset points", "va": align}
            for x, y in zip(marked, at, strict=True):
                beside = "center" if 3 * y > at.max() else "right"  # of a falling line
                ax.annotate(f"{y:.2g}", (x, y), fontsize=SMALL, color=colour, ha=beside, **place)
    ax.set(yscale="log", ylim=(1e-5, 4), xlabel=r"$d$ of a stored token (nats)", ylabel="pull, minus the gradient")
    ax.invert_xaxis()
    fig.legend(loc="outside right center")
    note(fig, ["From left to right the token collapses. 2 x JS: the authors' code leaves out the factor 1/2."])
    return fig


_STATES = {
    "right": ("#CFE3F3", ""),
    "goes on as a logarithm": ("#8FB8D9", ".."),
    "off by more than 5 %": ("#E9B98F", "//"),
    "no gradient": ("#C4682B", "xx"),
    "nan": ("#3A3A3A", ""),
}
"""Colour and hatch of each of `lessons.categorical.STATES`."""


def trap_map(measured: pd.DataFrame) -> Figure:
    """What becomes of each generator along d in 32 bits: a row for each way to write it, coloured by its state.

    Args:
        measured: what `lessons.categorical.traps` gave on a fine grid of d.
    """
    rows = list(measured[["name", "form"]].drop_duplicates().itertuples(index=False, name=None))
    fig, axes = panels(1, 1, 0.9 + 0.3 * len(rows), width=6.6)
    ax = axes[0, 0]
    for y, key in zip(
        rows_axis(ax, [f"{divergence_style(name)[0]}, {form}" for name, form in rows]), rows, strict=True
    ):
        part = measured[(measured["name"] == key[0]) & (measured["form"] == key[1])].sort_values("d")
        d, state = part["d"].to_numpy(), part["state"].to_numpy()
        starts = np.flatnonzero(np.r_[True, state[1:] != state[:-1]])
        for first, last in zip(starts, [*starts[1:], len(d) - 1], strict=True):
            colour, hatch = _STATES[state[first]]
            ax.barh(
                y, d[last] - d[first], left=d[first], height=0.78, color=colour, hatch=hatch, edgecolor="white", lw=0
            )
    ax.set_xscale("symlog", linthresh=1e-4, linscale=0.6)
    ticks = [-100, -10, -1, -0.01, -1e-4, 1e-4, 0.01, 1, 10, 100]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set(xlabel=r"$d$ of a token (nats), logarithmic on both sides", xlim=(measured["d"].min(), measured["d"].max()))
    there = [name for name in _STATES if name in set(measured["state"])]
    patches = [
        Patch(facecolor=_STATES[name][0], hatch=_STATES[name][1], edgecolor="white", label=name) for name in there
    ]
    fig.legend(handles=patches, loc="outside upper center", ncols=len(patches), handlelength=1.4, columnspacing=1.2)
    line = "Value and gradient in floats of 32 bits, against the formula in 64 bits."
    note(fig, [f"{line} Ours go on as a logarithm beyond 20 nats, on purpose."])
    return fig


def covered_map(covered: pd.DataFrame) -> Figure:
    """The mass that each one-mode fit leaves at the smaller mode, by the distance between the modes, as a heat map.

    Args:
        covered: a row for each divergence, by name, a column for each distance; per cent.
    """
    fig, axes = panels(1, 1, 0.75 + 0.26 * len(covered), width=4.6)
    names = [divergence_style(str(name))[0] for name in covered.index]
    heat_map(axes[0, 0], covered.to_numpy(float), names, [str(name) for name in covered.columns])
    axes[0, 0].set(xlabel="distance of the modes (standard deviations)", title="mass in the right half (%)")
    return fig


def style_bars(records: pd.DataFrame) -> Figure:
    """The styles' shares among one model's sampled answers, a bar for each suite."""
    shares = stats.style_shares(records).set_index("suite")
    there = [suite for suite in SUITES if suite in shares.index]
    fig, axes = panels(1, 1, 1.0 + 0.28 * len(there), width=5.2)
    y = rows_axis(axes[0, 0], [SUITES[suite] for suite in there])
    percent = 100 * shares.loc[there, list(STYLE_COUNTS)]
    stacked_styles(axes[0, 0], y, percent.loc[:, percent.any()])
    return fig


def right_map(shares: Mapping[str, pd.DataFrame]) -> Figure:
    """On how many of each family's problems each style is right, per cent, as heat maps side by side.

    Args:
        shares: what is written over a panel -> what `lessons.world.right_table` gave.
    """
    columns = [name for name in next(iter(shares.values())).columns if name not in ("content", "family", "problems")]
    rows = max(map(len, shares.values()))
    fig, axes = panels(1, len(shares), 1.0 + 0.155 * rows)
    for ax, (title, frame) in zip(axes[0], shares.items(), strict=True):
        heat_map(ax, frame[columns].to_numpy(float), _families(frame, "content"), columns)
        ax.xaxis.tick_top()
        ax.set_title(title, pad=6)
        ax.tick_params(axis="both", labelsize=SMALL)
        ax.tick_params(axis="x", labelrotation=40, pad=0)
        for name in ax.get_xticklabels():
            name.set(ha="left", rotation_mode="anchor")
        _lines_between(ax, frame["content"])
    note(fig, ["Per cent of a family's problems. any: at least one style is right; all: every style is."])
    return fig


def count_map(counts: pd.DataFrame, threshold: int) -> Figure:
    """Prompts by how many of their pre-samples are correct, a row for each family, as a heat map.

    Args:
        counts: what `lessons.presampling.counts` gave.
        threshold: of the partition, a dashed line.
    """
    columns = [name for name in counts.columns if name not in ("subset", "family")]
    numbers = counts[columns].to_numpy()
    fig, axes = panels(1, 1, 1.1 + 0.155 * len(counts), width=5.2)
    ax = axes[0, 0]
    texts = np.where(numbers > 0, numbers.astype(str), "")
    heat_map(ax, 100 * numbers / numbers.sum(axis=1, keepdims=True), _families(counts, "subset"), columns, texts)
    _lines_between(ax, counts["subset"])
    ax.axvline(columns.index(threshold) - 0.5, color="#222", linestyle=(0, (4, 1.6)), linewidth=1)
    ax.tick_params(axis="both", labelsize=SMALL)
    ax.set(xlabel=f"correct of {columns[-1]} pre-samples", title="training prompts")
    note(fig, [f"Number: prompts. Colour: share of the family's. Dashed: threshold {threshold} of {columns[-1]}."])
    return fig


def _families(frame: pd.DataFrame, part: str) -> list[str]:
    """Each row's family, with its part where that is not `hidden`, of which the most are."""
    parts = ["" if name in ("hidden", "all", "") else f" ({name})" for name in frame[part]]
    return [f"{family.replace('_', ' ')}{name}" for family, name in zip(frame["family"], parts, strict=True)]


def _lines_between(ax: Axes, groups: pd.Series) -> None:
    """A line where a heat map's rows go from one group to the next."""
    for y in np.flatnonzero(groups.to_numpy()[1:] != groups.to_numpy()[:-1]):
        ax.axhline(y + 0.5, color="#222", linewidth=0.8)


def heat_map(
    ax: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[object], texts: np.ndarray | None = None
) -> None:
    """Numbers from 0 to 100 as cells, each written into its cell, or another text; NaN is an empty one."""
    ax.imshow(values, cmap=_HEAT, vmin=0, vmax=100, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        if np.isfinite(value):
            text = f"{value:.0f}" if texts is None else str(texts[y, x])
            ink = ink_on(to_hex(_HEAT(value / 100)))
            ax.text(x, y, text, ha="center", va="center", fontsize=SMALL - 0.6, color=ink)
    ax.set_xticks(range(len(columns)), list(map(str, columns)))
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.grid(visible=False)
    ax.grid(which="minor", color="white", linewidth=1.2)
    ax.tick_params(which="both", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


_HEAT = LinearSegmentedColormap.from_list("heat", ["#F4F6F9", "#9CBDD9", "#3E6FA8", "#1D3557"])


def explored(curves: pd.DataFrame, held: pd.DataFrame, d: float, eta: float, right: Sequence[float]) -> Figure:
    """One setting of d, eta and alpha: what each divergence pulls at, and which styles it holds.

    Args:
        curves: what `lessons.categorical.curves` gave.
        held: a row for each divergence, by name, a column for each style with its share, per cent; `pass_1`, `pass_k`.
        d, eta: the setting.
        right: share of the databases on which each style is right.
    """
    fig, axes = panels(1, 2, 3.0, width_ratios=(1.15, 1))
    pull, styles = axes[0]
    for name in dict.fromkeys(curves["name"]):
        rows = curves[curves["name"] == name].sort_values("d")
        text, colour, dash = divergence_style(name)
        x, y = rows["d"].to_numpy(), -eta * rows["gradient"].to_numpy()
        at = float(np.interp(d, x, y))
        pull.plot(x, y, color=colour, linestyle=dash, label=f"{text}  {at:+.3g}")
        pull.plot([d], [at], "o", color=colour, markeredgecolor="white")
    pull.axvline(d, color=GREY, linewidth=0.8)
    pull.axhline(0, color=GREY, linewidth=0.7)
    pull.set(xlabel=r"$d$ of a stored token (nats)", title=f"pull times eta, at d = {d:g}")
    pull.set(xlim=(curves["d"].min(), 3), ylim=(-1.2 * eta, 1.6 * eta))
    pull.legend(loc="lower left", fontsize=SMALL)
    shares = held[[name for name in STYLE_COLOURS if name in held]]
    y = rows_axis(styles, [divergence_style(str(name))[0] for name in held.index])
    start = np.zeros(len(held))
    for style, colour in STYLE_COLOURS.items():
        if style in shares:
            styles.barh(y, shares[style], left=start, color=colour, height=0.7, edgecolor="white", label=style)
            start = start + shares[style].to_numpy()
    for where, one, several in zip(y, held["pass_1"], held["pass_k"], strict=True):
        said = f"Pass@1 {one:.0f}, Pass@8 {several:.0f}"
        styles.text(50, where - 0.47, said, fontsize=SMALL - 0.4, color=GREY, ha="center", va="center")
    styles.set(xlim=(0, 100), xlabel="share of the optimum (%)", title=f"styles held at eta = {eta:.2g}\n")
    styles.grid(visible=False)
    legend_of_bars(styles, 4, -0.05, 0.9)
    odds = ", ".join(f"{100 * share:g}" for share in right)
    note(
        fig, [f"Right: exact optimum of reward minus eta times divergence; styles right on {odds} % of the databases."]
    )
    return fig


def direction_and_strength(held: pd.DataFrame, k: int = 8) -> Figure:
    """Style entropy against eta, against eta f''(1), and Pass@k against Pass@1 on the way.

    Args:
        held: what `lessons.categorical.strengths` gave.
        k: its k.
    """
    fig, axes = panels(1, 3, 2.5)
    by_eta, by_strength, front = axes[0]
    for name in dict.fromkeys(held["name"]):
        rows = held[held["name"] == name].sort_values("eta")
        text, colour, dash = divergence_style(name)
        for ax, column in ((by_eta, "eta"), (by_strength, "strength")):
            ax.plot(rows[column], rows["style_entropy"], color=colour, linestyle=dash, label=text)
        front.plot(rows["pass_1"], rows["pass_k"], color=colour, linestyle=dash)
    for ax, name in ((by_eta, r"$\eta$"), (by_strength, r"$\eta\, f''(1)$")):
        ax.axhline(np.log(4), color=GREY, linewidth=0.7, linestyle=":")
        ax.set(xscale="log", xlabel=name, ylim=(0, 1.05 * np.log(4)))
    by_eta.set(title="equal eta", ylabel="style entropy (nats)")
    by_strength.set(title="equal strength", xlim=by_eta.get_xlim())
    front.set(xlabel="Pass@1 (%)", ylabel=f"Pass@{k} (%)", title="what is traded")
    fig.legend(*by_eta.get_legend_handles_labels(), loc="outside upper center", ncols=held["name"].nunique())
    line = "Four styles, exact optimum of reward minus eta times divergence. Dotted: ln 4, four styles in equal use."
    note(fig, [line])
    return fig


def estimators(collapsed: pd.DataFrame, missed: pd.DataFrame) -> Figure:
    """The noise of each estimator and its pull as a token collapses, and what lumping the rest misses by K.

    Args:
        collapsed: what `lessons.categorical.collapse` gave for one divergence.
        missed: what `lessons.categorical.lumping` gave.
    """
    fig, axes = panels(1, 3, 3.1)
    noise, pull, bias = axes[0]
    for name, (text, colour, dash, _) in _ESTIMATORS.items():
        rows = collapsed[collapsed["estimator"] == name].sort_values("depth")
        # three of them coincide: the one below is the widest
        width = {"definition": 3.2, "topk": 1.8}.get(name, 1.3)
        lines: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": width}
        noise.plot(rows["depth"], rows["sd"], label=text, **lines)
        pull.plot(rows["depth"], rows["pull"], **lines)
        if name in ("one_sample", "mean_of_answers"):
            for end in (rows["pull"] - rows["pull_sd"], rows["pull"] + rows["pull_sd"]):
                pull.plot(rows["depth"], end, color=colour, linestyle=dash, linewidth=0.7)
    for name in dict.fromkeys(missed["name"]):
        rows = missed[missed["name"] == name].sort_values("k")
        text, colour, dash = divergence_style(name)
        bias.plot(rows["k"], 100 * rows["missed"], color=colour, linestyle=dash, label=text)
    log2_axis(bias, list(dict.fromkeys(missed["k"])))
    noise.set(title="noise", ylabel="standard deviation\nof an estimate (nats)")
    pull.axhline(0, color=GREY, linewidth=0.7)
    pull.set(title="pull on the token", ylabel="minus gradient at its logit")
    for ax in (noise, pull):
        ax.set_xlabel("token dropped by (nats)")
    bias.set(
        title="what top-K misses", xlabel="K", ylabel="of the divergence (%)", ylim=(0, 140 * missed["missed"].max())
    )
    bias.legend(ncols=2, loc="upper right", fontsize=SMALL, handlelength=1.4, columnspacing=0.8)
    fig.legend(*noise.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    exact = "Left and middle: a policy that dropped the second likeliest token; at one position, exact."
    ends = "Thin: one standard deviation over the answers drawn."
    note(fig, [f"{exact} {ends} Right: every logit has moved at random."])
    return fig


def estimator_costs(measured: pd.DataFrame) -> Figure:
    """The variance of a mini-batch's gradient against the bytes stored per token, one point per estimator.

    Args:
        measured: what `lessons.estimators.measure` gave.
    """
    fig, axes = panels(1, 1, 2.7, width=4.4)
    ax = axes[0, 0]
    for row in measured.itertuples():
        text, colour, _, marker = _ESTIMATORS[row.estimator]
        ax.plot(row.bytes, 1 / row.variance_ratio, marker, color=colour, markersize=6, linestyle="", label=text)
    ax.set(xscale="log", yscale="log", xlabel="bytes stored per token", ylabel="gradient variance\n(one sample: 1)")
    ticks = sorted(set(measured["bytes"]))
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_yticks([1, 0.3, 0.1], ["1", "0.3", "0.1"])
    ax.minorticks_off()
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
    facts = f"{measured.attrs['redraws']} redraws of the stored answers. " if "redraws" in measured.attrs else ""
    note(fig, [f"{facts}Only the definition needs a reference model in training."])
    return fig


def sft_curve(losses: Sequence[float], every: int = 1, window: int = 20) -> Figure:
    """The loss of supervised fine-tuning over its steps, thin, and its mean over `window` steps, thick.

    Where only each mean over `every` steps is known, that alone.
    """
    fig, axes = panels(1, 1, 2.1, width=4.2)
    ax = axes[0, 0]
    steps, means, said = every * np.arange(1, len(losses) + 1), pd.Series(losses), f"Mean over every {every} steps."
    if every == 1:
        ax.plot(steps, losses, color="#1A1A1A", linewidth=0.5, alpha=0.3)
        means = means.rolling(window, center=True, min_periods=1).mean()
        said = f"Thin: each step. Thick: mean over {window} steps."
    ax.plot(steps, means, color="#1A1A1A")
    ax.set(xlabel="step", ylabel="loss (nats / token)", ylim=(0, min(max(losses), 6 * float(np.median(losses)))))
    note(fig, [f"{said} Answers' tokens only."])
    return fig
