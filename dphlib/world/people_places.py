"""The CPU world: questions over real SQLite databases, four ways to answer each, and sums.

A controlled testbed for the paper's mechanism, small enough for a laptop. Four analysts wrote the corpus. Each has a
way of writing SQL (`templates.STYLES`) and habits about what a column may hold: how a yes is spelt, how a missing
value is marked, whether numbers tie, are stored as text, or have a marker for "unknown". The prompt shows the schema
but not the rows, so on the *hidden* families the database's content decides, through execution, whose habit is right:
one analyst's more often than the others'. On the *clean* families every style is right.

Suites: `train` and `in_domain` (people; disjoint databases), `cross_domain` (places: other tables and other question
families), `out_of_domain` (sums). The corpus of supervised fine-tuning covers all of them, RL only `train`.

It is not text-to-SQL at scale. Its settings were chosen by the base model's regime, never by how a method does.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dphlib.settings.stages import WorldConfig
from dphlib.types import Problem
from dphlib.world import sums
from dphlib.world.templates import STYLES, sql_answer, sql_prompt

PEOPLE = ("singers", "students", "players", "teachers", "drivers", "nurses", "pilots", "actors", "dancers", "writers")
PLACES = ("shops", "hotels", "museums", "airports", "schools", "stadiums", "libraries", "theatres", "banks", "farms")
NUMBERS = {
    "people": ("age", "height", "weight", "salary", "score", "wins"),
    "places": ("price", "size", "rating", "visitors", "floors", "rooms"),
}
FLAGS = {"people": ("active", "married", "retired", "insured"), "places": ("open", "public", "modern", "certified")}
OPTIONALS = {"people": ("phone", "email", "country", "agent"), "places": ("website", "owner", "manager", "street")}
CITIES = ("Bern", "Oslo", "Lima", "Riga", "Kyiv", "Rome", "Cairo", "Quito")

YES = {"direct": "Y", "aliased": "true", "nested": "1", "stepwise": "yes"}
NO = {"direct": "N", "aliased": "false", "nested": "0", "stepwise": "no"}
MISSING = {"direct": None, "aliased": "unknown", "nested": "", "stepwise": "-"}
# The content of a numeric column: which styles its superlative is right in follows by execution.
NUMBER_CONTENT = {"direct": "unique", "aliased": "text", "nested": "ties", "stepwise": "marker"}
HIGH_MARKER, LOW_MARKER = 999, 0

FAMILIES = {
    "people": ("list_above", "aggregate", "highest", "count_yes", "count_known", "highest_yes"),
    "places": ("count_by_city", "below_average", "lowest", "count_no", "count_missing"),
}
HIDDEN = frozenset({"highest", "count_yes", "count_known", "highest_yes", "lowest", "count_no", "count_missing"})


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    numbers: tuple[str, str]
    flag: str
    optional: str
    domain: str

    @property
    def columns(self) -> tuple[str, ...]:
        city = ("city",) if self.domain == "places" else ()
        return ("name", *city, *self.numbers, self.flag, self.optional)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a family and its slots. `text` is the question, `write_sql` its SQL."""

    family: str
    table: Table
    number: str
    constant: int
    aggregate: str

    @property
    def text(self) -> str:
        t, x, flag, optional = self.table.name, self.number, self.table.flag, self.table.optional
        return {
            "list_above": f"names of {t} with {x} above {self.constant}",
            "aggregate": f"{self.aggregate} {x} of {t}",
            "highest": f"name of the {t} with the highest {x}",
            "count_yes": f"how many {t} are {flag}",
            "count_known": f"how many {t} have a known {optional}",
            "highest_yes": f"name of the {flag} {t} with the highest {x}",
            "count_by_city": f"number of {t} in each city",
            "below_average": f"names of {t} with {x} below the average",
            "lowest": f"name of the {t} with the lowest {x}",
            "count_no": f"how many {t} are not {flag}",
            "count_missing": f"how many {t} have no {optional}",
        }[self.family]


