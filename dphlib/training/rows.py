"""What an iteration learns from: draws of prompts and stored answers, and answers as rows with advantages.

1. An answer without judgement gets no advantage and is left out of its group's mean.
2. DAPO's overlong shaping lowers the reward by up to 1 in the last tokens before the limit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dphlib.losses import EXPLORE, NEAR_PERFECT, ON_POLICY_DIVERGENCE, Denominators, group_advantages
from dphlib.partition import Reference
from dphlib.rivals import RIVALS, Answers
from dphlib.settings.methods import MethodConfig
from dphlib.settings.stages import TrainConfig
from dphlib.training.packing import TokenRow
from dphlib.types import Answer, Group


@dataclass(slots=True)
class Row:
    """One answer to learn from; log-probs in nats, one for each answer token.

    Args:
        drawn_logprobs: by the sampler, under the policy before the iteration's updates.
        ref_logprobs: under the initial policy.
        old_logprobs: as `drawn_logprobs`, by the trainer. Read with importance weights only; empty where the policy
            still is that one, so that the update's own pass gives them.
        kept, old_kl: factors of the advantage and weights of |log pi_theta/pi_old| for each answer token, of a rival
            that tells tokens apart; else empty.
    """

    tokens: TokenRow
    loss_id: int
    advantage: float = 0.0
    drawn_logprobs: Sequence[float] | Tensor = ()
    ref_logprobs: Sequence[float] | Tensor = ()
    old_logprobs: Sequence[float] | Tensor = ()
    kept: Sequence[float] | Tensor = ()
    old_kl: Sequence[float] | Tensor = ()


class Cycle:
    """Endless draws without replacement: every item once, shuffled, then again. An empty one gives nothing."""

    def __init__(self, items: Sequence[Any], seed: int) -> None:
        self._items, self._random = list(items), random.Random(seed)
        self._left: list[int] = []

    def draw(self, count: int) -> list[Any]:
        drawn: list[Any] = []
        while self._items and len(drawn) < count:
            if not self._left:
                self._left = self._random.sample(range(len(self._items)), len(self._items))
            drawn.append(self._items[self._left.pop()])
        return drawn

    def state(self) -> dict[str, Any]:
        """Where the draws have come to, as plain data."""
        return {"random": self._random.getstate(), "left": list(self._left)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state` of the same items."""
        self._random.setstate(state["random"])
        self._left = list(state["left"])


def exploration_rows(
    groups: Sequence[Group], method: MethodConfig, config: TrainConfig
) -> tuple[list[Row], list[list[float | None]]]:
    """Rows still without advantages, and the shaped rewards of each group."""
    rewards = [
        [_shaped(v.reward, a, method, config) for a, v in zip(g.answers, g.verdicts, strict=True)] for g in groups
    ]
    rows = [
        Row((answer.prompt_ids, answer.token_ids), EXPLORE, drawn_logprobs=answer.logprobs)
        for group in groups
        for answer in group.answers
    ]
    return rows, rewards


def set_advantages(
    rows: Sequence[Row], rewards: Sequence[Sequence[float | None]], method: MethodConfig, config: TrainConfig
) -> None:
    """Gives rows, of one prompt side by side, the advantages of their groups' rewards: GRPO's, or by a rival's rule.

    Rows need `ref_logprobs` before where the method has an online reference.
    """
    if not rewards:
        return
    numbers_P_G = torch.tensor([[float("nan") if r is None else r for r in group] for group in rewards])
    standard = partial(group_advantages, scale=config.advantage_scale)
    rule = RIVALS[method.rival].advantages if method.rival else None
    if rule is None:
        found = standard(numbers_P_G).flatten().tolist()
    else:
        answers = Answers(
            numbers_P_G.double().numpy(),
            np.reshape([np.mean(row.drawn_logprobs) for row in rows], numbers_P_G.shape),
            np.reshape([float(sum(row.ref_logprobs)) for row in rows], numbers_P_G.shape) if method.rkl_coef else None,
            method.rkl_coef,
        )
        made_P_G = rule(answers, lambda rewards_P_G: standard(torch.from_numpy(rewards_P_G)).numpy())
        found = made_P_G.ravel().tolist()
    for row, advantage in zip(rows, found, strict=True):
        row.advantage = advantage


