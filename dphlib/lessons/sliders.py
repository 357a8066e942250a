"""Notebook 01's sliders for d, eta and alpha, and the static figure where there are no widgets.

    explore(d=-3.0, eta=0.2, alpha=0.5, right=(0.1, 0.25, 0.45, 0.2))

In Jupyter, with ipywidgets, the figure is drawn anew at each move. Elsewhere, and in every copy of the executed
notebook (GitHub, HTML), the figure of the values that were passed is all.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from dphlib.figures.lessons import explored
from dphlib.figures.style import DPI, SCREEN_DPI, settle, smaller
from dphlib.lessons.categorical import curves, held_styles
from dphlib.runtime.progress import interactive
from dphlib.world.templates import STYLES

D_RANGE, ETA_RANGE, ALPHA_RANGE = (-12.0, 3.0), (-2.0, 1.0), (0.05, 0.95)
"""Ends of the sliders; of eta as powers of ten."""


def draw(d: float, eta: float, alpha: float, right: Sequence[float], k: int = 8) -> Figure:
    """`figures.lessons.explored` of one setting.

    Args:
        d: log-ratio of a stored token, nats.
        eta: weight of every divergence.
        alpha: of the alpha divergence.
        right: share of the databases on which each style is right, see `categorical.strengths`.
    """
    names = ["forward_kl", f"alpha_{alpha:g}", "js", "reverse_kl"]
    rewards = torch.tensor(right, dtype=torch.float64)
    rows = {}
    for name in names:
        even = torch.full_like(rewards, 1 / len(right))
        p = held_styles(name, rewards, even, torch.tensor([eta], dtype=torch.float64))[0]
        passed = [100 * float((rewards * (1 - (1 - p) ** n)).sum()) for n in (1, k)]
        rows[name] = dict(zip(STYLES, (100 * p).tolist(), strict=True)) | dict(
            zip(("pass_1", "pass_k"), passed, strict=True)
        )
    return explored(curves(names, -D_RANGE[0]), pd.DataFrame(rows).T, d, eta, right)


def explore(d: float, eta: float, alpha: float, right: Sequence[float]) -> Any:
    """Sliders above the figure, for whoever watches in Jupyter; else the figure."""
    if not interactive() or importlib.util.find_spec("ipywidgets") is None:
        return draw(d, eta, alpha, right)
    from ipywidgets import FloatLogSlider, FloatSlider, HBox, Image, VBox

    sliders = {
        "d": FloatSlider(d, min=D_RANGE[0], max=D_RANGE[1], step=0.1, description="d (nats)"),
        "eta": FloatLogSlider(eta, min=ETA_RANGE[0], max=ETA_RANGE[1], step=0.05, description="eta"),
        "alpha": FloatSlider(alpha, min=ALPHA_RANGE[0], max=ALPHA_RANGE[1], step=0.05, description="alpha"),
    }

    def picture() -> bytes:
        return _png(draw(right=right, **{name: slider.value for name, slider in sliders.items()}))

    first = picture()
    image = Image(value=first, format="png", width=_width(first))

    def moved(_: Any) -> None:
        image.value = picture()

    for slider in sliders.values():
        slider.observe(moved, "value")
    return _WithPicture(VBox([HBox(list(sliders.values())), image]), first)


class _WithPicture:
    """A widget, and the picture that a copy of the notebook shows in its place."""

    def __init__(self, widget: Any, png: bytes) -> None:
        self._widget, self._png = widget, png

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        size = {"width": _width(self._png)}
        return {**self._widget._repr_mimebundle_(), "image/png": self._png}, {"image/png": size}


def _width(png: bytes) -> int:
    """How wide a picture is shown, in a screen's pixels, of which each has two of its own."""
    return int.from_bytes(png[16:20], "big") * SCREEN_DPI // DPI


def _png(figure: Figure) -> bytes:
    settle(figure)
    out = io.BytesIO()
    figure.savefig(out, format="png", facecolor="white", dpi=DPI)
    return smaller(out.getvalue())
