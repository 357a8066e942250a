"""SQL prompts in the authors' form: made databases, bounds, bad files, and the authors' own prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from databases import write_database as make

from dphlib.data import question_values, sql_prompt
from dphlib.data.sql_prompt import schema_prompt, table_descriptions
from dphlib.verify.sqlite_files import read_only_uri

SPIDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "spider"
needs_spider = pytest.mark.skipif(not SPIDER.exists(), reason="needs ../shared/data/spider")


def ddl(text: str) -> str:
    return text.split("Database Schema:\n")[1].split("\nThis schema describes")[0]


def examples(text: str, column: str) -> list[object]:
    line = next(line for line in ddl(text).splitlines() if line.startswith(f"    {column} "))
    return eval(line.split("example: ")[1]) if "example: " in line else []


@pytest.fixture
def club(tmp_path):
    return make(
        tmp_path / "club.sqlite",
        """
        CREATE TABLE member (member_id INTEGER PRIMARY KEY, name VARCHAR(9), "date" DATETIME, paid BOOLEAN, young BOOL,
                             "fee (EUR)" REAL, note);
        CREATE TABLE visit (member_id INT, day_no NUMERIC, stamp BLOB, PRIMARY KEY (member_id, day_no),
                            FOREIGN KEY (member_id) REFERENCES member);
        INSERT INTO member VALUES (1, 'Ann O''Neil', '2001-02-03', 1, 0, 2.5, NULL),
                                  (2, 'Bob', '', 0, 1, 2.5, '"""
        + "n" * 60
        + """'), (3, 'Ann O''Neil', 'x', 1, 1, 3, '');
        INSERT INTO visit VALUES (1, 7, x'00ff'), (2, 8, NULL), (2, 9, 4.0);
        CREATE VIEW endless AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r;
        """,
    )


def test_the_whole_text(club):
    text = schema_prompt(club, "How many members?")
    assert ddl(text) == (
        "CREATE TABLE member (\n"
        "    member_id number, -- example: [1, 2]\n"
        "    name text, -- example: [\"Ann O'Neil\", 'Bob']\n"
        "    `date` time, -- example: ['2001-02-03', 'x']\n"
        "    paid boolean, -- example: [1, 0]\n"
        "    young others, -- example: [0, 1]\n"
        "    `fee (EUR)` number, -- example: [2.5, 3.0]\n"
        f"    note text, -- example: ['{'n' * 40}']\n"
        "    PRIMARY KEY (member_id)\n"
        ");\n"
        "\n"
        "CREATE TABLE visit (\n"
        "    member_id number, -- example: [1, 2]\n"
        "    day_no number, -- example: [7, 8]\n"
        "    stamp others, -- example: [b'\\x00\\xff', 4.0]\n"
        "    PRIMARY KEY (member_id),\n"
        "    CONSTRAINT fk_visit_member_id FOREIGN KEY (member_id) REFERENCES member (member_id)\n"
        ");"
    )
    assert text.startswith("Task Overview:\nYou are a data science expert.")
    assert "\n\nQuestion:\nHow many members?\n\nInstructions:\n" in text
    assert text.endswith("find the correct SQL query.\n") and "```sql\n-- Your SQL query\n```" in text


def test_evidence_stands_before_the_question_and_names_values_too(club):
    text = schema_prompt(club, "How many?", "the one named Bob")
    assert "\n\nQuestion:\nthe one named Bob\nHow many?\n\n" in text
    assert examples(text, "name") == ["Bob", "Ann O'Neil"]
    assert schema_prompt(club, "How many?", " \n") == schema_prompt(club, "How many?")


