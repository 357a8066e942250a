"""The loss and the advantage that `verl.plugin` registers with verl, and the settings of verl that they refuse.

A replayed row is recognised by its reward (`REPLAY_REWARD`) in the advantage and by its advantage (`REPLAY_MARK` times
its weight) in the loss, because no field of verl 0.9.1 reaches both. Its trainer reads a fixed list of fields for the
advantage and hands on rewards, response mask, settings and the groups' ids, which it has drawn itself; `ppo_loss`
selects response mask, old log-probs, advantages and importance weights, and hands the policy loss nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dphlib.losses import EXPLORE, IGNORE, NEAR_PERFECT, divergence_of, group_advantages, partitioned_loss
from dphlib.settings.methods import CONTROL_CONFIGS, METHOD_CONFIGS, MethodConfig

ADVANTAGE = "dph"
REPLAY_REWARD = 2.0**-60
REPLAY_MARK = 2.0**40
_LEAST_MARK = 2.0**26
"""Between the largest advantage and the smallest mark; the advantage's function holds both to it."""

REHEARSING: dict[str, MethodConfig] = {
    name: method
    for name, method in (METHOD_CONFIGS | CONTROL_CONFIGS).items()
    if method.trains_on == "exploration" and method.divergence and not method.needs_reference
}
"""The methods that this module brings to verl; their eta is verl's setting, not the CPU world's."""


def policy_loss(method: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """The loss of a method in the form that verl's `register_policy_loss` takes.

    The function's log-probs and advantages are (rows, response tokens); it divides by the tokens of the mini-batch
    over all processes, which verl hands over, so micro-batches and processes add up.

    Raises:
        ValueError: a method that this module does not bring; when called: an aggregation other than token-mean, or
            importance weights, which bypass mode has no use for.

    >>> policy_loss("grpo")
    Traceback (most recent call last):
    ValueError: method 'grpo' replays nothing; one of alpha_0.2, alpha_0.5, alpha_0.8, dph_f, dph_js, sft_rehearsal
    """
    if method not in REHEARSING:
        raise ValueError(f"method {method!r} replays nothing; one of {', '.join(REHEARSING)}")
    settings = REHEARSING[method]
    divergence = divergence_of(settings.divergence, settings.alpha)

    def loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        if loss_agg_mode != "token-mean":
            raise ValueError(f"actor.loss_agg_mode is {loss_agg_mode!r}; {method} in verl needs 'token-mean'")
        if rollout_is_weights is not None:
            raise ValueError("rollout_correction.rollout_is must be null: bypass mode's ratio corrects already")
        mask = response_mask.bool()
        replayed = mask & (advantages >= _LEAST_MARK)
        weight = float(torch.where(replayed, advantages, 0.0).max()) / REPLAY_MARK if replayed.numel() else 0.0
        here, batch = max(int(mask.sum()), 1), config.global_batch_info
        tokens = (batch.get("batch_num_tokens") or here) / batch.get("dp_size", 1)
        total, stats = partitioned_loss(
            log_prob,
            loss_id_B_T=torch.where(replayed, NEAR_PERFECT, torch.where(mask, EXPLORE, IGNORE)),
            old_logprobs_B_T=old_log_prob,
            advantages_B_T=advantages,
            ref_logprobs_B_T=old_log_prob,
            divergence=divergence,
            eta=weight,
            clip_low=config.clip_ratio_low,
            clip_high=config.clip_ratio_high,
            dual_clip=config.clip_ratio_c,
            denominators=(tokens, tokens),
        )
        return total, {  # verl averages these over micro-batches
            "actor/pg_clipfrac": float(stats.clip_fraction),
            "actor/pg_clipfrac_lower": float(stats.dual_clip_fraction),
            "actor/ppo_kl": float(stats.old_kl),
            "actor/explore_loss": float(stats.explore) * tokens / here,
            "actor/rehearsal_loss": weight * float(stats.near_perfect) * tokens / here,
        }

    return loss


def partitioned_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, index: Sequence[Any], config: Any, **_: Any
) -> tuple[Tensor, Tensor]:
    """Group advantages of the rollouts and marked weights of the replayed rows, as verl's `register_adv_est` takes it.

    Args:
        token_level_rewards, response_mask: (rows, response tokens) of the whole step.
        index: the group of each row.
        config: verl's `algorithm` settings, with `dph.eta` and `dph.rehearsal_rows` added.

    Returns:
        (advantages, returns): the returns are the advantages without weights and marks.

    Raises:
        ValueError: a setting that would make the loss wrong without an error, or a batch without its replayed rows.
    """
    _check_algorithm(config)
    mask = response_mask.bool()
    rewards = token_level_rewards.sum(-1)
    replayed = rewards == REPLAY_REWARD
    expected = int(config.dph.rehearsal_rows)
    if int(replayed.sum()) != expected:
        raise ValueError(
            f"{int(replayed.sum())} rows of this step are replayed, {expected} were asked for; the log of the agent"
            " loop workers says why they failed, or data.custom_cls is not dphlib's PartitionedDataset"
        )
    groups: dict[Any, list[int]] = {}
    for row in torch.nonzero(mask.any(-1) & ~replayed).flatten().tolist():  # verl's padding rows have no token
        groups.setdefault(index[row], []).append(row)
    returns = torch.zeros_like(rewards)
    if groups:
        rewards_P_G = rewards.new_full((len(groups), max(map(len, groups.values()))), math.nan)
        for place, rows in enumerate(groups.values()):
            rewards_P_G[place, : len(rows)] = rewards[rows]
        scale: Literal["std", "none"] = "std" if config.get("norm_adv_by_std_in_grpo", True) else "none"
        for rows, advantages in zip(groups.values(), group_advantages(rewards_P_G, scale=scale), strict=True):
            returns[rows] = advantages[: len(rows)]
    tokens = mask.sum(-1)
    everything, rehearsed = int(tokens.sum()), int(tokens[replayed].sum())
    explored = returns * (everything / max(everything - rehearsed, 1))
    weight = float(config.dph.eta) * everything / rehearsed
    if not weight * REPLAY_MARK >= 2 * _LEAST_MARK > 2 * float(explored.abs().max()):
        raise ValueError(
            f"the weight of the replayed rows is {weight} (eta {config.dph.eta}) and the largest advantage"
            f" {float(explored.abs().max())}; the one must be at least {2 * _LEAST_MARK / REPLAY_MARK}, the other below"
            f" {_LEAST_MARK:g}: set algorithm.dph.eta, or scale the rewards"
        )
    marked = torch.where(replayed, weight * REPLAY_MARK, explored)
    return marked.unsqueeze(-1) * mask, returns.unsqueeze(-1) * mask


