"""One look for all figures, and bytes that repeat: style, panels, legend, note, saving.

A figure is made for a paper's page, 7 inches wide, with letters that can still be read at half of that, a column. The
font comes with matplotlib, so a figure drawn again from the same numbers with the same versions has the same bytes, on
any machine.
"""

from __future__ import annotations

import io
import sys
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
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike
from PIL import Image

from dphlib import stats
from dphlib.analysis.labels import LOOKS, STYLE_COLOURS
from dphlib.intervals import Interval
from dphlib.runtime.files import atomic_path
from dphlib.types import STYLE_COUNTS

WIDTH = 7.0
"""Inches: the text width of a paper's page."""
SCREEN_DPI = 96
DPI = 2 * SCREEN_DPI
"""Of pictures: two pixels for each of a screen's."""
SMALL = 7.0
"""Points: the letters of notes, and of what is written into a panel."""
GREY = "#6B6B6B"
INTERVAL = "95 % interval over runs and problems (closed form, Student's quantile)"
INTERVAL_ONE_SEED = "95 % interval over problems only (one run)"


def use_style() -> None:
    """Sets the style of all figures; `panels` calls it. A notebook shows them at their size, with twice its pixels."""
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")
    sns.set_theme(context="paper", style="ticks")
    mpl.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 8.5,
            "axes.titlesize": 9,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 8.5,
            "axes.linewidth": 0.7,
            "axes.edgecolor": "#4D4D4D",
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.6,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "xtick.major.width": 0.7,
            "ytick.major.width": 0.7,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "legend.fontsize": 8.2,
            "legend.frameon": False,
            "lines.linewidth": 1.3,
            "lines.markersize": 3.8,
            "hatch.linewidth": 0.5,
            "figure.dpi": SCREEN_DPI,
            "savefig.dpi": DPI,
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
    letter = isinstance(look.marker, str) and look.marker.startswith("$")  # an edge of white would thin it
    return {
        "color": look.colour,
        "marker": look.marker,
        "linestyle": look.line,
        "zorder": 6 if method == "base" else 4,
        "markeredgecolor": look.colour if letter else "white",
        "markeredgewidth": 0.2 if letter else 0.4,
    }


def legend(fig: Figure, methods: Sequence[str], columns: int = 0) -> None:
    """One legend of the methods above all panels, in as many columns as fit, or in so many."""
    room = fig.get_figwidth() / 7 * 90  # letters, of which a line takes six
    columns = columns or -(-len(methods) // -(-sum(len(LOOKS[m].name) + 6 for m in methods) // int(room)))
    handles = [mpl.lines.Line2D([], [], label=LOOKS[m].name, **line_style(m)) for m in methods]
    fig.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.3, columnspacing=1.3)


def note(fig: Figure, lines: Iterable[str]) -> None:
    """One or more lines in small letters under the panels: which interval is drawn, what was not run."""
    letters = int(18.5 * fig.get_figwidth())
    text = "\n".join(wrapped for line in lines if line for wrapped in textwrap.wrap(line, letters))
    if text:
        fig.supxlabel(text, fontsize=SMALL, color=GREY, x=0.01, ha="left", linespacing=1.35)


def interval_note(rows: pd.DataFrame) -> str:
    """The kind of the intervals in a figure of these rows, by the seeds of the trained method that has the fewest."""
    trained = rows[rows["method"] != "base"].groupby("method", observed=True)["seed"].nunique()
    seeds = int(trained.min()) if len(trained) else 1
    return f"{INTERVAL}, {seeds} seeds" if seeds > 1 else INTERVAL_ONE_SEED


def absent_note(wanted: Sequence[str], present: Iterable[str]) -> str:
    """Names what was asked for and is not in the records, "" where nothing is missing.

    >>> absent_note(["base", "dapo"], ["base"])
    'Not run: DAPO.'
    """
    there = set(present)
    missing = [LOOKS[m].name for m in wanted if m not in there]
    return f"Not run: {', '.join(missing)}." if missing else ""


def interval_bar(ax: Axes, y: float, ends: tuple[float, float, float], colour: str, **mark: Any) -> None:
    """Low, estimate and high at one height of a horizontal axis: a line, and on it a point, alike in every figure."""
    low, estimate, high = ends
    ax.plot([low, high], [y, y], color=colour, linewidth=1.8, alpha=0.55, solid_capstyle="butt")
    ax.plot([estimate], [y], **{**POINT, "color": colour, **mark})


POINT: dict[str, Any] = {
    "marker": "o",
    "markersize": 5,
    "markeredgecolor": "white",
    "markeredgewidth": 0.5,
    "zorder": 5,
}
"""The one shape of a point with an interval: what it is, is said by its row, its colour and words."""


def interval_ticks(
    ax: Axes, x: Sequence[float] | np.ndarray, got: Sequence[Interval], colour: str, within: tuple[float, float]
) -> None:
    """The intervals along a line, in per cent, as upright bars, cut at the ends of what is possible."""
    low, high = (np.clip([100 * getattr(one, side) for one in got], *within) for side in ("low", "high"))
    ax.vlines(x, low, high, color=colour, linewidth=1.1, alpha=0.6, zorder=3)


