"""Opens SQLite databases that must not change, and reads from them within bounds.

Without quoting, `?`, `#` or `%` in a path silently makes the connection writable and creates a new file; read as
immutable, a database in WAL mode lacks what is still in its `-wal` file. Both are caught here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dphlib.runtime.files import InputError, MissingFileError

MAX_CELL_BYTES = 16 << 20
_TICK = 10_000


def read_only_uri(path: Path) -> str:
    """The URI under which `sqlite3.connect(uri, uri=True)` opens a database without ever changing it.

    Its fragment, which SQLite ignores, changes when the file does. Raises FileNotFoundError for a file that is
    not there, ValueError for one that is not an SQLite database or is in WAL mode.
    """
    path = Path(path).absolute()
    try:
        with path.open("rb") as file:
            header = file.read(20)
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"database {path} is not there: check the folder, or get the set's databases") from None
    if header and not header.startswith(b"SQLite format 3\0"):
        raise InputError(f"{path} is not an SQLite database")
    if 2 in header[18:20]:
        raise InputError(f"{path} is in WAL mode: run `PRAGMA journal_mode=DELETE` on it once")
    return f"file:{quote(str(path))}?mode=ro&immutable=1#{stat.st_mtime_ns}.{stat.st_size}.{stat.st_ino}"


def open_read_only(uri: str) -> sqlite3.Connection:
    """A connection to `read_only_uri`'s URI; bytes of a text that are not UTF-8 are dropped."""
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "ignore")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_CELL_BYTES)
    for pragma in ("query_only=ON", "trusted_schema=OFF", "temp_store=MEMORY"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def quoted(name: str) -> str:
    """A table's or column's name as SQL.

    >>> print(quoted('the "name" here'))
    "the ""name"" here"
    """
    return '"' + name.replace('"', '""') + '"'


def bounded_rows(connection: sqlite3.Connection, sql: str, max_ops: int) -> Iterator[tuple[Any, ...]]:
    """The rows of a query until it has used `max_ops` operations of SQLite or meets a cell beyond `MAX_CELL_BYTES`.

    Operations repeat exactly, so a query ends at the same row on a slow machine as on a fast one.
    """
    ticks = 0

    def over_budget() -> bool:
        nonlocal ticks
        ticks += 1
        return ticks * _TICK > max_ops

    connection.set_progress_handler(over_budget, _TICK)
    try:
        yield from connection.execute(sql)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) not in (sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_TOOBIG):
            raise
    finally:
        connection.set_progress_handler(None, 0)
