"""What a profile's data sets hold, for readers: the counterpart of `lessons.world` where there is no CPU world.

    views = of(settings)     # the module `lessons.world` for the CPU world, this one for data sets

Both have the functions that notebooks 02, 03 and 06 call. What data sets have nothing to show for, whose habit
is right, is a sentence that says so; `tables.shown` shows sentences too.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from sqlglot import exp

from dphlib.analysis.tables import code
from dphlib.data.limit_ties import parse_sql
from dphlib.lessons import world
from dphlib.settings.profiles import Profile
from dphlib.types import Problem
from dphlib.verify.sqlite_files import quoted
from dphlib.world.people_places import FORMS

_CUT = 60
_ROWS_READ = 100_000  # of a table, for its most frequent values
_COLUMNS_SHOWN = 4


def of(settings: Profile) -> ModuleType:
    """The module that shows this profile's problems."""
    return world if settings.data is None else sys.modules[__name__]


def examples(problems: Sequence[Problem], family: str) -> list[Problem]:
    """The problems of a data set; all of them for the name of a question family of the CPU world.

    Raises:
        ValueError: none is of that set.
    """
    of_set = [problem for problem in problems if problem.meta["family"] == family]
    if of_set:
        return of_set
    if family.split()[0] not in FORMS:
        known = ", ".join(sorted({problem.meta["family"] for problem in problems}))
        raise ValueError(f"no problem of the set {family!r} among these {len(problems)}; there are: {known}")
    return list(problems)


def heading(problem: Problem) -> str:
    """A problem's set and labels, on one line."""
    labels = [f"{name} {value}" for name, value in problem.meta.items() if name in ("difficulty", "subject")]
    return problem.meta["family"] + (f" ({', '.join(labels)})" if labels else "")


def about(problem: Problem) -> str:
    """A problem's prompt, the middle of a long one left out, and where it is from, as Markdown."""
    prompt = problem.prompt
    shown = prompt if len(prompt) <= 1600 else f"{prompt[:400]}\n[...]\n{prompt[-1200:]}"
    return f"**{problem.id}**, {heading(problem)}\n\n````text\n{shown}\n````"


def card(problem: Problem) -> str:
    """`about` with the gold, as Markdown."""
    return f"{about(problem)}\n\nGold: {code(problem.gold)}"


def table_rows(database_root: Path, problem: Problem, limit: int = 8) -> pd.DataFrame | str:
    """The first rows of the first table that the gold reads; long values are cut."""
    if problem.kind != "sql":
        return "A problem of mathematics has no database."
    tables = _tables(problem)
    if not tables:
        return f"The tables of this gold could not be read: {problem.gold}"
    names, rows = world.query(database_root, problem, f"SELECT * FROM {quoted(tables[0])} LIMIT {limit}")
    return pd.DataFrame([[_short(value) for value in row] for row in rows], columns=names)


def column_content(database_root: Path, problem: Problem, limit: int = 5) -> pd.DataFrame | str:
    """The most frequent values of the columns that the gold names, among each table's first rows.

    Columns: column, value, rows, of (rows that were counted).
    """
    if problem.kind != "sql":
        return "A problem of mathematics has no columns on whose content the answer hangs."
    out = []
    for table, column in _columns(database_root, problem)[:_COLUMNS_SHOWN]:
        some = f"SELECT {quoted(column)} AS v FROM {quoted(table)} LIMIT {_ROWS_READ}"
        counts = world.query(database_root, problem, f"SELECT v, count(*) FROM ({some}) GROUP BY 1 ORDER BY 2 DESC")
        total = sum(count for _, count in counts[1])
        shown = counts[1][:limit]
        out += [{"column": f"{table}.{column}", "value": _short(v), "rows": n, "of": total} for v, n in shown]
    return pd.DataFrame(out) if out else f"This gold names no column: {problem.gold}"


def right_table(problems: Sequence[Problem]) -> str:
    """Why these data sets have no such table."""
    sets = ", ".join(sorted({problem.meta["family"] for problem in problems}))
    return f"Left out: in {sets} nobody knows which form of an answer the content favours, and how often."


def suite_table(suites: Mapping[str, Sequence[Problem]]) -> pd.DataFrame:
    """The table of `world.suite_counts` with each suite's sets and longest prompt."""
    more = {
        "sets": lambda problems: ", ".join(dict.fromkeys(problem.meta["family"] for problem in problems)),
        "longest prompt (characters)": lambda problems: max(len(problem.prompt) for problem in problems),
    }
    return world.suite_counts(suites, more)


def mathematics(problems: Sequence[Problem]) -> pd.DataFrame:
    """The first problem of each set, with its gold."""
    first = {problem.meta["family"]: problem for problem in reversed(problems)}
    return pd.DataFrame(
        [{"set": name, "prompt": first[name].prompt, "gold": first[name].gold} for name in sorted(first)]
    )


def about_base(settings: Profile) -> str:
    """What the base is, where it is not trained here."""
    base = settings.base
    where = f"at commit {base.revision} of the Hugging Face hub" if base.revision else "from a folder"
    return (
        f"The base is {base.name}, {where}, licence {base.licence}. It is not trained here, so there is no curve of "
        "supervised fine-tuning to show."
    )


def about_shipped(index: int) -> str:
    """How a shipped base was made, and how to train it again."""
    return (
        f"Base {index} is shipped in `artifacts/bases`; the curve is from its training. `./run_all.sh cpu "
        "--retrain-base` trains the bases anew; for notebooks opened in Jupyter, set `DPH_RETRAIN_BASE=1` before you "
        "start it. Another processor rounds differently and gives another base."
    )


def _tables(problem: Problem) -> list[str]:
    """Tables that the gold reads, in its order; [] where sqlglot cannot read it."""
    tree = parse_sql(problem.gold)
    own = {cte.alias_or_name for cte in tree.find_all(exp.CTE)} if tree else set()
    return list(dict.fromkeys(t.name for t in tree.find_all(exp.Table) if t.name not in own)) if tree else []


def _columns(database_root: Path, problem: Problem) -> list[tuple[str, str]]:
    """(table, column) that the gold names, by the database's own lists of columns."""
    tables = _tables(problem)
    if not tables:
        return []
    named = list(dict.fromkeys(column.name for column in parse_sql(problem.gold).find_all(exp.Column)))
    of_table = {table: _column_names(database_root, problem, table) for table in tables}
    found = [
        (table, names[name.lower()]) for name in named for table, names in of_table.items() if name.lower() in names
    ]
    return list(dict.fromkeys(found))


def _column_names(database_root: Path, problem: Problem, table: str) -> dict[str, str]:
    rows = world.query(database_root, problem, f"PRAGMA table_info({quoted(table)})")[1]
    return {name.lower(): name for _, name, *_ in rows}


def _short(value: Any) -> str:
    shown = "NULL" if value is None else repr(value)
    return shown if len(shown) <= _CUT else f"{shown[: _CUT - 4]} ..."