def test_description_gives_names_types_keys_and_order(club):
    description = {
        "db_id": "club",
        "table_names_original": ["visit", "member"],
        "column_names_original": [[-1, "*"], [0, "member_id"], [0, "day_no"], [1, "member_id"], [1, "name"]],
        "column_names": [[-1, "*"], [0, "member id"], [0, "number of the day"], [1, "memberid"], [1, " "]],
        "column_types": ["text", "number", "time", "text", "others"],
        "primary_keys": [[1, 2], 3],
        "foreign_keys": [[2, 3]],
    }
    assert (
        ddl(schema_prompt(club, "", description=description))
        == """\
CREATE TABLE visit (
    member_id number, -- example: [1, 2]
    day_no time, -- number of the day, example: [7, 8]
    PRIMARY KEY (member_id, day_no),
    CONSTRAINT fk_visit_day_no FOREIGN KEY (day_no) REFERENCES member (member_id)
);

CREATE TABLE member (
    member_id text, -- memberid, example: [1, 2]
    name others, -- example: ["Ann O'Neil", 'Bob']
    PRIMARY KEY (member_id)
);"""
    )


def test_a_wrong_description_is_named(club, tmp_path):
    with pytest.raises(ValueError, match=r"'other' is no entry of tables\.json"):
        schema_prompt(club, "", description={"db_id": "other", "table_names_original": ["t"]})
    (tmp_path / "tables.json").write_text('[{"name": 1}]')
    with pytest.raises(ValueError, match=r"tables\.json is not a tables\.json of Spider or BIRD"):
        table_descriptions(tmp_path / "tables.json")


# --- Values that the question names -------------------------------------------------------------------


@pytest.fixture
def words(tmp_path):
    values = ["first", "second", "Engineers", "New York", "York", "1999", "s" + "o" * 40, "US", "St. John''s", "Großer"]
    rows = ", ".join(f"('{value}')" for value in [*values, "Ha", "the"])
    return make(tmp_path / "words.sqlite", f"CREATE TABLE t (word TEXT); INSERT INTO t VALUES {rows};")


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("Who lives in new york?", ["New York", "York"]),  # the longest first
        ("the engineering department", ["Engineers"]),  # 8 of 9 characters
        ("an engine", []),
        ("what was in 1999", []),  # a number
        ("s" + "o" * 40, []),  # beyond 40 characters
        ("which uses it", ["US"]),  # one stem
        ("that has it", ["Ha"]),
        ("the", []),  # a stop word
        ("in St. John's, please", ["St. John's"]),
        ("der GROSSER, großer", ["Großer"]),
        ("", []),
        ("?!", []),
    ],
)
def test_named_values_come_first(words, question, named):
    assert examples(schema_prompt(words, question), "word")[:-2] == named
    assert examples(schema_prompt(words, question), "word")[-2:] == ["first", "second"]


def test_at_most_six_examples(tmp_path):
    colours = ["red", "blue", "green", "white", "black", "violet", "orange"]
    rows = ", ".join(f"('{value}')" for value in ("first", "second", *colours))
    database = make(tmp_path / "d.sqlite", f"CREATE TABLE t (a); INSERT INTO t VALUES {rows};")
    text = schema_prompt(database, ", ".join(colours))
    assert examples(text, "a") == ["orange", "violet", "black", "white", "green", "blue"]


def test_ten_hits_of_a_run_of_equal_scores_those_that_stand_first(tmp_path):
    columns = [f"c{i:02}" for i in range(12)]
    rows = ", ".join(f"({', '.join([value] * 12)})" for value in ("NULL", "1", "2", "'ann'"))
    database = make(tmp_path / "d.sqlite", f"CREATE TABLE t ({', '.join(columns)}); INSERT INTO t VALUES {rows};")
    text = schema_prompt(database, "about Ann")
    assert [column for column in columns if "ann" in examples(text, column)] == columns[:10]


# --- Bounds and bad files -----------------------------------------------------------------------------


