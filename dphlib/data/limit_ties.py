"""Finds where ORDER BY ... LIMIT cuts between equal rows: the result then depends on more than the query says.

For every ORDER BY ... LIMIT n of a query, in subqueries too, `limit_probes` writes two queries: the sort keys of
row n, and those of row n + 1. If both have a row and the rows are equal, the cut goes through a tie.

What it does not do: compare keys as a collation does ('a' and 'A' differ here), look into a subquery that refers
to the query around it, or know whether the tied rows would give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

_KEY = "dph_key"


@dataclass(frozen=True, slots=True)
class LimitProbe:
    """Queries for the sort keys of the last row before the cut and of the first after it."""

    last: str
    next: str


def parse_sql(sql: str) -> exp.Expr | None:
    """The tree of one SQLite query; None for what sqlglot cannot read."""
    try:
        return sqlglot.parse_one(sql, read="sqlite")
    except (SqlglotError, RecursionError):
        return None


def written(tree: exp.Expr) -> str:
    """The tree as SQLite."""
    return tree.sql(dialect="sqlite")


def limit_probes(tree: exp.Expr) -> tuple[list[LimitProbe], int]:
    """The probes of a query, and how many ORDER BY ... LIMIT of it have none.

    >>> probes, without = limit_probes(parse_sql("SELECT name AS n FROM t ORDER BY age DESC, n LIMIT 3"))
    >>> probes[0].next
    'SELECT dph_key0, dph_key1 FROM (SELECT name AS n, age AS dph_key0, name AS dph_key1 FROM t ORDER BY age DESC, n LIMIT 1 OFFSET 3)'
    >>> without
    0
    """  # noqa: E501
    shared = tree.args.get("with_")
    probes, without = [], 0
    for query in tree.find_all(exp.Query):
        if not (query.args.get("order") and query.args.get("limit")):
            continue
        probe = _probe(query, None if query is tree else shared)
        probes += [probe] if probe else []
        without += probe is None
    return probes, without


def _probe(query: exp.Query, shared: exp.Expr | None) -> LimitProbe | None:
    rows, offset = _number(query.args["limit"]), _number(query.args.get("offset"))
    if not rows or offset is None:
        return None
    if isinstance(query, exp.SetOperation):
        query = exp.select("*").from_(_plain(query).subquery()).order_by(*_ordered_by_name(query))
    if not isinstance(query, exp.Select):
        return None
    keys = _keys(query)
    if keys is None or (query.args.get("distinct") and rows + offset > 1 and not _shown(keys, query)):
        return None
    inner = query.copy()
    for number, key in enumerate(keys):
        inner.append("expressions", exp.alias_(key, f"{_KEY}{number}"))
    if shared is not None and not inner.args.get("with_"):
        inner.set("with_", shared.copy())
    names = [exp.column(f"{_KEY}{number}") for number in range(len(keys))]

    def at(row: int) -> str:
        return written(exp.select(*names).from_(inner.limit(1, copy=True).offset(row, copy=True).subquery()))

    return LimitProbe(at(rows + offset - 1), at(rows + offset))


def _number(clause: exp.Expr | None) -> int | None:
    """The literal in LIMIT or OFFSET, 0 without the clause, None for anything else."""
    if clause is None:
        return 0
    value = clause.args.get("expression")
    return int(value.this) if isinstance(value, exp.Literal) and value.this.isdigit() else None


def _plain(query: exp.Query) -> exp.Query:
    bare = query.copy()
    for part in ("order", "limit", "offset"):
        bare.set(part, None)
    return bare


def _ordered_by_name(query: exp.Query) -> list[exp.Expr]:
    """The sort terms of a compound query; its positions as names of its first part's columns."""
    names = query.named_selects
    terms = []
    for term in query.args["order"].expressions:
        term = term.copy()
        position = _position(term, len(names))
        if position is not None:
            term.set("this", exp.column(names[position], quoted=True))
        terms.append(term)
    return terms


def _keys(query: exp.Select) -> list[exp.Expression] | None:
    """The sort keys as expressions of the SELECT list; None where they cannot be."""
    shown = query.expressions
    named = {one.output_name.lower(): one.unalias() for one in shown if one.output_name}
    aliases = {one.alias.lower() for one in shown if isinstance(one, exp.Alias)}
    keys = []
    for term in query.args["order"].expressions:
        key, position = term.this, _position(term, len(shown))
        if position is not None:
            key = shown[position].unalias()
        elif isinstance(key, exp.Literal) and not key.is_string:
            return None
        elif isinstance(key, exp.Column) and not key.table:
            key = named.get(key.name.lower(), key)
        elif any(column.name.lower() in aliases for column in key.find_all(exp.Column)):
            return None  # a shown column's name means nothing in the SELECT list; in quotes it would be a text
        keys.append(key.copy())
    return keys


def _position(term: exp.Expression, columns: int) -> int | None:
    """The column that ORDER BY names by number, counted from 0."""
    key = term.this
    if isinstance(key, exp.Literal) and not key.is_string and key.this.isdigit() and 0 < int(key.this) <= columns:
        return int(key.this) - 1
    return None


def _shown(keys: list[exp.Expression], query: exp.Select) -> bool:
    """Whether all keys are among the columns that DISTINCT compares."""
    return all(key in [one.unalias() for one in query.expressions] for key in keys)
