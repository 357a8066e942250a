"""One address reaches every place that repeats it; without one nothing links to nowhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from dphlib import __version__
from dphlib.cli import colab
from dphlib.data.sets import DATA_SETS
from dphlib.settings.environment import profile_from_environment as profile
from tools import site, third_party

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://github.com/somebody/some-name"
README = "# Title\n<!-- generated:badges -->\n<!-- generated:end -->\ntext\n"


@pytest.fixture
def root(tmp_path):
    """A repository with the real files that repeat the address and one notebook; no address yet."""
    for name in ("CITATION.cff", "THIRD_PARTY.md", *third_party.LISTS):
        shutil.copy(ROOT / name, tmp_path / name)
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(re.sub(r'(?m)^repository = ".*"$', 'repository = ""', text))
    (tmp_path / "README.md").write_text(README)
    badge, bootstrap = nbformat.v4.new_markdown_cell("old"), nbformat.v4.new_code_cell("old")
    badge.metadata["tags"], bootstrap.metadata["tags"] = ["badge"], ["bootstrap"]
    notebook = nbformat.v4.new_notebook(cells=[badge, bootstrap, nbformat.v4.new_code_cell("1 + 1")])
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks/00_kick_the_tires.ipynb")
    assert site.main(["--write", "--root", str(tmp_path)]) == 0
    return tmp_path


def set_address(root: Path, address: str) -> None:
    path = root / "pyproject.toml"
    path.write_text(re.sub(r'(?m)^repository = ".*"$', f'repository = "{address}"', path.read_text()))


def everything(root: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(root.rglob("*")) if path.is_file())


def test_without_address_all_is_fresh_and_no_link_leads_to_a_repository(root):
    assert site.main(["--check", "--root", str(root)]) == 0
    cells = nbformat.read(root / "notebooks/00_kick_the_tires.ipynb", as_version=4).cells
    assert "http" not in cells[0].source and "Upload notebook" in cells[0].source
    assert (root / "README.md").read_text() == README
    assert "repository-code" not in (root / "CITATION.cff").read_text()


def test_a_new_address_makes_places_stale_and_one_command_freshens_them(root, capsys):
    set_address(root, ADDRESS)
    assert site.main(["--check", "--root", str(root)]) == 1
    stale = capsys.readouterr().out
    for name in ("pyproject.toml", "CITATION.cff", "README.md", "notebooks/00_kick_the_tires.ipynb"):
        assert f"{name}: stale" in stale
    assert site.main(["--write", "--root", str(root)]) == 0
    assert site.main(["--check", "--root", str(root)]) == 0
    assert yaml.safe_load((root / "CITATION.cff").read_text())["repository-code"] == ADDRESS
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["urls"]["Repository"] == ADDRESS
    link = f"/github/somebody/some-name/blob/v{__version__}/notebooks/00_kick_the_tires.ipynb"
    cells = nbformat.read(root / "notebooks/00_kick_the_tires.ipynb", as_version=4).cells
    binder = f"/v2/gh/somebody/some-name/v{__version__}?labpath=notebooks%2F00_kick_the_tires.ipynb"
    for text in (cells[0].source, (root / "README.md").read_text()):
        assert link in text and binder in text
    assert f"git+{ADDRESS}@v{__version__}" in cells[1].source and cells[2].source == "1 + 1"
    assert f"{ADDRESS}/actions/workflows/ci.yml/badge.svg" in (root / "README.md").read_text()


def test_taking_the_address_back_restores_every_file(root):
    before = everything(root)
    set_address(root, ADDRESS)
    site.main(["--write", "--root", str(root)])
    assert everything(root) != before
    set_address(root, "")
    site.main(["--write", "--root", str(root)])
    assert everything(root) == before


def test_an_edited_badge_is_noticed(root):
    path = root / "notebooks/00_kick_the_tires.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source += "\nprint('more')"
    nbformat.write(notebook, path)
    assert list(site.stale(root)) == [path]


@pytest.mark.parametrize(
    "address",
    ["github.com/a/b", "http://github.com/a/b", "https://github.com/a", f"{ADDRESS}/", f"{ADDRESS}.git", "x"],
)
def test_what_is_no_address_is_refused(root, address, capsys):
    set_address(root, address)
    assert site.main(["--check", "--root", str(root)]) == 1
    assert "is not like" in capsys.readouterr().err


def test_missing_marker_or_cell_is_named(root, capsys):
    (root / "README.md").write_text("# Title\n")
    assert site.main(["--check", "--root", str(root)]) == 1
    assert "README.md: the lines <!-- generated:badges -->" in capsys.readouterr().err
    (root / "README.md").write_text(README)
    nbformat.write(nbformat.v4.new_notebook(cells=[]), root / "notebooks/01_empty.ipynb")
    assert site.main(["--check", "--root", str(root)]) == 1
    assert "01_empty.ipynb: one markdown cell tagged `badge`" in capsys.readouterr().err


def test_other_hosts_get_no_colab_and_no_github_badge(root):
    set_address(root, "https://gitlab.com/somebody/some-name")
    site.main(["--write", "--root", str(root)])
    assert (root / "README.md").read_text() == README
    cells = nbformat.read(root / "notebooks/00_kick_the_tires.ipynb", as_version=4).cells
    assert "Upload notebook" in cells[0].source and "git+https://gitlab.com" in cells[1].source


# --- The bootstrap cell -------------------------------------------------------------------------------


COLAB = """
import importlib.metadata, importlib.util, json, subprocess, sys, types
if sys.argv[1] == "colab":
    sys.modules["google.colab"] = types.ModuleType("google.colab")
    importlib.util.find_spec = lambda name: None
    importlib.metadata.version = lambda name: {"torch": "2.99.0+cu999"}[name]
