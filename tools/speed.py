"""The generated blocks of docs/speed.md: what the benchmarks of training measured, from their recorded output.

`tests/benchmarks/recorded.jsonl` has the last line that each script printed (`measuring.tell`), one line per run; of
two runs of one command on one machine the later one counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dphlib.report.facts import machine_text
from dphlib.runtime.files import RunError
from tools.blocks import rendered, table

RECORDED = Path("tests", "benchmarks", "recorded.jsonl")


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page. Raises RunError naming the line of a record that cannot be read."""
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate((root / RECORDED).read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = json.loads(line)
            columns = list(dict.fromkeys(column for row in run["rows"] for column in row))
            shown = table(columns, [[_number(row.get(column, "-")) for column in columns] for row in run["rows"]])
            runs[run["command"], machine_text(run)] = {**run, "machine": machine_text(run), "table": shown}
        except (ValueError, KeyError, TypeError) as error:
            where = f"{root / RECORDED}, line {number}"
            raise RunError(f"{where}: not the last line of a benchmark's output ({error!r})") from error
    return rendered("speed", runs=list(runs.values()))


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
