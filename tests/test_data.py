"""Data sets: every official layout loads into `Problem`, and what is wrong with a file is said in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
from data_files import COUNT, bird, official, spider, write

from dphlib.cli import main as cli
from dphlib.data.load import DataError, find, load, missing_databases, read
from dphlib.data.sets import DATA_SETS, SUITES
from dphlib.world.templates import math_prompt

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data in {SHARED}")
DEV, MINI = "bird/dev_20240627/dev.json", "bird/minidev/MINIDEV/mini_dev_sqlite.json"


@pytest.fixture
def root(tmp_path):
    return official(tmp_path / "data")


# --- Every set ---

GOLDS = {
    "bird_train": [("0", COUNT), ("1", "SELECT max(age) FROM singer")],
    "bird_dev": [("7", COUNT)],
    "bird_mini_dev": [("7", COUNT)],
    "bird_verified_train": [("3", COUNT)],
    "bird_verified_validation": [("3", COUNT)],
    "arcwise_plat_sql_only": [("7", COUNT)],
    "arcwise_plat_full": [("7", COUNT)],
    "spider_train": [("0", COUNT), ("1", COUNT)],
    "spider_dev": [("0", "SELECT name FROM singer"), ("1", COUNT)],
    "gsm8k_train": [("0", "1800")],
    "gsm8k_test": [("0", "1800")],
    "math500": [("test/algebra/1.json", "\\frac{1}{2}")],
    "aime24": [("60", "25")],
    "aime25": [("0", "70"), ("1", "336")],
    "amc23": [("0", "27")],
    "olympiadbench": [("1606", "$69$,$84$")],
    "college_math": [("0", "7,-7")],
    "minerva": [("0", "4.5 \\times 10^{33}")],
}


@pytest.mark.parametrize("suite", SUITES)
def test_each_set_loads_from_its_official_layout(suite, root):
    data_set, split = SUITES[suite]
    problems = load(data_set.name, split, data_dir=root)
    assert [(problem.id, problem.gold) for problem in problems] == GOLDS[suite]
    assert load(suite, data_dir=str(root)) == problems
    for problem in problems:
        assert (problem.suite, problem.kind) == (suite, data_set.kind)
        assert problem.db_id == ("club" if data_set.kind == "sql" else None)
        assert all(isinstance(value, str) for value in problem.meta.values())
        assert json.loads(json.dumps(problem.to_json())) == problem.to_json()
        assert ("```sql" if data_set.kind == "sql" else "\\boxed{}") in problem.prompt


def test_the_table_names_licence_source_and_citation_of_every_set():
    for one in DATA_SETS.values():
        assert one.licence and one.source.startswith("https://") and len(one.citation) > 40
        for part in one.splits.values():
            assert part.files and part.rows > 0
            assert part.hub is None or re.fullmatch(r"[0-9a-f]{40}|", part.hub.revision)


@pytest.mark.parametrize(
    ("suite", "labels"),
    [
        ("bird_dev", {"evidence": "singers sing", "difficulty": "simple"}),
        ("bird_verified_train", {"evidence": "singers sing", "grading": "multiset"}),
        ("arcwise_plat_full", {}),  # its evidence may be null
        ("math500", {"subject": "Algebra", "difficulty": "2"}),
        ("college_math", {"book": "book", "subject": "algebra", "license": "CC BY-NC-SA 4.0"}),
        (
            "olympiadbench",
            {
                "subject": "Algebra",
                "answer_type": "Numerical",
                "several_answers": "true",
                "unit": "km",
                "tolerance": "1e-1",
            },
        ),
    ],
)
def test_labels_say_what_the_row_says(suite, labels, root):
    assert load(suite, data_dir=root)[0].meta == labels


def test_sql_prompts_show_schema_evidence_and_the_names_of_tables_json(root):
    prompt = load("bird", "dev", data_dir=root)[0].prompt
    assert "CREATE TABLE singer" in prompt and "stage name" in prompt
    assert "singers sing\nHow many singers?" in prompt
    (root / "bird/dev_20240627/dev_tables.json").unlink()
    assert "stage name" not in load("bird", "dev", data_dir=root)[0].prompt


def test_a_prompt_of_ones_own(root):
    def prompt(path, question, evidence, description):
        return f"{path.name} | {question} | {evidence} | {description['db_id']}"

    mine = load("bird", "dev", data_dir=root, prompt=prompt)[0].prompt
    assert mine == "club.sqlite | How many singers? | singers sing | club"
    assert load("amc23", data_dir=root, prompt=str.upper)[0].prompt == "P"
    assert load("amc23", data_dir=root)[0].prompt == math_prompt("p")


def test_databases_may_be_elsewhere(root, tmp_path):
    shutil.move(root / "spider/database", tmp_path / "elsewhere")
    assert len(load("spider", "dev", data_dir=root, databases=tmp_path / "elsewhere")) == 2
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere with the databases of spider_dev"):
        load("spider", "dev", data_dir=root, databases=tmp_path / "nowhere")


def test_a_corrected_set_uses_the_databases_of_the_set_that_it_corrects(root):
    assert find("bird_verified_train", data_dir=root).databases == root / "bird/train/train_databases"
    mini, dev = root / "bird/minidev/MINIDEV", root / "bird/dev_20240627"
    assert find("arcwise_plat_full", data_dir=root).databases == mini / "dev_databases"
    shutil.rmtree(mini)
    source = find("arcwise_plat_full", data_dir=root)
    assert (source.databases, source.tables) == (dev / "dev_databases", dev / "dev_tables.json")
    shutil.rmtree(dev)
    with pytest.raises(FileNotFoundError, match="belong in the place of bird_mini_dev's, or the folder given"):
        load("arcwise_plat_full", data_dir=root)


def test_older_and_copied_bird_files_load(root):
    """`sql` for `SQL` in an old revision; a list under `sql` beside `SQL` in a copy; JSON Lines; a byte order mark."""
    row = {key.replace("SQL", "sql"): value for key, value in bird().items()}
    (root / DEV).write_text("\ufeff" + json.dumps(row) + "\n\n" + json.dumps(bird(sql="SELECT 1") | {"sql": []}) + "\n")
    assert [problem.gold for problem in load("bird", "dev", data_dir=root)] == [COUNT, "SELECT 1"]


def test_the_first_place_that_is_there_counts(root):
    write(root / "bird/dev.json", [bird(), bird()])
    assert len(read(find("bird", "dev", data_dir=root)).problems) == 1
    shutil.rmtree(root / "bird/dev_20240627")
    assert len(read(find("bird", "dev", data_dir=root)).problems) == 2


def test_a_line_separator_inside_a_text_ends_no_row(root):
    text = json.dumps({"question": "a\u2028b", "answer": "#### 1"}, ensure_ascii=False)
    (root / "gsm8k/test.jsonl").write_text(text + "\n", encoding="utf-8")
    assert read(find("gsm8k", "test", data_dir=root)).problems[0].prompt == "a\u2028b"


def test_rows_that_repeat_another_are_left_out_and_counted(root, capsys):
    """BIRD's mini_dev of 2026-09-02: 500 rows, 498 ids."""
    rows = [bird(f"How many, {n}?", question_id=n) for n in range(498)]
    write(root / MINI, [*rows, rows[119], rows[120]])
    found = read(find("bird_mini_dev", data_dir=root))
    assert [p.id for p in found.problems] == [str(n) for n in range(498)] and found.repeated == ["119", "120"]
    assert len(load("bird_mini_dev", data_dir=root)) == 498
    says = "bird_mini_dev: 2 rows repeat another one and are left out: ids 119, 120"
    assert capsys.readouterr().err.splitlines() == [says]


