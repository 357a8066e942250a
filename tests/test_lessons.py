"""The lessons' experiments against closed forms, and their figures drawn."""

from __future__ import annotations

import math

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

from dphlib.divergences import DIVERGENCES, exact
from dphlib.figures import lessons as lesson_plots
from dphlib.generators import parse
from dphlib.lessons import sliders
from dphlib.lessons.categorical import (
    collapse,
    conjugate_table,
    covering_fits,
    curves,
    equal_arms,
    estimates,
    generator_table,
    held_styles,
    kept_at,
    lumping,
    named,
    noise_and_bias,
    ranked,
    rkl_gradients,
    strengths,
    tiny_pair,
    traps,
    two_modes,
)
from dphlib.lessons.estimators import ESTIMATORS
from dphlib.runtime import progress

torch.set_num_threads(1)
NAMES = ("forward_kl", "alpha_0.5", "js", "reverse_kl")
RIGHT = (0.1, 0.25, 0.45, 0.2)


def logits(seed: int) -> torch.Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(seed))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="alpha is"):
        named("alpha_1.5")
    with pytest.raises(ValueError, match="unknown divergence"):
        named("kl")


def test_tables_of_generators_and_conjugates():
    table, conjugates = (make().set_index("name") for make in (generator_table, conjugate_table))
    for one in (table, conjugates):
        assert set(one.index) == set(DIVERGENCES)
        assert one.loc["js", "f''(1)"] == "0.25" and one.loc["total_variation", "f''(1)"] == "none: a kink"
    assert not pd.concat([table["f(u)"], conjugates["f*(t)"]]).str.contains("|", regex=False).any()
    assert table.loc["forward_kl", "f(0)"] == "infinite" and table.loc["reverse_kl", "f(0)"] == "1"
    assert table.loc["alpha", "f(0)"] == r"$1/(1-\alpha)$"
    assert conjugates.loc["reverse_kl", "f*(t)"] == "$e^t - 1$" and (conjugates["in the families"] != "").all()
    assert conjugates.loc["neyman_chi2", "finite for"] == r"$t \le 1$"


def test_curves_are_the_generator_and_its_derivative():
    frame = curves(("forward_kl",), 4.0)
    assert frame["d"].min() == -4 and frame["d"].max() == 2
    np.testing.assert_allclose(frame["value"], np.expm1(frame["d"]) - frame["d"], atol=1e-12)
    np.testing.assert_allclose(frame["gradient"], np.expm1(frame["d"]), atol=1e-12)
    with pytest.raises(ValueError, match="d_max is 0"):
        curves(("js",), 0)


def test_forward_kl_covers_both_modes_and_reverse_kl_one():
    reference = two_modes(0.3, 6)
    assert float(reference.sum()) == pytest.approx(1) and float(reference[20:].sum()) == pytest.approx(0.3, abs=0.01)
    fits = covering_fits(("forward_kl", "reverse_kl"), reference)
    forward, reverse = (fits[fits["name"] == name] for name in ("forward_kl", "reverse_kl"))
    assert forward["minor"].iloc[0] > 0.25 and reverse["minor"].iloc[0] < 0.01
    # forward KL within this family is maximum likelihood: mean and variance of the reference
    x, p, q = forward["token"].to_numpy(), forward["reference"].to_numpy(), forward["fitted"].to_numpy()
    assert (x * q).sum() == pytest.approx((x * p).sum(), abs=0.01)
    assert (x**2 * q).sum() == pytest.approx((x**2 * p).sum(), rel=1e-3)
    for name, rows in (("forward_kl", forward), ("reverse_kl", reverse)):
        assert float(exact(name, reference, torch.tensor(rows["fitted"].to_numpy()))) == pytest.approx(
            rows["divergence"].iloc[0], rel=1e-6
        )
    with pytest.raises(ValueError, match="it must lie in"):
        two_modes(0.9, 6)


def test_reverse_kl_holds_as_its_closed_form():
    right, p_ref = torch.tensor(RIGHT).double(), torch.tensor([0.4, 0.3, 0.2, 0.1]).double()
    etas = torch.tensor([0.02, 0.1, 1.0]).double()
    expected = torch.softmax(p_ref.log() + right / etas[:, None], -1)
    torch.testing.assert_close(held_styles("reverse_kl", right, p_ref, etas), expected)


@pytest.mark.parametrize("name", [*NAMES, "hellinger", "neyman_chi2"])
def test_held_styles_are_the_optimum(name):
    right, p_ref = torch.tensor(RIGHT).double(), torch.full((4,), 0.25).double()
    etas = torch.tensor([0.05, 0.3]).double()
    kind, params = parse(name)
    best = held_styles(name, right, p_ref, etas)
    torch.testing.assert_close(best.sum(-1), torch.ones(2).double())

    def objective(p):
        return (right * p).sum(-1) - etas * exact(kind, p_ref, p, **params)

    noise = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.softmax(best.log() + 0.1 * torch.randn(2, 4, generator=noise).double(), -1)
        assert bool((objective(other) <= objective(best) + 1e-12).all())


