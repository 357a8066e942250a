"""The command line: `dph run` is what `./run_all.sh` calls; the stages are there one by one, as in the notebooks.

dph run --profile cpu          all notebooks, then claims, report, manifest
dph run --profile cpu --seeds 5 --studies all    the same with five seeds and every study of `dphlib.studies`
dph ablate --study eta         one study alone: its arms, their table, a sentence for each comparison
accelerate launch --config_file FILE -m dphlib.cli train ...   one run by several processes, see docs/several_gpus.md
dph plan --profile gpu80        what a profile will need: downloads, disk, GPU memory, hours
dph presample | partition | train | evaluate | claims | report   one step, building what it needs
dph notebooks --out FOLDER     copies the notebooks, to open them in Jupyter
dph replot                     figures, tables and claims again from recorded results, compared byte by byte
dph reference                  keeps a run's results as the reference that README and notebooks read
dph data list | check          the data sets: files, licences, sources; runs every gold of those in a folder
dph verl --out FOLDER          the partition and its stored answers as verl reads them, see docs/verl.md
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock, Timeout

from dphlib import launched, store, tracking
from dphlib import plan as plan_module
from dphlib.config import Profile, RunConfig, profile
from dphlib.data_commands import data
from dphlib.facts import read_json
from dphlib.files import digest, say, write_json, write_text
from dphlib.jobs import JobError, duration
from dphlib.notebooks import (
    NotebookError,
    NotebookInterrupted,
    NotebookRun,
    check_executed,
    declared_parameters,
    find_notebooks,
    run_notebooks,
)
from dphlib.places import ARTIFACTS, NOTEBOOKS, PACKAGE, REFERENCE
from dphlib.reference_run import recorded_profile, reference, replot
from dphlib.runs import (
    RunError,
    code_version,
    require_space,
    verify_run_manifest,
    versions,
    write_run_manifest,
)
from dphlib.studies import HARD, STUDIES, chosen, study_runs
from dphlib.verl_store import verl

SPACE_GIB = 0.5
"""A full CPU run wrote less than a third of this."""


ProfileArgument = Annotated[str, tyro.conf.arg(name="profile")]


def run(
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    only: str = "",
    seeds: str = "",
    studies: str = "",
    study_seeds: str = "",
) -> int:
    """Runs all notebooks of a profile, then claims, report and manifest.

    Args:
        profile_name: of `config.PROFILES`.
        artifacts: results go to `<artifacts>/<profile_name>`.
        only: run this notebook alone, by its number or name.
        seeds: of main runs and controls, their number (5) or a list (0,1,2); "" for the profile's.
        studies: also run these: `all`, or names such as `controls,eta`; `hard` draws more answers to the problems that
            the base seldom solves; `smoke` runs some of them anyway.
        study_seeds: of ablations and studies, as `seeds`.
    """
    settings, started = profile(profile_name, seeds, study_seeds), time.monotonic()
    chosen(studies)
    _require_machine(settings)
    out = artifacts.resolve() / settings.name
    out.mkdir(parents=True, exist_ok=True)
    require_space(out, SPACE_GIB + plan_module.written_gib(settings))
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is writing {out}; wait until it is done, or give another folder with --artifacts")
        return 1
    with lock:
        names = [only] if only else None
        parameters = {"profile_name": settings.name, "root": str(artifacts.resolve())}
        asked = {"seeds": seeds, "studies": studies, "study_seeds": study_seeds}
        asked = {name: value for name, value in asked.items() if value}
        parameters |= asked
        done = _run_stale(out, parameters, names, plan_module.outside(settings))
        if only:
            print(f"{only}: {out / 'notebooks'}")
            return 0
        if done or not (out / "report" / "index.html").is_file():
            _finish(out, settings, asked)
    _closing_words(out, done, time.monotonic() - started)
    return 0


def _run_stale(out: Path, parameters: dict[str, Any], names: Sequence[str] | None, outside: Sequence[Any]) -> list[str]:
    """Executes the notebooks whose source, parameters, code or versions changed, or whose results are damaged.

    Args:
        outside: what else they depend on.
    """
    executed, record = out / "notebooks", out / "notebooks" / "keys.json"
    keys = read_json(record) if record.is_file() else {}
    code = code_version([path.stem for path in sorted(PACKAGE.glob("*.py")) if path.stem != "__init__"])
    problems = verify_run_manifest(out) if (out / "manifest.json").is_file() else []
    for problem in problems:
        say(f"{out}: {problem}; the notebooks run again")
    stale: dict[str, str] = {}
    wanted: dict[str, Any] = {}
    for path in find_notebooks(NOTEBOOKS, names):
        declared = declared_parameters(path)
        passed = {name: value for name, value in parameters.items() if name in declared}
        key = digest([path.read_text(encoding="utf-8"), passed, code, versions(), *outside])
        if not problems and keys.get(path.name) == key and _is_whole(executed / path.name):
            print(f"{path.stem}: reused")
        else:
            stale[path.stem] = key
            wanted |= passed
    if not stale:
        return []
    before = _stage_folders(out)

    def note(ran: NotebookRun) -> None:
        nonlocal before
        keys[ran.path.name] = stale[ran.name]
        write_json(record, keys)
        seconds = read_json(out / "seconds.json") if (out / "seconds.json").is_file() else {}
        # The time that counts is that of the execution which built the notebook's stages, not of one that found them.
        if ran.name not in seconds or _stage_folders(out) - before:
            write_json(out / "seconds.json", {**seconds, ran.name: round(ran.wall_s, 1)})
        before = _stage_folders(out)

    run_notebooks(NOTEBOOKS, out, wanted, list(stale), on_done=note)
    return list(stale)


def _stage_folders(out: Path) -> set[Path]:
    return set((out / "stages").glob("*-*"))


def _is_whole(executed: Path) -> bool:
    try:
        return executed.is_file() and check_executed(executed) > 0
    except NotebookError:
        return False


def _finish(out: Path, settings: Profile, asked: dict[str, str]) -> None:
    """Manifest, report, and the manifest again, so that it lists the report."""
    from dphlib.report import build_report

    seconds = read_json(out / "seconds.json")
    if setup := os.environ.get("DPH_SETUP_S"):
        write_json(out / "seconds.json", seconds := {"set-up": float(setup), **seconds})
    extra = {"profile": settings.name, "seeds": list(settings.seeds), "asked": asked, "seconds": seconds}
    if settings.described:
        extra["ours"] = settings.described
    write_run_manifest(out, extra)
    build_report(out)
    write_run_manifest(out, extra)


def _closing_words(out: Path, done: Sequence[str], seconds: float) -> None:
    from dphlib import claims

    print()
    claims.print_table(claims.from_json((out / "claims.json").read_text(encoding="utf-8")))
    manifest = read_json(out / "manifest.json")
    peak = max(manifest["peak_gib"], manifest["peak_gib_largest_child"])
    print(f"\nReport: {out / 'report' / 'index.html'}")
    print(f"Results: {out}")
    again = f"{len(done)} notebooks executed" if done else "nothing had changed, all notebooks reused"
    total = duration(sum(manifest["seconds"].values()))
    print(f"This time: {duration(seconds)}, {again}. All notebooks together took {total}; peak memory {peak:.1f} GiB.")


def plan(profile_name: ProfileArgument = "cpu", card: str = "") -> int:
    """Says what a profile will need: downloads, disk, GPU memory, hours. Starts nothing.

    Args:
        profile_name: of `config.PROFILES`.
        card: another GPU than the profile's own: t4, l4, h100 or h200.
    """
    settings = profile(profile_name)
    print(plan_module.measured(settings, REFERENCE) if settings.base is None else plan_module.to_text(settings, card))
    return 0


def notebooks(out: Path = Path("notebooks")) -> int:
    """Copies the notebooks into a folder, to open them in Jupyter: an installed package has no clone of them.

    Args:
        out: the folder; a notebook that is there already, and differs, is never overwritten.
    """
    sources = find_notebooks(NOTEBOOKS)
    for source in sources:
        there = out / source.name
        if there.is_file() and there.read_bytes() != source.read_bytes():
            raise FileExistsError(f"{there} is there and differs; give another folder with --out, or move it away")
    out.mkdir(parents=True, exist_ok=True)
    for source in sources:
        write_text(out / source.name, source.read_text(encoding="utf-8"))
    print(f"{len(sources)} notebooks in {out}; open them by: jupyter lab {out}")
    return 0


# --- single steps ---


def presample(profile_name: ProfileArgument = "cpu", artifacts: Path = ARTIFACTS, suite: str = "train") -> int:
    """Draws and verifies the pre-samples of a suite."""
    pipeline = _pipeline(profile_name, artifacts)
    print(pipeline.presample(suite).path)
    return 0


def partition(
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    suite: str = "train",
    threshold: int = 0,
    export: Path | None = None,
) -> int:
    """Partitions a suite; threshold 0 is the profile's; export: a new folder, for it as other trainers read it."""
    pipeline = _pipeline(profile_name, artifacts)
    parts = pipeline.parts(suite, threshold or None)
    print(f"D_pef {len(parts.near_perfect)}, D_exp {len(parts.exploration)}, references {len(parts.references)}")
    print(pipeline.partition(suite, threshold or None).path)
    if export is not None:
        store.export(export, parts, threshold or pipeline.settings.presample.threshold, pipeline.base_folder())
        print(export)
    return 0


