"""The registered loss and advantage, called as verl's trainer and workers call them, against `dphlib.losses`."""

from __future__ import annotations

import numpy
import pytest
import torch

from dphlib.integrations.verl.loss import REHEARSING, REPLAY_REWARD, check_settings
from dphlib.losses import EXPLORE, IGNORE, NEAR_PERFECT, divergence_of, group_advantages, partitioned_loss

pytestmark = pytest.mark.verl
ETA, GROUPS, SAMPLES, REPLAYS, LONGEST = 0.3, 3, 4, 5, 7


class Batch:
    """Rollouts of some groups and replayed rows, of different lengths, as verl's advantage gets them (padded)."""

    def __init__(self, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        self.rows = rows = GROUPS * SAMPLES + REPLAYS
        lengths = torch.randint(1, LONGEST + 1, (rows,), generator=random)
        self.mask = torch.arange(LONGEST) < lengths[:, None]
        # far from each other: ratios beyond the clip and the dual clip, d of both signs
        self.old = -2 * torch.rand(rows, LONGEST, generator=random) * self.mask
        self.new = ((self.old + torch.randn(rows, LONGEST, generator=random)).clamp(max=0) * self.mask).requires_grad_()
        self.replayed = torch.arange(rows) >= GROUPS * SAMPLES
        self.rewards = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
        scores = torch.cat([self.rewards.flatten(), torch.full((REPLAYS,), REPLAY_REWARD)])
        self.token_rewards = torch.zeros(rows, LONGEST)
        self.token_rewards[torch.arange(rows), lengths - 1] = scores
        groups = [f"g{i}" for i in range(GROUPS) for _ in range(SAMPLES)] + [f"r{i}" for i in range(REPLAYS)]
        self.uid = numpy.array(groups, dtype=object)
        self.lengths, self.prompt_lengths = lengths, torch.randint(1, 4, (rows,), generator=random)

    def expected(self, method: str) -> torch.Tensor:
        """The loss of `dphlib.losses` over the whole batch: two means, eta."""
        settings = REHEARSING[method]
        advantages = torch.cat([group_advantages(self.rewards).flatten(), torch.zeros(REPLAYS)])
        ids = torch.where(self.replayed[:, None], NEAR_PERFECT, EXPLORE).where(self.mask, IGNORE)
        loss, stats = partitioned_loss(
            self.new,
            loss_id_B_T=ids,
            old_logprobs_B_T=self.old,
            advantages_B_T=advantages[:, None],
            ref_logprobs_B_T=self.old,
            divergence=divergence_of(settings.divergence, settings.alpha),
            eta=ETA,
            clip_low=0.2,
            clip_high=0.28,
            dual_clip=3.0,
        )
        assert float(stats.clip_fraction) > 0 and float(stats.dual_clip_fraction) > 0, "both clips bite"
        return loss


def advantages_of(batch: Batch, config) -> torch.Tensor:
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    fields = {"token_level_rewards": batch.token_rewards, "response_mask": batch.mask.long()}
    data = DataProto(batch=TensorDict(fields, batch_size=batch.rows), non_tensor_batch={"uid": batch.uid})
    keys = [f"{uid}_{row}_0" for row, uid in enumerate(batch.uid)]
    data = compute_advantage_for_multi_trajectories(
        data, batch_keys=keys, adv_estimator=config.algorithm.adv_estimator, config=config.algorithm
    )
    return data.batch["advantages"]


def nested(rows) -> torch.Tensor:
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def verl_loss(batch: Batch, rows, advantages, actor, processes: int):
    """verl's own `ppo_loss` on some rows of the batch, in the form in which its workers get a micro-batch."""
    from verl.utils import tensordict_utils as tu
    from verl.workers.utils.losses import ppo_loss

    def per_row(padded):
        return nested(padded[row, : batch.lengths[row]].detach() for row in rows)

    data = tu.get_tensordict(
        {
            "prompts": nested(torch.ones(int(batch.prompt_lengths[row]), dtype=torch.long) for row in rows),
            "responses": nested(torch.ones(int(batch.lengths[row]), dtype=torch.long) for row in rows),
            "response_mask": per_row(batch.mask.long()),
            "old_log_probs": per_row(batch.old),
            "advantages": per_row(advantages),
        },
        {"dp_size": processes, "batch_num_tokens": int(batch.mask.sum()), "global_batch_size": batch.rows},
    )
    values = []  # a model's output stands a token before the token that it scores
    for row in rows:
        before, after = torch.full((int(batch.prompt_lengths[row]) - 1,), -99.0), torch.full((1,), -99.0)
        values.append(torch.cat([before, batch.new[row, : batch.lengths[row]], after]))
    return ppo_loss(config=actor, model_output={"log_probs": nested(values)}, data=data)


@pytest.mark.parametrize("method", REHEARSING)
def test_registered_loss_equals_ours_however_rows_are_split(configure, method):
    from verl.utils.config import omega_conf_to_dataclass

    config = configure(f"algorithm.dph.eta={ETA}", f"algorithm.dph.rehearsal_rows={REPLAYS}", method=method)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    batch = Batch()
    expected = batch.expected(method)
    (wanted,) = torch.autograd.grad(expected, batch.new)
    advantages = advantages_of(batch, config)
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(1)).tolist()
    for processes, size in ((1, batch.rows), (1, 1), (2, 4)):
        parts = [order[start : start + size] for start in range(0, batch.rows, size)]
        # verl averages the gradients of processes
        total = sum(verl_loss(batch, rows, advantages, actor, processes)[0] for rows in parts) / processes
        (gradient,) = torch.autograd.grad(total, batch.new)
        assert float(total.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-5)


