"""What the recorded runs say, in numbers and sentences, for docs/findings.md and docs/reviewers.md.

The runs are those of the full reference, `run.FULL`. "Clear" is `analysis.studies`'; between studies nothing is
corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from dphlib.analysis import studies
from dphlib.analysis.labels import NAMES, SUITES, label
from dphlib.analysis.waypoints import at_stopping, stopping_steps
from dphlib.analysis.weights import chosen_weight
from dphlib.experiment.results import Results
from dphlib.intervals import Interval, Scores, interval
from dphlib.scores import ArmScores
from dphlib.settings.studies import comparisons
from dphlib.types import VALIDATION
from tools import parts, run

MOST = 3
"""Comparisons of a study that are told one by one; of more, only the clear ones, and how far the others reach."""
SPOKEN_SUITES = ("in_domain", "out_of_domain")
DPH = ("dph_f", "dph_js")
STOPPED = ("base", "grpo", *DPH)
NO_STOP = "Not answered: the recorded run has no way-points on the validation suite, so no stopping point."


@cache
def load(root: Path) -> Results:
    """The results of the full reference, which three pages show. Raises RunError naming what of them is absent."""
    return Results.load(root / run.FULL, parts.full_profile())


# --- Two arms -----------------------------------------------------------------------------------------


def gap(a: Scores | None, b: Scores | None) -> Interval | None:
    """The first arm's mean minus the second's; None where one is absent."""
    return None if a is None or b is None else interval([a, b], np.subtract)


def effect(got: Interval, unit: str = " points") -> str:
    """A difference with its interval, in points, which a table's head may name in place of the cell, or in nats."""
    scale, digits = (1, 2) if unit == " nats" else (100, 1)
    estimate, low, high = (f"{round(scale * x, digits) + 0.0:+.{digits}f}" for x in (got.estimate, got.low, got.high))
    return f"{estimate}{unit} [{low}, {high}]"


def minus(a: Scores | None, b: Scores | None, what: str) -> list[str]:
    """A difference in points with its interval; nothing where an arm is absent."""
    got = gap(a, b)
    return [f"{what} {effect(got)}"] if got else []


# --- Studies ------------------------------------------------------------------------------------------


def absent(part: str) -> str:
    """What is said of a study, or of some of its arms, that was not run."""
    return f"Not answered: `{part}` is not in the recorded run; `--studies {part.partition(':')[0]}` makes it."


def study_rows(results: Results, part: str) -> pd.DataFrame:
    """A study's rows, of `name` or of the arms alone in `name:method,method`, each with its sentence."""
    name, _, only = part.partition(":")
    table = results.study([name])
    asked = [
        studies.change_of(one, results.settings)
        for one in comparisons(results.settings, name)
        if not only or one.arm.method in only.split(",")
    ]
    said = dict(zip(table["change"].unique(), studies.sentences(table), strict=True))
    return table[table["change"].isin(asked)].assign(sentence=table["change"].map(said))


def spoken(rows: pd.DataFrame, suite: str = "in_domain", measure: str = "Pass@8") -> pd.DataFrame:
    """Of `study_rows`, those that were run, on one suite and measure."""
    return rows[(rows["suite"] == SUITES[suite]) & (rows["measure"] == measure) & (rows["status"] == "run")]


def study_sentences(results: Results, part: str) -> list[str]:
    """Sentences on the comparisons of `study_rows`."""
    name, rows = part.partition(":")[0], study_rows(results, part)
    told = rows["suite"].isin([SUITES[suite] for suite in SPOKEN_SUITES])
    ran = rows[told & (rows["status"] == "run") & (rows["measure"] == "Pass@8")]
    if ran.empty:
        return [absent(part)]
    there, asked = ran["change"].unique(), rows["change"].nunique()
    lines = list(ran["sentence"].unique())
    if len(there) > MOST:
        clear = ran[studies.is_clear(ran)]
        others = spoken(ran[~ran["change"].isin(clear["change"])])
        reach = f"; the intervals of the others on in-domain Pass@8 lie within {span(others)}" if len(others) else ""
        count = clear["change"].nunique()
        head = f"Of {len(there)} comparisons of `{name}`, clear on Pass@8 in or out of domain: {count}{reach}."
        lines = [head, *clear["sentence"].unique()]
    if missing := asked - len(there):
        lines.append(f"Not answered: {missing} of {asked} comparisons of `{name}`, which were not run.")
    return lines


def span(rows: pd.DataFrame) -> str:
    """From the lowest end of the intervals to the highest."""
    return f"[{rows['low'].min():+.1f}, {rows['high'].max():+.1f}] points"


# --- The stopping point, and weights chosen on validation ---------------------------------------------


def stopped(results: Results) -> tuple[ArmScores, pd.Series] | None:
    """Scores of GRPO and DPH, each run at its stopping point, and the runs' steps; None without way-points there."""
    waypoints = results.waypoints
    if waypoints is None or not (waypoints["suite"] == VALIDATION).any():
        return None
    records = results.records[(results.records["variant"] == "main") & results.records["method"].isin(STOPPED)]
    steps = stopping_steps(waypoints[waypoints["variant"] == "main"])
    return ArmScores(at_stopping(records, waypoints)), steps


def against_grpo(scores: ArmScores, at: str, suites: Sequence[str] = tuple(SUITES)) -> list[str]:
    """DPH minus GRPO in Pass@1 and Pass@8, a sentence for each suite that has both."""
    lines = []
    for suite in suites:
        said = [
            text
            for method in DPH
            for k in (1, 8)
            for text in minus(
                scores.get(method, suite, "pass", k),
                scores.get("grpo", suite, "pass", k),
                f"{NAMES[method]} minus GRPO Pass@{k}",
            )
        ]
        lines += [f"{at}, {SUITES[suite]}, uncorrected: {'; '.join(said)}."] if said else []
    return lines


def stopped_sentences(results: Results, suites: Sequence[str] = tuple(SUITES)) -> list[str]:
    """DPH against GRPO, each run at its stopping point, and where that is."""
    if (found := stopped(results)) is None:
        return [NO_STOP]
    return [*against_grpo(found[0], "Each at its stopping point", suites), mean_stops(found[1])]


def mean_stops(steps: pd.Series) -> str:
    """A sentence on the steps that `stopped` gives."""
    means = steps.groupby(level="method", observed=True).mean()
    stops = ", ".join(f"{NAMES[m]} {means[m]:.0f}" for m in STOPPED if m in means)
    return f"Mean iteration of the stopping point: {stops}."


def tuned_sentences(results: Results) -> list[str]:
    """DPH-F against reverse KL in three forms, each at the weight that validation chooses of three."""
    methods = ("dph_f", "rkl", "rkl_k2", "dph_rkl")
    if results.waypoints is None:
        return ["Not answered: the recorded run has no way-points, so no weight was chosen."]
    chosen = {m: chosen_weight(results.waypoints, results.settings, m) for m in methods}
    if (mine := chosen["dph_f"]) is None:
        return ["Not answered: the study `eta` with way-points is not in the recorded run, so no weight was chosen."]
    lines, said = [], []
    for method in methods[1:]:
        if (other := chosen[method]) is None:
            lines.append(f"Not answered: {NAMES[method]} has no weight chosen on validation.")
            continue
        a, b = (results.scores.get(arm.method, "in_domain", "pass", 8, arm.variant) for arm in (mine, other))
        said += minus(a, b, f"minus {label(*other)}")
    if said:
        what = f"Each weight chosen on validation, in-domain Pass@8, uncorrected: {label(*mine)}"
        lines.insert(0, f"{what} {'; '.join(said)}.")
    return lines
