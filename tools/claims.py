"""One Markdown page for each claim of a recorded run, for trackers of reproductions, and a page that lists them.

    python -m tools.claims --out FOLDER [--run RESULTS]

Each page begins with YAML front matter (paper, claim, source, verdict, version); everything on it is the record's.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dphlib import __version__
from dphlib.analysis.claims import Decision, from_json, verdict_counts
from dphlib.experiment.results import CLAIMS_STOPPED
from dphlib.report.facts import command_text, machine_text, read_claims, read_json
from dphlib.runtime.files import UserError, make_folder, sha256_file, write_text
from dphlib.runtime.places import REFERENCE, ROOT
from tools import blocks, run

PAPER = "arXiv:2509.07430"
MEANING: dict[Decision, str] = {
    "supported": "the interval of every part is above zero, or above minus its tolerance",
    "not supported": "the interval of a part is at or below zero, or below minus its tolerance",
    "inconclusive": "some interval leaves both open, or an arm has fewer than three runs",
    "not testable": "the base model's own numbers leave no room for the claim to show",
    "not run": "an arm or a suite that it needs is not in the run",
}
"""What a verdict says, in the order of `claims.VERDICTS`."""
RECORD = ("claims.json", CLAIMS_STOPPED, "records.parquet")
"""Files of a run whose hashes stand on its pages."""


def pages(recorded: Path) -> dict[str, str]:
    """File name -> text, of every claim of a results folder and `index.md`.

    The verdict at the stopping point stands beside the one at the end where the folder has it. Raises RunError naming
    `claims.json` or `manifest.json` where it is absent or not JSON; `artifacts/full` has no manifest and needs none.
    """
    claims = read_claims(recorded)
    stopped = {}
    if (recorded / CLAIMS_STOPPED).is_file():
        stopped = {one.id: one for one in from_json((recorded / CLAIMS_STOPPED).read_text(encoding="utf-8"))}
    manifest = None if recorded.name == Path(run.FULL).name else read_json(recorded / "manifest.json")
    facts = {
        "paper": PAPER,
        "version": __version__,
        "meaning": MEANING,
        "profile": manifest["profile"] if manifest else "cpu",
        "command": command_text(manifest) if manifest else run.FULL_COMMAND,
        "machine": machine_text(manifest) if manifest else "",
        "hashes": {path.name: sha256_file(path) for name in RECORD if (path := recorded / name).is_file()},
    }
    made = {}
    for one in claims:
        made[f"{one.id}.md"] = blocks.rendered("claim", claim=one, stopped=stopped.get(one.id), **facts)["page"]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdict_counts(claims).items() if count)
    return {**made, "index.md": blocks.rendered("claim_list", claims=claims, counts=counts, **facts)["page"]}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.claims", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the pages")
    full = ROOT / run.FULL
    default = full if (full / "claims.json").is_file() else REFERENCE
    parser.add_argument("--run", type=Path, default=default, help="results folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        made = pages(options.run)
        make_folder(options.out)
        for name, text in made.items():
            write_text(options.out / name, text)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.out}: {len(made) - 1} claims and index.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
