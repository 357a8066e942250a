"""One directed effect on the records, judged by the rule that all claims share.

Rule: an effect is directed so that the claim says it is positive, and has a 95 % interval over seeds and
problems (`stats.bootstrap`). Lower bound above 0, or above -tolerance where the claim is "not worse":
supported. Upper bound at or below 0, or below -tolerance: not supported. Otherwise inconclusive. An arm, a
suite or enough samples absent: not run. A trained arm with fewer than three seeds: inconclusive.

Arms that must not be compared raise ValueError (`stats.check_comparable`). Which claims there are is in
`claims`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis.labels import NAMES

Judgement = Literal["supported", "not supported", "inconclusive", "not run"]
MIN_SEEDS = 3
LARGE = 0  # as a k: the largest of LARGE_KS that the judged answers allow
LARGE_KS = (64, 32, 16)


@dataclass(frozen=True, slots=True)
class Quantity:
    """Mean over problems of greedy accuracy, Pass@k or style entropy of a method's final models."""

    method: str
    suite: str
    metric: Literal["greedy", "pass", "styles_nats"] = "pass"
    k: int = 1
    variant: str = "main"

    @property
    def name(self) -> str:
        return NAMES[self.method] + ("" if self.variant == "main" else f" ({self.variant})")

    @property
    def measure(self) -> str:
        passed = "Pass at large k" if self.k == LARGE else f"Pass@{self.k}"
        metric = {"greedy": "greedy", "pass": passed, "styles_nats": "style entropy"}[self.metric]
        return f"{self.suite.replace('_', '-')} {metric}"


@dataclass(frozen=True, slots=True)
class Part:
    """One directed effect: `effect(*means of the quantities)` is positive if the claim holds."""

    label: str
    quantities: tuple[Quantity, ...]
    effect: Callable[..., Any]
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class PartResult:
    """What the records say of one part; `estimate`, `low`, `high` are None where it was not run."""

    label: str
    verdict: Judgement
    unit: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    tolerance: float = 0.0
    per_seed: tuple[tuple[int, float], ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The final rows as problem tables, greedy and sampled, and the train logs; None where there are none."""

    greedy: pd.DataFrame | None
    sampled: pd.DataFrame | None
    train_logs: pd.DataFrame | None
    rng_seed: int = 0
    level: float = 0.95
    arms: dict[tuple[Quantity, int], stats.Arm] = field(default_factory=dict)

    def rows(self, q: Quantity) -> pd.DataFrame | None:
        table = self.greedy if q.metric == "greedy" else self.sampled
        if table is None:
            return None
        found = table[(table["method"] == q.method) & (table["variant"] == q.variant) & (table["suite"] == q.suite)]
        if q.metric == "styles_nats":
            found = found[found["styles_nats"].notna()]
        return None if found.empty else found

    def arm(self, q: Quantity, k: int) -> stats.Arm:
        if (q, k) not in self.arms:
            metric: stats.Metric = "styles_nats" if q.metric == "styles_nats" else "pass"
            self.arms[q, k] = stats.arm(self.rows(q), q.method, q.suite, metric, k, q.variant)
        return self.arms[q, k]


def judge(part: Part, evidence: Evidence) -> PartResult:
    """The module's rule applied to one part, at least one of whose quantities is of a trained method."""
    unit = "nats" if part.quantities[0].metric == "styles_nats" else "share"
    result = PartResult(part.label, "not run", unit, tolerance=part.tolerance)
    rows = {q: evidence.rows(q) for q in part.quantities}
    absent = sorted({f"{q.name}, {q.measure}" for q, found in rows.items() if found is None})
    if absent:
        return replace(result, reason=f"no records of {'; '.join(absent)}")
    judged = min(int(found["n"].min()) for found in rows.values())  # type: ignore[index]
    large = next((k for k in LARGE_KS if k <= judged), LARGE_KS[-1])
    ks = {q: large if q.k == LARGE else q.k for q in part.quantities}
    if max(ks.values()) > judged:
        return replace(result, reason=f"needs {max(ks.values())} judged answers a problem, there are {judged}")
    arms = [evidence.arm(q, ks[q]) for q in part.quantities]
    with np.errstate(divide="ignore", invalid="ignore"):
        got = stats.bootstrap(arms, part.effect, level=evidence.level, rng_seed=evidence.rng_seed)
    if not all(map(isfinite, (got.estimate, got.low, got.high))):
        return replace(result, verdict="inconclusive", reason="the base solves too little to lose a share of it")
    label = part.label.replace("Pass at large k", f"Pass@{large}")
    numbers: dict[str, Any] = dict(estimate=got.estimate, low=got.low, high=got.high, per_seed=got.per_seed)
    result = replace(result, label=label, verdict=rule(got.low, got.high, part.tolerance), **numbers)
    seeds = min(len(a.seeds) for a, q in zip(arms, part.quantities, strict=True) if q.method != "base")
    return with_enough_seeds(result, seeds)


def with_enough_seeds(result: PartResult, seeds: int) -> PartResult:
    """The result, inconclusive where fewer than `MIN_SEEDS` seeds stand behind it."""
    if seeds >= MIN_SEEDS:
        return result
    return replace(result, verdict="inconclusive", reason=f"too few seeds: {seeds}, {MIN_SEEDS} are needed")


def rule(low: float, high: float, tolerance: float = 0.0) -> Judgement:
    """Verdict of an interval.

    >>> rule(-0.01, 0.05), rule(-0.01, 0.05, tolerance=0.02)
    ('inconclusive', 'supported')
    """
    if low > -tolerance:
        return "supported"
    return "not supported" if high < -tolerance or (tolerance == 0 and high <= 0) else "inconclusive"


def above(a: Quantity, b: Quantity, tolerance: float = 0.0) -> Part:
    """a is greater than b, or not worse by more than the tolerance."""
    sign, less = (">", "") if tolerance == 0 else (">=", f" less {100 * tolerance:g} points")
    return Part(f"{a.name} {sign} {b.name}{less}, {a.measure}", (a, b), lambda x, y: x - y, tolerance)


def all_above(
    methods: Sequence[str],
    others: Sequence[str],
    suite: str,
    metric: str = "pass",
    ks: Sequence[int] = (1,),
    tolerance: float = 0.0,
) -> list[Part]:
    """Every one of `methods` above every one of `others`, at each k."""
    return [
        above(Quantity(a, suite, metric, k), Quantity(b, suite, metric, k), tolerance)  # type: ignore[arg-type]
        for a in methods
        for b in others
        for k in ks
    ]


def combine(verdicts: Sequence[Judgement]) -> Judgement:
    """Verdict of a conjunction: a part not supported refutes it, else one not run or inconclusive decides.

    >>> combine(["supported", "inconclusive"])
    'inconclusive'
    """
    return next(v for v in ("not supported", "not run", "inconclusive", "supported") if v in verdicts)
