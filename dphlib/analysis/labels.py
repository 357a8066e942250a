"""How methods, suites and styles are named, ordered and coloured, the same in every figure and table.

The colours can be told apart with the common kinds of colour blindness (a test simulates them for the methods that are
drawn together), and each method has a line style or marker beside its colour. The base is black.
"""

from __future__ import annotations

from colorsys import hls_to_rgb
from typing import NamedTuple

from dphlib.rivals import RIVALS
from dphlib.settings.variants import MAIN, reading

Dashes = str | tuple[int, tuple[float, ...]]


class Look(NamedTuple):
    """How a method is named and drawn."""

    name: str
    colour: str
    marker: str
    line: Dashes = "-"


LOOKS = {
    "base": Look("base", "#1A1A1A", "s", (0, (4, 1.6))),
    "grpo": Look("GRPO", "#D55E00", "v"),
    "dapo": Look("DAPO", "#E8A317", "<", (0, (5, 1))),
    "rkl": Look("RKL", "#B5478F", "^", (0, (3, 1, 1, 1))),
    "alpha_0.2": Look("alpha 0.2", "#E3C28F", "p"),
    "alpha_0.5": Look("alpha 0.5", "#B5813F", "h"),
    "alpha_0.8": Look("alpha 0.8", "#6B4412", "H"),
    "dph_f": Look("DPH-F", "#0072B2", "o"),
    "dph_js": Look("DPH-JS", "#1BA784", "D"),
    "dph_js_definition": Look("DPH-JS by definition", "#4B3F72", "X", (0, (1.2, 1))),
    "grpo_dexp": Look("GRPO on D_exp", "#F4B6A0", ">", (0, (4, 1, 1, 1))),
    "sft_rehearsal": Look("SFT rehearsal", "#2E6B57", "P"),
    "dph_f_all": Look("DPH-F on all prompts", "#8FC7F2", "*", (0, (2, 1))),
    "dph_f_explore_all": Look("DPH-F exploring all", "#3E8FC9", "d", (0, (6, 1))),
    "dph_f_rehearse_all": Look("DPH-F rehearsing all", "#5C6F91", "1", (0, (1, 1))),
    "rkl_k2": Look("RKL with k2", "#7A1F5C", "x", (0, (2, 2))),
    "dph_rkl": Look("DPH-RKL", "#D98CB8", "+", (0, (3, 2))),
}


def _rival_look(label: str, place: int) -> Look:
    """A muted colour around the wheel, and a letter for a marker."""
    rgb = hls_to_rgb((place + 0.5) / len(RIVALS), 0.42, 0.3)
    return Look(label, "#" + "".join(f"{round(255 * part):02X}" for part in rgb), f"${chr(97 + place)}$", ":")


LOOKS |= {name: _rival_look(rival.label, place) for place, (name, rival) in enumerate(RIVALS.items())}
NAMES = {method: look.name for method, look in LOOKS.items()}
COLOURS = {method: look.colour for method, look in LOOKS.items()}

FAMILY = ("base", "dph_f", "alpha_0.2", "alpha_0.5", "alpha_0.8", "dph_js", "dph_js_definition")
"""The divergences of the rehearsal, drawn together."""

SUITES = {"in_domain": "in domain", "cross_domain": "cross domain", "out_of_domain": "out of domain"}

STYLE_COLOURS = {
    "direct": "#44679F",
    "aliased": "#7FB3D5",
    "nested": "#F0C27B",
    "stepwise": "#C2703D",
    "other": "#D9D9D9",
}
"""Of the solution styles, which are no methods: a scale of their own."""


def label(method: str, variant: str = MAIN) -> str:
    """A method's name as a reader sees it, with the one setting that differs where there is one.

    >>> label("dph_js"), label("dph_f", "threshold=8"), label("grpo", "domain=sums")
    ('DPH-JS', 'DPH-F, threshold 8', 'GRPO, trained on sums')
    """
    return NAMES[method] if variant == MAIN else f"{NAMES[method]}, {reading(variant)}"
