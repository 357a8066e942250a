"""What is asked of trained policies beyond the protocol: more answers to hard problems, and other temperatures.

    made = records(pipeline, "temperature", runs)     # the main runs among `runs`, and their bases
    table = temperature_table(made)

1. `hard`: problems that the base seldom solves, answered often. Is a solution still within reach of 256 answers? A
   problem is hard where at most `SHARE` of the answers of the profile's bases, taken together, were correct in the
   plain evaluation. All models, the bases too, then answer the hard problems anew, eight times as often as the plain
   evaluation does at most (256 in `cpu`). The answers that chose the problems are not used again: on problems chosen
   for few correct answers they understate the base.
2. `temperature`: the in-domain problems answered at several temperatures, to see which of the methods' differences a
   reader gets by turning the temperature.
3. No claim is judged on these answers. They differ from the plain records in problems or in how they were drawn, and
   never stand among them: each study has a file of its own. Arms of both are refused by `intervals.check_comparable`.
4. Drawn when it is asked for (`--studies hard,temperature`) from the policies of the run, never by a plain run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dphlib import stats
from dphlib.analysis import retention
from dphlib.analysis.labels import NAMES, SUITES
from dphlib.experiment.pipeline import Pipeline, evaluate_job, model_of
from dphlib.experiment.store import Stage
from dphlib.intervals import interval
from dphlib.runtime.files import InputError
from dphlib.scores import ArmScores, with_bases
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import HARD, TEMPERATURE
from dphlib.settings.variants import MAIN, RunConfig

SHARE = 1 / 8
"""Of the bases' answers, at most so many are correct where a problem is hard."""
TEMPERATURES = (0.5, 0.7, 1.0, 1.3)
TEMPERATURE_DRAWS = 16
"""Answers per problem at each temperature, at 1 too: all are drawn alike."""


class Exploratory(NamedTuple):
    """A study beyond the protocol.

    Args:
        methods: whose main runs answer, beside the bases that they start from.
        answered: of a pipeline and a run, or a base's index: the stage with its answers.
        table: of the records: what is read.
        absent: why there is nothing of it where it was not asked for.
    """

    methods: tuple[str, ...]
    answered: Callable[[Pipeline, RunConfig | int], Stage]
    table: Callable[[pd.DataFrame], pd.DataFrame]
    absent: str


def records(pipeline: Pipeline, name: str, runs: Sequence[RunConfig]) -> pd.DataFrame:
    """The records of a study: of those of `runs` that it is of, and of the bases that they start from.

    `EvalRecord` rows with the column `base` (`scores.with_bases`). Trains and evaluates what is not there yet.

    Args:
        name: of `EXPLORATORY`.

    Raises:
        ValueError: no problem is hard.
    """
    study, settings = EXPLORATORY[name], pipeline.settings
    chosen = [run for run in runs if run.method in study.methods and run.variant == MAIN]
    pipeline.train(chosen)
    if name == HARD:
        pipeline.build_all("evaluate", list(range(settings.bases)), evaluate_job, Pipeline.evaluate_one)
    models: list[RunConfig | int] = [*sorted({settings.base_index(run.seed) for run in chosen}), *chosen]
    pipeline.build_all(f"study {name}", models, answer_job, study.answered, study=name)
    stages = [study.answered(pipeline, model) for model in models]
    frames = [pd.read_parquet(stage.path / "records.parquet") for stage in stages]
    return with_bases(pd.concat(frames, ignore_index=True), settings.bases)


def answer_job(root: str, profile_name: str, tracker: str, run: dict[str, Any] | int, study: str) -> None:
    """Lets one run's model, or a base, answer what a study asks, in a process of its own."""
    pipeline = Pipeline(root, profile_from_environment(profile_name), tracker=tracker)
    EXPLORATORY[study].answered(pipeline, model_of(run))


# --- Hard problems ------------------------------------------------------------------------------------


def hard_problems(plain: pd.DataFrame) -> dict[str, list[str]]:
    """Suite -> ids of the problems that the bases, taken together, solved in at most `SHARE` of their sampled answers.

    A suite without one is left out. Raises ValueError where no suite has one, or no base is in the records.
    """
    base = plain[plain["method"] == "base"]
    keys = ["suite", "problem_id"]
    rows = stats.once(stats.sampled(base)).groupby(keys, as_index=False, observed=True)[["correct", "n"]].sum()
    hard = rows[rows["correct"] <= SHARE * rows["n"]]
    if hard.empty:
        raise InputError(f"the base solves every problem in more than {SHARE:.3g} of its answers: none is hard")
    return {
        suite: sorted(hard.loc[hard["suite"] == suite, "problem_id"]) for suite in SUITES if suite in set(hard["suite"])
    }


