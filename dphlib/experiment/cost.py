"""What an iteration of each method costs: seconds by phase, tokens through each model, peak memory.

Memory is the GPU's where there is one, else the process's. Handing weights to the sampler counts as sampling, the
scoring of what another program drew as update.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib.experiment.pipeline import CODE, Pipeline
from dphlib.experiment.plan import require_memory
from dphlib.runtime.files import write_json
from dphlib.runtime.jobs import Job, report, run_jobs
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.methods import MethodConfig
from dphlib.settings.profiles import Profile
from dphlib.settings.variants import RunConfig

COST_METHODS = ("grpo", "rkl", "dph_f", "dph_js")
_SECONDS = ("sample_s", "verify_s", "reference_s", "update_s", "step_s")
_COLUMNS = (*_SECONDS, "peak_gib", "reference_tokens", "policy_tokens")


def measure_cost(pipeline: Pipeline) -> pd.DataFrame:
    """Time, memory and tokens of an iteration of each of `COST_METHODS` on the same prompts, one after another.

    Each in a process of its own, so that its peak memory is its own (not in `smoke`). The first iteration warms up and
    is left out. One row per iteration: method, step and what the train log has of these.
    """
    world, base, source = pipeline.world(), pipeline.base(), pipeline.partition()
    config = replace(pipeline.settings.train, iterations=pipeline.settings.cost_iterations + 1, diagnose_every=0)

    def build(out: Path) -> None:
        require_memory(pipeline.settings, "training")
        arguments = {"root": str(pipeline.run.root), "profile_name": pipeline.settings.name}
        arguments["iterations"] = config.iterations  # type: ignore[assignment]
        jobs = [Job(method, cost_job, {**arguments, "method": method}) for method in COST_METHODS]
        # A call for each keeps both time and memory apart. One iteration is too few to time: then they may run side
        # by side and share processes; on one GPU they may not.
        alone = pipeline.settings.cost_iterations > 1 or not pipeline.settings.small
        calls = [[job] for job in jobs] if alone else [jobs]
        results = []
        for number, call in enumerate(calls, 1):
            results += run_jobs(call, workers=None, label=f"cost, {number} of {len(calls)}" if alone else "cost")
        write_json(out / "cost.json", [row for rows in results for row in rows])

    params = {"train": config, "methods": {method: _config(pipeline.settings, method) for method in COST_METHODS}}
    params |= {"tuning": pipeline.settings.tuning, "sampler": pipeline.settings.backend.draws}
    stage = pipeline.run.stage("cost", params=params, inputs=(world, base, source), code=CODE["cost"], build=build)
    return pd.DataFrame(json.loads((stage.path / "cost.json").read_text(encoding="utf-8")))


def _config(settings: Profile, method: str) -> MethodConfig:
    return settings.method_config(RunConfig(method, "main", 0))


def cost_job(root: str, profile_name: str, method: str, iterations: int) -> list[dict[str, Any]]:
    """Cost rows of one method, in a process of its own."""
    from dphlib.experiment import train_run

    pipeline = Pipeline(root, settings := profile_from_environment(profile_name))
    config, source = _config(settings, method), pipeline.partition()
    references = pipeline.references("train", source, config)
    inputs = train_run.Inputs(pipeline.base_folder(), pipeline.databases(), pipeline.parts().exploration, references)
    train_config = replace(settings.train, iterations=iterations, diagnose_every=0)
    with train_run.ready(settings, inputs, 0, initial=config.needs_reference) as made:
        logs = made.train(config, train_config, 0, on_iteration=lambda log: report(log["iteration"], iterations))
    return [{"method": method, "step": log["iteration"], **_costs(log)} for log in logs[1:]]


def _costs(log: dict[str, Any]) -> dict[str, Any]:
    costs = {column: log[column] for column in _COLUMNS}
    costs["sample_s"] += log["sync_s"]
    costs["update_s"] += log["rescore_s"]
    if log["peak_gpu_gib"] is not None:
        costs["peak_gib"] = log["peak_gpu_gib"]
    return costs
