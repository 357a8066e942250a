"""The recorded results as templates show them, and the blocks made from them alone: README's, the appendix's, others.

README's verdicts, findings and table are of `FULL`, every run of the protocol, where that is recorded, else of `WHERE`,
the run of the default command, whose minutes it has in any case.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib import __version__
from dphlib.analysis import paper, sentences, tables
from dphlib.analysis.claims import (
    CLAIMS,
    SYMBOLS,
    ClaimResult,
    Decision,
    PartResult,
    effect_text,
    from_json,
    joint_text,
    verdict_counts,
)
from dphlib.analysis.labels import NAMES, claim_name
from dphlib.cli.replot import recorded_profile
from dphlib.data.sets import DATA_SETS
from dphlib.experiment.results import CLAIMS_STOPPED
from dphlib.report.facts import command_text, machine_text, minutes, peak_text, read_claims, read_json
from dphlib.runtime.files import RunError
from dphlib.settings.gpu import BASES
from dphlib.settings.methods import HEADLINE
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import STUDIES, planned_runs
from tools import parts
from tools.blocks import rendered, table

WHERE = "artifacts/reference"
FULL = "artifacts/full"
FULL_COMMAND = f"./run_all.sh cpu --seeds {parts.SEEDS} --studies all --study-seeds {parts.STUDY_SEEDS}"
"""What makes `FULL` at once; `tools.parts` makes it seed by seed."""

QUESTIONS = {
    "00_kick_the_tires": "Does everything work here, and what is it about?",
    "01_divergences": "What does each divergence hold, and what does it let go?",
    "02_base_and_data": "Is the base in the paper's situation?",
    "03_presample_and_partition": "Which prompts does it solve already?",
    "04_train": "What does each method optimise, and what happens meanwhile?",
    "05_evaluate_passk": "Do k answers still solve what the base solved?",
    "06_retention_and_ood": "What is kept, and what is lost elsewhere?",
    "07_ablations": "Is it the divergence, the data, the weight, the length?",
    "08_claims_and_report": "Which claims hold, and on what evidence?",
}
NOTHING = "No results of this protocol are recorded yet."


def recorded(root: Path) -> dict[str, Any]:
    """What the pages say of the reference run. Raises RunError naming a file of it that is absent."""
    run = root / WHERE
    manifest, claims = read_json(run / "manifest.json"), read_claims(run)
    return {
        "where": WHERE,
        "manifest": manifest,
        "claims": claims,
        "counts": _counts(claims),
        "command": command_text(manifest),
        "machine": machine_text(manifest),
        "minutes": minutes(manifest),
        "peak": peak_text(manifest),
    }


def _counts(claims: Sequence[ClaimResult]) -> str:
    return ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(claims).items())


# --- README -------------------------------------------------------------------------------------------


def readme_blocks(root: Path) -> dict[str, str]:
    """Findings, notebooks, claims and the small table. Raises RunError naming a file that is absent."""
    facts = recorded(root)
    notebooks = _notebooks(facts["minutes"])
    return rendered("readme", **facts, results=shown(root), notebooks=notebooks, nothing=NOTHING)


def results_blocks(root: Path) -> dict[str, str]:
    """Tables 1 and 2 beside the paper's, for docs/results.md."""
    return rendered("results", results=shown(root), nothing=NOTHING)


def times_blocks(root: Path) -> dict[str, str]:
    """Minutes, machine and memory of the reference run, for docs/times.md."""
    return rendered("times", **recorded(root))


def place(root: Path) -> str:
    """Where the runs are that the pages show."""
    return FULL if (root / FULL / "claims.json").is_file() else WHERE


def profile_of(folder: Path) -> Profile:
    """The profile of what `place` names; the full reference is made in parts, and has no manifest."""
    return parts.full_profile() if folder.name == Path(FULL).name else recorded_profile(folder)


def verdicts(root: Path, where: str) -> tuple[list[ClaimResult], list[ClaimResult]] | None:
    """The verdicts at the end, and at the stopping point where it is recorded; None of other claims than the present.

    Raises RunError where there are none.
    """
    claims, path = read_claims(root / where), root / where / CLAIMS_STOPPED
    if [one.id for one in claims] != [one.id for one in CLAIMS]:
        return None
    return claims, from_json(path.read_text(encoding="utf-8")) if path.is_file() else []


