"""How far a run's records agree with those of the committed reference run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from pandas.util import hash_pandas_object

from dphlib.report.facts import read_json
from dphlib.runtime.machine import pinned
from dphlib.runtime.places import REFERENCE

KEY = ["method", "variant", "seed", "step", "suite", "problem_id", "sample"]
"""What identifies an answer of a run."""


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
    manifest = reference / "manifest.json"
    if not manifest.is_file() or read_json(manifest)["profile"] != profile_name:
        return ""
    equal, shared = equal_records(*(pd.read_parquet(folder / "records.parquet") for folder in (root, reference)))
    sentence = f"{equal:,} of {shared:,} records equal the reference's"
    if pinned():
        return sentence
    return f"{sentence}; without the instructions of x86-64 with AVX2 a run agrees with it statistically only"
