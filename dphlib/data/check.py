"""Runs every gold of a data set before anything is trained or measured on it, and builds the set from what holds.

A gold *fails* if it does not verify against itself: a SQL gold that does not run, goes beyond the verifier's
limits, or gives other rows the second time, by the rule of either mode (`spider`: a bag of rows, in order where
the gold orders them; `bird`: a set); an answer that strict math-verify cannot read or does not find equal to
itself. A problem whose database is missing or unreadable fails too. A failing gold is never a reward: `build`
refuses the set, or leaves the problem out and names it.

What does not fail but is worth knowing is listed in `Findings`. Whether a gold answers its question is not checked.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dphlib.data.limit_ties import LimitProbe, limit_probes, parse_sql, written
from dphlib.data.load import Prompt, Rows, Source, add_prompts, database_path, missing_databases, missing_text, read
from dphlib.runtime.files import InputError
from dphlib.types import Problem, Verdict
from dphlib.verify.math import AS_TEXT, MathVerifier
from dphlib.verify.sql import SqlVerifier
from dphlib.verify.sqlite_files import read_only_uri

NO_ROWS = "SELECT NULL WHERE 0"
SHOWN = 10
_CHANGING = re.compile(  # names the time or chance, so that it may give other rows another time
    r"\b(now|random|randomblob|current_date|current_time|current_timestamp|curdate|localtime)\b"
    r"|\b(date|time|datetime|julianday|unixepoch)\s*\(\s*\)|\bstrftime\s*\(\s*'[^']*'\s*\)",
    re.IGNORECASE,
)


@dataclass(slots=True)
class Findings:
    """What the check found in one split; ids are in the order of the split.

    Args:
        suite, source: the split and where it was read.
        revision: which revision the files are, where that is known.
        problems: rows that are not repeated.
        repeated: rows that repeat another one, id and all; left out.
        failing: id -> why its gold fails.
        missing: database that is not there -> problems that need it (these fail too).
        empty: the gold's result has no row.
        ties: ORDER BY ... LIMIT cuts between rows with equal sort keys.
        unprobed: has an ORDER BY ... LIMIT for which the check has no probe.
        changing: asks for the time or chance; a second run at another time may differ.
        unread: sqlglot cannot read the SQL, so ties were not looked for.
        compat_only: fails in strict mode, math-verify alone accepts it.
        text_only: no other spelling of it can match (a sentence, what latex2sympy cannot read); left out.
        duplicates: groups of problems with the same question (of the same database).
        conflicting: those groups whose golds are not the same text.
        wall_s: seconds that it took.
    """

    suite: str
    source: str
    revision: str
    problems: int
    repeated: list[str] = field(default_factory=list)
    failing: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    ties: list[str] = field(default_factory=list)
    unprobed: list[str] = field(default_factory=list)
    changing: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    compat_only: list[str] = field(default_factory=list)
    text_only: list[str] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    conflicting: list[list[str]] = field(default_factory=list)
    wall_s: float = 0.0


class FailingGoldsError(InputError):
    """Golds of a set fail; the message names problems and ways out."""


def build(
    source: Source,
    *,
    prompt: Prompt | None = None,
    drop_failing: bool = False,
    keep_empty: bool = False,
    workers: int = 1,
    limits: Mapping[str, Any] | None = None,
) -> tuple[list[Problem], Findings]:
    """Reads a split, checks every gold, and leaves out what must not give a reward.

    Args:
        prompt: makes the prompt of a question, see `load`.
        drop_failing: leave failing golds out, rather than refuse the set.
        keep_empty: keep SQL problems whose gold result is empty, which any query without a row answers.
        workers: processes that verify.
        limits: `timeout_s`, `max_ops`, `max_rows` or `max_cells` of the `SqlVerifier` that will judge the answers,
            where they are not its usual ones.

    Returns the problems with their prompts, every gold verified against itself, and what was found.

    Raises FailingGoldsError, unless `drop_failing`, naming the problems; ValueError if nothing is left.
    """
    rows = read(source)
    found = check(rows, source, workers=workers, limits=limits)
    if found.failing and not drop_failing:
        raise FailingGoldsError(refusal(found, source))
    left_out = {*found.failing, *found.text_only, *(() if keep_empty else found.empty)}
    kept = [problem for problem in rows.problems if problem.id not in left_out]
    if not kept:
        raise InputError(
            f"{found.suite}: no problem is left of {found.problems}: {len(found.failing)} golds fail, "
            f"{len(found.empty)} results are empty, {len(found.text_only)} can be matched by their text only; "
            "run `dph data check`"
        )
    return add_prompts(kept, source, prompt), found


def refusal(found: Findings, source: Source) -> str:
    """Why the set is refused, in one line."""
    others = {name: why for name, why in found.failing.items() if why != _MISSING}
    parts = [missing_text(found.missing, source)] if found.missing else []
    if others:
        named = "; ".join(f"{name}: {why}" for name, why in list(others.items())[:SHOWN])
        ids = ", ".join(list(others)[:200]) + (", ..." if len(others) > 200 else "")
        parts.append(f"{found.suite}: {len(others)} of {found.problems} golds fail ({ids}): {named}")
    return ". ".join(parts) + ". Mend them, or leave them out with drop_failing=True"


def check(rows: Rows, source: Source, *, workers: int = 1, limits: Mapping[str, Any] | None = None) -> Findings:
    """What there is to say about every gold of a split; see `Findings`, and `build` for the arguments."""
    started, problems = time.monotonic(), rows.problems
    found = Findings(source.suite, str(source), source.known_as, len(problems), rows.repeated)
    if source.data_set.kind == "sql":
        _check_sql(problems, source, found, {"workers": workers, **(limits or {})})
    else:
        _check_math(problems, found, workers)
    _check_questions(problems, found)
    found.wall_s = round(time.monotonic() - started, 1)
    return found


_MISSING = "its database is not there"


def _check_sql(problems: Sequence[Problem], source: Source, found: Findings, options: Mapping[str, Any]) -> None:
    found.missing = missing_databases(problems, source)
    unreadable: dict[str, str] = dict.fromkeys(found.missing, _MISSING)
    for db_id in sorted({str(problem.db_id) for problem in problems} - set(unreadable)):
        try:
            read_only_uri(database_path(source, db_id))
        except (ValueError, OSError) as error:
            unreadable[db_id] = str(error)
    found.failing = {p.id: unreadable[str(p.db_id)] for p in problems if p.db_id in unreadable}
    there = [problem for problem in problems if problem.id not in found.failing]
    if not there or source.databases is None:
        return
    with SqlVerifier(source.databases, "spider", **options) as bags:
        _fail(there, _verdicts(bags, there, lambda problem: problem.gold), found)
        sound = [problem for problem in there if problem.id not in found.failing]
        nothing = _verdicts(bags, sound, lambda problem: NO_ROWS)
    with SqlVerifier(source.databases, "bird", **options) as sets:
        _fail(sound, _verdicts(sets, sound, lambda problem: problem.gold), found)
        found.empty = [p.id for p, v in zip(sound, nothing, strict=True) if v.outcome == "correct"]
        found.empty = [name for name in found.empty if name not in found.failing]
        sound = [problem for problem in sound if problem.id not in found.failing]
        _look_for_ties(sound, sets, found)
    found.changing = [problem.id for problem in sound if _CHANGING.search(problem.gold)]
    found.failing = {p.id: found.failing[p.id] for p in problems if p.id in found.failing}


def fenced(sql: str) -> str:
    """The answer that consists of one query."""
    return f"```sql\n{sql}\n```"


def _verdicts(verifier: SqlVerifier, problems: Sequence[Problem], query: Callable[[Problem], str]) -> list[Verdict]:
    """The verdict on a query for each problem; the gold as an answer to itself runs twice."""
    return verifier.verify_many([(str(p.db_id), p.gold, fenced(query(p))) for p in problems])


def _fail(problems: Sequence[Problem], verdicts: Sequence[Verdict], found: Findings) -> None:
    for problem, verdict in zip(problems, verdicts, strict=True):
        if verdict.outcome == "wrong":
            found.failing[problem.id] = f"not the same result a second time ({verdict.detail or 'wrong'})"
        elif verdict.outcome != "correct":
            found.failing[problem.id] = f"{verdict.outcome}: {' '.join(verdict.detail.split())}"


def _look_for_ties(problems: Sequence[Problem], verifier: SqlVerifier, found: Findings) -> None:
    """By three verdicts for each probe: both rows are equal, and neither is missing; and one on the tree itself."""
    probes: list[tuple[Problem, LimitProbe]] = []
    unprobed: set[str] = set()
    trees: dict[str, str] = {}
    for problem in problems:
        tree = parse_sql(problem.gold)
        if tree is None:
            found.unread.append(problem.id)
            continue
        some, without = limit_probes(tree)
        probes += [(problem, probe) for probe in some]
        trees |= {problem.id: written(tree)} if some else {}
        unprobed |= {problem.id} if without else set()
    probed = [problem for problem in problems if problem.id in trees]
    same = _verdicts(verifier, probed, lambda problem: trees[problem.id])
    unfaithful = {p.id for p, verdict in zip(probed, same, strict=True) if verdict.outcome != "correct"}
    items = [(str(p.db_id), probe.last, fenced(query)) for p, probe in probes for query in (probe.next, NO_ROWS)]
    verdicts = iter(verifier.verify_many(items))
    ties = set()
    for problem, _ in probes:
        equal, none = next(verdicts), next(verdicts)
        if problem.id in unfaithful or equal.outcome not in ("correct", "wrong"):
            unprobed.add(problem.id)
        elif equal.outcome == "correct" and none.outcome == "wrong":
            ties.add(problem.id)
    found.ties = [problem.id for problem in problems if problem.id in ties]
    found.unprobed = [problem.id for problem in problems if problem.id in unprobed]


def _check_math(problems: Sequence[Problem], found: Findings, workers: int) -> None:
    with MathVerifier("strict", workers=workers) as verifier:
        verdicts = verifier.verify_many([(p.gold, boxed(p.gold)) for p in problems])
    _fail(problems, verdicts, found)
    found.text_only = [p.id for p, verdict in zip(problems, verdicts, strict=True) if verdict.detail == AS_TEXT]
    failing = [problem for problem in problems if problem.id in found.failing]
    if failing:
        with MathVerifier("compat", workers=workers) as verifier:
            verdicts = verifier.verify_many([(p.gold, boxed(p.gold)) for p in failing])
        found.compat_only = [p.id for p, v in zip(failing, verdicts, strict=True) if v.outcome == "correct"]


def boxed(gold: str) -> str:
    r"""The answer that gives a gold in a box.

    >>> boxed("$x$")
    '\\boxed{x}'
    """
    return f"\\boxed{{{gold.strip().strip('$').strip()}}}"


def _check_questions(problems: Sequence[Problem], found: Findings) -> None:
    groups: dict[tuple[str | None, str], list[Problem]] = defaultdict(list)
    for problem in problems:
        asked = f"{problem.prompt} {problem.meta.get('evidence', '')}"
        groups[problem.db_id, " ".join(asked.split())].append(problem)
    several = [group for group in groups.values() if len(group) > 1]
    found.duplicates = [[problem.id for problem in group] for group in several]
    found.conflicting = [[p.id for p in group] for group in several if len({p.gold for p in group}) > 1]