def test_different_rows_with_the_same_id_are_named(root):
    write(root / DEV, [bird(question_id=3), bird(question_id=4), bird("How old?", question_id=3)])
    says = r"dev\.json, row 2: another row with the id '3' of .*dev\.json, row 0; leave one of them out, or get"
    with pytest.raises(DataError, match=says):
        load("bird", "dev", data_dir=root)


# --- What is wrong is said ---

LINE = json.dumps({"question": "q", "answer": "#### 1"}) + "\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "test.jsonl is empty"),
        (" \n\n", "test.jsonl is empty"),
        ("[]", "no row in it; get it again from https://github.com/openai/grade-school-math"),
        (LINE + "{'question'\n", r"test.jsonl:2: not JSON"),
        (LINE + LINE.rstrip()[:-3], r"test.jsonl:2: not JSON"),
        ('[\n{"question": "q",\n}]', r"test.jsonl:3: not JSON"),
        ("[" * 100_000, r"test.jsonl:1: not JSON"),
        (LINE + "7\n", r"test.jsonl:2: a JSON object with named fields is needed, not '7'"),
        (LINE.encode() + b'{"question": "caf\xe9"}\n', r"test.jsonl:2: byte 0xe9 is no UTF-8"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a git-LFS pointer.*git lfs pull"),
        ("<!doctype html><html></html>", "a web page, not the data"),
        (b"PK\x03\x04....", "a zip archive: unpack it"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip: unpack it"),
        (LINE + '{"answer": "#### 1"}\n', r"test.jsonl:2: no question in field question; fields: answer"),
        (LINE + '{"question": " ", "answer": "#### 1"}\n', r"test.jsonl:2: no question"),
        (LINE + '{"question": "q"}\n', r"test.jsonl:2: no field answer with an answer; fields: question"),
        (LINE + '{"question": "q", "answer": null}\n', r"test.jsonl:2: no field answer with an answer"),
        (LINE + '{"question": "q", "answer": "7"}\n', r"test.jsonl:2: no number after ####"),
        (LINE + '{"question": "\\ud800", "answer": "#### 1"}\n', r"test.jsonl:2: half a UTF-16 pair"),
    ],
)
def test_a_bad_file_is_one_clear_error(content, says, root):
    (root / "gsm8k/test.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=says) as error:
        load("gsm8k", "test", data_dir=root)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("suite", "path", "row", "says"),
    [
        ("aime24", "aime24/test.jsonl", {"problem": "p", "answer": "1/2"}, "'1/2' is no whole number"),
        ("amc23", "amc23/test.jsonl", {"problem": "p", "answer": 2.5}, "'2.5' is no whole number"),
        ("amc23", "amc23/test.jsonl", {"problem": "p", "answer": True}, "no field answer with an answer"),
        ("olympiadbench", "olympiadbench/test.jsonl", {"question": "q", "final_answer": ["1", "2"]}, "no list of one"),
        ("olympiadbench", "olympiadbench/test.jsonl", {"question": "q"}, "no field final_answer"),
        ("minerva", "minerva_math/test.jsonl", {"problem": "p", "solution": "none"}, "no field answer"),
        ("bird_dev", DEV, {"db_id": "club", "question": "q"}, "no field SQL or sql"),
        ("spider_dev", "spider/dev.json", spider(db_id="../club"), "db_id='../club' must be the name of a database"),
        ("spider_dev", "spider/dev.json", {"question": "q", "query": "SELECT 1"}, "db_id=None must be the name"),
    ],
)
def test_a_bad_row_is_named(suite, path, row, says, root):
    write(root / path, [row])
    with pytest.raises(DataError, match=re.escape(path) + ".*" + re.escape(says)):
        load(suite, data_dir=root)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nothing",), "unknown data set 'nothing'; known: bird, bird_verified, arcwise_plat, spider, gsm8k"),
        (("bird", "test"), "unknown split 'test' of bird; known: train, dev, mini_dev"),
        (("bird",), "unknown split None of bird; known: train, dev, mini_dev"),
        (("bird_dev", "train"), "unknown data set 'bird_dev'"),
    ],
)
def test_unknown_names_list_what_is_known(arguments, says, root):
    with pytest.raises(ValueError, match=re.escape(says)):
        load(*arguments, data_dir=root)


