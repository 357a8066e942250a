"""Keeps a run's results as `artifacts/reference` and writes what README and the pages of docs/ show of it.

    python -m tools.reference [PROFILE] [--artifacts FOLDER]
    python -m tools.reference --anew    # report, manifest and documents of the reference as it is

The report is not copied: it is built anew from the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from base64 import b64decode, b64encode
from pathlib import Path

from dphlib.experiment.store import verify_run_manifest, write_run_manifest
from dphlib.figures.style import few_colours
from dphlib.report.facts import read_json
from dphlib.report.notebooks import normalise
from dphlib.report.pages import build_report
from dphlib.runtime.files import RunError, write_text
from dphlib.runtime.places import ARTIFACTS, REFERENCE
from tools import site

RESULTS = ("*.parquet", "presample.csv", "cost.csv", "claims.json", "manifest.json", "seconds.json")
FOLDERS = ("tables", "figures", "notebooks", "metrics")


def keep(run: Path, reference: Path = REFERENCE) -> None:
    """Copies a finished run in place of the reference; `finish` is next. Raises RunError where the run is not whole."""
    if problems := verify_run_manifest(run):
        raise RunError(f"{run}: {problems[0]}; run ./run_all.sh {run.name} to the end first")
    shutil.rmtree(reference, ignore_errors=True)
    reference.mkdir(parents=True)
    for path in (path for pattern in RESULTS for path in run.glob(pattern)):
        shutil.copy2(path, reference / path.name)
    for name in FOLDERS:
        shutil.copytree(run / name, reference / name, ignore=shutil.ignore_patterns("keys.json", "*.failed.ipynb"))
    for notebook in sorted((reference / "notebooks").glob("*.ipynb")):
        normalise(notebook)
        _lighten(notebook)


def finish(reference: Path = REFERENCE) -> None:
    """Builds the report, and a manifest of what is there; what it says of the run stays."""
    manifest = read_json(reference / "manifest.json")
    extra = {key: manifest[key] for key in ("profile", "seeds", "asked", "seconds")}
    write_run_manifest(reference, extra, manifest)
    build_report(reference)
    write_run_manifest(reference, extra, manifest)


def _lighten(path: Path) -> None:
    """A notebook's images in few colours."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if image := output.get("data", {}).get("image/png"):
            output["data"]["image/png"] = b64encode(few_colours(b64decode(image))).decode()
    write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("profile", nargs="?", default="cpu", help="the run to keep")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the runs")
    parser.add_argument("--anew", action="store_true", help="keep no run; make report, manifest and documents anew")
    options = parser.parse_args(arguments)
    try:
        if not options.anew:
            keep(options.artifacts / options.profile)
        finish()
        return site.main(["--write"])
    except RunError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
