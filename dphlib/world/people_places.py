"""The CPU world: questions over real SQLite databases, four ways to answer each, and sums.

A controlled testbed for the paper's mechanism, small enough for a laptop. Four analysts wrote the corpus. Each has a
way of writing SQL (`templates.STYLES`) and habits about what a column may hold: how a yes is spelt, how a missing
value is marked, whether numbers tie, are stored as text, or have a marker for "unknown". The prompt shows the schema
but not the rows. A family is a form of question about one attribute, and its content is one of three:

1. *clean*: every style is right.
2. *hidden*: the database's rows decide, through execution, whose habit is right. Each family has odds of its own.
3. *hard*: a condition is added to a clean question. Every style is right, but the corpus's answers mostly misread it.

Suites: `train` and `in_domain` (people; disjoint databases), `cross_domain` (places: other tables, attributes and
odds), `out_of_domain` (sums). The corpus of supervised fine-tuning covers all of them, RL only `train`.

It is not text-to-SQL at scale. Its settings were chosen by the base model's regime, never by how a method does.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dphlib.settings.stages import WorldConfig
from dphlib.types import Problem
from dphlib.world import sums
from dphlib.world.families import Content, Family, styled_families
from dphlib.world.templates import STYLES, sql_answer, sql_prompt

PEOPLE = ("singers", "students", "players", "teachers", "drivers", "nurses", "pilots", "actors", "dancers", "writers")
PLACES = ("shops", "hotels", "museums", "airports", "schools", "stadiums", "libraries", "theatres", "banks", "farms")
TABLES = {"people": PEOPLE, "places": PLACES}
NUMBERS = {
    "people": ("age", "height", "weight", "salary", "score", "wins"),
    "places": ("price", "size", "rating", "visitors", "floors", "rooms"),
}
FLAGS = {"people": ("active", "married", "retired", "insured"), "places": ("open", "public", "modern", "certified")}
OPTIONALS = {"people": ("phone", "email", "country", "agent"), "places": ("website", "owner", "manager", "street")}

YES = {"direct": "Y", "aliased": "true", "nested": "1", "stepwise": "yes"}
NO = {"direct": "N", "aliased": "false", "nested": "0", "stepwise": "no"}
MISSING = {"direct": None, "aliased": "unknown", "nested": "", "stepwise": "-"}
# The content of a numeric column: which styles its superlative is right in follows by execution.
NUMBER_CONTENT = {"direct": "unique", "aliased": "text", "nested": "ties", "stepwise": "marker"}
HIGH_MARKER, LOW_MARKER = 999, 0

_CLEAN, _HARD = ("list_above", "aggregate"), ("two_filters", "filtered_aggregate", "top_three")
BY_FLAG, BY_OPTIONAL, BY_NUMBER = ("count_yes", "count_no"), ("count_known", "count_missing"), ("highest", "lowest")
FORMS = (*_CLEAN, *_HARD, *BY_FLAG, *BY_OPTIONAL, *BY_NUMBER)


def families(config: WorldConfig, domain: str) -> list[Family]:
    """The families of people or of places: two clean, three hard, and a hidden one for each form and attribute."""
    forms: list[tuple[str, str, Content]] = [(form, "", "clean") for form in _CLEAN]
    forms += [(form, "", "hard") for form in _HARD]
    for hidden, attributes in ((BY_FLAG, FLAGS), (BY_OPTIONAL, OPTIONALS), (BY_NUMBER, NUMBERS)):
        forms += [(form, name, "hidden") for form in hidden for name in attributes[domain]]
    return styled_families(config, domain, forms)


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    numbers: tuple[str, str]
    flag: str
    optional: str

    @property
    def columns(self) -> tuple[str, ...]:
        return ("name", *self.numbers, self.flag, self.optional)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a form and its slots. `text` is the question, `write_sql` its SQL."""

    form: str
    table: Table
    number: str
    constant: int
    limit: int
    aggregate: str

    @property
    def other(self) -> str:
        """The table's other number."""
        first, second = self.table.numbers
        return second if self.number == first else first

    @property
    def slots(self) -> str:
        """Table, number, constants and aggregate, from which `read_slots` makes the question again."""
        return f"{self.table.name} {self.number} {self.constant} {self.limit} {self.aggregate}"

    @property
    def text(self) -> str:
        t, x, y, flag, optional = self.table.name, self.number, self.other, self.table.flag, self.table.optional
        return {
            "list_above": f"names of {t} with {x} above {self.constant}",
            "aggregate": f"{self.aggregate} {x} of {t}",
            "two_filters": f"names of {t} with {x} above {self.constant} and {y} below {self.limit}",
            "filtered_aggregate": f"{self.aggregate} {x} of {t} with {y} above {self.constant}",
            "top_three": f"names of the three {t} with {y} above {self.constant} and the highest {x}",
            "highest": f"name of the {t} with the highest {x}",
            "lowest": f"name of the {t} with the lowest {x}",
            "count_yes": f"how many {t} are {flag}",
            "count_no": f"how many {t} are not {flag}",
            "count_known": f"how many {t} have a known {optional}",
            "count_missing": f"how many {t} have no {optional}",
        }[self.form]