# --- What would go wrong without an error ---------------------------------------------------------------------


def _setting(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name) if config is not None else None
    return config


def _refuse(config: Any, prefix: str, allowed: Mapping[str, Any], why: str = "") -> None:
    for path, needed in allowed.items():
        if (found := _setting(config, path)) != needed:
            raise ValueError(f"{prefix}{path} is {found!r}; DPH in verl needs {needed!r}{why}, see docs/verl.md")


def _check_algorithm(algorithm: Any) -> None:
    _refuse(algorithm, "algorithm.", {"rollout_correction.bypass_mode": True}, ": it carries reference log-probs")
    unset = dict.fromkeys(("rollout_correction.rollout_is", "rollout_correction.rollout_rs"))
    _refuse(algorithm, "algorithm.", {**unset, "use_kl_in_reward": False, "filter_groups.enable": False})
    for path in ("dph.eta", "dph.rehearsal_rows"):
        if not ((found := _setting(algorithm, path)) or 0) > 0:
            raise ValueError(f"algorithm.{path} is {found!r}; it must be > 0: +algorithm.{path}=...")


def check_settings(config: Any) -> None:
    """Refuses settings of verl under which rehearsal would be wrong, or would not happen, without any error.

    Raises:
        ValueError: names the setting, its value and the one that is needed.
    """
    _check_algorithm(config.algorithm)
    _refuse(config, "", {"trainer.use_v1": True, "trainer.v1.trainer_mode": "sync", "data.shuffle": False})
    _refuse(config, "", {"algorithm.adv_estimator": ADVANTAGE})
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if (mode := actor.policy_loss.loss_mode) not in REHEARSING:
        raise ValueError(f"actor.policy_loss.loss_mode is {mode!r}; with advantage dph one of {', '.join(REHEARSING)}")
    _refuse(actor, "actor.", {"loss_agg_mode": "token-mean", "entropy_coeff": 0, "use_kl_loss": False})
    _refuse(rollout, "rollout.", {"calculate_log_probs": True, "temperature": 1.0, "multi_turn.enable": False})
    if rollout.top_p != 1 and rollout.logprobs_mode.startswith("processed"):
        raise ValueError(
            f"rollout.top_p is {rollout.top_p} with logprobs_mode {rollout.logprobs_mode!r}: the ratio would compare"
            " the policy with its own nucleus; set top_p=1.0, or logprobs_mode=raw_logprobs, the authors' hidden bias"
        )
