"""What one setting changes: each ablation against its main arm, and what an iteration of each method costs.

`effects` compares, paired by problem, on the records; `token_budget` and `cost_table` count and time. Tables 3, 4 and 5
themselves are in `tables`.

1. Rows whose advantage is exactly zero pass through no model (see `trainer`): a method's policy tokens fall as its
   groups agree. `token_budget` shows how many groups did not, beside the tokens.
2. An ablation's arm has fewer seeds than its main arm; both are named beside the effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dphlib import stats
from dphlib.labels import NAMES, SUITES, label
from dphlib.types import METHODS

_MEASURES = (("greedy", "pass", 1), ("Pass@8", "pass", 8), ("Pass@16", "pass", 16), ("styles_nats", "styles_nats", 0))


def effects(records: pd.DataFrame, suites: Sequence[str] = tuple(SUITES)) -> pd.DataFrame:
    """Each ablation minus the main arm of its method, in points (style entropy: nats), with intervals.

    Columns: ablation, suite, then for each of `_MEASURES` the difference with `_low` and `_high`, then seeds
    (ablation's and main arm's). NaN where an arm has fewer answers than the measure needs. A suite that either was
    not evaluated on has no row.

    Raises:
        ValueError: no ablation in the records.
    """
    rows = stats.final(records)
    arms = rows.loc[rows["variant"] != "main", ["method", "variant"]].drop_duplicates()
    if arms.empty:
        raise ValueError("no ablation in the records: evaluate settings.ablation_runs() first")
    tables = {"greedy": stats.problem_table(stats.greedy(rows)), "sampled": stats.problem_table(stats.sampled(rows))}
    order = sorted(arms.itertuples(index=False), key=lambda a: (a.variant, METHODS.index(a.method)))
    out = []
    for method, variant in order:
        for suite in suites:
            row: dict[str, object] = {"ablation": label(method, variant), "suite": SUITES[suite]}
            for name, metric, k in _MEASURES:
                table = tables["greedy" if name == "greedy" else "sampled"]
                got = _difference(table, method, variant, suite, metric, k)
                if got is None:
                    continue
                seeds, effect = got
                scale = 1 if metric == "styles_nats" else 100
                row |= {
                    name: scale * effect.estimate,
                    f"{name}_low": scale * effect.low,
                    f"{name}_high": scale * effect.high,
                }
                row["seeds"] = seeds
            if "seeds" in row:
                out.append(row)
    frame = pd.DataFrame(out)
    return frame[[name for name in frame.columns if name != "seeds"] + ["seeds"]]


def _difference(
    table: pd.DataFrame, method: str, variant: str, suite: str, metric: str, k: int
) -> tuple[str, stats.Interval] | None:
    """(seeds of both, the interval of ablation minus main); None where an arm is absent or too small."""
    found = []
    for name in (variant, "main"):
        keep = (table["method"] == method) & (table["variant"] == name) & (table["suite"] == suite)
        if not keep.any() or table.loc[keep, "n"].min() < k:
            return None
        found.append(stats.arm(table, method, suite, metric, k, name))
    got = stats.bootstrap(found, lambda ablation, main: ablation - main)
    return f"{len(found[0].seeds)} against {len(found[1].seeds)}", got


def token_budget(train_logs: pd.DataFrame, prompts: int) -> pd.DataFrame:
    """What an iteration of each method was given and what passed through a model, means over iterations and seeds.

    Args:
        prompts: of a batch, the whole that `informative groups (%)` is a share of.

    Returns:
        A row a method and variant: rollouts, informative groups (%) (those whose rewards differ), rehearsed answers,
        policy and reference tokens, iterations and seeds.
    """
    groups = train_logs.groupby(["method", "variant"], observed=True)
    names = {"rl_rows": "rollouts", "rehearsal_rows": "rehearsed answers", "policy_tokens": "policy tokens",
             "reference_tokens": "reference tokens"}  # fmt: skip
    out = groups[list(names)].mean().rename(columns=names)
    out.insert(1, "informative groups (%)", 100 * groups["informative_groups"].mean() / prompts)
    out = out.assign(iterations=groups["iteration"].max(), seeds=groups["seed"].nunique())
    order = sorted(out.index, key=lambda key: (key[1] != "main", key[1], METHODS.index(key[0])))
    out = out.loc[order]
    out.insert(0, "method", [label(*key) for key in out.index])
    return out.reset_index(drop=True)


def cost_table(cost: pd.DataFrame) -> pd.DataFrame:
    """The cost of an iteration of each method: tokens (exact, mean) and seconds (noisy, median and middle half).

    Columns: method, iterations, policy tokens, reference tokens, reference per policy token, step_s with `_low` and
    `_high` (quartiles), reference_s (median), peak_gib.
    """
    groups = cost.groupby("method", observed=True)
    quartiles = groups["step_s"].quantile([0.25, 0.5, 0.75]).unstack()
    tokens = groups[["policy_tokens", "reference_tokens"]].mean()
    out = pd.DataFrame(
        {
            "iterations": groups.size(),
            "policy tokens": tokens["policy_tokens"],
            "reference tokens": tokens["reference_tokens"],
            "reference per policy token": tokens["reference_tokens"] / tokens["policy_tokens"],
            "step_s": quartiles[0.5],
            "step_s_low": quartiles[0.25],
            "step_s_high": quartiles[0.75],
            "reference_s": groups["reference_s"].median(),
            "peak_gib": groups["peak_gib"].max(),
        }
    )
    out = out.loc[[m for m in METHODS if m in out.index]]
    out.insert(0, "method", [NAMES[m] for m in out.index])
    return out.reset_index(drop=True)
