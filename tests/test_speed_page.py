"""docs/speed.md: the recorded runs of benchmarks as tables, missed bounds among them, and what is no record refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dphlib.runtime.files import RunError
from dphlib.runtime.places import ROOT
from tools import speed_page


@pytest.fixture
def tell(monkeypatch, capsys):
    """Runs `measuring.tell` as a script with these arguments does; gives the line to record."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "benchmarks")
    import measuring

    def line(value: float, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cost.py", *arguments])
        target = measuring.Target("a step, ours to theirs", value, 1.15)
        measuring.tell("cost", {}, [{"way": "ours", "seconds": 1234.5}], [target], ["one | two"])
        return capsys.readouterr().out.splitlines()[-1]

    return line


def page(root: Path, *lines: str) -> dict[str, str]:
    path = root / speed_page.RECORDED
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return speed_page.page_blocks(root)


def test_a_recorded_run_is_shown_with_its_bound_and_a_missed_one_is_said(tmp_path, tell):
    blocks = page(tmp_path, tell(1.2), tell(1.1, "--checkpointing"))
    assert "| a step, ours to theirs | 1.2 | at most 1.15 | **missed** | `cost.py` |" in blocks["bounds"]
    assert "| 1.1 | at most 1.15 | held | `cost.py --checkpointing` |" in blocks["bounds"]
    assert blocks["bounds"].endswith("1 of 2 bounds are missed.\n")
    assert blocks["runs"].count("### `cost.py") == 2 and "| ours | 1234 |" in blocks["runs"]


def test_the_later_run_of_a_command_counts_and_another_machine_has_its_own(tmp_path, tell):
    elsewhere = json.loads(tell(1.0))
    elsewhere["machine"]["gpus"] = ["a GPU"]
    blocks = page(tmp_path, tell(1.2), json.dumps(elsewhere), tell(1.1))
    assert "1.2" not in blocks["bounds"] and blocks["bounds"].endswith("0 of 2 bounds are missed.\n")
    assert "a GPU" in blocks["runs"] and "no GPU used" in blocks["runs"]


@pytest.mark.parametrize("line", ["", "rows of a table", "{}", "[1]"])
def test_what_no_script_printed_is_refused_with_its_line(tmp_path, tell, line):
    with pytest.raises(RunError, match=r"recorded\.jsonl, line 2: not the last line of a benchmark's output"):
        page(tmp_path, tell(1.0), line)
    with pytest.raises(RunError, match="No such file"):
        speed_page.page_blocks(tmp_path / "elsewhere")


def test_every_recorded_command_is_of_a_script_here():
    for run in speed_page.recorded(ROOT / speed_page.RECORDED):
        assert (ROOT / "tests" / "benchmarks" / run["command"].split()[0]).is_file()
        assert run["versions"]["torch"] and run["targets"]
