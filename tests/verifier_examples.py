r"""What the verifiers decide, example by example: the tests hold them to it, docs/verifier.md shows it.

The databases of the SQL examples are `CLUB` of `databases.py`. After a change: python -m tools.site --write
"""

from __future__ import annotations

# --- SQL: what is taken out of an answer (text, in modes bird and spider, in mode paper) ---------------

SQL_EXTRACTION = [
    ("```sql\nSELECT 1\n```", "SELECT 1", "SELECT 1"),
    ("```SQL\r\nSELECT 1;\r\n```", "SELECT 1;", "SELECT 1;"),
    ("Directly : ```sql SELECT name FROM singer ```", "SELECT name FROM singer", None),
    ("```sql SELECT 1 ``` or rather ```sql SELECT 2 ```", "SELECT 2", None),
    ("```sql\nSELECT 1\n```\nor rather\n```sql\nSELECT 2\n```", "SELECT 2", "SELECT 2"),
    ("```sql SELECT 1 ``` or rather ```sql SELECT 2", "SELECT 1", None),
    ("```sql\nSELECT 1\n```\n```sql\n-- Your SQL query\n```\n", None, "SELECT 1"),
    ("```sql\nSELECT 'a -- b' -- c\n```", "SELECT 'a -- b' -- c", "SELECT 'a -- b' -- c"),
    ("SELECT 1", None, None),
    ("```\nSELECT 1\n```", None, None),
    ("```sqlite\nSELECT 1\n```", None, None),
    ("```sql SELECT 1", None, None),
    ("```sql ```", None, None),
    ("```sql\n;\n```", None, None),
    ("```sql\n-- SELECT 1\n/* SELECT 2 */ /* open\n```", None, None),
    ("", None, None),
]

# --- SQL: which results are the same (gold, answer, outcome in bird, spider, paper) ---------------------

SQL_COMPARISON = [
    ("SELECT name FROM t", "SELECT DISTINCT name FROM t ORDER BY 1 DESC", "correct", "wrong", "wrong"),
    ("SELECT name FROM t WHERE id < 3", "SELECT name FROM t", "wrong", "wrong", "wrong"),
    ("SELECT name, age FROM t", "SELECT age, name FROM t", "wrong", "correct", "correct"),
    ("SELECT id FROM t", "SELECT id FROM t ORDER BY id DESC", "correct", "correct", "correct"),
    ("SELECT id FROM t ORDER BY id", "SELECT id FROM t ORDER BY id DESC", "correct", "wrong", "correct"),
    ("SELECT id, name FROM t ORDER BY id", "SELECT name, id FROM t ORDER BY id", "wrong", "correct", "correct"),
    (
        "SELECT id FROM t WHERE age = (SELECT age FROM t ORDER BY age DESC LIMIT 1)",
        "SELECT id FROM t WHERE age = 30 ORDER BY id DESC",
        "correct",
        "correct",
        "correct",
    ),
    ("SELECT a FROM empty", "SELECT id FROM t WHERE id > 9", "correct", "correct", "correct"),
    ("SELECT NULL", "SELECT age FROM t WHERE id = 5", "correct", "correct", "correct"),
    ("SELECT 1", "SELECT 1.0", "correct", "correct", "correct"),
    ("SELECT data FROM t WHERE id = 4", "SELECT 9007199254740992.0", "wrong", "wrong", "wrong"),
    ("SELECT data FROM t WHERE id = 3", "SELECT 9e999", "correct", "correct", "correct"),
    ("SELECT data FROM t WHERE id = 2", "SELECT x'00ff'", "correct", "correct", "correct"),
    ("SELECT data FROM t WHERE id = 5", "SELECT data FROM t WHERE id = 5", "correct", "correct", "correct"),
    ("SELECT data FROM t WHERE id = 5", "SELECT data FROM t WHERE id = 6", "wrong", "correct", "correct"),
    ("SELECT id FROM t WHERE id >= 3", "SELECT id FROM t WHERE id > = 3", "invalid", "correct", "correct"),
    ("SELECT 1", "SELECT value FROM json_each('[1]')", "correct", "correct", "correct"),
    ("SELECT 1", "SELECT nothing FROM t", "invalid", "invalid", "invalid"),
    ("SELECT 1", "SELEC 1", "invalid", "invalid", "invalid"),
    ("SELECT 1", "SELECT 1; SELECT 1", "invalid", "invalid", "invalid"),
]

