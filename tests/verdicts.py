"""Every claim judged again from `records.parquet` (cost: `train_log.parquet`), without dphlib: verdicts.py RESULTS.

Its intervals have no random number: their variance is what the resamples of `dphlib.stats` converge to."""

import sys
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import t

CLAIMS = """greedy_rises grpo,dapo base in_domain greedy 0
pass_k_falls base grpo,dapo in_domain 8,16 0
pass_16_falls_rkl base rkl in_domain 16 0
grpo_keeps_one_style base,ln2 grpo in_domain styles 0
dph_keeps_styles dph_f,dph_js grpo in_domain styles 0
dph_greedy_highest dph_f,dph_js grpo,dapo,rkl in_domain greedy 2
js_pass_8_above_grpo dph_js grpo in_domain 8 0
dph_nearer_at_large_k dph_f,dph_js grpo in_domain large 0
cross_every_rl_loses base grpo,dapo,rkl,dph_f,dph_js cross_domain 8 0
cross_dph_loses_least dph_f,dph_js grpo,dapo,rkl cross_domain 8 0
out_every_rl_loses base grpo,dapo,rkl,dph_f,dph_js out_of_domain 8 0
out_dph_loses_least dph_f,dph_js grpo,dapo,rkl out_of_domain 8 0
out_rkl_loses_most grpo,dapo rkl out_of_domain 8 0
loss_grows_with_shift grpo,rkl base in_domain>cross_domain,cross_domain>out_of_domain 8 0
generator_as_good_as_definition dph_js dph_js_definition in_domain greedy,16 2
generator_as_good_as_definition dph_js_definition dph_js in_domain greedy,16 2
threshold_8_as_good_as_6 dph_f:threshold=8,dph_js:threshold=8 itself in_domain greedy,8 2"""


def arm(arms, method, variant, suite, measure):
    """(seeds x problems, how drawn), None without it or k answers; Pass@k is 1 - prod_{i < k} (n - c - i) / (n - i)."""
    rows = arms.get((method, variant, suite, measure == "greedy"), arms[None])
    grid = rows.set_index(["seed", "problem_id"])
    n, c = grid["n"].unstack(), grid["correct"].unstack()
    least = n.min(axis=None) if n.size else 0
    k = {"greedy": 1, "styles": 1, "large": 2 ** int(np.log2(min(max(least, 16), 64)))}.get(measure)
    if (k := k or int(measure)) > least:
        return None
    drawn = str((least, n.max(axis=None), list(n), rows.filter(regex="temp|top_p|max_").agg(["min", "max"])))
    if measure == "styles":
        count = grid[["direct", "aliased", "nested", "stepwise"]]
        share = count.div(count.sum(axis=1).clip(lower=1), axis=0)
        return -(share * np.log(share.where(share > 0, 1))).sum(axis=1).unstack().to_numpy(), drawn
    return 1 - np.prod([(n.values - c.values - i).clip(0) / (n.values - i) for i in range(k)], axis=0), drawn


def interval(keys, arms, effect):
    """(estimate, low, high) at 95 %, by Student's quantile at the degrees of freedom of Welch and Satterthwaite."""
    means, grid, crossed = np.array([values.mean() for values in arms]), {}, 0.0
    for (method, variant, suite, _), step, x in zip(keys, 1e-6 * np.eye(len(arms)), arms, strict=True):
        slope = (effect(*(means + step)) - effect(*(means - step))) / 2e-6
        grid[method, variant, suite] = grid.get((method, variant, suite), 0) + slope * x
    by_suite = [sum(x.mean(0) for at, x in grid.items() if at[2] == suite) for suite in {at[2] for at in grid}]
    parts = [(sum(x.var() / x.size for x in by_suite), min(x.size for x in by_suite) - 1)]  # variance, freedom
    for name in {at[:2] for at, x in grid.items() if len(x) > 1}:
        mine = [x for at, x in grid.items() if at[:2] == name]
        parts.append((sum(x.mean(1) for x in mine).var(ddof=1) / len(mine[0]), len(mine[0]) - 1))
        crossed += sum((x - x.mean(0)).var(axis=1).mean() / x.shape[1] for x in mine) / (len(mine[0]) - 1)
    total, spread = sum(v for v, _ in parts), sum(v * v / f for v, f in parts)
    half = t.ppf(0.975, total**2 / spread if spread > 1e-300 else np.inf) * np.sqrt(total + crossed)
    return effect(*means), effect(*means) - half, effect(*means) + half


def judge(arms, a, b, suite, measure, tol):
    """(verdict, estimate, low, high) of a part of CLAIMS: a above b; on two suites, the loss of a share of b grows."""
    pair = (a, a.split(":")[0] if b == "itself" else b)
    keys = [(*f"{x}:main".split(":")[:2], at, measure) for at in suite.split(">") for x in pair if x != "ln2"]
    found = [arm(arms, *key) for key in keys]
    if None in found:
        return "not run", None, None, None
    assert len({(key[2], how) for key, (_, how) in zip(keys, found, strict=True)}) == len({x[2] for x in keys}), keys
    effect = (lambda x: np.log(2) - x, np.subtract, None, lambda a, b, c, d: a / b - c / d)[len(keys) - 1]
    estimate, low, high = interval(keys, values := [x for x, _ in found], effect)
    told = "supported" if low > -tol else "not supported" if high < -tol or high <= 0 == tol else "inconclusive"
    seeds = min(len(x) for key, x in zip(keys, values, strict=True) if key[0] != "base")
    return told if seeds > 2 else "inconclusive", estimate, low, high


def verdicts(root):
    """Claim -> (verdict, [(verdict, estimate, low, high) of each part]) of a results folder."""
    rows, out = pd.read_parquet(f"{root}/records.parquet"), {}
    rows = rows[rows["step"] == rows.groupby(["method", "variant", "seed"])["step"].transform("max")]
    arms = {None: rows.iloc[:0], **dict(list(rows.groupby(["method", "variant", "suite", rows["temperature"] == 0])))}
    for claim, *lists, points in map(str.split, CLAIMS.splitlines()):
        for part in product(*(texts.split(",") for texts in lists)):
            out.setdefault(claim, []).append(judge(arms, *part, int(points) / 100))
    logs = pd.read_parquet(f"{root}/train_log.parquet").query("variant == 'main'").astype({"method": str})
    for method in ("dph_f", "dph_js", "rkl"):  # reference tokens a policy token: none for DPH, some for RKL
        tokens = logs[logs["method"] == method].groupby("seed")[["reference_tokens", "policy_tokens"]].sum()
        ratio = tokens["reference_tokens"] / tokens["policy_tokens"]
        told = ("not supported", "supported")[all((ratio > 0) == (method == "rkl"))]
        told = told if len(ratio) > 2 else "inconclusive" if len(ratio) else "not run"
        out.setdefault("no_reference_model", []).append((told, ratio.mean(), ratio.min(), ratio.max()))
    order = ("not supported", "not run", "inconclusive", "supported").index
    return {claim: (min((one[0] for one in parts), key=order), parts) for claim, parts in out.items()}


if __name__ == "__main__":
    print(*(f"{verdict:<14}{claim}" for claim, (verdict, _) in verdicts(sys.argv[1]).items()), sep="\n")
