"""Numbers from the records: unbiased pass@k, keep and explore, styles, entropy, intervals.

Input is the frame of `records.parquet`, a row an `EvalRecord`, or plain arrays; output is a tidy frame or a
number. The functions on a frame judge every step that it holds: hand them `final(records)` for the end of
training.

1. An answer with outcome `infra_error` was not judged. It is left out of n, never counted as wrong.
2. The paper's k for keep and explore is not available: k is an argument here, 8 unless given.
3. The interval widens the hierarchical bootstrap for the small number of seeds (see `intervals`).

It reads and writes no file, draws nothing and decides no claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from math import comb, log2
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dphlib.intervals import Arm, Interval, bootstrap, check_comparable, hierarchical_bootstrap, holm
from dphlib.types import GREEDY_SAMPLE

__all__ = [
    "Arm", "Interval", "answer_statistics", "arm", "auc_at_k", "auc_log2_k", "avg_at_k", "bootstrap",
    "check_comparable", "distinct_correct", "final", "greedy", "greedy_accuracy", "has_styles",
    "hierarchical_bootstrap", "holm", "intervals", "keep_explore", "pass_at_k", "pass_curve", "problem_table",
    "sampled", "style_entropy", "style_shares", "truncation_rate",
]  # fmt: skip

Metric = Literal["pass", "styles_nats"]

RUN = ["method", "variant", "seed", "step", "suite"]
PROBLEM = ["method", "variant", "seed", "step", "suite", "subset", "problem_id"]
SETTINGS = ["temperature", "top_p", "max_new_tokens"]
NO_STYLE, NOT_TOLD = "other", ""
NO_ROWS = "no records: the method, the suite or the kind of answer (greedy, sampled) is not in the frame"


@cache
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
    return records[records["sample"] != GREEDY_SAMPLE]


def greedy(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of greedy answers."""
    return records[records["sample"] == GREEDY_SAMPLE]


def final(records: pd.DataFrame) -> pd.DataFrame:
    """The rows at each run's last step; method, variant and seed make a run."""
    last = records.groupby(["method", "variant", "seed"], observed=True)["step"].transform("max")
    return records[records["step"] == last]


def problem_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a problem of a run: columns of `PROBLEM`, `drawn`, `n` judged, `c` correct, `styles_nats`,
    `SETTINGS`.

    Hand it `sampled(...)` or `greedy(...)`: greedy accuracy is pass@1 of the greedy table. `styles_nats` is
    the entropy in nats of the styles of the problem's answers, `other` left out, 0 where none is left, NaN where
    styles were not told; a plug-in estimate, so compare at equal `drawn`. Raises ValueError for no rows, for an
    answer that is there twice, and for answers to one problem drawn under different settings.
    """
    rows = _some(rows).reset_index(drop=True)
    groups = rows.groupby(PROBLEM, observed=True, sort=True)
    group = groups.ngroup().to_numpy()
    twice = pd.DataFrame({"group": group, "sample": rows["sample"]}).duplicated()
    if twice.any():
        key = rows.loc[twice.idxmax(), [*PROBLEM, "sample"]].to_dict()
        raise ValueError(f"{int(twice.sum())} answers stand twice, such as {key}: join each run once")
    table = groups[SETTINGS].min()
    for name in SETTINGS:
        mixed = table[name] != groups[name].max()
        if mixed.any():
            raise ValueError(f"{mixed.idxmax()}: more than one {name}; take greedy(...) and sampled(...) apart")
    judged = (rows["outcome"] != "infra_error").to_numpy()
    size = len(table)
    table["drawn"] = np.bincount(group, minlength=size)
    table["n"] = np.bincount(group[judged], minlength=size)
    table["c"] = np.bincount(group[judged & rows["correct"].to_numpy(bool)], minlength=size)
    codes, names = pd.factorize(rows["style"], sort=True)
    told, styled = (codes != code for code in pd.Index(names).get_indexer([NOT_TOLD, NO_STYLE]))  # -1 if nobody's
    styled &= told
    counts = np.bincount(group[styled] * len(names) + codes[styled], minlength=size * len(names))
    entropies = _entropy(counts.reshape(size, len(names)))
    table["styles_nats"] = np.where(np.bincount(group[told], minlength=size) > 0, entropies, np.nan)
    return table.reset_index()


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
    return np.asarray(pass_at_k(table["n"].to_numpy(), table["c"].to_numpy(), k))


def _with_pass(table: pd.DataFrame, k: int) -> pd.DataFrame:
    return table.assign(pass_at_k=_pass_column(table, k), k=k)


# ---------------------------------------------------------------------------------------------- accuracies


def pass_curve(records: pd.DataFrame, ks: Sequence[int], by: Sequence[str] = ()) -> pd.DataFrame:
    """Mean unbiased pass@k of each run and suite: `RUN`, `by` (`subset`, say), k, pass_at_k, problems."""
    table = problem_table(sampled(records))
    keys = [*RUN, *by, "k"]
    parts = [_with_pass(table, int(k)).groupby(keys, observed=True)["pass_at_k"] for k in ks]
    return pd.concat([part.agg(pass_at_k="mean", problems="size") for part in parts]).reset_index()


def greedy_accuracy(records: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Share of problems whose greedy answer is correct: columns of `RUN`, `by`, greedy, problems."""
    groups = _with_pass(problem_table(greedy(records)), 1).groupby([*RUN, *by], observed=True)["pass_at_k"]
    return groups.agg(greedy="mean", problems="size").reset_index()


