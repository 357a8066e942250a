"""What strict mode says to answers made to deceive it, or written in an unusual way: a careful reader's verdict."""

from __future__ import annotations

import pytest

from dphlib.verify.math import MathVerifier

RIGHT, WRONG, NONE = "correct", "wrong", "no_answer"

# gold, content of the box, verdict of a careful reader.
CONTENTS = [
    # A chain, a restatement, an operation left to the reader.
    ("5", "1=2=3=4=5", WRONG),
    ("5", "5=5", WRONG),
    ("5", "x=1=5", WRONG),
    ("x=5", "x=2+3", WRONG),
    ("3628800", "10!", WRONG),
    ("120", "5!", WRONG),
    ("46", "12+34", WRONG),
    ("6", r"2 \cdot 3", WRONG),
    ("6", "2(3)", WRONG),
    ("5", "--5", WRONG),
    ("5 \\text{ cm}", "2+3 \\text{ cm}", WRONG),
    ("(1,2)", "(3-2,4-2)", WRONG),
    (r"\{1,2\}", r"\{1,1+1\}", WRONG),
    ("2x", r"\frac{d}{dx} x^2", WRONG),
    ("2x", r"\frac{d(x^2)}{dx}", WRONG),
    (r"\frac{x^2}{2}", r"\int_0^x t\,dt", WRONG),
    (r"\begin{pmatrix}4\\6\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}+\begin{pmatrix}3\\4\end{pmatrix}", WRONG),
    (r"\begin{pmatrix}1&0\\0&1\end{pmatrix}", r"\begin{pmatrix}0&1\\1&0\end{pmatrix}^2", WRONG),
    # Several values where one is wanted, or the gold among others.
    ("5", "5 or 6", WRONG),
    ("5", r"5 \text{ or } 6", WRONG),
    ("5", "5, 5", WRONG),
    ("5", r"\pm 5", WRONG),
    (r"\pm 5", "5", WRONG),
    ("5", r"\{5\}", RIGHT),
    ("5", r"5 \\ 6", WRONG),
    ("5", r"\begin{cases}5\\6\end{cases}", WRONG),
    ("x=1", r"x=1 \text{ or } x=2", WRONG),
    ("x", "x, x", WRONG),
    ("f(x)", "f'(x)", WRONG),
    ("x+1", "x+1, x+2", WRONG),
    (r"\text{A}", r"\text{A or B}", WRONG),
    ("34", r"3\quad 4", WRONG),
    ("34", "3 4", WRONG),
    # Words that change the value, or say that it is not the answer.
    ("5", r"5 \text{ million}", WRONG),
    ("5", r"5 \text{ millions}", WRONG),
    ("5", "5 thousands", WRONG),
    ("3", "3 quarters", WRONG),
    ("2", r"2 \text{ dozens}", WRONG),
    ("16", r"16 \text{ base eight}", WRONG),
    (r"11:30 \text{ a.m.}", r"11:30 \text{ p.m.}", WRONG),
    (r"11:30 \text{ a.m.}", r"11:30 \text{ AM}", RIGHT),
    (r"10 \text{ west}", r"10 \text{ east}", WRONG),
    # A word that is the value and no unit behind it.
    (r"\mathrm{h}=\mathrm{gi}", r"\mathrm{h}=\mathrm{zz}", WRONG),
    (r"\mathrm{h}=\mathrm{gi}", r"\mathrm{h}=\mathrm{gi}", RIGHT),
    (r"x=\text{five}", r"x=\text{undefined}", WRONG),
    (r"y+\text{cat}", r"y+\text{dog}", WRONG),
    (r"|x| \text{ cm}", "|x|", RIGHT),
    # Values without the names that the gold gives them.
    ("m=6,b=-4", "-4,6", WRONG),
    ("m=6,b=-4", "6,-4", RIGHT),
    ("m=6,b=-4", "b=-4, m=6", RIGHT),
    ("x=1,x=2", "2,1", RIGHT),
    ("5", r"5 \text{ no } 7 \text{ x}", WRONG),
    ("x", r"x \text{ is not the answer}", WRONG),
    ("x+1", r"x+1 \text{ no wait } x+2", WRONG),
    ("5", r"\text{not } 5", WRONG),
    # What is not seen when printed.
    ("5", r"\phantom{5}", WRONG),
    ("5", r"5\phantom{6}", WRONG),
    ("x", r"\phantom{}", WRONG),
    ("5", r"6 % 5", WRONG),
    ("x+1", "x+2 % x+1", WRONG),
    ("5", r"\def\a{5}\a", WRONG),
    ("51", "\u202e15", WRONG),
    ("15", "\u202e15", WRONG),
    ("5", "\u200b5\u200e", RIGHT),
    ("5", "\ufeff5\u2060", RIGHT),
    # Variables and units.
    ("4t", "4", WRONG),
    ("4", "4t", WRONG),
    (r"\frac{x}{2}", r"\frac{x}{2}d", WRONG),
    (r"\frac{1}{2}t", r"\frac{1}{2}", WRONG),
    ("5", r"5\mathrm{i}", WRONG),
    (r"5 \text{ cm}", r"5 \text{ m}", WRONG),
    (r"5 \text{ cm}^2", r"5 \text{ cm}", WRONG),
    (r"5 \text{ cm}", r"5\,\mathrm{centimeters}", RIGHT),
    ("5", r"5 \text{ square units}", RIGHT),
    ("60", r"60\ \mathrm{km}/\mathrm{h}", RIGHT),
    ("60", "60 miles per hour", RIGHT),
    ("12", "12 cm", RIGHT),
    ("12", r"12\text{ apples}", RIGHT),
    ("30", r"30^\circ", RIGHT),
    ("10", r"\$10", RIGHT),
    ("10", r"10\%", RIGHT),
    ("0.1", r"10\%", RIGHT),
    ("28\\%", "28 percent", RIGHT),
    # Numbers.
    ("1000", r"1{,}000", RIGHT),
    ("1000000", r"1,\!000,\!000", RIGHT),
    ("32349", "32, 349", WRONG),
    ("(100,200)", "100200", WRONG),
    ("-5", "−5", RIGHT),
    ("5", "５", RIGHT),
    ("5", "٥", WRONG),  # right to who reads Arabic; refused
    ("16", "0x10", WRONG),
    ("100000", "1e5", RIGHT),
    ("100000", r"1 \times 10^{5}", RIGHT),
    ("0.0000003", r"1 \times 10^{-8}", WRONG),
    (r"10^{-8}", "0.00000002", WRONG),
    (r"\frac{1}{3}", "0.3333333", RIGHT),
    (r"\frac{1}{3}", "0.3333334", WRONG),
    (r"\frac{1}{3}", "0.33", WRONG),
    ("0.333333", "0.3333333", WRONG),
    (r"\frac{7}{2}", r"3\frac12", RIGHT),
    (r"\frac{3}{2}", r"3\frac{1}{2}", WRONG),
    ("204_5", "204_6", WRONG),
    ("204_5", "54", WRONG),
    ("204_5", r"204_{5}", RIGHT),
    ("204_5", "204", RIGHT),
    ("2", "2.", RIGHT),
    ("5", r"\left(5\right)", RIGHT),
    ("5", r"\( 5 \)", RIGHT),
    ("5", r"\textcolor{red}{5}", RIGHT),
    ("5", r"5\ldots", WRONG),
    # Intervals, tuples, sets, relations.
    ("(1,2)", "[1,2]", WRONG),
    ("(1,2]", "[1,2)", WRONG),
    ("(1,2)", "(2,1)", WRONG),
    ("(1,2)", r"\{1,2\}", WRONG),
    (r"\{1,2\}", "(1,2)", WRONG),
    (r"\{1,2,3\}", r"\{3,2,1\}", RIGHT),
    (r"\{1,2,3\}", r"\{1,2,3,4\}", WRONG),
    ("1,2", r"x=1 \text{ or } x=2", RIGHT),
    ("(3,2)", "(x,y)=(3,2)", RIGHT),
    ("(3,2)", "(x,y)=(2,3)", WRONG),
    ("x=1", "y=1", WRONG),
    (r"x \neq 5", "x != 5", RIGHT),
    ("x>5", "5<x", RIGHT),
    ("x>5", r"x \ge 5", WRONG),
    (r"(-\infty,5)", r"(-\infty, 5)", RIGHT),
    (r"\infty", r"-\infty", WRONG),
    (r"\infty", "1/0", WRONG),
    (r"\emptyset", "(2,1)", WRONG),
    # Complex numbers, matrices, expressions, words.
    ("3+4i", "4i+3", RIGHT),
    ("3+4i", "3-4i", WRONG),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", RIGHT),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}", WRONG),
    ("x^2+2x+1", "(x+1)^2", RIGHT),
    ("x^2+C", "x^2", WRONG),
    (r"\sqrt{x^2}", "x", WRONG),
    ("a/b", r"\frac ab", RIGHT),
    (r"\text{Yes}", "yes", RIGHT),
    (r"\text{Yes}", r"\text{No}", WRONG),
    ("12:00", "1:00", WRONG),
]

