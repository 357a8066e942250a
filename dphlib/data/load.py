"""Data sets in, `Problem` out: from a folder in the official layout, or from the hub at a pinned revision.

`load("bird", "dev", data_dir=...)` finds the split's files below `data_dir` (the places are in `sets`); without
`data_dir` the copy on the hub is read through the package `datasets`, at the commit that `sets` names. Each row becomes
a `Problem` with the row's own id where the set has one, else its number in file order, and the set's labels in `meta`,
all as text. A row that repeats another one, id and all, is left out and counted. The prompt is the user's turn, without
a model's own chat template.

What it does not do: judge whether a gold is any good (`check` does, and builds the sets that are trained on), apply a
tolerance (one row of OlympiadBench has one: it is a label) or a row's own way of grading (some of BIRD-Verified have
one), read a data set that needs code from the hub.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from dphlib.data.sets import DATA_SETS, REVISIONS, SUITES, DataSet, Hub
from dphlib.data.sql_prompt import schema_prompt, table_descriptions
from dphlib.runtime.files import InputError, MissingFileError, clear_errors, say, sha256_file
from dphlib.types import Problem
from dphlib.world.templates import math_prompt

Prompt = Callable[..., str]
_NOT_DATA = (
    (b"version https://git-lfs.github.com/spec/", "a git-LFS pointer, not the data: run `git lfs pull` there"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"\x1f\x8b", "compressed by gzip: unpack it"),
    (b"<!DOCTYPE", "a web page, not the data: download the file again"),
    (b"<html", "a web page, not the data: download the file again"),
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class DataError(InputError):
    """A data set that cannot be read as it should be: the message names file, line or row, and the way out."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a split was found.

    Args:
        files: its files, none for the hub.
        databases: folder of its databases, None where that is not known.
        tables: description of the databases, None where there is none.
        revision: commit on the hub, "" for files.
    """

    data_set: DataSet
    split: str
    files: tuple[Path, ...] = ()
    databases: Path | None = None
    tables: Path | None = None
    revision: str = ""

    @property
    def suite(self) -> str:
        return self.data_set.suite(self.split)

    def __str__(self) -> str:
        return ", ".join(map(str, self.files)) or f"{self.hub.id} at {self.revision}"

    @property
    def hub(self) -> Hub:
        """The copy on the hub that it is read from.

        Raises:
            ValueError: there is none that is the same set.
        """
        hub = self.data_set.splits[self.split].hub
        if hub is None:
            raise InputError(
                f"{self.suite} has no copy on the hub that is the same set: get it from {self.data_set.source}, give "
                "data_dir"
            )
        return hub

    @property
    def known_as(self) -> str:
        """Which revision its files are, by their hashes; the hub's commit where it has none."""
        known = [REVISIONS.get(sha256_file(file), f"unknown ({file.name})") for file in self.files]
        return ", ".join(dict.fromkeys(known)) or str(self)


class Rows(NamedTuple):
    """What a split holds: its problems, and the ids of rows that repeated another one and were left out."""

    problems: list[Problem]
    repeated: list[str]


def load(
    name: str,
    split: str | None = None,
    *,
    data_dir: Path | str | None = None,
    databases: Path | str | None = None,
    revision: str = "",
    prompt: Prompt | None = None,
) -> list[Problem]:
    """The problems of a split, with their prompts.

    Args:
        name: of `DATA_SETS`, or of `SUITES`.
        split: of the set; may be left out where there is one, or `name` says it.
        data_dir: folder with the official files; None for the copy on the hub.
        databases: folder of `<db_id>/<db_id>.sqlite`; None for the one beside the files.
        revision: another full commit hash of the hub copy.
        prompt: makes the prompt of a question: `prompt(question)` for mathematics, and for SQL
            `prompt(database, question, evidence, description=...)`. None: `math_prompt`, `schema_prompt`.

    Raises FileNotFoundError for files or databases that are not there, `DataError` for what cannot be read,
    ValueError for an unknown set or split.
    """
    source = find(name, split, data_dir=data_dir, databases=databases, revision=revision)
    rows = read(source)
    if rows.repeated:
        say(repeated_text(source.suite, rows.repeated))
    return add_prompts(rows.problems, source, prompt)


def lookup(name: str, split: str | None = None) -> tuple[DataSet, str]:
    """Set and split of a name. Raises ValueError, which lists what is known.

    >>> lookup("bird_dev")[1], lookup("math500")[1]
    ('dev', 'test')
    """
    if name in SUITES and split in (None, SUITES[name][1]):
        return SUITES[name]
    data_set = DATA_SETS.get(name)
    if data_set is None:
        raise InputError(f"unknown data set {name!r}; known: {', '.join(dict.fromkeys((*DATA_SETS, *SUITES)))}")
    if split is None or split not in data_set.splits:
        raise InputError(f"unknown split {split!r} of {name}; known: {', '.join(data_set.splits)}")
    return data_set, split


