"""What makes the documents: one address reaches every place that repeats it, and what is wrong is named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from synthetic import make_run

from dphlib import __version__
from dphlib.analysis import claims
from dphlib.analysis.labels import claim_name
from dphlib.experiment.store import write_run_manifest
from dphlib.runtime.files import RunError
from dphlib.settings.methods import CONTROLS, DECISIVE, METHODS
from dphlib.settings.profiles import profile
from dphlib.settings.studies import STUDIES, planned_runs
from tools import parts, reference, run, site, third_party, verifier
from tools.blocks import fill

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "https://github.com/somebody/some-name"
README = "# Title\n<!-- generated:badges -->\n<!-- /generated:badges -->\ntext\n"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository with what repeats the address, and one notebook; no address yet."""
    pages = {
        name: site.address_part(*blocks) for name, blocks in (("README.md", ["badges"]), ("CITATION.cff", ["release"]))
    }
    monkeypatch.setattr(site, "PAGES", {**pages, "pyproject.toml": site.address_part("urls")})
    shutil.copy(ROOT / "CITATION.cff", tmp_path)
    (tmp_path / "README.md").write_text(README)
    set_address(ROOT, tmp_path, "")
    cells = [nbformat.v4.new_markdown_cell("old"), nbformat.v4.new_code_cell("old"), nbformat.v4.new_code_cell("1 + 1")]
    cells[0].metadata["tags"], cells[1].metadata["tags"] = ["badge"], ["bootstrap"]
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks/00_kick_the_tires.ipynb")
    assert site.main(["--write", "--root", str(tmp_path)]) == 0
    return tmp_path


def set_address(source: Path, root: Path, address: str) -> None:
    text = (source / "pyproject.toml").read_text()
    (root / "pyproject.toml").write_text(re.sub(r'(?m)^repository = ".*"$', f'repository = "{address}"', text))


def everything(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(root.rglob("*.*")) if path.is_file()}


def test_an_address_reaches_every_place_and_leaves_every_place(root, capsys):
    before = everything(root)
    assert ADDRESS not in str(before) and "Upload notebook" in before["00_kick_the_tires.ipynb"]
    set_address(root, root, ADDRESS)
    assert site.main(["--check", "--root", str(root)]) == 1
    assert capsys.readouterr().out.count("stale") == 4
    assert site.main(["--write", "--root", str(root)]) == site.main(["--check", "--root", str(root)]) == 0
    after = everything(root)
    assert yaml.safe_load(after["CITATION.cff"])["repository-code"] == ADDRESS
    assert f'Repository = "{ADDRESS}"' in after["pyproject.toml"]
    notebook = nbformat.reads(after["00_kick_the_tires.ipynb"], as_version=4)
    for text in (after["README.md"], notebook.cells[0].source):
        assert f"/github/somebody/some-name/blob/v{__version__}/notebooks/00_kick_the_tires.ipynb" in text
    assert f"git+{ADDRESS}@v{__version__}" in notebook.cells[1].source and notebook.cells[2].source == "1 + 1"
    set_address(root, root, "")
    site.main(["--write", "--root", str(root)])
    assert everything(root) == before


@pytest.mark.parametrize("address", ["github.com/a/b", "http://github.com/a/b", f"{ADDRESS}/", f"{ADDRESS}.git", "x"])
def test_what_is_not_an_address_is_refused(root, address, capsys):
    set_address(root, root, address)
    assert site.main(["--check", "--root", str(root)]) == 1
    assert "is not like" in capsys.readouterr().err


def test_without_an_address_the_way_to_colab_is_told_in_the_first_notebook_alone(root):
    first, later = (site.address_blocks(root, name)["badge"] for name in ("00_kick_the_tires", "04_train"))
    assert "Upload notebook" in first and later.startswith("<!-- ")
    set_address(root, root, ADDRESS)
    assert all("colab-badge" in site.address_blocks(root, name)["badge"] for name in ("00_kick_the_tires", "04_train"))