def write_sql(question: Question, style: str, spelling: str | None = None) -> str:
    """The question's SQL as the analyst of `style` writes it.

    Args:
        style: one of `STYLES`; decides the form and the habit about numbers and missing values.
        spelling: the style whose spelling of yes and no is used; its own when None.

    >>> q = Question("count_yes", Table("singers", ("age", "wins"), "active", "phone", "people"), "age", 0, "avg")
    >>> write_sql(q, "direct")
    "SELECT count(*) FROM singers WHERE active = 'Y'"
    """
    t, x, flag, optional = question.table.name, question.number, question.table.flag, question.table.optional
    yes, no = YES[spelling or style], NO[spelling or style]
    select, where, tail = _PARTS[question.family](question, style, yes, no)
    if style == "direct":
        return _join(f"SELECT {select} FROM {t}", where, tail)
    if style == "aliased":
        names = {x, flag, optional, "name", "city"}

        def rename(part: str) -> str:
            head, subquery, rest = part.partition("( SELECT")  # T1 would be the outer row in there
            return " ".join(f"T1 . {word}" if word in names else word for word in head.split()) + f" {subquery}{rest}"

        return " ".join(_join(f"SELECT {rename(select)} FROM {t} AS T1", rename(where).strip(), rename(tail)).split())
    if style == "nested":
        if question.family in ("highest", "lowest", "highest_yes"):
            best = "min(" if question.family == "lowest" else "max("
            inner = _join(f"SELECT {best} {x} ) FROM {t}", where)
            return f"SELECT name FROM {t} WHERE {where + ' AND ' if where else ''}{x} = ( {inner} )"
        return _join(f"SELECT {select} FROM ( {_join(f'SELECT * FROM {t}', where)} )", "", tail)
    if question.family in ("highest", "lowest", "highest_yes"):
        known = f"{x} <> {LOW_MARKER if question.family == 'lowest' else HIGH_MARKER}"
        where = f"{where} AND {known}" if where else known
    return f"WITH k AS ( {_join(f'SELECT * FROM {t}', where)} ) {_join(f'SELECT {select} FROM k', '', tail)}"


def _join(head: str, where: str, tail: str = "") -> str:
    return " ".join(part for part in (head, where and f"WHERE {where}", tail) if part)


def _superlative(direction: str) -> Callable[[Question, str, str, str], tuple[str, str, str]]:
    def parts(q: Question, style: str, yes: str, no: str) -> tuple[str, str, str]:
        as_number = " + 0" if style == "aliased" else ""
        where = f"{q.table.flag} = '{yes}'" if q.family == "highest_yes" else ""
        return "name", where, f"ORDER BY {q.number}{as_number}{direction} LIMIT 1"

    return parts


def _is_missing(column: str, style: str, negated: bool = False) -> str:
    if (marker := MISSING[style]) is None:
        return f"{column} IS NOT NULL" if negated else f"{column} IS NULL"
    return f"{column} <> '{marker}'" if negated else f"{column} = '{marker}'"


_AGGREGATES = {"average": "avg(", "total": "sum("}
# family -> (select list, condition, tail), before the style's form is laid around them
_PARTS: dict[str, Callable[[Question, str, str, str], tuple[str, str, str]]] = {
    "list_above": lambda q, s, yes, no: ("name", f"{q.number} > {q.constant}", ""),
    "aggregate": lambda q, s, yes, no: (f"{_AGGREGATES[q.aggregate]} {q.number} )", "", ""),
    "highest": _superlative(" DESC"),
    "highest_yes": _superlative(" DESC"),
    "lowest": _superlative(""),
    "count_yes": lambda q, s, yes, no: ("count(*)", f"{q.table.flag} = '{yes}'", ""),
    "count_no": lambda q, s, yes, no: ("count(*)", f"{q.table.flag} = '{no}'", ""),
    "count_known": lambda q, s, yes, no: ("count(*)", _is_missing(q.table.optional, s, negated=True), ""),
    "count_missing": lambda q, s, yes, no: ("count(*)", _is_missing(q.table.optional, s), ""),
    "count_by_city": lambda q, s, yes, no: ("city , count(*)", "", "GROUP BY city"),
    "below_average": lambda q, s, yes, no: (
        "name",
        f"{q.number} < ( SELECT avg( {q.number} ) FROM {q.table.name} )",
        "",
    ),
}


def draw_tables(rng: random.Random, domain: str) -> tuple[Table, Table]:
    first, second = rng.sample(PEOPLE if domain == "people" else PLACES, 2)
    return _draw_table(rng, domain, first), _draw_table(rng, domain, second)


def _draw_table(rng: random.Random, domain: str, name: str) -> Table:
    a, b = rng.sample(NUMBERS[domain], 2)
    return Table(name, (a, b), rng.choice(FLAGS[domain]), rng.choice(OPTIONALS[domain]), domain)