def train(
    method: str,
    seed: int = 0,
    variant: str = "main",
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    tracker: str = "",
) -> int:
    """Trains one run, by as many processes as a launcher starts.

    Args:
        method: of the paper, or a control: grpo_dexp, sft_rehearsal, dph_f_all.
        seed: of training.
        variant: main, or one setting that differs: eta=..., strength=equal, authors_eta=8, js_scale=2, threshold=...,
            k=..., answers=..., clip_high=..., top_p=..., entropy=..., iterations=..., domain=sums.
        profile_name: of `config.PROFILES`.
        artifacts: folder of the runs.
        tracker: also log to this tracker of Accelerate's, such as tensorboard or wandb.
    """
    run = RunConfig(method, variant, seed)
    if tracker:
        tracking.check(tracker)
    processes = launched.join(gpu=profile(profile_name).base is not None)
    trained = _pipeline(profile_name, artifacts, processes=processes, tracker=tracker).train([run])[0]
    if processes.first:
        print(trained.path)
    launched.leave()
    return 0


def evaluate(
    method: str,
    seed: int = 0,
    variant: str = "main",
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
) -> int:
    """Evaluates one run beside the base and prints Pass@k."""
    from dphlib import stats

    records = _pipeline(profile_name, artifacts).evaluate([RunConfig(method, variant, seed)])
    final = stats.final(records)
    least = int(final[final["sample"] >= 0].groupby("suite")["sample"].max().min()) + 1
    print(stats.pass_curve(stats.sampled(final), [k for k in (1, 8, 16, 64) if k <= least]).to_string(index=False))
    return 0


