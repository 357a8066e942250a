"""The generated blocks of docs/speed.md: what the benchmarks of training measured, from their recorded output.

`tests/benchmarks/recorded.jsonl` has the last line that each script printed (`measuring.tell`), a line a run; of two
runs of one command on one machine the later one counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib.analysis import tables
from dphlib.report.facts import machine_text
from dphlib.runtime.files import RunError

PAGE = Path("docs", "speed.md")
RECORDED = Path("tests", "benchmarks", "recorded.jsonl")


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page by name. Raises RunError for a record that cannot be read."""
    runs = recorded(Path(root) / RECORDED)
    return {"bounds": _bounds(runs), "runs": "\n".join(_run(run) for run in runs)}


def recorded(path: Path) -> list[dict[str, Any]]:
    """The recorded runs, the last of each command and machine. Raises RunError naming the file and line."""
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; it belongs to the repository") from error
    for number, line in enumerate(lines, 1):
        try:
            run = json.loads(line)
            key = (run["command"], machine_text(run))
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path}, line {number}: not the last line of a benchmark's output ({error!r})") from error
        runs[key] = run
    return list(runs.values())


def _bounds(runs: list[dict[str, Any]]) -> str:
    rows = []
    for run in runs:
        for target in run["targets"]:
            sign = "at most" if target["at_most"] else "at least"
            met = "held" if target["held"] else "**missed**"
            cells = {"what": target["what"], "measured": f"{target['value']:.3g}"}
            rows.append({**cells, "bound": f"{sign} {target['bound']:.3g}", "": met, "command": f"`{run['command']}`"})
    missed = sum(not target["held"] for run in runs for target in run["targets"])
    return f"{tables.to_markdown(pd.DataFrame(rows))}\n{missed} of {len(rows)} bounds are missed.\n"


def _run(run: dict[str, Any]) -> str:
    """One run: its command and machine, its table, its notes."""
    rows = [{name: _cell(value) for name, value in row.items()} for row in run["rows"]]
    versions = ", ".join(f"{name} {run['versions'][name]}" for name in ("python", "torch", "transformers"))
    notes = "".join(f"\n{note}\n" for note in run["notes"])
    head = f"### `{run['command']}`\n\n{machine_text(run)}; {versions}.\n"
    return f"{head}\n{tables.to_markdown(pd.DataFrame(rows))}{notes}"


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
