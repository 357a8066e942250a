"""Fresh answers of several models to the same problems, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dphlib.experiment.policies import load_trained
from dphlib.runtime.machine import release_gpu
from dphlib.sampling.protocol import SamplingConfig
from dphlib.sampling.transformers import TransformersSampler
from dphlib.settings.profiles import Profile
from dphlib.types import Problem
from dphlib.verify import Verifier
from dphlib.world.templates import style_of


def answers_of(
    settings: Profile,
    base: Path,
    trained: Mapping[str, Path | None],
    problems: Sequence[Problem],
    database_root: Path,
    draws: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Fresh answers of several models to some problems at temperature 1, equal ones counted, most frequent first.

    By Transformers, whatever the profile samples with; all models draw with the same random numbers.

    Args:
        base: folder of the initial policy.
        trained: what a reader calls the model -> the folder of its training; None for the initial policy.
        database_root: folder with `<db_id>/<db_id>.sqlite`, for the verdicts.
        draws: answers per model and problem.

    Returns:
        One row per different answer to a problem, model by model: problem_id, model, style (not on data sets), times,
        verdict, answer.
    """
    rows = []
    with Verifier(database_root) as verifier:
        for name, folder in trained.items():
            setting = SamplingConfig(draws, max_new_tokens=settings.evaluation.max_new_tokens)
            policy, tokenizer = load_trained(settings, base, folder)
            drawn = TransformersSampler(policy, tokenizer).sample(problems, setting, seed)
            del policy  # one at a time on a GPU
            release_gpu()
            counts = [Counter(answer.text for answer in answers) for answers in drawn]
            pairs = [
                (problem, text, times)
                for problem, count in zip(problems, counts, strict=True)
                for text, times in sorted(count.items(), key=lambda item: (-item[1], item[0]))
            ]
            verdicts = verifier.verify_many([(problem, text) for problem, text, _ in pairs])
            for (problem, text, times), verdict in zip(pairs, verdicts, strict=True):
                row = {"problem_id": problem.id, "model": name, "style": style_of(text), "times": times}
                rows.append({**row, "verdict": verdict.outcome, "answer": text})
    frame = pd.DataFrame(rows)
    return frame if settings.data is None else frame.drop(columns="style")