def test_of_a_huge_table_only_the_start_is_read(tmp_path, monkeypatch):
    database = make(
        tmp_path / "d.sqlite",
        """
        CREATE TABLE t (a TEXT, b TEXT);
        WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r WHERE x < 40000)
        INSERT INTO t SELECT 'same', 'value ' || x FROM r;
        INSERT INTO t VALUES ('other', 'last');
        """,
    )
    monkeypatch.setattr(sql_prompt, "MAX_OPS", 100_000)
    monkeypatch.setattr(question_values, "MAX_OPS", 100_000)
    text = schema_prompt(database, "value 17 and value 39999, and the last, other one")
    assert examples(text, "a") == ["same"]
    assert examples(text, "b")[0] == "value 17"
    for module, cache in ((sql_prompt, sql_prompt._schema), (question_values, question_values.value_index)):
        monkeypatch.setattr(module, "MAX_OPS", 100_000_000)
        cache.cache_clear()
    text = schema_prompt(database, "value 17 and value 39999, and the last, other one")
    assert examples(text, "a") == ["other", "same"]
    assert examples(text, "b")[0] == "value 39999"


@pytest.mark.parametrize(
    ("of_a_column", "of_all", "named"), [(3, 9, ["c", "h"]), (9, 3, ["c"]), (9, 9, ["c", "d", "h"])]
)
def test_number_of_values_is_bounded(tmp_path, monkeypatch, of_a_column, of_all, named):
    database = make(tmp_path / "d.sqlite", "CREATE TABLE t (x, y); INSERT INTO t VALUES ('b', 'f'), ('e', 'g');")
    make(database, "INSERT INTO t VALUES ('c', 'h'), ('d', 'h');")
    monkeypatch.setattr(question_values, "MAX_COLUMN_VALUES", of_a_column)
    monkeypatch.setattr(question_values, "MAX_VALUES", of_all)
    found = question_values.value_index(read_only_uri(database)).named_in("c, d or h")
    assert sorted(value for values in found.values() for value in values) == named


def test_a_cell_beyond_the_limit_ends_its_column_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("dphlib.verify.sqlite_files.MAX_CELL_BYTES", 100_000)
    database = make(
        tmp_path / "d.sqlite", "CREATE TABLE t (a, b); INSERT INTO t VALUES ('x', 1), (zeroblob(200000), 2), ('y', 3);"
    )
    text = schema_prompt(database, "")
    assert examples(text, "a") == ["x"] and examples(text, "b") == [1, 2]


def test_text_that_is_no_utf8_loses_the_bytes_that_are_none(tmp_path):
    database = make(tmp_path / "d.sqlite", "CREATE TABLE t (a TEXT); INSERT INTO t VALUES (CAST(x'c3a9ff41' AS TEXT));")
    assert examples(schema_prompt(database, ""), "a") == ["éA"]


@pytest.mark.parametrize("name", ["a?mode=rw", "a#b", "100%41", "with space", "é"])
def test_odd_paths_stay_read_only(tmp_path, name):
    database = make(tmp_path / name / f"{name}.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES ('v');")
    before = database.read_bytes(), sorted(tmp_path.rglob("*"))
    assert examples(schema_prompt(database, "v"), "a") == ["v"]
    assert (database.read_bytes(), sorted(tmp_path.rglob("*"))) == before


