r"""What the verifiers decide, example by example: the tests hold them to it, docs/verifier.md shows it.

The rows, each kind with a comment, are in verifier_examples.toml. The databases of the SQL examples are `CLUB` of
`databases.py`. After a change: python -m tools.site --write
"""

from __future__ import annotations

import tomllib
from pathlib import Path


def _read() -> dict[str, str | list[tuple[str | None, ...]]]:
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        name: rows if isinstance(rows, str) else [tuple(None if x is False else x for x in row) for row in rows]
        for name, rows in tables.items()
        if name != "HOSTILE"  # see databases.py
    }


globals().update(_read())


def boxed(content: str) -> str:
    """An answer as a model gives it."""
    return f"so the answer is \\boxed{{{content}}}."