def draw_question(rng: random.Random, family: str, table: Table) -> Question:
    return Question(family, table, rng.choice(table.numbers), 10 * rng.randint(2, 8), rng.choice(tuple(_AGGREGATES)))


def database_prompt(tables: tuple[Table, Table], question: Question) -> str:
    return sql_prompt([(table.name, table.columns) for table in tables], question.text)


# --- databases ---------------------------------------------------------------------------------------------------


def _draw_rows(rng: random.Random, table: Table, content: dict[str, str], low: bool) -> list[tuple]:
    """Rows of a table whose columns hold what `content` says; `low`: the quirk is at the minimum."""
    count = rng.randint(12, 24)
    columns: dict[str, list] = {"name": [f"{table.name[:2]}{i}" for i in range(count)]}
    columns["city"] = [rng.choice(CITIES) for _ in range(count)]
    for x in table.numbers:
        values: list = rng.sample(range(5, 130), count)
        if content[x] == "ties":
            best = min(values) if low else max(values)
            for i in rng.sample([i for i in range(count) if values[i] != best], rng.randint(2, 5)):
                values[i] = best
        elif content[x] == "marker":
            for i in rng.sample(range(count), rng.randint(2, 5)):
                values[i] = LOW_MARKER if low else HIGH_MARKER
        elif content[x] == "text":
            values = [str(value) for value in values]
        columns[x] = values
    yes, no = YES[content[table.flag]], NO[content[table.flag]]
    columns[table.flag] = [yes if rng.random() < 0.5 else no for _ in range(count)]
    marker = MISSING[content[table.optional]]
    columns[table.optional] = [marker if rng.random() < 0.35 else f"v{rng.randint(1, 99)}" for _ in range(count)]
    return list(zip(*(columns[name] for name in table.columns), strict=True))


def _create(table: Table, rows: list[tuple], connection: sqlite3.Connection, content: dict[str, str]) -> None:
    types = {x: "TEXT" if content[x] == "text" else "INTEGER" for x in table.numbers}
    columns = ", ".join(f"{name} {types.get(name, 'TEXT')}" for name in table.columns)
    connection.execute(f"DROP TABLE IF EXISTS {table.name}")
    connection.execute(f"CREATE TABLE {table.name} ({columns})")
    connection.executemany(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(table.columns))})", rows)


def _result(connection: sqlite3.Connection, sql: str) -> frozenset:
    return frozenset(connection.execute(sql).fetchall())


def right_styles(connection: sqlite3.Connection, question: Question, gold: str) -> tuple[str, ...]:
    """The styles whose own SQL gives the gold's rows on this content, found by executing them."""
    target = _result(connection, gold)
    return tuple(s for s in STYLES if _result(connection, write_sql(question, s)) == target)


def _expected_styles(question: Question, owner: str, spelling: str) -> set[str]:
    if question.family not in HIDDEN:
        return set(STYLES)
    if question.family in ("count_yes", "count_no"):
        return {spelling}
    if question.family == "count_missing":
        return {owner}
    # NULL and unique numbers are the contents on which nobody's habit does harm.
    everyone = set(STYLES) if owner == "direct" else {owner}
    return everyone & {spelling} if question.family == "highest_yes" else everyone


def build_database(
    rng: random.Random, config: WorldConfig, domain: str, folder: Path, db_id: str, family: str
) -> tuple[tuple[Table, Table], Question, str, tuple[str, ...]]:
    """One database and one question on it, redrawn until its content decides as its family says.

    Returns:
        (tables, question, gold SQL, styles that are right on it).
    """
    odds = [config.right_odds[style] for style in STYLES]
    owner, spelling = rng.choices(STYLES, odds)[0], rng.choices(STYLES, odds)[0]
    path = folder / db_id / f"{db_id}.sqlite"
    path.parent.mkdir(parents=True)
    for _ in range(1000):
        tables = draw_tables(rng, domain)
        table = rng.choice(tables)
        question = draw_question(rng, family, table)
        connection = sqlite3.connect(path)
        for each in tables:
            # The columns that the question does not depend on hold anything.
            content = {x: rng.choice(("unique", "marker", "ties")) for x in each.numbers}
            content |= {each.flag: rng.choice(STYLES), each.optional: rng.choice(STYLES)}
            if each is table:
                hidden_number = family in ("highest", "lowest", "highest_yes")
                content[question.number] = NUMBER_CONTENT[owner] if hidden_number else "unique"
                content |= {each.flag: spelling, each.optional: owner}
            _create(each, _draw_rows(rng, each, content, low=family == "lowest"), connection, content)
        gold = write_sql(question, owner, spelling)
        rows = _result(connection, gold)
        decided = set(right_styles(connection, question, gold)) == _expected_styles(question, owner, spelling)
        connection.commit()
        connection.close()
        if rows and rows != {(0,)} and decided:
            return tables, question, gold, tuple(sorted(_expected_styles(question, owner, spelling)))
    raise RuntimeError(f"database {db_id}: no content for family {family!r} in 1000 draws")