# Answers without a statement, against a gold whose result has no row.
EMPTY_GOLD = "SELECT a FROM empty"
EMPTY_ANSWERS = [
    ("nothing", ""),
    ("no fence", "SELECT a FROM empty"),
    ("fence never closed", "```sql\nSELECT a FROM empty"),
    ("nothing in the fence", "```sql\n```"),
    ("a comment only", "```sql\n-- nothing\n```"),
    ("a semicolon only", "```sql\n;\n```"),
]

# Golds with which nobody is judged.
FAILING_GOLDS = [
    ("SELECT nothing FROM t", "names a column that is not there"),
    ("SELEC", "no SQL"),
    ("", "empty"),
    ("DELETE FROM t", "writes"),
    ("WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r", "never ends"),
    ("SELECT a.id FROM t a, t b, t c, t d, t e, t f, t g, t h", "has 1,679,616 rows"),
]

# Where another evaluator decides otherwise (mode, gold, whole answer text, outcome, whose score, why). Their scores
# are what their sources say; none of them runs here.
SQL_OTHERS = [
    (
        "bird",
        "SELECT * FROM t",
        "```sql\nDELETE FROM t\n```",
        "forbidden",
        "BIRD: 1",
        "its evaluator runs the answer first, on a connection that may write, and then the gold on what is left",
    ),
    (
        "bird",
        "SELECT data FROM t WHERE id = 5",
        "```sql\nSELECT data FROM t WHERE id = 5\n```",
        "correct",
        "BIRD: 0",
        "text that is not UTF-8 is an error there; here its bytes are compared",
    ),
    (
        "spider",
        "SELECT name FROM t",
        "```sql\nSELECT DISTINCT name FROM t\n```",
        "wrong",
        "Spider: 1",
        "the script drops DISTINCT from both by default",
    ),
    (
        "spider",
        "SELECT id FROM t WHERE age = (SELECT age FROM t ORDER BY age DESC LIMIT 1)",
        "```sql\nSELECT id FROM t WHERE age = 30 ORDER BY id DESC\n```",
        "correct",
        "Spider: 0",
        "the script takes an ORDER BY in a subquery for one of the result",
    ),
    (
        "paper",
        "SELECT name, age FROM t",
        "```sql\nSELECT name, id FROM t\n```",
        "wrong",
        "authors' reward: part of 0.8",
        "it gives a wrong answer 0.8 times the share of its columns that agree; here a reward is 1 or 0",
    ),
]

# --- Mathematics: what is taken out of an answer (text, content of the box) -----------------------------

