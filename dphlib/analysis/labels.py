"""How methods, suites, styles and claims are named, ordered and coloured, the same in every figure and table.

There is one palette each for methods, styles of answers, suites, and the two sets of the partition. Tests simulate the
common kinds of colour blindness for the colours that are drawn together and measure their contrast. Each method has a
marker or a line beside its colour, the base is black.
"""

from __future__ import annotations

from colorsys import hls_to_rgb
from typing import NamedTuple

from dphlib.rivals import RIVALS
from dphlib.settings.methods import CONFIGS
from dphlib.settings.variants import MAIN, reading

Dashes = str | tuple[int, tuple[float, ...]]
Marker = str | tuple[int, int, int]


class Look(NamedTuple):
    """How a method is named and drawn; markers are filled shapes, for an edge of white hides one without a face."""

    name: str
    colour: str = "#7A7A7A"
    marker: Marker = "o"
    line: Dashes = (0, (1, 1))


_SOLID = "-"
LOOKS = {
    "base": Look("base", "#1A1A1A", "s", (0, (4, 1.6))),
    "grpo": Look("GRPO", "#B54200", "v", _SOLID),
    "dapo": Look("DAPO", "#B88A00", "<", (0, (5, 1))),
    "rkl": Look("RKL", "#B5478F", "^", (0, (3, 1, 1, 1))),
    "alpha_0.2": Look("alpha 0.2", "#B38A4D", "p", _SOLID),
    "alpha_0.5": Look("alpha 0.5", "#8F5A12", "h", _SOLID),
    "alpha_0.8": Look("alpha 0.8", "#592D1C", "H", _SOLID),
    "dph_f": Look("DPH-F", "#0070BA", "o", _SOLID),
    "dph_js": Look("DPH-JS", "#149E79", "D", _SOLID),
    "dph_js_definition": Look("DPH-JS by definition", "#573A86", "X", (0, (1.2, 1))),
    "grpo_dexp": Look("GRPO on D_exp", "#763A29", ">", (0, (4, 1, 1, 1))),
    "sft_rehearsal": Look("SFT rehearsal", "#2E6B57", "P", (0, (3, 1))),
    "dph_f_all": Look("DPH-F on all prompts", "#4F93CC", "*", (0, (2, 1))),
    "dph_f_explore_all": Look("DPH-F exploring all", "#3D5AA8", "d", (0, (6, 1))),
    "dph_f_rehearse_all": Look("DPH-F rehearsing all", "#5C6F91", "8", (0, (1, 1))),
    "rkl_k2": Look("RKL with k2", "#7A1F5C", (4, 1, 0), (0, (2, 2))),
    "dph_rkl": Look("DPH-RKL", "#C4628F", (3, 0, 30), (0, (3, 2))),
}


def _rival_look(label: str, place: int) -> Look:
    """A muted colour around the wheel, and a letter for a marker."""
    rgb = hls_to_rgb((place + 0.5) / len(RIVALS), 0.42, 0.3)
    return Look(label, "#" + "".join(f"{round(255 * part):02X}" for part in rgb), f"${chr(97 + place)}$", _SOLID)


LOOKS |= {name: _rival_look(rival.label, place) for place, (name, rival) in enumerate(RIVALS.items())}
LOOKS |= {name: Look(name.replace("_", " ")) for name in CONFIGS if name not in LOOKS}  # a new method, grey at first
NAMES = {method: look.name for method, look in LOOKS.items()}
COLOURS = {method: look.colour for method, look in LOOKS.items()}

FAMILY = ("base", "dph_f", "alpha_0.2", "alpha_0.5", "alpha_0.8", "dph_js", "dph_js_definition")
"""The divergences of the rehearsal, drawn together."""

SUITES = {"in_domain": "in domain", "cross_domain": "cross domain", "out_of_domain": "out of domain"}
SUITE_COLOURS = {"in_domain": "#2E6F73", "cross_domain": "#8A5FA8", "out_of_domain": "#C0643F"}

STYLE_COLOURS = {
    "direct": "#35568F",
    "aliased": "#7FB3D5",
    "nested": "#F0C27B",
    "stepwise": "#B5543A",
    "other": "#D9D9D9",
}
"""Of the solution styles, which are no methods: a scale of their own, of fills."""

SET_COLOURS = {"exploration": "#D9944A", "near_perfect": "#44679F"}
"""Of D_exp and D_pef."""

VERDICT_COLOURS = {
    "supported": "#0070BA",
    "not supported": "#B54200",
    "inconclusive": "#6F6F6F",
    "not testable": "#8E4C86",
    "not run": "#8A8A8A",
}
"""Of the verdicts; word and shape are always beside the colour."""

CLAIM_NAMES = {
    "greedy_rises": "GRPO, DAPO: greedy accuracy rises",
    "pass_k_falls": "GRPO, DAPO: Pass@8 and Pass@16 fall",
    "pass_16_falls_rkl": "RKL: Pass@16 falls",
    "grpo_keeps_one_style": "GRPO keeps almost one style",
    "dph_keeps_styles": "DPH keeps more styles than GRPO",
    "dph_greedy_highest": "DPH's greedy accuracy is highest, within 2 points",
    "js_pass_8_above_grpo": "DPH-JS: Pass@8 above GRPO's",
    "dph_nearer_at_large_k": "DPH: above GRPO at large k",
    "cross_every_rl_loses": "cross domain: all lose Pass@8",
    "cross_dph_loses_least": "cross domain: DPH loses least",
    "out_every_rl_loses": "out of domain: all lose Pass@8",
    "out_dph_loses_least": "out of domain: DPH loses least",
    "out_rkl_loses_most": "out of domain: RKL loses most",
    "loss_grows_with_shift": "GRPO's, RKL's loss grows with the shift",
    "forward_keeps_more_than_reverse": "forward KL keeps more than reverse KL",
    "dph_above_reverse_gradient": "DPH: Pass@8 above RKL's, k3 and k2",
    "rehearsal_beyond_selection": "DPH: Pass@8 above GRPO's on D_exp",
    "partition_costs_nothing": "the partition costs at most 2 points",
    "no_reference_model": "DPH needs no reference model online",
    "generator_as_good_as_definition": "JS by generator and definition, within 2 points",
    "threshold_8_as_good_as_6": "threshold 8 as good as 6, within 2 points",
}
"""Each claim in a few words; its text is in `analysis.claims`."""


def claim_name(claim_id: str) -> str:
    """A claim in a few words, by its id.

    >>> claim_name("pass_16_falls_rkl")
    'RKL: Pass@16 falls'
    """
    return CLAIM_NAMES.get(claim_id, claim_id.replace("_", " "))


def label(method: str, variant: str = MAIN) -> str:
    """A method's name as a reader sees it, with the one setting that differs where there is one.

    >>> label("dph_js"), label("dph_f", "threshold=8"), label("grpo", "domain=sums")
    ('DPH-JS', 'DPH-F, threshold 8', 'GRPO, trained on sums')
    """
    return NAMES[method] if variant == MAIN else f"{NAMES[method]}, {reading(variant)}"
