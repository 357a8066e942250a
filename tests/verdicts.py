"""Every claim judged again from `records.parquet` (cost: `train_log.parquet`), without dphlib: verdicts.py RESULTS.

At the end of training and, by `waypoints.parquet`, at the stopping points. The formulas are those of docs/method.md,
Intervals and Claims, and the stopping rule that of docs/protocol.md, written anew."""

import sys
from itertools import product

import numpy as np
import pandas as pd
from scipy.stats import t

STYLES = ["direct", "aliased", "nested", "stepwise"]
RUN, ARM = ["method", "variant", "seed"], ["method", "variant", "suite"]
CLAIMS = """greedy_rises grpo,dapo base in_domain greedy 0 -
pass_k_falls base grpo,dapo in_domain 8,16 0 room
pass_16_falls_rkl base rkl in_domain 16 0 room
grpo_keeps_one_style base,ln2 grpo in_domain styles 0 -
dph_keeps_styles dph_f,dph_js grpo in_domain styles 0 -
dph_greedy_highest dph_f,dph_js grpo,dapo,rkl in_domain greedy 2 -
js_pass_8_above_grpo dph_js grpo in_domain 8 0 -
dph_nearer_at_large_k dph_f,dph_js grpo in_domain large 0 -
cross_every_rl_loses base grpo,dapo,rkl,dph_f,dph_js cross_domain 8 0 room
cross_dph_loses_least dph_f,dph_js grpo,dapo,rkl cross_domain 8 0 room
out_every_rl_loses base grpo,dapo,rkl,dph_f,dph_js out_of_domain 8 0 room
out_dph_loses_least dph_f,dph_js grpo,dapo,rkl out_of_domain 8 0 room
out_rkl_loses_most grpo,dapo rkl out_of_domain 8 0 room
loss_grows_with_shift grpo,rkl base in_domain>cross_domain,cross_domain>out_of_domain 8 0 room
forward_keeps_more_than_reverse dph_f dph_rkl in_domain,cross_domain 8 0 -
dph_above_reverse_gradient dph_f,dph_js rkl,rkl_k2 in_domain 8 0 -
rehearsal_beyond_selection dph_f,dph_js grpo_dexp:clip_high=0.28 in_domain 8 0 -
partition_costs_nothing dph_f dph_f_all in_domain greedy,8 2 -
generator_as_good_as_definition dph_js dph_js_definition in_domain greedy,16 2 -
generator_as_good_as_definition dph_js_definition dph_js in_domain greedy,16 2 -
threshold_8_as_good_as_6 dph_f:threshold=8,dph_js:threshold=8 itself in_domain greedy,8 2 -"""


HEADLINES = """pass_k_falls js_pass_8_above_grpo dph_nearer_at_large_k cross_dph_loses_least out_dph_loses_least
forward_keeps_more_than_reverse partition_costs_nothing""".split()


def arm(arms, method, variant, suite, measure):
    """(runs x problems, how drawn); None without it, or k answers; Pass@k is 1 - prod_{i < k} (n - c - i) / (n - i)."""
    rows = arms.get((method, variant, suite, measure == "greedy"), arms[None])
    least = int(rows["n"].min()) if len(rows) else 0
    k = {"greedy": 1, "styles": 1, "large": 2 ** int(np.log2(min(max(least, 16), 64)))}.get(measure)
    if (k := k or int(measure)) > least:
        return None
    n, c, share = rows["n"], rows["correct"], rows[STYLES].div(rows[STYLES].sum(axis=1).clip(lower=1), axis=0)
    value = 1 - np.prod([(n - c - i).clip(lower=0) / (n - i) for i in range(k)], axis=0)
    if measure == "styles":
        value = -(share * np.log(share.where(share > 0, 1))).sum(axis=1)
    table = rows.assign(value=value).pivot(index=["base", "seed"], columns=["subset", "problem_id"], values="value")
    return table, str((n.min(), n.max(), list(table), rows.filter(regex="temp|top_p|max_").agg(["min", "max"])))


