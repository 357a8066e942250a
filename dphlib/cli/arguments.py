"""What several commands take, with the values that are allowed, read off where they are defined."""

from __future__ import annotations

from typing import Annotated

import tyro

from dphlib.experiment.plan import CARDS
from dphlib.report.notebooks import find_notebooks
from dphlib.runtime.places import NOTEBOOKS
from dphlib.settings.methods import CONFIGS
from dphlib.settings.profiles import PROFILES
from dphlib.settings.stages import WorldConfig
from dphlib.settings.studies import EXPLORATORY, STUDIES
from dphlib.settings.variants import MAIN, VARIANTS

_VARIANTS = ", ".join(f"{name}=... ({variant.values[1]})" for name, variant in VARIANTS.items())
_STUDIES = ", ".join((*STUDIES, *EXPLORATORY))

ProfileArgument = Annotated[
    str, tyro.conf.arg(name="profile", metavar="PROFILE", help=f"one of {', '.join(PROFILES)}.")
]
MethodArgument = Annotated[str, tyro.conf.arg(metavar="METHOD", help=f"one of {', '.join(CONFIGS)}.")]
VariantArgument = Annotated[
    str, tyro.conf.arg(metavar="VARIANT", help=f"{MAIN}, or one setting that differs: {_VARIANTS}.")
]
StudiesArgument = Annotated[
    str,
    tyro.conf.arg(
        metavar="STUDIES",
        help=f"all, or names separated by commas, of {_STUDIES}; the last two draw more answers of main runs.",
    ),
]
SuiteArgument = Annotated[
    str,
    tyro.conf.arg(metavar="SUITE", help=f"one of {', '.join(WorldConfig().problems)}, as far as the profile has it."),
]
CardArgument = Annotated[
    str, tyro.conf.arg(metavar="CARD", help=f"another GPU than the profile's own: {', '.join(CARDS)}.")
]
NotebookArgument = Annotated[
    str,
    tyro.conf.arg(
        metavar="NOTEBOOK",
        help=f"run this one alone, by number or name: {', '.join(path.stem for path in find_notebooks(NOTEBOOKS))}.",
    ),
]
