"""One of several processes of verl's FSDP2 engine on a CPU: loads a model, shards it, writes its part of a checkpoint.

usage: python -m torch.distributed.run --nproc-per-node N sharded.py OUT SETTING ...
"""

from __future__ import annotations

import sys

import torch
from dry_run import CPU
from stored import SMALL


def main(out: str, settings: list[str]) -> None:
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.engine import EngineRegistry

    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=[*settings, *SMALL, *CPU])
    OmegaConf.resolve(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    torch.distributed.init_process_group("gloo")
    engine = EngineRegistry.new(
        model_type="language_model",
        backend=actor.strategy,
        model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    engine.initialize()
    engine.save_checkpoint(out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
