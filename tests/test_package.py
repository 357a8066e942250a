"""Wheel and sdist, built from a copy with things in it that do not belong there: what they hold, and that it works."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import dphlib

ROOT = Path(__file__).resolve().parents[1]
NAME = f"dphlib-{dphlib.__version__}"
MODULES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dphlib").rglob("*.py")} | {"dphlib/py.typed"}
CARRIED = {"_notebooks": ROOT / "notebooks", "_reference": ROOT / "artifacts/reference/metrics"}
INFO = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")}


def built(kind: str, source: Path, out: Path) -> Path:
    """A distribution, by the same backend that pip and build call; no network."""
    program = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(out)], cwd=source, check=True, capture_output=True, timeout=120)
    (path,) = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    left_out = shutil.ignore_patterns(".*", "artifacts", "build", "dist", "*.egg-info", "__pycache__")
    root = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("tree") / "copy", ignore=left_out))
    shutil.copytree(ROOT / "artifacts/reference/metrics", root / "artifacts/reference/metrics")
    strays = (
        "dphlib/notes.txt", "dphlib/data/x.py", "artifacts/cpu/records.parquet", "secrets.env", "mine.py",
        "notebooks/mine.ipynb", "notebooks/.ipynb_checkpoints/00_x-checkpoint.ipynb", "notebooks/data.csv",
        "artifacts/reference/claims.json", "artifacts/reference/metrics/mine.json",
    )  # fmt: skip
    for stray in strays:
        (root / stray).parent.mkdir(parents=True, exist_ok=True)
        (root / stray).write_text("")
    return root


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return built("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    return built("sdist", tree, tmp_path_factory.mktemp("sdist"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_modules_notebooks_and_reference_numbers_and_nothing_else(wheel):
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    carried = {
        f"dphlib/{name}/{path.name}": path.read_bytes()
        for name, folder in CARRIED.items()
        for path in folder.iterdir()
        if path.is_file()
    }
    assert len(carried) == 18
    held = contents(wheel)
    assert set(held) == MODULES | INFO | set(carried) | {f"{NAME}.dist-info/licenses/LICENSE"}
    assert {name: held[name] for name in carried} == carried
    assert wheel.stat().st_size < 2**20


def test_the_sdist_holds_the_sources_and_makes_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()}
        archive.extractall(tmp_path, filter="data")
    papers = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "THIRD_PARTY.md"}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("dphlib.egg-info/")}
    carried = {path.relative_to(ROOT).as_posix() for folder in CARRIED.values() for path in folder.glob("*.*")}
    assert names == MODULES | papers | carried | made | {
        "pyproject.toml",
        "constraints.txt",
        "constraints-gpu.txt",
        "MANIFEST.in",
    }
    again = built("wheel", tmp_path / NAME, tmp_path)
    assert contents(again) == contents(wheel)


def test_the_core_asks_for_torch_and_numpy_only(wheel):
    metadata = email.message_from_bytes(contents(wheel)[f"{NAME}.dist-info/METADATA"])
    needs = metadata.get_all("Requires-Dist")
    assert {need for need in needs if "extra ==" not in need} == {"numpy", "torch>=2.11"}
    assert set(metadata.get_all("Provides-Extra")) == {"run", "notebooks", "gpu", "vllm-cpu", "verl", "trl", "dev"}
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_changelogs_newest_version_is_this_one():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == dphlib.__version__
