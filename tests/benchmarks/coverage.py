"""How often the intervals hold the truth, and how often a family of comparisons raises a false alarm, by simulation.

    python tests/benchmarks/coverage.py [--trials 300] [--json tests/benchmarks/coverage.json]

A problem's chance of a correct answer is drawn from [0.1, 0.9], each of 64 problems is answered 16 times, and each seed
of a trained arm shifts all chances by a normal deviate. `coverage`: share of 95 % intervals of the arm minus the base
that hold the true difference (of all problems and seeds, not of those drawn), beside a plain percentile bootstrap.
`families`: five arms of no true difference against a sixth, the share of families with at least one interval that
leaves zero out, and with at least one Holm's p below 0.05. docs/findings.md shows the recorded numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dphlib.stats import hierarchical_bootstrap, holm, pass_at_k

PROBLEMS, ANSWERS, COMPARISONS = 64, 16, 5
SPREADS, SEEDS, KS = (0.0, 0.02, 0.06), (3, 5), (1, 8)


def chances(rng: np.random.Generator, base_P: np.ndarray, seeds: int, spread: float) -> np.ndarray:
    return np.clip(base_P + rng.normal(0, spread, (seeds, 1)), 0, 1)


def measured(rng: np.random.Generator, chance: np.ndarray, k: int) -> np.ndarray:
    return pass_at_k(ANSWERS, rng.binomial(ANSWERS, chance), k)


def true_difference(spread: float, k: int) -> float:
    """Of Pass@k, over all problems and seeds: Pass@k is not linear in the chance, so shifts of mean 0 change it."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.9, 2_000_000)
    return float(np.mean((1 - base) ** k - (1 - np.clip(base + rng.normal(0, spread, base.size), 0, 1)) ** k))


def percentile_interval(rng: np.random.Generator, tuned_SP: np.ndarray, base_P: np.ndarray) -> tuple[float, float]:
    """The draws' own quantiles, seeds and problems resampled."""
    seeds = rng.multinomial(len(tuned_SP), np.full(len(tuned_SP), 1 / len(tuned_SP)), 1000) / len(tuned_SP)
    problems = rng.multinomial(PROBLEMS, np.full(PROBLEMS, 1 / PROBLEMS), 1000) / PROBLEMS
    draws = np.einsum("ds,sp,dp->d", seeds, tuned_SP - base_P, problems, optimize=True)
    return tuple(np.quantile(draws, (0.025, 0.975)))


def coverage(trials: int) -> list[dict[str, float]]:
    rows = []
    for k in KS:
        for seeds in SEEDS:
            for spread in SPREADS:
                rng, truth = np.random.default_rng([k, seeds, round(100 * spread)]), true_difference(spread, k)
                held, percentile, widths = 0, 0, []
                for trial in range(trials):
                    rate_P = rng.uniform(0.1, 0.9, PROBLEMS)
                    base_P = measured(rng, rate_P, k)
                    tuned_SP = measured(rng, chances(rng, rate_P, seeds, spread), k)
                    got = hierarchical_bootstrap(tuned_SP, base_P, draws=1000, rng_seed=trial)
                    held += got.low <= truth <= got.high
                    low, high = percentile_interval(rng, tuned_SP, base_P)
                    percentile += low <= truth <= high
                    widths.append(got.high - got.low)
                row = {"k": k, "seeds": seeds, "spread_points": 100 * spread, "trials": trials}
                shares = {"coverage": held / trials, "percentile_coverage": percentile / trials}
                rows.append(row | shares | {"half_width_points": round(50 * float(np.mean(widths)), 2)})
                print(rows[-1], flush=True)
    return rows


def families(trials: int) -> list[dict[str, float]]:
    rows = []
    for seeds in SEEDS:
        for spread in SPREADS[1:]:
            rng, plain, corrected = np.random.default_rng([seeds, round(100 * spread)]), 0, 0
            for trial in range(trials):
                rate_P = rng.uniform(0.1, 0.9, PROBLEMS)
                main, *arms = (measured(rng, chances(rng, rate_P, seeds, spread), 1) for _ in range(1 + COMPARISONS))
                p = [hierarchical_bootstrap(arm, main, draws=1000, rng_seed=trial).p for arm in arms]
                plain, corrected = plain + (min(p) < 0.05), corrected + (holm(p).min() < 0.05)
            row = {"comparisons": COMPARISONS, "seeds": seeds, "spread_points": 100 * spread, "trials": trials}
            rows.append(row | {"plain": plain / trials, "holm": float(corrected / trials)})
            print(rows[-1], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--json", type=Path, help="write both tables there too")
    options = parser.parse_args(arguments)
    made = {"coverage": coverage(options.trials), "families": families(options.trials)}
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
