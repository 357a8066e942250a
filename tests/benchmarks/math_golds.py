"""Every gold of every mathematics set against itself, as it is and respelt: `python tests/benchmarks/math_golds.py`.

Respelt by the rules of `RESPELLINGS` (strict mode only), which say the same in other spaces, Unicode and so on. Some
minutes of two cores, nearly all of them for College Math. Exits with 1 if anything but the golds listed in
tests/math_disagreements.json is refused as it is; tests/test_math_data.py does the same on samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dphlib.verify.math import AS_TEXT, MathVerifier
from tests.math_cases import GOLD_FIELDS, LISTED, RESPELLINGS, gold_answers, self_answer

MODES = ("strict", "compat")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mode", choices=MODES, action="append", help="both, unless given")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for mode in arguments.mode or MODES:
        with MathVerifier(mode, workers=arguments.workers, timeout_s=30.0) as verifier:
            for name in GOLD_FIELDS:
                start, golds = time.perf_counter(), gold_answers(name)
                verdicts = verifier.verify_many([(gold, self_answer(mode, gold)) for gold in golds])
                refused = {i: verdict.outcome for i, verdict in enumerate(verdicts) if verdict.outcome != "correct"}
                known = {r["index"]: r["ours"] for r in LISTED["golds"] if (r["mode"], r["set"]) == (mode, name)}
                row = {"mode": mode, "set": name, "golds": len(golds), "refused": len(refused), "listed": len(known)}
                row["as_listed"] = refused == known
                if mode == "strict":
                    row["as_text"] = sum(verdict.detail == AS_TEXT for verdict in verdicts)
                    for rule, respell in RESPELLINGS.items():
                        others = [(gold, other) for gold in golds if (other := respell(gold)) != gold]
                        pairs = [(gold, f"\\boxed{{{other}}}") for gold, other in others]
                        right = [verdict.outcome == "correct" for verdict in verifier.verify_many(pairs)]
                        row[rule] = f"{sum(right)}/{len(right)}"
                rows.append(row | {"wall_s": round(time.perf_counter() - start, 1)})
                if not arguments.json:
                    print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.json:
        print(json.dumps(rows, indent=1))
    return 0 if all(row["as_listed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
