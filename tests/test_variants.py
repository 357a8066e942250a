"""Variants: one setting, read in one place; what it does to the settings; what means nothing is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from dphlib.analysis.labels import label
from dphlib.settings.methods import CONFIGS, METHOD_CONFIGS, MethodConfig
from dphlib.settings.profiles import PROFILES, profile
from dphlib.settings.studies import STUDIES, comparisons
from dphlib.settings.variants import VARIANTS, RunConfig, parse, parse_seeds

SETTINGS = profile("cpu")


@pytest.mark.parametrize(
    ("method", "variant", "says"),
    [
        ("ppo", "main", "unknown method 'ppo'; known: grpo.*dph_f_all"),
        ("grpo", "lr=1", "unknown variant 'lr=1'; known: main, eta="),
        ("grpo", "clip_high", "unknown variant 'clip_high'"),
        ("dph_f", "eta=0", "eta must be > 0, '0' is not"),
        ("dph_f", "eta=nan", "eta must be > 0, 'nan' is not"),
        ("dph_f", "eta=much", "'much' is not"),
        ("dph_f", "eta=0.10", "write eta=0.1, so that one arm has one name"),
        ("dph_f", "eta=0.2", "is its main run"),
        ("dph_f", "k=2.5", "k must be a whole number"),
        ("dph_f", "answers=0", "answers must be a whole number from 1 on"),
        ("grpo", "top_p=1", r"top_p must be in \(0, 1\)"),
        ("grpo", "eta=0.1", "means nothing for grpo: it has no divergence"),
        ("grpo_dexp", "answers=4", "means nothing for grpo_dexp: it rehearses no stored answer"),
        ("rkl", "authors_eta=8", "means nothing for rkl: it rehearses no stored answer"),
        ("grpo", "k=16", "means nothing for grpo: it trains on all prompts"),
        ("dph_f_all", "threshold=8", "means nothing for dph_f_all: it trains on all prompts"),
        ("dph_f", "js_scale=2", "means nothing for dph_f: its divergence is not JS"),
        ("grpo", "domain=sql", "domain must be sums"),
        ("grpo", "iterations=0", "iterations must be a whole number from 1 on"),
    ],
)
def test_what_means_nothing_is_refused_with_the_way_out(method, variant, says):
    with pytest.raises(ValueError, match=says):
        SETTINGS.method_config(RunConfig(method, variant, 0))


def test_what_a_main_run_is_hangs_on_the_profiles_weights():
    large = profile("gpu80")
    assert large.weight("dph_f") == 0.05 and large.method_config(RunConfig("dph_f", "eta=0.2", 0)).eta == 0.2
    with pytest.raises(ValueError, match="is its main run"):
        large.method_config(RunConfig("dph_f", "eta=0.05", 0))
    names = [one for study in STUDIES for one in comparisons(large, study)]
    for one in names:
        for arm in (one.arm, one.against):
            large.method_config(RunConfig(*arm, 0))


def test_every_key_has_a_reader_and_changes_exactly_what_it_names():
    variants = "eta=0.3 authors_eta=8 js_scale=2 threshold=7 k=16 answers=4 clip_high=0.35 top_p=0.9"
    variants += " entropy=0.01 iterations=120 hidden=0.3 domain=sums"
    values = dict(variant.split("=") for variant in variants.split())
    assert set(values) == set(VARIANTS)
    main = RunConfig("dph_js", "main", 0)
    for key, value in values.items():
        run = RunConfig("dph_js", f"{key}={value}", 0)
        assert label("dph_js", run.variant).startswith("DPH-JS, ") and value in label("dph_js", run.variant)
        changed = run.method_config != main.method_config
        changed += run.train_config(SETTINGS.train) != SETTINGS.train
        changed += run.presample_config(SETTINGS.presample) != SETTINGS.presample
        assert changed == (0 if key in ("domain", "hidden") else 1), key
        assert run.setting(key) == parse(run.variant)[1] and run.setting("main") is None


def test_another_k_keeps_the_share_of_the_threshold():
    for k, threshold in ((4, 3), (8, 6), (16, 12), (5, 4)):
        presample = RunConfig("dph_f", f"k={k}", 0).presample_config(SETTINGS.presample)
        assert (presample.k, presample.threshold) == (k, threshold)


@pytest.mark.parametrize("name", PROFILES)
def test_every_divergence_has_the_strength_of_dph_f(name):
    """eta f''(1) equals DPH-F's; that f''(1) is right: test_divergences."""
    settings = profile(name)
    configs = {m: settings.method_config(RunConfig(m, "main", 0)) for m, c in CONFIGS.items() if c.weight}
    assert {round(c.weight * c.curvature, 9) for c in configs.values()} == {settings.weight("dph_f")}


