"""verl's trainer on a CPU: two steps of the launch script's settings on the small base, metrics into a file.

Real: Ray, TransferQueue, data set, agent loop workers, reward workers, replay buffer, advantage, the FSDP2 engine with
its optimizer, metrics. Left out, for want of a GPU: the inference server (`Server` answers) and the delivery of weights
to it. usage: python dry_run.py OUT SETTING ...
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy
import torch
from small import tokenizer
from stored import SMALL, answer_ids

from dphlib.integrations.verl.plugin import schedule
from dphlib.integrations.verl.store import TRAIN, read_store
from dphlib.losses import EXPLORE, NEAR_PERFECT, group_advantages, negative_log_likelihood, partitioned_loss
from dphlib.training.scoring import score_rows
from dphlib.world.templates import sum_answer

STEPS, ROLLOUTS, PROMPTS, REPLAYS = 2, 4, 4, 3
CPU = (
    "actor_rollout_ref.model.use_remove_padding=false",
    "actor_rollout_ref.model.enable_gradient_checkpointing=false",
    "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    "actor_rollout_ref.actor.ppo_mini_batch_size=7",  # times 4: one mini-batch holds the step, whatever is padded
    "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
    "actor_rollout_ref.actor.use_torch_compile=false",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=200",  # several micro-batches
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "actor_rollout_ref.rollout.nnodes=1",
    "reward.num_workers=1",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "trainer.device=cpu",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.resume_mode=disable",
)


def answer(prompt_ids: list[int], session: int) -> tuple[int, ...]:
    """A rollout: the first and third of a prompt's answers are right, the others wrong and longer."""
    first, second = (
        int(word) for word in tokenizer().decode(prompt_ids, skip_special_tokens=True).split() if word.isdigit()
    )
    right = session % 2 == 0
    return answer_ids(sum_answer("direct", "" if right else "1 + 1 = 2 ;", first + second + (0 if right else 1)))


class Server:
    """In place of verl's client of inference servers: a written answer with the base's log-probs."""

    def __init__(self, folder: str) -> None:
        self.folder, self.policy, self.seen = folder, None, Counter()

    async def generate(self, request_id, *, prompt_ids, sampling_params, **_):
        from verl.workers.rollout.replica import TokenOutput

        from dphlib.models.load import load_model

        if self.policy is None:
            self.policy = load_model(self.folder)[0]
        ids = answer(prompt_ids, self.seen[tuple(prompt_ids)])
        self.seen[tuple(prompt_ids)] += 1
        with torch.no_grad():
            scored = score_rows(self.policy, tokenizer().pad_token_id, [(prompt_ids, ids)])[0][0]
        versions = {"min_global_steps": 0, "max_global_steps": 0}
        return TokenOutput(token_ids=list(ids), log_probs=scored.tolist(), extra_fields=versions)


def expected_norm(store: Path, policy) -> float:
    """The gradient's norm of the first step by `dphlib.losses` on the rows that the data set draws first."""
    table, described = read_store(store / TRAIN)
    order = schedule(described.exploration, described.references, PROMPTS, REPLAYS, 1, 0)[0]
    rows = [table.slice(int(place), 1).to_pylist()[0]["extra_info"] for place in order]
    explored = [(row["prompt_ids"], answer(row["prompt_ids"], s)) for row in rows[:PROMPTS] for s in range(ROLLOUTS)]
    stored = [(row["prompt_ids"], tuple(row["answer_ids"])) for row in rows[PROMPTS:]]
    logprobs, mask, _ = score_rows(policy, tokenizer().pad_token_id, explored + stored)
    rewards = torch.tensor([[1.0, 0.0] * (ROLLOUTS // 2)] * PROMPTS)
    ids = torch.tensor([EXPLORE] * len(explored) + [NEAR_PERFECT] * len(stored))[:, None]
    loss, _ = partitioned_loss(
        logprobs,
        loss_id_B_T=torch.where(mask, ids, 0),
        old_logprobs_B_T=logprobs.detach(),
        advantages_B_T=torch.cat([group_advantages(rewards).flatten(), torch.zeros(len(stored))])[:, None],
        ref_logprobs_B_T=logprobs.detach(),
        divergence=negative_log_likelihood,
        eta=0.05,
    )
    loss.backward()
    return float(torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm())


def main(out: Path, settings: list[str]) -> None:
    import ray
    import transfer_queue as tq
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ, PPOTrainerSync
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("vllm", lambda: object)  # looked up, never made: vLLM is not installed here

    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[*settings, *SMALL, *CPU, f"trainer.total_training_steps={STEPS}"])
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, object_store_memory=200 * 2**20)
    tq.init(config.transfer_queue)

    class DryTrainer(PPOTrainerSync):
        _enable_hybrid_replicas = False  # verl's own switch: no inference server beside the trainer

        def on_init_end(self) -> None: ...
        def on_sample_end(self) -> None: ...
        def on_step_end(self) -> None: ...

        def _compute_metrics(self, batch, metrics, *args, **kwargs):
            super()._compute_metrics(batch, metrics, *args, **kwargs)
            plain = {name: float(value) for name, value in metrics.items() if numpy.isscalar(value)}
            with out.open("a") as file:
                file.write(json.dumps(plain) + "\n")

    trainer = DryTrainer(config)
    trainer.init()
    manager = AgentLoopManagerTQ.create(
        config=config,
        llm_client=Server(config.actor_rollout_ref.model.path),
        teacher_client=None,
        reward_loop_worker_handles=trainer.get_reward_handles(),
    )
    trainer.fit(manager)
    tq.close()
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
