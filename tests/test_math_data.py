"""The mathematics verifier against recorded judgements and the golds of whole data sets, in ../shared/data.

Every disagreement stands in math_disagreements.json with its reason. `DPH_ALL_GOLDS=1` checks all golds of all sets,
rather than samples.
"""

from __future__ import annotations

import itertools
import json
import logging
import os

import numpy as np
import pytest

from dphlib.stats import pass_at_k
from dphlib.verify.math import MathVerifier
from tests.math_cases import DATA, GOLD_FIELDS, LISTED, as_boxed, clipped, gold_answers, read_rows, self_answer, vectors

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (DATA / "grader_math").exists(), reason="needs ../shared/data")]

SAMPLE_EVERY = {"math500": 5, "olympiadbench": 9, "college_math": 100}  # the others are plain numbers: all
if os.environ.get("DPH_ALL_GOLDS"):
    SAMPLE_EVERY = {}


@pytest.fixture(scope="module", params=["strict", "compat"])
def verifier(request):
    with MathVerifier(request.param, workers=2) as verifier:
        yield verifier


def judge(verifier, pairs):
    return [verdict.outcome for verdict in verifier.verify_many(pairs)]


def listed(mode, against):
    """(file, id) -> recorded and our judgement of the listed disagreements."""
    rows = [row for row in LISTED["vectors"] if (row["mode"], row["against"]) == (mode, against)]
    return {(row["file"], row["id"]): (row["gold"], row["prediction"], row["expected"], row["ours"]) for row in rows}


def disagreements(rows, expected, outcomes):
    return {
        (row["file"], row["id"]): (clipped(row["gold"]), clipped(row["prediction"]), int(wanted), outcome)
        for row, wanted, outcome in zip(rows, expected, outcomes, strict=True)
        if bool(wanted) != (outcome == "correct")
    }


# --- Recorded vectors ---------------------------------------------------------------------------------


def test_recorded_judgements_agree_but_for_the_listed_ones(verifier):
    rows = vectors()
    write = as_boxed if verifier.mode == "strict" else str
    outcomes = judge(verifier, [(row["gold"], write(row["prediction"])) for row in rows])
    assert disagreements(rows, [row["expected"] for row in rows], outcomes) == listed(verifier.mode, "source")


def test_compat_scores_as_plain_math_verify_but_for_the_listed_ones():
    from math_verify import parse, verify

    rows = vectors()
    logging.disable()
    try:
        plain = [verify(parse(row["gold"]), parse(row["prediction"])) for row in rows]
    finally:
        logging.disable(logging.NOTSET)
    with MathVerifier("compat") as verifier:
        outcomes = judge(verifier, [(row["gold"], row["prediction"]) for row in rows])
    assert disagreements(rows, plain, outcomes) == listed("compat", "math-verify")


def test_a_missing_text_is_named(verifier):
    rows = [row for row in read_rows("grader_math/reasoning_from_scratch.jsonl") if None in row.values()]
    assert len(rows) == 2
    for row in rows:
        with pytest.raises(TypeError, match="=None: must be text"):
            verifier.verify(row["gold"], row["prediction"])


def test_every_listed_disagreement_has_its_reason():
    entries = [*LISTED["vectors"], *LISTED["golds"], *LISTED["outcomes"]]
    assert {entry["reason"] for entry in entries} == set(LISTED["reasons"])
    assert all(len(reason) > 40 for reason in LISTED["reasons"].values())
    keys = [(row["file"], row["id"], row["mode"], row["against"]) for row in LISTED["vectors"]]
    assert len(keys) == len(set(keys))


# --- Golds against themselves -------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLD_FIELDS)
def test_golds_verify_against_themselves_but_for_the_listed_ones(verifier, name):
    golds = gold_answers(name)
    refused = {row["index"]: row for row in LISTED["golds"] if (row["mode"], row["set"]) == (verifier.mode, name)}
    chosen = sorted({*range(0, len(golds), SAMPLE_EVERY.get(name, 1)), *refused})
    outcomes = judge(verifier, [(golds[i], self_answer(verifier.mode, golds[i])) for i in chosen])
    failed = {i: outcome for i, outcome in zip(chosen, outcomes, strict=True) if outcome != "correct"}
    assert failed == {i: row["ours"] for i, row in refused.items()}
    assert all(clipped(golds[i]) == row["gold"] for i, row in refused.items())