def avg_at_k(records: pd.DataFrame, k: int, by: Sequence[str] = ()) -> pd.DataFrame:
    """Share of correct answers among each problem's first k samples: `RUN`, `by`, avg_at_k, problems."""
    table = problem_table(_first(records, k))
    if (table["n"] < 1).any():
        raise ValueError(f"avg@{k}: a problem has no judged answer among its first {k}: evaluate it again")
    groups = table.assign(share=table["c"] / table["n"]).groupby([*RUN, *by], observed=True)["share"]
    return groups.agg(avg_at_k="mean", problems="size").reset_index()


def _first(records: pd.DataFrame, k: int) -> pd.DataFrame:
    rows = sampled(records)
    rows = rows[rows["sample"] < k]
    if rows.empty:
        raise ValueError("no sampled answers in these records")
    size = rows.groupby(PROBLEM, observed=True).size()
    if size.min() < k:
        raise ValueError(f"k={k}, but {size.idxmin()} has only {size.min()} samples: lower k or draw more")
    return rows


def auc_log2_k(ks: ArrayLike, values: ArrayLike) -> float:
    """Area under pass@k over log2 k, divided by the width: the mean height, by the trapezoid rule.

    (1 / (log2 k_m - log2 k_1)) * sum_i (log2 k_{i+1} - log2 k_i) * (p_i + p_{i+1}) / 2, for ascending ks.

    >>> auc_log2_k([1, 2, 4], [0.0, 0.5, 1.0])
    0.5
    """
    x, y = np.log2(np.asarray(ks, dtype=float)), np.asarray(values, dtype=float)
    if len(x) < 2 or x.shape != y.shape or not np.all(np.diff(x) > 0):
        raise ValueError(f"AUC over log2 k needs two or more ascending ks, a value each; got {ks!r}, {values!r}")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def auc_at_k(records: pd.DataFrame, k: int) -> pd.DataFrame:
    """AUC@k of each run and suite, `auc_log2_k` over 1, 2, 4, ... and k: `RUN`, k, auc_at_k."""
    if k < 2:
        raise ValueError(f"AUC@{k}: k must be 2 or more")
    ks = sorted({2**i for i in range(int(log2(k)) + 1)} | {k})
    wide = pass_curve(records, ks).pivot(index=RUN, columns="k", values="pass_at_k")
    areas = [auc_log2_k(ks, row) for row in wide[ks].to_numpy()]
    return pd.DataFrame({"k": k, "auc_at_k": areas}, wide.index).reset_index()


def keep_explore(records: pd.DataFrame, k: int = 8) -> pd.DataFrame:
    """What each run kept of the base's problems and what it newly solved, by the expectation over k answers
    of both.

    b and t are a problem's unbiased pass@k of the base and of the tuned model. Their answers are independent,
    so b*t is unbiased for "k answers of each: both solve it". preserved = sum b*t, lost = sum b*(1-t), gained
    = sum (1-b)*t (expected numbers of problems); keep = preserved / sum b, explore = gained / sum (1-b), NaN
    where nothing can be kept or gained. At k = n these are the plain shares: solved by at least one of the n
    answers. Columns: `RUN`, k, keep, explore, preserved, lost, gained, problems. Intervals:
    `hierarchical_bootstrap`'s weights.
    """
    table = problem_table(sampled(records))
    out = []
    for run, rows in table[table["method"] != "base"].groupby(RUN, observed=True):
        base, tuned = arm(table, "base", run[-1], "pass", k), _arm(rows, "pass", k)
        check_comparable(base, tuned)
        b, t = base.values_SP[0], tuned.values_SP[0]
        preserved, gained = float((b * t).sum()), float(((1 - b) * t).sum())
        solved, unsolved = float(b.sum()), float((1 - b).sum())
        keep = preserved / solved if solved > 0 else float("nan")
        explore = gained / unsolved if unsolved > 0 else float("nan")
        out.append([*run, k, keep, explore, preserved, solved - preserved, gained, len(rows)])
    columns = [*RUN, "k", "keep", "explore", "preserved", "lost", "gained", "problems"]
    return pd.DataFrame(out, columns=columns)