def test_strengths_agree_near_the_reference_and_not_far_from_it():
    strong = strengths(NAMES, RIGHT, [20.0])
    lost = (math.log(4) - strong["style_entropy"]) * strong["strength"] ** 2
    assert lost.max() == pytest.approx(lost.min(), rel=0.05)
    weak = strengths(("forward_kl", "reverse_kl"), RIGHT, [0.02]).set_index("name")["style_entropy"]
    assert weak["forward_kl"] > 10 * weak["reverse_kl"]


def test_careless_forms_fall_into_each_trap_and_ours_into_none():
    def as_written(d):
        return d.exp() - 1 - d.exp().log()

    def clamped(d):
        return (d.exp() - 1 - d).clamp(-10, 10)

    points = [-120.0, -11.0, -3.0, 3e-5, 1.0, 2.7, 89.0]
    found = traps({"forward_kl": clamped}, {"forward_kl": as_written}, points).pivot(
        index="d", columns="form", values="state"
    )
    no, off = "no gradient", "off by more than 5 %"
    assert found["careless"].tolist() == [no, no, "right", off, "right", no, "nan"]
    assert found["ours"].tolist() == ["right"] * 6 + ["goes on as a logarithm"]


def test_arms_of_equal_reward_leave_nothing_to_gain_however_far_apart_two_policies_are():
    bandit = equal_arms(NAMES, p_ref=(0.9, 0.1), p_theta=(0.5, 0.5))
    assert (bandit["divergence"] > 0.1).all() and bandit["improvement"].abs().max() < 1e-9
    reverse = bandit.set_index("name").loc["reverse_kl", "divergence"]
    assert reverse == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))


def test_without_a_reader_in_jupyter_the_sliders_are_one_figure(monkeypatch):
    assert not progress.interactive()
    figure = sliders.explore(d=-3.0, eta=0.2, alpha=0.5, right=RIGHT)
    pull, held = figure.axes
    assert "forward KL  +0.19" in [text.get_text() for text in pull.get_legend().get_texts()]
    reverse = strengths(["reverse_kl"], RIGHT, [0.2])["pass_1"].iloc[0]
    assert f"Pass@1 {reverse:.0f}, Pass@8" in held.texts[-1].get_text()


def test_a_reader_in_jupyter_moves_a_slider_and_the_picture_keeps_the_size_of_the_other_figures(monkeypatch):
    monkeypatch.setattr(sliders, "interactive", lambda: True)
    shown = sliders.explore(d=-3.0, eta=0.2, alpha=0.5, right=RIGHT)
    content, size = shown._repr_mimebundle_()
    row, image = shown._widget.children
    assert content["image/png"] == image.value and int(image.width) == size["image/png"]["width"]
    assert int(image.width) == int.from_bytes(image.value[16:20], "big") // 2
    before, (d, *_) = image.value, row.children
    d.value = -6.0
    assert image.value != before


def test_estimates_agree_with_the_exact_value_and_gradient():
    frame = estimates([*NAMES, "minus_log_u"], logits(0), logits(1), 20_000, 0).set_index("name")
    assert frame["z"].abs().max() < 4 and frame["largest_gradient_z"].max() < 4
    assert frame.loc["minus_log_u", "exact"] == frame.loc["forward_kl", "exact"]
    p_ref, p = torch.softmax(logits(0).double(), -1), torch.softmax(logits(1).double(), -1)
    assert frame.loc["forward_kl", "exact"] == pytest.approx(float((p_ref * (p_ref / p).log()).sum()))


def test_the_rkl_baselines_value_is_reverse_kl_and_its_gradient_that_of_forward_kl():
    k3, k2, reverse, forward = rkl_gradients(logits(0), logits(1)).to_numpy()
    assert k3[0] == pytest.approx(reverse[0])
    np.testing.assert_allclose(k3[1:], forward[1:], atol=1e-9)
    np.testing.assert_allclose(k2[1:], reverse[1:], atol=1e-9)
    assert np.abs(k3[1:] - reverse[1:]).max() > 0.01


