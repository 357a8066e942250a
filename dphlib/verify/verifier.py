"""Both verifiers behind one: answers to problems of any kind in, verdicts out, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dphlib.types import Answer, Group, Problem, Verdict
from dphlib.verify.math import MathVerifier, extract_boxed
from dphlib.verify.sql import SqlVerifier, extract_sql


class Verifier:
    """Verifies SQL by execution (mode `bird`) and mathematics by strict comparison. A context manager.

    Args:
        database_root: folder with `<db_id>/<db_id>.sqlite`.
        workers: processes for SQL, and as many for mathematics; they start when they are needed.
    """

    def __init__(self, database_root: Path, workers: int = 1) -> None:
        self._sql = SqlVerifier(database_root, mode="bird", workers=workers)
        self._math = MathVerifier(mode="strict", workers=workers)

    def verify_many(self, pairs: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """A verdict for each (problem, answer text)."""
        sql = [(problem.db_id, problem.gold, text) for problem, text in pairs if problem.kind == "sql"]
        maths = [(problem.gold, text) for problem, text in pairs if problem.kind == "math"]
        verdicts = {
            "sql": iter(self._sql.verify_many(sql)),  # type: ignore[arg-type]
            "math": iter(self._math.verify_many(maths)),
        }
        return [next(verdicts[problem.kind]) for problem, _ in pairs]

    def groups(self, problems: Sequence[Problem], answers: Sequence[Sequence[Answer]]) -> list[Group]:
        """The problems' answers with their verdicts."""
        pairs = [(p, answer.text) for p, group in zip(problems, answers, strict=True) for answer in group]
        verdicts = iter(self.verify_many(pairs))
        return [
            Group(problem, tuple(group), tuple(next(verdicts) for _ in group))
            for problem, group in zip(problems, answers, strict=True)
        ]

    def close(self) -> None:
        self._sql.close()
        self._math.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def extracted(problem: Problem, text: str) -> str | None:
    """The SQL, or the boxed result, that an answer gives; None where it gives none."""
    return extract_sql(text) if problem.kind == "sql" else extract_boxed(text)
