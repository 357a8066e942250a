"""The SQL prompt in the form that the authors used: OmniSQL's, the schema as DDL with example values.

Each table is a `CREATE TABLE` with a line for each column: name, type, its natural name as a comment where that says
more, and example values: first those that the question names (see `question_values`), then the first that the table
holds. Types, keys and natural names are the data set's `tables.json`; without its entry they are the database's own.
The text around the schema is in `sql_prompt.toml`.
Where this departs from OmniSQL is in `docs/method.md`. Views are not shown (neither are they there).
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

from dphlib.data.question_values import value_index
from dphlib.runtime.files import InputError, table_beside
from dphlib.verify.sqlite_files import bounded_rows, open_read_only, quoted, read_only_uri

MAX_OPS = 20_000_000
EXAMPLES = 2
MAX_EXAMPLES = 6
MAX_CHARS = 40

_WORDS = table_beside(__file__)
_KEYWORDS = frozenset(_WORDS["keywords"].split())
_Table = tuple[str, list[tuple[str, str, str]], list[str]]
"""Name; name, type and comment of each column; lines of its keys."""


def schema_prompt(
    database: Path, question: str, evidence: str = "", *, description: Mapping[str, Any] | None = None
) -> str:
    """The whole text of the user message that asks `question` of a database.

    Args:
        database: an SQLite file; it is opened read-only and immutable.
        question: in natural language.
        evidence: BIRD's hint, "" without one.
        description: the database's entry of `tables.json`; without it names and keys are the database's own.

    Raises FileNotFoundError for a database that is not there, ValueError for one that cannot be read or has no
    table, or a description that does not fit.
    """
    uri = read_only_uri(database)
    asked = f"{evidence}\n{question}" if evidence.strip() else question
    try:
        tables, examples = _schema(uri, json.dumps(description) if description else "")
        named = value_index(uri).named_in(asked)
    except sqlite3.Error as error:
        raise InputError(f"{database} cannot be read: {error}") from error
    if not tables:
        raise InputError(f"{database} has no table")
    ddl = "\n\n".join(_table_ddl(table, examples, named) for table in tables)
    return _WORDS["template"].format(schema=ddl, question=asked)


def table_descriptions(path: Path) -> dict[str, Mapping[str, Any]]:
    """Entries of a data set's `tables.json` by database. Raises ValueError for any other file."""
    try:
        return {entry["db_id"]: entry for entry in json.loads(Path(path).read_text(encoding="utf-8"))}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a tables.json of Spider or BIRD: {error!r}") from error


def describe_database(connection: sqlite3.Connection) -> dict[str, Any]:
    """A database in the form of an entry of `tables.json`, by the rules of Spider's script.

    Of a primary key of several columns it keeps the first, as Spider's files do.
    """
    columns: list[tuple[int, str]] = [(-1, "*")]
    types, primary, references = ["text"], [], []
    listed = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    tables = [table for (table,) in listed]
    for number, table in enumerate(tables):
        for _, column, declared, _, _, key in connection.execute(f"PRAGMA table_info({quoted(table)})"):
            if key == 1:
                primary.append(len(columns))
            columns.append((number, column))
            types.append(_column_type(declared))
        for key in connection.execute(f"PRAGMA foreign_key_list({quoted(table)})"):
            references.append((number, key[3], key[2], key[4]))
    places = {(number, column.lower()): place for place, (number, column) in enumerate(columns)}
    numbers = {table.lower(): number for number, table in enumerate(tables)}
    foreign = []
    for number, column, other_table, other_column in references:
        other = numbers.get(other_table.lower())
        target = (
            next((place for place in primary if columns[place][0] == other), None)
            if other_column is None
            else places.get((other, other_column.lower()))  # type: ignore[arg-type]
        )
        if target is not None:
            foreign.append((places[number, column.lower()], target))
    return {
        "table_names_original": tables,
        "column_names_original": columns,
        "column_names": [(number, column.replace("_", " ")) for number, column in columns],
        "column_types": types,
        "primary_keys": primary,
        "foreign_keys": foreign,
    }


