"""The generated blocks of docs/findings.md, "What holds, what does not, and what we could not test".

Every number, and every word that depends on a verdict, is made from the committed reference run. What that run does not
hold is said to be absent, with the command that makes it.

1. "All claims at once" and the studies have Holm's correction.
2. Coverage was simulated by tests/benchmarks/coverage.py; its recorded numbers are read, not made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis import retention, studies
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.cli.replot import recorded_profile
from dphlib.experiment.hard import hard_table
from dphlib.experiment.results import Results, recorded_studies
from dphlib.intervals import interval
from dphlib.report.facts import read_json
from dphlib.scores import ArmScores
from dphlib.settings.methods import HEADLINE
from dphlib.settings.studies import arms_beyond
from tools import blocks, run

COVERAGE = Path("tests", "benchmarks", "coverage.json")
STUDIES = ("strength", "eta", "controls", "length", "entropy_bonus", "clip_higher")
CONTROLS = {
    "the data selection alone": ("GRPO on D_exp", "GRPO"),
    "forward KL on top of it": ("DPH-F", "GRPO on D_exp, clip-high 0.28"),
    "JS on top of it": ("DPH-JS", "GRPO on D_exp, clip-high 0.28"),
    "plain SFT in place of forward KL": ("SFT rehearsal", "DPH-F"),
    "leaving out the partition": ("DPH-F on all prompts", "DPH-F"),
}
"""What each comparison of the study `controls` asks."""


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page. Raises RunError naming a file of the reference run that is absent."""
    facts = run.recorded(root)
    results = Results.load(root / run.WHERE, recorded_profile(root / run.WHERE))
    return made(results, facts, read_json(root / COVERAGE))


def made(results: Results, facts: dict[str, Any], simulated: dict[str, Any]) -> dict[str, str]:
    """The blocks of a run's results, of what `run.recorded` says of it, and of the simulations of coverage."""
    records = results.records
    studied = {name: _study(results, name) for name in STUDIES}
    between = _rows(studied["strength"], against=NAMES["dph_f"])
    online = between["arm"].str.startswith(NAMES["rkl"])  # its k3 has forward KL's gradient, on fresh rollouts
    changed = _spoken(_rows(studied["eta"]))
    support, turnover = _support(records)
    steps, base = _steps(records)
    sums = _sums(records)
    return blocks.rendered(
        "findings",
        **facts,
        answers=int(records["n"].sum()),
        arms=_arms(records),
        simulated=simulated,
        studies=studied,
        clear_counts=_clear_counts,
        any_clear=_any_clear,
        level=studies.LEVEL,
        stored=between[~online],
        online=between[online],
        largest=changed.loc[changed["difference"].abs().idxmax()] if len(changed) else None,
        controls=_controls(_spoken(_rows(studied["controls"]))),
        support=support,
        turnover=turnover,
        steps=steps,
        base=base,
        hard=None if results.hard is None else hard_table(results.hard),
        sums=sums,
        excluding_zero=0 if sums is None else int(((sums["difference_low"] > 0) | (sums["difference_high"] < 0)).sum()),
    )


def _arms(records: pd.DataFrame) -> str:
    trained = records[records["seed"] >= 0]
    seeds = trained.groupby(["method", "variant"], observed=True)["seed"].nunique()
    is_main = seeds.index.get_level_values("variant") == "main"
    said = []
    for name, counts in (("main arms", seeds[is_main]), ("other arms", seeds[~is_main])):
        if len(counts):
            low, high = counts.min(), counts.max()
            said.append(f"{len(counts)} {name} of {low if low == high else f'{low} to {high}'}")
    return " seeds, ".join(said)


# --- Studies ------------------------------------------------------------------------------------------


def _study(results: Results, name: str) -> dict[str, Any]:
    """A study's sentences and its table; or that it was not run, and what runs it."""
    if arms_beyond(results.settings, [name]) and not recorded_studies(results, [name]):  # else every run has its arms
        said = f"The study `{name}` is not in the reference run; `./run_all.sh cpu --studies {name}` makes it.\n"
        return {"said": said, "rows": None}
    suites = [suite for suite, title in SUITES.items() if title in {where for where, _ in studies.SPOKEN}]
    rows = studies.study_table(results.records, results.settings, [name], suites)
    return {"said": "".join(f"- {sentence}\n" for sentence in studies.sentences(rows)), "rows": rows}


