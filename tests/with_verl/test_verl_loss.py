"""The registered loss and advantage, called as verl's trainer and workers call them, against `dphlib.losses`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy
import pytest
import torch
from small import tokenizer

from dphlib.integrations.verl.loss import REHEARSING, check_settings
from dphlib.integrations.verl.sampler import WEIGHTS, Step, dealt, mini_batch_of, weights_of
from dphlib.losses import EXPLORE, IGNORE, NEAR_PERFECT, divergence_of, group_advantages, partitioned_loss
from dphlib.runtime.files import RunError

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
        scores = torch.cat([self.rewards.flatten(), torch.zeros(REPLAYS)])
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


def verl_loss(batch: Batch, rows, advantages, actor, processes: int, weights=None, tokens=None):
    """verl's own `ppo_loss` on some rows of a mini-batch, in the form in which its workers get a micro-batch."""
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
            **({} if weights is None else {WEIGHTS: weights[list(rows)]}),
        },
        {"dp_size": processes, "batch_num_tokens": tokens or int(batch.mask.sum()), "global_batch_size": batch.rows},
    )
    values = []  # a model's output stands a token before the token that it scores
    for row in rows:
        before, after = batch.new.new_full((int(batch.prompt_lengths[row]) - 1,), -99), batch.new.new_full((1,), -99)
        values.append(torch.cat([before, batch.new[row, : batch.lengths[row]], after]))
    return ppo_loss(config=actor, model_output={"log_probs": nested(values)}, data=data)


def one_mini_batch(batch: Batch) -> torch.Tensor:
    numbers = numpy.zeros(batch.rows, int)
    return torch.from_numpy(weights_of(numbers, batch.lengths.numpy(), batch.replayed.numpy(), ETA)[0])


@pytest.mark.parametrize("method", REHEARSING)
def test_registered_loss_equals_ours_however_rows_are_split(configure, method):
    from verl.utils.config import omega_conf_to_dataclass

    config = configure(method=method)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    batch = Batch()
    expected = batch.expected(method)
    (wanted,) = torch.autograd.grad(expected, batch.new)
    advantages, weights = advantages_of(batch, config), one_mini_batch(batch)
    order = torch.randperm(batch.rows, generator=torch.Generator().manual_seed(1)).tolist()
    for processes, size in ((1, batch.rows), (1, 1), (2, 4)):
        parts = [order[start : start + size] for start in range(0, batch.rows, size)]
        # verl averages the gradients of processes
        total = sum(verl_loss(batch, rows, advantages, actor, processes, weights)[0] for rows in parts) / processes
        (gradient,) = torch.autograd.grad(total, batch.new)
        assert float(total.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-5)


