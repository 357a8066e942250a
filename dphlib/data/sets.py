"""The table of data sets: official files, copy on the hub, fields, how a gold is read, licence and source.

One row per set. `load` reads by it, `dph data list` prints it, and the data sets' part of THIRD_PARTY.md is made from
it. No data set is part of this repository: a user gets it from its source, under its licence.

A hub revision is given only if it was seen, in full, in the public code of at least two unrelated projects together
with the hub id and split. A copy that differs from the official files says so in `Hub.note`. A file's hash is in
`REVISIONS` if its bytes were here or if public code pins it together with where it comes from.

A gold is read by a function of the row as the file has it: KeyError names the field that is missing, ValueError says
what is wrong with it. Nothing is corrected: finding bad golds is for `check`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from dphlib.types import Kind
from dphlib.verify.math_text import extract_boxed


@dataclass(frozen=True, slots=True)
class Hub:
    """A copy on the Hugging Face hub.

    Args:
        id: `owner/name`.
        revision: full commit hash, "" where none could be verified: the user then has to give one.
        split, config: the copy's own names.
        note: in what the copy differs from the official files.
    """

    id: str
    revision: str
    split: str
    config: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a set.

    Args:
        files: alternatives below the data folder, the first that is there counts; each is one file or several
            that are read one after the other.
        rows: of the official files.
        hub: its copy on the hub.
        databases: folder of `<db_id>/<db_id>.sqlite`, beside the first file.
        tables: description of the databases, beside the first file.
        databases_of: suites whose databases and description it uses, the first that is there, for a set without.
    """

    files: tuple[tuple[str, ...], ...]
    rows: int
    hub: Hub | None = None
    databases: str = ""
    tables: str = ""
    databases_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set.

    Args:
        name, title: as in commands, and as its authors call it.
        kind: which verifier judges it.
        splits: name -> split.
        question: fields of which the first that a row has is the question.
        gold: the gold SQL or answer of a row; raises KeyError or ValueError where the row has none.
        licence: of the data.
        source: where to get the official files.
        citation: authors, title, where.
        licence_seen: where we read the licence; "" where we did not: check it before you publish anything made from it.
        labels: meta label -> field of the row.
        id: field that names a row; "" counts the rows.
    """

    name: str
    title: str
    kind: Kind
    splits: Mapping[str, Split]
    question: tuple[str, ...]
    gold: Callable[[Mapping[str, Any]], str]
    licence: str
    source: str
    citation: str
    licence_seen: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    id: str = ""

    def suite(self, split: str) -> str:
        """The name of the split's problems: the set's, with the split's where there are several.

        >>> DATA_SETS["bird"].suite("dev"), DATA_SETS["aime24"].suite("test")
        ('bird_dev', 'aime24')
        """
        return self.name if len(self.splits) == 1 else f"{self.name}_{split}"


# --- Golds ---


def _field(row: Mapping[str, Any], *names: str) -> str:
    """The first of the fields that is a text with something in it, or a number."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
    raise KeyError(" or ".join(names))


def bird_gold(row: Mapping[str, Any]) -> str:
    """`SQL`; `sql` in older revisions and in copies, where it may be another thing beside `SQL`.

    >>> bird_gold({"SQL": "SELECT 1", "sql": ["SELECT 1"]}), bird_gold({"sql": "SELECT 2"})
    ('SELECT 1', 'SELECT 2')
    """
    return _field(row, "SQL", "sql")


def spider_gold(row: Mapping[str, Any]) -> str:
    """`query` as it is."""
    return _field(row, "query")


def gsm8k_gold(row: Mapping[str, Any]) -> str:
    """The number after the last `####`, without commas at the thousands.

    >>> gsm8k_gold({"answer": "9 * 200 = 1,800\\n#### 1,800"})
    '1800'
    """
    _, mark, number = _field(row, "answer").rpartition("####")
    if not mark or not number.strip():
        raise ValueError("no number after ####")
    return number.strip().replace(",", "")


