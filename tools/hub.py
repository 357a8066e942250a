"""The shipped bases as a repository of the Hugging Face Hub: a model card and one model folder for each base.

    python -m tools.hub --out FOLDER    # FOLDER/README.md, LICENSE, 0/, 1/, ... ready to upload
    hf upload OWNER/NAME FOLDER .       # the Hub's own client; an account is needed

The card is artifacts/bases/README.md; its generated blocks are made from `bases.json` and the settings by `tools.site`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from dphlib.experiment import bases
from dphlib.report.facts import read_json
from dphlib.runtime.files import RunError, UserError, make_folder
from dphlib.runtime.places import ROOT
from dphlib.settings.profiles import profile
from tools import blocks

CARD = Path("artifacts", "bases", "README.md")


def card_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the model card. Raises RunError where `bases.json` is absent or not JSON."""
    listed, settings = read_json(root / CARD.parent / bases.LIST), profile("cpu")
    rows: list[dict[str, Any]] = []
    for index, entry in sorted(listed["bases"].items(), key=lambda item: int(item[0])):
        (weights,) = entry["files"].values()
        rows.append({"index": index, "loss": entry["log"]["loss"][-1], **weights})
    first = listed["bases"][rows[0]["index"]]
    return blocks.rendered(
        "card",
        rows=rows,
        shared=listed["shared"],
        settings=settings,
        parameters=first["log"]["parameters"],
        every=first["log"]["every"],
        versions=first["versions"],
    )


def write(out: Path, root: Path = ROOT) -> list[Path]:
    """Writes the card, the licence and a model folder for each base to `out`; returns the model folders.

    Raises:
        RunError: `out` holds something already, or a base is missing or has other bytes than when it was shipped.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty; give another folder with --out")
    settings, folders = profile("cpu"), []
    make_folder(out)
    for index in range(settings.bases):
        if (base := bases.shipped(settings, index)) is None:
            raise RunError(f"base {index} is not shipped; python -m tools.bases makes it")
        folders.append(out / str(index))
        make_folder(folders[-1])
        base.copy(folders[-1])
    shutil.copyfile(root / CARD, out / CARD.name)
    shutil.copyfile(root / "LICENSE", out / "LICENSE")
    return folders


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.hub", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    options = parser.parse_args(arguments)
    try:
        folders = write(options.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.out}: {CARD.name}, LICENSE and {len(folders)} models")
    return 0


if __name__ == "__main__":
    sys.exit(main())
