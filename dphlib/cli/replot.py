"""The command `dph replot`: figures, tables, claims and explorer again from recorded results, compared byte by byte."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from dphlib.report.facts import read_json
from dphlib.runtime.files import RunError
from dphlib.runtime.machine import pin_kernels
from dphlib.runtime.places import ARTIFACTS, REFERENCE
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.profiles import Profile


def replot(source: Path = REFERENCE, out: Path = ARTIFACTS / "replot") -> int:
    """Draws figures, tables and the explorer and judges the claims again from recorded results, without training.

    Args:
        source: a results folder.
        out: where the products go, in place of an earlier replot's; each is compared with the one in `source`.
    """
    from dphlib.experiment.results import draw_recorded
    from dphlib.report.explorer import build_explorer

    if not (source / "manifest.json").is_file():
        raise RunError(f"no recorded run in {source}: manifest.json is missing; give one with --source")
    if out.resolve() == source.resolve():
        raise RunError(f"{out} holds the results to compare with; give another folder with --out")
    for folder in ("figures", "tables", "report"):
        shutil.rmtree(out / folder, ignore_errors=True)
    pin_kernels()
    draw_recorded(source, out, _asked(source))
    build_explorer(source, out)
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    equal, differ, absent = filecmp.cmpfiles(out, source, made, shallow=False)
    for name in differ:
        print(f"differs from {source.name}: {name}")
    for name in absent:
        print(f"not in {source.name}: {name}")
    print(f"{len(made)} files in {out}, {len(equal)} of them equal to {source} byte by byte")
    return 1 if differ or absent else 0


def recorded_profile(source: Path) -> Profile:
    """The profile of recorded results, with the seeds that were asked for."""
    return profile_from_environment(*_asked(source))


def _asked(source: Path) -> tuple[str, str, str]:
    manifest = read_json(source / "manifest.json")
    asked = manifest.get("asked", {})
    return manifest["profile"], asked.get("seeds", ""), asked.get("study_seeds", "")
