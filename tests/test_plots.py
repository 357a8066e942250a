"""Figures: what they show is in the records, the base is always there, absent arms are named."""

from __future__ import annotations

import io
from base64 import b64decode
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.markers import MarkerStyle
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from PIL import Image
from synthetic import make_cost, make_presample, make_records, make_rows, make_train_logs

from dphlib import stats
from dphlib.analysis import retention
from dphlib.analysis.labels import (
    COLOURS,
    FAMILY,
    LOOKS,
    NAMES,
    SET_COLOURS,
    STYLE_COLOURS,
    SUITE_COLOURS,
    SUITES,
    Look,
)
from dphlib.analysis.sentences import crossing_k
from dphlib.analysis.waypoints import stopping_steps, waypoint_table
from dphlib.figures.frontier import FRONTIER, frontier, trajectories
from dphlib.figures.method import method_figure
from dphlib.figures.results import (
    REACHED,
    _annotate_crossings,
    _keep_within,
    keep_explore,
    pass_curves,
    styles,
    support_bars,
)
from dphlib.figures.style import contrast, ink_on, log2_axis, panels, powers_of_two, save, settle, smaller
from dphlib.figures.training import (
    OTHERS,
    base_regime,
    cost_figure,
    divergence_curves,
    live_curves,
    other_training_curves,
    training_curves,
)
from dphlib.intervals import interval
from dphlib.lessons import categorical
from dphlib.scores import ArmScores, keep_and_explore
from dphlib.settings.methods import CONTROLS, HEADLINE, METHODS

# Machado et al. 2009, full severity, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return make_records(ablations=False)


@pytest.fixture(scope="module")
def few() -> pd.DataFrame:
    """Three trained arms, so DAPO and RKL are absent."""
    return make_records(("base", "grpo", "dph_f", "dph_js"), ablations=False)


def text_of(fig) -> str:
    """Every letter in a figure: texts, titles, axes, ticks, legends."""
    fig.canvas.draw()
    return "\n".join(item.get_text() for item in fig.findobj(lambda artist: hasattr(artist, "get_text")))


