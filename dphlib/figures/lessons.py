"""Figures of the lessons: one-mode fits, direction against strength, estimators, the curve of supervised fine-tuning.

They are shown in their notebook and are not among the paper's figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dphlib.figures.style import GREY, SMALL, log2_axis, note, panels
from dphlib.figures.training import divergence_style

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
    ax.set(xscale="log", yscale="log", xlabel="bytes stored a token", ylabel="gradient variance\n(one sample: 1)")
    ticks = sorted(set(measured["bytes"]))
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
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
