"""Intervals of effects on means over runs and problems, in closed form: no random number.

An effect is a smooth function of the means of some `Scores`, such as the difference of two arms' Pass@8. Its variance
has a part between base models, or between runs where there is one base, and a part between problems:

    V = V_units + V_problems - V_both,

where `V_both`, the part between units and problems at once, is in both others and would count twice. docs/method.md,
Intervals, has the formulas, their sources, and how often such intervals hold the truth in simulations.

Not here: which numbers are compared (`stats` computes them from the records), and what an interval decides
(`analysis.claims`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtr, stdtrit

_NOTHING = 1e-24
"""A variance so small is one of equal numbers with rounding errors."""
_STEP = 1e-20j
"""An imaginary step gives the slope of an analytic function without a difference, so without cancellation."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One number per problem, for each run of one arm (a method and variant) on one suite.

    Args:
        arm: method and variant.
        suite: scores on one suite are paired by problem.
        seeds: seeds of the runs, the rows of `values_SP`; a base model's is its index.
        problems: problem ids, the columns of `values_SP`.
        values_SP: finite numbers.
        bases: index of each run's base model; () where all have the same.
        strata: each problem's family, whose share of the suite is fixed by design; () where there are none.
        trained: False for base models, each of which serves all runs that started from it.
        settings: what must be equal in scores that are compared: answers drawn, temperature, top_p, max_new_tokens.
    """

    arm: str
    suite: str
    seeds: tuple[int, ...]
    problems: tuple[str, ...]
    values_SP: np.ndarray
    bases: tuple[int, ...] = ()
    strata: tuple[str, ...] = ()
    trained: bool = True
    settings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.seeds), len(self.problems))
        if self.values_SP.shape != shape or 0 in shape:
            raise ValueError(f"{self}: values {self.values_SP.shape}, (seeds, problems) is {shape}; none may be 0")
        if not np.all(np.isfinite(self.values_SP)):
            raise ValueError(f"{self}: values must be finite")
        for name, given, count in (("bases", self.bases, shape[0]), ("strata", self.strata, shape[1])):
            if given and len(given) != count:
                raise ValueError(f"{self}: {len(given)} {name} for {count} {'runs' if name == 'bases' else 'problems'}")
        if not self.bases:
            object.__setattr__(self, "bases", (0,) * shape[0])
        if not self.strata:
            object.__setattr__(self, "strata", ("",) * shape[1])

    def __str__(self) -> str:
        return f"{self.arm} on {self.suite}"

    @property
    def units_UP(self) -> np.ndarray:
        """What varies independently: the mean over the runs of each base model; each run where there is one base."""
        bases = sorted(set(self.bases))
        if len(bases) == 1:
            return self.values_SP
        of_run = np.array(self.bases)
        return np.stack([self.values_SP[of_run == base].mean(axis=0) for base in bases])

    @property
    def mean(self) -> float:
        """The mean over problems and units: every base model counts alike, however many runs started from it."""
        return float(self.units_UP.mean())

    def started_from(self, bases: Iterable[int]) -> Scores:
        """The scores of the runs that started from one of `bases`."""
        wanted = set(bases)
        rows = [i for i, base in enumerate(self.bases) if base in wanted]
        seeds, kept = (tuple(every[i] for i in rows) for every in (self.seeds, self.bases))
        return replace(self, seeds=seeds, bases=kept, values_SP=self.values_SP[rows])


def check_comparable(a: Scores, b: Scores) -> None:
    """Raises ValueError naming what differs: problems, or a setting under which the answers were drawn."""
    only_a, only_b = sorted(set(a.problems) - set(b.problems)), sorted(set(b.problems) - set(a.problems))
    if only_a or only_b:
        raise ValueError(
            f"{a} and {b} cannot be compared, their problems differ: {len(only_a)} only in the first "
            f"{only_a[:3]}, {len(only_b)} only in the second {only_b[:3]}; evaluate both on the same problems"
        )
    names = sorted(set(a.settings) | set(b.settings))
    pairs = {name: (a.settings.get(name), b.settings.get(name)) for name in names}
    differ = "; ".join(f"{name} {x} and {y}" for name, (x, y) in pairs.items() if x != y)
    if differ:
        raise ValueError(f"{a} and {b} cannot be compared, they differ in {differ}; evaluate both alike")


# ---------------------------------------------------------------------------------------------- intervals


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval.

    Args:
        estimate: the effect of the means.
        low, high: its ends.
        standard_error: the square root of the estimate's variance.
        freedom: degrees of freedom of Student's distribution.
        per_seed: the effect of each seed that all the trained arms share.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    freedom: float
    per_seed: tuple[tuple[int, float], ...]

    def p_of(self, value: float = 0.0) -> float:
        """Two-sided probability of an estimate so far from `value`, or farther, if that were the truth.

        Below 0.05 where the 95 % interval leaves the value out.
        """
        away = abs(self.estimate - value)
        if self.standard_error == 0:
            return float(away == 0)
        return 2 * float(stdtr(self.freedom, -away / self.standard_error))

    def columns(self, name: str, low: float = -np.inf, high: float = np.inf, scale: float = 100.0) -> dict[str, float]:
        """The columns `name`, `name_low` and `name_high`, in per cent; the ends cut at `low` and `high`."""
        ends = {f"{name}_low": max(low, scale * self.low), f"{name}_high": min(high, scale * self.high)}
        return {name: scale * self.estimate, **ends}


def mean_of(mean: np.ndarray) -> np.ndarray:
    """The effect of one arm: its mean."""
    return mean


def interval(scores: Sequence[Scores], effect: Callable[..., np.ndarray] = mean_of, *, level: float = 0.95) -> Interval:
    """Interval of `effect(mean of scores[0], mean of scores[1], ...)`.

    Where the arms share two base models or more, bases are the units, only runs from shared ones count, and arms are
    paired by base. Otherwise runs are the units, unpaired. A single run has no spread: such an arm adds none.

    Args:
        scores: those on one suite must be comparable, those of one arm must have the same seeds.
        effect: analytic function of the means, elementwise on arrays (a difference, a ratio).
        level: of the two-sided interval.

    Raises ValueError for scores that must not be compared.

    >>> of = lambda values: Scores("a", "s", (0,), ("p", "q"), np.array([values]))
    >>> interval([of([0.0, 1.0]), of([0.0, 0.5])], np.subtract).estimate
    0.25
    """
    if not scores or not 0 < level < 1:
        raise ValueError(f"{len(scores)} arms, level={level}: need an arm and 0 < level < 1")
    _check_together(scores)
    shared = set.intersection(*(set(one.bases) for one in scores))
    used = [one.started_from(shared) for one in scores] if shared else list(scores)
    means = [one.mean for one in used]
    estimate = float(effect(*means))
    variance, freedom = _variance(_contrasts(used, _slopes(effect, means), paired=len(shared) > 1), used)
    error = float(np.sqrt(variance))
    half = error * quantile(freedom, 0.5 + level / 2) if error > 0 else 0.0
    return Interval(estimate, estimate - half, estimate + half, error, freedom, _per_seed(used, effect))


def quantile(freedom: float, share: float) -> float:
    """Student's quantile; the normal one where the degrees of freedom are infinite.

    >>> round(quantile(5, 0.975), 3), round(quantile(np.inf, 0.975), 3)
    (2.571, 1.96)
    """
    return float(stdtrit(freedom, share) if np.isfinite(freedom) else ndtri(share))


def _check_together(scores: Sequence[Scores]) -> None:
    suites, arms = ({getattr(one, name): one for one in reversed(scores)} for name in ("suite", "arm"))
    for one in scores:
        check_comparable(suites[one.suite], one)
        other = arms[one.arm]
        if one.seeds != other.seeds:
            raise ValueError(f"{one}: seeds {one.seeds}, {other}: {other.seeds}; evaluate every seed on all suites")


def _slopes(effect: Callable[..., np.ndarray], means: Sequence[float]) -> list[float]:
    """Partial derivatives of the effect at the means."""
    steps = _STEP * np.eye(len(means))
    return [float(np.imag(effect(*(np.array(means) + step))) / _STEP.imag) for step in steps]


def _contrasts(scores: Sequence[Scores], slopes: Sequence[float], *, paired: bool) -> list[dict[str, np.ndarray]]:
    """For each group of arms that have their units in common: suite -> linearised effect of units x problems."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for one, slope in zip(scores, slopes, strict=True):
        of_suite = groups.setdefault("" if paired else one.arm, {})
        order = np.argsort(np.array(one.problems))  # pairs by problem, whatever order they came in
        of_suite[one.suite] = of_suite.get(one.suite, 0.0) + slope * one.units_UP[:, order]
    return list(groups.values())


