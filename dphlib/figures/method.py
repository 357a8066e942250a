"""Figure 1: the method as a drawing, above the style shares of the base and of two trained models."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dphlib import stats
from dphlib.analysis.labels import NAMES, SET_COLOURS
from dphlib.figures.style import absent_note, note, panels, rows_axis, stacked_styles, style_shares

INK, PLAIN = "#222222", "neutral"
EXPLORE, REHEARSE = "exploration", "near_perfect"
EDGES = {EXPLORE: "#B5691F", REHEARSE: SET_COLOURS[REHEARSE], PLAIN: "#6B6B6B"}
FILLS = {EXPLORE: "#FBEBD8", REHEARSE: "#E1E9F5", PLAIN: "#F4F4F4"}


BARS = ("base", "grpo", "dph_js")


def method_figure(records: pd.DataFrame, *, k: int = 8, threshold: int = 6) -> Figure:
    """Figure 1: partition by pre-sampling, a loss for each set, and the styles of `BARS` in domain, before and after.

    Args:
        records: frame of EvalRecord rows, for the bars.
        k, threshold: of the partition, as the run had them.
    """
    rows = stats.sampled(stats.final(records[(records["variant"] == "main") & (records["suite"] == "in_domain")]))
    present = [m for m in BARS if m in set(rows["method"])]
    if "base" not in present:
        raise ValueError("no records of the base model in domain: evaluate the base first (notebook 02), then draw")
    if not stats.has_styles(rows):
        fig, axes = panels(1, 1, 2.9)
        _scheme(axes[0, 0], k, threshold)
        note(fig, ["No bars of styles: the answers to these data sets have none that can be recognised."])
        return fig
    fig, axes = panels(2, 1, 3.4 + 0.27 * len(present), height_ratios=(2.75, 0.3 + 0.27 * len(present)))
    scheme, bars = axes[:, 0]
    _scheme(scheme, k, threshold)
    heights = rows_axis(bars, [NAMES[m] for m in present])
    stacked_styles(bars, heights, 100 * style_shares(rows[rows["method"].isin(present)]).loc[present])
    bars.set_xlabel("styles of the sampled answers, in domain (%)")
    note(fig, [absent_note(BARS, present)])
    return fig


def _box(ax: Axes, corner: tuple[float, float], size: tuple[float, float], words: tuple[str, str], kind: str) -> None:
    """A box by its left lower corner: a head in bold, a body below it."""
    (x, y), (width, height), (head, body) = corner, size, words
    style = "round,pad=0,rounding_size=1.4"
    ax.add_patch(
        FancyBboxPatch(
            corner, width, height, boxstyle=style, facecolor=FILLS[kind], edgecolor=EDGES[kind], linewidth=1, zorder=2
        )
    )
    middle = x + width / 2
    text: dict[str, Any] = {"ha": "center", "color": INK, "zorder": 3}
    ax.text(middle, y + height - 1.7, head, va="top", fontsize=9, weight="bold", **text)
    ax.text(middle, y + (height - 4.6) / 2, body, va="center", fontsize=8.3, linespacing=1.3, **text)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
    """From a box's edge to short of the next one's, above both."""
    head = "-|>,head_length=0.5,head_width=0.28"
    shape: dict[str, Any] = {"arrowstyle": head, "mutation_scale": 9, "shrinkA": 0, "shrinkB": 1.5}
    ax.add_patch(FancyArrowPatch(start, end, linewidth=1.2, color=EDGES[kind], zorder=5, **shape))


def _scheme(ax: Axes, k: int, threshold: int) -> None:
    ax.set(xlim=(-0.6, 128.6), ylim=(-0.6, 52))
    ax.axis("off")
    for x, text in ((0, "1  pre-sample, verify, partition"), (57, "2  train, a loss for each set")):
        ax.text(x, 52, text, fontsize=9.5, weight="bold", va="top", color="#555555")

    low, high, height = 4.5, 26.5, 19
    answers = f"{k} answers each\nfrom " + r"$\pi_\mathrm{ref}$" + ",\nverified"
    _box(ax, (0, 15), (22, 20), ("prompts", answers), PLAIN)
    explored = r"$\mathcal{D}_\mathrm{exp}$" + f"\nfewer than\n{threshold} of {k} correct"
    rehearsed = r"$\mathcal{D}_\mathrm{pef}$" + f"\n{threshold} of {k} correct\nor more"
    _box(ax, (28, high), (23, height), ("exploration", explored), EXPLORE)
    _box(ax, (28, low), (23, height), ("near-perfect", rehearsed), REHEARSE)
    _arrow(ax, (22, 28), (28, high + height / 2), EXPLORE)
    _arrow(ax, (22, 22), (28, low + height / 2), REHEARSE)

    on_policy = "rollouts of the policy,\ngroup advantage, PPO-clip\n" + r"$\mathcal{L}_\mathrm{exp}$"
    objective = r"$\mathcal{L}_\mathrm{pef}=\mathbb{E}_{\pi_\mathrm{ref}}[\,f(\pi_\theta/\pi_\mathrm{ref})\,]$"
    _box(ax, (57, high), (42, height), ("explore: GRPO, no KL", on_policy), EXPLORE)
    _box(ax, (57, low), (42, height), ("rehearse: f-divergence", "stored answers, log-probs\n" + objective), REHEARSE)
    _arrow(ax, (51, high + height / 2), (57, high + height / 2), EXPLORE)
    _arrow(ax, (51, low + height / 2), (57, low + height / 2), REHEARSE)
    ax.text(78, 3, "no reference model is loaded", fontsize=8, style="italic", ha="center", va="top", color="#555555")

    objective = r"$\mathcal{L}_\mathrm{exp}+\eta\,\mathcal{L}_\mathrm{pef}$"
    _box(ax, (107, 16), (21, 18), ("policy " + r"$\pi_\theta$", objective), PLAIN)
    _arrow(ax, (99, high + height / 2), (107, 29), EXPLORE)
    _arrow(ax, (99, low + height / 2), (107, 21), REHEARSE)
