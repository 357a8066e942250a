"""One training run as its stage builds it: policy, sampler, verifier, the loop, way-points, and what is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from dphlib.experiment import evaluate, policies
from dphlib.models.tuning import mixed_with_base
from dphlib.partition import Reference
from dphlib.runtime.files import atomic_path, write_json
from dphlib.runtime.machine import derive_seed, deterministic
from dphlib.sampling.protocol import Sampler
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import RunConfig
from dphlib.training import loop, stopping, tracking
from dphlib.types import Problem
from dphlib.verify import Verifier

STOPPED, STOPPING = "stopped", "stopping.json"
"""In a run's stage: folder with the policy at its stopping point, and file with the iteration."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run reads.

    Args:
        base: folder of the initial policy.
        databases: folder of the problems' databases.
        prompts: what is explored.
        references: stored answers, with the log-probs of the initial policy as it is trained.
        waypoint_problems: on which way-points are measured.
        waypoints: iterations after which they are.
        data_text: what the policy is trained on, for a card.
    """

    base: Path
    databases: Path
    prompts: Sequence[Problem]
    references: Sequence[Reference]
    waypoint_problems: Sequence[Problem] = ()
    waypoints: Sequence[int] = ()
    data_text: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """What trains one policy; `train` is `loop.train` of it, with method, training and seed still to be given.

    `initial` is the initial policy beside one that is trained whole, where it was asked for.
    """

    policy: Any
    initial: Any
    tokenizer: PreTrainedTokenizerBase
    verifier: Verifier
    sampler: Sampler
    train: Callable[..., list[dict[str, Any]]]


@contextmanager
def ready(settings: Profile, inputs: Inputs, seed: int, initial: bool) -> Iterator[Ready]:
    """Loads a policy and what trains it.

    Args:
        seed: of an adapter's first weights.
        initial: whether the initial policy is needed beside one that is trained whole.
    """
    deterministic(policies.threads(settings), policies.placement_of(settings).device)
    policy, tokenizer = policies.load_policy(settings, inputs.base, seed)
    beside = policies.load_initial(settings, inputs.base)[0] if initial and settings.tuning.kind == "full" else None
    with (
        Verifier(inputs.databases, policies.judges(settings)) as verifier,
        policies.sampling(settings, inputs.base, policy, tokenizer) as sampler,
    ):
        train = partial(
            loop.train,
            policy,
            tokenizer,
            inputs.prompts,
            inputs.references,
            verifier,
            base=beside,
            sampler=sampler,
            paged_8bit=settings.tuning.paged_8bit,
        )
        yield Ready(policy, beside, tokenizer, verifier, sampler, train)


def build(
    out: Path,
    kept: Path,
    settings: Profile,
    run: RunConfig,
    inputs: Inputs,
    report: Callable[[float], None],
    tracker: str = "",
) -> None:
    """Trains a run and writes `model/` or `adapter/`, and `train_log.jsonl`.

    With way-points, `waypoints.parquet`; where runs have a stopping point, also `STOPPED` and `STOPPING`.

    Args:
        out: the stage's folder.
        kept: folder of checkpoints and what else an interrupted run goes on from.
        report: called with the share of the iterations that are done.
        tracker: another place for the log, see `tracking`; "" for none.
    """
    train, evaluation, method = run.train_config(settings.train), settings.evaluation, settings.method_config(run)

    def save(made: Ready, folder: Path) -> None:
        policies.save_policy(made.policy, made.tokenizer, folder, settings, run, inputs.base, inputs.data_text)

    with (
        ready(settings, inputs, run.seed, initial=True) as made,
        tracking.tracked(tracker, kept, settings, run) as track,
    ):

        def measure(iteration: int) -> None:
            made.sampler.sync(made.policy)
            records = evaluate.evaluate(
                made.policy,
                made.tokenizer,
                {evaluation.step_suite: inputs.waypoint_problems},
                {evaluation.step_suite: evaluation.step_samples},
                made.verifier,
                evaluate.Identity(run.method, run.variant, run.seed, iteration),
                draw_seed=derive_seed("waypoint", evaluation.draw_seed, run.name),
                max_new_tokens=evaluation.max_new_tokens,
                greedy=evaluation.stops,
                sampler=made.sampler,
                styles=settings.data is None,
            )
            if evaluation.stops:
                save(made, kept / f"policy-{iteration}")
            with atomic_path(kept / f"waypoint-{iteration}.parquet") as path:
                records.to_parquet(path, index=False)

        def on_iteration(log: dict[str, Any]) -> None:
            report(log["iteration"] / train.iterations)
            track(log)
            if log["iteration"] in inputs.waypoints:
                with mixed_with_base(made.policy, made.initial, method.base_share):
                    measure(log["iteration"])

        made.train(method, train, run.seed, folder=kept, on_iteration=on_iteration)
    with mixed_with_base(made.policy, made.initial, method.base_share):
        save(made, out)
    shutil.copy2(kept / "train_log.jsonl", out)
    if inputs.waypoints:
        frames = [pd.read_parquet(kept / f"waypoint-{step}.parquet") for step in inputs.waypoints]
        records = pd.concat(frames, ignore_index=True)
        records.to_parquet(out / "waypoints.parquet", index=False)
        if evaluation.stops:
            drawn = records[records["temperature"] > 0]
            passed = (drawn["correct"] / drawn["n"]).groupby(drawn["step"]).mean()
            step = int(passed.index[stopping.plateau(list(passed))])
            write_json(out / STOPPING, {"step": step})
            shutil.copytree(kept / f"policy-{step}", out / STOPPED)
