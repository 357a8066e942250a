"""Speed of the mathematics verifier beside plain math-verify: `python tests/benchmarks/math_verifier.py [--json]`.

Three loads from ../shared/data: the golds of GSM8K (test) and of MATH-500 as answers to themselves, and 400 sampled
answers to MATH problems. Ours runs with two workers, their start included, nothing remembered; plain math-verify in
this process, with its own time limits. Compare figures of one run only. Exits with 1 if the golds of the first two
took strict mode 30 s or more, or if one of them did not verify.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dphlib.verify.math import MathVerifier
from tests.math_cases import gold_answers, read_rows, self_answer

LIMIT_S = 30.0


def loads() -> dict[str, list[tuple[str, str]]]:
    """Pairs of gold and answer by name of the load."""
    golds = {name: gold_answers(name) for name in ("gsm8k_test", "math500")}
    answers = read_rows("outcomes/qwen25_math_8samples.jsonl")
    pairs = {name: [(gold, self_answer("strict", gold)) for gold in many] for name, many in golds.items()}
    return pairs | {"sampled answers": [(row["gt"], text) for row in answers for text in row["code"]]}


def time_ours(mode: str, pairs: list[tuple[str, str]], workers: int) -> tuple[float, int]:
    """Seconds, and how many were correct."""
    start = time.perf_counter()
    with MathVerifier(mode, workers=workers) as verifier:
        correct = sum(verdict.outcome == "correct" for verdict in verifier.verify_many(pairs))
    return time.perf_counter() - start, correct


def time_plain(pairs: list[tuple[str, str]]) -> tuple[float, int]:
    """The same of `math_verify.verify(parse(gold), parse(answer))`, the gold marked as mathematics."""
    from math_verify import parse, verify

    start = time.perf_counter()
    correct = sum(verify(parse(gold if "$" in gold else f"${gold}$"), parse(answer)) for gold, answer in pairs)
    return time.perf_counter() - start, correct


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.disable()
    time_plain([("$x$", "$x$")])  # loads sympy, which is no part of the comparison
    rows = []
    for name, pairs in loads().items():
        timed = {f"ours, {mode}": time_ours(mode, pairs, arguments.workers) for mode in ("strict", "compat")}
        timed["plain math-verify"] = plain = time_plain(pairs)
        for verifier, (seconds, correct) in timed.items():
            row = {"load": name, "pairs": len(pairs), "verifier": verifier, "wall_s": round(seconds, 2)}
            row |= {"correct": correct, "pairs_per_s": round(len(pairs) / seconds)}
            rows.append(row | {"times_plain": round(plain[0] / seconds, 2)})
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'load':16}{'verifier':20}{'pairs':>6}{'correct':>9}{'s':>8}{'a second':>10}{'times plain':>13}")
        for row in rows:
            print(
                f"{row['load']:16}{row['verifier']:20}{row['pairs']:>6}{row['correct']:>9}{row['wall_s']:>8.2f}"
                f"{row['pairs_per_s']:>10}{row['times_plain']:>13.2f}"
            )
    golds = [row for row in rows if row["verifier"] == "ours, strict" and row["load"] != "sampled answers"]
    fast = sum(row["wall_s"] for row in golds) < LIMIT_S
    return 0 if fast and all(row["correct"] == row["pairs"] for row in golds) else 1


if __name__ == "__main__":
    sys.exit(main())
