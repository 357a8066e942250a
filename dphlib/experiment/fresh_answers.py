"""Fresh answers of several models to one problem, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
    problem: Problem,
    database_root: Path,
    draws: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Fresh answers of several models to one problem at temperature 1, equal ones counted, most frequent first.

    By Transformers, whatever the profile samples with.

    Args:
        base: folder of the initial policy.
        trained: what a reader calls the model -> the folder of its training; None for the initial policy.
        database_root: folder with `<db_id>/<db_id>.sqlite`, for the verdicts.
        draws: answers per model.

    Returns:
        One row per different answer: model, style (not on data sets), times, verdict, answer.
    """
    rows = []
    with Verifier(database_root) as verifier:
        for name, folder in trained.items():
            setting = SamplingConfig(draws, max_new_tokens=settings.evaluation.max_new_tokens)
            policy, tokenizer = load_trained(settings, base, folder)
            drawn = TransformersSampler(policy, tokenizer).sample([problem], setting, seed)[0]
            del policy  # one at a time on a GPU
            release_gpu()
            counts = Counter(answer.text for answer in drawn)
            texts = sorted(counts, key=lambda text: (-counts[text], text))
            verdicts = verifier.verify_many([(problem, text) for text in texts])
            for text, verdict in zip(texts, verdicts, strict=True):
                counted = {"model": name, "style": style_of(text), "times": counts[text]}
                rows.append({**counted, "verdict": verdict.outcome, "answer": text})
    frame = pd.DataFrame(rows)
    return frame if settings.data is None else frame.drop(columns="style")