def within(values, families):
    """(mean square about each family's mean, its degrees of freedom in one row)."""
    families = families if families.nunique() < len(families) else families * 0
    apart = values - pd.DataFrame(values.T).groupby(families.to_numpy()).transform("mean").to_numpy().T
    freedom = len(families) - families.nunique()
    return (apart**2).sum() / max(freedom, 1), freedom


def interval(keys, arms, effect):
    """(estimate, low, high, standard error, degrees of freedom) at 95 %."""
    shared = set.intersection(*(set(x.index.get_level_values("base")) for x in arms))
    arms = [x[x.index.isin(shared, level="base")] if shared else x for x in arms]
    arms = [x if x.index.get_level_values("base").nunique() < 2 else x.groupby(level="base").mean() for x in arms]
    means, groups, families = np.array([x.to_numpy().mean() for x in arms]), {}, {}
    for (method, variant, suite, _), step, x in zip(keys, 1e-6 * np.eye(len(arms)), arms, strict=True):
        slope = (effect(*(means + step)) - effect(*(means - step))) / 2e-6
        of = groups.setdefault((method, variant) if len(shared) < 2 else "all", {})
        of[suite] = of.get(suite, 0) + slope * x.to_numpy()
        families[suite] = pd.Series(pd.factorize(x.columns.get_level_values("subset"))[0])
    units, of_problems, both = [], [], 0.0  # variance, freedom
    for of in groups.values():
        mean = sum(x.mean(axis=1) for x in of.values())
        units += [(mean.var(ddof=1) / len(mean), len(mean) - 1)] if len(mean) > 1 else []
    for suite, family in families.items():
        inside, size = [of[suite] for of in groups.values() if suite in of], len(family)
        square, freedom = within(sum(x.mean(axis=0) for x in inside)[None], family)
        of_problems.append((square / size, freedom))
        residual = [within(x - x.mean(axis=0), family)[0] / (len(x) - 1) / x.size for x in inside if len(x) > 1]
        both += sum(residual)
    u, p = (sum(v for v, _ in parts) for parts in (units, of_problems))
    total = max(u + p - both, u, p)
    freedom = total**2 / max(sum(v * v / f for v, f in units + of_problems), 1e-300) if total > 1e-24 else np.inf
    error = np.sqrt(total) if total > 1e-24 else 0.0
    half = t.ppf(0.975, freedom) * error
    return effect(*means), effect(*means) - half, effect(*means) + half, error, freedom


def judge(arms, a, b, suite, measure, tol):
    """(verdict, estimate, low, high, p) of a part: a above b; on two suites, the loss of a share of b grows."""
    pair = (a, a.split(":")[0] if b == "itself" else b)
    keys = [(*f"{x}:main".split(":")[:2], at, measure) for at in suite.split(">") for x in pair if x != "ln2"]
    found = [arm(arms, *key) for key in keys]
    if None in found:
        return "not run", None, None, None, None
    assert len({(key[2], how) for key, (_, how) in zip(keys, found, strict=True)}) == len({x[2] for x in keys}), keys
    effect = (lambda x: np.log(2) - x, np.subtract, None, lambda a, b, c, d: a / b - c / d)[len(keys) - 1]
    estimate, low, high, error, freedom = interval(keys, values := [x for x, _ in found], effect)
    told = "supported" if low > -tol else "not supported" if high < -tol or high <= 0 == tol else "inconclusive"
    p = 2 * t.sf(abs(estimate + tol) / error, freedom) if error else float(estimate == -tol)
    seeds = min(len(x) for key, x in zip(keys, values, strict=True) if key[0] != "base")
    return (told, estimate, low, high, p) if seeds > 2 else ("inconclusive", estimate, low, high, None)


def room(arms, suites):
    """Whether the base's mean Pass@8 lies between 10 and 95 % on every suite where it has one."""
    found = [arm(arms, "base", "main", suite, "8") for suite in suites]
    return all(0.10 <= x[0].to_numpy().mean() <= 0.95 for x in found if x)


