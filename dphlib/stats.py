"""Numbers from the records: unbiased pass@k, styles, entropy.

Input is the frame of `records.parquet`, one row per `EvalRecord`, or plain arrays; output is a tidy frame or a number.
The functions on a frame use every step that it holds: pass `final(records)` for the end of training. An answer with
outcome `infra_error` was not judged. It is left out of n, never counted as wrong.

Not here: the scores of arms that are compared (`scores`) and their intervals (`intervals`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import comb, log2
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dphlib.types import GREEDY_SAMPLE

Metric = Literal["greedy", "pass", "styles_nats"]

RUN = ["method", "variant", "seed", "step", "suite"]
PROBLEM = ["method", "variant", "seed", "step", "suite", "subset", "problem_id"]
SETTINGS = ["temperature", "top_p", "max_new_tokens"]
NO_STYLE = "other"
UNKNOWN_STYLE = ""
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
    return records[records["sample"] != GREEDY_SAMPLE]


def greedy(records: pd.DataFrame) -> pd.DataFrame:
    """The rows of greedy answers."""
    return records[records["sample"] == GREEDY_SAMPLE]


def final(records: pd.DataFrame) -> pd.DataFrame:
    """The rows at each run's last step; method, variant and seed make a run."""
    last = records.groupby(["method", "variant", "seed"], observed=True)["step"].transform("max")
    return records[records["step"] == last]


def problem_table(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per problem of a run: columns of `PROBLEM`, `drawn`, `n` judged, `c` correct, `styles_nats`, `SETTINGS`.

    Pass it `sampled(...)` or `greedy(...)`: greedy accuracy is pass@1 of the greedy table. `styles_nats` is
    the entropy in nats of the styles of the problem's answers, `other` left out, 0 where none is left, NaN where
    styles are unknown; a plug-in estimate, so compare at equal `drawn`. Raises ValueError for no rows, for an
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
    known, styled = (codes != code for code in pd.Index(names).get_indexer([UNKNOWN_STYLE, NO_STYLE]))  # -1 if absent
    styled &= known
    counts = np.bincount(group[styled] * len(names) + codes[styled], minlength=size * len(names))
    entropies = _entropy(counts.reshape(size, len(names)))
    table["styles_nats"] = np.where(np.bincount(group[known], minlength=size) > 0, entropies, np.nan)
    return table.reset_index()


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of the counts along the last axis; 0 where there are none."""
    share = counts / np.maximum(counts.sum(-1, keepdims=True), 1)
    return -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=-1) + 0.0


def _name(row: pd.Series) -> str:
    return f"{row['method']} ({row['variant']}) on {row['suite']}"


def pass_column(table: pd.DataFrame, k: int) -> np.ndarray:
    """Unbiased pass@k of each row of a `problem_table`. Raises ValueError naming a row of fewer than k answers."""
    if len(short := table[table["n"] < k]):
        row = short.iloc[0]
        raise ValueError(
            f"pass@{k}: {_name(row)}, seed {row['seed']}, step {row['step']}, {row['problem_id']}: "
            f"n={row['n']} judged, {row['drawn']} drawn: lower k, draw more, or take final(records)"
        )
    return np.asarray(pass_at_k(table["n"].to_numpy(), table["c"].to_numpy(), k))


def _with_pass(table: pd.DataFrame, k: int) -> pd.DataFrame:
    return table.assign(pass_at_k=pass_column(table, k), k=k)


# ---------------------------------------------------------------------------------------------- accuracies


def pass_curve(records: pd.DataFrame, ks: Sequence[int]) -> pd.DataFrame:
    """Mean unbiased pass@k of each run and suite: `RUN`, k, pass_at_k, problems."""
    table = problem_table(sampled(records))
    parts = [_with_pass(table, int(k)).groupby([*RUN, "k"], observed=True)["pass_at_k"] for k in ks]
    return pd.concat([part.agg(pass_at_k="mean", problems="size") for part in parts]).reset_index()


def greedy_accuracy(records: pd.DataFrame) -> pd.DataFrame:
    """Share of problems whose greedy answer is correct: columns of `RUN`, greedy, problems."""
    groups = _with_pass(problem_table(greedy(records)), 1).groupby(RUN, observed=True)["pass_at_k"]
    return groups.agg(greedy="mean", problems="size").reset_index()


def _first(records: pd.DataFrame, k: int) -> pd.DataFrame:
    rows = sampled(records)
    rows = rows[rows["sample"] < k]
    if rows.empty:
        raise ValueError("no sampled answers in these records")
    size = rows.groupby(PROBLEM, observed=True).size()
    if size.min() < k:
        raise ValueError(f"k={k}, but {size.idxmin()} has only {size.min()} samples: lower k or draw more")
    return rows


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
    return bool((records["style"] != UNKNOWN_STYLE).any())


def style_shares(records: pd.DataFrame) -> pd.DataFrame:
    """Share of each style among the sampled answers, `other` included: `RUN`, style, share."""
    rows = _some(sampled(records))
    counts = rows.groupby([*RUN, "style"], observed=True).size().rename("count").reset_index()
    total = counts.groupby(RUN, observed=True)["count"].transform("sum")
    return counts.assign(share=counts["count"] / total).drop(columns="count")


def style_entropy(records: pd.DataFrame) -> pd.DataFrame:
    """Entropy in nats of the styles of sampled answers, `other` left out (it is no style; see
    `style_shares`).

    `per_problem_nats` is the mean over problems of the entropy within a problem's answers (`problem_table`):
    what is left to draw from on one prompt. `pooled_nats` is that of all answers of the run together; it
    stays high when each kind of problem has its own one style. `styles` counts those with a share of 1 % or
    more. All three are NaN where styles are unknown.
    """
    rows = sampled(records)
    within = problem_table(rows).groupby(RUN, observed=True)["styles_nats"].mean().rename("per_problem_nats")
    if not has_styles(rows):
        return within.to_frame().assign(pooled_nats=np.nan, styles=np.nan).reset_index()
    styled = rows[~rows["style"].isin([NO_STYLE, UNKNOWN_STYLE])].groupby([*RUN, "style"], observed=True).size()
    counts = styled.unstack("style").reindex(within.index).fillna(0.0)
    share = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    pooled = _entropy(counts.to_numpy())
    return within.to_frame().assign(pooled_nats=pooled, styles=(share >= 0.01).sum(axis=1)).reset_index()


def answer_statistics(records: pd.DataFrame) -> pd.DataFrame:
    """Of each run's sampled answers: columns of `RUN` and

    - entropy_nats: policy's entropy per token, sum of (entropy * tokens) / sum of tokens, NaN where unknown (vLLM);
    - kl_to_base_nats: estimate of KL(policy || base) per token, sum of (logprob - base_logprob) / sum of tokens
      over the rows that have a base_logprob, NaN where none has. Unbiased for the sum per sequence if the
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
    groups = rows.groupby(RUN, observed=True)
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


def truncation_rate(records: pd.DataFrame) -> pd.DataFrame:
    """Share of answers, sampled and greedy, that the token limit ended: `RUN`, truncated, answers."""
    groups = _some(records).groupby(RUN, observed=True)["truncated"]
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
