"""The table of data sets: where each lies in its official layout, its copy on the hub, fields, licence and source.

One row a set. `data` loads by it, `dph data list` prints it, and the data sets' part of THIRD_PARTY.md is made
from it. No data set is part of this repository: a user gets it from its source, under its licence.

A hub revision stands here only if it was seen, in full, in the public code of at least two unrelated projects
together with the hub id and split. A copy that differs from the official files says so in `Hub.note`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from dphlib.data.golds import (
    Row,
    bird_gold,
    college_gold,
    gsm8k_gold,
    minerva_gold,
    olympiad_gold,
    plain_gold,
    spider_gold,
    whole_gold,
)
from dphlib.types import Kind


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
        rows: of the official files, 0 where we could not count them.
        hub: its copy on the hub.
        databases: folder of `<db_id>/<db_id>.sqlite`, beside the first file.
        tables: description of the databases, beside the first file.
    """

    files: tuple[tuple[str, ...], ...]
    rows: int
    hub: Hub | None = None
    databases: str = ""
    tables: str = ""


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set.

    Args:
        name, title: as in commands, and as its authors call it.
        kind: which verifier judges it.
        splits: name -> split.
        question: fields of which the first that a row has is the question.
        gold: the gold SQL or answer of a row; raises KeyError or ValueError where the row has none.
        labels: meta label -> field of the row.
        id: field that names a row; "" counts the rows.
        mode: the rule by which its own evaluator compares results (`sql` only).
        licence: of the data.
        licence_seen: where we read that; "" where we did not: check it before you publish anything made from it.
        source: where to get the official files.
        citation: authors, title, where.
    """

    name: str
    title: str
    kind: Kind
    splits: Mapping[str, Split]
    question: tuple[str, ...]
    gold: Callable[[Row], str]
    licence: str
    licence_seen: str
    source: str
    citation: str
    labels: Mapping[str, str]
    id: str = ""
    mode: Literal["bird", "spider"] = "bird"

    def suite(self, split: str) -> str:
        """The name of the split's problems: the set's, with the split's where there are several.

        >>> DATA_SETS["bird"].suite("dev"), DATA_SETS["aime24"].suite("test")
        ('bird_dev', 'aime24')
        """
        return self.name if len(self.splits) == 1 else f"{self.name}_{split}"


# --- The table ---

_OCW = "no licence is named with the data; the problems are from MIT OpenCourseWare, whose own is CC BY-NC-SA 4.0"
_MAA = "no licence is named; the problems are the Mathematical Association of America's"
_QWEN = "https://github.com/QwenLM/Qwen2.5-Math"
_AIME = {"url": "url", "year": "year"}


def _test(folder: str, rows: int, hub: Hub, *more: tuple[str, ...]) -> dict[str, Split]:
    return {"test": Split(((f"{folder}/test.jsonl",), *more), rows, hub)}


_ALL = (
    DataSet(
        name="bird",
        title="BIRD",
        kind="sql",
        splits={
            "train": Split(
                (("bird/train/train.json",), ("train/train.json",), ("bird/train.json",)),
                9428,
                databases="train_databases",
                tables="train_tables.json",
            ),
            "dev": Split(
                (
                    ("bird/dev_20240627/dev.json",),
                    ("bird/dev/dev.json",),
                    ("dev_20240627/dev.json",),
                    ("bird/dev.json",),
                ),
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
                (
                    ("bird/minidev/MINIDEV/mini_dev_sqlite.json",),
                    ("minidev/MINIDEV/mini_dev_sqlite.json",),
                    ("bird/MINIDEV/mini_dev_sqlite.json",),
                    ("bird/mini_dev_sqlite.json",),
                ),
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
        name="spider",
        title="Spider",
        kind="sql",
        splits={
            "train": Split(
                (
                    ("spider/train_spider.json", "spider/train_others.json"),
                    ("spider_data/train_spider.json", "spider_data/train_others.json"),
                ),
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
                (("spider/dev.json",), ("spider_data/dev.json",)),
                1034,
                Hub("xlangai/spider", "0c350918f3f29ec754f1181c65cdce76cd6c133c", "validation"),
                databases="database",
                tables="tables.json",
            ),
        },
        question=("question",),
        gold=spider_gold,
        labels={},
        mode="spider",
        licence="CC BY-SA 4.0",
        licence_seen="",
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
                ((f"gsm8k/{name}.jsonl",), (f"grade-school-math/grade_school_math/data/{name}.jsonl",)),
                rows,
                Hub("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", name, "main"),
            )
            for name, rows in (("train", 7473), ("test", 1319))
        },
        question=("question",),
        gold=gsm8k_gold,
        labels={},
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
        licence_seen="",
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
        licence_seen="",
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
        licence_seen="",
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
        licence_seen="",
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
        licence_seen="",
        source=f"{_QWEN} (evaluation/data/minerva_math)",
        citation="Lewkowycz et al., Solving Quantitative Reasoning Problems with Language Models, NeurIPS 2022, arXiv "
        "2206.14858",
    ),
)
DATA_SETS: dict[str, DataSet] = {one.name: one for one in _ALL}
SUITES: dict[str, tuple[DataSet, str]] = {one.suite(split): (one, split) for one in _ALL for split in one.splits}
"""Name of a split's problems -> set and split."""


def licence_text(data_set: DataSet) -> str:
    """The licence and where it was read, or that it was not."""
    seen = f"read in: {data_set.licence_seen}" if data_set.licence_seen else "**not verified, check upstream**"
    return f"{data_set.licence} ({seen})"