def at_once(claims):
    """Claims with the parts that Holm's step-down over all of them does not reject made inconclusive."""
    parts = sorted((x[4], name, i) for name, of in claims.items() for i, x in enumerate(of) if x[4] is not None)
    kept = next((i for i, (p, *_) in enumerate(parts) if p * (len(parts) - i) >= 0.05), len(parts))
    lost = {(name, i): ("inconclusive",) for _, name, i in parts[kept:]}
    return {name: [lost.get((name, i), part) for i, part in enumerate(of)] for name, of in claims.items()}


def stopping(waypoints):
    """(method, variant, seed) -> the first way-point whose Pass@1 neither of the next two exceeds by over a point."""
    steps = {}
    for key, of_run in waypoints[waypoints["method"] != "base"].groupby(RUN, observed=True):
        passed = of_run.set_index("step")["pass_1"].sort_index()
        flat = [s for i, s in enumerate(passed.index[:-2]) if passed.iloc[i + 1 : i + 3].max() <= passed[s] + 0.01]
        steps[key] = (*flat, passed.index[-1])[0]
    return steps


def verdicts(records, logs, waypoints=None):
    """Claim -> (verdict, whether a headline's holds with all at once, [(verdict, estimate, low, high, p) per part]).

    At the end of training; with way-points at the stopping points, where only runs that have some are judged.
    """
    steps = records.groupby(RUN, observed=True)["step"].transform("max")
    if waypoints is not None:
        chosen, keys = stopping(waypoints), zip(*(records[name] for name in RUN), strict=True)
        steps = pd.Series([0 if key[0] == "base" else chosen.get(key, -1) for key in keys], records.index)
    rows, out = records[records["step"] == steps].astype({"method": str, "variant": str, "suite": str}), {}
    rows["base"] = rows.get("base", rows["seed"] % 6)  # records of an earlier version are of six bases
    arms = {None: rows.iloc[:0], **dict(list(rows.groupby([*ARM, rows["temperature"] == 0])))}
    for claim, *lists, points, checked in map(str.split, CLAIMS.splitlines()):
        for part in product(*(texts.split(",") for texts in lists)):
            got = judge(arms, *part, int(points) / 100)
            bars = got[0] == "not run" or checked == "-" or room(arms, set(lists[2].replace(">", ",").split(",")))
            out.setdefault(claim, []).append(got if bars else ("not testable", *got[1:4], None))
    logs = logs.query("variant == 'main'").astype({"method": str})
    for method in ("dph_f", "dph_js", "rkl"):  # reference tokens a policy token: none for DPH, some for RKL
        tokens = logs[logs["method"] == method].groupby("seed")[["reference_tokens", "policy_tokens"]].sum()
        ratio = tokens["reference_tokens"] / tokens["policy_tokens"]
        told = ("not supported", "supported")[all((ratio > 0) == (method == "rkl"))]
        told = told if len(ratio) > 2 else "inconclusive" if len(ratio) else "not run"
        out.setdefault("no_reference_model", []).append((told, ratio.mean(), ratio.min(), ratio.max(), None))
    order = ("not supported", "not run", "not testable", "inconclusive", "supported").index
    together = at_once({claim: out[claim] for claim in HEADLINES})
    alone, joint = ({k: min((x[0] for x in of), key=order) for k, of in x.items()} for x in (out, together))
    return {
        claim: (alone[claim], alone[claim] == joint[claim] if claim in joint else None, parts)
        for claim, parts in out.items()
    }


if __name__ == "__main__":
    tables = [pd.read_parquet(f"{sys.argv[1]}/{name}.parquet") for name in ("records", "train_log", "waypoints")]
    for point, given in (("at the end of training", tables[:2]), ("at the stopping points", tables)):
        print(f"{point}:")
        for name, (verdict, jointly, _) in verdicts(*given).items():
            print(f"{verdict:<14}{name}{' (not with all at once)' if jointly is False else ''}")
