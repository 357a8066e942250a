"""Scores of every arm from the records, for `intervals`: Pass@k, greedy accuracy, style entropy; keep and explore.

Input is the frame of `records.parquet` at one point of training: `stats.final` selects the end. Its column `base` names
the base model that a run started from (`with_bases`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.intervals import Interval, Scores, check_comparable, interval
from dphlib.stats import SETTINGS, Metric
from dphlib.types import base_of

BASE = "base"
MIN_PROBLEMS = 5
"""A share of fewer problems, by their effective number, has no interval: a ratio to one problem would have no width."""


def with_bases(records: pd.DataFrame, bases: int) -> pd.DataFrame:
    """Records of stages with the column `base`: of a run with seed s the index s mod `bases`, of a base its own.

    Args:
        bases: number of base models, `Profile.bases`.
    """
    index = {seed: base_of(seed, bases) for seed in records["seed"].unique().tolist()}
    return records.assign(base=records["seed"].map(index).astype("int32"))


class ArmScores:
    """The scores of each arm on each suite at one point of training, each computed once.

    Metrics: `greedy` accuracy, `pass` (unbiased pass@k), and `styles_nats` (`stats.styles_nats`).

    Args:
        rows: records with one step per run, such as `stats.final(records)`; runs may differ in their step.

    Raises ValueError for a run with several steps.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        steps = rows.groupby(["method", "variant", "seed"], observed=True)["step"].nunique()
        if (steps > 1).any():
            raise ValueError(f"{steps.idxmax()}: {steps.max()} steps; take final(records), or another step per run")
        self._tables: dict[tuple[str, ...], pd.DataFrame] = {}
        for kind, part in (("greedy", stats.greedy(rows)), ("sampled", stats.sampled(rows))):
            if len(part):
                groups = stats.once(part).groupby(["method", "variant", "suite"], observed=True)
                self._tables |= {(kind, *map(str, key)): table for key, table in groups}
        self._scores: dict[tuple[str, str, str, int, str, str], Scores | None] = {}

    @classmethod
    def final(cls, records: pd.DataFrame) -> ArmScores:
        """At each run's last step.

        Raises ValueError for an arm whose runs were not trained equally long.
        """
        rows = stats.final(records)
        steps = rows.groupby(["method", "variant"], observed=True)["step"].agg(["min", "max"])
        unequal = steps[steps["min"] != steps["max"]]
        if len(unequal):
            arm, (low, high) = unequal.index[0], unequal.iloc[0]
            raise ValueError(f"{arm[0]} ({arm[1]}): runs end at steps {low} to {high}; train all equally long")
        return cls(rows)

    def _table(self, method: str, suite: str, metric: Metric, variant: str) -> pd.DataFrame | None:
        table = self._tables.get(("greedy" if metric == "greedy" else "sampled", method, variant, suite))
        if table is None or (metric == "styles_nats" and not stats.has_styles(table)):
            return None
        return table

    def answers(self, method: str, suite: str, metric: Metric = "pass", variant: str = "main") -> int | None:
        """The fewest judged answers that one of its problems has; None where the arm has no such scores."""
        table = self._table(method, suite, metric, variant)
        return None if table is None else int(table["n"].min())

    def subsets(self, suite: str) -> set[str]:
        """Names of the suite's subsets in the records; a family is of the subset that its first word names."""
        families = {name for key, table in self._tables.items() if key[3] == suite for name in table["subset"]}
        return {_subset(name) for name in families}

    def get(
        self, method: str, suite: str, metric: Metric = "pass", k: int = 1, variant: str = "main", subset: str = ""
    ) -> Scores | None:
        """An arm's scores on a suite, or on one of its subsets; None where the records have none.

        Raises ValueError where its runs differ in problems or settings, and for k > n.
        """
        key = (method, suite, metric, k, variant, subset)
        if key not in self._scores:
            table = self._table(method, suite, metric, variant)
            if table is not None and subset:
                table = table[table["subset"].map(_subset) == subset].assign(suite=f"{suite}, {subset}")
            empty = table is None or table.empty
            self._scores[key] = None if empty else _scores(table, metric, k)
        return self._scores[key]

    def of(self, method: str, suite: str, metric: Metric = "pass", k: int = 1, variant: str = "main") -> Scores:
        """As `get`, but ValueError where the records have none."""
        if (found := self.get(method, suite, metric, k, variant)) is None:
            have = (f"{m} ({v}) on {s}" for kind, m, v, s in self._tables if (kind == "greedy") == (metric == "greedy"))
            raise ValueError(f"no records of {method} ({variant}) on {suite}; there are: {', '.join(have)}")
        return found


def _subset(family: str) -> str:
    return family.partition(" ")[0]


