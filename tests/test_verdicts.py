"""The verdicts and intervals, part by part, against a second, independent implementation (`verdicts.py`)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import verdicts
from synthetic import make_records, make_train_logs

from dphlib.analysis.claims import evaluate_claims
from dphlib.scores import ArmScores

ARTIFACTS = Path(__file__).resolve().parents[1] / "artifacts"
RECORDED = [name for name in ("reference", "full") if (ARTIFACTS / name / "claims.json").is_file()]


def compare(claims, second, *, abs):
    """Asserts that both agree on every claim and part; returns the number of parts with an interval."""
    assert {claim["id"] for claim in claims} == set(second)
    compared = 0
    for claim in claims:
        verdict, jointly, parts = second[claim["id"]]
        assert (claim["verdict"], claim["holds_jointly"]) == (verdict, jointly), claim["id"]
        ours = sorted(claim["parts"], key=lambda part: (part["estimate"] is None, part["estimate"] or 0.0))
        theirs = sorted(parts, key=lambda part: (part[1] is None, part[1] or 0.0))
        assert len(ours) == len(theirs), claim["id"]
        for one, (told, *numbers) in zip(ours, theirs, strict=True):
            assert one["verdict"] == told, (claim["id"], one["label"])
            expected = [None if x is None else pytest.approx(x, rel=0, abs=abs) for x in numbers]
            assert [one[name] for name in ("estimate", "low", "high", "p")] == expected, (claim["id"], one["label"])
            compared += numbers[0] is not None
    return compared


def raised(records):
    """The records with the base models' answers all right out of domain."""
    easy = (records["method"] == "base") & (records["suite"] == "out_of_domain")
    return records.assign(correct=records["correct"].mask(easy, records["n"]))


@pytest.mark.parametrize(
    "seeds, bases, change",
    [
        (3, (0,), None),
        (5, (0,), None),
        (6, (0, 1, 2), None),
        (7, (0, 1, 2), None),  # one base has a run more
        (4, (0, 1, 2, 3), raised),
        (2, (0, 1), None),
    ],
)
def test_both_implementations_agree_on_every_part(seeds, bases, change):
    records = make_records(seeds=range(seeds), steps=False, bases=bases)
    records = change(records) if change else records
    logs = make_train_logs(seeds=range(seeds))
    ours = [asdict(claim) for claim in evaluate_claims(ArmScores.final(records), logs, "cpu")]
    assert compare(ours, verdicts.verdicts(records, logs), abs=1e-9) > 40
    if change:
        assert "not testable" in {claim["verdict"] for claim in ours}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize(
    ("file", "tables"),
    [("claims", ("records", "train_log")), ("claims_stopped", ("records", "train_log", "waypoints"))],
    ids=["end", "stopped"],
)
def test_the_recorded_verdicts_are_found_again(name, file, tables):
    """Those of the committed runs, whose numbers are rounded to six decimals, at both points."""
    claims = json.loads((ARTIFACTS / name / f"{file}.json").read_text(encoding="utf-8"))
    frames = [pd.read_parquet(ARTIFACTS / name / f"{table}.parquet") for table in tables]
    assert compare(claims, verdicts.verdicts(*frames), abs=2e-6) > 30
