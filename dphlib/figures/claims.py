"""The verdicts as a reader sees them: one line per claim, the parts of each, and all in one picture.

The rule and the claims are in `analysis.claims`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dphlib.analysis.claims import OPEN, VERDICTS, ClaimResult, effect_text, joint_text
from dphlib.figures.style import GREY, interval_bar, note, panels, rows_axis, shared_ticks

LOOKS: dict[str, dict[str, Any]] = {
    "supported": {"color": "#0072B2", "marker": "o"},
    "not supported": {"color": "#D55E00", "marker": "X"},
    "inconclusive": {"color": "#8A8A8A", "marker": "D"},
    "not testable": {"color": "#CC79A7", "marker": "s"},
    "not run": {"color": "#C9C9C9", "marker": "_"},
}
UNITS = {"share": (100, "percentage points"), "nats": (1, "nats")}


def claims_table(results: Sequence[ClaimResult]) -> pd.DataFrame:
    """One row per claim, grouped by verdict, with the effect that decided."""
    rows = []
    for one in sorted(results, key=lambda result: VERDICTS.index(result.verdict)):
        held = sum(part.verdict == "supported" for part in one.parts)
        rows.append(
            {
                "verdict": f"**{one.verdict}**",
                "claim": one.text,
                "paper": one.paper_ref,
                "all at once": joint_text(one),
                "effect that decided": effect_text(one) or "-",
                "which is": one.deciding + one.deciding_part.why,
                "parts": f"{held} of {len(one.parts)}",
            }
        )
    return pd.DataFrame(rows)


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
                    "claim": one.id,
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
    counted = [f"{_name(one)}: {one.verdict}" for one in results if one.unit not in UNITS]
    sizes = [sum(one.unit == unit for one in results) for unit in units]
    fig, axes = panels(
        len(units), 1, 0.9 + 0.55 * len(units) + 0.27 * len(results), height_ratios=[s + 0.6 for s in sizes]
    )
    for ax, unit in zip(axes[:, 0], units, strict=True):
        scale, name = UNITS[unit]
        of_unit = [one for one in results if one.unit == unit]
        ax.axvline(0, color=GREY, linewidth=0.9, zorder=2)
        for y, one in zip(rows_axis(ax, [_name(one) for one in of_unit]), of_unit, strict=True):
            _row(ax, y, one, scale)
        ax.set_xlabel(f"effect, positive if the claim holds ({name})")
    shared_ticks(axes[:, 0])
    handles = [Line2D([], [], linewidth=2, label=verdict, **look) for verdict, look in LOOKS.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=1.8, columnspacing=1.4)
    line = "Line: 95 % interval of the part that decided; faint: the claim's other parts. Black tick: tolerance."
    if any(joint_text(one) == OPEN for one in results):
        line += " Hollow: does not hold with all claims at once."
    note(fig, [line, f"Counted, not drawn: {'; '.join(counted)}." if counted else ""])
    return fig


def _name(one: ClaimResult) -> str:
    return textwrap.shorten(one.id.replace("_", " "), 44, placeholder=" ...")


def _row(ax: Axes, y: float, one: ClaimResult, scale: float) -> None:
    """The parts of a claim as faint points, the deciding one with its interval and tolerance."""
    others = [scale * part.estimate for part in one.parts if part.estimate is not None and part.unit == one.unit]
    ax.scatter(others, [y] * len(others), s=9, color=LOOKS[one.verdict]["color"], alpha=0.3, linewidths=0, zorder=3)
    if one.estimate is None:
        ax.text(0, y, " not run", va="center", ha="left", fontsize=6.3, color=GREY)
        return
    ends = (scale * one.low, scale * one.estimate, scale * one.high)  # type: ignore[operator]
    face = {"markerfacecolor": "white", "markeredgecolor": LOOKS[one.verdict]["color"]}
    edge = {**face, "markeredgewidth": 1.0} if joint_text(one) == OPEN else {"markeredgewidth": 0.5}
    look = LOOKS[one.verdict] | edge
    interval_bar(ax, y, ends, width=2.2, alpha=0.5, markersize=5, **look)
    tolerance = max((part.tolerance for part in one.parts), default=0.0)
    if tolerance:
        ax.plot([-scale * tolerance] * 2, [y - 0.32, y + 0.32], color="#222", linewidth=1, zorder=4)
