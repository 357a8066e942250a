"""How wide an interval will be, and how likely an effect is found, at so many base models, runs, problems and families.

    python tests/benchmarks/power.py --records results/records.parquet --arms dph_f grpo --suite in_domain --measure 8
    python tests/benchmarks/power.py --components 2 3 35 40 --bases 6 --runs 1 3 --problems 384

An effect, arm minus arm, has four standard deviations, in points: between base models (of the difference; pairing
removes the level), between runs from one base, between problems of one family, and of one run on one problem, sampling
error included. Each but the first adds up over both arms. With them the variance of `dphlib.intervals` is

    V = (base^2 + run^2 / r) / B + problem^2 / P + residual^2 / (B r P),

with B base models, r runs from each, P problems in F families. The half-width is Student's quantile times sqrt(V), at
Satterthwaite's degrees of freedom; the power is noncentral t's. Records of one base model cannot show the first, which
`--base` then gives; more answers per problem than the records have would lower the last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import nct, t

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dphlib.stats import pass_at_k


class Components(NamedTuple):
    """Standard deviations of an effect, in the effect's unit; see the module."""

    base: float
    run: float
    problem: float
    residual: float


class Design(NamedTuple):
    bases: int
    runs: int
    problems: int
    families: int


def power(of: Components, at: Design, effect: float, level: float = 0.95) -> dict[str, float]:
    """Half-width, degrees of freedom and the chance that the interval of such an effect leaves zero out.

    With one base model the runs are the units, and the effect is that on this base.
    """
    base, run, problem, residual = (deviation**2 for deviation in of)
    overlap = residual / (at.bases * at.runs * at.problems)
    units, freedom = (base + run / at.runs) / at.bases, at.bases - 1
    if at.bases == 1:
        units, freedom = run / at.runs, 2 * (at.runs - 1)  # both arms' runs
    if freedom < 1:
        raise ValueError(f"{at}: one base and one run have no spread")
    problems = problem / at.problems
    variance = units + problems + overlap
    parts = ((units + overlap, freedom), (problems + overlap, at.problems - at.families))
    nu = variance**2 / sum(v * v / f for v, f in parts)
    bound, away = t.ppf(0.5 + level / 2, nu), effect / np.sqrt(variance)
    chance = nct.sf(bound, nu, away) + nct.cdf(-bound, nu, away)
    return {"half_width": bound * np.sqrt(variance), "freedom": nu, "power": float(chance)}


# --- Components from records ----------------------------------------------------------------------


def counts(records: pd.DataFrame, method: str, variant: str, suite: str, greedy: bool) -> pd.DataFrame:
    """seed, problem_id, subset, n, correct of an arm's final models; from one row per problem, or one per answer."""
    rows = records[(records["method"] == method) & (records["variant"] == variant)]
    rows = rows[(rows["step"] == rows.groupby("seed")["step"].transform("max")) & (rows["suite"] == suite)]
    rows = rows[(rows["temperature"] == 0) == greedy]
    if rows.empty:
        raise SystemExit(f"no records of {method} ({variant}) on {suite}")
    if "n" not in rows:
        rows = rows[rows["outcome"] != "infra_error"].assign(n=1)
    keys = ["seed", "problem_id", "subset"]
    return rows.groupby(keys, observed=True)[["n", "correct"]].sum().reset_index()