@lru_cache(maxsize=64)
def _schema(uri: str, description: str) -> tuple[list[_Table], dict[str, list[Any]]]:
    """Tables in the order of the prompt, and each column's first values by "table.column" in lower case."""
    with closing(open_read_only(uri)) as connection:
        entry = json.loads(description) if description else describe_database(connection)
        try:
            tables = _tables(entry)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(f"description of {entry.get('db_id')!r} is no entry of tables.json: {error!r}") from error
        return tables, {
            f"{table}.{column}".lower(): values
            for table, *_ in tables
            for _, column, *_ in connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
            if (values := _first_values(connection, table, column))
        }


def _tables(entry: Mapping[str, Any]) -> list[_Table]:
    names = entry["table_names_original"]
    columns, natural = entry["column_names_original"], entry["column_names"]
    # BIRD writes a key of several columns as a list
    primary = {i for key in entry["primary_keys"] for i in (key if isinstance(key, list) else [key])}
    tables = []
    for number, table in enumerate(names):
        places = [i for i, (owner, _) in enumerate(columns) if owner == number]
        keys = list(dict.fromkeys(_name(columns[i][1]) for i in places if i in primary))
        lines = [f"    PRIMARY KEY ({', '.join(keys)}),"] if keys else []
        for i in places:
            lines += [_foreign_key(table, columns[i][1], names, columns[j]) for k, j in entry["foreign_keys"] if k == i]
        shown = [(columns[i][1], entry["column_types"][i], _comment(columns[i][1], natural[i][1])) for i in places]
        if shown:
            tables.append((table, shown, list(dict.fromkeys(lines))))
    return tables


def _foreign_key(table: str, column: str, names: list[str], target: tuple[int, str]) -> str:
    constraint = f"fk_{table}_{column}".lower().replace(" ", "_")
    references = f"REFERENCES {_name(names[target[0]])} ({_name(target[1])}),"
    return f"    CONSTRAINT {constraint} FOREIGN KEY ({_name(column)}) {references}"


def _comment(column: str, natural: str) -> str:
    """The natural name where it is not the column's own, spelt otherwise."""
    lower = natural.lower()
    known = column.lower() in (lower, lower.replace(" ", "_"), lower.replace(" ", ""))
    return "" if known or not natural.strip() else natural


def _table_ddl(table: _Table, examples: Mapping[str, list[Any]], named: Mapping[str, list[str]]) -> str:
    name, columns, keys = table
    lines = []
    for column, kind, comment in columns:
        key = f"{name}.{column}".lower()
        values = list(dict.fromkeys([*named.get(key, []), *examples.get(key, [])]))[:MAX_EXAMPLES]
        said = [comment] if comment else []
        said += [f"example: {values}"] if values else []
        lines.append(f"    {_name(column)} {kind}," + (f" -- {', '.join(said)}" if said else ""))
    body = "\n".join(lines + keys)
    return f"CREATE TABLE {_name(name)} (\n{body.removesuffix(',')}\n);"


def _name(name: str) -> str:
    return f"`{name}`" if name.upper() in _KEYWORDS or re.search(r"[^a-zA-Z0-9_]", name) else name


def _column_type(declared: str) -> str:
    declared = declared.lower()
    found = (kind for kind, words in _WORDS["types"].items() if any(word in declared for word in words))
    return next(found, "others") if declared else "text"


def _first_values(connection: sqlite3.Connection, table: str, column: str) -> list[Any]:
    """The first values in the order in which SQLite finds them, which may be an index's."""
    name = quoted(column)
    distinct = f"SELECT DISTINCT {name} FROM {quoted(table)} WHERE {name} IS NOT NULL AND {name} != ''"
    found = (  # one at a time: the sqlite3 module steps ahead of the row that it gives, and could lose it
        value
        for number in range(EXAMPLES)
        for (value,) in bounded_rows(connection, f"SELECT {name} FROM ({distinct}) LIMIT 1 OFFSET {number}", MAX_OPS)
    )
    return [value[:MAX_CHARS] if isinstance(value, (str, bytes)) else value for value in found]