def _scores(rows: pd.DataFrame, metric: Metric, k: int) -> Scores:
    first = rows.iloc[0]
    arm, suite = f"{first['method']} ({first['variant']})", str(first["suite"])
    order = np.lexsort((rows["problem_id"].to_numpy().astype(str), rows["seed"].to_numpy()))
    value_N = (stats.styles_nats(rows) if metric == "styles_nats" else stats.pass_column(rows, k))[order]
    # Arrays: figures and tables ask for a thousand scores.
    names = ("seed", "base", "problem_id", "subset", "drawn", *SETTINGS)
    columns = {name: rows[name].to_numpy()[order] for name in names}
    starts = np.flatnonzero(np.diff(columns["seed"], prepend=columns["seed"][0] - 1)).tolist()
    of_seed: list[Scores] = []
    for start, end in pairwise([*starts, len(rows)]):
        seed = int(columns["seed"][start])
        settings = {}
        for setting in ("drawn", *SETTINGS):
            values = sorted(set(columns[setting][start:end].tolist()))
            if len(values) > 1:
                raise ValueError(f"{arm} on {suite}, seed {seed}: problems differ in {setting}: {values}")
            settings[setting] = float(values[0])
        ids, strata = (tuple(columns[name][start:end]) for name in ("problem_id", "subset"))
        value_SP = value_N[None, start:end]
        trained = first["method"] != BASE
        one = Scores(arm, suite, (seed,), ids, value_SP, (int(columns["base"][start]),), strata, trained, settings)
        of_seed.append(one)
        check_comparable(of_seed[0], one)
    return _joined(of_seed)


def _joined(of_seed: list[Scores]) -> Scores:
    """The scores of an arm's runs as one."""
    return replace(
        of_seed[0],
        seeds=tuple(one.seeds[0] for one in of_seed),
        bases=tuple(one.bases[0] for one in of_seed),
        values_SP=np.concatenate([one.values_SP for one in of_seed]),
    )


# ---------------------------------------------------------------------------------------------- keep and explore


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What a model kept of the problems that its base solves, and what it newly solved; see `keep_and_explore`.

    Args:
        solved, unsolved: the base models' pass@k of each problem, and 1 - pass@k.
        both, new: probability that a run and its base both solve a problem, and that only the run does.
    """

    solved: Scores
    unsolved: Scores
    both: Scores
    new: Scores

    @property
    def problems(self) -> int:
        return len(self.solved.problems)

    @property
    def preserved(self) -> float:
        """Expected number of problems that both solve, mean over runs."""
        return self.both.mean * self.problems

    @property
    def lost(self) -> float:
        """Of problems that only the base solves."""
        return self.solved.started_from(self.both.bases).mean * self.problems - self.preserved

    @property
    def gained(self) -> float:
        """Of problems that only the model solves."""
        return self.new.mean * self.problems

    def keep(self) -> Interval | None:
        """The share of what the base solves that it still solves, None where it solves nothing.

        The ends are NaN where that is of too few problems.
        """
        return _share(self.both, self.solved)

    def explore(self) -> Interval | None:
        """The share of what the base does not solve that it newly solves, None where it solves everything.

        The ends are NaN where that is of too few problems.
        """
        return _share(self.new, self.unsolved)


def _share(part: Scores, whole: Scores) -> Interval | None:
    weight_P = whole.started_from(part.bases).units_UP.mean(axis=0)
    if not weight_P.sum() > 0:
        return None
    got = interval([part, whole], np.divide)
    if weight_P.sum() ** 2 / np.square(weight_P).sum() < MIN_PROBLEMS:
        return replace(got, low=np.nan, high=np.nan, standard_error=np.nan)
    return got


def keep_and_explore(scores: ArmScores, method: str, suite: str, k: int, variant: str = "main") -> Split:
    """What a method kept of its base's problems and newly solved, by the expectation over k answers of both models.

    b and t are a problem's unbiased pass@k of the base and of the tuned model. Their answers are independent, so b*t is
    unbiased for "k answers of each: both solve it". At k = n these are the plain shares: solved by at least one of the
    n answers. The method `base` is the base against k fresh answers of its own, where b squared is estimated from 2k
    answers: 2 pass@k - pass@2k. The paper's k is not available.
    """
    base = scores.of(BASE, suite, "pass", k)
    unsolved = replace(base, values_SP=1 - base.values_SP)
    if method == BASE:
        again = scores.of(BASE, suite, "pass", 2 * k)
        kept = replace(base, values_SP=2 * base.values_SP - again.values_SP)
        return Split(base, unsolved, kept, replace(base, values_SP=base.values_SP - kept.values_SP))
    tuned = scores.of(method, suite, "pass", k, variant)
    check_comparable(base, tuned)
    row_of: Mapping[int, int] = {index: row for row, index in enumerate(base.bases)}
    if absent := sorted(set(tuned.bases) - set(row_of)):
        raise ValueError(f"no records of base model {absent[0]} on {suite}, from which runs of {method} started")
    b_SP = base.values_SP[[row_of[index] for index in tuned.bases]]
    kept = replace(tuned, values_SP=b_SP * tuned.values_SP)
    return Split(base, unsolved, kept, replace(tuned, values_SP=(1 - b_SP) * tuned.values_SP))
