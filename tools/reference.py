"""Keeps a run's results as `artifacts/reference` and writes what README and the pages of docs/ show of it.

    python -m tools.reference [--artifacts FOLDER]       # the run of the profile cpu
    python -m tools.reference lm [--artifacts FOLDER]    # the run of lm: what is recorded, into its folder lm
    python -m tools.reference --anew    # report, manifest and documents of the reference as it is

The report is not copied: it is built anew from the results.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import nbformat

from dphlib.experiment.store import verify_run_manifest, write_run_manifest
from dphlib.figures.style import smaller
from dphlib.report.facts import read_json
from dphlib.report.pages import build_report
from dphlib.runtime.files import RunError, atomic_path, write_text
from dphlib.runtime.places import ARTIFACTS, REFERENCE, ROOT
from tools import site

RESULTS = ("*.parquet", "presample.csv", "cost.csv", "claims*.json", "manifest.json", "seconds.json")
FOLDERS = ("tables", "figures", "notebooks", "metrics")
PRETRAINED = "lm"


def keep(run: Path, reference: Path = REFERENCE) -> None:
    """Copies a finished run in place of the reference, `finish` is next; of one of `lm` what is recorded, into `lm`.

    Raises RunError where the run is not whole.
    """
    if problems := verify_run_manifest(run):
        raise RunError(f"{run}: {problems[0]}; run ./run_all.sh {run.name} to the end first")
    pretrained = run.name == PRETRAINED
    place = reference / PRETRAINED if pretrained else reference
    place.mkdir(parents=True, exist_ok=True)
    for path in place.iterdir():
        if path.name != PRETRAINED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in (path for pattern in RESULTS for path in run.glob(pattern)):
        shutil.copy2(path, place / path.name)
    if pretrained:
        return
    for name in FOLDERS:
        shutil.copytree(run / name, place / name, ignore=shutil.ignore_patterns("keys.json", "*.failed.ipynb"))
    for notebook in sorted((place / "notebooks").glob("*.ipynb")):
        normalise(notebook)
        _lighten(notebook)


def normalise(path: Path, root: Path = ROOT) -> None:
    """Rewrites an executed notebook for committing: no times, no absolute path of this machine.

    papermill's status of each cell stays, so `check_executed` still holds. Paths below `root` become relative
    to it; those of the interpreter, the temporary and the home folder become `<python>`, `<tmp>` and `~`.
    """
    notebook = nbformat.read(path, as_version=4)
    temporary_folder = tempfile.gettempdir()
    places = {str(Path.home()): "~", temporary_folder: "<tmp>", os.path.realpath(temporary_folder): "<tmp>"}
    places |= {sys.base_prefix: "<python>", sys.prefix: "<python>"}
    places |= {str(root.absolute()): ".", str(root.resolve()): "."}
    # Longest first: the virtual environment often lies below the root, and the root below the home folder.
    patterns = []
    for place, name in sorted(places.items(), key=lambda entry: len(entry[0]), reverse=True):
        start = rf"(?<!\w){re.escape(place)}"
        patterns += [(rf"{start}/(?=[\w.])", "")] if name == "." else []
        patterns += [(rf"{start}(?![\w-])", name)]

    def relative(value: Any) -> Any:
        if isinstance(value, str):
            for place, name in patterns:
                value = re.sub(place, name, value)
            return value
        if isinstance(value, list):
            return [relative(entry) for entry in value]
        return {key: relative(entry) for key, entry in value.items()} if isinstance(value, dict) else value

    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if "papermill" in cell.metadata:
            cell.metadata["papermill"] = {k: v for k, v in cell.metadata.papermill.items() if k == "status"}
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = relative(cell.source)
        if cell.cell_type == "code":
            cell.outputs = [nbformat.from_dict(relative(dict(output))) for output in cell.outputs]
    with atomic_path(path) as temporary:
        nbformat.write(notebook, temporary)


def finish(reference: Path = REFERENCE) -> None:
    """Builds the report, and a manifest of what is there; what it says of the run stays."""
    manifest = read_json(reference / "manifest.json")
    extra = {key: manifest[key] for key in ("profile", "seeds", "asked", "seconds")}
    write_run_manifest(reference, extra, manifest)
    build_report(reference)
    write_run_manifest(reference, extra, manifest)


def _lighten(path: Path) -> None:
    """A notebook's images in fewer bytes."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
        if image := output.get("data", {}).get("image/png"):
            output["data"]["image/png"] = b64encode(smaller(b64decode(image))).decode()
    write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.reference", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("profile", nargs="?", default="cpu", choices=["cpu", PRETRAINED], help="the run to keep")
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