def weigh_tokens(batches: Sequence[Sequence[Row]], method: MethodConfig, seed: int) -> None:
    """Gives rows that have advantages the token weights of a rival that tells tokens apart, for each optimizer step.

    By the log-probs of the policy that drew the answers. In the first step that is the policy to be updated: |log
    pi_theta/pi_old| is 0 there but for rounding, whose sign would be its gradient, and has no weight.
    """
    rule = RIVALS[method.rival].tokens if method.rival else None
    if rule is None:
        return
    for part, batch in enumerate(batches):
        rows = [row for row in batch if row.loss_id == EXPLORE]
        if not rows:
            continue
        lengths = [len(row.tokens[1]) for row in rows]
        advantages_N = np.repeat([row.advantage for row in rows], lengths)
        logprobs_N = np.concatenate([np.asarray(row.drawn_logprobs, dtype=float) for row in rows])
        weights = rule(advantages_N, logprobs_N, np.random.default_rng([seed, part]))
        old_kl_N = weights.old_kl_N * (part > 0)
        for row, end in zip(rows, np.cumsum(lengths), strict=True):
            of_row = slice(end - len(row.tokens[1]), end)
            row.kept, row.old_kl = weights.kept_N[of_row].tolist(), old_kl_N[of_row].tolist()


def _shaped(reward: float | None, answer: Answer, method: MethodConfig, config: TrainConfig) -> float | None:
    """DAPO's soft overlong penalty: 0 up to the buffer, then linear, -1 at the token limit."""
    if reward is None or not method.overlong_shaping:
        return reward
    over = len(answer.token_ids) - (config.max_new_tokens - config.overlong_buffer)
    return reward - min(1.0, max(0, over) / config.overlong_buffer)


def rehearsal_rows(stored: Sequence[tuple[Reference, Sequence[int]]]) -> list[Row]:
    """Stored answers, each with its prompt's token ids, and the log-probs that pi_ref gave them."""
    return [
        Row((prompt_ids, reference.token_ids), NEAR_PERFECT, ref_logprobs=reference.logprobs)
        for reference, prompt_ids in stored
    ]


def mini_batches(rollouts: Sequence[Row], rehearsal: Sequence[Row], config: TrainConfig) -> list[list[Row]]:
    """The rows of each optimizer step; rollouts are in groups of `config.rollouts`, one prompt's side by side."""
    count, size = config.mini_batches, config.rollouts if config.whole_groups else 1
    return [
        [row for index, row in enumerate(rollouts) if index // size % count == part] + list(rehearsal[part::count])
        for part in range(count)
    ]


def learning(rows: Sequence[Row], method: MethodConfig) -> list[Row]:
    """The rows that have a gradient: with an advantage of zero only a reverse KL or an entropy bonus gives one."""
    every_row = method.rkl_coef > 0 or method.entropy_coef > 0
    return [row for row in rows if row.loss_id != EXPLORE or row.advantage != 0 or every_row]


def batch_denominators(rows: Sequence[Row], config: TrainConfig) -> Denominators:
    """`losses.count_denominators` of a whole mini-batch, from the rows' lengths: no tensor of all its tokens."""
    counts = []
    for loss_id in (EXPLORE, NEAR_PERFECT, ON_POLICY_DIVERGENCE):
        lengths = [len(row.tokens[1]) for row in rows if row.loss_id == loss_id]
        if config.aggregation == "token_mean":
            counts.append(sum(lengths))
        else:
            counts.append(sum(length > 0 for length in lengths) * (_limit(config) or 1))
    return Denominators(*counts)


def _limit(config: TrainConfig) -> int | None:
    return config.max_new_tokens if config.aggregation == "dr_grpo" else None


def aggregation(config: TrainConfig) -> dict[str, Any]:
    """How `losses.partitioned_loss` is to aggregate token losses."""
    return {"aggregation": config.aggregation, "max_new_tokens": _limit(config)}


def padded(values: Sequence[Sequence[float] | Tensor], mask_B_T: Tensor) -> Tensor:
    """Rows of numbers as a tensor of the mask's shape, on its device, 0 where a row ends."""
    placed = torch.zeros(mask_B_T.shape)
    for index, row in enumerate(values):
        placed[index, : len(row)] = torch.as_tensor(row)
    return placed.to(mask_B_T.device)


def token_count(rows: Sequence[Row]) -> int:
    """Prompt and answer tokens, a prompt counted for each of its rows."""
    return sum(len(row.tokens[0]) + len(row.tokens[1]) for row in rows)
