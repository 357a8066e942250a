"""The recorded results as templates show them, and the blocks made from them alone: README's, the appendix's, others.

README's verdicts and table are of `FULL`, every run of the protocol, its minutes of `WHERE`, the default command's run.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib import __version__
from dphlib.analysis import paper, tables
from dphlib.analysis.claims import (
    SYMBOLS,
    ClaimResult,
    Decision,
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
    """Notebooks, claims and the small table. Raises RunError naming a file that is absent."""
    facts = recorded(root)
    return rendered("readme", **facts, results=shown(root), notebooks=_notebooks(facts["minutes"]))


def results_blocks(root: Path) -> dict[str, str]:
    """Tables 1 and 2 beside the paper's, for docs/results.md."""
    return rendered("results", results=shown(root))


def times_blocks(root: Path) -> dict[str, str]:
    """Minutes, machine and memory of the reference run, for docs/times.md."""
    return rendered("times", **recorded(root))


def verdicts(root: Path) -> tuple[list[ClaimResult], list[ClaimResult]]:
    """The full reference's verdicts at the end, and at the stopping point. Raises RunError where there are none."""
    path = root / FULL / CLAIMS_STOPPED
    if not path.is_file():
        raise RunError(f"{path} is not there; python -m tools.parts join writes it")
    return read_claims(root / FULL), from_json(path.read_text(encoding="utf-8"))


def shown(root: Path) -> dict[str, Any]:
    """The results that README and docs/results.md show. Raises RunError naming a file of them that is absent."""
    claims, at_stop = verdicts(root)
    stopped = {one.id: one.verdict for one in at_stop}
    for name in ("table1", "table2"):
        if not (path := root / FULL / "tables" / f"{name}.csv").is_file():
            raise RunError(f"{path} is not there; python -m tools.parts join writes it")
    return {
        "where": FULL,
        "command": FULL_COMMAND,
        "counts": _counts(claims),
        "claims": [_row(one, stopped[one.id]) for one in claims],
        "small": small_table(tables.read_csv(root / FULL / "tables" / "table1.csv")),
        "tables": [
            _table(root / FULL, name)
            for name in ("table1", "table2", "table_points")
            if (root / FULL / "tables" / f"{name}.csv").is_file()
        ],
    }


def _row(claim: ClaimResult, stopped: Decision) -> dict[str, str]:
    """A claim as README's table has it, with its verdict at the stopping point; `joint` is "" where there is none."""
    headline = claim.holds_jointly is not None
    return {
        "text": f"**{claim_name(claim.id)}**" if headline else claim_name(claim.id),
        "verdict": f"{SYMBOLS[claim.verdict]} {claim.verdict}",
        "effect": effect_text(claim).replace(" points", "") or "-",
        "joint": joint_text(claim).replace("-", ""),
        "stopped": SYMBOLS[stopped],
    }


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
