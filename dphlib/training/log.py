r"""The log of a run: one row an iteration, and what each entry of it means.

`METRICS` is the only place that explains an entry; docs/training_log.md is made from it:

    python -m dphlib.training.log --write
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dphlib.runtime.files import write_text
from dphlib.runtime.machine import gpu_peak_gib, peak_gib
from dphlib.types import Group

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training_log.md"


@dataclass(frozen=True, slots=True)
class Metric:
    """An entry of a log row.

    Args:
        name: its key.
        formula: how it is computed, Markdown with LaTeX.
        unit: of the value.
        expected: what it should look like.
    """

    name: str
    formula: str
    unit: str
    expected: str


_PHASES = {
    "sync_s": ("handing the policy to the sampler", "0 for Transformers, which shares the weights"),
    "sample_s": ("rollouts, fresh answers of JS by definition included", "most of an iteration of a large model"),
    "verify_s": ("judging the rollouts", "small; growth means slow statements or too few workers"),
    "reference_s": ("the online reference", "0 but for RKL and JS by definition"),
    "rescore_s": ("the trainer's log-probs of the sampler's tokens", "0 without importance weights"),
    "update_s": ("forward, backward and optimizer steps", "falls where groups agree"),
}

METRICS: tuple[Metric, ...] = (
    Metric("iteration", "number of the rollout batch, from 1", "-", "every number once"),
    Metric(
        "reward", r"mean of $R_i$ over judged rollouts", "share, 0 to 1",
        "rises, then flattens; DPH's are of other prompts than the baselines', DAPO's of groups whose rewards differ "
        "(at most 7/8 with 8 rollouts), so compare levels of GRPO and RKL, and among the DPH methods, only",
    ),
    Metric(
        "entropy", r"mean over answers of $\operatorname{mean}_t H(\pi_\theta(\cdot \mid x, y_{<t}))$", "nats a token",
        "falls as the policy grows sure; how far is the question of the paper; null with vLLM, which gives none",
    ),
    Metric(
        "kl_to_base",
        r"$\sum_{i,t}(\log\pi_\theta - \log\pi_\mathrm{ref}) / \sum_i \lvert y_i\rvert$ on two rollouts a prompt, "
        "before the update",
        "nats a token", "0 at the start up to sampling noise, then grows; a diagnosis, never a loss; null between "
        "measurements; by the sampler's log-probs, so another program's gap to the trainer (`sampler_kl`) is in it",
    ),
    Metric(
        "response_tokens", r"mean of $\lvert y_i\rvert$", "tokens",
        "moves when one style pushes out the others, for styles differ in length",
    ),
    Metric(
        "loss", r"$\mathcal L_\mathrm{exp} + \eta\,\mathcal L_\mathrm{pef}$, mean of the optimizer steps", "-",
        "no curve to judge by: a policy-gradient loss is not a measure of progress",
    ),
    Metric(
        "loss_explore", r"$\mathcal L_\mathrm{exp}$, RKL's term and entropy bonus included", "-",
        "near 0 in the first step of an iteration, where the ratio is 1 and advantages sum to 0 up to lengths",
    ),
    Metric(
        "loss_near_perfect", r"$\mathcal L_\mathrm{pef}$ before $\eta$", "nats a token",
        "0 in the first step, then small and positive (JS by definition is estimated from fresh answers too and can be "
        "negative); growth without end means that rehearsal is too weak",
    ),
    Metric(
        "grad_norm", r"$\lVert\nabla\mathcal L\rVert_2$ before clipping, mean of the optimizer steps", "-",
        "steady; a spike is an outlier batch; 0 when nothing was learnt from",
    ),
    Metric(
        "lr", r"learning rate of the last step: `train.lr` times $\min(1, \text{step} / \text{warm-up steps})$", "-",
        "a line up to `train.lr` in the warm-up, then constant",
    ),
    Metric(
        "clip_fraction", "share of exploration tokens whose clipped branch was the larger loss", "share",
        "small: a few steps a batch leave the policy near the one that was sampled",
    ),
    Metric(
        "dual_clip_fraction", r"share of exploration tokens with $A < 0$ and $\pi_\theta / \pi_\mathrm{old}$ above "
        "`train.dual_clip`",
        "share", "near 0",
    ),
    Metric(
        "old_kl", r"mean of $r - 1 - \log r$, $r = \pi_\theta / \pi_\mathrm{old}$, over exploration tokens",
        "nats a token", "small, below about 0.01; large means steps too large for their rollouts",
    ),
    Metric("truncated", "share of rollouts that the token limit ended", "share", "near 0; a truncated answer is wrong"),
    Metric(
        "informative_groups", "groups whose rewards are not all equal", "prompts",
        "falls as prompts become solved or given up; dynamic sampling (DAPO) refills them",
    ),
    Metric("unjudged", "rollouts without a verdict", "answers", "0"),
    Metric(
        "rl_rows", r"answers in the batch from $\mathcal D_\mathrm{exp}$ (a baseline: all prompts)", "answers",
        "constant, but for dynamic sampling that finds too few groups",
    ),
    Metric(
        "rehearsal_rows", r"stored answers in the batch, and fresh ones of JS by definition", "answers",
        "constant; 0 for a method without a divergence",
    ),
    Metric(
        "reference_tokens", "prompt and answer tokens through an online reference", "tokens",
        "0 but for RKL and JS by definition",
    ),
    Metric(
        "policy_tokens", "prompt and answer tokens passed forward and backward, a prompt counted for each of its rows",
        "tokens", "falls where groups agree, for rows with advantage 0 pass through no model",
    ),
    Metric(
        "tis_mean", r"mean of $w = \min(\pi_\mathrm{old} / \pi_\mathrm{sampler}, \text{cap})$ over learnt tokens", "-",
        "about 1; null without importance weights",
    ),
    Metric("tis_max", r"largest $\pi_\mathrm{old} / \pi_\mathrm{sampler}$ before the cap", "-",
           "a few; thousands mean that the sampler has other weights than the trainer"),
    Metric("tis_truncated", r"share of learnt tokens whose ratio was above the cap", "share", "below about 0.01"),
    Metric("sampler_gap", r"mean of $\lvert\log\pi_\mathrm{old} - \log\pi_\mathrm{sampler}\rvert$", "nats a token",
           "about 0.01 in bfloat16, more over a 4-bit base; a jump means that weights were not delivered"),
    Metric("sampler_kl", r"mean of $r - 1 - \log r$, $r = \pi_\mathrm{old} / \pi_\mathrm{sampler}$: an estimate of "
           r"$\mathrm{KL}(\pi_\mathrm{sampler} \parallel \pi_\mathrm{old})$",
           "nats a token", "about 0.001 in bfloat16; steady over the run"),
    Metric("sampler", "program that drew the rollouts, with its version", "-", "the same in all rows"),
    Metric("adapter_sha256", "hash of the adapter that the rollouts were drawn with", "-",
           "another one in each row that follows an update; null without an adapter file"),
    *(Metric(name, f"wall time of {what}", "seconds", expected) for name, (what, expected) in _PHASES.items()),
    Metric("step_s", "sum of these times", "seconds", "depends on the machine's load; notebook 07 measures cost"),
    Metric("peak_gib", "peak resident memory of the process so far", "GiB",
           "flat after the first iterations"),
    Metric("peak_gpu_gib", "peak memory of torch's tensors on the GPU so far", "GiB",
           "flat after the first iterations; null without a GPU"),
)  # fmt: skip


class Clock:
    """Wall seconds of each phase of an iteration."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_PHASES, 0.0)
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """The time since the last lap belongs to `phase`."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


def log_row(
    iteration: int,
    groups: Sequence[Group],
    rewards: Sequence[Sequence[float | None]],
    losses: Sequence[Any],
    norms: Sequence[float],
    clock: Clock,
    *,
    weights: Mapping[str, float | None],
    sampler: Mapping[str, str | None],
    **counted: Any,
) -> dict[str, Any]:
    """The entries of `METRICS`, in their order.

    Args:
        groups: verified rollouts.
        rewards: of each group, shaped; None for an answer without judgement.
        losses: `losses.PartitionedLossStats` of each optimizer step.
        norms: gradient norm of each optimizer step.
        weights: `importance.ImportanceStats.to_log()`.
        sampler: `sampler.Sampler.record()`.
        counted: the entries that the trainer counts itself.
    """
    total = sum(losses[1:], start=losses[0])
    answers = [answer for group in groups for answer in group.answers]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    entries = {
        "iteration": iteration,
        "reward": mean([v.reward for v in verdicts if v.reward is not None]),
        "entropy": mean([answer.entropy for answer in answers]),
        "response_tokens": mean([len(answer.token_ids) for answer in answers]),
        "loss": float(total.loss) / len(losses),
        "loss_explore": float(total.explore) / len(losses),
        "loss_near_perfect": float(total.near_perfect + total.on_policy_divergence) / len(losses),
        "grad_norm": mean(norms),
        "clip_fraction": float(total.clip_fraction),
        "dual_clip_fraction": float(total.dual_clip_fraction),
        "old_kl": float(total.old_kl),
        "truncated": mean([answer.truncated for answer in answers]),
        "informative_groups": sum(len({r for r in group if r is not None}) > 1 for group in rewards),
        "unjudged": sum(v.reward is None for v in verdicts),
        **weights,
        **sampler,
        **clock.seconds,
        "step_s": sum(clock.seconds.values()),
        "peak_gib": round(peak_gib(), 3),
        "peak_gpu_gib": gpu_peak_gib(),
        **counted,
    }
    return {metric.name: entries[metric.name] for metric in METRICS}


def mean(values: Sequence[float]) -> float | None:
    """None of nothing."""
    return sum(values) / len(values) if values else None


def table() -> str:
    """`METRICS` as a Markdown table."""
    rows = [f"| `{m.name}` | {m.formula} | {m.unit} | {m.expected} |" for m in METRICS]
    return "\n".join(["| entry | formula | unit | what it should look like |", "|---|---|---|---|", *rows])


def document() -> str:
    """docs/training_log.md."""
    return rf"""# What a run logs

One row per iteration in `train_log.jsonl` of each run, one JSON object per line. Sums are over the rollouts $i$ of the
iteration and their tokens $t$; $R_i$ is the verifier's reward, $A$ the group advantage, $\pi_\mathrm{{old}}$ the
trainer's policy before the iteration's updates. An entry that was not measured is null.

`dph train --tracker tensorboard` (or `wandb`, or another tracker of Accelerate's whose package is installed) sends the
numbers of each row there too; TensorBoard's files are in `artifacts/<profile>/stages/tracking`.

This page is made from `dphlib/training/log.py` by `python -m dphlib.training.log --write`.

{table()}
"""


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write_text(DOCUMENT, document())
    else:
        print(document(), end="")