def test_a_missing_file_says_where_it_belongs(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: give the folder"):
        load("gsm8k", "test", data_dir=tmp_path / "nowhere")
    (root / "spider/train_others.json").unlink()
    expected = "spider_train: .* has no spider/train_spider.json and spider/train_others.json or .*"
    with pytest.raises(FileNotFoundError, match=expected + "train_spider.json is there.*https://yale-lily"):
        load("spider", "train", data_dir=root)
    shutil.rmtree(root / "bird/minidev")
    (root / "bird/minidev.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"there is .*bird/minidev.zip: unpack it there"):
        load("bird", "mini_dev", data_dir=root)


def test_missing_databases_are_named_with_where_to_get_them(root):
    write(root / "spider/dev.json", [spider(), spider(db_id="wta_1"), spider("?", db_id="wta_1")])
    source = find("spider", "dev", data_dir=root)
    assert missing_databases(read(source).problems, source) == {"wta_1": 2}
    says = r"1 databases of 2 problems are not there: wta_1\. They belong in .*database/<db_id>/<db_id>.sqlite; get"
    with pytest.raises(FileNotFoundError, match=says):
        load("spider", "dev", data_dir=root)
    shutil.rmtree(root / "bird/dev_20240627/dev_databases")
    (root / "bird/dev_20240627/dev_databases.zip").write_bytes(b"PK")
    with pytest.raises(FileNotFoundError, match=r"belong in .*dev_databases.*\(unpack .*dev_databases.zip there\)"):
        load("bird", "dev", data_dir=root)


# --- The hub, with folders in its place ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Folders that `datasets` reads in place of the hub's repositories; the list of what was asked for."""
    asked, real = [], datasets.load_dataset

    def from_folder(id, config, *, split, revision):
        asked.append((id, config, split, revision))
        return real(str(tmp_path / id), config, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    return tmp_path, asked


def copy(folder: Path, id: str, file: str, rows: list[dict], config: str = "") -> None:
    """A repository with one parquet or JSON file and the card that names its split."""
    path = folder / id / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        write(path, rows)
    split = path.name.split("-")[0]
    name = f"- config_name: {config or 'default'}\n  data_files:\n  - split: {split}\n    path: {file}\n"
    (folder / id / "README.md").write_text(f"---\nconfigs:\n{name}---\n")


@pytest.mark.parametrize(
    ("suite", "local", "id", "file", "config"),
    [
        ("gsm8k_test", "gsm8k/test.jsonl", "openai/gsm8k", "main/test-00000-of-00001.parquet", "main"),
        (  # lists and missing values
            "olympiadbench",
            "olympiadbench/test.jsonl",
            "Hothan/OlympiadBench",
            "OlympiadBench/train-x.parquet",
            "OE_TO_maths_en_COMP",
        ),
    ],
)
def test_a_hub_copy_gives_what_the_folder_gives(suite, local, id, file, config, hub, root):
    rows = [json.loads(line) for line in (root / local).read_text().splitlines()]
    copy(hub[0], id, file, rows, config)
    assert load(suite) == load(suite, data_dir=root)
    pinned = SUITES[suite][0].splits[SUITES[suite][1]].hub
    assert hub[1] == [(id, config, pinned.split, pinned.revision)] and len(pinned.revision) == 40


def test_minerva_of_the_hub_has_the_answer_in_a_field(hub):
    copy(hub[0], "math-ai/minervamath", "test-0.jsonl", [{"question": "L?", "answer": "4.5e33"}])
    assert load("minerva")[0].gold == "4.5 \\times 10^{33}"


def test_sql_sets_of_the_hub_need_databases(hub, root):
    copy(hub[0], "birdsql/bird_mini_dev", "data/mini_dev_sqlite-0.json", [bird(question_id=7)])
    with pytest.raises(FileNotFoundError, match="given as databases: the hub copy holds the questions only"):
        load("bird", "mini_dev")
    problem = load("bird", "mini_dev", databases=root / "bird/dev_20240627/dev_databases")[0]
    assert problem.gold == COUNT and "CREATE TABLE singer" in problem.prompt


def test_a_revision_of_ones_own_must_be_a_commit(hub):
    with pytest.raises(ValueError, match="revision='main': must be a full commit hash"):
        load("gsm8k", "test", revision="main")
    copy(hub[0], "realtreetune/college_math", "test-0.jsonl", [{"problem": "p", "answer": "$7$"}])
    assert load("college_math", revision="a" * 40)[0].gold == "7"
    assert hub[1][-1] == ("realtreetune/college_math", None, "test", "a" * 40)


def test_what_has_no_verified_copy_says_how_to_go_on(root):
    with pytest.raises(ValueError, match=r"no commit of realtreetune/college_math could be verified.*give data_dir"):
        load("college_math")
    with pytest.raises(ValueError, match="bird_train has no copy on the hub that is the same set: get it from https"):
        load("bird", "train")
    with pytest.raises(ValueError, match=r"revision='a+' is of the hub copy"):
        load("gsm8k", "test", data_dir=root, revision="a" * 40)


def test_without_a_network_the_way_out_is_said():
    with pytest.raises(DataError, match=r"aime24: HuggingFaceH4/aime_2024 at 2fe88a2f.* was not loaded .*data_dir"):
        load("aime24")


# --- The real files ---

PLACES = {
    "gsm8k/train.jsonl": "math/gsm8k_train.jsonl",
    "gsm8k/test.jsonl": "math/gsm8k_test.jsonl",
    "math500/test.jsonl": "math/math500.jsonl",
    "aime24/test.jsonl": "math/aime24.jsonl",
    "amc23/test.jsonl": "math/amc23_sample5.jsonl",
    "olympiadbench/test.jsonl": "math/olympiadbench.jsonl",
    "college_math/test.jsonl": "math/college_math.jsonl",
    "minerva_math/test.jsonl": "math/minerva_math_sample10.jsonl",
    "bird/dev/dev.json": "bird/dev.json",
    MINI: "bird/mini_dev_sqlite.json",
    "spider/dev.json": "spider/dev.json",
}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    for place, name in PLACES.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).symlink_to(SHARED / name)
    return folder


@needs_shared
@pytest.mark.parametrize(
    ("suite", "rows", "place", "gold", "revision"),
    [
        ("gsm8k_train", 7473, 0, r"72", "openai/grade-school-math at 3101c7d50724"),
        ("gsm8k_test", 1319, 0, r"18", "openai/grade-school-math at 3101c7d50724"),
        ("math500", 500, 0, r"\left( 3, \frac{\pi}{2} \right)", "hkust-nlp/simpleRL-reason at cf1c7858bfc1"),
        ("aime24", 30, 7, r"25", "QwenLM/Qwen2.5-Math at a45202bd16f1"),
        ("amc23", 5, 0, r"27", "unknown (test.jsonl)"),
        ("olympiadbench", 675, 0, r"2", "QwenLM/Qwen2.5-Math at a45202bd16f1"),
        ("college_math", 2818, 0, r"10-4 n", "QwenLM/Qwen2.5-Math at a45202bd16f1"),
        ("minerva", 10, 1, r"4.5 \times 10^{33}", "unknown (test.jsonl)"),
        ("spider_dev", 1034, 0, r"SELECT count(*) FROM singer", "taoyds/spider at b7b5b8c890cd"),
    ],
)
def test_real_files_have_their_rows_golds_and_revision(suite, rows, place, gold, revision, real):
    source = find(suite, data_dir=real)
    problems, repeated = read(source)
    assert len(problems) == rows and problems[place].gold == gold and not repeated
    data_set, split = SUITES[suite]
    assert rows in (data_set.splits[split].rows, 5, 10)  # of two sets there is a sample only
    assert source.known_as == revision


@needs_shared
@pytest.mark.parametrize(
    ("suite", "revision"), [("bird_dev", "older, in peterbaile/jar"), ("bird_mini_dev", "IBM/text2sql-eval-toolkit")]
)
def test_real_bird_files_have_evidence_and_difficulty(suite, revision, real):
    source = find(suite, data_dir=real)
    problems = read(source).problems
    assert len(problems) == SUITES[suite][0].splits[SUITES[suite][1]].rows and source.known_as.startswith(revision)
    assert {problem.meta["difficulty"] for problem in problems} == {"simple", "moderate", "challenging"}
    assert sum("evidence" in problem.meta for problem in problems) > 0.9 * len(problems)
    assert all(problem.gold.upper().lstrip("( ").startswith(("SELECT", "WITH")) for problem in problems)
    assert len({problem.db_id for problem in problems}) == 11


@needs_shared
def test_real_golds_are_bare_and_rows_keep_what_the_verifier_does_not_use(real):
    gsm8k, aime, college, olympiad = (
        read(find(suite, data_dir=real)).problems
        for suite in ("gsm8k_train", "aime24", "college_math", "olympiadbench")
    )
    assert all(re.fullmatch(r"-?\d+", problem.gold) for problem in (*gsm8k, *aime))
    assert not [problem.gold for problem in college if re.fullmatch(r"\$[^$]*\$", problem.gold)]
    assert sum("$" in problem.gold for problem in college) > 100  # text around formulas stays
    assert len({problem.meta["license"] for problem in college}) == 8
    assert sum(problem.meta["several_answers"] == "true" for problem in olympiad) == 94
    assert sum("unit" in problem.meta for problem in olympiad) == 8
    assert [problem.id for problem in olympiad if "tolerance" in problem.meta] == ["2592"]


# --- Commands ---


def test_dph_data_list_shows_what_a_folder_holds(root, capsys):
    assert cli.main(["data", "list", "--data-dir", str(root)]) == 0
    out = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "1 of 1 databases" in out and "not verified, check upstream" in out
    assert cli.main(["data", "list"]) == 0
    assert "found in" not in capsys.readouterr().out
    (root / "aime24/test.jsonl").write_text("")
    assert cli.main(["data", "list", "--data-dir", str(root)]) == 1
    assert "unreadable" in capsys.readouterr().out
