"""Runs gold and answer on an SQLite database and compares the results; loaded in a worker process only.

What an answer can do is bounded in layers, each of which holds where another does not:

- the database is opened read-only and immutable, and the authorizer allows SELECT, READ, FUNCTION and RECURSIVE;
- preparing a statement: its length, the depth of its expressions, the instructions of its program, and SQLite's heap,
  which nested CTEs and doubled expressions fill within about a second;
- running it: a budget of virtual-machine operations, the heap, and caps on the rows, cells and bytes of the result;
- one operation: the length of a value, which is shorter for the functions whose time grows with the product of two
  lengths (`instr`, `replace`, `trim`, LIKE, GLOB, ...), and for `printf`, whose `%.*c` loops on its own.

None of them depends on the machine's speed. Behind them is the processor time of `pool`, for a query of very many
operations each of which moves very long values.
"""

from __future__ import annotations

import re
import sqlite3
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, Literal

from dphlib.verify.worker import Task

Mode = Literal["bird", "spider", "paper"]
Row = tuple[Any, ...]

MAX_SQL_CHARS = 50_000
MAX_VALUE_BYTES = 2_000_000  # one cell
MAX_SEARCHED_BYTES = 1 << 16  # the same, in a statement with one of `_LONG_RUNNING`
MAX_INSTRUCTIONS = 500_000  # of a statement's program
MAX_RESULT_BYTES = 64_000_000  # text and blobs of one result
HEAP_BYTES = 256 << 20  # SQLite's own memory
OPEN_DATABASES = 4  # their caches share the heap with the query
KEPT_GOLD_CELLS = 1_000_000  # 64 bytes of text or blob count as a cell more
MATCHING_STEPS = 200

_TOKEN = re.compile(  # what is not closed goes to the end: no character is read twice
    r"""--[^\n]*|/\*.*?(?:\*/|\Z)|'(?:[^']|'')*(?:'|\Z)|"(?:[^"]|"")*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z)|\w+|[^\s\w]""",
    re.DOTALL,
)
# Whatever else contains one of these names gets the shorter limit too.
_LONG_RUNNING = ("like", "glob", "instr", "replace", "trim", "unhex", "json_patch", "printf", "format")
_REPETITION = re.compile(r"%[^%a-zA-Z]*\.(\*|\d+)l*c")
_CURRENT_YEAR = re.compile(r"YEAR\s*\(\s*CURDATE\s*\(\s*\)\s*\)\s*", re.IGNORECASE)

_ALLOWED = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_DENIED_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit"})
_READING = frozenset({"SELECT", "WITH", "VALUES", "EXPLAIN", ";"})
_PRAGMAS = ("query_only=ON", "temp_store=MEMORY", "mmap_size=0", "cache_size=-8192", "trusted_schema=OFF")
_LIMITS = {
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * MAX_SQL_CHARS,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 500,
    sqlite3.SQLITE_LIMIT_VDBE_OP: MAX_INSTRUCTIONS,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}


def sql_tokens(sql: str) -> Iterator[str]:
    """Tokens without comments and white space; a quoted string or name is one token.

    >>> list(sql_tokens("SELECT 'a;b' -- c"))
    ['SELECT', "'a;b'"]
    """
    return (match[0] for match in _TOKEN.finditer(sql) if not match[0].startswith(("--", "/*")))


def has_statement(sql: str) -> bool:
    """Whether there is anything but comments, white space and semicolons; reads no further than needed.

    >>> has_statement("-- SELECT 1"), has_statement("; SELECT 1")
    (False, True)
    """
    return any(token != ";" for token in sql_tokens(sql))


def is_ordered(sql: str) -> bool:
    """Whether the statement itself, not just a subquery of it, has an ORDER BY.

    >>> is_ordered("SELECT a FROM t ORDER BY a"), is_ordered("SELECT a FROM (SELECT a FROM t ORDER BY a)")
    (True, False)
    """
    depth, previous = 0, ""
    for token in sql_tokens(sql):
        depth += (token == "(") - (token == ")")
        if depth == 0 and previous == "ORDER" and token.upper() == "BY":
            return True
        previous = token.upper()
    return False


