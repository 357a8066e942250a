"""Problems that the base seldom solves, answered often: is a solution still within reach of 256 answers?

    records = hard_records(pipeline)      # base, GRPO, RKL, DPH-F, DPH-JS
    table = hard_table(records)

A problem is hard where at most `SHARE` of the answers of the profile's bases, taken together, were correct in the plain
evaluation. All models, the bases too, then answer the hard problems anew, four times as often as the plain evaluation
does at most (64 x 4 = 256 in `cpu`). The answers that chose the problems are not used again: on problems chosen for few
correct answers they understate the base.

1. These rows differ from the plain records in problems and in answers drawn, and never stand among them: they are a
   file of their own, `hard.parquet`. Arms of both are refused by `intervals.check_comparable`.
2. Drawn when it is asked for (`--studies hard`), never by a plain run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from dphlib import stats
from dphlib.analysis import retention
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.experiment.pipeline import Pipeline, evaluate_job, model_of
from dphlib.experiment.store import Stage
from dphlib.intervals import interval
from dphlib.runtime.files import InputError
from dphlib.scores import ArmScores
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import RunConfig

HARD_METHODS = ("grpo", "rkl", "dph_f", "dph_js")
"""Trained methods whose main runs answer the hard problems."""
SHARE = 1 / 8


def hard_problems(records: pd.DataFrame) -> dict[str, list[str]]:
    """Suite -> ids of the problems that the bases, taken together, solved in at most `SHARE` of their sampled answers.

    A suite without one is left out. Raises ValueError where no suite has one, or no base is in the records.
    """
    base = records[records["method"] == "base"]
    keys = ["suite", "problem_id"]
    rows = stats.once(stats.sampled(base)).groupby(keys, as_index=False, observed=True)[["correct", "n"]].sum()
    hard = rows[rows["correct"] <= SHARE * rows["n"]]
    if hard.empty:
        raise InputError(f"the base solves every problem in more than {SHARE:.3g} of its answers: none is hard")
    return {
        suite: sorted(hard.loc[hard["suite"] == suite, "problem_id"]) for suite in SUITES if suite in set(hard["suite"])
    }


def draws(settings: Profile) -> int:
    """Answers a hard problem.

    >>> draws(Profile("cpu"))
    256
    """
    return 8 * max(settings.evaluation.samples.values())


def hard_runs(settings: Profile) -> list[RunConfig]:
    """The main runs that answer the hard problems."""
    return [run for run in settings.main_runs() if run.method in HARD_METHODS]


def hard_records(pipeline: Pipeline) -> pd.DataFrame:
    """`EvalRecord` rows of `hard_runs` and of the bases that they start from: hard problems only, no greedy answer.

    Trains and evaluates what is not there yet. Raises ValueError where no problem is hard.
    """
    runs = hard_runs(pipeline.settings)
    pipeline.train(runs)
    bases = list(range(pipeline.settings.bases))
    pipeline.build_all("evaluate", bases, evaluate_job, Pipeline.evaluate_one)
    models: list[RunConfig | int] = [*sorted({pipeline.settings.base_index(run.seed) for run in runs}), *runs]
    pipeline.build_all("hard problems", models, hard_job, answered)
    stages = [answered(pipeline, model) for model in models]
    return pd.concat([pd.read_parquet(stage.path / "records.parquet") for stage in stages], ignore_index=True)


def hard_job(root: str, profile_name: str, tracker: str, run: dict[str, Any] | int) -> None:
    """Answers the hard problems with one run's model, or with a base, in a process of its own."""
    answered(Pipeline(root, profile_from_environment(profile_name), tracker=tracker), model_of(run))


def answered(pipeline: Pipeline, run: RunConfig | int) -> Stage:
    """`records.parquet` of one run's final model on the hard problems; of the base with an index."""
    plain = [pipeline.evaluate_one(index).path / "records.parquet" for index in range(pipeline.settings.bases)]
    problems = hard_problems(pd.concat(map(pd.read_parquet, plain), ignore_index=True))
    samples = dict.fromkeys(problems, draws(pipeline.settings))
    return pipeline.answered("hard", run, samples, problems)


def hard_table(records: pd.DataFrame, methods: Sequence[str] = HARD_METHODS) -> pd.DataFrame:
    """One row per suite and model: unbiased Pass@k in per cent with intervals, and who reaches what.

    Columns: suite, problems, method, Pass@k at n/16, n/4 and n of the n answers (each with `_low`, `_high`), then, with
    k of half the answers, preserved, lost and gained problems (`retention.support`), and seeds.
    """
    scores, out = ArmScores.final(records), []
    support = retention.support(records, methods)
    support = support[support["k"] == support.groupby("suite")["k"].transform("max")].set_index(["suite", "method"])
    for suite in SUITES:
        fewest = {m: n for m in ("base", *methods) if (n := scores.answers(m, suite)) is not None}
        n = min(fewest.values(), default=0)
        for method in fewest:
            ks = sorted({max(1, n // 16), max(1, n // 4), n})
            of_k = {k: scores.of(method, suite, "pass", k) for k in ks}
            row: dict[str, object] = {"suite": SUITES[suite], "problems": len(of_k[n].problems)}
            row["method"] = NAMES[method]
            for k, one in of_k.items():
                got = interval([one])
                row |= got.columns(f"Pass@{k}", 0.0, 100.0)
            reached = support.loc[(SUITES[suite], retention.AGAIN if method == "base" else NAMES[method])]
            row |= {name: float(reached[name]) for name in ("preserved", "lost", "gained")}
            out.append(row | {"seeds": len(of_k[n].seeds)})
    return pd.DataFrame(out)
