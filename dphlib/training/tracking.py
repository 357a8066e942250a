"""Who else sees the training log: progress, a plot that is drawn meanwhile, TensorBoard or Weights & Biases.

    dph train --method dph_js --tracker tensorboard

A tracker, of Accelerate's, is a copy for the eye beside `train_log.jsonl`: a run that goes on from a checkpoint sends
its iterations again from there. Its package is not installed with this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib import stats
from dphlib.runtime.files import InputError, unknown
from dphlib.runtime.progress import measured, tell
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import RunConfig

PROJECT = "dph"


@contextmanager
def tracked(name: str, folder: Path, settings: Profile, run: RunConfig) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function to be called with each log row: progress tells its reward, and a tracker gets the numbers of it.

    Rewards, and style entropies at the way-points, go to `progress.hearing` too.

    Args:
        name: of an Accelerate tracker, such as `tensorboard` or `wandb`; "" for none.
        folder: of the run's checkpoints and way-points. TensorBoard's files go beside it, to
            `tracking/<profile>-<run>`, and stay.

    Raises:
        ValueError: a tracker that Accelerate does not know, or whose package is not installed.
    """
    known: set[int] = set()

    def show(row: Mapping[str, Any]) -> None:
        tell(reward_text(run, row))
        if row.get("reward") is not None:
            measured(run.method, run.in_words, row["iteration"], {"reward": row["reward"]})
        _measure_styles(run, folder, known)

    if not name:
        yield show
        _measure_styles(run, folder, known)
        return
    check(name)
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind, title = LOGGER_TYPE_TO_CLASS[name], f"{settings.name}-{run.name}"
    if kind.requires_logging_directory:
        tracker = kind(title, logging_dir=str(folder.parent / "tracking"))
    else:
        tracker = kind(PROJECT, **({"name": title} if name == "wandb" else {}))
    tracker.start()
    try:
        identity = {"profile": settings.name, "method": run.method, "variant": run.variant, "seed": run.seed}
        tracker.store_init_configuration(identity)

        def track(row: dict[str, Any]) -> None:
            show(row)
            numbers = {f"train/{key}": value for key, value in row.items() if isinstance(value, (int, float))}
            tracker.log(numbers, step=row["iteration"])

        yield track
        _measure_styles(run, folder, known)
    finally:
        tracker.finish()


def _measure_styles(run: RunConfig, folder: Path, known: set[int]) -> None:
    """Hands on the style entropy at the way-points that are there by now and are not `known`."""
    for path in folder.glob("waypoint-*.parquet"):
        iteration = int(path.stem.partition("-")[2])
        if iteration in known:
            continue
        known.add(iteration)
        answers = stats.sampled(pd.read_parquet(path))
        if stats.has_styles(answers):
            nats = float(stats.style_entropy(answers)["per_problem_nats"].iloc[0])
            measured(run.method, run.in_words, iteration, {"style_entropy": nats})


def reward_text(run: RunConfig, row: Mapping[str, Any]) -> str:
    """A run and its mean reward in the iteration of a log row, where it explored.

    >>> reward_text(RunConfig("dph_js", "eta=0.05", 3), {"reward": 0.4137})
    'dph_js eta=0.05 seed 3: reward 0.41'
    """
    reward = row.get("reward")
    return run.in_words if reward is None else f"{run.in_words}: reward {reward:.2f}"


def check(name: str) -> None:
    """Raises ValueError for a tracker that cannot be used here, before anything is trained."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    if name not in LOGGER_TYPE_TO_CLASS:
        raise unknown("tracker", name, sorted(LOGGER_TYPE_TO_CLASS))
    if name not in {str(kind) for kind in get_available_trackers()}:
        raise InputError(f"tracker {name}: its package is not installed; pip install {name}, or leave --tracker out")
