"""verl's trainer on a CPU: two steps of two mini-batches each by the launch script's settings on the small base.

Real: Ray, TransferQueue, data set, agent loop workers, reward workers, sampler, advantage, the FSDP2 engine with its
optimizer, metrics. Left out, for want of a GPU: the inference server (`Server` answers, after all stored
answers of the step have arrived, as a real one would) and the delivery of weights to it. Writes a line of metrics per
step to OUT, the rows of each mini-batch of the first step to OUT with the suffix .rows.
usage: python dry_run.py OUT SETTING ...
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import numpy
import torch
from small import tokenizer
from stored import SMALL, answer_ids

from dphlib.integrations.verl.sampler import REPLAYED
from dphlib.losses import EXPLORE, NEAR_PERFECT, group_advantages, negative_log_likelihood, partitioned_loss
from dphlib.training.scoring import score_rows
from dphlib.world.templates import sum_answer

STEPS, REPLAYS, MINI_BATCH, ETA = 2, 3, 12, 0.05  # 16 rollouts and 3 replays: verl fills the second up with 5 rows
CPU = (
    "actor_rollout_ref.model.use_remove_padding=false",
    "actor_rollout_ref.model.enable_gradient_checkpointing=false",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype=fp32",
    "+actor_rollout_ref.actor.fsdp_config.mixed_precision.reduce_dtype=fp32",
    "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
    "actor_rollout_ref.actor.use_torch_compile=false",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=1",  # none in the first step: its mini-batches meet the base
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=200",  # several micro-batches
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "actor_rollout_ref.rollout.nnodes=1",
    "reward.num_workers=1",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    "trainer.device=cpu",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    f"trainer.save_freq={STEPS}",
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
        import transfer_queue as tq
        from verl.workers.rollout.replica import TokenOutput

        from dphlib.models.load import load_model

        if self.policy is None:
            self.policy = load_model(Path(self.folder))[0]
        while True:  # rollouts arrive last
            tags = (await tq.async_kv_list("train")).get("train", {}).values()
            if sum(tag.get("status") == "success" for tag in tags) >= REPLAYS:
                break
            await asyncio.sleep(0.05)
        ids = answer(prompt_ids, self.seen[tuple(prompt_ids)])
        self.seen[tuple(prompt_ids)] += 1
        with torch.no_grad():
            scored = score_rows(self.policy, tokenizer().pad_token_id, [(prompt_ids, ids)])[0][0]
        versions = {"min_global_steps": 0, "max_global_steps": 0}
        return TokenOutput(token_ids=list(ids), log_probs=scored.tolist(), extra_fields=versions)


def expected_norm(batches: list[list[dict]], policy) -> float:
    """The mean of the norms of the gradients of a step's mini-batches by `dphlib.losses`, at the base."""
    groups: dict[str, list[dict]] = {}
    for row in (row for rows in batches for row in rows):
        groups.setdefault(row["group"], []).append(row)
    for rows in groups.values():
        for row, value in zip(rows, group_advantages(torch.tensor([[r["reward"] for r in rows]]))[0], strict=True):
            row["advantage"] = float(value)
    norms = []
    for rows in batches:
        logprobs, mask, _ = score_rows(policy, tokenizer().pad_token_id, pairs(rows))
        ids = torch.tensor([NEAR_PERFECT if row["replayed"] else EXPLORE for row in rows])[:, None]
        loss, _ = partitioned_loss(
            logprobs,
            loss_id_B_T=torch.where(mask, ids, 0),
            old_logprobs_B_T=logprobs.detach(),
            advantages_B_T=torch.tensor([[row["advantage"]] for row in rows]),
            ref_logprobs_B_T=logprobs.detach(),
            divergence=negative_log_likelihood,
            eta=ETA,
        )
        policy.zero_grad()
        loss.backward()
        norms.append(float(torch.stack([p.grad.norm() for p in policy.parameters() if p.grad is not None]).norm()))
    return sum(norms) / len(norms)


def pairs(rows: list[dict]) -> list[tuple[list[int], tuple[int, ...]]]:
    return [(row["prompt"], tuple(row["answer"])) for row in rows]


def rows_of(batch) -> list[dict]:
    """What was trained on, as the trainer hands it to its workers; padding is left out."""
    import transfer_queue as tq

    fields = ["prompts", "responses", "rm_scores", "response_mask", "uid", REPLAYED]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    return [
        {
            "prompt": data["prompts"][i].tolist(),
            "answer": data["responses"][i].tolist(),
            "reward": float(data["rm_scores"][i].sum()),
            "group": str(data["uid"][i]),
            "replayed": bool(data[REPLAYED][i]),
            "padding": not bool(data["response_mask"][i].any()),
        }
        for i in range(len(batch))
    ]


def main(out: Path, settings: list[str]) -> None:
    import ray
    import transfer_queue as tq
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1 import AgentLoopManagerTQ, PPOTrainerSync
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    RolloutReplicaRegistry.register("vllm", lambda: object)  # looked up, never made: vLLM is not installed here

    length = [f"trainer.total_training_steps={STEPS}", f"trainer.default_local_dir={out.with_name('checkpoints')}"]
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[*settings, *SMALL, *CPU, *length])
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    ray.init(num_cpus=8, num_gpus=1, include_dashboard=False, object_store_memory=200 * 2**20)
    tq.init(config.transfer_queue)

    class DryTrainer(PPOTrainerSync):
        _enable_hybrid_replicas = False  # verl's own switch: no inference server beside the trainer

        def on_init_end(self) -> None: ...
        def on_sample_end(self) -> None: ...
        def on_step_end(self) -> None: ...

        def _update_actor(self, batch, metrics):
            path = out.with_suffix(".rows")
            if not path.exists():  # one process, no shuffling: mini-batches are stretches of the batch
                rows = rows_of(batch)
                cut = [rows[start : start + MINI_BATCH] for start in range(0, len(rows), MINI_BATCH)]
                path.write_text(json.dumps([[row for row in part if not row["padding"]] for part in cut]))
            return super()._update_actor(batch, metrics)

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
