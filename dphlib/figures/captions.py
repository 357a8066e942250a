"""What is written over and under each figure, by its name: its title and its caption, of `captions.toml`."""

from __future__ import annotations

from dphlib.runtime.files import table_beside

_INTERVAL = "95 % interval over runs and problems (closed form, Student's quantile)"
_FIGURES = table_beside(__file__)
TITLES = {name: figure["title"] for name, figure in _FIGURES.items()}
CAPTIONS = {name: figure["caption"].format(interval=_INTERVAL) for name, figure in _FIGURES.items()}
