"""What each stage of a run reads and writes; the notebooks and the command line both call these.

    world -> base -> presample -> partition -> train -> evaluate

A stage's folder is named by a hash of its code, settings and inputs (`store`), so a stage that is there is reused, and
a change anywhere rebuilds just what depends on it. Training and evaluation run as parallel processes, a thread each.
Which runs there are is said in `settings.profiles` (main runs, ablations) and `settings.studies`; what one of them
changes, in `settings.variants`. Nothing is computed here: each stage's build is a function of a module in `CODE`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from dphlib.experiment import bases
from dphlib.experiment import problems as problem_sets
from dphlib.experiment.plan import Action, require_memory
from dphlib.experiment.store import Run, Stage, open_run, work_folder
from dphlib.partition import Partition, Reference, partition
from dphlib.runtime.files import UserError, append_jsonl, read_jsonl, say, write_json
from dphlib.runtime.jobs import Job, run_jobs
from dphlib.runtime.machine import cores, derive_seed, gpus, pin_kernels
from dphlib.runtime.progress import Progress, report, tell
from dphlib.runtime.quiet import quieten
from dphlib.scores import with_bases
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.methods import MethodConfig
from dphlib.settings.profiles import Profile
from dphlib.settings.stages import PresampleConfig, PretrainedConfig
from dphlib.settings.variants import MAIN, RunConfig
from dphlib.types import VALIDATION, Group, Problem

CODE = {
    "world": ("world.people_places", "world.sums"),
    "data": ("experiment.problems",),
    "base": bases.MODULES,
    "lm world": ("world.people_places", "world.sums", "models.pretrained"),
    "lm base": ("training.finetune",),
    "presample": ("experiment.draws",),
    "partition": ("partition",),
    "references": ("experiment.policies",),
    "train": ("experiment.train_run",),
    "evaluate": ("experiment.evaluate",),
    "temperature": ("experiment.tempered",),
    "cost": ("experiment.train_run", "experiment.cost"),
    "answers": ("experiment.fresh_answers",),
}
"""Stage -> the modules that make its numbers; `store.code_version` adds those that they import."""


Needed = Mapping[Action, Callable[..., object]]
"""What needs memory -> what makes its stage, called with a pipeline."""


class _Finished(Run):
    """A run's folder in which stages are looked for and none is built."""

    __slots__ = ()

    def stage(self, name: str, *, build: Callable[[Path], None] | None, **recipe: Any) -> Stage:
        return Run.stage(self, name, build=None, **recipe)