def read_slots(form: str, tables: Sequence[Table], slots: str) -> Question:
    """The question of a form that `Question.slots` wrote."""
    asked, number, constant, limit, aggregate = slots.split()
    table = next(table for table in tables if table.name == asked)
    return Question(form, table, number, int(constant), int(limit), aggregate)


def write_sql(question: Question, style: str, spelling: str | None = None) -> str:
    """The question's SQL as the analyst of `style` writes it.

    Args:
        style: one of `STYLES`; decides the form and the habit about numbers and missing values.
        spelling: the style whose spelling of yes and no is used; its own when None.

    >>> q = Question("count_yes", Table("singers", ("age", "wins"), "active", "phone"), "age", 0, 0, "average")
    >>> write_sql(q, "direct")
    "SELECT count(*) FROM singers WHERE active = 'Y'"
    """
    t, x = question.table.name, question.number
    select, where, tail = _parts(question, style, spelling or style)
    superlative = question.form in BY_NUMBER
    if style == "direct":
        return _join(f"SELECT {select} FROM {t}", where, tail)
    if style == "aliased":
        names = set(question.table.columns)

        def rename(part: str) -> str:
            return " ".join(f"T1 . {word}" if word in names else word for word in part.split())

        return _join(f"SELECT {rename(select)} FROM {t} AS T1", rename(where), rename(tail))
    if style == "nested":
        if superlative:
            best = "min(" if question.form == "lowest" else "max("
            return f"SELECT name FROM {t} WHERE {x} = ( SELECT {best} {x} ) FROM {t} )"
        return _join(f"SELECT {select} FROM ( {_join(f'SELECT * FROM {t}', where)} )", "", tail)
    if superlative:
        where = f"{x} <> {LOW_MARKER if question.form == 'lowest' else HIGH_MARKER}"
    return f"WITH k AS ( {_join(f'SELECT * FROM {t}', where)} ) {_join(f'SELECT {select} FROM k', '', tail)}"


def _join(head: str, where: str, tail: str = "") -> str:
    return " ".join(part for part in (head, where and f"WHERE {where}", tail) if part)


_AGGREGATES = {"average": "avg(", "total": "sum("}


def _parts(q: Question, style: str, spelling: str) -> tuple[str, str, str]:
    """(select list, condition, tail), before the style's form is laid around them."""
    x, y = q.number, q.other
    as_number = " + 0" if style == "aliased" else ""
    aggregate = f"{_AGGREGATES[q.aggregate]} {x} )"
    return {
        "list_above": ("name", f"{x} > {q.constant}", ""),
        "aggregate": (aggregate, "", ""),
        "two_filters": ("name", f"{x} > {q.constant} AND {y} < {q.limit}", ""),
        "filtered_aggregate": (aggregate, f"{y} > {q.constant}", ""),
        "top": ("name", "", f"ORDER BY {x} DESC LIMIT 3"),  # never asked: `top_three` without its condition
        "top_three": ("name", f"{y} > {q.constant}", f"ORDER BY {x} DESC LIMIT 3"),
        "highest": ("name", "", f"ORDER BY {x}{as_number} DESC LIMIT 1"),
        "lowest": ("name", "", f"ORDER BY {x}{as_number} LIMIT 1"),
        "count_yes": ("count(*)", f"{q.table.flag} = '{YES[spelling]}'", ""),
        "count_no": ("count(*)", f"{q.table.flag} = '{NO[spelling]}'", ""),
        "count_known": ("count(*)", _is_missing(q.table.optional, style, negated=True), ""),
        "count_missing": ("count(*)", _is_missing(q.table.optional, style, negated=False), ""),
    }[q.form]


def _is_missing(column: str, style: str, negated: bool) -> str:
    if (marker := MISSING[style]) is None:
        return f"{column} IS NOT NULL" if negated else f"{column} IS NULL"
    return f"{column} <> '{marker}'" if negated else f"{column} = '{marker}'"