def test_a_collapse_is_pulled_back_alike_by_all_and_seen_by_few_draws():
    frame = collapse("forward_kl", [0.0, 3.0, 12.0], k=4)
    assert len(frame) == 3 * len(ESTIMATORS)
    rows = frame.set_index(["estimator", "depth"])
    np.testing.assert_allclose(rows.xs(0.0, level="depth")[["value", "sd", "pull", "pull_sd"]], 0, atol=1e-12)
    p_ref = ranked(64)
    assert float(p_ref.sum()) == pytest.approx(1) and float(p_ref[0] / p_ref[3]) == pytest.approx(8)
    for name in ESTIMATORS:
        assert rows.loc[(name, 12.0), "pull"] == pytest.approx(float(p_ref[1]), rel=1e-3)  # p_ref - p_theta
        assert rows.loc[(name, 3.0), "bias_share"] == pytest.approx(0, abs=1e-9)  # the rest keeps its proportions
    assert rows.loc[("one_sample", 12.0), "pull_sd"] > 2 * rows.loc[("one_sample", 12.0), "pull"]
    assert rows.loc[("topk", 12.0), "pull_sd"] == 0 == rows.loc[("topk", 12.0), "sd"]
    js = collapse("js", [1.2, 12.0]).set_index(["estimator", "depth"])["pull"]
    assert js[("topk", 12.0)] < 0.01 * js[("topk", 1.2)]


def test_lumping_misses_less_with_more_tokens_and_nothing_with_all():
    frame = lumping(NAMES, [1, 4, 16, 64])
    for name in NAMES:
        missed = frame[frame["name"] == name].sort_values("k")["missed"].to_numpy()
        assert (np.diff(missed) < 0).all() and 0 < missed[0] < 1 and missed[-1] == pytest.approx(0, abs=1e-12)
    assert frame.groupby("k")["rest"].first()[64] == 0


def test_what_strength_and_lumping_leave_is_told_from_their_tables():
    held = strengths(["reverse_kl"], RIGHT, [0.1, 0.4])
    low, high = held["style_entropy"]
    assert kept_at(held, 0.4) == f"at strength 0.4: reverse KL {high:.2f}"
    assert kept_at(held, 0.2) == f"at strength 0.2: reverse KL {(low + high) / 2:.2f}", "half way along the logarithm"
    collapsed, missed = collapse("forward_kl", [1.0, 3.0], k=4), lumping(["js"], [1, 4])
    sd = collapsed.set_index(["estimator", "depth"]).loc[("one_sample", 3.0), "sd"]
    share = 100 * missed.loc[missed["k"] == 4, "missed"].iloc[0]
    said = noise_and_bias(collapsed, missed, 4)
    assert f"dropped by 3 nats one sample's standard deviation is {sd:.1f} nats, top-K's 0.0." in said
    assert said.endswith(f"With K = 4, lumping the rest misses {share:.0f} % of JS.")


def test_the_tiny_pair_is_two_models_that_differ_and_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    base, policy = tiny_pair(0)
    assert torch.equal(before, torch.get_rng_state())
    again = tiny_pair(0)[1]
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        p, q, r = (model(input_ids=tokens).logits.softmax(-1) for model in (base, policy, again))
    assert torch.equal(q, r) and not torch.allclose(p, q)
    assert float(torch.special.entr(p).sum(-1).mean()) < 3  # far from equal: ln 64 is 4.2
    assert all(w.requires_grad for w in policy.parameters()) and not any(w.requires_grad for w in base.parameters())


def test_figures_are_drawn():
    fits = covering_fits(NAMES, two_modes(0.3, 6), starts=2, steps=2)
    held = strengths(NAMES, RIGHT, [0.1, 1.0])
    costs = pd.DataFrame({"estimator": ESTIMATORS, "bytes": (8, 32, 4, 42, 42), "variance_ratio": (1, 4, 9, 9, 5)})
    families = pd.DataFrame({"content": ["clean", "hidden"], "family": ["a_b", "c"], "direct": [100.0, 20.0]})
    counts = pd.DataFrame({"subset": ["clean"], "family": ["a_b"], 0: [3], 1: [1]})
    for figure, axes in (
        (lesson_plots.one_mode_fits(fits), 4),
        (lesson_plots.pulls(curves(NAMES, 12.0), [-1.2, -12.0]), 1),
        (lesson_plots.covered_map(pd.DataFrame({"4": [30.0, 0.0]}, index=["js", "reverse_kl"])), 1),
        (lesson_plots.trap_map(traps({"js": named("js")}, {"js": named("js")}, [-1.0, 1e-3, 2.0])), 1),
        (lesson_plots.right_map({"train": families, "cross domain": families}), 2),
        (lesson_plots.count_map(counts, 1), 1),
        (lesson_plots.direction_and_strength(held), 3),
        (lesson_plots.sft_curve([3.0, 2.0, 1.0]), 1),
        (lesson_plots.sft_curve([3.0, 2.0, 1.0], every=25), 1),
        (lesson_plots.estimators(collapse("js", [0.0, 1.0]), lumping(("js", "alpha_0.2"), [1, 8])), 3),
        (lesson_plots.estimator_costs(costs), 1),
    ):
        assert isinstance(figure, matplotlib.figure.Figure) and len(figure.axes) == axes
        figure.canvas.draw()
