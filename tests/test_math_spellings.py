"""A careful reader's verdicts in strict mode, kind by kind, from tests/math_spellings.jsonl.

Each line has a gold, the content of a box (or a whole text), whether it is right (null: no answer), and its kind:
spellings of one answer and their wrong neighbours, from public reports of bugs in graders and from data sets' golds;
answers made to deceive.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dphlib.verify.math import AS_TEXT, MathVerifier
from dphlib.verify.math_spelling import tidy
from tests.math_cases import RESPELLINGS

ROWS = [json.loads(line) for line in Path(__file__).with_suffix("").with_name("math_spellings.jsonl").open()]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(workers=2) as verifier:
        yield verifier


@pytest.mark.parametrize("kind", dict.fromkeys(row["kind"] for row in ROWS))
def test_every_pair_of_a_kind_gets_its_verdict(verifier, kind):
    expected = {1: ("correct",), 0: ("wrong", "invalid"), None: ("no_answer",)}
    rows = [row for row in ROWS if row["kind"] == kind]
    texts = [row["text"] if "text" in row else f"\\boxed{{{row['answer']}}}" for row in rows]
    verdicts = verifier.verify_many([(row["gold"], text) for row, text in zip(rows, texts, strict=True)])
    failing = [
        f"{row['gold']} | {text} | {row['right']} | {verdict}".encode("ascii", "backslashreplace").decode()
        for row, text, verdict in zip(rows, texts, verdicts, strict=True)
        if verdict.outcome not in expected[row["right"]]
    ]
    assert not failing, "\n".join(failing)


def test_tidy_is_done_once():
    """What is in the one spelling stays as it is."""
    texts = {tidy(row.get(name, "")) for row in ROWS for name in ("gold", "answer")}
    assert {text for text in texts if tidy(text) != text} == set()


GOLDS = (
    r"""
27+38 i; 1 \pm \sqrt{19}; 4.5 \times 10^{33}; \frac{3+4 i}{5}; e^{i x}; [0,1); x \in(-\infty, 2] \cup[3, \infty)
12.5 \%; 2516_{8}; y=-\frac{1}{2} x+\frac{3}{4}; 2 \sqrt{3}-\frac{1}{e}; \left(\frac{1}{2}, 2 \pi\right)
\{x \mid x \geq 0\}; x=1, y=-2 e; \frac{\pi}{4}; -1<x \leq 1; 3 \alpha^{2}-\beta; \emptyset
\begin{pmatrix}1 \\ -2\end{pmatrix}
""".strip()
    .replace("\n", "; ")
    .split("; ")
)


@pytest.mark.parametrize("rule", RESPELLINGS)
def test_a_gold_respelt_is_right(verifier, rule):
    pairs = [(gold, f"\\boxed{{{RESPELLINGS[rule](gold)}}}") for gold in GOLDS]
    verdicts = verifier.verify_many(pairs)
    assert [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.outcome != "correct"] == []


@pytest.mark.parametrize(
    ("gold", "as_text"),
    [
        *(("x+1", False), (r"\text{Evelyn}", False), ("12 apples", False), ("5", False), ("-1./3", False)),
        *(("x=0, x= \\pm 2", False), ("The area is 5, so x=2", True), (r"1+x @ 3", True), (r"20 @ \$ 18", True)),
    ],
)
def test_a_gold_that_only_its_own_text_can_match_says_so(verifier, gold, as_text):
    verdict = verifier.verify(gold, f"\\boxed{{{gold}}}")
    assert (verdict.outcome, verdict.detail) == ("correct", AS_TEXT if as_text else "")
