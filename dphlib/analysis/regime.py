"""The regime that the base model has to be in for the paper's question to make sense on the CPU world.

A base that solves nothing, or everything, shows neither a gain nor a loss. The ranges below were fixed from the base
model alone, before any reinforcement learning ran on it, and from what the paper's own base models are like. They say
nothing about a method, and no method can move them.

Not here: how the base is made (`experiment.pipeline`) or drawn (`figures.training.base_regime`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan, log, nan
from typing import NamedTuple

import pandas as pd

from dphlib import stats
from dphlib.scores import ArmScores
from dphlib.settings.profiles import Profile

REQUIRED = ("cpu",)
"""Profiles whose base must be inside; on the others the table is shown and nothing is required."""


_ROUNDING = 1e-9  # an entropy of four equal shares may exceed ln 4 in the last digit


class RegimeError(RuntimeError):
    """The base is outside the regime; what is measured after it would mean nothing."""


class _Base(NamedTuple):
    """The base's scores, its pre-samples, and the profile."""

    scores: ArmScores
    presample: pd.DataFrame
    settings: Profile


@dataclass(frozen=True, slots=True)
class Range:
    """One quantity of the base, the range it has to be in (both ends included), and why.

    Args:
        quantity: its name and unit.
        low, high: the ends, in its unit.
        reason: why the range is what it is.
        measure: the base -> its value, NaN where too few answers were drawn.
    """

    quantity: str
    low: float
    high: float
    reason: str
    measure: Callable[[_Base], float]


def _mean(suite: str, metric: stats.Metric, k: int = 1) -> Callable[[_Base], float]:
    def mean(base: _Base) -> float:
        answers = base.scores.answers("base", suite, metric)
        if answers is None or answers < k:
            return nan
        return base.scores.of("base", suite, metric, k).mean

    return mean


def _greedy(suite: str) -> Callable[[_Base], float]:
    return lambda base: 100 * _mean(suite, "greedy")(base)


def _pass(suite: str, k: int) -> Callable[[_Base], float]:
    return lambda base: 100 * _mean(suite, "pass", k)(base)


def _near_perfect(suite: str) -> Callable[[_Base], float]:
    def share(base: _Base) -> float:
        correct = base.presample.loc[base.presample["suite"] == suite, "correct"]
        return 100 * float((correct >= base.settings.presample.threshold).mean()) if len(correct) else nan

    return share


RANGES: tuple[Range, ...] = (
    Range("in domain, greedy (%)", 33, 50, "the paper's base on BIRD has 42", _greedy("in_domain")),
    Range("in domain, Pass@1 (%)", 28, 45, "a single draw often fails", _pass("in_domain", 1)),
    Range("in domain, Pass@8 (%)", 60, 78, "the paper's base on BIRD has 69", _pass("in_domain", 8)),
    Range("in domain, Pass@16 (%)", 70, 86, "the paper's base on BIRD has 75", _pass("in_domain", 16)),
    Range("in domain, Pass@32 (%)", 75, 98, "below saturation: a loss at large k can be seen", _pass("in_domain", 32)),
    Range(
        "in domain, style entropy (nats)",
        0.9,
        log(4),
        "several styles on each problem (four in equal use: ln 4), so they can be lost",
        _mean("in_domain", "styles_nats"),
    ),
    Range("cross domain, Pass@8 (%)", 60, 90, "there is something to forget", _pass("cross_domain", 8)),
    Range("out of domain, Pass@1 (%)", 10, 35, "there is something to forget", _pass("out_of_domain", 1)),
    Range("out of domain, Pass@8 (%)", 40, 70, "a loss can be seen, and a gain", _pass("out_of_domain", 8)),
    Range("D_pef, share of SQL prompts (%)", 15, 40, "most prompts are explored", _near_perfect("train")),
    Range("D_pef, share of sums (%)", 3, 100, "some to rehearse when they are trained on", _near_perfect("sums_train")),
)


def regime(records: pd.DataFrame, presample: pd.DataFrame, settings: Profile) -> pd.DataFrame:
    """Whether the base is in the regime.

    Args:
        records: frame of EvalRecord rows; the base's are used, all others ignored.
        presample: one row per training prompt: suite, and `correct` of its k pre-samples.
        settings: the profile, for the partition's threshold.

    Returns:
        One row per quantity: quantity, value, low, high, inside, reason. A value that cannot be had from so few answers
        is NaN, and not inside. On data sets, for which the ranges were not made: quantity and value only, of those
        that can be measured.

    Raises:
        ValueError: no record of the base.
    """
    rows = records[(records["method"] == "base") & (records["variant"] == "main")]
    if rows.empty:
        raise ValueError("no records of the base model: evaluate it first, results.collect(pipeline, []) does")
    base = _Base(ArmScores.final(rows), presample, settings)
    measured = [(each, each.measure(base)) for each in RANGES]
    if settings.data is not None:
        named = [(_on_data(each.quantity), value) for each, value in measured if not isnan(value)]
        return pd.DataFrame(named, columns=["quantity", "value"])
    return pd.DataFrame(
        {
            "quantity": each.quantity,
            "value": value,
            "low": float(each.low),
            "high": float(each.high),
            "inside": bool(each.low - _ROUNDING <= value <= each.high + _ROUNDING),
            "reason": each.reason,
        }
        for each, value in measured
    )


def _on_data(quantity: str) -> str:
    return quantity.replace("SQL prompts", "training prompts").replace("share of sums", "share of suite sums_train")


def require_regime(frame: pd.DataFrame, profile_name: str = "cpu") -> None:
    """Stops a run whose base is outside the regime; profiles that are not in `REQUIRED` are let through.

    Args:
        frame: what `regime` gave.
        profile_name: the profile it was measured on.

    Raises:
        RegimeError: a quantity is outside its range; the message names each, its value and its range.
    """
    if profile_name not in REQUIRED or frame["inside"].all():
        return
    outside = frame[~frame["inside"]]
    lines = [
        f"{row.quantity} is {'not measured' if pd.isna(row.value) else f'{row.value:.3g}'}, "
        f"{row.low:g} to {row.high:.4g} is needed"
        for row in outside.itertuples()
    ]
    raise RegimeError(
        f"the base model is not in the regime ({len(outside)} of {len(frame)} quantities): {'; '.join(lines)}. "
        "Training on it would show nothing about the paper's question: change what makes the base "
        "(settings.stages: WorldConfig, ModelConfig, SftConfig), never the ranges and never a method, and run notebook "
        "02 again"
    )