def same_results(gold: list[Row], answer: list[Row], *, ordered: bool) -> bool | None:
    """Whether two results are equal under a permutation of columns: as bags of rows, as lists if `ordered`.

    None if the columns could not be told apart within `MATCHING_STEPS`. Two empty results are equal.

    >>> same_results([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], ordered=False)
    True
    >>> same_results([(1, "a"), (2, "b")], [("b", 2), ("a", 1)], ordered=True)
    False
    """
    if not gold or not answer:
        return not gold and not answer
    if len(gold) != len(answer) or len(gold[0]) != len(answer[0]):
        return False
    if ordered:
        return Counter(zip(*gold, strict=True)) == Counter(zip(*answer, strict=True))
    bags = Counter(gold), Counter(answer)
    if bags[0] == bags[1]:
        return True
    width = len(gold[0])
    if width == 1 or _column_bags(gold) != _column_bags(answer):
        return False
    numbers: dict[Any, int] = {}
    a, b = (_Side(bag, numbers) for bag in bags)
    return _match(a, b, [0] * width, [0] * width, [MATCHING_STEPS])


def _column_bags(rows: list[Row]) -> Counter[frozenset[tuple[Any, int]]]:
    return Counter(frozenset(Counter(column).items()) for column in zip(*rows, strict=True))


class _Side:
    """Distinct rows of one result, values numbered alike on both sides, with how often each occurs."""

    def __init__(self, bag: Counter[Row], numbers: dict[Any, int]) -> None:
        self.rows = [tuple(numbers.setdefault(value, len(numbers)) for value in row) for row in bag]
        self.counts = list(bag.values())

    def refine(self, columns: list[int], names: dict[Any, int]) -> tuple[list[int], list[int]]:
        """One round: a row's colour from its values and their columns' colours, a column's from its rows'."""

        def name(kind: int, pairs: Iterable[tuple[int, int]]) -> int:
            return names.setdefault((kind, *sorted(pairs)), len(names))

        rows = [name(n, zip(columns, row, strict=True)) for n, row in zip(self.counts, self.rows, strict=True)]
        by_column = zip(columns, zip(*self.rows, strict=True), strict=True)
        return rows, [name(-1 - colour, zip(rows, values, strict=True)) for colour, values in by_column]


def _match(a: _Side, b: _Side, columns_a: list[int], columns_b: list[int], steps: list[int]) -> bool | None:
    """Colour refinement of both sides with shared names; where it leaves columns alike, each is tried."""
    while True:
        steps[0] -= 1
        if steps[0] < 0:
            return None
        names: dict[Any, int] = {}
        (rows_a, new_a), (rows_b, new_b) = a.refine(columns_a, names), b.refine(columns_b, names)
        if Counter(rows_a) != Counter(rows_b) or Counter(new_a) != Counter(new_b):
            return False
        settled = len(set(new_a)) == len(set(columns_a))
        columns_a, columns_b = new_a, new_b
        if settled:
            break
    sizes = Counter(columns_a)
    twins = [colour for colour in columns_a if sizes[colour] > 1]
    if not twins:
        place = [columns_b.index(colour) for colour in columns_a]
        moved = (tuple(row[i] for i in place) for row in b.rows)
        return dict(zip(moved, b.counts, strict=True)) == dict(zip(a.rows, a.counts, strict=True))
    colour = min(twins, key=sizes.__getitem__)
    mine, tried = columns_a.index(colour), set()
    for other in (i for i, c in enumerate(columns_b) if c == colour):
        column = tuple(row[other] for row in b.rows)
        if column in tried:
            continue
        tried.add(column)
        fixed_a, fixed_b = columns_a.copy(), columns_b.copy()
        fixed_a[mine] = fixed_b[other] = -1
        found = _match(a, b, fixed_a, fixed_b, steps)
        if found is not False:
            return found
    return False


