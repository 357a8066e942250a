"""Numbers from the records: unbiased pass@k, keep and explore, styles, entropy; and their intervals.

Input is the frame of `records.parquet`, one row per `EvalRecord`, or plain arrays; output is a tidy frame or a number.
The functions on a frame use every step that it holds: pass `final(records)` for the end of training. Answers that were
not judged (`infra_error`) are left out of n, never counted as wrong.

Intervals are those of a hierarchical bootstrap. The training seed is the top-level unit: a draw resamples the problems
of each suite, the same ones for every arm, which pairs the arms, and the seeds of each arm. The base model, one row
that no seed changes, has only its problems resampled; so has an arm of a single seed. docs/method.md says how few seeds
widen the interval, and how often it covers the truth.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import comb, log2
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from dphlib.types import STYLE_COUNTS

Metric = Literal["greedy", "pass", "styles_nats"]

RUN = ["method", "variant", "seed", "step", "suite"]
PROBLEM = ["method", "variant", "seed", "step", "suite", "subset", "problem_id"]
SETTINGS = ["temperature", "top_p", "max_new_tokens"]
STYLES = list(STYLE_COUNTS[:-1])  # `other` is no style
NO_ROWS = "no records: the method, the suite or the kind of answer (greedy, sampled) is not in the frame"


@functools.cache
def _pass_at_k(n: int, c: int, k: int) -> float:
    if c < 0 or n < 0 or c > n:
        raise ValueError(f"pass@k: {c} correct of {n} answers; 0 <= c <= n is needed")
    if k < 1 or k > n:
        raise ValueError(f"pass@k: k={k} with n={n} answers; 1 <= k <= n is needed: draw more or lower k")
    return (comb(n, k) - comb(n - c, k)) / comb(n, k)  # integers until the one, correctly rounded, division


def pass_at_k(n: ArrayLike, c: ArrayLike, k: ArrayLike) -> float | np.ndarray:
    """Probability that one of k answers at least, drawn without replacement from n of which c are correct, is correct.

    1 - C(n-c, k) / C(n, k), the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), equal to the exact
    fraction rounded once. Scalars give a float, arrays are broadcast. Raises ValueError for k > n, k < 1, c >
    n, a negative or a fractional number.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    arrays = [np.asarray(value) for value in (n, c, k)]
    for name, array in zip("nck", arrays, strict=True):
        if array.dtype.kind not in "iuf" or not np.all(np.isfinite(array) & (array == np.floor(array))):
            raise ValueError(f"pass@k: {name} must be whole numbers, got {array!r}")
    triples = np.stack(np.broadcast_arrays(*arrays), axis=-1).astype(np.int64)
    unique, where = np.unique(triples.reshape(-1, 3), axis=0, return_inverse=True)
    values = np.array([_pass_at_k(*row) for row in unique.tolist()], dtype=float)
    result = values[where.reshape(-1)].reshape(triples.shape[:-1])
    return float(result) if result.ndim == 0 else result


# ---------------------------------------------------------------------------------------------- selection


