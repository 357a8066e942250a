"""The full reference in parts: the runs of one seed at a time are made, and what is recorded of them is kept.

    python -m tools.parts make 0 1 2            # seeds, the decisive arms first; a part that is there is kept
    python -m tools.parts make 0 --others       # all other arms of these seeds
    python -m tools.parts make 0 --exploratory  # what their decisive arms answer beyond the protocol
    python -m tools.parts join                  # the parts as one run's results: figures, tables, claims

An interrupted part goes on from the stages that are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from dphlib.report.facts import read_json
from dphlib.runtime.files import RunError, UserError, sha256_file, write_json
from dphlib.runtime.machine import machine, pin_kernels, versions
from dphlib.runtime.places import ARTIFACTS, PROTOCOL
from dphlib.settings.methods import DECISIVE
from dphlib.settings.profiles import Profile, profile
from dphlib.settings.studies import EXPLORATORY, STUDIES, planned_runs
from dphlib.settings.variants import MAIN, RunConfig

SEEDS, STUDY_SEEDS = "18", "6"
PARTS, FULL = ARTIFACTS / "parts", ARTIFACTS / "full"
DESCRIPTION = "part.json"

Kind = Literal["decisive", "others", "exploratory"]
"""How a part's folder begins: records of arms, or `experiment.exploratory`'s of the decisive ones."""


def full_profile() -> Profile:
    return profile("cpu", SEEDS, STUDY_SEEDS)


def runs_of(seed: int, kind: Kind) -> list[RunConfig]:
    """The runs of the full reference with a seed: main runs of `DECISIVE`, or all others."""
    planned = planned_runs(full_profile(), tuple(STUDIES))
    decisive = {run for run in planned if run.variant == MAIN and run.method in DECISIVE}
    return [run for run in planned if run.seed == seed and (run in decisive) == (kind != "others")]


def make(seed: int, kind: Kind, folder: Path = PARTS) -> Path | None:
    """Makes a part; None where the seed has no such runs."""
    from dphlib.experiment import exploratory
    from dphlib.experiment.pipeline import Pipeline
    from dphlib.experiment.results import collect, write_beyond

    out = folder / f"{kind}-{seed:02d}"
    if (out / DESCRIPTION).is_file():
        return out
    if not (runs := runs_of(seed, kind)):
        return None
    pipeline = Pipeline(ARTIFACTS / "cpu", full_profile())
    if kind == "exploratory":
        write_beyond({name: exploratory.records(pipeline, name, runs) for name in EXPLORATORY}, out)
    else:
        collect(pipeline, runs, with_answers=seed == 0).write(out)  # one seed's are enough to read
    made_by = {"machine": machine(), "versions": versions(), "protocol": sha256_file(PROTOCOL)}
    write_json(out / DESCRIPTION, {"runs": [run.name for run in runs], **made_by})
    return out


def join(parts: Sequence[Path], out: Path = FULL) -> None:
    """All parts as one run's results.

    Raises:
        RunError: none, parts of different protocols, or a record that two of them have differently.
    """
    from dphlib.experiment.agreement import KEY
    from dphlib.experiment.results import Results, draw, read_beyond

    of_arms = [part for part in parts if not part.name.startswith("exploratory")]
    if not of_arms:
        raise RunError(f"no part with records of arms below {PARTS}; make one first")
    protocols = {read_json(part / DESCRIPTION)["protocol"] for part in parts}
    if len(protocols) > 1:
        raise RunError(f"the parts below {PARTS} were made by {len(protocols)} protocols; make those of the older anew")
    loaded = [Results.load(part, full_profile()) for part in of_arms]
    on_the_way = [each.waypoints for each in loaded if each.waypoints is not None]
    answers = [each.answers for each in loaded if each.answers is not None]
    beyond = [read_beyond(part) for part in parts]

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
        waypoints=joined(on_the_way, [*run, "step"]) if on_the_way else None,
        beyond={
            name: joined(found, KEY)
            for name in EXPLORATORY
            if (found := [each[name] for each in beyond if name in each])
        },
        answers=joined(answers, ["problem_id", "method", "answer"]) if answers else None,
    )
    results.write(out)
    draw(Results.load(out, full_profile()), out)


def main(arguments: list[str] | None = None) -> int:
    pin_kernels(instructions=True)  # before torch is imported
    parser = argparse.ArgumentParser(prog="python -m tools.parts", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="make the parts of some seeds")
    making.add_argument("seeds", type=int, nargs="+")
    kinds = making.add_mutually_exclusive_group()
    kinds.add_argument("--others", action="store_true", help="the arms that no headline claim compares")
    kinds.add_argument("--exploratory", action="store_true", help="what decisive arms answer beyond the protocol")
    commands.add_parser("join", help="join the parts that are there")
    options = parser.parse_args(arguments)
    try:
        if options.command == "make":
            kind: Kind = "others" if options.others else "exploratory" if options.exploratory else "decisive"
            for seed in options.seeds:
                print(make(seed, kind) or f"seed {seed}: no such run", flush=True)
        else:
            join(sorted(path.parent for path in PARTS.glob(f"*/{DESCRIPTION}")))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
