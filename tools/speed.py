"""The generated blocks of docs/speed.md: what the benchmarks of training measured, from their recorded output.

`tests/benchmarks/recorded.jsonl` has the last line that each script printed (`measuring.tell`), one line per run; of
two runs of one command on one machine the later one counts. `tests/gpu/first_quarter_hour.json` is what the script of
that name wrote on a GPU; without it the page says that there is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dphlib.report.facts import machine_text
from dphlib.runtime.files import RunError
from tools.blocks import rendered, table

RECORDED = Path("tests", "benchmarks", "recorded.jsonl")
ON_GPU = Path("tests", "gpu", "first_quarter_hour.json")


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page. Raises RunError naming the record, or its line, that cannot be read."""
    runs: dict[tuple[str, str], dict[str, Any]] = {}
    for number, line in enumerate((root / RECORDED).read_text(encoding="utf-8").splitlines(), 1):
        try:
            run = json.loads(line)
            runs[run["command"], machine_text(run)] = {
                **run,
                "machine": machine_text(run),
                "table": _table(run["rows"]),
            }
        except (ValueError, KeyError, TypeError) as error:
            where = f"{root / RECORDED}, line {number}"
            raise RunError(f"{where}: not the last line of a benchmark's output ({error!r})") from error
    return rendered("speed", runs=list(runs.values()), gpu=_on_gpu(root / ON_GPU))


def _on_gpu(path: Path) -> dict[str, Any] | None:
    """The run on a GPU with its tables; None where there is none. Raises RunError for a record of something else."""
    if not path.is_file():
        return None
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if not run["machine"]["gpus"]:
            raise RunError(f"{path}: a run without a GPU; run tests/gpu/first_quarter_hour.py where there is one")
        parts = {name: {**part, "table": _table(part["rows"])} for name, part in run["parts"].items()}
        return {**run, "machine": machine_text(run), "parts": parts}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not what tests/gpu/first_quarter_hour.py writes ({error!r})") from error


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a run; a dash where a row has no such column."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return table(columns, [[_number(row.get(column, "-")) for column in columns] for row in rows])


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