def matrix(records: pd.DataFrame, arm: str, suite: str, measure: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Runs x problems in points, and each problem's family."""
    method, _, variant = arm.partition(":")
    table = counts(records, method, variant or "main", suite, measure == "greedy")
    k = 1 if measure == "greedy" else int(measure)
    table["value"] = 100 * pass_at_k(table["n"].to_numpy(), table["correct"].to_numpy(), k)
    wide = table.pivot(index="seed", columns="problem_id", values="value")
    return wide, table.groupby("problem_id")["subset"].first().loc[wide.columns].to_numpy()


def components(arms: Sequence[pd.DataFrame], families: np.ndarray, bases: int) -> Components:
    """Of the first arm minus the second, by the method of moments; a negative estimate of a variance is 0.

    Args:
        arms: runs x problems of each, the index the seed, whose base model is `seed % bases`.
        families: of the problems.
        bases: 1 where all runs have the same.
    """
    problems, freedom = len(families), len(families) - len(set(families))
    run = residual = of_run = of_residual = 0.0
    per_base = []
    for wide in arms:
        values, base = wide.to_numpy(), wide.index.to_numpy() % bases
        means = wide.groupby(base).mean()
        apart, degrees = values - means.loc[base].to_numpy(), len(values) - len(means)
        if degrees < 1:
            raise SystemExit("no base model has two runs of an arm, so runs and bases cannot be told apart")
        of_both = float((_about_families(apart, families) ** 2).sum()) / (degrees * freedom)
        of_runs = float((apart.mean(axis=1) ** 2).sum()) / degrees
        residual, run = residual + of_both, run + of_runs - of_both / problems
        of_run, of_residual = of_run + of_runs * len(means) / len(values), of_residual + of_both / len(values)
        per_base.append(means)
    effect = (per_base[0] - per_base[1]).dropna()  # of the bases that both have
    squares = float((_about_families(effect.mean().to_numpy()[None], families) ** 2).sum())
    between = float(effect.mean(axis=1).var()) - of_run if len(effect) > 1 else 0.0
    variances = (between, run, squares / freedom - of_residual, residual)
    return Components(*(float(np.sqrt(max(0.0, variance))) for variance in variances))


def _about_families(values: np.ndarray, families: np.ndarray) -> np.ndarray:
    """Units x problems, less each unit's mean of the problem's family."""
    columns = pd.DataFrame(values.T)
    return (columns - columns.groupby(families).transform("mean")).to_numpy().T


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--arms", nargs=2, default=["dph_f", "grpo"], help="method or method:variant")
    parser.add_argument("--suite", default="in_domain")
    parser.add_argument("--measure", default="8", help="k of Pass@k, or greedy")
    parser.add_argument("--components", nargs=4, type=float, metavar=("BASE", "RUN", "PROBLEM", "RESIDUAL"))
    parser.add_argument("--base", type=float, help="standard deviation between bases, in place of the records'")
    for name, default in (("bases", [3, 6]), ("runs", [1, 2, 3]), ("problems", [256, 384, 512]), ("families", [30])):
        parser.add_argument(f"--{name}", nargs="+", type=int, default=default)
    parser.add_argument("--effect", type=float, default=3.0, help="points")
    options = parser.parse_args(arguments)
    if options.components:
        found = Components(*options.components)
    elif options.records:
        records = pd.read_parquet(options.records)
        bases = max(1, records.loc[records["method"] == "base", "seed"].nunique())
        (first, families), (second, _) = (matrix(records, arm, options.suite, options.measure) for arm in options.arms)
        found = components([first, second], families, bases)
        runs = f"{bases} bases, {len(first)} and {len(second)} runs"
        print(f"{first.shape[1]} problems, {len(set(families))} families, {runs}")
    else:
        parser.error("--records or --components is needed")
    if options.base is not None:
        found = found._replace(base=options.base)
    print("standard deviations (points):", ", ".join(f"{k} {v:.2f}" for k, v in found._asdict().items()))
    print(f"{'bases':>6}{'runs':>6}{'problems':>10}{'families':>10}{'half-width':>12}{'freedom':>9}{'power':>7}")
    for design in map(Design._make, product(options.bases, options.runs, options.problems, options.families)):
        got = power(found, design, options.effect)
        print("{:>6}{:>6}{:>10}{:>10}".format(*design), "{half_width:>11.2f}{freedom:>9.1f}{power:>7.2f}".format(**got))
    return 0


if __name__ == "__main__":
    sys.exit(main())