def test_only_where_colab_can_open_it_there_is_a_link_to_colab(root):
    set_address(root, root, "https://gitlab.com/somebody/some-name")
    site.main(["--write", "--root", str(root)])
    assert (root / "README.md").read_text() == README
    assert "git+https://gitlab.com" in (root / "notebooks/00_kick_the_tires.ipynb").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# Title\n", "README.md: the lines generated:badges and /generated:badges are needed once"),
        (README + README, "are needed once"),
        (README + "<!-- generated:more -->\n<!-- /generated:more -->\n", "README.md: no such block: more"),
    ],
)
def test_marker_lines_that_are_not_right_are_named(text, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        fill(text, {"badges": ""}, "README.md")


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


def bootstrap(where: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Runs the cell in a process of its own, which prints the command that the cell would run."""
    here = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": "/nowhere"}  # this copy of dphlib, and no GPU's tools
    source = site.address_blocks(root)["bootstrap"]
    command = [sys.executable, "-c", COLAB, where]
    return subprocess.run(command, input=source, cwd=root, text=True, capture_output=True, env=here)


def test_the_bootstrap_cell_acts_on_colab_only_and_keeps_its_torch(root):
    set_address(root, root, ADDRESS)
    done = bootstrap("elsewhere", root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = bootstrap("colab", root)
    command, said = done.stdout.strip().split("\n")
    release = f"dphlib[colab] @ git+{ADDRESS}@v{__version__}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "torch==2.99.0+cu999", release]
    assert json.loads(command) == pip and said.startswith("no GPU in this runtime: profile_name = 'smoke'")


def test_on_colab_without_an_address_the_bootstrap_cell_says_what_to_do(root):
    done = bootstrap("colab", root)
    assert done.returncode == 1 and "%pip install '/content/dph[colab]'" in done.stderr


# --- Pages --------------------------------------------------------------------------------------------


@pytest.fixture
def lists(tmp_path) -> Path:
    for name in (third_party.PAGE, *third_party.LISTS):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_a_package_is_listed_with_its_own_licence_or_the_one_that_the_page_has(lists):
    with open(lists / "constraints-verl.txt", "a") as file:
        file.write("zzz==1.0\n")
    with pytest.raises(ValueError, match=r"^zzz: its metadata is not here or names no licence"):
        third_party.page_blocks(lists)
    with open(lists / third_party.PAGE, "a") as file:
        file.write("| zzz | MIT | verl |\n| pytest | wrong |  |\n")
    rows = third_party.page_blocks(lists)["packages"]
    assert "| zzz | MIT | verl |" in rows and "| pytest | MIT |  |" in rows and "| scipy | BSD License |  |" in rows


def test_an_example_that_a_verifier_decides_otherwise_is_named():
    with pytest.raises(ValueError, match=r"verifier_examples\.py: 'x' for 'y' gives \['wrong'\], not \['correct'\]"):
        verifier.checked("'x' for 'y'", ["wrong"], ["correct"])


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RunError, match=r"manifest\.json is not there"):
        run.readme_blocks(tmp_path)


# --- README's results ---------------------------------------------------------------------------------

TRAINED = (*METHODS, *(name for name in CONTROLS if name in DECISIVE))


@pytest.fixture(scope="module")
def of_a_run(tmp_path_factory) -> Path:
    """A repository with a full reference of six runs per arm, and a reference of three."""
    root = tmp_path_factory.mktemp("repository")
    make_run(root / run.WHERE, methods=TRAINED, seeds=range(3), bases=range(3), ablations=False)
    full = make_run(root / run.FULL, methods=TRAINED, seeds=range(6), bases=range(6), ablations=False)
    (full / "manifest.json").unlink()  # it was made in parts, and has none
    write_stopped(root, decided(root))
    return root


def write_stopped(root: Path, found: Sequence[claims.ClaimResult]) -> None:
    (root / run.FULL / "claims_stopped.json").write_text(claims.to_json(found), encoding="utf-8")


def decided(root: Path, where: str = run.FULL) -> list[claims.ClaimResult]:
    return claims.from_json((root / where / "claims.json").read_text(encoding="utf-8"))


def cells(table: str) -> list[list[str]]:
    rows = re.findall(r"^\| (?!---)(.*) \|$", table, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def test_every_verdict_has_its_symbol():
    assert list(claims.SYMBOLS) == list(claims.VERDICTS)
    assert len(set(claims.SYMBOLS.values())) == len(claims.SYMBOLS)


def test_readme_names_the_full_reference_as_it_is_planned():
    planned, text = planned_runs(parts.full_profile(), tuple(STUDIES)), (ROOT / "README.md").read_text(encoding="utf-8")
    decisive = {sum(one.method == name and one.variant == "main" for one in planned) for name in DECISIVE}
    assert f"`{run.FULL_COMMAND}` is the full reference: {len(planned)} runs, {decisive.pop()} of each decisive" in text
    assert not decisive and len(profile("cpu").seeds) == 3


def test_readmes_claims_are_the_recorded_verdicts(of_a_run):
    block, found = run.readme_blocks(of_a_run)["claims"], decided(of_a_run)
    rows = cells(block)[1:]
    assert len(rows) == len(found) == len(claims.CLAIMS)
    assert len({claim.verdict for claim in found}) >= 3, "the records decide something"
    for (text, verdict, effect, joint, _), claim in zip(rows, found, strict=True):
        assert verdict.split(" ", 1)[1] == claim.verdict and text.strip("*") == claim_name(claim.id)
        assert text.startswith("**") == (claim.holds_jointly is not None)
        if claim.unit == "share" and claim.estimate is not None:
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", effect)]
            assert numbers == pytest.approx([100 * x for x in (claim.estimate, claim.low, claim.high)], abs=0.051)
        certain = {True: "holds", False: "open", None: ""}[claim.holds_jointly]
        assert joint == (certain if claim.verdict in ("supported", "not supported") else "")


def test_readmes_table_has_the_means_of_the_records(of_a_run):
    records = pd.read_parquet(of_a_run / run.FULL / "records.parquet")
    rows = records[(records["suite"] == "in_domain") & (records["variant"] == "main") & (records["temperature"] == 0)]
    rows = rows[rows["step"] == rows.groupby("method")["step"].transform("max")]
    greedy = 100 * (rows["correct"] / rows["n"]).groupby(rows["method"]).mean()
    table = {name: texts for name, *texts in cells(run.readme_blocks(of_a_run)["table"])[1:]}
    assert list(table) == ["base", "GRPO", "DAPO", "RKL", "DPH-F", "DPH-JS"]
    for name, method in (("base", "base"), ("GRPO", "grpo"), ("DPH-JS", "dph_js")):
        assert float(table[name][0].split()[0]) == pytest.approx(greedy[method], abs=0.051)
    directions = {name: "".join(text[-1] for text in table[name]) for name in ("GRPO", "DPH-F")}
    assert directions == {"GRPO": "↑]↓↓", "DPH-F": "↑]↑↓"}, "of the paper, which has no Pass@1"


def test_the_verdicts_at_the_stopping_point_stand_beside_those_at_the_end(of_a_run, tmp_path):
    shutil.copytree(of_a_run, tmp_path, dirs_exist_ok=True)
    stopped = [replace(one, verdict="not supported") for one in decided(tmp_path)]
    stopped[1] = replace(stopped[1], verdict="supported")
    write_stopped(tmp_path, stopped)
    before, after = (cells(run.readme_blocks(root)["claims"]) for root in (of_a_run, tmp_path))
    assert [row[:4] for row in after] == [row[:4] for row in before] and after[0][4] == "stopped"
    assert [row[4] for row in after[1:]] == ["✘", "✔", *["✘"] * (len(stopped) - 2)]
    assert f"../{run.FULL}/tables" in run.results_blocks(tmp_path)["results"]


def test_each_notebook_is_listed_with_its_question_and_minutes(of_a_run):
    _, *rows, whole = cells(run.readme_blocks(of_a_run)["notebooks"])
    assert [re.match(r"\[(\w+)\]\(notebooks/\1\.ipynb\)", row[0])[1] for row in rows] == [
        path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ]
    assert all(row[1].endswith("?") for row in rows)
    assert {row[0].split("]")[0]: row[2] for row in rows if row[2] != "-"} == {
        "[01_divergences": "0.5",
        "[04_train": "30.1",
    }
    assert whole[2] == "31"


def test_a_missing_table_of_the_results_is_named(of_a_run, tmp_path):
    shutil.copytree(of_a_run, tmp_path, dirs_exist_ok=True)
    (tmp_path / run.FULL / "tables/table1.csv").unlink()
    with pytest.raises(RunError, match=r"tables/table1\.csv is not there"):
        run.readme_blocks(tmp_path)


# --- Keeping a run ------------------------------------------------------------------------------------


def finished(folder: Path) -> Path:
    """A run as `reference.keep` takes it."""
    made = make_run(folder, methods=("base", "grpo"), seeds=(0,), ablations=False)
    (made / "metrics").mkdir()
    (made / "stages").mkdir()
    write_run_manifest(made, {"profile": folder.name})
    return made


def test_a_run_takes_the_references_place_and_that_of_a_pretrained_model_stays_beside_it(tmp_path):
    place, lm = tmp_path / "reference", finished(tmp_path / "lm")
    reference.keep(lm, place)
    assert (place / "lm/records.parquet").read_bytes() == (lm / "records.parquet").read_bytes()
    assert not (place / "lm/figures").exists() and not (place / "records.parquet").exists()
    (place / "old").mkdir()
    cpu = finished(tmp_path / "cpu")
    reference.keep(cpu, place)
    assert {"figures", "notebooks", "tables", "metrics", "lm"} <= {path.name for path in place.iterdir()}
    assert not (place / "old").exists() and (place / "lm/records.parquet").is_file()
    (cpu / "records.parquet").unlink()
    with pytest.raises(RunError, match=r"run \./run_all\.sh cpu to the end first"):
        reference.keep(cpu, place)
    assert (place / "records.parquet").is_file(), "what was kept is still there"