def test_the_authors_average_over_all_rows_is_an_eighth_of_eta():
    """2,048 RL rows and 256 D_pef rows of equal length averaged together, by hand, up to the common factor 8/9."""
    eta = METHOD_CONFIGS["dph_f"].eta
    explore = torch.linspace(-1, 1, 2048, dtype=torch.float64)
    near_perfect = torch.linspace(0, 3, 256, dtype=torch.float64)
    together = (explore.sum() + eta * near_perfect.sum()) / (2048 + 256)
    ours = explore.mean() + RunConfig("dph_f", "authors_eta=8", 0).method_config.eta * near_perfect.mean()
    assert float(together) == pytest.approx(8 / 9 * float(ours))
    both = RunConfig("dph_js", "authors_eta=8", 0).method_config.eta * 2  # and 2 x JS on top
    assert both == METHOD_CONFIGS["dph_js"].eta / 4
    assert RunConfig("dph_js", "js_scale=2", 0).method_config.eta == 2 * METHOD_CONFIGS["dph_js"].eta


@pytest.mark.parametrize("method", ["rkl", "rkl_k2"])
def test_the_weight_of_rkl_is_its_coefficient(method):
    config = RunConfig(method, "eta=0.01", 0).method_config
    assert (config.rkl_coef, config.eta) == (0.01, 0.0)


@pytest.mark.parametrize("name", ["cpu", "lm", "gpu80"])
def test_reverse_kl_on_stored_answers_is_as_strong_as_forward_kl_and_rkl_by_k2_as_rkl(name):
    """In every profile, also where it has other weights than the CPU world's."""
    settings = profile(name)
    configs = {m: settings.method_config(RunConfig(m, "main", 0)) for m in ("dph_f", "dph_rkl", "rkl", "rkl_k2")}
    strength = {m: config.weight * config.curvature for m, config in configs.items()}
    assert strength["dph_rkl"] == strength["dph_f"] and strength["rkl_k2"] == strength["rkl"]
    assert replace(configs["dph_rkl"], divergence="forward_kl") == configs["dph_f"]
    assert replace(configs["rkl_k2"], rkl_estimator="k3") == configs["rkl"]


def test_the_factorial_crosses_what_is_explored_with_what_is_rehearsed_at_one_clip():
    arms = {arm for one in comparisons(SETTINGS, "factorial") for arm in (one.arm, one.against)}
    configs = [SETTINGS.method_config(RunConfig(*arm, 0)) for arm in arms]
    cells = {(config.explores, config.rehearses) for config in configs}
    assert cells == set(product(("all", "exploration"), ("none", "near_perfect", "all"))) and len(configs) == 6
    common = {replace(c, explores="all", rehearses="all", divergence="forward_kl", eta=0.2) for c in configs}
    assert len(common) == 1, "nothing else differs"


@pytest.mark.parametrize("name", ["cpu", "lm", "gpu80"])
def test_every_divergence_has_three_strengths_to_choose_from_and_the_same(name):
    settings = profile(name)
    strengths = {}
    for one in comparisons(settings, "eta"):
        config = settings.method_config(RunConfig(*one.arm, 0))
        strengths.setdefault(one.arm.method, set()).add(round(config.weight * config.curvature, 6))
    for method, found in strengths.items():
        main = settings.method_config(RunConfig(method, "main", 0))
        found.add(round(main.weight * main.curvature, 6))
    equal = settings.weight("dph_f")
    assert set(strengths) == {m for m, config in METHOD_CONFIGS.items() if config.weight} | {"rkl_k2", "dph_rkl"}
    assert all(found >= {round(factor * equal, 6) for factor in (0.25, 1, 4)} for found in strengths.values())


def test_a_method_rehearses_by_a_divergence_or_not_at_all():
    for rehearses, divergence in (("none", "js"), ("all", None)):
        with pytest.raises(ValueError, match="give both or neither"):
            MethodConfig("all", rehearses, divergence)


@pytest.mark.parametrize("text", ["", ",", "many", "1,1", "0,x", "-1", "0"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="give their number, such as 5, or a list"):
        parse_seeds(text)
