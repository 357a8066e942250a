"""How methods, suites and styles are named, ordered and coloured, the same in every figure and table.

The colours are told apart with the common kinds of colour blindness (a test simulates them for the methods that are
drawn together), and each method has a line style or marker beside its colour. The base is black.
"""

from __future__ import annotations

from dphlib.settings.methods import CONTROLS, METHODS
from dphlib.settings.variants import MAIN, reading

NAMES = {
    "base": "base", "grpo": "GRPO", "dapo": "DAPO", "rkl": "RKL", "alpha_0.2": "alpha 0.2",
    "alpha_0.5": "alpha 0.5", "alpha_0.8": "alpha 0.8", "dph_f": "DPH-F", "dph_js": "DPH-JS",
    "dph_js_definition": "DPH-JS by definition", "grpo_dexp": "GRPO on D_exp", "sft_rehearsal": "SFT rehearsal",
    "dph_f_all": "DPH-F on all prompts",
}  # fmt: skip

COLOURS = {
    "base": "#1A1A1A", "grpo": "#D55E00", "dapo": "#E8A317", "rkl": "#B5478F", "alpha_0.2": "#E3C28F",
    "alpha_0.5": "#B5813F", "alpha_0.8": "#6B4412", "dph_f": "#0072B2", "dph_js": "#1BA784",
    "dph_js_definition": "#4B3F72", "grpo_dexp": "#F4B6A0", "sft_rehearsal": "#2E6B57", "dph_f_all": "#8FC7F2",
}  # fmt: skip

MARKERS = {
    "base": "s", "grpo": "v", "dapo": "<", "rkl": "^", "alpha_0.2": "p", "alpha_0.5": "h", "alpha_0.8": "H",
    "dph_f": "o", "dph_js": "D", "dph_js_definition": "X", "grpo_dexp": ">", "sft_rehearsal": "P", "dph_f_all": "*",
}  # fmt: skip

LINES: dict[str, str | tuple[int, tuple[float, ...]]] = {
    **dict.fromkeys((*METHODS, *CONTROLS), "-"),
    "base": (0, (4, 1.6)),
    "dapo": (0, (5, 1)),
    "rkl": (0, (3, 1, 1, 1)),
    "dph_js_definition": (0, (1.2, 1)),
    "grpo_dexp": (0, (4, 1, 1, 1)),
    "dph_f_all": (0, (2, 1)),
}

FAMILY = ("base", "dph_f", "alpha_0.2", "alpha_0.5", "alpha_0.8", "dph_js", "dph_js_definition")
"""The divergences of the rehearsal, drawn together."""
CONTROLLED = ("base", "grpo", "grpo_dexp", "dph_f", "dph_f_all", "sft_rehearsal")
"""The controls with what they are compared with, drawn together."""

SUITES = {"in_domain": "in domain", "cross_domain": "cross domain", "out_of_domain": "out of domain"}
PAPER_SUITES = {"in_domain": "BIRD", "cross_domain": "Spider", "out_of_domain": "mathematics"}

STYLE_COLOURS = {
    "direct": "#44679F", "aliased": "#7FB3D5", "nested": "#F0C27B", "stepwise": "#C2703D", "other": "#D9D9D9",
}  # fmt: skip
"""Of the solution styles, which are no methods: a scale of their own."""


def label(method: str, variant: str = MAIN) -> str:
    """A method's name as a reader sees it, with the one setting that differs where there is one.

    >>> label("dph_js"), label("dph_f", "threshold=8"), label("grpo", "domain=sums")
    ('DPH-JS', 'DPH-F, threshold 8', 'GRPO, trained on sums')
    """
    return NAMES[method] if variant == MAIN else f"{NAMES[method]}, {reading(variant)}"
