"""What each stage of a run reads and writes; the notebooks and the command line both call these.

    world -> base -> presample -> partition -> train -> evaluate, and cost beside them

A stage's folder is named by a hash of its code, settings and inputs (`runs`), so a stage that is there is reused, and a
change anywhere rebuilds just what depends on it. Training and evaluation run as parallel processes, a thread each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib.config import METHOD_CONFIGS, Profile, RunConfig, profile
from dphlib.jobs import Job, Progress, report, run_jobs
from dphlib.partition import Partition, Reference, partition
from dphlib.runs import (
    NotBuilt,
    Run,
    Stage,
    append_jsonl,
    derive_seed,
    deterministic,
    open_run,
    read_jsonl,
    write_json,
)
from dphlib.sampler import SamplingConfig, TransformersSampler
from dphlib.types import Group, Problem

# What a stage runs is what its key must change with; `runs.code_version` adds what these import.
_WORLD_CODE = ("cpuworld", "sums")
_BASE_CODE = ("sft", "model")
_SAMPLE_CODE = ("sampler", "model", "verify")
_TRAIN_CODE = ("trainer", "model")
_EVALUATE_CODE = ("evaluate", "model")

COST_METHODS = ("grpo", "rkl", "dph_f", "dph_js")


class Pipeline:
    """The stages of one profile in one run folder.

    Args:
        root: run folder, `artifacts/<profile>`.
        settings: the profile.
        workers: parallel processes, None for one a core.
    """

    def __init__(self, root: Path | str, settings: Profile, workers: int | None = None) -> None:
        self.run: Run = open_run(Path(root), settings.name)
        self.settings, self.workers = settings, workers

    # --- world and base ---

    def world(self) -> Stage:
        """Databases and problems: `database/<db_id>/<db_id>.sqlite`, `<suite>.json`."""
        from dphlib.cpuworld import build_world

        world = self.settings.world
        return self.run.stage(
            "world", params={"world": asdict(world)}, code=_WORLD_CODE, build=lambda out: build_world(world, out)
        )

    def suite(self, name: str) -> list[Problem]:
        """The problems of a suite.

        Raises:
            ValueError: no such suite, or one without a problem.
        """
        path = self.world().path / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"unknown suite {name!r}; known: {', '.join(self.settings.world.problems)}")
        problems = [Problem.from_json(row) for row in json.loads(path.read_text(encoding="utf-8"))]
        if not problems:
            raise ValueError(f"suite {name!r} has no problem; set its number in the profile's world.problems")
        return problems

    def base(self) -> Stage:
        """The initial policy: a model folder in the Hugging Face layout, and `sft_log.json`."""
        settings = self.settings

        def build(out: Path) -> None:
            from dphlib import model, sft

            deterministic(settings.sft.threads)
            tokenizer = model.build_tokenizer(settings.world)
            policy = model.new_model(settings.model, tokenizer, settings.sft.seed)
            with Progress("supervised fine-tuning", settings.sft.steps, "steps") as progress:
                losses = sft.train(
                    policy, tokenizer, settings.world, settings.sft, lambda step, loss: progress.update(step)
                )
            model.save(policy, tokenizer, out)
            write_json(out / "sft_log.json", {"loss": losses, "parameters": policy.num_parameters()})

        params = {"model": settings.model, "sft": settings.sft, "world": asdict(settings.world)}
        return self.run.stage("base", params=params, code=_BASE_CODE, build=build)

    # --- pre-sampling and partition ---

    def presample(self, suite: str = "train") -> Stage:
        """`groups.jsonl`: k verified answers a problem and one more draw, with the initial policy's log-probs."""
        world, base, config = self.world(), self.base(), self.settings.presample
        problems = self.suite(suite)

        def build(out: Path) -> None:
            from dphlib import model
            from dphlib.verify import Verifier

            deterministic(self.settings.sft.threads)
            policy, tokenizer = model.load(base.path)
            sampler = TransformersSampler(policy, tokenizer)
            limit = self.settings.train.max_new_tokens
            with Verifier(world.path / "database") as verifier, Progress("pre-sampling", 2, "draws") as progress:
                for done, (draw, count) in enumerate((("k", config.k), ("extra", 1)), 1):
                    setting = SamplingConfig(count, config.temperature, config.top_p, limit)
                    answers = sampler.sample(problems, setting, derive_seed("presample", config.seed, draw))
                    for group in verifier.groups(problems, answers):
                        append_jsonl(out / "groups.jsonl", {"draw": draw, **group.to_json()})
                    progress.update(done)

        params = {
            "presample": replace(config, threshold=1),
            "suite": suite,
            "limit": self.settings.train.max_new_tokens,
        }
        return self.run.stage(f"presample-{suite}", params=params, inputs=(world, base), code=_SAMPLE_CODE, build=build)

    def groups(self, suite: str = "train", draw: str = "k") -> list[Group]:
        """The pre-sampled groups of a suite: the k draws, or the `extra` one."""
        problems = {problem.id: problem for problem in self.suite(suite)}
        rows = read_jsonl(self.presample(suite).path / "groups.jsonl")
        return [Group.from_json(problems, row) for row in rows if row["draw"] == draw]

    def partition(self, suite: str = "train", threshold: int | None = None) -> Stage:
        """`partition.json` (problem ids of both sets) and `references.jsonl` (stored answers with log-probs)."""
        threshold = threshold or self.settings.presample.threshold
        presampled = self.presample(suite)

        def build(out: Path) -> None:
            parts = partition(self.groups(suite), threshold, self.groups(suite, "extra"))
            ids = {name: [p.id for p in getattr(parts, name)] for name in ("near_perfect", "exploration")}
            write_json(out / "partition.json", {"threshold": threshold, **ids})
            (out / "references.jsonl").touch()
            for reference in parts.references:
                append_jsonl(out / "references.jsonl", reference.to_json())

        return self.run.stage(
            f"partition-{suite}",
            params={"threshold": threshold},
            inputs=(presampled,),
            code=("partition",),
            build=build,
        )

    def parts(self, suite: str = "train", threshold: int | None = None) -> Partition:
        """The partition as problems and references."""
        stage, problems = self.partition(suite, threshold), {p.id: p for p in self.suite(suite)}
        ids = json.loads((stage.path / "partition.json").read_text(encoding="utf-8"))
        references = [Reference.from_json(row) for row in read_jsonl(stage.path / "references.jsonl")]
        near_perfect, exploration = ([problems[i] for i in ids[name]] for name in ("near_perfect", "exploration"))
        return Partition(near_perfect, exploration, references)

    def _parts_of(self, run: RunConfig) -> tuple[str, int]:
        suite = "sums_train" if run.setting("domain") == "sums" else "train"
        return suite, int(run.setting("threshold") or self.settings.presample.threshold)

    # --- training and evaluation ---

    def train(self, runs: Sequence[RunConfig]) -> list[Stage]:
        """Trains every run that is not there yet; see `train_one` for what a run's folder holds."""
        for suite, threshold in sorted({self._parts_of(run) for run in runs}):
            self.partition(suite, threshold)
        self._run_jobs("train", runs)
        return [self.train_one(run) for run in runs]

    def evaluate(self, runs: Sequence[RunConfig]) -> pd.DataFrame:
        """Records of the base and of every run: `EvalRecord` rows, the way-points of training included."""
        self.train(runs)
        self.evaluate_base()
        self._run_jobs("evaluate", runs)
        frames = [pd.read_parquet(self.evaluate_base().path / "records.parquet")]
        for run in runs:
            frames.append(pd.read_parquet(self.evaluate_one(run).path / "records.parquet"))
            waypoints = self.train_one(run).path / "waypoints.parquet"
            frames += [pd.read_parquet(waypoints)] if waypoints.is_file() else []
        return pd.concat(frames, ignore_index=True)

    def train_logs(self, runs: Sequence[RunConfig]) -> pd.DataFrame:
        """The logs of the runs, an iteration a row, with method, variant and seed."""
        rows = []
        for run in runs:
            identity = {"method": run.method, "variant": run.variant, "seed": run.seed}
            rows += [{**identity, **row} for row in read_jsonl(self.train_one(run).path / "train_log.jsonl")]
        return pd.DataFrame(rows)

    def train_one(self, run: RunConfig, look: bool = False) -> Stage:
        """One run: `model/`, `train_log.jsonl`, and `waypoints.parquet` for a main run. `look`: do not build it."""
        settings, world, base = self.settings, self.world(), self.base()
        suite, threshold = self._parts_of(run)
        source = self.partition(suite, threshold)
        waypoints = settings.evaluation.steps if run.variant == "main" else ()

        def build(out: Path) -> None:
            from dphlib import evaluate, model, trainer
            from dphlib.verify import Verifier

            deterministic(1)
            parts, method = self.parts(suite, threshold), run.method_config
            prompts = self.suite(suite) if method.trains_on == "all" else parts.exploration
            initial, tokenizer = model.load(base.path)
            initial.requires_grad_(False)
            policy, _ = model.load(base.path)
            problems, frames = {"in_domain": self.suite("in_domain")} if waypoints else {}, []

            with Verifier(world.path / "database") as verifier:

                def on_iteration(log: dict[str, Any]) -> None:
                    append_jsonl(out / "train_log.jsonl", log)
                    report(log["iteration"], settings.train.iterations)
                    if log["iteration"] in waypoints:
                        frames.append(
                            evaluate.evaluate(
                                policy, tokenizer, problems, {"in_domain": settings.evaluation.step_samples}, verifier,
                                evaluate.Identity(run.method, run.variant, run.seed, log["iteration"]),
                                draw_seed=derive_seed("waypoint", settings.evaluation.draw_seed, run.name),
                                max_new_tokens=settings.evaluation.max_new_tokens, greedy=False,
                            )
                        )  # fmt: skip

                trainer.train(
                    policy, tokenizer, prompts, parts.references, verifier, method, settings.train, run.seed,
                    base=initial, on_iteration=on_iteration,
                )  # fmt: skip
            model.save(policy, tokenizer, out / "model")
            if frames:
                pd.concat(frames, ignore_index=True).to_parquet(out / "waypoints.parquet", index=False)

        params = {"run": run, "method": run.method_config, "train": settings.train, "waypoints": waypoints}
        params |= {"evaluation": asdict(settings.evaluation)} if waypoints else {}
        return self.run.stage(
            f"train-{run.name}", params=params, inputs=(world, base, source), code=_TRAIN_CODE,
            build=None if look else build,
        )  # fmt: skip

    def evaluate_one(self, run: RunConfig, look: bool = False) -> Stage:
        """`records.parquet` of one run's final policy. `look`: do not build it."""
        trained = self.train_one(run, look)
        suites = dict(self.settings.evaluation.samples)
        if run.setting("domain") == "sums":
            suites = {"out_of_domain": suites["out_of_domain"]}
        elif run.variant != "main":  # Tables 4 and 5 have no column out of domain
            del suites["out_of_domain"]
        return self._evaluate(trained, trained.path / "model", run.method, run.variant, run.seed, suites, look)

    def evaluate_base(self) -> Stage:
        """`records.parquet` of the initial policy."""
        base = self.base()
        return self._evaluate(base, base.path, "base", "main", -1, dict(self.settings.evaluation.samples))

    def _evaluate(
        self,
        source: Stage,
        folder: Path,
        method: str,
        variant: str,
        seed: int,
        samples: dict[str, int],
        look: bool = False,
    ) -> Stage:
        world, base, config = self.world(), self.base(), self.settings.evaluation
        name = method if method == "base" else RunConfig(method, variant, seed).name
        step = 0 if method == "base" else self.settings.train.iterations

        def build(out: Path) -> None:
            from dphlib import evaluate, model
            from dphlib.verify import Verifier

            deterministic(1)
            policy, tokenizer = model.load(folder)
            initial, _ = model.load(base.path)
            problems = {suite: self.suite(suite) for suite in samples}
            total = sum(map(len, problems.values()))
            with Verifier(world.path / "database") as verifier:
                records = evaluate.evaluate(
                    policy, tokenizer, problems, samples, verifier, evaluate.Identity(method, variant, seed, step),
                    draw_seed=derive_seed("evaluate", config.draw_seed, name), max_new_tokens=config.max_new_tokens,
                    base=initial, base_samples=config.base_samples, on_done=lambda done: report(done, total),
                )  # fmt: skip
            records.to_parquet(out / "records.parquet", index=False)

        params = {"evaluation": asdict(replace(config, steps=())), "samples": samples, "identity": [name, step]}
        return self.run.stage(
            f"evaluate-{name}", params=params, inputs=(world, base, source), code=_EVALUATE_CODE,
            build=None if look else build,
        )  # fmt: skip

    # --- cost ---

    def cost(self) -> pd.DataFrame:
        """Time, memory and tokens of an iteration of each of `COST_METHODS` on the same prompts, one after another.

        Each in a process of its own, so that its peak memory is its own. The first iteration warms up and is left out.
        """
        world, base, source = self.world(), self.base(), self.partition()
        config = replace(self.settings.train, iterations=self.settings.cost_iterations + 1, diagnose_every=0)

        def build(out: Path) -> None:
            rows: list[dict[str, Any]] = []
            for method in COST_METHODS:
                arguments = {"root": str(self.run.root), "profile_name": self.settings.name, "method": method}
                arguments["iterations"] = config.iterations
                rows += run_jobs([Job(method, "dphlib.stages:cost_job", arguments)], workers=1, label="cost")[0]
            write_json(out / "cost.json", rows)

        params = {"train": config, "methods": {method: METHOD_CONFIGS[method] for method in COST_METHODS}}
        stage = self.run.stage("cost", params=params, inputs=(world, base, source), code=_TRAIN_CODE, build=build)
        return pd.DataFrame(json.loads((stage.path / "cost.json").read_text(encoding="utf-8")))

    # --- parallel ---

    def _run_jobs(self, kind: str, runs: Sequence[RunConfig]) -> None:
        look = self.train_one if kind == "train" else self.evaluate_one
        runs = [run for run in runs if not _is_built(look, run)]
        if not runs:
            return
        # Slow ones first, so that no core waits for the last: the online reference and the full prompt set cost most.
        order = sorted(
            runs, key=lambda run: (not run.method_config.needs_reference, run.method_config.divergence is None)
        )
        jobs = [
            Job(
                run.name,
                "dphlib.stages:run_job",
                {"root": str(self.run.root), "profile_name": self.settings.name, "kind": kind, "run": asdict(run)},
            )
            for run in order
        ]
        run_jobs(jobs, workers=self.workers, label=kind)


