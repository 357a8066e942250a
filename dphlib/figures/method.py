"""Figure 1: the method as a drawing, beside the style shares of the base and of two trained models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dphlib import stats
from dphlib.analysis.labels import NAMES, STYLE_COLOURS, SUITES
from dphlib.figures.style import absent_note, note, panels, style_shares

INK, EXPLORE, REHEARSE, PLAIN = "#222222", "#FBE9D3", "#DDE7F4", "#F3F3F3"
EDGES = {EXPLORE: "#C2703D", REHEARSE: "#44679F", PLAIN: "#8A8A8A"}


def method_figure(
    records: pd.DataFrame,
    methods: Sequence[str] = ("base", "grpo", "dph_js"),
    suite: str = "in_domain",
    *,
    k: int = 8,
    threshold: int = 6,
) -> Figure:
    """Figure 1: partition by pre-sampling, a loss for each set, and the styles before and after.

    Args:
        records: frame of EvalRecord rows, for the bars.
        methods: one bar each.
        k, threshold: of the partition, as the run had them.
    """
    rows = stats.sampled(stats.final(records[(records["variant"] == "main") & (records["suite"] == suite)]))
    present = [m for m in methods if m in set(rows["method"])]
    if "base" not in present:
        raise ValueError(f"no records of the base model on {suite}: evaluate the base first (notebook 02), then draw")
    fig, axes = panels(1, 2, 2.75, width_ratios=(3.1, 1))
    _scheme(axes[0, 0], k, threshold)
    if stats.has_styles(rows):
        _bars(axes[0, 1], rows[rows["method"].isin(present)], present, suite)
        note(fig, [absent_note(methods, present)])
    else:
        axes[0, 1].set_visible(False)
        note(fig, ["No bars of styles: the answers to these data sets have none that could be told apart."])
    return fig


def _box(ax: Axes, x: float, y: float, width: float, height: float, head: str, body: str, fill: str = PLAIN) -> None:
    """A box by its left lower corner: a head in bold, a body below it."""
    style = "round,pad=0,rounding_size=1.3"
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=EDGES[fill], linewidth=0.8)
    )
    middle = x + width / 2
    ax.text(middle, y + height - 1.5, head, ha="center", va="top", fontsize=7.2, weight="bold", color=INK)
    ax.text(middle, y + (height - 4.2) / 2, body, ha="center", va="center", fontsize=6.5, color=INK, linespacing=1.4)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    ax.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=7, linewidth=0.9, color=colour, shrinkA=0, shrinkB=0
        )
    )


def _scheme(ax: Axes, k: int, threshold: int) -> None:
    ax.set(xlim=(0, 120), ylim=(0, 58))
    ax.axis("off")
    for x, text in ((0, "1  pre-sample, verify, part"), (54, "2  train, a loss for each set")):
        ax.text(x, 57.5, text, fontsize=7.4, weight="bold", va="top", color="#555555")

    _box(ax, 0, 19.5, 21.5, 15, "prompts", f"{k} answers each\nfrom " + r"$\pi_\mathrm{ref}$" + ", verified")
    explored = r"$\mathcal{D}_\mathrm{exp}$" + f"\nfewer than {threshold} of {k}\ncorrect"
    rehearsed = r"$\mathcal{D}_\mathrm{pef}$" + f"\n{threshold} of {k} correct\nor more"
    _box(ax, 28, 31, 20.5, 19, "exploration", explored, EXPLORE)
    _box(ax, 28, 5, 20.5, 19, "near-perfect", rehearsed, REHEARSE)
    _arrow(ax, (21.5, 29.5), (28, 40), EDGES[EXPLORE])
    _arrow(ax, (21.5, 24.5), (28, 14.5), EDGES[REHEARSE])

    on_policy = "on-policy rollouts,\ngroup advantage, PPO-clip\n" + r"$\mathcal{L}_\mathrm{exp}$"
    objective = r"$\mathcal{L}_\mathrm{pef}=\mathbb{E}_{\pi_\mathrm{ref}}[\,f(\pi_\theta/\pi_\mathrm{ref})\,]$"
    _box(ax, 54, 31, 40, 19, "explore: GRPO, no KL term", on_policy, EXPLORE)
    _box(ax, 54, 5, 40, 19, "rehearse: f-divergence", "stored answers with log-probs\n" + objective, REHEARSE)
    _arrow(ax, (48.5, 40.5), (54, 40.5), EDGES[EXPLORE])
    _arrow(ax, (48.5, 14.5), (54, 14.5), EDGES[REHEARSE])
    ax.text(
        74, 3.6, "no reference model is loaded", fontsize=6.2, style="italic", ha="center", va="top", color="#555555"
    )

    _box(ax, 101, 20.5, 19, 14, r"$\pi_\theta$", r"$\mathcal{L}_\mathrm{exp}+\eta\,\mathcal{L}_\mathrm{pef}$")
    _arrow(ax, (94, 38), (101, 31), EDGES[EXPLORE])
    _arrow(ax, (94, 17), (101, 24), EDGES[REHEARSE])


def _bars(ax: Axes, rows: pd.DataFrame, present: Sequence[str], suite: str) -> None:
    percent = 100 * style_shares(rows).loc[list(present)]
    x, bottom = np.arange(len(present)), np.zeros(len(present))
    for style, colour in STYLE_COLOURS.items():
        if style in percent:
            height = percent[style].to_numpy()
            ax.bar(x, height, bottom=bottom, color=colour, width=0.68, label=style, edgecolor="white", linewidth=0.6)
            bottom = bottom + height
    ax.set_xticks(x, [NAMES[m] for m in present])
    ax.set(ylim=(0, 132), yticks=range(0, 101, 25))  # room for the legend above 100 %
    ax.spines["left"].set_bounds(0, 100)
    ax.set_ylabel(f"styles of answers, {SUITES[suite]} (%)", y=50 / 132)
    ax.grid(visible=False)
    ax.legend(
        loc="upper left",
        bbox_to_anchor=(-0.06, 1.03),
        ncols=2,
        handlelength=0.9,
        handleheight=0.9,
        handletextpad=0.5,
        columnspacing=0.9,
        labelspacing=0.3,
        borderaxespad=0,
        fontsize=6.4,
    )
