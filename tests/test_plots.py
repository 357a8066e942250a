"""Figures: what they show is in the records, the base is always there, absent arms are named, bytes repeat."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from synthetic import make_cost, make_divergences, make_presample, make_records, make_train_logs

from dphlib import stats
from dphlib.analysis.labels import COLOURS, CONTROLLED, FAMILY, LINES, MARKERS, NAMES, label
from dphlib.figures import results as plots
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
    for named in (NAMES, COLOURS, MARKERS, LINES):
        assert set(named) == {*METHODS, *CONTROLS}
    assert len(set(COLOURS.values())) == len(set(MARKERS.values())) == len(METHODS) + len(CONTROLS)
    assert label("dph_js", "eta=0.025") == "DPH-JS, eta 0.025"


@pytest.mark.parametrize("kind", BLINDNESS)
@pytest.mark.parametrize("together", [HEADLINE, FAMILY, CONTROLLED], ids=["headline", "family", "controlled"])
def test_colours_drawn_together_are_told_apart(kind, together):
    for a, b in combinations(together, 2):
        distance = float(np.linalg.norm(as_lab(COLOURS[a], kind) - as_lab(COLOURS[b], kind)))
        assert distance > 12, f"{a} and {b} look alike with {kind}: {distance:.1f}"


def test_pass_curves_draw_the_means_of_the_records_and_the_base(records):
    fig = plots.pass_curves(records, ("base", "grpo"), ks=(1, 8))
    top = fig.axes[0]
    rows = stats.final(records)
    curve = stats.pass_curve(rows[rows["suite"] == "in_domain"], (1, 8))
    for method in ("base", "grpo"):
        means = curve[curve["method"] == method].groupby("k")["pass_at_k"].mean()
        drawn = [line.get_ydata() for line in top.lines if line.get_color() == COLOURS[method]]
        assert any(np.allclose(y, 100 * means) for y in drawn)
    assert "base" in text_of(fig) and "Pass@k (%)" in text_of(fig) and "95 % interval" in text_of(fig)


def test_the_difference_row_is_the_paired_difference_with_its_interval(records):
    fig = plots.pass_curves(records, ("base", "grpo"), ks=(8,))
    bottom = fig.axes[3]
    rows = stats.final(records[records["suite"] == "in_domain"])
    table = stats.problem_table(stats.sampled(rows))
    arms = [stats.arm(table, m, "in_domain", "pass", 8) for m in ("grpo", "base")]
    got = stats.bootstrap(arms, np.subtract)
    line = next(line for line in bottom.lines if line.get_color() == COLOURS["grpo"])
    assert np.allclose(line.get_ydata(), 100 * got.estimate)
    band = bottom.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(band.min(), 100 * got.low) and np.isclose(band.max(), 100 * got.high)


@pytest.mark.parametrize("draw", [plots.pass_curves, plots.styles, plots.keep_explore, plots.pass_over_steps])
def test_absent_arms_are_named_and_the_base_is_demanded(few, draw):
    assert "not run: DAPO, RKL" in text_of(draw(few))
    with pytest.raises(ValueError, match="no records of the base model"):
        draw(few[few["method"] != "base"])


def test_one_seed_says_that_its_interval_is_over_problems_only():
    one = make_records(("base", "grpo"), seeds=(0,), ablations=False)
    assert "over problems only (one seed)" in text_of(plots.pass_curves(one))


def test_keep_explore_agrees_with_the_statistics_and_shows_an_unchanged_base(records):
    fig = plots.keep_explore(records, ks=(8,), methods=("base", "grpo"))
    rows = stats.final(records[(records["suite"] == "in_domain") & records["method"].isin(["base", "grpo"])])
    expected = stats.keep_explore(rows, 8)[["keep", "explore"]].mean()
    for ax, name in zip(fig.axes, ("keep", "explore"), strict=True):
        points = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == MARKERS["grpo"]]
        assert np.isclose(points[0], 100 * expected[name])
    n_c = stats.problem_table(stats.sampled(rows[rows["method"] == "base"]))[["n", "c"]].to_numpy().T
    p8, p16 = stats.pass_at_k(*n_c, 8), stats.pass_at_k(*n_c, 16)
    dashed = [line.get_xdata()[0] for line in fig.axes[0].lines if line.get_color() == COLOURS["base"]]
    assert np.isclose(dashed[0], 100 * (2 * p8 - p16).sum() / p8.sum())


def test_keep_explore_refuses_a_k_without_enough_answers(records):
    with pytest.raises(ValueError, match="2k answers"):
        plots.keep_explore(records, ks=(32,))


def test_keep_explore_says_where_there_are_too_few_problems_for_an_interval(few):
    first = few["problem_id"] == "in_domain-000"
    nearly_all = few.assign(correct=~first, outcome=np.where(first, "wrong", "correct"))  # one problem left to explore
    fig = plots.keep_explore(nearly_all, ks=(8,))
    assert "No bar: too few problems for an interval." in text_of(fig)
    assert "No bar" not in text_of(plots.keep_explore(few, ks=(8,)))


def test_styles_fill_a_hundred_per_cent(records):
    left = plots.styles(records).axes[0]
    ends = {}
    for bar in left.patches:
        ends[round(bar.get_y(), 3)] = max(ends.get(round(bar.get_y(), 3), 0), bar.get_x() + bar.get_width())
    assert len(ends) == len(METHODS) and np.allclose(list(ends.values()), 100)


def test_pass_over_steps_starts_every_run_at_the_base(records):
    fig = plots.pass_over_steps(records, ks=(8,), methods=("base", "grpo"))
    lines = [line for line in fig.axes[0].lines if line.get_color() == COLOURS["grpo"]]
    base = fig.axes[0].lines[0].get_ydata()[0]
    assert len(lines) == 4 and all(line.get_ydata()[0] == base for line in lines)
    assert list(lines[0].get_xdata()) == [0, 5, 15, 30, 45]


def test_training_curves_leave_out_the_rehearsal_loss_where_there_is_none():
    fig = plots.training_curves(make_train_logs(("grpo", "dph_f"), (0, 1)))
    assert {line.get_color() for line in fig.axes[0].lines} == {COLOURS["grpo"], COLOURS["dph_f"]}
    assert {line.get_color() for line in fig.axes[4].lines} == {COLOURS["dph_f"]}
    assert "not run: DAPO, RKL, DPH-JS" in text_of(fig)
    with pytest.raises(ValueError, match="no train log"):
        plots.training_curves(make_train_logs(("grpo",), (0,)).assign(variant="eta=1"))


def test_cost_splits_a_step_by_phase_and_shows_the_reference_where_there_is_one():
    cost = make_cost()
    fig = plots.cost_figure(cost)
    time, tokens, _ = fig.axes
    reference = [bar.get_width() for bar in tokens.patches[4:8]]
    assert [width > 0 for width in reference] == [False, True, False, False]
    medians = cost.groupby("method")[["sample_s", "verify_s", "reference_s", "update_s"]].median().sum(axis=1)
    assert np.isclose(time.patches[12].get_x() + time.patches[12].get_width(), medians["grpo"])
    assert "not run: RKL" in text_of(plots.cost_figure(cost[cost["method"] != "rkl"]))


def test_divergence_curves_draw_every_generator_that_is_given():
    curves = make_divergences()
    fig = plots.divergence_curves(pd.concat([curves, curves[curves["name"] == "js"].assign(name="hellinger")]))
    shown = text_of(fig)
    assert all(name in shown for name in ("forward KL", "JS", "reverse KL", "alpha 0.5", "Hellinger"))


def test_base_regime_counts_the_prompts_of_both_sets(records):
    presample = make_presample()
    near = int((presample["correct"] >= 6).sum())
    shown = text_of(plots.base_regime(records, presample, k=8, threshold=6))
    assert f"{near}\n" in shown and f"{len(presample) - near}\n" in shown and "threshold 6 of 8" in shown
    with pytest.raises(ValueError, match="threshold 9"):
        plots.base_regime(records, presample, k=8, threshold=9)


def test_method_figure_says_the_partition_that_was_used(few):
    shown = text_of(plots.method_figure(few, k=8, threshold=7))
    assert "fewer than 7 of 8" in shown and "GRPO" in shown


def test_the_same_records_give_the_same_bytes_and_no_date_or_version(few, tmp_path):
    draw = {
        "fig1_method": plots.method_figure,
        "fig4_styles": plots.styles,
    }
    assert set(draw) <= set(plots.CAPTIONS)
    first, second = (
        {p.name: p.read_bytes() for name, make in draw.items() for p in plots.save(make(rows), tmp_path / folder, name)}
        for folder, rows in (("a", few), ("b", few.sample(frac=1, random_state=1)))
    )
    assert first == second
    assert set(first) == {f"{name}{suffix}" for name in draw for suffix in (".png", ".svg")}
    assert b"<dc:date>" not in first["fig4_styles.svg"] and b"Software" not in first["fig4_styles.png"]


def test_every_caption_names_the_kind_of_interval_that_is_drawn():
    for name, caption in plots.CAPTIONS.items():
        if name not in ("fig1_method", "fig6_cost", "fig7_divergences"):  # these draw none
            assert "95 % interval over" in caption or "no interval" in caption, name
