"""The generated parts of README.md: claims, results and times, from a results folder.

Each stands between two lines, `<!-- generated:NAME -->` and `<!-- /generated:NAME -->`. Parts of other names (`site`
writes some) are left alone. Nothing in a block is typed: what is in it stands in `claims.json`, `tables/*.csv` or
`manifest.json` of the folder, and is read from there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dphlib.analysis import tables
from dphlib.report.facts import command_text, effect_text, machine_text, minutes, peak_text, read_json
from dphlib.runtime.files import RunError, write_text

VERDICTS = ("supported", "not supported", "inconclusive", "not run")


def verdict_counts(claims: list[dict[str, Any]]) -> dict[str, int]:
    """Number of claims by verdict, every verdict named."""
    return {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}


def claims_block(run_root: Path, where: str) -> str:
    """A row a claim: what is claimed, where, the verdict, and the effect that decided with its interval."""
    claims = read_json(run_root / "claims.json")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(claims).items())
    lines = [
        f"{counts}. Effects are directed so that the claim says they are positive; 95 % interval over seeds and "
        "problems "
        f"(`{where}/claims.json` has every part).",
        "",
        "| claim | paper | verdict | effect that decided | seeds |",
        "|---|---|---|---|---|",
    ]
    for claim in claims:
        effect = effect_text(claim) or "-"
        seeds = len(claim["per_seed"]) or "-"
        lines.append(f"| {_cell(claim['text'])} | {claim['paper_ref']} | **{claim['verdict']}** | {effect} | {seeds} |")
    return "\n".join(lines) + "\n"


def results_block(run_root: Path, where: str) -> str:
    """Tables 1 and 2, ours beside the paper's, with the command that made them and what may be compared."""
    parts = []
    for name in ("table1", "table2"):
        table = tables.read_csv(run_root / "tables" / f"{name}.csv")
        shown = table[~table["column"].str.startswith("paper:")]
        head = f"**Table {name.removeprefix('table')}. {tables.TITLES[name]}**"
        parts += [head, "", tables.to_markdown(shown), tables.NOTES[name], ""]
    made = f"Made by `{command_text(_manifest(run_root))}` (`{where}/tables/`); "
    return "\n".join([*parts, made + "drawn again from the records by `./run_all.sh replot`."]) + "\n"


def times_block(run_root: Path, where: str) -> str:
    """Minutes of each notebook, the machine, peak memory."""
    manifest = _manifest(run_root)
    taken = minutes(manifest)
    rows = [f"| `{name}` | {value:.1f} |" for name, value in taken.items()]
    total = f"| all | {sum(taken.values()):.1f} |"
    where_run = f"`{command_text(manifest)}` on {machine_text(manifest)}."
    facts = f"{where_run} Peak memory of one process: {peak_text(manifest)}."
    return "\n".join([facts, "", "| notebook | minutes |", "|---|---|", *rows, total]) + "\n"


BLOCKS: dict[str, Callable[[Path, str], str]] = {
    "claims": claims_block,
    "results": results_block,
    "times": times_block,
}


def _cell(text: str) -> str:
    return text.replace("|", "&#124;").replace("\n", " ")


def _manifest(run_root: Path) -> dict[str, Any]:
    return read_json(run_root / "manifest.json")


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?ms)^(<!-- generated:{name} -->\n).*?^(<!-- /generated:{name} -->)$")


def _fresh(readme: Path, run_root: Path) -> tuple[str, str, list[str]]:
    """(text as it is, text as it should be, names of stale blocks)."""
    text = readme.read_text(encoding="utf-8")
    missing = [name for name in BLOCKS if len(_pattern(name).findall(text)) != 1]
    if missing:
        name = missing[0]
        raise RunError(
            f"{readme}: no block {', '.join(missing)}; each needs the lines <!-- generated:{name} --> and "
            f"<!-- /generated:{name} --> once, in this order"
        )
    where = Path(os.path.relpath(run_root, readme.parent)).as_posix()
    should, stale = text, []
    for name, make in BLOCKS.items():
        block = make(run_root, where)
        changed = _pattern(name).sub(lambda match, block=block: match[1] + block + match[2], should)  # type: ignore[misc]
        if changed != should:
            stale.append(name)
        should = changed
    return text, should, stale


def write_readme_blocks(readme: Path, run_root: Path) -> bool:
    """Brings the generated blocks of a README up to date; True where that changed it.

    `RunError` where a block's marker lines are absent or a file of the results folder is.
    """
    text, should, _ = _fresh(Path(readme), Path(run_root))
    if should != text:
        write_text(Path(readme), should)
    return should != text


def stale_blocks(readme: Path, run_root: Path) -> list[str]:
    """Names of the blocks that `write_readme_blocks` would change; [] when all are fresh."""
    return _fresh(Path(readme), Path(run_root))[2]