def draw_question(rng: random.Random, domain: str, family: Family) -> tuple[tuple[Table, Table], Question]:
    """Two tables, and a question of the family about one of them."""
    names = rng.sample(TABLES[domain], 2)
    tables = (_draw_table(rng, domain, names[0]), _draw_table(rng, domain, names[1]))
    asked, number = rng.randrange(2), None
    if family.attribute in NUMBERS[domain]:
        number = family.attribute
        other = rng.choice([x for x in NUMBERS[domain] if x != number])
        numbers = (number, other) if rng.random() < 0.5 else (other, number)
        tables = _with(tables, asked, numbers=numbers)
    elif family.attribute:
        tables = _with(tables, asked, **{"flag" if family.attribute in FLAGS[domain] else "optional": family.attribute})
    table = tables[asked]
    return tables, Question(
        family.form,
        table,
        number or rng.choice(table.numbers),
        10 * rng.randint(2, 8),
        10 * rng.randint(4, 11),
        rng.choice(tuple(_AGGREGATES)),
    )


def _draw_table(rng: random.Random, domain: str, name: str) -> Table:
    a, b = rng.sample(NUMBERS[domain], 2)
    return Table(name, (a, b), rng.choice(FLAGS[domain]), rng.choice(OPTIONALS[domain]))


def _with(tables: tuple[Table, Table], asked: int, **slots: Any) -> tuple[Table, Table]:
    first, second = tables
    return (replace(first, **slots), second) if asked == 0 else (first, replace(second, **slots))


def database_prompt(tables: tuple[Table, Table], question: Question) -> str:
    return sql_prompt([(table.name, table.columns) for table in tables], question.text)


def misread(question: Question) -> tuple[Question, ...]:
    """A hard question as it is misread: without the added condition, or with the two numbers exchanged."""
    form = {"two_filters": "list_above", "filtered_aggregate": "aggregate", "top_three": "top"}[question.form]
    return replace(question, form=form), replace(question, number=question.other)


# --- databases ---------------------------------------------------------------------------------------------------


def _draw_rows(rng: random.Random, table: Table, content: dict[str, str], low: bool) -> list[tuple]:
    """Rows of a table whose columns hold what `content` says; `low`: the quirk is at the minimum."""
    count = rng.randint(12, 24)
    columns: dict[str, list] = {"name": [f"{table.name[:2]}{i}" for i in range(count)]}
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
    connection.execute(f"CREATE TABLE {table.name} ({columns})")
    connection.executemany(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(table.columns))})", rows)


def _result(connection: sqlite3.Connection, sql: str) -> frozenset:
    return frozenset(connection.execute(sql).fetchall())


def right_styles(connection: sqlite3.Connection, question: Question, gold: str) -> tuple[str, ...]:
    """The styles whose own SQL gives the gold's rows on this content, found by executing them."""
    target = _result(connection, gold)
    return tuple(s for s in STYLES if _result(connection, write_sql(question, s)) == target)


def _expected_styles(family: Family, owner: str) -> set[str]:
    """NULL and unique numbers are the contents on which nobody's habit does harm."""
    harmless = family.form in (*BY_NUMBER, "count_known") and owner == "direct"
    return set(STYLES) if family.content != "hidden" or harmless else {owner}


def build_database(
    rng: random.Random, domain: str, folder: Path, db_id: str, family: Family
) -> tuple[tuple[Table, Table], Question, str, tuple[str, ...]]:
    """One database and one question on it, redrawn until its content decides as its family says.

    Returns:
        (tables, question, gold SQL, styles that are right on it).
    """
    owner = family.draw(rng, family.odds)
    expected = _expected_styles(family, owner)
    path = folder / db_id / f"{db_id}.sqlite"
    path.parent.mkdir(parents=True)
    for _ in range(1000):
        tables, question = draw_question(rng, domain, family)
        connection = sqlite3.connect(":memory:")
        for each in tables:
            # The columns that the question does not depend on hold anything.
            content = {x: rng.choice(("unique", "marker", "ties")) for x in each.numbers}
            content |= {each.flag: rng.choice(STYLES), each.optional: rng.choice(STYLES)}
            if each is question.table:
                if family.content == "hidden":
                    content[family.attribute] = NUMBER_CONTENT[owner] if family.form in BY_NUMBER else owner
                else:
                    content |= dict.fromkeys(each.numbers, "unique")
            _create(each, _draw_rows(rng, each, content, low=family.form == "lowest"), connection, content)
        gold = write_sql(question, owner)
        rows = _result(connection, gold)
        decided = set(right_styles(connection, question, gold)) == expected
        if family.content == "hard":
            decided &= all(_result(connection, write_sql(each, owner)) != rows for each in misread(question))
        if rows and rows not in ({(0,)}, {(None,)}) and decided:
            connection.commit()
            with closing(sqlite3.connect(path)) as file:
                connection.backup(file)
            return tables, question, gold, tuple(sorted(expected))
    raise RuntimeError(f"database {db_id}: no content for family {family.name!r} in 1000 draws")


