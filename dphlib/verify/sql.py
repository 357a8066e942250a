"""SQL answers to verdicts, by running answer and gold on the SQLite database in a worker that can be killed.

Three rules for "the same result":

- `bird`: sets of rows are equal. Column order matters; row order and duplicates do not.
- `spider`: bags of rows are equal under some permutation of columns; row order matters if the gold has a
  top-level ORDER BY.
- `paper`: the authors' scorer (`cmp_method` "spider": as above, row order never matters; "bird": sets of
  rows).

Departures from the reference evaluators; an honest answer meets none of them but 5 and 6:

1. The gold runs first, each database is opened read-only and immutable, and nothing but SELECT is authorized. BIRD's
   evaluator runs the answer first on a writable connection, where `DELETE` can make a wrong answer right.
2. Queries are bounded by SQLite's operations and memory, which repeat exactly, with the processor's time as the last
   resort; results by rows and cells.
3. Columns are matched by colour refinement with a bounded search, not by trying all permutations.
4. Text that is not UTF-8: `bird` keeps the bytes apart (its evaluator fails); the others drop them, as theirs do.
5. `spider` keeps DISTINCT (the official script drops it by default) and ignores an ORDER BY inside a subquery.
6. `paper` gives 1 or 0: the authors' reward adds 0.8 x the share of matching columns to wrong answers.

What it does not do: a query whose result changes from run to run (`random()`, 'now') counts as it came out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from dphlib.types import Verdict
from dphlib.verify.pool import Pool, PooledVerifier, WorkerSpec
from dphlib.verify.sql_rules import Mode, has_statement
from dphlib.verify.sqlite_files import read_only_uri
from dphlib.verify.worker import Task

MEMORY_MIB = 1536  # of a whole worker

_FENCE = re.compile(r"```sql\b(.*?)```", re.DOTALL | re.IGNORECASE)
_PAPER_OPENING = re.compile(r"```sql[ \t]*[\r\n]", re.IGNORECASE)
_PAPER_CLOSING = re.compile(r"[\r\n][ \t]*```")
_PAPER_TEMPLATE = "```sql\n-- Your SQL query\n```\n"


def extract_sql(answer_text: str) -> str | None:
    """The last closed ```` ```sql ```` block; None if there is none, or nothing in it but comments.

    What follows the fence may be on the same line.

    >>> extract_sql("Directly : ```sql SELECT name FROM singer ```")
    'SELECT name FROM singer'
    >>> extract_sql("```sql\\n-- to do\\n```") is extract_sql("```sql\\nSELECT 1") is None
    True
    """
    blocks = _FENCE.findall(answer_text)
    return _statement(blocks[-1]) if blocks else None


def _extract_as_paper(answer_text: str) -> str | None:
    """The authors' pattern: each fence on a line of its own, the prompt's template taken out first."""
    text, block, end = answer_text.replace(_PAPER_TEMPLATE, ""), "", 0
    while opening := _PAPER_OPENING.search(text, end):
        closing = _PAPER_CLOSING.search(text, opening.end())
        if closing is None:
            break
        block, end = text[opening.end() : closing.start()], closing.end()
    return _statement(block)


def _statement(block: str) -> str | None:
    block = block.strip()
    return block if has_statement(block) else None


class SqlVerifier(PooledVerifier):
    """Verifies SQL answers; a context manager, safe to use from several threads.

    Forked or sent to another process, it starts afresh there, with workers of its own.

    Args:
        db_root: folder with `<db_id>/<db_id>.sqlite`, the layout of Spider and BIRD.
        mode: which results count as the same, see the module.
        workers: worker processes, started at the first use.
        timeout_s: seconds of the processor for one query, after which its worker is killed; the last resort.
        max_ops: SQLite virtual-machine operations of one query; the usual end of a query that runs too long.
        max_rows, max_cells: a result beyond them is `too_large` and equals nothing.
        cmp_method: `paper` only, the field of that name in the authors' data ("bird" in BIRD's rows).
        kept: verdicts remembered.
    """

    def __init__(
        self,
        db_root: str | Path,
        mode: Mode = "bird",
        *,
        workers: int = 1,
        timeout_s: float = 30.0,
        max_ops: int = 200_000_000,
        max_rows: int = 100_000,
        max_cells: int = 1_000_000,
        cmp_method: Literal["spider", "bird"] = "spider",
        kept: int = 50_000,
    ) -> None:
        if mode not in ("bird", "spider", "paper"):
            raise ValueError(f"mode={mode!r}: must be 'bird', 'spider' or 'paper'")
        if cmp_method not in ("spider", "bird"):
            raise ValueError(f"cmp_method={cmp_method!r}: must be 'spider' or 'bird'")
        limits = {"max_ops": max_ops, "max_rows": max_rows, "max_cells": max_cells}
        for name, value in limits.items():
            if value < 1:
                raise ValueError(f"{name}={value!r}: must be at least 1")
        self.db_root = Path(db_root).absolute()
        self._extract = _extract_as_paper if mode == "paper" else extract_sql
        pool = {"workers": workers, "kept": kept}
        self._again = partial(
            SqlVerifier, self.db_root, mode, timeout_s=timeout_s, cmp_method=cmp_method, **limits, **pool
        )
        options = {"mode": mode, "sets": mode == "bird" or (mode == "paper" and cmp_method == "bird"), **limits}
        spec = WorkerSpec("dphlib.verify.sql_rules:SqlChecker", options, timeout_s, MEMORY_MIB)
        self._pool = Pool(spec, **pool)

    def verify(self, db_id: str, gold_sql: str, answer_text: str) -> Verdict:
        """The verdict on one answer; see `verify_many`."""
        return self.verify_many([(db_id, gold_sql, answer_text)])[0]

    def verify_many(self, items: Sequence[tuple[str, str, str]]) -> list[Verdict]:
        """Verdicts of `(db_id, gold_sql, answer_text)`, in order; equal items run once.

        `infra_error` (reward None) where the gold fails, or a worker died twice on the item. Raises
        FileNotFoundError for a database that is not there, ValueError for one that cannot be read safely.
        """
        databases: dict[str, str] = {}
        entries: list[Task | Verdict] = []
        for db_id, gold, text in items:
            if db_id not in databases:
                databases[db_id] = self._database(db_id)
            sql = self._extract(text)
            if sql is None:
                entries.append(Verdict("no_answer", "no closed ```sql block with a statement in it"))
            else:
                entries.append((databases[db_id], gold, sql))
        return self._pool.verdicts(entries)

    def _database(self, db_id: str) -> str:
        """The URI of the database, with a fragment that changes when the file does."""
        if not db_id or "/" in db_id or "\\" in db_id or db_id in (".", ".."):
            raise ValueError(f"db_id={db_id!r}: must be a folder name below {self.db_root}")
        return read_only_uri(self.db_root / db_id / f"{db_id}.sqlite")
