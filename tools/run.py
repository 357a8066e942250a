"""The reference run as templates show it, and the blocks that are made from it alone: README's and the appendix's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from dphlib import __version__
from dphlib.analysis import tables
from dphlib.analysis.claims import ClaimResult, verdict_counts
from dphlib.cli.replot import recorded_profile
from dphlib.data.sets import DATA_SETS
from dphlib.report.facts import command_text, machine_text, minutes, peak_text, read_claims, read_json
from dphlib.settings.gpu import BASES
from tools.blocks import rendered

WHERE = "artifacts/reference"


def recorded(root: Path) -> dict[str, Any]:
    """What README and the appendix say of the reference run. Raises RunError naming a file of it that is absent."""
    run = root / WHERE
    manifest, claims = read_json(run / "manifest.json"), read_claims(run)
    return {
        "where": WHERE,
        "manifest": manifest,
        "claims": claims,
        "counts": ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(claims).items()),
        "command": command_text(manifest),
        "machine": machine_text(manifest),
        "minutes": minutes(manifest),
        "peak": peak_text(manifest),
    }


def readme_blocks(root: Path) -> dict[str, str]:
    """Claims, Tables 1 and 2 beside the paper's, times."""
    return rendered("readme", **recorded(root), tables=[_table(root, name) for name in ("table1", "table2")])


def _table(root: Path, name: str) -> dict[str, str]:
    rows = tables.read_csv(root / WHERE / "tables" / f"{name}.csv")
    ours = tables.to_markdown(rows[~rows["column"].str.startswith("paper:")])
    return {"title": tables.TITLES[name], "rows": ours, "note": tables.note(name)}


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
        licence=project["project"]["license"],
        bases=list(BASES.values()),
        data_sets=list(DATA_SETS.values()),
        spreads={claim.id: _spread(claim) for claim in facts["claims"]},
    )
    return {**blocks, "times": rendered("readme", **facts, tables=[])["times"]}


def _spread(claim: ClaimResult) -> str:
    """The lowest and the highest seed of a claim's deciding effect."""
    seeds = [value for _, value in claim.per_seed]
    scale, digits = (100, 1) if claim.unit == "share" else (1, 2)
    return " to ".join(f"{scale * end(seeds) + 0.0:.{digits}f}" for end in (min, max)) if seeds else "-"