def _is_built(look: Callable[..., Stage], run: RunConfig) -> bool:
    try:
        look(run, look=True)
    except NotBuilt:
        return False
    return True


def run_job(root: str, profile_name: str, kind: str, run: dict[str, Any]) -> bool:
    """Builds one run's stage in a worker process."""
    pipeline = Pipeline(root, profile(profile_name))
    (pipeline.train_one if kind == "train" else pipeline.evaluate_one)(RunConfig(**run))
    return True


def cost_job(root: str, profile_name: str, method: str, iterations: int) -> list[dict[str, Any]]:
    """Cost rows of one method, in a process of its own."""
    from dphlib import model, trainer
    from dphlib.verify import Verifier

    pipeline = Pipeline(root, profile(profile_name))
    config, parts = METHOD_CONFIGS[method], pipeline.parts()
    deterministic(1)
    policy, tokenizer = model.load(pipeline.base().path)
    initial = model.load(pipeline.base().path)[0].requires_grad_(False) if config.needs_reference else None
    train_config = replace(pipeline.settings.train, iterations=iterations, diagnose_every=0)
    with Verifier(pipeline.world().path / "database") as verifier:
        logs = trainer.train(
            policy, tokenizer, parts.exploration, parts.references, verifier, config, train_config, 0, base=initial
        )
    columns = (
        "sample_s",
        "verify_s",
        "reference_s",
        "update_s",
        "step_s",
        "peak_gib",
        "reference_tokens",
        "policy_tokens",
    )
    return [{"method": method, "step": log["iteration"], **{c: log[c] for c in columns}} for log in logs[1:]]