def test_logged_parts_are_the_two_losses(configure):
    from verl.utils.config import omega_conf_to_dataclass

    config, batch = configure(), Batch()
    loss, metrics = verl_loss(
        batch,
        range(batch.rows),
        advantages_of(batch, config),
        omega_conf_to_dataclass(config.actor_rollout_ref.actor),
        1,
        one_mini_batch(batch),
    )
    logged = {name: metric.aggregate() for name, metric in metrics.items()}
    assert logged["actor/explore_loss"] + logged["actor/rehearsal_loss"] == pytest.approx(
        float(loss.detach()), abs=1e-6
    )
    assert logged["actor/pg_loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert logged["actor/rehearsal_loss"] > 0.01 and logged["actor/pg_clipfrac"] > 0


def test_rows_without_weights_and_log_probs_in_16_bit_are_refused(configure):
    from verl.utils.config import omega_conf_to_dataclass

    config, batch = configure(), Batch()
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    advantages = advantages_of(batch, config)
    with pytest.raises(RunError, match=r"rows have no weights: .* PartitionedSampler"):
        verl_loss(batch, range(batch.rows), advantages, actor, 1)
    batch.new = batch.new.detach().bfloat16()
    with pytest.raises(RunError, match=r"log-probs come in torch.bfloat16.*flash-attn.*verl\[vllm,fsdp\]==0.9.1"):
        verl_loss(batch, range(batch.rows), advantages, actor, 1, one_mini_batch(batch))


# --- The mini-batches of a step ---------------------------------------------------------------------------------


def trained_in(lengths, config, processes: int) -> list[list[int]]:
    """The rows of each mini-batch over all processes, in the order in which verl's trainer and workers form them."""
    from verl.trainer.ppo.v1.trainer_base import KVBatchMeta, PPOTrainer
    from verl.utils import tensordict_utils as tu

    batch = KVBatchMeta(keys=[str(row) for row in range(len(lengths))], tags=[{"seq_len": n} for n in lengths])
    trainer = SimpleNamespace(
        actor_rollout_wg=SimpleNamespace(_dispatch_info={"actor": list(range(processes))}),
        config=config,
        use_critic=False,
        global_steps=1,
        tokenizer=tokenizer(),
    )
    trainer._get_required_batch_multiple = PPOTrainer._get_required_batch_multiple.__get__(trainer)
    actor = config.actor_rollout_ref.actor
    size = actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n // processes
    mini_batches: dict[int, list[int]] = {}
    for chunk in PPOTrainer._balance_batch(trainer, batch, {}).chunk(processes):
        rows = tu.get_tensordict({"row": torch.tensor([int(key) for key in chunk.keys])})
        cut = tu.make_iterator(rows, size, epochs=1, seed=1, dataloader_kwargs={"shuffle": actor.shuffle})
        for number, mini_batch in enumerate(cut):
            mini_batches.setdefault(number, []).extend(mini_batch["row"].tolist())
    return list(mini_batches.values())


def step_of(processes: int, mini_batches: int) -> tuple[Step, list[int], list[bool]]:
    """A step of the launch script's size as it arrives, the stored answers first, and its rows' lengths."""
    random = numpy.random.default_rng(processes)
    prompts = random.integers(800, 4000, 128).repeat(16)
    stored = random.integers(800, 4000, 256) + random.geometric(1 / 200, 256)
    lengths = numpy.concatenate([stored, prompts + random.geometric(1 / 300, 2048).clip(max=4096)])
    step = Step(eta=ETA, rehearsal_rows=256, mini_batch_rows=2304 // mini_batches, processes=processes)
    return step, lengths.tolist(), [row < 256 for row in range(2304)]


@pytest.mark.parametrize(("processes", "mini_batches"), [(1, 2), (8, 2), (8, 4)])
def test_stored_answers_are_dealt_to_the_mini_batches_that_verl_forms(configure, processes, mini_batches):
    step, lengths, replayed = step_of(processes, mini_batches)
    config = configure(f"actor_rollout_ref.actor.ppo_mini_batch_size={step.mini_batch_rows // 16}", small=False)
    as_it_came = trained_in(lengths, config, processes)
    assert sum(replayed[row] for row in as_it_came[0]) == 256, "all stored answers would fall into the first mini-batch"
    order = dealt(lengths, replayed, step)
    assert sorted(order) == list(range(2304))
    in_order = [lengths[row] for row in order]
    formed = trained_in(in_order, config, processes)
    numbers = mini_batch_of(in_order, step)
    for number, rows in enumerate(formed):
        assert sorted(rows) == numpy.flatnonzero(numbers == number).tolist()
        share = sum(replayed[order[row]] for row in rows)
        assert share == 256 / mini_batches


def test_each_mini_batch_of_verl_has_the_loss_of_its_own_two_means(configure):
    from verl.utils.config import omega_conf_to_dataclass

    config = configure(method="dph_f")
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    batch = Batch()
    numbers = numpy.arange(batch.rows) % 2
    weights, told = weights_of(numbers, batch.lengths.numpy(), batch.replayed.numpy(), ETA)
    advantages = advantages_of(batch, config)
    groups = torch.cat([group_advantages(batch.rewards).flatten(), torch.zeros(REPLAYS)])
    replayed_tokens = []
    for number in (0, 1):
        rows = numpy.flatnonzero(numbers == number).tolist()
        mask, kind = batch.mask[rows], torch.where(batch.replayed[rows, None], NEAR_PERFECT, EXPLORE)
        expected, stats = partitioned_loss(
            batch.new[rows],
            loss_id_B_T=kind.where(mask, IGNORE),
            old_logprobs_B_T=batch.old[rows],
            advantages_B_T=groups[rows, None],
            ref_logprobs_B_T=batch.old[rows],
            divergence=divergence_of("forward_kl"),
            eta=ETA,
            clip_high=0.28,
        )
        replayed_tokens.append(int(stats.near_perfect_tokens))
        loss = verl_loss(batch, rows, advantages, actor, 1, torch.from_numpy(weights), tokens=int(mask.sum()))[0]
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-6)
    assert told["dph/rehearsal_tokens/min"] == min(replayed_tokens)
    assert told["dph/rehearsal_tokens/max"] == max(replayed_tokens)


def test_a_mini_batch_without_stored_answers_is_refused():
    tokens, replayed = numpy.array([3, 3, 3, 3]), numpy.array([True, False, False, False])
    with pytest.raises(RunError, match="mini-batch 2 of this step has 2 rows and no rehearsal row among them"):
        weights_of(numpy.array([0, 0, 1, 1]), tokens, replayed, ETA)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eta": 0}, "sampler_kwargs.eta is 0.0; it must be > 0"),
        ({"processes": 5}, "mini_batch_rows is 12, not a multiple of processes, 5"),
        ({"epochs": 5}, "needed: .*'eta', 'mini_batch_rows', 'processes', 'rehearsal_rows'"),
    ],
)
def test_settings_of_the_sampler_that_fit_nothing_are_refused(change, says):
    given = {"eta": 0.2, "rehearsal_rows": 3, "mini_batch_rows": 12, "processes": 1}
    with pytest.raises(RunError, match=says):
        Step.of(given | change)


