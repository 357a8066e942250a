"""The frontier: what is gained in Pass@1 and paid in Pass@k and in styles, along training and along the temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from dphlib.analysis.labels import COLOURS, NAMES, SUITES
from dphlib.analysis.waypoints import K, stopping_steps
from dphlib.figures.style import GREY, absent_note, legend, line_style, note, panels, settle
from dphlib.settings.variants import MAIN
from dphlib.types import VALIDATION

FRONTIER = ("base", "grpo", "dapo", "rkl", "grpo_dexp", "dph_f", "dph_js")
WIDTH = 5.6
"""Inches: less than a page, so that the letters are still letters when it is printed a column wide."""
NARROW = 4.5
"""Inches, below which one panel is under the other."""
_MEASURES = {"pass_k": (f"Pass@{K} (%)", 100.0), "styles_nats": ("style entropy (nats)", 1.0)}


def trajectories(waypoints: pd.DataFrame, methods: Sequence[str] = FRONTIER) -> pd.DataFrame:
    """The way-points of main runs, mean over runs: method, step, runs, pass_1, pass_k, styles_nats, greedy.

    Args:
        waypoints: `analysis.waypoints.waypoint_table`; the base models are at step 0.
    """
    rows = waypoints[(waypoints["variant"] == MAIN) & waypoints["method"].isin(methods)]
    groups = rows.groupby(["method", "step"], observed=True)
    means = groups[["pass_1", "pass_k", "styles_nats", "greedy"]].mean()
    means.insert(0, "runs", groups.size())
    return means.reset_index()


def frontier(waypoints: pd.DataFrame, methods: Sequence[str] = FRONTIER, width: float = WIDTH) -> Figure:
    """Pass@k and style entropy against sampled Pass@1: a path for each method, from the base through its training.

    Arrows point to later steps; an open circle is the mean stopping point of a method's runs, the full one the end.
    Each path is named at its end.

    Args:
        waypoints: `analysis.waypoints.waypoint_table`; the base models are at step 0.
        methods: which to draw, the base among them.
        width: inches; a narrow figure has its panels one under the other.

    Raises:
        ValueError: no records of the base or of a trained method.
    """
    table = trajectories(waypoints, methods)
    there = [method for method in methods if method in set(table["method"])]
    if "base" not in there or len(there) < 2:
        raise ValueError("no records of the base model or of a trained method: evaluate them, then draw")
    measures = [name for name in _MEASURES if table[name].notna().all()]
    shape = (len(measures), 1) if width < NARROW else (1, len(measures))
    height = 0.95 + (0.72 * width * len(measures) if width < NARROW else 0.44 * width)
    fig, axes = panels(*shape, height, width=width)
    stops: Mapping[str, float] = {}
    main = waypoints[waypoints["variant"] == MAIN]
    if (main["suite"] == VALIDATION).all():
        stops = stopping_steps(main).groupby(level="method", observed=True).mean()
    for ax, name in zip(axes.ravel(), measures, strict=True):
        text, scale = _MEASURES[name]
        paths = {method: _path(table, method, name, scale) for method in there}
        _draw(ax, paths, stops)
        ax.set_ylabel(text)
        ax.set_xlabel("Pass@1 (%)")
    _key(fig, bool(len(stops)))
    runs = int(table.loc[table["method"] != "base", "runs"].min())
    suite = SUITES.get(main["suite"].iloc[0], "validation")
    line = f"Mean over {runs} runs, {suite} suite. Dashed: the base; right of it is gained, below it lost."
    note(fig, [line, absent_note(methods, there)])
    settle(fig)
    for ax, name in zip(axes.ravel(), measures, strict=True):
        _label(fig, ax, {method: _path(table, method, name, _MEASURES[name][1])[:, 1:] for method in there})
    return fig


def temperature_frontier(table: pd.DataFrame) -> Figure:
    """Pass@8 and style entropy against sampled Pass@1: a path for each method, from the lowest temperature up.

    Args:
        table: `experiment.exploratory.temperature_table`.
    """
    methods = [method for method in NAMES if NAMES[method] in set(table["method"])]
    measures = [name for name in (f"Pass@{K}", "styles_nats") if table[name].notna().all()]
    fig, axes = panels(1, len(measures), 3.5)
    for ax, name in zip(axes[0], measures, strict=True):
        for method in methods:
            rows = table[table["method"] == NAMES[method]]
            plain = (rows["T"] == "1").to_numpy()
            x, y = rows["Pass@1"].to_numpy(), rows[name].to_numpy()
            ax.plot(x, y, **{**line_style(method), "markersize": 3})
            ax.plot(x[plain], y[plain], **{**line_style(method), "markersize": 6.5, "linestyle": ""})
            hollow = {"markerfacecolor": "white", "markeredgecolor": COLOURS[method], "markeredgewidth": 0.9}
            ax.plot(x[-1:], y[-1:], **{**line_style(method), "markersize": 4.4, **hollow})
        ax.set_ylabel("style entropy (nats)" if name == "styles_nats" else f"{name} (%)")
        ax.set_xlabel("Pass@1 (%)")
        ax.margins(0.1)
    legend(fig, methods)
    runs = int(table.loc[table["method"] != NAMES["base"], "seeds"].min())
    drawn = list(dict.fromkeys(table["T"]))
    marks = f"T = {', '.join(drawn)} along each line; large marks: T = 1, open marks: T = {drawn[-1]}"
    note(fig, [f"Mean over {runs} runs in domain, no interval. {marks}."])
    return fig


def _path(table: pd.DataFrame, method: str, column: str, scale: float) -> np.ndarray:
    """Step, Pass@1 in per cent and a measure, one row per way-point, the base first."""
    rows = table[table["method"].isin(["base", method])].sort_values(["step"])
    return np.column_stack([rows["step"], 100 * rows["pass_1"], scale * rows[column]])


def _draw(ax: Axes, paths: Mapping[str, np.ndarray], stops: Mapping[str, float]) -> None:
    (_, x, y), *_ = paths["base"]
    lines: dict[str, Any] = {"color": COLOURS["base"], "linewidth": 0.8, "linestyle": (0, (4, 2.4)), "zorder": 1}
    ax.axhline(y, **lines)
    ax.axvline(x, **lines)
    for method, path in paths.items():
        if method == "base":
            continue
        colour, places = COLOURS[method], path[:, 1:]
        ax.plot(*places.T, color=colour, linewidth=1.5, solid_capstyle="round", zorder=4)
        for start, end in _arrows(places, ax):
            style = {
                "arrowstyle": "-|>",
                "color": colour,
                "linewidth": 0.1,
                "mutation_scale": 11,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            ax.annotate("", tuple(end), tuple(start), arrowprops=style, zorder=5)
        ax.plot(*places[-1:].T, marker="o", color=colour, markersize=6, markeredgecolor="white", zorder=7)
        if (stop := stops.get(method)) is not None:
            at = np.abs(path[:, 0] - stop).argmin()
            face: dict[str, Any] = {"markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.3}
            ax.plot(*places[at : at + 1].T, marker="o", linestyle="", markersize=5.4, zorder=6, **face)
    ax.plot(x, y, marker="s", color=COLOURS["base"], markersize=6.5, markeredgecolor="white", zorder=8)
    ax.margins(0, 0.12)
    (left, right), room = ax.get_xlim(), 0.24  # for the names
    ax.set_xlim(left - 0.08 * (right - left), right + room * (right - left))


def _arrows(places: np.ndarray, ax: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Where the heads of a path go, in the data's coordinates: at two fifths and at four fifths of its length."""
    size = np.ptp(places, axis=0)
    steps = np.hypot(*(np.diff(places, axis=0) / np.where(size > 0, size, 1)).T)
    along = np.concatenate([[0], steps.cumsum()])
    found = []
    for share in (0.4, 0.8):
        ends = [[np.interp(at * along[-1], along, places[:, axis]) for axis in (0, 1)] for at in (share - 0.03, share)]
        found.append((np.array(ends[0]), np.array(ends[1])))
    return found if along[-1] > 0 else []


