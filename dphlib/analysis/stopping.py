"""Where a run's training is read: at its end, and at the first plateau of Pass@1 on the validation suite."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dphlib.types import VALIDATION

PATIENCE = 2
"""Way-points that have to pass without a gain."""
GAIN = 0.01
"""Of Pass@1, a share: less is no gain."""


def plateau(values: Sequence[float], patience: int = PATIENCE, gain: float = GAIN) -> int:
    """Index of the first value that none of the next `patience` exceeds by more than `gain`; the last one without.

    >>> plateau([0.40, 0.46, 0.50, 0.505, 0.50, 0.60]), plateau([0.4, 0.5, 0.6])
    (2, 2)
    """
    for index, value in enumerate(values):
        following = values[index + 1 : index + 1 + patience]
        if len(following) == patience and max(following) <= value + gain:
            return index
    return len(values) - 1


def stopping_steps(records: pd.DataFrame) -> pd.Series:
    """Step of the first plateau of each run that has way-points; index method, variant, seed."""
    rows = records[(records["suite"] == VALIDATION) & (records["temperature"] > 0)]
    rows = rows.assign(passed=rows["correct"] / rows["n"])
    curves = rows.groupby([*_RUN, "step"], observed=True)["passed"].mean()
    return curves.groupby(level=_RUN, observed=True).agg(lambda curve: curve.index[plateau(list(curve))][-1])


def at_stopping(records: pd.DataFrame) -> pd.DataFrame:
    """The records of each run at its stopping step; those of the base, which has no way-point, as they are."""
    steps = stopping_steps(records).rename("stopping_step").reset_index()
    rows = records.merge(steps, on=_RUN, how="left")
    return records[((rows["step"] == rows["stopping_step"]) | (rows["method"] == "base")).to_numpy()]


_RUN = ["method", "variant", "seed"]