def shown(root: Path) -> dict[str, Any] | None:
    """The results that README shows; None where those that are recorded were judged by other claims than the present.

    Raises RunError naming a file of them that is absent.
    """
    where = place(root)
    if (judged := verdicts(root, where)) is None:
        return None
    claims, stopped = judged[0], {one.id: one.verdict for one in judged[1]}
    for name in ("records.parquet", "tables/table1.csv", "tables/table2.csv"):
        if not (root / where / name).is_file():
            raise RunError(f"{root / where / name} is not there; what made {where} writes it: run it again")
    answers = pd.read_parquet(root / where / "records.parquet", columns=["method", "variant", "seed", "n"])
    runs = answers[answers["method"] != "base"][["method", "variant", "seed"]].drop_duplicates()
    return {
        "where": where,
        "command": FULL_COMMAND if where == FULL else command_text(read_json(root / where / "manifest.json")),
        "runs": len(runs),
        "decisive": int(((runs["method"] == "grpo") & (runs["variant"] == "main")).sum()),
        "answers": int(answers["n"].sum()),
        "counts": _counts(claims),
        "findings": findings(claims, root / where),
        "claims": [_row(one, stopped.get(one.id)) for one in claims],
        "stopped": bool(stopped),
        "small": small_table(tables.read_csv(root / where / "tables" / "table1.csv")),
        "planned": len(planned_runs(parts.full_profile(), tuple(STUDIES))) if where == FULL else len(runs),
        "tables": [
            _table(root / where, name)
            for name in ("table1", "table2", "table_points")
            if (root / where / "tables" / f"{name}.csv").is_file()
        ],
    }


def _row(claim: ClaimResult, stopped: Decision | None) -> dict[str, str]:
    """A claim as README's table has it, with its verdict at the stopping point; `joint` is "" where there is none."""
    headline = claim.holds_jointly is not None
    return {
        "text": f"**{claim_name(claim.id)}**" if headline else claim_name(claim.id),
        "verdict": f"{SYMBOLS[claim.verdict]} {claim.verdict}",
        "effect": effect_text(claim).replace(" points", "") or "-",
        "joint": joint_text(claim).replace("-", ""),
        "stopped": SYMBOLS[stopped] if stopped else "",
    }


def findings(claims: Sequence[ClaimResult], folder: Path) -> list[str]:
    """Bullets: what RL does to the policy, what DPH keeps of it, on which problems, and what is awkward for the paper.

    Args:
        folder: of the results.
    """
    of = {claim.id: claim for claim in claims}
    greedy, narrowed = of["greedy_rises"].parts[0], of["pass_k_falls"].parts[0]
    large = of["dph_nearer_at_large_k"].parts
    table, figure = folder / "tables/table_contents.csv", folder / "figures/fig20_contents.png"
    said = sentences.lost_and_learnt(pd.read_csv(table)) if table.is_file() else ""
    where = "/".join(figure.parts[-4:])
    return [
        f"**What RL does.** {compared(greedy)}; {compared(narrowed, turned=True)}.",
        f"**What DPH does.** {'; '.join(map(compared, large))}.",
        *([f"**Where it matters.** {said} ([Figure 20]({where}), exploratory)."] if said else []),
        awkward(claims),
    ]


def compared(part: PartResult, *, turned: bool = False) -> str:
    """A part "A > B, measure" in words that follow its interval, of A; `turned`, of B."""
    arms, measure = part.label.replace("greedy", "greedy accuracy").split(", ")
    one, other = (f"{'the base' if name == NAMES['base'] else name}'s" for name in arms.split(" > "))
    if turned:
        one, other, part = other, one, _turned(part)
    if part.low is None or part.high is None:
        return f"{one} {measure} against {other} is not recorded"
    if part.low > 0 and not part.reason:
        return f"{one} {measure} is {effect_text(part)} above {other}"
    if part.high < 0 and not part.reason:
        return f"{one} {measure} is {effect_text(_turned(part))} below {other}"
    why = "; ".join(filter(None, (effect_text(part), part.reason)))
    return f"{one} {measure} is not clearly apart from {other} ({why})"


def _turned(part: PartResult) -> PartResult:
    """The effect with its sign changed."""
    estimate, low, high = (None if x is None else -x for x in (part.estimate, part.high, part.low))
    return replace(part, estimate=estimate, low=low, high=high)


def awkward(claims: Sequence[ClaimResult]) -> str:
    """The claim that is most clearly not supported; without one a headline claim that is open; without one any that is.

    Most clearly: the part that decided has the smallest p. Of open ones the least is the one of the lowest estimate.
    """
    refuted = [one for one in claims if one.verdict == "not supported"]
    headline = [one for one in claims if one.verdict == "inconclusive" and one.holds_jointly is not None]
    rest = [one for one in claims if one.verdict not in ("supported", "not supported")]
    if refuted:
        found = min(refuted, key=lambda one: one.deciding_part.p or 0.0)
    elif headline or rest:
        found = min(headline or rest, key=lambda one: float("inf") if one.estimate is None else one.estimate)
    else:
        return f"**Awkward for the paper.** Nothing: all {len(claims)} claims are supported."
    part = found.deciding_part
    return f"**Awkward for the paper.** “{found.text.rstrip('.')}” is {found.verdict}: {part}."


