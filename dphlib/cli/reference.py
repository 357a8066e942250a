"""The commands `dph replot` and `dph reference`: recorded results drawn again, and a run kept as the reference."""

from __future__ import annotations

import filecmp
import json
import shutil
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Annotated

import tyro

from dphlib.experiment.store import RunError, verify_run_manifest, write_run_manifest
from dphlib.report.facts import read_json
from dphlib.report.notebooks import normalise
from dphlib.runtime.files import write_text
from dphlib.runtime.places import ARTIFACTS, IN_REPOSITORY, REFERENCE, ROOT
from dphlib.settings.environment import profile_from_environment
from dphlib.settings.profiles import Profile

RESULTS = (
    "records.parquet", "hard.parquet", "train_log.parquet", "presample.csv", "cost.csv", "claims.json", "manifest.json",
    "seconds.json",
)  # fmt: skip
RESULT_FOLDERS = ("tables", "figures", "notebooks", "metrics")
"""The report is not copied: it is built anew from these."""


def replot(source: Path = REFERENCE, out: Path = ARTIFACTS / "replot") -> int:
    """Draws figures and tables and judges the claims again from recorded results, without training.

    Args:
        source: a results folder.
        out: where the products go, in place of an earlier replot's; each is compared with the one in `source`.
    """
    from dphlib.experiment.results import draw_recorded

    if not (source / "manifest.json").is_file():
        raise RunError(f"no recorded run in {source}: manifest.json is missing; give one with --source")
    if out.resolve() == source.resolve():
        raise RunError(f"{out} holds the results to compare with; give another folder with --out")
    for folder in ("figures", "tables"):
        shutil.rmtree(out / folder, ignore_errors=True)
    draw_recorded(source, out, _asked(source))
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


def reference(profile_name: Annotated[str, tyro.conf.arg(name="profile")] = "cpu", artifacts: Path = ARTIFACTS) -> int:
    """Keeps a run's results as `artifacts/reference`; writes what README and the pages of docs/ generate from it.

    Args:
        profile_name: the run to keep.
        artifacts: folder of the runs.
    """
    from dphlib.report.pages import build_report
    from tools.readme import write_readme_blocks
    from tools.site import OF_THE_RUN, fresh_page

    if not IN_REPOSITORY:
        raise RunError("dph reference writes into a clone of the repository; this dphlib is an installed package")
    source = artifacts / profile_from_environment(profile_name).name
    if problems := verify_run_manifest(source):
        raise RunError(f"{source}: {problems[0]}; run ./run_all.sh {profile_name} to the end first")
    manifest = read_json(source / "manifest.json")
    shutil.rmtree(REFERENCE, ignore_errors=True)
    REFERENCE.mkdir(parents=True)
    for name in RESULTS:
        if (source / name).is_file():
            shutil.copy2(source / name, REFERENCE / name)
    for name in RESULT_FOLDERS:
        shutil.copytree(source / name, REFERENCE / name, ignore=shutil.ignore_patterns("keys.json", "*.failed.ipynb"))
    for notebook in sorted((REFERENCE / "notebooks").glob("*.ipynb")):
        normalise(notebook)
        _lighten(notebook)
    extra = {key: manifest[key] for key in ("profile", "seeds", "asked", "seconds")}
    write_run_manifest(REFERENCE, extra, manifest)
    build_report(REFERENCE)
    write_run_manifest(REFERENCE, extra, manifest)
    write_readme_blocks(ROOT / "README.md", REFERENCE)
    for page in OF_THE_RUN:
        write_text(ROOT / page.PAGE, fresh_page(page, ROOT))
    print(f"{REFERENCE}: {sum(p.stat().st_size for p in REFERENCE.rglob('*') if p.is_file()) / 2**20:.1f} MiB")
    return 0


def _lighten(path: Path) -> None:
    """A notebook's images in few colours."""
    from dphlib.figures.style import few_colours

    notebook = json.loads(path.read_text(encoding="utf-8"))
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if image := output.get("data", {}).get("image/png"):
            output["data"]["image/png"] = b64encode(few_colours(b64decode(image))).decode()
    write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
