"""The full reference in parts: the runs of one seed at a time are made, and what is recorded of them is kept.

    python -m tools.parts make 0 1 2            # seeds, the decisive arms first; a part that is there is kept
    python -m tools.parts make 0 --others       # all other arms of these seeds
    python -m tools.parts join                  # the parts as one run's results: figures, tables, claims

An interrupted part goes on from the stages that are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dphlib.report.facts import read_json
from dphlib.runtime.files import RunError, UserError, sha256_file, write_json
from dphlib.runtime.machine import machine, pin_kernels, versions
from dphlib.runtime.places import ARTIFACTS, PROTOCOL
from dphlib.settings.methods import DECISIVE
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.studies import STUDIES, planned_runs
from dphlib.settings.variants import MAIN, RunConfig

SEEDS, STUDY_SEEDS = "18", "6"
PARTS, FULL = ARTIFACTS / "parts", ARTIFACTS / "full"
DESCRIPTION = "part.json"


def full_profile() -> Profile:
    return profile("cpu", SEEDS, STUDY_SEEDS)


def runs_of(seed: int, others: bool) -> list[RunConfig]:
    """The runs of the full reference with a seed: main runs of `DECISIVE`, or all others."""
    planned = planned_runs(full_profile(), tuple(STUDIES))
    decisive = {run for run in planned if run.variant == MAIN and run.method in DECISIVE}
    return [run for run in planned if run.seed == seed and (run in decisive) != others]


def make(seed: int, others: bool, folder: Path = PARTS) -> Path | None:
    """Makes a part; None where the seed has no such runs."""
    from dphlib.experiment.pipeline import Pipeline
    from dphlib.experiment.results import collect

    out = folder / f"{'others' if others else 'decisive'}-{seed:02d}"
    if (out / DESCRIPTION).is_file():
        return out
    if not (runs := runs_of(seed, others)):
        return None
    results = collect(Pipeline(ARTIFACTS / "cpu", full_profile()), runs)
    results.write(out)
    made_by = {"machine": machine(), "versions": versions(), "protocol": sha256_file(PROTOCOL)}
    write_json(out / DESCRIPTION, {"runs": [run.name for run in runs], **made_by})
    return out


def join(parts: Sequence[Path], out: Path = FULL) -> None:
    """All parts as one run's results.

    Raises:
        RunError: none, parts of different protocols, or a record that two of them have differently.
    """
    from dphlib.experiment.agreement import KEY
    from dphlib.experiment.results import Results, draw

    if not parts:
        raise RunError(f"no part below {PARTS}; make one first")
    protocols = {read_json(part / DESCRIPTION)["protocol"] for part in parts}
    if len(protocols) > 1:
        raise RunError(f"the parts below {PARTS} were made by {len(protocols)} protocols; make those of the older anew")
    loaded = [Results.load(part, full_profile()) for part in parts]

    def joined(frames: Sequence[pd.DataFrame], key: list[str]) -> pd.DataFrame:
        rows = pd.concat([frame.astype({name: str for name in frame.select_dtypes("category")}) for frame in frames])
        rows = rows.drop_duplicates(ignore_index=True)
        if (twice := rows.duplicated(key)).any():
            raise RunError(f"two parts differ in {rows.loc[twice.idxmax(), key].to_dict()}; make them anew")
        return rows

    run = ["method", "variant", "seed"]
    results = Results(
        full_profile(),
        joined([each.records for each in loaded], KEY),
        joined([each.train_logs for each in loaded], [*run, "iteration"]),
        joined([each.presample for each in loaded], ["base", "suite", "problem_id"]),
        waypoints=joined([each.waypoints for each in loaded if each.waypoints is not None], [*run, "step"]),
    )
    results.write(out)
    draw(Results.load(out, full_profile()), out)


def main(arguments: list[str] | None = None) -> int:
    pin_kernels(instructions=True)  # before torch is imported
    parser = argparse.ArgumentParser(prog="python -m tools.parts", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="make the parts of some seeds")
    making.add_argument("seeds", type=int, nargs="+")
    making.add_argument("--others", action="store_true", help="the arms that no headline claim compares")
    commands.add_parser("join", help="join the parts that are there")
    options = parser.parse_args(arguments)
    try:
        if options.command == "make":
            for seed in options.seeds:
                print(make(seed, options.others) or f"seed {seed}: no such run", flush=True)
        else:
            join(sorted(path.parent for path in PARTS.glob(f"*/{DESCRIPTION}")))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
