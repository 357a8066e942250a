"""One policy's answers at several temperatures, verified and counted: `evaluate`, with a sampler that is told another.

`evaluate` asks for temperature 1; here the sampler draws at the one that is wanted, and the rows say so, so that these
answers share its code and training's stages do not depend on them. Log-probabilities and entropies of answers are
those at temperature 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib.experiment import evaluate, policies
from dphlib.experiment.draws import sampling
from dphlib.runtime.machine import derive_seed, deterministic
from dphlib.sampling.protocol import Sampler, SamplingConfig
from dphlib.settings.profiles import Profile
from dphlib.types import Answer, Problem
from dphlib.verify.verifier import Verifier


@dataclass(frozen=True, slots=True)
class Tempered:
    """A sampler that draws at its own temperature, whatever it is asked for."""

    sampler: Sampler
    temperature: float

    def sample(self, problems: Sequence[Problem], config: SamplingConfig, seed: int) -> list[list[Answer]]:
        """See `Sampler.sample`."""
        return self.sampler.sample(problems, replace(config, temperature=self.temperature), seed)

    def sync(self, policy: Any) -> None:
        self.sampler.sync(policy)

    def record(self) -> dict[str, str | None]:
        return self.sampler.record()


def build(
    out: Path,
    settings: Profile,
    base: Path,
    trained: Path | None,
    databases: Path,
    suites: Mapping[str, Sequence[Problem]],
    samples: Mapping[str, int],
    identity: evaluate.Identity,
    *,
    draw_seed: int,
    temperatures: Sequence[float],
    report: Callable[[float], None],
) -> None:
    """Writes `records.parquet` to `out`: one row per temperature and problem, no greedy answer.

    Args:
        draw_seed: each temperature has draws of its own by it.
        temperatures: > 0; the others as for `evaluate.build`.
    """
    deterministic(policies.threads(settings), policies.placement_of(settings).device)
    policy, tokenizer = policies.load_trained(settings, base, trained)
    frames: list[pd.DataFrame] = []
    with (
        Verifier(databases, policies.judges(settings)) as verifier,
        sampling(settings, base, policy, tokenizer, out) as sampler,
    ):
        if trained:
            sampler.sync(policy)
        for temperature in temperatures:
            rows = evaluate.evaluate(
                policy,
                tokenizer,
                suites,
                samples,
                verifier,
                identity,
                draw_seed=derive_seed("temperature", draw_seed, float(temperature)),
                max_new_tokens=settings.evaluation.max_new_tokens,
                greedy=False,
                sampler=Tempered(sampler, temperature),
                styles=settings.data is None,
            )
            frames.append(rows.assign(temperature=temperature))
            report(len(frames) / len(temperatures))
    pd.concat(frames, ignore_index=True).to_parquet(out / "records.parquet", index=False)