def sampled(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of sampled answers."""
    return records[records["temperature"] > 0]


def greedy(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of greedy answers."""
    return records[records["temperature"] == 0]


def final(records: pd.DataFrame) -> pd.DataFrame:
    """The rows at each run's last step; method, variant and seed make a run."""
    last = records.groupby(["method", "variant", "seed"], observed=True)["step"].transform("max")
    return records[records["step"] == last]


def once(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, each problem of a run there once: pass it `sampled(...)` or `greedy(...)`.

    Raises ValueError for no rows, and for a problem that is there twice.
    """
    if rows.empty:
        raise ValueError(NO_ROWS)
    if (twice := rows.duplicated(PROBLEM)).any():
        key = rows.loc[twice, PROBLEM].iloc[0].to_dict()
        raise ValueError(f"{int(twice.sum())} problems stand twice, such as {key}: join each run once, drawn one way")
    return rows


def styles_nats(rows: pd.DataFrame) -> np.ndarray:
    """Entropy in nats of the styles of each row's answers, `other` left out, 0 where none is left; NaN where unknown.

    A plug-in estimate, so compare at equal `drawn`.
    """
    known = rows[list(STYLE_COUNTS)].to_numpy().any(axis=1)
    return np.where(known, _entropy(rows[STYLES].to_numpy()), np.nan)


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of the counts along the last axis; 0 where there are none."""
    share = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1) + 0.0


def _name(row: pd.Series) -> str:
    return f"{row['method']} ({row['variant']}) on {row['suite']}"


def _pass_column(table: pd.DataFrame, k: int) -> np.ndarray:
    if len(short := table[table["n"] < k]):
        row = short.iloc[0]
        raise ValueError(
            f"pass@{k}: {_name(row)}, seed {row['seed']}, step {row['step']}, {row['problem_id']}: "
            f"n={row['n']} judged, {row['drawn']} drawn: lower k, draw more, or take final(records)"
        )
    return np.asarray(pass_at_k(table["n"].to_numpy(), table["correct"].to_numpy(), k))


def _with_pass(table: pd.DataFrame, k: int) -> pd.DataFrame:
    return table.assign(pass_at_k=_pass_column(table, k), k=k)


# ---------------------------------------------------------------------------------------------- accuracies


def pass_curve(records: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Mean unbiased pass@k of each run and suite: `RUN`, k, pass_at_k, problems."""
    rows = once(sampled(records))
    parts = [_with_pass(rows, int(k)).groupby([*RUN, "k"], observed=True)["pass_at_k"] for k in ks]
    return pd.concat([part.agg(pass_at_k="mean", problems="size") for part in parts]).reset_index()


def greedy_accuracy(records: pd.DataFrame) -> pd.DataFrame:
    """Share of problems whose greedy answer is correct: columns of `RUN`, greedy, problems."""
    groups = _with_pass(once(greedy(records)), 1).groupby(RUN, observed=True)["pass_at_k"]
    return groups.agg(greedy="mean", problems="size").reset_index()


def auc_at_k(records: pd.DataFrame, k: int) -> pd.DataFrame:
    """Area under pass@k over log2 k from 1 to k, divided by the width, for each run and suite: `RUN`, k, auc_at_k.

    By the trapezoid rule at 1, 2, 4, ... and k, so it is the mean height of the curve.
    """
    if k < 2:
        raise ValueError(f"AUC@{k}: k must be 2 or more")
    ks = sorted({2**i for i in range(int(log2(k)) + 1)} | {k})
    wide = pass_curve(records, ks).pivot(index=RUN, columns="k", values="pass_at_k")
    areas = np.trapezoid(wide[ks].to_numpy(), np.log2(ks), axis=1) / log2(k)
    return pd.DataFrame({"k": k, "auc_at_k": areas}, wide.index).reset_index()


# ---------------------------------------------------------------------------------------------- behaviour


def has_styles(records: pd.DataFrame) -> bool:
    """Whether the styles of answers are known; those to data sets have none."""
    return bool(records[list(STYLE_COUNTS)].to_numpy().any())


def style_shares(records: pd.DataFrame) -> pd.DataFrame:
    """Share of each style among the sampled answers: `RUN` and `STYLE_COUNTS`; NaN where styles are unknown."""
    counts = _sums(sampled(records), list(STYLE_COUNTS))
    return counts.div(counts.sum(axis=1), axis=0).reset_index()


def style_entropy(records: pd.DataFrame) -> pd.DataFrame:
    """Entropy in nats of the styles of sampled answers, `other` left out (it is no style; see
    `style_shares`).

    `per_problem_nats` is the mean over problems of the entropy within a problem's answers (`styles_nats`):
    what is left to draw from on one prompt. `pooled_nats` is that of all answers of the run together; it
    stays high when each kind of problem has its own one style. `styles` counts those with a share of 1 % or
    more. All three are NaN where styles are unknown.
    """
    rows = once(sampled(records))
    within = rows.assign(nats=styles_nats(rows)).groupby(RUN, observed=True)["nats"].mean()
    counts = _sums(rows, STYLES)
    share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    pooled = within.where(within.isna(), _entropy(counts.to_numpy()))
    used = (share >= 0.01).sum(axis=1).where(within.notna())
    return pd.DataFrame({"per_problem_nats": within, "pooled_nats": pooled, "styles": used}).reset_index()


def answer_statistics(records: pd.DataFrame) -> pd.DataFrame:
    """Of each run's sampled answers: columns of `RUN` and

    - entropy_nats: policy's entropy per token, NaN where unknown (vLLM);
    - kl_to_base_nats: estimate of KL(policy || base) per token, sum of `log_ratio` / sum of `compared_tokens`, NaN
      where no answer was compared. Unbiased for the sum per sequence if the answers were drawn at temperature 1 and
      top_p 1, otherwise the mean log-ratio under the distribution they were drawn from;
    - tokens: mean length; truncated: share that the token limit ended; answers: their number.
    """
    rows = sampled(records)
    total = _sums(rows, ["entropy", "log_ratio", "compared_tokens", "tokens", "truncated", "drawn"]).astype(float)
    unknown = rows["entropy"].isna().groupby([rows[name] for name in RUN], observed=True).any()
    out = {
        "entropy_nats": total["entropy"].where(~unknown) / total["tokens"].where(total["tokens"] > 0),
        "kl_to_base_nats": total["log_ratio"] / total["compared_tokens"].where(total["compared_tokens"] > 0),
        "tokens": total["tokens"] / total["drawn"],
        "truncated": total["truncated"] / total["drawn"],
        "answers": total["drawn"].astype(int),
    }
    return pd.DataFrame(out).reset_index()


def truncation_rate(records: pd.DataFrame) -> pd.DataFrame:
    """Share of answers, sampled and greedy, that the token limit ended: `RUN`, truncated, answers."""
    total = _sums(records, ["truncated", "drawn"])
    return pd.DataFrame({"truncated": total["truncated"] / total["drawn"], "answers": total["drawn"]}).reset_index()


def distinct_correct(records: pd.DataFrame) -> pd.DataFrame:
    """Mean number of different correct answers among each problem's sampled ones: `RUN`, distinct_correct, drawn.

    The number grows with the answers, so all problems of a run have as many, or it raises ValueError.
    """
    groups = once(sampled(records)).groupby(RUN, observed=True)
    drawn = groups["drawn"].agg(["min", "max"])
    if len(differ := drawn[drawn["min"] < drawn["max"]]):
        run, (least, most) = dict(zip(RUN, differ.index[0], strict=True)), differ.iloc[0]
        raise ValueError(f"{run}: problems were answered {least} to {most} times; compare those answered alike")
    return pd.DataFrame({"distinct_correct": groups["distinct"].mean(), "drawn": drawn["min"]}).reset_index()


def _sums(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    if rows.empty:
        raise ValueError(NO_ROWS)
    return rows.groupby(RUN, observed=True)[columns].sum()


# ---------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One number per problem, for each seed of one arm (a method and variant) on one suite.

    Args:
        arm: method and variant; scores of one arm have their seeds resampled together.
        suite: scores on one suite have their problems resampled together.
        seeds: training seeds, the rows of `values_SP`.
        problems: problem ids, the columns of `values_SP`.
        values_SP: finite numbers.
        settings: what must be equal in scores that are compared: answers drawn, temperature, top_p, max_new_tokens.
    """

    arm: str
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
        return f"{self.arm} on {self.suite}"


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


class FinalScores:
    """The scores of each arm on each suite at the end of training, each computed once.

    Metrics: `greedy` accuracy, `pass` (unbiased pass@k), and `styles_nats` (the function).
    """

    def __init__(self, records: pd.DataFrame) -> None:
        rows = final(records)
        self._tables: dict[tuple[str, ...], pd.DataFrame] = {}
        for kind, part in (("greedy", greedy(rows)), ("sampled", sampled(rows))):
            if len(part):
                groups = once(part).groupby(["method", "variant", "suite"], observed=True)
                self._tables |= {(kind, *map(str, key)): table for key, table in groups}
        self._scores: dict[tuple[str, str, str, int, str, str], Scores | None] = {}

    def _table(self, method: str, suite: str, metric: Metric, variant: str) -> pd.DataFrame | None:
        table = self._tables.get(("greedy" if metric == "greedy" else "sampled", method, variant, suite))
        if table is None or (metric == "styles_nats" and not has_styles(table)):
            return None
        return table

    def answers(self, method: str, suite: str, metric: Metric = "pass", variant: str = "main") -> int | None:
        """The fewest judged answers that one of its problems has; None where the arm has no such scores."""
        table = self._table(method, suite, metric, variant)
        return None if table is None else int(table["n"].min())

    def subsets(self, suite: str) -> set[str]:
        """Names of the suite's subsets in the records."""
        return {name for key, table in self._tables.items() if key[3] == suite for name in table["subset"]}

    def get(
        self, method: str, suite: str, metric: Metric = "pass", k: int = 1, variant: str = "main", subset: str = ""
    ) -> Scores | None:
        """An arm's scores on a suite, or on one of its subsets; None where the records have none.

        Raises ValueError where its seeds differ in step, problems or settings, and for k > n.
        """
        key = (method, suite, metric, k, variant, subset)
        if key not in self._scores:
            table = self._table(method, suite, metric, variant)
            if table is not None and subset:
                table = table[table["subset"] == subset].assign(suite=f"{suite}, {subset}")
            self._scores[key] = None if table is None or table.empty else _scores(table, metric, k)
        return self._scores[key]

    def of(self, method: str, suite: str, metric: Metric = "pass", k: int = 1, variant: str = "main") -> Scores:
        """As `get`, but ValueError where the records have none."""
        if (found := self.get(method, suite, metric, k, variant)) is None:
            have = (f"{m} ({v}) on {s}" for kind, m, v, s in self._tables if (kind == "greedy") == (metric == "greedy"))
            raise ValueError(f"no records of {method} ({variant}) on {suite}; there are: {', '.join(have)}")
        return found


def _scores(rows: pd.DataFrame, metric: Metric, k: int) -> Scores:
    first = rows.iloc[0]
    name, arm = _name(first), f"{first['method']} ({first['variant']})"
    steps = sorted(set(rows["step"].tolist()))
    if len(steps) > 1:
        raise ValueError(f"{name}: steps {steps}; take final(records), of seeds that were trained equally long")
    order = np.lexsort((rows["problem_id"].to_numpy().astype(str), rows["seed"].to_numpy()))
    value_N = (styles_nats(rows) if metric == "styles_nats" else _pass_column(rows, k))[order]
    # Arrays: figures and tables ask for a thousand scores.
    columns = {name: rows[name].to_numpy()[order] for name in ("seed", "problem_id", "drawn", *SETTINGS)}
    starts = np.flatnonzero(np.diff(columns["seed"], prepend=columns["seed"][0] - 1)).tolist()
    of_seed: list[Scores] = []
    for start, end in pairwise([*starts, len(rows)]):
        seed = int(columns["seed"][start])
        settings = {}
        for setting in ("drawn", *SETTINGS):
            values = sorted(set(columns[setting][start:end].tolist()))
            if len(values) > 1:
                raise ValueError(f"{name}, seed {seed}: problems differ in {setting}: {values}")
            settings[setting] = float(values[0])
        ids = tuple(columns["problem_id"][start:end])
        of_seed.append(Scores(arm, str(first["suite"]), (seed,), ids, value_N[None, start:end], settings))
        check_comparable(of_seed[0], of_seed[-1])
    seeds = tuple(one.seeds[0] for one in of_seed)
    return replace(of_seed[0], seeds=seeds, values_SP=np.concatenate([one.values_SP for one in of_seed]))


# ---------------------------------------------------------------------------------------------- intervals


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

    def columns(self, name: str, low: float = -np.inf, high: float = np.inf, scale: float = 100.0) -> dict[str, float]:
        """The columns `name`, `name_low` and `name_high`, in per cent; the ends cut at `low` and `high`."""
        ends = {f"{name}_low": max(low, scale * self.low), f"{name}_high": min(high, scale * self.high)}
        return {name: scale * self.estimate, **ends}


def bootstrap(
    scores: Sequence[Scores],
    effect: Callable[..., np.ndarray],
    *,
    draws: int = 2000,
    level: float = 0.95,
    rng_seed: int = 0,
) -> Interval:
    """Interval of `effect(mean of scores[0], mean of scores[1], ...)` by the hierarchical bootstrap.

    Args:
        scores: those on one suite must be comparable, those of one arm must have the same seeds.
        effect: function of the means, elementwise on arrays, smooth (a difference, a ratio).
        draws: resamples.
        level: of the two-sided interval.
        rng_seed: the same seed gives the same interval.

    Raises ValueError for scores that must not be compared.
    """
    if not scores or draws < 1 or not 0 < level < 1:
        raise ValueError(f"{len(scores)} arms, draws={draws}, level={level}: need an arm, a draw, 0 < level < 1")
    suites = {one.suite: one for one in reversed(scores)}
    arms = {one.arm: one for one in reversed(scores)}
    for one in scores:
        check_comparable(suites[one.suite], one)
        other = arms[one.arm]
        if one.seeds != other.seeds:
            raise ValueError(f"{one}: seeds {one.seeds}, {other}: {other.seeds}; evaluate every seed on all suites")

    sizes = [len(suites[suite].problems) for suite in sorted(suites)] + [len(arms[arm].seeds) for arm in sorted(arms)]
    weights = iter(_weights(tuple(sizes), draws, rng_seed))
    problem_weights, seed_weights = ({key: next(weights) for key in sorted(keys)} for keys in (suites, arms))
    full, over_problems, over_both = [], [], []
    for one in scores:
        order = np.argsort(np.array(one.problems))  # pairs by problem, whatever order they came in
        means_DS = problem_weights[one.suite] @ one.values_SP[:, order].T
        count = len(one.seeds)
        middle = means_DS.mean(axis=1)
        shift = (seed_weights[one.arm] * means_DS).sum(axis=1) - middle
        full.append(one.values_SP.mean())
        over_problems.append(middle)
        over_both.append(middle + shift * (np.sqrt(count / (count - 1)) if count > 1 else 0.0))
    estimate = float(effect(*full))
    problem_draws = np.asarray(effect(*over_problems), dtype=float)
    freedom = _degrees_of_freedom(scores, effect, full, float(np.var(problem_draws)))
    deviation = float(np.std(np.asarray(effect(*over_both), dtype=float)))
    share = 0.5 + level / 2
    half = float((stdtrit(freedom, share) if freedom else ndtri(share)) * deviation)
    if deviation > 0:
        beyond = -abs(estimate) / deviation
        p = 2 * float(stdtr(freedom, beyond) if freedom else ndtr(beyond))
    else:
        p = float(estimate == 0)
    return Interval(estimate, estimate - half, estimate + half, _per_seed(scores, effect), p)


def _degrees_of_freedom(
    scores: Sequence[Scores], effect: Callable[..., np.ndarray], means: Sequence[float], over_problems: float
) -> float | None:
    """Welch and Satterthwaite's, from the effect's variance over problems and over each arm's seeds; None: infinite."""
    variances = [(over_problems, min(len(one.problems) for one in scores) - 1)]
    for arm, seeds in {one.arm: one.seeds for one in reversed(scores)}.items():
        if len(seeds) > 1:
            of_seed = []  # the effect with this arm at one seed, the others at their mean
            for i in range(len(seeds)):
                pairs = zip(scores, means, strict=True)
                of_seed.append(float(effect(*(one.values_SP[i].mean() if one.arm == arm else m for one, m in pairs))))
            variances.append((float(np.var(of_seed, ddof=1)) / len(of_seed), len(of_seed) - 1))
    total = sum(v for v, _ in variances)
    spread = sum(v * v / count for v, count in variances if count > 0)
    return total**2 / spread if spread > 1e-300 else None


@functools.lru_cache(maxsize=16)  # figures and tables ask for the same draws hundreds of times
def _weights(sizes: tuple[int, ...], draws: int, rng_seed: int) -> list[np.ndarray]:
    """For each number of units, how often each is in each draw with replacement, as a share: draws x units."""
    rng, weights = np.random.default_rng(rng_seed), []
    for size in sizes:
        picks = rng.integers(size, size=(draws, size)) + size * np.arange(draws)[:, None]
        weights.append(np.bincount(picks.ravel(), minlength=draws * size).reshape(draws, size) / size)
    return weights


def _per_seed(scores: Sequence[Scores], effect: Callable[..., np.ndarray]) -> tuple[tuple[int, float], ...]:
    """The effect at each seed that every trained arm has; the base (seed -1 only) serves for all seeds."""
    trained = [set(one.seeds) for one in scores if one.seeds != (-1,)]
    shared = sorted(set.intersection(*trained)) if trained else [-1]
    rows = [[one.seeds.index(seed) if seed in one.seeds else 0 for one in scores] for seed in shared]
    means = [[one.values_SP[i].mean() for one, i in zip(scores, row, strict=True)] for row in rows]
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
        weights_P: weights of the problems.

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
    scores = [Scores("weights", "suite", (-1,), problems, weights)]
    for name, x in zip(("values", "reference"), given, strict=False):
        seeds = tuple(range(len(x))) if len(x) > 1 else (-1,)
        scores.append(Scores(name, "suite", seeds, problems, x * weights))
    return bootstrap(scores, lambda w, a, b=0.0: (a - b) / w, draws=draws, level=level, rng_seed=rng_seed)


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


# ---------------------------------------------------------------------------------------------- keep and explore


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What a model kept of the problems that the base solves, and what it newly solved; see `keep_explore`.

    Args:
        solved_P: the base's pass@k of each problem.
        kept_SP, gained_SP: probability that both solve a problem, and that only the model does.
        shares_SP: both as shares of `solved_P` and of `1 - solved_P`.
    """

    solved_P: np.ndarray
    kept_SP: np.ndarray
    gained_SP: np.ndarray
    shares_SP: tuple[np.ndarray, np.ndarray]

    @property
    def preserved(self) -> float:
        """Expected number of problems that both solve, mean over seeds."""
        return float(self.kept_SP.mean(axis=0).sum())

    @property
    def lost(self) -> float:
        """Of problems that only the base solves."""
        return float(self.solved_P.sum()) - self.preserved

    @property
    def gained(self) -> float:
        """Of problems that only the model solves."""
        return float(self.gained_SP.mean(axis=0).sum())

    def keep(self) -> Interval | None:
        """The share of what the base solves that is preserved, None where it solves nothing."""
        return self._interval(self.shares_SP[0], self.solved_P)

    def explore(self) -> Interval | None:
        """The share of what the base does not solve that is gained, None where it solves everything."""
        return self._interval(self.shares_SP[1], 1 - self.solved_P)

    @staticmethod
    def _interval(share_SP: np.ndarray, weights_P: np.ndarray) -> Interval | None:
        if not weights_P.sum() > 0:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold no problem with a weight
            return hierarchical_bootstrap(share_SP, weights_P=weights_P)


def keep_explore(scores: FinalScores, method: str, suite: str, k: int) -> Split:
    """What a method kept of the base's problems and newly solved, by the expectation over k answers of both models.

    b and t are a problem's unbiased pass@k of the base and of the tuned model. Their answers are independent, so b*t is
    unbiased for "k answers of each: both solve it". At k = n these are the plain shares: solved by at least one of the
    n answers. The method `base` is the base against k fresh answers of its own, where b squared is estimated from 2k
    answers: 2 pass@k - pass@2k. The paper's k is not available.
    """
    base = scores.of("base", suite, "pass", k)
    b_P = base.values_SP[0]
    if method == "base":
        kept_SP = 2 * b_P[None] - scores.of("base", suite, "pass", 2 * k).values_SP
        gained_SP = b_P - kept_SP
        shares = (kept_SP / np.where(b_P > 0, b_P, 1), gained_SP / np.where(b_P < 1, 1 - b_P, 1))
        return Split(b_P, kept_SP, gained_SP, shares)
    tuned = scores.of(method, suite, "pass", k)
    check_comparable(base, tuned)
    t_SP = tuned.values_SP
    return Split(b_P, b_P * t_SP, (1 - b_P) * t_SP, (t_SP, t_SP))
