"""The page on what the verifiers decide: its code runs, its tables are fresh (see also test_site) and honest."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from dphlib.types import OUTCOMES
from tools import site, verifier_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / verifier_page.PAGE).read_text(encoding="utf-8")
CALLS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(3))
def test_calls_run_as_written(number, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    exec(compile(CALLS[number], verifier_page.PAGE.name, "exec"), {})


def test_there_are_three_calls_and_every_outcome_is_told():
    assert len(CALLS) == 3
    assert set(verifier_page.MEANINGS) == set(OUTCOMES)
    assert all(f"| `{name}` |" in PAGE for name in OUTCOMES)


def test_every_block_of_the_page_is_filled():
    blocks = re.findall(r"<!-- generated:([\w-]+) -->\n(.*?)<!-- /generated:\1 -->", PAGE, re.DOTALL)
    assert len(blocks) == PAGE.count("<!-- generated:") > 15
    assert all(body.count("\n") >= 3 for _, body in blocks)


def test_an_example_that_does_not_hold_is_named():
    assert verifier_page.checked("'x' for 'y'", ["wrong"], ("wrong",)) == ["wrong"]
    with pytest.raises(ValueError, match=r"verifier_examples\.py: 'x' for 'y' gives \['wrong'\], not \['correct'\]"):
        verifier_page.checked("'x' for 'y'", ["wrong"], ["correct"])


def test_a_row_of_a_table_is_one_line_with_the_cells_of_its_head():
    cell = verifier_page.code("a\r\n`b` | ```c```")
    assert cell == "```` a ⏎ `b` \\| ```c``` ````"
    assert verifier_page.table(("x", "y"), [(cell, "1")]) == f"| x | y |\n| --- | --- |\n| {cell} | 1 |\n"


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A repository with the page, whose blocks are those that the page has."""
    for name in ("CITATION.cff", "pyproject.toml", "THIRD_PARTY.md", "constraints.txt", "docs/verifier.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    blocks = dict(re.findall(r"<!-- generated:([\w-]+) -->\n(.*?)<!-- /generated:\1 -->", PAGE, re.DOTALL))
    monkeypatch.setattr(verifier_page, "page_blocks", lambda root: blocks)
    return tmp_path


def test_a_verdict_changed_by_hand_is_noticed_and_written_back(copy):
    page = copy / verifier_page.PAGE
    assert page not in site.stale(copy)
    page.write_text(PAGE.replace("| correct | wrong | wrong |", "| correct | correct | wrong |"))
    assert site.stale(copy)[page] == PAGE


def test_a_block_without_its_end_or_its_table_is_named(copy):
    page = copy / verifier_page.PAGE
    page.write_text(PAGE.replace("<!-- /generated:sql-limits -->\n", ""))
    with pytest.raises(ValueError, match="/generated:sql-limits --> are needed once"):
        site.stale(copy)
    page.write_text(PAGE + "\n<!-- generated:more -->\n<!-- /generated:more -->\n")
    with pytest.raises(ValueError, match="no such block: more"):
        site.stale(copy)