def find(
    name: str,
    split: str | None = None,
    *,
    data_dir: Path | str | None = None,
    databases: Path | str | None = None,
    revision: str = "",
) -> Source:
    """Where the split is, see `load`. Raises FileNotFoundError, which says what is expected where."""
    data_set, split = lookup(name, split)
    part = data_set.splits[split]
    folder = None if databases is None else Path(databases)
    if folder is not None and not folder.is_dir():
        raise MissingFileError(f"no folder {folder} with the databases of {data_set.suite(split)}")
    if data_dir is None:
        return _pinned(Source(data_set, split, databases=folder), revision)
    if revision:
        raise InputError(f"revision={revision!r} is of the hub copy: leave it out, or leave out data_dir")
    root = Path(data_dir)
    if not root.is_dir():
        raise MissingFileError(f"no folder {root}: give the folder that holds the data sets' folders")
    files = _first(root, part.files)
    if files is None:
        raise MissingFileError(_expected(root, data_set, split))
    places = [(files[0].parent, part)]
    for other, its_split in (SUITES[suite] for suite in part.databases_of):
        its_part = other.splits[its_split]
        places += [((root / names[0]).parent, its_part) for names in its_part.files]
    there = [(beside, one) for beside, one in places if one.databases and (beside / one.databases).is_dir()]
    beside, one = there[0] if there else places[0]
    tables = beside / one.tables
    folder = folder or (beside / one.databases if there else None)
    return Source(data_set, split, files, folder, tables if tables.is_file() else None)


def _pinned(source: Source, revision: str) -> Source:
    hub = source.hub
    revision = revision or hub.revision
    if not revision:
        raise InputError(
            f"{source.suite}: no commit of {hub.id} could be verified when this was written; give data_dir with the "
            f"files of {source.data_set.source}, or a full commit hash of that copy as revision"
        )
    if not _COMMIT.fullmatch(revision):
        raise InputError(f"revision={revision!r}: must be a full commit hash, 40 hex digits; a branch's name moves")
    return replace(source, revision=revision)


def _first(root: Path, alternatives: Sequence[Sequence[str]]) -> tuple[Path, ...] | None:
    """The first alternative of which all files are there."""
    for names in alternatives:
        files = tuple(root / name for name in names)
        if all(file.is_file() for file in files):
            return files
    return None


def _expected(root: Path, data_set: DataSet, split: str) -> str:
    part = data_set.splits[split]
    places = " or ".join(" and ".join(names) for names in part.files)
    text = f"{data_set.suite(split)}: {root} has no {places}"
    partly = [(root / name, names) for names in part.files for name in names if (root / name).is_file()]
    folders = {root, *((root / names[0]).parent for names in part.files)}
    archives = sorted(file for folder in folders if folder.is_dir() for file in folder.glob("*.zip"))
    if partly:
        text += f"; {partly[0][0].name} is there, the other files are not"
    elif archives:
        text += f"; there is {archives[0]}: unpack it there if it is this set's"
    return f"{text}. Get the files from {data_set.source}"


# --- Rows ---


def read(source: Source) -> Rows:
    """The problems of a split, each with the bare question as its prompt; rows that repeat another are left out.

    Raises `DataError` naming file and line, or row, for what is not data, not JSON, or lacks a field, and for a split
    without a row or with two rows of the same id that are not the same.
    """
    rows = [row for file in source.files for row in read_rows(file)] if source.files else _hub_rows(source)
    first: dict[str, tuple[str, Mapping[str, Any]]] = {}
    problems, repeated = [], []
    for number, (where, row) in enumerate(rows):
        problem = _problem(source, number, where, row)
        earlier = first.setdefault(problem.id, (where, row))
        if earlier[0] == where:
            problems.append(problem)
        elif earlier[1] == row:
            repeated.append(problem.id)
        else:
            raise DataError(
                f"{where}: another row with the id {problem.id!r} of {earlier[0]}; leave one of them out, or get the "
                f"files again from {source.data_set.source}"
            )
    if not problems:
        raise DataError(f"{source}: no row in it; get it again from {source.data_set.source}")
    return Rows(problems, repeated)


