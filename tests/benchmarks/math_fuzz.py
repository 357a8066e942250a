"""Random LaTeX against random golds: `python tests/benchmarks/math_fuzz.py [--cases 100000] [--seed 0] [--json]`.

Each case is a gold and an answer made of the parts in tests/math_cases.py. Exits with 1 if a gold that verifies
against itself gave an `infra_error`, or one that does not gave a reward.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dphlib.verify.math import MathVerifier
from tests.math_cases import PIECES

ANSWERS_PER_GOLD = 100


def text_of(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.choice((1, 1, 2, 2, 2, 3, 4, 6))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=5.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rng, counts, faults = random.Random(arguments.seed), Counter(), []
    start, golds = time.perf_counter(), 0
    with MathVerifier(workers=arguments.workers, timeout_s=arguments.timeout_s) as verifier:
        while counts.total() < arguments.cases:
            batch = [text_of(rng) for _ in range(20)]
            own = {
                gold: verdict.reward
                for gold, verdict in zip(
                    batch, verifier.verify_many([(g, f"\\boxed{{{g}}}") for g in batch]), strict=True
                )
            }
            golds += sum(reward == 1.0 for reward in own.values())
            items = [(gold, f"\\boxed{{{text_of(rng)}}}") for gold in batch for _ in range(ANSWERS_PER_GOLD)]
            items = items[: arguments.cases - counts.total()]
            for (gold, text), verdict in zip(items, verifier.verify_many(items), strict=True):
                counts[verdict.outcome] += 1
                if own[gold] == 1.0 and verdict.reward is None:
                    faults.append((gold, text, verdict.detail))
            if not arguments.json:
                print(f"{counts.total():,} cases, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    record = {"cases": counts.total(), "readable_golds": golds, "wall_s": round(time.perf_counter() - start, 1)}
    record |= {"outcomes": dict(counts.most_common()), "faults": faults[:20], "n_faults": len(faults)}
    print(json.dumps(record, indent=1) if arguments.json else "\n".join(f"{k}: {v}" for k, v in record.items()))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
