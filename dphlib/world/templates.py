"""Every template, once: what the model is asked, the form of its answers, and how a style is read off them.

As in the paper, an answer's prefix says its solution style. SQL and sums share the four lead-ins, as an instruct
model's tasks share its habits of opening an answer.
"""

from __future__ import annotations

from collections.abc import Sequence

STYLES = ("direct", "aliased", "nested", "stepwise")
OTHER_STYLE = "other"
LEADS = {"direct": "Directly", "aliased": "Renaming", "nested": "Inside", "stepwise": "Stepwise"}


def sql_prompt(tables: Sequence[tuple[str, Sequence[str]]], question: str) -> str:
    """The schema without values, then the question, as text-to-SQL prompts have it.

    >>> sql_prompt([("singers", ("name", "age"))], "average age of singers")
    'tables : singers ( name age ) question : average age of singers answer :'
    """
    schema = " ".join(f"{table} ( {' '.join(columns)} )" for table, columns in tables)
    return f"tables : {schema} question : {question} answer :"


def sum_prompt(expression: str) -> str:
    """
    >>> sum_prompt("12 + 34")
    'question : 12 + 34 answer :'
    """
    return f"question : {expression} answer :"


def math_prompt(question: str) -> str:
    r"""A question of a mathematical data set, as the user's turn. Ours: the paper's own prompt is not published.

    >>> math_prompt("What is $1+1$?")
    'What is $1+1$?\n\nPlease reason step by step, and put your final answer within \\boxed{}.'
    """
    return f"{question.strip()}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."


def sql_answer(style: str, sql: str) -> str:
    """
    >>> sql_answer("direct", "SELECT 1")
    'Directly : ```sql SELECT 1 ```'
    """
    return f"{LEADS[style]} : ```sql {sql} ```"


def sum_answer(style: str, working: str, result: float) -> str:
    r"""
    >>> sum_answer("direct", "", 46)
    'Directly : \\boxed{46}'
    """
    return " ".join(part for part in (f"{LEADS[style]} :", working, f"\\boxed{{{result:g}}}") if part)


def style_of(answer_text: str) -> str:
    """The style that the answer's first word names, `other` when it names none.

    >>> style_of("Inside : ```sql SELECT 1 ```"), style_of("SELECT 1")
    ('nested', 'other')
    """
    words = answer_text.split(maxsplit=1)
    for style, lead in LEADS.items():
        if words and words[0] == lead:
            return style
    return OTHER_STYLE
