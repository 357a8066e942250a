"""How often the intervals hold the truth, and how often a family of comparisons raises a false alarm, by simulation.

    python tests/benchmarks/coverage.py [--trials 1000] [--json tests/benchmarks/coverage.json]

Two arms answer 384 problems of 30 families. The logit of a correct answer is the sum of normal deviates: of the
problem, of arm and problem, of the base model, of arm and base, of the run, of run and problem; families are fixed. A
score is unbiased Pass@8 of 16 answers, or the greedy answer: right where the logit is above zero. `coverage`: the share
of 95 % intervals of the difference (or the ratio) that hold the true one, of all problems, bases and runs. `families`:
five arms of no true difference against a sixth, the share of families with at least one interval that leaves zero out,
and with at least one Holm's p below 0.05. docs/method.md shows the recorded numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dphlib.intervals import Scores, holm, interval
from dphlib.stats import pass_at_k

PROBLEMS, FAMILIES, ANSWERS, K, COMPARISONS = 384, 30, 16, 8, 5
PASSED = np.array([pass_at_k(ANSWERS, c, K) for c in range(ANSWERS + 1)])
FAMILY_LEVELS = -1.5 + np.random.default_rng(0).normal(0, 0.6, FAMILIES)


class World(NamedTuple):
    """What is simulated.

    Args:
        bases: base models.
        runs: runs of each arm from each of them.
        interaction: standard deviation, in logits, of arm and base together.
        run: of the run.
        base: of the base model, alike for all arms.
        run_problem: of run and problem together.
        shift: of the second arm's logits.
        greedy: whether the score is the greedy answer.
    """

    bases: int
    runs: int
    interaction: float = 0.0
    run: float = 0.0
    base: float = 0.5
    run_problem: float = 0.4
    shift: float = 0.0
    greedy: bool = False


WORLDS = {
    "no spread between runs": [World(b, r) for b, r in ((6, 3), (6, 1), (3, 3), (3, 1), (2, 3), (1, 5), (1, 3))],
    "runs differ": [World(b, r, run=0.3) for b, r in ((6, 3), (6, 1), (3, 1), (1, 5), (1, 3))],
    "bases change the order of the arms": [World(b, r, interaction=0.5) for b, r in ((6, 3), (3, 3), (3, 1), (2, 3))],
    "one arm better": [World(6, 3, interaction=0.1, shift=0.5), World(3, 1, interaction=0.1, shift=0.5)],
    "greedy": [World(b, r, greedy=True) for b, r in ((6, 3), (3, 1))],
    "greedy, the same in every run": [World(b, r, base=0.0, run_problem=0.0, greedy=True) for b, r in ((6, 3), (3, 1))],
}


def arms(rng: np.random.Generator, world: World, count: int = 2) -> list[Scores]:
    """The scores of `count` arms on the same problems, all but the first shifted."""
    size = world.bases * world.runs
    base_of = np.arange(size) % world.bases
    family_of = np.arange(PROBLEMS) % FAMILIES
    problem_P = FAMILY_LEVELS[family_of] + rng.normal(0, 1.2, PROBLEMS)
    level_B = rng.normal(0, world.base, world.bases)
    ids, strata = ([f"{prefix}{i:03}" for i in of] for prefix, of in (("p", range(PROBLEMS)), ("f", family_of)))
    made = []
    for arm in range(count):
        logits_SP = problem_P + rng.normal(0, 0.5, PROBLEMS) + world.shift * (arm > 0)
        logits_SP = logits_SP + (level_B + rng.normal(0, world.interaction, world.bases))[base_of, None]
        logits_SP = logits_SP + rng.normal(0, world.run, (size, 1)) + rng.normal(0, world.run_problem, (size, PROBLEMS))
        if world.greedy:
            values_SP = (logits_SP > 0).astype(float)
        else:
            values_SP = PASSED[rng.binomial(ANSWERS, 1 / (1 + np.exp(-logits_SP)))]
        named = (f"arm {arm}", "suite", tuple(range(size)), tuple(ids), values_SP)
        made.append(Scores(*named, tuple(base_of.tolist()), tuple(strata)))
    return made


def true_means(world: World, draws: int = 200_000) -> tuple[float, float]:
    """Of both arms, over all problems, bases and runs."""
    rng = np.random.default_rng(0)
    deviations = (1.2, 0.5, world.base, world.interaction, world.run, world.run_problem)
    logits = FAMILY_LEVELS[:, None] + np.sqrt(sum(d * d for d in deviations)) * rng.normal(size=draws)

    def mean(shift: float) -> float:
        shifted = logits + shift
        return float(np.mean(shifted > 0 if world.greedy else 1 - (1 + np.exp(shifted)) ** -float(K)))

    return mean(0.0), mean(world.shift)


def covered(world: World, trials: int, ratio: bool = False) -> dict[str, float]:
    """Share of the intervals that hold the truth, in per cent, and the mean half-width in points."""
    rng, effect = np.random.default_rng(11), np.divide if ratio else np.subtract
    first, second = true_means(world) if world.shift else (1.0, 1.0)
    truth, held, widths = effect(first, second), 0, []
    for _ in range(trials):
        got = interval(arms(rng, world), effect)
        held += got.low <= truth <= got.high
        widths.append(got.high - got.low)
    return {"coverage": round(100 * float(held) / trials, 2), "half_width": round(50 * float(np.mean(widths)), 2)}


def coverage(trials: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name, worlds in WORLDS.items():
        for world in worlds:
            for ratio in (False, True) if world.shift else (False,):
                row = {"world": name, "bases": world.bases, "runs": world.runs, "ratio": ratio, "trials": trials}
                rows.append(row | covered(world, trials, ratio))
                print(rows[-1], flush=True)
    return rows


def families(trials: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for world in (World(6, 3, run=0.3), World(3, 1, run=0.3), World(1, 5, run=0.3)):
        rng, plain, corrected = np.random.default_rng(12), 0, 0
        for _ in range(trials):
            main, *others = arms(rng, world, 1 + COMPARISONS)
            p = [interval([other, main], np.subtract).p_of() for other in others]
            plain, corrected = plain + (min(p) < 0.05), corrected + (holm(p).min() < 0.05)
        row = {"comparisons": COMPARISONS, "bases": world.bases, "runs": world.runs, "trials": trials}
        rows.append(row | {"plain": round(100 * plain / trials, 2), "holm": round(100 * float(corrected) / trials, 2)})
        print(rows[-1], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write both tables there too")
    options = parser.parse_args(arguments)
    made = {"coverage": coverage(options.trials), "families": families(options.trials)}
    if options.json:
        options.json.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