class Pipeline:
    """The stages of one profile in one run folder.

    Args:
        root: run folder, `artifacts/<profile>`.
        settings: the profile.
        workers: parallel processes; None for one per core, or per GPU where models are on GPUs.
        tracker: where training logs go as well, see `tracking`.

    On a CPU profile the instructions that torch computes with are pinned, see `machine.pin_kernels`: torch should not
    have been imported before.
    """

    def __init__(self, root: Path | str, settings: Profile, workers: int | None = None, tracker: str = "") -> None:
        pin_kernels(instructions=settings.small)
        quieten()
        self.run: Run = open_run(Path(root), settings.name)
        self.settings, self.workers, self.tracker = settings, workers, tracker
        self._shipped: dict[int, bases.Shipped | None] = {}
        self._span = (0.0, 1.0)

    def looking(self) -> Pipeline:
        """The same pipeline, which builds nothing: a stage that is not there raises `NotBuilt`."""
        other = copy(self)
        other.run = _Finished(self.run.root, self.run.profile_name)
        return other

    def lacks(self, stage: Callable[[Pipeline], object]) -> bool:
        """Whether a stage is not there, found out without building anything.

        Neither is one whose inputs cannot be read: what is wrong with them is said when it is built.
        """
        try:
            stage(self.looking())
        except UserError:
            return True
        return False

    def require_memory(self, needed: Needed) -> None:
        """Refuses a GPU that is too small for a stage that is not there yet, before anything is made.

        Raises:
            RunError: see `plan.require_memory`.
        """
        for action, stage in needed.items():
            if self.settings.base is not None and self.lacks(stage):
                require_memory(self.settings, action)

    def of(self, run: RunConfig) -> Pipeline:
        """The pipeline of a run: this one, or for a run with another share of hidden problems one of that world."""
        share, world = run.setting("hidden"), self.settings.world
        if share is None or world.problem_shares is not None:
            return self
        evaluation = self.settings.evaluation
        samples = {"in_domain": evaluation.samples["in_domain"]}
        other = copy(self)
        other.__dict__.pop("_problems", None)
        other.settings = replace(
            self.settings, world=world.mixed(share), evaluation=replace(evaluation, samples=samples)
        )
        return other

    # --- world and base ---

    def world(self) -> Stage:
        """Problems and their databases: see `problem_sets`."""
        return self.run.stage(
            "world",
            params=self._problems,
            code=CODE["data" if self.settings.data else "lm world" if self.settings.pretrained else "world"],
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

    def base(self, index: int = 0) -> Stage:
        """An initial policy: for the CPU world a model folder in the Hugging Face layout, and `sft_log.json`.

        Small, and shipped or trained here (see `bases`), or a pretrained model that is fine-tuned; an interrupted
        fine-tuning goes on from its last checkpoint.

        For a base of the hub `base.json`, which says what it is; `base_folder` is where its weights are.

        Args:
            index: which of the profile's bases; `Profile.base_index` of a run's seed.

        Raises:
            RunError: a shipped base does not fit the profile, or is damaged.
        """
        settings = self.settings
        if settings.base is not None:
            from dphlib.experiment import policies

            return self.run.stage(
                "base",
                params=policies.base_recipe(settings),
                code=CODE["presample"],
                build=lambda out: write_json(out / "base.json", settings.base),
            )

        if settings.pretrained is not None:
            return self._finetuned_base(settings.pretrained)
        if (shipped := self.shipped(index)) is not None:
            return self.run.stage(f"base-{index}", params={"shipped": shipped.files}, code=(), build=shipped.copy)
        return self._trained_base(index)

    def shipped(self, index: int) -> bases.Shipped | None:
        """A base of the CPU world that is shipped, None where it is trained here; see `bases.shipped`."""
        if index not in self._shipped:
            self._shipped[index] = bases.shipped(self.settings, index)
        return self._shipped[index]

    def _trained_base(self, index: int) -> Stage:
        settings, config = self.settings, self.settings.sft_config(index)

        def build(out: Path) -> None:
            from dphlib.training import sft

            if folder := bases.folder_of(settings):
                say(f"base {index}: none is shipped in {folder}; it is trained here")
            with Progress("supervised fine-tuning", config.steps, "steps") as progress:
                sft.build(out, settings.world, settings.model, config, lambda step, loss: progress.update(step))

        params = {"model": settings.model, "sft": config, "world": asdict(settings.world.of_corpus)}
        return self.run.stage(f"base-{index}", params=params, code=CODE["base"], build=build)

    def _finetuned_base(self, config: PretrainedConfig) -> Stage:
        world = self.settings.world

        def build(out: Path) -> None:
            from dphlib.experiment import policies
            from dphlib.training import finetune
            from dphlib.training.checkpoints import Checkpoints

            where = policies.placement_of(self.settings)
            with Progress("fine-tuning", config.steps, "steps") as progress:
                finetune.build(
                    out,
                    world,
                    config,
                    where.device,
                    cores(),
                    in_bfloat16=where.dtype == "bfloat16",
                    kept=Checkpoints(work_folder(out), {"base": config, "world": world}),
                    on_step=lambda step, loss: progress.update(step),
                )

        params = {"pretrained": replace(config, checkpoint_every=0), "world": asdict(world.of_corpus)}
        return self.run.stage("base", params=params, code=CODE["lm base"], build=build)

    def base_folder(self, index: int = 0) -> Path:
        """An initial policy in the Hugging Face layout; `index` as in `base`."""
        if self.settings.base is None:
            return self.base(index).path
        from dphlib.experiment import policies

        return policies.base_folder(self.settings)

    # --- pre-sampling and partition ---

    def presample(self, suite: str = "train", config: PresampleConfig | None = None, seed: int = 0) -> Stage:
        """`groups.jsonl`: k verified answers per problem and one more draw, with the initial policy's log-probs.

        Args:
            suite: what is answered.
            config: the profile's unless given; its threshold and number of stored answers do not matter here.
            seed: of the runs that read it: it decides the base and, where the profile says so, the draw.
        """
        index = self.settings.base_index(seed)
        world, base, config = self.world(), self.base(index), self.settings.presample_config(seed, config)

        def build(out: Path) -> None:
            from dphlib.experiment import draws

            require_memory(self.settings, "pre-sampling")
            problems, base_folder = self.suite(suite), self.base_folder(index)
            with Progress("pre-sampling", 2, "draws") as progress:
                draws.presample(out, self.settings, base_folder, self.databases(), problems, config, progress.update)

        params = {
            "presample": replace(config, threshold=1, answers=1),
            "suite": suite,
            "limit": self.settings.train.max_new_tokens,
            "sampler": self.settings.backend.draws,
        }
        name = f"presample-{suite}{self._of_seed(seed)}"
        return self.run.stage(name, params=params, inputs=(world, base), code=CODE["presample"], build=build)

    def _of_seed(self, seed: int) -> str:
        """The end of the name of a stage that only the runs with one seed read."""
        return f"-seed{seed}" if self.settings.draws_per_seed else ""

    def groups(
        self, suite: str = "train", draw: str = "k", config: PresampleConfig | None = None, seed: int = 0
    ) -> list[Group]:
        """The pre-sampled groups of a suite: the k draws, or the `extra` one."""
        problems = {problem.id: problem for problem in self.suite(suite)}
        rows = read_jsonl(self.presample(suite, config, seed).path / "groups.jsonl")
        return [Group.from_json(problems, row) for row in rows if row["draw"] == draw]

    def partition(
        self,
        suite: str = "train",
        threshold: int | None = None,
        config: PresampleConfig | None = None,
        everywhere: bool = False,
        seed: int = 0,
    ) -> Stage:
        """`partition.json` (problem ids of both sets) and `references.jsonl` (stored answers with log-probs).

        Args:
            suite: what is partitioned.
            threshold: another one than that of `config`.
            config: pre-sampling, the profile's unless given.
            everywhere: store answers of all prompts, not of D_pef alone.
            seed: of the runs that read it, see `presample`.
        """
        config = config or self.settings.presample
        threshold = threshold or config.threshold
        presampled = self.presample(suite, config, seed)

        def build(out: Path) -> None:
            groups, extra = (self.groups(suite, draw, config, seed) for draw in ("k", "extra"))
            parts = partition(groups, threshold, extra, config.answers, everywhere)
            ids = {name: [p.id for p in getattr(parts, name)] for name in ("near_perfect", "exploration")}
            write_json(out / "partition.json", {"threshold": threshold, **ids})
            (out / "references.jsonl").touch()
            for reference in parts.references:
                append_jsonl(out / "references.jsonl", reference.to_json())

        return self.run.stage(
            f"partition-{suite}{self._of_seed(seed)}",
            params={"threshold": threshold, "answers": config.answers, "everywhere": everywhere},
            inputs=(presampled,),
            code=CODE["partition"],
            build=build,
        )

    def parts(self, suite: str = "train", threshold: int | None = None, seed: int = 0) -> Partition:
        """The partition as problems and references."""
        return self._read_parts(suite, self.partition(suite, threshold, seed=seed))

    def _read_parts(self, suite: str, stage: Stage) -> Partition:
        problems = {p.id: p for p in self.suite(suite)}
        ids = json.loads((stage.path / "partition.json").read_text(encoding="utf-8"))
        references = [Reference.from_json(row) for row in read_jsonl(stage.path / "references.jsonl")]
        near_perfect, exploration = ([problems[i] for i in ids[name]] for name in ("near_perfect", "exploration"))
        return Partition(near_perfect, exploration, references)

    def references(self, suite: str, source: Stage, method: MethodConfig, seed: int = 0) -> list[Reference]:
        """The stored answers of a partition with the log-probs that a method's training compares with.

        Where those of pre-sampling are another program's (`policies.rescores`) they are made once for each base and
        placement, and kept as a stage; a method without a divergence reads none.
        """
        from dphlib.experiment import policies

        settings, stored = self.settings, self._read_parts(suite, source).references
        if not stored or not method.divergence or not policies.rescores(settings):
            return stored
        index = settings.base_index(seed)
        stage = self.run.stage(
            f"references-{suite}{self._of_seed(seed)}",
            params={"placement": str(policies.placement_of(settings)), "quantised": settings.tuning.kind == "qlora"},
            inputs=(self.base(index), source),
            code=CODE["references"],
            build=lambda out: policies.build_references(out, settings, self.base_folder(index), stored),
        )
        return [Reference.from_json(row) for row in read_jsonl(stage.path / "references.jsonl")]

    def _drawn(self, run: RunConfig) -> tuple[str, PresampleConfig]:
        """Training suite of a run and the pre-sampling of it."""
        suite = "sums_train" if run.setting("domain") == "sums" else "train"
        return suite, run.presample_config(self.settings.presample)

    def _source(self, run: RunConfig) -> tuple[str, Stage]:
        """Training suite of a run and the partition of it."""
        suite, config = self._drawn(run)
        everywhere = run.method_config.rehearses == "all"
        return suite, self.partition(suite, config=config, everywhere=everywhere, seed=run.seed)

    # --- training and evaluation ---

    def train(self, runs: Sequence[RunConfig]) -> list[Stage]:
        """Trains every run that is not there yet; see `train_one`."""
        self.build_all("train", runs, train_job, Pipeline.train_one)
        return [self.train_one(run) for run in runs]

    def evaluate(self, runs: Sequence[RunConfig]) -> pd.DataFrame:
        """Records of every run and of the bases that the runs start from, way-points included.

        `EvalRecord` rows with the column `base` (`scores.with_bases`); without runs, of all bases of the profile's
        seeds.
        """
        used = sorted({self.settings.base_index(run.seed) for run in runs} or self.settings.used_bases)
        self.build_all("evaluate", [*runs, *used], evaluate_job, Pipeline.evaluations)
        frames = [pd.read_parquet(self.evaluate_one(index).path / "records.parquet") for index in used]
        for run in runs:
            frames += [pd.read_parquet(stage.path / "records.parquet") for stage in self.evaluations(run)]
            waypoints = self.train_one(run).path / "waypoints.parquet"
            frames += [pd.read_parquet(waypoints)] if waypoints.is_file() else []
        return with_bases(pd.concat(frames, ignore_index=True), self.settings.bases)

    def train_logs(self, runs: Sequence[RunConfig]) -> pd.DataFrame:
        """The logs of the runs, one row per iteration, with method, variant and seed."""
        rows = []
        for run in runs:
            identity = {"method": run.method, "variant": run.variant, "seed": run.seed}
            rows += [{**identity, **row} for row in read_jsonl(self.train_one(run).path / "train_log.jsonl")]
        return pd.DataFrame(rows)

    def train_one(self, run: RunConfig, bring: Callable[[Path], None] | None = None) -> Stage:
        """One run as `train_run.build` writes it; one of another trainer has no way-points.

        Args:
            bring: fills the stage's folder with what another trainer made, instead of training.
        """
        if (mixed := self.of(run)) is not self:
            return mixed.train_one(run, bring)
        settings, index = self.settings, self.settings.base_index(run.seed)
        world, base = self.world(), self.base(index)
        suite, source = self._source(run)
        method, waypoints = settings.method_config(run), settings.waypoints(run)

        def build(out: Path) -> None:
            from dphlib.experiment import train_run

            require_memory(self.settings, "training")
            parts = self._read_parts(suite, source)
            inputs = train_run.Inputs(
                base=self.base_folder(index),
                databases=self.databases(),
                prompts=self.suite(suite) if method.explores == "all" else parts.exploration,
                references=self.references(suite, source, method, run.seed),
                waypoint_problems=self.suite(settings.evaluation.step_suite) if waypoints else [],
                waypoints=waypoints,
                data_text=problem_sets.described(settings, suite, len(self.suite(suite))),
            )
            train_run.build(out, work_folder(out), settings, run, inputs, self._report, self.tracker)

        params = {
            "run": run,
            "method": {**asdict(method), "needs_reference": method.needs_reference},
            "train": run.train_config(settings.train),
            "waypoints": waypoints,
            "tuning": settings.tuning,
            "backend": settings.backend,
            "evaluation": replace(settings.evaluation, samples={}) if waypoints else None,
        }
        return self.run.stage(
            f"train-{run.name}", params=params, inputs=(world, base, source), code=CODE["train"], build=bring or build
        )

    def evaluations(self, run: RunConfig | int) -> list[Stage]:
        """`evaluate_one` of a run or a base, and where a run stopped earlier also of its policy there."""
        if not isinstance(run, RunConfig):
            return [self.evaluate_one(run)]
        stopped = self.stopping_step(run) not in (None, run.train_config(self.settings.train).iterations)
        return [self.evaluate_one(run), *([self.evaluate_one(run, stopped=True)] if stopped else [])]

    def stopping_step(self, run: RunConfig) -> int | None:
        """Iteration of a run's stopping point; None where it has none."""
        path = self.train_one(run).path / "stopping.json"
        return json.loads(path.read_text(encoding="utf-8"))["step"] if path.is_file() else None

    def evaluate_one(self, run: RunConfig | int = 0, stopped: bool = False) -> Stage:
        """`records.parquet` of one run's final policy, of that at its stopping point, or of the base with an index."""
        if isinstance(run, RunConfig) and (mixed := self.of(run)) is not self:
            return mixed.evaluate_one(run, stopped)
        samples = dict(self.settings.evaluation.samples)
        if isinstance(run, RunConfig) and run.setting("domain") == "sums":
            samples = {"out_of_domain": samples["out_of_domain"]}
        if not isinstance(run, RunConfig) and self.settings.evaluation.stops:
            samples[VALIDATION] = self.settings.evaluation.step_samples
        return self.answered("evaluate", run, samples, stopped=stopped)

    def answered(
        self,
        kind: str,
        run: RunConfig | int,
        samples: Mapping[str, int],
        ids: Mapping[str, Sequence[str]] | None = None,
        stopped: bool = False,
        temperatures: Sequence[float] = (),
    ) -> Stage:
        """`records.parquet`: the answers of one policy to some problems.

        Args:
            kind: names the stage, and seeds the draws.
            run: whose final policy answers; a base's index for the base itself.
            samples: suite -> draws per problem.
            ids: suite -> its problems, sampled only; None for all of a suite, answered greedily too.
            stopped: the run's policy at its stopping point instead.
            temperatures: sampled at each of these, and not greedily, in place of temperature 1.
        """
        settings, config = self.settings, self.settings.evaluation
        if isinstance(run, RunConfig):
            last = run.train_config(settings.train).iterations
            step = (self.stopping_step(run) if stopped else None) or last
            name, identity = f"{run.name}{'-stopped' * stopped}", (run.method, run.variant, run.seed, step)
            index, source = settings.base_index(run.seed), self.train_one(run)
            trained = source.path / "stopped" if stopped else source.path
        else:
            name, identity = f"base-{run}", ("base", MAIN, run, 0)
            index, source, trained = run, self.base(run), None

        def build(out: Path) -> None:
            from dphlib.experiment import evaluate, tempered

            require_memory(self.settings, "evaluation")
            problems = {suite: self.suite(suite) for suite in samples}
            if ids:
                problems = {suite: [p for p in problems[suite] if p.id in set(ids[suite])] for suite in samples}
            model = (out, settings, self.base_folder(index), trained, self.databases())
            asked = (problems, samples, evaluate.Identity(*identity))
            seed = derive_seed(kind, config.draw_seed, name)
            if temperatures:
                tempered.build(*model, *asked, draw_seed=seed, temperatures=temperatures, report=self._report)
                return
            evaluate.build(
                *model,
                *asked,
                draw_seed=seed,
                greedy=ids is None,
                base_samples=config.base_samples if ids is None and not stopped else 0,
                report=self._report,
            )

        params = {
            "samples": samples,
            "problems": ids,
            "evaluation": replace(config, samples={}, steps=(), step_samples=0),
            "identity": [name, identity[-1]],
            "sampler": settings.backend.draws,
        }
        return self.run.stage(
            f"{kind}-{name}",
            params=params | ({"temperatures": temperatures} if temperatures else {}),
            inputs=(self.world(), self.base(index), source),
            code=CODE["temperature" if temperatures else "evaluate"],
            build=build,
        )

    # --- parallel ---

    def build_all(
        self,
        label: str,
        models: Sequence[RunConfig | int],
        job: Callable[..., None],
        stage: Callable[..., Stage | list[Stage]],
        **arguments: str,
    ) -> None:
        """Builds what is missing of one stage per model, side by side, each on a GPU of its own where there are GPUs.

        Args:
            models: runs, and bases by their indices.
            job: builds a model's stage in another process.
            stage: of a pipeline and a model, or several.
            arguments: more for the job.
        """
        missing = [model for model in models if self.lacks(partial(stage, run=model))]
        runs = [model for model in missing if isinstance(model, RunConfig)]
        indices = [model for model in missing if not isinstance(model, RunConfig)]
        # Here, once, not in the jobs' processes.
        self.presample_all([(*self._drawn(run), run.seed) for run in runs if self.of(run) is self])
        for run in runs:
            self.of(run)._source(run)
        for index in indices:
            self.base(index)
        if len(indices) == 1 and not runs:
            stage(self, run=indices[0])
            return
        # Slow ones first, so that no core waits for the last: long runs, an online reference, the full prompt set.
        order = sorted(runs, key=self.settings.quickness)
        named = {run.name: asdict(run) for run in order} | {f"base-{index}": index for index in indices}
        where = {**self._where, "tracker": self.tracker, **arguments}
        self._side_by_side(label, [Job(name, job, {**where, "run": run}) for name, run in named.items()])

    def presample_all(self, wanted: Sequence[tuple[str, PresampleConfig, int]]) -> None:
        """Builds what is missing of some pre-samplings, each the arguments of `presample`; small ones side by side."""
        different = dict.fromkeys((suite, replace(c, threshold=1, answers=1), seed) for suite, c, seed in wanted)
        missing = [
            (suite, config, seed)
            for suite, config, seed in different
            if self.lacks(partial(Pipeline.presample, suite=suite, config=config, seed=seed))
        ]
        for index in sorted({self.settings.base_index(seed) for *_, seed in missing}):
            self.base(index)
        jobs = [
            Job(
                f"{suite}-k{config.k}-seed{seed}",
                presample_job,
                {**self._where, "suite": suite, "config": asdict(config), "seed": seed},
            )
            for suite, config, seed in missing
        ]
        if len(jobs) > 1 and self.settings.small:
            self._side_by_side("pre-sampling", jobs)
        else:
            for one in missing:
                self.presample(*one)

    @property
    def _where(self) -> dict[str, str]:
        """What a job opens this pipeline by."""
        return {"root": str(self.run.root), "profile_name": self.settings.name}

    def _side_by_side(self, label: str, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        self.world()  # here, once, not in the jobs' processes
        devices = [] if self.settings.small else gpus()
        workers = self.workers or (1 if self.settings.base and not devices else None)
        run_jobs(jobs, workers=workers, label=label, devices=devices)

    def _report(self, share: float) -> None:
        """Reports how far the running job is, whose present stage is the part `_span` of it."""
        start, end = self._span
        report(start + share * (end - start), 1)


def train_job(root: str, profile_name: str, tracker: str, run: dict[str, Any]) -> None:
    """Trains one run, in a process of its own."""
    Pipeline(root, profile_from_environment(profile_name), tracker=tracker).train_one(RunConfig(**run))


def evaluate_job(root: str, profile_name: str, tracker: str, run: dict[str, Any] | int) -> None:
    """Evaluates one run, in a process of its own, which trains it first where that is missing; or a base."""
    pipeline, model = Pipeline(root, profile_from_environment(profile_name), tracker=tracker), model_of(run)
    if isinstance(model, RunConfig) and pipeline.lacks(partial(Pipeline.train_one, run=model)):
        pipeline._span = (0.0, 0.7)
        pipeline.train_one(model)
        pipeline._span = (0.7, 1.0)
    tell(f"{model.in_words if isinstance(model, RunConfig) else f'base {model}'}: evaluation")
    pipeline.evaluations(model)


def model_of(run: dict[str, Any] | int) -> RunConfig | int:
    """A run or a base's index as `Pipeline.build_all` gives it to a job."""
    return RunConfig(**run) if isinstance(run, dict) else run


def presample_job(root: str, profile_name: str, suite: str, config: dict[str, Any], seed: int) -> None:
    """Makes one pre-sampling, in a process of its own."""
    Pipeline(root, profile_from_environment(profile_name)).presample(suite, PresampleConfig(**config), seed)