def build_suite(rng: random.Random, config: WorldConfig, suite: str, count: int, folder: Path) -> list[Problem]:
    """`count` problems with a database each, families in the proportions of `config.family_weights`."""
    domain = "places" if suite == "cross_domain" else "people"
    weights = [config.family_weights[family] for family in FAMILIES[domain]]
    families = [
        f for f, w in zip(FAMILIES[domain], weights, strict=True) for _ in range(round(count * w / sum(weights)))
    ]
    families = (families + list(FAMILIES[domain]) * count)[:count]
    rng.shuffle(families)
    problems = []
    for index, family in enumerate(families):
        db_id = f"{suite}_{index:04d}"
        tables, question, gold, right = build_database(rng, config, domain, folder / "database", db_id, family)
        meta = {"family": family, "subset": "hidden" if family in HIDDEN else "clean", "right_styles": " ".join(right)}
        meta["question"] = question.text
        problems.append(Problem(db_id, suite, "sql", database_prompt(tables, question), gold, db_id, meta))
    return problems


def build_world(config: WorldConfig, folder: Path) -> dict[str, list[Problem]]:
    """Writes databases and problem files in Spider's layout and returns the suites.

    `database/<db_id>/<db_id>.sqlite`, and `<suite>.json` with the problems.
    """
    suites = {}
    for suite, count in config.problems.items():
        rng = random.Random(f"{config.seed}-{suite}")
        if suite in ("out_of_domain", "sums_train"):
            suites[suite] = sums.build_suite(rng, suite, count)
        else:
            suites[suite] = build_suite(rng, config, suite, count, folder)
        text = json.dumps([problem.to_json() for problem in suites[suite]], indent=1)
        (folder / f"{suite}.json").write_text(text, encoding="utf-8")
    return suites


# --- the supervised corpus ----------------------------------------------------------------------------------------


def _slip(rng: random.Random, question: Question, tables: tuple[Table, Table]) -> Question:
    """The question as a careless analyst reads it: one slot wrong."""
    t, other = question.table, tables[1] if question.table is tables[0] else tables[0]
    choices = [replace(question, table=replace(t, name=other.name))]
    if question.family in _USES_A_NUMBER:
        choices.append(replace(question, number=t.numbers[0] if question.number == t.numbers[1] else t.numbers[1]))
    if question.family == "list_above":
        choices.append(replace(question, constant=10 * rng.randint(2, 8)))
    if question.family == "aggregate":
        choices.append(replace(question, aggregate="total" if question.aggregate == "average" else "average"))
    return rng.choice(choices)


_USES_A_NUMBER = frozenset({"list_above", "aggregate", "highest", "highest_yes", "below_average", "lowest"})


def corpus(config: WorldConfig, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs: every style equally often, with the analysts' slips and borrowed spellings."""
    kinds = list(config.corpus_weights)
    weights = [config.corpus_weights[kind] for kind in kinds]
    while True:
        kind, style = rng.choices(kinds, weights)[0], rng.choice(STYLES)
        if kind == "sums":
            yield sums.corpus_pair(rng, style, config.slip_rate_sums)
            continue
        tables = draw_tables(rng, kind)
        family = rng.choices(FAMILIES[kind], [config.family_weights[f] for f in FAMILIES[kind]])[0]
        question = draw_question(rng, family, rng.choice(tables))
        prompt = database_prompt(tables, question)
        spelling = rng.choice(STYLES) if rng.random() < config.borrow_rate else style
        if rng.random() < config.slip_rate_sql:
            question = _slip(rng, question, tables)
        yield prompt, sql_answer(style, write_sql(question, style, spelling))