def whole_gold(row: Mapping[str, Any]) -> str:
    r"""A whole number: leading zeros, `.0` and a degree sign left out.

    >>> whole_gold({"answer": "025"}), whole_gold({"answer": 27.0}), whole_gold({"answer": "336^\\circ"})
    ('25', '27', '336')
    """
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?$|°$", "", _field(row, "answer")).strip()
    if not re.fullmatch(r"[+-]?\d{1,18}(?:\.0*)?", text, re.ASCII):
        raise ValueError(f"answer {text!r} is no whole number")
    return str(Fraction(text))


def plain_gold(row: Mapping[str, Any]) -> str:
    """`answer` as it is."""
    return _field(row, "answer")


def olympiad_gold(row: Mapping[str, Any]) -> str:
    """The one text in `final_answer`; several answers are in it with commas between.

    >>> olympiad_gold({"final_answer": ["$69$,$84$"]})
    '$69$,$84$'
    """
    answers = row["final_answer"]
    if not isinstance(answers, list) or len(answers) != 1:
        raise ValueError(f"final_answer {answers!r} is no list of one text")
    return _field({"final_answer": answers[0]}, "final_answer")


def college_gold(row: Mapping[str, Any]) -> str:
    """Without the `$...$` where it goes round the whole answer.

    >>> college_gold({"answer": "$7,-7$"}), college_gold({"answer": "$x$ or $y$"})
    ('7,-7', '$x$ or $y$')
    """
    text = _field(row, "answer")
    whole = re.fullmatch(r"(\${1,2})([^$]+)\1", text)
    return whole[2].strip() if whole else text


def minerva_gold(row: Mapping[str, Any]) -> str:
    r"""The last `\boxed{}` of the worked solution; `answer` in copies that have it. Powers of ten as LaTeX has them.

    >>> minerva_gold({"solution": r"$\boxed{1.5}$, so \boxed{1.6} cm"}), minerva_gold({"answer": "4.5e33"})
    ('1.6', '4.5 \\times 10^{33}')
    """
    boxed = extract_boxed(row["solution"]) if isinstance(row.get("solution"), str) else None
    gold = boxed or _field(row, "answer")
    power = re.fullmatch(r"([+-]?\d+(?:\.\d*)?)[eE]([+-]?\d+)", gold, re.ASCII)
    return f"{power[1]} \\times 10^{{{int(power[2])}}}" if power else gold


# --- The table ---

_OCW = "no licence is named with the data; the problems are from MIT OpenCourseWare, whose own is CC BY-NC-SA 4.0"
_MAA = "no licence is named; the problems are the Mathematical Association of America's"
_QWEN = "https://github.com/QwenLM/Qwen2.5-Math"
_AIME = {"url": "url", "year": "year"}


def _in(folders: tuple[str, ...], *names: str) -> tuple[tuple[str, ...], ...]:
    """The same files in each of several folders."""
    return tuple(tuple(f"{folder}/{name}" for name in names) for folder in folders)


def _test(folder: str, rows: int, hub: Hub | None, *more: tuple[str, ...]) -> dict[str, Split]:
    return {"test": Split(((f"{folder}/test.jsonl",), *more), rows, hub)}


