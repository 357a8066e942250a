"""The log of a run, one row per iteration; docs/training_log.md explains each entry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from dphlib.runtime.machine import gpu_peak_gib, peak_gib
from dphlib.training.importance import ImportanceStats
from dphlib.training.step import Step
from dphlib.types import Group

PHASES = ("sync_s", "sample_s", "verify_s", "reference_s", "rescore_s", "update_s")


class Clock:
    """Wall seconds of each phase of an iteration."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def skip(self) -> None:
        """The time since the last lap belongs to no phase."""
        self._last = time.perf_counter()


def log_row(
    iteration: int,
    groups: Sequence[Group],
    rewards: Sequence[Sequence[float | None]],
    steps: Sequence[Step],
    clock: Clock,
    *,
    kl_to_base: float | None,
    lr: float,
    rounds: int,
    rl_rows: int,
    rehearsal_rows: int,
    reference_tokens: int,
    sampler: Mapping[str, str | None],
) -> dict[str, Any]:
    """The entries of an iteration.

    Args:
        groups: verified rollouts.
        rewards: of each group, shaped; None for an answer without judgement.
        steps: the iteration's optimizer steps.
        rounds: of rollouts that the batch took.
        sampler: `protocol.Sampler.record()`.
    """
    losses, norms, policy_tokens, weights = zip(*steps, strict=True)
    total = sum(losses[1:], start=losses[0])
    answers = [answer for group in groups for answer in group.answers]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    return {
        "iteration": iteration,
        "reward": mean([v.reward for v in verdicts if v.reward is not None]),
        "entropy": mean([answer.entropy for answer in answers]),
        "kl_to_base": kl_to_base,
        "response_tokens": mean([len(answer.token_ids) for answer in answers]),
        "loss": float(total.loss) / len(losses),
        "loss_explore": float(total.explore) / len(losses),
        "loss_near_perfect": float(total.near_perfect + total.on_policy_divergence) / len(losses),
        "grad_norm": mean(norms),
        "lr": lr,
        "clip_fraction": float(total.clip_fraction),
        "dual_clip_fraction": float(total.dual_clip_fraction),
        "old_kl": float(total.old_kl),
        "truncated": mean([answer.truncated for answer in answers]),
        "informative_groups": sum(len({r for r in group if r is not None}) > 1 for group in rewards),
        "unjudged": sum(v.reward is None for v in verdicts),
        "rounds": rounds,
        "groups": len(groups),
        "rl_rows": rl_rows,
        "rehearsal_rows": rehearsal_rows,
        "reference_tokens": reference_tokens,
        "policy_tokens": sum(policy_tokens),
        **sum(weights, start=ImportanceStats()).to_log(),
        **sampler,
        **clock.seconds,
        "step_s": sum(clock.seconds.values()),
        "peak_gib": round(peak_gib(), 3),
        "peak_gpu_gib": gpu_peak_gib(),
    }


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None
