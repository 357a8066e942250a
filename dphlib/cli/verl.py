"""The command `dph verl`: a run for verl's trainer, and its final weights back."""

from __future__ import annotations

import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from dphlib.cli.arguments import MethodArgument, ProfileArgument, SuiteArgument
from dphlib.cli.run import require_machine
from dphlib.experiment.pipeline import Pipeline
from dphlib.runtime.files import InputError, RunError, make_folder, say, write_text
from dphlib.runtime.places import ARTIFACTS, ROOT
from dphlib.settings.environment import ask_to_retrain, profile_from_environment
from dphlib.settings.variants import MAIN, RunConfig

LAUNCH, SCRIPT = "launch.sh", "verl_8gpu.sh"


def verl(
    out: Path | None = None,
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    suite: SuiteArgument = "train",
    validation: SuiteArgument = "in_domain",
    method: MethodArgument = "dph_js",
    seed: int = 0,
    weights: Annotated[Path | None, tyro.conf.arg(name="import", metavar="FOLDER")] = None,
    metrics: Path | None = None,
    retrain_base: bool = False,
) -> int:
    """Writes a run for verl's trainer to --out, or brings the weights that verl trained back by --import.

    Args:
        out: folder of train.parquet (the partition and its stored answers), validation.parquet and launch.sh.
        artifacts: folder of the runs; what is not there yet is built.
        seed: of the run; it decides the base and the pre-sampling, and imported weights are kept under it.
        weights: folder of verl's final weights, merged by verl.model_merger; they become the training stage of method
            and seed, which `dph evaluate` and the notebooks find.
        metrics: with --import: the file that verl's logger `file` wrote.
        retrain_base: train the base, in place of the one that is shipped.
    """
    ask_to_retrain(retrain_base)
    if (out is None) == (weights is None):
        raise InputError("give either --out FOLDER, for a run to start, or --import FOLDER, of one that is done")
    settings, run = profile_from_environment(profile_name), RunConfig(method, MAIN, seed)
    if out is None:
        return _import(Pipeline(artifacts / profile_name, settings), run, weights, metrics)  # type: ignore[arg-type]
    require_machine(settings)
    pipeline = Pipeline(artifacts / profile_name, settings)
    pipeline.require_memory({"pre-sampling": partial(Pipeline.presample, suite=suite)})
    return _export(pipeline, run, out, suite, validation)


def _export(pipeline: Pipeline, run: RunConfig, out: Path, suite: str, validation: str) -> int:
    from dphlib.integrations.verl.loss import REHEARSING
    from dphlib.integrations.verl.store import write_prompts, write_store
    from dphlib.models.load import load_tokenizer

    if run.method not in REHEARSING:
        raise InputError(f"method {run.method!r} in verl: one of {', '.join(REHEARSING)}")
    make_folder(out)
    base = pipeline.base_folder(pipeline.settings.base_index(run.seed))
    tokenizer = load_tokenizer(base)
    config = pipeline.settings.method_config(run)
    source, parts = pipeline.partition(suite, seed=run.seed), pipeline.parts(suite, seed=run.seed)
    references = pipeline.references(suite, source, config, run.seed)
    print(write_store(parts._replace(references=references), base, tokenizer, out))
    print(write_prompts(pipeline.suite(validation), base, tokenizer, out))
    named = {"MODEL": base, "STORE": out, "DATABASES": pipeline.databases()}
    line = " ".join(f"{name}={shlex.quote(str(folder.absolute()))}" for name, folder in named.items())
    write_text(
        out / LAUNCH, f'#!/usr/bin/env bash\n{line} METHOD={run.method} ETA={config.eta} "${{0%/*}}"/{SCRIPT} "$@"\n'
    )
    if (script := ROOT / "docs" / SCRIPT).is_file():
        shutil.copy2(script, out)
    else:
        say(f"an installed package has no docs/{SCRIPT}: copy it from the repository to {out}")
    (out / LAUNCH).chmod(0o755)
    print(out / LAUNCH)
    return 0


def _import(pipeline: Pipeline, run: RunConfig, weights: Path, metrics: Path | None) -> int:
    from dphlib.integrations.verl.weights import bring, find_weights

    found = find_weights(weights)
    if not pipeline.lacks(partial(Pipeline.train_one, run=run)):
        there = pipeline.train_one(run).path
        raise RunError(f"{run.name} is trained already: {there}; remove that folder, or import under another --seed")
    base = pipeline.base_folder(pipeline.settings.base_index(run.seed))
    print(
        pipeline.train_one(
            run, bring=partial(bring, weights=found, base=base, settings=pipeline.settings, metrics=metrics)
        ).path
    )
    return 0
