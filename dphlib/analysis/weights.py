"""The weight of each divergence as it is chosen on the validation suite, the same number of values for each.

docs/protocol.md fixed the rule: of a method's own weight, a quarter of it and four times it, the one with the largest
mean of Pass@k over log k, 1 to 8, at each run's stopping point.
"""

from __future__ import annotations

import pandas as pd

from dphlib.analysis.waypoints import at_stopping
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import Arm
from dphlib.types import VALIDATION

FACTORS = (0.25, 4)


def candidates(settings: Profile, method: str) -> tuple[Arm, ...]:
    """A method's main arm, and those at a quarter and at four times its weight."""
    variants = (f"eta={factor * settings.weight(method):g}" for factor in FACTORS)
    return (Arm(method), *(Arm(method, variant) for variant in variants))


def chosen_weight(waypoints: pd.DataFrame, settings: Profile, method: str) -> Arm | None:
    """The arm of `candidates` that validation chooses, by the mean over its runs; None where one has no way-points.

    Args:
        waypoints: `analysis.waypoints.waypoint_table`.

    >>> chosen_weight(pd.DataFrame(columns=["method", "variant", "suite"]), Profile("cpu"), "dph_f")
    """
    arms = candidates(settings, method)
    rows = waypoints[pd.MultiIndex.from_frame(waypoints[["method", "variant"]]).isin([tuple(arm) for arm in arms])]
    if rows["variant"].nunique() < len(arms) or set(rows["suite"]) != {VALIDATION}:
        return None
    area = at_stopping(rows, rows).groupby("variant", observed=True)["auc_k"].mean()
    return max(arms, key=lambda arm: area[arm.variant])  # the main arm where two are equal