def _rows(study: dict[str, Any], against: str = "") -> pd.DataFrame:
    columns = ["arm", "against", "suite", "measure", "status", "difference", "low", "high", "p_holm"]
    rows = pd.DataFrame(columns=columns, dtype=object) if study["rows"] is None else study["rows"]
    return rows[rows["against"] == against] if against else rows


def _spoken(rows: pd.DataFrame, suite: str = "in domain", measure: str = "Pass@8") -> pd.DataFrame:
    return rows[(rows["suite"] == suite) & (rows["measure"] == measure) & (rows["status"] == "run")]


def _clear_counts(rows: pd.DataFrame) -> str:
    """How many comparisons exclude zero, on each measure that the sentences speak of."""
    parts = []
    for suite, measure in studies.SPOKEN:
        ran = _spoken(rows, suite, measure)
        plain = int(((ran["low"] > 0) | (ran["high"] < 0)).sum())
        corrected = int((ran["p_holm"] < studies.LEVEL).sum())
        parts.append(f"on {suite} {measure} {plain} of {len(ran)} by their own intervals and {corrected} after Holm's")
    return "; ".join(parts)


def _any_clear(rows: pd.DataFrame) -> bool:
    return any((_spoken(rows, *where)["p_holm"] < studies.LEVEL).any() for where in studies.SPOKEN)


def _controls(ran: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    found = []
    for what, (arm, against) in CONTROLS.items():
        one = ran[(ran["arm"] == arm) & (ran["against"] == against)]
        found += [(what, row) for _, row in one.head(1).iterrows()]
    return found


# --- Support, training, sums --------------------------------------------------------------------------


def _support(records: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Problems preserved, lost and gained; and for each suite and k the methods that lost or gained some."""
    table = retention.support(records)
    largest = table.groupby("suite")["k"].transform("max")
    shown = table[(table["suite"] == SUITES["in_domain"]) | (table["k"] == largest)]
    turnover = []
    for (suite, k), part in shown.groupby(["suite", "k"], sort=False):
        again = part["method"] == retention.AGAIN
        trained, by_chance = part[~again], part.loc[again, "gained"].iloc[0]
        shrank = trained.loc[trained["lost"] - trained["gained"] >= 1, "method"].tolist()
        grew = trained.loc[trained["gained"] - by_chance >= 1, "method"].tolist()
        turnover.append({"suite": suite, "k": k, "shrank": shrank, "grew": grew})
    return shown, turnover


def _steps(records: pd.DataFrame, k: int = 8) -> tuple[pd.DataFrame, float]:
    """In-domain Pass@k at each evaluated iteration, mean over seeds, and where it is first below the base; base's."""
    rows = records[(records["variant"] == "main") & records["method"].isin(HEADLINE)]
    rows = stats.sampled(rows[rows["suite"] == "in_domain"])
    curve = stats.pass_curve(rows, [k]).groupby(["method", "step"], observed=True)["pass_at_k"].mean().mul(100)
    base, out = float(curve.loc["base"].iloc[0]), []
    for method in (m for m in HEADLINE if m != "base" and m in curve.index.get_level_values("method")):
        line = curve.loc[method]
        below = [str(step) for step, value in line.items() if value < base]
        row = {"method": NAMES[method]} | {f"after {step}": value for step, value in line.items()}
        out.append(row | {"first below the base": below[0] if below else "at none"})
    frame = pd.DataFrame(out)
    last = frame.pop("first below the base")
    return frame.assign(**{last.name: last}), base


def _sums(records: pd.DataFrame) -> pd.DataFrame | None:
    """DPH against GRPO on the sums: trained on SQL, and trained on the sums themselves."""
    scores, rows = ArmScores.final(records), []
    for variant, trained in (("main", "SQL"), ("domain=sums", "sums")):
        there = {m for m in ("grpo", "dph_f", "dph_js") if scores.get(m, "out_of_domain", "pass", 1, variant)}
        for method in (m for m in ("dph_f", "dph_js") if {m, "grpo"} <= there):
            for k in (1, 8):
                pair = [scores.of(name, "out_of_domain", "pass", k, variant) for name in (method, "grpo")]
                got = interval(pair, np.subtract)
                row = {"trained on": trained, "method": f"{NAMES[method]} minus GRPO", "measure": f"Pass@{k}"}
                for name, value in (("", got.estimate), ("_low", got.low), ("_high", got.high)):
                    row[f"difference{name}"] = 100 * value
                rows.append(row | {"seeds": len(pair[0].seeds)})
    return pd.DataFrame(rows) if rows else None
