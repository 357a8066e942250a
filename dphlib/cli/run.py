"""The command `dph run`, which `./run_all.sh` calls: all notebooks of a profile, then claims, report and manifest.

A notebook is executed where its source, its parameters, the library's code or the packages' versions changed since its
last copy, or where recorded results are damaged; stages that are there are reused by it in any case.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dphlib.cli.arguments import NotebookArgument, ProfileArgument, StudiesArgument
from dphlib.experiment import bases, protocol
from dphlib.experiment import plan as plan_module
from dphlib.experiment.pipeline import Pipeline
from dphlib.experiment.store import code_version, verify_run_manifest, write_run_manifest
from dphlib.report.facts import read_claims, read_json
from dphlib.report.notebooks import (
    NotebookError,
    NotebookRun,
    check_executed,
    declared_parameters,
    find_notebooks,
    run_notebooks,
)
from dphlib.runtime.files import clear_errors, digest, make_folder, read_manifest, require_space, say, write_json
from dphlib.runtime.machine import pin_kernels, versions
from dphlib.runtime.places import ARTIFACTS, NOTEBOOKS, PROTOCOL
from dphlib.runtime.progress import duration
from dphlib.settings.environment import ask_to_retrain, profile_from_environment
from dphlib.settings.profiles import Profile
from dphlib.settings.studies import chosen

SPACE_GIB = 0.5
"""A full CPU run wrote less than a third of this."""
SET_UP = "set-up"
"""In a manifest's seconds, beside the notebooks."""


def run(
    profile_name: ProfileArgument = "cpu",
    artifacts: Path = ARTIFACTS,
    only: NotebookArgument = "",
    seeds: str = "",
    studies: StudiesArgument = "",
    study_seeds: str = "",
    retrain_base: bool = False,
) -> int:
    """Runs all notebooks of a profile, then claims, report and manifest.

    Args:
        artifacts: results go to `<artifacts>/<profile_name>`.
        seeds: of main runs and controls, their number (5) or a list (0,1,2); "" for the profile's.
        study_seeds: of ablations and studies, as `seeds`.
        retrain_base: train the bases, in place of those that are shipped.
    """
    ask_to_retrain(retrain_base)
    settings, started = profile_from_environment(profile_name, seeds, study_seeds), time.monotonic()
    chosen(studies)
    if settings.name == "cpu":
        protocol.check(PROTOCOL)
    require_machine(settings)
    out = artifacts.resolve() / settings.name
    make_folder(out)
    require_space(out, SPACE_GIB + plan_module.written_gib(settings))
    pipeline = Pipeline(out, settings)
    # Notebook 04 asks for what training needs: what no GPU here can train is trained elsewhere.
    pipeline.require_memory({"pre-sampling": Pipeline.presample})
    for index in settings.used_bases:  # what is wrong with a shipped one is said before the first notebook
        if pipeline.shipped(index) is not None:
            pipeline.base(index)
    lock = FileLock(out / ".lock")
    try:
        with clear_errors(out):
            lock.acquire(timeout=0)
    except Timeout:
        say(f"another run is writing {out}; wait until it is done, or give another folder with --artifacts")
        return 1
    with lock:
        asked = {"seeds": seeds, "studies": studies, "study_seeds": study_seeds}
        asked = {name: value for name, value in asked.items() if value}
        parameters = {"profile_name": settings.name, "root": str(artifacts.resolve()), **asked}
        done = _run_stale(out, parameters, [only] if only else None, _outside(settings))
        if only:
            print(f"{only}: {out / 'notebooks'}")
            return 0
        if not _finished(out):
            _finish(out, settings, asked)
    _closing_words(out, done, time.monotonic() - started)
    return 0


def _run_stale(out: Path, parameters: dict[str, Any], names: Sequence[str] | None, outside: Sequence[Any]) -> list[str]:
    """Executes the notebooks whose source, parameters, code or versions changed, or all where results are damaged.

    Args:
        outside: what else they depend on.
    """
    executed, record = out / "notebooks", out / "notebooks" / "keys.json"
    keys = read_json(record) if record.is_file() else {}
    code = code_version(None)
    for problem in verify_run_manifest(out) if _finished(out) else ():
        say(f"{out}: {problem}; the notebooks run again")
        keys = {}
    stale: dict[str, str] = {}
    wanted: dict[str, Any] = {}
    for path in find_notebooks(NOTEBOOKS, names):
        declared = declared_parameters(path)
        passed = {name: value for name, value in parameters.items() if name in declared}
        key = digest([path.read_text(encoding="utf-8"), passed, code, versions(), *outside])
        if keys.get(path.name) == key and _is_whole(executed / path.name):
            print(f"{path.stem}: reused")
        else:
            stale[path.stem] = key
            wanted |= passed
    if not stale:
        return []
    # In this order: damage, once found, is not forgotten by a run that is interrupted now.
    write_json(record, keys)
    (out / "manifest.json").unlink(missing_ok=True)
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


