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
MODULES = {f"dphlib/{path.name}" for path in (ROOT / "dphlib").glob("*.py")} | {"dphlib/py.typed"}
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
    for stray in ("dphlib/notes.txt", "dphlib/data/x.py", "artifacts/cpu/records.parquet", "secrets.env", "mine.py"):
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


def test_the_wheel_holds_the_modules_and_nothing_else(wheel):
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    assert set(contents(wheel)) == MODULES | INFO | {f"{NAME}.dist-info/licenses/LICENSE"}


def test_the_sdist_holds_the_sources_and_makes_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{NAME}/") for member in archive.getmembers() if member.isfile()}
        archive.extractall(tmp_path, filter="data")
    papers = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "THIRD_PARTY.md"}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("dphlib.egg-info/")}
    assert names == MODULES | papers | made | {"pyproject.toml", "constraints.txt", "MANIFEST.in"}
    again = built("wheel", tmp_path / NAME, tmp_path)
    assert contents(again) == contents(wheel)


def test_the_core_asks_for_torch_and_numpy_only(wheel):
    metadata = email.message_from_bytes(contents(wheel)[f"{NAME}.dist-info/METADATA"])
    needs = metadata.get_all("Requires-Dist")
    assert {need for need in needs if "extra ==" not in need} == {"numpy", "torch>=2.11"}
    assert {"notebooks", "gpu", "vllm-cpu", "trl", "dev"} <= set(metadata.get_all("Provides-Extra"))
    assert metadata["License-Expression"] == "Apache-2.0"


def test_readmes_loss_runs_from_the_wheel_away_from_the_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Use it in your own trainer.*?```python\n(.*?)```", readme, re.DOTALL)[1]
    before = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})"
    program = f"{before}\n{code}\nprint(sys.modules['dphlib'].__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, timeout=120)
    assert done.stdout.strip() == str(tmp_path / "site/dphlib/__init__.py"), done.stderr[-2000:]


def test_the_changelogs_newest_version_is_this_one():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == dphlib.__version__