def test_odd_names(tmp_path):
    database = make(
        tmp_path / "d.sqlite",
        """
        CREATE TABLE "a ""b'`" ("select" TEXT PRIMARY KEY, "x y" TEXT REFERENCES "a ""b'`", "ü" INT, "{q}" INT);
        INSERT INTO "a ""b'`" VALUES ('k', 'k', 1, 2);
        """,
    )
    text = ddl(schema_prompt(database, "k {schema}"))
    assert text.startswith("CREATE TABLE `a \"b'`` (\n    `select` text, -- example: ['k']\n    `x y` text,")
    assert "    `ü` number, -- example: [1]\n    `{q}` number, -- example: [2]\n" in text
    assert "FOREIGN KEY (`x y`) REFERENCES `a \"b'`` (`select`)" in text


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.sqlite is not there"):
        schema_prompt(tmp_path / "nothing.sqlite", "")
    (tmp_path / "text.sqlite").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="not an SQLite database"):
        schema_prompt(tmp_path / "text.sqlite", "")
    with pytest.raises(ValueError, match="WAL mode"):
        schema_prompt(make(tmp_path / "wal.sqlite", "PRAGMA journal_mode = WAL; CREATE TABLE t (a);"), "")
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(ValueError, match="has no table"):
        schema_prompt(tmp_path / "empty.sqlite", "")
    broken = make(tmp_path / "broken.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    broken.write_bytes(broken.read_bytes()[:4096] + b"\xff" * 4096)
    with pytest.raises(ValueError, match=r"broken\.sqlite cannot be read: .*malformed"):
        schema_prompt(broken, "")


def test_a_changed_database_is_read_anew(tmp_path):
    database = make(tmp_path / "d.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES ('old');")
    assert examples(schema_prompt(database, "old or new"), "a") == ["old"]
    database.unlink()
    make(database, "CREATE TABLE t (a); INSERT INTO t VALUES ('newer'), ('new');")
    assert examples(schema_prompt(database, "old or new"), "a") == ["new", "newer"]


# --- The authors' prompts -----------------------------------------------------------------------------


DATABASES = """
battle_death car_1 concert_singer course_teach cre_Doc_Template_Mgt dog_kennels employee_hire_evaluation museum_visit
network_1 poker_player singer student_transcripts_tracking world_1
""".split()  # the dev databases of shared/data


def authors_prompts() -> list[tuple[str, str, str]]:
    """Database, question and text of each prompt on one of `DATABASES`."""
    questions = json.loads((SPIDER / "dev.json").read_text())
    with (SPIDER / "dph_rl_spider_dev.jsonl").open() as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    assert all(len(messages) == 1 and messages[0]["role"] == "user" for messages in prompts)
    return [
        (row["db_id"], row["question"], messages[0]["content"])
        for row, messages in zip(questions, prompts, strict=True)
        if row["db_id"] in DATABASES
    ]


@needs_spider
def test_text_is_the_authors_to_the_character():
    descriptions = table_descriptions(SPIDER / "tables.json")
    other: dict[str, list[str]] = {}
    rows = authors_prompts()
    for db_id, question, text in rows:
        path = SPIDER / "database" / db_id / f"{db_id}.sqlite"
        if schema_prompt(path, question, description=descriptions[db_id]) != text:
            other.setdefault(db_id, []).append(question)
    assert len(rows) == 729 and list(other) == ["world_1"] and len(other["world_1"]) == 120


@needs_spider
def test_world_1_too_with_the_index_that_the_rebuilt_file_lacks(tmp_path):
    """Its rebuilt file has no index on city.CountryCode and no sqlite_sequence; with both, the text is theirs."""
    source, database = SPIDER / "database" / "world_1" / "world_1.sqlite", tmp_path / "world_1.sqlite"
    shutil.copyfile(source, database)
    make(
        database,
        """
        CREATE INDEX country_of_city ON city (CountryCode);
        CREATE TABLE counted (id INTEGER PRIMARY KEY AUTOINCREMENT);
        DROP TABLE counted;
        INSERT INTO sqlite_sequence VALUES ('city', 4079);
        """,
    )
    description = table_descriptions(SPIDER / "tables.json")["world_1"]
    rows = [(question, text) for db_id, question, text in authors_prompts() if db_id == "world_1"]
    for question, text in rows:
        assert schema_prompt(database, question, description=description) == text


@needs_spider
@pytest.mark.parametrize(("file", "databases"), [("spider/tables.json", 166), ("bird/dev_tables.json", 11)])
def test_every_description_of_spider_and_bird_is_read(file, databases):
    descriptions = table_descriptions(SPIDER.parent / file)
    assert len(descriptions) == databases
    for entry in descriptions.values():
        tables = sql_prompt._tables(entry)
        assert [name for name, *_ in tables] == entry["table_names_original"]
        assert sum(len(columns) for _, columns, _ in tables) == len(entry["column_names_original"]) - 1
