"""Answers themselves, for a reader: the records hold counts. No number in a figure or table comes from these.

The base and the paper's methods answer the same few problems of each suite anew. Which problems is fixed by their names
and families, whatever came out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dphlib.analysis.labels import SUITES
from dphlib.experiment.pipeline import CODE, Pipeline
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.variants import MAIN, RunConfig
from dphlib.types import Problem

PROBLEMS, DRAWS = 16, 16
"""Problems of a suite, answers of a model to each."""
COLUMNS = ("suite", "problem_id", "prompt", "gold", "method", "seed", "style", "times", "verdict", "answer")


def chosen(problems: Sequence[Problem], count: int = PROBLEMS) -> list[Problem]:
    """So many problems of a suite, or all of a smaller one, at equal distances in the order of their families."""
    ordered = sorted(problems, key=lambda problem: (problem.meta.get("family", ""), problem.id))
    count = min(count, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def answer_sample(pipeline: Pipeline, runs: Sequence[RunConfig]) -> pd.DataFrame:
    """Fresh answers of the final policies of one seed's main runs and of their base; builds what is not there yet.

    Args:
        pipeline: of the small model; of a large one answers would take hours.
        runs: those of the first seed that are a method's main run are asked.

    Returns:
        One row per different answer, `COLUMNS`: style and verdict, and how often it was given; most frequent first.
    """
    settings = pipeline.settings
    seed = min(run.seed for run in runs)
    main = {(run.method, run.variant, run.seed) for run in runs}
    asked = [run for name in METHOD_CONFIGS if (name, MAIN, seed) in main for run in [RunConfig(name, MAIN, seed)]]
    index = settings.base_index(seed)
    trained = {run.method: pipeline.train_one(run) for run in asked}
    problems = [problem for suite in SUITES for problem in chosen(pipeline.suite(suite))]

    def build(out: Path) -> None:
        from dphlib.experiment import fresh_answers, policies
        from dphlib.runtime.machine import deterministic

        deterministic(policies.threads(settings), policies.placement_of(settings).device)
        folders = {"base": None} | {name: stage.path for name, stage in trained.items()}
        base, databases = pipeline.base_folder(index), pipeline.databases()
        rows = fresh_answers.answers_of(settings, base, folders, problems, databases, DRAWS)
        _described(rows, problems, seed, index).to_parquet(out / "answers.parquet", index=False)

    stage = pipeline.run.stage(
        "answers",
        params={"problems": [problem.id for problem in problems], "draws": DRAWS, "seed": seed},
        inputs=(pipeline.world(), pipeline.base(index), *trained.values()),
        code=CODE["answers"],
        build=build,
    )
    return pd.read_parquet(stage.path / "answers.parquet")


def _described(rows: pd.DataFrame, problems: Sequence[Problem], seed: int, base: int) -> pd.DataFrame:
    """The answers by problem, with what was asked; a base's seed is its index, as in the records."""
    asked = pd.DataFrame([{"suite": p.suite, "problem_id": p.id, "prompt": p.prompt, "gold": p.gold} for p in problems])
    rows = rows.rename(columns={"model": "method"}).merge(asked, on="problem_id")
    order = pd.Categorical(rows["problem_id"], [problem.id for problem in problems])
    rows = rows.assign(seed=rows["method"].map(lambda name: base if name == "base" else seed), order=order)
    return rows.sort_values("order", kind="stable", ignore_index=True)[list(COLUMNS)]
