"""The generated blocks of docs/findings.md, "What holds, what does not, and what we could not test".

Every number and every word that depends on a verdict is made from the committed reference run: `claims.json`, the
records and train logs. `python -m tools.site --write` and `dph reference` put them into the page. What the reference
does not hold is said to be absent, with the command that makes it.

1. A verdict "at once" is that of intervals at 1 - 0.05 / m for m claims (Bonferroni). Holm's correction of studies is
   `ablations`'.
2. Coverage was simulated by tests/benchmarks/coverage.py; its recorded numbers are read, not made here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis import claims, retention, tables
from dphlib.analysis import studies as ablations
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.experiment.hard import hard_table
from dphlib.experiment.results import Results, recorded_studies
from dphlib.report.facts import command_text, effect_text, read_json
from dphlib.settings.methods import HEADLINE
from dphlib.settings.profiles import profile
from dphlib.settings.studies import arms_beyond
from tools.readme import VERDICTS, verdict_counts

PAGE = Path("docs", "findings.md")
RUN, COVERAGE = Path("artifacts", "reference"), Path("tests", "benchmarks", "coverage.json")
HEADINGS = {
    "supported": "Holds here", "not supported": "Does not hold here", "inconclusive": "Cannot be told here",
    "not run": "Was not run",
}  # fmt: skip


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page by name, from the reference run of a repository.

    Raises RunError naming a file of the reference run that is absent.
    """
    run = Path(root) / RUN
    manifest = read_json(run / "manifest.json")
    asked = manifest.get("asked", {})
    settings = profile(manifest["profile"], asked.get("seeds", ""), asked.get("study_seeds", ""))
    results = Results.load(run, settings)
    judged = read_json(run / "claims.json")
    return {
        "provenance": _provenance(manifest, results),
        "verdicts": _verdicts(judged, results),
        "coverage": _coverage(read_json(Path(root) / COVERAGE)),
        "strength": _studies(results, "strength", _strength_summary),
        "eta": _studies(results, "eta", _eta_summary),
        "controls": _studies(results, "controls", _controls_summary),
        "length": _studies(results, "length"),
        "rivals": _studies(results, "entropy_bonus") + "\n" + _studies(results, "clip_higher"),
        "support": _support(results.records),
        "steps": _steps(results.records),
        "hard": _hard(results),
        "sums": _sums(results.records),
    }


def _markdown(frame: pd.DataFrame, digits: int = 1) -> str:
    return tables.to_markdown(retention.readable(frame, digits))


def _provenance(manifest: dict[str, Any], results: Results) -> str:
    trained = results.records[results.records["seed"] >= 0]
    seeds = trained.groupby(["method", "variant"], observed=True)["seed"].nunique()
    main, others = (seeds[(seeds.index.get_level_values("variant") == "main") == is_main] for is_main in (True, False))
    arms = f"{len(main)} main arms of {_range(main)} seeds"
    arms += f", {len(others)} other arms of {_range(others)}" if len(others) else ""
    return f"Made by `{command_text(manifest)}`: {len(results.records):,} judged answers, {arms}.\n"


def _range(counts: pd.Series) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low}" if low == high else f"{low} to {high}"


# --- Claims -----------------------------------------------------------------------------------------------------------


