"""The verdicts as a reader sees them: one line per claim, the parts of each, and all in one picture.

A verdict is said by a colour and a word beside it.

The rule and the claims are in `analysis.claims`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dphlib.analysis.claims import OPEN, SYMBOLS, VERDICTS, ClaimResult, effect_text, joint_text
from dphlib.analysis.labels import VERDICT_COLOURS, claim_name
from dphlib.figures.style import GREY, SMALL, cut_long_intervals, interval_bar, note, panels, rows_axis, shared_ticks

UNITS = {"share": (100, "percentage points"), "nats": (1, "nats")}


def parts_table(results: Sequence[ClaimResult], verdict: str = "all") -> pd.DataFrame:
    """One row per part of the claims with a verdict (`all`: of every claim), with its effect.

    Raises:
        ValueError: an unknown verdict.
    """
    if verdict not in ("all", *VERDICTS):
        raise ValueError(f"verdict {verdict!r}: all, {', '.join(VERDICTS)}")
    rows = []
    for one in (one for one in results if verdict in ("all", one.verdict)):
        for part in one.parts:
            scale, unit = UNITS.get(part.unit, (1, part.unit))
            seeds = ", ".join(f"{scale * value:.{1 if scale > 1 else 2}f}" for _, value in part.per_seed)
            rows.append(
                {
                    "claim": claim_name(one.id),
                    "part": part.label,
                    "effect": effect_text(part) or "-",
                    "seed by seed": seeds or "-",
                    "tolerance": f"{scale * part.tolerance:g} {unit.split()[-1]}" if part.tolerance else "0",
                    "verdict": part.verdict + part.why,
                }
            )
    return pd.DataFrame(rows, columns=["claim", "part", "effect", "seed by seed", "tolerance", "verdict"])


def claims_figure(results: Sequence[ClaimResult]) -> Figure:
    """The claims in order, one panel per unit (points, nats); a claim that counts tokens is named below, not drawn.

    Raises:
        ValueError: no claim to draw.
    """
    units = [unit for unit in UNITS if any(one.unit == unit for one in results)]
    if not units:
        raise ValueError("no judged claim to draw: judge the claims first (notebook 08)")
    counted = [f"{claim_name(one.id)}: {one.verdict}" for one in results if one.unit not in UNITS]
    sizes = [sum(one.unit == unit for one in results) for unit in units]
    fig, axes = panels(
        len(units), 1, 0.8 + 0.55 * len(units) + 0.24 * len(results), height_ratios=[s + 0.6 for s in sizes]
    )
    cut = False
    for ax, unit in zip(axes[:, 0], units, strict=True):
        scale, name = UNITS[unit]
        of_unit = [one for one in results if one.unit == unit]
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=2)
        heights = rows_axis(ax, [_on_lines(claim_name(one.id)) for one in of_unit], linespacing=0.95)
        others = [_row(ax, y, one, scale) for y, one in zip(heights, of_unit, strict=True)]
        drawn = [
            (y, _ends(one, scale), VERDICT_COLOURS[one.verdict])
            for y, one in zip(heights, of_unit, strict=True)
            if one.estimate is not None
        ]
        cut |= cut_long_intervals(ax, drawn, *(value for values in others for value in values))
        ax.set_xlabel(f"effect ({name}); right of 0: as claimed")
    shared_ticks(axes[:, 0])
    lines = ["Line: 95 % interval of the part that decided; faint: the claim's other parts. Black tick: tolerance."]
    if any(joint_text(one) == OPEN for one in results):
        lines.append("Hollow: does not hold with all headline claims judged at once.")
    if cut:
        lines.append("Arrowhead: the interval goes on.")
    note(fig, [" ".join(lines), f"Counted, not drawn: {'; '.join(counted)}." if counted else ""])
    return fig


def _on_lines(name: str) -> str:
    """A long name with its tolerance on a second line."""
    return name.replace(", within", ",\nwithin") if len(name) > 38 else name


def _ends(one: ClaimResult, scale: float) -> tuple[float, float, float]:
    return scale * one.low, scale * one.estimate, scale * one.high  # type: ignore[operator]


def _row(ax: Axes, y: float, one: ClaimResult, scale: float) -> list[float]:
    """The parts of a claim as faint points, the deciding one with its interval and tolerance, the verdict in words.

    Returns the places of the faint points.
    """
    colour = VERDICT_COLOURS[one.verdict]
    ax.annotate(
        f"{SYMBOLS[one.verdict]} {one.verdict}",
        (1.025, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=SMALL + 0.5,
        color=colour,
    )
    others = [scale * part.estimate for part in one.parts if part.estimate is not None and part.unit == one.unit]
    ax.scatter(others, [y] * len(others), s=9, color=colour, alpha=0.3, linewidths=0, zorder=3)
    if one.estimate is None:
        return others
    face = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.1}
    interval_bar(ax, y, _ends(one, scale), colour, **(face if joint_text(one) == OPEN else {}))
    tolerance = max((part.tolerance for part in one.parts), default=0.0)
    if tolerance:
        ax.plot([-scale * tolerance] * 2, [y - 0.32, y + 0.32], color="#222", linewidth=1, zorder=4)
    return others
