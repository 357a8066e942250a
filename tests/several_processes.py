"""Runs that several processes train as one does; started by a launcher it makes all of them and keeps what came out.

`several_processes.py FOLDER [CASE ...]`, by `accelerate launch`; the tests call `trained` for the same without one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from dphlib.runtime.processes import Processes
from safetensors.torch import save_file
from small import RewardsFirstToken, policy, sum_problems, tokenizer
from test_trainer import CONFIG, references

from dphlib.models import sharding
from dphlib.models.tuning import prepare
from dphlib.runtime import launched
from dphlib.runtime.files import RunError
from dphlib.runtime.machine import deterministic
from dphlib.sampling.protocol import CopySampler
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import TuningConfig
from dphlib.training import loop as trainer
from dphlib.verify.verifier import SpreadVerifier

# name: method, settings that differ, what is trained, processes that hold shards
CASES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "grpo": ("grpo", {}, "full", False),
    "one prompt, fewer than processes": ("dph_js", {"prompts": 1, "rehearsal_rows": 1}, "full", False),
    "dynamic sampling": ("dapo", {"aggregation": "sequence_mean", "max_draws": 4}, "full", False),
    "online reference": ("rkl", {"token_budget": 64, "importance_cap": 2.0}, "full", False),
    "adapter": ("dph_js_definition", {"top_p": 0.9}, "lora", False),
    "shards": ("dph_f", {"token_budget": 64, "importance_cap": 2.0}, "full", True),
    "shards, recomputed": ("dph_js_definition", {}, "checkpointing", True),
}
LEFT_OUT = ("_s", "_gib")  # times and memory, which belong to the machine


def trained(
    case: str, processes: Processes, folder: Path | None = None, iterations: int = 2
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Weights and log of a case; sharded where it says so and there are several processes."""
    method, changes, kind, shards = CASES[case]
    config = replace(CONFIG, iterations=iterations, prompts=5, rehearsal_rows=3, diagnose_every=2, checkpoint_every=2)
    learner, sampler = policy(), None
    if kind != "full":
        tuning = TuningConfig("lora", rank=2, alpha=4) if kind == "lora" else TuningConfig(gradient_checkpointing=True)
        learner = prepare(learner, tuning)
    if shards and processes.count > 1:
        learner = sharding.shard(learner, processes)
        sampler = CopySampler(policy(), tokenizer(), 1024, processes)
    logs = trainer.train(
        learner, tokenizer(), sum_problems(8), references(), SpreadVerifier(RewardsFirstToken(), processes),
        METHOD_CONFIGS[method], replace(config, **changes), 0, base=policy().requires_grad_(False), sampler=sampler,
        folder=folder, processes=processes,
    )  # fmt: skip
    state = sharding.whole_state(learner)
    kept = [{key: value for key, value in row.items() if not key.endswith(LEFT_OUT)} for row in logs]
    return {name: weight.clone().contiguous() for name, weight in state.items()}, kept


def main(folder: Path, *cases: str) -> None:
    processes = launched.join()
    deterministic(1)
    for case in cases or CASES:
        state, logs = trained(case, processes, folder / "runs" / case)
        if processes.first:
            save_file(state, folder / f"{case}.safetensors")
            (folder / f"{case}.json").write_text(json.dumps(logs))
    try:
        processes.require_equal("test values", processes.rank)
    except RunError as error:
        (folder / f"differ-{processes.rank}").write_text(str(error))
    launched.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
