"""A sweep of methods x seeds by worker processes, beside the same runs one after another.

    python tests/benchmarks/sweep.py

Four methods x two seeds of the CPU world's model by `jobs.run_jobs`, as a run of all notebooks trains them, with random
weights and a stand-in for the verifier (`measuring`): `--workers` processes with a thread each, against one process
with a thread, and against one process with all of the workers' threads. Starting the processes counts.

Cores that are two threads of one core, or that share what they are fed from, give less than one each: so the machine's
own ceiling is measured beside, by plain torch loops that share nothing, alone and as many at once as there are workers,
before and after. `share` is the sweep's gain as a part of the ceiling.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from measuring import JudgesInTurn, Target, endless_policy, sql_problems, tell, words

from dphlib.experiment.cost import COST_METHODS
from dphlib.runtime.jobs import Job, run_jobs
from dphlib.runtime.machine import cores, deterministic
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.stages import ModelConfig, TrainConfig

SIZES = {
    "cpu": (ModelConfig(), {}),
    "tiny": (ModelConfig(32, 64, 2, 2, 2), {"prompts": 2, "rollouts": 2, "rehearsal_rows": 2}),
}
ANSWER = 20


def train_one(method: str, seed: int, iterations: int, size: str, threads: int) -> dict[str, float]:
    """A training run in a worker."""
    from copy import deepcopy

    from dphlib.partition import Reference
    from dphlib.sampling.protocol import SamplingConfig
    from dphlib.sampling.transformers import TransformersSampler
    from dphlib.training import loop

    deterministic(threads)
    tokenizer, (shape, rows) = words(), SIZES[size]
    policy = endless_policy(shape, tokenizer)
    base = deepcopy(policy).requires_grad_(False)
    problems = sql_problems(96)
    rehearsed = problems[64:]
    drawn = TransformersSampler(policy, tokenizer).sample(rehearsed, SamplingConfig(1, 1.0, 1.0, ANSWER), 1)
    references = [Reference(p, a.token_ids, a.logprobs) for p, (a,) in zip(rehearsed, drawn, strict=True)]
    config = TrainConfig(iterations=iterations, max_new_tokens=ANSWER, **rows)
    arguments = (policy, tokenizer, problems[:64], references, JudgesInTurn(), METHOD_CONFIGS[method], config, seed)
    logs = loop.train(*arguments, base=base)
    return {"train_s": sum(log["step_s"] for log in logs)}


def plain_loop(steps: int) -> dict[str, float]:
    """Training of a small network in plain torch, in a worker: what two processes at once can get of this machine."""
    import torch

    torch.set_num_threads(1)
    network = torch.nn.Sequential(torch.nn.Linear(128, 256), torch.nn.SiLU(), torch.nn.Linear(256, 128))
    optimizer = torch.optim.AdamW(network.parameters())
    inputs = torch.randn(2048, 128)
    start = time.perf_counter()
    for _ in range(steps):
        (network(inputs) - inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"loop_s": time.perf_counter() - start}


def sweep(options: argparse.Namespace, workers: int, threads: int) -> dict[str, Any]:
    """All runs; slow methods first, as `stages` orders them."""
    from sweep import train_one  # of the module that workers import, not of this script

    order = sorted(COST_METHODS, key=lambda name: (not METHOD_CONFIGS[name].needs_reference, name))
    fixed = {"iterations": options.iterations, "size": options.size, "threads": threads}
    jobs = [
        Job(f"{method}-{seed}", train_one, {"method": method, "seed": seed, **fixed})
        for method in order
        for seed in range(options.seeds)
    ]
    start = time.perf_counter()
    results = run_jobs(jobs, workers=workers, label="sweep")
    wall_s = time.perf_counter() - start
    training_s = sum(result["train_s"] for result in results)
    return {"processes": workers, "threads": threads, "wall_s": wall_s, "training_s": training_s}


def ceiling(options: argparse.Namespace) -> float:
    """How many times as much work `workers` independent loops at once do in a second as one alone."""
    from sweep import plain_loop

    arguments = {"steps": options.loop_steps}
    (alone,) = run_jobs([Job("alone", plain_loop, arguments)], workers=1, label="loop")
    jobs = [Job(f"beside-{i}", plain_loop, arguments) for i in range(options.workers)]
    beside = run_jobs(jobs, workers=options.workers, label="loops")
    return sum(alone["loop_s"] / one["loop_s"] for one in beside)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--loop-steps", type=int, default=500)
    options = parser.parse_args(arguments)
    before = ceiling(options)
    together = sweep(options, options.workers, 1)
    alone = sweep(options, 1, 1)
    threaded = sweep(options, 1, options.workers)
    most = (before + ceiling(options)) / 2
    rows = []
    for row in (alone, threaded, together):
        gain = row["wall_s"] / together["wall_s"]
        rows.append({**row, "together_faster_by": gain, "ceiling": most, "share": gain / most})
    targets = [
        Target("sweep by workers, faster than one run after another by", rows[0]["together_faster_by"], 1.7, False)
    ]
    note = f"machine's ceiling by independent loops: {most:.3f} for {options.workers} at once"
    tell("sweep", vars(options), rows, targets, [note])
    return 0


if __name__ == "__main__":
    sys.exit(main())
