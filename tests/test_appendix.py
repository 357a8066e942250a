"""docs/artifact_appendix.md: ACM's sections, every fact from the recorded run, and a changed run changes the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dphlib.report.facts import effect_text, read_json
from dphlib.runtime.files import RunError
from tools import appendix, site

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / appendix.PAGE).read_text(encoding="utf-8")
SECTIONS = [
    "Abstract", "Check-list (meta-information)", "Description", "How to access", "Hardware dependencies",
    "Software dependencies", "Data sets", "Models", "Installation", "Experiment workflow",
    "Evaluation and expected results", "Experiment customization", "Reusability", "Notes",
]  # fmt: skip
ENTRIES = [
    "Algorithm", "Program", "Compilation", "Binary", "Model", "Data set", "Run-time environment", "Hardware",
    "Run-time state", "Execution", "Metrics", "Output", "Experiments", "How much disk space required",
    "How much time is needed to prepare workflow", "How much time is needed to complete experiments",
    "Publicly available", "Code licenses", "Data licenses", "Model licenses", "Workflow automation framework used",
    "Archived",
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A repository with what the appendix is made from."""
    for name in ("pyproject.toml", "run_all.sh", str(appendix.PAGE)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run = tmp_path / appendix.RUN
    for name in ("metrics", "notebooks"):
        shutil.copytree(ROOT / appendix.RUN / name, run / name)
    for name in ("manifest.json", "claims.json"):
        shutil.copy(ROOT / appendix.RUN / name, run / name)
    return tmp_path


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


def test_sections_and_check_list_are_acms_in_their_order():
    headings = re.findall(r"^#{2,3} (.+)$", PAGE, re.MULTILINE)
    assert headings[: len(SECTIONS)] == SECTIONS
    entries = re.findall(r"^- \*\*(.+?)\*\* ", PAGE, re.MULTILINE)
    assert [entry for entry in entries if any(entry.startswith(name) for name in ENTRIES)] == [
        next(entry for entry in entries if entry.startswith(name)) for name in ENTRIES
    ]


def test_each_claim_stands_with_its_verdict_effect_and_seeds():
    for claim in read_json(ROOT / appendix.RUN / "claims.json"):
        (row,) = re.findall(rf"^\| `{claim['id']}` \|.*$", PAGE, re.MULTILINE)
        assert f"| {claim['verdict']} | {effect_text(claim)} |" in row
        seeds = [float(number) for number in re.findall(r"-?\d+\.\d+", row.rsplit("|", 2)[1])]
        scale = 100 if claim["unit"] == "share" else 1
        values = [scale * value for _, value in claim["per_seed"]]
        assert seeds == pytest.approx([min(values), max(values)], abs=0.051)


def test_another_run_makes_another_page(root):
    run = root / appendix.RUN
    seconds = {"set-up": 60.0, "00_kick_the_tires": 120.0, "04_train": 480.0}
    edit(run / "manifest.json", seconds=seconds, seeds=[4, 9], asked={"seeds": "4,9"}, peak_gib=3.25)
    edit(run / "metrics/02_base_and_data.json", parameters=123456)
    edit(run / "metrics/08_claims_and_report.json", runs=7, answers=1001)
    (root / "run_all.sh").write_text(re.sub(r"(?m)^full_mib=\d+", "full_mib=3072", (root / "run_all.sh").read_text()))
    text = site.fresh_page(appendix, root)
    for fact in (
        "needed to prepare workflow (approximately)?** 1.0 min", "complete experiments (approximately)?** 10 min",
        "| main runs | 4, 9 |", "3.2 GiB at the peak", "a Llama of 123,456 parameters", "7 trained runs, 1,001 judged",
        "`./run_all.sh cpu --seeds 4,9`", "3.0 GiB environment",
    ):  # fmt: skip
        assert fact in text, fact
    assert "511,744" not in text


def test_data_sets_and_models_stand_with_licence_and_whether_it_was_read():
    assert "| BIRD | CC BY-SA 4.0 | yes |" in PAGE and "| Spider | CC BY-SA 4.0 | **no** |" in PAGE
    assert (
        "| meta-llama/Llama-3.1-8B-Instruct | `0e9e39f249a16976918f6564b8830bc894c89659` | 8.03 billion | llama3.1 |"
        in PAGE
    )


def test_a_missing_record_is_named(root):
    (root / appendix.RUN / "metrics/02_base_and_data.json").unlink()
    with pytest.raises(RunError, match=r"02_base_and_data\.json is not there"):
        appendix.page_blocks(root)


def test_commands_and_links_of_the_page_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / link).resolve().is_file(), link
    for path in re.findall(r"`(dphlib/\w+\.py)`", PAGE):
        assert (ROOT / path).is_file(), path
    usage = (ROOT / "run_all.sh").read_text()
    for name in re.findall(r"\./run_all\.sh (\w+)", PAGE):
        assert re.search(rf"\b{name}\b", usage) or name == "cpu"
