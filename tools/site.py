"""The repository's public address, told once in pyproject.toml, and every place that repeats it.

`[tool.dph] repository` is empty until the repository has an address; then one command brings it everywhere:

    python -m tools.site --write    # two cells of each notebook, README, CITATION.cff, pyproject.toml, docs
    python -m tools.site --check    # exit status 1 and a line for each place that is stale
    python -m tools.site --api build/api    # the API reference, a page for each module, by pdoc from the docstrings

While it is empty the same places say how to go on without it, and no link is broken. The notebooks take
theirs from `badge_source` and `bootstrap_source`, in cells tagged `badge` and `bootstrap`. THIRD_PARTY.md comes from
`third_party`, the generated blocks of docs/verifier.md from `verifier_page`, those of docs/findings.md from `findings`,
those of docs/artifact_appendix.md from `appendix`, those of docs/speed.md from `speed_page`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dphlib import __version__
from dphlib.runtime.files import write_text
from dphlib.runtime.places import ROOT
from tools import appendix, findings, speed_page, third_party, verifier_page

_ADDRESS = re.compile(r"https://([\w.-]+)/([\w.-]+/[\w.-]*\w)")
_COLAB, _BINDER = "https://colab.research.google.com", "https://mybinder.org"
FIRST_NOTEBOOK = "00_kick_the_tires"
_PAGES = (verifier_page, findings, appendix, speed_page)
OF_THE_RUN = (findings, appendix)
"""Modules of the generated blocks of a page: `PAGE`, its place, and `page_blocks(root)`, name -> text; of these, the
ones that are made from the reference run."""


def repository(root: Path = ROOT) -> str:
    """The public address, "" while there is none. Raises ValueError for what is none."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    address = tomllib.loads(text)["tool"]["dph"]["repository"]
    if address and (not _ADDRESS.fullmatch(address) or address.endswith(".git")):
        raise ValueError(
            f'pyproject.toml: [tool.dph] repository = "{address}" is not like '
            '"https://github.com/owner/name"; '
            "leave out a trailing slash and .git, or leave it empty"
        )
    return address


def _colab_link(name: str, address: str) -> str:
    """Colab's address of a notebook at the release's tag; "" where Colab cannot open it."""
    match = _ADDRESS.fullmatch(address)
    if not match or match[1] != "github.com":
        return ""
    return f"{_COLAB}/github/{match[2]}/blob/v{__version__}/notebooks/{name}.ipynb"


def badge_source(name: str, address: str | None = None) -> str:
    """Markdown of the cell tagged `badge` of a notebook, named without suffix, such as `04_train`."""
    address = repository() if address is None else address
    if link := _colab_link(name, address):
        binder = f"{_BINDER}/v2/gh/{_ADDRESS.fullmatch(address)[2]}/v{__version__}?labpath=notebooks%2F{name}.ipynb"  # type: ignore[index]
        return (
            f"[![Open in Colab]({_COLAB}/assets/colab-badge.svg)]({link})\n"
            f"[![Open in Binder]({_BINDER}/badge_logo.svg)]({binder})"
        )
    return (
        f"*In Colab: download the repository, open `notebooks/{name}.ipynb` by File > Upload notebook, "
        "then follow the line that the next cell prints.*"
    )


def bootstrap_source(address: str | None = None) -> str:
    """Python of the cell tagged `bootstrap`; it acts on Colab only, and installs where `dphlib` is missing."""
    address = repository() if address is None else address
    head = """\
# On Colab only; elsewhere this cell does nothing.
import importlib.util
import sys

if "google.colab" in sys.modules:
"""
    tail = "    from dphlib import colab\n\n    colab.prepare()"
    if not address:
        return (
            head + '    if importlib.util.find_spec("dphlib") is None:\n'
            "        raise ImportError(\n"
            '            "this copy has no public address: upload the repository\'s folder to /content/dph, "\n'
            "            \"run %pip install '/content/dph[notebooks]', then run this cell again\"\n"
            "        )\n" + tail
        )
    return (
        head + '    if importlib.util.find_spec("dphlib") is None:  # the tagged release; Colab\'s own torch stays\n'
        "        import importlib.metadata\n"
        "        import subprocess\n"
        "\n"
        "        pinned = f\"torch=={importlib.metadata.version('torch')}\"\n"
        f'        release = "dphlib[notebooks] @ git+{address}@v{__version__}"\n'
        '        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", pinned, release], check=True)\n'
        + tail
    )


# --- Generated places ---------------------------------------------------------------------------------


def _between(text: str, begin: str, end: str, body: str, where: str) -> str:
    """`text` with what stands between two marker lines replaced. Raises ValueError without them."""
    pattern = re.compile(rf"^({re.escape(begin)}\n).*?^({re.escape(end)}$)", re.MULTILINE | re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"{where}: the lines {begin} and {end} are needed once, in this order")
    return pattern.sub(lambda match: match[1] + body + match[2], text)


