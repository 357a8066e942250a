"""The command line: `dph run` is what `./run_all.sh` calls; the stages are there one by one, as in the notebooks.

`EXAMPLES` has the commands as they are used, and `dph COMMAND --help` shows them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import tyro

from dphlib import __version__
from dphlib.cli.arguments import (
    CardArgument,
    MethodArgument,
    ProfileArgument,
    StudiesArgument,
    SuiteArgument,
    VariantArgument,
)
from dphlib.cli.data import data
from dphlib.cli.replot import recorded_profile, replot
from dphlib.cli.run import require_machine, run
from dphlib.cli.verl import verl
from dphlib.cli.where import where
from dphlib.experiment import plan as plan_module
from dphlib.experiment.pipeline import Needed, Pipeline
from dphlib.integrations import store
from dphlib.report.facts import minutes_text
from dphlib.report.notebooks import NotebookInterrupted, find_notebooks
from dphlib.runtime.files import InputError, RunError, UserError, make_folder, read_manifest, say, unknown, write_text
from dphlib.runtime.places import ARTIFACTS, NOTEBOOKS, REFERENCE
from dphlib.settings.environment import ask_to_retrain, profile_from_environment
from dphlib.settings.methods import METHOD_CONFIGS
from dphlib.settings.studies import EXPLORATORY, STUDIES, chosen, planned_runs, study_runs
from dphlib.settings.variants import RunConfig
from dphlib.training import tracking


def plan(profile_name: ProfileArgument = "cpu", card: CardArgument = "") -> int:
    """Says what a profile will need: minutes or hours, memory, disk, downloads. Starts nothing."""
    import pandas as pd

    settings = profile_from_environment(profile_name)
    if settings.base is not None:
        print(plan_module.to_text(settings, card))
        return 0
    here = ARTIFACTS / settings.name
    recorded = here if read_manifest(here)[0] and not _recorded(REFERENCE, settings.name) else REFERENCE
    print(plan_module.measured(settings, recorded))
    manifest, _ = read_manifest(recorded)
    print(minutes_text(manifest))
    if manifest["asked"]:
        logs = pd.read_parquet(recorded / "train_log.parquet", columns=["method", "variant", "seed"])
        ours = len(planned_runs(settings, chosen(settings.studies)))
        print(f"it trained {len(logs.drop_duplicates())} runs; ./run_all.sh {settings.name} trains {ours}")
    return 0


def _recorded(folder: Path, profile_name: str) -> bool:
    return read_manifest(folder)[0].get("profile") == profile_name


def notebooks(out: Path = Path("notebooks")) -> int:
    """Copies the notebooks into a folder, to open them in Jupyter: an installed package has no clone of them.

    Args:
        out: the folder; a notebook that is there already, and differs, is never overwritten.
    """
    sources = find_notebooks(NOTEBOOKS)
    for source in sources:
        there = out / source.name
        if there.is_file() and there.read_bytes() != source.read_bytes():
            raise RunError(f"{there} is there and differs; give another folder with --out, or move it away")
    make_folder(out)
    for source in sources:
        write_text(out / source.name, source.read_text(encoding="utf-8"))
    print(f"{len(sources)} notebooks in {out}; open them by: jupyter lab {out}")
    return 0


# --- single steps ---


def presample(
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    suite: SuiteArgument = "train",
    seed: int = 0,
    retrain_base: bool = False,
) -> int:
    """Draws and verifies the pre-samples of a suite, for the runs with a seed."""
    ask_to_retrain(retrain_base)
    pipeline = _pipeline(profile_name, artifacts, {"pre-sampling": partial(Pipeline.presample, suite=suite)})
    print(pipeline.presample(suite, seed=seed).path)
    return 0


def partition(
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    suite: SuiteArgument = "train",
    threshold: int = 0,
    export: Path | None = None,
    seed: int = 0,
    retrain_base: bool = False,
) -> int:
    """Partitions a suite.

    Args:
        artifacts: folder of the runs.
        threshold: correct answers from which a prompt is near-perfect; 0 is the profile's.
        export: a new folder, for the partition as other trainers read it.
        seed: of the runs that read it; it decides the base and the draw.
        retrain_base: train the base, in place of the one that is shipped.
    """
    ask_to_retrain(retrain_base)
    pipeline = _pipeline(profile_name, artifacts, {"pre-sampling": partial(Pipeline.presample, suite=suite)})
    if export is not None:
        store.new_folder(export)
    source = pipeline.partition(suite, threshold or None, seed=seed)
    parts = pipeline.parts(suite, threshold or None, seed)
    print(f"D_pef {len(parts.near_perfect)}, D_exp {len(parts.exploration)}, references {len(parts.references)}")
    print(source.path)
    if export is not None:
        # With the trainer's log-probs where another program drew: a divergence starts at 0 against those alone.
        parts = parts._replace(references=pipeline.references(suite, source, METHOD_CONFIGS["dph_f"], seed))
        base = pipeline.base_folder(pipeline.settings.base_index(seed))
        store.export(export, parts, threshold or pipeline.settings.presample.threshold, base)
        print(export)
    return 0


def train(
    method: MethodArgument,
    seed: int = 0,
    variant: VariantArgument = "main",
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    tracker: str = "",
    retrain_base: bool = False,
) -> int:
    """Trains one run.

    Args:
        seed: of training; it decides the base and the pre-sampling too.
        artifacts: folder of the runs.
        tracker: also log to this tracker of Accelerate's, such as tensorboard or wandb.
        retrain_base: train the base, in place of the one that is shipped.
    """
    ask_to_retrain(retrain_base)
    run = RunConfig(method, variant, seed)
    if tracker:
        tracking.check(tracker)
    pipeline = _pipeline(profile_name, artifacts, {"training": partial(Pipeline.train_one, run=run)}, tracker)
    print(pipeline.train([run])[0].path)
    return 0


def evaluate(
    method: MethodArgument,
    seed: int = 0,
    variant: VariantArgument = "main",
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    retrain_base: bool = False,
) -> int:
    """Evaluates one run beside its base and prints Pass@k."""
    from dphlib import stats

    ask_to_retrain(retrain_base)
    run = RunConfig(method, variant, seed)
    needed: Needed = {
        "training": partial(Pipeline.train_one, run=run),
        "evaluation": partial(Pipeline.evaluate_one, run=run),
    }
    records = _pipeline(profile_name, artifacts, needed).evaluate([run])
    rows = stats.sampled(stats.final(records))
    print(stats.pass_curve(rows, [k for k in (1, 8, 16, 64) if k <= rows["n"].min()]).to_string(index=False))
    return 0


def ablate(
    study: StudiesArgument,
    seeds: str = "",
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    workers: int = 0,
    table: Path | None = None,
    retrain_base: bool = False,
) -> int:
    """Runs studies alone and says what each comparison shows, with its interval.

    Args:
        seeds: of every arm, their number (3) or a list (0,1,2); "" for the profile's.
        artifacts: stages are kept in, and found in, `<artifacts>/<profile_name>`.
        workers: runs at a time, 0 for one each core.
        table: also write the whole table, every suite and measure, to this CSV file.
        retrain_base: train the bases, in place of those that are shipped.
    """
    from dphlib.analysis import studies as ablations
    from dphlib.analysis import tables
    from dphlib.experiment import exploratory

    ask_to_retrain(retrain_base)
    settings, names = profile_from_environment(profile_name, seeds, seeds), chosen(study)
    if not names:
        raise InputError(f"no study given; known: all, {', '.join(STUDIES)}")
    require_machine(settings)
    pipeline = Pipeline(artifacts / settings.name, settings, workers or None)
    for name in (one for one in EXPLORATORY if one in names):
        answers = exploratory.records(pipeline, name, settings.main_runs())
        print(tables.to_markdown(tables.readable(exploratory.EXPLORATORY[name].table(answers))))
    compared = [name for name in names if name not in EXPLORATORY]
    if not compared:
        return 0
    runs = study_runs(settings, compared)
    for one in runs:
        pipeline.require_memory({"training": partial(Pipeline.train_one, run=one)})
    say(f"{len(runs)} runs of {len({(run.method, run.variant) for run in runs})} arms; what is there is reused")
    made = ablations.study_table(pipeline.evaluate(runs), settings, compared)
    if table:
        print(tables.to_csv(made, table))
    for name in compared:
        print(f"\n{name}: {STUDIES[name].question}")
        for sentence in ablations.sentences(made[made["study"] == name]):
            print(f"- {sentence}")
    return 0


def claims(source: Path = REFERENCE) -> int:
    """Judges the claims from recorded results and prints the verdicts."""
    from dphlib.analysis import claims as claim_module
    from dphlib.experiment.results import Results

    settings = recorded_profile(source)
    results = Results.load(source, settings)
    claim_module.print_table(claim_module.evaluate_claims(results.scores, results.train_logs, settings.name))
    return 0


def report(source: Path = REFERENCE) -> int:
    """Builds the HTML report of recorded results."""
    from dphlib.report.pages import build_report

    print(build_report(source))
    return 0


def _pipeline(profile_name: str, artifacts: Path, needed: Needed, tracker: str = "") -> Pipeline:
    """The pipeline of a profile, on a machine that can make those of its stages in `needed` that are not there."""
    settings = profile_from_environment(profile_name)
    require_machine(settings)
    pipeline = Pipeline(artifacts / profile_name, settings, tracker=tracker)
    pipeline.require_memory(needed)
    return pipeline


_COMMANDS = (
    run,
    presample,
    partition,
    train,
    evaluate,
    ablate,
    plan,
    claims,
    report,
    replot,
    data,
    verl,
    where,
    notebooks,
)
COMMANDS: dict[str, Callable[..., int]] = {command.__name__: command for command in _COMMANDS}


EXAMPLES = {
    "run": (
        "dph run --profile smoke",
        "dph run --profile cpu --seeds 5 --studies controls,eta",
        "dph run --profile cpu --only 04",
    ),
    "presample": ("dph presample --profile cpu --suite train --seed 0",),
    "partition": ("dph partition --profile cpu --threshold 7 --export partition-7",),
    "train": ("dph train --method dph_js --seed 0", "dph train --method dph_f --variant eta=0.05"),
    "evaluate": ("dph evaluate --method dph_js --seed 0",),
    "ablate": ("dph ablate --study eta", "dph ablate --study all --seeds 3 --table studies.csv"),
    "plan": ("dph plan --profile cpu", "dph plan --profile gpu24 --card t4"),
    "claims": ("dph claims", "dph claims --source artifacts/cpu"),
    "report": ("dph report --source artifacts/cpu",),
    "replot": ("dph replot", "dph replot --source artifacts/cpu"),
    "data": ("dph data list", "dph data check --data-dir data --sets bird spider_dev"),
    "verl": (
        "dph verl --profile gpu80 --method dph_js --out verl-run",
        "dph verl --profile gpu80 --method dph_js --import verl-run/merged",
    ),
    "where": ("dph where base", "dph where partition --profile smoke --seed 0"),
    "notebooks": ("dph notebooks --out notebooks",),
}
"""Command -> how it is used."""
_SHOWN = ("run", "plan", "train", "ablate", "replot")
"""Commands whose first example `dph --help` shows."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `dph`. Errors that a user can mend are one line; others keep their traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first = arguments[0] if arguments else ""
    if first == "--version":
        print(f"dph {__version__}")
        return 0
    try:
        if first and not first.startswith("-") and first not in COMMANDS:
            raise unknown("command", first, COMMANDS)
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="dph", description=_DESCRIPTION)
    except SystemExit as left:
        if not left.code and {"-h", "--help"} & set(arguments):
            _show_examples(first)
        raise
    except NotebookInterrupted as stop:
        say(str(stop))
        return stop.code
    except KeyboardInterrupt:
        say("interrupted; what is finished is kept, run again to go on")
        return 130
    except UserError as error:
        say(f"dph: {error}")
        return 1


_DESCRIPTION = """\
DPH-RL: reinforcement learning with verifiable rewards held by a mass-covering f-divergence.
dph COMMAND --help says what a command takes; dph --version prints the version."""


def _show_examples(command: str) -> None:
    shown = EXAMPLES.get(command) or [EXAMPLES[name][0] for name in _SHOWN]
    print("\n".join(["examples:", *(f"  {line}" for line in shown)]))


if __name__ == "__main__":
    sys.exit(main())
