"""One plot that is drawn anew while notebook 04 trains, for whoever watches in Jupyter.

    with training_curves():
        pipeline.train(runs)

Where nobody watches (our driver, a script) nothing is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pandas as pd

from dphlib.figures.training import live_curves
from dphlib.runtime.progress import hearing, interactive

_EVERY_S = 3.0
"""Between two drawings, each of which takes a third of a second."""


class _Plot:
    """What was measured so far, and the display that shows it."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._handle: Any = None
        self._drawn, self._drawn_s = 0, -_EVERY_S

    def hear(self, method: str, run: str, iteration: int, values: Mapping[str, float]) -> None:
        of_run = {"method": method, "run": run, "iteration": iteration}
        self._rows += [{**of_run, "name": name, "value": value} for name, value in values.items()]
        if time.monotonic() - self._drawn_s >= _EVERY_S:
            self.draw()

    def draw(self) -> None:
        """Draws what is new."""
        if len(self._rows) == self._drawn:
            return
        from IPython.display import display

        figure, self._drawn, self._drawn_s = live_curves(pd.DataFrame(self._rows)), len(self._rows), time.monotonic()
        if self._handle:
            self._handle.update(figure)
        else:
            self._handle = display(figure, display_id=True)


@contextmanager
def training_curves() -> Iterator[None]:
    """In Jupyter one plot of reward and style entropy, which what is trained meanwhile brings up to date."""
    if not interactive():
        yield
        return
    plot = _Plot()
    try:
        with hearing(plot.hear):
            yield
    finally:
        plot.draw()