def ablate(
    study: str,
    seeds: str = "",
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    workers: int = 0,
    table: Path | None = None,
) -> int:
    """Runs studies alone and says what each comparison shows, with its interval.

    Args:
        study: `all`, or names such as `eta,controls`; `hard` prints the table of the hard problems.
        seeds: of every arm, their number (3) or a list (0,1,2); "" for the profile's.
        profile_name: of `config.PROFILES`.
        artifacts: stages are kept in, and found in, `<artifacts>/<profile_name>`.
        workers: runs at a time, 0 for one each core.
        table: also write the whole table, every suite and measure, to this CSV file.
    """
    from dphlib import ablations, hard, retention, tables
    from dphlib.stages import Pipeline

    settings, names = profile(profile_name, seeds, seeds), chosen(study)
    if not names:
        raise ValueError(f"no study given; known: all, {', '.join(STUDIES)}")
    _require_machine(settings)
    pipeline, compared = Pipeline(artifacts / settings.name, settings, workers or None), [n for n in names if n != HARD]
    if HARD in names:
        print(tables.to_markdown(retention.readable(hard.hard_table(hard.hard_records(pipeline)))))
    if not compared:
        return 0
    runs = study_runs(settings, compared)
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
    from dphlib import claims as claim_module
    from dphlib.results import Results

    settings = recorded_profile(source)
    results = Results.load(source, settings)
    claim_module.print_table(claim_module.evaluate_claims(results.records, results.train_logs, settings.name))
    return 0


def report(source: Path = REFERENCE) -> int:
    """Builds the HTML report of recorded results."""
    from dphlib.report import build_report

    print(build_report(source))
    return 0


def _pipeline(profile_name: str, artifacts: Path, **options: Any) -> Any:
    from dphlib.stages import Pipeline

    settings = profile(profile_name)
    _require_machine(settings)
    return Pipeline(artifacts / profile_name, settings, **options)


def _require_machine(settings: Profile) -> None:
    """Before anything is read or downloaded: a GPU, a sampler or memory that is not here is one line."""
    if settings.base is not None:
        from dphlib.plan import require_memory
        from dphlib.policies import requirements

        requirements(settings)
        if not launched.sharded():  # shards: `plan.sharded_gib`
            require_memory(settings)


COMMANDS: dict[str, Callable[..., int]] = {
    "run": run, "presample": presample, "partition": partition, "train": train, "evaluate": evaluate,
    "ablate": ablate, "plan": plan,
    "claims": claims, "report": report, "replot": replot, "reference": reference,
    "data": data, "verl": verl, "notebooks": notebooks,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `dph`. Errors that a user can mend are one line; others keep their traceback."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if launched.several() and list(arguments[:1]) not in (["train"], ["--help"], ["-h"]):
        launched.tell(f"dph: several processes can train only, not {' '.join(arguments[:1])}; run it without launcher")
        return 1
    try:
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="dph")
    except NotebookInterrupted as stop:
        say(str(stop))
        return stop.code
    except KeyboardInterrupt:
        launched.tell("interrupted; what is finished is kept, run again to go on")
        return 130
    except (RunError, NotebookError, JobError, ValueError, FileNotFoundError, FileExistsError) as error:
        launched.tell(f"dph: {error}")
        return 1
    except Exception as error:
        if not (lost := launched.explain(error)):
            launched.speaks()  # the traceback is what the user reads
            raise
        launched.tell(f"dph: {lost}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