def hard_draws(settings: Profile) -> int:
    """Answers a hard problem.

    >>> hard_draws(Profile("cpu"))
    256
    """
    return 8 * max(settings.evaluation.samples.values())


def hard_answers(pipeline: Pipeline, run: RunConfig | int) -> Stage:
    """`records.parquet` of one run's final model on the hard problems; of the base with an index."""
    plain = [pipeline.evaluate_one(index).path / "records.parquet" for index in range(pipeline.settings.bases)]
    problems = hard_problems(pd.concat(map(pd.read_parquet, plain), ignore_index=True))
    samples = dict.fromkeys(problems, hard_draws(pipeline.settings))
    return pipeline.answered(HARD, run, samples, problems)


def hard_table(answers: pd.DataFrame) -> pd.DataFrame:
    """One row per suite and model: unbiased Pass@k in per cent with intervals, and who reaches what.

    Columns: suite, problems, method, Pass@k at n/16, n/4 and n of the n answers (each with `_low`, `_high`), then, with
    k of half the answers, preserved, lost and gained problems (`retention.support`), and seeds.
    """
    scores, out, methods = ArmScores.final(answers), [], EXPLORATORY[HARD].methods
    support = retention.support(answers, methods)
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


# --- Temperatures -------------------------------------------------------------------------------------


def temperature_answers(pipeline: Pipeline, run: RunConfig | int) -> Stage:
    """`records.parquet` of one run's final model in domain at each of `TEMPERATURES`; of the base with an index."""
    return pipeline.answered(TEMPERATURE, run, {"in_domain": TEMPERATURE_DRAWS}, temperatures=TEMPERATURES)


def at_temperatures(answers: pd.DataFrame) -> dict[float, ArmScores]:
    """The scores at each temperature of the records, the lowest first."""
    return {float(t): ArmScores.final(rows) for t, rows in answers.groupby("temperature")}


def temperature_table(answers: pd.DataFrame, k: int = 8) -> pd.DataFrame:
    """One row per method and temperature in domain, in per cent with intervals; uncorrected.

    Columns: method, T, Pass@1, Pass@k (each with `_low`, `_high`), styles_nats (NaN where unknown), then Pass@k minus
    GRPO's at the same temperature (with `_low`, `_high`; NaN for GRPO, and without it), and seeds.
    """
    out = []
    of_each, minus = at_temperatures(answers), f"Pass@{k} minus GRPO"
    for method in ("base", *EXPLORATORY[TEMPERATURE].methods):
        for temperature, scores in of_each.items():
            if (passed := scores.get(method, "in_domain", "pass", k)) is None:
                continue
            row: dict[str, object] = {"method": NAMES[method], "T": f"{temperature:g}"}
            row |= interval([scores.of(method, "in_domain", "pass", 1)]).columns("Pass@1", 0.0, 100.0)
            row |= interval([passed]).columns(f"Pass@{k}", 0.0, 100.0)
            styles = scores.get(method, "in_domain", "styles_nats")
            row["styles_nats"] = styles.mean if styles else np.nan
            grpo = scores.get("grpo", "in_domain", "pass", k)
            row |= dict.fromkeys((minus, f"{minus}_low", f"{minus}_high"), np.nan)
            if method != "grpo" and grpo:
                row |= interval([passed, grpo], np.subtract).columns(minus)
            out.append(row | {"seeds": len(passed.seeds)})
    return pd.DataFrame(out)


EXPLORATORY: Mapping[str, Exploratory] = {
    HARD: Exploratory(
        ("grpo", "rkl", "dph_f", "dph_js"), hard_answers, hard_table, "the hard problems were not answered"
    ),
    TEMPERATURE: Exploratory(
        ("grpo", "dapo", "rkl", "dph_f", "dph_js", "grpo_dexp", "rkl_k2", "dph_rkl"),
        temperature_answers,
        temperature_table,
        "no answers were drawn at other temperatures",
    ),
}
"""The studies beyond the protocol, by the names of `settings.studies.EXPLORATORY`."""
