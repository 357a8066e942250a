"""Intervals over seeds and problems: a hierarchical bootstrap of an effect between paired arms. Arrays only.

An arm is a matrix, seeds x problems, of one number a problem (such as its unbiased pass@8). The training seed
is the top-level unit. A draw resamples the problems of each suite, the same ones for every arm, which pairs
the arms, and the seeds of each arm. The base model, one row that no seed changes, has only its problems
resampled.

1. The interval is the estimate -+ the draws' standard deviation times Student's quantile, not the draws'
   own quantiles: three seeds cannot show their tails. A draw's departure due to seeds is multiplied by
   sqrt(S / (S-1)), because resampled means of S seeds vary by (S-1)/S too little. The degrees of freedom
   are Welch and Satterthwaite's, over problems (P-1) and each arm's seeds (S-1). Simulated with 3 seeds, 64
   problems and a spread over seeds of 0, 2 and 6 points, 600 times each, the 95 % interval covered the
   truth in 98, 97 and 91 %; a plain percentile one in 96, 93 and 83 %.
2. A single seed has no spread to resample: its interval is one over problems only. `claims` asks for three.
3. `p` is of the same Student's distribution as the interval, so it is below 0.05 where the 95 % interval leaves 0 out.
   `holm` adjusts the p of a family of comparisons; which comparisons are a family is the caller's to say.

It knows nothing of records, methods' meaning or verdicts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtr, stdtrit


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One number a problem, for each seed of one method on one suite.

    Args:
        name: method and variant; arms of one name have their seeds resampled together.
        suite: arms of one suite have their problems resampled together.
        seeds: training seeds, the rows of `values_SP`.
        problems: problem ids, the columns of `values_SP`.
        values_SP: finite numbers.
        settings: what must be equal in arms that are compared: answers drawn, temperature, top_p,
        max_new_tokens.
    """

    name: str
    suite: str
    seeds: tuple[int, ...]
    problems: tuple[str, ...]
    values_SP: np.ndarray
    settings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.seeds), len(self.problems))
        if self.values_SP.shape != shape or 0 in shape:
            raise ValueError(f"{self}: values {self.values_SP.shape}, (seeds, problems) is {shape}; none may be 0")
        if not np.all(np.isfinite(self.values_SP)):
            raise ValueError(f"{self}: values must be finite")

    def __str__(self) -> str:
        return f"{self.name} on {self.suite}"


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its interval; `per_seed` has the effect of each seed that all the arms share.

    `p` is the two-sided probability of an estimate so far from 0, or farther, if the truth were 0.
    """

    estimate: float
    low: float
    high: float
    per_seed: tuple[tuple[int, float], ...]
    p: float


def check_comparable(a: Arm, b: Arm) -> None:
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


def bootstrap(
    arms: Sequence[Arm],
    effect: Callable[..., np.ndarray],
    *,
    draws: int = 2000,
    level: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """Interval of `effect(mean of arms[0], mean of arms[1], ...)` by the hierarchical bootstrap of the
    module's text.

    Args:
        arms: those of one suite must be comparable, those of one name must have the same seeds.
        effect: function of the arms' means, elementwise on arrays, smooth (a difference, a ratio).
        draws: resamples.
        level: of the two-sided interval.
        rng_seed: the same seed gives the same interval.

    Raises ValueError for arms that must not be compared.
    """
    if not arms or draws < 1 or not 0 < level < 1:
        raise ValueError(f"{len(arms)} arms, draws={draws}, level={level}: need an arm, a draw, 0 < level < 1")
    suites = {arm.suite: arm for arm in reversed(arms)}
    names = {arm.name: arm for arm in reversed(arms)}
    for arm in arms:
        check_comparable(suites[arm.suite], arm)
        other = names[arm.name]
        if arm.seeds != other.seeds:
            raise ValueError(f"{arm}: seeds {arm.seeds}, {other}: {other.seeds}; evaluate every seed on all suites")

    sizes = (*(len(suites[suite].problems) for suite in sorted(suites)), *(len(names[n].seeds) for n in sorted(names)))
    weights = iter(_weights(sizes, draws, rng_seed))
    problem_weights, seed_weights = ({key: next(weights) for key in sorted(keys)} for keys in (suites, names))
    full, over_problems, over_both = [], [], []
    for arm in arms:
        order = np.argsort(np.array(arm.problems))  # pairs the arms by problem, whatever order they came in
        means_DS = problem_weights[arm.suite] @ arm.values_SP[:, order].T
        count = len(arm.seeds)
        middle = means_DS.mean(axis=1)
        shift = (seed_weights[arm.name] * means_DS).sum(axis=1) - middle
        full.append(arm.values_SP.mean())
        over_problems.append(middle)
        over_both.append(middle + shift * (np.sqrt(count / (count - 1)) if count > 1 else 0.0))
    estimate = float(effect(*full))
    problem_draws = np.asarray(effect(*over_problems), dtype=float)

    variances = [(float(np.var(problem_draws)), min(len(arm.problems) for arm in arms) - 1)]
    for name, one in names.items():
        if len(one.seeds) > 1:
            of_seed = []  # the effect with this name's arms at one seed, the others at their mean
            for i in range(len(one.seeds)):
                pairs = zip(arms, full, strict=True)
                of_seed.append(float(effect(*(a.values_SP[i].mean() if a.name == name else m for a, m in pairs))))
            variances.append((float(np.var(of_seed, ddof=1)) / len(of_seed), len(of_seed) - 1))
    total = sum(v for v, _ in variances)
    spread = sum(v * v / count for v, count in variances if count > 0)
    freedom = total**2 / spread if spread > 1e-300 else None  # None: the normal distribution
    deviation = float(np.std(np.asarray(effect(*over_both), dtype=float)))
    share = 0.5 + level / 2
    half = float((stdtrit(freedom, share) if freedom else ndtri(share)) * deviation)
    if deviation > 0:
        beyond = -abs(estimate) / deviation
        p = 2 * float(stdtr(freedom, beyond) if freedom else ndtr(beyond))
    else:
        p = float(estimate == 0)
    return Interval(estimate, estimate - half, estimate + half, _per_seed(arms, effect), p)


@functools.lru_cache(maxsize=16)  # figures and tables ask for the same draws hundreds of times
def _weights(sizes: tuple[int, ...], draws: int, rng_seed: int) -> list[np.ndarray]:
    """For each number of units, how often each is in each draw with replacement, as a share: draws x units."""
    rng, weights = np.random.default_rng(rng_seed), []
    for size in sizes:
        picks = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
        weights.append(np.bincount(picks.ravel(), minlength=draws * size).reshape(draws, size) / size)
    return weights


def _per_seed(arms: Sequence[Arm], effect: Callable[..., np.ndarray]) -> tuple[tuple[int, float], ...]:
    """The effect at each seed that every trained arm has; the base (seed -1 only) stands for all seeds."""
    trained = [set(arm.seeds) for arm in arms if arm.seeds != (-1,)]
    shared = sorted(set.intersection(*trained)) if trained else [-1]
    rows = [[arm.seeds.index(seed) if seed in arm.seeds else 0 for arm in arms] for seed in shared]
    means = [[arm.values_SP[i].mean() for arm, i in zip(arms, row, strict=True)] for row in rows]
    return tuple((seed, float(effect(*row))) for seed, row in zip(shared, means, strict=True))


def hierarchical_bootstrap(
    values_SP: ArrayLike,
    reference_SP: ArrayLike | None = None,
    weights_P: ArrayLike | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """Interval of the mean of `values_SP`, or of its mean minus that of `reference_SP`, paired by column.

    Args:
        values_SP: seeds x problems, or problems only (one row: problems alone are resampled).
        reference_SP: the other arm, its own number of seeds (one row for the base model), the same problems.
        weights_P: weights of the problems; with the base's pass@k as weights, the weighted mean of the tuned
            pass@k is keep, with one minus it, explore.

    >>> hierarchical_bootstrap([[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.5]]).estimate
    0.25
    """
    given = [np.atleast_2d(np.asarray(x, dtype=float)) for x in (values_SP, reference_SP) if x is not None]
    problems = tuple(f"{i:09d}" for i in range(given[0].shape[1]))
    if any(x.ndim != 2 or x.shape[1] != len(problems) for x in given):
        raise ValueError(f"arms of shapes {[x.shape for x in given]}: (seeds, problems), the problems the same")
    weights = np.ones(len(problems)) if weights_P is None else np.asarray(weights_P, dtype=float)
    weights = weights.reshape(1, -1)
    if weights.shape[1] != len(problems) or np.any(weights < 0) or not weights.sum() > 0:
        raise ValueError(f"{weights.size} weights for {len(problems)} problems; none may be negative, not all 0")
    arms = [Arm("weights", "suite", (-1,), problems, weights)]
    for name, x in zip(("values", "reference"), given, strict=False):
        seeds = tuple(range(len(x))) if len(x) > 1 else (-1,)
        arms.append(Arm(name, "suite", seeds, problems, x * weights))
    return bootstrap(arms, lambda w, a, b=0.0: (a - b) / w, draws=draws, level=level, rng_seed=rng_seed)


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
