"""What the CPU world holds, for readers: a database's rows, four analysts' SQL on it, whose habit is right where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd

from dphlib.analysis.tables import code
from dphlib.types import Problem
from dphlib.verify import Verifier
from dphlib.verify.sqlite_files import open_read_only, read_only_uri
from dphlib.world.people_places import BY_FLAG, BY_OPTIONAL, Question, Table, read_slots, write_sql
from dphlib.world.sums import SUBSETS, sum_of, value, working
from dphlib.world.templates import LEADS, STYLES, sql_answer, sum_answer

COUNTERPARTS = {
    "train": "BIRD train",
    "in_domain": "BIRD dev",
    "cross_domain": "Spider",
    "out_of_domain": "five mathematics sets",
    "sums_train": "mathematics, trained on in Table 3",
}
"""Suite -> its counterpart in the paper."""


def examples(problems: Sequence[Problem], family: str) -> list[Problem]:
    """The problems of a family, or of all families of a form, those first on which the four styles are not all right.

    Raises:
        ValueError: none is of that family.
    """
    of_family = [p for p in problems if family in (p.meta["family"], p.meta["family"].split()[0])]
    if not of_family:
        known = ", ".join(sorted({problem.meta["family"] for problem in problems}))
        raise ValueError(f"no problem of family {family!r} among these {len(problems)}; there are: {known}")
    return sorted(of_family, key=lambda problem: set(problem.meta["right_styles"].split()) == set(STYLES))


def heading(problem: Problem) -> str:
    """A problem's family and part, on one line."""
    return f"{problem.meta['family']} ({problem.meta['subset']})"


def right_styles(problem: Problem) -> str:
    """The styles that are right on a problem, as a reader sees them."""
    right = problem.meta["right_styles"].split()
    return "every style" if set(right) == set(STYLES) else ", ".join(right)


def about(problem: Problem) -> str:
    """A problem's question, id, part and right styles, as Markdown."""
    where = f"({problem.id}, {problem.meta['subset']}; right: {right_styles(problem)})"
    return f"**{problem.meta['question']}** {where}"


def card(problem: Problem) -> str:
    """A problem as its reader sees it, as Markdown: the question, what the model reads, the gold."""
    return f"{about(problem)}\n\nThe model reads: {code(problem.prompt)}\n\nGold: {code(problem.gold)}"


def question_of(problem: Problem) -> Question:
    """The question of an SQL problem of the CPU world.

    Raises:
        ValueError: the problem is a sum.
    """
    if problem.kind != "sql":
        raise ValueError(f"problem {problem.id} is a sum; take one of train, in_domain or cross_domain")
    return read_slots(problem.meta["family"].split()[0], tables_of(problem), problem.meta["slots"])


def tables_of(problem: Problem) -> list[Table]:
    """The tables of an SQL problem's schema, as its prompt shows them."""
    words = problem.prompt.partition("tables : ")[2].partition(" question :")[0].split()
    tables = []
    while words:
        end = words.index(")")
        name, columns, words = words[0], words[2:end], words[end + 1 :]
        tables.append(Table(name, (columns[-4], columns[-3]), columns[-2], columns[-1]))
    return tables


def decisive_column(problem: Problem) -> str:
    """The column on whose content the question's answer hangs."""
    question = question_of(problem)
    if question.form in BY_FLAG:
        return question.table.flag
    return question.table.optional if question.form in BY_OPTIONAL else question.number


def query(database_root: Path, problem: Problem, sql: str) -> tuple[list[str], list[tuple]]:
    """Names of the columns and rows of a query of our own on a problem's database, which is opened read-only."""
    path = Path(database_root) / str(problem.db_id) / f"{problem.db_id}.sqlite"
    with closing(open_read_only(read_only_uri(path))) as connection:
        cursor = connection.execute(sql)
        return [name for name, *_ in cursor.description], cursor.fetchall()


def table_rows(database_root: Path, problem: Problem, limit: int = 8) -> pd.DataFrame:
    """The first rows of the table that the question is about; values as SQLite has them, text in quotes."""
    names, rows = query(database_root, problem, f"SELECT * FROM {question_of(problem).table.name} LIMIT {limit}")
    return pd.DataFrame([[_literal(value) for value in row] for row in rows], columns=names)


def column_content(database_root: Path, problem: Problem, limit: int = 5) -> pd.DataFrame:
    """The content of the column that decides: the most frequent values, the largest first among equals.

    For the lowest of something, the smallest first. Columns: column, value, rows, of (rows of the table).
    """
    question, column = question_of(problem), decisive_column(problem)
    order = "ASC" if question.form == "lowest" else "DESC"
    sql = f"SELECT {column}, count(*) FROM {question.table.name} GROUP BY 1 ORDER BY 2 DESC, {column} + 0 {order}"
    counts = query(database_root, problem, sql)[1]
    total = sum(count for _, count in counts)
    return pd.DataFrame([{"column": column, "value": _literal(v), "rows": n, "of": total} for v, n in counts[:limit]])