def _authorize(action: int, first: str | None, second: str | None, *_: object) -> int:
    denied = action not in _ALLOWED or (
        action == sqlite3.SQLITE_FUNCTION and second is not None and second.lower() in _DENIED_FUNCTIONS
    )
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK


class _Refused(Exception):
    """A query that gave no result: outcome and detail."""


class SqlChecker:
    """Runs in the worker: connections and gold results stay for the next task.

    Args:
        mode: which results count as the same, see `sql`.
        sets: compare sets of rows.
        max_ops, max_rows, max_cells: see `SqlVerifier`.
    """

    def __init__(self, mode: Mode, sets: bool, max_ops: int, max_rows: int, max_cells: int) -> None:
        self.mode = mode
        self.sets = sets
        self.max_ops = max_ops
        self.max_rows = max_rows
        self.max_cells = max_cells
        self._connections: OrderedDict[tuple[str, bool], sqlite3.Connection] = OrderedDict()
        self._golds: OrderedDict[tuple[str, str], tuple[Any, int]] = OrderedDict()
        self._gold_cells = 0
        self._undecodable = "surrogateescape" if mode == "bird" else "ignore"

    def __call__(self, task: Task, phase: Callable[[str], None]) -> tuple[str, str]:
        database, gold_sql, sql = task
        if (database, gold_sql) not in self._golds:
            phase("gold")
            self._run_gold(database, gold_sql)
            phase("answer")
        gold = self._golds[database, gold_sql][0]
        if isinstance(gold, str):
            return "infra_error", gold
        try:
            rows = self._run(database, self._rewritten(sql, gold=False))
            same = set(rows) == gold if self.sets else same_results(gold[0], rows, ordered=gold[1])
        except _Refused as refused:
            return refused.args
        except MemoryError:
            return "too_large", "out of memory"
        if same is None:
            return "too_large", f"columns not matched within {MATCHING_STEPS} steps"
        return ("correct", "") if same else ("wrong", f"{len(rows)} rows")

    def _rewritten(self, sql: str, *, gold: bool) -> str:
        """What the Spider script replaces in the text; the authors' scorer spares the gold's operators."""
        if self.mode == "bird":
            return sql
        if not (gold and self.mode == "paper"):
            sql = sql.replace("> =", ">=").replace("< =", "<=").replace("! =", "!=")
        return _CURRENT_YEAR.sub("2020", sql)

    def _run_gold(self, database: str, sql: str) -> None:
        gold: Any
        try:
            rows = self._run(database, self._rewritten(sql, gold=True))
            gold = frozenset(rows) if self.sets else (rows, self.mode == "spider" and is_ordered(sql))
            cells = 100 + sum(len(row) + sum(len(v) for v in row if v.__class__ in (str, bytes)) // 64 for row in rows)
        except _Refused as refused:
            gold, cells = f"gold is {refused.args[0]} ({refused.args[1]}): {sql[:300]}", 100
        self._golds[database, sql] = gold, cells
        self._gold_cells += cells
        while self._gold_cells > KEPT_GOLD_CELLS and len(self._golds) > 1:
            self._gold_cells -= self._golds.popitem(last=False)[1][1]

    def _run(self, database: str, sql: str) -> list[Row]:
        """The rows of a query; raises `_Refused` with the outcome for any other end."""
        if len(sql) > MAX_SQL_CHARS:
            raise _Refused("invalid", f"statement of {len(sql)} characters, at most {MAX_SQL_CHARS}")
        lowered = sql.lower()
        try:
            connection = self._connection(database, any(name in lowered for name in _LONG_RUNNING))
        except sqlite3.Error as error:
            raise _Refused("infra_error", f"{database.partition('#')[0]}: {error}") from None
        try:
            try:
                return self._rows(connection, sql)
            except sqlite3.OperationalError as error:
                if "decode to UTF-8" not in str(error):
                    raise
            connection.text_factory = lambda data: data.decode("utf-8", self._undecodable)  # slower than `str`
            try:
                return self._rows(connection, sql)
            finally:
                connection.text_factory = str
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            raise _Refused(*_outcome(error, sql)) from None

    def _rows(self, connection: sqlite3.Connection, sql: str) -> list[Row]:
        tick = max(100, min(20_000, self.max_ops // 20))
        used = 0

        def over_budget() -> bool:
            nonlocal used
            used += tick
            return used > self.max_ops

        connection.set_progress_handler(over_budget, tick)
        cursor = connection.cursor()
        rows: list[Row] = []
        size = 0
        try:
            cursor.execute(sql)
            if cursor.description is None:  # such as REINDEX where there is no index to ask the authorizer about
                raise _Refused("forbidden" if any(sql_tokens(sql)) else "invalid", "not a query")
            while batch := cursor.fetchmany(16):
                rows += batch
                cells = len(rows) * len(batch[0])
                size += sum(len(value) for row in batch for value in row if value.__class__ in (str, bytes))
                if len(rows) > self.max_rows or cells > self.max_cells or size > MAX_RESULT_BYTES:
                    limits = f"{self.max_rows} rows, {self.max_cells} cells, {MAX_RESULT_BYTES} bytes"
                    raise _Refused("too_large", f"result beyond {limits}")
        finally:
            cursor.close()
        return rows

    def _connection(self, uri: str, long_running: bool) -> sqlite3.Connection:
        if (known := self._connections.get((uri, long_running))) is not None:
            self._connections.move_to_end((uri, long_running))
            return known
        # No statement cache: the progress handler counts on where a reused statement stopped.
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
        for pragma in (*_PRAGMAS, f"hard_heap_limit={HEAP_BYTES}"):
            connection.execute(f"PRAGMA {pragma}")
        for function in ("json_each", "json_tree"):  # their first use declares a table: not authorized later
            connection.execute(f"SELECT 1 FROM {function}('[]')").fetchall()
        for category, limit in _LIMITS.items():
            connection.setlimit(category, limit)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_SEARCHED_BYTES if long_running else MAX_VALUE_BYTES)
        if long_running:
            printf = _bounded_printf()
            for name in ("printf", "format"):
                connection.create_function(name, -1, printf, deterministic=True)
        connection.set_authorizer(_authorize)
        self._connections[uri, long_running] = connection
        if len(self._connections) > OPEN_DATABASES:
            self._connections.popitem(last=False)[1].close()
        return connection


def _bounded_printf() -> Callable[..., Any]:
    """SQLite's `printf`, which before 3.41 runs a loop as long as the precision of a `%c`, however much is too long."""
    plain = sqlite3.connect(":memory:")
    plain.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_SEARCHED_BYTES)

    def printf(form: Any = None, *values: Any) -> Any:
        counts = {n for found in _REPETITION.findall(str(form)) for n in (values if found == "*" else (found,))}
        for count in counts:
            if plain.execute("SELECT abs(CAST(? AS INTEGER)) > ?", (count, MAX_SEARCHED_BYTES)).fetchone()[0]:
                raise OverflowError("repeated too often")  # which becomes SQLite's "string or blob too big"
        marks = ", ?" * len(values)
        return plain.execute(f"SELECT printf(?{marks})", (form, *values)).fetchone()[0]

    return printf


def _outcome(error: Exception, sql: str) -> tuple[str, str]:
    """The outcome that an error of SQLite, or of Python's module for it, stands for."""
    text = f"{error}"[:300] or type(error).__name__
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, MemoryError) or code in (sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_TOOBIG):
        return "too_large", text
    if code == sqlite3.SQLITE_INTERRUPT:
        return "timeout", "operations used up"
    if code in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY) or text.startswith("not authorized"):
        return "forbidden", text
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return "infra_error", text
    if "one statement at a time" in text:  # none ran; if one of them would do more than read, that decides
        tokens = [";", *sql_tokens(sql)]
        firsts = {token.upper() for before, token in pairwise(tokens) if before == ";"}
        return "invalid" if firsts <= _READING else "forbidden", text
    return "invalid", text