def repeated_text(suite: str, ids: Sequence[str]) -> str:
    """One sentence: how many rows repeat another and were left out."""
    return f"{suite}: {len(ids)} rows repeat another one and are left out: ids {', '.join(ids)}"


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows of a JSON list or of JSON Lines, each with its place. Raises `DataError`, see `read`."""
    with clear_errors(path):
        data = path.read_bytes()
    for start, what in _NOT_DATA:
        if data[:200].lstrip()[: len(start)].lower() == start.lower():
            raise DataError(f"{path} is {what}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: byte {data[error.start]:#04x} is no UTF-8; get the file again") from None
    if not text.strip():
        raise DataError(f"{path} is empty; get the file again")
    if text.lstrip().startswith("["):
        found = _json(text, path, 1)
        rows = [(f"{path}, row {number}", row) for number, row in enumerate(found)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        rows = [(f"{path}:{number}", _json(line, path, number)) for number, line in lines if line.strip()]
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where}: a JSON object with named fields is needed, not {str(row)[:60]!r}")
    return rows


def _json(text: str, path: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line += getattr(error, "lineno", 1) - 1
        raise DataError(f"{path}:{line}: not JSON ({error}); get the file again") from None


def _hub_rows(source: Source) -> list[tuple[str, dict[str, Any]]]:
    """The rows of the hub copy: parquet or JSON only, `datasets` no longer runs code of a data set."""
    import datasets

    hub = source.hub
    try:
        rows = datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=source.revision)
    except Exception as error:  # of many libraries: network, file formats, the hub's own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{source.suite}: {source} was not loaded ({reason}); try again with a network, or give data_dir with the "
            f"files of {source.data_set.source}"
        ) from error
    return [(f"{source}, row {number}", dict(row)) for number, row in enumerate(rows)]


def _problem(source: Source, number: int, where: str, row: Mapping[str, Any]) -> Problem:
    data_set = source.data_set
    question = next((row[name] for name in data_set.question if isinstance(row.get(name), str)), "")
    if not question.strip():
        raise DataError(f"{where}: no question in field {' or '.join(data_set.question)}; fields: {', '.join(row)}")
    try:
        gold = data_set.gold(row)
    except KeyError as error:
        raise DataError(f"{where}: no field {error.args[0]} with an answer; fields: {', '.join(row)}") from None
    except ValueError as error:
        raise DataError(f"{where}: {error}") from None
    db_id = row.get("db_id") if data_set.kind == "sql" else None
    if data_set.kind == "sql":
        if not isinstance(db_id, str) or not re.fullmatch(r"[^/\\\0]+", db_id) or db_id in (".", ".."):
            raise DataError(f"{where}: db_id={db_id!r} must be the name of a database's folder")
    meta = {label: _label(row[name]) for label, name in data_set.labels.items() if row.get(name) not in (None, "")}
    try:
        "".join((question, gold, *meta.values())).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: half a UTF-16 pair in the text; get the file again") from None
    name = row.get(data_set.id)
    return Problem(str(number if name is None else name), source.suite, data_set.kind, question, gold, db_id, meta)


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- Prompts and databases ---


def add_prompts(problems: Sequence[Problem], source: Source, prompt: Prompt | None = None) -> list[Problem]:
    """The problems with whole prompts in place of the bare questions, see `load`."""
    if source.data_set.kind == "math":
        prompt = prompt or math_prompt
        return [replace(problem, prompt=prompt(problem.prompt)) for problem in problems]
    prompt = prompt or schema_prompt
    if missing := missing_databases(problems, source):
        raise MissingFileError(missing_text(missing, source))
    described = table_descriptions(source.tables) if source.tables else {}
    prompted = []
    for problem in problems:
        db_id, evidence = str(problem.db_id), problem.meta.get("evidence", "")
        path = database_path(source, db_id)
        text = prompt(path, problem.prompt, evidence, description=described.get(db_id))
        prompted.append(replace(problem, prompt=text))
    return prompted


def database_path(source: Source, db_id: str) -> Path:
    """Where the database of a name is, or would be. Raises FileNotFoundError where no databases are."""
    if source.databases is None:
        raise MissingFileError(f"{source.suite}: no folder with its databases")
    return source.databases / db_id / f"{db_id}.sqlite"


def missing_databases(problems: Iterable[Problem], source: Source) -> dict[str, int]:
    """Databases that are not there -> problems that need them."""
    needed = Counter(str(problem.db_id) for problem in problems)
    return {
        db_id: count
        for db_id, count in sorted(needed.items())
        if source.databases is None or not database_path(source, db_id).is_file()
    }


def missing_text(missing: Mapping[str, int], source: Source) -> str:
    """One sentence: which databases are missing, where they should be, where to get them."""
    part = source.data_set.splits[source.split]
    if source.databases is not None:
        place = f"{source.databases}/<db_id>/<db_id>.sqlite"
    elif part.databases_of:
        place = f"the place of {part.databases_of[0]}'s, or the folder given as databases"
    elif source.files:
        place = f"{source.files[0].parent / part.databases}, or the folder given as databases"
        archives = sorted(source.files[0].parent.glob(f"*{part.databases}*.zip"))
        place += f" (unpack {archives[0]} there)" if archives else ""
    else:
        place = "the folder given as databases: the hub copy holds the questions only"
    names = ", ".join(list(missing)[:20]) + (", ..." if len(missing) > 20 else "")
    return (
        f"{source.suite}: {len(missing)} databases of {sum(missing.values())} problems are not there: {names}. They "
        f"belong in {place}; get them from {source.data_set.source}"
    )