def small_table(table1: pd.DataFrame) -> str:
    """Greedy accuracy and Pass@k in domain of the headline methods, and which way the paper's went from its base."""
    columns = ("greedy", "Pass@1", "Pass@8", "Pass@16")
    cells = {(cell.method, cell.column): cell for cell in table1.itertuples() if cell.variant == "main"}

    def text(method: str, column: str) -> str:
        if (cell := cells.get((method, f"in domain {column}"))) is None:
            return "-"  # of results of an earlier version
        ours = f"{cell.ours:.1f} [{cell.low:.1f}, {cell.high:.1f}]" if cell.status == "run" else cell.status
        return ours if method == "base" else f"{ours} {_direction(method, f'BIRD {column}')}".rstrip()

    return table(["", *columns], [[NAMES[m], *(text(m, column) for column in columns)] for m in HEADLINE])


def _direction(method: str, column: str) -> str:
    """Whether the paper's number is above its base's (↑), below (↓) or the same (=); "" where it has none."""
    if column not in paper.TABLE_1.columns:
        return ""
    there, base = (paper.TABLE_1.rows[name][paper.TABLE_1.columns.index(column)] for name in (method, "base"))
    return "↑" if there > base else "↓" if there < base else "="


def _notebooks(took: Mapping[str, float]) -> list[dict[str, str]]:
    """Each notebook's name and question, and the minutes that it took in the reference run."""
    return [
        {"name": name, "question": question, "minutes": f"{took[name]:.1f}" if name in took else "-"}
        for name, question in QUESTIONS.items()
    ]


def _table(run: Path, name: str) -> dict[str, str]:
    rows = tables.read_csv(run / "tables" / f"{name}.csv")
    ours = tables.to_markdown(rows[~rows["column"].str.startswith("paper:")])
    return {"title": tables.TITLES[name], "rows": ours, "note": tables.note(name)}


# --- The appendix -------------------------------------------------------------------------------------


def appendix_blocks(root: Path) -> dict[str, str]:
    """Check-list, requirements, times, claims, seeds, models and data sets of docs/artifact_appendix.md."""
    run, facts = root / WHERE, recorded(root)
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    set_up = (root / "run_all.sh").read_text(encoding="utf-8")
    full, asked = re.search(r"^full_mib=(\d+)", set_up, re.MULTILINE), re.search(r"local needed=(\d+)", set_up)
    if not full or not asked:
        raise ValueError("run_all.sh: the lines full_mib=... and local needed=... are read for the artifact appendix")
    blocks = rendered(
        "artifact_appendix",
        **facts,
        version=__version__,
        versions=facts["manifest"]["versions"],
        settings=recorded_profile(run),
        notebooks=len(list((run / "notebooks").glob("[0-9][0-9]_*.ipynb"))),
        parameters=int(read_json(run / "metrics/02_base_and_data.json")["parameters"]),
        done=read_json(run / "metrics/08_claims_and_report.json"),
        results_mib=sum(entry["size"] for entry in facts["manifest"]["files"].values()) / 2**20,
        environment_gib=int(full[1]) / 1024,
        asked_gib=int(asked[1]),
        address=project["tool"]["dph"]["repository"],
        doi=doi(root),
        licence=project["project"]["license"],
        bases=list(BASES.values()),
        data_sets=list(DATA_SETS.values()),
        spreads={claim.id: _spread(claim) for claim in facts["claims"]},
    )
    return {**blocks, "times": rendered("times", **facts)["times"]}


def doi(root: Path) -> str:
    """The artifact's own DOI, the line `doi:` of CITATION.cff; "" where it has none yet."""
    found = re.search(r"(?m)^doi: *[\"']?(10\.\S+?)[\"']?$", (root / "CITATION.cff").read_text(encoding="utf-8"))
    return found[1] if found else ""


def _spread(claim: ClaimResult) -> str:
    """The lowest and the highest seed of a claim's deciding effect."""
    seeds = [value for _, value in claim.per_seed]
    scale, digits = (100, 1) if claim.unit == "share" else (1, 2)
    return " to ".join(f"{scale * end(seeds) + 0.0:.{digits}f}" for end in (min, max)) if seeds else "-"