# gold, whole answer, verdict.
TEXTS = [
    ("5", r"\boxed{5} or rather \boxed{6}", WRONG),
    ("5", r"\boxed{6} or rather \boxed{5}", RIGHT),
    ("1,2", r"\boxed{1} and \boxed{2}", RIGHT),
    ("1,2", r"\boxed{2}, $\boxed{1}$.", RIGHT),
    ("1,2", r"\boxed{1} so \boxed{2}", WRONG),
    ("1", r"\boxed{1} and \boxed{2}", WRONG),
    ("2", r"\boxed{1} and \boxed{2}", RIGHT),
    ("5", r"\boxed{\boxed{5}}", RIGHT),
    ("5", r"\boxed{6 \boxed{5}}", RIGHT),
    ("5", r"\boxed{5", NONE),
    ("5", r"\boxed{}", NONE),
    ("5", r"\boxed{5} \boxed{}", NONE),
    ("5", "The answer is 5.", NONE),
    ("5", r"\fbox{5}", NONE),
    ("5", r"\\boxed{5}", NONE),
    ("5", r"\boxed5", NONE),
    ("5", "```latex\n% \\boxed{5}\n```", RIGHT),  # a comment of LaTeX is text of an answer
    ("5", r"<!-- \boxed{5} --> \boxed{6}", WRONG),
]


def shown(case):
    return case[1].encode("ascii", "backslashreplace").decode()


@pytest.fixture(scope="module")
def verdicts():
    with MathVerifier(workers=2) as verifier:
        found = verifier.verify_many([(gold, f"\\boxed{{{content}}}") for gold, content, _ in CONTENTS])
        return dict(zip(CONTENTS, found, strict=True)) | dict(
            zip(TEXTS, verifier.verify_many([text[:2] for text in TEXTS]), strict=True)
        )


@pytest.mark.parametrize("case", [*CONTENTS, *TEXTS], ids=shown)
def test_an_attempt_gets_a_careful_readers_verdict(verdicts, case):
    expected = {WRONG, "invalid"} if case[2] == WRONG else {case[2]}
    assert verdicts[case].outcome in expected, verdicts[case]