class _Part(NamedTuple):
    variance: float
    freedom: int


def _variance(groups: Sequence[Mapping[str, np.ndarray]], scores: Sequence[Scores]) -> tuple[float, float]:
    """Variance of the linearised effect and its degrees of freedom by Satterthwaite."""
    between_units: list[_Part] = []
    between_problems: list[_Part] = []
    both = 0.0
    for group in groups:
        count = len(next(iter(group.values())))
        if count > 1:
            of_unit = sum(x.mean(axis=1) for x in group.values())
            between_units.append(_Part(float(np.var(of_unit, ddof=1)) / count, count - 1))
    for suite, one in {one.suite: one for one in scores}.items():
        strata = np.array(one.strata)[np.argsort(np.array(one.problems))]
        inside = [group[suite] for group in groups if suite in group]
        of_problem = sum(x.mean(axis=0) for x in inside)
        size = len(strata)
        squares, freedom = _within(of_problem[None], strata)
        if freedom:
            between_problems.append(_Part(squares / freedom / size, freedom))
        for x in inside:
            if len(x) > 1 and freedom:
                squares, _ = _within(x - x.mean(axis=0), strata)
                both += squares / freedom / (len(x) - 1) / len(x) / size
    units, problems = (sum((part.variance for part in parts), 0.0) for parts in (between_units, between_problems))
    total = max(units + problems - both, units, problems)
    if total <= _NOTHING:
        return 0.0, np.inf
    return total, total**2 / sum(part.variance**2 / part.freedom for part in (*between_units, *between_problems))


