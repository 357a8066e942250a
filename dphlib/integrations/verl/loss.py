"""The loss and the advantage that `verl.plugin` registers with verl, and the settings of verl that they refuse.

The loss tells rows apart by `rollout_is_weights`, which `verl.sampler` writes: two weights for each row, one of them 0.
The advantage needs to tell nothing apart: a stored answer is a group of one, whose advantage is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from dphlib.integrations.verl.sampler import AS_EXPLORED, AS_REPLAYED
from dphlib.losses import EXPLORE, IGNORE, NEAR_PERFECT, divergence_of, group_advantages, partitioned_loss
from dphlib.runtime.files import RunError
from dphlib.settings.methods import CONTROL_CONFIGS, METHOD_CONFIGS, MethodConfig

ADVANTAGE, SAMPLER = "dph", "PartitionedSampler"

REHEARSING: dict[str, MethodConfig] = {
    name: method
    for name, method in (METHOD_CONFIGS | CONTROL_CONFIGS).items()
    if (method.explores, method.rehearses) == ("exploration", "near_perfect") and not method.needs_reference
}
"""The methods that this module brings to verl; their eta is verl's setting, not the CPU world's."""


def policy_loss(method: str) -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """The loss of a method in the form that verl's `register_policy_loss` takes.

    The function's log-probs and advantages are (rows, response tokens); it divides by the tokens of the mini-batch
    over all processes, which verl hands over, so micro-batches and processes add up.

    Raises:
        ValueError: a method that this module does not bring; when called, an aggregation other than token-mean.
        RunError: when called: no weights of the rows, or log-probs in 16 bit.

    >>> policy_loss("grpo")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: method 'grpo' replays nothing; one of alpha_0.2, alpha_0.5, alpha_0.8, dph_f, dph_js, ...
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
        if rollout_is_weights is None:
            raise RunError(
                "rows have no weights: trainer.v1.sampler.custom_sampler must be dphlib's PartitionedSampler, see"
                " docs/verl.md"
            )
        if log_prob.dtype in (torch.bfloat16, torch.float16):
            raise RunError(
                f"log-probs come in {log_prob.dtype}, too coarse for ratios: flash-attn's cross-entropy is missing; pip"
                ' install "verl[vllm,fsdp]==0.9.1", or train in fp32 (actor.fsdp_config.mixed_precision)'
            )
        mask = response_mask.bool()
        weights = rollout_is_weights.to(log_prob.dtype)
        replayed = mask & (weights[:, AS_REPLAYED, None] > 0)
        weight = float(weights[:, AS_REPLAYED].max()) if len(weights) else 0.0  # of all stored answers of a mini-batch
        here, batch = max(int(mask.sum()), 1), config.global_batch_info
        tokens = (batch.get("batch_num_tokens") or here) / batch.get("dp_size", 1)
        total, stats = partitioned_loss(
            log_prob,
            loss_id_B_T=torch.where(replayed, NEAR_PERFECT, torch.where(mask, EXPLORE, IGNORE)),
            old_logprobs_B_T=old_log_prob,
            advantages_B_T=advantages * weights[:, AS_EXPLORED, None],  # linear in the advantage: a weight of the loss
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
    """`losses.group_advantages` of the rollouts, as verl's `register_adv_est` takes it; 0 for replayed rows.

    Args:
        token_level_rewards, response_mask: (rows, response tokens) of the whole step.
        index: the group of each row.
        config: verl's `algorithm` settings.

    Returns:
        (advantages, returns), which are the same.
    """
    mask = response_mask.bool()
    rewards = token_level_rewards.sum(-1)
    groups: dict[Any, list[int]] = {}
    for row in torch.nonzero(mask.any(-1)).flatten().tolist():  # verl's padding rows have no token
        groups.setdefault(index[row], []).append(row)
    rewards_P_G = rewards.new_full((len(groups), max(map(len, groups.values()))), math.nan)
    for place, rows in enumerate(groups.values()):
        rewards_P_G[place, : len(rows)] = rewards[rows]
    scale: Literal["std", "none"] = "std" if config.get("norm_adv_by_std_in_grpo", True) else "none"
    advantages = torch.zeros_like(rewards)
    for rows, of_group in zip(groups.values(), group_advantages(rewards_P_G, scale=scale), strict=True):
        advantages[rows] = of_group[: len(rows)]
    return advantages.unsqueeze(-1) * mask, advantages.unsqueeze(-1) * mask


# --- What would go wrong without an error ---------------------------------------------------------------------


def _setting(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = config.get(name) if config is not None else None
    return config


def _refuse(config: Any, prefix: str, allowed: Mapping[str, Any], why: str = "") -> None:
    for path, needed in allowed.items():
        if (found := _setting(config, path)) != needed:
            raise RunError(f"{prefix}{path} is {found!r}; DPH in verl needs {needed!r}{why}, see docs/verl.md")


def check_settings(config: Any) -> None:
    """Refuses settings of verl under which rehearsal would be wrong, or would not happen, without any error.

    Raises:
        RunError: names the setting, its value and the one that is needed.
    """
    algorithm = config.algorithm
    _refuse(algorithm, "algorithm.", {"rollout_correction.bypass_mode": True}, ": it carries reference log-probs")
    unset = dict.fromkeys(("rollout_correction.rollout_is", "rollout_correction.rollout_rs"))
    _refuse(algorithm, "algorithm.", {**unset, "use_kl_in_reward": False, "filter_groups.enable": False})
    _refuse(config, "", {"algorithm.adv_estimator": ADVANTAGE})
    _refuse(config, "", {"trainer.use_v1": True, "trainer.v1.trainer_mode": "sync", "trainer.critic_warmup": 0})
    _refuse(config, "", {"data.shuffle": False}, ": the data set shuffles")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if (mode := actor.policy_loss.loss_mode) not in REHEARSING:
        raise RunError(f"actor.policy_loss.loss_mode is {mode!r}; with advantage dph one of {', '.join(REHEARSING)}")
    _refuse(actor, "actor.", {"shuffle": False}, ": the sampler deals stored answers to the mini-batches")
    _refuse(actor, "actor.", {"loss_agg_mode": "token-mean", "entropy_coeff": 0, "use_kl_loss": False})
    _refuse(rollout, "rollout.", {"calculate_log_probs": True, "temperature": 1.0, "multi_turn.enable": False})
    if rollout.top_p != 1 and rollout.logprobs_mode.startswith("processed"):
        raise RunError(
            f"rollout.top_p is {rollout.top_p} with logprobs_mode {rollout.logprobs_mode!r}: the ratio would compare"
            " the policy with its own nucleus; set top_p=1.0, or logprobs_mode=raw_logprobs, the authors' hidden bias"
        )
    _check_mini_batches(config)
    attention = _setting(config.actor_rollout_ref.model, "override_config.attn_implementation") or "flash_attention_2"
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise RunError(
            "flash-attn is not installed, and verl loads models with it and takes log-probs by it: pip install"
            ' "verl[vllm,fsdp]==0.9.1"'
        )


def _check_mini_batches(config: Any) -> None:
    """The sampler's settings against those by which verl cuts a step."""
    sampler, prefix = config.trainer.v1.sampler, "trainer.v1.sampler."
    _refuse(sampler, prefix, {"custom_sampler.name": SAMPLER}, ": or all stored answers fall into one mini-batch")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if actor.strategy != "fsdp":
        _refuse(actor, "actor.", {"strategy": "fsdp2"})
    processes = config.trainer.n_gpus_per_node * config.trainer.nnodes
    needed = {
        "rehearsal_rows": _setting(config, "data.dph.rehearsal_rows"),
        "mini_batch_rows": actor.ppo_mini_batch_size * rollout.n,
        "processes": processes // (_setting(actor, "ulysses_sequence_parallel_size") or 1),
    }
    _refuse(sampler, prefix, {f"sampler_kwargs.{name}": value for name, value in needed.items()})
