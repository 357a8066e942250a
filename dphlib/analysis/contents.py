"""Results by what a problem holds: what the prompt hides, what is hard to compose, what every style solves.

    parts = by_content(results.records, results.settings.world)
    table = content_table(parts)

The protocol judges no claim on a part of a suite: what is read here is exploratory. It tells apart what a suite's mean
adds up: problems that a policy can learn to solve, and problems on which only different answers help.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.intervals import interval
from dphlib.scores import ArmScores
from dphlib.settings.methods import HEADLINE
from dphlib.settings.stages import WorldConfig
from dphlib.world import people_places, sums

Part = tuple[str, str]
"""A suite and a content."""
CONTENTS = ("hidden", "hard")
"""Those that are shown; every policy solves the clean ones in eight answers."""


def contents(config: WorldConfig) -> dict[Part, str]:
    """(suite, family) -> what the family's problems hold, of the suites with claims."""
    of = {
        "in_domain": people_places.families(config, "people"),
        "cross_domain": people_places.families(config, "places"),
        "out_of_domain": sums.families(config),
    }
    return {(suite, family.name): family.content for suite, made in of.items() for family in made}


def by_content(records: pd.DataFrame, config: WorldConfig) -> dict[Part, pd.DataFrame]:
    """The final rows of main runs in each part, suites in their order; parts without a problem are left out.

    Empty where no problem in domain is of a family of the world.
    """
    known = contents(config)
    rows = stats.final(records[(records["variant"] == "main") & records["suite"].isin(list(SUITES))])
    held = pd.Series([known.get(key, "") for key in zip(rows["suite"], rows["subset"], strict=True)], rows.index)
    parts = {(s, content): rows[(rows["suite"] == s) & (held == content)] for s in SUITES for content in CONTENTS}
    there = {part: found for part, found in parts.items() if len(found)}
    return there if any(suite == "in_domain" for suite, _ in there) else {}


def content_table(parts: Mapping[Part, pd.DataFrame]) -> pd.DataFrame:
    """One row per part, headline method and k: Pass@k and its difference to the base, in per cent and points.

    Columns: suite, holds, problems, method, k (1, 8 and all of the answers), `Pass@k` and `minus base`, each with
    `_low` and `_high`, and seeds. The base's own difference is NaN.
    """
    out = []
    for (suite, content), rows in parts.items():
        scores = ArmScores.final(rows)
        there = [m for m in HEADLINE if scores.answers(m, suite)]
        most = min(scores.answers(m, suite) or 0 for m in there)
        for method in there:
            for k in sorted({1, min(8, most), most}):
                own, base = scores.of(method, suite, "pass", k), scores.get("base", suite, "pass", k)
                row: dict[str, object] = {"suite": SUITES[suite], "holds": content, "problems": len(own.problems)}
                row |= {"method": NAMES[method], "k": k} | interval([own]).columns("Pass@k", 0.0, 100.0)
                apart = None if base is None or method == "base" else interval([own, base], np.subtract)
                ends = apart.columns("minus base") if apart else _NO_DIFFERENCE
                out.append(row | ends | {"seeds": len(own.seeds)})
    return pd.DataFrame(out)


_NO_DIFFERENCE = dict.fromkeys(("minus base", "minus base_low", "minus base_high"), float("nan"))
