"""Small data sets in each official layout, as files: one or more rows of every kind that the real files have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from databases import make_database

SCHEMA = """
CREATE TABLE singer (singer_id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
INSERT INTO singer VALUES (1, 'Ana', 30), (2, 'Bo', 40), (3, 'Cy', 40), (4, 'Di', 20);
"""
TABLES = {
    "db_id": "club",
    "table_names_original": ["singer"],
    "table_names": ["singer"],
    "column_names_original": [[-1, "*"], [0, "singer_id"], [0, "name"], [0, "age"]],
    "column_names": [[-1, "*"], [0, "singer id"], [0, "stage name"], [0, "age"]],
    "column_types": ["text", "number", "text", "number"],
    "primary_keys": [1],
    "foreign_keys": [],
}
COUNT = "SELECT count(*) FROM singer"


def write(path: Path, rows: Any) -> Path:
    """A JSON list for `.json`, JSON Lines for the rest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines, encoding="utf-8")
    return path


def bird(question: str = "How many singers?", sql: str = COUNT, **more: Any) -> dict[str, Any]:
    return {"db_id": "club", "question": question, "evidence": "singers sing", "SQL": sql, **more}


def spider(question: str = "How many singers are there?", query: str = COUNT, db_id: str = "club") -> dict[str, Any]:
    return {"db_id": db_id, "query": query, "query_toks": [], "question": question, "sql": {"select": []}}


def official(root: Path) -> Path:
    """Every set in its official layout below `root`."""
    hard = {"question_id": 7, "difficulty": "simple"}
    write(root / "bird/train/train.json", [bird(), bird("The oldest?", "SELECT max(age) FROM singer")])
    write(root / "bird/train/train_tables.json", [TABLES])
    make_database(root / "bird/train/train_databases", "club", SCHEMA)
    write(root / "bird/dev_20240627/dev.json", [bird(**hard)])
    write(root / "bird/dev_20240627/dev_tables.json", [TABLES])
    make_database(root / "bird/dev_20240627/dev_databases", "club", SCHEMA)
    write(root / "bird/minidev/MINIDEV/mini_dev_sqlite.json", [bird(sql=COUNT, **hard, meta={}) | {"sql": [COUNT]}])
    make_database(root / "bird/minidev/MINIDEV/dev_databases", "club", SCHEMA)
    for name in ("train", "val"):
        verified = bird(question_id=3, grading_method="multiset")
        write(root / f"ReViSQL/data/bird-verified-{name}.json", [verified])
    for name in ("sql_only", "full"):
        corrected = bird(question_id="7", original_SQL="SELECT 1") | {"evidence": None}
        write(root / f"text_to_sql_benchmarks/data/arcwise_plat_{name}_with_diff.json", [corrected])
    write(root / "spider/train_spider.json", [spider()])
    write(root / "spider/train_others.json", [spider("And how many singers in all?")])
    write(root / "spider/dev.json", [spider("Names?", "SELECT name FROM singer"), spider()])
    write(root / "spider/tables.json", [TABLES])
    make_database(root / "spider/database", "club", SCHEMA)
    for split in ("train", "test"):
        answer = "9 * 200 = <<9*200=1800>>1,800\n#### 1,800"
        write(root / f"gsm8k/{split}.jsonl", [{"question": "How many eggs?", "answer": answer}])
    level = {"subject": "Algebra", "level": 2, "unique_id": "test/algebra/1.json"}
    write(root / "math500/test.jsonl", [{"problem": "$1/2$?", "solution": "s", "answer": "\\frac{1}{2}", **level}])
    write(root / "aime24/test.jsonl", [{"id": 60, "problem": "p", "question": "p", "answer": "025", "url": "u"}])
    write(root / "aime25/aime2025-I.jsonl", [{"question": "one", "answer": "70"}])
    write(root / "aime25/aime2025-II.jsonl", [{"question": "two", "answer": "336^\\circ"}])
    write(root / "amc23/test.jsonl", [{"id": 0, "problem": "p", "answer": 27.0, "question": "p"}])
    several = {"is_multiple_answer": True, "unit": "km", "error": "1e-1", "answer_type": "Numerical", "context": None}
    olympiad = {"id": 1606, "subfield": "Algebra", "question": "Which?", "final_answer": ["$69$,$84$"], **several}
    write(root / "olympiadbench/test.jsonl", [olympiad])
    book = {"data_source": "book", "data_topic": "algebra", "license": "CC BY-NC-SA 4.0"}
    write(root / "college_math/test.jsonl", [{"question": "Solve", "answer": "$7,-7$", **book}])
    solution = "first $\\boxed{1}$, then \\[\\boxed{4.5e33}\\mathrm{erg}\\]"
    write(root / "minerva_math/test.jsonl", [{"problem": "L?", "solution": solution, "type": "Astronomy", "idx": 0}])
    return root