def _within(values_UP: np.ndarray, strata: np.ndarray) -> tuple[float, int]:
    """Sum of squares about each stratum's mean, and its degrees of freedom in one row; strata of one problem each
    are as good as none."""
    _, codes = np.unique(strata, return_inverse=True)
    counts = np.bincount(codes)
    if len(counts) == len(codes):
        codes, counts = np.zeros_like(codes), np.array([len(codes)])
    means_US = np.stack([np.bincount(codes, row) for row in values_UP]) / counts
    return float(np.sum((values_UP - means_US[:, codes]) ** 2)), len(codes) - len(counts)


def _per_seed(scores: Sequence[Scores], effect: Callable[..., np.ndarray]) -> tuple[tuple[int, float], ...]:
    """The effect at each seed that every trained arm has, a base model in the place of its runs'."""
    trained = [one for one in scores if one.trained] or list(scores)
    base_of = dict(zip(trained[0].seeds, trained[0].bases, strict=True))
    shared = set.intersection(*(set(one.seeds) for one in trained))
    found = []
    for seed in sorted(shared):
        units = [(one, *((one.seeds, seed) if one.trained else (one.bases, base_of[seed]))) for one in scores]
        if all(unit in of for _, of, unit in units):
            means = [one.values_SP[of.index(unit)].mean() for one, of, unit in units]
            found.append((seed, float(effect(*means))))
    return tuple(found)


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's adjustment (1979) of the p of a family: rejecting those below a level keeps the chance of even one false
    rejection below that level, however the comparisons depend on each other.

    Sorted ascending, p_(i) becomes the largest of (m - j + 1) p_(j) over j <= i, at most 1. NaN stands for a
    comparison that was not made: it stays NaN and does not count.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, dtype=float)
    made = np.flatnonzero(~np.isnan(values))
    if np.any((values[made] < 0) | (values[made] > 1)):
        raise ValueError(f"holm: a probability lies in [0, 1], got {values.tolist()}")
    order = made[np.argsort(values[made], kind="stable")]
    out = values.copy()
    out[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(order), 0, -1) * values[order]))
    return out