def _verdicts(judged: list[dict[str, Any]], results: Results) -> str:
    """A table a verdict; beside each claim what it is with all claims judged at once."""
    beyond, arms = (
        set(arms_beyond(results.settings)),
        zip(results.records["method"], results.records["variant"], strict=True),
    )
    records = results.records[[arm not in beyond for arm in arms]]  # no claim is of an arm that only studies train
    level = 1 - 0.05 / len(judged)
    made = claims.evaluate_claims(records, results.train_logs, results.settings.name, level=level)
    at_once = {claim.id: claim.verdict for claim in made}
    counts = verdict_counts(judged)
    lines = [f"Of {len(judged)} claims: " + ", ".join(f"{counts[v]} {v}" for v in VERDICTS) + "."]
    for verdict, heading in HEADINGS.items():
        members = [claim for claim in judged if claim["verdict"] == verdict]
        lines += ["", f"**{heading}** ({verdict}: {len(members)})", ""]
        if not members:
            lines.append("None.")
            continue
        lines += [
            "| claim | paper | parts that hold | effect that decided | all claims at once |",
            "|---|---|---|---|---|",
        ]
        for claim in members:
            held = sum(part["verdict"] == "supported" for part in claim["parts"])
            cells = (claim["text"], claim["paper_ref"], f"{held} of {len(claim['parts'])}", effect_text(claim) or "-")
            lines.append(f"| {' | '.join(cells)} | {at_once[claim['id']]} |")
    told = [claim for claim in judged if claim["verdict"] in ("supported", "not supported")]
    kept = sum(at_once[claim["id"]] == claim["verdict"] for claim in told)
    lines += ["", f"Of the {len(told)} claims that are settled one by one, {kept} stay settled when all {len(judged)} "
              "are judged at once."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _coverage(recorded: dict[str, list[dict[str, float]]]) -> str:
    frame = pd.DataFrame(recorded["coverage"])
    shown = pd.DataFrame(
        {
            "measure": [f"Pass@{int(k)}" for k in frame["k"]],
            "seeds": frame["seeds"],
            "spread over seeds (points)": frame["spread_points"],
            "coverage (%)": 100 * frame["coverage"],
            "of a percentile bootstrap (%)": 100 * frame["percentile_coverage"],
            "mean half-width (points)": frame["half_width_points"],
        }
    )
    frame = pd.DataFrame(recorded["families"])
    families = pd.DataFrame(
        {
            "comparisons": frame["comparisons"],
            "seeds": frame["seeds"],
            "spread over seeds (points)": frame["spread_points"],
            "a false alarm without correction (%)": 100 * frame["plain"],
            "after Holm's (%)": 100 * frame["holm"],
        }
    )
    trials = sorted({int(row["trials"]) for rows in recorded.values() for row in rows})
    return f"{_markdown(shown)}\n{_markdown(families)}\n{' and '.join(map(str, trials))} simulated runs a row.\n"


# --- Studies ----------------------------------------------------------------------------------------------------------


def _studies(results: Results, study: str, summary: Callable[[pd.DataFrame], str] | None = None) -> str:
    """A study's sentences, and a summary of them; or that it was not run, and what runs it."""
    if not recorded_studies(results, [study]):
        return f"The study `{study}` is not in the reference run; `./run_all.sh cpu --studies {study}` makes it.\n"
    suites = [suite for suite, name in SUITES.items() if name in {where for where, _ in ablations.SPOKEN}]
    rows = ablations.study_table(results.records, results.settings, [study], suites)
    said = "".join(f"- {sentence}\n" for sentence in ablations.sentences(rows))
    return said + (f"\n{summary(rows)}\n" if summary else "")


def _told(rows: pd.DataFrame) -> str:
    """How many comparisons leave zero out, on each measure that the sentences speak of."""
    parts = []
    for suite, measure in ablations.SPOKEN:
        ran = _spoken(rows, suite, measure)
        plain = int(((ran["low"] > 0) | (ran["high"] < 0)).sum())
        corrected = int((ran["p_holm"] < ablations.LEVEL).sum())
        parts.append(f"on {suite} {measure} {plain} of {len(ran)} by their own intervals and {corrected} after Holm's")
    return "; ".join(parts)


def _spoken(rows: pd.DataFrame, suite: str = "in domain", measure: str = "Pass@8") -> pd.DataFrame:
    return rows[(rows["suite"] == suite) & (rows["measure"] == measure) & (rows["status"] == "run")]


def _any_told(rows: pd.DataFrame) -> bool:
    return any((_spoken(rows, *where)["p_holm"] < ablations.LEVEL).any() for where in ablations.SPOKEN)


def _largest(rows: pd.DataFrame) -> tuple[float, str]:
    """The largest difference on in-domain Pass@8, without its sign, and which comparison has it."""
    ran = _spoken(rows)
    one = ran.loc[ran["difference"].abs().idxmax()]
    return abs(float(one["difference"])), f"{one['arm']} against {one['against']}"


def _strength_summary(rows: pd.DataFrame) -> str:
    """RKL is counted apart: its k3 has forward KL's gradient too, on fresh rollouts of all prompts."""
    between = rows[rows["against"] == NAMES["dph_f"]]
    online = between["arm"].str.startswith(NAMES["rkl"])
    stored, other = between[~online], between[online]
    said = f"Divergences on the same stored answers that differ at equal strength: {_told(stored)}. "
    said += (
        "So among these a difference remains that strength, as curvature at the reference, does not explain. "
        if _any_told(stored)
        else "So at equal strength this run does not tell them apart. That leaves MARA's objection standing; it does "
        "not prove it, for the intervals allow differences as large as their ends. "
    )
    return said + f"RKL, on fresh rollouts of all prompts and not on stored answers: {_told(other)}."


def _eta_summary(rows: pd.DataFrame) -> str:
    points, which = _largest(rows)
    head = f"Changes of a weight that leave zero out: {_told(rows)}. The largest on in-domain Pass@8 is {points:.1f} "
    return head + f"points ({which})."


def _controls_summary(rows: pd.DataFrame) -> str:
    ran, parts = _spoken(rows), []
    for arm, against, asks in (
        ("GRPO on D_exp", "GRPO", "the data selection alone"),
        ("DPH-F", "GRPO on D_exp, clip-high 0.28", "forward KL on top of it"),
        ("DPH-JS", "GRPO on D_exp, clip-high 0.28", "JS on top of it"),
        ("SFT rehearsal", "DPH-F", "plain SFT in place of forward KL"),
        ("DPH-F on all prompts", "DPH-F", "leaving out the partition"),
    ):
        one = ran[(ran["arm"] == arm) & (ran["against"] == against)]
        if not one.empty:
            parts.append(f"{asks} {one['difference'].iloc[0]:+.1f} ({_direction(one.iloc[0])})")
    return f"In points of in-domain Pass@8, after Holm's correction: {'; '.join(parts)}."


def _direction(row: pd.Series) -> str:
    if row["p_holm"] >= ablations.LEVEL:
        return "unclear"
    return "a gain" if row["difference"] > 0 else "a loss"


# --- Support, training, hard problems, sums ---------------------------------------------------------------------------


def _support(records: pd.DataFrame) -> str:
    table = retention.support(records)
    largest = table.groupby("suite")["k"].transform("max")
    shown = table[(table["suite"] == SUITES["in_domain"]) | (table["k"] == largest)]
    rows = []
    for (suite, k), part in shown.groupby(["suite", "k"], sort=False):
        part = part.set_index("method")
        chance, trained = part.loc["base, drawn again"], part.drop(index="base, drawn again")
        shrank = [name for name, row in trained.iterrows() if row["lost"] - row["gained"] >= 1]
        grew = [name for name, row in trained.iterrows() if row["gained"] - chance["gained"] >= 1]
        rows.append(
            f"- {suite}, k = {k}: at least a problem more lost than gained by {_names(shrank)}; at least a problem "
            f"more gained than the base gains by chance by {_names(grew)}."
        )
    return f"{_markdown(shown)}\n" + "\n".join(rows) + "\n"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _steps(records: pd.DataFrame, k: int = 8) -> str:
    """In-domain Pass@k at each evaluated iteration, means over seeds, and where it first lies below the base's."""
    rows = records[(records["variant"] == "main") & records["method"].isin(HEADLINE)]
    rows = stats.sampled(rows[rows["suite"] == "in_domain"])
    curve = stats.pass_curve(rows, [k]).groupby(["method", "step"], observed=True)["pass_at_k"].mean().mul(100)
    base, out = float(curve.loc["base"].iloc[0]), []
    for method in (m for m in HEADLINE if m != "base" and m in curve.index.get_level_values("method")):
        line = curve.loc[method]
        below = [str(step) for step, value in line.items() if value < base]
        cells = {f"after {step}": value for step, value in line.items()}
        out.append({"method": NAMES[method], **cells, "first below the base": below[0] if below else "at none"})
    frame = pd.DataFrame(out)
    last = frame.pop("first below the base")
    return f"{_markdown(frame.assign(**{'first below the base': last}))}\nThe base: {base:.1f}. Pass@{k} in per cent.\n"


def _hard(results: Results) -> str:
    if results.hard is None:
        return "Not in the reference run; `./run_all.sh cpu --studies hard` draws it.\n"
    return _markdown(hard_table(results.hard))


def _sums(records: pd.DataFrame) -> str:
    """DPH against GRPO on the sums: trained on SQL, and trained on the sums themselves."""
    table, rows = stats.problem_table(stats.sampled(stats.final(records))), []
    for variant, trained in (("main", "SQL"), ("domain=sums", "sums")):
        of = table[(table["variant"] == variant) & (table["suite"] == "out_of_domain")]
        for method in (m for m in ("dph_f", "dph_js") if {m, "grpo"} <= set(of["method"])):
            for k in (1, 8):
                pair = [stats.arm(of, name, "out_of_domain", "pass", k, variant) for name in (method, "grpo")]
                got = stats.bootstrap(pair, np.subtract)
                numbers = {"difference": 100 * got.estimate, "difference_low": 100 * got.low}
                rows.append({"trained on": trained, "method": f"{NAMES[method]} minus GRPO", "measure": f"Pass@{k}",
                             **numbers, "difference_high": 100 * got.high, "seeds": len(pair[0].seeds)})  # fmt: skip
    if not rows:
        return "No arm of DPH and GRPO on the sums is in the reference run.\n"
    frame = pd.DataFrame(rows)
    told = int(((frame["difference_low"] > 0) | (frame["difference_high"] < 0)).sum())
    return f"{_markdown(frame)}\nIn points; {told} of {len(frame)} intervals leave zero out, none of them corrected.\n"
