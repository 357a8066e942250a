"""What is written over and under each figure, by its name: its title and its caption, of `captions.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

_INTERVAL = "95 % interval over seeds and problems (hierarchical bootstrap with Student's quantile)"
_FIGURES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
TITLES = {name: figure["title"] for name, figure in _FIGURES.items()}
CAPTIONS = {name: figure["caption"].format(interval=_INTERVAL) for name, figure in _FIGURES.items()}