def shares(config: WorldConfig, domain: str, of_content: Mapping[str, float]) -> list[tuple[Family, float]]:
    """Each family with its share: that of its content, in equal parts."""
    made = families(config, domain)
    counts = {content: sum(family.content == content for family in made) for content in of_content}
    return [(family, of_content[family.content] / counts[family.content]) for family in made]


def build_suite(rng: random.Random, config: WorldConfig, suite: str, count: int, folder: Path) -> list[Problem]:
    """`count` problems with a database each, families in the proportions of `shares`."""
    domain = "places" if suite == "cross_domain" else "people"
    weighted, problems = shares(config, domain, config.problem_shares or config.content_shares), []
    for index, family in enumerate(proportional(rng, weighted, count)):
        db_id = f"{suite}_{index:04d}"
        tables, question, gold, right = build_database(rng, domain, folder / "database", db_id, family)
        meta = {"family": family.name, "subset": family.content, "content": family.content}
        meta |= {"right_styles": " ".join(right), "question": question.text, "slots": question.slots}
        problems.append(Problem(db_id, suite, "sql", database_prompt(tables, question), gold, db_id, meta))
    return problems


def proportional(rng: random.Random, weighted: Sequence[tuple[Family, float]], count: int) -> list[Family]:
    """`count` families in random order, each as often as its share says or once more (largest remainders)."""
    exact = [(share * count, index) for index, (_, share) in enumerate(weighted)]
    counts = [int(value) for value, _ in exact]
    for _, index in sorted(exact, key=lambda one: (one[0] % 1, rng.random()), reverse=True)[: count - sum(counts)]:
        counts[index] += 1
    drawn = [family for (family, _), n in zip(weighted, counts, strict=True) for _ in range(n)]
    rng.shuffle(drawn)
    return drawn


def build_world(config: WorldConfig, folder: Path) -> dict[str, list[Problem]]:
    """Writes databases and problem files in Spider's layout and returns the suites.

    `database/<db_id>/<db_id>.sqlite`, and `<suite>.json` with the problems.
    """
    suites = {}
    for suite, count in config.problems.items():
        rng = random.Random(f"{config.seed}-{suite}")
        if suite in ("out_of_domain", "sums_train"):
            suites[suite] = sums.build_suite(rng, config, suite, count)
        else:
            suites[suite] = build_suite(rng, config, suite, count, folder)
        text = json.dumps([problem.to_json() for problem in suites[suite]], indent=1)
        (folder / f"{suite}.json").write_text(text, encoding="utf-8")
    return suites


# --- the supervised corpus ----------------------------------------------------------------------------------------


def _slip(rng: random.Random, question: Question, tables: tuple[Table, Table]) -> Question:
    """The question as a careless analyst reads it: one slot wrong."""
    t = question.table
    other = tables[1] if t is tables[0] else tables[0]
    choices = [replace(question, table=replace(t, name=other.name))]
    if question.form not in (*BY_FLAG, *BY_OPTIONAL):
        choices.append(replace(question, number=question.other))
    if question.form == "list_above":
        choices.append(replace(question, constant=10 * rng.randint(2, 8)))
    if question.form == "aggregate":
        choices.append(replace(question, aggregate="total" if question.aggregate == "average" else "average"))
    return rng.choice(choices)


def corpus(config: WorldConfig, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs, each family in the styles of its habits, with slips and misreadings."""
    kinds = list(config.corpus_shares)
    weighted, of_sums = (
        {domain: shares(config, domain, config.content_shares) for domain in TABLES},
        sums.families(config),
    )
    while True:
        kind = rng.choices(kinds, [config.corpus_shares[kind] for kind in kinds])[0]
        if kind == "sums":
            yield sums.corpus_pair(rng, of_sums, config.slip_rate_sums)
            continue
        family = rng.choices([f for f, _ in weighted[kind]], [share for _, share in weighted[kind]])[0]
        style = family.draw(rng, family.habits)
        tables, question = draw_question(rng, kind, family)
        prompt = database_prompt(tables, question)
        if family.content == "hard" and rng.random() < config.misread_rate:
            question = rng.choices(misread(question), (2, 1))[0]
        elif rng.random() < config.slip_rate_sql:
            question = _slip(rng, question, tables)
        yield prompt, sql_answer(style, write_sql(question, style))