def _key(fig: Figure, stops: bool) -> None:
    """What the marks mean, in grey, above the panels."""
    mark: dict[str, Any] = {"color": GREY, "linestyle": ""}
    handles = [
        Line2D([], [], marker="s", label="base", markersize=6, color=COLOURS["base"], linestyle=""),
        Line2D([], [], marker=r"$\rightarrow$", label="training", markersize=10, **mark),
        *(
            [Line2D([], [], marker="o", label="stopping point", markerfacecolor="white", markersize=5.4, **mark)]
            if stops
            else []
        ),
        Line2D([], [], marker="o", label="end", markersize=6, **mark),
    ]
    fig.legend(
        handles=handles, loc="outside upper center", ncols=4, handletextpad=0.3, columnspacing=1.2, borderaxespad=0.2
    )


def _label(fig: Figure, ax: Axes, paths: Mapping[str, np.ndarray]) -> None:
    """Names each path near its end, where the name covers least of the paths, the ends and the other names."""
    points = fig.dpi / 72
    pixels = {method: ax.transData.transform(path) for method, path in paths.items()}
    frame, boxes = ax.get_window_extent(), list[Bbox]()
    x, y = pixels["base"][0]
    crossed = [np.array([[frame.x0, y], [frame.x1, y]]), np.array([[x, frame.y0], [x, frame.y1]])]
    taken = [_dense(path) for path in (*pixels.values(), *crossed)]
    ends = np.array([path[-1] for path in pixels.values()])
    renderer = FigureCanvasAgg(fig).get_renderer()
    for method in sorted(paths, key=lambda name: -pixels[name][-1][0]):
        text = ax.text(0, 0, NAMES[method].replace(" on ", "\non "), color=COLOURS[method], weight="bold", zorder=9)
        text.set(in_layout=False, linespacing=1, path_effects=[withStroke(linewidth=2, foreground="white")])
        size = text.get_window_extent(renderer)
        end, best = pixels[method][-1], None
        for away, angle in product((7, 11, 16, 22, 30), np.radians(np.arange(0, 360, 20))):
            middle = end + points * away * np.array([np.cos(angle), np.sin(angle)])
            middle += np.array([size.width * np.cos(angle), size.height * np.sin(angle)]) / 2
            half = np.array([size.width, size.height]) / 2
            box = Bbox([middle - half, middle + half])
            cost = _cost(box, taken, ends, boxes, frame, points) + away / 12
            if best is None or cost < best[0]:
                best = (cost, box, away)
        assert best is not None
        boxes.append(best[1])
        text.set(ha="left", va="bottom", position=ax.transData.inverted().transform(best[1].p0))
        if best[2] > 16:
            line = ax.transData.inverted().transform([end, np.clip(end, best[1].p0, best[1].p1)])
            ax.plot(*line.T, color=COLOURS[method], linewidth=0.6, zorder=3)


def _cost(
    box: Bbox, paths: Sequence[np.ndarray], ends: np.ndarray, boxes: Sequence[Bbox], frame: Bbox, points: float
) -> float:
    """How badly a name lies there: on paths, on their ends, on other names, outside the panel."""
    around = box.padded(2 * points)
    crossed = sum(float(_inside(around, path).any()) + 0.15 * _inside(around, path).sum() for path in paths)
    hidden = 3.0 * _inside(box.padded(4 * points), ends).sum()
    overlaps = 20.0 * sum(around.overlaps(other) for other in boxes)
    outside = max(frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, box.y1 - frame.y1, 0) / points
    return crossed + float(hidden) + overlaps + 2.0 * outside


def _inside(box: Bbox, places: np.ndarray) -> np.ndarray:
    return ((places >= box.p0) & (places <= box.p1)).all(axis=1)


def _dense(path: np.ndarray) -> np.ndarray:
    """A path's points and 24 between each two."""
    if len(path) < 2:
        return path
    at = np.linspace(0, len(path) - 1, 24 * (len(path) - 1) + 1)
    return np.column_stack([np.interp(at, np.arange(len(path)), path[:, axis]) for axis in (0, 1)])
