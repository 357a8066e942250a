"""One look for all figures, and bytes that repeat: style, panels, legend, note, saving.

A figure is made for a paper's page, 7 inches wide, with letters of 7 to 8 points. The font comes with matplotlib, so a
figure drawn again from the same numbers with the same versions has the same bytes, on any machine.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from dphlib import stats
from dphlib.analysis.labels import LOOKS
from dphlib.runtime.files import atomic_path
from dphlib.types import STYLE_COUNTS

WIDTH = 7.0
"""Inches: the text width of a paper's page."""
GREY = "#6B6B6B"
INTERVAL = "95 % interval over runs and problems (closed form, Student's quantile)"
INTERVAL_ONE_SEED = "95 % interval over problems only (one run)"


def use_style() -> None:
    """Sets the style of all figures; `panels` calls it."""
    sns.set_theme(context="paper", style="ticks")
    mpl.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 7.5,
            "axes.titlesize": 8,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 7.5,
            "axes.linewidth": 0.7,
            "axes.edgecolor": "#4D4D4D",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.6,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "legend.fontsize": 7.2,
            "legend.frameon": False,
            "lines.linewidth": 1.3,
            "lines.markersize": 3.4,
            "hatch.linewidth": 0.5,
            "figure.dpi": 110,
            "savefig.dpi": 180,
            "svg.fonttype": "path",
            "svg.hashsalt": "dphlib",
            "path.simplify": True,
        }
    )


def panels(rows: int, columns: int, height: float, *, width: float = WIDTH, **options: Any) -> tuple[Figure, Any]:
    """A figure with rows x columns axes, always a 2-d array.

    It is closed at once, so that a notebook shows it where it is the last expression of a cell, and once only.
    """
    use_style()
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    fig.get_layout_engine().set(w_pad=0.05, h_pad=0.04, wspace=0.03, hspace=0.03)
    plt.close(fig)
    sns.despine(fig)
    return fig, axes


def line_style(method: str) -> dict[str, Any]:
    """Colour, marker and line of a method; the base is drawn on top."""
    look = LOOKS[method]
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.line,
        "zorder": 6 if method == "base" else 4,
        "markeredgecolor": "white",
        "markeredgewidth": 0.4,
    }


def legend(fig: Figure, methods: Sequence[str], columns: int = 0) -> None:
    """One legend of the methods above all panels, in one row or in so many columns."""
    handles = [mpl.lines.Line2D([], [], label=LOOKS[m].name, **line_style(m)) for m in methods]
    fig.legend(
        handles=handles, loc="outside upper center", ncols=columns or len(handles), handlelength=2.3, columnspacing=1.3
    )


def note(fig: Figure, lines: Iterable[str]) -> None:
    """One or more lines in small letters under the panels: which interval is drawn, what was not run."""
    text = "\n".join(wrapped for line in lines if line for wrapped in textwrap.wrap(line, 138))
    if text:
        fig.supxlabel(text, fontsize=6.3, color=GREY, x=0.01, ha="left", linespacing=1.35)


def interval_note(rows: pd.DataFrame) -> str:
    """The kind of the intervals in a figure of these rows, by the seeds of the trained method that has the fewest."""
    trained = rows[rows["method"] != "base"].groupby("method", observed=True)["seed"].nunique()
    seeds = int(trained.min()) if len(trained) else 1
    return f"{INTERVAL}, {seeds} seeds" if seeds > 1 else INTERVAL_ONE_SEED


def absent_note(wanted: Sequence[str], present: Iterable[str]) -> str:
    """Names what was asked for and is not in the records, "" where nothing is missing.

    >>> absent_note(["base", "dapo"], ["base"])
    'not run: DAPO'
    """
    there = set(present)
    missing = [LOOKS[m].name for m in wanted if m not in there]
    return f"not run: {', '.join(missing)}" if missing else ""


def interval_bar(
    ax: Axes, y: float, ends: tuple[float, float, float], *, width: float, alpha: float, **mark: Any
) -> None:
    """Low, estimate and high at one height of a horizontal axis: a line, and on it a marker."""
    low, estimate, high = ends
    ax.plot([low, high], [y, y], color=mark["color"], linewidth=width, alpha=alpha, solid_capstyle="butt")
    ax.plot([estimate], [y], zorder=5, **{"markeredgecolor": "white", **mark})


def rows_axis(ax: Axes, names: Sequence[str], **text: Any) -> range:
    """Names the rows of a horizontal axis from top to bottom; returns their heights."""
    heights = range(len(names))[::-1]
    ax.set_yticks(heights, names, **text)
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.grid(axis="y", visible=False)
    return heights


def legend_of_bars(ax: Axes, columns: int, x: float, spacing: float) -> None:
    """A legend of filled bars above an axis."""
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(x, 1.0),
        ncols=columns,
        handlelength=0.9,
        handleheight=0.9,
        columnspacing=spacing,
        borderaxespad=0.2,
    )


def style_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of each style that occurs (columns) among the sampled answers of each method (rows), mean over seeds."""
    shares = stats.style_shares(rows).groupby("method", observed=True)[list(STYLE_COUNTS)].mean()
    return shares.loc[:, shares.any()]


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to `largest`."""
    return [2**i for i in range(int(np.log2(max(1, largest))) + 1)]


def shared_ticks(axes: Iterable[Axes]) -> None:
    """Removes the tick marks of axes whose names are on the panel to their left."""
    for ax in axes:
        ax.tick_params(axis="y", left=False)


def log2_axis(axes: Axes, ks: Sequence[int]) -> None:
    """x as powers of two, each labelled by its number."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(ks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def save(fig: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `<name>.png` and `<name>.svg` into a folder, made where needed; returns both paths.

    No date, version or random id goes into them: the same figure gives the same bytes. Written whole or not at all.
    """
    _settle(fig)
    png, svg = (Path(folder) / f"{name}{suffix}" for suffix in (".png", ".svg"))
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", facecolor="white", dpi=180)
    with atomic_path(png) as temporary:
        Path(temporary).write_bytes(few_colours(drawn.getvalue()))
    with atomic_path(svg) as temporary, mpl.rc_context({"svg.hashsalt": "dphlib", "svg.fonttype": "path"}):
        fig.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white", dpi=180)
    return [png, svg]


def few_colours(png: bytes) -> bytes:
    """The same PNG in 256 colours, without metadata: a third of the bytes; in a plot nobody sees the difference."""
    out, image = io.BytesIO(), Image.open(io.BytesIO(png))
    few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(out, "PNG", optimize=True, dpi=image.info.get("dpi"))
    return out.getvalue()


def _settle(fig: Figure) -> None:
    """Lays the panels out for good, their places rounded.

    The last digits of the layout's solver differ from call to call; nobody sees them, but ids in an SVG hash them.
    """
    if engine := fig.get_layout_engine():
        engine.execute(fig)
    fig.set_layout_engine(None)  # with any engine at all, each file would be drawn twice
    for ax in fig.axes:
        ax.set_position(tuple(round(place, 6) for place in ax.get_position().bounds))