def _readme(text: str, address: str) -> str:
    if not address:
        body = ""
    else:
        body = f"[![tests]({address}/actions/workflows/ci.yml/badge.svg)]({address}/actions/workflows/ci.yml)\n"
        if "github.com" not in address:
            body = ""  # the badge is of GitHub's own runs
        if _colab_link(FIRST_NOTEBOOK, address):
            body += badge_source(FIRST_NOTEBOOK, address) + "\n"
    return _between(text, "<!-- generated:badges -->", "<!-- generated:end -->", body, "README.md")


def _citation(text: str, address: str) -> str:
    body = f"version: {__version__}\n" + (f'repository-code: "{address}"\n' if address else "")
    return _between(text, "# generated:release", "# generated:end", body, "CITATION.cff")


def _pyproject(text: str, address: str) -> str:
    body = f'[project.urls]\nRepository = "{address}"\nPaper = "https://arxiv.org/abs/2509.07430"\n' if address else ""
    return _between(text, "# generated:urls", "# generated:end", body, "pyproject.toml")


def _notebook(name: str) -> Callable[[str, str], str]:
    def fresh(text: str, address: str) -> str:
        import nbformat

        notebook = nbformat.reads(text, as_version=4)
        for tag, kind, source in (
            ("badge", "markdown", badge_source(name, address)),
            ("bootstrap", "code", bootstrap_source(address)),
        ):
            cells = [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]
            if len(cells) != 1 or cells[0].cell_type != kind:
                raise ValueError(f"notebooks/{name}.ipynb: one {kind} cell tagged `{tag}` is needed")
            if cells[0].source == source:
                continue
            cells[0].source = source
            text = nbformat.writes(notebook) + "\n"
        return text

    return fresh


def fresh_page(module: Any, root: Path = ROOT) -> str:
    """The text of a page of `docs/` as it should be: its generated blocks made anew by its module.

    Raises ValueError for a block that the module does not make, or that the page lacks.
    """
    text, blocks = (root / module.PAGE).read_text(encoding="utf-8"), module.page_blocks(root)
    if unknown := set(re.findall(r"<!-- generated:([\w-]+) -->", text)) - set(blocks):
        raise ValueError(f"{module.PAGE}: no such block: {', '.join(sorted(unknown))}")
    for name, body in blocks.items():
        begin, end = f"<!-- generated:{name} -->", f"<!-- /generated:{name} -->"
        text = _between(text, begin, end, body, str(module.PAGE))
    return text


def stale(root: Path = ROOT) -> dict[Path, str]:
    """Generated places that are not fresh: file -> the text that it should have.

    A file that does not exist has nothing to be kept fresh, save CITATION.cff and pyproject.toml.
    Raises ValueError for a file without its markers, or a notebook without its tagged cells.
    """
    address = repository(root)
    places: dict[Path, Callable[[str, str], str]] = {
        root / "pyproject.toml": _pyproject,
        root / "CITATION.cff": _citation,
    }
    if (root / "README.md").exists():
        places[root / "README.md"] = _readme
    for module in _PAGES:
        if (root / module.PAGE).exists():
            places[root / module.PAGE] = lambda text, address, module=module: fresh_page(module, root)  # type: ignore[misc]
    places |= {path: _notebook(path.stem) for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))}
    found = {}
    for path, fresh in places.items():
        text = path.read_text(encoding="utf-8")
        if (should := fresh(text, address)) != text:
            found[path] = should
    return found


# --- API reference ------------------------------------------------------------------------------------


def api_reference(out: Path) -> list[str]:
    """Writes the API reference into a folder: `dphlib.html` leads to a page for each module, with one search over all.

    Returns what pdoc could not read, a text each; [] for a whole reference.
    """
    import pdoc

    pdoc.render.configure(docformat="google", footer_text=f"dphlib {__version__}", show_source=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pdoc.pdoc("dphlib", output_directory=out)
    ours = [one for one in told if issubclass(one.category, UserWarning) and "pdoc" in Path(one.filename).parts]
    # The __init__ that `dataclass` writes knows no module's names: pdoc shows its annotations as they are written.
    return [text for text in (str(one.message) for one in ours) if ".__init__. Import of " not in text]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.site", description="Generated places of the repository.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="bring the address everywhere")
    action.add_argument("--check", action="store_true", help="exit status 1 when a place is stale")
    action.add_argument("--api", type=Path, metavar="FOLDER", help="write the API reference into a folder")
    parser.add_argument("--report", type=Path, action="append", default=[], help="licences as pip reported them")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository (default: this one)")
    options = parser.parse_args(arguments)
    if options.api:
        problems = api_reference(options.api)
        print("\n".join([*problems, str(options.api / "dphlib.html")]))
        return int(bool(problems))
    try:
        places = stale(options.root)
        if options.report or not third_party.is_fresh(options.root):
            text = third_party.page(options.root, options.report) if options.write else ""
            places[options.root / third_party.PAGE] = text
    except (ValueError, importlib.metadata.PackageNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in places.items():
        if options.write:
            write_text(path, text)
        print(f"{path.relative_to(options.root)}: {'written' if options.write else 'stale; run --write'}")
    return int(options.check and bool(places))


if __name__ == "__main__":
    sys.exit(main())