def test_zero_padded_and_grouped_golds_equal_their_plain_form():
    with MathVerifier() as verifier:
        padded = [gold for gold in gold_answers("aime24") if gold.startswith("0")]
        assert len(padded) == 7
        assert set(judge(verifier, [(gold, f"\\boxed{{{int(gold)}}}") for gold in padded])) == {"correct"}
        grouped = [gold for gold in gold_answers("gsm8k_train") if "," in gold]
        forms = [
            (gold, f"\\boxed{{{gold.replace(',', comma)}}}") for gold in grouped for comma in ("", "{,}", "\\,", ",\\!")
        ]
        assert grouped and set(judge(verifier, forms)) == {"correct"}


# --- Recorded outcomes --------------------------------------------------------------------------------


def test_scores_of_qwen_answers_agree_but_for_the_listed_ones(verifier):
    rows = read_rows("outcomes/qwen25_math_8samples.jsonl")
    items = [(row["gt"], text) for row in rows for text in row["code"]]
    published = [score for row in rows for score in row["score"]]
    outcomes = judge(verifier, items)
    other = {
        i: (gold, expected, outcome)
        for i, ((gold, _), expected, outcome) in enumerate(zip(items, published, outcomes, strict=True))
        if bool(expected) != (outcome == "correct")
    }
    known = [row for row in LISTED["outcomes"] if row["mode"] == verifier.mode]
    assert other == {row["index"]: (row["gold"], bool(row["expected"]), row["ours"]) for row in known}
    assert len(items) == 400 and sum(published) == 351


def test_scores_of_openai_example_solutions_are_reproduced(verifier):
    models = {"6b_finetuning": 189, "6b_verification": 347, "175b_finetuning": 302, "175b_verification": 499}
    rows = read_rows("outcomes/gsm8k_example_model_solutions.jsonl")
    assert len(rows) == 879
    for model, correct in models.items():
        texts = [(row["ground_truth"], row[model]["solution"]) for row in rows]
        pairs = [(gold.rpartition("A:")[2].strip(), text.rpartition("A:")[2].strip()) for gold, text in texts]
        outcomes = judge(verifier, [(gold, f"\\boxed{{{answer}}}") for gold, answer in pairs])
        published = [row[model]["is_correct"] for row in rows]
        assert [outcome == "correct" for outcome in outcomes] == published and sum(published) == correct


def test_published_tora_figure_is_reproduced(verifier):
    rows = read_rows("outcomes/tora-70b-v1.0_gsm8k_pred.jsonl")
    published = (DATA / "outcomes" / "tora-70b-v1.0_gsm8k.metrics").read_text()
    outcomes = judge(verifier, [(row["gold"], f"\\boxed{{{row['prediction']}}}") for row in rows])
    assert f"Mean score: [{100 * outcomes.count('correct') / len(outcomes):.1f}]" in published.splitlines()


def test_published_cruxeval_pass_at_k_is_reproduced():
    recorded = json.loads((DATA / "outcomes" / "cruxeval_codellama7b_t0.2_output.json").read_text())
    correct = np.array([sum(scores) for scores in recorded["raw_scored_generations"].values()])
    assert correct.shape == (800,) and {len(s) for s in recorded["raw_scored_generations"].values()} == {10}
    for k in (1, 5):
        assert 100 * np.mean(pass_at_k(10, correct, k)) == pytest.approx(recorded[f"pass_at_{k}"], rel=1e-12)


def test_published_human_eval_example_is_reproduced():
    for row in read_rows("outcomes/human_eval_example.jsonl"):
        assert pass_at_k(row["n"], row["c"], row["k"]) == pytest.approx(row["expected_pass_at_k"], rel=1e-12)


# --- Golds against each other -------------------------------------------------------------------------


def test_no_gold_of_math500_is_accepted_for_another_that_looks_alike():
    """Neighbours in alphabetical order look most alike; but for units, none are equal."""
    golds = sorted(set(gold_answers("math500")))
    pairs = list(itertools.pairwise(golds))
    with MathVerifier(workers=2) as verifier:
        outcomes = judge(verifier, [(gold, f"\\boxed{{{answer}}}") for gold, answer in pairs])
    accepted = {pair for pair, outcome in zip(pairs, outcomes, strict=True) if outcome == "correct"}
    assert set(outcomes) <= {"correct", "wrong", "invalid"}
    degrees = {(number, f"{number}^\\circ") for number in ("30", "36", "120")}
    assert accepted == {*degrees, ("15", "15\\mbox{ cm}^2")}
