"""The verdicts as tables and as a picture: nothing that was judged is lost or changed on the way to the reader."""

from __future__ import annotations

import pytest
from synthetic import make_records, make_train_logs

from dphlib.analysis.claims import CLAIMS, ClaimResult, evaluate_claims
from dphlib.figures.claims import claims_figure, claims_table, deciding_part, parts_table, verdict_counts


@pytest.fixture(scope="module")
def judged() -> list[ClaimResult]:
    """Made-up verdicts of several kinds; the ablations were not run."""
    return evaluate_claims(make_records(ablations=False, steps=False), make_train_logs(), "cpu")


def test_every_claim_has_its_line_under_its_verdict(judged):
    table, counts = claims_table(judged), verdict_counts(judged)
    assert sorted(table["claim"]) == sorted(claim.text for claim in CLAIMS)
    assert sum(counts.values()) == len(judged) and counts["not run"] >= 1 and counts["supported"] >= 1
    assert table["verdict"].tolist() == [f"**{v}**" for v, count in counts.items() for _ in range(count)]
    not_run = table[table["verdict"] == "**not run**"]
    assert (not_run["effect that decided"] == "-").all() and not_run["which is"].str.contains("no records of").all()


def test_the_deciding_part_is_the_one_whose_numbers_the_claim_has(judged):
    for one in judged:
        part = deciding_part(one)
        assert (part.estimate, part.low, part.high, part.verdict) == (one.estimate, one.low, one.high, one.verdict)


def test_parts_can_be_chosen_by_verdict(judged):
    every = parts_table(judged)
    assert len(every) == sum(len(one.parts) for one in judged)
    supported = parts_table(judged, "supported")
    assert set(supported["claim"]) == {one.id for one in judged if one.verdict == "supported"}
    assert set(every.loc[every["claim"] == "dph_greedy_highest", "tolerance"]) == {"2 points"}
    assert list(parts_table([], "not run").columns) == list(every.columns)
    with pytest.raises(ValueError, match="'maybe': all, supported"):
        parts_table(judged, "maybe")


def test_the_picture_has_a_row_for_each_claim_that_has_an_interval(judged):
    figure = claims_figure(judged)
    names = {text.get_text() for ax in figure.axes for text in ax.get_yticklabels()}
    assert names == {one.id.replace("_", " ") for one in judged if one.unit in ("share", "nats")}
    below = figure._supxlabel.get_text()
    assert "no reference model: supported" in " ".join(below.split())
    with pytest.raises(ValueError, match="notebook 08"):
        claims_figure([])