def as_lab(colour: str, kind: str) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as somebody with this kind of colour vision sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(BLINDNESS[kind] @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    t = xyz / np.array([0.95047, 1.0, 1.08883])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_every_method_has_a_name_a_colour_a_marker_and_a_line():
    assert set(LOOKS) == {*METHODS, *CONTROLS} and len({look.name for look in LOOKS.values()}) == len(LOOKS)
    own = [look for look in LOOKS.values() if look != Look(look.name)]  # one without is grey
    for field in ("colour", "marker"):
        assert len({getattr(look, field) for look in own}) == len(own) >= 25
    for look in LOOKS.values():  # the edge is white: of a marker without a face nothing would be left
        assert MarkerStyle(look.marker).is_filled()


def of_methods(names) -> dict[str, str]:
    return {name: COLOURS[name] for name in names}


PALETTES = {
    "headline": of_methods(HEADLINE),
    "family": of_methods(FAMILY),
    "frontier": of_methods(FRONTIER),
    "styles": STYLE_COLOURS,
    "suites": SUITE_COLOURS,
    "sets": SET_COLOURS,
}


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("together", PALETTES)
def test_colours_drawn_together_are_told_apart(kind, together):
    for a, b in combinations(PALETTES[together].items(), 2):
        distance = float(np.linalg.norm(as_lab(a[1], kind) - as_lab(b[1], kind)))
        assert distance > 15, f"{a} and {b} look alike with {kind}: {distance:.1f}"


def test_lines_stand_out_from_the_page_and_numbers_from_their_bars():
    lines = {**COLOURS, **SUITE_COLOURS}
    assert {name: contrast(colour, "white") for name, colour in lines.items() if contrast(colour, "white") < 3} == {}
    assert all(contrast(ink_on(colour), colour) >= 4.5 for colour in STYLE_COLOURS.values())


def test_a_png_has_the_colours_of_the_palette_and_two_pixels_for_each_of_a_screen(tmp_path):
    fig, axes = panels(1, 1, 1.5, width=3)
    for place, colour in enumerate(COLOURS.values()):
        axes[0, 0].barh([place], [1], color=colour, linewidth=0)
    png, _ = save(fig, tmp_path, "colours")
    image = Image.open(png)
    assert image.mode == "RGB" and image.size == (2 * 96 * 3, 2 * 96 * 1.5)
    seen = {to_hex([part / 255 for part in colour]).upper() for _, colour in image.getcolors(1 << 20)}
    assert seen >= set(COLOURS.values())
    before = png.read_bytes()
    assert Image.open(io.BytesIO(smaller(before))).tobytes() == image.tobytes() and len(smaller(before)) <= len(before)
    save(fig, tmp_path, "colours")
    assert png.read_bytes() == before


def test_a_notebook_shows_a_figure_at_its_size_with_twice_the_pixels():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        fig, _ = panels(1, 1, 1.5, width=3)
        shown, details = shell.display_formatter.format(fig)
        image = Image.open(io.BytesIO(b64decode(shown["image/png"])))
        assert 240 < details["image/png"]["width"] <= 3 * 96 + 20  # the margins are cut, or a little is added
        assert image.size[0] == pytest.approx(2 * details["image/png"]["width"], abs=2)
    finally:
        InteractiveShell.clear_instance()


def test_pass_curves_draw_the_means_and_their_paired_differences_to_the_base(records):
    fig = pass_curves(records, ("base", "grpo"))
    top, bottom = fig.axes[0], fig.axes[3]
    scores = ArmScores.final(records)
    of_k = {m: [scores.of(m, "in_domain", "pass", k) for k in (1, 2, 4, 8, 16, 32)] for m in ("base", "grpo")}
    for method, found in of_k.items():
        drawn = [line.get_ydata() for line in top.lines if line.get_color() == COLOURS[method]]
        assert any(np.allclose(y, [100 * one.values_SP.mean() for one in found]) for y in drawn)
    got = [interval(pair, np.subtract) for pair in zip(of_k["grpo"], of_k["base"], strict=True)]
    line = next(line for line in bottom.lines if line.get_color() == COLOURS["grpo"])
    assert np.allclose(line.get_ydata(), [100 * one.estimate for one in got])
    (bars,) = bottom.collections
    ends = np.array([bar[:, 1] for bar in bars.get_segments()])
    assert np.allclose(ends, [(100 * one.low, 100 * one.high) for one in got])
    assert "base" in text_of(fig) and "Pass@k (%)" in text_of(fig) and "95 % interval" in text_of(fig)


def test_a_crossing_is_written_where_the_sentence_says(records):
    scores = ArmScores.final(records)
    axes = dict(zip(SUITES, pass_curves(records, ("base", "grpo", "dph_f")).axes[3:], strict=False))
    for suite, ax in axes.items():
        wanted = {m: crossing_k(scores, m, suite) for m in ("grpo", "dph_f")}
        written = {text.get_text() for text in ax.texts}
        assert written == {f"{NAMES[m]} below from k = {k}" for m, k in wanted.items() if k}
        for text in ax.texts:
            assert ax.get_ylim()[0] < text.get_position()[1] < ax.get_ylim()[1]
    assert any(ax.texts for ax in axes.values())


@pytest.mark.parametrize("largest", [8, 32])
@pytest.mark.parametrize("method", ["grpo", "dph_js_definition"])
def test_the_words_of_a_crossing_stay_within_their_panel(method, largest):
    for k in (2, 3, 5, largest):
        fig, axes = panels(2, 3, 4.9)  # as many as Figure 2 has
        ax = axes[1, 2]
        ax.plot([1, largest], [5, -5])
        log2_axis(ax, powers_of_two(largest))
        _annotate_crossings(ax, {method: k})
        settle(fig)
        _keep_within(fig, ax)
        (text,) = ax.texts
        words, panel = text.get_window_extent(FigureCanvasAgg(fig).get_renderer()), ax.get_window_extent()
        assert panel.x0 - 1 <= words.x0 and words.x1 <= panel.x1 + 1 and words.y1 <= panel.y1 + 1, k


def test_the_bars_of_the_support_add_up_to_all_problems(records):
    support = retention.support(records, ("base", "grpo", "dph_f"))
    fig = support_bars(support)
    for ax in fig.axes:
        ends = [sum(bar.get_width() for bar in bars) for bars in zip(*ax.containers, strict=True)]
        assert np.allclose(ends, 100) and [c.get_label() for c in ax.containers] == list(REACHED)
    assert "base, drawn again" in text_of(fig) and "k = 16" in text_of(fig)


def test_what_is_measured_meanwhile_is_a_line_for_each_run():
    rows = [("grpo", f"grpo seed {s}", i, "reward", 0.1 * i) for s in (0, 1) for i in (1, 2)]
    rows.append(("dph_f", "dph_f seed 0", 5, "style_entropy", 1.2))
    fig = live_curves(pd.DataFrame(rows, columns=["method", "run", "iteration", "name", "value"]))
    reward, styles_ = fig.axes
    assert [line.get_ydata().tolist() for line in reward.lines] == [[10.0, 20.0]] * 2
    assert styles_.lines[0].get_color() == COLOURS["dph_f"] and "3 runs so far" in text_of(fig)


@pytest.mark.filterwarnings("error")
def test_differences_that_are_all_zero_are_drawn_on_an_axis():
    one = make_records(("base", "grpo"), seeds=(0,), ablations=False, steps=False)
    fig = pass_curves(one[one["problem_id"].str.endswith("-001")])
    low, high = fig.axes[3].get_ylim()
    line = next(line for line in fig.axes[3].lines if line.get_color() == COLOURS["grpo"])
    assert low <= min(line.get_ydata()) and max(line.get_ydata()) <= high and high > low


def test_methods_stand_side_by_side_so_that_no_interval_hides_another(records):
    bottom = pass_curves(records).axes[3]
    places = [x for bars in bottom.collections for x in sorted({round(bar[0, 0], 6) for bar in bars.get_segments()})]
    assert len(places) == len(set(places)) == 5 * 6


@pytest.mark.parametrize("draw", [pass_curves, styles, keep_explore])
def test_absent_arms_are_named_and_the_base_is_demanded(few, draw):
    assert "Not run: DAPO, RKL" in text_of(draw(few))
    with pytest.raises(ValueError, match="no records of the base model"):
        draw(few[few["method"] != "base"])


def test_one_seed_says_that_its_interval_is_over_problems_only():
    one = make_records(("base", "grpo"), seeds=(0,), ablations=False)
    assert "over problems only (one run)" in text_of(pass_curves(one))


def test_keep_explore_agrees_with_the_statistics_and_shows_an_unchanged_base(records):
    fig = keep_explore(records)
    scores = ArmScores.final(records)
    splits = {method: keep_and_explore(scores, method, "in_domain", 8) for method in ("base", "grpo")}
    for ax, name in zip(fig.axes[1::3], ("keep", "explore"), strict=True):
        expected = {method: 100 * getattr(split, name)().estimate for method, split in splits.items()}
        points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
        dashed = [line.get_xdata()[0] for line in ax.lines if line.get_color() == COLOURS["base"]]
        assert np.isclose(points[0], expected["grpo"]) and np.isclose(dashed[0], expected["base"])


def test_keep_explore_refuses_one_answer_per_problem():
    with pytest.raises(ValueError, match="need 2k answers per problem, there are 1"):
        keep_explore(pd.concat([make_rows("base", 0, [[1]]), make_rows("grpo", 0, [[1]])]))


def test_keep_explore_says_where_there_are_too_few_problems_for_an_interval(few):
    first = few["problem_id"] == "in_domain-000"
    nearly_all = few.assign(correct=few["n"].mask(first, 0))  # one problem left to explore
    assert "No bar: too few problems for an interval." in text_of(keep_explore(nearly_all))
    halved = few.assign(**{name: few[name] // 2 for name in ("drawn", "n", "correct")})  # no k = 16
    assert "No bar" not in text_of(keep_explore(halved))


def test_styles_fill_a_hundred_per_cent(records):
    left = styles(records).axes[0]
    ends = {}
    for bar in left.patches:
        ends[round(bar.get_y(), 3)] = max(ends.get(round(bar.get_y(), 3), 0), bar.get_x() + bar.get_width())
    assert len(ends) == len(METHODS) and np.allclose(list(ends.values()), 100)


@pytest.fixture(scope="module")
def waypoints(records):
    return waypoint_table(records[(records["suite"] == "in_domain") & (records["variant"] == "main")])


def test_the_frontier_goes_from_the_base_along_the_way_points_to_the_end(records, waypoints):
    table = trajectories(waypoints, ("base", "grpo")).set_index(["method", "step"])
    of_grpo = records[(records["method"] == "grpo") & (records["variant"] == "main")]
    rows = of_grpo[(of_grpo["suite"] == "in_domain") & (of_grpo["step"] == 15)]
    assert table.loc[("grpo", 15), "pass_k"] == pytest.approx(stats.pass_curve(rows, (8,))["pass_at_k"].mean())
    fig = frontier(waypoints, ("base", "grpo"))
    path = next(line for line in fig.axes[0].lines if len(line.get_xdata()) > 2)
    points = [("base", 0), *(("grpo", step) for step in (5, 15, 30, 45))]
    assert list(path.get_xdata()) == pytest.approx([100 * table.loc[at, "pass_1"] for at in points])
    assert list(path.get_ydata()) == pytest.approx([100 * table.loc[at, "pass_k"] for at in points])


def test_the_frontier_on_the_validation_suite_marks_stopping_points(waypoints):
    on_validation = waypoints.assign(suite="validation")
    fig = frontier(on_validation, ("base", "grpo"))
    open_circles = [line for line in fig.axes[0].lines if line.get_markerfacecolor() == "white"]
    step = stopping_steps(on_validation)["grpo"].mean()
    table = trajectories(on_validation, ("base", "grpo")).query("method == 'grpo'")
    nearest = table.iloc[(table["step"] - step).abs().to_numpy().argmin()]
    assert [float(line.get_xdata()[0]) for line in open_circles] == pytest.approx([100 * nearest["pass_1"]])
    with pytest.raises(ValueError, match="no records of the base model"):
        frontier(waypoints[waypoints["method"] != "base"])


@pytest.fixture(scope="module")
def with_way_points() -> pd.DataFrame:
    made = make_records(FRONTIER, ablations=False, steps=False, validation=True)
    return waypoint_table(made[made["suite"] == "validation"])


@pytest.mark.parametrize("width", [5.6, 3.4])
def test_the_frontier_names_every_path_where_nothing_covers_the_name(with_way_points, width):
    """At a page's and at a column's width: names inside the figure, apart from one another and off every path's end."""
    fig = frontier(with_way_points, width=width)
    assert fig.get_figwidth() == width and len(fig.axes) == 2
    for ax in fig.axes:
        boxes = {text.get_text().replace("\n", " "): text.get_window_extent() for text in ax.texts if text.get_text()}
        assert set(boxes) == {NAMES[method] for method in FRONTIER}
        for (a, one), (b, other) in combinations(boxes.items(), 2):
            assert not one.overlaps(other), f"{a} over {b}"
        ends = [line for line in ax.lines if line.get_marker() == "o" and line.get_markerfacecolor() != "white"]
        assert len(ends) == len(FRONTIER) - 1
        for line in ends:
            end = ax.transData.transform([line.get_xdata()[0], line.get_ydata()[0]])
            assert not any(box.contains(*end) for box in boxes.values())
        for box in boxes.values():
            assert 0 <= box.x0 and box.x1 <= fig.bbox.x1 and 0 <= box.y0 and box.y1 <= fig.bbox.y1
        assert min(text.get_fontsize() for text in ax.texts) >= 8


def test_the_frontiers_arrows_point_to_later_steps(with_way_points):
    table = trajectories(with_way_points, ("base", "dph_f"))
    step = dict(zip((100 * table["pass_1"]).round(6), table["step"], strict=True))
    ax = frontier(with_way_points, ("base", "dph_f")).axes[0]
    path = next(line for line in ax.lines if len(line.get_xdata()) > 2).get_xydata()
    assert [step[x] for x in path[:, 0].round(6)] == [0, *range(5, 46, 5)]
    arrows = [text for text in ax.texts if not text.get_text()]
    assert len(arrows) == 2
    for arrow in arrows:
        (tail, head), legs = (np.array(arrow.xyann), np.array(arrow.xy)), np.diff(path, axis=0)
        along = legs @ (head - tail) / np.linalg.norm(legs, axis=1) / np.linalg.norm(head - tail)
        assert along.max() > 0.8


def test_a_frontier_is_the_same_to_the_byte_when_it_is_drawn_again(with_way_points, tmp_path):
    first, again = (save(frontier(with_way_points), tmp_path / name, "fig8") for name in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_training_curves_leave_out_the_rehearsal_loss_where_there_is_none():
    fig = training_curves(make_train_logs(("grpo", "dph_f"), (0, 1)))
    assert {line.get_color() for line in fig.axes[0].lines} == {COLOURS["grpo"], COLOURS["dph_f"]}
    assert {line.get_color() for line in fig.axes[4].lines} == {COLOURS["dph_f"]}
    assert "Not run: DAPO, RKL, DPH-JS" in text_of(fig)
    with pytest.raises(ValueError, match="no train log"):
        training_curves(make_train_logs(("grpo",), (0,)).assign(variant="eta=1"))


def test_training_curves_say_how_many_seeds_and_which_are_smoothed():
    logs = make_train_logs(("grpo", "dph_f"), (0, 1))
    fig, short = training_curves(logs), logs[(logs["iteration"] <= 10) & (logs["seed"] == 0)]
    assert "Mean over 2 seeds. Curves of more than 20 points are smoothed over five." in text_of(fig)
    few = logs[logs["method"] == "grpo"].groupby("iteration")["kl_to_base"].mean().dropna()
    drawn = next(line for line in fig.axes[2].lines if line.get_color() == COLOURS["grpo"])
    assert len(few) <= 20 and drawn.get_ydata() == pytest.approx(few.to_numpy())
    assert "Mean over one seed." in text_of(training_curves(short)) and "smoothed" not in text_of(
        training_curves(short)
    )


def test_the_methods_beyond_the_headline_have_a_figure_of_their_own():
    assert {name for group in OTHERS.values() for name in group} == {*METHODS, *CONTROLS} - set(HEADLINE)
    fig = other_training_curves(make_train_logs((*METHODS, *CONTROLS), (0, 1)))
    rows = np.array(fig.axes).reshape(len(OTHERS), 4)
    for row, group in zip(rows, OTHERS.values(), strict=True):
        lines = [line for line in row[0].lines if line.get_linestyle() != "None" and line.get_linewidth() > 1.5]
        assert {line.get_color() for line in lines} == {COLOURS[method] for method in group}
        named = [text.get_text() for text in row[3].get_legend().get_texts()]
        assert len(named) == len(group) and all(NAMES[m] in text for m, text in zip(group, named, strict=True))
    none = other_training_curves(make_train_logs(("grpo", "dph_f"), (0,)))
    assert "No method beyond those of the other figure" in text_of(none)


def test_cost_splits_a_step_by_phase_and_shows_the_reference_where_there_is_one():
    cost = make_cost()
    fig = cost_figure(cost)
    time, tokens, _ = fig.axes
    reference = [bar.get_width() for bar in tokens.patches[4:8]]
    assert [width > 0 for width in reference] == [False, True, False, False]
    medians = cost.groupby("method")[["sample_s", "verify_s", "reference_s", "update_s"]].median().sum(axis=1)
    assert np.isclose(time.patches[12].get_x() + time.patches[12].get_width(), medians["grpo"])
    assert "Not run: RKL" in text_of(cost_figure(cost[cost["method"] != "rkl"]))
    assert [ax.get_xlabel() for ax in fig.axes] == ["seconds (median)", "thousand tokens (mean)", "GiB (peak)"]


def test_divergence_curves_draw_every_generator_that_is_given():
    shown = text_of(divergence_curves(categorical.curves((*categorical.DRAWN, "hellinger"))))
    assert all(name in shown for name in ("forward KL", "JS", "reverse KL", "alpha 0.5", "Hellinger"))


def test_base_regime_counts_the_prompts_of_both_sets(records):
    presample = make_presample()
    near = int((presample["correct"] >= 6).sum())
    shown = text_of(base_regime(records, presample, k=8, threshold=6))
    assert f"{near}\n" in shown and f"{len(presample) - near}\n" in shown and "threshold 6 of 8" in shown
    with pytest.raises(ValueError, match="threshold 9"):
        base_regime(records, presample, k=8, threshold=9)


def test_method_figure_says_the_partition_that_was_used(few):
    shown = " ".join(text_of(method_figure(few, k=8, threshold=7)).split())
    assert "fewer than 7 of 8" in shown and "GRPO" in shown


def test_the_drawing_of_the_method_has_no_clipped_edge_no_text_over_one_and_no_hidden_arrowhead(few):
    fig = method_figure(few)
    settle(fig)
    ax = fig.axes[0]
    boxes = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    extents = [box.get_window_extent() for box in boxes]
    half = fig.dpi / 72 * boxes[0].get_linewidth() / 2
    assert len(boxes) == 6 and len(arrows) == 6
    for extent in extents:
        assert ax.bbox.x0 + half <= extent.x0 and extent.x1 + half <= ax.bbox.x1
        assert ax.bbox.y0 + half <= extent.y0 and extent.y1 + half <= ax.bbox.y1
        inside = [text.get_window_extent() for text in ax.texts if extent.overlaps(text.get_window_extent())]
        assert len(inside) == 2
        for text in inside:
            assert extent.x0 + 4 < text.x0 and text.x1 < extent.x1 - 4 and extent.y0 < text.y0 and text.y1 < extent.y1
    for arrow in arrows:
        tip = ax.transData.transform(arrow._posA_posB[1])
        assert arrow.get_zorder() > max(box.get_zorder() for box in boxes)
        assert not any(extent.padded(-1).contains(*tip) for extent in extents)
