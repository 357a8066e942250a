"""What `dph data` prints: the table of sets with what a folder holds of each, and the report of the gold check."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dphlib.data.check import SHOWN, Findings, check
from dphlib.data.load import DataError, Source, find, lookup, missing_databases, read
from dphlib.data.sets import DATA_SETS, SUITES, DataSet, licence_text
from dphlib.runtime.files import MissingFileError, RunError, say, write_json

LISTED = ("repeated", "empty", "ties", "unprobed", "changing", "unread", "compat_only", "text_only")
ALWAYS = ("set", "problems", "failing", "seconds")
_UNREADABLE = (DataError, FileNotFoundError, RunError)


def check_folder(data_dir: Path, names: Sequence[str], report: Path, workers: int = 1) -> int:
    """Checks every gold of sets in a folder, prints what was found and writes it as JSON.

    Args:
        data_dir: folder of the sets.
        names: sets or suites, see `sets`; none for all that the folder holds.
        report: JSON file that is written.
        workers: processes that verify.

    Returns 0 if every gold holds, 1 if one fails or a set cannot be read. Raises FileNotFoundError for a set that
    was named and is not there, or if none is.
    """
    sources = held(data_dir, names)
    if not sources:
        raise MissingFileError(f"{data_dir} holds none of the data sets; `dph data list` says where each belongs")
    found, errors = [], {}
    for source in sources:
        say(f"{source.suite}: {source}; revision: {source.known_as}")
        try:
            found.append(check(read(source), source, workers=workers))
        except _UNREADABLE as error:
            errors[source.suite] = str(error)
    versions = {"sqlite": sqlite3.sqlite_version}
    write_json(report, {"versions": versions, "errors": errors, "sets": [asdict(one) for one in found]})
    print_findings(found, errors)
    print(f"Report: {report}")
    return int(bool(errors) or any(one.failing for one in found))


def held(data_dir: Path, names: Sequence[str] = ()) -> list[Source]:
    """The splits that a folder holds, of all sets or of those named. Raises as `check_folder` does."""
    sources: dict[str, Source] = {}
    for name in names or DATA_SETS:
        missing: list[FileNotFoundError] = []
        splits = list(DATA_SETS[name].splits) if name in DATA_SETS else [lookup(name)[1]]
        for split in splits:
            try:
                source = find(name, split, data_dir=data_dir)
            except FileNotFoundError as error:
                missing.append(error)
            else:
                sources[source.suite] = source
        if missing and (not data_dir.is_dir() or (names and len(missing) == len(splits))):
            raise missing[0]
    return list(sources.values())


def print_findings(found: Sequence[Findings], errors: Mapping[str, str]) -> None:
    """The findings as a table of counts, then why golds fail and which ids are in each list."""
    console = Console(width=120)
    rows = [summary(one) for one in found]
    if rows:
        table = Table(title="Golds: how many fail, and what else was found")
        names = [name for name in rows[0] if name in ALWAYS or any(row[name] for row in rows)]
        for name in names:
            table.add_column(name, justify="left" if name == "set" else "right", no_wrap=name == "set")
        for row in rows:
            shown = {**row, "failing": f"[{'red' if row['failing'] else 'green'}]{row['failing']}[/]"}
            table.add_row(*(str(shown[name]) for name in names))
        console.print(table)
    lines = [line for one in found for line in (*reasons(one), *lists(one))]
    lines += [f"{suite}: {error}" for suite, error in errors.items()]
    for line in lines:
        console.print(escape(line), highlight=False, soft_wrap=True)


def summary(found: Findings) -> dict[str, Any]:
    """One row of the printed table: counts; a column that is 0 for every set is not printed."""
    return {
        "set": found.suite,
        "problems": found.problems,
        "failing": len(found.failing),
        "no database": sum(found.missing.values()),
        **{name.replace("_", " "): len(getattr(found, name)) for name in LISTED},
        "asked twice": sum(len(group) - 1 for group in found.duplicates),
        "of these other gold": len(found.conflicting),
        "seconds": found.wall_s,
    }


def reasons(found: Findings) -> list[str]:
    """Why golds fail, the most frequent reason first, each with its number and some ids."""
    kinds = Counter(why.partition(":")[0] for why in found.failing.values())
    lines = []
    for kind, count in kinds.most_common():
        ids = [name for name, why in found.failing.items() if why.partition(":")[0] == kind]
        lines.append(f"{found.suite}: {count} fail, {found.failing[ids[0]][:200]} ({_some(ids)})")
    if found.missing:
        lines.append(f"{found.suite}: missing databases: {', '.join(found.missing)}")
    return lines


def lists(found: Findings) -> list[str]:
    """Each list that is not empty, with some of its ids."""
    lines = [
        f"{found.suite}: {name.replace('_', ' ')}: {_some(ids)}" for name in LISTED if (ids := getattr(found, name))
    ]
    if found.conflicting:
        pairs = [" = ".join(group) for group in found.conflicting]
        lines.append(f"{found.suite}: the same question with another gold: {_some(pairs)}")
    return lines


def _some(ids: Sequence[str]) -> str:
    return f"ids {', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''}"


def print_sets(data_dir: Path | None) -> int:
    """The table of data sets, with what a folder holds of each. Returns 1 if something there cannot be read."""
    if data_dir is not None and not data_dir.is_dir():
        raise MissingFileError(f"no folder {data_dir}: give the folder that holds the data sets' folders")
    table = Table(title="Data sets", show_lines=True)
    for name in ("set", "rows", "file in the data folder", "hub copy", "licence, source"):
        table.add_column(name, overflow="fold")
    if data_dir is not None:
        table.add_column(f"found in {data_dir}", overflow="fold")
    bad = 0
    for suite, (data_set, split) in SUITES.items():
        part = data_set.splits[split]
        hub = "none" if part.hub is None else f"{part.hub.id} @ {part.hub.revision[:12] or 'give a revision'}"
        hub += f" ({part.hub.note})" if part.hub and part.hub.note else ""
        licence = licence_text(data_set).replace("*", "")
        cells = [suite, str(part.rows), " + ".join(part.files[0]), hub, f"{licence}; {data_set.source}"]
        if data_dir is not None:
            try:
                cells.append(_held(data_set, split, data_dir))
            except (DataError, RunError) as error:
                bad = 1
                cells.append(f"unreadable: {error}")
        table.add_row(*map(escape, cells))
    Console(width=160).print(table)
    return bad


def _held(data_set: DataSet, split: str, data_dir: Path) -> str:
    try:
        source = find(data_set.name, split, data_dir=data_dir)
    except FileNotFoundError:
        return "no"
    problems = read(source).problems
    text = f"{len(problems)} problems, revision: {source.known_as}"
    if data_set.kind == "sql":
        needed = len({problem.db_id for problem in problems})
        text += f", {needed - len(missing_databases(problems, source))} of {needed} databases"
    return text