def four_answers(database_root: Path, problem: Problem, verifier: Verifier) -> pd.DataFrame:
    """How each of the four analysts answers the question, what its SQL returns here, and the verdict.

    Columns: style, lead (the answer's first word), sql, returns, verdict.
    """
    question, out = question_of(problem), []
    sqls = {style: write_sql(question, style) for style in STYLES}
    verdicts = verifier.verify_many([(problem, sql_answer(style, sql)) for style, sql in sqls.items()])
    for (style, sql), verdict in zip(sqls.items(), verdicts, strict=True):
        returns = short_rows(query(database_root, problem, sql)[1])
        row = {"style": style, "lead": LEADS[style], "sql": sql, "returns": returns, "verdict": verdict.outcome}
        out.append(row)
    return pd.DataFrame(out)


def right_on(answers: pd.DataFrame) -> str:
    """Which of `four_answers` are right, in a sentence.

    >>> right_on(pd.DataFrame({"style": ["direct", "nested"], "verdict": ["wrong", "correct"]}))
    'Right on this database: nested, 1 of 2 styles.'
    """
    right = answers.loc[answers["verdict"] == "correct", "style"].tolist()
    return f"Right on this database: {', '.join(right) or 'none'}, {len(right)} of {len(answers)} styles."


def short_rows(rows: Sequence[tuple], limit: int = 4) -> str:
    """Rows of a result on one line.

    >>> short_rows([("si1",), ("si4",)]), short_rows([]), short_rows([(None,)])
    ("'si1'; 'si4'", 'no row', 'NULL')
    """
    shown = "; ".join(", ".join(map(_literal, row)) for row in rows[:limit])
    return (shown or "no row") + (f"; ... ({len(rows)} rows)" if len(rows) > limit else "")


def _literal(value: object) -> str:
    return "NULL" if value is None else repr(value)


def suite_table(suites: Mapping[str, Sequence[Problem]]) -> pd.DataFrame:
    """The table of `suite_counts` with each suite's question families, and the problems whose content is hidden."""
    of_them = {
        "families": lambda problems: len({problem.meta["family"] for problem in problems}),
        "hidden": lambda problems: sum(problem.meta["content"] == "hidden" for problem in problems),
    }
    return suite_counts(suites, of_them)


def suite_counts(
    suites: Mapping[str, Sequence[Problem]], more: Mapping[str, Callable[[Sequence[Problem]], object]]
) -> pd.DataFrame:
    """One row per suite: its counterpart in the paper, problems, databases, `more`, prompts that `train` has too.

    Args:
        suites: suite name -> problems; `train` among them.
        more: column -> what it says of a suite's problems.
    """
    trained = {problem.prompt for problem in suites["train"]}
    return pd.DataFrame(
        {
            "suite": name,
            "stands for": COUNTERPARTS.get(name, ""),
            "problems": len(problems),
            "databases": len({problem.db_id for problem in problems} - {None}),
            **{column: of(problems) for column, of in more.items()},
            "prompts also in train": len(problems) if name == "train" else sum(p.prompt in trained for p in problems),
        }
        for name, problems in suites.items()
    )


def mathematics(problems: Sequence[Problem]) -> pd.DataFrame:
    """A problem of each subset of the sums, with what each style answers."""
    rows = []
    for subset in SUBSETS:
        each = next((problem for problem in problems if problem.meta["subset"] == subset), None)
        if each is None:
            continue
        asked, operands, noun = sum_of(each)
        texts = {
            style: sum_answer(style, working(style, subset, operands, noun), value(subset, operands, style))
            for style in STYLES
        }
        rows.append({"subset": subset, "sum": asked, "right": right_styles(each), **texts})
    return pd.DataFrame(rows)


def right_table(problems: Sequence[Problem]) -> pd.DataFrame:
    """In how many of each family's problems each style is right, per cent; found by execution when they were built.

    Returns:
        One row per family: content (`clean`, `hidden` or `hard`), family, problems, one column per style, `any`, the
        problems in which at least one style is right, and `all`, those in which every style is. Last row: all problems.
    """
    rows = []
    for problem in problems:
        right = set(problem.meta["right_styles"].split())
        row = {"content": problem.meta["content"], "family": problem.meta["family"]}
        shares = {style: style in right for style in STYLES} | {"any": bool(right), "all": right == set(STYLES)}
        rows.append(row | {name: 100.0 * share for name, share in shares.items()})
    frame = pd.DataFrame(rows)
    columns = [*STYLES, "any", "all"]
    means = frame.groupby(["content", "family"], sort=True)[columns].mean()
    means.insert(0, "problems", frame.groupby(["content", "family"]).size())
    total = {"content": "", "family": "every problem", "problems": len(frame)} | frame[columns].mean().to_dict()
    return pd.concat([means.reset_index(), pd.DataFrame([total])], ignore_index=True)