MATH_EXTRACTION = [
    (r"\boxed{1} then \boxed{2}", "2"),
    (r"\boxed{1} then \boxed{2", "1"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed {\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{\boxed{5}}", "5"),
    (r"{ \boxed{46}", "46"),
    (r"\boxed{ }", None),
    ("46", None),
    (r"\fbox{46}", None),
]

# --- Mathematics: gold, content of the box, outcome in strict and in compat -----------------------------


def boxed(content: str) -> str:
    """An answer as a model gives it."""
    return f"so the answer is \\boxed{{{content}}}."


MATH_RESTATEMENTS = [
    ("5", "1=2=3=4=5", "wrong", "correct"),
    ("5", "2+3=5", "wrong", "correct"),
    ("5", "5=2+3", "wrong", "correct"),
    ("x=5", "x=2+3=5", "wrong", "correct"),
    ("46", "12+34", "wrong", "correct"),
    ("3628800", "10!", "wrong", "correct"),
    ("2", r"\sqrt{4}", "wrong", "correct"),
    ("3", r"\frac{6}{2}", "wrong", "correct"),
    ("1024", "2^{10}", "wrong", "correct"),
    ("120", r"\binom{10}{3}", "wrong", "correct"),
    ("46", "4 6", "wrong", "wrong"),
    ("24", "4 6", "wrong", "wrong"),
    ("n(n+1)/2", r"\sum_{k=1}^{n} k", "wrong", "correct"),
]
MATH_ANSWERS = [
    ("5", "x=5", "correct", "correct"),
    ("0.5", r"\frac12", "correct", "correct"),
    (r"\frac{1}{2}", "0.5", "correct", "correct"),
    (r"$\frac{3}{4}$", r"\dfrac{3}{4}", "correct", "correct"),
    (r"\frac{11}{2}", r"5\frac{1}{2}", "correct", "correct"),
    ("12", r"12 \text{ cm}^2", "correct", "correct"),
    ("10", r"\$10", "correct", "correct"),
    ("90", r"90^\circ", "correct", "correct"),
    ("1500", r"1.5 \times 10^3", "correct", "correct"),
    (r"\{1,2\}", r"\{2,1\}", "correct", "correct"),
    (r"2\sqrt{3}", r"\sqrt{12}", "correct", "correct"),
    ("x+2", "2+x", "correct", "correct"),
    ("y=2x+3", "y=3+2x", "correct", "correct"),
    ("x=1,y=2", "x=1,y=2", "correct", "correct"),
    (r"\text{odd}", "odd", "correct", "correct"),
    ("(1,2)", "(1, 2)", "correct", "correct"),
    ("12:00", "12:00", "correct", "correct"),
    ("12:00", "1:00", "wrong", "wrong"),
    (r"\pi", "3.14", "wrong", "wrong"),
    ("27+38 i", r"27+38\,\mathrm{i}", "correct", "wrong"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", "correct", "correct"),
    (r"4.5 \times 10^{33}", "4.5e33", "correct", "wrong"),
    ("[0,1)", r"0 \le x < 1", "correct", "wrong"),
    (r"(27,\infty)", "x>27", "correct", "wrong"),
    ("2x+4y-3=0", r"y=-\frac12x+\frac34", "correct", "correct"),
    ("x=5", "2x=10", "wrong", "wrong"),
    (r"17.5\%", "17.5", "correct", "wrong"),
    (r"17.5\%", "0.175", "correct", "correct"),
    ("0.5", r"0.5\%", "wrong", "wrong"),
    ("2516_8", r"2516\text{ (base 8)}", "correct", "correct"),
    ("5/4", "1 1/4", "correct", "wrong"),
    ("11/4", "1 1/4", "wrong", "wrong"),
    ("15", r"\text{15 miles}", "correct", "wrong"),
    (r"2\sqrt{3}", "2√3", "correct", "wrong"),
    (r"\frac{100}{3}", r"33.\overline{3}", "correct", "wrong"),
    ("5", "|z|=5", "correct", "correct"),
    ("0", "x^2-5x+6=0", "wrong", "correct"),
    (r"\frac{\pi}{4}", r"45^\circ", "correct", "wrong"),
]

# Mathematics: gold, whole text, outcome in strict and in compat.
MATH_TEXTS = [
    ("1,2", r"\boxed{1} and \boxed{2}", "correct", "correct"),
    ("46", "the answer is 46", "no_answer", "correct"),
    ("46", r"\boxed{46", "no_answer", "no_answer"),
    ("46", "", "no_answer", "no_answer"),
    (r"\frac{1}{", r"\boxed{1=2=3}", "infra_error", "wrong"),
    (r"\frac{1}{", r"\boxed{\pi}", "infra_error", "wrong"),
    ("", r"\boxed{x}", "infra_error", "infra_error"),
]
