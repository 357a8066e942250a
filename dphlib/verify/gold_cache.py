"""Results of golds kept on disk: what a slow gold gave, for the next worker, process or run.

An entry is found by the database's sha256, the gold, SQLite's version and the judge's mode and limits (under
other limits the same gold may have no result). It is JSON behind its own sha256, written beside and renamed;
one that is damaged counts as absent, and one that cannot be written stays away: the gold then runs.

What it does not keep: golds of fewer than `MIN_OPS` operations, which run faster than a file is read; golds
that ask for the time or a random number; golds that failed.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MIN_OPS = 1_000_000
FILE_MIB = 256  # of one entry

_CHANGING = re.compile(
    r"\b(now|random|randomblob|current_date|current_time|current_timestamp|curdate|localtime)\b"
    r"|\b(date|time|datetime|julianday|unixepoch)\s*\(\s*\)|\bstrftime\s*\(\s*'[^']*'\s*\)",
    re.IGNORECASE,
)


class GoldCache:
    """The entries in one folder, for one set of options; used in the worker process.

    Args:
        folder: where the entries lie; it is there already.
        options: mode and limits of the judge, JSON.
    """

    def __init__(self, folder: str | Path, options: Mapping[str, Any]) -> None:
        self._folder, self._options = Path(folder), dict(options)

    def load(self, database: str, sql: str) -> list[tuple[Any, ...]] | None:
        """The rows of a gold, None if they are not there or not whole. `database`: as `keyed_uri` gives it."""
        key = self._key(database, sql)
        try:
            head, _, body = self._path(key).read_bytes().partition(b"\n")
            if head != hashlib.sha256(body).hexdigest().encode():
                return None
            entry = json.loads(body)
        except (OSError, ValueError, MemoryError):
            return None
        if entry["key"] != key:
            return None
        return [tuple(bytes.fromhex(v["hex"]) if isinstance(v, dict) else v for v in row) for row in entry["rows"]]

    def store(self, database: str, sql: str, rows: Sequence[tuple[Any, ...]], ops: int) -> None:
        """Keeps the rows of a gold that took `ops` operations, if they are worth it and will be the same again."""
        if ops < MIN_OPS or may_change(sql) or not _unchanged(database):
            return
        import resource

        from dphlib.runtime.files import RunError, atomic_path

        key = self._key(database, sql)
        cells = [[{"hex": v.hex()} if isinstance(v, bytes) else v for v in row] for row in rows]
        body = json.dumps({"key": key, "rows": cells}).encode("ascii")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # nothing of an answer runs meanwhile
        try:
            with atomic_path(self._path(key), durable=False) as temporary:
                temporary.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except (RunError, OSError):
            pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def _key(self, database: str, sql: str) -> dict[str, Any]:
        sha256 = database.rpartition(".")[2]
        return {"database": sha256, "gold": sql, "sqlite": sqlite3.sqlite_version, "options": self._options}

    def _path(self, key: Mapping[str, Any]) -> Path:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode("ascii")).hexdigest()
        return self._folder / f"{name}.json"


def _unchanged(database: str) -> bool:
    """Whether the file is still the one that was hashed."""
    from urllib.parse import unquote

    from dphlib.verify.sqlite_files import read_only_uri

    try:
        path = Path(unquote(database[len("file:") :].partition("?")[0]))
        return read_only_uri(path) == database.rpartition(".")[0]
    except (OSError, ValueError):
        return False


def may_change(sql: str) -> bool:
    """Whether a query names the time or chance, so that it may give other rows another time.

    >>> may_change("SELECT date('now')"), may_change("SELECT 1")
    (True, False)
    """
    return _CHANGING.search(sql) is not None


def keyed_uri(uri: str, sha256: str) -> str:
    """The URI of `read_only_uri` with the database's sha256 at the end of its fragment, which SQLite ignores.

    >>> keyed_uri("file:/d/d.sqlite?mode=ro&immutable=1#5.4096.7", "0a1b")
    'file:/d/d.sqlite?mode=ro&immutable=1#5.4096.7.0a1b'
    """
    return f"{uri}.{sha256}"
