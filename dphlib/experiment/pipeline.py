"""What each stage of a run reads and writes; the notebooks and the command line both call these.

    world -> base -> presample -> partition -> train -> evaluate

A stage's folder is named by a hash of its code, settings and inputs (`runs`), so a stage that is there is reused, and a
change anywhere rebuilds just what depends on it. Training and evaluation run as parallel processes, a thread each.
Which runs there are is said in `config` (main runs, ablations) and `studies`; what one of them changes, in `variants`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib.experiment import problems as problem_sets
from dphlib.experiment.store import NotBuilt, Run, Stage, open_run, work_folder
from dphlib.partition import Partition, Reference, partition
from dphlib.runtime.files import append_jsonl, read_jsonl, write_json
from dphlib.runtime.jobs import Job, Progress, report, run_jobs
from dphlib.runtime.machine import derive_seed, deterministic, gpus
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.profiles import Profile
from dphlib.settings.stages import PresampleConfig
from dphlib.settings.variants import RunConfig
from dphlib.types import Group, Problem

# What a stage runs is what its key must change with; `runs.code_version` adds what these import.
_WORLD_CODE = ("world.people_places", "world.sums")
_BASE_CODE = ("training.sft", "models.load")
_SAMPLE_CODE = ("experiment.draws", "experiment.policies", "verify.verifier")
TRAIN_CODE = ("training.loop", "experiment.policies", "experiment.train_run")
_EVALUATE_CODE = ("experiment.evaluate", "experiment.policies")


class Pipeline:
    """The stages of one profile in one run folder.

    Args:
        root: run folder, `artifacts/<profile>`.
        settings: the profile.
        workers: parallel processes; None for one per core, or per GPU where models are on GPUs.
        tracker: where training logs go as well, see `tracking`.
    """

    def __init__(
        self,
        root: Path | str,
        settings: Profile,
        workers: int | None = None,
        tracker: str = "",
    ) -> None:
        self.run: Run = open_run(Path(root), settings.name)
        self.settings, self.workers, self.tracker = settings, workers, tracker
        self._span = (0.0, 1.0)

    # --- world and base ---

    def world(self) -> Stage:
        """Problems and their databases: see `problem_sets`."""
        return self.run.stage(
            "world",
            params=self._problems,
            code=_WORLD_CODE if self.settings.data is None else ("experiment.problems",),
            build=lambda out: problem_sets.build_problems(self.settings, out),
        )

    @cached_property
    def _problems(self) -> dict[str, Any]:
        return problem_sets.recipe(self.settings)

    def databases(self) -> Path:
        """Folder of the problems' databases."""
        return problem_sets.database_folder(self.world().path)

    def suite(self, name: str) -> list[Problem]:
        """The problems of a suite; ValueError for one that is not there or has none."""
        return problem_sets.read_suite(self.world().path, name, self.settings)

    def base(self) -> Stage:
        """The initial policy of the CPU world: a model folder in the Hugging Face layout, and `sft_log.json`.

        For a base of the hub `base.json`, which says what it is; `base_folder` is where its weights are.
        """
        settings = self.settings
        if settings.base is not None:
            from dphlib.experiment import policies

            return self.run.stage(
                "base", params=policies.base_recipe(settings), code=_SAMPLE_CODE,
                build=lambda out: write_json(out / "base.json", settings.base),
            )  # fmt: skip

        def build(out: Path) -> None:
            from dphlib.models import load as model
            from dphlib.training import sft

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

    def base_folder(self) -> Path:
        """The initial policy in the Hugging Face layout."""
        if self.settings.base is None:
            return self.base().path
        from dphlib.experiment import policies

        return policies.base_folder(self.settings)

    # --- pre-sampling and partition ---

    def presample(self, suite: str = "train", config: PresampleConfig | None = None) -> Stage:
        """`groups.jsonl`: k verified answers a problem and one more draw, with the initial policy's log-probs.

        `config` is the profile's unless given; its threshold and number of stored answers do not matter here.
        """
        world, base, config = self.world(), self.base(), config or self.settings.presample

        def build(out: Path) -> None:
            from dphlib.experiment import draws, policies
            from dphlib.sampling.protocol import SamplingConfig
            from dphlib.verify import Verifier

            problems = self.suite(suite)
            deterministic(self.settings.sft.threads)
            policy, tokenizer = policies.load_initial(self.settings, self.base_folder())
            limit = self.settings.train.max_new_tokens
            with (
                Verifier(self.databases(), policies.judges(self.settings)) as verifier,
                Progress("pre-sampling", 2, "draws") as progress,
                draws.sampling(self.settings, self.base_folder(), policy, tokenizer, out) as sampler,
            ):
                for done, (draw, count) in enumerate((("k", config.k), ("extra", 1)), 1):
                    setting = SamplingConfig(count, config.temperature, config.top_p, limit)
                    answers = sampler.sample(problems, setting, derive_seed("presample", config.seed, draw))
                    for group in draws.judged(verifier, problems, answers):
                        append_jsonl(out / "groups.jsonl", {"draw": draw, **group.to_json()})
                    progress.update(done)

        params = {
            "presample": replace(config, threshold=1, answers=1),
            "suite": suite,
            "limit": self.settings.train.max_new_tokens,
            "sampler": self.settings.backend.draws,
        }
        return self.run.stage(f"presample-{suite}", params=params, inputs=(world, base), code=_SAMPLE_CODE, build=build)

    def groups(self, suite: str = "train", draw: str = "k", config: PresampleConfig | None = None) -> list[Group]:
        """The pre-sampled groups of a suite: the k draws, or the `extra` one."""
        problems = {problem.id: problem for problem in self.suite(suite)}
        rows = read_jsonl(self.presample(suite, config).path / "groups.jsonl")
        return [Group.from_json(problems, row) for row in rows if row["draw"] == draw]

    def partition(
        self,
        suite: str = "train",
        threshold: int | None = None,
        config: PresampleConfig | None = None,
        everywhere: bool = False,
    ) -> Stage:
        """`partition.json` (problem ids of both sets) and `references.jsonl` (stored answers with log-probs).

        Args:
            suite: what is partitioned.
            threshold: another one than that of `config`.
            config: pre-sampling, the profile's unless given.
            everywhere: store answers of all prompts, not of D_pef alone.
        """
        config = config or self.settings.presample
        threshold = threshold or config.threshold
        presampled = self.presample(suite, config)

        def build(out: Path) -> None:
            groups, extra = (self.groups(suite, draw, config) for draw in ("k", "extra"))
            parts = partition(groups, threshold, extra, config.answers, everywhere)
            ids = {name: [p.id for p in getattr(parts, name)] for name in ("near_perfect", "exploration")}
            write_json(out / "partition.json", {"threshold": threshold, **ids})
            (out / "references.jsonl").touch()
            for reference in parts.references:
                append_jsonl(out / "references.jsonl", reference.to_json())

        return self.run.stage(
            f"partition-{suite}",
            params={"threshold": threshold, "answers": config.answers, "everywhere": everywhere},
            inputs=(presampled,),
            code=("partition",),
            build=build,
        )

    def parts(self, suite: str = "train", threshold: int | None = None) -> Partition:
        """The partition as problems and references."""
        return self._read_parts(suite, self.partition(suite, threshold))

    def parts_of(self, run: RunConfig) -> Partition:
        """The partition that a run trains on."""
        suite, source = self._source(run)
        return self._read_parts(suite, source)

    def _read_parts(self, suite: str, stage: Stage) -> Partition:
        problems = {p.id: p for p in self.suite(suite)}
        ids = json.loads((stage.path / "partition.json").read_text(encoding="utf-8"))
        references = [Reference.from_json(row) for row in read_jsonl(stage.path / "references.jsonl")]
        near_perfect, exploration = ([problems[i] for i in ids[name]] for name in ("near_perfect", "exploration"))
        return Partition(near_perfect, exploration, references)

    def _source(self, run: RunConfig) -> tuple[str, Stage]:
        """Training suite of a run and the partition of it."""
        suite = "sums_train" if run.setting("domain") == "sums" else "train"
        config = run.presample_config(self.settings.presample)
        return suite, self.partition(suite, config=config, everywhere=run.method_config.rehearses_all)

    # --- training and evaluation ---

    def train(self, runs: Sequence[RunConfig]) -> list[Stage]:
        """Trains every run that is not there yet; see `train_one`."""
        self._run_jobs("train", runs)
        return [self.train_one(run) for run in runs]

    def evaluate(self, runs: Sequence[RunConfig]) -> pd.DataFrame:
        """Records of the base and of every run: `EvalRecord` rows, the way-points of training included."""
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
        """One run: `model/` or `adapter/`, `train_log.jsonl`, and `waypoints.parquet` where it has way-points.

        Main runs of `HEADLINE` have them, and runs of another length. `look`: do not build it.
        """
        params, inputs, build = self._training(run)
        return self.run.stage(
            f"train-{run.name}", params=params, inputs=inputs, code=TRAIN_CODE, build=None if look else build
        )

    def _training(self, run: RunConfig) -> tuple[dict[str, Any], tuple[Stage, ...], Callable[[Path], None]]:
        """Parameters, inputs and build of a run's stage."""
        settings, world, base = self.settings, self.world(), self.base()
        suite, source = self._source(run)
        method, train = settings.method_config(run), run.train_config(settings.train)
        waypoints = settings.waypoints(run)

        def build(out: Path) -> None:
            from dphlib.experiment import train_run

            parts = self._read_parts(suite, source)
            inputs = train_run.Inputs(
                base=self.base_folder(),
                databases=self.databases(),
                prompts=self.suite(suite) if method.trains_on == "all" else parts.exploration,
                references=parts.references,
                waypoint_problems=self.suite("in_domain") if waypoints else [],
                waypoints=waypoints,
                data_text=problem_sets.described(settings, suite, len(self.suite(suite))),
            )
            train_run.build(out, work_folder(out), settings, run, inputs, self._report, self.tracker)

        params = {"run": run, "method": method, "train": train, "waypoints": waypoints, "tuning": settings.tuning}
        params |= {"backend": settings.backend} | ({"evaluation": asdict(settings.evaluation)} if waypoints else {})
        return params, (world, base, source), build

    def evaluate_one(self, run: RunConfig, look: bool = False) -> Stage:
        """`records.parquet` of one run's final policy. `look`: do not build it."""
        trained = self.train_one(run, look)
        suites = dict(self.settings.evaluation.samples)
        if run.setting("domain") == "sums":
            suites = {"out_of_domain": suites["out_of_domain"]}
        step = run.train_config(self.settings.train).iterations
        identity = (run.method, run.variant, run.seed, step)
        return self._evaluate(trained, run.name, identity, suites, look)

    def evaluate_base(self) -> Stage:
        """`records.parquet` of the initial policy."""
        base = self.base()
        return self._evaluate(base, "base", ("base", "main", -1, 0), dict(self.settings.evaluation.samples))

    def _evaluate(
        self,
        source: Stage,
        name: str,
        identity: tuple[str, str, int, int],
        samples: dict[str, int],
        look: bool = False,
    ) -> Stage:
        world, base, config = self.world(), self.base(), self.settings.evaluation
        trained = None if source.path == base.path else source.path

        def build(out: Path) -> None:
            from dphlib.experiment import draws, evaluate, policies
            from dphlib.verify import Verifier

            deterministic(1)
            policy, tokenizer = policies.load_trained(self.settings, self.base_folder(), trained)
            initial, _ = policies.load_initial(self.settings, self.base_folder())
            problems = {suite: self.suite(suite) for suite in samples}
            total = sum(map(len, problems.values()))
            with (
                Verifier(self.databases(), policies.judges(self.settings)) as verifier,
                draws.sampling(self.settings, self.base_folder(), policy, tokenizer, out) as sampler,
            ):
                records = evaluate.evaluate(
                    policy, tokenizer, problems, samples, verifier, evaluate.Identity(*identity),  # type: ignore[arg-type]
                    draw_seed=derive_seed("evaluate", config.draw_seed, name), max_new_tokens=config.max_new_tokens,
                    base=initial, base_samples=config.base_samples, sampler=sampler, styles=self.settings.data is None,
                    on_done=lambda done: self._report(done / total),
                )  # fmt: skip
            records.to_parquet(out / "records.parquet", index=False)

        params = {"evaluation": asdict(replace(config, steps=())), "samples": samples, "identity": [name, identity[-1]]}
        params["sampler"] = self.settings.backend.draws
        return self.run.stage(
            f"evaluate-{name}", params=params, inputs=(world, base, source), code=_EVALUATE_CODE,
            build=None if look else build,
        )  # fmt: skip

    # --- parallel ---

    def _run_jobs(self, kind: str, runs: Sequence[RunConfig]) -> None:
        look = self.train_one if kind == "train" else self.evaluate_one
        runs = [run for run in runs if not _is_built(look, run)]
        if not runs:
            return
        for run in runs:
            self._source(run)  # here, once, not in the runs' processes
        # Slow ones first, so that no core waits for the last: long runs, an online reference, the full prompt set.
        order = sorted(runs, key=self.settings.quickness)
        where = {"root": str(self.run.root), "profile_name": self.settings.name, "kind": kind}
        where |= {"tracker": self.tracker} if self.tracker else {}
        jobs = [Job(run.name, run_job, {**where, "run": asdict(run)}) for run in order]
        self.run_jobs(jobs, kind)

    def run_jobs(self, jobs: Sequence[Job], label: str) -> None:
        """Runs jobs side by side, each on a GPU of its own where the profile's models are on GPUs."""
        devices = gpus() if self.settings.base else []
        workers = self.workers or (1 if self.settings.base and not devices else None)
        run_jobs(jobs, workers=workers, label=label, devices=devices)

    def _report(self, share: float) -> None:
        """Tells how far the running job is, whose present stage is the part `_span` of it."""
        start, end = self._span
        report(start + share * (end - start), 1)


def _is_built(look: Callable[..., Stage], run: RunConfig) -> bool:
    try:
        look(run, look=True)
    except NotBuilt:
        return False
    return True


def run_job(root: str, profile_name: str, kind: str, run: dict[str, Any], tracker: str = "") -> bool:
    """Builds one run's stage in a worker process; what is to be evaluated is trained first where it is not."""
    pipeline, config = Pipeline(root, profile_from_environment(profile_name), tracker=tracker), RunConfig(**run)
    if kind == "evaluate" and not _is_built(pipeline.train_one, config):
        pipeline._span = (0.0, 0.7)
        pipeline.train_one(config)
        pipeline._span = (0.7, 1.0)
    (pipeline.train_one if kind == "train" else pipeline.evaluate_one)(config)
    return True
