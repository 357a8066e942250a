"""The generated blocks of all documents, and the repository's public address in every place that repeats it.

    python -m tools.site --write    # makes them anew
    python -m tools.site --check    # exit status 1 and a line for each file that is stale

The address is given once, by `[tool.dph] repository` in pyproject.toml; while it is empty the places that repeat it say
how to go on without, and no link is broken. In a notebook they are the cells tagged `badge` and `bootstrap`.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat

from dphlib import __version__
from dphlib.runtime.files import RunError, write_text
from dphlib.runtime.places import ROOT
from tools import blocks, findings, hub, protocol, reviewers, run, speed, third_party, verifier

_ADDRESS = re.compile(r"https://([\w.-]+)/([\w.-]+/[\w.-]*\w)")
FIRST_NOTEBOOK = "00_kick_the_tires"


def address_blocks(root: Path, notebook: str = FIRST_NOTEBOOK) -> dict[str, str]:
    """What repeats the address: badges, release, urls, and two cells of a notebook, named without suffix.

    Raises ValueError for what is not such an address.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    address, match = project["tool"]["dph"]["repository"], None
    if address and (not (match := _ADDRESS.fullmatch(address)) or address.endswith(".git")):
        raise ValueError(
            f'pyproject.toml: [tool.dph] repository = "{address}" is not like "https://github.com/owner/name"; '
            "leave out a trailing slash and .git, or leave it empty"
        )
    github = match[2] if match and match[1] == "github.com" else ""
    names = {"notebook": notebook, "first": FIRST_NOTEBOOK}
    return blocks.rendered("site", address=address, github=github, version=__version__, **names)


def address_part(*names: str) -> Callable[[Path], dict[str, str]]:
    return lambda root: {name: address_blocks(root)[name] for name in names}


PAGES: dict[str, Callable[[Path], dict[str, str]]] = {
    "pyproject.toml": address_part("urls"),
    "CITATION.cff": address_part("release"),
    "README.md": lambda root: address_part("badges")(root) | run.readme_blocks(root) | findings.readme_block(root),
    "THIRD_PARTY.md": third_party.page_blocks,
    "docs/verifier.md": verifier.page_blocks,
    "docs/findings.md": findings.page_blocks,
    "docs/reviewers.md": reviewers.page_blocks,
    "docs/artifact_appendix.md": run.appendix_blocks,
    "docs/results.md": run.results_blocks,
    "docs/times.md": run.times_blocks,
    "docs/speed.md": speed.page_blocks,
    "docs/protocol.md": protocol.page_blocks,
    "artifacts/bases/README.md": hub.card_blocks,
}
"""Each document with generated blocks, and what makes them."""


def stale(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Files that are not fresh, each with the text that it should have.

    Raises ValueError or RunError for a file without its marker lines, a notebook without its tagged cells, and a
    record that is absent.
    """
    for name, make in PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        if (should := blocks.fill(text, make(root), name)) != text:
            yield root / name, should
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook, should = nbformat.read(path, as_version=4), address_blocks(root, path.stem)
        changed = False
        for tag in ("badge", "bootstrap"):
            cells = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
            if len(cells) != 1:
                raise ValueError(f"notebooks/{path.name}: one cell tagged `{tag}` is needed")
            changed |= cells[0].source != should[tag]
            cells[0].source = should[tag]
        if changed:
            yield path, nbformat.writes(notebook) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description="Generated blocks of the documents.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="make them anew")
    action.add_argument("--check", action="store_true", help="exit status 1 when a file is stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    options = parser.parse_args(arguments)
    try:
        found = list(stale(options.root))
    except (ValueError, RunError) as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in found:
        if options.write:
            write_text(path, text)
        print(f"{path.relative_to(options.root)}: {'written' if options.write else 'stale; run --write'}")
    return int(options.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
