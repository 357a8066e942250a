"""Numbers from the records: unbiased pass@k, styles, entropy.

Input is the frame of `records.parquet`, one row per `EvalRecord`, or plain arrays; output is a tidy frame or a number.
The functions on a frame use every step that it holds: pass `final(records)` for the end of training. Answers that were
not judged (`infra_error`) are left out of n, never counted as wrong.

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


def pass_column(table: pd.DataFrame, k: int) -> np.ndarray:
    """Unbiased pass@k of each row. Raises ValueError naming one of fewer than k judged answers."""
    if len(short := table[table["n"] < k]):
        row = short.iloc[0]
        raise ValueError(
            f"pass@{k}: {_name(row)}, seed {row['seed']}, step {row['step']}, {row['problem_id']}: "
            f"n={row['n']} judged, {row['drawn']} drawn: lower k, draw more, or take final(records)"
        )
    return np.asarray(pass_at_k(table["n"].to_numpy(), table["correct"].to_numpy(), k))


def _with_pass(table: pd.DataFrame, k: int) -> pd.DataFrame:
    return table.assign(pass_at_k=pass_column(table, k), k=k)


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
