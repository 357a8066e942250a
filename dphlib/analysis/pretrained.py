"""The effects that the CPU world's small model shows, beside those of a pretrained model trained on the same world.

The two have different problems and settings, so no number of one is subtracted from one of the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dphlib.analysis.labels import NAMES, SUITES
from dphlib.intervals import interval
from dphlib.scores import ArmScores
from dphlib.stats import Metric

EFFECTS: tuple[tuple[str, str], ...] = (
    ("grpo", "base"),
    ("grpo_dexp", "grpo"),
    ("rkl", "grpo"),
    ("dph_f", "grpo"),
    ("dph_js", "grpo"),
)
"""An arm, and what it is compared with."""
MEASURES: dict[str, tuple[tuple[str, Metric, int], ...]] = {
    "in_domain": (("greedy", "greedy", 1), ("Pass@1", "pass", 1), ("Pass@8", "pass", 8), ("Pass@16", "pass", 16)),
    "cross_domain": (("Pass@8", "pass", 8),),
    "out_of_domain": (("Pass@8", "pass", 8),),
}
"""Of each suite what is shown: its name, metric and k."""
SMALL_MODEL, PRETRAINED = "small model", "SmolLM2-135M"


def pretrained_table(small: ArmScores, pretrained: ArmScores) -> pd.DataFrame:
    """One row per suite, measure, effect and model: the difference in points with its interval, and the runs per arm.

    Effects of an arm that a model lacks are left out.
    """
    out = []
    of: Mapping[str, ArmScores] = {SMALL_MODEL: small, PRETRAINED: pretrained}
    for suite, measures in MEASURES.items():
        for measure, metric, k in measures:
            for arm, against in EFFECTS:
                for model, scores in of.items():
                    a, b = (scores.get(name, suite, metric, k) for name in (arm, against))
                    if a is None or b is None:
                        continue
                    row = {"suite": SUITES[suite], "measure": measure, "method": NAMES[arm], "minus": NAMES[against]}
                    got = interval([a, b], np.subtract).columns("difference")
                    out.append({**row, "model": model, **got, "runs": len(a.seeds)})
    return pd.DataFrame(out)