subprocess.run = lambda command, check: print(json.dumps(command))
exec(sys.stdin.read())
"""


def bootstrap(where: str, address: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the cell in a process of its own, which prints the command that the cell would run."""
    command = [sys.executable, "-c", COLAB, where]
    source = site.bootstrap_source(address)
    here = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "/nowhere"}  # this copy of dphlib, and no GPU's tools
    return subprocess.run(command, input=source, cwd=folder, text=True, capture_output=True, timeout=30, env=here)


@pytest.mark.parametrize("address", ["", ADDRESS])
def test_bootstrap_does_nothing_outside_colab(address, tmp_path):
    done = bootstrap("elsewhere", address, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())


def test_bootstrap_on_colab_installs_the_release_and_keeps_its_torch(tmp_path):
    done = bootstrap("colab", ADDRESS, tmp_path)
    assert done.returncode == 0, done.stderr
    command, said = done.stdout.strip().split("\n")
    release = f"dphlib[notebooks] @ git+{ADDRESS}@v{__version__}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "torch==2.99.0+cu999", release]
    assert json.loads(command) == pip
    assert said.startswith("no GPU in this runtime: profile_name = 'smoke'")


def test_on_colab_with_a_gpu_the_sampler_is_one_that_runs_there_and_the_profile_is_named(monkeypatch, capsys):
    monkeypatch.delenv(colab.SAMPLER, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    colab.prepare("Tesla T4, 15360 MiB")
    said = capsys.readouterr().out
    assert said.startswith("Tesla T4, 15360 MiB: profile_name = 'gpu24-smoke'") and "drive.mount" in said
    assert profile("gpu24").backend.program == "transformers"
    monkeypatch.setenv(colab.SAMPLER, "vllm")
    colab.prepare("NVIDIA L4, 23034 MiB")
    assert profile("gpu24").backend.program == "vllm", "the user's own choice stays"


def test_bootstrap_on_colab_without_address_says_what_to_do(tmp_path):
    done = bootstrap("colab", "", tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert "no public address: upload" in done.stderr and "%pip install '/content/dph[notebooks]'" in done.stderr


def test_bootstrap_fits_a_cell():
    assert max(len(site.bootstrap_source(address).splitlines()) for address in ("", ADDRESS)) <= 16


# --- This repository ----------------------------------------------------------------------------------


def test_generated_places_of_this_repository_are_fresh(capsys):
    assert site.main(["--check"]) == 0, capsys.readouterr()


def test_third_party_lists_the_packages_of_every_list():
    rows = third_party.listed((ROOT / "THIRD_PARTY.md").read_text())
    assert list(rows) == list(third_party.packages()) and {"torch", "vllm", "verl", "ray", "pdoc"} <= set(rows)
    assert third_party.packages()["torch"] == "" and third_party.packages()["verl"] == "verl"


@pytest.mark.parametrize("name", third_party.LISTS)
def test_a_package_that_is_not_listed_makes_it_stale(root, capsys, name):
    with open(root / name, "a") as file:
        file.write("zzz==1.0\n")
    assert site.main(["--check", "--root", str(root)]) == 1
    assert "THIRD_PARTY.md: stale" in capsys.readouterr().out


def test_a_licence_that_only_pip_reported_is_taken_and_kept(root, tmp_path, capsys):
    with open(root / "constraints-verl.txt", "a") as file:
        file.write("zz_z==1.0\n")
    assert site.main(["--write", "--root", str(root)]) == 1
    assert "zz_z (extra verl): not installed" in capsys.readouterr().err
    rows = [{"metadata": {"name": "zz-z", "license": "", "classifier": ["License :: OSI Approved :: MIT License"]}}]
    (tmp_path / "report.json").write_text(json.dumps({"install": rows}))
    for more in (["--report", str(tmp_path / "report.json")], []):
        assert site.main(["--write", "--root", str(root), *more]) == 0
        assert "| zz_z | MIT License | verl |" in (root / "THIRD_PARTY.md").read_text()


def test_data_sets_are_listed_with_licence_source_and_citation():
    text = (ROOT / "THIRD_PARTY.md").read_text()
    assert third_party.data_sets_part() in text
    for one in DATA_SETS.values():
        row = next(line for line in text.splitlines() if line.startswith(f"| **{one.title}** "))
        assert one.licence in row and one.source in row and one.citation in row
        assert ("not verified" in row) == (not one.licence_seen)


def test_an_edited_row_of_a_data_set_makes_it_stale(root, capsys):
    path = root / "THIRD_PARTY.md"
    path.write_text(path.read_text().replace("| **Spider** (`spider`) | CC BY-SA 4.0", "| **Spider** | MIT"))
    assert site.main(["--check", "--root", str(root)]) == 1
    assert "THIRD_PARTY.md: stale" in capsys.readouterr().out


def test_licences_are_short_names_from_the_packages_themselves():
    assert third_party.licence_of("pytest") == "MIT"
    assert third_party.licence_of("scipy") == "BSD License"  # its licence field is the whole text
    licences = list(third_party.listed(third_party.page()).values())
    assert all(licences) and max(map(len, licences)) < 160


def test_citation_names_the_paper_and_invents_no_author():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse")
    assert paper["authors"] == [{"name": "Authors of arXiv:2509.07430"}]
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]
