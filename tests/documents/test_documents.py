"""Documents against the repository: what they link, name and show is there, runs, and comes from the recorded run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import torch

from dphlib.cli import main as cli
from dphlib.experiment.store import verify_run_manifest
from dphlib.report.notebooks import declared_parameters
from tools import site

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "artifacts" / "reference"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
}
SNIPPETS = [
    (name, code)
    for name in ("README.md", "docs/verifier.md")
    for code in re.findall(r"^```python\n(.*?)^```$", PAGES[name], re.DOTALL | re.MULTILINE)
    if "dphlib.integrations" not in code  # tests/with_trl runs that
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def named(pattern: str) -> list[str]:
    """What a pattern finds in the documents, once each."""
    return sorted({match for text in PAGES.values() for match in re.findall(pattern, text)})


@pytest.mark.slow
def test_every_generated_block_is_fresh():
    assert [path.relative_to(ROOT).as_posix() for path, _ in site.stale()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    links = [link for link in re.findall(r"\]\(([^)#]+)[)#]", PAGES[page]) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_headings(page):
    for path, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", PAGES[page]):
        there = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert anchor in anchors, f"{path}#{anchor}"


@pytest.mark.parametrize("path", named(r"`((?:dphlib|tests|tools|docs|notebooks|artifacts/reference)/[\w./]+)`"))
def test_named_files_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", named(r"`(dphlib(?:\.\w+)+)"))
def test_named_modules_and_what_they_define_exist(name):
    parts = name.split(".")
    place = ROOT
    while parts and ((place / parts[0]).is_dir() or (place / f"{parts[0]}.py").is_file()):
        place /= parts.pop(0)
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = source.read_text(encoding="utf-8")
    assert all(re.search(rf"\b{part}\b", text) for part in parts), f"{parts} not in {source}"


@pytest.mark.parametrize("command", named(r"`dph ([a-z]+)"))
def test_commands_exist(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0 and "usage: dph" in capsys.readouterr().out


def test_run_all_knows_the_arguments_that_documents_give_it():
    usage = subprocess.run(["bash", str(ROOT / "run_all.sh"), "--help"], capture_output=True, text=True)
    known = set(re.findall(r"[a-z][a-z0-9-]*", usage.stdout))
    assert usage.returncode == 0 and set(named(r"\./run_all\.sh ([a-z][a-z0-9-]*)")) <= known


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[name for name, _ in SNIPPETS])
def test_code_runs_as_written(page, code, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(code, page, "exec"), names)
    if page == "README.md":
        moved = names["logprobs"](names["ids"]) - names["drawn"]
        assert names["loss"].isfinite() and moved.isfinite().all() and moved.abs().amax(1).min() > 1e-4


def test_the_reference_run_is_whole_and_small_enough():
    assert verify_run_manifest(REFERENCE) == []
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 20 * 2**20


@pytest.mark.slow
def test_figures_tables_and_claims_are_drawn_again_byte_by_byte(tmp_path, capsys):
    assert cli.main(["replot", "--source", str(REFERENCE), "--out", str(tmp_path)]) == 0, capsys.readouterr().out
    assert len(list(tmp_path.rglob("*.svg"))) == len(list((tmp_path / "figures").glob("*.png"))) >= 9


def test_the_newest_version_of_the_changelog_is_this_one():
    from dphlib import __version__

    assert re.findall(r"^## (\d+\.\d+\.\d+)", PAGES["CHANGELOG.md"], re.MULTILINE)[0] == __version__


# --- All files ----------------------------------------------------------------------------------------


def written() -> dict[str, str]:
    """Text of every committed file, without the pictures in notebooks, in which any letters may occur."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    texts = {}
    for path in (ROOT / name for name in listed.stdout.split("\0") if name):
        if not path.is_file() or path.suffix in (".png", ".parquet", ".safetensors"):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = re.sub(r'"image/png": "[^"]*"', "", text)
        texts[path.relative_to(ROOT).as_posix()] = text
    return texts


def test_no_file_names_a_place_of_a_machine_and_nothing_is_left_for_later():
    if not (ROOT / ".git").exists():
        pytest.skip("what is committed is known in a clone only")
    place = re.compile(r"(?<![\w.~>-])/(?:work|tmp|root)/\S*")
    later = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|NotImplemented" + r"Error)\b")
    found = {name: place.findall(text) for name, text in written().items()}
    found |= {name: later.findall(text) for name, text in written().items() if not name.startswith("artifacts/")}
    assert {name: matches for name, matches in found.items() if matches} == {}


# --- Notebooks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_source_is_stripped_has_stable_ids_and_its_tagged_cells(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    ids = [cell.get("id") for cell in notebook.cells]
    assert all(ids) and len(set(ids)) == len(ids) and "papermill" not in notebook.metadata
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags[0] == "badge" and "bootstrap" in tags and 1 <= len(declared_parameters(path)) <= 8


def test_notebooks_executed_for_the_reference_are_those_of_the_repository():
    assert [path.name for path in sorted((REFERENCE / "notebooks").glob("*.ipynb"))] == [p.name for p in NOTEBOOKS]
    assert json.loads((REFERENCE / "manifest.json").read_text())["profile"] == "cpu"