# ---------------------------------------------------------------------------------------------- behaviour


def has_styles(records: pd.DataFrame) -> bool:
    """Whether styles were told; of data sets they are not."""
    return bool((records["style"] != NOT_TOLD).any())


def style_shares(records: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Share of each style among the sampled answers, `other` included: `RUN`, `by`, style, share."""
    rows = _some(sampled(records))
    counts = rows.groupby([*RUN, *by, "style"], observed=True).size().rename("count").reset_index()
    total = counts.groupby([*RUN, *by], observed=True)["count"].transform("sum")
    return counts.assign(share=counts["count"] / total).drop(columns="count")


def style_entropy(records: pd.DataFrame) -> pd.DataFrame:
    """Entropy in nats of the styles of sampled answers, `other` left out (it is no style; see
    `style_shares`).

    `per_problem_nats` is the mean over problems of the entropy within a problem's answers (`problem_table`):
    what is left to draw from on one prompt. `pooled_nats` is that of all answers of the run together; it
    stays high when each kind of problem has its own one style. `styles` counts those with a share of 1 % or
    more. All three are NaN where styles were not told.
    """
    rows = sampled(records)
    within = problem_table(rows).groupby(RUN, observed=True)["styles_nats"].mean().rename("per_problem_nats")
    if not has_styles(rows):
        return within.to_frame().assign(pooled_nats=np.nan, styles=np.nan).reset_index()
    styled = rows[~rows["style"].isin([NO_STYLE, NOT_TOLD])].groupby([*RUN, "style"], observed=True).size()
    counts = styled.unstack("style").reindex(within.index).fillna(0.0)
    share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    pooled = _entropy(counts.to_numpy())
    return within.to_frame().assign(pooled_nats=pooled, styles=(share >= 0.01).sum(axis=1)).reset_index()


def answer_statistics(records: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Of each run's sampled answers: columns of `RUN`, `by` and

    - entropy_nats: policy's entropy a token, sum of (entropy * tokens) / sum of tokens, NaN where not told (vLLM);
    - kl_to_base_nats: estimate of KL(policy || base) a token, sum of (logprob - base_logprob) / sum of tokens
      over the rows that have a base_logprob, NaN where none has. Unbiased for the sum a sequence if the
      answers were drawn at temperature 1 and top_p 1, otherwise the mean log-ratio under the distribution
      they were drawn from;
    - tokens: mean length; truncated: share that the token limit ended; answers: their number.
    """
    rows = _some(sampled(records))
    known = rows["base_logprob"].notna()
    rows = rows.assign(
        _unknown=rows["entropy"].isna() & (rows["tokens"] > 0),
        _entropy=rows["entropy"].where(rows["tokens"] > 0, 0.0) * rows["tokens"],
        _ratio=(rows["logprob"] - rows["base_logprob"]).where(known, 0.0),
        _known=rows["tokens"].where(known, 0),
    )
    groups = rows.groupby([*RUN, *by], observed=True)
    total = groups[["_entropy", "_ratio", "_known", "tokens"]].sum().astype(float)
    out = pd.DataFrame(
        {
            "entropy_nats": total["_entropy"].where(~groups["_unknown"].any())
            / total["tokens"].where(total["tokens"] > 0),
            "kl_to_base_nats": total["_ratio"] / total["_known"].where(total["_known"] > 0),
            "tokens": groups["tokens"].mean(),
            "truncated": groups["truncated"].mean(),
            "answers": groups.size(),
        }
    )
    return out.reset_index()


def truncation_rate(records: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Share of answers, sampled and greedy, that the token limit ended: `RUN`, `by`, truncated, answers."""
    groups = _some(records).groupby([*RUN, *by], observed=True)["truncated"]
    return groups.agg(truncated="mean", answers="size").reset_index()


def distinct_correct(records: pd.DataFrame, samples: int) -> pd.DataFrame:
    """Mean number of different correct answers (by answer_hash) among each problem's first `samples` samples.

    The number grows with the samples, so it is fixed: fewer in any problem raises ValueError.
    Columns: `RUN`, samples, distinct_correct, problems.
    """
    rows = _first(records, samples)
    hashes = rows["answer_hash"].where(rows["correct"].astype(bool) & (rows["answer_hash"] != ""))
    counts = hashes.groupby([rows[name] for name in PROBLEM], observed=True).nunique()
    groups = counts.groupby(level=RUN, observed=True)
    return groups.agg(distinct_correct="mean", problems="size").reset_index().assign(samples=samples)


def _some(rows: pd.DataFrame) -> pd.DataFrame:
    if rows.empty:
        raise ValueError(NO_ROWS)
    return rows


# ---------------------------------------------------------------------------------------------- arms


def arm(
    table: pd.DataFrame, method: str, suite: str, metric: Metric = "pass", k: int = 1, variant: str = "main"
) -> Arm:
    """The matrix seeds x problems of a method on a suite, from `problem_table(sampled/greedy(final(records)))`.

    Args:
        metric: `pass` (unbiased pass@k; of the greedy table at k=1 it is greedy accuracy) or `styles_nats`.

    Raises ValueError where the arm is not in the table, where its seeds differ in step, problems or settings,
    and for k > n.
    """
    rows = table[(table["method"] == method) & (table["variant"] == variant) & (table["suite"] == suite)]
    if rows.empty:
        have = [_name(row) for _, row in table[["method", "variant", "suite"]].drop_duplicates().iterrows()]
        raise ValueError(f"no records of {method} ({variant}) on {suite}; there are: {', '.join(have)}")
    return _arm(rows, metric, k)


def _arm(rows: pd.DataFrame, metric: Metric, k: int) -> Arm:
    if metric not in ("pass", "styles_nats"):
        raise ValueError(f"metric {metric!r}: 'pass' or 'styles_nats'")
    first = rows.iloc[0]
    name, steps = _name(first), sorted(set(rows["step"].tolist()))
    if len(steps) > 1:
        raise ValueError(f"{name}: steps {steps}; take final(records), of seeds that were trained equally long")
    order = np.lexsort((rows["problem_id"].to_numpy().astype(str), rows["seed"].to_numpy()))
    value_N = (_pass_column(rows, k) if metric == "pass" else rows[metric].to_numpy(float))[order]
    # Arrays: figures and tables ask for a thousand arms.
    columns = {name: rows[name].to_numpy()[order] for name in ("seed", "problem_id", "drawn", *SETTINGS)}
    starts, arms = np.flatnonzero(np.diff(columns["seed"], prepend=columns["seed"][0] - 1)).tolist(), []
    for start, end in pairwise([*starts, len(rows)]):
        seed, settings = int(columns["seed"][start]), {}
        for setting in ("drawn", *SETTINGS):
            values = sorted(set(columns[setting][start:end].tolist()))
            if len(values) > 1:
                raise ValueError(f"{name}, seed {seed}: problems differ in {setting}: {values}")
            settings[setting] = float(values[0])
        named, ids = f"{first['method']} ({first['variant']})", tuple(columns["problem_id"][start:end])
        arms.append(Arm(named, str(first["suite"]), (seed,), ids, value_N[None, start:end], settings))
        check_comparable(arms[0], arms[-1])
    seeds = tuple(one.seeds[0] for one in arms)
    return replace(arms[0], seeds=seeds, values_SP=np.concatenate([one.values_SP for one in arms]))


def intervals(records: pd.DataFrame, ks: Sequence[int] = (), **options: int | float) -> pd.DataFrame:
    """Mean over seeds with its interval, for each method, variant and suite of `final(records)`.

    Metrics: `greedy` (k = 1), `pass` for each of `ks`, `styles_nats` (k = 0). `options` go to `bootstrap`.
    Columns: method, variant, suite, metric, k, estimate, low, high, seeds (their number).
    """
    rows, out = final(records), []
    of_samples = [("styles_nats", 0), *(("pass", int(k)) for k in ks)]
    for kind, wanted in ((greedy, [("greedy", 1)]), (sampled, of_samples)):
        if kind(rows).empty:
            continue
        table = problem_table(kind(rows))
        for key, part in table.groupby(["method", "variant", "suite"], observed=True):
            for metric, k in wanted:
                one = _arm(part, "pass" if metric == "greedy" else metric, k)  # type: ignore[arg-type]
                got = bootstrap([one], lambda mean: mean, **options)  # type: ignore[arg-type]
                out.append([*key, metric, k, got.estimate, got.low, got.high, len(one.seeds)])
    columns = ["method", "variant", "suite", "metric", "k", "estimate", "low", "high", "seeds"]
    return pd.DataFrame(out, columns=columns)
