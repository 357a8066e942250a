"""How far a run's records agree with those of the committed reference run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pandas.util import hash_pandas_object

from dphlib.report.facts import read_json
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
    if not (reference / "manifest.json").is_file():
        return ""
    manifest = read_json(reference / "manifest.json")
    if manifest["profile"] != profile_name:
        return ""
    equal, shared = equal_records(*(pd.read_parquet(folder / "records.parquet") for folder in (root, reference)))
    sentence = f"{equal:,} of {shared:,} records equal the reference's"
    if not pinned():
        return f"{sentence}; without the instructions of x86-64 with AVX2 a run agrees with it statistically only"
    if (made_on := _maker(manifest["machine"]["cpu"])) != _maker(machine()["cpu"]):
        return f"{sentence}; it was made on {made_on}, and on another maker's processor a run agrees statistically only"
    return sentence


def _maker(cpu: str) -> str:
    return next((maker for maker in ("AMD", "Intel") if maker in cpu), cpu)