def test_launch_settings_are_verls_and_pass_its_own_check(configure, monkeypatch):
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    config = configure(small=False)
    assert not need_critic(config) and not need_reference_policy(config)
    validate_config(config, use_reference_policy=False, use_critic=False)
    with pytest.raises(RunError, match=r'flash-attn is not installed.*pip install "verl\[vllm,fsdp\]==0.9.1"'):
        check_settings(config)
    monkeypatch.setattr("dphlib.integrations.verl.loss.find_spec", lambda name: True)
    check_settings(config)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    rows = 128 * 16 + 256
    assert actor.ppo_mini_batch_size * rollout.n * 2 == rows and rows % (2 * config.trainer.n_gpus_per_node) == 0
    assert (actor.optim.lr, actor.optim.lr_warmup_steps_ratio) == (1e-6, 0.0)
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.28, 3.0)
    assert (rollout.prompt_length, rollout.response_length, rollout.temperature) == (16000, 4096, 1.0)
    sampler = config.trainer.v1.sampler.sampler_kwargs
    assert Step.of(sampler) == Step(eta=0.2, rehearsal_rows=256, mini_batch_rows=1152, processes=8)
    assert configure(method="dph_f").trainer.v1.sampler.sampler_kwargs.eta == 0.05


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
        ("actor_rollout_ref.actor.shuffle=true", "actor.shuffle is True; .* deals stored answers"),
        ("trainer.v1.sampler.custom_sampler.name=null", "all stored answers fall into one mini-batch"),
        ("trainer.v1.sampler.sampler_kwargs.processes=2", "processes is 2; DPH in verl needs 1"),
        ("trainer.v1.sampler.sampler_kwargs.mini_batch_rows=8", "mini_batch_rows is 8; DPH in verl needs 12"),
        ("trainer.v1.sampler.sampler_kwargs.rehearsal_rows=4", "rehearsal_rows is 4; DPH in verl needs 3"),
        ("trainer.critic_warmup=1", "critic_warmup is 1; DPH in verl needs 0"),
        ("actor_rollout_ref.actor.strategy=megatron", "strategy is 'megatron'; DPH in verl needs 'fsdp2'"),
    ],
)
def test_settings_that_would_go_wrong_in_silence_are_refused_by_name(configure, setting, says):
    with pytest.raises(RunError, match=says):
        check_settings(configure(setting))


def test_the_authors_nucleus_is_possible_with_log_probs_without_it(configure):
    check_settings(
        configure("actor_rollout_ref.rollout.top_p=0.9", "actor_rollout_ref.rollout.logprobs_mode=raw_logprobs")
    )
