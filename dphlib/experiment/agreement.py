"""How far a run's records and verdicts agree with those of the committed reference run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.util import hash_pandas_object

from dphlib.analysis.claims import ClaimResult
from dphlib.report.facts import command_text, read_claims, read_json
from dphlib.runtime.machine import machine, pinned
from dphlib.runtime.places import REFERENCE

KEY = ["method", "variant", "seed", "step", "suite", "problem_id", "temperature"]
"""What identifies a record of a run."""


def equal_records(records: pd.DataFrame, reference: pd.DataFrame) -> tuple[int, int]:
    """Number of records that equal the reference's in every column, and of those that both runs have.

    Rows are compared by hashes of 64 bits, for there are millions of them.
    """
    columns = list(reference.columns)
    shared, equal = (
        hash_pandas_object(records[names], index=False).isin(hash_pandas_object(reference[names], index=False)).sum()
        for names in (KEY, columns)
    )
    return int(equal), int(shared)


def agreement(root: Path, profile_name: str, reference: Path = REFERENCE) -> str:
    """A sentence on a run's records and the reference's; "" where no reference of this profile is here."""
    if not (manifest := _manifest(reference, profile_name)):
        return ""
    equal, shared = equal_records(*(pd.read_parquet(folder / "records.parquet") for folder in (root, reference)))
    sentence = f"{equal:,} of {shared:,} records equal the reference's"
    if not pinned():
        return f"{sentence}; without the instructions of x86-64 with AVX2 a run agrees with it statistically only"
    if (made_on := _maker(manifest["machine"]["cpu"])) != _maker(machine()["cpu"]):
        return f"{sentence}; it was made on {made_on}, and on another maker's processor a run agrees statistically only"
    return sentence


def verdict_agreement(root: Path, profile_name: str, reference: Path = REFERENCE) -> str:
    """A sentence on a run's verdicts and the reference's; "" where no reference of this profile is here.

    The command of the reference is named where this run is of another one.
    """
    if not (manifest := _manifest(reference, profile_name)):
        return ""
    sentence = verdicts_beside(read_claims(root), read_claims(reference))
    ours, theirs = (command_text(one) for one in (read_json(root / "manifest.json"), manifest))
    return sentence if ours == theirs else f"{sentence}; the reference is of {theirs}, this run of {ours}"


def verdicts_beside(claims: Sequence[ClaimResult], reference: Sequence[ClaimResult]) -> str:
    """How many verdicts are the reference's, of the claims that both have; those that differ are named."""
    theirs = {claim.id: claim.verdict for claim in reference}
    shared = [claim for claim in claims if claim.id in theirs]
    different = [claim for claim in shared if claim.verdict != theirs[claim.id]]
    sentence = f"{len(shared) - len(different)} of {len(shared)} verdicts as in the reference"
    named = ", ".join(f"{claim.id} ({claim.verdict}, there {theirs[claim.id]})" for claim in different)
    return f"{sentence}; differs: {named}" if different else sentence


def _manifest(reference: Path, profile_name: str) -> dict[str, Any]:
    """The manifest of the reference; {} where there is none of this profile."""
    path = reference / "manifest.json"
    manifest = read_json(path) if path.is_file() else {}
    return manifest if manifest.get("profile") == profile_name else {}


def _maker(cpu: str) -> str:
    return next((maker for maker in ("AMD", "Intel") if maker in cpu), cpu)