def readable_range(estimates: ArrayLike, low: ArrayLike, high: ArrayLike) -> tuple[float, float]:
    """What an axis shows of intervals: all of them, but for one that would make the others too small to read.

    An end that is not known, NaN or infinite, does not count; the range is never empty.

    >>> readable_range([1, 2, 3], [0, 1, -97], [2, 3, 103])
    (-3.0, 7.0)
    >>> readable_range([1, 2], [0, np.nan], [2, np.inf]), readable_range([], [], [])
    ((0.0, 2.0), (-1.0, 1.0))
    """
    middle, low, high = (np.asarray(ends, float) for ends in (estimates, low, high))
    known = np.isfinite(middle) & np.isfinite(low) & np.isfinite(high)
    middle = middle[np.isfinite(middle)]
    half = 2 * float(np.median((high - low)[known])) if known.any() else 0.0
    left = max(low[known].min(), middle.min() - half) if known.any() else middle.min(initial=0.0)
    right = min(high[known].max(), middle.max() + half) if known.any() else middle.max(initial=0.0)
    left, right = min(left, middle.min(initial=left)), max(right, middle.max(initial=right))
    return (float(left), float(right)) if right > left else (float(left) - 1, float(right) + 1)


def cut_long_intervals(ax: Axes, rows: Sequence[tuple[float, tuple[float, float, float], str]], *others: float) -> bool:
    """Limits a horizontal axis to `readable_range` and zero; whether an interval goes on, which an arrow shows.

    Args:
        rows: height, (low, estimate, high) and colour of each interval.
        others: what has to be on the axis too.
    """
    low, estimate, high = (np.array([ends[side] for _, ends, _ in rows]) for side in range(3))
    left, right = readable_range(estimate, low, high)
    left, right = min(left, 0, *others), max(right, 0, *others)
    room = 0.05 * (right - left)
    ax.set_xlim(left - room, right + room)
    for (y, _, colour), beyond_left, beyond_right in zip(rows, low < left - room, high > right + room, strict=True):
        for beyond, x, marker in ((beyond_left, left - room, 8), (beyond_right, right + room, 9)):
            if beyond:  # 8 and 9: matplotlib's carets, whose base is at the point
                ax.plot([x], [y], marker=marker, color=colour, markersize=5, markeredgewidth=0, clip_on=False)
    return bool(((low < left - room) | (high > right + room)).any())


def ink_on(colour: str) -> str:
    """White or near-black, whichever is easier to read on a colour.

    >>> ink_on("#35568F"), ink_on("#F0C27B")
    ('#FFFFFF', '#222222')
    """
    return max(("#FFFFFF", "#222222"), key=lambda ink: contrast(ink, colour))


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' luminances, 1 to 21, as WCAG 2 defines it.

    >>> round(contrast("black", "white"), 6)
    21.0
    """
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


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


def stacked_styles(ax: Axes, y: Sequence[float], percent: pd.DataFrame) -> None:
    """Horizontal bars of the styles' shares, a row of `percent` each, with a number in those that have room."""
    start = np.zeros(len(percent))
    for style, colour in STYLE_COLOURS.items():
        if style not in percent:
            continue
        width = percent[style].to_numpy()
        ax.barh(y, width, left=start, color=colour, height=0.74, label=style, edgecolor="white", linewidth=0.6)
        for where, x, w in zip(y, start, width, strict=True):
            if w >= 9:
                ax.text(x + w / 2, where, f"{w:.0f}", ha="center", va="center", fontsize=SMALL, color=ink_on(colour))
        start = start + width
    ax.set(xlim=(0, 100), xlabel="share of sampled answers (%)")
    ax.grid(visible=False)
    legend_of_bars(ax, 5, 0, 1.2)


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
    settle(fig)
    png, svg = (Path(folder) / f"{name}{suffix}" for suffix in (".png", ".svg"))
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", facecolor="white", dpi=DPI)
    with atomic_path(png) as temporary:
        Path(temporary).write_bytes(smaller(drawn.getvalue()))
    with atomic_path(svg) as temporary, mpl.rc_context({"svg.hashsalt": "dphlib", "svg.fonttype": "path"}):
        fig.savefig(temporary, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white", dpi=DPI)
    return [png, svg]


def smaller(png: bytes) -> bytes:
    """The same picture on white, every colour as it is, in fewer bytes: no alpha, no metadata, the best compression."""
    out, image = io.BytesIO(), Image.open(io.BytesIO(png))
    opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    opaque.save(out, "PNG", optimize=True, dpi=image.info.get("dpi"))
    return out.getvalue()


def settle(fig: Figure) -> None:
    """Lays the panels out for good, their places rounded; a figure that is laid out stays as it is.

    The last digits of the layout's solver differ from call to call; nobody sees them, but ids in an SVG hash them.
    """
    if (engine := fig.get_layout_engine()) is None:
        return
    engine.execute(fig)
    fig.set_layout_engine(None)  # with any engine at all, each file would be drawn twice
    for ax in fig.axes:
        ax.set_position(tuple(round(place, 6) for place in ax.get_position().bounds))