_ALL = (
    DataSet(
        name="bird",
        title="BIRD",
        kind="sql",
        splits={
            "train": Split(
                _in(("bird/train", "train", "bird"), "train.json"),
                9428,
                databases="train_databases",
                tables="train_tables.json",
            ),
            "dev": Split(
                _in(("bird/dev_20240627", "bird/dev", "dev_20240627", "bird"), "dev.json"),
                1534,
                Hub(
                    "birdsql/bird_sql_dev_20251106",
                    "3c11fb193e5439b338e23677fa0aae11e8b85db9",
                    "dev_20251106",
                    note="BIRD's corrected release of 2025-11-06: figures differ from those on dev_20240627",
                ),
                databases="dev_databases",
                tables="dev_tables.json",
            ),
            "mini_dev": Split(
                _in(("bird/minidev/MINIDEV", "minidev/MINIDEV", "bird/MINIDEV", "bird"), "mini_dev_sqlite.json"),
                500,
                Hub(
                    "birdsql/bird_mini_dev",
                    "f65faf4ae3b638c1fa6df1d3370c8d92c8366301",
                    "mini_dev_sqlite",
                    note="a later revision than that of minidev.zip: some questions and golds were corrected",
                ),
                databases="dev_databases",
                tables="dev_tables.json",
            ),
        },
        question=("question",),
        gold=bird_gold,
        labels={"evidence": "evidence", "difficulty": "difficulty"},
        id="question_id",
        licence="CC BY-SA 4.0",
        licence_seen="README of github.com/bird-bench/mini_dev",
        source="https://bird-bench.github.io",
        citation="Li et al., Can LLM Already Serve as a Database Interface? A Big Bench for Large-Scale Database "
        "Grounded Text-to-SQLs, NeurIPS 2023, arXiv 2305.03111",
    ),
    DataSet(
        name="bird_verified",
        title="BIRD-Verified",
        kind="sql",
        splits={
            split: Split(
                _in(("ReViSQL/data", "bird_verified"), f"bird-verified-{name}.json"), rows, databases_of=("bird_train",)
            )
            for split, name, rows in (("train", "train", 2064), ("validation", "val", 398))
        },
        question=("question",),
        gold=bird_gold,
        labels={"evidence": "evidence", "grading": "grading_method"},
        id="question_id",
        licence="BIRD's, CC BY-SA 4.0; the repository names none for its corrections",
        source="https://github.com/uiuc-kang-lab/ReViSQL (data), databases of BIRD's training set",
        citation="ReViSQL: Achieving Human-Level Text-to-SQL (there also BIRD-Platinum): 2,462 rows of BIRD's training "
        "set with corrected questions, evidence and SQL",
    ),
    DataSet(
        name="arcwise_plat",
        title="Arcwise-Plat",
        kind="sql",
        splits={
            split: Split(
                _in(("text_to_sql_benchmarks/data", "arcwise_plat"), f"arcwise_plat_{split}_with_diff.json"),
                498,
                databases_of=("bird_mini_dev", "bird_dev"),
            )
            for split in ("sql_only", "full")
        },
        question=("question",),
        gold=bird_gold,
        labels={"evidence": "evidence"},
        id="question_id",
        licence="CC BY-SA 4.0",
        source="https://github.com/uiuc-kang-lab/text_to_sql_benchmarks (data), databases of BIRD's dev set",
        citation="Jin et al., Pervasive Annotation Errors Break Text-to-SQL Benchmarks and Leaderboards, arXiv "
        "2601.08778: BIRD's mini-dev without two rows, SQL corrected (sql_only), or questions and evidence too (full)",
    ),
    DataSet(
        name="spider",
        title="Spider",
        kind="sql",
        splits={
            "train": Split(
                _in(("spider", "spider_data"), "train_spider.json", "train_others.json"),
                8659,
                Hub(
                    "xlangai/spider",
                    "0c350918f3f29ec754f1181c65cdce76cd6c133c",
                    "train",
                    note="7,000 rows, those of train_spider.json",
                ),
                databases="database",
                tables="tables.json",
            ),
            "dev": Split(
                _in(("spider", "spider_data"), "dev.json"),
                1034,
                Hub("xlangai/spider", "0c350918f3f29ec754f1181c65cdce76cd6c133c", "validation"),
                databases="database",
                tables="tables.json",
            ),
        },
        question=("question",),
        gold=spider_gold,
        licence="CC BY-SA 4.0",
        source="https://yale-lily.github.io/spider",
        citation="Yu et al., Spider: A Large-Scale Human-Labeled Dataset for Complex and Cross-Domain Semantic Parsing "
        "and Text-to-SQL Task, EMNLP 2018, arXiv 1809.08887",
    ),
    DataSet(
        name="gsm8k",
        title="GSM8K",
        kind="math",
        splits={
            name: Split(
                _in(("gsm8k", "grade-school-math/grade_school_math/data"), f"{name}.jsonl"),
                rows,
                Hub("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", name, "main"),
            )
            for name, rows in (("train", 7473), ("test", 1319))
        },
        question=("question",),
        gold=gsm8k_gold,
        licence="MIT",
        licence_seen="github.com/openai/grade-school-math",
        source="https://github.com/openai/grade-school-math",
        citation="Cobbe et al., Training Verifiers to Solve Math Word Problems, arXiv 2110.14168",
    ),
    DataSet(
        name="math500",
        title="MATH-500",
        kind="math",
        splits=_test("math500", 500, Hub("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test")),
        question=("problem",),
        gold=plain_gold,
        labels={"subject": "subject", "difficulty": "level"},
        id="unique_id",
        licence="MIT",
        licence_seen="LICENSE of github.com/hendrycks/math, from which the 500 were chosen",
        source="https://huggingface.co/datasets/HuggingFaceH4/MATH-500",
        citation="Hendrycks et al., Measuring Mathematical Problem Solving With the MATH Dataset, NeurIPS 2021, arXiv "
        "2103.03874; the 500: Lightman et al., Let's Verify Step by Step, arXiv 2305.20050",
    ),
    DataSet(
        name="aime24",
        title="AIME 2024",
        kind="math",
        splits=_test("aime24", 30, Hub("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train")),
        question=("problem", "question"),
        gold=whole_gold,
        labels=_AIME,
        id="id",
        licence=_MAA,
        source=f"{_QWEN} (evaluation/data/aime24)",
        citation="American Invitational Mathematics Examination 2024, Mathematical Association of America",
    ),
    DataSet(
        name="aime25",
        title="AIME 2025",
        kind="math",
        splits=_test(
            "aime25",
            30,
            Hub("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test"),
            ("aime25/aime2025-I.jsonl", "aime25/aime2025-II.jsonl"),
        ),
        question=("problem", "question"),
        gold=whole_gold,
        labels=_AIME,
        licence=_MAA,
        source="https://huggingface.co/datasets/math-ai/aime25 or opencompass/AIME2025",
        citation="American Invitational Mathematics Examination 2025, Mathematical Association of America",
    ),
    DataSet(
        name="amc23",
        title="AMC 2023",
        kind="math",
        splits=_test("amc23", 40, Hub("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "test")),
        question=("problem", "question"),
        gold=whole_gold,
        labels={"url": "url"},
        id="id",
        licence=_MAA,
        source=f"{_QWEN} (evaluation/data/amc23)",
        citation="American Mathematics Competitions 12 of 2023, Mathematical Association of America",
    ),
    DataSet(
        name="olympiadbench",
        title="OlympiadBench",
        kind="math",
        splits=_test(
            "olympiadbench",
            675,
            Hub(
                "Hothan/OlympiadBench",
                "91184b52131e7fc9455fef848035173aea8cc01a",
                "train",
                "OE_TO_maths_en_COMP",
                "674 rows, one fewer than the file that evaluations use",
            ),
        ),
        question=("question",),
        gold=olympiad_gold,
        labels={
            "subject": "subfield",
            "answer_type": "answer_type",
            "several_answers": "is_multiple_answer",
            "unit": "unit",
            "tolerance": "error",
            "context": "context",
        },
        id="id",
        licence="Apache-2.0 by the card of the hub copy; the repository has no licence file",
        source=f"https://github.com/OpenBMB/OlympiadBench; these rows: {_QWEN} (evaluation/data/olympiadbench)",
        citation="He et al., OlympiadBench: A Challenging Benchmark for Promoting AGI with Olympiad-Level Bilingual "
        "Multimodal Scientific Problems, ACL 2024, arXiv 2402.14008",
    ),
    DataSet(
        name="college_math",
        title="College Math",
        kind="math",
        splits=_test("college_math", 2818, Hub("realtreetune/college_math", "", "test")),
        question=("question", "problem"),
        gold=college_gold,
        labels={"subject": "data_topic", "book": "data_source", "license": "license"},
        licence="each row names its own textbook's in its field `license`: CC BY, CC BY-NC-SA (not commercial), GFDL "
        "and others",
        licence_seen="the rows",
        source=f"https://github.com/microsoft/unilm (mathscale); this file: {_QWEN} (evaluation/data/college_math)",
        citation="Tang et al., MathScale: Scaling Instruction Tuning for Mathematical Reasoning, arXiv 2403.02884",
    ),
    DataSet(
        name="minerva",
        title="Minerva Math",
        kind="math",
        splits=_test(
            "minerva_math",
            272,
            Hub(
                "math-ai/minervamath",
                "ee46ddc498933b1977577953250ca5c66be64f96",
                "test",
                note="has the answer, not the solution",
            ),
        ),
        question=("problem", "question"),
        gold=minerva_gold,
        labels={"subject": "type"},
        licence=_OCW,
        source=f"{_QWEN} (evaluation/data/minerva_math)",
        citation="Lewkowycz et al., Solving Quantitative Reasoning Problems with Language Models, NeurIPS 2022, arXiv "
        "2206.14858",
    ),
)
DATA_SETS: dict[str, DataSet] = {one.name: one for one in _ALL}
SUITES: dict[str, tuple[DataSet, str]] = {one.suite(split): (one, split) for one in _ALL for split in one.splits}
"""Name of a split's problems -> set and split."""


_QWEN_SEEN = "QwenLM/Qwen2.5-Math at a45202bd16f1"
_ARCWISE_SEEN = "uiuc-kang-lab/text_to_sql_benchmarks at fe766045c55b"
REVISIONS = {
    "630272f2b1c44d8cef2c3b246f623355cf0bbc1e832c81061df895530dfc2f06": "BIRD's dev.zip of 2024-06-27",
    "ffd8018378ddb1a8794753e0a31cfc81862ff7318a5184c22f3dc4ce03a03feb": "birdsql/bird_sql_dev_20251106 at 3c11fb193e54",
    "4effa9666b45d6a5e3900d0b533bdfe1ff5879fa6cd26cbeac18e30b70195171": "older, in peterbaile/jar at 5e48132751c2",
    "4ba5fa8de55856222f484d380d2ba872b380bf79d825de70478e2120cb0fc43b": "BIRD's minidev.zip",
    "88ceb0710163cae46a256ecea8f0a8c98286599530b60587fda5c3cfe57d45d2": "birdsql/bird_mini_dev at f65faf4ae3b6",
    "3654cf18d2cdb745cbde0279705e5826901b4f2cb6e4b1a3c12e2de41671b964": "IBM/text2sql-eval-toolkit at 02fef3d210c6",
    "a3829a81a02299e3a0155afa1321e1a4cca58ba90645bb95a59e6b8a1de8b3ec": "uiuc-kang-lab/ReViSQL at 9fac371aa220",
    "a2781fab072244928d4d4e452b626d7ee2133050353b0bba6c631159d99ed39e": "uiuc-kang-lab/ReViSQL at 9fac371aa220",
    "e7bf76408f99266506ea558d84982c69422e5db3dfecab5f08a3a8d3900e8395": _ARCWISE_SEEN,
    "baefe2ca4fbab86c000df72aad9eaa563f7d422e425af2cbff071f656ea4eea8": _ARCWISE_SEEN,
    "30d64a3fccde493226df79687aed9e4a1c0129525baf44f29c0573d914d758a4": "taoyds/spider at b7b5b8c890cd",
    "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465": "openai/grade-school-math at 3101c7d50724",
    "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14": "openai/grade-school-math at 3101c7d50724",
    "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132": "hkust-nlp/simpleRL-reason at cf1c7858bfc1",
    "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac": _QWEN_SEEN,
    "bb8c1e38a16ea9eacb77530315a674d883f267fbff79183effc53681b4fcc416": _QWEN_SEEN,
    "91131bc4a355b884fc63ef7c4f048c35adb030004a4cb07b1475698f120aa4a6": _QWEN_SEEN,
}
"""sha256 of a file -> the revision that it is."""


def licence_text(data_set: DataSet) -> str:
    """The licence and where it was read, or that it was not."""
    seen = f"read in: {data_set.licence_seen}" if data_set.licence_seen else "**not verified, check upstream**"
    return f"{data_set.licence} ({seen})"