def test_logged_parts_are_the_two_losses(configure):
    from verl.utils.config import omega_conf_to_dataclass

    config = configure(f"algorithm.dph.eta={ETA}", f"algorithm.dph.rehearsal_rows={REPLAYS}")
    batch = Batch()
    loss, metrics = verl_loss(
        batch,
        range(batch.rows),
        advantages_of(batch, config),
        omega_conf_to_dataclass(config.actor_rollout_ref.actor),
        1,
    )
    logged = {name: metric.aggregate() for name, metric in metrics.items()}
    assert logged["actor/explore_loss"] + logged["actor/rehearsal_loss"] == pytest.approx(float(loss), abs=1e-6)
    assert logged["actor/pg_loss"] == pytest.approx(float(loss), abs=1e-6)
    assert logged["actor/rehearsal_loss"] > 0.01 and logged["actor/pg_clipfrac"] > 0


def test_a_step_without_its_stored_answers_is_an_error_not_plain_grpo(configure):
    config = configure(f"algorithm.dph.rehearsal_rows={REPLAYS}")
    batch = Batch()
    batch.token_rewards[-1] = 0
    with pytest.raises(ValueError, match="4 rows of this step are replayed, 5 were asked for"):
        advantages_of(batch, config)


@pytest.mark.parametrize("eta", ["1e-9", "0"])
def test_a_weight_that_the_mark_cannot_carry_is_refused(configure, eta):
    config = configure(f"algorithm.dph.eta={eta}", f"algorithm.dph.rehearsal_rows={REPLAYS}")
    with pytest.raises(ValueError, match="eta"):
        advantages_of(Batch(), config)


def test_launch_settings_are_verls_and_pass_its_own_check(configure):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = configure(small=False)
    assert not need_critic(config) and not need_reference_policy(config)
    validate_config(config, use_reference_policy=False, use_critic=False)
    check_settings(config)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    rows = 128 * 16 + 256
    assert actor.ppo_mini_batch_size * rollout.n * 2 == rows and rows % (2 * config.trainer.n_gpus_per_node) == 0
    assert (actor.optim.lr, actor.optim.lr_warmup_steps_ratio) == (1e-6, 0.0)
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.28, 3.0)
    assert (rollout.prompt_length, rollout.response_length, rollout.temperature) == (16000, 4096, 1.0)
    assert (config.algorithm.dph.eta, config.algorithm.dph.rehearsal_rows) == (0.2, 256)
    assert configure(method="dph_f").algorithm.dph.eta == 0.05


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("algorithm.rollout_correction.bypass_mode=false", "it carries reference log-probs"),
        ("algorithm.rollout_correction.rollout_is=token", "rollout_is is 'token'"),
        ("algorithm.use_kl_in_reward=true", "use_kl_in_reward is True"),
        ("algorithm.filter_groups.enable=true", "filter_groups.enable is True"),
        ("algorithm.adv_estimator=grpo", "adv_estimator is 'grpo'; DPH in verl needs 'dph'"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla", "loss_mode is 'vanilla'; .* dph_js"),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean", "needs 'token-mean'"),
        ("actor_rollout_ref.actor.entropy_coeff=0.01", "entropy_coeff is 0.01"),
        ("actor_rollout_ref.actor.use_kl_loss=true", "use_kl_loss is True"),
        ("actor_rollout_ref.rollout.calculate_log_probs=false", "calculate_log_probs is False"),
        ("actor_rollout_ref.rollout.temperature=0.7", "temperature is 0.7"),
        ("actor_rollout_ref.rollout.top_p=0.9", "its own nucleus"),
        ("trainer.use_v1=false", "use_v1 is False"),
        ("trainer.v1.trainer_mode=separate_async", "needs 'sync'"),
        ("data.shuffle=true", "data.shuffle is True"),
        ("algorithm.dph.eta=0", "must be > 0"),
    ],
)
def test_settings_that_would_go_wrong_in_silence_are_refused_by_name(configure, setting, says):
    with pytest.raises(ValueError, match=says):
        check_settings(configure(setting))


def test_the_authors_nucleus_is_possible_with_log_probs_without_it(configure):
    check_settings(
        configure("actor_rollout_ref.rollout.top_p=0.9", "actor_rollout_ref.rollout.logprobs_mode=raw_logprobs")
    )
