"""Judging mathematics: strict rules, agreement with known verdicts, and answers made to stall the judge."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from dphlib.verify_math import MathVerifier, extract_boxed, plain_number

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def strict():
    with MathVerifier(timeout_s=5.0) as verifier:
        yield verifier


def boxed(content: str) -> str:
    return f"so the answer is \\boxed{{{content}}}."


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{5}}", "5"),
        ("{ \\boxed{46}", "46"),
        (r"\boxed{ }", None),
        ("46", None),
        (r"\fbox{46}", None),
    ],
)
def test_last_balanced_box(text, content):
    assert extract_boxed(text) == content


def test_extraction_is_linear():
    start = time.perf_counter()
    for text in (
        "\\boxed{" * 30_000,
        "\\boxed{" + "(" * 200_000 + "}",
        "\\boxed" + " " * 200_000,
        "}" * 200_000,
    ):
        extract_boxed(text)
    assert time.perf_counter() - start < 2


def test_plain_numbers_are_exact_and_need_no_worker():
    with MathVerifier() as verifier:
        items = [("46", "46"), ("46", "046"), ("0.30", "0.3"), ("9007199254740993", "9007199254740992")]
        items += [("1,000", "1000"), ("-5", "- 5"), ("46", "4 6"), ("1" * 1500, "1" * 1500)]
        plain = [item for item in items if plain_number(item[1]) is not None]
        verdicts = verifier.verify_many([(gold, boxed(answer)) for gold, answer in plain])
        assert verifier.executed == 0 and verifier.pids() == []
        assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
        assert ("46", "4 6") not in plain


@pytest.mark.parametrize(
    ("gold", "content"),
    [
        ("5", "1=2=3=4=5"),
        ("5", "2+3=5"),
        ("5", "5=2+3"),
        ("x=5", "x=2+3=5"),
        ("46", "12+34"),
        ("3628800", "10!"),
        ("2", r"\sqrt{4}"),
        ("3", r"\frac{6}{2}"),
        ("1024", "2^{10}"),
        ("120", r"\binom{10}{3}"),
        ("46", "4 6"),
        ("24", "4 6"),
        ("n(n+1)/2", r"\sum_{k=1}^{n} k"),
    ],
)
def test_strict_gives_nothing_for_a_restatement(strict, gold, content):
    assert strict.verify(gold, boxed(content)).outcome == "wrong"


@pytest.mark.parametrize(
    ("gold", "content"),
    [
        ("5", "x=5"),
        ("0.5", r"\frac12"),
        (r"\frac{1}{2}", "0.5"),
        (r"$\frac{3}{4}$", r"\dfrac{3}{4}"),
        (r"\frac{11}{2}", r"5\frac{1}{2}"),
        ("12", r"12 \text{ cm}^2"),
        ("10", r"\$10"),
        ("90", r"90^\circ"),
        ("1500", r"1.5 \times 10^3"),
        (r"\{1,2\}", r"\{2,1\}"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("x+2", "2+x"),
        ("y=2x+3", "y=3+2x"),
        ("x=1,y=2", "x=1,y=2"),
        (r"\text{odd}", "odd"),
        ("(1,2)", "(1, 2)"),
        ("12:00", "12:00"),
    ],
)
def test_strict_accepts_worked_out_answers(strict, gold, content):
    assert strict.verify(gold, boxed(content)).outcome == "correct"


@pytest.mark.parametrize(
    ("gold", "text", "outcome"),
    [
        ("1,2", r"\boxed{1} and \boxed{2}", "wrong"),
        ("12:00", boxed("1:00"), "wrong"),
        (r"\pi", boxed("3.14"), "wrong"),
        ("46", "the answer is 46", "no_answer"),
        ("46", r"\boxed{46", "no_answer"),
        ("46", "", "no_answer"),
        (r"\frac{1}{", boxed("1=2=3"), "infra_error"),
        ("", boxed("x"), "infra_error"),
        (r"\frac{1}{", boxed(r"\pi"), "infra_error"),
    ],
)
def test_strict_outcomes(strict, gold, text, outcome):
    verdict = strict.verify(gold, text)
    assert verdict.outcome == outcome
    assert verdict.reward == (None if outcome == "infra_error" else 0.0)


def test_stalling_answers_end_by_the_deadline():
    bombs = ["9^{9^{9^{9^{9}}}}+x", "(" * 400 + "x" + ")" * 400, "1" * 1900 + "x", "(x+y+z)^{500}"]
    bombs += ["\\sqrt{" * 100 + "x" + "}" * 100, "5" + "a" * 1900 + "!", "1" * 100_000, "x" * 200_000]
    with MathVerifier(timeout_s=1.5) as verifier:
        verifier.verify("y", boxed("y"))
        for bomb in bombs:
            start = time.perf_counter()
            assert verifier.verify("x", boxed(bomb)).outcome in ("wrong", "invalid", "timeout", "too_large")
            assert time.perf_counter() - start < 1.5 + 1
        assert verifier.verify("y+1", boxed("1+y")).outcome == "correct"


def test_works_in_a_thread(strict):
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(strict.verify("2x+4", boxed("2(x+2)"))))
    thread.start()
    thread.join(30)
    assert [verdict.outcome for verdict in verdicts] == ["correct"]


def test_order_is_kept_and_equal_items_run_once():
    with MathVerifier(workers=2) as verifier:
        items = [("2x", boxed(("2x", "x+x+x", "7")[i % 3])) for i in range(3000)] + [("7", boxed("7"))] * 1000
        rewards = [verdict.reward for verdict in verifier.verify_many(items)]
        assert rewards == [1.0, 0.0, 0.0] * 1000 + [1.0] * 1000
        assert verifier.executed == 3


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'loose'"):
        MathVerifier("loose")


@pytest.mark.skipif(not (DATA / "math" / "math500.jsonl").exists(), reason="needs ../shared/data/math")
def test_math500_golds_verify_against_themselves(strict):
    golds = [json.loads(line)["answer"] for line in (DATA / "math" / "math500.jsonl").open()][::4]
    verdicts = strict.verify_many([(gold, boxed(gold)) for gold in golds])
    assert [gold for gold, verdict in zip(golds, verdicts, strict=True) if verdict.outcome != "correct"] == []


@pytest.mark.skipif(not (DATA / "outcomes").exists(), reason="needs ../shared/data/outcomes")
def test_agrees_with_published_scores_of_400_answers(strict):
    rows = [json.loads(line) for line in (DATA / "outcomes" / "qwen25_math_8samples.jsonl").open()]
    items = [(str(row["gt"]), text) for row in rows for text in row["code"]]
    published = [score for row in rows for score in row["score"]]
    verdicts = strict.verify_many(items)
    other = [
        (g, extract_boxed(t))
        for (g, t), v, s in zip(items, verdicts, published, strict=True)
        if v.reward != s
    ]
    assert other == [("10{,}000", "10000")]  # the published score misses this one


@pytest.mark.skipif(not (DATA / "grader_math").exists(), reason="needs ../shared/data/grader_math")
def test_compat_agrees_with_math_verify_own_cases():
    rows = [json.loads(line) for line in (DATA / "grader_math" / "math_verify.jsonl").open()]
    with MathVerifier("compat") as verifier:
        verdicts = verifier.verify_many([(row["gold"], row["prediction"]) for row in rows])
    agree = sum(
        (v.outcome == "correct") == bool(row["expected"]) for v, row in zip(verdicts, rows, strict=True)
    )
    assert agree >= len(rows) - 4  # these set options of math-verify that `compat` leaves at their defaults