def _outside(settings: Profile) -> list[Any]:
    """What notebooks depend on beside their parameters: shipped bases, the environment's settings, the data's files.

    A base of the hub is downloaded here where it is not there yet: without access nothing is begun.

    Raises:
        FileNotFoundError, DataError: a data set is not where it should be.
        RunError: no access to the base.
    """
    if settings.base is None:
        return [bases.listed(settings)] if settings.small else [settings]
    from dphlib.experiment import policies
    from dphlib.experiment import problems as problem_sets

    found = problem_sets.recipe(settings)
    policies.base_folder(settings)
    return [settings, found, policies.base_recipe(settings)]


def _finished(out: Path) -> bool:
    """Whether a run came to its end here: its manifest lists the report.

    `_run_stale` removes the manifest, and the first one of `_finish` lists no report. One that is there but cannot be
    read was a finished run's: it is damage.
    """
    manifest, _ = read_manifest(out)
    return "report/index.html" in manifest["files"] if manifest else (out / "manifest.json").is_file()


def _stage_folders(out: Path) -> set[Path]:
    return set((out / "stages").glob("*-*"))


def _is_whole(executed: Path) -> bool:
    try:
        return executed.is_file() and check_executed(executed) > 0
    except NotebookError:
        return False


def _finish(out: Path, settings: Profile, asked: dict[str, str]) -> None:
    """Manifest, report, and the manifest again, so that it lists the report: only then is the run finished."""
    from dphlib.report.pages import build_report

    seconds = read_json(out / "seconds.json")
    if setup := os.environ.get("DPH_SETUP_S"):
        write_json(out / "seconds.json", seconds := {SET_UP: float(setup), **seconds})
    extra = {"profile": settings.name, "seeds": list(settings.seeds), "asked": asked, "seconds": seconds}
    if settings.described:
        extra["ours"] = settings.described
    (out / "report" / "index.html").unlink(missing_ok=True)
    write_run_manifest(out, extra)
    build_report(out)
    write_run_manifest(out, extra)


def _closing_words(out: Path, done: Sequence[str], seconds: float) -> None:
    """What came out: of a smoke run that everything works, in six lines; else the verdicts, beside the reference's."""
    from dphlib.analysis import claims
    from dphlib.experiment.agreement import agreement, verdict_agreement

    manifest = read_json(out / "manifest.json")
    name, smallest = manifest["profile"], manifest["profile"].endswith("smoke")
    print()
    if smallest:
        print(_everything_works(out))
        print("it shows that everything runs and says nothing about the method: too few problems and steps for a claim")
    else:
        claims.print_table(read_claims(out))
        print()
        for sentence in (verdict_agreement(out, name), agreement(out, name)):
            if sentence:
                print(sentence)
    print(f"time: {_times(done, seconds, manifest)}")
    print(f"report: {out / 'report' / 'index.html'}, explorer.html beside it")
    print(f"results: {out}")
    if smallest:
        full = name.removesuffix("smoke").removesuffix("-") or "cpu"
        print(f"next: ./run_all.sh {full}; dph plan --profile {full} says what it takes")


def _everything_works(out: Path) -> str:
    there = find_notebooks(NOTEBOOKS)
    whole = sum(_is_whole(out / "notebooks" / path.name) for path in there)
    figures, tables = (
        len(list((out / kind).glob(f"*.{end}"))) for kind, end in (("figures", "svg"), ("tables", "csv"))
    )
    return f"everything works: {whole} of {len(there)} notebooks, {figures} figures, {tables} tables, a report"


def _times(done: Sequence[str], seconds: float, manifest: dict[str, Any]) -> str:
    """How long this call took and, where that is less, the building of all stages; and the memory."""
    built_s = sum(value for name, value in manifest["seconds"].items() if name != SET_UP)
    again = (
        f"{len(done)} notebook{'s' * (len(done) > 1)} executed" if done else "nothing had changed, all notebooks reused"
    )
    whole = f"; built from nothing they take {duration(built_s)}" if built_s > seconds else ""
    peak = max(manifest["peak_gib"], manifest["peak_gib_largest_child"])
    return f"{duration(seconds)}, {again}{whole}; peak memory {peak:.1f} GiB"


def require_machine(settings: Profile) -> None:
    """Before anything is read or downloaded: a GPU or a sampler that is not here is one line.

    A CPU profile's processes, all of which this one starts, compute with pinned instructions.
    """
    pin_kernels(instructions=settings.small)
    if not settings.small:
        from dphlib.experiment.policies import requirements

        requirements(settings)
